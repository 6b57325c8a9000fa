"""The ablation suite: which runs it is made of, and that each of them can be made."""

import json
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch

from simpool_lite.experiments.budgets import BUDGETS, SEARCH_SEED
from simpool_lite.experiments.config import REGIMES
from simpool_lite.experiments.evidence import judge, recorded_runs
from simpool_lite.experiments.grid import TRUNK_SEEDS, run
from simpool_lite.experiments.paper import published
from simpool_lite.experiments.search import best_rates
from simpool_lite.experiments.store import Store, open_store, recorded_results
from simpool_lite.experiments.suite import (
    CIFAR_RATES,
    EXPERIMENTS,
    Setting,
    notebooks,
    table_of_records,
)
from simpool_lite.measure.decide import decide, runs_needed
from simpool_lite.training.probes import Head

NOTEBOOKS = notebooks()
ABLATIONS = ("04", "05", "06", "07", "08")


def grids(notebook: str, setting: Setting, regimes: tuple[str, ...] = REGIMES) -> list:
    return [grid for name in NOTEBOOKS[notebook] for regime in regimes for grid in setting.grids(name, regime)]


def configs(notebook: str, setting: Setting, regimes: tuple[str, ...] = REGIMES) -> dict:
    return {config.hash(): config for grid in grids(notebook, setting, regimes) for _, config in grid.runs()}


@pytest.fixture(scope="module")
def records():
    return Store(recorded_results()).records()


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_smoke_is_a_few_short_runs(notebook):
    setting = Setting("smoke")
    runs = [
        run for run in configs(notebook, setting).values() if run.dataset == "photo-digits"
    ]  # CIFAR-10: as recorded
    assert len(runs) <= 36
    assert {run.seed for run in runs} == {0, 1}
    assert all(run.epochs == 1 and run.data_options["num_images"] <= 128 for run in runs)
    # Every experiment of the notebook is there, and its default.
    full = {grid.experiment for grid in grids(notebook, Setting())}
    assert {grid.experiment for grid in grids(notebook, Setting("smoke"))} == full


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_variant_makes_a_head(notebook):
    made = {}
    for config in configs(notebook, Setting(), ("head",)).values():
        options = config.model_options | config.pool_kwargs
        key = (config.pool, str(options))
        if key not in made:
            made[key] = Head(config.pool, 32, 10, **options)(torch.randn(2, 16, 32).abs(), (4, 4))[0]
    assert all(logits.shape == (2, 10) and logits.isfinite().all() for logits in made.values())


@pytest.mark.parametrize("notebook", ABLATIONS)
def test_one_factor_at_a_time_at_a_rate_of_its_own(notebook):
    for grid in grids(notebook, Setting()):
        assert grid.seeds == (6 if grid.trunk else 5) and grid.baseline in grid.variants
        rates = BUDGETS[grid.base["regime"]][grid.base["backbone"]].learning_rates
        kind = "convnet" if grid.base["backbone"] == "convnet_micro" else "transformer"
        rates = CIFAR_RATES[kind] if grid.experiment == "cifar10" and grid.trunk else rates
        for name, changes in grid.variants.items():
            assert changes["learning_rate"] == rates.get(name, 1e-3)
            assert "seed" not in changes and "epochs" not in changes, name


def test_the_default_is_computed_once():
    heads = [grid for grid in Setting().grids("exponent", "head") if grid.trunk["pool"] == "gap"]
    default = {config.hash() for grid in heads for variant, config in grid.runs() if variant == "SimPool"}
    for notebook in ABLATIONS:
        assert default <= set(configs(notebook, Setting(), ("head",))), notebook
    (once,) = Setting(seeds=3).grids("exponent", "once")
    headline = Setting(seeds=3).grids("headline", "once")
    default = {config.hash() for variant, config in once.runs() if variant == "SimPool"}
    assert default <= {config.hash() for grid in headline for _, config in grid.runs()}


def test_long_is_once_with_four_times_the_images():
    for once, long in zip(*(Setting(seeds=1).grids("headline", regime) for regime in ("once", "long")), strict=True):
        for (variant, short), (same, config) in zip(once.runs(), long.runs(), strict=True):
            options = short.data_options | {"num_images": 4 * short.data_options["num_images"]}
            assert same == variant and config == replace(short, regime="long", data_options=options)


def test_a_heads_trunk_is_a_network_of_the_headline():
    headline = {c.hash() for grid in Setting(seeds=3).grids("headline", "once") for _, c in grid.runs()}
    for experiment in EXPERIMENTS:
        for grid in Setting().grids(experiment.name, "head"):
            if not experiment.data:
                assert {config.trunk_config().hash() for _, config in grid.runs()} <= headline, experiment.name


def test_a_data_set_of_its_own_is_the_trunks_too():
    for grid in Setting().grids("cifar10", "head"):
        for _, config in grid.runs():
            trunk = config.trunk_config()
            assert trunk.data_root == config.data_root == "cifar10-jpeg" and trunk.target is None
            assert (trunk.epochs, config.epochs) == (2, 1) and trunk.data_options == {"image_size": 32}


def test_a_backbone_of_the_readers_keeps_what_suits_it():
    assert {grid.base["backbone"] for grid in Setting(backbone="resnet18").grids("tournament", "head")} == {"resnet18"}
    (headline,) = Setting(seeds=1, backbone="vit_small_patch16_224").grids("headline", "once")
    assert [config.pool for _, config in headline.runs()] == ["cls", "gap", "simpool"]
    assert Setting(backbone="vit_small_patch16_224").grids("tournament", "head") == []  # of a ConvNet
    for notebook in ("00", "05", "06", "07", "08"):  # there is something to see on any backbone
        made = grids(notebook, Setting(backbone="vit_small_patch16_224"))
        assert made and {grid.base["backbone"] for grid in made} == {"vit_small_patch16_224"}


def test_data_of_the_readers():
    setting = Setting(dataset="folder", data_root="photos", backbone="resnet18")
    for grid in setting.grids("tournament", "head"):
        assert grid.base["data_root"] == "photos" and "data_options" not in grid.base and "target" not in grid.base
    assert list(setting.conditions("who-wins-where")) == ["default"]


def test_unknown_names():
    with pytest.raises(ValueError, match="profile: expected one of smoke, laptop, gpu, got 'fast'"):
        Setting("fast")
    with pytest.raises(ValueError, match=r"name: expected an experiment .*, got 'innit'"):
        Setting().grids("innit", "head")


def test_no_recorded_run_failed(records):
    assert records.config_hash.is_unique and set(records.status) == {"ok"} and set(records.protocol) == {2}


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_head_is_recorded(notebook, records):
    assert set(configs(notebook, Setting(), ("head",))) <= set(records.config_hash)


@pytest.mark.slow
def test_a_recorded_head_can_be_repeated(tmp_path, records):
    """On the machine that recorded it every digit is the same, on another one sums are rounded otherwise.

    Its trunks are the recorded ones: to train them again takes minutes.
    """
    grid = Setting().grids("exponent", "head")[0]
    one = replace(grid, variants={"SimPool": grid.variants["SimPool"]}, seeds=1)
    networks = tmp_path / "networks"
    networks.mkdir()
    for file in recorded_results().glob("*-once.parquet"):
        shutil.copy(file, networks)
    shutil.copytree(recorded_results() / "models", networks / "models")
    store = Store(tmp_path / "runs", also_read=(networks,))
    again = run(one, store, workers=1, device="cpu", progress=False)
    assert len(list(store.folder.glob("*.parquet"))) == 1  # the head, and no network
    recorded = records.set_index("config_hash").loc[again.config_hash[0]]
    assert again.status[0] == recorded.status == "ok"
    assert abs(again.top1[0] - recorded.top1) <= 2


def test_the_search_seed_is_not_reported():
    reported = {config.seed for notebook in NOTEBOOKS for config in configs(notebook, Setting()).values()}
    assert SEARCH_SEED not in reported


@pytest.mark.parametrize("experiment", [e for e in EXPERIMENTS if e.paper], ids=lambda e: f"{e.name}-{e.kind}")
def test_the_rows_of_the_paper_are_rows_of_the_experiment(experiment):
    beside = published(**experiment.paper).keys() & experiment.variants.keys()
    assert "SimPool" in beside and len(beside) > 1


def test_the_table_of_records_is_in_the_repository(records):
    text = (recorded_results() / "README.md").read_text()
    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \| (head|once|long) \| `(\w+)` \| (\S+) \| (\d+) \| (\d+) \| (\S+) \|$", text, re.M
    )
    table = table_of_records(records).round({"hours": 2}).astype(str)
    assert rows == [tuple(row) for row in table.itertuples(index=False)] and rows


def test_what_is_said_of_rounding_is_recorded(records):
    text = " ".join((recorded_results() / "README.md").read_text().split())
    benchmarks = recorded_results().parent / "benchmarks"
    pairs, changed = pd.read_csv(benchmarks / "two_machines.csv"), pd.read_parquet(benchmarks / "rounding.parquet")
    difference = pairs.top1_again - pairs.top1
    assert f"{len(pairs)} networks of `once` that were trained on two machines" in text
    assert f"differ by {difference.std():.2f} points (SD), with a mean of {difference.mean():.2f}." in text
    assert f"spread by {changed.top1[changed.change > 0].std():.1f} points (SD;" in text
    as_it_is = changed[changed.change == 0]
    assert as_it_is[(as_it_is.seed == 0) & (as_it_is.cores == 1)].top1.nunique() == 1  # bit for bit
    by_cores = as_it_is.drop_duplicates(["seed", "cores"]).pivot(index="seed", columns="cores", values="top1")
    apart = (by_cores[2] - by_cores[1]).abs()
    assert f"two threads instead of one differ by {apart.min():.1f} to {apart.max():.1f} points" in text
    rows = records[(records.regime == "once") & records.experiment.isin(["init", "exponent", "layernorm"])]
    spread = rows.groupby("variant").top1.std()[rows.groupby("variant").size() == 8]
    assert f"The seeds of one row spread by {spread.min():.1f} to {spread.max():.1f} points" in text


@pytest.mark.parametrize("regime", ["head", "once"])
def test_the_rates_are_the_best_of_the_recorded_search(regime, records):
    searched = records[(records.experiment == f"rates-{regime}") & (records.dataset == "photo-digits")]
    assert set(searched.seed) == {SEARCH_SEED}
    found = [json.loads(config) for config in searched.config]
    assert {config["measured_on"] for config in found} == {"val"}
    rates = [config["learning_rate"] for config in found]
    searched = searched.assign(name=searched.variant.str.rsplit(" ", n=1).str[0], rate=rates)
    best = best_rates(searched)
    for backbone, budget in BUDGETS[regime].items():
        for name, rate in budget.learning_rates.items():
            name = {"gamma 2": "shift image"}.get(name, name) if regime == "head" else name  # recorded under one name
            if name in ("k-means", "Slot"):  # too slow to search: SimPool's
                assert rate == budget.learning_rates["SimPool"]
                continue
            assert rate == best[backbone][name], name
    assert BUDGETS[regime]["convnet_micro"].learning_rates


@pytest.mark.parametrize(
    ("name", "pool"),
    [("probing", "simpool"), ("probing-scene", "gap"), ("probing-odd", "gap"), ("probing-cifar10", "gap")],
)
def test_probes_have_the_best_rates_of_their_own_search(name, pool, records):
    (grid,) = (
        grid
        for grid in Setting().grids(name, "head")
        if grid.trunk["pool"] == pool and grid.base["backbone"] == "convnet_micro"
    )
    same = (records.dataset == grid.base["dataset"]) & (records.target.fillna("") == (grid.base.get("target") or ""))
    same &= records.config.map(lambda config: json.loads(config)["epochs"] == grid.base["epochs"])
    searched = records[same & (records.seed == SEARCH_SEED) & records.trunk.str.startswith(pool)]
    names = searched.variant.str.rsplit(" ", n=1, expand=True)
    best = best_rates(
        searched[(searched.backbone == "convnet_micro") & names[1].str.fullmatch(r"[\d.]+").fillna(False)]
    )
    found = searched.set_index("variant").top1
    for variant in grid.variants:
        rate, best_rate = grid.variants[variant]["learning_rate"], best["convnet_micro"][variant]
        if variant in ("ABMILP", "DINO block"):  # slow: they keep the rate of GAP's trunk where it is as good
            assert found[f"{variant} {rate:g}"] > found[f"{variant} {best_rate:g}"] - 0.15
        else:
            assert rate == best_rate, variant


def test_a_table_made_again_has_the_recorded_verdicts():
    again = pd.read_csv(recorded_results().parent / "benchmarks" / "init_again.csv")
    text = " ".join((recorded_results() / "README.md").read_text().split())
    assert f"trained {len(again)} networks for the table of the start" in text
    (grid,) = Setting().grids("init", "once")
    recorded = judge(recorded_runs(grid, open_store(None)), margin=2.0)
    repeated = decide(again, "SimPool", 2.0)
    assert repeated.verdict[recorded.index].equals(recorded.verdict)
    assert runs_needed(again, "SimPool", precision=1.0).half.max() <= 1


@pytest.mark.parametrize(("trunk", "heads"), [("GAP", 64), ("GeM", 94)])
def test_heads_made_again_have_the_recorded_verdicts(trunk, heads):
    again = pd.read_csv(recorded_results().parent / "benchmarks" / "init_again_head.csv")
    again = again[again.trunk == trunk].assign(trunk=lambda table: table.seed % TRUNK_SEEDS)
    text = " ".join((recorded_results() / "README.md").read_text().split())
    assert len(again) == heads and f"on {trunk}'s trunk ({heads} heads)" in text
    (grid,) = (grid for grid in Setting().grids("init", "head") if grid.trunk["pool"] == trunk.lower())
    recorded = judge(recorded_runs(grid, open_store(None)))
    assert decide(again, "SimPool", 1.0, blocks="trunk").verdict[recorded.index].equals(recorded.verdict)
    assert runs_needed(again, "SimPool", precision=0.3, blocks="trunk").half.max() <= 0.3
