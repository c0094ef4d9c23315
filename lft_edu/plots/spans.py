"""Figures of spans: a criterion over all spans, states at both ends of one, predictions against measurements."""

import html
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from ..couplings import Coupling
from ..criteria import TITLES
from ..spans import SpanScan
from .base import BLACK, GRAY, GROUP_SYMBOLS, SERIES, VERMILLION, new_figure
from .plane import coupling_traces

PAPER = ((6, 12), (6, 18))  # our reading of the paper's "6-12" and "6-18": half-open [D]


def title_of(criterion: str) -> str:
    """Return a criterion's title for figures, HTML-escaped."""
    return html.escape(TITLES.get(criterion, criterion), quote=False)


def recoupling_heatmap(
    scan: SpanScan, criterion: str = "recoupling", marked: Iterable[tuple[int, int]] = PAPER
) -> go.Figure:
    """Plot a criterion of every span [m, n), one cell each, m down and n across. Dark cells predict little damage.

    Args:
        criterion: a key of ``scan.tables``.
        marked: spans (m, n) to draw a frame around; by default the paper's, which the legend then names.
    """
    table, (low, high) = scan[criterion], scan.intervals(criterion)
    values = [[None if x != x else x for x in row] for row in table.tolist()]  # JSON has no NaN
    cells = [[_cell(m, n, table, low, high) for n in range(len(table))] for m in range(len(table))]
    figure = new_figure(
        f"{TITLES.get(criterion, criterion)} of every span, {scan.n} tokens", "n: the span ends before layer n",
        "m: the span begins with layer m", width=620, height=560,
    )  # fmt: skip
    figure.add_heatmap(
        z=values, x=list(range(len(table))), y=list(range(len(table))), colorscale="Cividis", zmin=0,
        customdata=cells, hovertemplate="%{customdata}<extra></extra>", hoverongaps=False, xgap=1, ygap=1,
    )  # fmt: skip
    figure.add_scatter(
        x=[n for _, n in marked], y=[m for m, _ in marked], mode="markers", hoverinfo="skip",
        name="the paper's spans", showlegend=marked is PAPER,
        marker={"symbol": "square-open", "size": 17, "color": VERMILLION, "line": {"width": 3}},
    )  # fmt: skip
    figure.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"})
    figure.update_xaxes(range=[-0.5, len(table) - 0.5], dtick=2, showgrid=False, zeroline=False)
    figure.update_yaxes(range=[len(table) - 0.5, -0.5], dtick=2, showgrid=False, zeroline=False)
    return figure


def _cell(m: int, n: int, table: Tensor, low: Tensor, high: Tensor) -> str:
    if bool(table[m, n].isnan()):
        return ""
    interval = "" if bool(low[m, n].isnan()) else f" ({low[m, n]:.3f} to {high[m, n]:.3f})"
    return f"layers {m} … {n - 1} ({n - m} of them): {table[m, n]:.3f}{interval}"


def span_coupling(x0: Tensor, x1: Tensor, recoupled: Tensor, title: str) -> go.Figure:
    """Plot states at the two ends of a span in the plane of their first two principal components.

    Args:
        x0, x1: ``(N, D)``, states entering and leaving the span.
        recoupled: ``(N,)`` bool, the tokens that optimal transport in all D dimensions would re-pair: orange lines.
    """
    from ..projections import PCA

    plane = PCA(2).fit(torch.cat([x0, x1]))
    pairs = Coupling(*(torch.from_numpy(plane.transform(x)) for x in (x0, x1)))
    figure = new_figure(title, "principal component 1", "principal component 2", width=560, height=560)
    figure.add_traces([{"type": "scatter", **trace} for trace in coupling_traces(pairs, changed=recoupled)[:4]])
    figure.update_traces(marker_size=4, selector={"mode": "markers"})
    return figure.update_layout(legend={"orientation": "h", "y": -0.15})


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
    figure = make_subplots(1, len(criteria), subplot_titles=[title_of(c) for c in criteria], shared_yaxes=True)
    figure.update_layout(new_figure(title, "", "").layout).update_layout(xaxis_title=None)
    lengths = sorted({n - m for m, n in measured})
    if ranks:
        last = max(sum(n - m == length for m, n in measured) for length in lengths)
        _draw_agreement(figure, len(criteria), last)
    for panel, criterion in enumerate(criteria, 1):
        for i, length in enumerate(lengths):
            spans = [span for span in measured if span[1] - span[0] == length]
            predicted, kl = [scan[criterion][span].item() for span in spans], [measured[span] for span in spans]
            names = [f"layers {m} … {n - 1}" for m, n in spans]
            hover = [f"{span}: {x:.3g} → KL {y:.3f}" for span, x, y in zip(names, predicted, kl, strict=True)]
            figure.add_scatter(
                x=_ranks(predicted) if ranks else predicted,
                y=_ranks(kl) if ranks else kl,
                mode="markers+text" if ranks else "markers",
                text=[str(m) for m, _ in spans],
                textposition="top right",
                textfont={"size": 10, "color": SERIES[i]},
                name=f"{length} layers",
                showlegend=panel == 1,
                legendgroup=str(length),
                marker={"color": SERIES[i], "symbol": GROUP_SYMBOLS[i], "size": 9},
                customdata=hover,
                hovertemplate="%{customdata}<extra></extra>",
                row=1,
                col=panel,
            )
    if ranks:
        figure.update_xaxes(title="rank of the criterion")
        return figure.update_layout(yaxis_title="rank of the KL after training")
    ticks = [digit * 10.0**power for power in range(-3, 2) for digit in (1, 2, 5)]
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks], minor_ticks="")
    return figure.update_layout(yaxis_title="KL after training, nats")


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
            line={"color": GRAY, "dash": "dash", "width": 1},
            hoverinfo="skip",
            showlegend=panel == 1,
            legendgroup="agree",
            row=1,
            col=panel,
        )
    ticks = [1, *range(5, last + 1, 5)]
    axis = {"range": [0, last + 1.5], "tickvals": ticks, "ticktext": [str(tick) for tick in ticks]}
    figure.update_xaxes(axis).update_yaxes(axis)
    figure.update_layout(legend={"orientation": "h", "y": -0.2})


def rank_correlations(found: dict[str, dict[str, tuple[float, float, float]]], title: str) -> go.Figure:
    """Plot rank correlations with intervals, one row per criterion, the largest on top.

    Args:
        found: operator → criterion → (rho, low, high); a criterion with NaN is labeled "no signal".
    """
    first = next(iter(found.values()))
    criteria = sorted(first, key=lambda c: -2 if first[c][0] != first[c][0] else first[c][0])
    figure = new_figure(
        title, "Spearman's rank correlation with the KL after training", "", height=140 + 52 * len(first)
    )
    for i, (name, rows) in enumerate(found.items()):
        offset = 0.22 * (i - (len(found) - 1) / 2)
        kept = [(place, rows[c]) for place, c in enumerate(criteria) if rows[c][0] == rows[c][0]]
        figure.add_scatter(
            x=[rho for _, (rho, _, _) in kept], y=[place + offset for place, _ in kept], mode="markers",
            name=html.escape(name),
            error_x={
                "array": [high - rho for _, (rho, _, high) in kept],
                "arrayminus": [rho - low for _, (rho, low, _) in kept], "symmetric": False, "thickness": 1.5,
            },
            marker={"color": (*SERIES[:3], BLACK, GRAY)[i % 5], "symbol": GROUP_SYMBOLS[i % 7], "size": 10},
            customdata=[[low, high] for _, (_, low, high) in kept],
            hovertemplate="%{x:.2f} (%{customdata[0]:.2f} to %{customdata[1]:.2f})",
        )  # fmt: skip
    names = [title_of(c) + (" (no signal)" if first[c][0] != first[c][0] else "") for c in criteria]
    figure.update_yaxes(tickvals=list(range(len(criteria))), ticktext=names, range=[-0.6, len(criteria) - 0.4])
    figure.update_xaxes(range=[-1.05, 1.05], zeroline=True, zerolinecolor=BLACK)
    return figure
