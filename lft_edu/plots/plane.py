"""Figures of the plane: pairings, velocity fields, points on their way."""

import html

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from ..couplings import Coupling, recoupling_ratio
from ..flow import uniform_times
from .base import BLACK, BLUE, GREY, GROUP_SYMBOLS, SERIES, VERMILLION, animate, new_figure


def segments(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Segments a[i]–b[i] as one broken line, x and y: three entries a segment, the third NaN. One trace draws all."""
    gap = torch.full_like(a, float("nan"))
    x, y = torch.stack([a, b, gap], 1).reshape(-1, 2).float().cpu().numpy().T
    return x, y


def crossing_points(pairs: Coupling) -> Tensor:
    """Where straight lines between partners cross on paper: ``(M, 2)``."""
    i, j = pairs.crossings().triu().nonzero(as_tuple=True)
    a, b, c, d = (x.double() for x in (pairs.x0[i], pairs.x1[i], pairs.x0[j], pairs.x1[j]))

    def cross(u, v):
        return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]

    along = cross(c - a, d - c) / cross(b - a, d - c)
    return a + along[:, None] * (b - a)


def clouds(pairs: Coupling, title: str = "Two clouds") -> go.Figure:
    """Starts and ends, without saying who goes with whom."""
    figure = new_figure(title, "", "", height=400)
    figure.add_traces([{"type": "scatter", **trace} for trace in coupling_traces(pairs)[2:4]])
    _square(figure, *reach(pairs.x0, pairs.x1))
    return figure


def coupling(pairings: Coupling | dict[str, Coupling], metric: str = "euclidean", between: int = 9) -> go.Figure:
    """Two clouds and who goes with whom. Several pairings of the same clouds get a slider that swings from one to the
    next, and a play button.

    A line is orange where optimal transport would pair its start with someone else; dots mark places where lines
    cross. The share of orange lines is the recoupling ratio.

    Args:
        pairings: one coupling, or name → coupling, all of the same two clouds.
        metric: of the recoupling ratio.
        between: pictures in between two pairings.
    """
    pairings = {"": pairings} if isinstance(pairings, Coupling) else pairings
    stages = list(pairings.items())
    looks = [coupling_traces(pairs, metric) for _, pairs in stages]
    figure = new_figure("", "", "", height=480)
    figure.add_traces([{"type": "scatter", **trace} for trace in looks[0]])
    _square(figure, *reach(stages[0][1].x0, stages[0][1].x1))
    figure.update_layout(title=coupling_title(*stages[0], metric))
    if len(stages) == 1:
        return figure
    frames = []
    for i, ((name, pairs), look) in enumerate(zip(stages, looks, strict=True)):
        frames.append(_frame(name, look, coupling_title(name, pairs, metric)))
        for j in range(1, between + 1) if i + 1 < len(stages) else ():
            share = j / (between + 1)
            moving = Coupling(pairs.x0, torch.lerp(pairs.x1, stages[i + 1][1].x1, share), pairs.group)
            x, y = segments(moving.x0, moving.x1)
            nothing = {"x": [], "y": []}
            undecided = {"x": x, "y": y, "name": "on the way", "line": {"color": BLUE, "width": 1.2, "dash": "dot"}}
            swinging = [{**look[0], **undecided}, {**look[1], **nothing}, *look[2:4], {**look[4], **nothing}]
            frames.append(_frame(f"{name} → {stages[i + 1][0]}: {share:.0%}", swinging))
    return animate(figure, frames, "", stops=list(pairings))


def _frame(name: str, traces: list[dict], title: str = "") -> go.Frame:
    title = {"title": {"text": title or html.escape(name)}}
    return go.Frame(name=name, data=[{"type": "scatter", **trace} for trace in traces], layout=title)


def coupling_title(name: str, pairs: Coupling, metric: str = "euclidean") -> str:
    """Name, recoupling ratio and number of crossings of a pairing, as HTML."""
    ratio, crossings = recoupling_ratio(pairs.x0, pairs.x1, metric).ratio, int(pairs.crossings().triu().sum())
    head = f"{html.escape(name)}: " if name else ""
    places = "1 place" if crossings == 1 else f"{crossings:,} places"
    return f"{head}R = {ratio:.2f} · lines cross in {places}"


def coupling_traces(pairs: Coupling, metric: str = "euclidean", changed: Tensor | None = None) -> list[dict]:
    """Lines kept, lines re-paired, starts, ends, crossings: five scatter traces as plain dicts.

    ``changed`` ``(N,)`` bool says which are re-paired, where these points are a picture of others.
    """
    changed = recoupling_ratio(pairs.x0, pairs.x1, metric).re_paired if changed is None else changed
    traces = []
    for name, chosen, colour in (
        ("optimal transport agrees", ~changed, GREY),
        ("optimal transport would re-pair", changed, VERMILLION),
    ):
        x, y = segments(pairs.x0[chosen], pairs.x1[chosen])
        traces.append({
            "x": x, "y": y, "name": name, "mode": "lines", "hoverinfo": "skip",
            "line": {"color": colour, "width": 1.2, "dash": "solid"},
        })  # fmt: skip
    for name, points, symbol, colour in (
        ("x₀, start", pairs.x0, "circle", BLUE),
        ("x₁, end", pairs.x1, "square", BLACK),
    ):
        x, y = points.float().cpu().numpy().T
        traces.append({
            "x": x, "y": y, "name": name, "mode": "markers", "marker": {"symbol": symbol, "color": colour, "size": 7},
            "text": [str(i) for i in range(len(x))], "hovertemplate": "pair %{text}: (%{x:.2f}, %{y:.2f})",
        })  # fmt: skip
    x, y = crossing_points(pairs)[:4000].float().cpu().numpy().T
    traces.append({
        "x": x, "y": y, "name": "lines cross", "mode": "markers", "hoverinfo": "skip",
        "marker": {"color": "#F0E442", "size": 5, "symbol": "circle", "line": {"color": "#333333", "width": 1}},
    })  # fmt: skip
    return traces


def arrows(x: Tensor, u: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Arrows from ``x`` ``(N, 2)`` to ``x + u`` as one broken line."""
    tip, side = x + u, torch.stack([-u[:, 1], u[:, 0]], -1)
    left, right = tip - 0.35 * u + 0.18 * side, tip - 0.35 * u - 0.18 * side
    gap = torch.full_like(x, float("nan"))
    path = torch.stack([x, tip, left, tip, right, gap], 1).reshape(-1, 2)
    return tuple(path.float().cpu().numpy().T)


@torch.no_grad()
def velocity_field(
    velocity, pairs: Coupling, path: Tensor | None = None, title: str = "Velocity field", start: int = 0, grid: int = 12
) -> go.Figure:
    """Arrows of ``u(x, t)`` on a grid, with a slider over t, and where the points of ``pairs`` are at t.

    Arrows near a point are black; far from any, where training saw nothing, the field is a guess, and grey.

    Args:
        velocity: ``u(x, t)`` for ``x`` ``(N, 2)``.
        path: ``(K+1, N, 2)``, where the points are at K+1 equally spaced times; on straight lines, K = 10, if None.
        start: which of the K+1 times is shown first.
    """
    times = uniform_times(10 if path is None else len(path) - 1)
    path = torch.stack([pairs.at(float(t)) for t in times]) if path is None else path
    low, high = reach(pairs.x0, pairs.x1, _bulk(path))
    mesh = torch.meshgrid(torch.linspace(low, high, grid), torch.linspace(low, high, grid), indexing="xy")
    points = torch.stack(mesh, -1).reshape(-1, 2).to(pairs.x0)
    cell = (high - low) / (grid - 1)

    def traces(t, here):
        u = velocity(points, t)
        seen = torch.cdist(points, here).min(1).values < 1.5 * cell
        longest = u[seen].norm(dim=-1).max().clamp_min(1e-9)  # some point of the grid is always near
        u = u * (longest / u.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp(max=1)  # guesses may be wild: clip them
        looks = []
        for name, chosen, colour in (("a guess: nobody is here", ~seen, "#B5B5B5"), ("learned velocity", seen, BLACK)):
            x, y = arrows(points[chosen], u[chosen] * 1.5 * cell / longest)
            line = {"color": colour, "width": 1.3}
            looks.append(go.Scatter(x=x, y=y, name=name, mode="lines", line=line, hoverinfo="skip"))
        return [*looks, *_dots(here, pairs.group, "at t")]

    figure = new_figure(title, "", "", height=480)
    drawn = [traces(t, here) for t, here in zip(times, path, strict=True)]
    figure.add_traces(drawn[start])
    _square(figure, low, high)
    frames = [go.Frame(name=f"{float(t):.2f}", data=_places(look)) for t, look in zip(times, drawn, strict=True)]
    return animate(figure, frames, "t = ", milliseconds=250).update_layout(sliders=[{"active": start}])


def walks(paths: dict[str, Tensor], pairs: Coupling, title: str = "", times=None) -> go.Figure:
    """Points on their way, in panels side by side, with play button and slider; thin lines show the whole way.

    Open marks are the targets of each group; filled ones walk, and should end on marks of their own shape.
    Points on a line, D = 1, are drawn over time: t to the right, x upwards.

    Args:
        paths: name → ``(K+1, N, D)``, all with the same K and N.
        pairs: the N pairs; their groups give colours and marks.
        times: of the K+1 states; equally spaced from 0 to 1 if None.
    """
    steps = {len(path) for path in paths.values()}
    if len(steps) != 1:
        raise ValueError(f"The paths have {sorted(steps)} states: walk them all in the same number of steps.")
    times = torch.linspace(0, 1, steps.pop()) if times is None else torch.as_tensor(times)
    flat = pairs.x0.shape[1] == 1
    if flat:
        start, end = (torch.nn.functional.pad(x, (1, 0), value=t) for x, t in ((pairs.x0, 0.0), (pairs.x1, 1.0)))
        paths, pairs = {n: _over_time(p, times) for n, p in paths.items()}, Coupling(start, end, pairs.group)
    figure = make_subplots(1, len(paths), subplot_titles=[html.escape(name) for name in paths], horizontal_spacing=0.04)
    figure.update_layout(new_figure(title, "", "", height=480, margin={"l": 40, "r": 20, "t": 90, "b": 40}).layout)
    moving = []
    for column, path in enumerate(paths.values(), 1):
        panel, first = {"rows": 1, "cols": column}, column == 1
        figure.add_traces(
            [*_trails(path, pairs.group), *_dots(pairs.x1, pairs.group, "target", "-open", first, 9)], **panel
        )
        dots = _dots(path[-1], pairs.group, "walker", show=first)
        moving += range(len(figure.data), len(figure.data) + len(dots))
        figure.add_traces(dots, **panel)
        _square(figure, *reach(pairs.x0, pairs.x1, *(_bulk(p) for p in paths.values())), row=1, col=column)
    if flat:
        figure.update_xaxes(range=[-0.05, 1.08], title="t", showticklabels=True)
        figure.update_yaxes(scaleanchor=None, title="x")
    frames = [
        go.Frame(
            name=f"{float(t):.2f}", traces=moving,
            data=_places([d for path in paths.values() for d in _dots(path[i], pairs.group, "")]),
        )
        for i, t in enumerate(times)
    ]  # fmt: skip
    return animate(figure, frames, "t = ").update_layout(sliders=[{"active": len(frames) - 1}])


def _over_time(path: Tensor, times: Tensor) -> Tensor:
    """A path on a line, ``(K+1, N, 1)``, as points in the plane, ``(K+1, N, 2)``: time and place."""
    return torch.cat([times.to(path).reshape(-1, 1, 1).expand(-1, path.shape[1], 1), path], -1)


def _places(traces: list[go.Scatter]) -> list[go.Scatter]:
    """Where things are, without their looks: all that a frame has to say."""
    return [go.Scatter(x=trace.x, y=trace.y) for trace in traces]


def _trails(path: Tensor, group: Tensor) -> list[go.Scatter]:
    """The whole ways ``(K+1, N, 2)`` as thin broken lines, one trace a group."""
    trails = []
    for g in (shown := group % len(SERIES)).unique().tolist():
        way = path[:, shown == g]
        broken = torch.cat([way, torch.full_like(way[:1], float("nan"))]).transpose(0, 1).reshape(-1, 2)
        x, y = broken.float().cpu().numpy().T
        line = {"color": SERIES[g], "width": 0.7}
        trails.append(go.Scatter(x=x, y=y, mode="lines", line=line, opacity=0.6, hoverinfo="skip", showlegend=False))
    return trails


def _dots(x: Tensor, group: Tensor, name: str, suffix: str = "", show: bool = True, size: int = 7) -> list[go.Scatter]:
    """One marker trace a group; beyond seven groups colours and symbols repeat."""
    shown = group % len(SERIES)
    return [
        go.Scatter(
            x=x[shown == g, 0].float().cpu().numpy(), y=x[shown == g, 1].float().cpu().numpy(), mode="markers",
            name=f"{name}, group {g}", showlegend=show, hoverinfo="skip",
            marker={"symbol": GROUP_SYMBOLS[g] + suffix, "color": SERIES[g], "size": size},
        )
        for g in shown.unique().tolist()
    ]  # fmt: skip


def reach(*clouds: Tensor) -> tuple[float, float]:
    """Limits of a square about the origin that holds all the points."""
    reach = 1.12 * max(float(cloud.abs().max()) for cloud in clouds)
    return -reach, reach


def _bulk(path: Tensor) -> Tensor:
    """How far a path goes from the origin, a few strays left aside: they may leave the picture."""
    return path.abs().flatten(0, 1).float().quantile(0.98, dim=0)


def _square(figure: go.Figure, low: float, high: float, row: int = 1, col: int = 1) -> None:
    """The same scale on both axes, fixed, so that nothing jumps while frames play."""
    where = {"row": row, "col": col} if figure._has_subplots() else {}
    limits = {"range": [low, high], "showticklabels": False, "zeroline": False}
    figure.update_xaxes(**limits, constrain="domain", **where)
    figure.update_yaxes(**limits, constrain="domain", scaleanchor="x" if col == 1 else f"x{col}", **where)
