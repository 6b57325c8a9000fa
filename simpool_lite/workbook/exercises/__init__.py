"""Exercises that answer back: ``check("02.3", my_answer)`` praises an answer or gives a hint, and never the solution.

One module per notebook, ``notebook_02`` for notebook 02, with its ``EXERCISES``: the number of each exercise that can
be checked and its :class:`Exercise`. An exercise without an entry is one that a person has to read.
"""

from importlib import import_module
from importlib.util import find_spec
from textwrap import fill

from .exercise import Exercise

__all__ = ["Exercise", "check", "exercises"]


def check(name: str, answer: object) -> None:
    """Print whether an answer is right: praise, or a hint.

    Args:
        name: notebook and exercise, such as "02.3".
        answer: the reader's answer; ``...``, as the empty cell has it, is no answer yet and no mistake.

    Raises:
        ValueError: there is no such exercise, or none that can be checked.

    >>> check("01.1", ...)
    01.1: no answer yet. Put a number in the place of the three dots.
    """
    notebook, _, number = str(name).partition(".")
    there = exercises(notebook)
    if not number.isdecimal() or int(number) not in there:
        known = ", ".join(f"{notebook}.{number}" for number in there) or "none of this notebook"
        raise ValueError(f"name: expected an exercise that can be checked ({known}), got {name!r}")
    exercise = there[int(number)]
    if answer is ...:
        reply = f"no answer yet. Put {exercise.form} in the place of the three dots."
    elif complaint := exercise.complaint(answer):
        reply = f"not yet. {complaint}"
    else:
        reply = "right, well done."
    print(fill(f"{name}: {reply}", 88))


def exercises(notebook: str) -> dict[int, Exercise]:
    """The exercises of a notebook ("02", "A1") that can be checked, by their numbers."""
    module = f"{__name__}.notebook_{notebook}"
    if not notebook.isalnum() or find_spec(module) is None:
        return {}
    return import_module(module).EXERCISES
