"""Block diagrams of models: what is kept, what is replaced, and by what."""

import plotly.graph_objects as go

from ..splicing import check_span
from .base import describe, new_figure
from .style import INK, ink_on, style_of

KEPT = style_of("teacher").color
REPLACED = "rgba(128,128,128,0.35)"
TEACHER, LFT = (0.0, 1.0), (2.6, 3.6)  # left and right edges of the two columns
LAYERS, EDGE, GAP = 24.0, 1.7, 1.4  # heights: all layers together; embedding and head matrix; from part to part
OPERATOR = "<b>operator</b><br>one layer,<br>walked from<br>t = 0 to 1"
SLIT = 0.2  # between two layers, as a share of one


def spliced_model(
    depth: int, span: tuple[int, int], title: str = "A teacher and its LFT", operator: str = "flow walking"
) -> go.Figure:
    """Draw a teacher beside the model in which one operator replaces a span of its layers: head, operator, tail.

    Data flow upward. Layers that both models share are drawn at the same height, with their label between the columns.

    Args:
        depth: the teacher's number of layers, L.
        span: ``(m, n)``, half-open: layers m … n−1 are replaced.
        title: of the figure.
        operator: gives the operator's box its color.

    Raises:
        ValueError: not a span of that many layers.
    """
    (m, n), accent = check_span(span, depth), style_of(operator).color
    parts = [
        ("embedding", 1, EDGE),
        (f"<b>head</b><br>{_layers(0, m)}", m, 2.6),
        (f"{_layers(m, n)}<br>← replaced by →", n - m, 5.2),
        (f"<b>tail</b><br>{_layers(n, depth)}", depth - n, 2.6),
        ("final norm, logits", 1, EDGE),
    ]
    figure = new_figure(title, "", "", height=600, showlegend=False, margin={"l": 10, "r": 10, "b": 10})
    middle, bottom, arrows = (TEACHER[1] + LFT[0]) / 2, 0.0, []
    for i, (text, count, least) in enumerate(parts):
        if not count:
            continue
        replaced, top = i == 2, bottom + max(LAYERS * count / depth if 0 < i < 4 else 0, least)
        _boxes(figure, TEACHER, bottom, top, count, REPLACED if replaced else KEPT)
        _boxes(figure, LFT, bottom, top, 1 if replaced else count, accent if replaced else KEPT)
        _write(figure, middle, (bottom + top) / 2, text, INK)
        if replaced:
            _write(figure, sum(LFT) / 2, (bottom + top) / 2, OPERATOR, ink_on(accent))
            _write(figure, middle, bottom - GAP / 2, f"x0, enters layer {m}", INK)
            _write(figure, middle, top + GAP / 2, f"x1, leaves layer {n - 1}", INK)
        arrows.append(top)
        bottom = top + GAP
    for column, name in ((TEACHER, "teacher"), (LFT, "LFT")):
        _arrows(figure, sum(column) / 2, arrows[:-1])
        _write(figure, sum(column) / 2, bottom - GAP / 3, f"<b>{name}</b>", INK)
    figure.update_xaxes(visible=False, range=[TEACHER[0] - 0.05, LFT[1] + 0.05], fixedrange=True)
    figure.update_yaxes(visible=False, range=[-0.3, bottom], fixedrange=True)
    words = f"{title}. Two columns of blocks, data flowing upward: embedding, {depth} layers, final norm and logits."
    return describe(figure, f"{words} In the second column one operator stands in the place of {_layers(m, n)}.")


def _layers(first: int, end: int) -> str:
    """Name the layers first … end − 1."""
    return f"layer {first}" if end - first == 1 else f"layers {first}–{end - 1}"


def _boxes(figure: go.Figure, column: tuple[float, float], bottom: float, top: float, count: int, color: str) -> None:
    """Stack ``count`` equal boxes between two heights."""
    (left, right), each = column, (top - bottom) / count
    xs, ys = [], []
    for i in range(count):
        low, high = bottom + i * each, bottom + (i + 1 - (SLIT if count > 1 else 0)) * each
        xs += [left, right, right, left, left, None]
        ys += [low, low, high, high, low, None]
    figure.add_scatter(
        x=xs, y=ys, mode="lines", fill="toself", fillcolor=color, line={"color": color, "width": 1}, hoverinfo="skip"
    )


def _arrows(figure: go.Figure, x: float, starts: list[float]) -> None:
    """Draw an arrow from each start across the gap above it."""
    xs = [x for start in starts for _ in range(3)]
    ys = [y for start in starts for y in (start + 0.1, start + GAP - 0.45, None)]
    figure.add_scatter(x=xs, y=ys, mode="lines", line={"color": INK, "width": 2}, hoverinfo="skip")
    tips = {"symbol": "triangle-up", "size": 10, "color": INK}
    figure.add_scatter(
        x=[x] * len(starts), y=[start + GAP - 0.4 for start in starts], mode="markers", marker=tips, hoverinfo="skip"
    )


def _write(figure: go.Figure, x: float, y: float, text: str, color: str) -> None:
    """Write a text centered at a point."""
    figure.add_scatter(
        x=[x], y=[y], mode="text", text=[text], textposition="middle center",
        textfont={"color": color, "size": 13}, hoverinfo="skip",
    )  # fmt: skip
