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
# The forms in which a page may use a word first, as patterns; a capital may begin them. Of words that are also plain
# English (point, run, different, difference, map) only those that have the glossary's meaning by what stands beside.
FORMS = {
    "ablation": "ablations?",
    "accuracy": "accurac(y|ies)",
    "attention-map": "attention maps?|(?<!feature )(?<!affine )(?<!linear )(?<!activation )maps?",
    "average-precision": "average precision|AP",
    "backbone": "backbones?",
    "baseline": "baselines?",
    "class-activation-map": "class activation maps?|CAMs?",
    "cls": "CLS",
    "collapse": "collapse[sd]?",
    "corloc": "CorLoc",
    "difference": "paired differences?|differences?(?= (of|between) (the |two )?means)",
    "different": r"(?<=\*)different(?=\*)",
    "effective-number-of-positions": "effective number of positions",
    "equivalence-margin": "(equivalence )?margins?",
    "equivalent": "equivalent",
    "fragment": "fragments?",
    "gap": "GAP",
    "head": "heads?",
    "interval": "intervals?",
    "k-nn": "k-NN",
    "mass-on-the-object": "mass( on the object)?",
    "maxboxaccv": "MaxBoxAccV2",
    "not-decided": "not decided",
    "object-position": "object positions?",
    "point": r"(?<=\d )points?|(?<=a )point",
    "pooled-vector": "pooled vectors?",
    "position": "(?<!class )tokens?|(?<!object )(?<!number of )positions?",
    "probing": "prob(ing|es?)",
    "query-key-value": "quer(y|ies)|keys?",
    "run": "(?<=recorded )runs|(?<=the )runs?|(?<=two )runs|(?<=five )runs|(?<=one )run",
    "seed": "seeds?",
    "trunk": "trunks?",
    "variant": "variants?",
    "verdict": "verdicts?",
}
NO_PROSE = re.compile(
    r"^```.*?^```|^#{1,6} [^\n]*$|`[^`]+`|\$\$.*?\$\$|\$[^$]+\$|!\[[^\]]*\]\([^)]*\)|</?[a-z][^>]*>", re.M | re.S
)
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


def first_uses(text: str) -> dict[str, tuple[int, int, bool]]:
    """Where prose uses a word of the glossary first: start, end, and whether a link to the word is there or before."""
    text = NO_PROSE.sub(lambda match: re.sub(".", "\0", match[0], flags=re.S), text).replace("\n", " ")
    links = []

    def without_target(match: re.Match) -> str:
        words, target = match[1], match[2]
        if target.startswith("glossary.md#"):
            links.append((target.partition("#")[2], match.start(1)))
            return f"\0{words}".ljust(len(match[0]), "\0")
        return "\0" * len(match[0])  # a link that goes elsewhere

    text = re.sub(r"\[([^\]]*)\]\(([^)\s]*)\)", without_target, text)
    uses = {}
    for word, forms in FORMS.items():
        either = re.sub(r"(?<![\\\w(])([a-z])(?=[a-z]{2})", lambda m: f"[{m[1].upper()}{m[1]}]", forms)
        if match := re.search(rf"(?<![\w-])({either})(?![\w-])", text):
            linked = any(word == target and start <= match.start() for target, start in links)
            uses[word] = (match.start(), match.end(), linked)
    return uses


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_the_first_use_of_a_word_leads_to_the_glossary(path):
    text = prose(path)
    missing = {word: text[max(0, a - 60) : b + 30] for word, (a, b, linked) in first_uses(text).items() if not linked}
    assert not missing


def test_what_is_a_first_use():
    text = "# Points\n\nA point, `5 points`, $a$ [5 points](10.ipynb). By 2\npoints; [5 points](glossary.md#point)"
    start, end, linked = first_uses(text)["point"]
    assert text[start - 5 : end] == "By 2\npoints" and not linked
    assert first_uses("The Fragments, [GAP](glossary.md#gap).") == {"fragment": (4, 13, False), "gap": (16, 19, True)}
    assert first_uses("Two feature maps run by different heads.").keys() == {"head"}


def test_every_word_of_the_glossary_has_its_forms():
    assert FORMS.keys() == ANCHORS


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
