"""Figures of the course. Only this folder imports matplotlib and seaborn.

Each is imported when it is first used: who looks at one photograph does not wait for the statistics of the runs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .maps import attention_grid as attention_grid
    from .runs import comparison as comparison
    from .runs import heat_map as heat_map
    from .runs import metric_bars as metric_bars
    from .runs import trade_off as trade_off
    from .runs import training_curves as training_curves
    from .show import show_attention as show_attention
    from .style import COLOURS as COLOURS
    from .style import colour_of as colour_of
    from .style import use_course_style as use_course_style

_HOME = {
    "attention_grid": "maps",
    "comparison": "runs",
    "heat_map": "runs",
    "metric_bars": "runs",
    "trade_off": "runs",
    "training_curves": "runs",
    "show_attention": "show",
    "COLOURS": "style",
    "colour_of": "style",
    "use_course_style": "style",
}

__all__ = [*_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
