"""Figures of hidden states, as data."""

import html

import numpy as np
import pytest
import torch

import lft_edu as lft
from lft_edu import plots
from lft_edu.plots import static
from lft_edu.trajectories import velocity_at

TEXT = "x = '<b>'\nfor\tname in é: "


@pytest.fixture(scope="module")
def models(bundled):
    teacher, tokenizer = bundled
    return teacher, lft.load_student("bundled/flow-walking-6-18", teacher), tokenizer


@pytest.fixture(scope="module")
def paths(models):
    teacher, student, tokenizer = models
    walked = lft.capture(student, tokenizer, TEXT, substeps=1)
    return {"teacher": lft.capture(teacher, tokenizer, TEXT), "<i>student</i>": walked}


@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_frame_shows_where_tokens_are_at_its_depth(paths, dimensions):
    teacher, student = paths.values()
    projection = lft.PCA(dimensions).fit(teacher)
    figure = plots.trajectory(paths, projection, tokens=[1, 4, 5], title="<b>")
    depths = torch.cat([teacher.times, student.times]).unique()
    assert [frame.name for frame in figure.frames] == [f"{d:.4g}" for d in depths.tolist()]
    for k in (0, 9, len(depths) - 1):
        frame = figure.frames[k]
        for trace, path in zip(frame.data[:2], (teacher, student), strict=True):
            expected = projection.transform(path.at(depths[k])[0, [1, 4, 5]])
            got = np.stack([trace[axis] for axis in "xyz"[:dimensions]], -1)
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)
        for i, gap in enumerate(frame.data[2:]):  # one line per token, from teacher to student
            ends = np.stack([gap[axis] for axis in "xyz"[:dimensions]], -1)
            for end, trace in zip(ends, frame.data[:2], strict=False):
                np.testing.assert_allclose(end, [trace[axis][i] for axis in "xyz"[:dimensions]])
    assert figure.layout.title.text == "&lt;b&gt;"
    named = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert named[:3] == ["teacher", "&lt;i&gt;student&lt;/i&gt;", "the operator's part"]
    moving = figure.frames[0].traces
    assert [len(figure.data[place].x) for place in moving] == [3, 3, 3, 3, 3]  # two models' marks, three gaps


def paths_of(figure, token):
    """Solid and dashed lines of a token."""
    lines = [t for t in figure.data if t.mode == "lines" and t.name and t.name.endswith(f", {token}")]
    return [next(t for t in lines if t.line.dash == dash) for dash in ("solid", "dash")]


def test_the_dashed_part_runs_through_the_span_and_joins_the_solid_one(paths):
    teacher, student = paths.values()
    projection = lft.PCA().fit(teacher)
    figure = plots.trajectory({"student": student}, projection, tokens=[4])
    solid, dashed = paths_of(figure, student.tokens[4])
    where = projection.transform(student.states[:, 4])
    m, n = student.depth_index(6), student.depth_index(18)
    np.testing.assert_allclose(dashed.x, where[m : n + 1, 0], rtol=1e-4, atol=1e-3)
    joined = np.r_[solid.x[: m + 1], solid.x[m + 2 :]]
    np.testing.assert_allclose(joined, np.r_[where[: m + 1, 0], where[n:, 0]], rtol=1e-4, atol=1e-3)
    (ends,) = [t for t in figure.data if t.marker.symbol == ("circle-open", "square-open")]
    np.testing.assert_allclose(ends.x, where[[m, n], 0], rtol=1e-4, atol=1e-3)


def test_a_student_s_path_begins_where_it_leaves_the_teacher_s(paths):
    teacher, student = paths.values()
    projection = lft.PCA().fit(teacher)
    figure = plots.trajectory({"teacher": teacher, "other": student}, projection, tokens=[4])
    lines = [t for t in figure.data if t.name == f"other, {student.tokens[4]}"]
    after = projection.transform(student.states[student.depth_index(18) :, 4])[:, 0]
    np.testing.assert_allclose(next(t for t in lines if t.line.dash == "solid").x, after, rtol=1e-4, atol=1e-3)


def test_a_menu_shows_one_token_without_a_kernel(paths):
    figure = plots.trajectory(paths, lft.PCA().fit(paths["teacher"]))
    (*_, menu) = figure.layout.updatemenus
    count = len(paths["teacher"].tokens) - 1
    assert [button.label for button in menu.buttons[:2]] == [f"4 of {count} tokens", f"all {count} tokens"]
    assert len(menu.buttons) == count + 2
    third = menu.buttons[2 + 3].args[0]  # the fourth token that can be picked, position 4
    moving = [i for i, trace in enumerate(figure.data) if trace.mode == "markers+text"]
    for place in moving:
        assert [i for i, size in enumerate(third["marker.size"][place]) if size] == [3]
    lines = [i for i, trace in enumerate(figure.data) if trace.mode == "lines" and trace.line.dash == "dot"]
    assert [third["visible"][i] for i in lines] == [i == 3 for i in range(count)]
    assert [bool(word) for word in third["text"][moving[0]]] == [i == 3 for i in range(count)]


def test_limits_hold_all_frames_and_the_scale_is_the_same_on_both_axes(paths):
    figure = plots.trajectory(paths, lft.PCA().fit(paths["teacher"]))
    for frame in figure.frames:
        for trace in frame.data:
            for values, axis in ((trace.x, figure.layout.xaxis), (trace.y, figure.layout.yaxis)):
                seen = values[np.isfinite(values)]
                assert axis.range[0] < seen.min()
                assert seen.max() < axis.range[1]
    assert figure.layout.yaxis.scaleanchor == "x"
    assert plots.trajectory(paths, lft.projections.bundled("UMAP")).layout.yaxis.scaleanchor is None


def test_tokens_are_shown_literally_in_every_figure(paths, models):
    teacher = paths["teacher"]
    made = {
        "trajectory": plots.trajectory(paths, lft.PCA().fit(teacher), lens=True),
        "lens": plots.lens(teacher),
        "norms": plots.norms(teacher),
        "token_kl": plots.token_kl(teacher.tokens, [0.1] * len(teacher.tokens), "KL"),
    }
    for name, figure in made.items():
        words = figure.to_json().encode().decode("unicode_escape", errors="replace")
        assert "<b>" not in words.replace("<br>", ""), name
        shown = figure.to_plotly_json()
        text = str(shown)
        assert html.escape("<") in text, name
        assert "&quot;" not in text, name  # plotly would show it as it stands
        assert "\t" not in text.replace("\\t", ""), name


def test_lens_figure_says_what_the_lens_says(paths):
    teacher = paths["teacher"]
    figure = plots.lens(teacher, tokens=[1, 3], every=5)
    lens = teacher.logit_lens()
    heat = figure.data[0]
    assert list(figure.layout.yaxis.ticktext) == ["0", "5", "10", "15", "20", "24"]
    np.testing.assert_allclose(heat.z, lens.kl[[0, 5, 10, 15, 20, 24]][:, [1, 3]], atol=1e-5)
    word, share = lens.top(10, 3)[0]
    assert heat.hovertext[2][1].startswith(f"{plots.label(word)} {share:.0%}<br>")


def test_norm_figure_shows_norms(paths):
    np.testing.assert_allclose(plots.norms(paths["teacher"]).data[0].z, paths["teacher"].norms(), rtol=1e-5)


def test_hidden_distance_is_the_share_out_of_the_picture(paths):
    teacher, student = paths.values()
    plane = lft.PCA().fit(teacher)
    figure = plots.hidden_distance(paths, {"plane": plane})
    (trace,) = figure.data
    depth = trace.x[3]
    found = lft.projections.distortion(plane, teacher.at(depth)[0, 1:], student.at(depth)[0, 1:])
    assert trace.y[3] == pytest.approx(found.hidden)
    assert min(trace.x) > 6  # before the span there is no distance to hide


def test_velocity_of_a_token_is_the_flow_s_and_moves_only_that_token(models, paths):
    _, student, _ = models
    path = paths["<i>student</i>"]
    t, token = 1 / 3, 4
    there = path.at(6 + t * 12)[0]
    here = velocity_at(student, path, token, t, torch.zeros(2, 64))
    context = lft.latents.hidden_states_at_all_layers(student.model, path.ids[None])[2][6]
    with torch.no_grad():
        expected = student.operator.velocity(there[None], t, **context)[0, token]
    torch.testing.assert_close(here, expected.expand(2, -1), atol=1e-4, rtol=1e-4)
    move = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    there[token] += move[0]
    with torch.no_grad():
        expected = student.operator.velocity(there[None], t, **context)[0, token]
    moved = velocity_at(student, path, token, t, move)
    torch.testing.assert_close(moved[0], expected, atol=1e-4, rtol=1e-4)
    assert (moved - here[:1]).norm() > 0.1
    with pytest.raises(ValueError, match="the student"):
        velocity_at(student, paths["teacher"], token, t, torch.zeros(1, 64))
    ridge = lft.load_student("bundled/ridge-6-18", models[0])
    with pytest.raises(ValueError, match="student with a flow"):
        velocity_at(ridge, path, token, t, torch.zeros(1, 64))


def test_the_field_is_gray_where_no_state_was(models, paths):
    _, student, _ = models
    path, atlas = paths["<i>student</i>"], lft.projections.bundled("PCA")
    states = lft.projections.bundled_states()[700:1500]
    figure = plots.token_field(student, path, atlas, 3, states, grid=9, moments=3)
    names = [trace.name for trace in figure.data]
    guess, known = (figure.data[names.index(name)] for name in ("extrapolated: no samples nearby", "velocity"))
    cloud = atlas.transform(states)
    low, high = np.array([figure.layout.xaxis.range, figure.layout.yaxis.range]).T
    cell = max((high - low) / 8)
    tails = lambda trace: np.stack([trace.x, trace.y], -1).reshape(-1, 3, 2)[:, 0]  # noqa: E731
    far = lambda places: np.linalg.norm(places[:, None] - cloud[None], axis=-1).min(1)  # noqa: E731
    assert far(tails(known)).max() < cell
    assert far(tails(guess)).min() > far(tails(known)).mean()
    assert len(tails(known)) + len(tails(guess)) == 81
    assert len(figure.frames) == 3


def test_refusals(paths, models):
    plane = lft.PCA().fit(paths["teacher"])
    with pytest.raises(ValueError, match="positions from 0 to"):
        plots.trajectory(paths, plane, tokens=[99])
    for one_token in (True, False):
        first = lft.capture(models[0], models[2], "y") if one_token else paths["teacher"]
        with pytest.raises(ValueError, match="teacher first"):
            plots.hidden_distance({"a": first, "b": first}, {"plane": plane})
    for path, projection in ((paths["teacher"], plane), (paths["<i>student</i>"], lft.projections.bundled("UMAP"))):
        with pytest.raises(ValueError, match="PCA of 2 dimensions"):
            plots.token_field(models[1], path, projection, 1, lft.projections.bundled_states())
    with pytest.raises(ValueError, match="at most 4"):
        plots.trajectory({str(i): paths["teacher"] for i in range(5)}, plane)
    with pytest.raises(ValueError, match="different texts"):
        plots.trajectory({"a": paths["teacher"], "b": lft.capture(models[0], models[2], "y")}, plane)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_still_pictures_of_paths(paths, dimensions):
    figure = plots.trajectory(paths, lft.PCA(dimensions).fit(paths["teacher"]))
    picture = plots.static_image(figure, "alt").data
    empty = plots.static_image(plots.new_figure("t", "x", "y", height=640), "alt").data
    assert picture[:4] == b"\x89PNG"
    assert len(picture) > 2 * len(empty)


def test_a_still_heat_map_keeps_its_own_axes(paths):
    figure = plots.lens(paths["teacher"], tokens=[0, 1], every=6)
    page = static.matplotlib_page(figure)
    (axes, _) = page.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "6", "12", "18", "24"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "·="]
    inks = {text.get_color() for text in axes.texts}
    assert inks == {"#000000", "#FFFFFF"}  # dark on pale, pale on dark


def test_a_still_picture_names_its_marks(paths):
    figure = plots.trajectory(paths["teacher"], lft.PCA().fit(paths["teacher"]), tokens=[2, 3])
    (axes,) = static.matplotlib_page(figure).axes
    assert [note.get_text() for note in axes.texts] == ["·'", "<"]
    assert not any(note.get_parse_math() for note in axes.texts)


def test_visible_shows_what_cannot_be_seen():
    assert plots.visible("a\n\t b") == "a⏎⇥·b"
    assert plots.visible("\u202e\x00\u200b\ud800") == r"\u202e\x00\u200b\ud800"
    assert plots.visible("é🙂שלום") == "é🙂שלום"
    assert plots.label("<b>&'\"") == "\u2068&lt;b&gt;&amp;'\"\u2069"
