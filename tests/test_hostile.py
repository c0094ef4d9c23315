"""Text from models and users on one page of everything that shows it: nothing runs, and no link leads to a script."""

import json

import nbformat
import pytest
from browsing import CHROMIUM, page, watched  # noqa: F401 (page is a fixture)

import lft_edu as lft
from lft_edu import plots
from lft_edu.explorer.completion import table_of
from lft_edu.export import FIGURE, export_html
from lft_edu.runs.cards import Card

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")]
RUN = "window.hit=1"
EVIL = f"<img src=x onerror={RUN}></script><script>{RUN}</script>[a](javascript:{RUN})$\\href{{javascript:{RUN}}}{{b}}$"


def card() -> str:
    """A results card whose names are hostile, as Markdown."""
    teacher, tokenizer = lft.load_teacher("bundled")
    teacher.lft_origin = {"name": EVIL, "revision": EVIL}
    student = lft.load_student("bundled/ridge-6-18", teacher)
    held_out = lft.load_corpus("python-stdlib", tokenizer, split="test", block_size=16, max_tokens=32)
    made = Card.of(student, teacher, lft.evaluate(student, teacher, held_out), EVIL, EVIL, latency=False)
    return str(made.model_card(EVIL)) + made.markdown()


def figures() -> list:
    curves = {EVIL: ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])}
    return [
        plots.lines(curves, EVIL, EVIL, EVIL),
        plots.panels({EVIL: curves}, EVIL, EVIL),
        plots.token_kl([EVIL, "b"], [0.1, 0.2], EVIL),
        plots.walks({EVIL: lft.shapes.beams(4).x0[None]}, lft.shapes.beams(4), EVIL),
    ]


def test_hostile_text_stays_text_on_every_surface(page, tmp_path):  # noqa: F811
    asked = lft.predict(EVIL, EVIL, "b")
    html = [asked._repr_html_(), table_of({EVIL: EVIL, "b": f"{EVIL} b"}, EVIL)]
    cell = nbformat.v4.new_code_cell("1")
    output = nbformat.v4.new_output
    cell.outputs = [output("display_data", {"text/html": text}) for text in html]
    cell.outputs.append(output("display_data", {"text/markdown": lft.table([{EVIL: EVIL}])._repr_markdown_()}))
    cell.outputs.append(output("stream", name="stdout", text=EVIL))
    for figure in figures():
        live = plots.display.themed(json.loads(figure.to_json()))
        picture = {"image/jpeg": {"alt": plots.alt_of(figure)}}
        cell.outputs.append(output("display_data", {FIGURE: live}, metadata=picture))
    cells = [nbformat.v4.new_markdown_cell(card().split("---", 2)[-1]), cell]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "hostile.ipynb")
    watched(page)
    page.goto(export_html(tmp_path / "hostile.ipynb").as_uri())
    page.wait_for_selector(".js-plotly-plot .gtitle")
    for figure in page.locator(".lft-figure").all():
        figure.scroll_into_view_if_needed()
        page.wait_for_function("figure => figure.dataset.drawn", arg=figure.element_handle())
        figure.evaluate(
            "figure => Plotly.Fx.hover(figure, [{curveNumber: 0,"
            " pointNumber: figure.data[0].type === 'heatmap' ? [0, 0] : 0}])"
        )
    page.wait_for_timeout(300)
    assert page.evaluate("window.hit") is None
    found = page.locator("img[onerror], [href^='javascript:'], [*|href^='javascript:']")
    assert found.evaluate_all("all => all.map(each => each.parentElement.outerHTML.slice(0, 400))") == []
    assert page.locator(f"text={RUN}").count() >= 8  # it is there, as text
    assert page.trouble == []
