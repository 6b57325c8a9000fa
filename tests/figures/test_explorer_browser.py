"""The explorer in a real browser: JupyterLab runs the notebook, controls are moved, pictures read. Also Voila."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from jupyter_client import BlockingKernelClient
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, TimeoutException
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = "13-explorer.ipynb"
PATIENCE = 600  # seconds until something that is awaited counts as missing, on a busy machine too
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER, DRIVER = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="needs Chromium or Chrome and chromedriver (on Debian and Ubuntu: apt install chromium chromium-driver)",
)

# Of a picture in the page its pixels, as text, or null while it is loading.
PIXELS = """
    const img = document.querySelectorAll('.explorer img')[arguments[0]];
    if (!img || !img.complete || !img.naturalWidth) return null;
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
    canvas.getContext('2d').drawImage(img, 0, 0);
    return canvas.toDataURL();
"""
# Not the current widget: without a window that has the focus there may be none.
RUN_ALL = """
    const app = window.jupyterapp;
    const page = app && [...app.shell.widgets('main')].find(widget => widget.sessionContext);
    if (page?.sessionContext.session?.kernel?.status !== 'idle') return false;
    app.shell.activateById(page.id);
    app.commands.execute('notebook:run-all-cells').catch(console.error);  // not awaited, it may take minutes
    return true;
"""
# Moves of the threshold and the image; the photograph has arrived before the next one, and so has what came before it.
MOVE = """
    const [first, last, done] = arguments, page = document.querySelector('.explorer');
    const image = page.querySelector('select'), handle = page.querySelector('.noUi-handle');
    const photograph = page.querySelector('img');
    (async () => {
        for (let i = first; i < last; i++) {
            const arrived = new Promise(loaded => photograph.addEventListener('load', loaded, {once: true}));
            const key = Math.floor(i / 5) % 2 ? 'ArrowRight' : 'ArrowLeft';
            handle.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
            image.selectedIndex = i % 12;
            image.dispatchEvent(new Event('change', {bubbles: true}));
            await arrived;
        }
    })().then(() => done(photograph.src));
"""

# The button's chooser of files is in no page and opens a window of the system: put it where the driver finds it.
SHOW_CHOOSER = "HTMLInputElement.prototype.click = function () { document.querySelector('.explorer').append(this); };"


class Explorer:
    """The page, as a reader handles it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.until(lambda: self.pixels() and self.pixels(0))
        self.element = driver.find_element(By.CSS_SELECTOR, ".explorer")
        driver.execute_script("arguments[0].scrollIntoView()", self.element)

    def until(self, condition: Callable[[], object]) -> object:
        return wait(self.driver, condition)

    def pixels(self, picture: int = 1) -> str | None:
        """Of the photograph, 0, or the map over it, 1."""
        return self.driver.execute_script(PIXELS, picture)

    def control(self, name: str) -> Select:
        path = f".//label[normalize-space()='{name}']/following-sibling::select"
        return Select(self.element.find_element(By.XPATH, path))

    def choose(self, name: str, text: str, picture: int = 1) -> str:
        """Choose from a list; the picture that follows."""
        before = self.pixels(picture)
        self.until(lambda: self.control(name).select_by_visible_text(text) or True)
        return self.until(lambda: (now := self.pixels(picture)) != before and now)

    def chosen(self, name: str) -> str:
        return self.until(lambda: self.control(name).first_selected_option.text)

    def raise_threshold(self) -> None:
        self.element.find_element(By.CSS_SELECTOR, ".noUi-handle").send_keys(Keys.ARROW_RIGHT)

    def move(self, times: int) -> None:
        """Move the threshold and choose an image so often, each time until the photograph is there."""
        for first in range(0, times, 20):
            self.driver.execute_async_script(MOVE, first, min(first + 20, times))


def wait(driver: webdriver.Chrome, condition: Callable[[], object]) -> object:
    """What the condition gives once it is true; else an error with the end of what the page says."""
    try:
        # The page replaces a list's options when another control has moved: whoever holds the old ones asks again.
        patient = WebDriverWait(driver, PATIENCE, 0.05, [NoSuchElementException, StaleElementReferenceException])
        return patient.until(lambda _: condition())
    except TimeoutException:
        seen = driver.execute_script("return document.title + ': ' + document.body.innerText.slice(-2000)")
        raise TimeoutException(f"nothing within {PATIENCE} s; the page: {seen}") from None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def server(folder: Path, port: int, module: str, *options: str) -> Iterator[str]:
    """A server on this machine and its address, once it listens: it may say earlier that it is running.

    Its settings, and what its kernels write, are in ``folder`` alone.
    """
    places = {
        name: str(folder / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
        )
    }
    log = folder / "server.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--no-browser", *options],
            cwd=folder, env=os.environ | places, stderr=said, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def listens(_: None) -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{module} ended: {log.read_text()[-2000:]}")
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        WebDriverWait(None, PATIENCE, 0.1).until(listens, f"{module} does not listen on port {port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.page_load_strategy = "none"  # what a page must have before it counts as loaded is awaited below
    for option in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1400",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(option)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))  # a path, so that nothing is looked up
    driver.set_script_timeout(PATIENCE)
    driver.command_executor.client_config.timeout = 2 * PATIENCE  # for one answer of the driver; by default 120 s
    yield driver
    driver.quit()


def copy_notebook(folder: Path) -> None:
    """The notebook without outputs, down to the page: a kernel that draws the figures below it does not answer."""
    node = nbformat.read(ROOT / "notebooks" / NOTEBOOK, 4)
    page = next(at for at, cell in enumerate(node.cells) if cell.source.startswith("token = State("))
    node.cells = node.cells[: page + 1]
    for cell in node.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(node, folder / NOTEBOOK)


@contextmanager
def jupyterlab(folder: Path, driver: webdriver.Chrome) -> Iterator[Explorer]:
    """JupyterLab in the browser, all cells of the notebook run."""
    copy_notebook(folder)
    settings = folder / "jupyterlab_settings_dir" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')  # cells out of sight are there
    port = free_port()
    with server(
        folder, port, "jupyterlab", "--allow-root", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        "--IdentityProvider.token=browser", "--LabApp.expose_app_in_browser=True",
        "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
        "--LanguageServerManager.autodetect=False",  # it would ask npm what is installed
    ) as address:  # fmt: skip
        driver.get(f"{address}/lab/tree/{NOTEBOOK}?token=browser")
        wait(driver, lambda: driver.execute_script(RUN_ALL))
        yield Explorer(driver)
        driver.get("about:blank")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def page(folder, driver) -> Iterator[Explorer]:
    with jupyterlab(folder, driver) as explorer:
        yield explorer


def memory(folder: Path) -> int:
    """Bytes that the notebook's kernel has in memory."""
    [file] = (folder / "jupyter_runtime_dir").glob("kernel-*.json")
    client = BlockingKernelClient(connection_file=str(file))
    client.load_connection_file()
    client.start_channels()
    code = "[__import__('gc').collect(), __import__('psutil').Process().memory_info().rss][1]"
    try:
        reply = client.execute_interactive(
            "", store_history=False, user_expressions={"rss": code}, timeout=PATIENCE, allow_stdin=False
        )
    finally:
        client.stop_channels()
    return int(reply["content"]["user_expressions"]["rss"]["data"]["text/plain"])


def test_controls_change_the_picture(page):
    errors = page.driver.find_elements(By.CSS_SELECTOR, "[data-mime-type='application/vnd.jupyter.stderr']")
    assert not [error.text for error in errors]
    page.choose("backbone", "convnet_micro")  # the page starts with the transformer
    page.until(lambda: page.chosen("pooling") == "SimPool")  # this backbone has no CLS
    first = page.choose("image", "photo-digits 5")
    second = page.choose("pooling", "GAP")
    assert page.chosen("map") == "class activation (CAM)" and second != first
    assert not page.control("gamma")._el.is_enabled()
    for _ in range(6):
        page.raise_threshold()
    page.until(lambda: page.pixels() not in (None, second))  # the box has moved
    page.choose("pooling", "SimPool")
    page.choose("gamma", "2.0")


def test_a_picture_of_the_readers(page):
    page.driver.execute_script(SHOW_CHOOSER)
    page.element.find_element(By.XPATH, ".//button[contains(., 'upload')]").click()
    chooser = page.until(lambda: page.element.find_element(By.CSS_SELECTOR, "input[type=file]"))
    chooser.send_keys(str(ROOT / "data" / "photographs" / "rocket.png"))
    page.until(lambda: page.chosen("image") == "your picture")


def test_draw_a_digit(page):
    pad = page.element.find_element(By.CSS_SELECTOR, "canvas")
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", pad)
    stroke = ActionChains(page.driver, duration=20).move_to_element_with_offset(pad, 0, -70).click_and_hold()
    for _ in range(7):
        stroke.move_by_offset(0, 20)
    stroke.release().perform()
    page.until(lambda: page.chosen("image") == "your digit")
    page.until(lambda: "Answer: 1" in page.element.text)


def test_memory_stays(page, folder):
    """Were the pictures kept, two PNG files a move, 200 moves would leave more than 40 MB; a third is allowed."""
    page.choose("image", "coffee", picture=0)
    page.move(24)  # every answer is computed, every allocator has what it needs
    before = memory(folder)
    page.move(200)
    assert memory(folder) - before < 14e6


def test_voila_shows_the_page(tmp_path, driver):
    copy_notebook(tmp_path)
    port = free_port()
    with server(tmp_path, port, "voila", NOTEBOOK, f"--port={port}", "--Voila.ip=127.0.0.1") as address:
        driver.get(address)
        explorer = Explorer(driver)
        assert not driver.find_elements(By.CSS_SELECTOR, ".jp-InputArea-editor")  # no code
        explorer.choose("backbone", "convnet_micro")
        driver.get("about:blank")
