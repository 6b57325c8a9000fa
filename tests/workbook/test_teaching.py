"""What the pages promise a reader: links that lead somewhere, words that are explained, times that hold."""

import re
import subprocess
import sys

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("papermill")
pytest.importorskip("nbconvert")

from simpool_lite.files import repository_root  # noqa: E402
from simpool_lite.workbook.notebooks import read, reading_minutes  # noqa: E402
from simpool_lite.workbook.report import with_alternative_text  # noqa: E402

FOLDER = repository_root() / "notebooks"
COURSE = sorted(FOLDER.glob("*.ipynb"))
DOCUMENTS = [*sorted(FOLDER.glob("*.md")), *(FOLDER.parent / name for name in ("README.md", "docs/teaching.md"))]
ANCHORS = set(re.findall(r'<a id="([a-z-]+)"></a>', (FOLDER / "glossary.md").read_text(encoding="utf-8")))
MOST_MINUTES, MOST_CELLS = 45, 100  # of a page, exercises and their answers apart


def prose(path) -> str:
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_links_and_words_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:|attachment:)([^)\s]+)\)", prose(path)):
        file, _, anchor = target.partition("#")
        assert not file or (FOLDER / file).exists(), target
        if file == "glossary.md" and anchor:
            assert anchor in ANCHORS, target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    there = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings} | ANCHORS
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        assert not file or (path.parent / file).exists(), target
        assert not anchor or anchor in there, target


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_every_figure_has_alternative_text(path):
    """Its own, as many as the cell has figures; in a cell without any, the words of the figure, and no stopgap."""
    for before, cell in zip(read(path).cells, with_alternative_text(read(path)).cells, strict=True):
        figures = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        said = [output.metadata["image/png"]["alt"] for output in figures]
        assert before.metadata.get("alt", said) == said, f"cell {cell.id}: {len(said)} figures"
        for words in said:
            assert len(words.split()) > 4 and "without words" not in words, f"cell {cell.id}: {words!r}"
            assert not words.startswith("Figure of "), f"cell {cell.id}: give the cell's metadata an 'alt'"
    for words, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", prose(path)):
        assert words, target


def test_the_page_of_the_report_says_what_a_figure_shows(tmp_path):
    """A figure of the course's style says its words, which reach the page's alternative text."""
    from simpool_lite.__main__ import main

    source = "import matplotlib.pyplot as plt\n\nfrom simpool_lite.lab import use_course_style\n\nuse_course_style()\n"
    source += (
        'plt.plot([1, 2], label="GAP")\nplt.title("<Who> is ahead?")\nplt.xlabel("step")\nplt.legend()\nplt.show()'
    )
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A"), nbformat.v4.new_code_cell(source)])
    nbformat.write(node, tmp_path / "a.ipynb")
    assert main(["run", "--notebooks", str(tmp_path), "--output", str(tmp_path / "out"), "--no-progress"]) == 0
    page = (tmp_path / "out" / "a.html").read_text(encoding="utf-8")
    assert 'alt="&lt;Who&gt; is ahead?: step; GAP."' in page


def test_the_words_are_spelled_rightly():
    """Of the notebooks; of all other files `make lint` looks after."""
    text = "\n\n".join(cell.source for path in COURSE for cell in read(path).cells)
    command = [sys.executable, "-m", "codespell_lib", "-"]
    found = subprocess.run(command, input=text, capture_output=True, text=True, cwd=FOLDER.parent).stdout
    assert " ==> " not in found, "\n".join(line for line in found.splitlines() if " ==> " in line)


def test_every_page_is_on_the_map():
    sys.path.insert(0, str(FOLDER.parent / "docs"))
    try:
        import course_map
    finally:
        sys.path.pop(0)
    assert {path.stem[:2] for path in COURSE} <= course_map.PAGES.keys()
    assert all(need in course_map.PAGES for *_, needs in course_map.PAGES.values() for need in needs)
    drawn, new = (re.sub(" ?waits", "", text) for text in (course_map.PICTURE.read_text(), course_map.course_map()))
    assert drawn == new, "draw it again: python docs/course_map.py"


def test_every_word_of_the_glossary_can_be_linked():
    rows = re.findall(r"^\| (.*?) \| ", (FOLDER / "glossary.md").read_text(encoding="utf-8"), re.M)[2:]
    assert len(rows) == len(ANCHORS) and all(row.startswith("<a id=") for row in rows)


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_a_page_opens_with_its_answer_and_its_minutes(path):
    node = read(path)
    opening, minutes = node.cells[0].source, reading_minutes(node)
    answer = re.search(r"\*\*The answer, in three sentences\.\*\* (.*?)\n\n", opening, re.S)[1]
    assert len(re.findall(r"\.(?:\s|$)", answer)) == 3
    total, last, each = re.search(r"(\d+) minutes to read \(sections 1 to (\d+): ([\d, ]+)\)", opening).groups()
    sections = [line for line in prose(path).splitlines() if re.match(r"## \d+\. ", line)]
    first = list(minutes).index(next(name for name in minutes if f"1. {name}" in sections[0]))
    assert len(sections) == int(last) == len(each.split(", "))
    stated, counted = [*map(int, each.split(", "))], [*minutes.values()][first : first + int(last)]
    assert all(abs(a - b) <= 1 for a, b in zip(stated, counted, strict=True))
    assert abs(int(total) - sum(minutes.values())) <= 1 and int(total) <= MOST_MINUTES
    assert len(node.cells) <= MOST_CELLS
    assert len(set(re.findall(r"glossary\.md#([a-z-]+)", prose(path)))) >= 3


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_a_page_ends_with_a_short_summary(path):
    summary = re.findall(
        r"(?:## \d+\. What to take along|\*\*To take along\*\*)\n\n(.*?)(?=\n\n|\Z)", prose(path), re.S
    )
    assert len(summary) == 1 and 1 <= summary[0].count("- ") <= 5
