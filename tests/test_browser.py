"""The course as a learner sees it: JupyterLab in a headless browser. Skipped where there is no Chromium."""

import pytest
from browsing import CHROMIUM, open_notebook, run_all, screen

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")]


def test_figures_play_without_a_kernel(page, lab):
    """What is stored in notebook 01 works before anything has run."""
    open_notebook(page, lab, "01_couplings.ipynb")
    figure = page.locator(".jp-OutputArea .js-plotly-plot", has=page.locator("text=lines cross in 144 places"))
    figure.scroll_into_view_if_needed()
    assert "as given: R = 1.00" in figure.locator(".gtitle").text_content()
    figure.locator(".updatemenu-button", has_text="optimal transport").click()
    page.wait_for_function("() => document.body.innerText.includes('optimal transport: R = 0.00')")


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

    # without a mouse; the same keys would go from cell to cell
    cell = page.locator(".jp-Notebook .jp-mod-selected").get_attribute("data-windowed-list-index")
    figure.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(said.format("0.95"))
    page.keyboard.press("ArrowRight")
    page.wait_for_function(said.format("1.00"))
    page.keyboard.press("Space")  # plays from the start
    page.wait_for_function(said.format("0.20"))
    page.keyboard.press("Space")
    page.wait_for_timeout(300)
    stopped = figure.locator(".slider-label").first.text_content()
    page.wait_for_timeout(300)
    assert figure.locator(".slider-label").first.text_content() == stopped != "t = 1.00"
    assert page.locator(".jp-Notebook .jp-mod-selected").get_attribute("data-windowed-list-index") == cell

    # the figure follows the window in width and keeps its height
    wide = figure.bounding_box()
    shown = "figure => figure._fullLayout.yaxis.range[1] - figure._fullLayout.yaxis.range[0]"  # of the plane
    seen = figure.evaluate(shown)
    with screen(page, 800, 1100):
        narrow = figure.bounding_box()
        assert narrow["width"] < wide["width"] - 500
        assert narrow["height"] == pytest.approx(wide["height"], abs=40)
    assert figure.evaluate(shown) == pytest.approx(seen)

    page.locator("text=Where will the paths of teacher and student part?").last.scroll_into_view_if_needed()
    assert page.locator(".jp-OutputPlaceholder").count() > 0
    assert page.locator("text=They share layers 0 to 5").filter(visible=True).count() == 1  # in the code alone


def test_an_answer_is_checked_in_the_browser(page, lab):
    open_notebook(page, lab, "exercises/02_flow_matching.ipynb")
    run_all(page, until="2.6 · A walk that keeps every pair: not yet")
    assert page.locator("text=Not filled in yet").count() == 8
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
