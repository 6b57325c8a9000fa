"""Imports go downward only, as the design draws the package."""

import grimp
import pytest

LAYERS = (
    "checks files device",
    "pooling",
    "models",
    "datasets",
    "training",
    "measure",
    "experiments",
    "figures",
    "lab __main__",
)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("simpool_lite", cache_dir=None)


def layer_of(module: str) -> int | None:
    part = module.split(".")[1] if "." in module else ""
    return next((number for number, names in enumerate(LAYERS) if part in names.split()), None)


def test_every_module_has_a_place(graph):
    outside = {m for m in graph.modules if layer_of(m) is None}
    assert outside == {m for m in outside if m == "simpool_lite" or m.startswith("simpool_lite.workbook")}


def test_imports_go_downward_only(graph):
    """The package itself is the public surface: it imports lazily, and the layers take only its version from it."""
    upward = [
        f"{importer} imports {imported}"
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
        if None not in (layer_of(importer), layer_of(imported)) and layer_of(imported) > layer_of(importer)
    ]
    assert not upward


def test_the_workbook_stands_alone(graph):
    """It executes notebooks, whatever they are about; of this package it takes the writing of files.

    The checks of the exercises know what the notebooks are about: they are the notebooks' and not the runner's.
    """
    exercises = {m for m in graph.modules if m.startswith("simpool_lite.workbook.exercises")}
    workbook = {m for m in graph.modules if m.startswith("simpool_lite.workbook")} - exercises
    taken = {imported for m in workbook for imported in graph.find_modules_directly_imported_by(m)} - workbook
    assert taken <= {"simpool_lite.files"}
