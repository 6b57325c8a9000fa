"""The executed notebooks as HTML pages, and an index of them, that open from disk without a network."""

import base64
import mimetypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag
from jinja2 import Environment, FileSystemLoader, pass_context
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from .mathml import markdown_to_html, to_mathml
from .notebooks import duration, read, title, write_text
from .runner import Outcome

_TEMPLATES = Path(__file__).with_name("templates")


class Report:
    """The report of a run. Call it whenever a notebook starts or ends, and what is on disk is up to date.

    Args:
        outcomes: the notebooks of the run, in order.
        output: the folder to write to.
        heading: the title of the index.
    """

    def __init__(self, outcomes: list[Outcome], output: Path, heading: str = "SimPool workbook"):
        self.outcomes = outcomes
        self.output = output
        self.heading = heading
        self.index = output / "index.html"

    def __call__(self, outcome: Outcome) -> None:
        pages = {o.source for o in self.outcomes}
        finished = [outcome] if outcome.node else []
        if outcome.stopped:  # there will be no page for the rest: the links to them change
            finished = [o for o in self.outcomes if o.node]
            pages = {o.source for o in finished}
        for each in finished:
            self._write_page(each, pages)
        self._write_index()

    def _write_page(self, outcome: Outcome, pages: set[Path]) -> None:
        """Write the page of an executed notebook; ``pages`` are the notebooks that have or will have one."""
        exporter = _PageExporter(
            template_name="lab",  # for what it knows about outputs; the page around them is ours
            template_file="page.html.j2",
            extra_template_paths=[str(_TEMPLATES)],
            exclude_input_prompt=True,
            exclude_output_prompt=True,
        )
        page = {
            "title": title(outcome.node) or outcome.source.stem,
            "style": _style(),
            "outcome": outcome,
            "status": _word(outcome),
            "duration": duration(outcome.seconds),
        }
        html, _ = exporter.from_notebook_node(outcome.node, resources={"page": page})
        html = _localise(html, outcome.source.parent, self.output, pages)
        write_text(html, self.output / _page_name(outcome))

    def _write_index(self) -> None:
        """Write the page with a card for each notebook."""
        environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True)
        profiles = {str(o.parameters["profile"]) for o in self.outcomes if "profile" in o.parameters}
        passed = sum(outcome.status == "passed" for outcome in self.outcomes)
        html = environment.get_template("index.html.j2").render(
            heading=self.heading,
            style=_style(),
            cards=[_card(outcome) for outcome in self.outcomes],
            passed=f"{passed} of {len(self.outcomes)} passed",
            duration=duration(sum(outcome.seconds or 0 for outcome in self.outcomes)),
            profile=", ".join(sorted(profiles)),
        )
        write_text(html, self.index)


def _page_name(outcome: Outcome) -> str:
    return f"{outcome.source.stem}.html"


def _word(outcome: Outcome) -> str:
    return "not run" if outcome.status == "waiting" else outcome.status


@dataclass
class _Card:
    href: str  # empty while there is no page
    number: str
    title: str
    sentence: str
    thumbnail: str
    status: str
    word: str
    duration: str
    error: str


def _card(outcome: Outcome) -> _Card:
    node = outcome.node or read(outcome.source)
    number = re.match(r"\d+", outcome.source.stem)
    return _Card(
        href=_page_name(outcome) if outcome.node else "",
        number=number[0] if number else "",
        title=title(node) or outcome.source.stem,
        sentence=first_sentence(node),
        thumbnail=thumbnail(node),
        status=outcome.status,
        word=_word(outcome),
        duration=duration(outcome.seconds) if outcome.seconds is not None else "",
        error=f"Cell {outcome.failure.cell}: {outcome.failure.error}" if outcome.failure else "",
    )


def first_sentence(node: NotebookNode) -> str:
    """Return the first sentence of running text after the title, or "" without one."""
    for block in _blocks(node):
        if block.name == "p" and (text := " ".join(block.get_text().split())):
            # A sentence ends where something like a new one begins: not after the point of "e.g. this".
            return re.match(r".+?[.!?…](?=\s+[^\sa-z]|$)|.+", text)[0]
    return ""


def _blocks(node: NotebookNode) -> Iterator[Tag]:
    """Yield the top-level elements of the text cells that follow the title."""
    after_title = False
    for cell in node.cells:
        if cell.cell_type == "markdown":
            for block in BeautifulSoup(markdown_to_html(cell.source), "html.parser").find_all(recursive=False):
                if after_title:
                    yield block
                after_title = after_title or re.fullmatch(r"h\d", block.name) is not None


def thumbnail(node: NotebookNode) -> str:
    """Return as a data URI the first picture in a cell tagged ``thumbnail``, or else the first one."""
    tagged = [cell for cell in node.cells if "thumbnail" in cell.metadata.get("tags", [])]
    for cell in [*tagged, *node.cells]:
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                return "data:image/png;base64," + "".join(png.split())
    return ""


def _style() -> str:
    """Return the style sheet of all pages, with the colours of code in light and dark."""
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    own = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}"


class _PageExporter(HTMLExporter):
    """nbconvert's exporter, with formulas as MathML."""

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        return markdown_to_html(source, context.get("cell", {}).get("attachments"), anchors=True)

    def default_filters(self) -> Iterator[tuple[str, Any]]:
        yield from super().default_filters()
        yield "latex2html", _latex_output


def _latex_output(tex: str) -> str:
    """Return the LaTeX that a cell displays as MathML."""
    return to_mathml(re.sub(r"^\s*\$+(\\displaystyle)?|\$+\s*$", "", tex), block=True)


def _localise(html: str, folder: Path, output: Path, pages: set[Path]) -> str:
    """Make a page independent of the network and of the folder it is in.

    Pictures on disk go into the page; links to other notebooks lead to their pages, other relative links
    to where the files are; what would be loaded from the internet becomes a link or goes.
    """
    soup = BeautifulSoup(html, "html.parser")
    for image in soup.find_all("img", src=True):
        path = _local(image["src"], folder)
        if path is not None:
            image["src"] = _data_uri(path)
        elif urlsplit(image["src"]).scheme in ("http", "https", ""):
            link = soup.new_tag("a", href=image["src"])
            link.string = image.get("alt") or image["src"]
            image.replace_with(link if image.find_parent("a") is None else link.string)
    for link in soup.find_all("a", href=True):
        path = _local(link["href"], folder)
        if path is not None:
            fragment = urlsplit(link["href"]).fragment
            target = f"{path.stem}.html" if path in pages else Path(os.path.relpath(path, output)).as_posix()
            link["href"] = f"{target}#{fragment}" if fragment else target
    for element in [*soup.find_all("script", src=True), *soup.find_all("link", href=True)]:
        element.decompose()
    return str(soup)


def _local(reference: str, folder: Path) -> Path | None:
    """Return the file that a relative reference on a page means, or None."""
    parts = urlsplit(reference)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    path = (folder / unquote(parts.path)).resolve()
    return path if path.exists() else None


def _data_uri(path: Path) -> str:
    mime = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
