"""An application in the plane: train a flow, and watch its loss and its paths."""

import html
import threading
from functools import partial

import ipywidgets as widgets
import torch

from .. import objectives, plane, plots, shapes
from ..flow import EVALUATIONS, STEPS, uniform_times
from ..plots import plane as drawing
from .frame import WIDE, App, columns, compact, figure_widget
from .stills import bundle, still

TICKS = 20  # positions of the time slider
BELOW = {"orientation": "h", "x": 0, "y": -0.02, "yanchor": "top", "font": {"size": 11}}


class FlowApp(App):
    """Choose pairs and a loss, train a small velocity network, and integrate it with any number of steps.

    Training runs in a thread, so that *Stop* and all other controls keep working.

    Args:
        shape: a name in ``lft_edu.shapes.SHAPES``. loss: one of ``LOSSES``. steps: optimizer steps.
    """

    LOSSES = ("flow matching", "Flow Walking", "hybrid")

    def __init__(self, shape: str = "beams", loss: str = "flow matching", steps: int = 1500):
        super().__init__()
        self.steps, self.thread, self.stopped = steps, None, threading.Event()
        self.seed = 0  # of the initialization; incremented at each training
        self.shape = widgets.Dropdown(options=list(shapes.SHAPES), value=shape, description="pairs", **WIDE)
        self.loss = widgets.Dropdown(options=self.LOSSES, value=loss, description="loss", **WIDE)
        self.k = widgets.IntSlider(value=3, min=1, max=6, description="steps, training", **WIDE)
        self.random = widgets.Checkbox(value=True, description="random times", **WIDE)
        self.alpha = widgets.FloatLogSlider(value=0.1, min=-3, max=1, description="hybrid α", **WIDE)
        button = widgets.Layout(width="110px")
        self.button = widgets.Button(
            description="Train", button_style="primary", tooltip="Train, or stop training", layout=button
        )
        self.resetting = widgets.Button(description="Reset", tooltip="Set everything as it was at first", layout=button)
        self.test_k = widgets.SelectionSlider(
            options=[1, 2, 3, 4, 6, 10, 20, 50, 200], value=20, description="steps, walking", **WIDE
        )
        self.solver = widgets.Dropdown(options=list(STEPS), value="midpoint", description="solver", **WIDE)
        times = [(f"{i / TICKS:.2f}", i) for i in range(TICKS + 1)]
        self.t = widgets.SelectionSlider(options=times, value=TICKS, description="time t", **WIDE)
        self.play = widgets.Play(value=TICKS, min=0, max=TICKS, interval=120)
        widgets.jslink((self.play, "value"), (self.t, "index"))
        self.figure = figure_widget(height=500)
        self.live = LiveLoss("Loss", height=190)
        self.first = self._state()
        self.button.on_click(lambda _: self.stop() if self.running else self.train())
        self.resetting.on_click(lambda _: self.restore())
        self.t.observe(lambda _: self.show_time(), "value")
        self.loss.observe(lambda _: self._show_rows(), "value")
        for control in (self.test_k, self.solver):
            control.observe(lambda _: self.draw(), "value")
        self.shape.observe(lambda _: self.reset(), "value")
        training = [self.shape, self.loss, self.k, self.random, self.alpha]
        tools = widgets.HBox([self.button, self.resetting])
        controls = [*training, tools, self.test_k, self.solver, self.t, self.play, self.status, self.live.figure]
        self.view = columns((controls, "0 1 340px"), ([self.figure], "0 1 540px"))
        self._show_rows()
        self.reset()

    @property
    def running(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def _controls(self) -> tuple:
        return self.shape, self.loss, self.k, self.random, self.alpha, self.test_k, self.solver, self.t

    def _state(self) -> tuple:
        return tuple(control.value for control in self._controls())

    def restore(self) -> None:
        """Set all controls as they were at first, with an untrained network."""
        self.stop()
        self.seed = 0
        for control, value in zip(self._controls(), self.first, strict=True):
            control.value = value
        self.live.clear()
        self.reset()

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
        drawn = self._walks()
        drawn.layout.sliders = drawn.layout.updatemenus = ()  # they need frames, which a widget does not have
        drawn.update_layout(**compact(500)).update_layout(title_text="", legend=BELOW)
        drawn.update_layout(margin={"l": 8, "r": 8, "t": 30, "b": 50}).update_yaxes(constraintoward="top")
        self.frames, self.marks = drawn.frames, drawn.frames[0].traces
        with self.figure.batch_update():
            if len(self.figure.data) != len(drawn.data):
                self.figure.data = ()
                self.figure.add_traces(drawn.data)
            self.figure.update_layout(drawn.layout, overwrite=True)
            for shown, trace in zip(self.figure.data, drawn.data, strict=True):
                shown.x, shown.y = trace.x, trace.y
        self.show_time()
        done = f"After {step:,} steps of training: " if step else ""
        kept, error = (f(self.path[-1], self.shown).item() for f in (plane.pairs_kept, plane.coupling_error))
        self.say(
            f"{done}{kept:.0%} end in their own group, coupling error {error:.2f}, "
            f"{k * EVALUATIONS[solver]} velocity evaluations per point"
        )

    def _walks(self):
        """Integrate the points shown, and draw their paths."""
        k, solver = self.test_k.value, self.solver.value
        self.path = plane.carry(self.velocity, self.shown.x0, k, STEPS[solver], return_path=True)
        return drawing.walks({f"{solver}, {k} steps" if k > 1 else f"{solver}, 1 step": self.path}, self.shown)

    def show_time(self) -> None:
        """Move the points to the slider's time: to the nearest state of the path."""
        frame = self.frames[round(self.t.value / TICKS * (len(self.frames) - 1))]
        with self.figure.batch_update():
            for mark, place in zip(self.marks, frame.data, strict=True):
                self.figure.data[mark].update(x=place.x, y=place.y)

    def _show_rows(self) -> None:
        """Hide the controls that the chosen loss does not have."""
        walking, hybrid = (self.loss.value == name for name in ("Flow Walking", "hybrid"))
        for control, wanted in ((self.k, walking or hybrid), (self.random, walking), (self.alpha, hybrid)):
            control.layout = widgets.Layout(width="auto", max_width="420px", display="" if wanted else "none")

    def picture(self) -> str:
        """Return a picture of the paths shown."""
        return still(self._walks(), f"Paths of {len(self.shown)} points. {self.loss.value}, before training.")


class LiveLoss:
    """A loss curve that grows during training: pass it as ``watch`` to :func:`lft_edu.plane.train`.

    Args:
        every: steps per point of the curve, which is their mean.
        width: of the figure, in pixels; that of its column if None.
        height: in pixels.
    """

    def __init__(self, title: str = "Loss", every: int = 25, width: int | None = None, height: int = 260):
        self.every, self.title = every, title
        self.figure = figure_widget(plots.new_figure(title, "step", "loss"), height)
        self.figure.update_layout(width=width, margin={"l": 52, "r": 8, "t": 28, "b": 36})
        self.figure.update_yaxes(type="log", minor_ticks="")
        self.figure.update_xaxes(rangemode="tozero")
        self.figure.add_scatter(mode="lines", line={"color": plots.SERIES[0]}, name=html.escape(title))
        self.view = columns(([self.figure], "0 1 560px"))
        self.clear()

    def clear(self) -> None:
        """Remove all points."""
        self.losses, self.points = [], []
        self.figure.data[0].update(x=[], y=[])
        self._tick(1, 1000)  # powers of ten, on an axis that shows nothing yet

    def _tick(self, low: float, high: float) -> None:
        """Label the logarithmic axis with ordinary numbers, a few of them."""
        steps = (1,) if high > 100 * low else (1, 2, 5) if high > 5 * low else (1, 1.5, 2, 3, 4, 5, 6, 7, 8)
        values = [x * 10.0**power for power in range(-6, 7) for x in steps]
        if list(self.figure.layout.yaxis.tickvals or ()) != values:
            self.figure.update_yaxes(tickvals=values, ticktext=[f"{x:g}" for x in values])

    def __call__(self, step: int, loss: float, velocity=None) -> None:
        self.losses.append(loss)
        if step % self.every == 0:
            self.points.append((step, sum(self.losses[-self.every :]) / self.every))
            xs, ys = zip(*self.points, strict=True)
            self.figure.data[0].update(x=xs, y=ys)
            if min(ys) > 0:
                self._tick(min(ys), max(ys))

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return bundle(self.view._repr_mimebundle_(), "")
