"""Figures of spans: a criterion over all spans, states at both ends of one, predictions against measurements."""

from collections.abc import Iterable, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from ..couplings import Coupling
from ..criteria import TITLES
from ..spans import SpanScan
from .axes import log_axis
from .base import describe, escape, make_room, new_figure, panel_titles
from .curves import rows
from .labels import place_labels, text_position
from .plane import coupling_traces
from .style import GROUP_SYMBOLS, INK, RE_PAIRED, SERIES, styles
from .tables import colored

PAPER = ((6, 12), (6, 18))  # our reading of the paper's "6-12" and "6-18": half-open [D]


def title_of(criterion: str) -> str:
    """Return a criterion's title for figures, HTML-escaped."""
    return escape(TITLES.get(criterion, criterion))


def recoupling_heatmap(
    scan: SpanScan, criterion: str = "recoupling", marked: Iterable[tuple[int, int]] = PAPER
) -> go.Figure:
    """Plot a criterion of every span [m, n), one cell each, m down and n across. Dark cells predict much damage.

    Colors are logarithmic where values differ by more than a factor of 30, with 0 palest, so that 0, 0.004 and 0.05
    differ.

    Args:
        criterion: a key of ``scan.tables``.
        marked: spans (m, n) to draw a frame around; by default the paper's, which the legend then names.
    """
    table, (low, high) = scan[criterion], scan.intervals(criterion)
    cells = [[_cell(m, n, table, low, high) for n in range(len(table))] for m in range(len(table))]
    title = TITLES.get(criterion, criterion)
    figure = new_figure(
        f"{title} of every span, {scan.n} tokens", "n: the span ends before layer n",
        "m: the span begins with layer m", height=540,
    )  # fmt: skip
    figure.add_heatmap(
        x=list(range(len(table))), y=list(range(len(table))), **colored(table.tolist()), customdata=cells,
        hovertemplate="%{customdata}<extra></extra>", hoverongaps=False, xgap=1, ygap=1,
    )  # fmt: skip
    figure.add_scatter(
        x=[n for _, n in marked], y=[m for m, _ in marked], mode="markers", hoverinfo="skip",
        name="the paper's spans", showlegend=marked is PAPER,
        marker={"symbol": "square-open", "size": 17, "color": RE_PAIRED, "line": {"width": 3}},
    )  # fmt: skip
    figure.update_xaxes(range=[-0.5, len(table) - 0.5], dtick=2, showgrid=False, zeroline=False)
    figure.update_yaxes(range=[len(table) - 0.5, -0.5], dtick=2, showgrid=False, zeroline=False)
    words = f"{title} of every span, {scan.n} tokens. Triangle of cells, darker is more: first layer m, 0 to "
    return describe(figure, f"{words}{len(table) - 2}, down; end n, 1 to {len(table) - 1}, across.")


def _cell(m: int, n: int, table: Tensor, low: Tensor, high: Tensor) -> str:
    if bool(table[m, n].isnan()):
        return ""
    interval = "" if bool(low[m, n].isnan()) else f" ({low[m, n]:.3f} to {high[m, n]:.3f})"
    return f"layers {m} … {n - 1} ({n - m} of them): {table[m, n]:.3f}{interval}"


def span_coupling(x0: Tensor, x1: Tensor, recoupled: Tensor, title: str) -> go.Figure:
    """Plot states at the two ends of a span in the plane of their first two principal components.

    Args:
        x0, x1: ``(N, D)``, states entering and leaving the span.
        recoupled: ``(N,)`` bool, the tokens that optimal transport in all D dimensions would re-pair: red lines.
    """
    from ..projections import PCA

    plane = PCA(2).fit(torch.cat([x0, x1]))
    pairs = Coupling(*(torch.from_numpy(plane.transform(x)) for x in (x0, x1)))
    figure = new_figure(title, "principal component 1", "principal component 2", height=540)
    figure.add_traces([{"type": "scatter", **trace} for trace in coupling_traces(pairs, changed=recoupled)[:4]])
    figure.update_traces(marker_size=5, selector={"mode": "markers"})
    figure.update_yaxes(scaleanchor="x", constrain="domain").update_xaxes(constrain="domain")
    words = f"{title}. {len(x0)} lines in the plane of two principal components, from states that enter the span "
    words += "(circles) to "
    return describe(
        figure, words + "states that leave it (squares), in another color where optimal transport would re-pair them."
    )


def predictions(
    scan: SpanScan,
    measured: dict[tuple[int, int], float],
    criteria: Sequence[str],
    title: str = "Predicted and measured",
    ranks: bool = False,
) -> go.Figure:
    """Plot the KL after training against each criterion, one panel each; color and symbol by length of the span.

    Args:
        measured: span (m, n) → KL after training, nats.
        criteria: keys of ``scan.tables``.
        ranks: plot rank against rank among the spans of the same length (1: the least; ties share their mean rank),
            which is what a rank correlation within lengths sees; each point is labeled with its span's first layer.
            Otherwise plot the values, KL on a logarithmic axis.
    """
    heads = panel_titles([TITLES.get(c, c) for c in criteria])
    figure = make_subplots(1, len(criteria), subplot_titles=heads, shared_yaxes=True, horizontal_spacing=0.04)
    figure.update_layout(new_figure(title, "", "", height=500).layout).update_layout(xaxis_title=None)
    make_room(figure, heads)
    lengths = sorted({n - m for m, n in measured})
    last = max(sum(n - m == length for m, n in measured) for length in lengths)
    if ranks:
        _draw_agreement(figure, len(criteria), last)
    for panel, criterion in enumerate(criteria, 1):
        drawn = []
        for length in lengths:
            spans = [span for span in measured if span[1] - span[0] == length]
            predicted, kl = [scan[criterion][span].item() for span in spans], [measured[span] for span in spans]
            drawn.append((spans, predicted, kl, *((_ranks(predicted), _ranks(kl)) if ranks else (predicted, kl))))
        places = iter(_places(drawn, last, len(criteria)) if ranks else ())
        for i, (length, (spans, predicted, kl, xs, ys)) in enumerate(zip(lengths, drawn, strict=True)):
            names = [f"layers {m} … {n - 1}" for m, n in spans]
            hover = [f"{span}: {x:.3g} → KL {y:.3f}" for span, x, y in zip(names, predicted, kl, strict=True)]
            color = SERIES[i % len(SERIES)]
            figure.add_scatter(
                x=xs,
                y=ys,
                mode="markers+text" if ranks else "markers",
                text=[str(m) for m, _ in spans],
                textposition=[next(places) for _ in spans] if ranks else None,
                textfont={"size": 11, "color": color},
                name=f"{length} layers",
                showlegend=panel == 1,
                legendgroup=str(length),
                marker={"color": color, "symbol": GROUP_SYMBOLS[i % len(GROUP_SYMBOLS)], "size": 9},
                customdata=hover,
                hovertemplate="%{customdata}<extra></extra>",
                row=1,
                col=panel,
            )
    kind = (
        "rank by KL after training against rank by the criterion"
        if ranks
        else "KL after training against the criterion"
    )
    shown = f"{title}. {len(criteria)} panels of marks, one per span: {kind}. Panels: "
    shown += f"{', '.join(TITLES.get(c, c) for c in criteria)}."
    describe(figure, f"{shown} Series: spans of {', '.join(map(str, lengths))} layers.")
    if ranks:
        figure.update_xaxes(title="rank of the criterion")
        return figure.update_layout(yaxis_title="rank of the KL after training")
    log_axis(figure, "y", measured.values())
    return figure.update_layout(yaxis_title="KL after training, nats")


def _places(drawn: list, last: int, panels: int) -> list[str]:
    """Return where the labels of a panel's marks stand, length by length."""
    points = [(x / (last + 1.5), y / (last + 1.5)) for *_, xs, ys in drawn for x, y in zip(xs, ys, strict=True)]
    texts = [str(m) for spans, *_ in drawn for m, _ in spans]
    return [text_position(*place) for place in place_labels(points, texts, (900 / panels, 330))]


def _ranks(values: Sequence[float]) -> list[float]:
    from scipy.stats import rankdata

    return rankdata(values).tolist()


def _draw_agreement(figure: go.Figure, panels: int, last: int) -> None:
    """Draw the diagonal from rank 1 to rank ``last`` in every panel: there, both ranks agree."""
    for panel in range(1, panels + 1):
        figure.add_scatter(
            x=[1, last],
            y=[1, last],
            mode="lines",
            name="both agree",
            line={"color": INK, "dash": "dash", "width": 1},
            hoverinfo="skip",
            showlegend=panel == 1,
            legendgroup="agree",
            row=1,
            col=panel,
        )
    ticks = [1, *range(5, last + 1, 5)]
    axis = {"range": [0, last + 1.5], "tickvals": ticks, "ticktext": [str(tick) for tick in ticks]}
    figure.update_xaxes(axis).update_yaxes(axis)


def rank_correlations(found: dict[str, dict[str, tuple[float, float, float]]], title: str) -> go.Figure:
    """Plot rank correlations with intervals, one row per criterion, the largest on top.

    Args:
        found: operator → criterion → (rho, low, high); a criterion with NaN is labeled "no signal".
    """
    first = next(iter(found.values()))
    criteria = sorted(first, key=lambda c: -2 if first[c][0] != first[c][0] else first[c][0])
    figure, looks = new_figure(title, "Spearman's rank correlation with the KL after training", ""), styles(found)
    for i, (name, values) in enumerate(found.items()):
        offset = 0.22 * (i - (len(found) - 1) / 2)
        kept = [(place, values[c]) for place, c in enumerate(criteria) if values[c][0] == values[c][0]]
        figure.add_scatter(
            x=[rho for _, (rho, _, _) in kept], y=[place + offset for place, _ in kept], mode="markers",
            name=escape(name),
            error_x={
                "array": [high - rho for _, (rho, _, high) in kept],
                "arrayminus": [rho - low for _, (rho, low, _) in kept], "symmetric": False, "thickness": 1.5,
            },
            marker={"color": looks[name].color, "symbol": looks[name].symbol, "size": 10},
            customdata=[[low, high] for _, (_, low, high) in kept],
            hovertemplate="%{x:.2f} (%{customdata[0]:.2f} to %{customdata[1]:.2f})",
        )  # fmt: skip
    names = [TITLES.get(c, c) + (" (no signal)" if first[c][0] != first[c][0] else "") for c in criteria]
    rows(figure, names, reverse=False)
    figure.update_xaxes(range=[-1.05, 1.05], zeroline=True, zerolinecolor=INK)
    words = f"{title}. Marks with intervals: Spearman's rank correlation, −1 to 1, of each criterion with the KL "
    return describe(figure, f"{words}after training. Series: {'; '.join(found)}. Rows: {'; '.join(sorted(names))}.")
