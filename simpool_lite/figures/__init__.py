"""Figures of the course. Only this folder imports matplotlib and seaborn."""

from .explorer import Explorer as Explorer
from .explorer import Network as Network
from .explorer import State as State
from .explorer import default_networks as default_networks
from .explorer import draw_digit as draw_digit
from .explorer import explorer_figure as explorer_figure
from .maps import attention_grid as attention_grid
from .maps import localisation_grid as localisation_grid
from .runs import decisions as decisions
from .runs import heat_map as heat_map
from .runs import metric_bars as metric_bars
from .runs import trade_off as trade_off
from .runs import training_curves as training_curves
from .show import show_attention as show_attention
from .style import COLOURS as COLOURS
from .style import colour_of as colour_of
from .style import use_course_style as use_course_style
