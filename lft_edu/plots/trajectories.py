"""Paths of hidden states through depth, in the plane or in space."""

import numpy as np
import plotly.graph_objects as go
import torch

from ..projections import PCA, Projection
from ..trajectories import Lens, Trajectory
from .base import animate, describe, escape, label, new_figure, plain
from .labels import place_labels, text_position
from .style import GRID, GROUP_SYMBOLS, INK, SERIES, Style, styles

MOST_MODELS = 4
LABELS = 12  # more words would hide the paths
FEW = 4  # tokens shown at first, where nobody chose any
PLOT = (880, 380)  # pixels of the plot, about, on a desk: labels are placed for it


def trajectory(
    paths: Trajectory | dict[str, Trajectory],
    projection: Projection,
    tokens: list[int] | None = None,
    title: str = "Hidden states through depth",
    lens: bool = False,
    play: bool = True,
) -> go.Figure:
    """Animate each token's path through depth; dashed inside the span that an operator replaces.

    Marks are the tokens at the current depth; dotted lines join the same token in two models. Open marks are where a
    path enters the span (circle) and leaves it (square). A student's path is drawn from where it leaves the teacher's.
    One model alone has a color per token, several have a color per model. A menu picks one token, without a kernel.

    Args:
        paths: a trajectory, or name → trajectory, all of the same text.
        projection: fitted, of 2 or 3 dimensions.
        tokens: positions to show, from 0; all but the first if None, of which four are shown before you pick.
        lens: show each state's logit-lens prediction on hover.
        play: False for a figure without slider.

    Raises:
        ValueError: different texts, more than four models, or a position outside the text.
    """
    paths = paths if isinstance(paths, dict) else {"teacher": paths}
    first = next(iter(paths.values()))
    chosen, tokens = tokens is not None, _check_tokens(paths, first, tokens)
    few = (
        tokens
        if chosen or len(tokens) <= FEW + 1
        else [tokens[i] for i in np.linspace(0, len(tokens) - 1, FEW).round().astype(int)]
    )
    figure = new_figure(title, "", "", height=570)
    looks, depths = styles(paths), torch.cat([path.times for path in paths.values()]).unique()
    span = next((path.span for path in paths.values() if path.span), None)
    inks = [SERIES[i % len(SERIES)] for i in range(len(tokens))] if len(paths) == 1 else None
    owners = []  # of each trace: the position it belongs to, None for all
    for name, path in paths.items():
        shared = path.span is not None and path is not first and first.span is None
        said = path.logit_lens() if lens else None
        for i, token in enumerate(tokens):
            color = inks[i] if inks else looks[name].color
            drawn = _path_traces(name, path, projection, token, color, said, shared)
            figure.add_traces(drawn)
            owners += [token] * len(drawn)
    _add_key(figure, looks, span, projection.dimensions, alone=len(paths) == 1)
    owners += [None] * (len(figure.data) - len(owners))
    places = {name: projection.transform(path.at(depths)[:, tokens]) for name, path in paths.items()}
    if span:
        for name, path in paths.items():
            ends = projection.transform(path.at([float(depth) for depth in span])[:, tokens])
            figure.add_trace(_ends(ends, inks or looks[name].color))
            owners.append(None)
    fixed = len(figure.data)
    words = [label(first.tokens[t]) for t in tokens]
    figure.add_traces(_markers(places, len(depths) - 1, looks, inks))
    owners += [None] * len(places)
    for gap in _gaps(places, len(depths) - 1):
        figure.add_trace(
            scatter(
                gap, mode="lines", line={"color": INK, "width": 1, "dash": "dot"}, hoverinfo="skip", showlegend=False
            )
        )
    owners += tokens if len(figure.data) > len(owners) else []
    set_axes(
        figure, projection, np.concatenate([place.reshape(-1, projection.dimensions) for place in places.values()])
    )
    if play:
        moving = list(range(fixed, len(figure.data)))
        frames = [
            go.Frame(name=f"{d:.4g}", traces=moving, data=_frame_data(places, k)) for k, d in enumerate(depths.tolist())
        ]
        animate(figure, frames, "depth ", 180).update_layout(sliders=[{"active": len(frames) - 1}])
    _add_menu(figure, owners, tokens, few, words, _positions(figure, next(iter(places.values()))[-1], words))
    kind = "space" if projection.dimensions == 3 else "the plane"
    text = f"{title}. Paths of {len(tokens)} tokens ({', '.join(map(plain, words))}) in {kind} of a {projection.kind}, "
    text += f"from depth 0 to {depths[-1]:g}."
    return describe(
        figure,
        f"{text} Models: {', '.join(paths)}." + (f" Replaced: layers {span[0]} to {span[1] - 1}." if span else ""),
    )


def _check_tokens(paths: dict, first: Trajectory, tokens: list[int] | None) -> list[int]:
    if len(paths) > MOST_MODELS:
        raise ValueError(f"{len(paths)} models are too many for one figure: give at most {MOST_MODELS}.")
    if any(not torch.equal(path.ids, first.ids) for path in paths.values()):
        raise ValueError("The trajectories are of different texts: capture every model on the same text.")
    count = len(first.tokens)
    tokens = list(range(1 if count > 1 else 0, count)) if tokens is None else list(tokens)
    if not tokens or not all(0 <= t < count for t in tokens):
        raise ValueError(f"tokens={tokens}: give positions from 0 to {count - 1}.")
    return tokens


def _path_traces(
    name: str, path: Trajectory, projection: Projection, token: int, color: str, lens: Lens | None, shared: bool
) -> list:
    """Draw one token's path: solid through the layers, dashed through the operator; without the head that it shares
    with the first model."""
    indices = list(range(len(path.times)))
    parts = {"solid": [indices]}
    if path.span:
        m, n = (int(torch.searchsorted(path.times, float(edge))) for edge in path.span)
        parts = {"solid": [indices[n:]] if shared else [indices[: m + 1], indices[n:]], "dash": [indices[m : n + 1]]}
    where = projection.transform(path.states[:, [token]])[:, 0]
    traces = []
    for dash, runs in parts.items():
        steps = [s for run in runs for s in (*run, None)][:-1]
        points = [where[s] if s is not None else np.full(projection.dimensions, np.nan) for s in steps]
        said = [f"{escape(name)}<br>{_hover(path, lens, s, token)}" if s is not None else "" for s in steps]
        traces.append(
            scatter(
                np.array(points).reshape(-1, projection.dimensions), mode="lines", opacity=0.8, hovertext=said,
                hoverinfo="text", line={"color": color, "width": 2, "dash": dash}, showlegend=False,
                name=escape(f"{name}, {path.tokens[token]}"),
            )
        )  # fmt: skip
    return traces


def _hover(path: Trajectory, lens: Lens | None, index: int, token: int) -> str:
    depth, norm = path.times[index].item(), path.states[index, token].norm().item()
    said = f"{token}: {label(path.tokens[token])} · depth {depth:.4g} · norm {norm:.3g}"
    top = lens.top(index, token) if lens else []
    return "<br>".join([said, *(f"{label(word)} {share:.0%}" for word, share in top)])


def _add_key(figure: go.Figure, looks: dict[str, Style], span: tuple | None, dimensions: int, alone: bool) -> None:
    """Add the legend's entries, as traces without points: they stay whatever token is picked."""
    nowhere = np.full((1, dimensions), np.nan)
    for name, look in () if alone else looks.items():
        mark = {"color": look.color, "symbol": _symbol(look, dimensions), "size": 8}
        figure.add_trace(
            scatter(
                nowhere, mode="lines+markers", name=escape(name), marker=mark, line={"color": look.color, "width": 2}
            )
        )
    if span:
        line = {"color": INK, "dash": "dash", "width": 2}
        figure.add_trace(scatter(nowhere, mode="lines", name="the operator's part", line=line))
        for symbol, said in (("circle-open", f"depth {span[0]}, entry"), ("square-open", f"depth {span[1]}, exit")):
            mark = {"color": INK, "symbol": symbol, "size": 9}
            figure.add_trace(scatter(nowhere, mode="markers", name=said, marker=mark))


def _ends(ends: np.ndarray, color) -> go.Scatter | go.Scatter3d:
    """Mark where tokens enter and leave the span, ``(2, T, 2 or 3)``."""
    count = ends.shape[1]
    mark = {
        "symbol": ["circle-open"] * count + ["square-open"] * count, "size": [9] * (2 * count),
        "color": color * 2 if isinstance(color, list) else color, "line": {"width": 2},
    }  # fmt: skip
    return scatter(ends.reshape(-1, ends.shape[-1]), mode="markers", marker=mark, hoverinfo="skip", showlegend=False)


def _symbol(look: Style, dimensions: int) -> str:
    return (
        look.symbol if dimensions == 2 or look.symbol in ("circle", "square", "diamond") else "circle"
    )  # all that 3-D has


def _markers(places: dict, k: int, looks: dict[str, Style], inks: list[str] | None) -> list:
    """Draw the tokens at the k-th depth."""
    traces = []
    for name, place in places.items():
        symbols = (
            [GROUP_SYMBOLS[i % len(GROUP_SYMBOLS)] for i in range(len(inks))] if inks and place.shape[-1] == 2 else None
        )
        mark = {"color": inks or looks[name].color, "symbol": symbols or _symbol(looks[name], place.shape[-1])}
        mark |= {"opacity": 1, "line": {"width": 0}}  # plotly's default for marks of different sizes is another
        traces.append(
            scatter(
                place[k],
                mode="markers+text",
                marker=mark,
                hoverinfo="skip",
                showlegend=False,
                textfont={"color": INK, "size": 12},
            )
        )
    return traces


def _gaps(places: dict, k: int) -> list[np.ndarray]:
    """Return for each token lines with gaps from the first model's point to each other model's; none for one model."""
    start, *ends = (place[k] for place in places.values())
    gap = np.full_like(start, np.nan)
    return list(np.stack([point for end in ends for point in (start, end, gap)], 1)) if ends else []


def _frame_data(places: dict, k: int) -> list:
    """Return the positions of all moving traces at the k-th depth."""
    return [scatter(place[k]) for place in places.values()] + [scatter(gap) for gap in _gaps(places, k)]


def _positions(figure: go.Figure, points: np.ndarray, words: list[str]) -> list[str]:
    """Return where each token's label stands, so that labels do not lie on each other at the end of the paths."""
    if points.shape[-1] == 3 or len(words) > LABELS:
        return ["top center"] * len(words)
    limits = np.array([figure.layout.xaxis.range, figure.layout.yaxis.range]).T
    reach = limits[1] - limits[0]
    if figure.layout.yaxis.scaleanchor:  # one of the axes shows more than its limits
        reach = (reach / PLOT).max() * np.array(PLOT)
    shares = (points - limits.mean(0)) / reach + 0.5
    return [text_position(*place) for place in place_labels(shares.tolist(), [plain(word) for word in words], PLOT)]


def _add_menu(
    figure: go.Figure, owners: list, tokens: list[int], few: list[int], words: list[str], positions: list[str]
) -> None:
    """Show some of the tokens, and add a menu that shows all or one of them."""
    views = {} if few == tokens else {f"{len(few)} of {len(tokens)} tokens": few}
    views |= {f"all {len(tokens)} tokens": tokens}
    views |= {f"{t}: {word}": [t] for t, word in zip(tokens, words, strict=True)} if len(tokens) > 1 else {}
    flat = all(trace.type == "scatter" for trace in figure.data)
    buttons, labeled = [], False
    for name, shown in views.items():
        change: dict = {"visible": [], "marker.size": [], "text": []}
        labeled = False
        for trace, owner in zip(figure.data, owners, strict=True):
            moving = owner is None and trace.mode == "markers+text"
            ends = owner is None and trace.mode == "markers" and len(trace.x) > 1
            size = (10 if flat else 6) if moving else 9 if flat else 5
            sizes = [size if t in shown else 0 for t in tokens] * (2 if ends else 1)
            texts = [w if t in shown and len(shown) <= LABELS else "" for t, w in zip(tokens, words, strict=True)]
            change["visible"].append(owner is None or owner in shown)
            change["marker.size"].append(sizes if moving or ends else trace.marker.size)
            change["text"].append(texts if moving and not labeled else None)
            labeled = labeled or moving
        buttons.append({"label": name, "method": "restyle", "args": [change]})
    start = buttons[0]["args"][0]
    for trace, visible, size, text in zip(
        figure.data, start["visible"], start["marker.size"], start["text"], strict=True
    ):
        trace.visible = visible
        if size is not None:
            trace.marker.size = size
        if text is not None:
            trace.text, trace.textposition = text, positions if flat else "top center"
    if len(buttons) > 1:
        if not figure.layout.updatemenus:
            figure.layout.margin.b += 40
        below = figure.layout.updatemenus[0].pad.t if figure.layout.updatemenus else 58
        menu = {
            "type": "dropdown", "direction": "up", "buttons": buttons, "x": 1, "xanchor": "right", "y": 0,
            "yanchor": "top",
            "pad": {"t": below}, "bgcolor": "#8F8F8F", "bordercolor": GRID, "font": {"color": "#000000", "size": 12},
        }  # fmt: skip
        figure.layout.updatemenus = (*figure.layout.updatemenus, menu)


def scatter(points: np.ndarray, **style):
    """Create a scatter trace of ``(N, 2)`` or ``(N, 3)`` points."""
    columns = dict(zip("xyz", points.astype(np.float32).T, strict=False))
    return go.Scatter3d(**columns, **style) if points.shape[-1] == 3 else go.Scatter(**columns, **style)


def axis_names(projection: Projection) -> list[str]:
    """Return axis titles for a projection: kind, index and, for a PCA, the explained variance."""
    if not isinstance(projection, PCA):
        return [f"{projection.kind} {i + 1} (no unit)" for i in range(projection.dimensions)]
    prepared = f", {projection.preparation}" if projection.preparation in ("layernorm", "unit") else ""
    return [f"PC {i + 1} ({share:.0%} of the variance{prepared})" for i, share in enumerate(projection.explained)]


def set_axes(figure: go.Figure, projection: Projection, points: np.ndarray) -> None:
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
    equal = {"scaleanchor": "x", "constrain": "domain"} if isinstance(projection, PCA) else {}
    figure.update_layout(xaxis=axes[0] | {"constrain": "domain"}, yaxis=axes[1] | equal)
