"""What people type and what lies about: refused with a message before any kernel starts."""

import json
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("papermill")
pytest.importorskip("nbconvert")

from nbformat.v4 import new_code_cell, new_notebook  # noqa: E402

from simpool_lite.__main__ import main  # noqa: E402
from simpool_lite.workbook import runner  # noqa: E402

DECLARED = """\
profile = "laptop"
seeds = 5  # at least
precision = 1.0
rate = 1
names = ["x"]
fast = False
store = None
width = 2 * 3
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs a command on one notebook whose kernel must not start; exit status and message."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cell = new_code_cell(DECLARED, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), folder / "0-a.ipynb")
    started = []
    monkeypatch.setattr(runner, "execute", lambda outcomes, **options: started.extend(outcomes))
    monkeypatch.setattr("simpool_lite.workbook.report.Report", Report)

    def run(*words, notebooks=folder):
        started.clear()
        status = main(["run", "--notebooks", str(notebooks), *map(str, words)])
        assert bool(started) == (status == 0)
        return status, capsys.readouterr().err, started

    return run


class Report:
    """The pages themselves are another test's."""

    def __init__(self, outcomes, output):
        self.index = output.resolve() / "index.html"


REFUSED = {
    "seeds": ["0", "-1", "2.5", "abc", "true", "nan", "None", "[1, 2]", "'3'"],
    "precision": ["0", "-0.5", "abc", "inf", "None", "true"],
    "rate": ["abc", "true", "nan", "None"],
    "names": ["x", "3", "{a: 1}"],
    "fast": ["1", "abc", "None"],
    "profile": ["3", "None", "true"],
}
TAKEN = {
    "seeds": ["1", "12"],
    "precision": ["0.5", "2"],
    "rate": ["0.1", "-3"],
    "names": ['["a"]', "[]"],
    "fast": ["true"],
    "profile": ["smoke", "'3'"],
    "store": ["runs/mine", "None", "3"],
    "width": ["3", "abc"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_values_of_another_type_or_out_of_range_are_refused(run, name, value):
    status, message, _ = run("-p", name, value)
    assert status == 2
    assert f"parameter {name}: expected a" in message or f"parameter {name}: expected true or false" in message
    assert "got" in message


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in TAKEN.items() for value in values])
def test_values_that_fit_are_taken(run, name, value):
    status, _, started = run("-p", name, value)
    assert status == 0
    assert list(started[0].parameters) == [name]


@pytest.mark.parametrize(("written", "meant"), [("seed", "seeds"), ("sedes", "seeds"), ("Precision", "precision")])
def test_a_wrong_name_gets_the_nearest_right_one(run, written, meant):
    status, message, _ = run("-p", written, "3")
    assert status == 2
    assert f"did you mean '{meant}'?" in message


def test_a_name_like_no_other_gets_the_list_alone(run):
    status, message, _ = run("-p", "zzz", "3")
    assert status == 2
    assert "There is: profile, seeds, precision" in message
    assert "did you mean" not in message


OF_THE_WORKBOOK = {
    ("profile", "laptob"): "did you mean 'laptop'?",
    ("device", "cdua"): "did you mean 'cuda'?",
    ("device", "3"): "expected one of auto, cuda, mps, cpu",
    ("dataset", "imagenete"): "did you mean 'imagenette'?",
    ("dataset", "None"): "expected one of photo-digits",
    ("regime", "haed"): "did you mean 'head'?",
    ("backbone", "resnet5O"): "did you mean 'resnet50'?",
    ("backbone", "3"): "expected the name of a timm model",
    ("data_root", "no/such/folder"): "expected a folder, found none at no/such/folder",
    ("data_root", "3"): "expected a path, got 3",
    ("store", __file__): "expected a folder, got the file",
    ("store", "3"): "expected a path, got 3",
}


@pytest.mark.parametrize(("name", "value"), OF_THE_WORKBOOK)
def test_values_of_the_workbooks_parameters_are_checked(capsys, monkeypatch, name, value):
    monkeypatch.setattr(runner, "execute", None)  # no kernel
    assert main(["run", "05", "-p", name, value]) == 2
    message = capsys.readouterr().err
    assert f"parameter {name}: expected" in message and OF_THE_WORKBOOK[name, value] in message


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_an_output_that_is_no_folder_is_refused(run, tmp_path, where):
    (tmp_path / "file").write_text("kept")
    status, message, _ = run("--output", tmp_path / where)
    assert status == 2
    assert "--output: cannot write" in message
    assert str(tmp_path / where) in message
    assert (tmp_path / "file").read_text() == "kept"


def test_an_output_that_cannot_be_written_is_refused(run, tmp_path, monkeypatch):
    def refuse(self, content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)  # who runs the tests may be allowed everything
    status, message, _ = run("--output", tmp_path / "out")
    assert status == 2
    assert "Permission denied" in message


def test_a_new_output_is_made_and_left_clean(run, tmp_path):
    assert run("--output", tmp_path / "a" / "b")[0] == 0
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("command", ["run", "list"])
def test_notebooks_that_are_a_file_or_nothing(run, tmp_path, capsys, command):
    file = tmp_path / "notebooks" / "0-a.ipynb"
    assert main([command, "--notebooks", str(file)]) == 2
    assert f"expected a folder of notebooks, got the file {file}" in capsys.readouterr().err
    assert main([command, "--notebooks", str(tmp_path / "none")]) == 2
    assert "no notebooks in" in capsys.readouterr().err


VALID = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", "3", "null", "", "no JSON", '"a"', '{"nbformat": 4}', '{"nbformat": "x", "cells": []}', "\0\1\2",
     *(json.dumps(VALID | changes) for changes in ({"cells": {}}, {"cells": [3]}, {"metadata": []}, {"nbformat": 99}))],
)  # fmt: skip
@pytest.mark.parametrize("command", ["run", "list"])
def test_files_that_are_no_notebooks_are_named(run, tmp_path, capsys, content, command):
    (tmp_path / "notebooks" / "1-b.ipynb").write_text(content)
    assert main([command, "--notebooks", str(tmp_path / "notebooks")]) == 2
    assert "1-b.ipynb cannot be read as a notebook" in capsys.readouterr().err


def test_hidden_notebooks_are_not_run(run, tmp_path):
    (tmp_path / "notebooks" / "._0-a.ipynb").write_bytes(b"\0\5\26\7")
    status, _, started = run()
    assert status == 0
    assert [outcome.source.name for outcome in started] == ["0-a.ipynb"]
