"""Figures as data, and applications without a browser."""

import json
import math
import re

import numpy as np
import pytest
import torch

import lft_edu as lft
from lft_edu import plane, plots, shapes
from lft_edu.explorer import CompletionApp, CouplingApp, FlowApp, LiveLoss, completion, stills
from lft_edu.plots import plane as drawing
from lft_edu.plots import style


def contrast(a: str, b: str = "#ffffff") -> float:
    """WCAG 2.1 contrast of two colors."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_meets_wcag():
    assert abs(contrast("#767676") - 4.54) < 0.01  # the textbook example
    operators = {look.color for look in style.FAMILIES.values()}
    for color in (*style.SERIES, *operators, style.INK, style.START, style.RE_PAIRED):
        for page in ("#ffffff", "#111111"):  # figures are transparent: on a light page and on JupyterLab's dark one
            assert contrast(color, page) >= 3, (color, page)  # graphics, 1.4.11
    assert contrast(style.INK) >= 4.5  # text
    for text in ("#00664A", "#A04000", "#B00020", "#2a3f5f"):  # messages of checks and apps, titles
        assert contrast(text) >= 4.5, text


def lab(linear):
    """CIE L*a*b* of linear RGB: equal distances look about equally different."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear.clip(0, 1)
    f = np.cbrt(xyz / np.array([0.9505, 1, 1.089]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(
    "blindness",
    [
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],  # protanopia (Machado 2009)
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],  # deuteranopia
    ],
)
@pytest.mark.parametrize(
    "colors", [style.SERIES[:5], [style.style_of(name).color for name in ("regression", "FM", "FW", "hybrid")]]
)
def test_colors_differ_for_the_color_blind(blindness, colors):
    linear = [(np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255) ** 2.2 for c in colors]
    seen = [lab(np.array(blindness) @ color) for color in linear]
    assert min(np.linalg.norm(a - b) for k, a in enumerate(seen) for b in seen[:k]) > 15
    assert len(set(style.GROUP_SYMBOLS)) == len(style.SERIES)  # and each has a mark of its own


def lengths(trace):
    """Lengths of the segments of a broken line with three entries each."""
    points = np.stack([trace["x"], trace["y"]], -1).reshape(-1, 3, 2)
    return np.linalg.norm(points[:, 1] - points[:, 0], axis=-1)


def test_coupling_traces_split_the_lines_by_the_ratio(generator):
    pairs = shapes.rotation(30, generator, degrees=20)
    agreed, changed, starts, _, sparks = drawing.coupling_traces(pairs)
    ratio = lft.recoupling_ratio(pairs.x0, pairs.x1).ratio
    assert 0 < ratio < 1
    assert len(changed["x"]) // 3 == round(30 * ratio)
    assert len(agreed["x"]) + len(changed["x"]) == 90
    total = lengths(agreed).sum() + lengths(changed).sum()
    assert math.isclose(total, (pairs.x1 - pairs.x0).norm(dim=-1).sum().item(), rel_tol=1e-5)
    assert len(starts["x"]) == 30
    assert len(sparks["x"]) == int(pairs.crossings().triu().sum())


def test_crossing_points_lie_on_both_lines(generator):
    x0 = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    x1 = torch.tensor([[2.0, 2.0], [2.0, 1.0]])
    assert drawing.crossing_points(lft.couplings.Coupling(x0, x1)).tolist() == [[1.0, 1.0]]


def test_a_slider_swings_from_pairing_to_pairing(generator):
    beams = shapes.beams(8, generator)
    pairings = {"as <given>": beams, "optimal": beams.optimal_transport()}
    figure = plots.coupling(pairings, between=3)
    names = [frame.name for frame in figure.frames]
    assert len(names) == 5
    assert [names[0], names[-1]] == list(pairings)
    assert "<given>" not in figure.layout.title.text
    assert "R = 1.00" in figure.layout.title.text
    assert "R = 0.00 · lines cross in 0 places" in figure.frames[-1].layout.title.text
    halfway = np.stack([figure.frames[2].data[0].x, figure.frames[2].data[0].y], -1).reshape(-1, 3, 2)[:, 1]
    assert np.allclose(halfway, torch.lerp(beams.x1, pairings["optimal"].x1, 0.5), atol=1e-6)
    assert not plots.coupling(beams).frames


def test_walks_move_the_marks_and_nothing_else(generator):
    pairs = shapes.cycle(30, generator)
    path = torch.stack([pairs.at(t) for t in (0.0, 0.5, 1.0)])
    figure = plots.walks({"a": path, "b": path + 0.1}, pairs)
    assert [frame.name for frame in figure.frames] == ["0.00", "0.50", "1.00"]
    moved = figure.frames[1].traces
    assert len(moved) == len(figure.frames[1].data) == 6  # three groups in two panels
    for place, frame_trace in zip(moved, figure.frames[1].data, strict=True):
        assert figure.data[place].mode == "markers"
        assert len(frame_trace.x) == 10
    first = figure.frames[1].data[0]
    group = figure.data[moved[0]].name[-1]
    assert np.allclose(np.sort(first.x), np.sort(path[1, pairs.group == int(group), 0]))
    with pytest.raises(ValueError, match="same number of steps"):
        plots.walks({"a": path, "b": path[:2]}, pairs)


def test_a_line_is_drawn_over_time(generator):
    pairs = shapes.line(10, generator)
    path = torch.stack([pairs.at(t) for t in (0.0, 0.25, 1.0)])
    figure = plots.walks({"a": path}, pairs, times=[0.0, 0.25, 1.0])
    assert set(np.concatenate([trace.x for trace in figure.frames[1].data]).tolist()) == {0.25}
    assert figure.layout.xaxis.title.text == "t"


def test_velocity_field_marks_where_nobody_was(generator):
    pairs = shapes.beams(40, generator)
    figure = plots.velocity_field(lambda x, t: torch.ones_like(x), pairs, start=5, grid=9)
    assert len(figure.frames) == 11
    assert figure.layout.sliders[0].active == 5
    guess, seen = (np.reshape([figure.data[i].x, figure.data[i].y], (2, -1, 3)) for i in (0, 1))
    assert guess.shape[1] + seen.shape[1] == 81
    arrow = seen[:, :, 1] - seen[:, :, 0]
    assert np.allclose(arrow, arrow[0, 0])  # a constant field: all arrows alike
    starts = torch.tensor(seen[:, :, 0].T)
    cell = 2 * drawing.axis_limits(pairs.x0, pairs.x1)[1] / 8
    assert (torch.cdist(starts.float(), pairs.at(0.5)).min(1).values < 1.5 * cell).all()


def test_every_figure_has_a_live_and_a_still_version(monkeypatch, generator):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **more: shown.append((data, more)))
    pairs = shapes.beams(20, generator)
    walk = torch.stack([pairs.at(t) for t in (0.0, 1.0)])
    figures = [
        plots.coupling({"a": pairs, "b": pairs.optimal_transport()}),
        plots.clouds(pairs),
        plots.walks({"a": walk, "b": walk}, pairs, "two"),
        plots.velocity_field(lambda x, t: x, pairs),
        plots.heatmap([[0.1, 1.0]], ["row"], [1, 2], "heat", "x", "y", percent=True),
        plots.lines({"a": ([1, 2], [1, 2], [0, 1], [2, 3]), "b": ([1, 2], [3, 4])}, "lines", "x", "y", log_x=True),
    ]
    for figure in figures:
        plots.show(figure, alt="what is to be <seen>")
        data, more = shown.pop()
        live = json.loads(json.dumps(data["application/vnd.plotly.v1+json"]))  # plain JSON throughout
        assert len(live["data"]) == len(figure.data)
        assert len(live.get("frames", [])) == len(figure.frames)
        assert live["config"]["showSendToCloud"] is False
        assert data["image/jpeg"].startswith("/9j/")
        assert more["metadata"]["image/jpeg"]["alt"] == "what is to be <seen>"


def test_titles_and_names_are_literal(generator):
    evil = "<img src=x onerror=alert(1)>"
    pairs = shapes.beams(4, generator)
    walk = torch.stack([pairs.x0, pairs.x1])
    figures = [
        plots.lines({evil: ([1], [1])}, evil, "x", "y"),
        plots.walks({evil: walk}, pairs, evil),
        plots.coupling({evil: pairs, "b": pairs}),
        plots.training({evil: plane.Trained(None, [1.0, 2.0])}, evil),
    ]
    for figure in figures:
        shown = [figure.layout.title.text, *(t.name for t in figure.data), *(n.text for n in figure.layout.annotations)]
        assert not any("<img" in (text or "") for text in shown)


def test_heat_writes_the_numbers_in():
    figure = plots.heatmap(torch.tensor([[0.034, 1.0]]), ["r"], [1, 200], "t", "x", "y", percent=True)
    assert figure.data[0].text == (("3", "100"),) or [list(r) for r in figure.data[0].text] == [["3", "100"]]
    assert list(figure.data[0].x) == ["1", "200"]


# --- applications -------------------------------------------------------------------------------------------------


def test_coupling_app_follows_its_controls():
    app = CouplingApp()
    assert "R = 1.00" in app.status.value
    app.pairing.value = "optimal transport"
    assert "R = 0.00 · lines cross in 0 places" in app.status.value
    app.n.value = 50
    assert len(app.figure.data[2].x) == 50
    assert app.boxes.layout.display == "none"


def test_coupling_app_takes_points_and_mistakes():
    app = CouplingApp()
    app.shape.value = "your own points"
    assert app.boxes.layout.display == ""
    before = list(app.figure.data[2].x)
    app.starts.value = "<b>1</b>"
    assert "role='alert'" in app.status.value
    assert "<b>" not in app.status.value
    assert list(app.figure.data[2].x) == before


def test_clicks_make_pairs():
    app = CouplingApp()
    for place in ((-1, 0), (1, 0), (-1, 1), (1, 1)):
        app.click(*place)
    assert app.shape.value == "your own points"
    assert app.pairs().x0.tolist() == [[-1, 0], [-1, 1]]
    assert app.pairs().x1.tolist() == [[1, 0], [1, 1]]


def test_points_are_dragged_undone_cleared_and_reset():
    app = CouplingApp()
    for place in ((-1, 0), (1, 0), (-1, 1), (1, 1)):
        app.click(*place)
    marks = app.figure.layout.annotations
    assert [(mark.x, mark.y) for mark in marks] == [(-1, 0), (-1, 1), (1, 0), (1, 1)]  # starts, then ends
    app.figure.layout.annotations[3].update(x=0.5, y=-1.5)  # as the page reports a drag
    assert app.pairs().x1.tolist() == [[1, 0], [0.5, -1.5]]
    assert app.starts.value.split("\n")[:2] == ["-1.0 0.0", "-1.0 1.0"]
    app.undo()
    assert app.pairs().x1.tolist() == [[1, 0], [1, 1]]
    app.click(0, 0)
    assert "now click its end" in app.status.value
    app.undo()  # forgets the start without an end
    assert len(app.pairs()) == 2
    app.clear()
    assert "No points yet" in app.status.value
    assert list(app.figure.data[2].x) == []
    app.undo()
    assert len(app.pairs()) == 2
    app.pairing.value = "optimal transport"
    app.reset()
    assert (app.shape.value, app.pairing.value) == ("beams", "as given")
    assert not app.figure.layout.annotations
    for _ in range(9):
        app.undo()  # to the beginning, and no further
    assert app.shape.value == "beams"


def test_typed_points_keep_their_digits_when_another_is_dragged():
    app = CouplingApp()
    app.shape.value = "your own points"
    app.starts.value = "-1.25, 1\n-1 -1"
    app.figure.layout.annotations[2].update(x=0.0, y=0.0)
    assert app.starts.value.startswith("-1.25, 1\n")
    assert app.ends.value.startswith("0.0 0.0\n")


def test_flow_app_trains_stops_and_walks():
    app = FlowApp(steps=150)
    app.loss.value = "Flow Walking"
    assert [row.layout.display for row in (app.k, app.random, app.alpha)] == ["", "", "none"]
    app.train(wait=True)
    assert app.button.description == "Train"
    assert len(app.live.losses) == 150
    assert "evaluations" in app.status.value
    ends = list(app.figure.data[-1].x)
    app.test_k.value = 1
    assert list(app.figure.data[-1].x) != ends
    app.steps = 10**6
    app.train()
    assert app.running
    app.stop()
    assert not app.running
    app.shape.value = "cycle"  # three groups instead of two: other traces
    assert len(app.figure.data) == 9
    app.restore()
    assert (app.shape.value, app.loss.value, app.test_k.value) == ("beams", "flow matching", 20)
    assert app.live.losses == []


def test_flow_app_shows_every_time():
    app = FlowApp(steps=1)
    app.test_k.value = 10
    assert not app.figure.layout.sliders
    assert not app.figure.layout.updatemenus
    for t, state in ((0, 0), (10, 5), (20, 10)):
        app.t.value = t
        x = np.concatenate([app.figure.data[mark].x for mark in app.marks])
        assert np.allclose(np.sort(x), np.sort(app.path[state, :, 0]))
    app.shape.value = "line"  # one dimension, drawn over time
    assert app.velocity.dimension == 1


@pytest.mark.parametrize("loss", FlowApp.LOSSES)
def test_flow_app_offers_every_loss(loss, generator):
    app = FlowApp(steps=1, loss=loss)
    value = app.objective()(app.velocity, app.shown.x0, app.shown.x1, generator=generator)
    assert value.requires_grad


def test_live_loss_grows_by_means():
    live = LiveLoss(every=2)
    for step, loss in enumerate((1.0, 3.0, 5.0, 7.0), 1):
        live(step, loss)
    assert list(live.figure.data[0].x) == [2, 4]
    assert list(live.figure.data[0].y) == [2, 6]
    live.clear()
    assert live.figure.data[0].x == ()


def test_no_button_of_an_application_needs_a_network():
    figures = [CouplingApp().figure, FlowApp(steps=1).figure, LiveLoss().figure]
    for figure in figures:
        assert figure._config["showSendToCloud"] is False
        assert figure._config["displaylogo"] is False
        assert figure.layout.autosize


@pytest.mark.parametrize("app", [CouplingApp, lambda: FlowApp(steps=1)])
def test_an_application_leaves_a_picture_and_a_sentence(app):
    bundle = app()._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"}
    assert bundle["text/plain"] == stills.STILL
    assert stills.STILL in bundle["text/html"]
    assert "src='data:image/png;base64," in bundle["text/html"]
    assert len(bundle["text/html"]) < 60_000


def test_completion_app_shows_text_literally(bundled):
    teacher, tokenizer = bundled
    app = CompletionApp({"<b>teacher</b>": teacher}, tokenizer, "x = '<script>")
    for shown in (app.result.value, app._repr_mimebundle_()["text/html"]):
        assert "<script>" not in shown
        assert "<b>teacher" not in shown
    assert len(app.examples) == len(completion.EXAMPLES) + 1  # its own text is one


def test_completions_are_marked_where_they_first_differ():
    assert "<mark" not in completion.marked("a b", "a b")
    assert "<mark" not in completion.marked("a", "a b")
    for new, first, expected in (
        (", 3, 4", ", 4, 4", ", |3|, 4"),
        ("config)", "config: X)", "config|)|"),
        ("flag is", "flow is", "|flag| is"),
        ("a b", "a", "a| |b"),
        ("<b>x", "<b>y", "&lt;b&gt;|x|"),
    ):
        shown = re.sub("<mark[^>]*>|</mark>", "|", completion.marked(new, first))
        assert shown == expected


def test_completions_follow_examples_temperature_and_stop(bundled):
    teacher, tokenizer = bundled
    app = CompletionApp({"a": teacher, "b": teacher}, tokenizer)
    assert "4" in app.result.value
    assert "All write the same" in app.status.value
    app.examples[1].click()
    assert app.text.value == completion.EXAMPLES[1]
    assert "#&#x20;Copyright" in app.result.value or "# Copyright" in app.result.value
    before = app.result.value
    app.temperature.value = 1.5
    assert app.result.value != before
    monkey = app._should_stop
    app._should_stop = lambda ids, scores, **_: (app.stop(), monkey(ids, scores))[1]  # pressed at the first token
    app.length.value = 80
    assert "Stopped" in app.status.value
    assert not app.running
    assert app.button.description == "Complete"


def test_of_many_changes_at_once_the_last_is_completed(bundled, monkeypatch):
    teacher, tokenizer = bundled
    monkeypatch.setattr(completion, "in_notebook", lambda: True)
    asked, written = [], []
    whole = completion.complete

    def counting(model, tokenizer, text, tokens, *how, **options):
        asked.append(tokens)
        written.append(whole(model, tokenizer, text, tokens, *how, **options))
        return written[-1]

    monkeypatch.setattr(completion, "complete", counting)
    app = CompletionApp({"a": teacher, "b": teacher}, tokenizer)
    del asked[:], written[:]
    for length in [79, 80] * 20 + [5]:
        app.length.value = length
    app.thread.join()
    assert asked[-2:] == [5, 5]
    assert written[-2:] == [whole(teacher, tokenizer, app.text.value, 5)] * 2
    tokens = len(tokenizer("".join(written))["input_ids"])
    assert tokens < 20 * 79  # each of the others was stopped at its next token
