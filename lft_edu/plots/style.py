"""One look for every figure: which color, dash, mark and name an operator has, and the colors of everything else.

An operator keeps its color in all lessons, whatever a figure calls it: ``"flow matching"``, ``"flow-matching-6-12"``
and ``"Flow matching (Euler × 1)"`` are of one family. Variants of a family share its color and differ in dash and mark.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

# Every color has a contrast of at least 3 : 1 (WCAG 2.1, 1.4.11) on white and on JupyterLab's dark #111111: figures are
# transparent and shown on both. Four are Okabe and Ito's, which color-blind readers can tell apart; the others were
# chosen to lie far from those four, as they see them.
INK = "#767676"  # text, frames, the teacher: 4.54 : 1 on white, 4.16 : 1 on #111111 (no gray has 4.5 : 1 on both)
FAR = "rgba(128,128,128,0.45)"  # what stands behind, such as arrows that are extrapolated
GRID = "rgba(128,128,128,0.25)"
SERIES = (
    "#6A45E8",
    "#C4309A",
    "#5A8F14",
    "#3C96F0",
    "#A5432F",
    "#8A6D3B",
    "#787878",
)  # groups, and whatever is no operator
START, END, RE_PAIRED = "#6070F0", INK, "#D2003C"  # x0, x1, and pairs that optimal transport would break up
GROUP_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
# From little to much, light to dark (ColorBrewer's YlGnBu without its palest and darkest steps).
SCALE = ("#F3F1D8", "#C7E3BE", "#7CC6BB", "#3F9FBE", "#2B6BA6", "#25408C", "#141F55")


@dataclass(frozen=True)
class Style:
    """The look of one operator in figures and in the explorer.

    Args:
        family: key of the family, such as ``"flow-matching"``; ``""`` for a name of no family.
        name: the family's name for readers.
        color: ``#RRGGBB``. dash: plotly's name. symbol: plotly's name of the mark.
    """

    family: str
    name: str
    color: str
    dash: str = "solid"
    symbol: str = "circle"


# Order matters: the first pattern that is found in a name decides ("two layers, regression" is two layers).
_FAMILIES = (
    (r"\bteacher\b(?!['’]?s\b)", Style("teacher", "teacher", INK)),
    (r"\bhybrid\b", Style("hybrid", "hybrid", "#CC79A7", symbol="star")),
    (r"\b(loop(ed)?|weight tied)\b", Style("loop", "trained loop", "#7A6800", symbol="triangle-right")),
    (r"\btwo layers?\b", Style("two-layers", "two layers", "#00839B", symbol="hexagon")),
    (r"\bflow walk\w*|\bfw\b", Style("flow-walking", "Flow Walking", "#009E73", symbol="diamond")),
    (r"\bflow match\w*|\bfm\b", Style("flow-matching", "flow matching", "#D55E00", symbol="square")),
    (r"\bregression\b", Style("regression", "regression", "#0072B2", symbol="triangle-up")),
    (r"\bridge\b|\blinear map\b", Style("ridge", "ridge", "#964B78", symbol="pentagon")),
    (r"\bprocrustes\b", Style("procrustes", "Procrustes", "#8F7A66", symbol="triangle-left")),
    (r"\bmean shift\b", Style("mean-shift", "mean shift", "#8F7A66", symbol="triangle-down")),
    (r"\bskip(ping|ped)?\b", Style("skip", "skip", "#5C7391", symbol="x-thin-open")),
)
FAMILIES = {style.family: style for _, style in _FAMILIES}
# What changes within a family: dash and mark of the variant. "Flow Walking (midpoint × 3)" is the family itself.
_VARIANTS = (
    (r"\bkl\b|\blogits?\b", "dash", ""),
    (r"\beuler\b", "dot", "-open"),
    (r"\buntrained\b", "dashdot", "-open"),
)


def style_of(name: str) -> Style:
    """Return the look of an operator, found by its name.

    Args:
        name: in any spelling: with hyphens, underscores or spaces, with a span, solver or number of steps.

    Returns:
        The style of the name's family, with the dash and mark of its variant. Names of no family get the first color
        that no operator has; where there are several in one figure, call :func:`styles`.
    """
    words = re.sub(r"[\s_\-–(),:×=/]+", " ", name).strip().lower()
    for pattern, style in _FAMILIES:
        if re.search(pattern, words):
            return _variant(words, style)
    return Style("", name, SERIES[0], symbol=GROUP_SYMBOLS[0])


def _variant(words: str, style: Style) -> Style:
    for pattern, dash, suffix in _VARIANTS:
        if re.search(pattern, words):
            return replace(style, dash=dash, symbol=style.symbol.removesuffix("-open") + suffix)
    return style


def styles(names: Iterable[str], alike: dict[str, str] | None = None) -> dict[str, Style]:
    """Return a look for each series of one figure, no two the same.

    Args:
        names: of the series. Those of no family get the colors that no operator has, in order.
        alike: name → another of the names, whose color and mark it shares.

    Raises:
        ValueError: ``alike`` names a series that is not there.
    """
    names, alike = list(dict.fromkeys(names)), alike or {}
    if missing := [name for pair in alike.items() for name in pair if name not in names]:
        raise ValueError(f"alike names {missing[0]!r}, which is not among the series: {', '.join(names)}.")
    found: dict[str, Style] = {}
    free = 0
    for name in names:
        if name in alike:
            continue
        style = style_of(name)
        if not style.family:
            style = replace(
                style, color=SERIES[free % len(SERIES)], symbol=GROUP_SYMBOLS[free % len(GROUP_SYMBOLS)],
                dash=DASHES[free // len(SERIES) % len(DASHES)],
            )  # fmt: skip
            free += 1
        taken = {other.dash for other in found.values() if other.color == style.color}
        if style.dash in taken:
            left = [dash for dash in DASHES if dash not in taken] or [style.dash]
            base = style.symbol.removesuffix("-open")
            style = replace(style, dash=left[0], symbol=base if style.symbol.endswith("-open") else base + "-open")
        found[name] = style
    return {name: found[alike.get(name, name)] for name in names}


def table() -> dict[str, dict[str, str]]:
    """Return the table of families as JSON data, for pages that draw without plotly: family → style."""
    return {family: asdict(style) for family, style in FAMILIES.items()}


def ink_on(color: str) -> str:
    """Return the ink, black or white, that has the higher contrast on a background ``#RRGGBB``."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    luminance = sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000000" if luminance > 0.179 else "#FFFFFF"


def shade(share: float) -> str:
    """Return the color of a value on :data:`SCALE`, ``share`` of the way from little (0) to much (1)."""
    place = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    low = min(int(place), len(SCALE) - 2)
    ends = [[int(SCALE[i][k : k + 2], 16) for k in (1, 3, 5)] for i in (low, low + 1)]
    mixed = [round(a + (place - low) * (b - a)) for a, b in zip(*ends, strict=True)]
    return "#{:02X}{:02X}{:02X}".format(*mixed)
