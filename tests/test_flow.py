"""Solvers against exact solutions; losses against formulas written a second time."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lft_edu import objectives
from lft_edu.flow import STEPS, euler_step, midpoint_step, random_times, uniform_times, walk

ROTATION = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)


def rotate(x, t):
    return math.pi / 2 * x @ ROTATION.T


def final_error(step, k):
    x0 = torch.tensor([[1.0, 0.0], [0.3, -2.0]], dtype=torch.float64)
    return (walk(rotate, x0, uniform_times(k), step) - x0 @ ROTATION.T).norm().item()


@pytest.mark.parametrize(("step", "order"), [(euler_step, 1), (midpoint_step, 2)])
def test_order_of_convergence(step, order):
    slope = math.log2(final_error(step, 64) / final_error(step, 128))
    assert abs(slope - order) < 0.05


def test_midpoint_looks_at_half_time():
    """du/dt = 2t integrates to 1 exactly by the midpoint rule, to 0 by one Euler step."""
    field = lambda x, t: 2 * t * torch.ones_like(x)  # noqa: E731
    x = torch.zeros(4, 3)
    assert torch.allclose(midpoint_step(field, x, 0, 1), torch.ones(4, 3))
    assert torch.equal(euler_step(field, x, 0, 1), x)


@given(
    batch=st.integers(1, 5),
    middle=st.lists(st.integers(1, 3), max_size=2),
    k=st.integers(1, 6),
    name=st.sampled_from(["euler", "midpoint"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_constant_fields_are_exact_for_any_shape_and_type(batch, middle, k, name, dtype):
    shift = torch.arange(2, dtype=dtype) + 1
    x0 = torch.zeros(batch, *middle, 2, dtype=dtype)
    end = walk(lambda x, t: shift.expand_as(x), x0, random_times(k, batch), STEPS[name])
    assert end.dtype == dtype
    assert end.shape == x0.shape
    assert torch.allclose(end.float(), shift.expand_as(x0).float(), atol=0.05 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("b", [0.5, 1.0, 3.0, 10.0])
def test_times_of_flow_matching_follow_beta(b):
    times = objectives.FlowMatching(beta=b).times(200_000, torch.Generator().manual_seed(0)).double()
    assert ((times >= 0) & (times <= 1)).all()
    assert abs(times.mean() - 1 / (1 + b)) < 0.003
    assert abs(times.var() - b / ((1 + b) ** 2 * (2 + b))) < 0.003


def test_flow_matching_at_the_start_alone_is_regression():
    x0, x1 = torch.randn(2, 6, 5, 3, generator=torch.Generator().manual_seed(0))
    field = lambda x, t: x * 0.3 + objectives.pad_t_like_x(objectives.as_time(t, x), x)  # noqa: E731
    start = objectives.FlowMatching(beta=math.inf)
    times = start.times(6, torch.Generator().manual_seed(0))
    assert times.eq(0).all()
    assert torch.allclose(start.loss(field, x0, x1, times), objectives.regression_loss(field, x0, x1))


def test_flow_matching_through_states_on_a_line_is_flow_matching():
    """The teacher's states replace the line; where they lie on it, at their own times, nothing changes."""
    x0, x1 = torch.randn(2, 6, 5, 3, generator=torch.Generator().manual_seed(0))
    path = torch.stack([torch.lerp(x0, x1, j / 4) for j in range(5)])
    field = lambda x, t: x * 0.3 + objectives.pad_t_like_x(objectives.as_time(t, x), x)  # noqa: E731
    drawn = torch.tensor([0.0, 0.2, 0.3, 0.6, 0.9, 1.0])
    at = torch.tensor([0.0, 0.0, 0.25, 0.5, 0.75, 0.75])  # the last state before each
    found = objectives.FlowMatching(interpolant="teacher").loss(field, x0, x1, drawn, path=path)
    assert torch.allclose(found, objectives.FlowMatching().loss(field, x0, x1, at), atol=1e-6)
    path[1] += 1  # and where they do not, it does
    assert not torch.allclose(
        found, objectives.FlowMatching(interpolant="teacher").loss(field, x0, x1, drawn, path=path)
    )


def test_times_without_motion_are_regression_at_every_time():
    x0, x1 = torch.randn(2, 6, 5, 3, generator=torch.Generator().manual_seed(0))
    goal = objectives.FlowMatching(interpolant="start")
    assert not goal.needs_path
    found = goal.loss(lambda x, t: x * 0.3, x0, x1, goal.times(6, torch.Generator().manual_seed(0)))
    assert torch.allclose(found, objectives.regression_loss(lambda x, t: x * 0.3, x0, x1))


def test_waypoints_are_compared_after_each_step():
    x0 = torch.zeros(2, 3)
    path = torch.stack([x0, x0 + 5, x0 + 1, x0 + 5, x0 + 2])  # after half the way 1, at the end 2
    goal = objectives.FlowWalking(num_steps=2, solver="euler", waypoints=True)
    assert goal.needs_path
    assert goal.times(2) is None
    steady = lambda x, t: torch.full_like(x, 2.0)  # noqa: E731
    assert goal.loss(steady, x0, path[-1], path=path) == 0
    late = lambda x, t: torch.full_like(x, 4.0) * float(t)  # stays, then moves by 1: both wrong by 1  # noqa: E731
    assert goal.loss(late, x0, path[-1], path=path) == 1
    with pytest.raises(ValueError, match="4 layers in 3 steps"):
        objectives.FlowWalking(num_steps=3, solver="euler", waypoints=True).loss(steady, x0, path[-1], path=path)


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (objectives.FlowMatching, {"beta": 0}, "above 0"),
        (objectives.FlowMatching, {"beta": -1.0}, "above 0"),
        (objectives.FlowMatching, {"beta": float("nan")}, "above 0"),
        (objectives.FlowMatching, {"interpolant": "lines"}, "Did you mean 'line'|line, teacher"),
        (objectives.Hybrid, {"waypoints": True}, "no waypoints"),
    ],
)
def test_what_an_objective_cannot_do_is_refused(cls, options, words):
    with pytest.raises(ValueError, match=words):
        cls(**options)


def test_times_reach_the_field_one_per_sample():
    seen = []
    times = torch.tensor([[0.0, 0.25, 1.0], [0.0, 0.5, 1.0]])
    walk(lambda x, t: seen.append(t) or torch.zeros_like(x), torch.zeros(2, 5, 3), times, euler_step)
    assert torch.equal(torch.stack(seen), times[:, :-1].T)


def test_path_holds_every_state():
    path = walk(rotate, torch.ones(3, 2, dtype=torch.float64), uniform_times(4), return_path=True)
    assert path.shape == (5, 3, 2)
    assert torch.equal(path[0], torch.ones(3, 2))
    assert torch.equal(path[-1], walk(rotate, path[0], uniform_times(4)))


@given(k=st.integers(1, 9), batch=st.integers(1, 20), seed=st.integers(0, 99))
def test_random_times_are_sorted_from_zero_to_one(k, batch, seed):
    times = random_times(k, batch, torch.Generator().manual_seed(seed))
    assert times.shape == (batch, k + 1)
    assert (times[:, 0] == 0).all()
    assert (times[:, -1] == 1).all()
    assert (times.diff(dim=1) >= 0).all()


def test_nested_lists_are_times_too():
    x0 = torch.ones(2, 2, dtype=torch.float64)
    rows = [[0.0, 0.3, 1.0], [0.0, 0.6, 1.0]]
    assert torch.equal(walk(rotate, x0, rows), walk(rotate, x0, torch.tensor(rows, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([0.0, 0.7, 0.3, 1.0], "one direction"),
        ([0.0, 1.5], "lie in"),
        ([-0.1, 1.0], "lie in"),
        ([0.0, float("nan")], "lie in"),
        ([0.0], "at least 2"),
        (torch.zeros(3, 2), "3 rows for a batch of 2"),
        ([[1.0, 0.5, 0.0], [1.0, 0.0, 0.5]], "one direction"),
    ],
)
def test_bad_times_are_refused(times, words):
    with pytest.raises(ValueError, match=words):
        walk(rotate, torch.zeros(2, 2), times)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, None])
def test_bad_k_is_refused(k):
    with pytest.raises(ValueError, match="at least 1"):
        uniform_times(k)


def test_a_time_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="one time per sample"):
        euler_step(rotate, torch.zeros(2, 2), torch.zeros(3), 1.0)


# --- objectives ---------------------------------------------------------------------------------------------------


class Field(torch.nn.Module):
    """A little network of x and t, in float64."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()

    def forward(self, x, t):
        return self.net(torch.cat([x, t.reshape(-1, 1).expand(len(x), 1).to(x)], -1))


@pytest.fixture
def field():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Field()


@pytest.fixture
def pairs(generator):
    return torch.randn(6, 3, generator=generator).double(), torch.randn(6, 3, generator=generator).double()


def test_flow_matching_loss_is_its_formula(field, pairs):
    x0, x1 = pairs
    t = torch.rand(6, generator=torch.Generator().manual_seed(9)).double()
    expected = 0.0
    for i in range(6):
        x_t = (1 - t[i]) * x0[i] + t[i] * x1[i]
        expected += ((field(x_t[None], t[i]) - (x1[i] - x0[i])) ** 2).sum() / 18
    found = objectives.flow_matching_loss(field, x0, x1, torch.Generator().manual_seed(9))
    assert torch.allclose(found, expected, rtol=1e-10)


def test_flow_walking_loss_is_its_formula(field, pairs):
    x0, x1 = pairs
    inner = torch.rand(6, 2, generator=torch.Generator().manual_seed(9)).sort(1).values
    expected = 0.0
    for i in range(6):
        x, edges = x0[i : i + 1], [0.0, *inner[i].double().tolist(), 1.0]
        for a, b in itertools.pairwise(edges):
            half = x + (b - a) / 2 * field(x, torch.tensor(a))
            x = x + (b - a) * field(half, torch.tensor((a + b) / 2))
        expected += ((x - x1[i]) ** 2).sum() / 18
    found = objectives.flow_walking_loss(field, x0, x1, k=3, generator=torch.Generator().manual_seed(9))
    assert torch.allclose(found, expected, rtol=1e-6)


def test_hybrid_is_walking_plus_alpha_matching(field, pairs):
    g = torch.Generator().manual_seed(9)
    expected = objectives.flow_walking_loss(field, *pairs, generator=g)
    expected = expected + 0.3 * objectives.flow_matching_loss(field, *pairs, generator=g)
    found = objectives.hybrid_loss(field, *pairs, alpha=0.3, generator=torch.Generator().manual_seed(9))
    assert torch.equal(found, expected)


def test_one_euler_step_of_walking_is_regression(field, pairs):
    walking = objectives.flow_walking_loss(field, *pairs, k=1, step=euler_step)
    by_hand = (pairs[0] + field(pairs[0], torch.zeros(6)) - pairs[1]).square().mean()
    assert torch.allclose(walking, objectives.regression_loss(field, *pairs), rtol=1e-12)
    assert torch.allclose(walking, by_hand, rtol=1e-12)


def test_gradient_runs_through_every_step_of_the_walk(pairs):
    scales = torch.ones(6, requires_grad=True)
    calls = iter(range(6))
    objectives.flow_walking_loss(lambda x, t: x * scales[next(calls)], *pairs, k=3).backward()
    assert (scales.grad.abs() > 0).all()


def test_weights_leave_tokens_out_and_constants_change_nothing(field, pairs):
    g = lambda: torch.Generator().manual_seed(9)  # noqa: E731
    plain = objectives.flow_matching_loss(field, *pairs, g())
    assert torch.allclose(plain, objectives.flow_matching_loss(field, *pairs, g(), torch.full((3,), 7.0)))
    keep = torch.tensor([1.0, 1, 1, 0, 0, 0])[:, None]
    halves = [objectives.regression_loss(field, pairs[0][a], pairs[1][a]) for a in (slice(0, 3), slice(3, 6))]
    assert torch.allclose(objectives.regression_loss(field, *pairs, weight=keep), halves[0])
    assert not torch.allclose(halves[0], halves[1])


def test_logit_kl_is_teacher_first_in_nats(generator):
    student, teacher = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    p, q = teacher.softmax(-1), student.softmax(-1)
    by_hand = (p * (p / q).log()).sum(-1)
    assert torch.allclose(objectives.logit_kl_loss(student, teacher), by_hand.mean(), atol=1e-6)
    mask = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
    expected = (by_hand[0, 0] + by_hand[1, 2]) / 2
    assert torch.allclose(objectives.logit_kl_loss(student, teacher, mask), expected, atol=1e-6)
    assert objectives.logit_kl_loss(teacher, teacher).abs() < 1e-6


def test_pairs_must_be_pairs(field):
    for loss in (objectives.flow_matching_loss, objectives.flow_walking_loss, objectives.regression_loss):
        with pytest.raises(ValueError, match="not pairs"):
            loss(field, torch.zeros(4, 3), torch.zeros(5, 3))


def test_randomness_comes_from_the_generator_alone(field, pairs):
    before = torch.get_rng_state()
    for loss in (objectives.flow_matching_loss, objectives.flow_walking_loss, objectives.hybrid_loss):
        a, b = (loss(field, *pairs, generator=torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(a, b)
    assert torch.equal(before, torch.get_rng_state())
