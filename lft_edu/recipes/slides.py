"""Make the lecturer's slides: docs/teaching/slides.md with the lessons' stored figures, as one HTML file.

    python -m lft_edu.recipes.slides slides.html            # a few seconds; the file opens offline and asks for nothing
    python -m lft_edu.recipes.slides guest.html --guest     # the guest lecture alone

A link such as ``[Figure 1 of *Crossing pairs*](../../notebooks/02_flow_matching.ipynb)``, on a line of its own, becomes
the first figure that the lesson stores under that heading. The heading's number and small changes of its wording do not
matter.
"""

import argparse
import base64
import difflib
import functools
import hashlib
import html
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

from nbconvert.filters.markdown_mistune import MarkdownWithMath

from ..export import _Renderer as LessonRenderer
from ..loading.assets import ASSETS, NOTEBOOKS
from ..support.files import atomic_write
from .slides_page import BUTTONS, SCRIPT, STYLE

SOURCE = ASSETS.parent / "docs" / "teaching" / "slides.md"
FIGURE = re.compile(r"^\[Figure (\d+) of \*(.+?)\*\]\(\S*?([\w.-]+\.ipynb)\)\s*$", re.M)
NOTE = re.compile(r"^Note \(week (\d+), minute (\d+)(?:; guest, minute (\d+))?\):\s+", re.M)


class Slide(NamedTuple):
    """One slide; ``figures``: (number, heading, notebook) of each; ``guest``: minute of the guest lecture, or None."""

    title: str
    body: str
    figures: list[tuple[int, str, str]]
    note: str
    week: int
    minute: int
    guest: int | None


def read(text: str) -> tuple[str, list[Slide]]:
    """Parse the Markdown of the slides.

    Args:
        text: a first part with the title of the whole; then, after a line ``---``, each slide: a heading ``##``, its
            body and figures, and a last paragraph ``Note (week 1, minute 10; guest, minute 0): …``.

    Returns:
        The title, and the slides.

    Raises:
        ValueError: a slide lacks its heading or its note.
    """
    preface, *parts = re.split(r"^---\s*$", re.sub(r"<!--.*?-->", "", text, flags=re.S), flags=re.M)
    found = []
    for number, part in enumerate(parts, 1):
        heading, note = re.match(r"\s*## (.+?)(?: ★)?\s*\n", part), NOTE.search(part)
        if not heading or not note:
            missing = "a note: `Note (week 1, minute 10): …`" if heading else "a heading: `## A title`"
            raise ValueError(f"Slide {number} lacks {missing}.")
        body = part[heading.end() : note.start()]
        figures = [(int(n), name, notebook) for n, name, notebook in FIGURE.findall(body)]
        week, minute, guest = (None if one is None else int(one) for one in note.groups())
        found.append(
            Slide(heading[1], FIGURE.sub("", body).strip(), figures, part[note.end() :].strip(), week, minute, guest)
        )
    return preface.strip().partition("\n")[0].lstrip("# "), found


def _plain(heading: str) -> str:
    return re.sub(r"^(\d+ · )?(optional: )?", "", heading.strip().lower())


@functools.lru_cache(maxsize=16)
def _stored(notebook: Path) -> dict[str, list[tuple[str, str, str]]]:
    """The figures of a notebook: heading → (MIME type, base64, alt text) of each."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    heading = ""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            for title in re.findall(r"^#+ +(.+)$", "".join(cell["source"]), re.M):
                found.setdefault(heading := _plain(title), [])
        for output in cell.get("outputs", []):
            kind = next((k for k in ("image/jpeg", "image/png") if k in output.get("data", {})), None)
            if kind:
                alt = output.get("metadata", {}).get(kind, {}).get("alt", "")
                found.setdefault(heading, []).append((kind, "".join("".join(output["data"][kind]).split()), alt))
    return found


def figure(number: int, heading: str, notebook: Path) -> str:
    """Return a figure that a lesson stores, as an ``<img>`` with its alt text.

    Args:
        number: which of the figures under the heading, from 1.
        heading: of the section; case, numbering and small differences do not matter.

    Raises:
        ValueError: no such notebook, heading or figure.
    """
    if not notebook.is_file():
        beside = sorted(path.name for path in notebook.parent.glob("*.ipynb"))
        raise ValueError(f"{notebook} is not there; in this folder are: {', '.join(beside) or 'no notebooks'}.")
    sections = _stored(notebook)
    near = difflib.get_close_matches(_plain(heading), sections, n=1, cutoff=0.8)
    if not near:
        raise ValueError(f"{notebook.name} has no heading “{heading}”; it has: {', '.join(filter(None, sections))}.")
    images = sections[near[0]]
    if not 1 <= number <= len(images):
        raise ValueError(
            f"{notebook.name} stores {len(images)} figures under “{near[0]}”, and number {number} is asked for: "
            "run the lesson and store its outputs, or change the number."
        )
    kind, data, alt = images[number - 1]
    return f'<img src="data:{kind};base64,{html.escape(data)}" alt="{html.escape(alt)}">'


class _Renderer(LessonRenderer):
    """The renderer of exported lessons, with HTML and code escaped, harmful links removed, images refused."""

    def image(self, text: str, url: str, title: str | None = None) -> str:
        raise ValueError(f"A slide shows figures of lessons only: [Figure 1 of *Heading*](lesson.ipynb), not {url}.")

    def block_code(self, code: str, info: str | None = None) -> str:
        return f"<pre>{html.escape(code)}</pre>"


def _html(markdown: str) -> str:
    return MarkdownWithMath(_Renderer(escape=True, allow_harmful_protocols=False)).render(markdown)


def page(text: str, notebooks: Path = NOTEBOOKS, guest: bool = False) -> str:
    """Return the slides as an HTML page that loads nothing.

    Args:
        text: the Markdown, as :func:`read` takes it.
        notebooks: the folder of the lessons.
        guest: of the guest lecture only.

    Raises:
        ValueError: a slide cannot be read, or a figure is not there; the message names the slide.
    """
    title, slides = read(text)
    slides = [slide for slide in slides if slide.guest is not None or not guest]
    parts = []
    for number, slide in enumerate(slides, 1):
        try:
            images = "".join(figure(n, heading, notebooks / name) for n, heading, name in slide.figures)
            images = images and f'<div class="figures">{images}</div>'
            body, note = _html(slide.body), _html(slide.note)
        except ValueError as error:
            raise ValueError(f"Slide “{slide.title}”: {error}") from None
        mark, when = ("", "") if slide.guest is None else (" ★", f" · ★ guest lecture, minute {slide.guest}")
        parts.append(
            f'<section id="s{number}" tabindex="-1" class="{"star" if mark else ""}">'
            f'<h2>{html.escape(slide.title)}</h2><div class="body">{body}</div>'
            f"{images}"
            f"<footer>{number} / {len(slides)} · week {slide.week}{mark}</footer>"
            f"<aside><h3>Week {slide.week}, minute {slide.minute}{when}</h3>{note}</aside></section>"
        )
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main>{BUTTONS}<script>{SCRIPT}</script></body></html>\n"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the HTML file to write")
    parser.add_argument("--guest", action="store_true", help="the guest lecture alone")
    args = parser.parse_args(arguments)
    try:
        if not SOURCE.is_file():
            raise ValueError(f"{SOURCE} is not there: slides are made in a clone of the course.")
        if not args.out.parent.is_dir():
            raise ValueError(f"{args.out.parent} is not a folder: create it, or give another path.")
        written = page(SOURCE.read_text(encoding="utf-8"), guest=args.guest)
    except ValueError as error:
        sys.exit(str(error))
    with atomic_write(args.out) as partial:
        partial.write_text(written, encoding="utf-8")
    print(f"{args.out}: {len(written) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
