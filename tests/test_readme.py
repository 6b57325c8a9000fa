"""The README is true line by line, as far as a machine can tell."""

import base64
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import torch

from simpool_lite.experiments.grid import check_runs
from simpool_lite.experiments.store import recorded_results
from simpool_lite.experiments.suite import Setting
from simpool_lite.files import repository_root

ROOT = repository_root()
README = (ROOT / "README.md").read_text()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_the_grid_of_the_soak_can_be_run():
    """It waits for signals in a run of its own, which would otherwise end before them."""
    from benchmarks.soak import GRID

    check_runs([config for _, config in GRID.runs()])


def test_the_ten_lines_run():
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    names: dict = {}
    exec(code, names)
    assert names["z"].shape == (2, 384) and names["a"].shape == (2, 1, 196)
    assert names["logits"].shape == (2, 10) and names["maps"].shape == (2, 1, 7, 7)
    torch.testing.assert_close(names["maps"].sum((2, 3)), torch.ones(2, 1))
    assert names["image"].shape == (3, 48, 48) and isinstance(names["label"], int)


def test_where_networks_look():
    text, mass = " ".join(README.split()), {}
    for regime in ("once", "long"):
        measures = pd.read_parquet(recorded_results() / "measures" / f"headline-{regime}.parquet")
        runs = pd.read_parquet(recorded_results() / f"headline-{regime}.parquet")
        runs = runs[runs.backbone == "vit_micro"]
        maps = measures[(measures.what == "maps") & (measures.measure == "mass")]
        maps = maps[maps.config_hash.isin(runs.config_hash)]
        mass[regime] = maps.groupby("method").value.mean().round().astype(int)
    top1 = runs.groupby("variant").top1.mean().round().astype(int)  # of "long"
    once, long = mass["once"], mass["long"]
    assert f"has {once['SimPool']} % of its mass on the object, and the class token's {once['CLS']} %" in text
    assert f"it is {long['SimPool']} and {long['CLS']} %" in text
    assert f"the networks name {top1['SimPool']} and {top1['CLS']} % of the objects" in text


def test_the_picture_is_the_notebooks():
    notebook = nbformat.read(ROOT / "notebooks" / "00-start-here.ipynb", 4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    assert (ROOT / "data" / "attention-maps.png").read_bytes() in pictures


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_the_course_map_names_every_notebook():
    named = re.findall(r"^\| \[`?([A-Z\d]\d[^`\]]*)`?\]\(notebooks/\1\.ipynb\)", README, re.M)
    assert named == [n.stem for n in NOTEBOOKS]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.M))))
def test_make_has_the_targets(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize(
    "options", re.findall(r"python -m simpool_lite (run|list|record|train|dino|student|slides)", README)
)
def test_the_command_line_has_the_commands(options):
    done = subprocess.run([sys.executable, "-m", "simpool_lite", options, "--help"], capture_output=True, text=True)
    assert done.returncode == 0


def test_the_headline_runs_are_recorded():
    """Every run that notebook 00 asks for is in the recorded results, finished, from a committed revision."""
    runs = pd.read_parquet(recorded_results() / "headline-once.parquet").set_index("config_hash")
    asked = [c.hash() for grid in Setting(seeds=2).grids("headline", "once") for _, c in grid.runs() if c.seed == 0]
    recorded = runs.loc[asked]
    assert (recorded.status == "ok").all() and not recorded.git_revision.str.contains("dirty|unknown").any()


def test_the_figures_are_the_recorded_ones():
    assert subprocess.run([sys.executable, "-m", "benchmarks.readme", "--check"], cwd=ROOT).returncode == 0
    figures = re.findall(r"<!-- (?!soak)[^>]+ -->([^<]+)<!-- end -->", README)
    assert len(figures) == 14 and all(float(figure) > 1 for figure in figures)


def test_reliability_shows_every_figure_with_its_promise_date_and_machine():
    soak = pd.read_csv(ROOT / "data" / "benchmarks" / "soak.csv")
    shown = re.search(r"<!-- soak -->(.*?)<!-- end -->", README, re.S)[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("| ")][
        2:
    ]
    assert [(what, float(most)) for what, _, most in rows] == list(zip(soak.what, soak.most, strict=True))
    assert [float(seen) for _, seen, _ in rows] == pytest.approx(soak.figure.tolist(), rel=5e-3)
    assert all(text in shown for text in (*soak.date, *soak.machine))


def test_the_models_are_known_to_timm():
    code = re.search(r"```python\n(import timm.*?)```", README, re.S).group(1)
    names: dict = {}
    exec(code, names)
    assert names["model"](torch.randn(2, 3, 64, 64)).shape == (2, 10)
