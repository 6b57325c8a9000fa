import pandas as pd
import pytest

from simpool_lite.experiments.paper import paper_table, published

KEY = ["table", "row", "network", "setting", "metric"]


def test_every_number_stands_once_and_has_a_source():
    numbers = paper_table()
    assert list(numbers) == [*KEY, "value", "source"]
    assert not numbers.duplicated(KEY).any()
    assert pd.api.types.is_float_dtype(numbers.value) and numbers.value.notna().all()
    assert (numbers[["table", "row", "network", "metric", "source"]] != "").all(axis=None)
    assert set(numbers.table) == {*map(str, range(2, 11)), "Figure 3", "README"}


@pytest.mark.parametrize(
    ("table", "where", "expected"),
    [
        (
            "2",
            {"network": "ResNet-50", "setting": "100 epochs"},
            {"GAP": 77.4, "CaiT": 77.3, "Slot": 77.3, "GE": 77.6, "SimPool": 78.0},
        ),
        ("2", {"network": "ViT-S", "setting": "100 epochs, no gamma"}, {"SimPool": 74.3}),
        (
            "2",
            {"network": "ViT-S", "setting": ["300 epochs", "300 epochs, gamma 1.25"]},
            {"CLS": 77.9, "SimPool": 78.7},
        ),
        ("2", {"network": "ViT-B"}, {"CLS": 74.1, "SimPool": 75.1}),
        ("3", {"network": "ResNet-50", "metric": "linear"}, {"GAP": 63.0, "SimPool": 64.4}),
        ("3", {"network": "ConvNeXt-S", "metric": "k-NN"}, {"GAP": 65.1, "SimPool": 68.8}),
        ("4", {"setting": "supervised, CIFAR-100"}, {"CLS": 86.0, "SimPool": 86.2}),
        ("4", {"setting": "DINO, Flowers"}, {"CLS": 98.3, "SimPool": 98.4}),
        ("5", {"setting": "supervised, ImageNet"}, {"CLS": 53.6, "SimPool": 64.4}),
        ("5", {"setting": "DINO, CUB, epoch 20"}, {"CLS": 65.5, "SimPool": 72.5}),
        ("6", {"setting": "DINO, LOST, VOC12"}, {"CLS": 59.4, "SimPool": 65.0}),
        ("6", {"setting": "DINO, DINO-seg, COCO, epoch 20"}, {"CLS": 19.9, "SimPool": 37.9}),
        ("7", {"setting": "supervised", "metric": "NF"}, {"CLS": 37.2, "SimPool": 42.8}),
        ("7", {"setting": "DINO, linear probing", "metric": "OBB"}, {"CLS": 20.0, "SimPool": 17.8}),
        (
            "8",
            {"network": "ResNet-18", "metric": "params (M)"},
            {"GAP": 11.7, "CaiT": 18.0, "Slot": 14.6, "GE": 11.7, "SimPool": 12.2},
        ),
        ("9", {"setting": "12 blocks", "metric": "top-1"}, {"GAP": 73.3, "CLS": 72.7, "SimPool": 74.3}),
        ("9", {"row": "CLS", "setting": "16 blocks", "metric": "params (M)"}, {"CLS": 29.2}),
        ("10", {"setting": "no gamma"}, {"SimPool": 56.6, "GAP": 55.0}),
        ("10", {"row": ("3 layers", "5 iterations")}, {"3 layers": 56.8, "5 iterations": 56.4}),
        ("README", {"network": "ResNet-50", "setting": "DINO, 100 epochs", "metric": "linear"}, {"GAP": 63.8}),
    ],
)
def test_numbers_are_those_of_the_paper(table, where, expected):
    assert published(table, **where) == expected


def test_tying_the_matrices_costs_what_it_costs_with_the_exponent():
    left = published("10", setting="gamma 2")
    assert left["W_Q = W_K"] - left["SimPool"] == pytest.approx(-0.7)
    assert "GAP" not in left and "3 layers" not in left


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paper_table(tabel="2"), "no column 'tabel'; the nearest is 'table'"),
        (lambda: paper_table(network="Resnet50"), "no network 'Resnet50' in any table; the nearest is 'ResNet-50'"),
        (
            lambda: published("10", row=("U0 learned", "U0 energies")),
            "no row 'U0 energies' in table '10'; the nearest is 'U0 energy'",
        ),
        (lambda: published("10", network="ViT-S"), "no network 'ViT-S' in table '10'; the nearest is 'ResNet-18'"),
        (lambda: published("10"), "'SimPool' has several; choose by setting: 'gamma 2', 'no gamma'$"),
        (lambda: published("8", network="ViT-S"), r"'CLS' has several; choose by metric: 'params \(M\)', 'GFLOPs'$"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()
