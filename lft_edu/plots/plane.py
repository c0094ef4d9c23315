"""Figures of points in the plane: couplings, velocity fields, paths."""

import html
from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from ..couplings import Coupling, recoupling_ratio
from ..flow import uniform_times
from .base import animate, describe, make_room, new_figure, panel_titles, plain, set_title
from .style import END, FAR, GROUP_SYMBOLS, INK, RE_PAIRED, SERIES, START


def segments(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the segments from a[i] to b[i], ``(N, 2)`` each, as one line with gaps: three entries per
    segment, the third NaN, so that one trace draws all of them."""
    gap = torch.full_like(a, float("nan"))
    x, y = torch.stack([a, b, gap], 1).reshape(-1, 2).float().cpu().numpy().T
    return x, y


def crossing_points(pairs: Coupling) -> Tensor:
    """Return the points ``(M, 2)`` where the straight lines between partners intersect, at whatever times."""
    i, j = pairs.crossings().triu().nonzero(as_tuple=True)
    a, b, c, d = (x.double() for x in (pairs.x0[i], pairs.x1[i], pairs.x0[j], pairs.x1[j]))

    def cross(u, v):
        return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]

    along = cross(c - a, d - c) / cross(b - a, d - c)
    return a + along[:, None] * (b - a)


def clouds(pairs: Coupling, title: str = "Two clouds") -> go.Figure:
    """Plot the starts and ends of ``pairs`` without the lines that pair them."""
    figure = new_figure(title, "", "", height=420, margin_b=40)
    figure.add_traces([{"type": "scatter", **trace} for trace in coupling_traces(pairs)[2:4]])
    _plane(figure, pairs.x0, pairs.x1)
    return describe(
        figure, f"{title}. {len(pairs)} starts (circles) and as many ends (squares) in the plane, not paired."
    )


def straight_paths(pairs: Coupling, title: str = "", moments: int = 21) -> go.Figure:
    """Plot each pair as an arrow in the color of its group, with points that move along the arrows from t = 0 to 1.

    Args:
        pairs: points in two dimensions.
        title: R and the number of crossings if empty.
        moments: number of times on the slider.
    """
    figure = new_figure(title, "", "", height=440)
    if not title:
        set_title(figure, coupling_title("", pairs))
    for g in (shown := pairs.group % len(SERIES)).unique().tolist():
        own, name = shown == g, f"group {g}: from start to end"
        figure.add_trace(arrows(pairs.x0[own], (pairs.x1 - pairs.x0)[own], SERIES[g], 9, 1, opacity=0.5, name=name))
    fixed = len(figure.data)
    times = torch.linspace(0, 1, moments).tolist()
    figure.add_traces(_dots(pairs.at(times[0]), pairs.group, "at time t"))
    _plane(figure, pairs.x0, pairs.x1)
    frames = [
        go.Frame(
            name=f"{t:.2f}",
            traces=list(range(fixed, len(figure.data))),
            data=_positions(_dots(pairs.at(t), pairs.group, "")),
        )
        for t in times
    ]
    animate(figure, frames, "t = ")
    words = f"{plain(figure.layout.title.text)}. {len(pairs)} arrows from starts to ends, colored by group, and points "
    words += "that move along them."
    return describe(figure, words, _evenly([frame.name for frame in frames], 3))


def coupling(pairings: Coupling | dict[str, Coupling], metric: str = "euclidean", between: int = 9) -> go.Figure:
    """Plot couplings of two clouds as lines from start to end; several get a slider and a play button.

    A line is red where optimal transport would re-pair its start; dots mark where lines cross. The fraction of red
    lines is the recoupling ratio.

    Args:
        pairings: one coupling, or name → coupling, all of the same two clouds.
        metric: of the recoupling ratio, one of ``lft_edu.couplings.METRICS``.
        between: animation frames between two couplings.
    """
    pairings = {"": pairings} if isinstance(pairings, Coupling) else pairings
    stages = list(pairings.items())
    drawn = [coupling_traces(pairs, metric) for _, pairs in stages]
    figure = new_figure("", "", "", height=440)
    figure.add_traces([{"type": "scatter", **trace} for trace in drawn[0]])
    _plane(figure, stages[0][1].x0, stages[0][1].x1)
    set_title(figure, coupling_title(*stages[0], metric))
    words = f"{len(stages[0][1])} lines from starts (circles) to ends (squares)"
    if len(stages) == 1:
        return describe(figure.update_layout(margin_b=60), f"{plain(figure.layout.title.text)}. {words}.")
    frames = []
    for i, ((name, pairs), traces) in enumerate(zip(stages, drawn, strict=True)):
        frames.append(_frame(name, traces, coupling_title(name, pairs, metric)))
        for j in range(1, between + 1) if i + 1 < len(stages) else ():
            share = j / (between + 1)
            moving = Coupling(pairs.x0, torch.lerp(pairs.x1, stages[i + 1][1].x1, share), pairs.group)
            x, y = segments(moving.x0, moving.x1)
            empty = {"x": [], "y": []}
            line = {"x": x, "y": y, "name": "in transition", "line": {"color": START, "width": 1.2, "dash": "dot"}}
            mixed = [{**traces[0], **line}, {**traces[1], **empty}, *traces[2:4], {**traces[4], **empty}]
            frames.append(_frame(f"{name} → {stages[i + 1][0]}: {share:.0%}", mixed))
    animate(figure, frames, "", stops=list(pairings))
    words = f"{words}; a slider leads through the couplings {', '.join(map(str, pairings))}."
    return describe(figure, words, list(pairings) if len(pairings) <= 4 else ())


def _frame(name: str, traces: list[dict], title: str = "") -> go.Frame:
    title = {"title": {"text": title or html.escape(name)}}
    return go.Frame(name=name, data=[{"type": "scatter", **trace} for trace in traces], layout=title)


def coupling_title(name: str, pairs: Coupling, metric: str = "euclidean") -> str:
    """Return name, recoupling ratio and number of crossings of a coupling, as HTML."""
    ratio, crossings = recoupling_ratio(pairs.x0, pairs.x1, metric).ratio, int(pairs.crossings().triu().sum())
    head = f"{html.escape(name)}: " if name else ""
    places = "1 place" if crossings == 1 else f"{crossings:,} places"
    return f"{head}R = {ratio:.2f} · lines cross in {places}"


def coupling_traces(pairs: Coupling, metric: str = "euclidean", changed: Tensor | None = None) -> list[dict]:
    """Return five scatter traces as dicts: lines kept, lines re-paired, starts, ends, crossings.

    Args:
        changed: ``(N,)`` bool, the pairs that optimal transport would re-pair; computed from ``pairs`` if None.
    """
    changed = recoupling_ratio(pairs.x0, pairs.x1, metric).re_paired if changed is None else changed
    traces = []
    for name, chosen, color in (
        ("optimal transport agrees", ~changed, INK),
        ("optimal transport would re-pair", changed, RE_PAIRED),
    ):
        x, y = segments(pairs.x0[chosen], pairs.x1[chosen])
        traces.append({
            "x": x, "y": y, "name": name, "mode": "lines", "hoverinfo": "skip",
            "line": {"color": color, "width": 1.2, "dash": "solid"},
        })  # fmt: skip
    for name, points, symbol, color in (
        ("x₀, start", pairs.x0, "circle", START),
        ("x₁, end", pairs.x1, "square", END),
    ):
        x, y = points.float().cpu().numpy().T
        traces.append({
            "x": x, "y": y, "name": name, "mode": "markers", "marker": {"symbol": symbol, "color": color, "size": 7},
            "text": [str(i) for i in range(len(x))], "hovertemplate": "pair %{text}: (%{x:.2f}, %{y:.2f})",
        })  # fmt: skip
    x, y = crossing_points(pairs)[:4000].float().cpu().numpy().T
    traces.append({
        "x": x, "y": y, "name": "lines cross", "mode": "markers", "hoverinfo": "skip",
        "marker": {"color": "#F0E442", "size": 5, "symbol": "circle", "line": {"color": INK, "width": 1}},
    })  # fmt: skip
    return traces


def arrows(x: Tensor, u: Tensor, color: str, size: int = 8, width: float = 1.5, **style) -> go.Scatter:
    """Return arrows from ``x`` to ``x + u``, ``(N, 2)`` each, as one trace: three entries per arrow, the third NaN.

    Args:
        size: of the heads, in pixels.
        width: of the lines, in pixels.
        style: of the trace.
    """
    starts, ends = segments(x, x + u)
    heads = np.tile(np.array([0, size, 0], dtype=np.uint8), len(x))  # an arrowhead at the end of each line
    mark = {"symbol": "arrow", "angleref": "previous", "size": heads, "color": color, "opacity": 1}
    mark["line"] = {"width": 0}  # plotly draws a white edge around marks of different sizes
    line = {"color": color, "width": width}
    return go.Scatter(x=starts, y=ends, mode="lines+markers", line=line, marker=mark, hoverinfo="skip", **style)


@torch.no_grad()
def velocity_field(
    velocity: Callable[[Tensor, Tensor], Tensor],
    pairs: Coupling,
    path: Tensor | None = None,
    title: str = "Velocity field",
    start: int = 0,
    grid: int = 12,
) -> go.Figure:
    """Plot ``u(x, t)`` as arrows on a grid, with the points at time t and a slider over t.

    Arrows near a point are dark. Far from all points the network saw no training samples and extrapolates: pale.

    Args:
        velocity: ``u(x, t)`` → ``(N, 2)`` for ``x`` ``(N, 2)`` and a scalar t in [0, 1].
        path: ``(K+1, N, 2)``, the points at K+1 equally spaced times; straight lines with K = 10 if None.
        start: index of the time shown first, 0 to K.
        grid: arrows per axis.
    """
    times = uniform_times(10 if path is None else len(path) - 1)
    path = torch.stack([pairs.at(float(t)) for t in times]) if path is None else path
    low, high = axis_limits(pairs.x0, pairs.x1, _extent(path))
    mesh = torch.meshgrid(torch.linspace(low, high, grid), torch.linspace(low, high, grid), indexing="xy")
    points = torch.stack(mesh, -1).reshape(-1, 2).to(pairs.x0)
    cell = (high - low) / (grid - 1)

    def traces(t, here):
        u = velocity(points, t)
        seen = torch.cdist(points, here).min(1).values < 1.5 * cell
        longest = u[seen].norm(dim=-1).max().clamp_min(1e-9)  # some point of the grid is always near
        u = u * (longest / u.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp(max=1)  # gray ones may be huge
        fields = []
        far, near = ("extrapolated: no samples nearby", ~seen, FAR), ("learned velocity", seen, INK)
        for name, chosen, color in (far, near):
            size, width = (8, 1) if color == FAR else (10, 1.6)
            fields.append(arrows(points[chosen], u[chosen] * 1.2 * cell / longest, color, size, width, name=name))
        return [*fields, *_dots(here, pairs.group, "at t")]

    figure = new_figure(title, "", "", height=500)
    drawn = [traces(t, here) for t, here in zip(times, path, strict=True)]
    figure.add_traces(drawn[start])
    _plane(figure, points)
    frames = [go.Frame(name=f"{float(t):.2f}", data=_positions(found)) for t, found in zip(times, drawn, strict=True)]
    animate(figure, frames, "t = ", milliseconds=250).update_layout(sliders=[{"active": start}])
    words = f"{title}. Arrows of the velocity on a grid of {grid} by {grid} places, with {len(pairs)} points, at times "
    words += "from 0 to 1."
    return describe(figure, words, _evenly([frame.name for frame in frames], 3))


def walks(
    paths: dict[str, Tensor], pairs: Coupling, title: str = "", times: Sequence[float] | Tensor | None = None
) -> go.Figure:
    """Animate points along their paths, one panel per entry of ``paths``; thin lines show the whole paths.

    Open marks are the targets of each group; filled marks move and should end on open ones of the same shape.
    One-dimensional points are plotted against time: t to the right, x upward.

    Args:
        paths: name → states ``(K+1, N, D)``, all with the same K and N; D is 1 or 2.
        pairs: the N pairs; their groups give colors and marks.
        times: of the K+1 states; equally spaced from 0 to 1 if None.

    Raises:
        ValueError: paths of different lengths.
    """
    steps = {len(path) for path in paths.values()}
    if len(steps) != 1:
        raise ValueError(f"The paths have {sorted(steps)} states: compute them all with the same number of steps.")
    times = torch.linspace(0, 1, steps.pop()) if times is None else torch.as_tensor(times)
    flat = pairs.x0.shape[1] == 1
    if flat:
        start, end = (torch.nn.functional.pad(x, (1, 0), value=t) for x, t in ((pairs.x0, 0.0), (pairs.x1, 1.0)))
        paths, pairs = {n: _over_time(p, times) for n, p in paths.items()}, Coupling(start, end, pairs.group)
    heads = panel_titles(list(paths))
    figure = make_subplots(1, len(paths), subplot_titles=heads, horizontal_spacing=0.03)
    figure.update_layout(new_figure(title, "", "", height=460).layout)
    make_room(figure, heads)
    moving = []
    for column, path in enumerate(paths.values(), 1):
        panel, first = {"rows": 1, "cols": column}, column == 1
        figure.add_traces(
            [*_trails(path, pairs.group), *_dots(pairs.x1, pairs.group, "target", "-open", first, 9)], **panel
        )
        dots = _dots(path[-1], pairs.group, "point", show=first)
        moving += range(len(figure.data), len(figure.data) + len(dots))
        figure.add_traces(dots, **panel)
        _plane(figure, pairs.x0, pairs.x1, *(_inside(p) for p in paths.values()), row=1, col=column)
    if flat:
        figure.update_xaxes(range=[-0.05, 1.08], title="t", showticklabels=True)
        figure.update_yaxes(scaleanchor=None, showticklabels=True)
        figure.update_layout(yaxis_title="x")
    frames = [
        go.Frame(
            name=f"{float(t):.2f}", traces=moving,
            data=_positions([d for path in paths.values() for d in _dots(path[i], pairs.group, "")]),
        )
        for i, t in enumerate(times)
    ]  # fmt: skip
    animate(figure, frames, "t = ").update_layout(sliders=[{"active": len(frames) - 1}])
    where = "position over time, t to the right" if flat else "in the plane"
    words = f"{title}. Paths of {len(pairs)} points {where}, colored by group; open marks are targets. "
    words += f"Panels: {'; '.join(paths)}."
    return describe(figure, words, () if flat else _evenly([frame.name for frame in frames], 4))


def paths_over_time(paths: dict[str, Tensor], pairs: Coupling, title: str = "") -> go.Figure:
    """Plot one-dimensional paths over time, t to the right, one panel each; they may differ in their number of steps.

    Args:
        paths: name → states ``(K+1, N, 1)`` at equally spaced times from 0 to 1.
        pairs: the N pairs; their groups give colors and marks.
        title: of the figure.
    """
    heads = panel_titles(list(paths))
    figure = make_subplots(1, len(paths), subplot_titles=heads, shared_yaxes=True, horizontal_spacing=0.04)
    figure.update_layout(new_figure(title, "", "", height=460).layout)
    make_room(figure, heads)
    ends = torch.nn.functional.pad(pairs.x1, (1, 0), value=1.0)
    for column, path in enumerate(paths.values(), 1):
        panel, where = {"rows": 1, "cols": column}, {"row": 1, "col": column}
        drawn = _over_time(path, torch.linspace(0, 1, len(path)))
        figure.add_traces(_trails(drawn, pairs.group), **panel)
        figure.add_traces(_dots(ends, pairs.group, "target", "-open", column == 1, 10), **panel)
        figure.add_traces(_dots(drawn[-1], pairs.group, "end of the path", show=column == 1), **panel)
        figure.update_xaxes(range=[-0.03, 1.06], title="t", **where)
    figure.update_layout(yaxis_title="x")
    words = f"{title}. Position of {len(pairs)} points over time, t from 0 to 1, colored by group. "
    words += f"Panels: {'; '.join(paths)}."
    return describe(figure, words)


def _evenly(names: list[str], count: int) -> list[str]:
    """Return ``count`` of the names, evenly spaced, the first and the last among them."""
    count = min(count, len(names))
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)] if count > 1 else names


def _over_time(path: Tensor, times: Tensor) -> Tensor:
    """Turn a one-dimensional path, ``(K+1, N, 1)``, into points ``(K+1, N, 2)``: time and position."""
    return torch.cat([times.to(path).reshape(-1, 1, 1).expand(-1, path.shape[1], 1), path], -1)


def _positions(traces: list[go.Scatter]) -> list[go.Scatter]:
    """Strip traces to x and y: all that an animation frame needs."""
    return [go.Scatter(x=trace.x, y=trace.y) for trace in traces]


def _trails(path: Tensor, group: Tensor) -> list[go.Scatter]:
    """Draw whole paths ``(K+1, N, 2)`` as thin lines with gaps between points, one trace per group."""
    trails = []
    for g in (shown := group % len(SERIES)).unique().tolist():
        own = path[:, shown == g]
        gapped = torch.cat([own, torch.full_like(own[:1], float("nan"))]).transpose(0, 1).reshape(-1, 2)
        x, y = gapped.float().cpu().numpy().T
        line = {"color": SERIES[g], "width": 1}
        trails.append(go.Scatter(x=x, y=y, mode="lines", line=line, opacity=0.55, hoverinfo="skip", showlegend=False))
    return trails


def _dots(x: Tensor, group: Tensor, name: str, suffix: str = "", show: bool = True, size: int = 7) -> list[go.Scatter]:
    """Draw points as one marker trace per group; beyond seven groups colors and symbols repeat."""
    shown = group % len(SERIES)
    return [
        go.Scatter(
            x=x[shown == g, 0].float().cpu().numpy(), y=x[shown == g, 1].float().cpu().numpy(), mode="markers",
            name=f"{name}, group {g}", showlegend=show, hoverinfo="skip",
            marker={"symbol": GROUP_SYMBOLS[g] + suffix, "color": SERIES[g], "size": size},
        )
        for g in shown.unique().tolist()
    ]  # fmt: skip


def axis_limits(*clouds: Tensor) -> tuple[float, float]:
    """Return limits of a square around the origin that holds all the points."""
    reach = 1.12 * max(float(cloud.abs().max()) for cloud in clouds)
    return -reach, reach


def _extent(path: Tensor) -> Tensor:
    """Return the 98th percentile of the coordinates' absolute values: outliers may leave the figure."""
    return path.abs().flatten(0, 1).float().quantile(0.98, dim=0)


def _inside(path: Tensor) -> Tensor:
    """Return a path's points ``(M, 2)`` without the outermost 2 % in each coordinate: those may leave the figure."""
    points = path.flatten(0, -2).float()
    low, high = points.quantile(0.01, dim=0), points.quantile(0.99, dim=0)
    return points[((points >= low) & (points <= high)).all(1)]


def _plane(figure: go.Figure, *clouds: Tensor, row: int = 1, col: int = 1) -> None:
    """Show the part of the plane that holds all points, at the same scale on both axes; nothing jumps in an animation.

    The width that is left stays empty ("domain"). Filled with more of the plane ("range"), the points would shrink for
    good when a window gets narrow: plotly keeps the wider range.
    """
    points = torch.cat([cloud.float().cpu().reshape(-1, 2) for cloud in clouds])
    low, high = points.min(0).values, points.max(0).values
    edge = 0.06 * float((high - low).max().clamp_min(1e-6))
    where = {"row": row, "col": col} if figure._has_subplots() else {}
    hidden = {"showticklabels": False, "zeroline": False, "showgrid": False, "constrain": "domain"}
    (left, bottom), (right, top) = (low - edge).tolist(), (high + edge).tolist()
    figure.update_xaxes(range=[left, right], **hidden, **where)
    figure.update_layout(margin_l=16)
    figure.update_yaxes(range=[bottom, top], scaleanchor="x" if col == 1 else f"x{col}", **hidden, **where)
