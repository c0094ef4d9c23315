"""The application of spans, by hand: clicks, sliders, its table."""

import re

import lft_edu as lft
from lft_edu.explorer import SpanApp


def rows(app) -> list[list[str]]:
    """The cells of the application's tables."""
    found = [re.findall("<td[^>]*>([^<]*)</td>", row) for row in re.findall("<tr>(.*?)</tr>", app.status.value)]
    return [row for row in found if row]


def test_the_application_follows_clicks_and_sliders(scan, states):
    app = SpanApp(scan, states, {"flow <walking>": {(1, 4): 0.123}}, span=(0, 2))
    assert "No operator was trained" in app.status.value
    app.click(1, 4)
    assert app.span == (1, 4)
    assert rows(app)[-1] == ["flow &lt;walking&gt;", "0.123"]
    assert (app.map.data[1].x, app.map.data[1].y) == ((4,), (1,))
    ratio = lft.recoupling_ratio(states[1], states[4]).ratio
    assert f"R = {ratio:.3f}" in app.plane.layout.title.text
    app.click(4, 1)  # below the diagonal there is nothing
    app.click(2, 2)
    assert app.span == (1, 4)
    app.n.value = 6
    assert "Layers 1 … 5" in app.plane.layout.title.text
    app.criterion.value = "angular"
    assert "Angular" in app.map.layout.title.text
    assert app.map.data[1].x == (6,)
    values = scan["angular"].diagonal(5)
    rank = int((values < scan["angular"][1, 6]).sum()) + 1
    assert ["Angular distance", f"{scan['angular'][1, 6]:.3f}", f"{rank} of {len(values)}"] in rows(app)
    app.resetting.click()
    assert (app.span, app.criterion.value) == ((0, 2), "recoupling")


def test_the_application_says_on_how_many_tokens_each_ratio_is(scan, states):
    app = SpanApp(scan, states[:, :40], span=(1, 4))
    assert "of 40 tokens" in app.plane.layout.title.text
    assert "Criteria of the scan, 60 tokens" in app.status.value
    assert "its own 40 tokens" in app.status.value
    assert "its own" not in SpanApp(scan, states, span=(1, 4)).status.value


def test_a_span_that_ends_before_it_begins_is_refused_in_words(scan, states):
    app = SpanApp(scan, states, span=(2, 4))
    app.m.value = 4
    assert "choose n above m = 4" in app.status.value
    app.n.value = 5
    assert "Layers 4 … 4" in app.status.value


def test_the_application_leaves_its_map_and_its_table(scan, states):
    shown = SpanApp(scan, states, span=(2, 4))._repr_mimebundle_()["text/html"]
    assert "Recoupling ratio of every span" in shown
    assert "<table>" in shown
