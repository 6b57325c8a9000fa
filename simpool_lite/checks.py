"""Arguments that are not what was expected: one way to say so."""

import json
import math
import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Rational, Real

LARGEST = 2**63 - 1  # what torch and numpy take for a size


def check_int(name: str, value: int, at_least: int = 1) -> int:
    """``value`` as an int.

    Raises:
        ValueError: it is no whole number, below ``at_least`` or above :data:`LARGEST`; booleans and strings are no
            numbers.

    >>> check_int("dim", 8)
    8
    """
    if not isinstance(value, Integral) or _is_bool(value) or not at_least <= value <= LARGEST:
        raise ValueError(f"{name}: expected an int of at least {at_least}, got {value!r}")
    return int(value)


def check_number(name: str, value: float, *, above_zero: bool = False, zero: bool = False) -> float:
    """``value`` as a float or an int.

    Raises:
        ValueError: it is no finite number; it is 0, unless ``zero`` allows that; it is below 0 where it must be above.
    """
    ok = isinstance(value, Real) and not _is_bool(value)
    if ok:  # isfinite cannot take 10**400
        ok = abs(value) <= sys.float_info.max if isinstance(value, Rational) else math.isfinite(value)
    if not ok or (value == 0 and not zero) or (above_zero and value < 0):
        allowed = (" of at least 0" if zero else " above 0") if above_zero else "" if zero else " other than 0"
        raise ValueError(f"{name}: expected a finite number{allowed}, got {value!r}")
    return value if isinstance(value, int) and abs(value) <= LARGEST else float(value)


def check_bool(name: str, value: bool) -> bool:
    """``value``, which must be True or False.

    Raises:
        TypeError: it is something else; "no" and 0 are.
    """
    if not _is_bool(value):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def check_options(name: str, value: dict) -> dict:
    """Named options as a dict of what JSON can hold; numpy's and torch's numbers become Python's.

    Raises:
        TypeError: it is no dict, its keys are no names, or a value is none of JSON's.
    """
    try:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            options = {key: plain(one) for key, one in value.items()}
            json.dumps(options)
            return value if all(options[key] is value[key] for key in value) else options
    except TypeError:
        pass
    raise TypeError(f'{name}: expected a dict such as {{"gamma": 2.0}}, got {value!r}')


def plain(value: object) -> object:
    """What holds numbers or arrays of numpy or torch, with Python's numbers and lists instead."""
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value.tolist() if hasattr(value, "tolist") else value


def check_text(name: str, value: str) -> str:
    """``value``, which must be a text.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a text, got {value!r}")
    return value


def check_path(name: str, value: str | os.PathLike) -> str:
    """``value``, the path of a file or folder, as a text.

    Raises:
        TypeError: it is neither a text nor a path, or empty.
    """
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise TypeError(f"{name}: expected a path, got {value!r}")
    return os.fspath(value)


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """``value``, which must be one of ``choices``.

    Raises:
        ValueError: it is not; the message has the nearest one that is.

    >>> check_choice("shift", "imagge", ("image", "batch"))
    Traceback (most recent call last):
    ValueError: shift: expected one of image, batch, got 'imagge'; did you mean 'image'?
    """
    choices = tuple(choices)
    if isinstance(value, str) and value in choices:
        return value
    raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}{did_you_mean(value, choices)}")


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """The end of a message about a wrong name: the nearest right one, or nothing."""
    near = get_close_matches(value, list(choices), 1) if isinstance(value, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _is_bool(value: object) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # Python's and numpy's
