"""Interactive notebook applications (ipywidgets, anywidget). All controls work by keyboard."""

from importlib import import_module

_HOMES = {
    "completion": ("CompletionApp", "side_by_side"),
    "flow": ("FlowApp", "LiveLoss"),
    "plane": ("CouplingApp",),
    "spans": ("SpanApp",),
    "trajectories": ("TrajectoryExplorer",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [*sorted(_HOME_OF), "complete"]


def __getattr__(name: str):
    """Import an application when it is first used: plotly's widgets take seconds, and the explorer needs none."""
    if name in _HOME_OF:
        return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    if name == "complete":
        return import_module("..text", __name__).complete
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
