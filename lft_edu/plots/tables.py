"""Tables of numbers as heatmaps. Dark always means much."""

import math
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .axes import amount, log_ticks
from .base import describe, escape, label, make_room, new_figure, panel_titles, wrap
from .style import INK, SCALE, ink_on, shade

COLORS = [[i / (len(SCALE) - 1), color] for i, color in enumerate(SCALE)]
BAR = {"thickness": 14, "outlinewidth": 0, "len": 0.95, "tickfont": {"size": 11}}
BAR_TITLE = {"side": "right", "font": {"size": 12}}
ZERO = 0.12  # of the scale: the step from 0 to the least value that is not 0, on a logarithmic scale


def heatmap(
    table: Sequence,
    rows: Sequence,
    columns: Sequence,
    title: str,
    x: str,
    y: str,
    unit: str = "",
    percent: bool = False,
) -> go.Figure:
    """Plot a table of numbers, ``(rows, columns)``, as a heatmap with each number written into its cell.

    Args:
        unit: title of the color bar.
        percent: ``table`` holds fractions in [0, 1]; show them as percentages.
    """
    return heatmaps({"": table}, rows, columns, title, x, y, unit, percent)


def heatmaps(
    tables: dict[str, Sequence],
    rows: Sequence,
    columns: Sequence,
    title: str,
    x: str,
    y: str,
    unit: str = "",
    percent: bool = False,
) -> go.Figure:
    """Plot tables of numbers side by side, with the same rows, columns and colors.

    Args:
        tables: name → numbers, ``(rows, columns)``; names are the panels' titles.
        unit: title of the color bar.
        percent: the tables hold fractions in [0, 1]; show them as percentages.
    """
    several = len(tables) > 1
    across, down = [str(c) for c in columns], [str(r) for r in rows]
    height = 150 + 44 * len(down) + (40 if several else 0)
    figure = new_figure(title, x, y, height=height, margin_b=60)
    if several:
        heads = panel_titles(list(tables))
        panels = make_subplots(1, len(tables), subplot_titles=heads, shared_yaxes=True, horizontal_spacing=0.03)
        figure = panels.update_layout(figure.layout)
        make_room(figure, heads)
    numbers = {name: [[float(v) for v in row] for row in table] for name, table in tables.items()}
    most = (
        1.0
        if percent
        else max((v for table in numbers.values() for row in table for v in row if v == v), default=1) or 1
    )
    bar = BAR | {"title": {"text": escape(unit), **BAR_TITLE}, "tickformat": ".0%" if percent else ""}
    for i, values in enumerate(numbers.values(), 1):
        shown = [[f"{100 * v:.0f}" if percent else f"{v:.2g}" for v in row] for row in values]
        where = {"row": 1, "col": i} if several else {}
        figure.add_heatmap(
            z=values, x=across, y=down, colorscale=COLORS, zmin=0, zmax=most, text=shown, xgap=1, ygap=1,
            hovertemplate=f"{escape(y)} %{{y}}, {escape(x)} %{{x}}: %{{text}}<extra></extra>", colorbar=bar,
            showscale=i == len(tables),
            **where,
        )  # fmt: skip
        _write_numbers(figure, values, shown, across, down, most, where)
        figure.update_xaxes(type="category", title=wrap(x, 20 if several else 44), showgrid=False, **where)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    of = f" Panels: {', '.join(tables)}." if several else ""
    words = f"{title}. Heatmap, darker is more: {y} ({', '.join(down)}) down, {x} ({', '.join(across)}) across.{of}"
    return describe(figure, words)


def _write_numbers(figure, values, shown, across, down, most: float, where: dict) -> None:
    """Write numbers into cells, each in the ink that its cell's color needs: plotly's choice is gray on half dark."""
    cells = [(c, r, t, v) for r, row, texts in zip(down, values, shown, strict=True)
             for c, v, t in zip(across, row, texts, strict=True) if v == v]  # fmt: skip
    figure.add_scatter(
        x=[c for c, *_ in cells], y=[r for _, r, *_ in cells], text=[t for *_, t, _ in cells], mode="text",
        textposition="middle center", textfont={"color": [ink_on(shade(v / most)) for *_, v in cells], "size": 13},
        hoverinfo="skip", showlegend=False, **where,
    )  # fmt: skip


def spread(values: Iterable[float]) -> tuple:
    """Return how to color numbers of which most are small: a function to the scale, and ticks ``(places, texts)``.

    Numbers within a factor of 30 are colored in proportion; others by their logarithm, with 0 a step of its own at the
    pale end, so that 0, 0.004 and 0.05 differ.
    """
    values = [v for v in values if v == v]
    positive = [v for v in values if v > 0]
    if not positive or (max(positive) < 30 * min(positive) and len(positive) == len(values)):
        return (lambda v: v), None
    least, most = math.log10(min(positive)), math.log10(max(positive))
    reach = (most - least) or 1.0

    def place(v: float) -> float:
        return ZERO + (1 - ZERO) * (math.log10(v) - least) / reach if v > 0 else 0.0

    ticks = log_ticks(positive)
    zero = [0.0] if len(positive) < len(values) else []
    return place, ([place(v) for v in (*zero, *ticks)], [amount(v) for v in (*zero, *ticks)])


def colored(table: Sequence, unit: str = "") -> dict:
    """Return what a heatmap trace needs to color a table by :func:`spread`: z, range, scale and color bar.

    Args:
        table: rows of numbers; NaN where there is none.
        unit: title of the color bar.
    """
    place, ticks = spread(v for row in table for v in row)
    z = [[None if v != v else place(v) for v in row] for row in table]  # JSON has no NaN
    bar = BAR | {"title": {"text": escape(unit), **BAR_TITLE}}
    scale = {"colorscale": COLORS, "zmin": 0}
    if ticks:
        return {"z": z, **scale, "zmax": 1, "colorbar": bar | {"tickvals": ticks[0], "ticktext": ticks[1]}}
    return {"z": z, **scale, "colorbar": bar}


def skip_heatmap(costs: dict[tuple[int, int], float], title: str = "What it costs to skip layers") -> go.Figure:
    """Plot the KL of skipping every span of layers: first layer across, number of layers down; darker costs more.

    Args:
        costs: span (m, n), layers m … n−1 skipped → KL, nats per token.
        title: of the figure.
    """
    starts = list(range(max(m for m, _ in costs) + 1))
    lengths = list(range(1, max(n - m for m, n in costs) + 1))
    table = [[float(costs.get((m, m + j), math.nan)) for m in starts] for j in lengths]
    figure = new_figure(title, "first layer skipped", "layers skipped")
    said = [["" if v != v else f"layers {m} … {m + j - 1}: {v:.3g} nats" for m, v in zip(starts, row, strict=True)]
            for j, row in zip(lengths, table, strict=True)]  # fmt: skip
    figure.add_heatmap(
        x=starts, y=lengths, **colored(table, "KL, nats per token"), customdata=said, xgap=1, ygap=1,
        hovertemplate="%{customdata}<extra></extra>", hoverongaps=False,
    )  # fmt: skip
    figure.update_layout(margin_b=60).update_xaxes(showgrid=False, zeroline=False)
    figure.update_yaxes(showgrid=False, zeroline=False, dtick=2, tick0=1)
    return describe(figure, f"{title}. Heatmap of KL, logarithmic colors, darker is more: first layer skipped, 0 to "
                            f"{starts[-1]}, across; number of layers skipped, 1 to {lengths[-1]}, upward.")  # fmt: skip


def token_kl(tokens: list[str], divergence: list[float], title: str) -> go.Figure:
    """Plot a text as a strip of tokens, darker where KL(teacher ‖ student), ``divergence`` in nats, is larger."""
    shown = [label(token) for token in tokens]
    figure = new_figure(title, "token", "", margin_b=40)
    figure.add_heatmap(
        z=[divergence], x=list(range(len(tokens))), colorscale=COLORS, zmin=0, xgap=1,
        hovertext=[[f"{i}: {s}<br>KL {d:.3f} nats" for i, (s, d) in enumerate(zip(shown, divergence, strict=True))]],
        hoverinfo="text", colorbar=BAR | {"title": {"text": "KL, nats", **BAR_TITLE}},
    )  # fmt: skip
    figure.update_xaxes(
        tickvals=list(range(len(tokens))), ticktext=shown, tickangle=-60, tickfont={"color": INK}, showgrid=False
    )
    figure.update_yaxes(visible=False)
    figure.update_layout(height=250)
    return describe(
        figure, f"{title}. A strip of {len(tokens)} tokens; the darker, the larger the KL after that token."
    )
