"""What a notebook's first cell imports: ``from simpool_lite.lab import ...``.

The names of the whole package that the course uses, in one place, so that a page says what it needs and not where it
lies. Importing it needs the packages of ``pip install "simpool-lite[notebooks]"``.
"""

from . import create_model, create_pool, generic_pool, list_pools, load_data, load_model, replace_pooling, save_model
from .device import resolve_device
from .experiments import budgets, suite
from .experiments.config import RunConfig
from .experiments.grid import Grid, run, summary
from .experiments.run import load_split, train_and_measure, train_and_record
from .experiments.store import Store, open_store
from .files import repository_root
from .measure.attention import average_precision, evaluate_attention, object_positions, sharpness
from .measure.classification import evaluate
from .measure.costs import Costs, count_costs
from .pooling import Part, Pool, SimPool, Spec, f_alpha, register_pool

__all__ = [
    "Costs",
    "Grid",
    "Part",
    "Pool",
    "RunConfig",
    "SimPool",
    "Spec",
    "Store",
    "average_precision",
    "budgets",
    "count_costs",
    "create_model",
    "create_pool",
    "evaluate",
    "evaluate_attention",
    "f_alpha",
    "generic_pool",
    "list_pools",
    "load_data",
    "load_model",
    "load_split",
    "object_positions",
    "open_store",
    "register_pool",
    "replace_pooling",
    "repository_root",
    "resolve_device",
    "run",
    "save_model",
    "sharpness",
    "suite",
    "summary",
    "train_and_measure",
    "train_and_record",
]
