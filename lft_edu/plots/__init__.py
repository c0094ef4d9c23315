"""Figures of the course. Every function takes data and returns a ``plotly.graph_objects.Figure``; ``show`` displays one
in a notebook, and ``static_image`` renders one as a PNG for places that run no JavaScript.
"""

from .base import CONFIG, SERIES, animate, heatmap, label, lines, new_figure, show, static_image, visible
from .diagrams import spliced_model
from .plane import clouds, coupling, crossing_points, velocity_field, walks
from .results import AXES, COLORS, budget, comparison, dots, skip_curve, skip_growth, skipped_layers, token_kl, training
from .spans import predictions, rank_correlations, recoupling_heatmap, span_coupling
from .trajectories import hidden_distance, lens, norms, token_field, trajectory

heat, ladder, still, COLOURS = heatmap, comparison, static_image, COLORS  # names of earlier versions

__all__ = [
    "AXES",
    "COLORS",
    "CONFIG",
    "SERIES",
    "animate",
    "budget",
    "clouds",
    "comparison",
    "coupling",
    "crossing_points",
    "dots",
    "heatmap",
    "hidden_distance",
    "label",
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
    "spliced_model",
    "static_image",
    "token_field",
    "token_kl",
    "training",
    "trajectory",
    "velocity_field",
    "visible",
    "walks",
]
