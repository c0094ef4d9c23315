"""The lecturer's slides: forty, each with notes and figures that are there; one file that asks for nothing."""

import base64
import hashlib
import itertools
import json
import re

import pytest
from browsing import CHROMIUM, FLAGS
from bs4 import BeautifulSoup

from lft_edu.loading.assets import NOTEBOOKS
from lft_edu.recipes import slides

TEXT = slides.SOURCE.read_text(encoding="utf-8")
_, SLIDES = slides.read(TEXT)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
EVIL = '"><script>alert(1)</script>'
SWIPE = """by => {
  const at = x => new Touch({identifier: 1, target: document.body, clientX: x, clientY: 100});
  dispatchEvent(new TouchEvent('touchstart', {touches: [at(300)]}));
  dispatchEvent(new TouchEvent('touchend', {changedTouches: [at(300 + by)]}));
}"""
NOTE = "Note (week 1, minute 10): Words."


def slide(body: str = "", title: str = "A title") -> str:
    return f"# Slides\n\n---\n\n## {title}\n\n{body}\n\n{NOTE} {EVIL}\n"


def visible(markdown: str) -> list[str]:
    """The words of a text, without tables and formulas."""
    return re.sub(r"^\|.*$|\$\$?.+?\$\$?", "", markdown, flags=re.M | re.S).split()


@pytest.fixture
def lessons(tmp_path):
    """A folder with one notebook: two figures under its second heading, the first with hostile alt text."""
    outputs = [
        {"output_type": "display_data", "data": {"image/png": PIXEL}, "metadata": {"image/png": {"alt": EVIL}}},
        {"output_type": "stream", "name": "stdout", "text": ["no figure"]},
        {"output_type": "display_data", "data": {"image/jpeg": [PIXEL[:20] + "\n", PIXEL[20:]]}, "metadata": {}},
    ]
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# A lesson\n", "### 1 · Why\n", "Words."]},
        {"cell_type": "markdown", "metadata": {}, "source": "### 2 · No way around it"},
        {"cell_type": "code", "metadata": {}, "source": "", "outputs": outputs, "execution_count": 1},
    ]
    book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "a_lesson.ipynb").write_text(json.dumps(book), encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def soup():
    return BeautifulSoup(slides.page(TEXT), "html.parser")


@pytest.mark.parametrize("one", [figure for slide in SLIDES for figure in slide.figures], ids=str)
def test_each_figure_is_in_its_lesson_and_described(one):
    number, heading, notebook = one
    image = BeautifulSoup(slides.figure(number, heading, NOTEBOOKS / notebook), "html.parser").img
    assert image["src"].startswith("data:image/")
    assert len(image["alt"]) > 20


def test_there_are_forty_slides_and_twelve_for_guests(soup):
    assert len(soup.select("section")) == len(SLIDES) == 40
    assert [sum(one.week == week for one in SLIDES) for week in (1, 2, 3, 4)] == [10] * 4
    stars = [line for line in TEXT.splitlines() if line.startswith("## ") and line.endswith("★")]
    assert len(soup.select("section.star")) == len(stars) == sum(one.guest is not None for one in SLIDES) == 12
    assert soup.title.text == "Slides"


def test_minutes_follow_each_other():
    assert all(a.minute < b.minute for a, b in itertools.pairwise(SLIDES) if a.week == b.week)
    guest = [one.guest for one in SLIDES if one.guest is not None]
    assert guest == sorted(set(guest))
    assert guest[0] == 0
    assert guest[-1] < 45
    assert max(one.minute for one in SLIDES) < 70  # the last twenty minutes are for exercises


@pytest.mark.parametrize("one", SLIDES, ids=lambda one: one.title)
def test_a_slide_says_little_and_its_notes_say_what_to_do(one):
    assert len(visible(one.body)) <= 35
    assert one.figures or "|---" in one.body or "$" in one.body
    assert 40 <= len(one.note.split()) <= 90
    assert "**Misconception:**" in one.note
    assert re.search(r"\*\*Ask\b", one.note)
    assert "★" not in one.title


def test_the_page_asks_for_nothing(soup):
    policy = soup.select_one("meta[http-equiv=Content-Security-Policy]")["content"]
    assert policy.startswith("default-src 'none'")
    assert not soup.select("link, iframe, object, embed, script[src], video, audio, [srcset]")
    assert {image["src"].partition(":")[0] for image in soup.select("img")} == {"data"}
    assert "url(" not in soup.style.text
    assert "@import" not in soup.style.text
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\b", soup.script.text)
    assert len(soup.select("script")) == 1


def test_the_script_that_runs_is_the_one_that_is_allowed(soup):
    digest = base64.b64encode(hashlib.sha256(soup.script.text.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in soup.select_one("meta[http-equiv]")["content"]


def test_formulas_and_tables_are_set(soup):
    assert len(soup.select("math[display=block]")) >= 5
    assert "$" not in "".join(section.text for section in soup.select("section"))
    assert len(soup.select("table")) >= 8
    assert "<!--" not in str(soup.main)


def test_the_guest_lecture_is_a_file_of_its_own(lessons):
    second = f"\n---\n\n## Second ★\n\n{NOTE}".replace("10)", "16; guest, minute 0)")
    text = slide() + second
    assert [s.h2.text for s in BeautifulSoup(slides.page(text, lessons), "html.parser")("section")] == [
        "A title",
        "Second",
    ]
    (one,) = BeautifulSoup(slides.page(text, lessons, guest=True), "html.parser")("section")
    assert one.h2.text == "Second"
    assert one.aside.h3.text == "Week 1, minute 16 · ★ guest lecture, minute 0"


def test_hostile_text_stays_text(lessons):
    body = f"{EVIL}\n\n`{EVIL}`\n\n| a |\n|---|\n| {EVIL} |\n\n[x](javascript:alert(1))\n\n```mermaid\n{EVIL}\n```\n"
    body += "\n[Figure 1 of *No way around it*](a_lesson.ipynb)\n"
    page = BeautifulSoup(slides.page(slide(body, title=EVIL), lessons), "html.parser")
    assert len(page.select("script")) == 1
    assert page.h2.text == EVIL
    assert page.select_one(".figures img")["alt"] == EVIL
    assert "javascript" not in page.select_one(".body a")["href"]
    assert page.select_one(".body p").text == page.td.text == page.select_one("code").text == EVIL
    assert EVIL in page.aside.text
    assert not page.select("[onerror]")


def test_references_forgive_numbers_case_and_small_changes(lessons):
    notebook = lessons / "a_lesson.ipynb"
    for heading in ("No way around it", "3 · no way round it", "NO WAY AROUND IT"):
        assert f'src="data:image/jpeg;base64,{PIXEL}"' in slides.figure(2, heading, notebook)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[Figure 3 of *No way around it*](a_lesson.ipynb)", "stores 2 figures under “no way around it”, and number 3"),
        ("[Figure 0 of *No way around it*](a_lesson.ipynb)", "number 0 is asked for"),
        ("[Figure 1 of *Why*](a_lesson.ipynb)", "stores 0 figures under “why”"),
        ("[Figure 1 of *Elsewhere*](a_lesson.ipynb)", "no heading “Elsewhere”; it has: a lesson, why, no way"),
        ("[Figure 1 of *Why*](b_lesson.ipynb)", "is not there; in this folder are: a_lesson.ipynb"),
        ("![](https://example.com/x.png)", "figures of lessons only"),
    ],
)
def test_what_is_not_there_is_named_with_its_slide(lessons, body, message):
    with pytest.raises(ValueError, match=f"Slide “A title”.*{re.escape(message)}"):
        slides.page(slide(body), lessons)


def test_a_slide_without_a_note_or_a_heading_is_named():
    with pytest.raises(ValueError, match="Slide 1 lacks a note"):
        slides.read("# Slides\n\n---\n\n## A title\n\nWords.\n")
    with pytest.raises(ValueError, match="Slide 1 lacks a heading"):
        slides.read(f"# Slides\n\n---\n\nWords.\n\n{NOTE}\n")


def test_the_command_writes_the_file_or_says_why_not(tmp_path, capsys, monkeypatch, lessons):
    source = tmp_path / "slides.md"
    source.write_text(slide("Words."), encoding="utf-8")
    monkeypatch.setattr(slides, "SOURCE", source)
    slides.main([str(tmp_path / "out.html")])
    assert "Words." in (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "out.html: 0.0 MB" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is not a folder: create it"):
        slides.main([str(tmp_path / "none" / "out.html")])
    monkeypatch.setattr(slides, "SOURCE", tmp_path / "none.md")
    with pytest.raises(SystemExit, match="made in a clone"):
        slides.main([str(tmp_path / "out.html")])


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_keys_touch_and_the_speakers_window(lessons):
    """One browser: moves by key and by finger, the overview, the guest lecture, and two windows that go together."""
    from playwright.sync_api import sync_playwright

    parts = [
        f"\n---\n\n## Slide {n}\n\n{NOTE.replace('10)', time)}\n"
        for n, time in enumerate(("1)", "2; guest, minute 0)", "3)"))
    ]
    (lessons / "slides.html").write_text(slides.page("# Slides\n" + "".join(parts), lessons), encoding="utf-8")
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(has_touch=True, color_scheme="dark")
        page, asked = context.new_page(), []
        context.on("request", lambda request: asked.append(request.url))
        page.goto((lessons / "slides.html").as_uri())

        def titles(window=page):
            return [title.inner_text() for title in window.locator("h2:visible").all()]

        def swipe(by: int):
            page.evaluate(SWIPE, by)

        assert "dark" in page.locator("html").get_attribute("class")
        assert titles() == ["Slide 0"]
        page.keyboard.press("ArrowRight")
        assert (titles(), page.url.endswith("#s2")) == (["Slide 1"], True)
        swipe(-100)
        assert titles() == ["Slide 2"]
        swipe(20)
        assert titles() == ["Slide 2"]
        swipe(100)
        assert titles() == ["Slide 1"]
        with page.expect_popup() as opened:
            page.keyboard.press("s")
        speaker = opened.value
        assert speaker.locator("aside:visible").inner_text().endswith("Words.")
        speaker.keyboard.press("End")
        page.wait_for_url("**#s3")
        assert titles() == titles(speaker) == ["Slide 2"]
        page.keyboard.press("Home")
        speaker.wait_for_url("**#s1")
        page.keyboard.press("o")
        assert titles() == ["Slide 0", "Slide 1", "Slide 2"]
        page.locator("section").nth(2).click()
        assert titles() == ["Slide 2"]
        page.keyboard.press("g")
        assert titles() == ["Slide 1"]
        page.emulate_media(media="print")
        assert page.locator("aside:visible").count() == 0
        page.goto((lessons / "slides.html").as_uri() + "?notes")
        assert page.locator("aside:visible").count() == 3
        assert {url.partition(":")[0] for url in asked} == {"file"}
        browser.close()
