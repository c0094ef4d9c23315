"""Figures of lesson 04: paths and groups of states in several projections, side by side."""

import numpy as np
import pytest
import torch

import lft_edu as lft
from lft_edu import plots

TEXT = "x = '<b>'\nfor\tname in é: "
TOKENS = [1, 4]


@pytest.fixture(scope="module")
def paths(bundled):
    teacher, tokenizer = bundled
    student = lft.load_student("bundled/flow-walking-6-18", teacher)
    return {"teacher": lft.capture(teacher, tokenizer, TEXT), "<i>": lft.capture(student, tokenizer, TEXT)}


@pytest.fixture(scope="module")
def spaces(paths):
    return {name: lft.PCA(2, name).fit(paths["teacher"]) for name in ("raw", "layernorm")}


def test_paths_begin_where_the_replaced_layers_begin(paths, spaces):
    figure = plots.views(paths, spaces, TOKENS)
    drawn = iter(figure.data)
    for projection in spaces.values():
        for path in paths.values():
            for t in TOKENS:
                line, marks = next(drawn), next(drawn)
                expected = projection.transform(path.states[path.depth_index(6) :, t])
                np.testing.assert_allclose(np.stack([line.x, line.y], -1), expected)
                np.testing.assert_allclose(
                    np.stack([marks.x, marks.y], -1), projection.transform(path.at([6, 18])[:, t])
                )
    assert next(drawn, None) is None
    assert {trace.name for trace in figure.data if trace.name} == {"teacher", "&lt;i&gt;"}


def test_each_view_says_what_it_hides(paths, spaces):
    figure = plots.views(paths, spaces, TOKENS)
    depths = lft.trajectories.shared_depths(*paths.values())
    ends = [path.at(depths)[:, 1:] for path in paths.values()]
    for note, (name, projection) in zip(figure.layout.annotations, spaces.items(), strict=True):
        hidden = lft.projections.distortion(projection, *ends).hidden
        assert note.text.replace("<br>", " ") == f"{name}: hides {hidden:.0%}"
    assert "2 panels" in plots.alt_of(figure)


def test_views_refuse_what_they_cannot_compare(paths, spaces, bundled):
    teacher, tokenizer = bundled
    with pytest.raises(ValueError, match="first, then one of each student"):
        plots.views({"teacher": paths["teacher"]}, spaces, TOKENS)
    other = lft.capture(teacher, tokenizer, "def f(x):")
    with pytest.raises(ValueError, match="different texts"):
        plots.views({"teacher": other, "student": paths["<i>"]}, spaces, [1])
    with pytest.raises(ValueError, match="positions from 0 to"):
        plots.views(paths, spaces, [len(paths["teacher"].tokens)])


def test_maps_show_the_same_groups_in_each_projection(paths):
    states = paths["teacher"].states
    groups = {"<": states[12, 1:4], "=": list(states[12, 4:6])}
    umaps = {seed: lft.projections.bundled("UMAP", seed=seed) for seed in (0, 1)}
    figure = plots.maps({f"seed {seed}": umap for seed, umap in umaps.items()}, groups)
    drawn = iter(figure.data)
    for umap in umaps.values():
        landmarks = next(drawn)
        assert {*zip(landmarks.x, landmarks.y, strict=True)} <= {*map(tuple, umap.places)}
        for members in groups.values():
            trace = next(drawn)
            expected = umap.transform(torch.stack(list(members)))
            np.testing.assert_allclose(np.stack([trace.x, trace.y], -1), expected)
    assert [note.text for note in figure.layout.annotations] == ["seed 0", "seed 1"]
    with pytest.raises(ValueError, match="at least one state"):
        plots.maps(umaps, {"=": []})
