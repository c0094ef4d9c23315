"""Small ipywidgets applications: controls wired to models and plots. Everything can be worked by keyboard."""

from .completion import CompletionApp, complete, side_by_side
from .plane import CouplingApp, FlowApp, LiveLoss

__all__ = ["CompletionApp", "CouplingApp", "FlowApp", "LiveLoss", "complete", "side_by_side"]
