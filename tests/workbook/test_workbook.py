"""The command line and the runner of the workbook, on notebooks of a few lines."""

import base64
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("papermill")
pytest.importorskip("nbconvert")

from bs4 import BeautifulSoup  # noqa: E402
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook  # noqa: E402

from simpool_lite import files  # noqa: E402
from simpool_lite.__main__ import main  # noqa: E402
from simpool_lite.workbook import notebooks, report, runner  # noqa: E402
from simpool_lite.workbook.mathml import markdown_to_html, to_mathml  # noqa: E402

# A picture of one pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
PICTURE = f"from IPython.display import Image\nimport base64\nImage(base64.b64decode('{PNG}'))"


def text(source: str):
    return new_markdown_cell(source)


def code(source: str, *tags: str):
    return new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


def save(path: Path, *cells, **metadata) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The kernel of the machine on which it was written need not be here.
    metadata["kernelspec"] = {"name": "elsewhere", "display_name": "Elsewhere", "language": "python"}
    nbformat.write(new_notebook(cells=list(cells), metadata=metadata), path)
    return path


def printed(path: Path) -> str:
    """Return all that the cells of an executed notebook printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.text for cell in cells for o in cell.get("outputs", []) if o.output_type == "stream")


FIRST = [
    text("# What is *pooling*?\n\n![sketch](../data/sketch.png)\n\nOne vector, e.g. $z$, for an image. More follows."),
    text(
        r"$$z = \sum_i a_i v_i$$"
        "\n\n[next](01-second.ipynb#part), [last](03-never.ipynb), [data](../data/sketch.png)\n\n"
        "![badge](https://example.org/badge.svg) and `code`"
    ),
    code('profile = "laptop"\nrate = 0.1\nnames = ["x"]\nseeds = 5', "parameters"),
    code("print([profile, rate, names, seeds])"),
    code("import sys, os\nprint(sys.executable, os.path.basename(os.getcwd()))"),
    code(PICTURE),
    code("raise ValueError('meant to be seen')", "raises-exception"),
    code("from IPython.display import HTML\nHTML('<script src=\"https://example.org/x.js\"></script>ok')"),
]


SECOND = [
    text("# Second\n\nNo picture, but a [word](glossary.md#Significant)."),
    text("## Its $x_i$ and a [link](00-first.ipynb)\n\n### Not this"),
    code("print('second ran')"),
    code("assert 'checked'\nprint('it is so')", "check"),
    text("## The end"),
]
GLOSSARY = (
    "# Words *used*\n\n## Significant\n\nSee [second](01-second.ipynb), [never](03-never.ipynb), [more](more.md)."
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run four notebooks, of which the third fails, from the command line and another folder."""
    root = tmp_path_factory.mktemp("a {brace}")
    folder = root / "notebooks"
    save(folder / "00-first.ipynb", *FIRST)
    (folder / "glossary.md").write_text(GLOSSARY)
    (folder / "unused.md").write_text("# Nobody links to this")
    save(folder / "01-second.ipynb", *SECOND)
    save(folder / "02-broken.ipynb", text("# Broken"), code("a = {}"), code("# look\na['missing']"), code("1"))
    save(folder / "03-never.ipynb", text("# Never\n\nIt is not run."), code("print('third ran')"))
    (root / "data").mkdir()
    (root / "data" / "sketch.png").write_bytes(base64.b64decode(PNG))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    options = ["--profile", "smoke", "-p", "rate", "1e-3", "-p", "names", '["a", "b"]']
    command = [sys.executable, "-m", "simpool_lite", "run", "--notebooks", str(folder), *options]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=120)
    output = root / "build" / "workbook"
    assert (output / "index.html").is_file(), done.stderr
    index = (output / "index.html").read_text()
    return SimpleNamespace(folder=folder, output=output, done=done, index=index, elsewhere=elsewhere)


def test_parameters_reach_the_notebook_with_their_types(ran):
    assert "['smoke', 0.001, ['a', 'b'], 5]" in printed(ran.output / "notebooks" / "00-first.ipynb")


def test_kernel_is_the_running_interpreter_in_the_callers_folder(ran):
    assert f"{sys.executable} {ran.elsewhere.name}" in printed(ran.output / "notebooks" / "00-first.ipynb")


def test_executed_copies_are_kept_and_sources_untouched(ran):
    assert sorted(p.name for p in (ran.output / "notebooks").iterdir()) == [
        "00-first.ipynb",
        "01-second.ipynb",
        "02-broken.ipynb",
    ]
    assert "injected-parameters" in (ran.output / "notebooks" / "00-first.ipynb").read_text()
    assert printed(ran.folder / "00-first.ipynb") == ""
    assert list(ran.elsewhere.iterdir()) == []


def test_pages_of_the_readers_own_setting_say_so(ran):
    """Where a parameter isn't what the text was written about: at its head, and above every sentence."""
    page = BeautifulSoup((ran.output / "00-first.html").read_text(), "html.parser")
    said = " ".join(page.find(id="own").get_text().split())
    assert said.startswith("These are not the recorded runs.")
    assert "profile = 'smoke' (recorded: \"laptop\"), rate = 0.001 (recorded: 0.1), names = ['a', 'b']" in said
    assert "seeds" not in said
    assert page.find(class_="bar").find("a", href="#own").get_text() == "not the recorded runs"
    assert "not the recorded runs" not in (ran.output / "01-second.html").read_text()  # it has no parameters


@pytest.mark.parametrize(
    ("parameters", "own"),
    [
        ({}, {}),
        ({"profile": "laptop", "names": ["x"], "seeds": 5}, {}),
        ({"device": "cpu"}, {}),
        ({"profile": "smoke", "device": "cpu"}, {"profile": '"laptop"'}),
        ({"store": "runs/mine"}, {"store": "None"}),
    ],
)
def test_what_makes_a_run_the_readers_own(tmp_path, parameters, own):
    source = 'profile = "laptop"\nnames = ["x"]\nseeds = 5\ndevice = "auto"  # where\nstore = None'
    save(tmp_path / "00-a.ipynb", code(source, "parameters"))
    (outcome,) = runner.plan(tmp_path, tmp_path / "out", parameters=parameters)
    assert outcome.own == own


def test_failure_is_reported_and_stops_the_run(ran):
    assert ran.done.returncode == 1
    error = ran.done.stderr
    assert str(ran.folder / "02-broken.ipynb") in error
    assert "cell 3 of 4 (In [2])" in error and "a['missing']" in error
    assert "KeyError: 'missing'" in error and "----> 2" in error
    assert str(ran.output / "notebooks" / "02-broken.ipynb") in error
    again = f"run {shlex.quote(str(ran.folder / '02-broken.ipynb'))} --profile smoke\n"
    assert again in error  # without the parameters of the other notebooks
    assert re.search(r"00-first +passed +[\d.]+ s", ran.done.stdout)
    assert re.search(r"02-broken +failed", ran.done.stdout) and "03-never   not run" in ran.done.stdout
    assert (ran.output / "index.html").as_uri() in ran.done.stdout


def test_output_is_free_of_noise(ran):
    assert "warning" not in ran.done.stderr.lower()
    assert "02-broken" in ran.done.stderr.split("KeyError")[0]  # the progress bar


def test_index_has_a_card_for_each_notebook(ran):
    titles = re.findall(r"<h2>(?:<a href=\"[^\"]+\">)?([^<]+)", ran.index)
    assert titles == ["What is pooling?", "Second", "Broken", "Never"]
    assert "One vector, e.g. z, for an image.<" in ran.index
    assert PNG in ran.index
    assert ran.index.count('class="badge passed"') == 2 and ran.index.count('class="badge failed"') == 1
    assert "Cell 3: KeyError" in ran.index and "2 of 4 passed" in ran.index and "profile smoke" in ran.index


def test_links_lead_somewhere(ran):
    page = (ran.output / "00-first.html").read_text()
    assert 'href="01-second.html#part"' in page
    assert 'href="../../notebooks/03-never.ipynb"' in page  # it has no page
    assert 'href="../../data/sketch.png"' in page
    assert not (ran.output / "03-never.html").exists()
    assert set(re.findall(r'<a href="([^"]+)"', ran.index)) == {
        "00-first.html",
        "01-second.html",
        "02-broken.html",
        "glossary.html",
    }


def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(), "html.parser")


@pytest.mark.parametrize(
    ("name", "neighbours"),
    [
        ("00-first", {"next": ("01-second.html", "Second")}),
        ("01-second", {"prev": ("00-first.html", "What is pooling?"), "next": ("02-broken.html", "Broken")}),
        ("02-broken", {"prev": ("01-second.html", "Second")}),  # 03-never has no page
        ("glossary", {}),
    ],
)
def test_pages_lead_to_their_neighbours(ran, name, neighbours):
    page = soup(ran.output / f"{name}.html")
    assert {a["rel"][0]: (a["href"], a.contents[-1]) for a in page.select(".pages a")} == neighbours
    links = [a["href"] for a in page.select(".bar a:not(.badge)")]
    assert links == ["index.html", *(href for href, _ in neighbours.values())]


def test_contents_lead_to_the_sections(ran):
    page = soup(ran.output / "01-second.html")
    links = page.select("nav.contents a")
    assert [link["href"][1:] for link in links] == [heading["id"] for heading in page.select("h2")]
    assert links[0].get_text() == "Its xi and a link" and links[0].find("math")
    assert links[1].get_text() == "The end"
    assert soup(ran.output / "02-broken.html").find("nav", class_="contents") is None


def test_checks_are_folded_with_their_output(ran):
    page = soup(ran.output / "01-second.html")
    (folded,) = page.find_all("details", class_="check")
    assert folded.summary.get_text() == "Checked by code" and not folded.has_attr("open")
    assert "it is so" in folded.get_text() and "assert" in folded.get_text() and "second ran" not in folded.get_text()
    assert page.find_all("details", class_="input") == []
    executed = nbformat.read(ran.output / "notebooks" / "01-second.ipynb", as_version=4)
    assert [cell.metadata.get("jupyter") for cell in executed.cells[-2:]] == [{"source_hidden": True}, None]
    assert notebooks.clean(executed) == notebooks.clean(notebooks.clean(executed))


def test_a_document_that_a_notebook_links_to_becomes_a_page(ran):
    page = soup(ran.output / "glossary.html")
    assert 'href="glossary.html#Significant"' in (ran.output / "01-second.html").read_text()
    assert page.find(id="Significant") and page.select("nav.contents a")[0]["href"] == "#Significant"
    links = [a["href"] for a in page.select("main p a")]
    assert links == ["01-second.html", "../../notebooks/03-never.ipynb", "more.md"]  # the last is nowhere
    assert soup(ran.output / "index.html").select(".documents a")[-1].get_text() == "Words used"
    assert not (ran.output / "unused.html").exists()


def test_pages_load_nothing(ran):
    for page in ran.output.glob("*.html"):
        html = page.read_text()
        assert re.findall(r"<(?:img|script|iframe|video)\b[^>]*\bsrc=\"(?!data:)[^\"]*", html) == []
        assert "<link" not in html and "@import" not in html and "url(" not in html
        assert "mathjax" not in html.lower() and "require.js" not in html.lower()


def test_page_shows_formulas_and_pictures(ran):
    page = (ran.output / "00-first.html").read_text()
    assert page.count("<math ") == 2 and "$" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    assert page.count(f"data:image/png;base64,{PNG}") == 2  # the sketch in the text, the output of a cell
    assert "meant to be seen" in page and 'class="stop"' not in page
    assert 'class="stop"' in (ran.output / "02-broken.html").read_text()


@pytest.mark.parametrize("name", ["index", "00-first", "01-second"])
def test_pages_fit_a_narrow_window(ran, name, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    # A browser's window may not be that narrow, a frame may; the page tells its width to the window's.
    script = "<script>parent.postMessage(document.documentElement.scrollWidth - innerWidth, '*')</script></body>"
    (tmp_path / "framed.html").write_text((ran.output / f"{name}.html").read_text().replace("</body>", script))
    page = tmp_path / "page.html"
    page.write_text(
        "<script>onmessage = event => document.title = event.data</script>"
        '<iframe src="framed.html" width="390" height="900"></iframe>'
    )
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    switches += ["--disable-background-networking", "--disable-component-update", "--virtual-time-budget=5000"]
    command = [browser, *switches, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    try:
        html = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except subprocess.TimeoutExpired:
        pytest.skip("the browser does not answer here")
    if "<title>" not in html:
        pytest.skip("the browser does not start here")
    assert int(re.search(r"<title>(-?\d+)</title>", html)[1]) <= 0


def test_select_takes_numbers_names_beginnings_and_paths(tmp_path):
    folder, other = tmp_path / "notebooks", save(tmp_path / "own.ipynb")
    names = ["00-start", "01-pool", "02-pool-more", "12-last"]
    p = [save(folder / f"{name}.ipynb") for name in names]
    assert notebooks.select(folder) == p
    assert notebooks.select(folder, ["12", "1", "00", "02"]) == [p[3], p[1], p[0], p[2]]
    assert notebooks.select(folder, ["01-pool", "02-p", "12-last.ipynb", str(other)]) == [
        p[1],
        p[2],
        p[3],
        other,
    ]
    assert notebooks.select(folder, ["1", "01"]) == [p[1]]
    with pytest.raises(notebooks.WorkbookError, match=r"no notebook '7'(.|\n)*12-last"):
        notebooks.select(folder, ["7"])
    save(folder / "02-pool-extra.ipynb")
    with pytest.raises(notebooks.WorkbookError, match=r"more than one(.|\n)*02-pool-extra\n  02-pool-more"):
        notebooks.select(folder, ["02-pool-"])
    with pytest.raises(notebooks.WorkbookError, match="no notebooks in"):
        notebooks.select(tmp_path / "nowhere")


def test_a_parameter_goes_to_the_notebooks_that_declare_it(tmp_path):
    save(tmp_path / "0-a.ipynb", code("seeds = 5\nprofile = 'laptop'", "parameters"))
    save(tmp_path / "1-b.ipynb", code("rate = 0.1  # of learning", "parameters"))
    save(tmp_path / "2-c.ipynb", code("seeds = 5"))
    outcomes = runner.plan(tmp_path, tmp_path / "out", profile="gpu", parameters={"seeds": 3, "rate": 1})
    assert [o.parameters for o in outcomes] == [{"profile": "gpu", "seeds": 3}, {"rate": 1}, {}]
    with pytest.raises(notebooks.WorkbookError, match=r"parameter 'seed'. There is: seeds, profile, rate"):
        runner.plan(tmp_path, tmp_path / "out", parameters={"seed": 3})


def test_wrong_use_says_what_there_is(tmp_path, capsys):
    save(tmp_path / "0-a.ipynb", code("seeds = 5", "parameters"))
    (tmp_path / "1-b.ipynb").write_text("no JSON")
    own = ["--notebooks", str(tmp_path)]
    assert main(["run", *own, "0", "-p", "sedes", "1"]) == 2
    assert "There is: seeds" in capsys.readouterr().err
    assert main(["run", *own, "9"]) == 2
    assert "0-a" in capsys.readouterr().err
    assert main(["run", *own, "1"]) == 2
    assert "1-b.ipynb cannot be read" in capsys.readouterr().err
    assert main(["run", *own, "--inplace", "-p", "seeds", "1"]) == 2
    assert "no -p" in capsys.readouterr().err
    assert not (tmp_path.parent / "build").exists()


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3", 3),
        ("-2", -2),
        ("1e-3", 0.001),
        ("true", True),
        ("None", None),
        ("no", "no"),
        ("vit_small", "vit_small"),
        ("2024-01-01", "2024-01-01"),
        ('["a", 1]', ["a", 1]),
        ("{gamma: 2}", {"gamma": 2}),
        ("'3'", "3"),
        ("[broken", "[broken"),
    ],
)
def test_values_of_parameters(written, value):
    assert notebooks.parse_value(written) == value
    assert type(notebooks.parse_value(written)) is type(value)


def without_seconds(path: Path) -> str:
    return re.sub(r'"seconds": [\d.]+', "", path.read_text())


def test_executing_in_place_twice_changes_nothing(tmp_path):
    path = save(
        tmp_path / "notebooks" / "0-a.ipynb",
        text("# Title"),
        code('profile = "laptop"', "parameters"),
        code("from tqdm.notebook import tqdm\nfor i in tqdm(range(2)): print(i)"),
        code("{'a': 1}"),
        simpool_lite={"estimates": {"smoke": 20}},
    )
    states = []
    for _ in range(2):
        outcomes = runner.plan(path.parent, tmp_path / "out")
        runner.execute(outcomes, inplace=True, progress=False)
        assert outcomes[0].status == "passed", outcomes[0].failure
        states.append(without_seconds(path))
    assert states[0] == states[1]
    assert printed(path) == "0\n1\n"
    node = nbformat.read(path, as_version=4)
    assert set(node.metadata) == {"kernelspec", "language_info", "simpool_lite"}
    assert node.metadata.simpool_lite.profile == "laptop" and node.metadata.simpool_lite.seconds > 0
    assert node.metadata.simpool_lite.estimates == {"smoke": 20}
    assert [dict(cell.metadata) for cell in node.cells] == [{}, {"tags": ["parameters"]}, {}, {}]
    assert str(tmp_path) not in path.read_text() and "papermill" not in path.read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_interrupting_keeps_what_is_there(tmp_path):
    sleep = "import time\nopen('started', 'w').close()\ntime.sleep(600)"
    save(tmp_path / "n" / "0-a.ipynb", text("# A"), code("print('before')"), code(sleep))
    save(tmp_path / "n" / "1-b.ipynb", text("# B"))
    command = [sys.executable, "-m", "simpool_lite", "run", "--notebooks", str(tmp_path / "n")]
    process = subprocess.Popen(
        command,
        cwd=tmp_path / "n",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "n" / "started").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 130, error
    assert "interrupted in cell 3 of 3" in error and "ERROR" not in error
    assert re.search(r"0-a +interrupted(.|\n)*1-b +not run", out)
    output = tmp_path / "build" / "workbook"
    assert printed(output / "notebooks" / "0-a.ipynb") == "before\n"
    assert 'class="badge interrupted"' in (output / "index.html").read_text()
    assert [p.name for p in (output / "notebooks").iterdir()] == ["0-a.ipynb"]


def test_in_place_refuses_outputs_that_name_the_machine(tmp_path):
    cells = [text("# Title"), code("import sys\nprint(sys.executable)")]
    path = save(tmp_path / "0-a.ipynb", *cells)
    before = path.read_bytes()
    outcomes = runner.plan(tmp_path, tmp_path / "out")
    runner.execute(outcomes, inplace=True, progress=False)
    assert outcomes[0].status == "failed" and outcomes[0].failure.cell == 2
    assert "folder of this machine" in outcomes[0].failure.error
    assert path.read_bytes() == before


def test_list_shows_titles_times_and_parameters(tmp_path, capsys):
    note = {"seconds": 42.1, "estimates": {"smoke": 120, "laptop": 3600}}
    save(
        tmp_path / "0-a.ipynb",
        text("# First *one*"),
        code("seeds = 5\nlr = 0.1", "parameters"),
        simpool_lite=note,
    )
    save(tmp_path / "1-b.ipynb", code("1"))
    assert main(["list", "--notebooks", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["notebook", "title", "cells", "reading", "recorded", "smoke", "laptop", "gpu"]
    assert re.split(r"  +", lines[1]) == ["0-a", "First one", "2", "0 min", "42 s", "2 min", "1 h", "–"]
    assert lines[2].strip() == "seeds=5 lr=0.1"
    assert re.split(r"  +", lines[3]) == ["1-b", "–", "1", "0 min", "–", "–", "–", "–"]


def test_thumbnail_and_sentence_are_chosen():
    def output(data):
        return nbformat.v4.new_output("display_data", {"image/png": data})

    cells = [
        text("Before.\n# Title\n- a list\n\nA *dog*, i.e. this. Rest."),
        code("1"),
        code("2", "thumbnail"),
    ]
    cells[1].outputs, cells[2].outputs = [output("QQ==")], [output("Qg==\n")]
    assert report.thumbnail(new_notebook(cells=cells)) == "data:image/png;base64,Qg=="
    assert report.thumbnail(new_notebook(cells=cells[:2])) == "data:image/png;base64,QQ=="
    assert report.thumbnail(new_notebook()) == ""
    assert report.first_sentence(new_notebook(cells=cells)) == "A dog, i.e. this."
    assert report.first_sentence(new_notebook(cells=[text("# Only")])) == ""


@pytest.mark.parametrize(
    "tex",
    [
        r"z = \left( \sum_i a_i (v_i - \min V + 10^{-6})^\gamma \right)^{1/\gamma}",
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
        r"\begin{cases} x & \alpha \neq 1 \\ \ln x & \alpha = 1 \end{cases}",
        r"\arg\max_i s, \operatorname*{softmax}_i, \operatorname{LN}(x)",
        r"\mathbf u^\top \mathbf{W}_Q, \boldsymbol{\sigma}_2, \mathbb R^{d \times p}",
    ],
)
def test_formulas_become_mathml(tex):
    mathml = to_mathml(tex, block=True)
    assert mathml.startswith("<math ") and "\\" not in mathml and "&amp;" not in mathml


def test_a_space_at_the_end_of_a_line_is_a_space():
    assert to_mathml("a,\\\nb", block=False) == to_mathml(r"a,\ b", block=False)
    rows = to_mathml("\\begin{matrix} a \\\\\nb \\end{matrix}", block=True)
    assert rows.count("<mtr>") == 2


@pytest.mark.parametrize("path", sorted((files.repository_root() / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_every_formula_of_the_workbook_becomes_mathml(path):
    node = notebooks.read(path)
    cells = [cell.source for cell in node.cells if cell.cell_type == "markdown"]
    outputs = [output for cell in node.cells for output in cell.get("outputs", [])]
    cells += ["".join(o.data["text/markdown"]) for o in outputs if "text/markdown" in o.get("data", {})]
    html = "".join(map(markdown_to_html, cells))
    assert re.findall(r'<code class="tex">.*?</code>', html, re.S) == []
    assert html.count("<math ") >= sum(cell.count("$$") // 2 for cell in cells)


def test_a_formula_that_cannot_be_read_stays_as_it_is():
    for tex in (r"\frac", r"\nosuchcommand x", r"\broken{"):
        assert to_mathml(tex, block=False) == f'<code class="tex">{tex}</code>'


def python(source: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)


def test_help_imports_nothing_heavy():
    done = python(
        "import sys, simpool_lite.__main__ as m\n"
        "try: m.main(['run', '--help'])\n"
        "except SystemExit: print({'torch', 'papermill', 'nbformat', 'numpy'} & set(sys.modules))"
    )
    assert done.stdout.endswith("set()\n"), done.stdout + done.stderr


def test_notebooks_in_the_examples_of_help_exist(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    examples = " ".join(capsys.readouterr().out.split("examples:")[1].split()).split("|")
    names = [name for example in examples for name in re.sub(r" -.*", "", example).split() if name != "run"]
    assert len(names) > 2 and notebooks.select(files.repository_root() / "notebooks", names)


def test_missing_packages_are_named():
    done = python("import sys; sys.modules['papermill'] = None; import simpool_lite.__main__ as m; m.main(['list'])")
    assert 'papermill, which is not installed: pip install "simpool-lite[notebooks]"' in done.stderr


def test_repository_root(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "__file__", str(tmp_path / "simpool_lite" / "files.py"))
    with pytest.raises(FileNotFoundError, match="Clone the repository"):
        files.repository_root()
    for name in ("notebooks", "data"):
        (tmp_path / name).mkdir()
    assert files.repository_root() == tmp_path
