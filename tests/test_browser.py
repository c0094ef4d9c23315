"""The course as a learner sees it: JupyterLab in a headless browser. Skipped where there is no Chromium."""

import pytest
from browsing import CHROMIUM, open_notebook, run_all

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")]


def test_figures_play_without_a_kernel(page, lab):
    """What is stored in notebook 01 works before anything has run."""
    open_notebook(page, lab, "01_couplings.ipynb")
    figure = page.locator(".jp-OutputArea .js-plotly-plot", has=page.locator("text=lines cross in 144 places"))
    figure.scroll_into_view_if_needed()
    assert "as given: R = 1.00" in figure.locator(".gtitle").text_content()
    figure.locator(".updatemenu-button", has_text="optimal transport").click()
    page.wait_for_function("() => document.body.innerText.includes('optimal transport: R = 0.00')")


def test_the_opening_picture_flies_without_a_kernel(page, lab):
    """What is stored in notebook 00 plays as soon as it is opened."""
    open_notebook(page, lab, "00_start_here.ipynb")
    figure = page.locator(".jp-OutputArea .js-plotly-plot", has=page.locator("text=A line of Python flies")).first
    figure.scroll_into_view_if_needed()
    depth = figure.locator(".slider-label").first
    assert depth.text_content() == "depth 24"
    figure.locator(".slider-rail-touch-rect").click(position={"x": 5, "y": 5})
    page.wait_for_function(
        "() => [...document.querySelectorAll('.slider-label')].some(e => e.textContent === 'depth 0')"
    )
    places = (
        "() => [...document.querySelectorAll('.js-plotly-plot .point')].map(e => e.getAttribute('transform')).join()"
    )
    start = page.evaluate(places)
    figure.locator(".updatemenu-button", has_text="play").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.slider-label')].some(e => e.textContent === 'depth 24')"
    )
    assert page.evaluate(places) != start
    assert figure.locator("text=·sort").count() == 1  # the words fly with the marks


def test_an_answer_is_checked_in_the_browser(page, lab):
    open_notebook(page, lab, "exercises/02_flow_matching.ipynb")
    run_all(page, until="2.6 · A walk that keeps every pair: not yet")
    assert page.locator("text=Not filled in yet").count() == 6
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
