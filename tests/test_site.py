"""The website: every link leads somewhere, every page works without a network, on a phone, too."""

from urllib.parse import unquote

import nbformat
import pytest
from browsing import CHROMIUM, watched
from bs4 import BeautifulSoup
from filelock import FileLock
from plotly.offline import get_plotlyjs
from test_export import moving_figure

import lft_edu
from lft_edu import cli, course
from lft_edu.loading.assets import NOTEBOOKS

pytest.importorskip("furo", reason="no Sphinx here: pip install -e '.[site]'")
from lft_edu.site import build, sources
from lft_edu.site.extension import Repository
from lft_edu.site.glossary import spelling, spellings

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of MyST, about a coming Sphinx
HOME = "https://github.com/owner/course"
LESSON = """# 00 · A start
## Where to?

A **vector field** in [code](../lft_edu/flow.py), a [file](../benchmarks/plane.py), the [exercises](exercises), the
[front page](../README.md), $x_0$ and a **word**.
"""
GLOSSARY = """# Glossary

## Flows

### Vector fields (velocities)

Arrows. Lesson [00].

[00]: ../notebooks/00_a.ipynb
"""


def soup(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A course of one lesson, one exercise, a glossary and one module; what builds it."""
    v4, notebooks = nbformat.v4, tmp_path / "notebooks"
    (notebooks / "exercises").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "glossary.md").write_text(GLOSSARY)
    figure = v4.new_output("display_data", {sources.FIGURE: moving_figure()}, metadata={"image/jpeg": {"alt": "Moves"}})
    cells = [v4.new_markdown_cell(LESSON), v4.new_code_cell("1 + 1", execution_count=1, outputs=[figure])]
    language = {"language_info": {"name": "python"}}
    nbformat.write(v4.new_notebook(cells=cells, metadata=language), notebooks / "00_a.ipynb")
    task = v4.new_markdown_cell("# Exercises 00\n\nTo [00](../00_a.ipynb).")
    nbformat.write(v4.new_notebook(cells=[task]), notebooks / "exercises" / "00_a.ipynb")
    monkeypatch.setattr(sources, "NOTEBOOKS", notebooks)
    monkeypatch.setattr(sources, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(course, "contents", lambda: {"00_a.ipynb": b"{}", "exercises/00_a.ipynb": b"{}"})
    monkeypatch.setattr(lft_edu, "_HOMES", {"flow": ()})
    return lambda **options: build(tmp_path / "out", **options).parent


def links(page) -> dict[str, str]:
    return {a.get_text(): a["href"] for a in page.select("article a[href]:not(.headerlink)")}


def test_without_a_repository_links_lead_only_to_pages(small):
    page = soup(small(repository="") / "notebooks" / "00_a.html")
    assert page.title.text.startswith("00 · A start")
    assert links(page) == {
        "Copy this lesson (.ipynb)": "../downloads/00_a.ipynb",
        "vector field": "../docs/glossary.html#vector-fields-velocities",
        "code": "../reference/flow.html#module-lft_edu.flow",
        "exercises": "exercises/index.html",
        "front page": "../docs/index.html",
    }
    assert "a file, the exercises" in page.article.get_text().replace("\n", " ")
    assert page.article.find("msub").text == "x0"
    figure = page.select_one(".lft-figure")
    assert figure["aria-label"] == "Moves"
    assert not page.select("img[onerror], img[src=x]")


def test_with_a_repository_lessons_open_elsewhere_and_files_are_found(small):
    found = links(soup(small(repository=f"{HOME}/tree/next") / "notebooks" / "00_a.html"))
    assert found["Open in Colab"].endswith("/github/owner/course/blob/next/notebooks/00_a.ipynb")
    assert found["Open in Binder"].endswith("/gh/owner/course/next?urlpath=lab%2Ftree%2Fnotebooks%2F00_a.ipynb")
    assert found["file"] == f"{HOME}/blob/next/benchmarks/plane.py"


def test_warnings_are_errors_where_asked(small, tmp_path):
    (tmp_path / "docs" / "glossary.md").write_text(f"{GLOSSARY}\n[Lost](../notebooks/01_gone.ipynb)")
    with pytest.raises(ValueError, match=r"mistakes:\ndocs/glossary.md:11.*01_gone"):
        small(repository="", strict=True)


def test_only_an_earlier_website_is_replaced(small, tmp_path):
    out = small(repository="")
    (out / "old.html").touch()
    assert not (small(repository="") / "old.html").exists()
    (out / "objects.inv").unlink()
    with pytest.raises(ValueError, match="out holds other files: give a new"):
        small(repository="")


@pytest.mark.parametrize(
    "address", ["github.com/a/b", "https://github.com/a", "https://example.com/a/b", "javascript:1"]
)
def test_a_repository_is_on_github(tmp_path, address):
    with pytest.raises(ValueError, match=r"is not a repository on GitHub: give https://github\.com/OWNER/NAME"):
        build(tmp_path / "out", address)


def test_addresses_of_a_repository():
    assert Repository.parse(f"{HOME}.git") == Repository.parse(f"{HOME}/") == Repository("owner/course", "main")
    assert Repository.parse("").colab("a.ipynb") == Repository.parse("").source("a") == ""


def test_words_are_found_in_the_plural_and_by_their_parts():
    assert spellings("Optimal transport (OT)") == {"optimal transport", "ot"}
    assert spellings("Euler or Heun methods:") == {"euler or heun method", "euler", "heun method"}
    assert spelling("Vector-fields (here).") == "vector field"
    assert spelling("Loss") == "loss"
    assert spelling("Six layers, flow matching.") == "six layers, flow matching"  # a sentence is not a term


def test_sphinx_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sphinx.application", None)
    with pytest.raises(ValueError, match=r"pip install 'lft_edu\[site\]'"):
        build(tmp_path / "out")


def test_a_terminal_asks_for_one_or_all(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("lft_edu.site.build", lambda *given: asked.append(given))
    assert cli.main(["export", "--all", "web", "--repository", HOME]) == 0
    assert asked == [("web", HOME)]
    for words in ([], ["a.ipynb", "--all", "web"]):
        with pytest.raises(SystemExit):
            cli.main(["export", *words])
    assert "--all" in capsys.readouterr().err


@pytest.fixture(scope="module")
def site(tmp_path_factory, worker_id):
    """The whole course, built once for all workers; Sphinx warns of nothing."""
    base = tmp_path_factory.getbasetemp()
    out = (base if worker_id == "master" else base.parent) / "site"
    with FileLock(f"{out}.lock"):
        if not out.exists():
            build(out, repository="", strict=True)
    return out


@pytest.mark.slow
def test_the_whole_course_is_there(site):
    books = {name.removesuffix(".ipynb") for name in course.contents() if name.endswith(".ipynb")}
    shown = {name for name in books if not name.startswith("exercises/solutions")}
    assert {
        p.relative_to(site / "notebooks").with_suffix("").as_posix() for p in site.rglob("notebooks/**/*.html")
    } == (shown | {"exercises/index"})
    for name in shown:
        assert (site / "downloads" / f"{name}.ipynb").read_bytes() == course.contents()[f"{name}.ipynb"]
    docs = NOTEBOOKS.parent / "docs"
    for path in docs.rglob("*.md"):
        assert (site / "docs" / path.relative_to(docs)).with_suffix(".html").exists()
    assert (site / "_static" / "plotly.min.js").read_text(encoding="utf-8") == get_plotlyjs()
    signature = soup(site / "reference" / "flow.html").find(id="lft_edu.flow.walk").get_text()
    assert "= midpoint_step" in signature


@pytest.mark.slow
def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path: soup(path) for path in site.rglob("*.html")}
    ids = {path: {tag["id"] for tag in page.find_all(id=True)} for path, page in pages.items()}
    checked, lost = 0, []
    for path, page in pages.items():
        for tag in page.find_all(lambda tag: tag.has_attr("href") or tag.has_attr("src")):
            link = tag.get("href") or tag.get("src")
            if link.startswith(("https://", "data:")):
                assert tag.name == "a" or link.startswith("data:"), f"{path.name} loads {link}"
                continue
            target, _, anchor = link.partition("#")
            file = (path.parent / unquote(target.partition("?")[0])).resolve() if target else path
            checked += 1
            if not file.is_file() or (anchor and file in ids and unquote(anchor) not in ids[file]):
                lost.append(f"{path.relative_to(site)}: {link}")
        policy = page.select_one("meta[http-equiv=Content-Security-Policy]")
        assert path.name == "index.html" or not policy.find_all_previous(["script", "link"])
    assert not lost
    assert checked > 5000


@pytest.fixture
def tab(page):
    """A browser tab without a network; ``trouble`` lists what leaves it and what goes wrong in it."""
    watched(page).context.set_offline(True)
    page.on("console", lambda message: page.trouble.append(message.text) if message.type == "error" else None)
    return page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")
def test_every_page_works_without_a_network_on_a_phone(tab, site):
    tab.set_viewport_size({"width": 400, "height": 800})
    wide = []
    for path in sorted({*site.rglob("*.html")} - {site / "index.html"}):  # that leads on to the first page
        tab.goto(path.as_uri())
        if tab.evaluate("document.documentElement.scrollWidth") > 400:
            wide.append(path.name)
        assert tab.trouble == [], path
    assert not wide


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")
def test_figures_play_code_folds_search_finds_and_a_lesson_is_copied(tab, site, tmp_path):
    tab.goto((site / "index.html").as_uri())
    tab.click("text=03 · Flow Walking")
    answer = tab.locator("details.hide", has=tab.locator(".lft-figure")).first  # to a prediction
    assert not answer.locator(".lft-figure").first.is_visible()
    answer.locator("summary").click()
    answer.locator(".lft-figure").first.scroll_into_view_if_needed()  # figures are drawn when they are near
    figure = tab.locator(".lft-figure[data-drawn]", has=tab.locator(".updatemenu-button")).first
    figure.wait_for()
    label = figure.locator(".slider-label").first
    before = label.text_content()
    figure.locator(".updatemenu-button", has_text="play").click()
    tab.wait_for_function("([label, before]) => label.textContent !== before", arg=[label.element_handle(), before])
    code = tab.locator(".cell_input").first
    assert code.is_visible()
    tab.click("text=Fold code")
    assert not code.is_visible()
    tab.click("text=04 · Hidden states as trajectories >> nth=0")
    tab.wait_for_url("**/04_*.html")
    assert not tab.locator(".cell_input").first.is_visible()  # the choice stays
    tab.fill("input[name=q]", "attention sink")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#search-results li >> text=04 · Hidden states as trajectories")
    with tab.expect_download() as download:
        tab.goto((site / "notebooks" / "03_flow_walking.html").as_uri())
        tab.click("text=Copy this lesson")
    download.value.save_as(tmp_path / download.value.suggested_filename)
    assert (tmp_path / "03_flow_walking.ipynb").read_bytes() == course.contents()["03_flow_walking.ipynb"]
    assert tab.trouble == []
