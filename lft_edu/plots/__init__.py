"""Data → figures, nothing else. Every function returns a ``plotly.graph_objects.Figure``; :func:`show` puts one in a
notebook, :func:`still` makes a picture of it for places that run no JavaScript.
"""

from .base import CONFIG, SERIES, animate, heat, label, lines, new_figure, show, still, visible
from .plane import (
    clouds,
    coupling,
    crossing_points,
    velocity_field,
    walks,
)
from .results import AXES, COLOURS, ladder, skip_curve, skip_growth, skipped_layers, token_kl, training

__all__ = [
    "AXES",
    "COLOURS",
    "CONFIG",
    "SERIES",
    "animate",
    "clouds",
    "coupling",
    "crossing_points",
    "heat",
    "label",
    "ladder",
    "lines",
    "new_figure",
    "show",
    "skip_curve",
    "skip_growth",
    "skipped_layers",
    "still",
    "token_kl",
    "training",
    "velocity_field",
    "visible",
    "walks",
]
