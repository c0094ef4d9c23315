"""JupyterLab and a headless browser for tests, and what is done with them again and again."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

from lft_edu.support import stored

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
EXPLORER = """import lft_edu as lft
teacher, tokenizer = lft.load_teacher("bundled")
students = {name: lft.load_student(f"bundled/{name}-6-18", teacher) for name in ("flow-walking", "ridge")}
lft.TrajectoryExplorer(teacher, students, tokenizer, text="for name in names:")"""
SPANS = """import torch, lft_edu as lft
states = torch.randn(9, 80, 8, generator=torch.Generator().manual_seed(0)).cumsum(0)
lft.explorer.SpanApp(lft.scan_spans(states, ["recoupling", "angular"], progress=False), states, span=(2, 6))"""
LESSON = """import lft_edu as lft
from lft_edu.support import progress
progress.WAIT = 0  # so that work as short as this has bars
teacher, tokenizer = lft.load_teacher("bundled")
lft.load_corpus("python-stdlib", tokenizer, "test", 64, max_tokens=640)
beams = lft.shapes.beams(200)
trained = lft.plane.train(beams, lft.objectives.flow_matching_loss, steps=600)"""
APPS = [SPANS, "lft.explorer.CompletionApp({'a <b>teacher': teacher, 'student': teacher}, tokenizer)"]
APPS += ["lft.explorer.CouplingApp()", "lft.explorer.FlowApp(steps=400)"]
BOOKS = {"explorer": [EXPLORER], "lesson": [LESSON, *APPS, "print('all', 'done')"]}  # notebook → its cells


def write_books(root: Path) -> None:
    """Write a copy of the notebooks, and those of the tests, to ``root``."""
    shutil.copytree(NOTEBOOKS, root / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name, cells in BOOKS.items():
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
        nbformat.write(book, root / "notebooks" / f"{name}.ipynb")


@contextmanager
def serve(root: Path):
    """JupyterLab on loopback over ``root``, as ``lft-edu lab`` starts it; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "JUPYTERLAB_SETTINGS_DIR": root / "s",
        "JUPYTERLAB_WORKSPACES_DIR": root / "w",
        "IPYTHONDIR": root / "i",
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"),
        *(f"--ServerApp.port={port}", "--IdentityProvider.token=t", f"--ServerApp.root_dir={root}", *stored.FLAGS),
    ]
    log = (root / "log").open("w")
    server = subprocess.Popen(
        command, stdout=log, stderr=log, env={**os.environ, **{k: str(v) for k, v in settings.items()}}
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api?token=t", timeout=2).read()
                break
            except OSError:
                assert server.poll() is None, (root / "log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(20)
        log.close()


@pytest.fixture(scope="session")
def lab_root(tmp_path_factory):
    """The folder that the server shows."""
    root = tmp_path_factory.mktemp("lab")
    write_books(root)
    return root


@pytest.fixture(scope="session")
def lab(lab_root):
    with serve(lab_root) as address:
        yield address


@pytest.fixture
def page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def watched(page):
    """The page, which notes in ``trouble`` what would leave it and what goes wrong in it."""
    page.trouble = []

    def watch(route):
        if route.request.url.startswith(("file:", "data:", "blob:")):
            return route.continue_()
        page.trouble.append(route.request.url)
        return route.abort()

    page.route("**/*", watch)
    page.on("pageerror", lambda error: page.trouble.append(str(error)))
    return page


def open_notebook(page, lab, name):
    """Open a notebook; a dialog that JupyterLab puts before it (a slow kernel) is answered as it suggests."""
    page.goto(f"{lab}/lab/tree/notebooks/{name}?reset&token=t")
    page.wait_for_selector(".jp-Notebook .jp-Cell >> visible=true")
    page.remove_locator_handler(page.locator(".jp-Dialog"))  # of a notebook opened before
    page.add_locator_handler(page.locator(".jp-Dialog"), answer)


def answer(dialog):
    print("JupyterLab asks:", dialog.inner_text())  # pytest shows it where a test fails
    dialog.locator("button.jp-mod-accept").click()


@contextmanager
def screen(page, width, height):
    """A window of another size, for a while."""
    before = page.viewport_size
    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_timeout(1500)  # figures follow
    yield
    page.set_viewport_size(before)


def run_all(page, until, patience=30):
    """Run → Run All Cells, until a text appears. A kernel that has just connected may miss the first call, which is
    made again after ``patience`` seconds."""
    from playwright.sync_api import TimeoutError

    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle'] >> visible=true")
    for _ in range(5):
        page.click("text=Run >> nth=0")
        page.click("li[data-command='runmenu:run-all'] >> visible=true")
        try:
            page.wait_for_selector(f"text={until}", state="attached", timeout=1000 * patience)
            return
        except TimeoutError:
            continue
    raise AssertionError(f"Run All Cells, five times, and no {until!r}")
