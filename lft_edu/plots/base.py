"""What every figure shares: colours, frame, animation controls, and how it is shown."""

import base64
import html
import io
import json
import unicodedata

import numpy as np
import plotly.graph_objects as go

CONFIG = {"showSendToCloud": False, "displaylogo": False}
# Okabe and Ito's colours, told apart by everyone, those too pale for thin lines on white made darker: each has a
# contrast of at least 3 : 1 (WCAG 2.1, 1.4.11).
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, VIOLET, GREY, BLACK = "#A87000", "#5E3C99", "#767676", "#000000"
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, BLACK, ORANGE, GREY)
GROUP_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x")
MATPLOTLIB_MARKERS = dict(zip((*GROUP_SYMBOLS, "x-thin"), "osD^P*Xx", strict=True))


def visible(text: str) -> str:
    """A token as one can see it on a line: ``⏎`` for a line break, ``⇥`` for a tab, ``·`` for a space, and ``\\u202e``
    for characters that are invisible, not assigned, or that would turn the text around them."""
    named = {"\n": "⏎", "\t": "⇥", " ": "·"}
    hidden = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")
    return "".join(
        named.get(c) or (c.encode("unicode_escape").decode() if unicodedata.category(c) in hidden else c) for c in text
    )


def label(text: str) -> str:
    """A token for a figure's labels and hover texts, which are read as HTML: shown literally, and by itself, so that
    a right-to-left word does not reorder what stands beside it."""
    return f"\u2068{html.escape(visible(text), quote=False)}\u2069"  # plotly would show &quot; as it stands


def new_figure(title: str, x: str, y: str, **layout) -> go.Figure:
    """An empty figure with title and axis names; every figure of the course starts here. The title is escaped."""
    figure = go.Figure()
    figure.update_layout(
        title=html.escape(title, quote=False), template="plotly_white", xaxis_title=x, yaxis_title=y, height=460,
        margin={"l": 70, "r": 20, "t": 60, "b": 60}, legend={"itemsizing": "constant"},
    )  # fmt: skip
    return figure.update_layout(**layout)


def animate(figure: go.Figure, frames: list[go.Frame], what: str, milliseconds: int = 60, stops=()) -> go.Figure:
    """Give a figure frames, a slider and a play button. They work without a kernel.

    Args:
        frames: each with a ``name``, shown above the slider as ``what`` + name.
        stops: names of frames that get a button of their own; the slider's ticks then carry no names.
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


def lines(series: dict, title: str, x: str, y: str, log_x: bool = False, log_y: bool = False, modes=None) -> go.Figure:
    """Curves with marks. ``series``: name → ``(x, y)``, or ``(x, y, low, high)`` with intervals.

    ``modes`` (name → ``"lines"`` or ``"markers"``) leaves out marks or line of some, such as a computed curve's marks.
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
    if log_x:  # the values measured, not powers of ten
        values = sorted({float(v) for xs, *_ in series.values() for v in xs})
        figure.update_xaxes(type="log", tickvals=values, ticktext=[f"{v:g}" for v in values], minor_ticks="")
    figure.update_yaxes(type="log" if log_y else "linear", exponentformat="power")
    return figure


def heat(table, rows, columns, title: str, x: str, y: str, unit: str = "", percent: bool = False) -> go.Figure:
    """A table of numbers as a heat map with the numbers written in. ``table`` ``(rows, columns)``."""
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
    """Show a figure in a notebook: alive where JavaScript runs, a still picture on GitHub and in print.

    ``alt`` says in words what is to be seen, for who cannot see it.
    """
    from IPython.display import display

    live = json.loads(figure.to_json()) | {"config": CONFIG}
    # JPEG, not PNG: JupyterLab's plotly renderer would show a PNG in place of the figure until the mouse comes near
    still_life = io.BytesIO()
    _draw(figure).save(still_life, format="jpeg", quality=60, optimize=True, progressive=True)
    picture = base64.b64encode(still_life.getvalue()).decode()
    display(
        {"application/vnd.plotly.v1+json": live, "image/jpeg": picture, "text/plain": alt},
        raw=True,
        metadata={"image/jpeg": {"alt": alt}},
    )


def still(figure: go.Figure, alt: str, width: float = 9.0):
    """A static twin of a figure made here, for GitHub and print, as an ``IPython.display.Image`` with alt text.

    Draws lines, markers, error bars, heat maps and subplots, before any animation; hover and legends' clicks are lost.
    """
    from IPython.display import Image

    small = io.BytesIO()
    _draw(figure, width).quantize(64).save(small, format="png", optimize=True)  # 64 colours: a third of the size
    return Image(small.getvalue(), alt=alt)


def _plain(text: str) -> str:
    """Text of a figure as matplotlib should draw it."""
    return html.unescape(text).replace("\u2068", "").replace("\u2069", "").replace("<br>", "\n")


def _draw(figure: go.Figure, width: float = 9.0):
    """A figure drawn by matplotlib, as a picture of PIL's."""
    import PIL.Image

    drawn = io.BytesIO()
    matplotlib_page(figure, width).savefig(drawn, format="png", dpi=80)
    return PIL.Image.open(drawn).convert("RGB")


def matplotlib_page(figure: go.Figure, width: float = 9.0):
    """A figure as a ``matplotlib.figure.Figure``, ``width`` inches wide."""
    import matplotlib.figure

    layout = figure.layout
    height = width * min(0.6, (layout.height or 460) / 900)
    page = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    page.suptitle(_plain(layout.title.text or ""), fontsize=12)
    if any(trace.type == "scatter3d" for trace in figure.data):
        _draw_space(page.subplots(subplot_kw={"projection": "3d"}), figure)
    else:
        _draw_plane(page, figure)
    return page


def _draw_plane(page, figure: go.Figure) -> None:
    layout = figure.layout
    names = list(dict.fromkeys(trace.xaxis or "x" for trace in figure.data)) or ["x"]
    panels = dict(zip(names, page.subplots(1, len(names), squeeze=False)[0], strict=True))
    for trace in figure.data:
        axes = panels[trace.xaxis or "x"]
        _draw_heat(page, axes, trace) if trace.type == "heatmap" else _draw_scatter(axes, trace)
    for name, axes in panels.items():
        _finish(axes, layout["xaxis" + name[1:]], layout["yaxis" + name[1:]])
    for note, axes in zip(layout.annotations, panels.values(), strict=False):
        axes.set_title(_plain(note.text), fontsize=10)
    named = [axes.get_legend_handles_labels() for axes in panels.values()]
    handles = {label: handle for pair in named for handle, label in zip(*pair, strict=True)}
    if handles:
        page.legend(handles.values(), handles.keys(), fontsize=7, loc="outside right center")


def _draw_space(axes, figure: go.Figure) -> None:
    for trace in figure.data:
        colour, mode = trace.line.color or trace.marker.color, trace.mode or "lines"
        axes.plot(
            trace.x, trace.y, trace.z, color=colour, linewidth=0.8, alpha=trace.opacity,
            linestyle="-" if "lines" in mode else "none", marker="o" if "markers" in mode else None, markersize=3,
        )  # fmt: skip
    space = figure.layout.scene
    axes.set(xlabel=space.xaxis.title.text, ylabel=space.yaxis.title.text, zlabel=space.zaxis.title.text)


def _draw_heat(page, axes, trace) -> None:
    values = np.asarray(trace.z, dtype=float)  # None, which JSON knows, becomes NaN, which matplotlib knows
    shown = axes.imshow(
        values, aspect="auto", cmap="cividis_r" if trace.reversescale else "cividis", vmin=trace.zmin, vmax=trace.zmax
    )
    page.colorbar(shown, ax=axes, label=_plain(trace.colorbar.title.text or ""))
    if trace.text is None:
        return
    for i, row in enumerate(trace.text):
        for j, word in enumerate(row):
            red, green, blue, _ = shown.cmap(shown.norm(trace.z[i][j]))
            ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
            axes.text(j, i, _plain(word), ha="center", va="center", color=ink, fontsize=8, parse_math=False)
    axes.set_xticks(range(len(trace.x)), trace.x)
    axes.set_yticks(range(len(trace.y)), trace.y)


def _draw_scatter(axes, trace) -> None:
    colour, mode = trace.line.color or trace.marker.color, trace.mode or "lines"
    for direction, error in (("xerr", trace.error_x), ("yerr", trace.error_y)):
        if error.array is not None:
            sides = [list(error.arrayminus), list(error.array)]
            axes.errorbar(trace.x, trace.y, **{direction: sides}, fmt="none", ecolor="#333333", elinewidth=1)
    symbol = trace.marker.symbol or "circle"
    open_mark, marker = symbol.endswith("-open"), MATPLOTLIB_MARKERS.get(symbol.removesuffix("-open"), "o")
    size = trace.marker.size if isinstance(trace.marker.size, (int, float)) else 8
    axes.plot(
        trace.x, trace.y, color=colour, alpha=trace.opacity,
        linestyle="none" if "lines" not in mode else "--" if trace.line.dash == "dash" else "-",
        linewidth=(trace.line.width or 2) * 0.75,
        marker=marker if "markers" in mode else None, markersize=size * 0.6,
        markerfacecolor="none" if open_mark else colour,
        label=_plain(trace.name) if trace.name and trace.showlegend is not False else None,
    )  # fmt: skip
    if "text" in mode:
        _draw_words(axes, trace)


def _draw_words(axes, trace) -> None:
    for x, y, word in zip(trace.x, trace.y, trace.text, strict=True):
        axes.annotate(
            _plain(word), (x, y), (5, 3), textcoords="offset points", fontsize=8, annotation_clip=True, parse_math=False
        )


def _finish(axes, x, y) -> None:
    """Axis names, scales, ranges and ticks as in the plotly figure."""
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
    if y.visible is False:
        axes.set_yticks([])
    elif not axes.images:
        axes.grid(alpha=0.3)
