"""The same states in several projections, side by side."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from ..projections import Projection, distortion
from ..trajectories import Trajectory, shared_depths
from .base import describe, escape, label, new_figure, visible, wrap
from .style import INK, styles

LANDMARKS = 600  # of a UMAP's landmarks, drawn behind the groups


def views(
    paths: Mapping[str, Trajectory],
    projections: Mapping[str, Projection],
    tokens: Sequence[int],
    title: str = "What each picture hides of the squared distance",
) -> go.Figure:
    """Plot some tokens' paths in several projections, side by side, each with the fraction of the squared distance
    between teacher and first student that it hides.

    Paths begin where the replaced layers begin (a ring), since up to there a student has the teacher's states; squares
    mark where the replaced layers end.

    Args:
        paths: name → trajectory of one text, the teacher's first, then students'.
        projections: name → projection in 2 dimensions, fitted.
        tokens: positions to draw, from 0.

    Raises:
        ValueError: no student, texts that differ, or a position outside the text.
    """
    first, *students = paths.values()
    if not students or any(path.span is None for path in students):
        raise ValueError("Give the teacher's trajectory first, then one of each student.")
    if any(not torch.equal(path.ids, first.ids) for path in students):
        raise ValueError("The trajectories are of different texts: capture every model on the same text.")
    if not tokens or not all(0 <= t < len(first.tokens) for t in tokens):
        raise ValueError(f"tokens={list(tokens)}: give positions from 0 to {len(first.tokens) - 1}.")
    heads = {name: f"{name}{_hidden(first, students[0], projection)}" for name, projection in projections.items()}
    figure = _panels(list(heads.values()), title)
    looks = styles(paths)
    for column, projection in enumerate(projections.values(), 1):
        for name, path in paths.items():
            _add_paths(figure, projection, path, tokens, path.span or students[0].span, name, looks[name], column)
    said = ", ".join(f"“{visible(first.tokens[t])}”" for t in tokens)
    return describe(
        figure,
        f"{title}. {len(heads)} panels, one per projection: {'; '.join(heads.values())}. Paths of the tokens {said} "
        f"through {', '.join(paths)}.",
    )


def _hidden(teacher: Trajectory, student: Trajectory, projection: Projection) -> str:
    """Say how much a PCA hides of the squared distance from teacher to student, position 0 left out."""
    depths = shared_depths(teacher, student)
    found = distortion(projection, teacher.at(depths)[:, 1:], student.at(depths)[:, 1:]).hidden
    return "" if found is None else f": hides {found:.0%}"


def _add_paths(figure, projection, path, tokens, span, name, look, column) -> None:
    where = {"row": 1, "col": column}
    for i, t in enumerate(tokens):
        points = projection.transform(path.states[path.depth_index(span[0]) :, t])
        names = [*[""] * (len(points) - 1), label(path.tokens[t])]
        figure.add_scatter(
            x=points[:, 0], y=points[:, 1], name=escape(name), legendgroup=name, showlegend=column == 1 and i == 0,
            mode="lines+text" if path.span is None else "lines", text=names, textposition="top center",
            line={"color": look.color, "width": 1.8, "dash": look.dash}, hoverinfo="name", **where,
        )  # fmt: skip
        ends = projection.transform(path.at(span)[:, t])
        figure.add_scatter(
            x=ends[:, 0], y=ends[:, 1], mode="markers", showlegend=False, hoverinfo="skip",
            marker={"color": look.color, "size": 9, "symbol": ["circle-open", "square"]}, **where,
        )  # fmt: skip


def maps(
    projections: Mapping[str, Projection],
    groups: Mapping[str, Sequence[Tensor] | Tensor],
    title: str = "The same states in different maps",
) -> go.Figure:
    """Plot groups of states in several projections, side by side. Gray: the landmarks of a UMAP.

    Args:
        projections: name → projection in 2 dimensions, fitted.
        groups: name → states ``(N, D)``, or a list of N states ``(D,)``.

    Raises:
        ValueError: no group, or an empty one.
    """
    if not groups or not all(len(states) for states in groups.values()):
        raise ValueError("Give at least one group, and at least one state in each.")
    figure, looks = _panels(list(projections), title), styles(groups)
    for column, projection in enumerate(projections.values(), 1):
        where = {"row": 1, "col": column}
        places = getattr(projection, "places", np.empty((0, 2)))[:: max(1, 3000 // LANDMARKS)]
        figure.add_scatter(
            x=places[:, 0], y=places[:, 1], mode="markers", name="landmarks", showlegend=column == 1, hoverinfo="skip",
            legendgroup="landmarks", opacity=0.4, marker={"color": INK, "size": 3}, **where,
        )  # fmt: skip
        for name, states in groups.items():
            points = projection.transform(torch.stack(list(states)))
            figure.add_scatter(
                x=points[:, 0], y=points[:, 1], mode="markers", name=escape(name), showlegend=column == 1,
                legendgroup=name, marker={"color": looks[name].color, "symbol": looks[name].symbol, "size": 7},
                hoverinfo="name", **where,
            )  # fmt: skip
    names = ", ".join(f"“{name}” ({len(states)})" for name, states in groups.items())
    return describe(figure, f"{title}. {len(projections)} panels: {', '.join(projections)}. Groups of states: {names}.")


def _panels(heads: list[str], title: str) -> go.Figure:
    """Create panels of 2-D points side by side, each with its own axes and the same scale on both."""
    shown = [wrap(head, 14) for head in heads]  # three panels must fit on a phone
    figure = make_subplots(1, len(heads), subplot_titles=shown, horizontal_spacing=0.06)
    figure.update_layout(new_figure(title, "", "", height=520).layout).update_layout(xaxis_title=None)
    figure.update_annotations(font_size=13)
    figure.layout.margin.t += 20 * max(head.count("<br>") + 1 for head in shown)
    figure.update_xaxes(showticklabels=False, zeroline=False, linecolor=INK)
    figure.update_yaxes(showticklabels=False, zeroline=False, linecolor=INK)
    figure.update_xaxes(constrain="domain").update_yaxes(constrain="domain")
    for i in range(1, len(heads) + 1):
        figure.update_yaxes(scaleanchor=f"x{i if i > 1 else ''}", row=1, col=i)
    return figure
