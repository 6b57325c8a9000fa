"""What an exercise has, and what its checks have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Exercise:
    """An exercise whose answer code can judge.

    Args:
        form: what is to be answered with, as in "put ... in the place of the three dots".
        right: whether an answer is right. It may stumble over a wrong one: any error means that it is wrong.
        hint: what to say where it is wrong; a next thought, not the solution.
        wrong: at least three wrong answers that a reader might give. The tests hold each against ``right``.
    """

    form: str
    right: Callable[[Any], bool]
    hint: str
    wrong: Sequence[Any]

    def complaint(self, answer: object) -> str:
        """What to say about an answer that is wrong; "" for a right one."""
        try:
            if _holds_bool(answer):  # Python and torch would take them for 1 and 0
                return f"True and False are no answer here: put {self.form}. {self.hint}"
            with torch.no_grad():
                return "" if self.right(answer) else self.hint
        except Exception as error:  # the answer may be anything, and may do anything when it is called
            said = str(error).strip().splitlines()
            return (
                f"It could not be used as {self.form} ({type(error).__name__}: {said[0] if said else ''}). {self.hint}"
            )


def _holds_bool(answer: Any) -> bool:
    """Whether an answer is a truth value, of Python, numpy, pandas or torch, or has one among its parts."""
    if hasattr(answer, "items"):  # a dictionary or a Series
        answer = [value for _, value in answer.items()]
    if isinstance(answer, list | tuple | set | frozenset):
        return any(map(_holds_bool, answer))
    return isinstance(answer, bool) or str(getattr(answer, "dtype", "")).rpartition(".")[2] in ("bool", "boolean")


def near(answer: Any, value: Any, tolerance: float = 1e-4) -> bool:
    """Whether numbers have the right shape and differ by no more than ``tolerance``."""
    answer, value = (torch.as_tensor(x, dtype=torch.float64) for x in (answer, value))
    return answer.shape == value.shape and bool(((answer - value).abs() <= tolerance).all())


def near_by_name(answer: Any, values: dict[str, float], tolerance: float) -> bool:
    """The same of numbers with names: a dictionary or a pandas Series."""
    answer = dict(answer)
    return answer.keys() == values.keys() and all(near(float(answer[key]), values[key], tolerance) for key in values)


def made_up(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, the same at every call, of double precision so that rounding is no matter."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
