"""The exact values at the edges of the objectives: weights, generators, limits, messages. Found by `make mutation`."""

import re

import pytest
import torch

import lft_edu as lft
from lft_edu import flow
from lft_edu.objectives import (
    FlowMatching,
    FlowWalking,
    HeadKL,
    Hybrid,
    LogitKL,
    Regression,
    _device,
    evaluations,
    flow_matching_loss,
    flow_walking_loss,
    hybrid_loss,
    logit_kl_loss,
    mean_squared_error,
    regression_loss,
)

X0, X1 = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
ONE_ROW = torch.tensor([[1.0]] + [[0.0]] * 5).expand(6, 3)
META = torch.device("meta")


def said(words: str):
    return pytest.raises(ValueError, match=f"^{re.escape(words)}$")


def velocity(x, t):
    return torch.sin(x) * (1 + flow.pad_t_like_x(flow.as_time(t, x), x))


def drawn(goal, seed=3):
    return goal.times(6, torch.Generator().manual_seed(seed))


def test_an_error_is_a_weighted_mean_in_float32_or_wider():
    with said(
        "The velocity, or where it leads, has shape (6, 1); the target has (6, 3): return a velocity shaped like x."
    ):
        mean_squared_error(X0[:, :1], X1)
    half = mean_squared_error(X0.bfloat16(), X1.bfloat16(), WEIGHT.double())
    assert half.dtype == torch.float32
    assert mean_squared_error(X0.double(), X1.double()).dtype == torch.float64
    expected = (WEIGHT * (X0 - X1).square()).sum() / WEIGHT.sum()
    torch.testing.assert_close(mean_squared_error(X0, X1, WEIGHT), expected)
    torch.testing.assert_close(
        mean_squared_error(X0, X1, WEIGHT[0]), (WEIGHT[0] * (X0 - X1).square()).sum() / (6 * WEIGHT[0].sum())
    )


GOALS = [
    FlowMatching(),
    FlowMatching(beta=3.0),
    FlowMatching(interpolant="start"),
    FlowMatching(interpolant="teacher"),
    FlowWalking(num_steps=2, solver="euler"),
    FlowWalking(num_steps=2, solver="midpoint"),
    FlowWalking(num_steps=2, solver="euler", waypoints=True),
    Hybrid(num_steps=2, solver="euler"),
    Regression(),
]


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: repr(goal)[:60])
def test_a_weight_of_one_row_is_the_loss_of_that_row(goal):
    """What is left out by a weight of 0 has no say, in any objective."""
    times, path = drawn(goal), {}
    if goal.needs_path:
        path["path"] = torch.stack([X0, torch.lerp(X0, X1, 0.5), X1])
    whole = goal.loss(velocity, X0, X1, times, **path)
    weighted = goal.loss(velocity, X0, X1, times, ONE_ROW, **path)
    first = {name: one[:, :1] for name, one in path.items()}
    alone = goal.loss(velocity, X0[:1], X1[:1], None if times is None else times[:1], **first)
    torch.testing.assert_close(weighted, alone)
    assert (whole - alone).abs() > 1e-4


@pytest.mark.parametrize("goal", [g for g in GOALS if drawn(g) is not None], ids=lambda goal: repr(goal)[:60])
def test_times_are_the_generator_s(goal):
    assert torch.equal(drawn(goal), drawn(goal))
    assert not torch.equal(drawn(goal), drawn(goal, seed=4))
    assert len(drawn(goal)) == 6
    if goal.name == "hybrid":  # both of its parts
        assert all(
            not torch.equal(a, b)
            for a, b in zip(drawn(goal).T[1:], drawn(goal, seed=4).T[1:], strict=True)
            if a.std() > 0
        )


def test_the_functions_draw_and_weigh_as_the_objectives_do():
    for loss in (flow_matching_loss, flow_walking_loss, hybrid_loss):
        one, same = (loss(velocity, X0, X1, generator=torch.Generator().manual_seed(5)) for _ in range(2))
        heavy = loss(velocity, X0, X1, generator=torch.Generator().manual_seed(5), weight=ONE_ROW)
        assert one == same
        assert one != loss(velocity, X0, X1, generator=torch.Generator().manual_seed(6))
        assert one != heavy
    draw = torch.Generator().manual_seed(5)
    walking = flow_walking_loss(velocity, X0, X1, 3, flow.midpoint_step, draw, ONE_ROW)
    by_hand = walking + 0.1 * flow_matching_loss(velocity, X0, X1, draw, ONE_ROW)
    found = hybrid_loss(velocity, X0, X1, generator=torch.Generator().manual_seed(5), weight=ONE_ROW)
    torch.testing.assert_close(found, by_hand)
    torch.testing.assert_close(regression_loss(velocity, X0, X1), (X0 + torch.sin(X0) - X1).square().mean())
    still = lambda x, t: torch.zeros_like(x)  # noqa: E731
    on_meta = X0.to(META)
    for loss in (flow_walking_loss, regression_loss):
        assert loss(still, on_meta, on_meta).device == META


def test_where_times_are_drawn():
    cpu = torch.Generator()
    assert _device(cpu, X0.to(META)) == cpu.device
    assert _device(None, X0.to(META)) == META
    assert _device(cpu) == cpu.device
    assert _device(None) is None


def test_what_objectives_refuse_and_in_which_words():
    with pytest.raises(ValueError, match=r"[Ii]nterpolant.*'curve'.*line, teacher, start"):
        FlowMatching(interpolant="curve")
    with said("A hybrid has no waypoints: use flow_walking."):
        Hybrid(waypoints=True)
    for alpha in (-0.1, float("inf"), float("nan")):
        with said(f"alpha={alpha!r}: give a number of at least 0."):
            Hybrid(alpha=alpha)
    assert Hybrid(alpha=0).alpha == 0
    assert drawn(FlowMatching(beta=1.0)).tolist() == torch.rand(6, generator=torch.Generator().manual_seed(3)).tolist()
    twice = 1 - (1 - drawn(FlowMatching())) ** 0.5
    torch.testing.assert_close(drawn(FlowMatching(beta=2.0)), twice)


def test_what_a_training_step_costs():
    flow3 = lft.Flow("midpoint", 3)
    assert (FlowMatching().evaluations(flow3), Regression().evaluations(flow3)) == (1, 1)
    assert (FlowWalking().evaluations(flow3), Hybrid().evaluations(flow3)) == (6, 7)
    assert (LogitKL().evaluations(), LogitKL().evaluations(flow3)) == (1, 6)
    assert [evaluations(name, 3, "midpoint") for name in ("flow_matching", "flow_walking", "hybrid", "regression")] == [
        1, 6, 7, 1,
    ]  # fmt: skip
    assert [evaluations(name, 2, "euler") for name in ("flow_walking", "hybrid", "logit_kl")] == [2, 3, 2]


def test_kl_of_states_goes_part_by_part_through_any_head():
    head = torch.nn.Linear(3, 7).requires_grad_(False)
    student = X0.clone().requires_grad_()
    for rows in (1, 2, 4, 6, 256):
        found = HeadKL.apply(student, X1, head, rows)
        (gradient,) = torch.autograd.grad(found, student)
        expected = logit_kl_loss(head(student), head(X1))
        torch.testing.assert_close(found, expected.detach(), check_dtype=False)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0], atol=1e-7, rtol=1e-4)
    with pytest.raises(ValueError, match="zip"):
        HeadKL.apply(student, X1[:3], head, 2)
