"""Figures of results: comparison of operators, KL by layers skipped and by training budget."""

import html
import math

import plotly.graph_objects as go

from ..operators import row_title
from .axes import amount, log_axis
from .base import describe, describe_curves, escape, new_figure, on_narrow_pages, plain
from .curves import add_levels, lines, rows
from .labels import place_labels
from .style import FAMILIES, INK, style_of, styles

COLORS = {
    name: style_of(name).color for name in (*FAMILIES, "flow-walking-euler", "flow-walking-midpoint", "flow-walking-kl")
}
AXES = {
    "parameters": "parameters of the whole model",
    "nfe_total": "layer-sized evaluations per token, whole model",
    "ms_decode": "milliseconds per generated token",
}
SHORT = {"parameters": "parameters", "nfe_total": "evaluations", "ms_decode": "time"}
PLOT = (880, 420)  # pixels of the plot of a comparison, about, on a desk: labels are placed for it


def _symbol(row: dict) -> str:
    """Return a row's mark: a cross for skipping, else a circle where 6 layers are replaced, a square where more are."""
    m, n = row["span"]
    return "x-thin-open" if row["name"] == "skip" else "circle" if n - m <= 6 else "square"


def _named(row: dict) -> str:
    """Return a row's name for readers, with what sets it apart from others of its family."""
    look, rest = style_of(row["name"]), ""
    for part, said in (("euler", ", Euler"), ("kl", ", on logits"), ("midpoint", ", midpoint")):
        rest += said if row["name"].endswith(f"-{part}") else ""
    return (look.name if look.family else row["name"]) + rest


def comparison(results: dict, x: str = "parameters", shipped_only: bool = True) -> go.Figure:
    """Plot KL against a cost, one labeled mark per operator: circles where 6 layers are replaced, squares where 12 are.
    A line shows what skipping layers costs. Buttons choose the cost.

    Args:
        results: content of ``assets/results/ladder.json``.
        x: the cost shown first, a key of :data:`AXES`: ``"parameters"``, ``"nfe_total"`` or ``"ms_decode"``.
        shipped_only: leave out rows that evaluate the same weights with other solvers.

    Raises:
        ValueError: unknown ``x``.
    """
    if x not in AXES:
        raise ValueError(f"x={x!r}: choose one of {', '.join(AXES)}.")
    figure = new_figure(
        "What an operator costs and what it loses", AXES[x], "KL(teacher ‖ student), nats per token", height=600
    )
    layers = results["teacher"]["layers"]
    skipped = [tuple(entry["best"]) for entry in results["skip"].values()]
    rows = [row for row in results["rows"] if row["name"] != "skip" and (not shipped_only or row.get("shipped"))]
    skips = [row for row in results["rows"] if row["name"] == "skip" and tuple(row["span"]) in skipped]
    skips = sorted(skips, key=lambda row: row["span"][1] - row["span"][0])

    def cost(row: dict, axis: str) -> float:
        m, n = row["span"]
        return layers - (n - m) + row["nfe"] if axis == "nfe_total" else row[axis]

    def said(row: dict) -> str:
        (m, n), (low, high) = row["span"], row["kl_interval"]
        costs = "<br>".join(f"{AXES[axis]}: {cost(row, axis):,.4g}" for axis in AXES)
        name = html.escape(row_title(row))
        return f"{name} · layers {m} … {n - 1}<br>KL {row['kl']:.3f} ({low:.3f}–{high:.3f})<br>{costs}"

    look = style_of("skip")
    figure.add_scatter(
        x=[cost(row, x) for row in skips], y=[row["kl"] for row in skips], name="skip the best layers",
        mode="lines+markers", line={"color": look.color, "dash": "dot"}, hovertext=[said(row) for row in skips],
        hoverinfo="text", marker={"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": look.color}},
        showlegend=False,
    )  # fmt: skip
    for row in rows:
        low, high = row["kl_interval"]
        color, symbol = style_of(row["name"]).color, _symbol(row)
        figure.add_scatter(
            x=[cost(row, x)], y=[row["kl"]], mode="markers",
            name=f"{escape(_named(row))}, {row['span'][0]}–{row['span'][1]}",
            hovertext=[said(row)], hoverinfo="text", showlegend=False,
            error_y={"array": [high - row["kl"]], "arrayminus": [row["kl"] - low], "symmetric": False, "thickness": 1},
            marker={"color": color, "symbol": symbol, "size": 10},
        )  # fmt: skip
    for symbol, count in (("circle", 6), ("square", 12)):  # the key
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            name=f"replaces {count} layers",
            marker={"symbol": symbol, "color": INK, "size": 10},
        )
    everything = [row["kl"] for row in (*rows, *skips)]
    log_axis(figure, "y", everything)
    low, high = math.log10(min(everything)) - 0.1, math.log10(max(everything)) + 0.1
    figure.update_yaxes(range=[low, high])
    buttons = []
    for axis in AXES:
        values = [cost(row, axis) for row in (*rows, *skips)]
        reach = [min(values) - 0.06 * (max(values) - min(values)), max(values) + 0.16 * (max(values) - min(values))]
        notes = _labels(rows, skips, lambda row, axis=axis: cost(row, axis), reach, (low, high))
        xs = [[cost(row, axis) for row in skips], *([cost(row, axis)] for row in rows)]
        change = {"xaxis.title.text": AXES[axis], "xaxis.range": reach, "annotations": notes}
        buttons.append({"label": SHORT[axis], "method": "update", "args": [{"x": xs}, change, list(range(len(xs)))]})
        if axis == x:
            figure.update_layout(annotations=notes, xaxis_range=reach)
    figure.update_layout(
        updatemenus=[{
            "type": "buttons", "direction": "right", "buttons": buttons, "active": list(AXES).index(x), "x": 0,
            "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 6},
            "bgcolor": "rgba(128,128,128,0.12)", "font": {"color": INK},
        }],
        margin_t=figure.layout.margin.t + 34,
    )  # fmt: skip
    words = f"Marks: KL (log scale) against {', '.join(AXES.values())} (buttons choose). Operators: "
    names = "; ".join(f"{_named(row)} {row['span'][0]}–{row['span'][1]}" for row in rows)
    describe(
        figure, f"{plain(figure.layout.title.text)}. {words}{names}. A dotted line: skipping the best 1 to 12 layers."
    )
    looks = [style_of(row["name"]) for row in rows]
    colors = [look.color for look in looks]  # an entry each; two operators may share one
    legend = {
        colors.index(color) + 1: escape(", ".join(dict.fromkeys(look.name for look in looks if look.color == color)))
        for color in dict.fromkeys(colors)
    }
    return on_narrow_pages(figure, {0: "skip the best layers"} | legend)


def _labels(rows: list, skips: list, cost, reach: list, ends: tuple) -> list[dict]:
    """Return annotations that name the marks, with a line to those that could not stand beside theirs."""
    names = [_named(row) for row in rows] + [f"skip {row['span'][1] - row['span'][0]}" for row in skips]
    every = [*rows, *skips]
    points = [
        ((cost(row) - reach[0]) / (reach[1] - reach[0]), (math.log10(row["kl"]) - ends[0]) / (ends[1] - ends[0]))
        for row in every
    ]
    notes = []
    for row, name, (side, up) in zip(every, names, place_labels(points, names, PLOT), strict=True):
        notes.append({
            "x": cost(row), "y": math.log10(row["kl"]), "text": escape(name), "showarrow": True, "arrowhead": 0,
            "arrowwidth": 0.8 if abs(up) > 12 else 0.1, "arrowcolor": INK, "ay": -up,
            "ax": side * (9 if abs(up) <= 12 else 22),
            "xanchor": "left" if side > 0 else "right", "font": {"size": 11, "color": style_of(row["name"]).color},
            "borderpad": 0, "standoff": 4,
        })  # fmt: skip
    return notes


def skip_curve(results: dict) -> go.Figure:
    """Plot the KL of skipping the best contiguous span of j layers against j."""
    figure = new_figure(
        "What it costs to skip layers", "layers skipped, the best contiguous span", "KL, nats per token"
    )
    costs, look = [0, *(entry["kl"] for entry in results["skip"].values())], style_of("skip")
    figure.add_scatter(
        x=list(range(len(costs))), y=costs, name="skip", line={"color": look.color}, mode="lines+markers",
        marker={"size": 8, "symbol": "circle"}, hovertemplate="skip %{x} layers: KL %{y:.3f}<extra></extra>",
    )  # fmt: skip
    return describe_curves(figure.update_layout(margin_b=60), "Curve")


def skipped_layers(results: dict) -> go.Figure:
    """Plot j*, the number of skipped layers with the same KL, for every shipped operator, with its interval."""
    figure = new_figure(
        "How many layers could be skipped instead?", "equivalent skipped layers j*, fewer is better", ""
    )
    found = [
        r
        for r in results["rows"]
        if r.get("shipped") and None not in (r["skipped_layers"], *r["skipped_layers_interval"])
    ]
    found = sorted(found, key=lambda r: (r["span"], -r["skipped_layers"]))
    names = []
    for i, row in enumerate(found):
        (m, n), (low, high), j = row["span"], row["skipped_layers_interval"], row["skipped_layers"]
        names.append(name := f"{_named(row)}, {m}–{n}")
        color, symbol = style_of(row["name"]).color, _symbol(row)
        figure.add_scatter(
            x=[j], y=[i], mode="markers", name=name, showlegend=False,
            error_x={"array": [high - j], "arrayminus": [j - low], "symmetric": False, "thickness": 1.5},
            marker={"color": color, "symbol": symbol, "size": 10},
            hovertemplate=f"{name}: as costly as skipping %{{x:.2f}} layers ({low:.2f}–{high:.2f})<extra></extra>",
        )  # fmt: skip
    rows(figure, names)
    figure.update_layout(height=150 + 24 * len(names), margin_b=60).update_yaxes(
        ticktext=[escape(name) for name in names]
    )
    figure.update_xaxes(rangemode="tozero")
    words = "How many layers could be skipped instead? Marks with intervals: equivalent skipped layers j*, one row per "
    words += "operator and span: "
    return describe(figure, f"{words}{'; '.join(names)}.")


def skip_growth(growth: dict) -> go.Figure:
    """Plot the KL of skipping the best j layers against the teacher's training tokens, one line per j."""
    rows = growth["rows"]
    tokens = [r["tokens"] for r in rows]
    figure = lines(
        {f"j = {j}": (tokens, [r["skip"][j]["kl"] for r in rows]) for j in rows[0]["skip"]},
        "Layers matter more as the teacher trains",
        "tokens the teacher has seen",
        "KL of skipping the best j layers, nats",
        log_y=True,
    )
    ticks = [tick for tick in _round_ticks(tokens) if tick]
    return figure.update_xaxes(tickvals=ticks, ticktext=[amount(tick) for tick in ticks])


def _round_ticks(values: list[float], count: int = 6) -> list[float]:
    """Return round numbers from 0 to the largest of the values."""
    step = 10.0 ** math.floor(math.log10(max(values) / count))
    step *= next(f for f in (1, 2, 5, 10) if f * step * count >= max(values))
    return [i * step for i in range(int(max(values) / step) + 1)]


def budget(
    results: dict, span: tuple[int, int], x: str = "tokens", levels: dict[str, float] | None = None
) -> go.Figure:
    """Plot KL against the training budget, log-log, one line per operator: mean over seeds, bars from min to max.

    Args:
        results: content of ``assets/results/tokens.json``.
        span: the layers [m, n) that were replaced.
        x: ``"tokens"``, or ``"operations"``: FLOP of the whole training, teacher included.
        levels: name → a KL drawn as a horizontal line, such as what skipping two layers costs.

    Raises:
        ValueError: unknown ``x``.
    """
    titles = {"tokens": "tokens trained on", "operations": "FLOP of the training, teacher included"}
    if x not in titles:
        raise ValueError(f"x={x!r}: choose one of {', '.join(titles)}.")
    figure = new_figure(
        f"What more training buys, layers {span[0]}–{span[1]}", titles[x], "KL(teacher ‖ student), nats per token"
    )
    rows = [row for row in results["rows"] if tuple(row["span"]) == tuple(span)]
    looks = styles(dict.fromkeys(row["name"] for row in rows))
    for name, look in looks.items():
        mine = sorted((row for row in rows if row["name"] == name), key=lambda row: row["tokens"])
        bars = {"array": [max(row["kl_seeds"]) - row["kl"] for row in mine], "type": "data", "thickness": 1}
        bars |= {"arrayminus": [row["kl"] - min(row["kl_seeds"]) for row in mine]}
        title = html.escape(row_title(mine[0]))
        figure.add_scatter(
            x=[row[x] for row in mine], y=[row["kl"] for row in mine], error_y=bars, name=title, mode="lines+markers",
            line={"color": look.color, "dash": look.dash},
            marker={"symbol": look.symbol, "size": 9, "color": look.color},
            customdata=[f"{min(row['kl_seeds']):.3f} to {max(row['kl_seeds']):.3f}" for row in mine],
            hovertemplate=f"{title}<br>%{{x:,.3g}} {x}: %{{y:.3f}} (seeds: %{{customdata}})<extra></extra>",
        )  # fmt: skip
    add_levels(figure, levels or {})
    log_axis(figure, "x", [row[x] for row in rows])
    every = [kl for row in rows for kl in (*row["kl_seeds"], row["kl"])] + list((levels or {}).values())
    log_axis(figure, "y", every)
    return describe_curves(figure, "Curves with bars from the least to the largest seed")
