"""Figures of the course. Every function takes data and returns a ``plotly.graph_objects.Figure`` that knows its own
description; ``show`` displays one in a notebook, ``widget`` makes one that Python can change, and ``static_image``
renders one as a PNG for places that run no JavaScript.
"""

from .axes import log_axis, log_ticks
from .base import alt_of, animate, describe, label, new_figure, set_title, visible
from .curves import dots, exact_and_learned, lines, panels, training
from .diagrams import spliced_model
from .display import CONFIG, show, static_image, widget
from .plane import clouds, coupling, crossing_points, paths_over_time, straight_paths, velocity_field, walks
from .results import AXES, COLORS, budget, comparison, skip_curve, skip_growth, skipped_layers
from .spans import predictions, rank_correlations, recoupling_heatmap, span_coupling
from .states import hidden_distance, lens, norms, state_sizes, teacher_distance, token_field
from .style import SERIES, Style, style_of, styles, table
from .tables import heatmap, heatmaps, skip_heatmap, token_kl
from .trajectories import trajectory

heat, ladder, still, COLOURS = heatmap, comparison, static_image, COLORS  # names of earlier versions

__all__ = [
    "AXES",
    "COLORS",
    "CONFIG",
    "SERIES",
    "Style",
    "alt_of",
    "animate",
    "budget",
    "clouds",
    "comparison",
    "coupling",
    "crossing_points",
    "describe",
    "dots",
    "exact_and_learned",
    "heatmap",
    "heatmaps",
    "hidden_distance",
    "label",
    "lens",
    "lines",
    "log_axis",
    "log_ticks",
    "new_figure",
    "norms",
    "panels",
    "paths_over_time",
    "predictions",
    "rank_correlations",
    "recoupling_heatmap",
    "set_title",
    "show",
    "skip_curve",
    "skip_growth",
    "skip_heatmap",
    "skipped_layers",
    "span_coupling",
    "spliced_model",
    "state_sizes",
    "static_image",
    "straight_paths",
    "style_of",
    "styles",
    "table",
    "teacher_distance",
    "token_field",
    "token_kl",
    "training",
    "trajectory",
    "velocity_field",
    "visible",
    "walks",
    "widget",
]
