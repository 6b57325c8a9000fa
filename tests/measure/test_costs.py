"""Costs against numbers counted by hand."""

import pytest
import torch
from torch import nn

from simpool_lite import create_model, create_pool, list_pools, replace_pooling
from simpool_lite.measure.costs import Costs, count_costs

D, H, W = 32, 4, 6
N = H * W

# method -> parameters and multiply-adds for d channels at N positions, as the package computes them
BY_HAND = {
    "gap": (0, 0),
    "max": (0, 0),
    "gap_max": (0, 0),
    "gem": (1, 0),
    "lse": (1, 0),
    "how": (D * D + D, N * D + D * D),  # the weighted sum, then FC once
    "kmeans": (0, 10 * 2 * 3 * N * D + 3 * N * D),  # 10 rounds: distances, centres; at last with a gradient
    "otk": (3 * D, 2 * 3 * N * D),  # similarities, weighted sums
    # 2 d for mu and sigma; q, k, v; the GRU's 6 matrices and biases; the MLP's 2; 3 LayerNorms.
    # 3 rounds over 3 slots: 11 matrices, of which W_K and W_V meet slots, not positions; similarities, weighted sums.
    # Two of the matrices are the MLP's, with 128 hidden units.
    "slot": (2 * D + 3 * (D * D + D) + 6 * (D * D + D) + (2 * 128 * D + 128 + D) + 3 * 2 * D,
             3 * (3 * (9 * D * D + 2 * 128 * D) + 2 * 3 * N * D)),
    "se": (2 * 2 * D + 2 + D, 2 * 2 * D),  # 2 = d / 16 hidden units
    "cbam": (2 * 2 * D + 49 + 1, 2 * 2 * D + 49 * N + 2 * N * D),
    "ge": (9 * D + D + 2 * 2 * D + 2 + D, (9 * D + 2 * 2 * D) * 2 * 3),  # on a grid of 2 x 3
    # 12 d^2 and biases 9 d a block, 2 LayerNorms 4 d; token d, final LayerNorm 2 d. The first block works on
    # N + 1 rows; in the last all matrices meet the one row, whose 4 heads weigh and sum whole positions.
    "vit": (12 * D * D + 13 * D + 3 * D, 12 * D * D + 2 * 4 * N * D),
    "cait": (12 * D * D + 13 * D + 2 * D + 3 * D, 12 * D * D + 2 * 4 * N * D),
    "simpool": (2 * D * D + 2 * D, 2 * D * D + 2 * N * D),  # the query through both matrices
    # Similarities and weighted sums of whole positions for each query and head: matrices meet only those.
    "ep": (32 * D + D * D, 2 * 32 * N * D + D * D),
    "esimpool": (2 * D, 2 * 4 * N * D),
    "aim": (D + 2 * D * D, 2 * 16 * N * D + 3 * D * D),  # W_K, W_V, and W_V of the BatchNorm's mean
    "coca": (2 * D + (2 * 512 + 128) * D, 2 * 8 * N * D + 4 * 512 * D),
    "cae": (D + 6 * D + 4 * D * D + D, 2 * 8 * N * D + 4 * D * D),
    "siglip": (D + 12 * D * D + 9 * D, 2 * 8 * N * D + 12 * D * D),
    "jepa": (D + 12 * D * D + 9 * D + 4 * D, 2 * 16 * N * D + 12 * D * D),
    "clip": (197 * D + 2 * D + 4 * D * D + 4 * D, 2 * 4 * N * D + 4 * D * D),
    # Here all positions meet the matrices and each other.
    "dinovit": (12 * D * D + 6 * D + 4 * D, N * 12 * D * D + 2 * N * N * D),
    # Two matrices meet all positions; three products of matrices and two of a matrix and a vector come once.
    "abmilp": (5 * D * D + 2 * D + D, N * 2 * D * D + 3 * D**3 + 2 * D * D + 2 * N * N * D + 2 * N * D),
    "dolg": (D * D + D + 2 * D + D + 1, N * D * D + 2 * N * D),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_pools_cost_what_is_counted_by_hand(name):
    costs = count_costs(create_pool(name, D), (1, D, H, W))
    assert (costs.parameters, costs.multiply_adds) == BY_HAND[name]


def test_no_method_is_forgotten():
    assert set(BY_HAND) == set(list_pools() + list_pools(family="probing"))


def test_by_the_equations_simpool_projects_every_key():
    pool = create_pool("simpool", D)
    for shape in ((1, D, H, W), (1, N, D)):
        assert count_costs(pool, shape, by_parts=True).multiply_adds == D * D + N * D * D + 2 * N * D
    assert count_costs(pool, (5, N, D)).multiply_adds == 5 * BY_HAND["simpool"][1]


def test_kinds():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(2), nn.LayerNorm(25))
    costs = count_costs(nn.Sequential(layers, nn.Linear(25, 7)), (2, 3, 5, 5))
    parameters = 4 * 27 + 4 + 2 * 4 + 2 * 25 + 25 * 7 + 7
    assert costs == Costs(parameters, 2 * 4 * 27 * 25, 2 * 4 * 25 * 7, 0, batch_norm=200, layer_norm=200)
    attention = count_costs(create_pool("simpool", D), (1, N, D), by_parts=True)
    assert (attention.linear, attention.products) == (D * D + N * D * D, 2 * N * D)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_network_costs_its_trunk_and_its_pool(name):
    with torch.device("meta"):
        model = create_model("convnet_micro", "gap", 10)
    shape = (1, 3, 48, 48)
    trunk = count_costs(model, shape)
    pooled = count_costs(replace_pooling(model, name), shape)
    assert pooled == trunk + count_costs(create_pool(name, 96), (1, 96, 12, 12))


def test_known_networks():
    with torch.device("meta"):
        resnet, vit = create_model("resnet18", "gap"), create_model("vit_small_patch16_224", "cls")
    assert count_costs(resnet, (1, 3, 64, 64)).parameters == 11_689_512  # as torchvision's documentation has it
    # Attention: in each of 12 blocks 197 queries meet 197 keys and then 197 values, 384 channels.
    assert count_costs(vit, (1, 3, 224, 224)).products == 12 * 2 * 197**2 * 384


def test_the_module_is_left_as_it_was():
    model = create_model("convnet_micro", "simpool", 10).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_costs(model, (1, 3, 48, 48))
    assert model.training and model.last_attention is None
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])
