"""Choose a span on the heatmap of a criterion; see its states, its assignment and the KL measured after training."""

import html

import ipywidgets as widgets
import plotly.graph_objects as go
import torch
from torch import Tensor

from .. import plots
from ..couplings import recoupling_ratio
from ..criteria import TITLES
from ..spans import SpanScan
from .frame import WIDE, App, columns, compact, figure_widget
from .stills import still

HEIGHT = 430
CELL = "padding:1px 10px 1px 0;text-align:left"


class SpanApp(App):
    """A heatmap of all spans: click a cell, or move the sliders.

    Args:
        scan: criteria of every span.
        states: ``(L+1, N, D)``, the states scanned (or others, such as those of a single token id).
        measured: operator → span (m, n) → KL, for the spans that were measured.
        span: chosen at first.
        shown: number of tokens drawn; the assignment is that of all N.
    """

    def __init__(self, scan: SpanScan, states: Tensor, measured: dict | None = None, span=(6, 18), shown: int = 200):
        super().__init__()
        self.scan, self.states, self.measured, self.shown = scan, states, measured or {}, shown
        self.first = tuple(span)
        depth = scan.depth
        titles = [(TITLES.get(name, name), name) for name in scan.tables]
        self.criterion = widgets.Dropdown(options=titles, description="criterion", **WIDE)
        whole = {"continuous_update": False, **WIDE}
        self.m = widgets.IntSlider(value=span[0], min=0, max=depth - 1, description="first layer m", **whole)
        self.n = widgets.IntSlider(value=span[1], min=1, max=depth, description="ends before n", **whole)
        self.resetting = widgets.Button(description="Reset", tooltip="Show the first span and the first criterion")
        self.map, self.plane = figure_widget(height=HEIGHT), figure_widget(height=HEIGHT)
        for control in (self.m, self.n):
            control.observe(lambda _: self.show_span(), "value")
        self.criterion.observe(lambda _: self.show_map(), "value")
        self.resetting.on_click(lambda _: self.reset())
        controls = [self.criterion, self.m, self.n, self.resetting, self.status]
        self.view = columns((controls, "0 1 290px"), ([self.map], "1 1 290px"), ([self.plane], "1 1 290px"))
        self.show_map()

    @property
    def span(self) -> tuple[int, int]:
        return self.m.value, self.n.value

    def reset(self) -> None:
        """Show the first span and the first criterion."""
        self.criterion.value = next(iter(self.scan.tables))
        self.click(*self.first)

    def show_map(self) -> None:
        """Draw the heatmap of the chosen criterion."""
        self._draw(self.map, self._map())
        self.map.data[0].on_click(lambda trace, points, state: self.click(points.ys[0], points.xs[0]))
        self.show_span()

    def _map(self) -> go.Figure:
        return plots.recoupling_heatmap(self.scan, self.criterion.value, marked=[self.span])

    def click(self, m: int, n: int) -> None:
        """Choose span [m, n), as a click on its cell does; cells outside the triangle are ignored."""
        if 0 <= m < n:
            with self.m.hold_trait_notifications(), self.n.hold_trait_notifications():
                self.m.value, self.n.value = m, n

    def show_span(self) -> None:
        """Draw the states and the assignment of the chosen span, and describe it."""
        m, n = self.span
        if m >= n:
            self.complain(ValueError(f"The span is empty: choose n above m = {m}."))
            return
        with self.map.batch_update():
            self.map.data[1].update(x=[n], y=[m])
        x0, x1 = self.states[m], self.states[n]
        found = recoupling_ratio(x0, x1)
        some = torch.arange(len(x0)) < self.shown
        title = f"Layers {m} … {n - 1}: R = {found.ratio:.3f} of {len(x0):,} tokens"
        self._draw(self.plane, plots.span_coupling(x0[some], x1[some], found.re_paired[some], title))
        self.status.value = self.table(m, n)

    def table(self, m: int, n: int) -> str:
        """Return the criteria of a span with their ranks, and the KL measured after training, as HTML tables."""
        rows = []
        for name in self.scan.tables:
            chosen = ";font-weight:600" if name == self.criterion.value else ""
            words = TITLES.get(name, name), f"{self.scan[name][m, n]:.3f}", self.rank(name, m, n)
            rows.append("".join(f"<td style='{CELL}{chosen}'>{html.escape(word)}</td>" for word in words))
        heads = "criterion", "value", "rank, 1: least"
        head = "".join(f"<th scope='col' style='{CELL}'>{word}</th>" for word in heads)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        said = f"Layers {m} … {n - 1}, {n - m} of them. Criteria of the scan, {self.scan.n:,} tokens; ranks among the "
        drawn = f"The picture's R is that of its own {self.states.shape[1]:,} tokens: R grows with their number."
        note = "" if self.states.shape[1] == self.scan.n else f"<p style='margin:6px 0'>{drawn}</p>"
        return (
            f"<div role='status' style='line-height:1.35'><p style='margin:6px 0'>{said}spans of this length.</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}{self._trained(m, n)}</div>"
        )

    def _trained(self, m: int, n: int) -> str:
        """Return the KL of the operators that were trained for a span."""
        came = {name: kl[m, n] for name, kl in self.measured.items() if (m, n) in kl}
        if not came:
            return "<p style='margin:6px 0'>No operator was trained for this span.</p>"
        rows = "".join(
            f"<tr><td style='{CELL}'>{html.escape(name)}</td><td style='{CELL}'>{kl:.3f}</td></tr>"
            for name, kl in came.items()
        )
        head = f"<th scope='col' style='{CELL}'>in its place</th><th scope='col' style='{CELL}'>KL, nats</th>"
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def rank(self, criterion: str, m: int, n: int) -> str:
        """Return the rank of a span among all of its length, as text."""
        values = self.scan[criterion].diagonal(n - m)
        values = values[~values.isnan()]
        rank = int((values < self.scan[criterion][m, n]).sum()) + 1
        return f"{rank} of {len(values)}" if len(values) > 1 else ""

    def picture(self) -> str:
        """Return the heatmap."""
        alt = f"{TITLES.get(self.criterion.value, self.criterion.value)} of every span of layers"
        return still(self._map(), alt) + self.table(*self.span)

    @staticmethod
    def _draw(widget: go.FigureWidget, figure: go.Figure) -> None:
        """Replace a widget's traces and layout by those of a figure of the same kind."""
        figure.update_layout(**compact(HEIGHT))
        with widget.batch_update():
            if len(widget.data) != len(figure.data):
                widget.data = ()
                widget.add_traces(figure.data)
            for shown, trace in zip(widget.data, figure.data, strict=True):
                shown.update(trace.to_plotly_json(), overwrite=True)
            widget.update_layout(figure.layout, overwrite=True)
