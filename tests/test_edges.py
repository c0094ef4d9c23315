"""The exact values at the edges of the core's functions: types, devices, limits, messages. Found by `make mutation`."""

import math
import re

import pytest
import torch

import lft_edu as lft
from lft_edu import flow
from lft_edu.couplings import Coupling, assign, check_pairs, cost_matrix, optimal_assignment
from lft_edu.objectives import FlowMatching, FlowWalking, Hybrid, LogitKL, flow_matching_loss, flow_walking_loss

META = torch.device("meta")


def said(words: str):
    """A ValueError that says exactly this."""
    return pytest.raises(ValueError, match=f"^{re.escape(words)}$")


@pytest.mark.parametrize(
    ("points", "time"),
    [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.float32)],
)
@pytest.mark.parametrize("t", [0.25, torch.tensor(0.25, dtype=torch.float64), torch.full((3,), 0.25)])
def test_a_time_has_the_points_device_and_a_type_that_can_tell_times_apart(points, time, t):
    for device in ("cpu", META):
        found = flow.as_time(t, torch.zeros(3, 2, dtype=points, device=device))
        assert (found.dtype, found.device.type) == (time, torch.device(device).type)
        assert found.shape == (t.shape if isinstance(t, torch.Tensor) else ())


def test_a_time_fits_or_the_message_has_both_shapes():
    assert flow.pad_t_like_x(torch.ones(3), torch.zeros(3, 4, 2)).shape == (3, 1, 1)
    assert flow.pad_t_like_x(torch.ones(3, 4), torch.zeros(3, 4, 2, dtype=torch.float64)).dtype == torch.float64
    for shape in ((3, 2), (2,), (3, 2, 1)):
        what = f"A time of shape {shape} does not fit x of shape (3, 2)"
        with said(f"{what}: give a number, or one time per sample, shape (B,)."):
            flow.pad_t_like_x(torch.ones(shape), torch.zeros(3, 2))


def test_what_a_walk_refuses_and_in_which_words():
    x = torch.zeros(3, 2)
    with said("The velocity has shape (3, 1) at points of shape (3, 2)."):
        flow.walk(lambda x, t: x[:, :1], x, [0, 1])
    with said("times has shape (1,): give (K+1,) or (B, K+1) with at least 2 times."):
        flow.check_times([0.5], x)
    with said("times holds 2 rows for a batch of 3: give one row per sample."):
        flow.check_times(torch.zeros(2, 2), x)
    with said("times must lie in [0, 1]; these run from -0.5 to 1.5."):
        flow.check_times([-0.5, 1.5], x)
    assert [t.item() for t in flow.check_times(torch.tensor([0.0, 0.0, 1.0]), x)] == [0.0, 0.0, 1.0]  # equal neighbors
    numbers = flow.check_times([0, 0.3, 1], x)
    assert numbers == (0, 0.3, 1)  # as they were given: exact
    elsewhere = torch.full((3, 2), 7.0, device=META)  # its values are not looked at
    assert len(flow.check_times(elsewhere, x.to(META))) == 2


def test_the_most_and_the_fewest_steps():
    assert flow.check_steps(1) == 1
    assert flow.check_steps(10_000) == 10_000
    with said("k=10,001: a walk takes at most 10,000 steps."):
        flow.check_steps(10_001)
    for k in (0, True, 1.0, "3"):
        with said(f"k={k!r}: a walk takes a whole number of steps, at least 1."):
            flow.check_steps(k)


def test_times_are_on_the_device_and_of_the_type_asked_for():
    assert flow.uniform_times(2, device=META).device == META
    assert flow.uniform_times(2).dtype == torch.float32
    assert flow.uniform_times(3, dtype=torch.float64).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-15)
    assert flow.random_times(3, 2, device=META).device == META
    assert flow.random_times(3, 2, torch.Generator().manual_seed(0), META).device == META
    first, again = (flow.random_times(4, 5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (5, 5)
    assert (first[:, 0] == 0).all()
    assert (first[:, -1] == 1).all()
    assert (first.diff(dim=-1) > 0).all()
    other = flow.random_times(4, 5, torch.Generator().manual_seed(2))
    assert not torch.equal(first, other)


def test_pairs_that_are_none_are_named():
    good = torch.zeros(3, 2)
    with said("Pairs must be two (N, D) tensors of one shape; got (3, 2) and (2, 2)."):
        check_pairs(good, good[:2])
    with said("x0 is torch.int64: convert it with .float()."):
        check_pairs(good.long(), good)
    with said("x1 is torch.int64: convert it with .float()."):
        check_pairs(good, good.long())
    bad = torch.tensor([[0.0, math.nan], [math.nan, math.inf], [1.0, 2.0]])
    with said("x0 has NaN or infinity in 2 of 3 points: remove or replace them first."):
        check_pairs(bad, good)
    with said("x1 has NaN or infinity in 2 of 3 points: remove or replace them first."):
        check_pairs(good, bad)
    with said("metric='city': choose one of euclidean, sqeuclidean, cosine."):
        cost_matrix(good, good, "city")
    check_pairs(good[:1], good[:1])


@pytest.mark.parametrize("n", [3, 256, 257, 300])
def test_costs_are_distances_to_the_last_digits(n):
    draw = torch.Generator().manual_seed(n)
    x0, x1 = (torch.randn(n, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    apart = (x0[:, None] - x1[None]).norm(dim=-1)
    torch.testing.assert_close(cost_matrix(x0, x1), apart, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(cost_matrix(x0, x1, "sqeuclidean"), apart.square(), atol=1e-5, rtol=1e-5)
    cosine = 1 - torch.nn.functional.cosine_similarity(x0[:, None], x1[None], dim=-1)
    torch.testing.assert_close(cost_matrix(x0, x1, "cosine"), cosine)
    assert cost_matrix(x0.float(), x1.float(), "cosine").dtype == torch.float64


def test_the_default_metric_is_the_distance_and_small_sets_are_exact():
    """With squares, the one long way counts more than the two short ones; and a point is no distance from itself."""
    x0, x1 = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert optimal_assignment(x0, x1).tolist() == [0, 1]  # 1 + 1 = 0 + 2: a tie keeps the given pairs
    assert optimal_assignment(x0, torch.tensor([[1.0], [2.1]])).tolist() == [0, 1]
    bend = torch.tensor([[1.0, 0.0], [2.0, 0.5]])
    x0 = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert optimal_assignment(x0, bend).tolist() == [1, 0]  # 0 + 2.06 is less than 1 + 1.12
    assert optimal_assignment(x0, bend, "sqeuclidean").tolist() == [0, 1]  # 0 + 4.25 is more than 1 + 1.25
    assert Coupling(x0, bend).optimal_transport().x1.tolist() == bend.flip(0).tolist()
    assert Coupling(x0, bend).optimal_transport("sqeuclidean").x1.tolist() == bend.tolist()
    far = 1e8 + torch.rand(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert cost_matrix(far, far).diagonal().abs().max() == 0


def test_ties_keep_the_given_pairs_whatever_the_scale():
    for scale in (1e-8, 1.0, 1e8):
        same = scale * torch.ones(40, 3, dtype=torch.float64)
        assert optimal_assignment(same, same).tolist() == list(range(40))
        line = scale * torch.arange(30, dtype=torch.float64)[:, None]
        assert optimal_assignment(line, line + scale).tolist() == list(range(30))  # every order costs the same
    cost = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    before = cost.clone()
    assert assign(cost).tolist() == [1, 0]
    assert torch.equal(cost, before)
    tiny = torch.tensor([[1.0 + 1e-9, 1.0], [1.0, 1.0]], dtype=torch.float64)
    assert assign(tiny).tolist() == [1, 0]  # a difference of 1e-9 is no tie


def test_an_independent_coupling_is_drawn_by_its_generator():
    x = torch.arange(50.0)[:, None]
    pairs = Coupling(x, x, torch.arange(50) % 5)
    first, again = (pairs.independent(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.x1, again.x1)
    assert not torch.equal(first.x1, pairs.independent(torch.Generator().manual_seed(4)).x1)
    assert sorted(first.x1.flatten().tolist()) == x.flatten().tolist()
    assert torch.equal(first.group, pairs.group)
    torch.manual_seed(0)
    one, two = pairs.independent(), pairs.independent()
    assert not torch.equal(one.x1, two.x1)


def test_lines_cross_in_space_and_points_meet_in_time():
    x0 = torch.tensor([[0.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
    x1 = torch.tensor([[2.0, 2.0], [2.0, 0.0], [6.0, 5.0]])
    pairs = Coupling(x0, x1)
    assert pairs.crossings().tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    near = pairs.closest_approach()
    assert near[0, 1].item() == near[1, 0].item() == pytest.approx(0.0, abs=1e-6)  # both at (1, 1) at t = 1/2
    assert near[0, 2].item() == pytest.approx(5.0)  # at t = 1: (2, 2) and (6, 5)
    assert near.diagonal().tolist() == [0.0, 0.0, 0.0]
    later = Coupling(x0, torch.tensor([[2.0, 2.0], [4.0, -2.0], [6.0, 5.0]]))  # crosses in space, not in time
    assert later.crossings()[0, 1]
    assert later.closest_approach()[0, 1].item() == pytest.approx(math.sqrt(0.4))  # at t = 0.3
    assert pairs.at(0.25).tolist() == [[0.5, 0.5], [0.5, 1.5], [5.25, 5.0]]
    with said("crossings() needs points in the plane; these have D = 3. Use closest_approach()."):
        Coupling(torch.zeros(2, 3), torch.zeros(2, 3)).crossings()
    touching = Coupling(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
    assert not touching.crossings().any()


def test_the_interval_of_a_ratio_is_drawn_by_its_generator_and_its_level():
    x0, noise = torch.randn(2, 60, 2, generator=torch.Generator().manual_seed(0))
    found = lft.recoupling_ratio(x0, x0 + 0.3 * noise)
    wide, narrow = (found.interval(level, 400, torch.Generator().manual_seed(1)) for level in (0.99, 0.5))
    assert wide[0] < narrow[0] <= found.ratio <= narrow[1] < wide[1]
    assert found.interval(generator=torch.Generator().manual_seed(2)) == found.interval(
        0.95, 1000, torch.Generator().manual_seed(2)
    )
    assert found.interval(0.95, 50, torch.Generator().manual_seed(2)) != found.interval(
        0.95, 1000, torch.Generator().manual_seed(2)
    )


def test_the_hybrid_draws_and_counts_for_both_its_losses():
    velocity = lambda x, t: x * flow.pad_t_like_x(flow.as_time(t, x), x)  # noqa: E731
    draw = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(6, 3, generator=draw), torch.randn(6, 3, generator=draw)
    goal = Hybrid(solver="euler", num_steps=2, alpha=0.3)
    times = goal.times(6, torch.Generator().manual_seed(5))
    walked = FlowWalking(solver="euler", num_steps=2)
    assert times.shape == (6, 4)
    assert not torch.equal(times, goal.times(6, torch.Generator().manual_seed(6)))
    expected = flow_walking_loss(velocity, x0, x1, 2, flow.euler_step, times=times[:, :-1])
    expected = expected + 0.3 * flow_matching_loss(velocity, x0, x1, times=times[:, -1])
    torch.testing.assert_close(goal.loss(velocity, x0, x1, times), expected)
    weight = torch.rand(6, 3, generator=draw)
    plain, heavy = (goal.loss(velocity, x0, x1, times, w) for w in (None, weight))
    assert plain != heavy
    torch.testing.assert_close(goal.loss(velocity, x0, x1, times, 2 * weight), heavy)
    assert (FlowMatching().evaluations(), walked.evaluations(), goal.evaluations()) == (1, 2, 3)
    assert Hybrid(solver="midpoint", num_steps=3).evaluations() == 7
    assert LogitKL().evaluations(lft.Flow("midpoint", 3)) == 6


def test_a_shortcut_s_step_by_hand():
    """From t = 0.25 to 0.75 with the mean velocity x (t + Δt): 2 + 0.5 · 2 · 0.75."""
    told = []

    def velocity(x, t, length):
        told.append((t.dtype, length.item()))
        return x * (t + length)

    x = torch.tensor([[2.0]], dtype=torch.float64)
    assert flow.shortcut_step(velocity, x, 0.25, 0.75).item() == 2.75
    assert told == [(torch.float64, 0.5)]
    times = torch.tensor([0.25, 0.5]), torch.tensor([0.75, 0.5])
    assert flow.shortcut_step(lambda x, t, d: x * d[:, None], torch.ones(2, 1), *times).tolist() == [[1.25], [1.0]]


def test_groups_of_a_coupling():
    x = torch.zeros(3, 2)
    assert Coupling(x, x).group.tolist() == [0, 1, 2]
    assert Coupling(x, x, torch.tensor([4, 4, 7], dtype=torch.int16)).group.tolist() == [4, 4, 7]
    with said("group has shape (2,): give one number per pair, (3,)."):
        Coupling(x, x, torch.zeros(2, dtype=torch.long))
    with said("group is torch.float32: labels are whole numbers; convert them with .long()."):
        Coupling(x, x, torch.zeros(3))


def test_a_line_that_parts_a_segment_s_ends_need_not_cross_it():
    pairs = Coupling(torch.tensor([[0.0, 0.0], [5.0, -1.0]]), torch.tensor([[1.0, 0.0], [5.0, 1.0]]))
    assert not pairs.crossings().any()  # the first *line* goes between the second's ends, the segment does not
    apart = Coupling(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.1]]))  # never nearer than at t = 0
    assert apart.closest_approach()[0, 1].item() == pytest.approx(1.0)
    small = Coupling(torch.tensor([[0.0], [0.1]]), torch.tensor([[0.1], [0.0]]))  # they meet, on a small scale
    assert small.closest_approach()[0, 1].item() == pytest.approx(0.0, abs=1e-7)


def test_ratios_are_resampled_by_the_generator_that_is_given():
    x0, noise = torch.randn(2, 60, 2, generator=torch.Generator().manual_seed(0))
    found = lft.recoupling_ratio(x0, x0 + 0.3 * noise)
    first, again = (found.interval(0.9, 37, torch.Generator().manual_seed(5)) for _ in range(2))
    assert first == again
    assert len({found.interval(0.9, 37, torch.Generator().manual_seed(seed)) for seed in range(6)}) > 1


def test_each_row_of_times_runs_one_way():
    x = torch.zeros(2, 1)
    there_and_back = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.5, 0.5]])
    assert len(flow.check_times(there_and_back, x)) == 3
    with pytest.raises(ValueError, match="times"):
        flow.check_times(torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.4, 0.5]]), x)
