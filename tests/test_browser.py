"""The course as a learner sees it: JupyterLab in a headless browser. Skipped where there is no Chromium."""

import os

import pytest
from browsing import CHROMIUM, open_notebook, run_all

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")]


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


def test_the_opening_picture_plays_without_a_kernel_and_answers_are_folded(page, lab):
    """What is stored in notebook 00 plays as soon as it is opened, and does not tell what is to be predicted."""
    open_notebook(page, lab, "00_start_here.ipynb")
    figure = page.locator(".jp-OutputArea .js-plotly-plot", has=page.locator("text=The same pairs, two losses")).first
    figure.scroll_into_view_if_needed()
    assert figure.locator(".slider-label").first.text_content() == "t = 1.00"
    said = "() => [...document.querySelectorAll('.slider-label')].some(e => e.textContent === 't = {}')"
    figure.locator(".slider-rail-touch-rect").click(position={"x": 5, "y": 5})
    page.wait_for_function(said.format("0.00"))
    places = (
        "() => [...document.querySelectorAll('.js-plotly-plot .point')].map(e => e.getAttribute('transform')).join()"
    )
    start = page.evaluate(places)
    figure.locator(".updatemenu-button", has_text="play").click()
    page.wait_for_function(said.format("1.00"))
    assert page.evaluate(places) != start

    page.locator("text=Where will the paths of teacher and student part?").last.scroll_into_view_if_needed()
    assert page.locator(".jp-OutputPlaceholder").count() > 0
    assert page.locator("text=They share layers 0 to 5").filter(visible=True).count() == 1  # in the code alone


def test_an_answer_is_checked_in_the_browser(page, lab):
    open_notebook(page, lab, "exercises/02_flow_matching.ipynb")
    run_all(page, until="2.6 · A walk that keeps every pair: not yet")
    assert page.locator("text=Not filled in yet").count() == 6
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
