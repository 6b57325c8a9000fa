"""Notebooks as files: find them, read what they declare, keep committed ones free of noise."""

import copy
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode
from papermill.execute import remove_error_markers

from ..files import check_writable, write_atomically
from .mathml import text_of_markdown

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


class WorkbookError(Exception):
    """Something the user can put right; the message says what and how."""


def select(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the notebooks of ``folder`` that ``names`` mean, in that order; without names all of them.

    A name is a number ("00", "5"), a file name, its beginning ("02-the") or a path.
    """
    if folder.is_file():
        raise WorkbookError(f"expected a folder of notebooks, got the file {folder}; a notebook's path is a NOTEBOOK")
    there = sorted(path for path in folder.glob("*.ipynb") if not path.name.startswith("."))
    if not there and not names:
        raise WorkbookError(f"there are no notebooks in {folder}")
    chosen = [_find(name, there) for name in names] or there
    chosen = list(dict.fromkeys(chosen))
    stems = [path.stem for path in chosen]
    twice = {stem for stem in stems if stems.count(stem) > 1}
    if twice:  # their executed copies would overwrite each other
        raise WorkbookError(f"two notebooks have the same name, run them one at a time: {', '.join(twice)}")
    return chosen


def _find(name: str, there: list[Path]) -> Path:
    """Return the one notebook that a name on the command line means."""
    path = Path(name).expanduser()
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    found = [p for p in there if name in (p.name, p.stem)]
    if not found and name.isdecimal():
        found = [p for p in there if (m := re.match(r"\d+", p.stem)) and int(m[0]) == int(name)]
    elif not found:
        found = [p for p in there if p.stem.startswith(name)]
    if len(found) == 1:
        return found[0]
    listing = "\n".join(f"  {p.stem}" for p in (found or there)) or "  (none)"
    if found:
        raise WorkbookError(f"{name!r} fits more than one notebook, be more exact:\n{listing}")
    raise WorkbookError(f"there is no notebook {name!r}. There is:\n{listing}")


def read(path: Path) -> NotebookNode:
    """Read a notebook of any version as the newest."""
    try:
        node = nbformat.read(path, as_version=4)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, nbformat.ValidationError) as error:
        raise WorkbookError(f"{path} cannot be read as a notebook: {error}") from error
    if not isinstance(node.cells, list):
        raise WorkbookError(f"{path} cannot be read as a notebook: its cells are no list")
    return node


def write(node: NotebookNode, path: Path) -> None:
    """Write a notebook in one step, so that an interruption leaves the old file or the new one."""
    write_text(nbformat.writes(node) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a text file in one step, with the same bytes on every system."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def check_output(folder: Path) -> None:
    """Raise a WorkbookError for a folder that cannot be written to."""
    try:
        check_writable("--output", folder)
    except ValueError as error:
        raise WorkbookError(error) from error


def title(node: NotebookNode) -> str | None:
    """Return the first heading of a notebook as plain text."""
    for cell in node.cells:
        if cell.cell_type == "markdown" and (match := re.search(r"^#+\s+(.+)$", cell.source, re.MULTILINE)):
            return text_of_markdown(match[1])
    return None


def reading_minutes(node: NotebookNode) -> dict[str, float]:
    """Return how long each section takes to read, in minutes: words / 200 + lines of code / 15.

    The text before the first section goes by the notebook's title. Checks, answers and solutions are not counted.
    """
    section, minutes = title(node) or "", {}
    for cell in node.cells:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith("## "):
                    section = text_of_markdown(line[3:])
                minutes[section] = minutes.get(section, 0) + len(line.split()) / 200
        elif cell.cell_type == "code" and not {"check", "answer", "solution"} & {*cell.metadata.get("tags", [])}:
            lines = sum(not line.isspace() for line in cell.source.splitlines() if line)
            minutes[section] = minutes.get(section, 0) + lines / 15
    return minutes


def declared_parameters(node: NotebookNode) -> dict[str, str]:
    """Return the names in the cell tagged ``parameters`` and their defaults, as written there."""
    node = copy.deepcopy(node)  # papermill wants to know the language
    node.metadata["kernelspec"] = KERNELSPEC
    return {name: str(p["default"]) for name, p in papermill.inspect_notebook(node).items()}


def parse_value(text: str) -> Any:
    """Return the Python value of a parameter given on the command line.

    >>> [parse_value(text) for text in ("3", "1e-3", "true", "None", "[1, 2]", "vit_small")]
    [3, 0.001, True, None, [1, 2], 'vit_small']
    """
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    if text[:1] in (
        "[",
        "{",
        '"',
        "'",
    ):  # only then YAML, which takes `no` for False and 2024-01-01 for a date
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            pass
    return text


def clean(node: NotebookNode) -> NotebookNode:
    """Return a notebook without what executing adds and nobody reads: papermill's notes, times, versions.

    The code of cells tagged ``check``, which only compare what the text says with the results, is hidden.
    """
    node = remove_error_markers(node)
    node.metadata.pop("papermill", None)
    node.metadata["kernelspec"] = dict(KERNELSPEC)
    node.metadata.get("language_info", {}).pop("version", None)
    # How the kernel cuts a cell's prints into messages is a matter of timing.
    node, _ = CoalesceStreamsPreprocessor(enabled=True)(node, {})
    for cell in node.cells:
        for noise in ("papermill", "execution", "lines_to_next_cell"):  # the last is jupytext's
            cell.metadata.pop(noise, None)
        if "check" in cell.metadata.get("tags", []):  # JupyterLab folds it, too
            cell.metadata.setdefault("jupyter", {})["source_hidden"] = True
        if not cell.metadata.get("tags", True):  # papermill gives every cell an empty list
            del cell.metadata["tags"]
    return node


def for_commit(node: NotebookNode) -> NotebookNode:
    """Return a copy without what differs from run to run: the state of widgets and their random names."""
    node = copy.deepcopy(node)
    node.metadata.pop("widgets", None)
    for cell in node.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return node


def machine_path(node: NotebookNode) -> tuple[int, str] | None:
    """Return the first cell whose output names a folder of this machine, as warnings do, and the folder."""
    folders = {Path.home(), Path(sys.prefix), Path(__file__).resolve().parents[2], Path.cwd()}
    # A root folder is no giveaway, it is the beginning of every path.
    traces = [f"{folder}{os.sep}" for folder in folders if folder != Path(folder.anchor)]
    traces.append(str(Path(tempfile.gettempdir(), "ipykernel_")))  # the file name of a cell in a warning
    for number, cell in enumerate(node.cells, 1):
        for output in cell.get("outputs", []):
            texts = [output.get("text", ""), *output.get("traceback", []), *_texts(output.get("data", {}))]
            for trace in traces:
                if any(trace in text for text in texts):
                    return number, trace
    return None


def _texts(data: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of a rich output that are text."""
    return (str(value) for mime, value in data.items() if not mime.startswith("image/"))


def duration(seconds: float | None) -> str:
    """Return a time for people.

    >>> [duration(s) for s in (None, 0.84, 42.4, 200, 3900)]
    ['–', '0.8 s', '42 s', '3 min 20 s', '1 h 5 min']
    """
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
