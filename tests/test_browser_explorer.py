"""The trajectory explorer where it will be used: an exported file without a network, and JupyterLab."""

import csv
import json
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browsing import CHROMIUM, open_notebook, run_all

import lft_edu as lft
from lft_edu.explorer import naming
from lft_edu.plots import COLORS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")]
HOSTILE = (
    "x = '<b>bold</b>'\n</script><script>alert(1)</script> <img src=x onerror=alert(2)> 🙂 שלום \u202e &amp; \\ ${1} `"
)
TEACHER, STUDENT = (
    [int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in (naming.TEACHER, COLORS["flow-walking"])
)
EXPLORER = "document.querySelector('.lft-explorer').explorer"


@pytest.fixture(scope="module")
def exported(bundled, tmp_path_factory):
    """A page about hostile text, and the explorer that wrote it."""
    teacher, tokenizer = bundled
    names = ("flow-walking", "ridge")
    students = {name: lft.load_student(f"bundled/{name}-6-18", teacher) for name in names}
    explorer = lft.TrajectoryExplorer(teacher, students, tokenizer, text=HOSTILE)
    explorer.depth, explorer.selected = 6.0, [3]
    return explorer, explorer.export_html(tmp_path_factory.mktemp("export") / "page.html")


@pytest.fixture
def events(page):
    """What a page should never do: ask for anything elsewhere, complain, open a dialog."""
    seen = []
    page.on(
        "request", lambda r: None if re.match(r"(file|data|blob|https?://127\.0\.0\.1)", r.url) else seen.append(r.url)
    )
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
    page.on("console", lambda m: seen.append(m.text) if m.type == "error" else None)
    return seen


def open_page(page, path):
    page.context.set_offline(True)
    page.goto(path.as_uri())
    page.wait_for_selector("[data-scene='1']")


def color_at(page, x, y):
    """The picture's color at a CSS pixel."""
    return page.evaluate(
        "([x, y]) => { const c = document.querySelector('canvas'), r = c.width / c.clientWidth;"
        "return [...c.getContext('2d').getImageData(x * r, y * r, 1, 1).data].slice(0, 3); }",
        [x, y],
    )


def test_a_hostile_text_is_shown_as_it_stands_without_a_network(page, events, exported):
    explorer, path = exported
    assert path.stat().st_size < 6e6
    open_page(page, path)
    tokens = page.locator(".tokens button")
    assert tokens.count() == len(explorer.scene["tokens"])
    shown = "".join(tokens.all_text_contents())
    assert "'<b>bold</b>'⏎</script><script>alert(1)</script>·<img·src=x·onerror=alert(2)>" in shown
    assert r"\xe2\x80\xae" in shown  # the character itself, a right-to-left override, would turn the text after it
    assert "\u202e" not in page.locator(".lft-explorer").inner_text()
    assert page.locator(".lft-explorer b, .lft-explorer img, .lft-explorer script").count() == 0
    assert page.locator("textarea").input_value() == HOSTILE.replace("\r\n", "\n")
    assert not events


def test_everything_but_the_kernel_s_work_works_in_the_file(page, events, exported):
    explorer, path = exported
    open_page(page, path)
    # as it was exported
    assert page.locator(".where").text_content() == "depth 6 of 24"
    assert page.locator(".tokens button[aria-pressed=true]").count() == 1
    badge = page.locator(".badge").text_content()
    found = explorer.scene["models"][1]["distortion"]["PCA 2-D"]
    assert f"{round(100 * found['hidden'])} % of the squared distance teacher–student is outside" in badge
    assert f"rank correlation of projected and true distances {found['agreement']:.2f}" in badge

    # a token is selected: text, picture, lens and curves follow
    page.click("[data-token='2']")
    assert "token 2" in page.locator(".lens .caption").text_content()
    assert page.locator(".tokens button.focus").get_attribute("data-token") == "2"
    (tx, ty), (sx, sy) = (page.evaluate(f"{EXPLORER}.picture.spots[{m}][2]") for m in (0, 1))
    assert color_at(page, sx, sy) == STUDENT  # at depth 6 the student's square lies on the teacher's circle
    assert "Nearest in all dimensions" in page.locator(".near").text_content()

    # scrub by keyboard, layer by layer: the marks part
    page.focus("input[type=range]")
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    assert page.locator(".where").text_content() == "depth 15 of 24"
    assert page.locator("tr.now").get_attribute("data-depth") == "15"
    (tx, ty), (sx, sy) = (page.evaluate(f"{EXPLORER}.picture.spots[{m}][2]") for m in (0, 1))
    assert (tx - sx) ** 2 + (ty - sy) ** 2 > 25
    assert color_at(page, tx, ty) == TEACHER
    assert color_at(page, sx, sy) == STUDENT

    # hover: token, depth, norm, five words
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + tx, box["y"] + ty)
    tip = page.locator(".tip")
    assert re.search(r"token \d+ · (teacher|Flow Walking) · depth 1[45][.\d]* · norm \d", tip.text_content())
    assert tip.locator("div").count() == 5

    # another map, another number of dimensions: the badge says so, the picture changes
    before = page.evaluate(f"{EXPLORER}.picture.spots[0][2]")
    page.check("input[value=UMAP]")
    assert "no unit" in page.locator(".badge").text_content()
    assert page.evaluate(f"{EXPLORER}.picture.spots[0][2]") != before
    page.check("input[value='3-D']")
    assert page.get_attribute(".lft-explorer", "data-view") == "UMAP 3-D"
    flat = page.evaluate(f"{EXPLORER}.picture.spots[0][2]")
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 240, steps=4)
    page.mouse.up()
    assert page.evaluate(f"{EXPLORER}.picture.spots[0][2]") != flat  # it turned

    # the other student is in the file, too; what takes a kernel says so
    page.select_option("[data-control=student]", "ridge")
    page.wait_for_selector("[data-scene='2']")
    assert page.get_attribute(".lft-explorer", "data-view") == "UMAP 3-D"  # a new scene on the map one looks at
    assert "ridge: layers 6–18 → ridge" in page.locator(".legend").text_content()
    assert page.locator("[data-control=solver]").is_disabled()
    assert page.locator("textarea").is_disabled()

    # play runs to the end and stops
    page.evaluate(f"{EXPLORER}.go(22)")
    page.click("button.play")
    page.wait_for_selector("text=depth 24 of 24")
    page.wait_for_selector("button.play:has-text('▶')")
    assert not events
    if where := os.environ.get("LFT_EDU_SCREENSHOTS"):
        page.screenshot(path=f"{where}/explorer.png", full_page=True)


def test_controls_are_reached_and_worked_by_keyboard(page, exported):
    open_page(page, exported[1])
    reached = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName + (document.activeElement.type ?? '')"))
    assert page.locator(".tokens button[tabindex='0']").count() == 1  # the tokens are one stop
    page.locator(".tokens button[tabindex='0']").focus()
    start = int(page.evaluate("document.activeElement.dataset.token"))
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.token") == str(start - 1)
    assert {"BUTTONbutton", "SELECTselect-one", "CANVAS", "INPUTrange", "INPUTradio", "DIV"} <= reached
    page.focus("canvas")
    before = page.evaluate(f"{EXPLORER}.picture.spots[0][1]")
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(f"{EXPLORER}.picture.spots[0][1]") != before
    page.keyboard.press("0")
    assert page.evaluate(f"{EXPLORER}.picture.spots[0][1]") == pytest.approx(before)
    page.focus("[data-token='1']")
    page.keyboard.press("Space")
    assert page.locator("[data-token='1']").get_attribute("aria-pressed") == "true"


def test_two_students_are_compared_saved_and_shared(page, events, exported):
    open_page(page, exported[1])
    page.select_option("[data-control=second]", "ridge")
    page.wait_for_selector("[data-scene='2']")
    assert page.locator(".lens thead th").all_text_contents() == ["depth", "teacher", "Flow Walking", "ridge"]
    assert page.locator("[data-control=second] option[value=flow-walking]").is_disabled()
    assert len(page.evaluate(f"{EXPLORER}.picture.spots")) == 3
    assert page.locator(".curves svg").count() == 4
    assert "teacher–Flow Walking is outside" in page.locator(".badge").text_content()
    before = page.locator(".curves .title").first.text_content()
    page.select_option("[data-control=target]", "1")
    following = exported[0].scene["tokens"][4]
    assert page.locator(".curves .title").first.text_content() == f"probability of “{following}”" != before

    # picture and data
    files = {}
    for name in ("PNG", "SVG", "CSV"):
        with page.expect_download() as saved:
            page.click(f".save button:has-text('{name}')")
        files[name] = Path(saved.value.path()).read_bytes()
    assert files["PNG"].startswith(b"\x89PNG")
    picture = ElementTree.fromstring(files["SVG"])
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}path")) > 5
    assert b"<script" not in files["SVG"]
    rows = list(csv.DictReader(files["CSV"].decode().splitlines()))
    tokens = exported[0].scene["tokens"]
    assert [json.loads(row["token"]) for row in rows if row["model"] == '"teacher"' and row["depth"] == "0"] == tokens
    assert {json.loads(row["model"]) for row in rows} == {"teacher", "Flow Walking", "ridge"}
    assert not [row for row in rows if row["token"][0] in "=+-@"]

    # a link restores the view, and what is not there is ignored
    page.check("input[value=UMAP]")
    page.evaluate(f"{EXPLORER}.go(9)")
    page.click("[data-token='5']")
    page.click("text=link to this view")
    page.wait_for_selector(".save [role=status]:has-text('view')")
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector("[data-scene='2']")
    assert page.input_value("[data-control=second]") == "ridge"
    assert page.locator(".where").text_content() == "depth 9 of 24"
    assert page.get_attribute(".lft-explorer", "data-view") == "UMAP 2-D"
    assert page.locator(".tokens button[aria-pressed=true]").count() == 2
    page.goto("about:blank")
    page.goto(address.split("#")[0] + "#student=__proto__&second=<b>&tokens=1,999,x&focus=-3&view=no&depth=1e9")
    page.wait_for_selector("[data-scene]")
    assert page.locator(".tokens button[aria-pressed=true]").count() == 1
    assert page.locator(".where").text_content() == "depth 24 of 24"
    assert not events


def test_the_page_fits_a_phone_and_the_dark(page, exported):
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 400, "height": 900})
    open_page(page, exported[1])
    assert page.get_attribute(".lft-explorer", "data-theme") == "dark"
    assert max(color_at(page, 3, 3)) < 40
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    play, canvas, lens = (page.locator(place).bounding_box() for place in ("button.play", "canvas", ".lens"))
    assert canvas["y"] < play["y"] < lens["y"]
    assert play["y"] - (canvas["y"] + canvas["height"]) < 20
    page.set_viewport_size({"width": 1400, "height": 900})
    page.wait_for_timeout(300)
    canvas, lens, play = (page.locator(place).bounding_box() for place in ("canvas", ".lens", "button.play"))
    assert lens["x"] > canvas["x"] + canvas["width"] - 2
    assert play["y"] + play["height"] < 900
    page.click("text=What am I seeing?")
    assert page.locator(".help p").first.is_visible()


def test_a_picture_of_the_page_is_written(exported, tmp_path):
    import PIL.Image

    explorer, _ = exported
    picture = PIL.Image.open(explorer.export_png(tmp_path / "page.png", width=900, height=800)).convert("RGB")
    assert picture.size == (1800, 1600)
    colors = {color for _, color in picture.getcolors(2**22)}
    assert {tuple(TEACHER), tuple(STUDENT)} <= colors  # both are in it
    assert list(tmp_path.iterdir()) == [tmp_path / "page.png"]


def test_in_jupyterlab_text_steps_solver_and_mistakes_go_through_the_kernel(page, events, lab):
    open_notebook(page, lab, "explorer.ipynb")
    before = len(events)
    run_all(page, until="Next token after", patience=90)
    scene = lambda n: page.wait_for_selector(f"[data-scene='{n}']")  # noqa: E731
    scene(1)
    assert page.locator(".tokens button").count() == 5

    page.evaluate(  # remember whether the page said that it was computing
        "() => { const root = document.querySelector('.lft-explorer'); window.busy = [];"
        "new MutationObserver(() => busy.push(root.getAttribute('aria-busy')))"
        ".observe(root, { attributes: true, attributeFilter: ['aria-busy'] }); }"
    )
    page.fill(".lft-explorer textarea", "<b>if</b> x == 1:")
    page.press(".lft-explorer textarea", "Enter")
    scene(2)
    page.wait_for_function("() => window.busy.join() === 'true,false'")
    assert "".join(page.locator(".tokens button").all_text_contents()) == "<b>if</b>·x·==·1:"
    assert page.locator(".lft-explorer b").count() == 0

    end = page.evaluate(f"{EXPLORER}.scene.kl[3]")
    page.fill(".lft-explorer input[type=number]", "1")
    page.press(".lft-explorer input[type=number]", "Enter")  # JupyterLab does not take the key
    scene(3)
    assert "midpoint × 1" in page.locator(".legend").text_content()
    page.select_option("[data-control=solver]", "euler")
    scene(4)
    assert "euler × 1" in page.locator(".legend").text_content()
    assert page.evaluate(f"{EXPLORER}.scene.kl[3]") != end  # another walk of the same weights ends elsewhere

    page.select_option("[data-control=states]", "layernorm")
    scene(5)
    assert "layernorm" in page.evaluate(f"{EXPLORER}.scene.views['PCA 2-D'].axes[0]")
    page.check("input[value=UMAP]")
    page.check("input[value='3-D']")
    assert page.get_attribute(".lft-explorer", "data-view") == "UMAP 3-D"
    page.click("[data-token='2']")
    page.focus(".lft-explorer input[type=range]")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".where").text_content() == "depth 23 of 24"

    # nor any other: in the notebook a and b insert cells, d d deletes one, 0 0 asks to restart the kernel
    cells = page.locator(".jp-Cell").count()
    for place in ("input[type=range]", "[data-token='1']", "canvas", ".lens", "button.play"):
        page.focus(f".lft-explorer {place}")
        for key in ("a", "b", "0", "0", "d", "d", "x"):
            page.keyboard.press(key)
    page.wait_for_timeout(300)
    assert page.locator(".jp-Cell").count() == cells
    assert page.locator(".jp-Dialog").count() == 0

    # example texts, and two students at once
    page.click(".lft-explorer button.example >> nth=1")
    scene(6)
    assert "".join(page.locator(".tokens button").all_text_contents()) == "x·=·[1,·2,·3,·4,·5]"
    page.select_option("[data-control=second]", "ridge")
    scene(7)
    assert page.locator(".lens thead th").all_text_contents() == ["depth", "teacher", "Flow Walking", "ridge"]
    page.select_option("[data-control=second]", "")
    scene(8)
    page.fill(".lft-explorer textarea", "<b>if</b> x == 1:")
    page.press(".lft-explorer textarea", "Enter")
    scene(9)
    page.click("[data-token='2']")

    # JupyterLab's dark theme
    assert page.get_attribute(".lft-explorer", "data-theme") == "light"
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    page.wait_for_selector(".lft-explorer[data-theme=dark]")
    assert max(color_at(page, 3, 3)) < 40
    page.evaluate("document.body.dataset.jpThemeLight = 'true'")

    # a selection belongs to its text; Python can make one, too
    assert page.locator(".tokens button[aria-pressed=true]").count() == 1
    page.fill(".lft-explorer textarea", "import os")
    page.press(".lft-explorer textarea", "Enter")
    scene(10)
    assert page.locator(".tokens button[aria-pressed=true]").count() == 0
    assert page.get_attribute(".lft-explorer", "data-view") == "UMAP 3-D"
    page.fill(".lft-explorer textarea", "<b>if</b> x == 1:")
    page.press(".lft-explorer textarea", "Enter")
    scene(11)

    # a mistake is said in the app, and the picture stays
    page.fill(".lft-explorer textarea", "")
    page.press(".lft-explorer textarea", "Enter")
    page.wait_for_selector("[role=alert]:has-text('type some Python')")
    assert "".join(page.locator(".tokens button").all_text_contents()) == "<b>if</b>·x·==·1:"
    page.fill(".lft-explorer input[type=number]", "65")
    page.press(".lft-explorer input[type=number]", "Tab")
    page.wait_for_selector("[role=alert]:has-text('from 1 to 64')")
    assert page.input_value(".lft-explorer input[type=number]") == "1"
    assert not events[before:]
