"""Choose a span on the heatmap of a criterion; see its states, its assignment and the KL measured after training."""

import ipywidgets as widgets
import plotly.graph_objects as go
import torch
from torch import Tensor

from .. import plots
from ..couplings import recoupling_ratio
from ..criteria import TITLES
from ..spans import SpanScan
from .plane import WIDE, App

COMPACT = {"width": 520, "height": 500, "margin": {"l": 60, "r": 10, "t": 50, "b": 60}}


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
        depth = scan.depth
        titles = [(TITLES.get(name, name), name) for name in scan.tables]
        self.criterion = widgets.Dropdown(options=titles, description="criterion", **WIDE)
        whole = {"continuous_update": False, **WIDE}
        self.m = widgets.IntSlider(value=span[0], min=0, max=depth - 1, description="first layer m", **whole)
        self.n = widgets.IntSlider(value=span[1], min=1, max=depth, description="ends before n", **whole)
        self.map, self.plane = go.FigureWidget(), go.FigureWidget()
        for control in (self.m, self.n):
            control.observe(lambda _: self.show_span(), "value")
        self.criterion.observe(lambda _: self.show_map(), "value")
        controls = widgets.VBox([self.criterion, self.m, self.n, self.status])
        pictures = widgets.HBox([self.map, self.plane], layout=widgets.Layout(flex_flow="row wrap"))
        self.view = widgets.VBox([controls, pictures])
        self.show_map()

    @property
    def span(self) -> tuple[int, int]:
        return self.m.value, self.n.value

    def show_map(self) -> None:
        """Draw the heatmap of the chosen criterion."""
        drawn = plots.recoupling_heatmap(self.scan, self.criterion.value, marked=[self.span]).update_layout(**COMPACT)
        self._draw(self.map, drawn)
        self.map.data[0].on_click(lambda trace, points, state: self.click(points.ys[0], points.xs[0]))
        self.show_span()

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
        title = f"Layers {m} … {n - 1}: R = {found.ratio:.3f}"
        self._draw(self.plane, plots.span_coupling(x0[some], x1[some], found.re_paired[some], title))
        self.plane.update_layout(**COMPACT)
        self.say(self.words(m, n))

    def words(self, m: int, n: int) -> str:
        """Return the criteria of a span and the KL measured after training, as text."""
        said = [
            f"{TITLES.get(name, name)} {self.scan[name][m, n]:.3f}{self.place(name, m, n)}" for name in self.scan.tables
        ]
        came = [f"{name} {kl[m, n]:.3f}" for name, kl in self.measured.items() if (m, n) in kl]
        trained = f"KL, nats: {', '.join(came)}." if came else "No operator was trained for this span."
        return f"Layers {m} … {n - 1}, {n - m} of them. " + "; ".join(said) + f". {trained}"

    def place(self, criterion: str, m: int, n: int) -> str:
        """Return the rank of a span among all of its length, as text."""
        values = self.scan[criterion].diagonal(n - m)
        values = values[~values.isnan()]
        rank = int((values < self.scan[criterion][m, n]).sum()) + 1
        return f" (rank {rank} of {len(values)})" if len(values) > 1 else ""

    @staticmethod
    def _draw(widget: go.FigureWidget, figure: go.Figure) -> None:
        """Replace a widget's traces and layout by those of a figure of the same kind."""
        with widget.batch_update():
            if len(widget.data) != len(figure.data):
                widget.data = ()
                widget.add_traces(figure.data)
            for shown, trace in zip(widget.data, figure.data, strict=True):
                shown.update(trace.to_plotly_json(), overwrite=True)
            widget.update_layout(figure.layout, overwrite=True)
