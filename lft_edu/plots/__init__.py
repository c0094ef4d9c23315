"""Figures of the course. Every function takes data and returns a ``plotly.graph_objects.Figure`` that knows its own
description; ``show`` displays one in a notebook, ``widget`` makes one that Python can change, and ``static_image``
renders one as a PNG for places that run no JavaScript.

Names are imported on first use: figures of points in the plane then do not wait for transformers (2 s).
"""

import importlib

_HOMES = {  # module → the names that are public as lft_edu.plots.name
    "axes": ("log_axis", "log_ticks"),
    "base": ("alt_of", "animate", "describe", "label", "new_figure", "set_title", "visible"),
    "curves": ("dots", "exact_and_learned", "lines", "panels", "training"),
    "diagrams": ("spliced_model",),
    "display": ("CONFIG", "show", "static_image", "widget"),
    "plane": ("clouds", "coupling", "crossing_points", "paths_over_time", "straight_paths", "velocity_field", "walks"),
    "results": ("AXES", "COLORS", "budget", "comparison", "skip_curve", "skip_growth", "skipped_layers"),
    "side_by_side": ("maps", "views"),
    "spans": ("predictions", "rank_correlations", "recoupling_heatmap", "span_coupling"),
    "states": ("hidden_distance", "lens", "norms", "state_sizes", "teacher_distance", "token_field"),
    "style": ("SERIES", "Style", "style_of", "styles", "table"),
    "tables": ("heatmap", "heatmaps", "skip_heatmap", "token_kl"),
    "trajectories": ("trajectory",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
# names of earlier versions
_ALIASES = {"heat": "heatmap", "ladder": "comparison", "still": "static_image", "COLOURS": "COLORS"}
_MODULES = (*_HOMES, "labels", "static")
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    known = _ALIASES.get(name, name)
    if known not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[known]}"), known)
    globals()[name] = value
    return value


def __dir__():
    return __all__
