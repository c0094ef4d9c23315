"""Applications in the plane: couple two point clouds, train a flow and watch its paths."""

import html
import threading
from functools import partial

import ipywidgets as widgets
import plotly.graph_objects as go
import torch

from .. import objectives, plane, plots, shapes
from ..couplings import METRICS, Coupling
from ..flow import EVALUATIONS, STEPS, uniform_times
from ..plots import plane as drawing

OWN = "your own points"
PAIRINGS = ("as given", "independent", "optimal transport")
COMPACT = {
    "width": 560,
    "height": 560,
    "margin_b": 90,
    "legend": {"orientation": "h", "y": -0.02},
}  # fits next to the controls
WIDE = {"style": {"description_width": "130px"}, "layout": widgets.Layout(width="420px")}


class App:
    """Base class of applications: a ``view`` to display and a status line for results and errors."""

    def __init__(self):
        self.status = widgets.HTML()

    def say(self, text: str) -> None:
        self.status.value = f"<p role='status' style='font-size:14px'>{html.escape(text)}</p>"

    def complain(self, error: Exception) -> None:
        self.status.value = f"<p role='alert' style='color:#B00020;font-size:14px'>{html.escape(str(error))}</p>"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.view)


class CouplingApp(App):
    """Choose two point clouds and a coupling, and read its recoupling ratio.

    For *your own points* type one point per line, or click in the plane: first a start, then its end.

    Args:
        shape: a name in ``lft_edu.shapes.SHAPES``. n: number of pairs. seed: of the points.
    """

    def __init__(self, shape: str = "beams", n: int = 24, seed: int = 0):
        super().__init__()
        self.seed = seed
        self.own = None  # start of the pair being clicked
        planar = [name for name in shapes.SHAPES if name != "line"]
        self.shape = widgets.Dropdown(options=[*planar, OWN], value=shape, description="clouds", **WIDE)
        self.n = widgets.IntSlider(value=n, min=4, max=200, description="pairs N", continuous_update=False, **WIDE)
        self.pairing = widgets.SelectionSlider(options=PAIRINGS, value=PAIRINGS[0], description="pairing", **WIDE)
        self.metric = widgets.Dropdown(options=METRICS, value="euclidean", description="metric", **WIDE)
        box = {"rows": 6, "layout": widgets.Layout(width="200px"), "continuous_update": False}
        self.starts = widgets.Textarea(value="-1.5 1\n-1.5 -1\n", description="starts", **box)
        self.ends = widgets.Textarea(value="1.5 -1\n1.5 1\n", description="ends", **box)
        self.boxes = widgets.HBox([self.starts, self.ends])
        start = plots.coupling(shapes.beams(4)).update_layout(**COMPACT)
        self.figure = go.FigureWidget(start.update_xaxes(showticklabels=True).update_yaxes(showticklabels=True))
        self._add_canvas()
        for control in (self.shape, self.n, self.pairing, self.metric, self.starts, self.ends):
            control.observe(lambda _: self.update(), "value")
        controls = widgets.VBox([self.shape, self.n, self.pairing, self.metric, self.boxes, self.status])
        self.view = widgets.HBox([controls, self.figure], layout=widgets.Layout(flex_flow="row wrap"))
        self.update()

    def pairs(self) -> Coupling:
        """Return the coupling that the controls describe."""
        if self.shape.value == OWN:
            given = shapes.from_text(self.starts.value, self.ends.value)
        else:
            given = shapes.make(self.shape.value, self.n.value, torch.Generator().manual_seed(self.seed))
        if self.pairing.value == "independent":
            return given.independent(torch.Generator().manual_seed(self.seed + 1))
        return given.optimal_transport(self.metric.value) if self.pairing.value == "optimal transport" else given

    def update(self) -> None:
        """Redraw; on an error keep the figure and show the message in the status line."""
        own = self.shape.value == OWN
        self.boxes.layout.display = "" if own else "none"
        self.n.disabled = own
        try:
            pairs = self.pairs()
            traces = drawing.coupling_traces(pairs, self.metric.value)
            title = drawing.coupling_title(self.pairing.value, pairs, self.metric.value)
        except ValueError as error:
            self.complain(error)
            return
        reach = max(2.1, *drawing.axis_limits(pairs.x0, pairs.x1))
        with self.figure.batch_update():
            for shown, trace in zip(self.figure.data, traces, strict=False):
                shown.update(trace)
            self.figure.layout.title.text = title
            self.figure.layout.xaxis.range = self.figure.layout.yaxis.range = [-reach, reach]
        self.say(f"{len(pairs)} pairs. {title}")

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
        point = f"{x + 0.0:.1f} {y + 0.0:.1f}".replace("-0.0", "0.0")
        if self.own is None:
            self.own = point
            starts = self.figure.data[2]
            starts.x, starts.y = [*starts.x, x], [*starts.y, y]
            self.say(f"Start at ({point}): now click its end.")
            return
        begun, self.own = self.own, None
        fresh = self.shape.value != OWN
        texts = [
            ("" if fresh else box.value.rstrip() + "\n") + new
            for box, new in ((self.starts, begun), (self.ends, point))
        ]
        with self.starts.hold_trait_notifications(), self.ends.hold_trait_notifications():
            self.starts.value, self.ends.value = texts
        self.shape.value = OWN


class FlowApp(App):
    """Choose pairs and a loss, train a small velocity network, and integrate it with any number of steps.

    Training runs in a thread, so that *Stop* and all other controls keep working.

    Args:
        shape: a name in ``lft_edu.shapes.SHAPES``. loss: one of ``LOSSES``. steps: optimizer steps.
    """

    LOSSES = ("flow matching", "Flow Walking", "hybrid")

    def __init__(self, shape: str = "beams", loss: str = "flow matching", steps: int = 1500):
        super().__init__()
        self.steps, self.trained, self.thread, self.stopped = steps, None, None, threading.Event()
        self.shape = widgets.Dropdown(options=list(shapes.SHAPES), value=shape, description="pairs", **WIDE)
        self.seed = 0  # of the initialization; incremented at each training
        self.loss = widgets.Dropdown(options=self.LOSSES, value=loss, description="loss", **WIDE)
        self.k = widgets.IntSlider(value=3, min=1, max=6, description="steps k, training", **WIDE)
        self.random = widgets.Checkbox(value=True, description="random times", **WIDE)
        self.alpha = widgets.FloatLogSlider(value=0.1, min=-3, max=1, description="hybrid α", **WIDE)
        self.button = widgets.Button(description="Train", button_style="primary", tooltip="Train, or stop training")
        self.test_k = widgets.SelectionSlider(
            options=[1, 2, 3, 4, 6, 10, 20, 50, 200], value=20, description="steps k, testing", **WIDE
        )
        self.solver = widgets.ToggleButtons(options=list(STEPS), value="midpoint", description="solver")
        self.figure = go.FigureWidget()
        narrow = {"layout": widgets.Layout(width="280px"), "style": {"description_width": "60px"}}
        self.t = widgets.IntSlider(value=20, min=0, max=20, description="t · 20", **narrow)
        self.play = widgets.Play(value=20, min=0, max=20, interval=120)
        widgets.jslink((self.play, "value"), (self.t, "value"))
        self.t.observe(lambda _: self.show_time(), "value")
        self.live = LiveLoss("Loss")
        self.button.on_click(lambda _: self.stop() if self.running else self.train())
        self.loss.observe(lambda _: self._enable(), "value")
        for control in (self.test_k, self.solver):
            control.observe(lambda _: self.draw(), "value")
        self.shape.observe(lambda _: self.reset(), "value")
        training = [self.shape, self.loss, self.k, self.random, self.alpha, self.button]
        controls = widgets.VBox([*training, self.test_k, self.solver, widgets.HBox([self.play, self.t]), self.status])
        pictures = widgets.VBox([self.figure, self.live.figure])
        self.view = widgets.HBox([controls, pictures], layout=widgets.Layout(flex_flow="row wrap"))
        self._enable()
        self.reset()

    @property
    def running(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def reset(self) -> None:
        """Start over with new pairs and an untrained network."""
        self.stop()
        self.pairs = shapes.make(self.shape.value, 2000, torch.Generator().manual_seed(0))
        self.shown = shapes.make(self.shape.value, 60, torch.Generator().manual_seed(9))
        self._new_network()
        self.draw()

    def _new_network(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.velocity = plane.VelocityMLP(self.pairs.x0.shape[1], generator=generator)
        self.seed += 1

    def objective(self):
        """Return the loss that the controls describe, for :func:`lft_edu.plane.train`."""
        if self.loss.value == "flow matching":
            return objectives.flow_matching_loss
        if self.loss.value == "hybrid":
            return partial(objectives.hybrid_loss, alpha=self.alpha.value, k=self.k.value)
        times = None if self.random.value else uniform_times(self.k.value)
        return partial(objectives.flow_walking_loss, k=self.k.value, times=times)

    def train(self, wait: bool = False) -> None:
        """Start training a new network; with ``wait``, return when it is done."""
        self.stop()
        self.stopped.clear()
        self._new_network()
        self.thread = threading.Thread(target=self._train, args=(self.objective(),), daemon=True)
        self.thread.start()
        if wait:
            self.thread.join()

    def stop(self) -> None:
        """Stop training and keep the network as it is."""
        self.stopped.set()
        if self.running and threading.current_thread() is not self.thread:
            self.thread.join()

    def _train(self, objective) -> None:
        self.button.description, self.button.button_style = "Stop", "warning"
        self.live.clear()

        def watch(step, loss, velocity):
            self.live(step, loss, velocity)
            if step % 150 == 0:
                self.draw(step)
            return self.stopped.is_set()

        try:
            plane.train(self.pairs, objective, self.steps, velocity=self.velocity, watch=watch, progress=False)
            self.draw()
        except (ValueError, RuntimeError) as error:
            self.complain(error)
        finally:
            self.button.description, self.button.button_style = "Train", "primary"

    def draw(self, step: int | None = None) -> None:
        """Draw the paths of the current network and report where the points end."""
        k, solver = self.test_k.value, self.solver.value
        self.path = plane.carry(self.velocity, self.shown.x0, k, STEPS[solver], return_path=True)
        drawn = drawing.walks({f"{solver}, {k} steps": self.path}, self.shown)
        drawn.layout.sliders = drawn.layout.updatemenus = ()  # they need frames, which a widget does not have
        self.frames, self.marks = drawn.frames, drawn.frames[0].traces
        with self.figure.batch_update():
            if len(self.figure.data) != len(drawn.data):
                self.figure.data = ()
                self.figure.add_traces(drawn.data)
            self.figure.update_layout(drawn.layout, overwrite=True)
            self.figure.update_layout(**COMPACT)
            for shown, trace in zip(self.figure.data, drawn.data, strict=True):
                shown.x, shown.y = trace.x, trace.y
        self.show_time()
        done = f"after {step:,} steps of training: " if step else ""
        kept, error = (f(self.path[-1], self.shown).item() for f in (plane.pairs_kept, plane.coupling_error))
        self.say(
            f"{done}{kept:.0%} end in their own group, coupling error {error:.2f}, "
            f"{k * EVALUATIONS[solver]} velocity evaluations per point"
        )

    def show_time(self) -> None:
        """Move the points to the slider's time: to the nearest state of the path."""
        frame = self.frames[round(self.t.value / self.t.max * (len(self.frames) - 1))]
        with self.figure.batch_update():
            for mark, place in zip(self.marks, frame.data, strict=True):
                self.figure.data[mark].update(x=place.x, y=place.y)

    def _enable(self) -> None:
        self.k.disabled = self.loss.value == "flow matching"
        self.random.disabled = self.loss.value != "Flow Walking"
        self.alpha.disabled = self.loss.value != "hybrid"


class LiveLoss:
    """A loss curve that grows during training: pass it as ``watch`` to :func:`lft_edu.plane.train`.

    Args:
        every: steps per point of the curve, which is their mean.
        width: of the figure, in pixels.
    """

    def __init__(self, title: str = "Loss", every: int = 25, width: int = 560):
        self.every, self.title = every, title
        empty = plots.new_figure(title, "step", "loss", height=260, width=width).update_yaxes(type="log")
        self.figure = go.FigureWidget(empty)
        self.figure.add_scatter(mode="lines", line={"color": plots.SERIES[0]}, name=html.escape(title))
        self.clear()

    def clear(self) -> None:
        """Remove all points."""
        self.losses, self.points = [], []
        self.figure.data[0].update(x=[], y=[])

    def __call__(self, step: int, loss: float, velocity=None) -> None:
        self.losses.append(loss)
        if step % self.every == 0:
            self.points.append((step, sum(self.losses[-self.every :]) / self.every))
            xs, ys = zip(*self.points, strict=True)
            self.figure.data[0].update(x=xs, y=ys)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.figure)
