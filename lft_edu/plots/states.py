"""Figures of hidden states: the logit lens, norms, distances from the teacher, a flow's velocity field."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from ..projections import PCA, Projection, distortion
from ..trajectories import Trajectory, shared_depths, velocity_at
from .base import animate, describe, describe_curves, escape, label, new_figure, on_narrow_pages, visible
from .curves import lines
from .plane import arrows
from .style import FAR, INK, SERIES, ink_on, shade, styles
from .tables import BAR, BAR_TITLE, COLORS
from .trajectories import scatter, set_axes

if TYPE_CHECKING:
    from ..splicing import SplicedForCausalLM

FAR_OFF = 6.0  # nats: where the logit lens's scale ends


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
    looks = styles([name for name, _ in others]) if len(others) > 1 else styles(projections)
    for name, path in others:
        depths = [d for d in shared_depths(first, path).tolist() if d > path.span[0]]
        for i, (title, projection) in enumerate(projections.items()):
            pairs = [(first.at(d)[0, 1:], path.at(d)[0, 1:]) for d in depths]
            look = looks[name if len(others) > 1 else title]
            figure.add_scatter(
                x=depths, y=[distortion(projection, a, b).hidden for a, b in pairs], mode="lines+markers",
                name=escape(title if len(others) == 1 else f"{name}, {title}"),
                marker={"symbol": look.symbol, "size": 8},
                line={"color": look.color, "dash": ("solid", "dash", "dot")[i % 3] if len(others) > 1 else "solid"},
            )  # fmt: skip
    return describe_curves(figure.update_yaxes(range=[0, 1.02], tickformat=".0%"))


def teacher_distance(
    paths: dict[str, Trajectory], title: str = "Distance from the teacher, in all dimensions"
) -> go.Figure:
    """Plot the mean distance of each student's states from the teacher's, by depth, without the first token.

    Args:
        paths: name → trajectory, the teacher's first, then students'.
        title: of the figure.

    Raises:
        ValueError: a text of one token.
    """
    (_, first), *others = paths.items()
    if len(first.tokens) < 2:
        raise ValueError("Give trajectories of a text of at least two tokens.")
    series = {}
    for name, path in others:
        depths = shared_depths(first, path).tolist()
        series[name] = (depths, [(first.at(d) - path.at(d))[0, 1:].norm(dim=-1).mean().item() for d in depths])
    return lines(series, title, "depth, layers", "mean distance")


def state_sizes(states: Sequence[Tensor], title: str = "The size of the states") -> go.Figure:
    """Plot the median root mean square of position 0 and of all other positions against depth, on a log scale.

    Args:
        states: the states at each depth, ``(B, T, D)`` each.
        title: of the figure.
    """
    rms = torch.stack([x.float().square().mean(-1).sqrt() for x in states]).cpu()
    series = {
        "position 0": rms[:, :, 0].median(1).values,
        "all others (median)": rms[:, :, 1:].flatten(1).median(1).values,
    }
    depths = range(len(rms))
    return lines({n: (depths, y) for n, y in series.items()}, title, "depth, layers", "root mean square", log_y=True)


def lens(path: Trajectory, tokens: list[int] | None = None, every: int = 1, title: str = "Logit lens") -> go.Figure:
    """Plot the token that each state predicts, tokens across, depth down; darker is farther from the final prediction.
    ``·×11`` stands for eleven spaces.

    Args:
        tokens: positions to show, from 0; the first 12 if None.
        every: show every n-th depth; the last is always shown.
    """
    tokens = list(range(min(12, len(path.tokens)))) if tokens is None else list(tokens)
    rows = sorted({*range(0, len(path.times), every), len(path.times) - 1})
    found = path.logit_lens()
    best = [[found.top(s, t) for t in tokens] for s in rows]
    figure = new_figure(title, "token (⏎ line break, ·×5 five spaces)", "depth, layers", height=120 + 26 * len(rows))
    divergence = found.kl[rows][:, tokens].clamp_min(0).tolist()
    shown = [[_short(top[0][0]) for top in row] for row in best]
    figure.add_heatmap(
        z=divergence, x=list(range(len(tokens))), y=list(range(len(rows))), colorscale=COLORS, zmin=0, zmax=FAR_OFF,
        xgap=1, ygap=1, colorbar=BAR | {"title": {"text": "KL to the model's end, nats", **BAR_TITLE}}, text=shown,
        hovertext=[["<br>".join(f"{label(w)} {p:.0%}" for w, p in top) for top in row] for row in best],
        hoverinfo="text",
    )  # fmt: skip
    figure.add_scatter(
        x=[i for _ in rows for i in range(len(tokens))], y=[i for i in range(len(rows)) for _ in tokens], mode="text",
        text=[word for row in shown for word in row], textposition="middle center", hoverinfo="skip", showlegend=False,
        textfont={"color": [ink_on(shade(v / FAR_OFF)) for row in divergence for v in row], "size": 12},
    )  # fmt: skip
    figure.update_xaxes(
        tickvals=list(range(len(tokens))), ticktext=[_short(path.tokens[t]) for t in tokens], side="top", showgrid=False
    )
    depths = [f"{path.times[s].item():.4g}" for s in rows]
    figure.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=depths, autorange="reversed", showgrid=False, zeroline=False
    )
    words = f"{title}. A table: {len(tokens)} tokens of the text across, depth from {depths[0]} to {depths[-1]} down. "
    words += "Each cell holds the token "
    describe(figure, words + "that the state there predicts; the darker, the farther from the final prediction.")
    # nine characters take 55 pixels: four columns at a time, and the others by dragging
    on_narrow_pages(figure, layout={"xaxis.range": [-0.5, min(len(tokens), 4) - 0.5], "dragmode": "pan"})
    return figure.update_layout(margin_t=figure.layout.margin.t + 50, margin_b=20)


def _short(word: str, most: int = 9) -> str:
    shown = re.sub("·{5,}", lambda run: f"·×{len(run[0])}", visible(word))
    return label(shown if len(shown) <= most else shown[: most - 1] + "…")


def norms(path: Trajectory, title: str = "How large is each token's state?") -> go.Figure:
    """Plot the norm of every token's state at every depth as a heatmap: an attention sink stands out."""
    figure = new_figure(title, "token of the text", "depth, layers", height=480, margin_b=60)
    words = [f"{t}: {label(word)}" for t, word in enumerate(path.tokens)]
    shown = path.norms()
    figure.add_heatmap(
        z=shown.tolist(), x=list(range(len(words))), y=path.times.tolist(), colorscale=COLORS, zmin=0, xgap=1,
        hovertext=[[f"{word}<br>depth {d:.4g}: {v:.3g}" for word, v in zip(words, row, strict=True)]
                   for d, row in zip(path.times.tolist(), shown.tolist(), strict=True)],
        hoverinfo="text", colorbar=BAR | {"title": {"text": "norm", **BAR_TITLE}},
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False)
    figure.update_xaxes(
        tickvals=list(range(len(words))), ticktext=[_short(word) for word in path.tokens], tickangle=-60, showgrid=False
    )
    depths = f"depth from 0 to {path.times[-1]:g} down"
    return describe(figure, f"{title}. Heatmap of norms, darker is more: {len(words)} tokens across, {depths}.")


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
    low, high = _window(np.array(here), cloud)
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
        far = ("extrapolated: no samples nearby", ~near, FAR)
        for name, chosen, color in (far, ("velocity", near, INK)):
            u = velocities[k][chosen] / longest
            u = u / np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1)
            size, width = (8, 1) if color == FAR else (10, 1.6)
            start, move = torch.from_numpy(mesh[chosen]), torch.from_numpy(1.2 * cell * u)
            drawn.append(arrows(start, move, color, size, width, name=name))
        mark = {"color": "rgba(0,0,0,0)", "size": 15, "symbol": "circle", "line": {"color": SERIES[0], "width": 3}}
        named = label(path.tokens[token])
        return [*drawn, scatter(here[k][None], mode="markers", name=f"{named} at t", marker=mark, hoverinfo="skip")]

    figure = new_figure(f"Velocity of the flow at “{visible(path.tokens[token])}”", "", "", height=520)
    whole_path = scatter(
        np.array(here), mode="lines+markers", name="its path, t = 0 to 1", line={"color": SERIES[0], "width": 3},
        marker={"size": 6}, hoverinfo="skip",
    )  # fmt: skip
    inside = ((cloud >= low) & (cloud <= high)).all(1)
    states = scatter(
        cloud[inside],
        mode="markers",
        name="states of the teacher",
        hoverinfo="skip",
        marker={"color": INK, "size": 3},
        opacity=0.6,
    )
    figure.add_traces([states, whole_path, *traces(0)])
    set_axes(figure, projection, np.array([low, high]))
    moving = list(range(2, len(figure.data)))
    frames = [
        go.Frame(name=f"{t:.2f}", traces=moving, data=[go.Scatter(x=d.x, y=d.y) for d in traces(k)])
        for k, t in enumerate(times)
    ]
    animate(figure, frames, "t = ", 300)
    words = f"Arrows of the velocity that the flow would give the token “{visible(path.tokens[token])}” at {grid} by "
    words += f"{grid} places in the plane "
    describe(
        figure,
        words + "of a PCA, with its path from t = 0 to 1 and states of the teacher.",
        [frames[0].name, frames[len(frames) // 2].name, frames[-1].name],
    )
    return figure


def _window(path: np.ndarray, cloud: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of the part of the plane around a path, ``(K, 2)``, in which it is long enough to see."""
    middle = (path.min(0) + path.max(0)) / 2
    half = max(1.3 * float(np.ptp(path, axis=0).max()), 0.02 * float(np.ptp(cloud, axis=0).max()))
    return middle - np.array([1.6 * half, half]), middle + np.array([1.6 * half, half])
