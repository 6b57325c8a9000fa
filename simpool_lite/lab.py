"""What the first cell of a notebook imports: ``from simpool_lite.lab import ...``.

The names that the course uses, in one place: a page says what it needs and not where that lies. Importing this needs
the packages of ``pip install "simpool-lite[notebooks]"``.
"""

from . import (
    SimPool,
    Spec,
    create_model,
    create_pool,
    generic_pool,
    list_pools,
    load_data,
    load_model,
    replace_pooling,
    save_model,
)
from .datasets.backgrounds import BACKGROUNDS, background_variants
from .device import resolve_device
from .experiments.budgets import BUDGETS
from .experiments.config import RunConfig
from .experiments.evidence import image_errors, judge, recorded_runs
from .experiments.grid import Grid, run, summary
from .experiments.heads import frozen_features
from .experiments.localising import localise
from .experiments.measures import as_shares, baseline_measures, decide_measure, first_images, from_bytes, measured
from .experiments.paper import paper_table, published
from .experiments.run import load_split, train_and_measure, train_and_record
from .experiments.store import COLUMNS, Store, open_store, recorded_results, unpack
from .experiments.suite import Setting, run_experiment
from .figures import (
    COLOURS,
    Explorer,
    State,
    attention_grid,
    decisions,
    draw_digit,
    explorer_figure,
    heat_map,
    localisation_grid,
    metric_bars,
    show_attention,
    trade_off,
    training_curves,
    use_course_style,
)
from .figures.page import explore
from .files import repository_root
from .measure.attention import average_precision, evaluate_attention, object_positions, sharpness
from .measure.classification import evaluate
from .measure.costs import count_costs
from .measure.decide import (
    decide,
    detectable_difference,
    errors_by_source,
    in_sentences,
    level_per_comparison,
    runs_needed,
)
from .measure.localisation import box_accuracy, box_hits, pointing_game, stretched
from .measure.maps import attention_maps
from .measure.stats import (
    order_agreement,
    summarise,
)
from .models.pooled import patch_features
from .pooling import AblatedSimPool, Part, Pool, f_alpha, framework, register_pool
from .pooling.attend import attend
from .pooling.framework import cosine, dot, negative_distance, ones, softmax, split_heads
from .training.probes import fit_heads, probe
from .workbook.exercises import check
