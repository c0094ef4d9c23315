"""The course as a learner sees it: JupyterLab in a headless browser. Skipped where there is no Chromium."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")]
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on loopback, over a copy of the notebooks; its address."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, root / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
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
        *(f"--ServerApp.port={port}", "--IdentityProvider.token=t", f"--ServerApp.root_dir={root}"),
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


@pytest.fixture
def page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def open_notebook(page, lab, name):
    page.goto(f"{lab}/lab/tree/notebooks/{name}?reset&token=t")
    page.wait_for_selector(".jp-Notebook .jp-Cell >> visible=true")


def run_all(page, until):
    """Run → Run All Cells, until a text appears. A kernel that has just connected may miss the first call."""
    from playwright.sync_api import TimeoutError

    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle'] >> visible=true")
    for _ in range(5):
        page.click("text=Run >> nth=0")
        page.click("li[data-command='runmenu:run-all'] >> visible=true")
        try:
            page.wait_for_selector(f"text={until}", state="attached", timeout=30_000)
            return
        except TimeoutError:
            continue
    raise AssertionError(f"Run All Cells, five times, and no {until!r}")


def test_figures_play_without_a_kernel_and_sliders_move_the_app(page, lab):
    open_notebook(page, lab, "01_couplings.ipynb")
    # a stored figure, before anything has run: its own buttons work
    figure = page.locator(".jp-OutputArea .js-plotly-plot", has=page.locator("text=lines cross in 144 places"))
    figure.scroll_into_view_if_needed()
    assert "as given: R = 1.00" in figure.locator(".gtitle").text_content()
    figure.locator(".updatemenu-button", has_text="optimal transport").click()
    page.wait_for_function("() => document.body.innerText.includes('optimal transport: R = 0.00')")

    # the application: run everything, then work a slider by keyboard and another by dragging it
    run_all(page, until="24 pairs. as given: R = 1.00")
    app = page.locator(".jupyter-widgets.widget-hbox:has(.js-plotly-plot)").first
    app.scroll_into_view_if_needed()
    title = app.locator(".gtitle").first
    before = title.text_content()
    handle = app.locator(".widget-slider:has-text('pairs N') .noUi-handle")
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=25 pairs. as given")
    assert title.text_content() != before

    box = app.locator(".widget-slider:has-text('pairing') .noUi-handle").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 400, box["y"] + box["height"] / 2, steps=8)
    page.mouse.up()
    page.wait_for_selector("text=25 pairs. optimal transport: R = 0.00 · lines cross in 0 places")
    assert "R = 0.00" in title.text_content()
    if where := os.environ.get("LFT_EDU_SCREENSHOTS"):
        page.screenshot(path=f"{where}/coupling_app.png")


def test_an_answer_is_checked_in_the_browser(page, lab):
    open_notebook(page, lab, "exercises/02_flow_matching.ipynb")
    run_all(page, until="2.6 · A walk that keeps every pair: not yet")
    assert page.locator("text=Not filled in yet").count() == 6
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
