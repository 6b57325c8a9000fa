"""Exercise sheets, slides, the printed report and the lecturer's plan, on small notebooks and on the course's own."""

import os
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbconvert")
pytest.importorskip("papermill")

from bs4 import BeautifulSoup  # noqa: E402
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output  # noqa: E402

from simpool_lite.__main__ import main  # noqa: E402
from simpool_lite.files import repository_root  # noqa: E402
from simpool_lite.workbook import notebooks, runner  # noqa: E402
from simpool_lite.workbook.editions import _picture_lines  # noqa: E402

ROOT = repository_root()
COURSE = sorted((ROOT / "notebooks").glob("*.ipynb"))
PLAN = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
ROUTES_AND_GRADING = ("Three routes", "Grading the larger exercises")
# A picture of one pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


def code(source: str, *tags: str, **data: str):
    outputs = [new_output("display_data", {mime.replace("_", "/"): value for mime, value in data.items()})]
    return new_code_cell(source, metadata={"tags": list(tags)} if tags else {}, outputs=outputs if data else [])


def save(path: Path, *cells) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("student")
    assert main(["student", "--output", str(output)]) == 0
    return output


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_no_solution_is_handed_out(student, path):
    ours, theirs = nbformat.read(path, 4), nbformat.read(student / path.name, 4)
    nbformat.validate(theirs)
    solutions = [cell.source for cell in ours.cells if "solution" in cell.metadata.get("tags", [])]
    text = "\n".join(cell.source for cell in theirs.cells)
    assert solutions and not any(solution in text for solution in solutions)
    assert "Solutions are" not in text
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in theirs.cells)
    others = [(cell.id, cell.cell_type) for cell in ours.cells if "solution" not in cell.metadata.get("tags", [])]
    added = [cell for cell in theirs.cells if cell.source == "# Your answer"]
    kept = [(cell.id, cell.cell_type) for cell in theirs.cells if cell not in added]
    assert kept == others  # checks and the cells for answers among them
    for cell in added:
        assert "jupyter" not in cell.metadata
        [origin] = [c for c in ours.cells if c.id == cell.id.removesuffix("-answer")]
        assert "solution" in origin.metadata.get("tags", []) or re.search(r"^\*\*\d \(", origin.source, re.M)
    for before, cell in zip(theirs.cells, theirs.cells[1:], strict=False):
        twice = {*before.metadata.get("tags", [])} & {*cell.metadata.get("tags", [])}
        assert "answer" not in twice  # one per question


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_every_exercise_has_a_cell_for_the_answer(student, path):
    cells = nbformat.read(student / path.name, 4).cells
    asked = [number for number, cell in enumerate(cells) if re.search(r"^\*\*\d+ \(", cell.source, re.M)]
    assert asked and all("answer" in cells[number + 1].metadata.get("tags", []) for number in asked)


def test_every_link_of_the_exercise_sheets_leads_to_a_file(student):
    assert {path.name for path in student.iterdir()} == {path.name for path in COURSE} | {"glossary.md"}
    links = []
    for path in student.iterdir():
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
        links += re.findall(r"\]\((?!https?:)([\w./-]+\.\w+)[^)]*\)", text)
    assert "glossary.md" in links
    assert [link for link in links if not (student / link).exists()] == []


def test_links_of_a_part_of_the_notebooks_lead_to_the_rest(tmp_path):
    links = "[b](1-b.ipynb#x), [words](words.md), [data](../data.txt), [web](https://example.org), [no](none.md)"
    save(tmp_path / "notebooks" / "0-a.ipynb", new_markdown_cell(links))
    save(tmp_path / "notebooks" / "1-b.ipynb")
    (tmp_path / "notebooks" / "words.md").write_text("[a](0-a.ipynb), [more](more.md)")
    (tmp_path / "notebooks" / "more.md").write_text("[words](words.md)")
    (tmp_path / "data.txt").touch()
    assert main(["student", "0", "--notebooks", str(tmp_path / "notebooks")]) == 0
    written = tmp_path / "build" / "student"
    assert sorted(os.listdir(written)) == ["0-a.ipynb", "more.md", "words.md"]
    assert nbformat.read(written / "0-a.ipynb", 4).cells[0].source == (
        "[b](../../notebooks/1-b.ipynb#x), [words](words.md), [data](../../data.txt), [web](https://example.org), "
        "[no](none.md)"
    )
    assert (written / "words.md").read_text() == "[a](0-a.ipynb), [more](more.md)"


def test_several_cells_of_a_solution_become_one_answer(tmp_path):
    cells = [new_markdown_cell("Q1"), code("1", "solution"), code("2", "solution"), new_markdown_cell("Q2")]
    save(tmp_path / "a.ipynb", *cells, code("3", "solution"), code("4", "check", image_png=PNG))
    assert main(["student", "--notebooks", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    written = nbformat.read(tmp_path / "out" / "a.ipynb", 4).cells
    assert [cell.source for cell in written] == ["Q1", "# Your answer", "Q2", "# Your answer", "4"]
    assert [cell.id for cell in written[:3]] == [cells[i].id for i in (0, 1, 3)]


def test_the_notebooks_themselves_are_not_overwritten(tmp_path, capsys):
    before = save(tmp_path / "a.ipynb", code("1", "solution")).read_bytes()
    assert main(["student", "--notebooks", str(tmp_path), "--output", str(tmp_path)]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert (tmp_path / "a.ipynb").read_bytes() == before


def test_a_sheet_for_colab_fetches_the_course_there_and_nowhere_else(tmp_path, capsys, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell

    save(tmp_path / "a.ipynb", new_markdown_cell("# A"), code("1"))
    address = "https://example.org/someone/course"
    options = ["--notebooks", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(["student", *options, "--colab", address]) == 0
    title, cell, rest = nbformat.read(tmp_path / "out" / "a.ipynb", 4).cells
    assert (title.source, rest.source) == ("# A", "1")
    shell, did = InteractiveShell(), []
    monkeypatch.setattr(shell, "system", did.append)
    monkeypatch.setattr(shell, "run_line_magic", lambda name, line, *rest: did.append(f"{name} {line}"))
    shell.run_cell(cell.source).raise_error()
    assert did == []
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    monkeypatch.setattr(sys, "path", [*sys.path])
    shell.run_cell(cell.source).raise_error()
    assert did[0].endswith(f" {address} simpool-course") and did[0].startswith("git clone ")
    assert "[notebooks-cpu]" in did[1] and did[2] == "cd simpool-course/notebooks"
    assert main(["student", *options, "--colab", "; rm -r"]) == 2
    assert "https address" in capsys.readouterr().err


SLIDES = [
    new_markdown_cell("# Title\n\nWhat it is about."),
    code("import hidden_setup"),
    new_markdown_cell(
        "Closing words.\n\n## 1. First $x_i$\n\n$$z = \\sum_i a_i$$\n\n### Part\n\n[b](1-b.ipynb), [c](c.txt)"
    ),
    code("plot_code()", image_png=PNG),
    code("table_code()", text_html="<table><tr><td>cell</td></tr></table>"),
    code("shown_code()", text_plain="printed"),
    code("check_code()", "check"),
    new_markdown_cell("## Last\n\n" + "\n\n".join(f"Paragraph {n}. " + 90 * "word " for n in range(6))),
    code("solution_code()", "solution"),
]


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slides") / "notebooks"
    save(folder / "0-a.ipynb", *SLIDES)
    marked = new_markdown_cell("## Not a slide of its own", metadata={"slideshow": {"slide_type": "-"}})
    save(folder / "1-b.ipynb", new_markdown_cell("# B"), marked, code("own_code()", image_png=PNG))
    (folder / "c.txt").touch()
    assert main(["slides", "--notebooks", str(folder)]) == 0
    return folder.parent / "build" / "slides"


def sections(path: Path) -> list[list[BeautifulSoup]]:
    """The slides of a file, each with its sub-slides."""
    page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    return [slide.find_all("section", recursive=False) for slide in page.select(".slides > section")]


def test_headings_start_slides(slides):
    first, second, last = sections(slides / "0-a.html")
    assert [slide.h1 is not None for slide in first] == [True]
    assert "Closing words" in first[0].get_text()
    assert second[0].h2 and not second[0].h3 and second[1].h3
    assert len(last) > 1 and all(len(part.get_text()) < 2500 for part in last)  # what is too long goes on below


def test_figures_and_tables_come_without_their_code(slides):
    page = (slides / "0-a.html").read_text(encoding="utf-8")
    assert f"data:image/png;base64,{PNG}" in page and "<td>cell</td>" in page and "shown_code" in page
    for left_out in ("plot_code", "table_code", "check_code", "solution_code", "hidden_setup"):
        assert left_out not in page


def test_slides_promise_no_solutions(tmp_path):
    said = "Solutions are in the folded cells below each question.\n`check` gives a hint."
    save(tmp_path / "a.ipynb", new_markdown_cell(f"# A\n\n## Exercises\n\n{said}"), code("solution", "solution"))
    assert main(["slides", "--notebooks", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "a.html").read_text(encoding="utf-8")
    assert "Solutions" not in page and "gives a hint" in page


def test_each_figure_of_a_cell_has_its_own_text_on_its_slide(tmp_path):
    pair = new_code_cell("plot()", metadata={"alt": ["the first", "the second"]})
    pair.outputs = [new_output("display_data", {"image/png": PNG}) for _ in range(2)]
    save(tmp_path / "a.ipynb", new_markdown_cell("# A\n\n## B"), pair)
    assert main(["slides", "--notebooks", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    page = BeautifulSoup((tmp_path / "out" / "a.html").read_text(encoding="utf-8"), "html.parser")
    assert [image["alt"] for image in page.find_all("img")] == ["the first", "the second"]


def test_what_is_printed_at_length_is_cut_and_no_heading_stands_alone(tmp_path):
    lines = [f"line {number:02d}." for number in range(60)]
    cell = new_code_cell("long_print()", outputs=[new_output("stream", text="\n".join(lines))])
    save(tmp_path / "a.ipynb", new_markdown_cell("# A\n\n## B\n\n### C\n\nwords"), cell)
    assert main(["slides", "--notebooks", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    (first, *others) = sections(tmp_path / "out" / "a.html")[1]
    assert first.h2 and first.h3 and "words" in first.get_text() and "long_print" in first.get_text()
    shown = [[line for line in lines if line in slide.get_text()] for slide in others]
    assert len(shown) > 1 and all(len(part) < 30 for part in shown) and [*chain(*shown)] == lines


def test_cells_that_are_marked_are_taken_as_marked(slides):
    [[only]] = sections(slides / "1-b.html")
    assert only.h1 and only.h2 and "own_code" in only.get_text()


def test_the_index_leads_to_the_slides(slides):
    page = BeautifulSoup((slides / "index.html").read_text(encoding="utf-8"), "html.parser")
    assert [(a["href"], a.string) for a in page.find_all("a")] == [("0-a.html", "Title"), ("1-b.html", "B")]


def test_slides_load_nothing_and_links_lead_to_slides(slides):
    for path in slides.glob("[01]-*.html"):
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        assert not page.find_all(["script", "iframe", "video"], src=True) and not page.find_all("link")
        assert all(image["src"].startswith("data:") for image in page.find_all("img"))
        for sheet in page.find_all("style"):
            assert "@import" not in sheet.string
            assert all(url.startswith("data:") for url in re.findall(r"url\(['\"]?([^)]*)", sheet.string))
        assert "Reveal.initialize" in page.find_all("script")[-1].string
    formulas = BeautifulSoup((slides / "0-a.html").read_text(), "html.parser").select(".slides math")
    assert len(formulas) == 2
    links = [a["href"] for part in sections(slides / "0-a.html")[1] for a in part.select("p a")]
    assert links == ["1-b.html", "../../notebooks/c.txt"]


def test_slides_without_reveal_say_what_to_install(tmp_path, capsys, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    save(tmp_path / "a.ipynb", new_markdown_cell("# A"))
    monkeypatch.setattr("simpool_lite.workbook.editions.metadata.distribution", missing)
    assert main(["slides", "--notebooks", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert 'pip install "simpool-lite[notebooks]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_reveal_makes_the_slides(slides, tmp_path):
    """In a browser without a network the script runs and shows the first slide."""
    page = in_chromium(tmp_path, "--dump-dom", (slides / "0-a.html").as_uri())
    classes = BeautifulSoup(page, "html.parser").select_one("div.reveal")["class"]
    assert "ready" in classes


def test_a_slide_that_is_too_high_or_too_wide_is_made_smaller(tmp_path):
    long = "<table>" + 40 * "<tr><td>cell</td></tr>" + "</table>"
    wide = "<table><tr>" + 40 * "<td>some_long_name</td>" + "</tr></table>"
    words = f"| a | {20 * 'word '} |\n"  # in a column as on a page of the report each row would have three lines
    cells = [new_markdown_cell("# A"), new_markdown_cell("## 1. Fits"), code("1", text_html="<table><tr></tr></table>")]
    cells += [new_markdown_cell("## 2. High"), code("1", text_html=long), new_markdown_cell("## 3. Wide")]
    cells += [code("1", text_html=wide), new_markdown_cell("## 4. Words\n\n| a | b |\n|---|---|\n" + 12 * words)]
    save(tmp_path / "a.ipynb", *cells)
    assert main(["slides", "--notebooks", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    address, shrunk = (tmp_path / "out" / "a.html").as_uri(), []
    for place in ("/1", "/2/1", "/3", "/4"):  # the table of section 2 has a slide of its own
        page = BeautifulSoup(in_chromium(tmp_path, "--dump-dom", f"{address}#{place}"), "html.parser")
        [slide] = page.select("section.present section.present")
        shrunk.append("zoom" in slide.get("style", ""))
    assert shrunk == [False, True, True, False]


def test_small_pictures_share_a_slide_and_large_ones_do_not():
    header = bytes.fromhex("89504e470d0a1a0a0000000d49484452")
    heights = {
        pixels: _picture_lines({"image/png": b64encode(header + (700).to_bytes(4) + pixels.to_bytes(4)).decode()})
        for pixels in (90, 480, 2000)
    }
    assert heights == {90: 3.0, 480: heights[2000], 2000: pytest.approx(13.8, abs=0.1)}


def in_chromium(folder: Path, *options: str) -> str:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=3000"]
    switches += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'p'}"]
    try:
        done = subprocess.run([browser, *switches, *options], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("the browser does not answer here")
    return done.stdout


def test_the_printed_page_has_no_navigation_and_wraps_its_code(tmp_path):
    """The report's style sheet, applied for paper: what the browser computes for its parts."""
    from simpool_lite.workbook.report import style

    sheet = style().replace("@media print", "@media all")
    script = (
        "const s = (q, p) => getComputedStyle(document.querySelector(q))[p];"
        "document.title = [s('.bar', 'display'), s('.contents', 'display'), s('pre', 'whiteSpace'),"
        "s('.picture', 'breakInside'), s('table', 'breakInside'), s('.input', 'breakInside'), s('html', 'colorScheme'),"
        "s('#open', 'display'), s('#folded', 'display')].join('|')"
    )
    body = (
        '<header class="bar"></header><nav class="contents"></nav><pre></pre><div class="picture"></div><table></table>'
    )
    body += '<div class="input"></div><div class="tag-solution" id="open"><details open></details>right</div>'
    body += '<div class="tag-solution" id="folded"><details></details>right</div>'
    (tmp_path / "page.html").write_text(f"<style>{sheet}</style><body class='page'>{body}<script>{script}</script>")
    page = in_chromium(tmp_path, "--dump-dom", (tmp_path / "page.html").as_uri())
    assert "<title>none|none|pre-wrap|avoid|avoid|avoid|light|block|none</title>" in page


def test_reading_minutes_are_words_and_lines():
    cells = [
        new_markdown_cell("# T\n\n" + 198 * "w "),
        new_markdown_cell("## 1. One\n\n" + 97 * "w " + "\n\n## Two"),
        new_code_cell("a = 1\n\nb = 2\n" + 13 * "c = 3\n"),
        new_code_cell(30 * "d = 4\n", metadata={"tags": ["check"]}),
        new_code_cell(30 * "d = 4\n", metadata={"tags": ["solution"]}),
    ]
    minutes = notebooks.reading_minutes(new_notebook(cells=cells))
    assert minutes == pytest.approx({"T": 1.0, "One": 0.5, "Two": 1.01})


def test_the_plan_has_every_notebook_and_its_minutes():
    for path in COURSE:
        assert re.search(rf"^### `{path.stem}`$", PLAN, re.M), path.stem
    written = re.search(r"<!-- sections -->\n\n(.*?)\n\n<!-- end -->", PLAN, re.S)[1]
    assert written == runner.sections(ROOT / "notebooks"), (
        "put what `python -m simpool_lite list --sections` prints between the marks in docs/teaching.md"
    )


def test_the_plan_refers_to_what_there_is():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", PLAN):
        assert (ROOT / "docs" / link).exists(), link
    chapters = re.split(r"^### `", PLAN, flags=re.M)[1:]
    assert len(chapters) == len(COURSE)
    for chapter, path in zip(chapters, COURSE, strict=True):
        text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
        for number in re.findall(r"exercises? (\d)", chapter.split("\n## ")[0]):
            assert re.search(rf"^\*\*{number} \(", text, re.M), f"{path.stem} has no exercise {number}"
        for number in re.findall(r"section (\d+)", chapter.split("\n## ")[0]):
            assert re.search(rf"^## {number}\. ", text, re.M), f"{path.stem} has no section {number}"


def test_the_plan_grades_the_larger_exercises_and_sets_those_there_are():
    routes, grading = (PLAN.split(f"\n## {name}\n")[1].split("\n## ")[0] for name in ROUTES_AND_GRADING)
    graded = {(page, int(number)) for page, number in re.findall(r"^\| `(\w+)`, (\d+) \|", grading, re.M)}
    there, larger = {}, set()
    for path in COURSE:
        text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
        marks, page = re.findall(r"^\*\*(\d+) \((.*?)\)", text, re.M), path.stem[:2]
        there[page] = len(marks)
        larger |= {(page, int(number)) for number, size in marks if size in ("an hour", "an afternoon")}
    assert graded == larger
    asked = re.findall(r"\b(\d\d), [^;|]*?exercises? (?:\d to |\d and )?(\d)", routes)
    assert asked and all(int(number) <= there[page] for page, number in asked)
