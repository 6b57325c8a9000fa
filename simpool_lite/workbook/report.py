"""The executed notebooks as HTML pages, and an index of them, that open from disk without a network."""

import base64
import copy
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
from nbformat.v4 import new_markdown_cell, new_notebook
from pygments.formatters import HtmlFormatter

from .mathml import markdown_to_html, text_of_markdown, to_mathml
from .notebooks import duration, read, title, write_text
from .runner import Outcome

TEMPLATES = Path(__file__).with_name("templates")


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
        self.documents: list[Path] = []  # the markdown files that a page links to

    def __call__(self, outcome: Outcome) -> None:
        pages, finished = self.outcomes, [outcome] if outcome.node else []
        if outcome.stopped:  # there will be no page for the rest: the links to them change
            pages = finished = [o for o in self.outcomes if o.node]
        for each in finished:
            self._write_page(each.source, each.node, pages, each)
        for path in self.documents:  # a document that links to another one makes the list longer
            self._write_page(path, _document(path), pages)
        self._write_index()

    def _write_page(
        self, source: Path, node: NotebookNode, pages: list[Outcome], outcome: Outcome | None = None
    ) -> None:
        """Write the page of a notebook or document; ``pages`` are the notebooks that have or will have one."""
        exporter = PageExporter(
            template_name="lab",  # for what it knows about outputs; the page around them is ours
            template_file="page.html.j2",
            extra_template_paths=[str(TEMPLATES)],
            exclude_input_prompt=True,
            exclude_output_prompt=True,
        )
        page = {"title": title(node) or source.stem, "style": style(), "name": source.name, "outcome": outcome}
        if outcome:
            place = pages.index(outcome)
            page |= {
                "status": _word(outcome),
                "duration": duration(outcome.seconds),
                "own": [(name, repr(outcome.parameters[name]), default) for name, default in outcome.own.items()],
                "previous": _neighbour(pages[place - 1 : place]),
                "next": _neighbour(pages[place + 1 : place + 2]),
            }
        html, _ = exporter.from_notebook_node(node, resources={"page": page})
        soup = BeautifulSoup(html, "html.parser")
        taken = {self.index.stem, *(o.source.stem for o in self.outcomes)}
        beside = {path for path in source.parent.glob("*.md") if path.stem not in taken}
        linked = localise(soup, source.parent, self.output, {o.source for o in pages} | beside)
        self.documents += [path for path in dict.fromkeys(linked) if path in beside and path not in self.documents]
        _fill_contents(soup)
        write_text(str(soup), self.output / page_name(source))

    def _write_index(self) -> None:
        """Write the page with a card for each notebook."""
        environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
        profiles = {str(o.parameters["profile"]) for o in self.outcomes if "profile" in o.parameters}
        passed = sum(outcome.status == "passed" for outcome in self.outcomes)
        html = environment.get_template("index.html.j2").render(
            heading=self.heading,
            style=style(),
            cards=[_card(outcome) for outcome in self.outcomes],
            passed=f"{passed} of {len(self.outcomes)} passed",
            duration=duration(sum(outcome.seconds or 0 for outcome in self.outcomes)),
            profile=", ".join(sorted(profiles)),
            documents=[(page_name(path), title(_document(path)) or path.stem) for path in self.documents],
        )
        write_text(html, self.index)


def page_name(source: Path) -> str:
    """Return the file name of a notebook's or document's page."""
    return f"{source.stem}.html"


def _document(path: Path) -> NotebookNode:
    """Return a markdown file as a notebook of one cell."""
    return new_notebook(cells=[new_markdown_cell(path.read_text(encoding="utf-8"))])


def _title(outcome: Outcome) -> str:
    return title(outcome.node or read(outcome.source)) or outcome.source.stem


def _neighbour(outcomes: list[Outcome]) -> dict[str, str] | None:
    """Return where the link to the page before or after leads, and its title; None if there is no such page."""
    return {"href": page_name(outcomes[0].source), "title": _title(outcomes[0])} if outcomes else None


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
    number = re.match(r"[A-Z]?\d+", outcome.source.stem)
    return _Card(
        href=page_name(outcome.source) if outcome.node else "",
        number=number[0] if number else "",
        title=_title(outcome),
        sentence=first_sentence(node),
        thumbnail=thumbnail(node),
        status=outcome.status,
        word=_word(outcome),
        duration=duration(outcome.seconds) if outcome.seconds is not None else "",
        error=f"Cell {outcome.failure.cell}: {outcome.failure.error}" if outcome.failure else "",
    )


def first_sentence(node: NotebookNode) -> str:
    """Return the first sentence of running text after the title, or "" without one.

    Bold words that end with a point, "The answer, in three sentences.", are a heading and no sentence.
    """
    for block in _blocks(node):
        label = block.find("strong", recursive=False)
        if label and label.get_text().endswith(".") and not label.previous_sibling:
            label.extract()
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


def style() -> str:
    """Return the style sheet of all pages, with the colours of code in light and dark."""
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    own = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}"


class PageExporter(HTMLExporter):
    """nbconvert's exporter, with formulas as MathML and an alternative text for each figure."""

    def from_notebook_node(self, nb: NotebookNode, resources: dict | None = None, **kw: Any) -> tuple[str, dict]:
        return super().from_notebook_node(with_alternative_text(nb), resources, **kw)

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        return markdown_to_html(source, context.get("cell", {}).get("attachments"), anchors=True)

    def default_filters(self) -> Iterator[tuple[str, Any]]:
        yield from super().default_filters()
        yield "latex2html", _latex_output


def with_alternative_text(node: NotebookNode) -> NotebookNode:
    """Return a copy whose figures have a text.

    It is what their cell's metadata says, ``"alt": ["what the first figure shows", ...]``; else the figure's own words
    (``use_course_style`` gives it them), else its section's name.
    """
    node, section = copy.deepcopy(node), title(node) or "this page"
    for cell in node.cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#{2,3} (.+)$", cell.source, re.M)
            section = text_of_markdown(headings[-1]) if headings else section
        texts = list(cell.metadata.pop("alt", []))  # once: slides show the figures of a cell one by one
        for output in cell.get("outputs", []):
            mimes = {"image/png", "image/jpeg"} & output.get("data", {}).keys()
            own = texts.pop(0) if mimes and texts else None
            for mime in mimes:
                words = output.metadata.setdefault(mime, {})
                words["alt"] = own or words.get("alt") or f"Figure of {section}"
    return node


def _latex_output(tex: str) -> str:
    """Return the LaTeX that a cell displays as MathML."""
    return to_mathml(re.sub(r"^\s*\$+(\\displaystyle)?|\$+\s*$", "", tex), block=True)


def _fill_contents(soup: BeautifulSoup) -> None:
    """Put a link to each section into the table of contents; without sections it goes."""
    contents = soup.find("nav", class_="contents")
    headings = soup.find_all("h2", id=True)
    for heading in headings:
        link = copy.copy(heading)  # with its formulas
        for inner in link.find_all("a"):
            inner.decompose() if "anchor-link" in inner.get("class", []) else inner.unwrap()
        link.name, link.attrs = "a", {"href": f"#{heading['id']}"}
        contents.ol.append(soup.new_tag("li"))
        contents.ol.contents[-1].append(link)
    if not headings:
        contents.decompose()


def localise(soup: BeautifulSoup, folder: Path, output: Path, pages: set[Path]) -> list[Path]:
    """Make a page independent of the network and of the folder it is in.

    Pictures on disk go into the page; links to the sources of ``pages`` lead to them, other relative links
    to where the files are; what would be loaded from the internet becomes a link or goes. Returns the
    files that the page links to.
    """
    linked = []
    for image in soup.find_all("img", src=True):
        path = local_file(image["src"], folder)
        if path is not None:
            image["src"] = _data_uri(path)
        elif urlsplit(image["src"]).scheme in ("http", "https", ""):
            link = soup.new_tag("a", href=image["src"])
            link.string = image.get("alt") or image["src"]
            image.replace_with(link if image.find_parent("a") is None else link.string)
    for link in soup.find_all("a", href=True):
        path = local_file(link["href"], folder)
        if path is not None:
            linked.append(path)
            fragment = urlsplit(link["href"]).fragment
            target = page_name(path) if path in pages else Path(os.path.relpath(path, output)).as_posix()
            link["href"] = f"{target}#{fragment}" if fragment else target
    for element in [*soup.find_all("script", src=True), *soup.find_all("link", href=True)]:
        element.decompose()
    return linked


def local_file(reference: str, folder: Path) -> Path | None:
    """Return the file that a relative reference on a page means, or None."""
    parts = urlsplit(reference)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    path = (folder / unquote(parts.path)).resolve()
    return path if path.exists() else None


def _data_uri(path: Path) -> str:
    mime = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
