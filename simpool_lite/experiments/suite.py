"""The experiments of the course: which notebook asks which question, and the runs that answer it.

Factors are varied one at a time around SimPool as published. Runs that two experiments share are computed once.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

import pandas as pd

from ..checks import check_choice
from .budgets import BUDGETS, GPU_IMAGES, OTHER, PROFILES, SMOKE_IMAGES, SMOKE_SEEDS, Budget
from .config import REGIMES
from .grid import Grid, run
from .store import Store

Kind = Literal["convnet", "transformer", "any"]

BACKBONES = {"convnet": "convnet_micro", "transformer": "vit_micro"}
GPU_BACKBONES = {"convnet": "resnet18", "transformer": "vit_small_patch16_224"}


@dataclass(frozen=True)
class Experiment:
    """One table of a notebook, on one kind of backbone.

    Args:
        name: of the experiment; parts on another backbone or under another condition have the same name.
        notebook: the number of the notebook that shows it.
        question: what it answers.
        kind: of the backbone; "any" is the one that the reader named, else the ConvNet.
        variants: name to the fields of :class:`~simpool_lite.experiments.config.RunConfig` that differ; those without
            a ``pool`` are SimPool.
        smoke: the variants that the profile "smoke" keeps.
        budget: a name in :data:`~simpool_lite.experiments.budgets.BUDGETS`.
        paper: the rows of the paper beside it, as arguments of :func:`~simpool_lite.experiments.paper.published`.
        condition: what is special about this part.
        images: options of photo-digits that differ.
        changes: further fields that all variants share.
        keep_models: seeds below this keep their trained model.
        most_seeds: how many are enough, whatever the setting says.
        baseline: the variant that the others are compared with.
        regimes: in which it is run.
    """

    name: str
    notebook: str
    question: str
    kind: Kind
    variants: dict[str, dict]
    smoke: tuple[str, ...]
    budget: str = "short"
    paper: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    condition: str = ""
    images: dict = field(default_factory=dict)
    changes: dict = field(default_factory=dict)
    keep_models: int = 0
    most_seeds: int = 1000
    baseline: str = "SimPool"
    regimes: tuple[str, ...] = ("epochs",)


HEAD_SEEDS = 6  # at least: two for each of three trunks
TRUNKS = {"convnet": ("GAP", "GeM", "SimPool"), "transformer": ("CLS", "GAP", "SimPool")}  # what trains them

METHODS = {
    "GAP": {"pool": "gap"},
    "max": {"pool": "max"},
    "GeM": {"pool": "gem"},
    "LSE": {"pool": "lse"},
    "HOW": {"pool": "how"},
    "k-means": {"pool": "kmeans"},
    "OTK": {"pool": "otk"},
    "Slot": {"pool": "slot"},
    "SE": {"pool": "se"},
    "CBAM": {"pool": "cbam"},
    "GE": {"pool": "ge"},
    "ViT": {"pool": "vit", "pool_kwargs": {"depth": 2}},
    "CaiT": {"pool": "cait", "pool_kwargs": {"layer_scale": 1e-5}},
    "SimPool": {"pool": "simpool"},
}
CLS = {"CLS": {"pool": "cls"}}
WINNERS = {name: METHODS[name] for name in ("GAP", "GE", "Slot", "CaiT", "SimPool")}  # the paper's Table 2
UNIVERSAL = {name: METHODS[name] for name in ("GAP", "max", "GeM", "CaiT", "SimPool")}
HEADLINE = {name: METHODS[name] for name in ("GAP", "SimPool")}
MORE_IMAGES = 4 * 4096

CONDITIONS = {
    "default": {},
    "small digit": {"images": {"object_size": (11, 17)}},
    "large digit": {"images": {"object_size": (25, 31)}},
    "no fragments": {"images": {"distractors": 0}},
    "8 fragments": {"images": {"distractors": 8}},
    "photo": {"changes": {"target": "photo"}},
}
LEFT_OF_TABLE_10 = {"table": "10", "setting": ("gamma 2", "gamma 2, layers or iterations uncertain")}
SUBSETS = ["".join(letters) for size in range(4) for letters in combinations("qkv", size)]


def _simpool(**pool_kwargs: object) -> dict:
    return {"pool_kwargs": pool_kwargs}


def _ablated(**pool_kwargs: object) -> dict:
    return {"pool": "ablated_simpool", "pool_kwargs": pool_kwargs}


def _vectors(k: int) -> dict[str, dict]:
    several = _ablated(init="kmeans", k=k, reduce="concat")
    return {f"k = {k}, max": several | {"model_options": {"max_logits": True}}, f"k = {k}, concat": several}


EXPERIMENTS = (
    Experiment(
        name="headline",
        notebook="00",
        question="what a transformer gains when SimPool replaces its class token or its average",
        kind="transformer",
        variants=CLS | HEADLINE | {"gamma 1.25": _simpool(gamma=1.25)},
        smoke=("CLS", "GAP", "SimPool"),
        keep_models=3,
        regimes=("once",),
    ),
    Experiment(
        name="headline",
        notebook="00",
        question="what a ConvNet gains when SimPool replaces its average",
        kind="convnet",
        variants=HEADLINE | {"GeM": METHODS["GeM"], "gamma 2": _simpool(gamma=2.0)},
        smoke=("GAP", "SimPool"),
        keep_models=3,
        regimes=("once",),
    ),
    Experiment(
        name="background",
        notebook="11",
        question="what a ConvNet's accuracy owes to a background that gives the digit away",
        kind="convnet",
        variants=HEADLINE,
        smoke=("GAP", "SimPool"),
        images={"correlation": 0.9, "num_images": 32768},
        regimes=("once",),
    ),
    Experiment(
        name="first-light",
        notebook="00",
        question="what a transformer gains when SimPool replaces its class token or its average",
        kind="transformer",
        variants=CLS | HEADLINE,
        smoke=("CLS", "GAP", "SimPool"),
        budget="full",
        keep_models=1,
    ),
    Experiment(
        name="first-light",
        notebook="00",
        question="what a ConvNet gains when SimPool replaces its average",
        kind="convnet",
        variants=HEADLINE,
        smoke=("GAP", "SimPool"),
        budget="full",
        keep_models=1,
    ),
    Experiment(
        name="more-images",
        notebook="00",
        question="the same on four times the images, so that the transformer cannot learn them by heart",
        kind="transformer",
        variants=CLS | HEADLINE,
        smoke=("CLS", "GAP", "SimPool"),
        budget="full",
        images={"num_images": MORE_IMAGES},
        changes={"epochs": 5},
        most_seeds=2,
    ),
    Experiment(
        name="tournament",
        notebook="04",
        question="which of fourteen poolings a ConvNet needs",
        kind="convnet",
        variants=METHODS,
        smoke=("GAP", "SimPool"),
        budget="tournament",
        paper={"table": "2", "network": "ResNet-50", "setting": "100 epochs"},
    ),
    Experiment(
        name="tournament",
        notebook="04",
        question="which of six poolings a transformer needs",
        kind="transformer",
        variants=CLS | WINNERS,
        smoke=("CLS", "SimPool"),
        budget="tournament",
        paper={"table": "2", "network": "ViT-S", "setting": ("100 epochs", "100 epochs, no gamma")},
    ),
    *(
        Experiment(
            name="who-wins-where",
            notebook="04",
            question="whether the best pooling depends on the size of the object, the clutter and the task",
            kind="any",
            variants=UNIVERSAL,
            smoke=("GAP", "SimPool"),
            budget="tournament",
            condition=condition,
            **changes,
        )
        for condition, changes in CONDITIONS.items()
    ),
    Experiment(
        name="init",
        notebook="05",
        question="where the query starts",
        kind="convnet",
        variants={"SimPool": {}}
        | {f"U0 {start}": _ablated(init=start) for start in ("max", "energy", "learned", "random")},
        smoke=("SimPool", "U0 learned"),
        paper=LEFT_OF_TABLE_10,
        regimes=("epochs", "head", "once"),
    ),
    Experiment(
        name="init",
        notebook="05",
        question="where the query of a transformer starts",
        kind="transformer",
        variants={"SimPool": {}, "U0 learned": _ablated(init="learned"), "U0 CLS": _ablated(init="cls")},
        smoke=("SimPool", "U0 CLS"),
        paper=LEFT_OF_TABLE_10,
    ),
    Experiment(
        name="iterations",
        notebook="05",
        question="one step or more, with the same parameters in each step or with its own",
        kind="any",
        variants={"SimPool": {}}
        | {f"{T} iterations": _ablated(T=T) for T in (2, 3, 5)}
        | {f"{T} layers": _ablated(T=T, separate=True) for T in (2, 3, 5)},
        smoke=("SimPool", "3 iterations"),
        paper=LEFT_OF_TABLE_10,
    ),
    Experiment(
        name="layernorm",
        notebook="06",
        question="which of query, keys and values need a LayerNorm",
        kind="any",
        variants={"SimPool": {}} | {f"LN {s or 'none'}": _ablated(norm=s) for s in SUBSETS if s != "kv"},
        smoke=("SimPool", "LN none"),
        regimes=("epochs", "head", "once"),
    ),
    Experiment(
        name="linear",
        notebook="06",
        question="which of query, keys and values need a linear map, and whether two can share one",
        kind="any",
        variants={"SimPool": {}}
        | {f"W {s or 'none'}": _ablated(linear=s) for s in ("", "q", "k", "qkv")}
        | {"W_Q = W_K": _ablated(tied=True), "LN qkv, W qkv": _ablated(norm="qkv", linear="qkv")},
        smoke=("SimPool", "W_Q = W_K"),
        paper=LEFT_OF_TABLE_10,
    ),
    Experiment(
        name="norm-order",
        notebook="06",
        question="whether a transformer is pooled after its final norm or before it",
        kind="transformer",
        variants={
            "SimPool": {},
            "LN none": _ablated(norm=""),
            "before the norm": {"norm_first": False},
            "before the norm, LN none": _ablated(norm="") | {"norm_first": False},
        },
        smoke=("SimPool", "before the norm"),
    ),
    Experiment(
        name="exponent",
        notebook="07",
        question="what the exponent gamma does, fixed and learned",
        kind="any",
        variants={"SimPool": {}}
        | {f"gamma {g:g}": _simpool(gamma=g) for g in (1.0, 1.25, 1.5, 2.0, 3.0, 5.0)}
        | {"gamma learned": _ablated(gamma=2.0, learn_gamma=True)},
        smoke=("SimPool", "gamma 2"),
        regimes=("epochs", "head", "once"),
        keep_models=1,
    ),
    Experiment(
        name="shift",
        notebook="07",
        question="what the minimum runs over, at gamma 2",
        kind="any",
        variants={"shift image": _simpool(gamma=2.0)}
        | {f"shift {name}": _simpool(gamma=2.0, shift=name) for name in ("batch", "channel")},
        smoke=("shift image", "shift batch"),
        baseline="shift image",
    ),
    Experiment(
        name="heads",
        notebook="08",
        question="how many heads",
        kind="any",
        variants={"SimPool": {}} | {f"{m} heads": _simpool(num_heads=m) for m in (2, 4, 8)},
        smoke=("SimPool", "4 heads"),
        paper=LEFT_OF_TABLE_10,
    ),
    Experiment(
        name="similarity",
        notebook="08",
        question="how query and key are compared",
        kind="any",
        variants={"SimPool": {}} | {name: _ablated(similarity=name) for name in ("cosine", "distance")},
        smoke=("SimPool", "cosine"),
        paper=LEFT_OF_TABLE_10,
    ),
    Experiment(
        name="attention",
        notebook="08",
        question="how similarity becomes attention; GAP has none",
        kind="any",
        variants={
            "SimPool": {},
            "other axis": _ablated(attention="softmax_over_vectors"),
            "sparsemax": _ablated(attention="sparsemax"),
            "sigmoid": _ablated(attention="sigmoid"),
            "GAP": METHODS["GAP"],
        },
        smoke=("SimPool", "sparsemax", "GAP"),
        paper=LEFT_OF_TABLE_10,
    ),
    Experiment(
        name="vectors",
        notebook="08",
        question="k queries from k-means, joined by concatenation or by the maximum of the logits",
        kind="any",
        variants={"SimPool": {}} | _vectors(2) | _vectors(3) | _vectors(5),
        smoke=("SimPool", "k = 2, max"),
        paper=LEFT_OF_TABLE_10,
    ),
)


@dataclass(frozen=True)
class Setting:
    """What the parameters of a notebook say.

    Args:
        profile: "smoke" executes every line in seconds, "laptop" is what was recorded, "gpu" is for larger backbones
            and data, with larger batches.
        seeds: how many.
        dataset: see :func:`~simpool_lite.load_data`.
        data_root: see there, too.
        backbone: any timm model; None is ``convnet_micro`` and ``vit_micro``, or larger ones under "gpu".

    Raises:
        ValueError: there is no such profile.

    >>> [grid.base["backbone"] for grid in Setting().grids("init")]
    ['convnet_micro', 'vit_micro']
    """

    profile: str = "laptop"
    seeds: int = 5
    dataset: str = "photo-digits"
    data_root: str | None = None
    backbone: str | None = None

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"profile: expected one of {', '.join(PROFILES)}, got {self.profile!r}")

    @property
    def recorded(self) -> bool:
        """Whether the runs in ``data/results`` are of this setting, so that sentences about them can be checked."""
        return (self.profile, self.dataset, self.backbone) == ("laptop", "photo-digits", None)

    def backbones(self) -> dict[str, str]:
        """The ConvNet and the transformer to experiment with, or the one of them that the reader named."""
        if self.backbone:
            return {"transformer" if is_transformer(self.backbone) else "convnet": self.backbone}
        return GPU_BACKBONES if self.profile == "gpu" else BACKBONES

    def grids(self, name: str, regime: str = "epochs") -> list[Grid]:
        """The grids of an experiment, one per backbone and, in the regime "head", per kind of trunk.

        There is none for a kind of backbone that the reader did not name, and none for a regime in which the experiment
        is not run.

        Raises:
            ValueError: there is no such experiment or regime.
        """
        check_choice("regime", regime, REGIMES)
        parts = [(part, grid) for part, grid in self._parts(name) if regime in part.regimes]
        if regime == "epochs":
            return [grid for _, grid in parts]
        if regime == "once":
            return [self._once(part, grid) for part, grid in parts]
        return [grid for part, grid in parts for grid in self._heads(part, grid)]

    def conditions(self, name: str) -> dict[str, Grid]:
        """The grids of an experiment by condition."""
        return {part.condition: grid for part, grid in self._parts(name)}

    def base(self, backbone: str, experiment: Experiment | None = None, budget: str = "short") -> dict:
        """The fields of a :class:`~simpool_lite.experiments.config.RunConfig` that the runs on a backbone share."""
        if experiment is not None:
            budget = experiment.budget
        allowed = BUDGETS[budget].get(backbone, OTHER)
        base = {"backbone": backbone, "dataset": self.dataset, "data_root": self.data_root, "epochs": allowed.epochs}
        if self.profile == "gpu":
            base["batch_size"] = 128
        if self.dataset == "photo-digits":
            images = (GPU_IMAGES if self.profile == "gpu" else allowed.images) | (
                experiment.images if experiment else {}
            )
            base |= {"target": "digit", "data_options": images | (SMOKE_IMAGES if self.profile == "smoke" else {})}
        base |= experiment.changes if experiment else {}
        return base | ({"epochs": 1} if self.profile == "smoke" else {})

    def _once(self, part: Experiment, grid: Grid) -> Grid:
        backbone = grid.base["backbone"]
        base = self._protocol_2("once", backbone, part)
        variants = {
            name: self._variant("once", backbone, name, part.variants[name], base.get("model_options", {}))
            for name in grid.variants
        }
        return replace(grid, base=base, variants=variants)

    def _heads(self, part: Experiment, grid: Grid) -> list[Grid]:
        """On the features of networks that were trained in "once"."""
        backbone = grid.base["backbone"]
        once = self._protocol_2("once", backbone, part)
        kind = "transformer" if is_transformer(backbone) else "convnet"
        variants = {
            name: self._variant("head", backbone, name, part.variants[name], {})
            for name in grid.variants
            if "cls" not in str(part.variants[name])  # a head sees no class token
        }
        base = self._protocol_2("head", backbone, part)
        grids = []
        for trained_with in TRUNKS[kind][: 1 if self.profile == "smoke" else None]:
            options = (METHODS | CLS)[trained_with]
            trunk = once | self._variant("once", backbone, trained_with, options, once.get("model_options", {}))
            heads = replace(grid, base=base, variants=variants, trunk=trunk)
            seeds = grid.seeds if self.profile == "smoke" else max(grid.seeds, HEAD_SEEDS)
            grids.append(replace(heads, seeds=seeds, keep_models=0))
        return grids

    def _protocol_2(self, regime: str, backbone: str, part: Experiment) -> dict:
        """The fields that all runs of a backbone share in a regime."""
        budget = BUDGETS[regime].get(backbone, OTHER)
        base = {"backbone": backbone, "dataset": self.dataset, "data_root": self.data_root, "regime": regime}
        base |= {"epochs": budget.epochs, "batch_size": budget.batch_size}
        if budget.model_options:
            base["model_options"] = budget.model_options
        if self.dataset == "photo-digits":
            images = budget.images | part.images | (SMOKE_IMAGES if self.profile == "smoke" else {})
            base |= {"target": "digit", "data_options": images}
        base |= part.changes
        return base | ({"epochs": 1} if self.profile == "smoke" else {})

    def _variant(self, regime: str, backbone: str, name: str, changes: dict, model_options: dict) -> dict:
        changes = {"pool": "simpool"} | changes
        if options := model_options | changes.get("model_options", {}):
            changes["model_options"] = options
        rate = BUDGETS[regime].get(backbone, OTHER).learning_rates.get(name, 1e-3)
        return changes | {"learning_rate": rate}

    def _parts(self, name: str) -> list[tuple[Experiment, Grid]]:
        parts = [experiment for experiment in EXPERIMENTS if experiment.name == name]
        if not parts:
            names = ", ".join(dict.fromkeys(experiment.name for experiment in EXPERIMENTS))
            raise ValueError(f"name: expected an experiment ({names}), got {name!r}")
        grids = ((part, self._grid(part)) for part in parts if part.condition in self._conditions())
        return [(part, grid) for part, grid in grids if grid is not None]

    def _conditions(self) -> Collection[str]:
        """Which conditions there are; only photo-digits has more than the default."""
        if self.dataset != "photo-digits":
            return ("", "default")
        return ("", "default", "photo") if self.profile == "smoke" else ("", *CONDITIONS)

    def _grid(self, experiment: Experiment) -> Grid | None:
        backbones = self.backbones()
        backbone = next(iter(backbones.values())) if experiment.kind == "any" else backbones.get(experiment.kind)
        if backbone is None:
            return None
        smoke, variants = self.profile == "smoke", experiment.variants
        if smoke:
            variants = {name: variants[name] for name in experiment.smoke}
        budget = BUDGETS[experiment.budget].get(backbone, OTHER)
        return Grid(
            experiment.name,
            self.base(backbone, experiment),
            {name: with_learning_rate(changes, budget) for name, changes in variants.items()},
            min(self.seeds, experiment.most_seeds, SMOKE_SEEDS if smoke else self.seeds),
            self.profile,
            experiment.keep_models,
            experiment.baseline,
        )


def run_heads(setting: Setting, name: str, store: Store, **how: object) -> dict[str, pd.DataFrame]:
    """The runs of an experiment in the regime "head", by the trunk whose features they pool: "GAP trunk", ...

    Args:
        setting: of the notebook.
        name: of the experiment.
        store: as in :func:`~simpool_lite.experiments.grid.run`, which has the further arguments, too.
    """
    found = {}
    for grid in setting.grids(name, "head"):
        trained_with = next(
            label for label, changes in (CLS | METHODS).items() if changes["pool"] == grid.trunk["pool"]
        )
        label = f"{trained_with} trunk"
        found[label if label not in found else f"{label}, {grid.base['backbone']}"] = run(grid, store, **how)
    return found


def with_learning_rate(changes: dict, budget: Budget) -> dict:
    """A variant with its pooling, SimPool unless it names one, and the learning rate of that pooling."""
    changes = {"pool": "simpool"} | changes
    return changes | {"learning_rate": budget.learning_rate(changes["pool"])}


def table_of_records(records: pd.DataFrame) -> pd.DataFrame:
    """The recorded runs of protocol 2: one row per experiment, regime, backbone and what trained the trunk.

    Returns:
        Columns ``experiment regime backbone trunk runs fewest hours``: how many runs there are, how many of the variant
        that has fewest, and their time in processor hours.
    """
    records = records[records.protocol > 1]
    trunk = records.trunk.str.rsplit(" ", n=1).str[0].fillna("-")
    groups = records.assign(trunk=trunk).groupby(["experiment", "regime", "backbone", "trunk"])
    fewest = groups.apply(lambda runs: runs.variant.value_counts().min())
    return pd.DataFrame({"runs": groups.size(), "fewest": fewest, "hours": groups.seconds.sum() / 3600}).reset_index()


def is_transformer(backbone: str) -> bool:
    """Whether a backbone has a class token that could be its pooling."""
    return backbone.startswith(("vit", "deit"))


def notebooks() -> dict[str, list[str]]:
    """The experiments that each notebook shows, by its number."""
    shown: dict[str, list[str]] = {}
    for experiment in EXPERIMENTS:
        names = shown.setdefault(experiment.notebook, [])
        if experiment.name not in names:
            names.append(experiment.name)
    return shown


def runs_table() -> pd.DataFrame:
    """What the laptop profile runs in the regime "epochs": one row per experiment and backbone.

    Returns:
        Columns ``experiment notebook backbone runs question``; runs that an earlier row has are not counted.
    """
    setting, seen, rows = Setting(), set(), []
    for experiment in (part for part in EXPERIMENTS if "epochs" in part.regimes):
        grid = setting._grid(experiment)
        hashes = {config.hash() for _, config in grid.runs()}
        row = {"experiment": experiment.name, "notebook": experiment.notebook, "backbone": grid.base["backbone"]}
        rows.append(row | {"runs": len(hashes - seen), "question": experiment.question})
        seen |= hashes
    keys = ["experiment", "notebook", "backbone", "question"]
    return pd.DataFrame(rows).groupby(keys, sort=False).runs.sum().reset_index()
