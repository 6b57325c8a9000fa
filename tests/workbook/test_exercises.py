"""Exercises that answer back: right answers are praised, wrong ones get the hint, and empty cells no mistake."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

nbformat = pytest.importorskip("nbformat")

from simpool_lite.files import repository_root  # noqa: E402
from simpool_lite.workbook.exercises import Exercise, check, exercises  # noqa: E402

PAGES = {re.match(r"[A-Z]?\d+", p.stem)[0]: p for p in sorted((repository_root() / "notebooks").glob("*.ipynb"))}
ALL = [(page, number) for page in PAGES for number in exercises(page)]


def said(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("page", "number"), ALL)
def test_wrong_answers_get_the_hint(page, number, capsys):
    exercise = exercises(page)[number]
    assert len(exercise.wrong) >= 3
    for answer in exercise.wrong:
        check(f"{page}.{number}", answer)
        printed = said(capsys)
        assert printed.startswith(f"{page}.{number}: not yet.") and " ".join(exercise.hint.split()) in printed


@pytest.mark.parametrize(("page", "number"), ALL)
def test_no_answer_is_no_mistake(page, number, capsys):
    check(f"{page}.{number}", ...)
    printed = said(capsys)
    assert "no answer yet" in printed and exercises(page)[number].hint not in printed


@pytest.mark.parametrize("answer", [None, "", [], {}, "nonsense", object(), print])
def test_nonsense_is_an_answer_and_no_error(answer, capsys):
    for page, number in ALL:
        check(f"{page}.{number}", answer)
        assert "not yet" in said(capsys)


TRUTHS = [True, False, np.True_, torch.tensor(True), (True, True), (True, 1.0), [1, [False]], {"a": True}]
TRUTHS += [torch.ones(2, 4, 1) > 0, np.ones(3) > 0, pd.Series({"a": True}), pd.Series({"a": True}, dtype="boolean")]
TRUTHS += [pd.Series({"a": True, "b": 2}, dtype=object), {True, 2}]


@pytest.mark.parametrize("answer", TRUTHS, ids=repr)
def test_a_truth_value_is_no_number(answer, capsys):
    """True == 1, and 1 is the answer of 08.2; not even a check that takes any number takes it."""
    for page, number in ALL:
        check(f"{page}.{number}", answer)
        assert said(capsys).startswith(f"{page}.{number}: not yet. True and False are no answer here")
    exercise = Exercise(form="a number", right=lambda answer: True, hint="Look again.", wrong=())
    assert exercise.complaint(answer) and exercise.complaint(1) == ""


def test_a_truth_value_in_place_of_one_number_is_wrong(capsys):
    """Answers by name are right but for one value: 03.1 has two ones among its three numbers."""
    check("03.1", {"release": 8, "paper": 1, "timm": 1})
    assert "right, well done" in said(capsys)
    check("03.1", {"release": 8, "paper": 1, "timm": True})
    assert "not yet" in said(capsys)


@pytest.mark.parametrize("page", PAGES)
def test_each_exercise_has_its_cells_and_our_solutions_are_right(page):
    """The notebook's own solutions end with the check; its committed outputs, which nbval renews, are the praise."""
    checked = {number: {"answer": 0, "solution": 0} for number in exercises(page)}
    for cell in nbformat.read(PAGES[page], 4).cells:
        kind = {"answer", "solution"} & {*cell.metadata.get("tags", [])}
        for name, number, value in re.findall(r'^check\("(\w+)\.(\d+)", (.*)\)$', cell.source, re.M):
            assert name == page and len(kind) == 1
            checked[int(number)][min(kind)] += 1
            printed = "".join(output.get("text", "") for output in cell.outputs)
            if kind == {"answer"}:
                assert value == "my_answer" and "\nmy_answer = ...\n" in cell.source
                assert f"{page}.{number}: no answer yet" in printed
            else:
                assert f"{page}.{number}: right, well done." in printed
    waiting = {number for number, times in checked.items() if times == {"answer": 0, "solution": 0}}
    assert waiting in (set(), set(checked)), "some exercises of the page have their cells and others have not"
    assert all(times == {"answer": 1, "solution": 1} for number, times in checked.items() if number not in waiting)


@pytest.mark.parametrize("page", ["01", "02", "03", "09", "12", "A1"])
def test_the_first_pages_have_their_checks(page):
    assert exercises(page) and 'check("' in PAGES[page].read_text(encoding="utf-8").replace("\\", "")


@pytest.mark.parametrize("name", ["01", "01.99", "01.x", "99.1", "", "exercise.1", 1.5])
def test_a_name_of_no_exercise_says_which_there_are(name):
    with pytest.raises(ValueError, match="name: expected an exercise that can be checked"):
        check(name, 3)


def test_an_error_in_an_answer_is_told(capsys):
    exercise = Exercise(form="a function", right=lambda f: f() == 1, hint="Look again.", wrong=())
    assert exercise.complaint(lambda: 1) == ""
    assert "ZeroDivisionError" in exercise.complaint(lambda: 1 / 0)
    assert exercise.complaint(lambda: 2) == "Look again."
