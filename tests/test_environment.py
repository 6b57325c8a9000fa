"""Several files describe the environment: here they are held against each other and against what runs."""

import ast
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import simpool_lite

ROOT = Path(__file__).resolve().parents[1]
HEADLINE = {"torch", "timm", "jupyterlab", "nbval", "seaborn", "pandas", "ipywidgets", "papermill"}
REFERENCE_PLATFORM = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info[:2] == (3, 11)


def read_pins(lines) -> dict[str, Version]:
    """``name==version`` lines as a dictionary; anything else, a URL for example, is an error."""
    pins = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", line)
        assert match, f"not an exact pin: {line!r}"
        name = canonicalize_name(match[1])
        assert name not in pins, f"pinned twice: {name}"
        pins[name] = Version(match[2])
    return pins


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [
    Requirement(line) for line in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
]
PINS = read_pins(
    line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip() and not line.startswith("#")
)


def installed_version(name: str) -> Version:
    # Without the local part: torch calls itself 2.14.1+cu130 on one machine and 2.14.1+cpu on another.
    return Version(Version(importlib.metadata.version(name)).public)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_requirement_is_pinned_and_installed(requirement):
    pin = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin, prereleases=True)
    assert installed_version(requirement.name) == pin, "not the pinned environment: run `make test`"


@pytest.mark.skipif(not REFERENCE_PLATFORM, reason="the pins are those of Linux x86-64 with Python 3.11")
def test_pins_are_exactly_what_is_pulled_in():
    """Walk the installed packages from the project's requirements: all of them are pinned, and no other."""
    seen, todo = set(), [(requirement, "") for requirement in REQUIREMENTS]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                todo += [(Requirement(line), extra) for line in importlib.metadata.requires(name) or []]
    assert {name: installed_version(name) for name, _ in seen} == PINS


def imported_packages(folder: str) -> set[str]:
    """The distributions that the Python files in a folder import, at the top or inside functions."""
    distributions, names = importlib.metadata.packages_distributions(), set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
    return {canonicalize_name(package) for name in names for package in distributions.get(name, [])}


@pytest.mark.parametrize(
    ("folder", "extras"), [("simpool_lite", ["notebooks", "cluster"]), ("tests", ["notebooks", "dev"])]
)
def test_every_import_is_required(folder, extras):
    lines = chain(PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras))
    required = {canonicalize_name(Requirement(line).name) for line in lines}
    assert imported_packages(folder) <= required | {"simpool-lite"}


def test_environment_yml_repeats_the_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "simpool"
    assert environment["channels"] == ["conda-forge"]
    *conda, from_pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    options = [line for line in from_pip["pip"] if line.startswith("-")]
    assert options == ["-c constraints.txt", "-e .[notebooks,dev]"]
    pins = read_pins(line for line in from_pip["pip"] if not line.startswith("-"))
    assert set(pins) >= HEADLINE
    assert pins == {name: PINS[name] for name in pins}


def test_binder_installs_the_set_for_readers():
    """Its files say the same as environment.yml and pyproject.toml: the Python, the pins, the repository itself."""
    lines = (ROOT / ".binder" / "requirements.txt").read_text().splitlines()
    asked = [line for line in lines if not line.startswith("#")]
    index, pins, package = asked
    assert index.startswith("--extra-index-url https://")
    assert pins == "-c ../constraints.txt" and (ROOT / ".binder" / pins.split()[1]).is_file()
    assert package == "-e .[notebooks-cpu]"  # editable: the notebooks read the repository's data
    [python] = [line for line in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"] if "=" in line]
    assert (ROOT / ".binder" / "runtime.txt").read_text().strip() == python.replace("=", "-")
    after = ROOT / ".binder" / "postBuild"
    assert os.access(after, os.X_OK) and subprocess.run(["/bin/sh", "-n", str(after)]).returncode == 0


def test_the_set_for_readers_is_a_part_of_the_whole():
    extras = {name: {str(Requirement(line)) for line in lines} for name, lines in EXTRAS.items()}
    assert extras["notebooks-cpu"] < extras["notebooks"]
    assert extras["weights"] < extras["notebooks"]


def test_the_set_for_readers_is_enough():
    """What the notebooks import at the top, the repository and Python itself apart, comes with the set."""
    there = {
        canonicalize_name(Requirement(line).name) for line in chain(PROJECT["dependencies"], EXTRAS["notebooks-cpu"])
    }
    distributions, missing = importlib.metadata.packages_distributions(), {}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        for name in re.findall(r"^(?:import|from) (\w+)", source, re.M):
            packages = {canonicalize_name(package) for package in distributions.get(name, [])}
            if packages and not packages & (there | {"simpool-lite", "ipython"}):  # IPython comes with ipykernel
                missing.setdefault(path.stem, set()).add(name)
    assert missing == {}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), "."], cwd=ROOT, check=True)
    [path] = folder.iterdir()
    return path


def test_wheel_carries_the_version(wheel):
    assert wheel.name == f"simpool_lite-{simpool_lite.__version__}-py3-none-any.whl"


def test_wheel_carries_the_package_and_the_photographs_and_no_more(wheel):
    package = [path for path in (ROOT / "simpool_lite").rglob("*") if path.is_file()]
    photographs = [path for path in (ROOT / "data" / "photographs").rglob("*") if path.is_file()]
    assert any(path.suffix == ".png" for path in photographs)
    expected = {path.relative_to(ROOT).as_posix() for path in package if "__pycache__" not in path.parts}
    expected |= {f"simpool_lite/{path.relative_to(ROOT / 'data').as_posix()}" for path in photographs}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected


def test_import_is_lazy():
    """``import simpool_lite`` costs no more than ``import torch``: the rest is loaded when it is used."""
    heavy = {"timm", "torchvision", "pandas", "sklearn", "accelerate", "matplotlib"}
    code = f"import sys, simpool_lite; print(*sorted({heavy!r} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert loaded == []


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license", "type"} <= citation.keys()
    assert citation["version"] == simpool_lite.__version__
    assert citation["license"] == PROJECT["license"]
    paper = citation["preferred-citation"]
    assert paper["title"].startswith("Keep It SimPool")
    assert {"type", "authors", "year", "collection-title"} <= paper.keys()


def test_continuous_integration_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert lines[-1] == "make test"


def test_pre_commit_fetches_nothing():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    assert {hook["language"] for hook in config["repos"][0]["hooks"]} == {"system"}
