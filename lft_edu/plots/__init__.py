"""Data → figures, nothing else. Every function returns a ``plotly.graph_objects.Figure``; :func:`show` puts one in a
notebook, :func:`still` makes a picture of it for places that run no JavaScript.
"""

from .base import CONFIG, SERIES, animate, heat, label, lines, new_figure, show, still, visible
from .plane import clouds, coupling, crossing_points, velocity_field, walks
from .results import AXES, COLOURS, budget, ladder, skip_curve, skip_growth, skipped_layers, token_kl, training
from .spans import predictions, rank_correlations, recoupling_heatmap, span_coupling
from .trajectories import hidden_distance, lens, norms, token_field, trajectory

__all__ = [
    "AXES",
    "COLOURS",
    "CONFIG",
    "SERIES",
    "animate",
    "budget",
    "clouds",
    "coupling",
    "crossing_points",
    "heat",
    "hidden_distance",
    "label",
    "ladder",
    "lens",
    "lines",
    "new_figure",
    "norms",
    "predictions",
    "rank_correlations",
    "recoupling_heatmap",
    "show",
    "skip_curve",
    "skip_growth",
    "skipped_layers",
    "span_coupling",
    "still",
    "token_field",
    "token_kl",
    "training",
    "trajectory",
    "velocity_field",
    "visible",
    "walks",
]
