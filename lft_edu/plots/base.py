"""What all figures share: text, layout, animation controls, descriptions."""

import html
import textwrap
import unicodedata
from collections.abc import Sequence

import plotly.graph_objects as go

from .style import GRID, INK, SERIES

TITLE = 46  # characters of a title's line: what fits on a phone
STRIP = 28  # pixels above the title, where the mode bar appears

# Transparent, with ink that can be read on white and on black, because a stored figure cannot ask for the page's theme.
_AXIS = {
    "gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True,
    "title": {"standoff": 8, "font": {"size": 13}}, "ticks": "", "zeroline": True,
}  # fmt: skip
_SPACE = {"gridcolor": GRID, "zerolinecolor": GRID, "showbackground": False}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"color": INK, "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": list(SERIES),
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": SERIES[0]},
        "scene": dict.fromkeys(("xaxis", "yaxis", "zaxis"), _SPACE),
    }
)  # fmt: skip
LEGEND = {
    "orientation": "h", "x": 0.01, "xanchor": "left", "yref": "container", "y": 0.01, "yanchor": "bottom",
    "itemwidth": 36, "tracegroupgap": 0, "xref": "container",
}  # fmt: skip


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


def escape(text: str) -> str:
    """Escape a name or title, which plotly reads as HTML, and half characters (lone surrogates), which nothing can
    draw or save."""
    return html.escape(str(text).encode("utf-8", "backslashreplace").decode(), quote=False)


def wrap(title: str, width: int = TITLE) -> str:
    """Escape a title and break it into lines that fit on a narrow screen, about equally long."""
    lines = textwrap.wrap(title, width)
    while lines and len(shorter := textwrap.wrap(title, width := width - 1)) == len(lines) > 1:
        lines = shorter
    return "<br>".join(escape(line) for line in lines)


def make_room(figure: go.Figure, titles: Sequence[str]) -> None:
    """Make room above the panels for their titles, as :func:`panel_titles` returns them."""
    figure.update_annotations(font={"size": 13})
    figure.layout.margin.t += 17 * max(title.count("<br>") + 1 for title in titles) + 4


def panel_titles(names: Sequence[str]) -> list[str]:
    """Escape the titles of panels and break them into lines that fit above half a narrow screen."""
    return [wrap(name, 24) for name in names]


def plain(text: str | None) -> str:
    """Return a figure's HTML text as plain text."""
    text = (text or "").replace("<br>", "\n")
    for tag in ("<b>", "</b>", "<i>", "</i>"):  # before a token's &lt;b&gt; becomes a <b>
        text = text.replace(tag, "")
    return html.unescape(text).replace("\u2068", "").replace("\u2069", "")


def new_figure(title: str, x: str, y: str, **layout) -> go.Figure:
    """Create an empty figure in the course's style, with an escaped ``title`` and axis titles ``x`` and ``y``.

    The figure is as wide as its page, transparent, with its legend below and room for plotly's mode bar above the
    title.
    """
    figure = go.Figure()
    figure.update_layout(template=TEMPLATE, xaxis_title=wrap(x, 44), yaxis_title=wrap(y, 40), height=460, legend=LEGEND)
    set_title(figure, wrap(title))
    figure.layout.margin = {"l": 60, "r": 16, "t": figure.layout.margin.t, "b": 84}
    return figure.update_layout(**layout)


def set_title(figure: go.Figure, text: str) -> go.Figure:
    """Set a figure's title, given as HTML, below the strip of the mode bar, with a margin as high as its lines."""
    lines = text.count("<br>") + 1 if text else 0
    figure.update_layout(
        title={
            "text": text, "x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top",
            "pad": {"t": STRIP, "l": 12}, "font": {"size": 16},
        },
        margin_t=STRIP + 22 * lines + 18,
    )  # fmt: skip
    return figure


def describe(figure: go.Figure, text: str, strip: Sequence[str] = ()) -> go.Figure:
    """Store a figure's description, for readers who do not see it, and return the figure.

    Args:
        text: what is plotted: kind, axes, series, ranges; not what is to be learned from it.
        strip: names of the frames that a static image shows side by side.
    """
    text = " ".join(text.split()).replace("?.", "?").removeprefix(". ")  # a title may end with ? or be empty
    figure.layout.meta = {"alt": text, **({"strip": list(strip)} if strip else {})}
    return figure


def on_narrow_pages(figure: go.Figure, legend: dict[int, str] | None = None, layout: dict | None = None) -> go.Figure:
    """Store what a page narrower than 560 pixels changes in a figure, and return the figure. ``figures.js`` does it.

    Args:
        legend: traces and their escaped names, which stand in the legend instead of labels beside marks.
        layout: of plotly's relayout.
    """
    figure.layout.meta = {**(figure.layout.meta or {}), "narrow": {"legend": legend, "layout": layout}}
    return figure


def describe_curves(figure: go.Figure, kind: str = "Curves") -> go.Figure:
    """Describe a figure of curves or marks by its title, axes and series, and return it."""
    layout = figure.layout
    scale = {
        "x": " (log scale)" if layout.xaxis.type == "log" else "",
        "y": " (log scale)" if layout.yaxis.type == "log" else "",
    }
    names = list(dict.fromkeys(plain(t.name) for t in figure.data if t.name and t.showlegend is not False))
    x, y = (plain(axis.title.text) for axis in (layout.xaxis, layout.yaxis))
    numbers = [
        v for trace in figure.data for v in (trace.x if trace.x is not None else ()) if isinstance(v, (int, float))
    ]
    reach = f", from {min(numbers):g} to {max(numbers):g}" if numbers else ""
    text = (
        f"{plain(layout.title.text)}. {kind}: {y or 'values'}{scale['y']} against {x or 'position'}{scale['x']}{reach}."
    )
    return describe(figure, text + (f" Series: {'; '.join(names)}." if names else ""))


def alt_of(figure: go.Figure) -> str:
    """Return a figure's description: its own, or its title.

    Raises:
        ValueError: it has neither.
    """
    text = (figure.layout.meta or {}).get("alt") or plain(figure.layout.title.text).replace("\n", " ")
    if not text:
        raise ValueError('The figure has no title and no description: give one, show(figure, alt="...").')
    return text


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
    buttons = {"▶" if stops else "▶ play": [None, play], "❚❚": [[None], jump]} | {
        stop: [[stop], jump] for stop in stops
    }
    titled = figure.layout.xaxis.title.text and figure.layout.xaxis.visible is not False
    below = 58 if titled else 14 if figure.layout.xaxis.showticklabels is False else 34  # the axis's own labels
    figure.frames = frames
    figure.update_layout(
        sliders=[{
            "steps": [{"label": f.name, "method": "animate", "args": [[f.name], jump]} for f in frames],
            "x": 0, "len": 1, "y": 0, "pad": {"t": below + 44, "b": 0}, "ticklen": 0, "minorticklen": 0,
            "font": {"size": 11, "color": "rgba(0,0,0,0)"}, "bgcolor": GRID, "bordercolor": GRID, "activebgcolor": INK,
            "currentvalue": {
                "visible": not stops, "prefix": what, "xanchor": "right", "font": {"size": 14, "color": INK},
                "offset": 6,
            },
        }],
        updatemenus=[{
            "type": "buttons", "direction": "left", "x": 0, "xanchor": "left", "y": 0, "yanchor": "top",
            "pad": {"t": below, "r": 4}, "showactive": False, "bgcolor": "rgba(128,128,128,0.12)", "bordercolor": GRID,
            "font": {"color": INK, "size": 13},
            "buttons": [{"label": k, "method": "animate", "args": v} for k, v in buttons.items()],
        }],
        margin_b=(figure.layout.margin.b or 84) + below + 40, height=(figure.layout.height or 460) + 60,
    )  # fmt: skip
    return figure
