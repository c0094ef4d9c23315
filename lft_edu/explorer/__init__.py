"""Interactive notebook applications (ipywidgets, anywidget). All controls work by keyboard."""

from ..text import complete
from .completion import CompletionApp, side_by_side
from .flow import FlowApp, LiveLoss
from .plane import CouplingApp
from .spans import SpanApp
from .trajectories import TrajectoryExplorer

__all__ = [
    "CompletionApp",
    "CouplingApp",
    "FlowApp",
    "LiveLoss",
    "SpanApp",
    "TrajectoryExplorer",
    "complete",
    "side_by_side",
]
