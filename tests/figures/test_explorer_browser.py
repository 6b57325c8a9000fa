"""The explorer in a real browser: JupyterLab runs the notebook, controls are moved, pictures read. Also Voila.

Unproven: this file has never run to its end. `make test-browser` runs it; every other run skips it.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from jupyter_client import BlockingKernelClient
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = "13-explorer.ipynb"
PATIENCE = 300  # seconds until something that is awaited counts as missing, on a busy machine too
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER, DRIVER = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("SIMPOOL_TEST_BROWSER") != "1",
        reason="unproven, it has never run to its end: only `make test-browser` runs it",
    ),
    pytest.mark.skipif(
        BROWSER is None or DRIVER is None,
        reason="needs Chromium or Chrome and chromedriver (on Debian and Ubuntu: apt install chromium chromium-driver)",
    ),
]

# Of a picture in the page its pixels, as text, or null while it is loading.
PIXELS = """
    const img = document.querySelectorAll('.explorer img')[arguments[0]];
    if (!img || !img.complete || !img.naturalWidth) return null;
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
    canvas.getContext('2d').drawImage(img, 0, 0);
    return canvas.toDataURL();
"""
KERNEL_IS_IDLE = """
    const page = window.jupyterapp && window.jupyterapp.shell.currentWidget;
    return !!page && !!page.sessionContext && page.sessionContext.session?.kernel?.status === 'idle';
"""
# Not awaited: it would last as long as the notebook does, which may be longer than a driver waits for a script.
RUN_ALL = "window.jupyterapp.commands.execute('notebook:run-all-cells').catch(console.error);"


class Explorer:
    """The page, as a reader handles it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.until(lambda: self.pixels() and self.pixels(0))
        self.element = driver.find_element(By.CSS_SELECTOR, ".explorer")
        driver.execute_script("arguments[0].scrollIntoView()", self.element)

    def until(self, condition: Callable[[], object]) -> object:
        return WebDriverWait(self.driver, PATIENCE, poll_frequency=0.02).until(lambda _: condition())

    def pixels(self, picture: int = 1) -> str | None:
        """Of the photograph, 0, or the map over it, 1."""
        return self.driver.execute_script(PIXELS, picture)

    def control(self, name: str) -> Select:
        path = f".//label[normalize-space()='{name}']/following-sibling::select"
        return Select(self.element.find_element(By.XPATH, path))

    def choose(self, name: str, text: str, picture: int = 1) -> str:
        """Choose from a list; the picture that follows."""
        before = self.pixels(picture)
        self.control(name).select_by_visible_text(text)
        return self.until(lambda: (now := self.pixels(picture)) != before and now)

    def chosen(self, name: str) -> str:
        return self.control(name).first_selected_option.text

    def raise_threshold(self, key: str = Keys.ARROW_RIGHT) -> None:
        self.element.find_element(By.CSS_SELECTOR, ".noUi-handle").send_keys(key)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def server(folder: Path, module: str, *options: str) -> Iterator[None]:
    """A server on this machine, until it says that it is there; its settings are in ``folder`` alone."""
    places = {
        name: str(folder / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
        )
    }
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--no-browser", *options],
        cwd=folder, env=os.environ | places, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if "is running at" in line:
                break
        else:
            raise RuntimeError(f"{module} ended: {''.join(said)[-2000:]}")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # or it would wait for us to read
        yield
    finally:
        process.terminate()
        process.wait(60)


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
    driver.set_script_timeout(PATIENCE)  # by default 30 s, and while a page loads it answers nobody
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
        folder, "jupyterlab", "--allow-root", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        "--IdentityProvider.token=browser", "--LabApp.expose_app_in_browser=True",
        "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
        "--LanguageServerManager.autodetect=False",  # it would ask npm what is installed
    ):  # fmt: skip
        driver.get(f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK}?token=browser")
        WebDriverWait(driver, PATIENCE).until(lambda _: driver.execute_script(KERNEL_IS_IDLE))
        driver.execute_script(RUN_ALL)
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
    page.choose("backbone", "convnet_micro")
    page.choose("pooling", "SimPool")
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
    chooser = page.element.find_element(By.CSS_SELECTOR, "input[type=file]")
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

    def move(i: int) -> None:
        page.raise_threshold((Keys.ARROW_LEFT, Keys.ARROW_RIGHT)[i // 5 % 2])
        page.choose("image", f"photo-digits {i % 12}", picture=0)  # arrives after what the threshold changed

    page.choose("image", "coffee", picture=0)
    for i in range(24):  # every answer is computed, every allocator has what it needs
        move(i)
    before = memory(folder)
    for i in range(200):
        move(i)
    assert memory(folder) - before < 14e6


def test_voila_shows_the_page(tmp_path, driver):
    copy_notebook(tmp_path)
    port = free_port()
    with server(tmp_path, "voila", NOTEBOOK, f"--port={port}", "--Voila.ip=127.0.0.1"):
        driver.get(f"http://127.0.0.1:{port}")
        explorer = Explorer(driver)
        assert not driver.find_elements(By.CSS_SELECTOR, ".jp-InputArea-editor")  # no code
        explorer.choose("backbone", "convnet_micro")
        explorer.choose("pooling", "GAP")
        driver.get("about:blank")
