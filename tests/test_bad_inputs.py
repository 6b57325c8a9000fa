"""Bad inputs and what is said of them: the argument, what was expected, what came, and the nearest right name."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch

from simpool_lite import Spec, create_model, create_pool, generic_pool, list_pools, load_data, replace_pooling
from simpool_lite.experiments.config import RunConfig
from simpool_lite.experiments.grid import Grid, run
from simpool_lite.experiments.store import Store
from simpool_lite.experiments.suite import Setting

NAN, INF = float("nan"), float("inf")
NOT_WHOLE = [0, -1, True, np.True_, "2", 2.5, NAN, None]
NOT_A_NUMBER = [True, "2", NAN, INF, [2]]
NOT_A_BOOL = ["no", 0, 1, None]
SMALLEST = 300  # rows


class Row(NamedTuple):
    call: Callable[[], object]
    error: type[Exception]
    argument: str
    value: object = None  # its repr is in the message
    near: str = ""
    said: str = ""


def pool(argument: str, values: list, name: str = "simpool", error: type[Exception] = ValueError) -> Iterator[Row]:
    for value in values:
        options = {"dim": 8, argument: value}
        yield Row(lambda options=options: create_pool(name, **options), error, argument, value)


def model(argument: str, values: list, error: type[Exception] = ValueError, **others) -> Iterator[Row]:
    for value in values:
        options = {"backbone": "vit_micro", "pool": "simpool", "num_classes": 4, argument: value} | others
        yield Row(lambda options=options: on_meta(options), error, argument, value)


def on_meta(options: dict) -> torch.nn.Module:
    with torch.device("meta"):
        return create_model(**options)


def misspelt(
    argument: str, call: Callable, pairs: dict[str, str], error: type[Exception] = ValueError
) -> Iterator[Row]:
    for wrong, right in pairs.items():
        yield Row(lambda wrong=wrong: call(wrong), error, argument, wrong, right)


def data(argument: str, values: list, **others) -> Iterator[Row]:
    for value in values:
        options = {"name": "photo-digits", argument: value} | others
        yield Row(lambda options=options: load_data(**options), ValueError, argument, value)


def tensors(argument: str, call: Callable, cases: list[tuple[object, type[Exception], str]]) -> Iterator[Row]:
    for value, error, said in cases:
        yield Row(lambda value=value: call(value), error, argument, said=said)


def grids(values: list) -> Iterator[Row]:
    for value in values:
        yield Row(lambda value=value: create_pool("gap", 8)(torch.ones(1, 12, 8), grid=value), ValueError, "grid")


def ablated(**options) -> Callable:
    [(argument, _)] = options.items()
    return lambda wrong: create_pool("ablated_simpool", 8, **{argument: wrong})


def in_a_grid(field: str) -> Callable:
    return lambda wrong: compute(grid(base=MICRO | {field: wrong}))


def on_a_backbone(name: str) -> object:
    return on_meta({"backbone": name, "pool": "gap"})


def published(backbone: str) -> object:
    return on_meta({"backbone": backbone, "pool": "gap", "pretrained": True})


def published_in_a_grid(backbone: str) -> object:
    return compute(grid(base={"backbone": backbone, "pool": "gap", "pretrained": True}))


def published_as_a_trunk(backbone: str) -> object:
    base = {"backbone": backbone, "pool": "gap", "regime": "head"}
    return compute(grid(base=base, trunk={"backbone": backbone, "pool": "gap", "pretrained": True, "epochs": 0}))


MICRO = {"backbone": "vit_micro", "pool": "gap"}


def grid(**changes) -> Grid:
    return Grid(**{"experiment": "bad", "base": MICRO, "variants": {"GAP": {}}, "seeds": 1} | changes)


def compute(one: Grid, **options) -> object:
    return run(one, Store("no/such/store"), **{"device": "cpu", "progress": False} | options)


def rows(argument: str, call: Callable, values: list, error: type[Exception] = ValueError) -> Iterator[Row]:
    """A function of keywords, one of them wrong."""
    for value in values:
        yield Row(lambda value=value: call(**{argument: value}), error, argument, value)


def config(**changes) -> RunConfig:
    return RunConfig(**MICRO | changes)


ONE, TOKENS = create_pool("simpool", 8), torch.ones(1, 4, 8)
ROWS = [
    *misspelt("name", lambda name: create_pool(name, 8), {
        "simpol": "simpool", "SimPool": "simpool", "gpa": "gap", "kmean": "kmeans", "slots": "slot", "cbma": "cbam",
        "how ": "how", "siglp": "siglip",
    }),
    *(Row(lambda name=name: create_pool(name, 8), ValueError, "name", name) for name in ("", None, 3, ["gap"])),
    *misspelt("family", list_pools, {"probeing": "probing", "landscapes": "landscape"}),
    *misspelt("shift", lambda shift: create_pool("simpool", 8, shift=shift), {"imagge": "image", "batches": "batch"}),
    *misspelt("init", ablated(init=0), {"gapp": "gap", "enrgy": "energy", "learnt": "learned"}),
    *misspelt("similarity", ablated(similarity=0), {"dott": "dot", "cosin": "cosine"}),
    *misspelt("reduce", lambda how: create_pool("otk", 8, reduce=how), {"maxx": "max", "concatenate": "concat"}),
    *misspelt("reduce", lambda how: Spec(reduce=how), {"meen": "mean"}),
    *misspelt("backbone", lambda name: create_model(name, "gap"), {
        "convnet_mirco": "convnet_micro", "resnet5O": "resnet50", "vit_smal_patch16_224": "vit_small_patch16_224",
    }),
    *misspelt("name", lambda name: load_data(name), {"photo-digit": "photo-digits", "cifar1O": "cifar10"}),
    *misspelt("split", lambda split: load_data("photo-digits", split), {"tset": "test", "vall": "val"}),
    *misspelt("target", lambda target: load_data("photo-digits", target=target), {"digits": "digit", "foto": "photo"}),
    *misspelt("regime", lambda regime: RunConfig("vit_micro", "gap", regime=regime), {"onse": "once", "heads": "head"}),
    *misspelt("measured_on", lambda split: RunConfig("vit_micro", "gap", measured_on=split), {"tets": "test"}),
    *misspelt("backbone", in_a_grid("backbone"), {"vit_mirco": "vit_micro"}),
    *misspelt("backbone", on_a_backbone, {"resnet18.a1_in1": "resnet18.a1_in1k"}),
    *(
        Row(lambda call=call, name=name: call(name), ValueError, "pretrained", True, said=f"{name} has no published")
        for call in (published, published_in_a_grid, published_as_a_trunk)
        for name in ("vit_micro", "convnet_micro")
    ),
    *misspelt("pool", in_a_grid("pool"), {"simpol": "simpool"}),
    *misspelt("dataset", in_a_grid("dataset"), {"imagenete": "imagenette"}),
    *misspelt("target", in_a_grid("target"), {"digits": "digit"}),
    *misspelt("pool", lambda name: on_meta(MICRO | {"pool": name}), {"simpol": "simpool", "clss": "cls"}),
    *misspelt("pool", lambda name: replace_pooling(MODEL, name), {"simpol": "simpool"}),
    *misspelt("profile", lambda name: Setting(name), {"laptob": "laptop"}),
    *misspelt("device", lambda name: compute(grid(), device=name), {"cdua": "cuda", "cpu:0": "cpu"}),
    *rows("seed", config, [-1, 0.5, "1", True, None, 2**70]),
    *rows("epochs", config, [-1, 1.5, "3", None]),
    *rows("batch_size", config, NOT_WHOLE),
    *rows("learning_rate", config, [*NOT_A_NUMBER, 0, -1e-3, None, 10**400]),
    *rows("weight_decay", config, [*NOT_A_NUMBER, -0.1, None]),
    *rows("norm_first", config, NOT_A_BOOL, TypeError),
    *rows("pool_kwargs", config, [None, "gamma=2", [1], {1: 2}, {"gamma": 2j}], TypeError),
    *rows("model_options", config, [None, "width=8"], TypeError),
    *rows("data_options", config, [None, 3], TypeError),
    *rows("data_root", config, [3, "", b"x", True], TypeError),
    *rows("start", config, [3, ""], TypeError),
    *rows("backbone", config, [None, 3, ["vit_micro"]], TypeError),
    *rows("pretrained", config, [None, 1, 2.5], TypeError),
    *rows("seeds", grid, [0, -1, 2.5, "3", None, True, 2**70]),
    Row(lambda: grid(seeds=()), ValueError, "seeds"),
    Row(lambda: grid(seeds=(0, -1)), ValueError, "seeds", -1),
    *rows("variants", grid, [None, {}, [], "GAP"], TypeError),
    Row(lambda: grid(variants={3: {}}), TypeError, "variants", 3),
    *rows("base", grid, [None, [], "vit_micro"], TypeError),
    *rows("keep_models", grid, [-1, True, "1", 0.5]),
    *rows("experiment", grid, [None, 3], TypeError),
    Row(lambda: grid(trunk=True), TypeError, "trunk", True),
    Row(lambda: grid(trunk={"pol": "gap"}), TypeError, "trunk", "pol", "pool"),
    Row(lambda: grid(base={"backbne": "vit_micro"}), TypeError, "base", "backbne", "backbone"),
    Row(lambda: in_a_grid("pool_kwargs")({"gama": 2}), TypeError, "gama", said="no further arguments"),
    Row(lambda: in_a_grid("model_options")({"depth": "3"}), ValueError, "depth", "3"),
    Row(lambda: in_a_grid("data_options")({"num_images": -1}), ValueError, "num_images", -1),
    Row(lambda: in_a_grid("data_options")({"size": 50}), ValueError, "img_size", said="(50, 50)"),
    *rows("workers", lambda workers: compute(grid(), workers=workers), [0, -1, 1.5, "2", True]),
    *rows("precision", lambda precision: compute(grid(), precision=precision), [0, -1, NAN, "0.5", True]),
    *rows("budget", lambda budget: compute(grid(), budget=budget), ["60 rns", "x", 60, "-1 runs"]),
    *rows("retry_failed", lambda retry_failed: compute(grid(), retry_failed=retry_failed), [None, "no", 1], TypeError),
    *rows("store", lambda store: Store(store), [None, 3, "", b"runs", []], TypeError),
    *rows("seeds", lambda seeds: Setting(seeds=seeds), [0, -1, 2.5, "3", None]),
    *rows("return_attention", lambda return_attention: ONE(TOKENS, return_attention=return_attention),
          NOT_A_BOOL, TypeError),
    Row(lambda: create_pool("simpool", 8, gama=2), TypeError, "gama", near="gamma", said="expected one of num_heads"),
    Row(lambda: on_meta({"backbone": "vit_micro", "num_class": 3}), TypeError, "num_class", 3, "num_classes"),
    Row(lambda: on_meta({"backbone": "vit_micro", "drop_rte": 0.1}), TypeError, "drop_rte", 0.1, "drop_rate"),
    *pool("dim", [*NOT_WHOLE, 10**30]),
    *pool("num_heads", [*NOT_WHOLE, 3]),
    *pool("gamma", [*NOT_A_NUMBER, 0, -1, 10**400, 2j]),
    *pool("qk_scale", NOT_A_NUMBER),
    *pool("eps", [*NOT_A_NUMBER, 0, -1, None]),
    *pool("shift", ["pixel", None, 3]),
    *pool("qkv_bias", NOT_A_BOOL, error=TypeError),
    *pool("use_beta", NOT_A_BOOL, error=TypeError),
    *pool("k", NOT_WHOLE, "kmeans"),
    *pool("iterations", [*NOT_WHOLE, 10**30], "slot"),
    *pool("r", [*NOT_A_NUMBER, 0, None], "lse"),
    *pool("gamma", [*NOT_A_NUMBER, 0, None], "gem"),
    *pool("depth", NOT_WHOLE, "cait"),
    *pool("T", NOT_WHOLE, "ablated_simpool"),
    *pool("norm", ["x", None], "ablated_simpool"),
    *model("num_classes", [-1, None, "10", True, 2.5]),
    *model("in_chans", [0, -1, None, "3", True]),
    *model("img_size", [-48, -5, 0, "48", 48.0, (48,), NAN]),
    Row(lambda: on_meta({"backbone": "vit_micro", "img_size": 50}), ValueError, "img_size", said="(50, 50)"),
    *model("pool_kwargs", ["gamma=2", ["gamma"], {1: 2}], TypeError),
    *model("norm_first", NOT_A_BOOL, TypeError),
    *model("max_logits", NOT_A_BOOL, TypeError),
    *model("pretrained", [1, None], TypeError),
    *model("pretrained", ["yes"]),
    *misspelt("pretrained", lambda name: create_model("tf_efficientnet_lite0", pretrained=name), {
        "efficientnet-lite1": "efficientnet-lite0",
    }),
    *model("drop_rate", ["x", 5, -0.1, 1.0]),
    *model("depth", [0, -1, "2", 2.5, True]),
    *model("num_heads", [0, -1, "3", True]),
    *model("mlp_ratio", [-1, NAN, "4", True]),
    *model("class_token", ["no", 1], TypeError),
    *model("act_layer", ["x", 3]),
    *(
        Row(lambda value=value: replace_pooling(MODEL, "gap", norm_first=value), TypeError, "norm_first", value)
        for value in NOT_A_BOOL
    ),
    *data("num_images", [0, -1, True, "8", 2.5, NAN]),
    *data("clutter", [True, -0.1, NAN, "busy"]),
    *data("std", [(0, 0, 0), (1, 1), 0.5, ("a", "b", "c")]),
    *data("seed", [-1, True, "0"]),
    *tensors("x", ONE, [
        ([[1.0]], TypeError, "list"),
        (None, TypeError, "NoneType"),
        (TOKENS.long(), TypeError, "torch.int64"),
        (TOKENS.cfloat(), TypeError, "torch.complex64"),
        (TOKENS > 0, TypeError, "torch.bool"),
        (TOKENS.to(torch.float8_e4m3fn), TypeError, "torch.float8_e4m3fn"),
        (TOKENS.to_sparse(), TypeError, "torch.sparse_coo"),
        (torch.nested.nested_tensor([TOKENS[0]], layout=torch.jagged), TypeError, "nested"),
        (TOKENS[0], ValueError, "(4, 8)"),
        (TOKENS[:, :0], ValueError, "(1, 0, 8)"),
        (TOKENS[..., :5], ValueError, "(1, 4, 5)"),
        (torch.ones(1, 4, 2, 8), ValueError, "(1, 4, 2, 8)"),
    ]),
    *tensors("x", lambda x: generic_pool(x, Spec()), [(TOKENS[0], ValueError, "(4, 8)")]),
    *grids([(3.0, 4.0), ("3", "4"), "34", (3,), (3, 4, 1), 12, (-3, -4), (0, 4), (True, 12), (5, 5)]),
]  # fmt: skip


MODEL = on_meta({"backbone": "convnet_micro", "pool": "gap", "num_classes": 4})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.argument}={row.value!r}"[:40])
def test_the_message_names_argument_expectation_and_value(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(row.error) as raised:
        row.call()
    message = str(raised.value)
    assert re.match(rf"{row.argument}: ", message), message
    assert "expected " in message and ("got " in message or row.near), message
    assert row.said in message
    if row.value is not None:
        assert repr(row.value) in message
    if row.near:
        assert message.endswith(f"; did you mean {row.near!r}?")
    assert not list(tmp_path.iterdir())


def test_the_table_is_long_enough():
    assert len(ROWS) >= SMALLEST
