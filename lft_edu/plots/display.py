"""How figures are shown: in notebooks, in applications, and as static images."""

import base64
import io
import json
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from .base import alt_of
from .static import rasterize
from .style import INK

if TYPE_CHECKING:
    from IPython.display import Image

# No upload, no logo, no tools that make no sense here: the bar stays short and lies beside the title, not on it.
# Not "responsive" either: JupyterLab fits figures to their place itself, and with that setting plotly 7.1 gives them
# the height of a box that has none, 15 pixels, as soon as the window changes.
CONFIG = {
    "showSendToCloud": False,
    "displaylogo": False,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
}
# A stored JPEG gets the best of these qualities that keeps it below so many bytes: a notebook must stay below 1 MB.
QUALITIES, BYTES = (60, 45, 35, 28), 26_000
# The ink of the page around a stored figure: plotly takes no CSS variable for a color, but passes on a span's style.
PAGE_INK = f'<span style="fill:var(--lft-ink,var(--jp-content-font-color1,{INK}))">'


def themed(figure: dict) -> dict:
    """Return a figure, as JSON, whose titles and ticks have the ink of the page that shows it.

    That is dark on a light page and light on a dark one. JupyterLab's pages name theirs; others may define
    ``--lft-ink``; elsewhere it is :data:`INK`.
    """

    def inked(text: str | None) -> str | None:
        return f"{PAGE_INK}{text}</span>" if text and PAGE_INK not in text else text

    def ink_title(owner: dict) -> None:
        if (owner.get("title") or {}).get("text"):
            owner["title"]["text"] = inked(owner["title"]["text"])

    def ink_axis(axis: dict) -> None:
        ink_title(axis)
        if axis.get("ticktext"):
            axis["ticktext"] = [inked(text) for text in axis["ticktext"]]
        else:
            axis |= {
                "tickprefix": PAGE_INK + axis.get("tickprefix", ""),
                "ticksuffix": axis.get("ticksuffix", "") + "</span>",
            }

    layout = figure["layout"]
    for part in (layout, *(frame.get("layout", {}) for frame in figure.get("frames", ()))):
        ink_title(part)
    for name, axis in layout.items():
        if name.startswith(("xaxis", "yaxis")):
            ink_axis(axis)
    for trace in figure["data"]:
        if trace.get("type") == "heatmap" and trace.get("showscale") is not False:
            ink_axis(trace.setdefault("colorbar", {}))
    for note in layout.get("annotations", ()):
        if "color" not in note.get("font", {}):
            note["text"] = inked(note["text"])
    for slider in layout.get("sliders", ()):
        value = slider["currentvalue"]
        value |= {"prefix": PAGE_INK + value.get("prefix", ""), "suffix": "</span>"}
    return figure


def show(figure: go.Figure, alt: str | None = None) -> None:
    """Show a figure in a notebook: interactive where JavaScript runs, a static image on GitHub and in print.

    Args:
        figure: a figure.
        alt: description in words, for screen readers; the figure's own if None.

    Raises:
        ValueError: no description, and a figure that has none and no title.
    """
    from IPython.display import display

    alt = alt or alt_of(figure)
    live = themed(json.loads(figure.to_json())) | {"config": CONFIG}
    # JPEG, not PNG: JupyterLab's plotly renderer would show a PNG in place of the figure until the mouse comes near
    drawn, picture = rasterize(figure), b""
    for quality in QUALITIES:
        drawn.save(buffer := io.BytesIO(), format="jpeg", quality=quality, optimize=True, progressive=True)
        picture = buffer.getvalue()
        if len(picture) < BYTES:
            break
    display(
        {"application/vnd.plotly.v1+json": live, "image/jpeg": base64.b64encode(picture).decode(), "text/plain": alt},
        raw=True,
        metadata={"image/jpeg": {"alt": alt}},
    )


def widget(figure: go.Figure | None = None) -> "go.FigureWidget":  # importing the class takes 2 s: on first use
    """Make a figure into a widget that Python can change while it is shown, with the course's settings.

    These are: no upload button, no logo, as wide as its place. Frames are left out: a widget has none.

    Args:
        figure: a figure; an empty one if None.
    """
    made = go.FigureWidget() if figure is None else go.FigureWidget(figure.data, figure.layout)
    made._config = made._config | CONFIG
    return made


def static_image(figure: go.Figure, alt: str | None = None, width: float = 12.0) -> "Image":
    """Render one of the course's figures as a PNG with alt text, for GitHub and print.

    Draws lines, markers, error bars, heatmaps and subplots; of an animation some frames side by side, where the figure
    names them, else the first. Hover texts are lost.

    Args:
        figure: a figure.
        alt: description; the figure's own if None.
        width: in inches, at 100 dots per inch.

    Raises:
        ValueError: no description, and a figure that has none and no title.
    """
    from IPython.display import Image

    buffer = io.BytesIO()
    rasterize(figure, width).quantize(64).save(buffer, format="png", optimize=True)  # 64 colors: a third of the size
    return Image(buffer.getvalue(), alt=alt_of(figure) if alt is None else alt)
