"""An application in the plane: couple two point clouds, and read the recoupling ratio."""

import ipywidgets as widgets
import torch

from .. import plots, shapes
from ..couplings import METRICS, Coupling
from ..plots import plane as drawing
from .frame import WIDE, App, columns, figure_widget
from .stills import still

OWN = "your own points"
PAIRINGS = ("as given", "independent", "optimal transport")
CROSSING = ("-1.5 1\n-1.5 -1\n", "1.5 -1\n1.5 1\n")  # two pairs whose lines cross
REACH = 2.1  # half the width of the plane that can be clicked


class CouplingApp(App):
    """Choose two point clouds and a coupling, and read its recoupling ratio.

    For *your own points* click in the plane: first a start, then its end. Drag a point to move it, or type the
    coordinates, one point per line.

    Args:
        shape: a name in ``lft_edu.shapes.SHAPES``. n: number of pairs. seed: of the points.
    """

    def __init__(self, shape: str = "beams", n: int = 24, seed: int = 0):
        super().__init__()
        self.seed = seed
        self.own: str | None = None  # start of the pair being clicked
        self.past: list[tuple] = []  # states to go back to
        self.busy = False  # several controls are being set
        planar = [name for name in shapes.SHAPES if name != "line"]
        self.shape = widgets.Dropdown(options=[*planar, OWN], value=shape, description="clouds", **WIDE)
        self.n = widgets.IntSlider(value=n, min=4, max=200, description="pairs N", continuous_update=False, **WIDE)
        self.pairing = widgets.SelectionSlider(options=PAIRINGS, value=PAIRINGS[0], description="pairing", **WIDE)
        self.metric = widgets.Dropdown(options=METRICS, value="euclidean", description="metric", **WIDE)
        half = {"rows": 6, "layout": widgets.Layout(flex="1 1 120px", width="auto"), "continuous_update": False}
        self.starts, self.ends = (
            widgets.Textarea(value=value, placeholder="x y", tooltip=f"{name}, one per line: x y", **half)
            for name, value in zip(("starts x₀", "ends x₁"), CROSSING, strict=True)
        )
        named = [
            widgets.VBox([widgets.HTML(f"<b>{name}</b>"), box], layout=widgets.Layout(flex="1 1 120px"))
            for name, box in (("starts x₀", self.starts), ("ends x₁", self.ends))
        ]
        self.boxes = widgets.HBox(named, layout=widgets.Layout(max_width="420px"))
        self.buttons = [
            self._button("Undo", self.undo, "Go back to the points before the last change"),
            self._button("Clear", self.clear, "Remove all points, to click your own"),
            self._button("Reset", self.reset, "Set everything as it was at first"),
        ]
        empty = plots.coupling(shapes.beams(4))
        self.figure = figure_widget(empty, 480, edits={"annotationPosition": True})
        self.figure.update_layout(
            title_text="", margin={"l": 36, "r": 8, "t": 40, "b": 30}, legend=ABOVE, dragmode=False
        ).update_xaxes(showticklabels=True).update_yaxes(showticklabels=True, constraintoward="top")
        # a square that shows as far as clicks are received, not as far as the figure is wide
        self._add_canvas()
        self.figure.layout.on_change(lambda _, annotations: self._dragged(annotations), "annotations")
        self.first = self._state()
        self.last = self.first
        for control in self._controls():
            control.observe(lambda _: self.update(), "value")
        tools = widgets.HBox(self.buttons, layout=widgets.Layout(flex_flow="row wrap"))
        hint = widgets.HTML("<div style='line-height:1.4'>Or click in the plane: a start, then its end.</div>")
        controls = [self.shape, self.n, self.pairing, self.metric, hint, self.boxes, tools, self.status]
        self.view = columns((controls, "0 1 340px"), ([self.figure], "0 1 540px"))
        self.update()

    def _button(self, name: str, act, tooltip: str) -> widgets.Button:
        button = widgets.Button(description=name, tooltip=tooltip, layout=widgets.Layout(width="84px"))
        button.on_click(lambda _: act())
        return button

    def _controls(self) -> tuple:
        return self.shape, self.n, self.pairing, self.metric, self.starts, self.ends

    def _state(self) -> tuple:
        return tuple(control.value for control in self._controls())

    def _set(self, state: tuple, remember: bool = True) -> None:
        """Set all controls, and redraw once."""
        self.busy = True
        try:
            for control, value in zip(self._controls(), state, strict=True):
                control.value = value
        finally:
            self.busy = False
        self.update(remember)

    def pairs(self) -> Coupling:
        """Return the coupling that the controls describe."""
        if self.shape.value == OWN:
            given = shapes.from_text(self.starts.value, self.ends.value)
        else:
            given = shapes.make(self.shape.value, self.n.value, torch.Generator().manual_seed(self.seed))
        if self.pairing.value == "independent":
            return given.independent(torch.Generator().manual_seed(self.seed + 1))
        return given.optimal_transport(self.metric.value) if self.pairing.value == "optimal transport" else given

    def update(self, remember: bool = True) -> None:
        """Redraw; on an error keep the figure and show the message in the status line."""
        if self.busy:
            return
        if remember and self._state() != self.last:
            self.past.append(self.last)
        self.last, self.own = self._state(), None
        own = self.shape.value == OWN
        self.boxes.layout.display = "" if own else "none"
        self.n.layout.display = "none" if own else ""
        if own and not (self.starts.value.strip() or self.ends.value.strip()):
            self._draw_nothing()
            return
        try:
            pairs = self.pairs()
            traces = drawing.coupling_traces(pairs, self.metric.value)
            title = drawing.coupling_title(self.pairing.value, pairs, self.metric.value)
        except ValueError as error:
            self.complain(error)
            return
        reach = max(REACH, *drawing.axis_limits(pairs.x0, pairs.x1))
        with self.figure.batch_update():
            for shown, trace in zip(self.figure.data, traces, strict=False):
                shown.update(trace)
            self.figure.layout.xaxis.range = self.figure.layout.yaxis.range = [-reach, reach]
            self.figure.layout.annotations = self._handles(pairs) if own else ()
        self.say(f"{len(pairs)} pairs. {title}" if len(pairs) != 1 else f"1 pair. {title}")

    def _draw_nothing(self) -> None:
        with self.figure.batch_update():
            for trace in self.figure.data[:5]:
                trace.update(x=[], y=[])
            self.figure.layout.annotations = ()
        self.say("No points yet: click a start in the plane, then its end.")

    def undo(self) -> None:
        """Go back to the state before the last change; a start without an end is forgotten first."""
        if self.own is not None:
            self.update()
        elif self.past:
            self._set(self.past.pop(), remember=False)

    def clear(self) -> None:
        """Remove all points."""
        self._set((OWN, *self._state()[1:4], "", ""))

    def reset(self) -> None:
        """Set all controls as they were at first."""
        self._set(self.first)

    def _add_canvas(self) -> None:
        """Add a lattice of invisible points that receives clicks in the plane."""
        lattice = torch.cartesian_prod(*[torch.linspace(-2, 2, 41)] * 2)
        self.figure.add_scatter(
            x=lattice[:, 0].numpy(), y=lattice[:, 1].numpy(), mode="markers", showlegend=False,
            marker={"size": 9, "opacity": 0}, hovertemplate="(%{x:.1f}, %{y:.1f})<extra></extra>",
        )  # fmt: skip
        self.figure.data[-1].on_click(lambda trace, points, state: self.click(points.xs[0], points.ys[0]))

    def click(self, x: float, y: float) -> None:
        """Handle a click at (x, y): a start, or the end of the pair already started."""
        point = _words(x, y)
        if self.own is None:
            self.own = point
            starts = self.figure.data[2]
            starts.x, starts.y = [*starts.x, x], [*starts.y, y]
            self.say(f"Start at ({point}): now click its end.")
            return
        begun, fresh = self.own, self.shape.value != OWN
        texts = [
            ("" if fresh else box.value.rstrip() + "\n").lstrip() + new
            for box, new in ((self.starts, begun), (self.ends, point))
        ]
        self._set((OWN, *self._state()[1:4], *texts))

    def _handles(self, pairs: Coupling) -> list[dict]:
        """Return a frame around each point, by which it can be dragged."""
        frame = {
            "showarrow": False, "text": " ", "width": 12, "height": 12, "borderpad": 1, "borderwidth": 1,
            "bordercolor": "rgba(120,120,120,0.55)", "hovertext": "drag to move",
        }  # fmt: skip
        given = shapes.from_text(self.starts.value, self.ends.value)  # in the order of the text boxes
        return [{**frame, "x": x, "y": y} for x, y in torch.cat([given.x0, given.x1]).tolist()]

    def _dragged(self, annotations) -> None:
        """Handle points that were dragged: write their new coordinates into the boxes."""
        if self.shape.value != OWN or self.busy or not annotations:
            return
        boxes = [[line for line in box.value.splitlines() if line.strip()] for box in (self.starts, self.ends)]
        rows = [*boxes[0], *boxes[1]]
        if len(rows) != len(annotations):
            return
        for i, mark in enumerate(annotations):
            if _words(mark.x, mark.y) != _words(*map(float, rows[i].replace(",", " ").split())):
                rows[i] = _words(mark.x, mark.y)
        texts = ["\n".join(part) + "\n" for part in (rows[: len(boxes[0])], rows[len(boxes[0]) :])]
        if texts != ["\n".join(part) + "\n" for part in boxes]:
            self._set((OWN, *self._state()[1:4], *texts))

    def picture(self) -> str:
        """Return a picture of the coupling shown."""
        try:
            pairs = self.pairs()
        except ValueError:
            return ""
        title = drawing.coupling_title(self.pairing.value, pairs, self.metric.value)
        return still(plots.coupling({self.pairing.value: pairs}, self.metric.value), f"{len(pairs)} pairs. {title}")


ABOVE = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 11}}  # off the tick labels


def _words(x: float, y: float) -> str:
    """Return a point as the text boxes have it, rounded to 0.1."""
    return f"{x + 0.0:.1f} {y + 0.0:.1f}".replace("-0.0", "0.0")
