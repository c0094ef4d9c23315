"""Curves: one figure or several panels of them, training losses, what is computed beside what was learned."""

import itertools
import math
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .axes import log_axis
from .base import describe, describe_curves, escape, make_room, new_figure, panel_titles, plain, wrap
from .style import INK, Style, styles

MOST = 6  # series in a legend; more are labeled at their ends


def lines(
    series: dict,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    modes: dict[str, str] | None = None,
    *,
    alike: dict[str, str] | None = None,
    levels: dict[str, float] | None = None,
    moments: dict[str, Sequence[float]] | None = None,
    percent: bool = False,
) -> go.Figure:
    """Plot curves with markers, and error bars where there are intervals.

    Operators have their color in all figures; other names get the colors that no operator has. More than six curves are
    labeled at their ends.

    Args:
        series: name → ``(x, y)``, or ``(x, y, low, high)`` with the ends of y's intervals.
        log_x, log_y: logarithmic axes.
        modes: name → ``"lines"`` or ``"markers"``; both for the names it lacks.
        alike: name → another series, whose color it shares, such as the exact curve of a learned one.
        levels: name → y of a horizontal line, such as a floor or a bar to clear.
        moments: name → values of x to mark on the axis.
        percent: y holds fractions; show them as percentages.
    """
    figure = new_figure(title, x, y)
    looks = styles(series, alike)
    for name, (xs, ys, *interval) in series.items():
        _add_curve(
            figure, name, looks[name], xs, ys, interval, (modes or {}).get(name), show=len(series) > 1 or bool(levels)
        )
    add_levels(figure, levels or {})
    _add_moments(figure, moments or {}, log_y)
    _scale(figure, log_x, log_y, percent)
    if len(series) > MOST:
        label_ends(figure, len(series))
    return describe_curves(figure)


def _add_curve(figure, name: str, look: Style, xs, ys, interval=(), mode=None, show=True, **where) -> None:
    xs, ys = [float(v) for v in xs], [float(v) for v in ys]
    error = None
    if interval:
        low, high = ([float(v) for v in side] for side in interval)
        error = {
            "array": [h - v for h, v in zip(high, ys, strict=True)],
            "arrayminus": [v - low for low, v in zip(low, ys, strict=True)],
            "symmetric": False, "thickness": 1,
        }  # fmt: skip
    mode = mode or ("lines+markers" if 1 < len(xs) <= 60 else "lines" if len(xs) > 60 else "markers")
    figure.add_scatter(
        x=xs, y=ys, name=escape(name), error_y=error, mode=mode, showlegend=show,
        line={"color": look.color, "dash": look.dash, "width": 2},
        marker={"symbol": look.symbol, "size": 8, "color": look.color, "line": {"color": look.color, "width": 1.5}},
        hovertemplate="%{x:.4g}: %{y:.4g}", **where,
    )  # fmt: skip


def add_levels(figure: go.Figure, levels: dict[str, float]) -> None:
    """Draw horizontal lines as wide as the curves."""
    xs = [v for trace in figure.data for v in trace.x]
    for (name, value), dash in zip(levels.items(), ("dash", "dot", "dashdot", "longdash") * len(levels), strict=False):
        figure.add_scatter(
            x=[min(xs), max(xs)], y=[float(value)] * 2, name=escape(name), mode="lines",
            line={"color": INK, "dash": dash, "width": 1.5},
            hovertemplate=f"{escape(name)}: {value:.4g}<extra></extra>",
        )  # fmt: skip


def _add_moments(figure: go.Figure, moments: dict[str, Sequence[float]], log_y: bool) -> None:
    """Mark values of x with vertical strokes at the bottom of the figure."""
    values = [v for trace in figure.data for v in trace.y if not log_y or v > 0]
    for name, xs in moments.items():
        figure.add_scatter(
            x=[float(v) for v in xs], y=[min(values)] * len(xs), mode="markers", name=escape(name),
            marker={"symbol": "line-ns", "size": 16, "color": INK, "line": {"color": INK, "width": 2}},
            hovertemplate="%{x:.3g}",
        )  # fmt: skip


def _scale(figure: go.Figure, log_x: bool, log_y: bool, percent: bool = False) -> None:
    if log_x:  # ticks at the values measured where they are few
        values = sorted({v for trace in figure.data for v in trace.x})
        log_axis(figure, "x", values, values if len(values) <= 10 and _apart(values) else None)
    if log_y:
        log_axis(figure, "y", [v for trace in figure.data for v in trace.y])
    elif percent:
        figure.update_yaxes(tickformat=".0%")


def _apart(values: list[float]) -> bool:
    """Whether values are far enough from each other on a logarithmic axis for a tick each."""
    if min(values) <= 0:
        return False
    steps = [math.log(b / a) for a, b in itertools.pairwise(values)]
    return min(steps, default=1) > 0.045 * math.log(max(values) / min(values))


def label_ends(figure: go.Figure, count: int) -> None:
    """Write the names of the first ``count`` traces at their right ends, apart from each other, instead of a legend."""
    log = [axis.type == "log" for axis in (figure.layout.xaxis, figure.layout.yaxis)]
    drawn = figure.data[:count]
    ends = [max(range(len(t.x)), key=lambda i, t=t: t.x[i]) for t in drawn]
    heights = [v for t in drawn for v in t.y if not log[1] or v > 0]
    low, high = (math.log10(f(heights)) if log[1] else f(heights) for f in (min, max))
    tall = (figure.layout.height or 460) - figure.layout.margin.t - figure.layout.margin.b
    places = []
    for trace, end in zip(drawn, ends, strict=True):
        x, y = (math.log10(v[end]) if is_log else v[end] for v, is_log in zip((trace.x, trace.y), log, strict=True))
        places.append([x, y, (y - low) / ((high - low) or 1) * tall, trace])
        trace.showlegend = False
    wanted = float("-inf")
    for x, y, pixels, trace in sorted(places, key=lambda place: place[2]):
        wanted = max(pixels, wanted + 15)
        figure.add_annotation(
            x=x, y=y, text=trace.name, showarrow=False, xanchor="left", xshift=8, yshift=wanted - pixels,
            font={"color": trace.line.color or trace.marker.color, "size": 12},
        )  # fmt: skip
    figure.update_layout(margin_r=20 + 7 * max(len(plain(trace.name)) for trace in drawn))


def panels(
    charts: dict[str, dict], title: str, x: str, log_x: bool = False, modes: dict[str, str] | None = None
) -> go.Figure:
    """Plot quantities of different units over the same x, one panel each.

    Args:
        charts: title of the panel, with its unit → series, as :func:`lines` takes them.
        x: title of the x axes.
        log_x: logarithmic x axes.
        modes: name of a series → ``"lines"`` or ``"markers"``.
    """
    columns = min(2, len(charts))
    rows = math.ceil(len(charts) / columns)
    heads = panel_titles(list(charts))
    figure = make_subplots(
        rows, columns, subplot_titles=heads, horizontal_spacing=0.12, vertical_spacing=0.28 if rows > 1 else 0
    )
    figure.update_layout(new_figure(title, "", "", height=150 + 290 * rows).layout).update_layout(xaxis_title=None)
    make_room(figure, heads)
    names = list(dict.fromkeys(name for chart in charts.values() for name in chart))
    looks, legend = styles(names), len(names) > 1 and any(len(chart) > 1 for chart in charts.values())
    first = dict.fromkeys(names, True)
    for i, chart in enumerate(charts.values()):
        where = {"row": i // columns + 1, "col": i % columns + 1}
        for name, (xs, ys, *interval) in chart.items():
            show = legend and first[name]
            _add_curve(
                figure, name, looks[name], xs, ys, interval, (modes or {}).get(name), show, legendgroup=name, **where
            )
            first[name] = False
        figure.update_xaxes(title=x, **where)
    _scale(figure, log_x, False)
    parts = "; ".join(f"{head}: {', '.join(chart)}" for head, chart in charts.items())
    return describe(figure, f"{title}. {len(charts)} panels of curves against {x}. {parts}.")


def exact_and_learned(exact: dict, learned: dict, title: str, x: str, y: str) -> go.Figure:
    """Plot computed curves as lines and learned ones as marks; the same name has the same color.

    Args:
        exact, learned: name → ``(x, y)``.
    """
    series = {f"{name}, exact": curve for name, curve in exact.items()}
    series |= {f"{name}, learned": curve for name, curve in learned.items()}
    modes = {name: "markers" if name.endswith(", learned") else "lines" for name in series}
    alike = {f"{name}, learned": f"{name}, exact" for name in learned if name in exact}
    return lines(series, title, x, y, modes=modes, alike=alike)


def training(
    histories: dict, title: str = "Training", smooth: int = 1, levels: dict[str, float] | None = None
) -> go.Figure:
    """Plot loss against step, on a log scale.

    Args:
        histories: name → an object with ``.steps`` and ``.losses``, such as :class:`lft_edu.History`.
        smooth: plot means over this many steps.
        levels: name → a loss drawn as a horizontal line, such as the least one possible.
    """
    figure, looks = new_figure(title, "training step", "loss"), styles(histories)
    for name, history in histories.items():
        chunks = [slice(a, a + smooth) for a in range(0, len(history.losses) - smooth + 1, smooth)]
        _add_curve(
            figure, name, looks[name], [history.steps[c][-1] for c in chunks],
            [sum(history.losses[c]) / smooth for c in chunks], mode="lines" if len(chunks) > 1 else "markers",
            show=len(histories) > 1 or bool(levels),
        )  # fmt: skip
    add_levels(figure, levels or {})
    log_axis(figure, "y", [loss for trace in figure.data for loss in trace.y])
    return describe_curves(figure, "Training curves")


def dots(groups: dict, title: str, x: str, reference: float = 1.0) -> go.Figure:
    """Plot values with intervals, one line per name, one color and mark per group, on a log axis.

    Args:
        groups: group → name → (value, low, high).
        reference: where a dashed line is drawn.
    """
    figure, looks = new_figure(title, x, ""), styles(groups)
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    for i, (group, found) in enumerate(groups.items()):
        shift, look = (i - (len(groups) - 1) / 2) * 0.22, looks[group]  # groups side by side on a name's line
        above, below = ([abs(one[0] - one[i]) for one in found.values()] for i in (2, 1))
        figure.add_scatter(
            x=[value for value, _, _ in found.values()],
            y=[names.index(name) + shift for name in found],
            mode="markers",
            name=escape(group),
            marker={"color": look.color, "symbol": look.symbol, "size": 9},
            error_x={"array": above, "arrayminus": below, "thickness": 1.5, "width": 3},
            customdata=[f"{escape(name)}: {v:.2f} ({a:.2f}–{b:.2f})" for name, (v, a, b) in found.items()],
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.add_vline(x=reference, line={"dash": "dash", "color": INK, "width": 1})
    log_axis(figure, "x", [v for found in groups.values() for one in found.values() for v in one])
    rows(figure, names)
    return describe_curves(figure, "Marks with intervals, one row per name")


def rows(figure: go.Figure, names: Sequence[str], reverse: bool = True) -> None:
    """Give a figure one row per name, the first on top, as high as the names need."""
    ends = [len(names) - 0.5, -0.5]
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[wrap(name, 26) for name in names],
        range=ends if reverse else ends[::-1], zeroline=False,
    )  # fmt: skip
    figure.update_layout(height=200 + 40 * len(names))
