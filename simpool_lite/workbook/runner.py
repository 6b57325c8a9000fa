"""Execute notebooks, one after the other, with papermill."""

import ast
import logging
import math
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError, strip_color

from .notebooks import (
    WorkbookError,
    check_output,
    clean,
    declared_parameters,
    duration,
    for_commit,
    machine_path,
    read,
    reading_minutes,
    select,
    title,
    write,
)

# What the workbook's parameters may be beyond the type of their defaults.
COUNTS = ("seeds",)  # whole numbers, one or more
WIDTHS = ("precision",)  # numbers above zero
MACHINE = ("device",)  # where it is computed, not what


class _ThisInterpreter(AsyncKernelManager):
    """Starts kernels with the running interpreter, whatever kernelspecs are installed on the machine."""

    @property
    def kernel_spec(self) -> KernelSpec:
        # Without these options every kernel warns about frozen modules when debugging and about unencrypted
        # messages (they stay on this machine, and are signed), and an interrupted one about itself.
        options = {
            "python_arguments": ["-Xfrozen_modules=off"],
            "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"],
        }
        return KernelSpec(**get_kernel_dict(**options))


@dataclass
class Failure:
    """Where and how a notebook stopped."""

    cell: int  # counted from 1, text cells too
    cells: int
    cell_id: str
    prompt: int | None  # the number in "In [3]"
    source: str
    error: str
    traceback: str = ""


@dataclass
class Outcome:
    """One notebook of a run."""

    source: Path
    copy: Path  # the executed notebook
    parameters: dict[str, Any]
    own: dict[str, str] = field(default_factory=dict)  # parameters that change what is computed, and their defaults
    status: Literal["waiting", "running", "passed", "failed", "interrupted"] = "waiting"
    seconds: float | None = None
    failure: Failure | None = None
    node: NotebookNode | None = None

    @property
    def stopped(self) -> bool:
        return self.status in ("failed", "interrupted")


def plan(
    folder: Path,
    output: Path,
    names: Sequence[str] = (),
    *,
    profile: str | None = None,
    parameters: dict[str, Any] | None = None,
) -> list[Outcome]:
    """Return the notebooks to run, each with those parameters that it declares.

    Raises:
        WorkbookError: a name means no notebook, or no chosen notebook declares a parameter; a parameter has a value
            of another type than its default, or out of range; ``output`` cannot be written to.
    """
    parameters = dict(parameters or {})
    declared = {path: declared_parameters(read(path)) for path in select(folder, names)}
    known = dict.fromkeys(name for names in declared.values() for name in names)
    for name in parameters:
        if name not in known:
            near = "".join(f"; did you mean {word!r}?" for word in get_close_matches(name, known, 1))
            raise WorkbookError(
                f"no chosen notebook has a parameter {name!r}. There is: {', '.join(known) or '(none)'}{near}"
            )
    for names in declared.values():
        for name in parameters.keys() & names.keys():
            _check_value(name, parameters[name], names[name])
    check_output(output)
    if profile is not None:
        parameters = {"profile": profile, **parameters}
    return [
        Outcome(
            source=path.resolve(),
            copy=output.resolve() / "notebooks" / path.name,
            parameters={name: value for name, value in parameters.items() if name in names},
            own={name: names[name] for name, value in parameters.items() if _is_own(name, value, names)},
        )
        for path, names in declared.items()
    ]


def _check_value(name: str, value: Any, default: str) -> None:
    """Refuse a value that a notebook would only stumble over later; ``default`` is as written in it."""
    try:
        kind = type(ast.literal_eval(default))
    except (ValueError, SyntaxError):
        kind = None  # an expression: anything may be meant
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name in COUNTS:
        wanted, fits = "a whole number of at least 1", number and isinstance(value, int) and value >= 1
    elif name in WIDTHS:
        wanted, fits = "a number above 0", (number and value > 0) or (value is None and default == "None")
    elif kind in (int, float):
        wanted, fits = "a number", number
    elif kind in (bool, str, list, dict):
        words = {bool: "true or false", str: "a text (in quotes where it looks like a number)"}
        wanted, fits = words.get(kind, f"a {kind.__name__}"), isinstance(value, kind)
    else:
        return
    if not fits:
        raise WorkbookError(f"parameter {name}: expected {wanted}, like its default {default}, got {value!r}")


def _is_own(name: str, value: Any, defaults: dict[str, str]) -> bool:
    """Whether a parameter makes a notebook compute something else than it was written about."""
    if name not in defaults or name in MACHINE:
        return False
    try:
        return value != ast.literal_eval(defaults[name])
    except (ValueError, SyntaxError):
        return True


def execute(
    outcomes: list[Outcome],
    *,
    inplace: bool = False,
    progress: bool = True,
    changed: Callable[[Outcome], None] = lambda outcome: None,
) -> None:
    """Execute the notebooks up to the first that fails and fill in how it went.

    Args:
        outcomes: from ``plan``.
        inplace: also replace each notebook that passed by its executed copy.
        progress: show a bar of the cells.
        changed: called whenever a notebook starts or ends.
    """
    for outcome in outcomes:
        outcome.status = "running"
        changed(outcome)
        _run(outcome, progress=progress)
        if inplace and outcome.status == "passed":
            _replace_source(outcome)
        changed(outcome)
        if outcome.stopped:
            return


def _run(outcome: Outcome, *, progress: bool) -> None:
    """Run one notebook; an error in it becomes a part of the outcome."""
    outcome.copy.parent.mkdir(parents=True, exist_ok=True)
    # papermill writes after every cell, and not in one step: let it have a file of its own.
    running = outcome.copy.with_name(f".{outcome.copy.stem}.running.ipynb")
    outcome.status, crash, start = "passed", None, time.perf_counter()
    try:
        with _quiet():
            papermill.execute_notebook(
                _literal(outcome.source),
                _literal(running),
                outcome.parameters,
                kernel_name="python3",
                language="python",
                cwd=Path.cwd(),  # so that a path given with -p means what it means in the shell
                progress_bar={"desc": outcome.source.stem, "unit": "cell"} if progress else False,
                kernel_manager_class=_ThisInterpreter,
                record_timing=False,
            )
    except PapermillExecutionError:
        pass  # also raised for the errors that a cell tagged raises-exception is there to show
    except RuntimeError as error:  # what nbclient raises when the kernel does not start or dies
        outcome.status, crash = "failed", f"{error} (is there enough memory?)"
    except KeyboardInterrupt:
        outcome.status, crash = "interrupted", "interrupted"
    outcome.seconds = time.perf_counter() - start
    node = read(running)
    outcome.failure = _failure(node, crash)
    if outcome.failure and outcome.status == "passed":
        outcome.status = "failed"
    outcome.node = clean(node)
    _record(outcome)
    write(outcome.node, outcome.copy)
    running.unlink()


def _failure(node: NotebookNode, crash: str | None) -> Failure | None:
    """Find the cell that papermill marked as failed or, after a crash, the last one that was started."""
    cells = [cell for cell in node.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    marks = [cell.metadata.get("papermill", {}) for cell in cells]
    if crash:
        hit = [i for i, mark in enumerate(marks) if mark.get("start_time")] or [0]
    else:
        hit = [i for i, mark in enumerate(marks) if mark.get("exception")]
    if not hit:
        return None
    cell = cells[hit[-1]]
    errors = [o for o in cell.get("outputs", []) if o.output_type == "error"]
    error = errors[-1] if errors else {"ename": crash or "stopped", "evalue": "", "traceback": []}
    return Failure(
        cell=hit[-1] + 1,
        cells=len(cells),
        cell_id=cell.get("id", ""),
        prompt=cell.get("execution_count"),
        source=cell.source,
        error=": ".join(filter(None, [error["ename"], error["evalue"]])),
        traceback=strip_color("\n".join(error["traceback"])),
    )


def _record(outcome: Outcome) -> None:
    """Note in the notebook how long it took, for whom it is copied to and for ``list``."""
    note = dict(outcome.node.metadata.get("simpool_lite", {}), seconds=round(outcome.seconds, 1))
    profile = outcome.parameters.get("profile", declared_parameters(outcome.node).get("profile"))
    if profile is not None:
        note["profile"] = str(profile).strip("'\"")
    outcome.node.metadata["simpool_lite"] = note


def _replace_source(outcome: Outcome) -> None:
    """Put the executed notebook in the place of its source, unless it gives the machine away."""
    if found := machine_path(outcome.node):
        number, folder = found
        outcome.status = "failed"
        outcome.failure = Failure(
            cell=number,
            cells=len(outcome.node.cells),
            cell_id=outcome.node.cells[number - 1].get("id", ""),
            prompt=outcome.node.cells[number - 1].get("execution_count"),
            source=outcome.node.cells[number - 1].source,
            error=f"the output names {folder}, a folder of this machine; the notebook is left as it was",
        )
    else:
        write(for_commit(outcome.node), outcome.source)


def _literal(path: Path) -> str:
    """Escape a path for papermill, which takes braces in it for parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' warnings and log lines out of the output."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def explain(outcome: Outcome, again: str) -> str:
    """Return what to print about a notebook that stopped: where, why, what to do; ``again`` runs it again."""
    failure = outcome.failure
    prompt = f" (In [{failure.prompt}])" if failure.prompt else ""
    lines = [f"{outcome.source}\n{outcome.status} in cell {failure.cell} of {failure.cells}{prompt}"]
    lines += [_excerpt(failure.source.splitlines()[:8]), failure.error]
    lines.append(_excerpt(failure.traceback.splitlines()[-12:]))
    lines.append(f"The copy with what was executed: {outcome.copy}\nOpen it with: jupyter lab {outcome.copy}")
    lines.append(f"Run it again with: {again}")
    return "\n\n".join(filter(None, lines))


def _excerpt(lines: list[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def times(outcomes: list[Outcome]) -> str:
    """Return a line for each notebook: its name, how it went, how long it took."""
    width = max(len(outcome.source.stem) for outcome in outcomes)
    words = {"waiting": "not run"}
    return "\n".join(
        f"{o.source.stem:<{width}}  {words.get(o.status, o.status):<11}  {duration(o.seconds):>12}".rstrip()
        for o in outcomes
    )


def listing(folder: Path, profiles: Sequence[str], width: int = 100) -> str:
    """Return the table of ``list``: what there is, its cells, parameters, how long to read and to run per profile."""
    rows = [("notebook", "title", "cells", "reading", "recorded", *profiles)]
    details = [""]
    for path in select(folder):
        node = read(path)
        note = node.metadata.get("simpool_lite", {})
        seconds = [note.get("seconds"), *map(note.get("estimates", {}).get, profiles)]
        reading = f"{sum(reading_minutes(node).values()):.0f} min"
        rows.append((path.stem, title(node) or "–", str(len(node.cells)), reading, *map(duration, seconds)))
        details.append(" ".join(f"{name}={value}" for name, value in declared_parameters(node).items()))
    return _table(rows, details, width)


def sections(folder: Path) -> str:
    """Return a markdown list of the notebooks with the minutes that each of their sections takes to read."""
    lines = []
    for path in select(folder):
        minutes = reading_minutes(read(path))
        parts = "; ".join(f"{name} {time:.0f}" for name, time in minutes.items())
        lines.append(f"- `{path.stem}`, {sum(minutes.values()):.0f} min: {parts}")
    return "\n".join(lines)


def _table(rows: list[tuple[str, ...]], details: list[str], width: int) -> str:
    """Align the columns; the second one gives way if the lines would be too long."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[1] = max(20, min(widths[1], width - sum(widths) + widths[1] - 2 * (len(widths) - 1)))
    lines = []
    for row, detail in zip(rows, details, strict=True):
        name, heading, *times = row
        if len(heading) > widths[1]:
            heading = heading[: widths[1] - 1] + "…"
        cells = [f"{name:<{widths[0]}}", f"{heading:<{widths[1]}}"]
        cells += [f"{text:>{w}}" for text, w in zip(times, widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
        if detail:
            indent = " " * (widths[0] + 2)
            lines += textwrap.wrap(detail, width, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines)
