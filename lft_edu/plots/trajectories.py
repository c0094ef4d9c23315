"""Figures of hidden states: paths through depth, the logit lens, norms, a flow's velocity field."""

import html
import re
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from ..projections import PCA, Projection, distortion
from ..trajectories import Lens, Trajectory, shared_depths, velocity_at
from .base import BLACK, BLUE, GRAY, GREEN, PURPLE, VERMILLION, animate, label, new_figure, visible
from .plane import arrows

if TYPE_CHECKING:
    from ..splicing import SplicedForCausalLM

MODELS = ((BLUE, "circle"), (VERMILLION, "square"), (GREEN, "diamond"), (PURPLE, "x"))
LABELS = 12  # more words would hide the paths


def trajectory(
    paths: Trajectory | dict[str, Trajectory],
    projection: Projection,
    tokens: list[int] | None = None,
    title: str = "Hidden states through depth",
    lens: bool = False,
) -> go.Figure:
    """Animate each token's path through depth; dashed inside the span that an operator replaces.

    Marks are the tokens at the current depth; dotted lines join the same token in two models.

    Args:
        paths: a trajectory, or name → trajectory, all of the same text.
        projection: fitted, of 2 or 3 dimensions.
        tokens: positions to show, from 0; all but the first if None.
        lens: show each state's logit-lens prediction on hover.

    Raises:
        ValueError: different texts, more than four models, or a position outside the text.
    """
    paths = paths if isinstance(paths, dict) else {"teacher": paths}
    first = next(iter(paths.values()))
    tokens = _check_tokens(paths, first, tokens)
    figure = new_figure(title, "", "", height=560)
    for (name, path), (color, _) in zip(paths.items(), MODELS, strict=False):
        figure.add_traces(_path_traces(name, path, projection, tokens, color, path.logit_lens() if lens else None))
    fixed = len(figure.data)
    depths = torch.cat([path.times for path in paths.values()]).unique()
    places = {name: projection.transform(path.at(depths)[:, tokens]) for name, path in paths.items()}
    words = [label(first.tokens[t]) for t in tokens]
    figure.add_traces(_markers(places, len(depths) - 1, words))
    frames = [
        go.Frame(name=f"{float(depth):.4g}", traces=list(range(fixed, len(figure.data))), data=_frame_data(places, k))
        for k, depth in enumerate(depths)
    ]
    _axes(figure, projection, np.concatenate([place.reshape(-1, projection.dimensions) for place in places.values()]))
    return animate(figure, frames, "depth ", 180).update_layout(sliders=[{"active": len(frames) - 1}])


def _check_tokens(paths: dict, first: Trajectory, tokens: list[int] | None) -> list[int]:
    if len(paths) > len(MODELS):
        raise ValueError(f"{len(paths)} models are too many for one figure: give at most {len(MODELS)}.")
    if any(not torch.equal(path.ids, first.ids) for path in paths.values()):
        raise ValueError("The trajectories are of different texts: capture every model on the same text.")
    count = len(first.tokens)
    tokens = list(range(1 if count > 1 else 0, count)) if tokens is None else list(tokens)
    if not tokens or not all(0 <= t < count for t in tokens):
        raise ValueError(f"tokens={tokens}: give positions from 0 to {count - 1}.")
    return tokens


def _path_traces(name: str, path: Trajectory, projection: Projection, tokens: list[int], color: str, lens) -> list:
    """Draw whole paths as thin lines: one trace for the layers and a dashed one for the operator's part."""
    indices = list(range(len(path.times)))
    parts = {name: [indices]}
    if path.span:
        m, n = (int(torch.searchsorted(path.times, float(edge))) for edge in path.span)
        inside = {f"{name}: the operator's part": [indices[m : n + 1]]}
        parts = {name: [indices[: m + 1], indices[n:]]} | inside
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
                line={"color": color, "width": 1.2, "dash": "dash" if title != name else "solid"},
            )
        )  # fmt: skip
    return traces


def _hover(path: Trajectory, lens: Lens | None, index: int, token: int) -> str:
    depth, norm = path.times[index].item(), path.states[index, token].norm().item()
    said = f"{token}: {label(path.tokens[token])} · depth {depth:.4g} · norm {norm:.3g}"
    top = lens.top(index, token) if lens else []
    return "<br>".join([said, *(f"{label(word)} {share:.0%}" for word, share in top)])


def _markers(places: dict, k: int, words: list[str]) -> list:
    """Draw the tokens at the k-th depth, and dotted lines from the first model's to each other model's."""
    traces = []
    for (name, place), (color, symbol) in zip(places.items(), MODELS, strict=False):
        named = not traces and len(words) <= LABELS
        mark = {"color": color, "size": 5 if place.shape[-1] == 3 else 8, "symbol": symbol}
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
    """Return lines with gaps from the first model's points to each other model's."""
    start, *ends = (place[k] for place in places.values())
    gap = np.full_like(start, np.nan)
    return [np.stack([start, end, gap], 1).reshape(-1, start.shape[-1]) for end in ends]


def _frame_data(places: dict, k: int) -> list:
    """Return the positions of all moving traces at the k-th depth."""
    return [_scatter(place[k]) for place in places.values()] + [_scatter(gap) for gap in _gaps(places, k)]


def _scatter(points: np.ndarray, **style):
    """Create a scatter trace of ``(N, 2)`` or ``(N, 3)`` points."""
    columns = dict(zip("xyz", points.astype(np.float32).T, strict=False))
    return go.Scatter3d(**columns, **style) if points.shape[-1] == 3 else go.Scatter(**columns, **style)


def axis_names(projection: Projection) -> list[str]:
    """Return axis titles for a projection: kind, index and, for a PCA, the explained variance."""
    if not isinstance(projection, PCA):
        return [f"{projection.kind} {i + 1} (no unit)" for i in range(projection.dimensions)]
    prepared = f", {projection.preparation}" if projection.preparation in ("layernorm", "unit") else ""
    return [f"PC {i + 1} ({share:.0%} of the variance{prepared})" for i, share in enumerate(projection.explained)]


def _axes(figure: go.Figure, projection: Projection, points: np.ndarray) -> None:
    """Set axis titles, and limits that hold all ``points``, so that nothing jumps while frames play."""
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
    """Plot the fraction of the squared distance from teacher to student that each projection hides, by depth.

    Args:
        paths: name → trajectory, the teacher's first, then students'.
        projections: name → PCA; distances in a UMAP have no unit to compare.

    Raises:
        ValueError: no student's trajectories, or a text of one token.
    """
    (_, first), *others = paths.items()
    if len(first.tokens) < 2 or any(path.span is None for _, path in others):
        raise ValueError("Give the teacher first, then students' trajectories, of a text of at least two tokens.")
    figure = new_figure("What the projection hides", "depth, layers", "fraction of the squared distance hidden")
    for (name, path), (color, symbol) in zip(others, MODELS[1:], strict=False):
        depths = [d for d in shared_depths(first, path).tolist() if d > path.span[0]]
        for i, (title, projection) in enumerate(projections.items()):
            pairs = [(first.at(d)[0, 1:], path.at(d)[0, 1:]) for d in depths]
            figure.add_scatter(
                x=depths, y=[distortion(projection, a, b).hidden for a, b in pairs], mode="lines+markers",
                name=html.escape(f"{name}, {title}"), marker={"symbol": symbol},
                line={"color": color, "dash": ("solid", "dash", "dot")[i % 3]},
            )  # fmt: skip
    return figure.update_yaxes(range=[0, 1.02], tickformat=".0%")


def lens(path: Trajectory, tokens: list[int] | None = None, every: int = 1, title: str = "Logit lens") -> go.Figure:
    """Plot the token that each state predicts, tokens across, depth down; darker is farther from the final prediction.

    Args:
        tokens: positions to show, from 0; the first 12 if None.
        every: show every n-th depth; the last is always shown.
    """
    tokens = list(range(min(12, len(path.tokens)))) if tokens is None else list(tokens)
    rows = sorted({*range(0, len(path.times), every), len(path.times) - 1})
    found = path.logit_lens()
    best = [[found.top(s, t) for t in tokens] for s in rows]
    figure = new_figure(title, "token of the text", "depth, layers", height=90 + 22 * len(rows))
    figure.add_heatmap(
        z=found.kl[rows][:, tokens].clamp_min(0).tolist(), x=list(range(len(tokens))), y=list(range(len(rows))),
        colorscale="Cividis", reversescale=True, zmin=0, zmax=6,
        colorbar={"title": "KL to the<br>model's end,<br>nats"},
        text=[[_short(top[0][0]) for top in row] for row in best], texttemplate="%{text}", textfont={"size": 11},
        hovertext=[["<br>".join(f"{label(w)} {p:.0%}" for w, p in top) for top in row] for row in best],
        hoverinfo="text",
    )  # fmt: skip
    figure.update_xaxes(
        tickvals=list(range(len(tokens))), ticktext=[_short(path.tokens[t]) for t in tokens], side="top"
    )
    depths = [f"{path.times[s].item():.4g}" for s in rows]
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=depths, autorange="reversed")
    return figure.update_layout(margin={"t": 110})


def _short(word: str, most: int = 9) -> str:
    shown = re.sub("·{5,}", lambda run: f"·×{len(run[0])}", visible(word))
    return label(shown if len(shown) <= most else shown[: most - 1] + "…")


def norms(path: Trajectory, title: str = "How large is each token's state?") -> go.Figure:
    """Plot the norm of every token's state at every depth as a heatmap: an attention sink stands out."""
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
    student: "SplicedForCausalLM",
    path: Trajectory,
    projection: PCA,
    token: int,
    seen: Tensor,
    grid: int = 13,
    moments: int = 7,
) -> go.Figure:
    """Plot the velocity that a flow would give one token at other positions in the plane of a PCA.

    Components outside the plane and all other tokens stay as they are. Arrows are gray where no state of ``seen`` is
    near: the flow was not trained there and extrapolates.

    Args:
        student: a spliced model with a flow; ``path`` its trajectory.
        projection: PCA in 2 dimensions of raw states, or of states without outlier dimensions.
        token: position in the text, from 0.
        seen: ``(N, D)``, states of the teacher inside the span.
        grid: arrows per axis.
        moments: number of times from 0 to 1 on the slider.

    Raises:
        ValueError: a teacher's trajectory, another projection, or an operator that is not a flow.
    """
    if path.span is None or not isinstance(projection, PCA) or projection.dimensions != 2:
        raise ValueError("Give a student's trajectory and a PCA of 2 dimensions, raw or without outliers.")
    m, n = path.span
    times = torch.linspace(0, 1, moments).tolist()
    here = [projection.transform(path.at(m + t * (n - m))[0, token][None])[0] for t in times]
    cloud = projection.transform(seen)
    low, high = np.quantile(cloud, 0.01, axis=0), np.quantile(cloud, 0.99, axis=0)
    low, high = np.minimum(low, np.min(here, 0)), np.maximum(high, np.max(here, 0))
    mesh = np.stack(np.meshgrid(*(np.linspace(a, b, grid) for a, b in zip(low, high, strict=True))), -1).reshape(-1, 2)
    cell = float(((high - low) / (grid - 1)).max())
    near = np.linalg.norm(mesh[:, None] - cloud[None], axis=-1).min(1) < cell
    velocities = []
    for t, place in zip(times, here, strict=True):
        moves = torch.from_numpy(projection.lift(mesh - place)).float()
        velocities.append(velocity_at(student, path, token, t, moves).double().numpy() @ projection.lift(np.eye(2)).T)
    longest = max(np.linalg.norm(u[near], axis=1).max() for u in velocities)

    def traces(k):
        drawn = []
        far = ("extrapolated: no samples nearby", ~near, "#B5B5B5")
        for name, chosen, color in (far, ("velocity", near, BLACK)):
            u = velocities[k][chosen] / longest
            u = u / np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1)
            x, y = arrows(torch.from_numpy(mesh[chosen]), torch.from_numpy(1.4 * cell * u))
            line = {"color": color, "width": 1.2}
            drawn.append(go.Scatter(x=x, y=y, mode="lines", name=name, line=line, hoverinfo="skip"))
        mark = {"color": VERMILLION, "size": 11, "symbol": "square"}
        named = label(path.tokens[token])
        return [*drawn, _scatter(here[k][None], mode="markers", name=f"{named} at t", marker=mark, hoverinfo="skip")]

    figure = new_figure(f"Velocity of the flow at “{visible(path.tokens[token])}”", "", "", height=520)
    whole_path = _scatter(
        np.array(here), mode="lines", name="its path", line={"color": VERMILLION, "width": 3}, hoverinfo="skip"
    )
    states = _scatter(
        cloud, mode="markers", name="states of the teacher", hoverinfo="skip", marker={"color": GRAY, "size": 2}
    )
    figure.add_traces([states, whole_path, *traces(0)])
    _axes(figure, projection, np.array([low, high]))
    moving = list(range(2, len(figure.data)))
    frames = [
        go.Frame(name=f"{t:.2f}", traces=moving, data=[go.Scatter(x=d.x, y=d.y) for d in traces(k)])
        for k, t in enumerate(times)
    ]
    return animate(figure, frames, "t = ", 300)
