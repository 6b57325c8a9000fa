"""The ablation suite: the runs behind notebooks 04 to 08, each a grid around one default.

Factors are varied one at a time around SimPool as published, on images and schedules small enough for hundreds
of runs on a laptop. Runs that two grids share are computed once.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import pandas as pd

from .budgets import OTHER_EPOCHS, OTHER_LEARNING_RATE, PROFILES, SMOKE_SEEDS, is_transformer
from .grid import Grid
from .store import Store, recorded_results

Kind = Literal["convnet", "transformer", "any"]

BACKBONES = {"convnet": "convnet_micro", "transformer": "vit_micro"}
GPU_BACKBONES = {"convnet": "resnet18", "transformer": "vit_small_patch16_224"}
EPOCHS = {"convnet_micro": 5, "vit_micro": 10}
TOURNAMENT_EPOCHS = {"convnet_micro": 8, "vit_micro": 10}  # in 5, some methods do not leave chance on the ConvNet
SEARCH_EPOCHS = {"convnet_micro": 4, "vit_micro": 10}  # in fewer, the transformer stays near chance at every rate
SEARCH_SEEDS = (100, 101)  # never reported
SEARCHED_RATES = {
    "convnet_micro": (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3),
    "vit_micro": (2.5e-4, 5e-4, 1e-3, 2e-3),
}

IMAGES = {"size": 40, "object_size": (17, 28)}  # photo-digits at five sixths of its size
SMOKE_IMAGES = {"num_images": 96}
GPU_IMAGES = {"size": 192, "object_size": (72, 128), "num_images": 16384}

METHODS = {
    name: {"pool": pool}
    for name, pool in {
        "GAP": "gap",
        "max": "max",
        "GeM": "gem",
        "LSE": "lse",
        "HOW": "how",
        "k-means": "kmeans",
        "OTK": "otk",
        "Slot": "slot",
        "SE": "se",
        "CBAM": "cbam",
        "GE": "ge",
        "ViT": "vit",
        "CaiT": "cait",
        "SimPool": "simpool",
    }.items()
}
CLS = {"CLS": {"pool": "cls"}}
WINNERS = {name: METHODS[name] for name in ("GAP", "GE", "Slot", "CaiT", "SimPool")}  # the paper's Table 2
UNIVERSAL = {name: METHODS[name] for name in ("GAP", "max", "GeM", "CaiT", "SimPool")}

# The best of `learning_rate_search`, whose runs are recorded beside the results.
LEARNING_RATES: dict[str, dict[str, float]] = {
    "convnet_micro": {
        "gap": 4e-3,
        "max": 16e-3,
        "gem": 4e-3,
        "lse": 4e-3,
        "how": 5e-4,
        "kmeans": 4e-3,
        "otk": 8e-3,
        "slot": 5e-4,
        "se": 8e-3,
        "cbam": 1e-3,
        "ge": 8e-3,
        "vit": 2e-3,
        "cait": 5e-4,
        "simpool": 2e-3,
    },
    "vit_micro": {"cls": 5e-4, "gap": 5e-4, "ge": 5e-4, "slot": 2.5e-4, "cait": 2.5e-4, "simpool": 1e-3},
}

CONDITIONS = {
    "default": {},
    "small digit": {"images": {"object_size": (11, 17)}},
    "large digit": {"images": {"object_size": (25, 31)}},
    "no fragments": {"images": {"distractors": 0}},
    "8 fragments": {"images": {"distractors": 8}},
    "photo": {"target": "photo"},
}


@dataclass(frozen=True)
class Setting:
    """What a notebook's parameters say.

    Args:
        profile: "smoke", "laptop" or "gpu".
        seeds: how many.
        dataset: see :func:`~simpool_lite.load_data`.
        data_root: likewise.
        backbone: any timm model; None is ``convnet_micro`` and ``vit_micro``, or larger ones under "gpu".

    Raises:
        ValueError: there is no such profile.
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

    def grid(
        self,
        experiment: str,
        kind: Kind,
        variants: dict[str, dict],
        smoke: tuple[str, ...],
        images: dict | None = None,
        epochs: dict[str, int] = EPOCHS,
        **base: object,
    ) -> list[Grid]:
        """The grid of some variants on the backbone of a kind; none if the reader named one of the other kind.

        Args:
            experiment: its name.
            kind: of the backbone; "any" is the one that the reader named, else the ConvNet.
            variants: name to the fields of :class:`~simpool_lite.experiments.config.RunConfig` that differ; those
                without a ``pool`` are SimPool.
            smoke: the variants that the profile "smoke" keeps.
            images: options of photo-digits that differ.
            epochs: of the small backbones.
            **base: further fields that all variants share.
        """
        backbones = self.backbones()
        backbone = next(iter(backbones.values())) if kind == "any" else backbones.get(kind)
        if backbone is None:
            return []
        if self.profile == "smoke":
            variants = {name: variants[name] for name in smoke}
        variants = {name: _with_learning_rate(backbone, {"pool": "simpool"} | v) for name, v in variants.items()}
        seeds = min(self.seeds, SMOKE_SEEDS) if self.profile == "smoke" else self.seeds
        return [Grid(experiment, self._base(backbone, images or {}, epochs) | base, variants, seeds, self.profile)]

    def _base(self, backbone: str, images: dict, epochs: dict[str, int]) -> dict:
        base = {"backbone": backbone, "dataset": self.dataset, "data_root": self.data_root}
        base["epochs"] = 1 if self.profile == "smoke" else epochs.get(backbone, OTHER_EPOCHS)
        if self.profile == "gpu":
            base["batch_size"] = 128
        if self.dataset == "photo-digits":
            default = IMAGES if self.profile != "gpu" else GPU_IMAGES
            if self.profile == "smoke":
                default = default | SMOKE_IMAGES
            base |= {"target": "digit", "data_options": default | images}
        return base


def _with_learning_rate(backbone: str, changes: dict) -> dict:
    method = "simpool" if changes["pool"] == "simpool_variant" else changes["pool"]
    return changes | {"learning_rate": LEARNING_RATES.get(backbone, {}).get(method, OTHER_LEARNING_RATE)}


def tournament(setting: Setting) -> list[Grid]:
    """Notebook 04: every method on a ConvNet; the paper's group winners, GAP and CLS on a transformer."""
    return [
        *setting.grid("tournament", "convnet", METHODS, ("GAP", "SimPool"), epochs=TOURNAMENT_EPOCHS),
        *setting.grid("tournament", "transformer", CLS | WINNERS, ("CLS", "SimPool"), epochs=TOURNAMENT_EPOCHS),
    ]


def who_wins_where(setting: Setting) -> dict[str, Grid]:
    """Notebook 04: five methods on the ConvNet, condition by condition, one change at a time.

    The digit's size, the number of fragments and the task; with other data than photo-digits only the default.
    """
    conditions = CONDITIONS if setting.dataset == "photo-digits" else {"default": {}}
    if setting.profile == "smoke":
        conditions = {name: conditions[name] for name in ("default", "photo") if name in conditions}
    shared = {"smoke": ("GAP", "SimPool"), "epochs": TOURNAMENT_EPOCHS}
    grids = {
        name: setting.grid("who-wins-where", "any", UNIVERSAL, **shared, **changes)
        for name, changes in conditions.items()
    }
    return {name: grid[0] for name, grid in grids.items() if grid}


def init(setting: Setting) -> list[Grid]:
    """Notebook 05: where the query starts."""
    starts = {"SimPool": {}} | {f"U0 {name}": _simpool(init=name) for name in ("max", "energy", "learned", "random")}
    token = {"SimPool": {}, "U0 learned": _simpool(init="learned"), "U0 CLS": _variant(init="cls")}
    return [
        *setting.grid("init", "convnet", starts, smoke=("SimPool", "U0 learned")),
        *setting.grid("init", "transformer", token, smoke=("SimPool", "U0 CLS")),
    ]


def iterations(setting: Setting) -> list[Grid]:
    """Notebook 05: T steps with the same parameters (ITER in the paper's Table 10) or with their own (LAYERS)."""
    variants = {"SimPool": {}}
    variants |= {f"{T} iterations": _variant(T=T) for T in (2, 3, 5)}
    variants |= {f"{T} layers": _variant(T=T, separate=True) for T in (2, 3, 5)}
    return setting.grid("iterations", "any", variants, smoke=("SimPool", "3 iterations"))


def layer_norm(setting: Setting) -> list[Grid]:
    """Notebook 06: LayerNorm on every subset of q, k and v."""
    subsets = ["".join(letters) for size in range(4) for letters in combinations("qkv", size)]
    variants = {"SimPool": {}} | {f"LN {s or 'none'}": _simpool(norm=s) for s in subsets if s != "kv"}
    return setting.grid("layernorm", "any", variants, smoke=("SimPool", "LN none"))


def linear(setting: Setting) -> list[Grid]:
    """Notebook 06: linear maps on none, one, two or all of q, k and v, one map for q and k, and all with LN on all."""
    variants = {"SimPool": {}} | {f"W {s or 'none'}": _simpool(linear=s) for s in ("", "q", "k", "qkv")}
    variants |= {"W_Q = W_K": _variant(tied=True), "LN qkv, W qkv": _simpool(norm="qkv", linear="qkv")}
    return setting.grid("linear", "any", variants, smoke=("SimPool", "W_Q = W_K"))


def norm_order(setting: Setting) -> list[Grid]:
    """Notebook 06: a transformer pooled after its final norm (the default) or before it, with and without LN."""
    variants = {
        "SimPool": {},
        "LN none": _simpool(norm=""),
        "before the norm": {"norm_first": False},
        "before the norm, LN none": _simpool(norm="") | {"norm_first": False},
    }
    return setting.grid("norm-order", "transformer", variants, smoke=("SimPool", "before the norm"))


def exponent(setting: Setting) -> list[Grid]:
    """Notebook 07: the exponent gamma, fixed and learned; SimPool itself has none."""
    variants = {"SimPool": {}} | {f"gamma {g:g}": _simpool(gamma=g) for g in (1.0, 1.25, 1.5, 2.0, 3.0, 5.0)}
    variants |= {"gamma learned": _simpool(gamma=2.0, learn_gamma=True)}
    return setting.grid("exponent", "any", variants, smoke=("SimPool", "gamma 2"))


def shift(setting: Setting) -> list[Grid]:
    """Notebook 07: what the minimum runs over, at gamma 2."""
    variants = {"shift image": _simpool(gamma=2.0)}
    variants |= {f"shift {name}": _simpool(gamma=2.0, shift=name) for name in ("batch", "channel")}
    return setting.grid("shift", "any", variants, smoke=("shift image", "shift batch"))


def heads(setting: Setting) -> list[Grid]:
    """Notebook 08: number of heads."""
    variants = {"SimPool": {}} | {f"{m} heads": _simpool(num_heads=m) for m in (2, 4, 8)}
    return setting.grid("heads", "any", variants, smoke=("SimPool", "4 heads"))


def similarity(setting: Setting) -> list[Grid]:
    """Notebook 08: similarity of query and key."""
    variants = {"SimPool": {}} | {name: _variant(similarity=name) for name in ("cosine", "distance")}
    return setting.grid("similarity", "any", variants, smoke=("SimPool", "cosine"))


def attention(setting: Setting) -> list[Grid]:
    """Notebook 08: from similarity to attention, and GAP, which has none."""
    functions = {"other axis": "softmax_over_vectors", "sparsemax": "sparsemax", "sigmoid": "sigmoid"}
    variants = {"SimPool": {}} | {name: _variant(attention=function) for name, function in functions.items()}
    variants["GAP"] = METHODS["GAP"]
    return setting.grid("attention", "any", variants, smoke=("SimPool", "sparsemax", "GAP"))


def vectors(setting: Setting) -> list[Grid]:
    """Notebook 08: k queries from k-means, their vectors joined by concatenation or by the maximum of the logits."""
    variants = {"SimPool": {}}
    for k in (2, 3, 5):
        several = _variant(init="kmeans", k=k, reduce="concat")
        variants[f"k = {k}, max"] = several | {"model_options": {"max_logits": True}}
        variants[f"k = {k}, concat"] = several
    return setting.grid("vectors", "any", variants, smoke=("SimPool", "k = 2, max"))


def learning_rate_search(kind: Kind) -> Grid:
    """The search behind :data:`LEARNING_RATES`, first round: every method at the same rates, on one seed."""
    backbone, methods = BACKBONES[kind], METHODS if kind == "convnet" else CLS | WINNERS
    variants = {
        f"{name} {rate:g}": changes | {"learning_rate": rate}
        for name, changes in methods.items()
        for rate in SEARCHED_RATES[backbone]
    }
    base = Setting()._base(backbone, {}, SEARCH_EPOCHS)
    return Grid("suite-learning-rates", base, variants, seeds=SEARCH_SEEDS[:1])


def learning_rate_playoff(kind: Kind, first_round: pd.DataFrame) -> Grid:
    """The second round: the two best rates of every method with the tournament's epochs, on another seed.

    Args:
        kind: of the backbone.
        first_round: the records of :func:`learning_rate_search`.
    """
    grid = learning_rate_search(kind)
    backbone = grid.base["backbone"]
    first_round = first_round[first_round.variant.isin(grid.variants) & (first_round.backbone == backbone)]
    best = first_round.sort_values("top1", ascending=False, kind="stable").groupby("pool").head(2).variant
    variants = {name: changes for name, changes in grid.variants.items() if name in set(best)}
    return replace(
        grid, base=grid.base | {"epochs": TOURNAMENT_EPOCHS[backbone]}, variants=variants, seeds=SEARCH_SEEDS[1:]
    )


def best_learning_rates(second_round: pd.DataFrame) -> dict[str, dict[str, float]]:
    """For each backbone the methods' rates with the highest accuracy in the second round."""
    rate = second_round.config.map(lambda config: json.loads(config)["learning_rate"])
    by_backbone = second_round.assign(rate=rate).set_index("rate").groupby("backbone")
    return {backbone: runs.groupby("pool").top1.idxmax().to_dict() for backbone, runs in by_backbone}


def _simpool(**pool_kwargs: object) -> dict:
    return {"pool_kwargs": pool_kwargs}


def _variant(**pool_kwargs: object) -> dict:
    return {"pool": "simpool_variant", "pool_kwargs": pool_kwargs}


NOTEBOOKS = {
    "04": (tournament, who_wins_where),
    "05": (init, iterations),
    "06": (layer_norm, linear, norm_order),
    "07": (exponent, shift),
    "08": (heads, similarity, attention, vectors),
}


def runs_table() -> pd.DataFrame:
    """What the laptop profile runs, and the search before it: one row an experiment and backbone.

    Returns:
        Columns ``experiment notebook backbone runs`` and ``what for``; runs that an earlier row has are not counted.
    """
    seen: set[str] = set()
    rows = []
    for notebook, grid, what_for in _grids():
        hashes = {config.hash() for _, config in grid.runs()}
        row = {"experiment": grid.experiment, "notebook": notebook, "backbone": grid.base["backbone"]}
        rows.append(row | {"runs": len(hashes - seen), "what for": what_for})
        seen |= hashes
    keys = ["experiment", "notebook", "backbone", "what for"]
    return pd.DataFrame(rows).groupby(keys, sort=False).runs.sum().reset_index()


def _grids() -> Iterator[tuple[str, Grid, str]]:
    """Every grid of the suite with its notebook and what it is for."""
    searched = Store(recorded_results()).records().query("experiment == 'suite-learning-rates'")
    first_round = searched[searched.seed == SEARCH_SEEDS[0]]
    for kind in BACKBONES:
        yield "all", learning_rate_search(kind), "the learning rate of every method, on a seed that is not reported"
        yield "all", learning_rate_playoff(kind, first_round), "the better of its two best rates, on another such seed"
    for notebook, functions in NOTEBOOKS.items():
        for function in functions:
            grids = function(Setting())
            what_for = function.__doc__.splitlines()[0].removeprefix(f"Notebook {notebook}: ").removesuffix(".")
            for grid in grids.values() if isinstance(grids, dict) else grids:
                yield notebook, grid, what_for
