"""Names and colors of models for readers: "Flow Walking, 6–18" rather than ``bundled/flow-walking-6-18``."""

import re

from ..plots.base import visible
from ..plots.results import COLORS
from ..plots.style import INK

TEACHER = INK
OTHERS = ("#D55E00", "#8A6D3B")  # students whose name says nothing: the first shown, the second
NAMES = {
    "flow-walking-midpoint": "Flow Walking, midpoint",
    "flow-walking-euler": "Flow Walking, Euler",
    "flow-walking-kl": "Flow Walking, then KL",
    "flow-walking": "Flow Walking",
    "flow-matching-kl": "flow matching, then KL",
    "flow-matching": "flow matching",
    "hybrid": "hybrid",
    "regression": "regression",
    "ridge": "ridge",
    "procrustes": "Procrustes",
    "mean-shift": "mean shift",
    "loop": "loop",
    "skip": "skip",
}  # the longest first


def title_of(name: str) -> str:
    """Return a student's name for readers; names that are not the course's are left as they are."""
    found = re.fullmatch(r"(?:[\w.-]+/)?([a-z-]+?)(?:-(\d+)-(\d+))?", name)
    if not found or found[1] not in NAMES:
        return name
    return NAMES[found[1]] + (f", {found[2]}–{found[3]}" if found[2] else "")


def color_of(name: str, place: int = 0) -> str:
    """Return the color of a student's operator, the same in all figures.

    Args:
        name: of the student. place: 0 for the first student shown, 1 for the second.
    """
    words = re.sub(r"[\s_]+", "-", name.lower())
    kind = next((kind for kind in NAMES if kind in words), "")
    return COLORS.get(kind) or COLORS.get(kind.removesuffix("-kl")) or OTHERS[place]


def spoken(token: str) -> str:
    """Return a token in words where it cannot be seen: its spaces and line breaks, counted."""
    if not token or token.strip(" \n\t"):
        return f"“{visible(token)}”"
    lines, spaces, tabs = (token.count(c) for c in "\n \t")
    named = [(lines, "line break"), (spaces, "space"), (tabs, "tab")]
    words = " + ".join(f"{n} {word}{'s' if n > 1 else ''}" for n, word in named if n)
    return words.removeprefix("1 ") if lines == 1 else words
