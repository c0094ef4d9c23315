"""Colors, layout, animation controls and display shared by all figures."""

import base64
import html
import io
import json
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

if TYPE_CHECKING:
    from IPython.display import Image
    from matplotlib.figure import Figure

CONFIG = {"showSendToCloud": False, "displaylogo": False}
# Okabe and Ito's colors, safe for color-blind readers; those too pale for thin lines on white are darkened: each has
# a contrast of at least 3 : 1 (WCAG 2.1, 1.4.11).
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, VIOLET, GRAY, BLACK = "#A87000", "#5E3C99", "#767676", "#000000"
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, BLACK, ORANGE, GRAY)
GROUP_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x")
MATPLOTLIB_MARKERS = dict(zip((*GROUP_SYMBOLS, "x-thin"), "osD^P*Xx", strict=True))


def visible(text: str) -> str:
    """Make whitespace and control characters of a token visible: ``⏎`` for a line break, ``⇥`` for a tab, ``·`` for a
    space, and an escape such as ``\\u202e`` for characters that are invisible, unassigned or change the direction."""
    named = {"\n": "⏎", "\t": "⇥", " ": "·"}
    hidden = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")
    return "".join(
        named.get(c) or (c.encode("unicode_escape").decode() if unicodedata.category(c) in hidden else c) for c in text
    )


def label(text: str) -> str:
    """Escape a token for a figure's labels and hover texts, which plotly reads as HTML, and isolate its direction, so
    that a right-to-left word does not reorder the text beside it."""
    return f"\u2068{html.escape(visible(text), quote=False)}\u2069"  # plotly would show &quot; literally


def new_figure(title: str, x: str, y: str, **layout) -> go.Figure:
    """Create an empty figure in the course's style, with an escaped ``title`` and axis titles ``x`` and ``y``."""
    figure = go.Figure()
    figure.update_layout(
        title=html.escape(title, quote=False), template="plotly_white", xaxis_title=x, yaxis_title=y, height=460,
        margin={"l": 70, "r": 20, "t": 60, "b": 60}, legend={"itemsizing": "constant"},
    )  # fmt: skip
    return figure.update_layout(**layout)


def animate(
    figure: go.Figure, frames: list[go.Frame], what: str, milliseconds: int = 60, stops: Sequence[str] = ()
) -> go.Figure:
    """Add frames, a slider and a play button to a figure, and return it. They work without a kernel.

    Args:
        frames: each with a ``name``, shown above the slider as ``what`` + name.
        milliseconds: duration of each frame.
        stops: names of frames that get a button each; the slider's ticks then have no labels.
    """
    play = {
        "frame": {"duration": milliseconds, "redraw": True}, "transition": {"duration": 0},
        "fromcurrent": True, "mode": "immediate",
    }  # fmt: skip
    jump = {"frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}, "mode": "immediate"}
    buttons = {"▶ play": [None, play], "❚❚": [[None], jump]} | {stop: [[stop], jump] for stop in stops}
    figure.frames = frames
    figure.update_layout(
        sliders=[{
            "steps": [{"label": f.name, "method": "animate", "args": [[f.name], jump]} for f in frames],
            "x": 0, "len": 1, "y": 0, "pad": {"t": 95 if stops else 62},
            "ticklen": 0 if stops else 4, "minorticklen": 0 if stops else 2,
            "font": {"size": 11, "color": "rgba(0,0,0,0)" if stops else "#2a3f5f"},
            "currentvalue": {
                "visible": not stops, "prefix": what, "xanchor": "right", "font": {"size": 14, "color": "#2a3f5f"}
            },
        }],
        updatemenus=[{
            "type": "buttons", "direction": "left", "x": 0, "xanchor": "left", "y": 0, "yanchor": "top",
            "pad": {"t": 40}, "showactive": False,
            "buttons": [{"label": k, "method": "animate", "args": v} for k, v in buttons.items()],
        }],
        margin_b=140, height=(figure.layout.height or 460) + 80,
    )  # fmt: skip
    return figure


def lines(
    series: dict,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    modes: dict[str, str] | None = None,
) -> go.Figure:
    """Plot curves with markers, and error bars where there are intervals.

    Args:
        series: name → ``(x, y)``, or ``(x, y, low, high)`` with the ends of y's intervals.
        log_x, log_y: logarithmic axes.
        modes: name → ``"lines"`` or ``"markers"``; both for the names it lacks.
    """
    figure = new_figure(title, x, y)
    for i, (name, (xs, ys, *interval)) in enumerate(series.items()):
        ys = [float(v) for v in ys]
        error = None
        if interval:
            low, high = ([float(v) for v in side] for side in interval)
            error = {
                "array": [h - v for h, v in zip(high, ys, strict=True)],
                "arrayminus": [v - low for low, v in zip(low, ys, strict=True)],
                "symmetric": False, "thickness": 1,
            }  # fmt: skip
        figure.add_scatter(
            x=[float(v) for v in xs], y=ys, name=html.escape(name), error_y=error,
            mode=(modes or {}).get(name, "lines+markers"),
            line={"color": SERIES[i % len(SERIES)]}, showlegend=len(series) > 1,
            marker={"symbol": GROUP_SYMBOLS[i % len(GROUP_SYMBOLS)], "size": 8},
            hovertemplate="%{x:.4g}: %{y:.4g}",
        )  # fmt: skip
    if log_x:  # ticks at the values measured, not at powers of ten
        values = sorted({float(v) for xs, *_ in series.values() for v in xs})
        figure.update_xaxes(type="log", tickvals=values, ticktext=[f"{v:g}" for v in values], minor_ticks="")
    figure.update_yaxes(type="log" if log_y else "linear", exponentformat="power")
    return figure


def heatmap(
    table: Sequence,
    rows: Sequence,
    columns: Sequence,
    title: str,
    x: str,
    y: str,
    unit: str = "",
    percent: bool = False,
) -> go.Figure:
    """Plot a table of numbers, ``(rows, columns)``, as a heatmap with each number written into its cell.

    Args:
        unit: title of the color bar.
        percent: ``table`` holds fractions in [0, 1]; show them as percentages.
    """
    figure = new_figure(title, x, y, height=360)
    values = [[float(v) for v in row] for row in table]
    shown = [[f"{100 * v:.0f}" if percent else f"{v:.2g}" for v in row] for row in values]
    figure.add_heatmap(
        z=values, x=[str(c) for c in columns], y=[str(r) for r in rows], colorscale="Cividis", zmin=0,
        zmax=1 if percent else None, text=shown, texttemplate="%{text}",
        hovertemplate=f"{y} %{{y}}, {x} %{{x}}: %{{text}}<extra></extra>",
        colorbar={"title": unit, **({"tickformat": ".0%"} if percent else {})},
    )  # fmt: skip
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def show(figure: go.Figure, alt: str) -> None:
    """Show a figure in a notebook: interactive where JavaScript runs, a static image on GitHub and in print.

    ``alt`` describes the figure in words, for screen readers.
    """
    from IPython.display import display

    live = json.loads(figure.to_json()) | {"config": CONFIG}
    # JPEG, not PNG: JupyterLab's plotly renderer would show a PNG in place of the figure until the mouse comes near
    buffer = io.BytesIO()
    _rasterize(figure).save(buffer, format="jpeg", quality=60, optimize=True, progressive=True)
    picture = base64.b64encode(buffer.getvalue()).decode()
    display(
        {"application/vnd.plotly.v1+json": live, "image/jpeg": picture, "text/plain": alt},
        raw=True,
        metadata={"image/jpeg": {"alt": alt}},
    )


def static_image(figure: go.Figure, alt: str, width: float = 9.0) -> "Image":
    """Render one of the course's figures as a PNG with alt text, for GitHub and print.

    Draws lines, markers, error bars, heatmaps and subplots of the first frame; hover texts are lost.

    Args:
        width: in inches, at 80 dots per inch.
    """
    from IPython.display import Image

    buffer = io.BytesIO()
    _rasterize(figure, width).quantize(64).save(buffer, format="png", optimize=True)  # 64 colors: a third of the size
    return Image(buffer.getvalue(), alt=alt)


def _plain(text: str) -> str:
    """Convert a figure's HTML text to plain text for matplotlib."""
    text = text.replace("<br>", "\n").replace("<b>", "").replace("</b>", "")  # before a token's &lt;b&gt; is a <b>
    return html.unescape(text).replace("\u2068", "").replace("\u2069", "")


def _rasterize(figure: go.Figure, width: float = 9.0):
    """Draw a figure with matplotlib and return it as a ``PIL.Image.Image``."""
    import PIL.Image

    buffer = io.BytesIO()
    matplotlib_page(figure, width).savefig(buffer, format="png", dpi=80)
    return PIL.Image.open(buffer).convert("RGB")


def matplotlib_page(figure: go.Figure, width: float = 9.0) -> "Figure":
    """Convert a figure to a ``matplotlib.figure.Figure``, ``width`` inches wide."""
    import matplotlib.figure

    layout = figure.layout
    height = width * min(0.6, (layout.height or 460) / 900)
    page = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    page.suptitle(_plain(layout.title.text or ""), fontsize=12)
    if any(trace.type == "scatter3d" for trace in figure.data):
        _draw_3d(page.subplots(subplot_kw={"projection": "3d"}), figure)
    else:
        _draw_2d(page, figure)
    return page


def _draw_2d(page, figure: go.Figure) -> None:
    layout = figure.layout
    names = list(dict.fromkeys(trace.xaxis or "x" for trace in figure.data)) or ["x"]
    panels = dict(zip(names, page.subplots(1, len(names), squeeze=False)[0], strict=True))
    for trace in figure.data:
        axes = panels[trace.xaxis or "x"]
        _draw_heatmap(page, axes, trace) if trace.type == "heatmap" else _draw_scatter(axes, trace)
    for name, axes in panels.items():
        _format_axes(axes, layout["xaxis" + name[1:]], layout["yaxis" + name[1:]])
    for note, axes in zip(layout.annotations, panels.values(), strict=False):
        axes.set_title(_plain(note.text), fontsize=10)
    named = [axes.get_legend_handles_labels() for axes in panels.values()]
    handles = {label: handle for pair in named for handle, label in zip(*pair, strict=True)}
    if handles:
        page.legend(handles.values(), handles.keys(), fontsize=7, loc="outside right center")


def _draw_3d(axes, figure: go.Figure) -> None:
    for trace in figure.data:
        color, mode = trace.line.color or trace.marker.color, trace.mode or "lines"
        axes.plot(
            trace.x, trace.y, trace.z, color=color, linewidth=0.8, alpha=trace.opacity,
            linestyle="-" if "lines" in mode else "none", marker="o" if "markers" in mode else None, markersize=3,
        )  # fmt: skip
    space = figure.layout.scene
    axes.set(xlabel=space.xaxis.title.text, ylabel=space.yaxis.title.text, zlabel=space.zaxis.title.text)


def _draw_heatmap(page, axes, trace) -> None:
    values = np.asarray(trace.z, dtype=float)  # None, as JSON has it, becomes NaN, as matplotlib wants it
    shown = axes.imshow(
        values, aspect="auto", cmap="cividis_r" if trace.reversescale else "cividis", vmin=trace.zmin, vmax=trace.zmax
    )
    page.colorbar(shown, ax=axes, label=_plain(trace.colorbar.title.text or ""))
    if trace.text is None:
        for ticks, names in ((axes.set_xticks, trace.x), (axes.set_yticks, trace.y)):
            if names is not None and not isinstance(names[0], str):
                ticks(range(0, len(names), every := max(1, len(names) // 8)), [f"{name:g}" for name in names[::every]])
        return
    for i, row in enumerate(trace.text):
        for j, word in enumerate(row):
            red, green, blue, _ = shown.cmap(shown.norm(trace.z[i][j]))
            ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
            axes.text(j, i, _plain(word), ha="center", va="center", color=ink, fontsize=8, parse_math=False)
    axes.set_xticks(range(len(trace.x)), trace.x)
    axes.set_yticks(range(len(trace.y)), trace.y)


def _draw_scatter(axes, trace) -> None:
    color, mode = trace.line.color or trace.marker.color, trace.mode or "lines"
    for direction, error in (("xerr", trace.error_x), ("yerr", trace.error_y)):
        if error.array is not None:
            sides = [list(error.arrayminus), list(error.array)]
            axes.errorbar(trace.x, trace.y, **{direction: sides}, fmt="none", ecolor="#333333", elinewidth=1)
    if trace.fill == "toself":
        _draw_polygons(axes, trace)
    symbol = trace.marker.symbol or "circle"
    open_mark, marker = symbol.endswith("-open"), MATPLOTLIB_MARKERS.get(symbol.removesuffix("-open"), "o")
    size = trace.marker.size if isinstance(trace.marker.size, (int, float)) else 8
    axes.plot(
        trace.x, trace.y, color=color, alpha=trace.opacity,
        linestyle="none" if "lines" not in mode else "--" if trace.line.dash == "dash" else "-",
        linewidth=(trace.line.width or 2) * 0.75,
        marker=marker if "markers" in mode else None, markersize=size * 0.6,
        markerfacecolor="none" if open_mark else color,
        label=_plain(trace.name) if trace.name and trace.showlegend is not False else None,
    )  # fmt: skip
    if "text" in mode:
        _draw_text(axes, trace)


def _draw_polygons(axes, trace) -> None:
    """Fill the polygons of a trace, which None separates."""
    corners = np.array([[np.nan if v is None else v for v in values] for values in (trace.x, trace.y)], dtype=float).T
    for polygon in np.split(corners, np.flatnonzero(np.isnan(corners[:, 0]))):
        axes.fill(*polygon[~np.isnan(polygon[:, 0])].T, color=trace.fillcolor, linewidth=0)


def _draw_text(axes, trace) -> None:
    offset, look = (5, 3), {"fontsize": 8}
    if trace.textposition == "middle center":
        offset, look = (0, 0), {"fontsize": 9, "ha": "center", "va": "center", "color": trace.textfont.color}
    for x, y, word in zip(trace.x, trace.y, trace.text, strict=True):
        axes.annotate(
            _plain(word), (x, y), offset, textcoords="offset points", annotation_clip=True, parse_math=False, **look
        )


def _format_axes(axes, x, y) -> None:
    """Copy axis titles, scales, ranges and ticks from the plotly figure."""
    axes.set(xlabel=x.title.text or "", ylabel=_plain(y.title.text or ""))
    for name, axis in (("x", x), ("y", y)):
        if axis.type == "log":
            getattr(axes, f"set_{name}scale")("log")
        elif axis.range:
            getattr(axes, f"set_{name}lim")(*axis.range)
    if y.scaleanchor:
        axes.set_aspect("equal", adjustable="box")
    if x.ticktext:
        labels = [_plain(text).replace("$", r"\$") for text in x.ticktext]
        slanted = {"rotation": 60, "ha": "right", "fontsize": 7} if x.tickangle else {}
        axes.set_xticks(x.tickvals, labels, **slanted)
        axes.minorticks_off()
    if y.ticktext and y.visible is not False:
        axes.set_yticks(y.tickvals, [_plain(text) for text in y.ticktext])
    if x.visible is False:
        axes.set_xticks([])
    if y.visible is False:
        axes.set_yticks([])
        if x.visible is False:
            axes.set_frame_on(False)
    elif not axes.images:
        axes.grid(alpha=0.3)
