"""Block diagrams, read as data: how many layers stand where, and what is written beside them."""

import itertools

import numpy as np
import pytest

from lft_edu import plots
from lft_edu.plots import static
from lft_edu.plots.diagrams import KEPT, LFT, REPLACED, TEACHER

OPERATOR = plots.style_of("flow walking").color


def boxes(figure, color, column):
    """Count the boxes of a color in a column."""
    traces = [t for t in figure.data if t.fill == "toself" and t.fillcolor == color and t.x[0] == column[0]]
    return sum(list(trace.x).count(None) for trace in traces)


def texts(figure):
    return [trace.text[0] for trace in figure.data if trace.mode == "text"]


@pytest.mark.parametrize(("depth", "span"), [(24, (6, 18)), (24, (0, 24)), (30, (13, 19)), (12, (0, 1)), (2, (1, 2))])
def test_every_layer_is_drawn_once_and_the_span_is_one_operator(depth, span):
    figure, (m, n) = plots.spliced_model(depth, span), span
    assert boxes(figure, REPLACED, TEACHER) == n - m
    assert boxes(figure, REPLACED, LFT) == 0
    assert boxes(figure, OPERATOR, LFT) == 1
    embedding_and_logits = 2
    for column in (TEACHER, LFT):
        assert boxes(figure, KEPT, column) == depth - (n - m) + embedding_and_logits
    written = texts(figure)
    assert f"x0, enters layer {m}" in written
    assert f"x1, leaves layer {n - 1}" in written
    assert any("<b>head</b>" in text for text in written) == (m > 0)
    assert any("<b>tail</b>" in text for text in written) == (n < depth)


def test_parts_lie_above_each_other_in_both_columns():
    figure = plots.spliced_model(24, (6, 18))
    for column in (TEACHER, LFT):
        parts = [trace for trace in figure.data if trace.fill == "toself" and trace.x[0] == column[0]]
        ends = [(min(ys), max(ys)) for t in parts for ys in [[y for y in t.y if y is not None]]]
        assert all(above[0] > below[1] for below, above in itertools.pairwise(ends))
        assert ends[-1][1] < figure.layout.yaxis.range[1]


def test_a_span_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit a teacher of 24 layers"):
        plots.spliced_model(24, (6, 25))


def test_the_static_image_has_the_colors_and_no_tags():
    figure = plots.spliced_model(24, (6, 18))
    pixels = np.asarray(static.rasterize(figure)).reshape(-1, 3)
    for color in (KEPT, OPERATOR):
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(1).mean() > 0.01
    page = static.matplotlib_page(figure)
    assert any(note.get_text().startswith("operator\n") for note in page.axes[0].texts)
    assert not any("<" in note.get_text() for note in page.axes[0].texts)
