"""One look for all figures: operators' colors, readable ticks and labels, ink for both themes, descriptions."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from lft_edu import plots, shapes
from lft_edu.plots import axes, base, display, labels, static, style, tables


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (("flow matching", "flow-matching-6-12", "flow_matching", "Flow matching (Euler × 1)", "FM"), "flow-matching"),
        (
            ("Flow Walking (k = 3)", "flow_walking", "flow-walking-kl", "Flow Walking, three midpoint steps"),
            "flow-walking",
        ),
        (("regression", "regression, 6–18"), "regression"),
        (("ridge", "ridge-6-18", "linear map"), "ridge"),
        (("skip", "skipping 2 layers: 0.35", "skipped"), "skip"),
        (("trained loop", "loop", "looped"), "loop"),
        (("hybrid", "hybrid (α = 0.1)"), "hybrid"),
        (("two layers", "two layers, regression"), "two-layers"),
        (("teacher", "teacher: 24 layers"), "teacher"),
        (("student", "teacher's states", "width 64", "skipper", "t = 0.2"), ""),
    ],
)
def test_an_operator_is_recognized_in_any_spelling(names, family):
    assert {style.style_of(name).family for name in names} == {family}
    if family:
        assert {style.style_of(name).color for name in names} == {style.FAMILIES[family].color}


def test_variants_share_the_color_and_differ_otherwise():
    looks = plots.styles(["flow matching, Euler", "flow matching, midpoint", "flow matching, Heun", "Flow Walking"])
    *matching, walking = looks.values()
    assert len({look.color for look in matching}) == 1 != len({look.dash for look in matching})
    assert len({(look.dash, look.symbol) for look in matching}) == 3
    assert walking.color != matching[0].color


def test_other_names_never_get_an_operator_s_color():
    looks = plots.styles([f"name {i}" for i in range(9)])
    assert len({(look.color, look.dash) for look in looks.values()}) == 9
    assert not {look.color for look in looks.values()} & {look.color for look in style.FAMILIES.values()}
    operators = {look.color for look in style.FAMILIES.values()}
    assert not {style.START, style.RE_PAIRED} & (operators | set(style.SERIES))


def test_series_that_belong_together_share_a_look():
    looks = plots.styles(["exact", "other", "learned"], alike={"learned": "exact"})
    assert looks["learned"] == looks["exact"] != looks["other"]
    with pytest.raises(ValueError, match="not among the series: exact"):
        plots.styles(["exact"], alike={"exact": "nothing"})


def test_figures_take_colors_from_the_table():
    x = [1, 2]
    colors = {name: style.style_of(name).color for name in ("flow matching", "Flow Walking", "regression")}
    drawn = plots.lines(dict.fromkeys(colors, (x, x)), "t", "x", "y")
    assert {trace.name: trace.line.color for trace in drawn.data} == colors
    history = SimpleNamespace(steps=[1, 2, 3], losses=[3.0, 2.0, 1.0])
    drawn = plots.training(dict.fromkeys(colors, history))
    assert {trace.name: trace.line.color for trace in drawn.data} == colors
    drawn = plots.dots({name: {"a": (1.0, 0.9, 1.2)} for name in colors}, "t", "x")
    assert {trace.name: trace.marker.color for trace in drawn.data} == colors
    assert json.loads(json.dumps(plots.table()))["ridge"]["color"] == style.style_of("ridge").color


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return sum(w * (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4) for w, p in
               zip((0.2126, 0.7152, 0.0722), parts, strict=True))  # fmt: skip


def test_dark_means_much_and_numbers_can_be_read_on_every_cell():
    shades = [style.shade(i / 100) for i in range(101)]
    assert all(luminance(a) > luminance(b) for a, b in itertools.pairwise(shades))
    for color in shades:
        light, dark = sorted((luminance(color), luminance(style.ink_on(color))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, color
    figure = plots.heatmap([[0.0, 0.5], [0.9, 1.0]], ["a", "b"], ["c", "d"], "t", "x", "y")
    assert figure.data[1].text == ("0", "0.5", "0.9", "1")
    assert figure.data[1].textfont.color == tuple(style.ink_on(style.shade(v)) for v in (0, 0.5, 0.9, 1))


def test_small_numbers_differ_from_zero_and_from_each_other():
    place, (places, texts) = tables.spread([0.0, 0.004, 0.05, 1.0])
    shown = [place(v) for v in (0.0, 0.004, 0.05, 1.0)]
    assert shown == sorted(shown)
    assert min(np.diff(shown)) > 0.1
    assert (places[0], texts[0]) == (0.0, "0")
    assert [place(float(text)) for text in texts] == pytest.approx(places)
    place, ticks = tables.spread([0.5, 1.0, math.nan])  # of one size: in proportion
    assert (place(0.75), ticks) == (0.75, None)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((0.1, 1), [0.1, 0.2, 0.5, 1]),
        ((1e-6, 1), [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1]),
        ((0.31, 0.36), [0.28, 0.3, 0.32, 0.34, 0.36, 0.38]),
        ((0, 100, math.nan, 1000), [100, 200, 500, 1000]),
    ],
)
def test_logarithmic_ticks_are_round_and_few(values, ticks):
    assert axes.log_ticks(values) == pytest.approx(ticks)


@pytest.mark.parametrize("span", [1.01, 1.3, 3, 40, 1e3, 1e7, 1e15])
def test_logarithmic_ticks_are_never_many(span):
    for start in (0.0137, 1.0, 7.3):
        assert 1 <= len(axes.log_ticks([start, start * span])) <= axes.MOST


def test_amounts_are_short():
    shown = [axes.amount(v) for v in (0, 0.05, 1200, 2e5, 5e6, 2e9, 1e-6)]
    assert shown == ["0", "0.05", "1.2 k", "200 k", "5 M", "2·10⁹", "10⁻⁶"]


def test_labels_of_near_points_do_not_overlap():
    points = [(0.5, 0.5), (0.5, 0.505), (0.51, 0.5), (0.5, 0.51), (0.2, 0.2)]
    placed = labels.place_labels(points, ["a name"] * 5, (800, 400))
    assert placed[4] == (1, 0)
    boxes = []
    for (x, y), (side, up) in zip(points, placed, strict=True):
        start = 800 * x + (9 if side > 0 else -9 - 6 * labels.WIDE)
        boxes.append((start, 400 * y + up - 7, start + 6 * labels.WIDE, 400 * y + up + 7))
    assert all(labels._overlap(a, b) == 0 for a, b in itertools.combinations(boxes, 2))


def test_titles_break_into_lines_of_about_the_same_length():
    lines = base.wrap("A line of <Python> flies through 24 layers, then through 12 and one flow").split("<br>")
    assert len(lines) == 2
    assert "&lt;Python&gt;" in lines[0]
    assert abs(len(lines[0].replace("&lt;", "<").replace("&gt;", ">")) - len(lines[1])) < 10


def test_every_figure_describes_itself_without_telling_numbers(monkeypatch, generator):
    shown = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, **more: shown.append(more["metadata"]["image/jpeg"]["alt"])
    )
    figure = plots.lines({"a <b>": ([1, 8], [0.123, 0.987])}, "What grows?", "steps", "loss", log_x=True)
    plots.show(figure)
    assert shown.pop() == "What grows? Curves: loss against steps (log scale), from 1 to 8."
    plots.show(figure, alt="my own words")
    assert shown.pop() == "my own words"
    with pytest.raises(ValueError, match="give one"):
        plots.show(go.Figure())
    assert plots.alt_of(plots.clouds(shapes.beams(4, generator), "Two clouds")).startswith("Two clouds. 4 starts")


def test_a_stored_figure_takes_the_ink_of_its_page():
    figure = plots.heatmap([[0.1, 1.0]], ["r"], [1, 2], "t", "x", "y", unit="R")
    plots.animate(figure, [go.Frame(name="0", data=[])], "t = ")
    before = figure.to_json()
    stored = display.themed(json.loads(before))
    for text in (
        stored["layout"]["title"]["text"],
        stored["layout"]["xaxis"]["title"]["text"],
        stored["layout"]["yaxis"]["tickprefix"],
        stored["data"][0]["colorbar"]["title"]["text"],
        stored["layout"]["sliders"][0]["currentvalue"]["prefix"],
    ):
        assert text.startswith('<span style="fill:var(')
    assert figure.to_json() == before


def test_a_widget_has_the_course_s_settings(generator):
    pairs = shapes.beams(4, generator)
    made = plots.widget(plots.coupling({"a": pairs, "b": pairs.optimal_transport()}))
    assert made._config["showSendToCloud"] is False
    assert made._config["displaylogo"] is False
    assert len(made.data) == 5
    assert plots.widget().data == ()


def test_levels_and_moments_are_drawn(generator):
    figure = plots.lines({"a": ([0, 1], [1.0, 2.0])}, "t", "x", "y", levels={"floor": 0.5}, moments={"here": [0.25]})
    floor, here = figure.data[1:]
    assert (floor.name, floor.x, floor.y) == ("floor", (0, 1), (0.5, 0.5))
    assert (here.x, here.marker.symbol) == ((0.25,), "line-ns")


def test_many_curves_are_labeled_at_their_ends():
    series = {f"name {i}": ([0, 1], [0, i]) for i in range(8)}
    figure = plots.lines(series, "t", "x", "y")
    assert not any(trace.showlegend for trace in figure.data)
    notes = sorted(figure.layout.annotations, key=lambda note: note.y)
    assert [note.text for note in notes] == list(series)
    assert {note.x for note in notes} == {1}


def test_exact_and_learned_share_colors():
    curve = ([0, 1], [0, 1])
    figure = plots.exact_and_learned(
        {"t = 0.2": curve, "t = 0.8": curve}, {"t = 0.2": curve, "t = 0.8": curve}, "t", "x", "y"
    )
    colors = {trace.name: trace.line.color for trace in figure.data}
    assert colors["t = 0.2, exact"] == colors["t = 0.2, learned"] != colors["t = 0.8, exact"]
    assert {trace.name: trace.mode for trace in figure.data}["t = 0.8, learned"] == "markers"


def test_panels_have_axes_of_their_own():
    figure = plots.panels({"share": {"a": ([1, 2], [0, 1])}, "length": {"b": ([1, 2], [50, 90])}}, "t", "α", log_x=True)
    assert [note.text for note in figure.layout.annotations] == ["share", "length"]
    assert {trace.yaxis for trace in figure.data} == {"y", "y2"}
    assert figure.layout.xaxis2.type == "log"


def test_paths_over_time_may_differ_in_steps(generator):
    pairs = shapes.line(6, generator)
    paths = {f"{k} steps": torch.stack([pairs.at(t) for t in torch.linspace(0, 1, k + 1).tolist()]) for k in (2, 5)}
    figure = plots.paths_over_time(paths, pairs)
    times = [sorted({t for t in trace.x if t == t}) for trace in figure.data if trace.mode == "lines"]
    assert sorted(map(len, times)) == [3, 3, 6, 6]


def test_straight_paths_are_arrows_in_the_color_of_their_group(generator):
    pairs = shapes.overtaking(10, generator)
    figure = plots.straight_paths(pairs)
    for g in (0, 1):
        arrow = figure.data[g]
        assert arrow.line.color == style.SERIES[g]
        points = np.stack([arrow.x, arrow.y], -1).reshape(-1, 3, 2)
        np.testing.assert_allclose(points[:, 0], pairs.x0[pairs.group == g], rtol=1e-5)
        np.testing.assert_allclose(points[:, 1], pairs.x1[pairs.group == g], rtol=1e-5)
    assert (figure.frames[0].data[0].x < figure.frames[-1].data[0].x).all()  # to the right


def test_a_skip_heatmap_has_every_span_at_its_place():
    costs = {(0, 1): 1.0, (1, 2): 0.01, (0, 2): 3.0}
    heat = plots.skip_heatmap(costs).data[0]
    assert heat.z[0][0] is not None
    assert heat.z[1][1] is None
    assert heat.customdata[1][0] == "layers 0 … 1: 3 nats"
    assert heat.z[0][1] < heat.z[0][0] < heat.z[1][0]


def test_a_static_image_shows_moments_side_by_side(generator):
    pairs = shapes.beams(8, generator)
    figure = plots.coupling({"as given": pairs, "optimal": pairs.optimal_transport()})
    page = static.matplotlib_page(figure)
    assert [panel.get_title().split(":")[0] for panel in page.axes] == ["as given", "optimal"]
    walk = torch.stack([pairs.at(t) for t in (0.0, 0.5, 1.0)])
    assert len(static.matplotlib_page(plots.walks({"a": walk, "b": walk}, pairs)).axes) == 2 * 3


def test_three_dashes_differ_in_a_static_image():
    names = ("flow matching", "flow matching, Euler", "flow matching, on logits")
    figure = plots.lines({name: ([1, 2], [1, i]) for i, name in enumerate(names)}, "$t$", "$x$", "y")
    (panel,) = static.matplotlib_page(figure).axes
    assert len({line.get_linestyle() for line in panel.lines}) == 3
    assert panel.get_xlabel() == "$x$"
    assert not panel.xaxis.label.get_parse_math()


def test_no_text_of_a_figure_is_read_as_mathematics_or_lost():
    import plotly.graph_objects as go

    hostile = "x_{ ^ $^{$ \\frac{ 🙂 \ud800"
    flat = plots.lines({hostile: ([1, 2], [1, 2])}, hostile, hostile, hostile)
    heat = plots.heatmap([[0.0, 1.0]], ["$^{$"], ["$_{$", "b"], hostile, hostile, hostile, unit=hostile)
    heat.data[0].update(showscale=True, colorbar={"tickvals": [0, 1], "ticktext": ["$^{$", "$_{$"]})
    space = plots.new_figure(hostile, "", "")
    space.add_trace(go.Scatter3d(x=[0, 1], y=[0, 1], z=[0, 1], mode="lines"))
    space.update_scenes(**{f"{name}axis_title": plots.base.escape(hostile) for name in "xyz"})
    for figure in (flat, heat, space):
        assert static.rasterize(figure, width=4).width == 400
        figure.to_json().encode("utf-8")
    shown = static.matplotlib_page(flat)
    assert shown.get_suptitle().replace("\n", " ") == "x_{ ^ $^{$ \\frac{ 🙂 \\ud800"
