"""The experiments of the course: which notebook asks which question, and the runs that answer it.

Factors are varied one at a time around SimPool as published. Runs that two experiments share are computed once.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import pandas as pd

from ..checks import check_choice, check_int
from ..datasets import DATASETS
from ..models.create import check_backbone
from .budgets import BUDGETS, GPU_IMAGES, ONCE, OTHER, PASSES_OVER_A_FIXED_SET, PROFILES, SMOKE_IMAGES, SMOKE_SEEDS
from .config import REGIMES
from .evidence import PLANNED_SEEDS, recorded_runs
from .grid import TRUNK_SEEDS, Grid, run
from .store import open_store

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
        paper: the rows of the paper beside it, as arguments of :func:`~simpool_lite.experiments.paper.published`.
        condition: what is special about this part.
        images: options of photo-digits that differ.
        changes: further fields that all variants share.
        data: fields that say which images, for the trunks, too, whatever data set the reader named.
        keep_models: seeds below this keep their trained model.
        baseline: the variant that the others are compared with.
        regimes: in which it is run.
        trunks: for "head": what the trunks are trained with; left out, all of :data:`TRUNKS`.
    """

    name: str
    notebook: str
    question: str
    kind: Kind
    variants: dict[str, dict]
    smoke: tuple[str, ...]
    paper: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    condition: str = ""
    images: dict = field(default_factory=dict)
    changes: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    keep_models: int = 0
    baseline: str = "SimPool"
    regimes: tuple[str, ...] = ("head",)
    trunks: tuple[str, ...] = ()


TRUNKS = {"convnet": ("GAP", "GeM", "SimPool"), "transformer": ("CLS", "GAP", "SimPool")}  # what trains them

# Several vectors are classified each, and each class takes its largest logit: as in the paper's Figure 3.
MAX_LOGITS = {"model_options": {"max_logits": True}}
LARGEST_LOGIT = {"pool_kwargs": {"reduce": "concat"}} | MAX_LOGITS
METHODS = {
    "GAP": {"pool": "gap"},
    "max": {"pool": "max"},
    "GAP+max": {"pool": "gap_max"},
    "GeM": {"pool": "gem"},
    "LSE": {"pool": "lse"},
    "HOW": {"pool": "how"},
    "k-means": {"pool": "kmeans"} | LARGEST_LOGIT,
    "OTK": {"pool": "otk"} | LARGEST_LOGIT,
    "Slot": {"pool": "slot"} | LARGEST_LOGIT,
    "SE": {"pool": "se"},
    "CBAM": {"pool": "cbam"},
    "GE": {"pool": "ge"},
    "ViT": {"pool": "vit"},
    "CaiT": {"pool": "cait"},
    "SimPool": {"pool": "simpool"},
}
CLS = {"CLS": {"pool": "cls"}}
# The attentive probes on 8 x 8 positions, the linear probe first. EP is the published one; the others say how many
# queries it has and how wide its output is.
PROBES = {
    "GAP": {"pool": "gap"},
    "SimPool": {"pool": "simpool"},
    "eSimPool": {"pool": "esimpool"},
    "EP": {"pool": "ep"},
    "AIM": {"pool": "aim"},
    "CAE": {"pool": "cae"},
    "CLIP": {"pool": "clip", "pool_kwargs": {"feat_size": 8}},
    "CoCa": {"pool": "coca"},
    "DOLG": {"pool": "dolg"},
    "JEPA": {"pool": "jepa"},
    "SigLIP": {"pool": "siglip"},
    "ABMILP": {"pool": "abmilp"},
    "DINO block": {"pool": "dinovit"},
}
EP_TRADE = {
    f"EP {queries}, {width}": {"pool": "ep", "pool_kwargs": {"num_queries": queries, "d_out": d_out}}
    for queries, width, d_out in ((1, "d", 1), (8, "d", 1), (1, "d/4", 4), (8, "d/4", 4))
}
# The best on "val" where it is not that of the GAP trunk asked for the digit (of the slow ABMILP and DINO block: where
# it is better by more than 0.15 points).
PROBES_AT = {
    "SimPool trunk": {
        "GAP": 0.06,
        "eSimPool": 0.06,
        "EP": 0.12,
        "AIM": 0.03,
        "CoCa": 0.01,
        "JEPA": 0.003,
        "SigLIP": 0.03,
        "EP 1, d": 0.12,
        "EP 8, d": 0.12,
        "EP 1, d/4": 0.24,
        "EP 8, d/4": 0.12,
    },
    "photo": {
        "GAP": 0.12,
        "SimPool": 0.003,
        "eSimPool": 0.06,
        "EP": 0.03,
        "AIM": 0.03,
        "CLIP": 0.01,
        "DOLG": 0.03,
        "SigLIP": 0.01,
        "ABMILP": 0.01,
    },
    "odd": {
        "GAP": 0.96,
        "eSimPool": 0.12,
        "EP": 0.06,
        "AIM": 0.03,
        "CAE": 0.01,
        "CLIP": 0.01,
        "DOLG": 0.00075,
        "SigLIP": 0.01,
    },
    "CIFAR-10": {
        "GAP": 0.06,
        "SimPool": 0.03,
        "eSimPool": 0.06,
        "EP": 0.03,
        "AIM": 0.03,
        "CAE": 0.03,
        "CLIP": 0.03,
        "JEPA": 0.03,
        "SigLIP": 0.03,
        "DINO block": 0.01,
    },
}
UNIVERSAL = {name: METHODS[name] for name in ("GAP", "max", "GeM", "SimPool")}

CONDITIONS = {
    "default": {},
    "small digit": {"images": {"object_size": (9, 13)}},
    "large digit": {"images": {"object_size": (20, 24)}},
    "no fragments": {"images": {"distractors": 0}},
    "eight fragments": {"images": {"distractors": 8}},
    "photo": {"changes": {"target": "photo"}},
}
THREE_DIGITS = {"size": 48, "object_size": (13, 16)}  # of a size that the trunk knows
LEFT_OF_TABLE_10 = {"table": "10", "setting": ("gamma 2", "gamma 2, layers or iterations uncertain")}
SUBSETS = ["".join(letters) for size in range(4) for letters in combinations("qkv", size)]


def _at(rates: dict[str, float], variants: dict[str, dict]) -> dict[str, dict]:
    return {
        name: fields | ({"learning_rate": rates[name]} if name in rates else {}) for name, fields in variants.items()
    }


def _simpool(**pool_kwargs: object) -> dict:
    return {"pool_kwargs": pool_kwargs}


def _ablated(**pool_kwargs: object) -> dict:
    return {"pool": "ablated_simpool", "pool_kwargs": pool_kwargs}


CIFAR = {"dataset": "folder", "data_root": "cifar10-jpeg", "data_options": {"image_size": 32}}
ON_CIFAR = UNIVERSAL | {
    "gamma 2": _simpool(gamma=2.0),
    "LN none": _ablated(norm=""),
    "U0 learned": _ablated(init="learned"),
}
CIFAR_RATES = {  # the best on "val" on average over both trunks
    "convnet": {
        "GAP": 0.01,
        "max": 0.04,
        "GeM": 0.04,
        "SimPool": 0.02,
        "gamma 2": 0.01,
        "LN none": 0.01,
        "U0 learned": 0.04,
    },
    "transformer": {
        "GAP": 0.02,
        "max": 0.04,
        "GeM": 0.04,
        "SimPool": 0.01,
        "gamma 2": 0.01,
        "LN none": 0.01,
        "U0 learned": 0.02,
    },
}
DEPTHS = {"CLS": range(1, 7), "GAP": range(1, 5), "SimPool": range(1, 5)}  # in blocks, as in the paper's Table 9
STARTS = {"SimPool": {}} | {f"U0 {start}": _ablated(init=start) for start in ("max", "energy", "learned", "random")}

EXPERIMENTS = (
    Experiment(
        name="headline",
        notebook="00",
        question="what a transformer gains when SimPool replaces its class token or its average",
        kind="transformer",
        variants=CLS | {name: METHODS[name] for name in ("GAP", "SimPool")},
        smoke=("CLS", "GAP", "SimPool"),
        keep_models=TRUNK_SEEDS,
        regimes=("once", "long"),
    ),
    Experiment(
        name="headline",
        notebook="00",
        question="what a ConvNet gains when SimPool replaces its average",
        kind="convnet",
        variants={name: METHODS[name] for name in ("GAP", "GeM", "SimPool")} | {"gamma 2": _simpool(gamma=2.0)},
        smoke=("GAP", "SimPool"),
        keep_models=TRUNK_SEEDS,
        regimes=("once", "long"),
    ),
    Experiment(
        name="depth",
        notebook="00",
        question="how many blocks of a transformer another pooling is worth",
        kind="transformer",
        variants={
            f"{name}, {depth} block{'s' * (depth > 1)}": (METHODS | CLS)[name]
            | {"learning_rate": ONCE["vit_micro"].learning_rates[name], "model_options": {"depth": depth}}
            for name, depths in DEPTHS.items()
            for depth in depths
        },
        smoke=("CLS, 1 block", "SimPool, 1 block"),
        baseline="SimPool, 2 blocks",
        regimes=("once",),
    ),
    Experiment(
        name="further-maps",
        notebook="10",
        question="where transformers look that are trained with GeM, or with SimPool and its exponent for them",
        kind="transformer",
        variants={"GeM": METHODS["GeM"], "gamma 1.25": _simpool(gamma=1.25)},
        smoke=("GeM", "gamma 1.25"),
        baseline="GeM",
        regimes=("once",),
    ),
    Experiment(
        name="background",
        notebook="11",
        question="what a ConvNet's accuracy owes to a background that gives the digit away",
        kind="convnet",
        variants={"GAP": METHODS["GAP"], "SimPool": {}},
        smoke=("GAP", "SimPool"),
        images={"correlation": 0.9, "num_images": 32768},
        regimes=("once",),
    ),
    Experiment(
        name="scene",
        notebook="05",
        question="the same ConvNets where the photograph is the answer: does the query follow the image?",
        kind="convnet",
        variants={"GAP": METHODS["GAP"], "SimPool": {}},
        smoke=("GAP", "SimPool"),
        changes={"target": "photo"},
        keep_models=TRUNK_SEEDS,
        regimes=("once",),
    ),
    Experiment(
        name="tournament",
        notebook="04",
        question="which of fifteen poolings is best, on given features and in a network that trains with it",
        kind="convnet",
        variants=METHODS,
        smoke=("GAP", "SimPool"),
        regimes=("head", "once"),
        trunks=("GAP",),
        paper={"table": "2", "network": "ResNet-50", "setting": "100 epochs"},
    ),
    Experiment(
        name="trunk-and-head",
        notebook="04",
        question="what training with one pooling does to the features for the others",
        kind="convnet",
        variants=UNIVERSAL,
        smoke=("GAP", "SimPool"),
    ),
    *(
        Experiment(
            name="who-wins-where",
            notebook="04",
            question="whether the best pooling depends on the size of the object and on the task",
            kind="any",
            variants=UNIVERSAL,
            smoke=("GAP", "SimPool"),
            trunks=("GAP",),
            condition=condition,
            **changes,
        )
        for condition, changes in CONDITIONS.items()
    ),
    *(
        Experiment(
            name="cifar10",
            notebook="04",
            question="whether what holds on photo-digits holds on CIFAR-10, whose objects fill the image",
            kind=kind,
            variants={name: fields | {"learning_rate": rates[name]} for name, fields in ON_CIFAR.items()},
            smoke=("GAP", "SimPool"),
            trunks=("GAP", "SimPool"),
            data=CIFAR,
        )
        for kind, rates in CIFAR_RATES.items()
    ),
    Experiment(
        name="cifar10",
        notebook="04",
        question="whether networks that learn CIFAR-10, each with its own pooling, differ",
        kind="convnet",
        variants=ON_CIFAR,
        smoke=("GAP", "SimPool"),
        data=CIFAR,
        regimes=("once",),
    ),
    Experiment(
        name="cifar10",
        notebook="04",
        question="whether transformers that learn CIFAR-10 with the average and with SimPool differ",
        kind="transformer",
        variants={name: ON_CIFAR[name] for name in ("GAP", "SimPool")},
        smoke=("GAP", "SimPool"),
        data=CIFAR,
        regimes=("once",),
    ),
    Experiment(
        name="init",
        notebook="05",
        question="where the query starts",
        kind="any",
        variants=STARTS,
        smoke=("SimPool", "U0 learned"),
        paper=LEFT_OF_TABLE_10,
        regimes=("head", "once"),
    ),
    Experiment(
        name="init-transformer",
        notebook="05",
        question="where the query starts on the patches of a transformer",
        kind="transformer",
        variants=STARTS,
        smoke=("SimPool", "U0 learned"),
        trunks=("GAP", "SimPool"),
    ),
    Experiment(
        name="init-scene",
        notebook="05",
        question="where the query starts if the photograph is the answer",
        kind="convnet",
        variants=STARTS,
        smoke=("SimPool", "U0 learned"),
        trunks=("GAP",),
        changes={"target": "photo"},
    ),
    Experiment(
        name="init-odd",
        notebook="05",
        question="where the query starts if the odd one of three digits is the answer",
        kind="convnet",
        variants=STARTS,
        smoke=("SimPool", "U0 learned"),
        trunks=("GAP",),
        images=THREE_DIGITS,
        changes={"target": "odd"},
    ),
    Experiment(
        name="steps",
        notebook="05",
        question="what further steps of attention add, with the same parameters or with each step's own",
        kind="any",
        variants={"SimPool": {}}
        | {f"{T} iterations": _ablated(T=T) for T in (3, 5)}
        | {f"{T} layers": _ablated(T=T, separate=True) for T in (3, 5)},
        smoke=("SimPool", "3 iterations"),
        trunks=("GAP",),
        paper=LEFT_OF_TABLE_10,
    ),
    Experiment(
        name="layernorm",
        notebook="06",
        question="which of query, keys and values need a LayerNorm",
        kind="any",
        variants={"SimPool": {}} | {f"LN {s or 'none'}": _ablated(norm=s) for s in SUBSETS if s != "kv"},
        smoke=("SimPool", "LN none"),
        regimes=("head", "once"),
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
        trunks=("GAP",),
        paper=LEFT_OF_TABLE_10,
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
        regimes=("head", "once"),
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
        trunks=("GAP",),
        baseline="shift image",
    ),
    Experiment(
        name="heads",
        notebook="08",
        question="how many heads",
        kind="any",
        variants={"SimPool": {}} | {f"{m} heads": _simpool(num_heads=m) for m in (2, 4, 8)},
        smoke=("SimPool", "4 heads"),
        trunks=("GAP",),
        paper=LEFT_OF_TABLE_10,
    ),
    Experiment(
        name="vectors",
        notebook="08",
        question="how many vectors, which start from k-means",
        kind="any",
        variants={"SimPool": {}}
        | {
            f"k = {k}, {how}": _ablated(init="kmeans", k=k, reduce="concat") | ({} if how == "concat" else MAX_LOGITS)
            for how in ("max", "concat")
            for k in (2, 5)
        },
        smoke=("SimPool", "k = 2, max"),
        trunks=("GAP",),
        paper=LEFT_OF_TABLE_10,
    ),
    Experiment(
        name="similarity",
        notebook="08",
        question="how query and key are compared",
        kind="any",
        variants={"SimPool": {}} | {name: _ablated(similarity=name) for name in ("cosine", "distance")},
        smoke=("SimPool", "cosine"),
        trunks=("GAP",),
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
        trunks=("GAP",),
        paper=LEFT_OF_TABLE_10,
    ),
    Experiment(
        name="probing",
        notebook="14",
        question="which attentive probe gets most out of the patches of a transformer trained with its CLS token",
        kind="transformer",
        variants=PROBES | {"CLIP": {"pool": "clip", "pool_kwargs": {"feat_size": 5}}} | EP_TRADE,
        smoke=("GAP", "SimPool", "EP"),
        trunks=("CLS",),
        baseline="GAP",
    ),
    Experiment(
        name="probing",
        notebook="14",
        question="which attentive probe gets most out of frozen features",
        kind="convnet",
        variants=PROBES | EP_TRADE,
        smoke=("GAP", "SimPool", "EP"),
        trunks=("GAP",),
        baseline="GAP",
    ),
    Experiment(
        name="probing",
        notebook="14",
        question="which attentive probe gets most out of features that were trained with SimPool",
        kind="convnet",
        variants=_at(PROBES_AT["SimPool trunk"], PROBES | EP_TRADE),
        smoke=("GAP", "SimPool", "EP"),
        trunks=("SimPool",),
        baseline="GAP",
    ),
    Experiment(
        name="probing-scene",
        notebook="14",
        question="which attentive probe gets most out of frozen features if the photograph is the answer",
        kind="convnet",
        variants=_at(PROBES_AT["photo"], PROBES),
        smoke=("GAP", "SimPool", "EP"),
        trunks=("GAP",),
        changes={"target": "photo"},
        baseline="GAP",
    ),
    Experiment(
        name="probing-odd",
        notebook="14",
        question="which attentive probe gets most out of frozen features if the odd one of three digits is the answer",
        kind="convnet",
        variants=_at(PROBES_AT["odd"], PROBES | {"CLIP": {"pool": "clip", "pool_kwargs": {"feat_size": 12}}}),
        smoke=("GAP", "SimPool", "EP"),
        trunks=("GAP",),
        images=THREE_DIGITS,
        changes={"target": "odd"},
        baseline="GAP",
    ),
    Experiment(
        name="probing-cifar10",
        notebook="14",
        question="which attentive probe gets most out of frozen features of CIFAR-10, whose objects fill the image",
        kind="convnet",
        variants=_at(PROBES_AT["CIFAR-10"], PROBES),
        smoke=("GAP", "SimPool", "EP"),
        trunks=("GAP",),
        data=CIFAR,
        changes={"epochs": 2},
        baseline="GAP",
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
        ValueError: there is no such profile, data set or backbone; ``seeds`` is not an int of at least 1.

    >>> [grid.base["backbone"] for grid in Setting().grids("headline", "once")]
    ['vit_micro', 'convnet_micro']
    """

    profile: str = "laptop"
    seeds: int = 5
    dataset: str = "photo-digits"
    data_root: str | None = None
    backbone: str | None = None

    def __post_init__(self) -> None:
        check_choice("profile", self.profile, PROFILES)
        check_choice("dataset", self.dataset, DATASETS)
        check_int("seeds", self.seeds)
        if self.backbone:
            check_backbone(self.backbone)

    @property
    def recorded(self) -> bool:
        """Whether the runs in ``data/results`` are of this setting, so that sentences about them can be checked."""
        return (self.profile, self.dataset, self.backbone) == ("laptop", "photo-digits", None)

    def backbones(self) -> dict[str, str]:
        """The ConvNet and the transformer to experiment with, or the one of them that the reader named."""
        if self.backbone:
            return {"transformer" if is_transformer(self.backbone) else "convnet": self.backbone}
        return GPU_BACKBONES if self.profile == "gpu" else BACKBONES

    def grids(self, name: str, regime: str) -> list[Grid]:
        """The grids of an experiment, one per backbone, condition and, in the regime "head", per kind of trunk.

        There is none for a kind of backbone that the reader did not name, and none for a regime in which the experiment
        is not run.

        Raises:
            ValueError: there is no such experiment or regime.
        """
        check_choice("regime", regime, REGIMES)
        return [grid for part in self._parts(name) if regime in part.regimes for grid in self._grids(part, regime)]

    def conditions(self, name: str) -> dict[str, list[Grid]]:
        """The grids of an experiment in the regime "head" by condition."""
        return {part.condition: self._grids(part, "head") for part in self._parts(name)}

    def _parts(self, name: str) -> list[Experiment]:
        parts = [experiment for experiment in EXPERIMENTS if experiment.name == name]
        if not parts:
            names = ", ".join(dict.fromkeys(experiment.name for experiment in EXPERIMENTS))
            raise ValueError(f"name: expected an experiment ({names}), got {name!r}")
        return [part for part in parts if part.condition in self._conditions() and self._backbone(part)]

    def _conditions(self) -> Collection[str]:
        """Which conditions there are; only photo-digits has more than the default."""
        if self.dataset != "photo-digits":
            return ("", "default")
        return ("", "default", "photo") if self.profile == "smoke" else ("", *CONDITIONS)

    def _backbone(self, part: Experiment) -> str | None:
        backbones = self.backbones()
        return next(iter(backbones.values())) if part.kind == "any" else backbones.get(part.kind)

    def _grids(self, part: Experiment, regime: str) -> list[Grid]:
        smoke, seeds = self.profile == "smoke", self.seeds
        if smoke:
            seeds = min(seeds, SMOKE_SEEDS)
        elif regime == "head":
            seeds = max(seeds, PLANNED_SEEDS["head"])
        backbone = self._backbone(part)
        base = self._base(regime, backbone, part)
        variants = {
            name: self._variant(regime, backbone, name, changes)
            for name, changes in part.variants.items()
            if not smoke or name in part.smoke
        }
        keep_models = part.keep_models if regime == "once" else 0
        grid = Grid(part.name, base, variants, seeds, self.profile, keep_models, part.baseline)
        if regime != "head":
            return [grid]
        return [replace(grid, trunk=trunk) for trunk in self._trunks(backbone, part)[: 1 if smoke else None]]

    def _trunks(self, backbone: str, part: Experiment) -> list[dict]:
        """The networks of the headline, whose features the heads pool."""
        base = self._base("once", backbone, replace(part, images={}, changes={}))
        names = part.trunks or TRUNKS["transformer" if is_transformer(backbone) else "convnet"]
        return [base | self._variant("once", backbone, name, (METHODS | CLS)[name]) for name in names]

    def _base(self, regime: str, backbone: str, part: Experiment) -> dict:
        """The fields of a :class:`~simpool_lite.experiments.config.RunConfig` that the runs on a backbone share."""
        budget, smoke = BUDGETS[regime].get(backbone, OTHER), self.profile == "smoke"
        base = {"backbone": backbone, "dataset": self.dataset, "data_root": self.data_root, "regime": regime}
        base |= {"epochs": budget.epochs, "batch_size": 128 if self.profile == "gpu" else budget.batch_size}
        if budget.model_options:
            base["model_options"] = budget.model_options
        if self.dataset == "photo-digits" and not part.data:
            images = GPU_IMAGES if self.profile == "gpu" else budget.images
            base |= {"target": "digit", "data_options": images | part.images}
            base["data_options"] |= SMOKE_IMAGES if smoke else {}
        elif budget is not OTHER:
            base["epochs"] = PASSES_OVER_A_FIXED_SET[regime]
            base["data_options"] = {"image_size": 32} if self.dataset.startswith("cifar") else {}
        base |= part.data | part.changes
        return base | ({"epochs": 1} if smoke else {})

    def _variant(self, regime: str, backbone: str, name: str, changes: dict) -> dict:
        """A variant's pooling, SimPool unless it names one, and its own learning rate."""
        budget = BUDGETS[regime].get(backbone, OTHER)
        changes = {"pool": "simpool", "learning_rate": budget.learning_rates.get(name, 1e-3)} | changes
        if options := budget.model_options | changes.get("model_options", {}):
            changes["model_options"] = options
        return changes


def run_experiment(
    setting: Setting,
    name: str,
    regime: str = "head",
    *,
    store: str | Path | None = None,
    precision: float | None = None,
    device: str = "auto",
) -> dict[str, pd.DataFrame]:
    """The runs of an experiment in one regime.

    Args:
        setting: of the notebook.
        name: of the experiment.
        regime: "head", "once" or "long".
        store: a folder that gets what it lacks; left out, the recorded runs are shown as they are, if they are of this
            setting.
        precision, device: of :func:`~simpool_lite.experiments.grid.run`; a precision adds to the recorded runs, too.

    Returns:
        One table per trunk ("GAP trunk", ...) in the regime "head", per backbone ("convnet_micro", ...) in the regimes
        "once" and "long".
    """
    results, found = open_store(store), {}
    as_recorded = setting.recorded and store is None and precision is None
    for grid in setting.grids(name, regime):
        label = f"{_pool_of(grid.trunk)} trunk" if grid.trunk else grid.base["backbone"]
        label = label if label not in found else f"{label}, {grid.base['backbone']}"
        found[label] = (
            recorded_runs(grid, results) if as_recorded else run(grid, results, precision=precision, device=device)
        )
    return found


def _pool_of(trunk: dict) -> str:
    """The name in this course of the pooling that a trunk is trained with."""
    return next(name for name, changes in (CLS | METHODS).items() if changes["pool"] == trunk["pool"])


def table_of_records(records: pd.DataFrame) -> pd.DataFrame:
    """The recorded runs of protocol 2: one row per experiment, regime, backbone and what trained the trunk.

    Returns:
        Columns ``experiment regime backbone trunk runs fewest hours``: how many runs there are, how many of the variant
        that has fewest, and their time in processor hours.
    """
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
