"""The offline page: figures alive, equations drawn, nothing fetched."""

import base64
import json
import shutil
import sys

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
from browsing import watched
from bs4 import BeautifulSoup
from plotly.offline import get_plotlyjs

import lft_edu as lft
from lft_edu import plots
from lft_edu.export import export_html, mathml
from lft_edu.loading.assets import ASSETS
from lft_edu.loading.teachers import load_teacher
from lft_edu.plots import animate

EVIL = "</script><img src=x onerror=alert(1)><!-- <script>"
FIGURE = "application/vnd.plotly.v1+json"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # one pixel
WIDGET = "application/vnd.jupyter.widget-view+json"
TEXT = """# A page
Call $x_0$ the *start*, $j^* < 2$, and
$$L = \\mathbb{E}\\,\\lVert u(x_t, t) \\rVert^2$$
![beside](dot.png) ![elsewhere](https://example.com/dot.png)

<details><summary>Hint</summary>

It is a dot. <img alt="dot" src="dot.png"> <img src='none.png'>

</details>
"""


def moving_figure() -> dict:
    """Three frames, of which the last has y = (4, 6), with a slider and hostile hover text."""
    x = np.arange(2.0)
    figure = go.Figure(go.Scatter(x=x, y=x, text=[EVIL, EVIL], hovertemplate=EVIL))
    figure.update_layout(title=f"Lines &amp; <b>more</b> {EVIL}")
    frames = [go.Frame(name=str(k), data=[go.Scatter(x=x, y=2 * k + 2 * x)]) for k in range(3)]
    return animate(figure, frames, "step ").to_dict()


@pytest.fixture
def notebook(tmp_path):
    """A figure as ``plots.show`` leaves it, one as ``pio.show`` does, a picture, maths, and things from elsewhere."""
    v4, figure = nbformat.v4, moving_figure()
    still = {"image/png": {"alt": 'A "line" <rises>'}}
    live = {"image/jpeg": still["image/png"]}
    cell = v4.new_code_cell("1 + 1", execution_count=1, metadata={"tags": ["wide"]})
    cell.outputs = [
        v4.new_output("display_data", {FIGURE: figure, "image/jpeg": PNG, "text/plain": "A line"}, metadata=live),
        v4.new_output("display_data", {FIGURE: figure}),
        v4.new_output("display_data", {"image/png": PNG, "text/plain": "A dot"}, metadata=still),
        v4.new_output("display_data", {"text/latex": "$\\alpha$", "text/plain": "alpha"}),
        v4.new_output("display_data", {"text/html": "<script src='https://example.com/spy.js'></script><u>bare</u>"}),
        v4.new_output("display_data", {WIDGET: {"model_id": "a"}, "text/plain": "W"}),
    ]
    (tmp_path / "dot.png").write_bytes(base64.b64decode(PNG))
    path = tmp_path / "page.ipynb"
    book = v4.new_notebook(cells=[v4.new_markdown_cell(TEXT), cell], metadata={"title": "x"})
    book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {"a": {}}}}
    nbformat.write(book, path)
    return path


@pytest.fixture
def soup(notebook):
    return BeautifulSoup(export_html(notebook).read_text(encoding="utf-8"), "html.parser")


def test_page_is_written_beside_the_notebook_or_where_told(notebook, tmp_path):
    assert export_html(notebook) == tmp_path / "page.html"
    other = export_html(str(notebook), str(tmp_path / "other.html"))
    assert other.read_text(encoding="utf-8").count(get_plotlyjs()) == 1
    assert not list(tmp_path.glob("*.partial"))


def test_figures_are_alive_and_said_in_words(soup):
    boxes = soup.select("div.lft-figure[role=group]")
    assert boxes[0]["aria-label"] == 'A "line" <rises>'
    assert boxes[1]["aria-label"].startswith("Lines & ")
    assert len(boxes) == 2
    assert json.loads(boxes[0].script.string) == json.loads(json.dumps(moving_figure()))


def test_the_page_has_the_heading_of_the_lesson_as_its_title(notebook):
    def title(heading, **metadata):
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(heading)], metadata=metadata)
        nbformat.write(book, notebook)
        return BeautifulSoup(export_html(notebook).read_text(encoding="utf-8"), "html.parser").title.text

    assert title("Words.\n\n# 03 · *Flow* [Walking](x) #\n## More") == "03 · Flow Walking"
    assert title(f"# {EVIL}") == EVIL.strip()
    assert title("Words.") == "page"
    assert title("Words.", title="x") == "x"


def test_links_lead_only_to_pages_that_are_there(notebook, tmp_path):
    links = (
        "[a](a%20b.ipynb#here) [b](b.ipynb) [c](exercises/c.ipynb) [d](exercises) [e](#top) [f](https://x.org/f.ipynb)"
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(links)]), notebook)
    (tmp_path / "exercises").mkdir()
    for name in ("a b.html", "exercises/c.html", "b.ipynb"):
        (tmp_path / name).touch()
    page = BeautifulSoup(export_html(notebook).read_text(encoding="utf-8"), "html.parser")
    found = {a.text: a["href"] for a in page.select(".jp-MarkdownCell a")}
    assert found == {"a": "a%20b.html#here", "c": "exercises/c.html", "e": "#top", "f": "https://x.org/f.ipynb"}
    assert page.select_one(".jp-MarkdownCell p").text == "a b c d e f"


def test_text_of_a_figure_stays_text(soup):
    assert not soup.select("img[onerror], img[src=x]")
    assert all("</script" not in script.text and "<!--" not in script.text for script in soup.find_all("script"))


def test_cells_stay_as_nbconvert_has_them(soup):
    assert soup.find("u").text == "bare"
    assert "celltag_wide" in soup.select_one(".jp-CodeCell")["class"]
    assert soup.find("em").text == "start"
    assert "W" in [pre.text for pre in soup.find_all("pre")]
    assert "It is a dot." in soup.select_one("details > p").text
    still = soup.select_one(".jp-RenderedImage img")
    assert still["alt"] == 'A "line" <rises>'
    assert still["src"].endswith(PNG)


def test_equations_are_mathml(soup):
    assert [m["display"] for m in soup.find_all("math")] == ["inline", "inline", "block", "inline"]
    assert "$" not in soup.select_one(".jp-MarkdownCell").text
    assert soup.find("math").find("msub").text == "x0"


def test_a_norm_s_bars_grow_only_where_asked():
    assert mathml(r"\lVert x \rVert^2", "inline").count('stretchy="false"') == 2
    assert mathml(r"\left\lVert x \right\rVert", "inline").count('stretchy="true"') == 2
    assert 'form="prefix">&#x02212;' in mathml("x = -1", "inline")
    assert "form" not in mathml("x - 1", "inline")


def test_relations_are_set_as_relations():
    assert [o.text for o in BeautifulSoup(mathml(r"a \sim b \pm c \to d", "inline"), "html.parser")("mo")] == [*"∼±→"]


@pytest.mark.parametrize("tex", ["{", r"\left( x", "a & b", r"\text{a < b}"])
def test_equations_that_cannot_be_converted_show_their_source(tex):
    code = BeautifulSoup(mathml(tex, "inline"), "html.parser").find("code")
    assert code.text == tex


def test_only_equations_need_the_converter(notebook, monkeypatch):
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", None)
    with pytest.raises(ValueError, match="pip install latex2mathml"):
        export_html(notebook)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("Words.")]), notebook)
    assert "Words." in export_html(notebook).read_text(encoding="utf-8")


def test_nothing_is_asked_of_the_network(soup):
    policy = soup.select_one("meta[http-equiv=Content-Security-Policy]")
    assert "http" not in policy["content"]
    assert policy["content"].endswith("form-action 'none'")
    assert not policy.find_all_previous(["script", "link", "img", "style"])
    beside, elsewhere, in_html, missing = soup.select(".jp-MarkdownCell img")
    assert beside["src"] == in_html["src"] == "data:image/png;base64," + PNG
    assert missing["src"] == "none.png"
    assert [tag["src"] for tag in soup.select("[src^=http]")] == [elsewhere["src"], "https://example.com/spy.js"]
    assert "import(" not in "".join(s.text for s in soup.find_all("script", type="module"))


def test_a_page_is_written_whole_or_not_at_all(notebook, tmp_path, monkeypatch):
    def full(*paths):
        raise OSError("disk full")

    page = tmp_path / "page.html"
    page.write_text("before")
    monkeypatch.setattr("lft_edu.support.files.os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        export_html(notebook)
    assert page.read_text() == "before"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nbformat": 4}', "def f(): pass"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "a.ipynb").write_text(text)
    with pytest.raises(ValueError, match=r"a\.ipynb is not a notebook: give"):
        export_html(tmp_path / "a.ipynb")


@pytest.mark.parametrize(
    ("name", "out", "words"),
    [
        ("none.ipynb", "a.html", r"none\.ipynb is not a file: give"),
        ("page.ipynb", "nowhere/a.html", "nowhere is not a folder: create it"),
        ("page.ipynb", "page.ipynb", "ending in .html"),
        ("page.ipynb", ".", "ending in .html"),
    ],
)
def test_mistakes_are_one_line(notebook, name, out, words):
    with pytest.raises(ValueError, match=words) as error:
        export_html(notebook.parent / name, notebook.parent / out)
    assert "\n" not in str(error.value)


@pytest.fixture
def tab():
    """A browser tab that notes what leaves it and what goes wrong in it."""
    api = pytest.importorskip("playwright.sync_api")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("no chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = watched(browser.new_page())
        page.on("dialog", lambda dialog: (page.trouble.append(dialog.message), dialog.dismiss()))
        yield page
        browser.close()


def test_page_in_a_browser(tab, notebook):
    tab.goto(export_html(notebook).as_uri())
    figure = tab.locator(".js-plotly-plot").first
    figure.wait_for()
    box = figure.element_handle()
    assert tab.locator(".js-plotly-plot").count() == 2
    tab.wait_for_function("box => box.dataset.drawn && box._transitionData._frames.length === 3", arg=box)
    values, curve = "box => [...box._fullData[0].y]", figure.locator(".js-line")
    before, path = box.evaluate(values), curve.get_attribute("d")
    rail = figure.locator(".slider-rail-touch-rect")
    size = rail.bounding_box()
    rail.click(position={"x": size["width"] - 1, "y": size["height"] / 2}, force=True)
    tab.wait_for_function("box => box._fullData[0].y[0] === 4", arg=box)
    assert (before, box.evaluate(values)) == ([0, 1], [4, 6])
    assert curve.get_attribute("d") != path
    tab.wait_for_function("box => box.tabIndex === 0", arg=box)
    box.focus()
    tab.keyboard.press("ArrowLeft")  # without a mouse
    tab.wait_for_function("box => box._fullData[0].y[0] !== 4", arg=box)
    tab.keyboard.press("Space")
    tab.wait_for_function("box => box._fullData[0].y[0] === 4", arg=box)
    box.evaluate("box => Plotly.Fx.hover(box, [{curveNumber: 0, pointNumber: 0}])")
    figure.locator(".hovertext").wait_for()
    assert tab.locator("img[onerror]").count() == 0
    assert tab.locator("math").first.bounding_box()["width"] > 0
    assert tab.trouble == []


def test_the_answer_to_a_prediction_is_folded_and_its_figure_drawn_when_it_opens(tab, notebook):
    book = nbformat.read(notebook, as_version=4)
    book.cells[1].metadata["jupyter"] = {"outputs_hidden": True}
    nbformat.write(book, notebook)
    tab.goto(export_html(notebook).as_uri())
    answer = tab.locator("details.lft-answer")
    assert answer.count() == 1
    assert not answer.locator("u").is_visible()
    answer.locator("summary").focus()
    tab.keyboard.press("Enter")
    answer.locator(".js-plotly-plot .js-line").first.wait_for()
    assert answer.locator(".js-plotly-plot").first.bounding_box()["width"] > 300
    assert tab.trouble == []


def test_on_a_phone_labels_do_not_lie_on_each_other(tab, tmp_path):
    """The comparison names its marks in the legend, and the logit lens shows as many columns as fit."""
    results = json.loads((ASSETS / "results" / "ladder.json").read_text("utf-8"))
    teacher = load_teacher("bundled")
    lens = plots.lens(lft.capture(*teacher, "for name, value in sorted(self.items, key=len):"), every=6)
    cell = nbformat.v4.new_code_cell("1")
    cell.outputs = [
        nbformat.v4.new_output("display_data", {FIGURE: json.loads(figure.to_json())})
        for figure in (plots.comparison(results), lens)
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "narrow.ipynb")
    tab.set_viewport_size({"width": 400, "height": 1500})
    tab.goto(export_html(tmp_path / "narrow.ipynb").as_uri())
    tab.wait_for_function("() => document.querySelectorAll('[data-drawn]').length === 2")
    comparison, cells = tab.locator(".js-plotly-plot").all()
    assert {"Flow Walking", "mean shift, Procrustes"} <= set(comparison.locator(".legendtext").all_text_contents())
    comparison.locator(".updatemenu-button", has_text="time").click()
    assert comparison.locator(".annotation").count() == 0
    assert comparison.locator(".nsewdrag").bounding_box()["width"] > 200
    words = [word.bounding_box() for word in cells.locator(".textpoint text").all()]
    inside = cells.locator(".nsewdrag").bounding_box()
    words = [b for b in words if inside["x"] < b["x"] + b["width"] / 2 < inside["x"] + inside["width"]]
    assert len(words) == 4 * 5
    for i, a in enumerate(words):
        for b in words[:i]:
            shared = [min(a[x] + a[w], b[x] + b[w]) - max(a[x], b[x]) for x, w in (("x", "width"), ("y", "height"))]
            assert min(shared) < 3  # pixels; a line of text is higher than its letters
    assert tab.trouble == []
