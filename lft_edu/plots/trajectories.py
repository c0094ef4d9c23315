"""Figures of hidden states: paths through depth, the logit lens, norms, a flow's velocity where a token stands."""

import html
import re

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from ..projections import PCA, Projection, distortion
from ..trajectories import Lens, Trajectory, shared_depths, velocity_at
from .base import BLACK, BLUE, GREEN, GREY, PURPLE, VERMILLION, animate, label, new_figure, visible
from .plane import arrows

MODELS = ((BLUE, "circle"), (VERMILLION, "square"), (GREEN, "diamond"), (PURPLE, "x"))
LABELS = 12  # more words than that hide the paths


def trajectory(
    paths: Trajectory | dict[str, Trajectory],
    projection: Projection,
    tokens: list[int] | None = None,
    title: str = "Hidden states on their way",
    lens: bool = False,
) -> go.Figure:
    """Each token's path through depth, with play button and slider; dashed where an operator carries it.

    Marks are where the tokens are; with two models, thin lines join the same token in both at the same depth.

    Args:
        paths: a trajectory, or name → trajectory, all of one text.
        projection: frozen, of 2 or 3 dimensions.
        tokens: positions to show; all but the first if None.
        lens: say in hover what each state would predict.

    Raises:
        ValueError: different texts, more than four models, or a position that is not there.
    """
    paths = paths if isinstance(paths, dict) else {"teacher": paths}
    first = next(iter(paths.values()))
    tokens = _chosen(paths, first, tokens)
    figure = new_figure(title, "", "", height=560)
    for (name, path), (colour, _) in zip(paths.items(), MODELS, strict=False):
        figure.add_traces(_ways(name, path, projection, tokens, colour, path.logit_lens() if lens else None))
    still = len(figure.data)
    depths = torch.cat([path.times for path in paths.values()]).unique()
    places = {name: projection.transform(path.at(depths)[:, tokens]) for name, path in paths.items()}
    words = [label(first.tokens[t]) for t in tokens]
    figure.add_traces(_marks(places, len(depths) - 1, words))
    frames = [
        go.Frame(name=f"{float(depth):.4g}", traces=list(range(still, len(figure.data))), data=_moved(places, k))
        for k, depth in enumerate(depths)
    ]
    _axes(figure, projection, np.concatenate([place.reshape(-1, projection.dimensions) for place in places.values()]))
    return animate(figure, frames, "depth ", 180).update_layout(sliders=[{"active": len(frames) - 1}])


def _chosen(paths: dict, first: Trajectory, tokens: list[int] | None) -> list[int]:
    if len(paths) > len(MODELS):
        raise ValueError(f"{len(paths)} models in one picture are too many: show up to {len(MODELS)}.")
    if any(not torch.equal(path.ids, first.ids) for path in paths.values()):
        raise ValueError("These are trajectories of different texts: capture every model on one text.")
    count = len(first.tokens)
    tokens = list(range(1 if count > 1 else 0, count)) if tokens is None else list(tokens)
    if not tokens or not all(0 <= t < count for t in tokens):
        raise ValueError(f"tokens={tokens}: give positions from 0 to {count - 1}.")
    return tokens


def _ways(name: str, path: Trajectory, projection: Projection, tokens: list[int], colour: str, lens) -> list:
    """The whole paths as thin lines: one trace for layers, one, dashed, for what an operator carries."""
    stations = list(range(len(path.times)))
    parts = {name: [stations]}
    if path.span:
        m, n = (int(torch.searchsorted(path.times, float(edge))) for edge in path.span)
        parts = {name: [stations[: m + 1], stations[n:]], f"{name}: the operator's part": [stations[m : n + 1]]}
    where = projection.transform(path.states[:, tokens])
    traces = []
    for title, runs in parts.items():
        rows = [(s, i) for i in range(len(tokens)) for run in runs for s in (*run, None)]
        points = [where[s, i] if s is not None else np.full(projection.dimensions, np.nan) for s, i in rows]
        said = [_hover(path, lens, s, tokens[i]) if s is not None else "" for s, i in rows]
        traces.append(
            _scatter(
                np.array(points), mode="lines", name=html.escape(title, quote=False), opacity=0.55,
                hovertext=said, hoverinfo="text",
                line={"color": colour, "width": 1.2, "dash": "dash" if title != name else "solid"},
            )
        )  # fmt: skip
    return traces


def _hover(path: Trajectory, lens: Lens | None, station: int, token: int) -> str:
    depth, norm = path.times[station].item(), path.states[station, token].norm().item()
    said = f"{token}: {label(path.tokens[token])} · depth {depth:.4g} · norm {norm:.3g}"
    top = lens.top(station, token) if lens else []
    return "<br>".join([said, *(f"{label(word)} {share:.0%}" for word, share in top)])


def _marks(places: dict, k: int, words: list[str]) -> list:
    """Where everyone is at the k-th depth, and what lies between the first model and each other."""
    traces = []
    for (name, place), (colour, symbol) in zip(places.items(), MODELS, strict=False):
        named = not traces and len(words) <= LABELS
        mark = {"color": colour, "size": 5 if place.shape[-1] == 3 else 8, "symbol": symbol}
        traces.append(
            _scatter(
                place[k], mode="markers+text" if named else "markers", text=words if named else None, hoverinfo="skip",
                textposition="top right", marker=mark, name=f"{html.escape(name)}, now", showlegend=False,
            )
        )  # fmt: skip
    line = {"color": BLACK, "width": 0.8, "dash": "dot"}
    for gap in _gaps(places, k):
        traces.append(_scatter(gap, mode="lines", line=line, hoverinfo="skip", showlegend=False))
    return traces


def _gaps(places: dict, k: int) -> list[np.ndarray]:
    """From the first model's points to each other model's, as broken lines."""
    start, *ends = (place[k] for place in places.values())
    gap = np.full_like(start, np.nan)
    return [np.stack([start, end, gap], 1).reshape(-1, start.shape[-1]) for end in ends]


def _moved(places: dict, k: int) -> list:
    """All that a frame has to say: where things are."""
    return [_scatter(place[k]) for place in places.values()] + [_scatter(gap) for gap in _gaps(places, k)]


def _scatter(points: np.ndarray, **looks):
    """A scatter of ``(N, 2)`` or ``(N, 3)`` points."""
    columns = dict(zip("xyz", points.astype(np.float32).T, strict=False))
    return go.Scatter3d(**columns, **looks) if points.shape[-1] == 3 else go.Scatter(**columns, **looks)


def axis_names(projection: Projection) -> list[str]:
    """What the axes of a picture show."""
    if not isinstance(projection, PCA):
        return [f"{projection.kind} {i + 1} (no unit)" for i in range(projection.dimensions)]
    prepared = f", {projection.preparation}" if projection.preparation in ("layernorm", "unit") else ""
    return [f"PC {i + 1} ({share:.0%} of the variance{prepared})" for i, share in enumerate(projection.explained)]


def _axes(figure: go.Figure, projection: Projection, points: np.ndarray) -> None:
    """Axis names, and limits that hold all that will be seen, so that nothing jumps while frames play."""
    names = axis_names(projection)
    low, high = points.min(0), points.max(0)
    margin = 0.06 * (high - low).max()
    axes = [
        {"title": n, "range": [float(a - margin), float(b + margin)]} for n, a, b in zip(names, low, high, strict=True)
    ]
    if projection.dimensions == 3:
        figure.update_layout(scene=dict(zip(("xaxis", "yaxis", "zaxis"), axes, strict=True)), scene_aspectmode="data")
        return
    figure.update_layout(xaxis=axes[0], yaxis=axes[1] | {"scaleanchor": "x" if isinstance(projection, PCA) else None})


def hidden_distance(paths: dict[str, Trajectory], projections: dict[str, Projection]) -> go.Figure:
    """Share of the squared distance from the first model to each other that each picture hides, depth by depth.

    Args:
        paths: name → trajectory, the teacher's first.
        projections: name → PCA; a UMAP's distances have no unit to compare.

    Raises:
        ValueError: no student's trajectories, or a text of one token.
    """
    (_, first), *others = paths.items()
    if len(first.tokens) < 2 or any(path.span is None for _, path in others):
        raise ValueError("Give the teacher first, then students' trajectories, of a text of at least two tokens.")
    figure = new_figure("What the picture does not show", "depth, layers", "share of the squared distance hidden")
    for (name, path), (colour, symbol) in zip(others, MODELS[1:], strict=False):
        depths = [d for d in shared_depths(first, path).tolist() if d > path.span[0]]
        for i, (title, projection) in enumerate(projections.items()):
            pairs = [(first.at(d)[0, 1:], path.at(d)[0, 1:]) for d in depths]
            figure.add_scatter(
                x=depths, y=[distortion(projection, a, b).hidden for a, b in pairs], mode="lines+markers",
                name=html.escape(f"{name}, {title}"), marker={"symbol": symbol},
                line={"color": colour, "dash": ("solid", "dash", "dot")[i % 3]},
            )  # fmt: skip
    return figure.update_yaxes(range=[0, 1.02], tickformat=".0%")


def lens(path: Trajectory, tokens: list[int] | None = None, every: int = 1, title: str = "Logit lens") -> go.Figure:
    """What each state would predict, tokens across, depth downwards; the darker, the farther from the model's own end.

    Args:
        tokens: positions to show; the first 12 if None.
        every: show each so many stations; the last is always shown.
    """
    tokens = list(range(min(12, len(path.tokens)))) if tokens is None else list(tokens)
    stations = sorted({*range(0, len(path.times), every), len(path.times) - 1})
    found = path.logit_lens()
    best = [[found.top(s, t) for t in tokens] for s in stations]
    figure = new_figure(title, "token of the text", "depth, layers", height=90 + 22 * len(stations))
    figure.add_heatmap(
        z=found.kl[stations][:, tokens].clamp_min(0).tolist(), x=list(range(len(tokens))), y=list(range(len(stations))),
        colorscale="Cividis", reversescale=True, zmin=0, zmax=6,
        colorbar={"title": "KL to the<br>model's end,<br>nats"},
        text=[[_short(top[0][0]) for top in row] for row in best], texttemplate="%{text}", textfont={"size": 11},
        hovertext=[["<br>".join(f"{label(w)} {p:.0%}" for w, p in top) for top in row] for row in best],
        hoverinfo="text",
    )  # fmt: skip
    figure.update_xaxes(
        tickvals=list(range(len(tokens))), ticktext=[_short(path.tokens[t]) for t in tokens], side="top"
    )
    depths = [f"{path.times[s].item():.4g}" for s in stations]
    figure.update_yaxes(tickvals=list(range(len(stations))), ticktext=depths, autorange="reversed")
    return figure.update_layout(margin={"t": 110})


def _short(word: str, most: int = 9) -> str:
    shown = re.sub("·{5,}", lambda run: f"·×{len(run[0])}", visible(word))
    return label(shown if len(shown) <= most else shown[: most - 1] + "…")


def norms(path: Trajectory, title: str = "How large is each token's state?") -> go.Figure:
    """Norm of every token at every depth as a heat map: a token that others park their attention on stands out."""
    figure = new_figure(title, "token of the text", "depth, layers", height=480)
    words = [f"{t}: {label(word)}" for t, word in enumerate(path.tokens)]
    shown = path.norms()
    figure.add_heatmap(
        z=shown.tolist(), x=list(range(len(words))), y=path.times.tolist(), colorscale="Cividis", zmin=0,
        hovertext=[[f"{word}<br>depth {d:.4g}: {v:.3g}" for word, v in zip(words, row, strict=True)]
                   for d, row in zip(path.times.tolist(), shown.tolist(), strict=True)],
        hoverinfo="text", colorbar={"title": "norm"},
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return figure.update_xaxes(
        tickvals=list(range(len(words))), ticktext=[_short(word) for word in path.tokens], tickangle=-60
    )


def token_field(
    student, path: Trajectory, projection: PCA, token: int, seen: Tensor, grid: int = 13, moments: int = 7
) -> go.Figure:
    """The velocity that a flow would give one token, were it elsewhere in the picture; all else stays as it is.

    What the picture does not show of the token's state stays the token's own. Arrows are grey where none of the states
    in ``seen`` lies near in the picture: there the flow was never trained, and guesses.

    Args:
        student: a spliced model with a flow; ``path`` its trajectory.
        projection: PCA in 2 dimensions of raw states, or of states without outliers.
        token: position.
        seen: ``(N, D)``, states of the teacher inside the span.
        moments: times from 0 to 1, on a slider.
    """
    if path.span is None or not isinstance(projection, PCA) or projection.dimensions != 2:
        raise ValueError("The field takes a student's trajectory and a PCA of 2 dimensions, raw or without outliers.")
    m, n = path.span
    times = torch.linspace(0, 1, moments).tolist()
    here = [projection.transform(path.at(m + t * (n - m))[0, token][None])[0] for t in times]
    cloud = projection.transform(seen)
    low, high = np.quantile(cloud, 0.01, axis=0), np.quantile(cloud, 0.99, axis=0)
    low, high = np.minimum(low, np.min(here, 0)), np.maximum(high, np.max(here, 0))
    mesh = np.stack(np.meshgrid(*(np.linspace(a, b, grid) for a, b in zip(low, high, strict=True))), -1).reshape(-1, 2)
    cell = float(((high - low) / (grid - 1)).max())
    near = np.linalg.norm(mesh[:, None] - cloud[None], axis=-1).min(1) < cell
    pushes = []
    for t, place in zip(times, here, strict=True):
        moves = torch.from_numpy(projection.lift(mesh - place)).float()
        pushes.append(velocity_at(student, path, token, t, moves).double().numpy() @ projection.lift(np.eye(2)).T)
    longest = max(np.linalg.norm(push[near], axis=1).max() for push in pushes)

    def traces(k):
        drawn = []
        for name, chosen, colour in (("a guess: nobody was here", ~near, "#B5B5B5"), ("velocity", near, BLACK)):
            u = pushes[k][chosen] / longest
            u = u / np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1)
            x, y = arrows(torch.from_numpy(mesh[chosen]), torch.from_numpy(1.4 * cell * u))
            line = {"color": colour, "width": 1.2}
            drawn.append(go.Scatter(x=x, y=y, mode="lines", name=name, line=line, hoverinfo="skip"))
        mark = {"color": VERMILLION, "size": 11, "symbol": "square"}
        named = label(path.tokens[token])
        return [*drawn, _scatter(here[k][None], mode="markers", name=f"{named} at t", marker=mark, hoverinfo="skip")]

    figure = new_figure(f"Where would the flow push “{visible(path.tokens[token])}”?", "", "", height=520)
    way = _scatter(
        np.array(here), mode="lines", name="its path", line={"color": VERMILLION, "width": 3}, hoverinfo="skip"
    )
    states = _scatter(
        cloud, mode="markers", name="states of the teacher", hoverinfo="skip", marker={"color": GREY, "size": 2}
    )
    figure.add_traces([states, way, *traces(0)])
    _axes(figure, projection, np.array([low, high]))
    moving = list(range(2, len(figure.data)))
    frames = [
        go.Frame(name=f"{t:.2f}", traces=moving, data=[go.Scatter(x=d.x, y=d.y) for d in traces(k)])
        for k, t in enumerate(times)
    ]
    return animate(figure, frames, "t = ", 300)
