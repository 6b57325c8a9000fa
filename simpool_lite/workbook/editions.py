"""The notebooks for a course: exercise sheets without solutions, and slides."""

import base64
import copy
import os
import re
from collections.abc import Iterator, Sequence
from html import escape as html_escape
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from urllib.parse import urlsplit

from bs4 import BeautifulSoup
from nbconvert import SlidesExporter
from nbconvert.preprocessors import ClearOutputPreprocessor, Preprocessor
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_output

from .notebooks import WorkbookError, check_output, clean, for_commit, read, select, title, write, write_text
from .report import TEMPLATES, PageExporter, local_file, localise, page_name, style, with_alternative_text

ANSWER = "# Your answer"
# What the notebooks say above their exercises, and what is true of a sheet and of slides without solutions.
_WITH_SOLUTIONS = "Solutions are in the folded cells below each question."
_WITHOUT = "Write your answers into the cells below each question."
_ON_SLIDES = "The notebook has a cell for each answer."
_ASKS = re.compile(r"^\*\*\d+ \(", re.M)  # **4 (an afternoon).** begins an exercise

# The first cell of a sheet that is opened in Colab, where torch is installed and the repository is not.
_COLAB = """\
# In Google Colab: fetch the course and install what is missing, two minutes. Elsewhere this cell does nothing.
import sys

if "google.colab" in sys.modules:
    !git clone --quiet --depth 1 {repository} simpool-course
    !python -m pip install --quiet -e "./simpool-course[notebooks-cpu]"
    %cd simpool-course/notebooks
    sys.path.insert(0, "/content/simpool-course")\
"""

_SLIDES_INDEX = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Slides</title>
<style>
{style}
</style>
</head>
<body class="page">
<main>
<h1>Slides</h1>
<ol>
{links}
</ol>
</main>
</body>
</html>
"""

# What fits on a slide, in lines of text, and what the parts of a cell take of it.
_SLIDE_LINES = 17
_SHORT, _SMALLER = 3, 5  # so many lines more for a short text, and for what follows a heading: none should stand alone
_LINE_CHARACTERS, _PRINT_CHARACTERS, _ROW_CHARACTERS = 95, 114, 130
_CODE_LINE, _OUTPUT_LINE, _ROW, _PICTURE, _HEADING, _FORMULA = 0.75, 0.7, 0.95, 13, 2.2, 2.5
_LINE_PIXELS, _MOST_PIXELS = 36, 480  # of a line of text; of a picture, as in slides.css


def write_student(folder: Path, output: Path, names: Sequence[str] = (), repository: str | None = None) -> list[Path]:
    """Write the notebooks without solutions and outputs, and the documents that they link to.

    Args:
        folder: where the notebooks are.
        output: the folder to write to.
        names: which notebooks, as for ``select``; without names all.
        repository: the address that the course can be cloned from; then each sheet begins with a cell that does so in
            Google Colab.

    Returns:
        The files written.
    """
    chosen = select(folder, names)
    if repository is not None and not re.fullmatch(r"https://[\w./~-]+", repository):
        raise WorkbookError(f"--colab: expected the https address of a repository, got {repository!r}")
    if output.resolve() in {path.parent.resolve() for path in chosen}:
        raise WorkbookError(f"--output: {output} holds the notebooks themselves; choose another folder")
    check_output(output)
    written, documents = [], []
    for path in chosen:
        node, _ = AnswerCells(enabled=True)(read(path), {})
        node, _ = ClearOutputPreprocessor(enabled=True)(node, {})
        node = for_commit(clean(node))
        if repository is not None:
            node.cells.insert(1, new_code_cell(_COLAB.format(repository=repository), id="colab"))
        for cell in node.cells:
            if cell.cell_type == "markdown":
                cell.source = _relink(cell.source, path.parent, output, chosen, documents)
        write(node, output / path.name)
        written.append(output / path.name)
    for path in documents:  # the list grows by the documents that documents link to
        text = _relink(path.read_text(encoding="utf-8"), path.parent, output, chosen, documents)
        write_text(text, output / path.name)
        written.append(output / path.name)
    return written


class AnswerCells(Preprocessor):
    """Takes out the solutions, which may have several cells in a row.

    An exercise that code can check has a cell for the answer already (tagged ``answer``); the others get one.
    """

    def preprocess(self, node: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        node, cells = copy.deepcopy(node), []
        for cell, after in zip_longest(node.cells, node.cells[1:]):
            if "solution" not in cell.metadata.get("tags", []):
                cell.source = cell.source.replace(_WITH_SOLUTIONS, _WITHOUT)
                cells.append(cell)
                followed = after is not None and {"answer", "solution"} & {*after.metadata.get("tags", [])}
                if _ASKS.search(cell.source) and cell.cell_type == "markdown" and not followed:
                    cells.append(new_code_cell(ANSWER, id=f"{cell.id[:56]}-answer", metadata={"tags": ["answer"]}))
            elif not cells or "answer" not in cells[-1].metadata.get("tags", []):
                # The identifier stays, so that an answer can be found again from the question's solution.
                cells.append(new_code_cell(ANSWER, id=cell.id, metadata={"tags": ["answer"]}))
        node.cells = cells
        return node, resources


def _relink(text: str, folder: Path, output: Path, chosen: list[Path], documents: list[Path]) -> str:
    """Make the relative links of markdown valid in another folder; note the documents that have to go with it."""

    def moved(match: re.Match) -> str:
        path, fragment = local_file(match[0], folder), urlsplit(match[0]).fragment
        if path is None:
            return match[0]
        if path.suffix == ".md" and path.parent == folder.resolve() and path not in documents:
            documents.append(path)
        there = path.name if path in (*chosen, *documents) else Path(os.path.relpath(path, output)).as_posix()
        return f"{there}#{fragment}" if fragment else there

    return re.sub(r"(?<=\]\()[^)\s]+", moved, text)


def write_slides(folder: Path, output: Path, names: Sequence[str] = ()) -> list[Path]:
    """Write each notebook as slides in one HTML file, which loads nothing, and an index of them.

    Arguments as for ``write_student``.
    """
    chosen, reveal = select(folder, names), _reveal()
    check_output(output)
    written, titles = [], []
    for path in chosen:
        node, _ = SlidesByHeadings(enabled=True)(with_alternative_text(read(path)), {})
        exporter = _SlidesExporter(
            template_file="slides.html.j2",
            extra_template_paths=[str(TEMPLATES)],
            exclude_input_prompt=True,
            exclude_output_prompt=True,
        )
        page = {"title": title(node) or path.stem, "style": style(), **reveal}
        html, _ = exporter.from_notebook_node(node, resources={"page": page})
        soup = BeautifulSoup(html, "html.parser")
        localise(soup, path.parent, output, {p.resolve() for p in chosen})
        written.append(output / page_name(path))
        write_text(str(soup), written[-1])
        titles.append(page["title"])
    links = "\n".join(
        f'<li><a href="{page.name}">{html_escape(name)}</a></li>' for page, name in zip(written, titles, strict=True)
    )
    index = _SLIDES_INDEX.format(style=style(), links=links)
    write_text(index, output / "index.html")
    return [*written, output / "index.html"]


def _reveal() -> dict[str, str]:
    """Return reveal.js itself, its style sheet and what we add to it, from the package that carries it."""
    try:
        carrier = metadata.distribution("sphinx-revealjs")
    except metadata.PackageNotFoundError as error:
        raise WorkbookError('slides need reveal.js, which comes with: pip install "simpool-lite[notebooks]"') from error
    place = Path(carrier.locate_file("sphinx_revealjs/_static/revealjs/dist"))
    files = {"script": place / "reveal.js", "reveal": place / "reveal.css", "slides": TEMPLATES / "slides.css"}
    missing = [file for file in files.values() if not file.is_file()]
    if missing:
        raise WorkbookError(f"sphinx-revealjs {carrier.version} has no {missing[0]}; install version 3.2")
    return {name: file.read_text(encoding="utf-8") for name, file in files.items()}


class _SlidesExporter(PageExporter, SlidesExporter):
    """nbconvert's slides, with the report's formulas."""


class SlidesByHeadings(Preprocessor):
    """Makes slides of a notebook in which no cell is marked as one.

    ``##`` starts a slide, ``###`` and what no longer fits a sub-slide below it; what follows a heading stays with it.
    Figures and tables are shown without their code; solutions, checks and what stands before the first section of code
    are left out.
    """

    def preprocess(self, node: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        if any("slideshow" in cell.metadata for cell in node.cells):
            return node, resources
        node, cells, used = copy.deepcopy(node), [], 0.0
        for cell in _parts(node):
            lines = _lines(cell)
            room = _SLIDE_LINES + (_SMALLER if used <= _HEADING else _SHORT if lines <= _SHORT else 0)
            level = re.match(r"#+(?= )", cell.source) if cell.cell_type == "markdown" else None
            if level is not None and level[0] == "##":
                kind = "slide"
            elif used + lines > room or (level is not None and level[0] == "###" and used > _HEADING):
                kind = "subslide"
            else:
                kind = "-"
            used = lines if kind != "-" else used + lines
            cell.metadata["slideshow"] = {"slide_type": kind}
            cells.append(cell)
        node.cells = cells
        return node, resources


def _parts(node: NotebookNode) -> Iterator[NotebookNode]:
    """Yield what the slides show, markdown a paragraph at a time."""
    in_section = False
    for cell in node.cells:
        tags = {*cell.metadata.get("tags", [])}
        if cell.cell_type == "markdown" and "solution" not in tags:
            for number, source in enumerate(_paragraphs(cell.source.replace(_WITH_SOLUTIONS, _ON_SLIDES))):
                part = copy.deepcopy(cell)
                part.id, part.source = f"{cell.id[:56]}-{number}", source
                in_section = in_section or source.startswith("## ")
                yield part
        elif cell.cell_type == "code" and in_section and not tags & {"check", "solution", "answer", "parameters"}:
            rich = {mime for output in cell.outputs for mime in output.get("data", {})}
            if rich & {"text/html", "text/markdown", "text/latex"} or any(mime.startswith("image/") for mime in rich):
                for number, output in enumerate(cell.outputs):  # so that each figure can have a slide
                    part = copy.copy(cell)
                    part.id, part.outputs = f"{cell.id[:56]}-{number}", [output]
                    part.metadata = {**cell.metadata, "transient": {"remove_source": True}}
                    yield part
            elif _lines(cell) <= _SLIDE_LINES:
                yield cell
            else:
                yield from _code_and_prints(cell)


def _code_and_prints(cell: NotebookNode) -> Iterator[NotebookNode]:
    """Cut a cell that needs more than a slide: its code, then what it printed, a slide of it at a time."""
    code = copy.copy(cell)
    code.id, code.outputs = f"{cell.id[:56]}-code", []
    yield code
    printed = "".join(output.get("text", output.get("data", {}).get("text/plain", "")) for output in cell.outputs)
    pieces, used = [[]], 0.0
    for line in printed.splitlines():
        lines = _OUTPUT_LINE * _wrapped(line, _PRINT_CHARACTERS)
        if used + lines > _SLIDE_LINES - 1:
            pieces, used = [*pieces, []], 0.0
        pieces[-1].append(line)
        used += lines
    for number, piece in enumerate(pieces):
        part = copy.copy(cell)
        part.id, part.outputs = f"{cell.id[:56]}-{number}", [new_output("stream", text="\n".join(piece))]
        part.metadata = {**cell.metadata, "transient": {"remove_source": True}}
        yield part


def _wrapped(line: str, characters: int) -> int:
    """Return how many lines a line becomes on a slide."""
    return max(1, -(-len(line) // characters))


def _paragraphs(source: str) -> list[str]:
    """Cut markdown at blank lines and headings; fenced code stays whole.

    >>> _paragraphs("## Head\\ntext\\n\\n```\\n# no\\n\\nhead\\n```")
    ['## Head', 'text', '```\\n# no\\n\\nhead\\n```']
    """
    paragraphs, fenced = [[]], False
    for line in source.splitlines():
        heading = not fenced and re.match(r"#{1,6} ", line)
        if heading or (not fenced and not line.strip()):
            paragraphs.append([])
        if line.strip() or fenced:
            paragraphs[-1].append(line)
        if heading:
            paragraphs.append([])
        fenced ^= line.lstrip().startswith("```")
    return ["\n".join(lines) for lines in paragraphs if lines]


def _lines(cell: NotebookNode) -> float:
    """Return how much of a slide a cell takes, roughly, in lines of text."""
    if cell.cell_type == "markdown":
        if cell.source.startswith("#"):
            return _HEADING
        if cell.source.startswith("|"):
            return _ROW * sum(_wrapped(row, _ROW_CHARACTERS) for row in cell.source.splitlines()[1:])
        return 0.5 + len(cell.source) / _LINE_CHARACTERS + _FORMULA * cell.source.count("$$") / 2
    hidden = "transient" in cell.metadata
    lines = 0 if hidden else 0.8 + _CODE_LINE * len(cell.source.splitlines())
    for output in cell.outputs:
        data = output.get("data", {})
        if any(mime.startswith("image/") for mime in data):
            lines += _picture_lines(data)
        elif "text/html" in data:
            lines += 1 + _ROW * data["text/html"].count("<tr")
        elif "text/markdown" in data:
            lines += 1 + _ROW * data["text/markdown"].count("\n")
        else:
            text = output.get("text", data.get("text/plain", ""))
            lines += 0.4 + _OUTPUT_LINE * sum(_wrapped(line, _PRINT_CHARACTERS) for line in text.splitlines())
    return lines


def _picture_lines(data: dict[str, str]) -> float:
    """Return how much of a slide a picture takes: a PNG says its height in the bytes 20 to 24."""
    if "image/png" not in data:
        return _PICTURE
    height = int.from_bytes(base64.b64decode(data["image/png"][:32])[20:24], "big")
    return 0.5 + min(height, _MOST_PIXELS) / _LINE_PIXELS
