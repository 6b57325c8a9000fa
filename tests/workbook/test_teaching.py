"""What the pages promise a reader: links that lead somewhere, words that are explained, times that hold."""

import re

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("papermill")
pytest.importorskip("nbconvert")

from simpool_lite.files import repository_root  # noqa: E402
from simpool_lite.workbook.notebooks import read, reading_minutes  # noqa: E402

FOLDER = repository_root() / "notebooks"
COURSE = sorted(FOLDER.glob("*.ipynb"))
ANCHORS = set(re.findall(r'<a id="([a-z-]+)"></a>', (FOLDER / "glossary.md").read_text(encoding="utf-8")))
# Pages that open with their answer and their minutes; the others follow as they are rewritten.
OPENED = [path for path in COURSE if path.stem[:2] in ("01", "02", "03", "09", "12", "A1")]
MOST_MINUTES, MOST_CELLS = 45, 100  # of an opened page, exercises and their answers apart


def prose(path) -> str:
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_links_and_words_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:|attachment:)([^)\s]+)\)", prose(path)):
        file, _, anchor = target.partition("#")
        assert not file or (FOLDER / file).exists(), target
        if file == "glossary.md" and anchor:
            assert anchor in ANCHORS, target


def test_every_word_of_the_glossary_can_be_linked():
    rows = re.findall(r"^\| (.*?) \| ", (FOLDER / "glossary.md").read_text(encoding="utf-8"), re.M)[2:]
    assert len(rows) == len(ANCHORS) and all(row.startswith("<a id=") for row in rows)


@pytest.mark.parametrize("path", OPENED, ids=lambda path: path.stem)
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


@pytest.mark.parametrize("path", OPENED, ids=lambda path: path.stem)
def test_a_page_ends_with_a_short_summary(path):
    summary = re.findall(
        r"(?:## \d+\. What to take along|\*\*To take along\*\*)\n\n(.*?)(?=\n\n|\Z)", prose(path), re.S
    )
    assert len(summary) == 1 and 1 <= summary[0].count("- ") <= 5
