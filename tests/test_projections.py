"""Projections: fitted once, frozen, and honest about what they hide."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lft_edu as lft
from lft_edu import projections
from lft_edu.projections import PREPARATIONS, distortion, trustworthiness
from lft_edu.trajectories import shared_depths

TEXT = "for name, value in sorted(items):\n    print(name, value)"


@pytest.fixture(scope="module")
def paths(bundled):
    teacher, tokenizer = bundled
    student = lft.load_student("bundled/flow-walking-6-18", teacher)
    return lft.capture(teacher, tokenizer, TEXT), lft.capture(student, tokenizer, TEXT)


@pytest.fixture(scope="module")
def cloud():
    """Stretched, shifted, with two rogue dimensions."""
    x = torch.randn(400, 10, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.3, 3, 10)
    x[:, [2, 7]] += torch.tensor([40.0, -60.0])
    return x


def frozen(kind, cloud, preparation="raw", dimensions=2):
    """A projection; the UMAP's map is any map: drawing one takes half a minute and is not what is tested."""
    if kind == "PCA":
        return lft.PCA(dimensions, preparation, drop=2).fit(cloud)
    projection = lft.UMAP(dimensions, preparation, drop=2)
    projection.places = np.random.default_rng(0).normal(size=(len(cloud), dimensions)).astype(np.float32)
    return projection.fit(cloud)


@pytest.mark.parametrize("kind", ["PCA", "UMAP"])
@pytest.mark.parametrize("preparation", PREPARATIONS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99))
def test_a_point_falls_where_it_falls_in_any_order_and_company(kind, preparation, cloud, seed):
    projection = frozen(kind, cloud, preparation)
    fingerprint = projection.fingerprint
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 7, 10, generator=g) * 5
    order = torch.randperm(7, generator=g)
    places = projection.transform(x)
    assert places.shape == (3, 7, 2)
    np.testing.assert_array_equal(projection.transform(x), places)
    np.testing.assert_array_equal(projection.transform(x[:, order]), places[:, order.numpy()])
    np.testing.assert_array_equal(projection.transform(x[1, 4:5]), places[1, 4:5])
    assert projection.fingerprint == fingerprint == projection._fingerprint()


@pytest.mark.parametrize("preparation", PREPARATIONS)
def test_pca_is_the_svd_of_the_prepared_states(cloud, preparation):
    projection = lft.PCA(3, preparation, drop=2).fit(cloud)
    x = cloud.double().numpy()
    if preparation == "layernorm":
        x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    if preparation == "unit":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    if preparation == "drop outliers":
        assert sorted(projection.outliers) == [2, 7]
        x = np.delete(x, [2, 7], axis=1)
    centered = x - x.mean(0)
    _, s, vt = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(np.abs(projection.transform(cloud)), np.abs(centered @ vt[:3].T), atol=1e-8)
    np.testing.assert_allclose(projection.explained, (s**2 / (s**2).sum())[:3])


def test_outlier_dimensions_come_from_the_fit_alone(cloud):
    projection = frozen("PCA", cloud, "drop outliers")
    moved = cloud.clone()
    moved[:, 4] += 1e3  # would be the worst dimension, had it been fitted
    shift = projection.transform(moved) - projection.transform(cloud)
    assert np.abs(shift).max() > 1
    assert sorted(projection.outliers) == [2, 7]


def test_position_0_is_left_out_of_the_fit_but_can_be_drawn(paths):
    teacher, _ = paths
    without, with_it = lft.PCA().fit(teacher), lft.PCA().fit(teacher, position0=True)
    by_hand = lft.PCA().fit(teacher.states[:, 1:].flatten(0, 1))
    assert without.fingerprint == by_hand.fingerprint != with_it.fingerprint
    assert without.transform(teacher).shape == (25, len(teacher.tokens), 2)


def test_another_process_draws_the_same(paths):
    teacher, _ = paths
    here = lft.PCA(2, "layernorm").fit(teacher)
    script = (
        "import json, torch, lft_edu as lft\n"
        "teacher, tokenizer = lft.load_teacher('bundled', device='cpu')\n"
        f"path = lft.capture(teacher, tokenizer, {TEXT!r})\n"
        "p = lft.PCA(2, 'layernorm').fit(path)\n"
        "u = lft.projections.bundled('UMAP')\n"
        "places = [x.transform(path)[9].tolist() for x in (p, u)]\n"
        "print(json.dumps([p.fingerprint, places[0], u.fingerprint, places[1]]))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    fingerprint, points, map_print, places = json.loads(out.splitlines()[-1])
    there = projections.bundled("UMAP")
    assert map_print == there.fingerprint
    np.testing.assert_allclose(there.transform(teacher)[9], places, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(here.transform(teacher)[9], points, rtol=1e-5, atol=1e-5)
    assert fingerprint == here.fingerprint


def test_out_of_plane_error_is_what_direct_computation_says(paths):
    teacher, student = paths
    depths = shared_depths(teacher, student)
    a, b = teacher.at(depths), student.at(depths)
    projection = lft.PCA(2).fit(teacher)
    moves = (a - b).double().reshape(-1, 64).numpy()
    inside = moves @ projection.components.T @ projection.components
    expected = np.square(moves - inside).sum() / np.square(moves).sum()
    found = distortion(projection, a, b)
    assert found.hidden == pytest.approx(expected, abs=1e-9)
    assert 0 < found.hidden < 1
    order = lambda x: np.argsort(np.argsort(x))  # noqa: E731
    true, shown = np.square(moves).sum(1), np.square(inside).sum(1)
    moved = true > 0  # in the head both are the same state
    assert distortion(projection, a, a).hidden == 0
    assert np.isnan(distortion(projection, a, a).agreement)
    assert np.corrcoef(order(true[moved]), order(shown[moved]))[0, 1] == pytest.approx(found.agreement, abs=1e-6)


def test_what_lies_in_the_plane_is_not_hidden_and_what_is_across_it_is(cloud):
    projection = frozen("PCA", cloud)
    a = cloud[:20]
    along = a + torch.from_numpy(projection.lift([[1.0, 2.0]])).float()
    assert distortion(projection, a, along).hidden == pytest.approx(0, abs=1e-6)
    across = np.linalg.svd(projection.components)[2][-1]
    assert distortion(projection, a, a + torch.from_numpy(across).float()).hidden == pytest.approx(1, abs=1e-6)
    assert distortion(frozen("UMAP", cloud), a, along).hidden is None


def test_lift_is_the_way_back(cloud):
    for preparation in ("raw", "drop outliers"):
        projection = frozen("PCA", cloud, preparation)
        move = np.array([[0.5, -2.0]])
        there = projection.transform(cloud[:1].double().numpy() + projection.lift(move))
        np.testing.assert_allclose(there - projection.transform(cloud[:1]), move, atol=1e-9)
    with pytest.raises(ValueError, match="use 'raw'"):
        frozen("PCA", cloud, "unit").lift([[1.0, 0.0]])


def test_landmarks_fall_on_themselves_and_nothing_jumps(cloud):
    projection = frozen("UMAP", cloud)
    np.testing.assert_allclose(projection.transform(cloud), projection.places, atol=1e-5)
    start, end = cloud[0].double(), cloud[1].double()
    way = torch.stack([torch.lerp(start, end, t) for t in torch.linspace(0, 1, 4001, dtype=torch.float64)])
    steps = np.linalg.norm(np.diff(projection.transform(way), axis=0), axis=1)
    assert steps.max() < 0.05  # the whole way crosses a map some 4 wide


def test_trustworthiness_of_a_faithful_and_of_a_random_picture(cloud):
    flat = torch.cat([cloud[:, :2], torch.zeros(400, 8)], 1)
    assert trustworthiness(lft.PCA().fit(flat), flat) == pytest.approx(1, abs=1e-6)
    assert trustworthiness(frozen("UMAP", cloud), cloud) < 0.6


@pytest.mark.slow
def test_umap_learn_draws_the_map(cloud):
    """Two far blobs: umap-learn itself keeps each one's neighbors, and the frozen map places new points among them."""
    blobs = torch.cat([cloud[:60] * 0.1, cloud[60:120] * 0.1 + 30])
    projection = lft.UMAP(n_neighbors=10).fit(blobs)
    assert trustworthiness(projection, blobs) > 0.75
    one, other = projection.places[:60], projection.places[60:]
    new = projection.transform(blobs[:60] + 0.01)
    assert (np.linalg.norm(new - one.mean(0), axis=1) < np.linalg.norm(new - other.mean(0), axis=1)).all()
    assert lft.UMAP(n_neighbors=10).fit(blobs).fingerprint == projection.fingerprint


def test_the_atlas_that_ships_belongs_to_the_teacher_that_ships(bundled):
    from lft_edu.loading.assets import ASSETS, verify

    notes = projections.provenance()
    assert notes["teacher_sha256"] == verify(ASSETS / "teacher")["sha256"]["model.safetensors"]
    states = projections.bundled_states()
    for preparation in PREPARATIONS:
        for dimensions in (2, 3):
            projection = projections.bundled("UMAP", dimensions, preparation)
            assert projection.places.shape == (len(states), dimensions)
            stored = notes["trustworthiness"][projections.atlas_key(dimensions, preparation)]
            assert trustworthiness(projection, states) == pytest.approx(stored, abs=0.01)


def test_the_atlas_comes_without_umap_learn():
    script = (
        "import sys, lft_edu as lft\n"
        "lft.projections.bundled('UMAP').transform(lft.projections.bundled_states()[:5])\n"
        "assert 'umap' not in sys.modules and 'numba' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_refusals_say_what_to_do(cloud, paths):
    teacher, student = paths
    for wrong, message in (
        ({"dimensions": 4}, "2 or 3"), ({"preparation": "layer norm"}, "Did you mean 'layernorm'"),
        ({"drop": -1}, "0 or more"), ({"preparation": "drop outliers", "drop": 9}, "drop fewer"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            lft.PCA(**wrong).fit(cloud)
    with pytest.raises(ValueError, match="is not fitted"):
        lft.PCA().transform(cloud)
    with pytest.raises(ValueError, match="frozen"):
        lft.PCA().fit(cloud).fit(cloud)
    with pytest.raises(ValueError, match="a student's trajectory: fit on"):
        lft.PCA().fit([teacher, student])
    with pytest.raises(ValueError, match="too few"):
        lft.PCA().fit(cloud[:3])
    with pytest.raises(ValueError, match="NaN or infinity"):
        lft.PCA().fit(cloud / 0)
    with pytest.raises(ValueError, match="have 64 dimensions: this projection takes 10"):
        lft.PCA().fit(cloud).transform(teacher)
    with pytest.raises(ValueError, match="give pairs of states"):
        distortion(lft.PCA().fit(cloud), cloud[:2], cloud[:3])
    with pytest.raises(ValueError, match="Did you mean 'PCA'"):
        projections.bundled("PCa")
