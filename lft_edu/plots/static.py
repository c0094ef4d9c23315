"""Draw a plotly figure with matplotlib, for places that run no JavaScript: GitHub, print, pages without plotly."""

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from .axes import amount
from .base import plain
from .style import GROUP_SYMBOLS, SCALE, ink_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS = 100  # per inch
TEXT = "#333333"
MARKERS = dict(zip((*GROUP_SYMBOLS, "x-thin"), "osD^P*Xx", strict=True)) | {
    "triangle-down": "v", "triangle-left": "<", "triangle-right": ">", "pentagon": "p", "hexagon": "h", "line-ns": "|",
}  # fmt: skip
LINES = {"dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3)), "longdashdot": (0, (8, 3, 1, 3))}
ALIGN = {"left": "right", "right": "left", "center": "center", "top": "bottom", "bottom": "top", "middle": "center"}


def rasterize(figure: go.Figure, width: float = 12.0):
    """Draw a figure and return it as a ``PIL.Image.Image``, ``width`` inches at 100 dots per inch."""
    import PIL.Image
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    page = matplotlib_page(figure, width)
    canvas = FigureCanvasAgg(page)
    page.set_dpi(DOTS)
    canvas.draw()
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def matplotlib_page(figure: go.Figure, width: float = 12.0) -> "Figure":
    """Convert a figure to a ``matplotlib.figure.Figure``, ``width`` inches wide; frames that it names side by side."""
    import matplotlib.figure

    layout, moments = figure.layout, _moments(figure)
    controls = 100 if figure.layout.sliders else 0
    share = min(0.62, ((layout.height or 460) - controls) / 1000)
    if len(moments) > 1:
        share = min(0.62, 0.1 + sum(map(len, _grid(figure))) / len(moments) * _aspect(layout))
    page = matplotlib.figure.Figure(figsize=(width, width * share), layout="constrained")
    page.suptitle(plain(layout.title.text), fontsize=14, color=TEXT, parse_math=False)
    if any(trace.type == "scatter3d" for trace in figure.data):
        _draw_3d(page.subplots(subplot_kw={"projection": "3d"}), figure)
    elif len(moments) > 1:
        _draw_strip(page, figure, moments)
    else:
        _draw_2d(page, figure, list(figure.data))
    _equalize(page)
    return page


def _equalize(page) -> None:
    """Widen one axis of each panel that has the same scale on both, so that the panel keeps its place."""
    wanted = [axes for axes in page.axes if getattr(axes, "same_scale", False)]
    if wanted:
        page.draw_without_rendering()  # gives the panels their places
    for axes in wanted:
        box = axes.get_window_extent()
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        unit = max((right - left) / box.width, (top - bottom) / box.height)
        for middle, pixels, limits in (
            ((left + right) / 2, box.width, axes.set_xlim),
            ((bottom + top) / 2, box.height, axes.set_ylim),
        ):
            limits(middle - unit * pixels / 2, middle + unit * pixels / 2)


def _aspect(layout: go.Layout) -> float:
    """Return how high a panel should be for its width, from the ranges of its axes."""
    if not (layout.yaxis.scaleanchor and layout.xaxis.range and layout.yaxis.range):
        return 0.8
    (left, right), (bottom, top) = layout.xaxis.range, layout.yaxis.range
    return min(max((top - bottom) / (right - left), 0.4), 1.0)


def _moments(figure: go.Figure) -> list[tuple[str, list]]:
    """Return the frames to draw side by side, as (caption, traces); the figure as it stands where it names none."""
    wanted = (figure.layout.meta or {}).get("strip", ())
    what = figure.layout.sliders[0].currentvalue.prefix or "" if figure.layout.sliders else ""
    frames, found = {frame.name: frame for frame in figure.frames}, []
    for name in wanted:
        frame, traces = frames[name], list(figure.data)
        for place, change in zip(frame.traces or range(len(frame.data)), frame.data, strict=True):
            traces[place] = type(traces[place])(traces[place]).update(change.to_plotly_json())
        title = plain(frame.layout.title.text) if frame.layout.title.text else f"{what}{name}"
        found.append((title, traces))
    return found or [("", list(figure.data))]


def _axes_of(trace) -> str:
    return trace.xaxis or "x"


def _grid(figure: go.Figure) -> list[list[str]]:
    """Return the names of the x axes of all panels, row by row, as they lie in the figure."""
    names = list(dict.fromkeys(_axes_of(trace) for trace in figure.data)) or ["x"]
    place = {}
    for name in names:
        across, down = (figure.layout[axis + "axis" + name[1:]].domain or (0, 1) for axis in "xy")
        place[name] = (-round(down[0], 3), round(across[0], 3))
    rows = sorted({down for down, _ in place.values()})
    return [sorted((n for n in names if place[n][0] == row), key=lambda n: place[n][1]) for row in rows]


def _draw_2d(page, figure: go.Figure, traces: list) -> None:
    grid = _grid(figure)
    columns = max(map(len, grid))
    made = page.subplots(len(grid), columns, squeeze=False)
    panels = {}
    for row, names in zip(made, grid, strict=True):
        for i, axes in enumerate(row):
            if i < len(names):
                panels[names[i]] = axes
            else:
                axes.set_axis_off()
    _fill(page, figure, panels, traces)
    _legend(page, panels.values())


def _draw_strip(page, figure: go.Figure, moments: list) -> None:
    """Draw moments of an animation: one column each, one row per panel."""
    names = [name for row in _grid(figure) for name in row]
    made = page.subplots(len(names), len(moments), squeeze=False)
    titles = [plain(note.text) for note in figure.layout.annotations if note.xref == "paper"]
    for column, (caption, traces) in enumerate(moments):
        _fill(page, figure, dict(zip(names, made[:, column], strict=True)), traces)
        for row, axes in enumerate(made[:, column]):
            axes.set_title(caption if row == 0 else "", fontsize=11, color=TEXT, parse_math=False)
            if column:
                axes.set_ylabel("")
            if column == 0 and row < len(titles):
                axes.set_ylabel("\n".join(textwrap.wrap(titles[row], 20)), fontsize=11, color=TEXT, parse_math=False)
    page.suptitle(
        "" if all(caption == plain(figure.layout.title.text) for caption, _ in moments[:1]) else page.get_suptitle()
    )
    _legend(page, made[:, 0])


def _fill(page, figure: go.Figure, panels: dict, traces: list) -> None:
    layout = figure.layout
    for trace in traces:
        if trace.visible is False or trace.visible == "legendonly":
            continue
        axes = panels[_axes_of(trace)]
        if trace.type != "heatmap" and trace.mode == "text" and axes.images:
            continue  # numbers in a heatmap's cells: drawn with it
        _draw_heatmap(page, axes, trace) if trace.type == "heatmap" else _draw_scatter(axes, trace)
    for shape in layout.shapes:
        axes = panels[(shape.xref or "x").split()[0] if (shape.xref or "x")[0] == "x" else next(iter(panels))]
        look = {"color": shape.line.color, "linestyle": LINES.get(shape.line.dash, "-"), "linewidth": 1}
        if shape.x0 == shape.x1:
            axes.axvline(shape.x0, **look)
        elif shape.y0 == shape.y1:
            axes.axhline(shape.y0, **look)
    for name, axes in panels.items():
        _format_axes(axes, layout["xaxis" + name[1:]], layout["yaxis" + name[1:]])
    heads = [note for note in layout.annotations if note.xref == "paper" and note.yref == "paper"]
    for note, axes in zip(heads, panels.values(), strict=False):
        axes.set_title(plain(note.text), fontsize=12, color=TEXT, parse_math=False)
    for note in layout.annotations:
        if note.xref != "paper" and note.text:
            _draw_note(panels.get((note.xref or "x").split()[0], next(iter(panels.values()))), layout, note)


def _draw_note(axes, layout, note) -> None:
    """Write an annotation at its point, or beside it with a thin line."""
    logs = layout.xaxis.type == "log", layout.yaxis.type == "log"
    place = [10.0**v if log else v for v, log in zip((note.x, note.y), logs, strict=True)]
    away = (note.ax, -note.ay) if note.showarrow else (note.xshift or 0, note.yshift or 0)
    line = {"arrowstyle": "-", "color": TEXT, "linewidth": 0.5} if note.showarrow and abs(away[1]) > 12 else None
    axes.annotate(
        plain(note.text), place, away, textcoords="offset points", fontsize=9, color=note.font.color or TEXT,
        ha=note.xanchor if note.xanchor in ("left", "right") else "center", va="center", parse_math=False,
        arrowprops=line,
    )  # fmt: skip


def _legend(page, panels) -> None:
    named = [axes.get_legend_handles_labels() for axes in panels]
    handles = {label: handle for pair in named for handle, label in zip(*pair, strict=True)}
    if handles:
        longest = max(map(len, handles)) + 6
        legend = page.legend(
            handles.values(), handles.keys(), fontsize=10, frameon=False, loc="outside lower center",
            ncols=max(1, min(len(handles), 150 // longest)),
        )  # fmt: skip
        for text in legend.get_texts():
            text.set(parse_math=False, color=TEXT)


def _draw_3d(axes, figure: go.Figure) -> None:
    for trace in figure.data:
        if trace.visible is False:
            continue
        color, mode = _color(trace), trace.mode or "lines"
        sizes = trace.marker.size
        axes.plot(
            trace.x, trace.y, trace.z, color=color, linewidth=1, alpha=trace.opacity,
            linestyle=LINES.get(trace.line.dash, "-") if "lines" in mode else "none",
            marker="o" if "markers" in mode and isinstance(sizes, (int, float)) else None, markersize=4,
        )  # fmt: skip
    space = figure.layout.scene
    for name in "xyz":
        getattr(axes, f"set_{name}label")(plain(space[f"{name}axis"].title.text), parse_math=False)


def _colormap():
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("course", SCALE)


def _draw_heatmap(page, axes, trace) -> None:
    values = np.asarray(trace.z, dtype=float)  # None, as JSON has it, becomes NaN, as matplotlib wants it
    shown = axes.imshow(values, aspect="auto", cmap=_colormap(), vmin=trace.zmin, vmax=trace.zmax)
    if trace.showscale is not False:
        bar = page.colorbar(shown, ax=axes)
        bar.set_label(plain(trace.colorbar.title.text), color=TEXT, parse_math=False)
        if trace.colorbar.ticktext:
            bar.set_ticks(
                trace.colorbar.tickvals, labels=[plain(text) for text in trace.colorbar.ticktext], parse_math=False
            )
        elif trace.colorbar.tickformat == ".0%":
            bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for place, names in (("x", trace.x), ("y", trace.y)):
        if names is None:
            continue
        every = 1 if isinstance(names[0], str) else max(1, len(names) // 8)
        texts = [name if isinstance(name, str) else f"{name:g}" for name in names[::every]]
        getattr(axes, f"set_{place}ticks")(range(0, len(names), every), texts, parse_math=False)
    if trace.text is None:
        return
    for i, row in enumerate(trace.text):
        for j, word in enumerate(row):
            rgb = shown.cmap(shown.norm(values[i, j]))[:3]
            ink = ink_on("#" + "".join(f"{round(255 * part):02x}" for part in rgb))
            axes.text(j, i, plain(word), ha="center", va="center", color=ink, fontsize=10, parse_math=False)


def _color(trace):
    for color in (
        trace.line.color if "lines" in (trace.mode or "lines") else None,
        trace.marker.color,
        trace.line.color,
    ):
        if isinstance(color, str):
            return _opaque(color)
    return TEXT


def _opaque(color: str | None):
    """Return a color as matplotlib takes it: rgba(…) as a tuple."""
    if not color or not color.startswith("rgba"):
        return color
    red, green, blue, alpha = (float(part) for part in color[5:-1].split(","))
    return red / 255, green / 255, blue / 255, alpha


def _each(value, count: int) -> list:
    return list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value] * count


def _draw_scatter(axes, trace) -> None:
    color, mode = _color(trace), trace.mode or "lines"
    for direction, error in (("xerr", trace.error_x), ("yerr", trace.error_y)):
        if error.array is not None:
            sides = [list(error.arrayminus), list(error.array)]
            axes.errorbar(trace.x, trace.y, **{direction: sides}, fmt="none", ecolor=error.color or color, elinewidth=1)
    if trace.fill == "toself":
        _draw_polygons(axes, trace)
    if trace.marker.angleref == "previous":
        _draw_arrows(axes, trace, color)
        return
    label = plain(trace.name) if trace.name and trace.showlegend is not False else None
    one = all(
        not isinstance(v, (tuple, list, np.ndarray))
        for v in (trace.marker.size, trace.marker.symbol, trace.marker.color)
    )
    symbol = trace.marker.symbol if isinstance(trace.marker.symbol, str) else "circle"
    fill = _opaque(trace.marker.color) if one and trace.marker.color else color
    edge = _opaque(trace.marker.line.color) if isinstance(trace.marker.line.color, str) else fill
    axes.plot(
        trace.x, trace.y, color=color, alpha=trace.opacity, label=label,
        linestyle=LINES.get(trace.line.dash, "-") if "lines" in mode else "none",
        linewidth=(trace.line.width or 2) * 0.9,
        marker=MARKERS.get(symbol.removesuffix("-open"), "o") if "markers" in mode and one else None,
        markersize=(trace.marker.size or 8) * 0.8 if one else None,
        markerfacecolor="none" if symbol.endswith("-open") else fill, markeredgecolor=edge,
    )  # fmt: skip
    if "markers" in mode and not one:
        _draw_marks(axes, trace, color)
    if "text" in mode and trace.text is not None:
        _draw_text(axes, trace)


def _draw_arrows(axes, trace, color) -> None:
    """Draw arrows of three entries each: start, end, gap."""
    x, y = (np.asarray(values, dtype=float).reshape(-1, 3) for values in (trace.x, trace.y))
    label = plain(trace.name) if trace.name and trace.showlegend is not False else None
    axes.plot([], [], color=color, linewidth=trace.line.width, alpha=trace.opacity, label=label)  # for the legend
    axes.quiver(
        x[:, 0], y[:, 0], x[:, 1] - x[:, 0], y[:, 1] - y[:, 0], color=color, alpha=trace.opacity, angles="xy",
        scale_units="xy", scale=1, units="dots", width=trace.line.width, headwidth=5, headlength=6, headaxislength=6,
    )  # fmt: skip


def _draw_marks(axes, trace, color) -> None:
    """Draw the marks of a trace that differ in size, symbol or color."""
    looks = zip(
        *(_each(v, len(trace.x)) for v in (trace.marker.size, trace.marker.symbol, trace.marker.color)), strict=True
    )
    for x, y, (size, symbol, own) in zip(trace.x, trace.y, looks, strict=True):
        if size:
            open_mark = (symbol or "circle").endswith("-open")
            axes.plot(
                [x], [y], MARKERS.get((symbol or "circle").removesuffix("-open"), "o"), color=own or color,
                markersize=size * 0.8, markerfacecolor="none" if open_mark else own or color, markeredgewidth=1.5,
                alpha=trace.opacity,
            )  # fmt: skip


def _draw_polygons(axes, trace) -> None:
    """Fill the polygons of a trace, which None separates."""
    corners = np.array([[np.nan if v is None else v for v in values] for values in (trace.x, trace.y)], dtype=float).T
    for polygon in np.split(corners, np.flatnonzero(np.isnan(corners[:, 0]))):
        axes.fill(*polygon[~np.isnan(polygon[:, 0])].T, color=_opaque(trace.fillcolor), linewidth=0)


def _draw_text(axes, trace) -> None:
    count = len(trace.x)
    inks, places = _each(trace.textfont.color, count), _each(trace.textposition or "middle center", count)
    for x, y, word, ink, place in zip(trace.x, trace.y, trace.text, inks, places, strict=True):
        up, side = place.split()
        away = ({"left": -6, "right": 6}.get(side, 0), {"top": 5, "bottom": -5}.get(up, 0))
        if away[0]:  # beside the mark, as plotly draws it
            away = (away[0], away[1] * 0.6)
        axes.annotate(
            plain(word), (x, y), away, textcoords="offset points", annotation_clip=True, parse_math=False,
            fontsize=9 if (trace.textfont.size or 12) < 13 else 11, color=ink or TEXT, ha=ALIGN[side], va=ALIGN[up],
        )  # fmt: skip


def _format_axes(axes, x, y) -> None:
    """Copy axis titles, scales, ranges and ticks from the plotly figure."""
    axes.set_xlabel(plain(x.title.text), color=TEXT, parse_math=False)
    axes.set_ylabel(plain(y.title.text), color=TEXT, parse_math=False)
    axes.tick_params(colors=TEXT, labelsize=10)
    for name, axis in (("x", x), ("y", y)):
        if axis.type == "log":
            getattr(axes, f"set_{name}scale")("log")
            if axis.range:
                getattr(axes, f"set_{name}lim")(*(10.0**end for end in axis.range))
        elif axis.range:
            getattr(axes, f"set_{name}lim")(*axis.range)
        if axis.autorange == "reversed" and not axes.images:
            getattr(axes, f"invert_{name}axis")()
        if axis.tickformat == ".0%":
            getattr(axes, f"{name}axis").set_major_formatter(lambda value, _: f"{value:.0%}")
        if axis.ticktext and axis.visible is not False:
            slanted = {"rotation": 60, "ha": "right", "fontsize": 9} if axis.tickangle else {}
            ticks = getattr(axes, f"set_{name}ticks")
            ticks(axis.tickvals, [plain(text) for text in axis.ticktext], parse_math=False, **slanted)
        elif axis.type != "log" and axis.tickformat is None and not axes.images:
            getattr(axes, f"{name}axis").set_major_formatter(lambda value, _: amount(round(value, 10)))
        axes.minorticks_off()
        if axis.visible is False or axis.showticklabels is False:
            getattr(axes, f"set_{name}ticks")([])
    if y.scaleanchor:
        axes.same_scale = True
    if x.side == "top":
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
    if x.visible is False and y.visible is False:
        axes.set_frame_on(False)
        return
    for spine in axes.spines.values():
        spine.set_color("#CCCCCC")
    if not axes.images:
        axes.grid(alpha=0.3)
