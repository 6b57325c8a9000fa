"""The search for learning rates of protocol 2, on made-up results."""

import pandas as pd

from simpool_lite.experiments.budgets import BUDGETS
from simpool_lite.experiments.search import at_the_edge, best_rates, rate_search
from simpool_lite.experiments.suite import Setting


def results(accuracy: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame({"variant": accuracy.keys(), "top1": accuracy.values(), "backbone": "convnet_micro"})


def test_every_variant_is_tried_at_the_same_rates_on_val():
    grids = rate_search(Setting(), ["exponent", "init"], "head")
    assert [grid.trunk["pool"] for grid in grids] == ["gap", "gem", "simpool"]
    for grid in grids:
        names = {name.rsplit(" ", 1)[0] for name in grid.variants}
        rates = BUDGETS["head"]["convnet_micro"].searched_rates
        assert {"SimPool", "gamma 2", "gamma learned", "U0 max"} <= names
        assert set(grid.variants) == {f"{name} {rate:g}" for name in names for rate in rates}
        assert {config.measured_on for _, config in grid.runs()} == {"val"}
    (once,) = rate_search(Setting(), ["exponent"], "once")
    config = once.config("gamma 2 0.004", 100)
    assert config.learning_rate == 0.004 and config.pool_kwargs == {"gamma": 2.0}
    assert config.data_options["num_images"] == 32768 and once.seeds == (100,)


def test_the_search_goes_on_while_the_best_is_at_an_end():
    (grid,) = rate_search(Setting(), ["exponent"], "once")
    names = ("SimPool", "gamma 2", "gamma 5")
    accuracy = {f"{name} {rate:g}": 50.0 for name in names for rate in (0.002, 0.004, 0.008)}
    accuracy |= {"SimPool 0.004": 60.0, "gamma 2 0.008": 60.0, "gamma 5 0.002": 60.0}
    more = at_the_edge(grid, results(accuracy))
    assert set(more.variants) - set(grid.variants) == {"gamma 2 0.016", "gamma 5 0.001"}
    assert more.variants["gamma 5 0.001"]["learning_rate"] == 0.001
    assert more.variants["gamma 5 0.001"]["pool_kwargs"] == {"gamma": 5.0}
    accuracy |= {"gamma 2 0.016": 55.0, "gamma 5 0.001": 55.0}
    assert at_the_edge(more, results(accuracy)) is None
    assert best_rates(results(accuracy)) == {"convnet_micro": {"SimPool": 0.004, "gamma 2": 0.008, "gamma 5": 0.002}}


def test_the_rate_of_a_head_is_best_on_the_mean_of_the_trunks():
    runs = [results({"GAP 0.001": 50.0, "GAP 0.01": 59.0}), results({"GAP 0.001": 70.0, "GAP 0.01": 60.0})]
    assert best_rates(pd.concat(runs)) == {"convnet_micro": {"GAP": 0.001}}
