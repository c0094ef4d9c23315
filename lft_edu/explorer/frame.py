"""What the applications share: their layout, their figures, a status line, and what is left of them in a saved file."""

import html
from pathlib import Path

import anywidget
import ipywidgets as widgets
import plotly.graph_objects as go
import traitlets

from .. import plots
from .stills import bundle

PAGE = Path(__file__).with_name("page")
FILL = widgets.Layout(width="auto", max_width="420px")  # a control takes the width of its column
WIDE = {"style": {"description_width": "112px"}, "layout": FILL}
ALERT = "var(--jp-error-color1, #B00020)"


class Resizer(anywidget.AnyWidget):
    """Invisible: figures beside it follow the width of the column they are in."""

    _esm = (PAGE / "resizer.js").read_text("utf-8")


class Figure(go.FigureWidget):
    """A ``plotly.graph_objects.FigureWidget`` that also comes up where loading plotly takes longer than two seconds."""

    _esm = (PAGE / "figure.js").read_text("utf-8")
    _bundle = traitlets.Unicode(str(go.FigureWidget._esm)).tag(sync=True)


def columns(*boxes: tuple[list, str]) -> widgets.HBox:
    """Put boxes of widgets beside each other; those that do not fit go below.

    Args:
        boxes: ``(widgets, flex)`` each, such as ``([slider, status], "1 1 280px")``.
    """
    parts = [
        widgets.VBox(list(inside), layout=widgets.Layout(flex=flex, min_width="0", max_width="100%"))
        for inside, flex in boxes
    ]
    view = widgets.HBox([*parts, Resizer()], layout=widgets.Layout(flex_flow="row wrap", grid_gap="4px 16px"))
    view.add_class("lft-columns")
    return view


def figure_widget(figure: go.Figure | None = None, height: int = 460, **config) -> Figure:
    """Return a figure as a widget that takes the width of its column, without buttons that need a network.

    Args:
        config: plotly's configuration, in addition to :data:`lft_edu.plots.CONFIG`.
    """
    widget = Figure(figure)
    widget._config = {
        **plots.CONFIG, "responsive": True, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"], **config,
    }  # fmt: skip
    widget.update_layout(**compact(height))
    return widget


def compact(height: int) -> dict:
    """Return the layout of a figure in an application: as wide as its column, and a title beside the mode bar."""
    return {
        "width": None, "height": height, "autosize": True, "margin": {"l": 50, "r": 12, "t": 44, "b": 44},
        "title": {"font": {"size": 14}, "x": 0.01, "xanchor": "left", "y": 0.97, "yanchor": "top"},
        "modebar": {"orientation": "v", "bgcolor": "rgba(0,0,0,0)"},
    }  # fmt: skip


class App:
    """Base class of applications: a ``view`` to display and a status line for results and errors."""

    view: widgets.Widget

    def __init__(self):
        self.status = widgets.HTML()

    def say(self, text: str) -> None:
        self.status.value = f"<p role='status' style='font-size:14px;line-height:1.4'>{html.escape(text)}</p>"

    def complain(self, error: Exception) -> None:
        self.status.value = f"<p role='alert' style='color:{ALERT};font-size:14px'>{html.escape(str(error))}</p>"

    def picture(self) -> str:
        """Return HTML that stands for the application where there is no kernel."""
        raise NotImplementedError

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return bundle(self.view._repr_mimebundle_(), self.picture())
