"""Figures of results: comparison of operators, training curves, KL by layers skipped and by token."""

import html
import math

import plotly.graph_objects as go

from ..operators import row_title
from .base import BLACK, BLUE, GRAY, GREEN, ORANGE, PURPLE, SERIES, VERMILLION, VIOLET, label, lines, new_figure

COLORS = {
    "skip": BLACK,
    "mean-shift": GRAY,
    "procrustes": GRAY,
    "ridge": ORANGE,
    "loop": GRAY,
    "regression": BLUE,
    "flow-matching": VERMILLION,
    "flow-walking": GREEN,
    "flow-walking-euler": VIOLET,
    "hybrid": PURPLE,
    "flow-walking-midpoint": ORANGE,
    "flow-walking-kl": "#6B5B00",
}
MARKS = ("circle", "square", "diamond", "triangle-up", "cross")
SYMBOLS = {"6-12": "circle", "6-18": "square"}
AXES = {
    "parameters": "parameters of the whole model",
    "nfe_total": "layer-sized evaluations per token, whole model",
    "ms_decode": "milliseconds per generated token",
}


def _marker(row: dict) -> dict:
    """Style a row's marker: color by operator, a cross for skipping, else circle or square by the span."""
    skip = row["name"] == "skip"
    symbol = "x-thin" if skip else SYMBOLS.get("{}-{}".format(*row["span"]), "diamond")
    line = {"width": 2 if skip else 1, "color": "#333333"}
    return {"color": COLORS.get(row["name"], GRAY), "size": 11, "line": line, "symbol": symbol}


def comparison(results: dict, x: str = "parameters", shipped_only: bool = True) -> go.Figure:
    """Plot KL against a cost, one mark per operator: circles where 6 layers are replaced, squares where 12 are.

    Args:
        results: content of ``assets/results/ladder.json``.
        x: the cost, a key of :data:`AXES`: ``"parameters"``, ``"nfe_total"`` or ``"ms_decode"``.
        shipped_only: leave out rows that evaluate the same weights with other solvers.

    Raises:
        ValueError: unknown ``x``.
    """
    if x not in AXES:
        raise ValueError(f"x={x!r}: choose one of {', '.join(AXES)}.")
    title = AXES[x]
    figure = new_figure(
        f"What an operator costs and what it loses ({title})", title, "KL(teacher ‖ student), nats per token"
    )
    layers = results["teacher"]["layers"]
    for row in results["rows"]:
        m, n = row["span"]
        if shipped_only and not (row.get("shipped") or row["name"] in ("skip", "loop")):
            continue
        low, high = row["kl_interval"]
        value = {**row, "nfe_total": layers - (n - m) + row["nfe"]}[x]
        name = "skip" if row["name"] == "skip" else f"{row_title(row)}, {m}–{n}"
        text = (
            f"{row_title(row)} · layers {m}–{n}<br>KL {row['kl']:.3f} ({low:.3f}–{high:.3f})<br>{title}: {value:,.4g}"
        )
        figure.add_scatter(
            x=[value], y=[row["kl"]], name=name, mode="markers", hovertext=[text], hoverinfo="text",
            legendgroup=name, showlegend=name not in {trace.name for trace in figure.data},
            error_y={"array": [high - row["kl"]], "arrayminus": [row["kl"] - low], "symmetric": False, "thickness": 1},
            marker=_marker(row),
        )  # fmt: skip
    figure.update_yaxes(type="log")
    return figure


def skip_curve(results: dict) -> go.Figure:
    """Plot the KL of skipping the best contiguous span of j layers against j."""
    figure = new_figure(
        "What it costs to skip layers", "layers skipped, the best contiguous span", "KL, nats per token"
    )
    costs = [0, *(entry["kl"] for entry in results["skip"].values())]
    figure.add_scatter(
        x=list(range(len(costs))), y=costs, name="skip", line={"color": COLORS["skip"]}, mode="lines+markers",
        hovertemplate="skip %{x} layers: KL %{y:.3f}<extra></extra>",
    )  # fmt: skip
    return figure


def skipped_layers(results: dict) -> go.Figure:
    """Plot j*, the number of skipped layers with the same KL, for every shipped operator, with its interval."""
    figure = new_figure(
        "How many layers could be skipped instead?", "equivalent skipped layers j* (fewer is better)", ""
    )
    rows = [
        r
        for r in results["rows"]
        if r.get("shipped") and None not in (r["skipped_layers"], *r["skipped_layers_interval"])
    ]
    for row in sorted(rows, key=lambda r: (r["span"], -r["skipped_layers"])):
        (m, n), (low, high), j = row["span"], row["skipped_layers_interval"], row["skipped_layers"]
        name = f"{row['name']}, {m}–{n}"
        figure.add_scatter(
            x=[j], y=[name], mode="markers", name=name, showlegend=False,
            error_x={"array": [high - j], "arrayminus": [j - low], "symmetric": False, "thickness": 1},
            marker=_marker(row),
            hovertemplate=f"{name}: as costly as skipping %{{x:.2f}} layers ({low:.2f}–{high:.2f})<extra></extra>",
        )  # fmt: skip
    figure.update_layout(height=560, margin={"l": 190})
    return figure


def skip_growth(growth: dict) -> go.Figure:
    """Plot the KL of skipping the best j layers against the teacher's training tokens, one line per j."""
    rows = growth["rows"]
    tokens = [r["tokens"] for r in rows]
    return lines(
        {f"j = {j}": (tokens, [r["skip"][j]["kl"] for r in rows]) for j in rows[0]["skip"]},
        "Layers matter more as the teacher trains",
        "tokens the teacher has seen",
        "KL of skipping the best j layers, nats",
        log_y=True,
    )


def budget(results: dict, span: tuple[int, int], x: str = "tokens") -> go.Figure:
    """Plot KL against the training budget, log-log, one line per operator: mean over seeds, bars from min to max.

    Args:
        results: content of ``assets/results/tokens.json``.
        span: the layers [m, n) that were replaced.
        x: ``"tokens"``, or ``"operations"``: FLOP of the whole training, teacher included.

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
    for i, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        mine = sorted((row for row in rows if row["name"] == name), key=lambda row: row["tokens"])
        bars = {"array": [max(row["kl_seeds"]) - row["kl"] for row in mine], "type": "data", "thickness": 1}
        bars |= {"arrayminus": [row["kl"] - min(row["kl_seeds"]) for row in mine]}
        color, title = COLORS.get(name, BLACK), html.escape(row_title(mine[0]))
        figure.add_scatter(
            x=[row[x] for row in mine], y=[row["kl"] for row in mine], error_y=bars, name=title, mode="lines+markers",
            line={"color": color}, marker={"symbol": MARKS[i % len(MARKS)], "size": 9, "color": color},
            customdata=[f"{min(row['kl_seeds']):.3f} to {max(row['kl_seeds']):.3f}" for row in mine],
            hovertemplate=f"{title}<br>%{{x:,.3g}} {x}: %{{y:.3f}} (seeds: %{{customdata}})<extra></extra>",
        )  # fmt: skip
    ticks = _log_ticks([row[x] for row in rows])
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[_amount(tick) for tick in ticks])
    least, most = min(row["kl"] for row in rows), max(row["kl"] for row in rows)
    levels = [kl for kl in (0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0) if 0.9 * least < kl < 1.1 * most]
    figure.update_yaxes(type="log", tickvals=levels, ticktext=[f"{kl:g}" for kl in levels])
    return figure


def dots(groups: dict, title: str, x: str, reference: float = 1.0) -> go.Figure:
    """Plot values with intervals, one line per name, one color and mark per group, on a log axis.

    Args:
        groups: group → name → (value, low, high).
        reference: where a dashed line is drawn.
    """
    figure = new_figure(title, x, "")
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    for i, (group, found) in enumerate(groups.items()):
        shift = (i - (len(groups) - 1) / 2) * 0.22  # groups side by side on a name's line
        above, below = ([abs(one[0] - one[i]) for one in found.values()] for i in (2, 1))
        figure.add_scatter(
            x=[value for value, _, _ in found.values()],
            y=[names.index(name) + shift for name in found],
            mode="markers",
            name=html.escape(group),
            marker={"color": SERIES[i % len(SERIES)], "symbol": MARKS[i % len(MARKS)], "size": 9},
            error_x={"array": above, "arrayminus": below, "thickness": 1.5, "width": 3},
            customdata=[f"{html.escape(name)}: {v:.2f} ({a:.2f}–{b:.2f})" for name, (v, a, b) in found.items()],
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.add_vline(x=reference, line={"dash": "dash", "color": BLACK, "width": 1})
    values = [v for found in groups.values() for one in found.values() for v in one]
    coarse, fine = (0.25, 0.5, 0.7, 1, 1.4, 2, 3, 4, 6, 8, 12), (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.6)
    steps = coarse if max(values) / min(values) > 2 else fine
    ticks = [t for t in steps if 0.95 * min(values) < t < 1.05 * max(values)]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[html.escape(name) for name in names], autorange="reversed"
    )
    legend = {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0}
    return figure.update_layout(height=160 + 44 * len(names), legend=legend, margin={"l": 210})


def _log_ticks(values: list[float]) -> list[float]:
    """Return ticks at 1, 2 and 5 times powers of ten between the extremes; at 1 to 9 times where those are few."""
    powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    for digits in ((1, 2, 5), range(1, 10)):
        steps = [digit * 10.0**power for power in powers for digit in digits]
        found = [step for step in steps if 0.8 * min(values) <= step <= 1.25 * max(values)]
        if len(found) > 2:
            break
    return found


def _amount(value: float) -> str:
    """Format a number as ``200 k`` or ``5 M``, and from a billion on as ``2·10⁹``."""
    if value < 1e9:
        return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k"
    mantissa, power = f"{value:.0e}".split("e+")
    return f"{mantissa}·10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(int(power)))


def training(histories: dict, title: str = "Training", smooth: int = 1) -> go.Figure:
    """Plot loss against step, on a log scale.

    Args:
        histories: name → an object with ``.steps`` and ``.losses``, such as :class:`lft_edu.History`.
        smooth: plot means over this many steps.
    """
    figure = new_figure(title, "step", "loss")
    for i, (name, history) in enumerate(histories.items()):
        chunks = [slice(a, a + smooth) for a in range(0, len(history.losses) - smooth + 1, smooth)]
        figure.add_scatter(
            x=[history.steps[c][-1] for c in chunks], y=[sum(history.losses[c]) / smooth for c in chunks],
            name=html.escape(name), line={"color": SERIES[i % len(SERIES)]},
            mode="lines" if len(chunks) > 1 else "markers",
            showlegend=len(histories) > 1,
        )  # fmt: skip
    ticks = _log_ticks([loss for trace in figure.data for loss in trace.y if loss > 0] or [1.0])
    return figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def token_kl(tokens: list[str], divergence: list[float], title: str) -> go.Figure:
    """Plot a text as a strip of tokens, darker where KL(teacher ‖ student), ``divergence`` in nats, is larger."""
    shown = [label(token) for token in tokens]
    figure = new_figure(title, "token", "")
    figure.add_heatmap(
        z=[divergence], x=list(range(len(tokens))), colorscale="Cividis", reversescale=True, zmin=0,
        hovertext=[[f"{i}: {s}<br>KL {d:.3f} nats" for i, (s, d) in enumerate(zip(shown, divergence, strict=True))]],
        hoverinfo="text", colorbar={"title": "KL, nats"},
    )  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(tokens))), ticktext=shown, tickangle=-60)
    figure.update_yaxes(visible=False)
    figure.update_layout(height=240)
    return figure
