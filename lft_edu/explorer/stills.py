"""What is left of an application in a saved notebook: a picture and a sentence."""

import base64
import html

import plotly.graph_objects as go

from .. import plots

STILL = "An interactive application, as it was at first. Run this cell to use it."


def bundle(data: dict, picture: str) -> dict:
    """Return the output of an application: that of its widget, and the picture that a saved notebook shows."""
    said = f"<p><em>{STILL}</em></p>"
    return {**data, "text/html": said + picture, "text/plain": STILL}


def still(figure: go.Figure, alt: str, width: float = 6.5) -> str:
    """Return a figure as HTML: a static picture, ``width`` inches wide, with its description."""
    raw = base64.b64encode(plots.static_image(figure, alt, width).data).decode()
    return f"<img alt='{html.escape(alt, quote=True)}' src='data:image/png;base64,{raw}'>"
