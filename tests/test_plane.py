"""Shapes, couplings and small flows in the plane, against geometry done another way."""

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lft_edu import plane, shapes
from lft_edu.couplings import Coupling, optimal_assignment, recoupling_ratio
from lft_edu.flow import euler_step
from lft_edu.objectives import flow_matching_loss, flow_walking_loss

PLANAR = [name for name in shapes.SHAPES if name != "line"]


def pairs_of(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return Coupling(torch.randn(n, 2, generator=generator), torch.randn(n, 2, generator=generator))


# --- shapes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_shapes_are_reproducible_pairs(name):
    a, b = (shapes.make(name, 50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert len(a) == 50
    assert a.x0.shape == (50, 1 if name == "line" else 2)
    assert torch.equal(a.x0, b.x0)
    assert torch.equal(a.x1, b.x1)
    assert len(a.group.unique()) >= 2


def test_beams_cross_and_the_cycle_goes_round(generator):
    beams = shapes.beams(100, generator)
    assert (beams.x0[:, 1] * beams.x1[:, 1] < 0).all()
    cycle = shapes.cycle(90, generator)
    means = [(cycle.x0[cycle.group == g, 1].mean(), cycle.x1[cycle.group == g, 1].mean()) for g in range(3)]
    assert [round(float(b - a), 1) for a, b in means] == [-1.2, -1.2, 2.4]


@pytest.mark.parametrize(("name", "angle"), [("rotation", 120), ("rings", 150), ("spirals", 180), ("moons", 180)])
def test_shapes_that_turn_turn_by_their_angle(name, angle, generator):
    pairs = shapes.make(name, 64, generator, **({"spread": 0.0} if name == "spirals" else {}))
    a, b = pairs.x0.double(), pairs.x1.double()
    turned = torch.atan2(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], (a * b).sum(-1)).rad2deg()
    assert torch.allclose(turned.abs(), torch.full((64,), float(angle), dtype=torch.float64), atol=0.1)
    assert angle == 180 or (turned > 0).all()


def test_overtaking_meets_without_crossing(generator):
    """Plain distance calls it optimal, squared distance does not; what meets is told by the closest approach."""
    pairs = shapes.overtaking(60, generator)
    euclidean, squared = (lft_recoupling(pairs, metric) for metric in ("euclidean", "sqeuclidean"))
    assert (euclidean, squared) == (0, 1)
    strangers = pairs.group[:, None] != pairs.group[None]
    assert float(pairs.closest_approach()[strangers].min()) < 0.05


def lft_recoupling(pairs, metric):
    return recoupling_ratio(pairs.x0, pairs.x1, metric).ratio


def test_points_from_text():
    pairs = shapes.from_text("0 1\n\n2, 3\n", "4 5\n6 7")
    assert pairs.x0.tolist() == [[0, 1], [2, 3]]
    assert pairs.x1.tolist() == [[4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("starts", "ends", "words"),
    [
        ("0 1\n<b>", "1 1\n2 2", "Line 2 of the starts"),
        ("0 1\n1 2", "1 1", "2 starts but 1 ends"),
        ("", "", "at least one pair"),
        ("0 1 2\n1 1", "0 0\n1 1", "write two numbers"),
        ("nan 1\n1 1", "0 0\n1 1", "NaN"),
    ],
)
def test_bad_points_are_refused(starts, ends, words):
    with pytest.raises(ValueError, match=words):
        shapes.from_text(starts, ends)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'moons'"):
        shapes.make("moon")
    for n in (1, 2.5, True):
        with pytest.raises(ValueError, match="number of pairs, at least 2"):
            shapes.beams(n)


# --- couplings ----------------------------------------------------------------------------------------------------


def crosses(a, b, c, d):
    """Do segments ab and cd cross? By solving for where, not by sides."""
    system = torch.stack([b - a, c - d], 1).double()
    if abs(torch.linalg.det(system)) < 1e-12:
        return False
    s, t = torch.linalg.solve(system, (c - a).double()).tolist()
    return 0 < s < 1 and 0 < t < 1


@given(seed=st.integers(0, 10_000), n=st.integers(2, 9))
def test_crossings_are_those_found_by_solving(seed, n):
    pairs = pairs_of(n, seed)
    table = pairs.crossings()
    for i, j in itertools.combinations(range(n), 2):
        expected = crosses(pairs.x0[i], pairs.x1[i], pairs.x0[j], pairs.x1[j])
        assert bool(table[i, j]) == bool(table[j, i]) == expected
    assert not table.diagonal().any()


@given(seed=st.integers(0, 10_000), n=st.integers(2, 40))
def test_optimal_transport_leaves_no_crossing_in_the_plane(seed, n):
    assert not pairs_of(n, seed).optimal_transport().crossings().any()


def test_closest_approach_is_that_of_fine_steps():
    pairs = pairs_of(12, 5)
    states = torch.stack([pairs.at(t) for t in torch.linspace(0, 1, 4001).tolist()])
    fine = torch.stack([torch.cdist(s, s) for s in states]).amin(0)
    assert torch.allclose(pairs.closest_approach(), fine, atol=2e-3)
    assert torch.allclose(pairs.closest_approach().diagonal(), torch.zeros(12))


def test_a_turn_keeps_cos_half_the_angle():
    """Half-way a turn by θ is a turn by θ/2 that shrinks to cos(θ/2): nobody comes closer than that share."""
    pairs = shapes.rotation(40, torch.Generator().manual_seed(0), degrees=120)
    start = torch.cdist(pairs.x0, pairs.x0).fill_diagonal_(1)
    share = (pairs.closest_approach() / start).fill_diagonal_(1)
    assert abs(float(share.min()) - math.cos(math.radians(60))) < 1e-4


def test_crossings_need_the_plane():
    with pytest.raises(ValueError, match="D = 3"):
        Coupling(torch.zeros(2, 3), torch.ones(2, 3)).crossings()


def test_groups_stay_with_their_start(generator):
    beams = shapes.beams(30, generator)
    paired = beams.optimal_transport()
    assert torch.equal(paired.group, beams.group)
    assert torch.equal(paired.x1, beams.x1[optimal_assignment(beams.x0, beams.x1)])
    assert torch.equal(Coupling(beams.x0, beams.x1).group, torch.arange(30))
    with pytest.raises(ValueError, match="one number per pair"):
        Coupling(beams.x0, beams.x1, torch.zeros(3))


# --- small flows --------------------------------------------------------------------------------------------------


def test_copies_are_networks_of_their_own(generator):
    together = plane.VelocityMLP(copies=3, generator=generator)
    x, t = torch.randn(5, 2, generator=generator), torch.rand(5, generator=generator)
    answer = together(x[:, None].expand(-1, 3, -1), t)
    for i in range(3):
        assert torch.allclose(answer[:, i], together.one(i)(x, t), atol=1e-6)
    assert not torch.allclose(answer[:, 0], answer[:, 1])
    with pytest.raises(ValueError, match="give a copy from 0 to 2"):
        together.one(3)


def test_a_copy_learns_as_if_alone():
    """Side by side or alone: the same start and batches give the same network."""
    pairs = shapes.beams(64, torch.Generator().manual_seed(0))
    start = plane.VelocityMLP(copies=2, generator=torch.Generator().manual_seed(1))
    alone = start.one(1)
    # with k = 1 and fixed times nothing is drawn but batches, which one seed makes the same
    loss = partial(flow_walking_loss, times=torch.tensor([0.0, 1.0]))
    options = {"steps": 5, "batch": 16, "seed": 3, "progress": False}
    together = plane.train(pairs, loss, velocity=start, **options)
    single = plane.train(pairs, loss, velocity=alone, **options)
    x = torch.randn(4, 2)
    assert torch.allclose(together.velocity.one(1)(x, 0.3), single.velocity(x, 0.3), atol=1e-5)


def test_training_is_reproducible_and_goes_on():
    pairs = shapes.beams(64, torch.Generator().manual_seed(0))
    first, again = (plane.train(pairs, flow_matching_loss, steps=20, progress=False) for _ in range(2))
    assert first.losses == again.losses
    longer = plane.train(pairs, flow_matching_loss, steps=20, velocity=first.velocity, progress=False)
    assert longer.velocity is first.velocity
    assert longer.losses != again.losses


def test_watch_sees_every_step_and_stops():
    pairs, seen = shapes.line(64, torch.Generator().manual_seed(0)), []
    trained = plane.train(
        pairs, flow_matching_loss, steps=50, watch=lambda s, loss, v: seen.append(s) or s == 7, progress=False
    )
    assert seen == list(range(1, 8))
    assert trained.steps == seen
    assert trained.velocity.dimension == 1


def test_an_interrupted_network_has_learned():
    pairs = shapes.beams(64, torch.Generator().manual_seed(0))
    velocity = plane.VelocityMLP(generator=torch.Generator().manual_seed(0))
    before = [p.clone() for p in velocity.parameters()]

    def stop(step, loss, velocity):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plane.train(pairs, flow_matching_loss, velocity=velocity, watch=stop, progress=False)
    assert not any(torch.equal(a, b) for a, b in zip(before, velocity.parameters(), strict=True))


def test_pairs_kept_and_coupling_error(generator):
    beams = shapes.beams(100, generator)
    other = beams.x1.flip(0) * torch.tensor([1.0, -1.0])
    assert plane.pairs_kept(beams.x1, beams) == 1
    mirrored = beams.x1 * torch.tensor([1.0, -1.0])
    assert plane.pairs_kept(mirrored, beams) == 0
    three = torch.stack([beams.x1, mirrored, other], 1)
    assert plane.pairs_kept(three, beams)[:2].tolist() == [1, 0]
    assert plane.coupling_error(beams.x1, beams) == 0
    mean = beams.x1.mean(0).expand_as(beams.x1)
    assert abs(float(plane.coupling_error(mean, beams)) - 1) < 1e-5
    assert plane.coupling_error(three, beams).shape == (3,)


def test_a_walk_of_all_copies_is_the_walk_of_each(generator):
    net = plane.VelocityMLP(copies=2, generator=generator)
    x0 = torch.randn(6, 2, generator=generator)
    path = plane.carry(net, x0, 4, euler_step, return_path=True)
    assert path.shape == (5, 6, 2, 2)
    assert torch.allclose(path[-1, :, 1], plane.carry(net.one(1), x0, 4, euler_step), atol=1e-6)
    assert not path.requires_grad


def test_flow_walking_keeps_what_flow_matching_loses():
    """The course's central claim, short; notebook 03 shows it for three networks and many step counts."""
    beams, test = (shapes.beams(n, torch.Generator().manual_seed(s)) for n, s in ((2000, 0), (200, 1)))
    fm = plane.train(beams, flow_matching_loss, steps=800, progress=False)
    fw = plane.train(beams, partial(flow_walking_loss, k=3), steps=800, progress=False)
    assert fm.kept(test, 20) < 0.1
    assert fw.kept(test, 20) > 0.95
