"""What a velocity field is trained on.

``x0`` and ``x1`` are pairs, ``(B, ..., D)``: where a point starts and where it must end. Every loss is a *mean* of
squared differences over samples and dimensions (the paper's squared norm divided by D: the same minimiser, and a
learning rate that does not depend on the width).

``weight`` scales each squared difference and broadcasts against ``x0``: ``(B, T, 1)`` leaves tokens out,
``(D,)`` weighs dimensions. The mean is taken over the weights, so a constant weight changes nothing.
"""

import torch
from torch import Tensor

from .flow import (
    EVALUATIONS,
    Step,
    Velocity,
    as_time,
    draw_uniform,
    euler_step,
    expand_time,
    midpoint_step,
    random_times,
    uniform_times,
    walk,
)


def mean_squared_error(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """``mean(weight · (prediction − target)²) / mean(weight)``, a scalar in float32 or wider."""
    error = (prediction - target).to(torch.promote_types(prediction.dtype, torch.float32)).square()
    if weight is None:
        return error.mean()
    weight = weight.to(error).expand_as(error)
    return (weight * error).sum() / weight.sum()


def flow_matching_loss(
    velocity: Velocity, x0: Tensor, x1: Tensor, generator: torch.Generator | None = None, weight: Tensor | None = None
) -> Tensor:
    """Regress the velocity on straight lines at a random time (paper, eq. 3, alg. 1).

    ``E_t ‖u(x_t, t) − (x1 − x0)‖²`` with ``x_t = (1 − t) x0 + t x1`` and ``t ~ U(0, 1)``, one per sample.
    """
    _require_pairs(x0, x1)
    t = as_time(draw_uniform((len(x0),), generator, x0.device), x0)
    x_t = torch.lerp(x0, x1, expand_time(t, x0))
    return mean_squared_error(velocity(x_t, t), x1 - x0, weight)


def flow_walking_loss(
    velocity: Velocity,
    x0: Tensor,
    x1: Tensor,
    k: int = 3,
    step: Step = midpoint_step,
    generator: torch.Generator | None = None,
    weight: Tensor | None = None,
    times: Tensor | None = None,
) -> Tensor:
    """Walk ``k`` steps of the learned velocity and compare the end alone (paper, eq. 8, alg. 2).

    The ``k − 1`` times in between are random, anew for each sample, so that the field holds for any grid.
    ``times`` fixes them instead, ``(K+1,)`` or ``(B, K+1)``. The gradient runs through every step.
    """
    _require_pairs(x0, x1)
    if times is None:
        times = random_times(k, len(x0), generator, x0.device)
    return mean_squared_error(walk(velocity, x0, times, step), x1, weight)


def hybrid_loss(
    velocity: Velocity,
    x0: Tensor,
    x1: Tensor,
    alpha: float = 0.1,
    k: int = 3,
    step: Step = midpoint_step,
    generator: torch.Generator | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """``L_FW + α · L_FM``: end in the right place, on lines that want to be straight (paper, eq. 9)."""
    walking = flow_walking_loss(velocity, x0, x1, k, step, generator, weight)
    return walking + alpha * flow_matching_loss(velocity, x0, x1, generator, weight)


def regression_loss(velocity: Velocity, x0: Tensor, x1: Tensor, weight: Tensor | None = None) -> Tensor:
    """One full step from ``t = 0`` must land on ``x1``: ``‖x0 + u(x0, 0) − x1‖²``. The control for every flow.

    It is :func:`flow_walking_loss` with ``k = 1`` and Euler steps.
    """
    return flow_walking_loss(velocity, x0, x1, weight=weight, times=uniform_times(1, x0.device), step=euler_step)


def logit_kl_loss(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL(teacher ‖ student) of the next-token distributions, nats per token, computed in float32.

    Args:
        student_logits, teacher_logits: ``(B, T, V)``.
        mask: ``(B, T)``, 1 for tokens that count; all, if None.
    """
    divergence = token_kl(student_logits, teacher_logits)
    if mask is None:
        return divergence.mean()
    return (divergence * mask).sum() / mask.sum()


def token_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher ‖ student) at each token, ``(B, T)``, in nats."""
    student, teacher = (x.float().log_softmax(-1) for x in (student_logits, teacher_logits))
    return (teacher.exp() * (teacher - student)).sum(-1)


def _require_pairs(x0: Tensor, x1: Tensor) -> None:
    if x0.shape != x1.shape:
        raise ValueError(f"x0 {tuple(x0.shape)} and x1 {tuple(x1.shape)} are not pairs: their shapes must agree.")


OBJECTIVES = ("flow_matching", "flow_walking", "hybrid", "regression", "logit_kl")


def evaluations(objective: str, k: int, solver: str) -> int:
    """Velocity evaluations in one training step of an objective; ``"solved"``, a closed form, needs none."""
    walk = k * EVALUATIONS[solver]
    counts = {"solved": 0, "regression": 1, "flow_matching": 1}
    return (counts | {"flow_walking": walk, "hybrid": walk + 1, "logit_kl": walk})[objective]
