"""Ticks that can be read: logarithmic axes with values on them, and numbers in few characters."""

import math
from collections.abc import Iterable

import plotly.graph_objects as go

MOST = 8  # ticks on one axis: more would touch each other in a narrow figure
_DIGITS = (range(1, 10), (1, 1.5, 2, 3, 5, 7), (1, 2, 5))
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def log_ticks(values: Iterable[float]) -> list[float]:
    """Return at most eight ticks for a logarithmic axis: at 1, 2 and 5 times powers of ten, at powers of ten alone
    where those are too many, at numbers between or evenly spaced ones where they are too few.

    Args:
        values: what the axis shows; numbers that are not positive are ignored.
    """
    values = [float(v) for v in values if v is not None and float(v) > 0 and math.isfinite(float(v))] or [1.0]
    least, most = 0.9 * min(values), 1.1 * max(values)
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    choices = [[round(d * 10.0**p, 12 - p) for p in powers for d in digits] for digits in _DIGITS]
    choices += [[10.0**p for p in powers if p % n == 0] for n in (1, 2, 3, 4)]
    most_fine, fine, *found = ([tick for tick in ticks if 0.88 * least <= tick <= 1.13 * most] for ticks in choices)
    if len(found[0]) > 3:
        return next((ticks for ticks in found if len(ticks) <= MOST), found[-1])
    for ticks in (most_fine, fine):
        if 3 < len(ticks) <= MOST:
            return ticks
    step = 10.0 ** math.floor(math.log10((most - least) / 3))
    step = max((f * step for f in (1, 2, 5) if f * step <= (most - least) / 3), default=step)
    return [round(step * i, 12) for i in range(math.ceil(least / step), math.floor(most / step) + 1)]


def amount(value: float) -> str:
    """Format a number for a tick: ``0.05``, ``200 k``, ``5 M``, ``2·10⁹``, ``10⁻⁶``."""
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:g}"
    if 1e3 <= abs(value) < 1e9:
        return f"{value / 1e6:g} M" if abs(value) >= 1e6 else f"{value / 1e3:g} k"
    mantissa, power = f"{value:.0e}".split("e")
    raised = "10" + str(int(power)).translate(_RAISED)
    return raised if mantissa == "1" else f"{mantissa}·{raised}"


def log_axis(figure: go.Figure, axis: str, values: Iterable[float], ticks: list[float] | None = None, **where) -> None:
    """Make an axis logarithmic, with ticks that show values and no minor ones.

    Args:
        axis: ``"x"`` or ``"y"``.
        values: what the axis shows.
        ticks: where to put ticks; chosen from ``values`` if None.
        where: ``row`` and ``col`` of a panel.
    """
    ticks = log_ticks(values) if ticks is None else ticks
    update = figure.update_xaxes if axis == "x" else figure.update_yaxes
    update(type="log", tickvals=ticks, ticktext=[amount(tick) for tick in ticks], minor_ticks="", **where)
