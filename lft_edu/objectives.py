"""What a velocity is trained on.

The losses are functions of a velocity and of pairs ``x0``, ``x1``, ``(B, ..., D)``: where a point starts and where it
must end. Each is a *mean* of squared differences over samples and dimensions (the paper's squared norm divided by D:
the same minimizer, and a learning rate that does not depend on the width).

``weight`` scales each squared difference and broadcasts against ``x0``: ``(B, T, 1)`` leaves tokens out, ``(D,)``
weighs dimensions. The mean is taken over the weights, so a constant weight changes nothing.

An :class:`Objective` is a loss with its settings, as :func:`lft_edu.fit` wants it. A new one is one class.
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from .flow import (
    EVALUATIONS,
    STEPS,
    Step,
    Velocity,
    as_time,
    check_steps,
    euler_step,
    midpoint_step,
    pad_t_like_x,
    random_times,
    uniform_times,
    walk,
)
from .support import checks
from .support.errors import unknown_name_error


def mean_squared_error(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """``mean(weight · (prediction − target)²) / mean(weight)``, a scalar in float32 or wider.

    Raises:
        ValueError: prediction and target have different shapes: they would be broadcast to pairs that nobody meant.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"The velocity, or where it leads, has shape {tuple(prediction.shape)}; the target has "
            f"{tuple(target.shape)}: return a velocity shaped like x."
        )
    error = (prediction - target).to(torch.promote_types(prediction.dtype, torch.float32)).square()
    if weight is None:
        return error.mean()
    weight = weight.to(error).expand_as(error)
    return (weight * error).sum() / weight.sum()


def flow_matching_loss(
    velocity: Velocity,
    x0: Tensor,
    x1: Tensor,
    generator: torch.Generator | None = None,
    weight: Tensor | None = None,
    times: Tensor | None = None,
) -> Tensor:
    """Regress the velocity on straight lines at a random time (paper, eq. 3, alg. 1).

    ``E_t ‖u(x_t, t) − (x1 − x0)‖²`` with ``x_t = (1 − t) x0 + t x1`` and ``t ~ U(0, 1)``, one per sample; ``times``
    ``(B,)`` fixes the t instead.
    """
    _require_pairs(x0, x1)
    t = torch.rand(len(x0), generator=generator, device=_device(generator, x0)) if times is None else times
    t = as_time(t, x0)
    x_t = torch.lerp(x0, x1, pad_t_like_x(t, x0))
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
    """Walk ``k`` steps of the learned velocity and compare only the end (paper, eq. 8, alg. 2).

    The ``k − 1`` times in between are random, drawn again for each sample, so that the field holds for any grid.
    ``times`` fixes them instead, ``(k+1,)`` or ``(B, k+1)``. The gradient runs through every step.
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
    """``L_FW + α · L_FM``: end in the right place, on lines that prefer to be straight (paper, eq. 9)."""
    walking = flow_walking_loss(velocity, x0, x1, k, step, generator, weight)
    return walking + alpha * flow_matching_loss(velocity, x0, x1, generator, weight)


def regression_loss(velocity: Velocity, x0: Tensor, x1: Tensor, weight: Tensor | None = None) -> Tensor:
    """One full step from ``t = 0`` must land on ``x1``: ``‖x0 + u(x0, 0) − x1‖²``. The control for every flow.

    It is :func:`flow_walking_loss` with ``k = 1`` and Euler steps.
    """
    return flow_walking_loss(velocity, x0, x1, weight=weight, times=uniform_times(1, x0.device), step=euler_step)


def token_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher ‖ student) at each token: logits ``(B, T, V)`` → ``(B, T)``, in nats."""
    student, teacher = (x.float().log_softmax(-1) for x in (student_logits, teacher_logits))
    return (teacher.exp() * (teacher - student)).sum(-1)


def logit_kl_loss(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL(teacher ‖ student) of the next-token distributions, nats per token, computed in float32.

    Args:
        student_logits, teacher_logits: ``(B, T, V)``.
        mask: ``(B, T)``, 1 for tokens that count; None: all.
    """
    divergence = token_kl(student_logits, teacher_logits)
    if mask is None:
        return divergence.mean()
    return (divergence * mask).sum() / mask.sum()


class HeadKL(torch.autograd.Function):
    """:func:`logit_kl_loss` of the final states, before the frozen head that makes logits of them, part by part.

    The gradient in the student's logits is softmax(student) − softmax(teacher), so it is computed at once, and no more
    than ``rows`` tokens' logits are ever in memory.

    ``HeadKL.apply(student_states, teacher_states, head, rows)``: states ``(..., D)``, ``head`` a differentiable
    function of them, such as :class:`~lft_edu.heads.Head`.
    """

    @staticmethod
    def forward(ctx, student_states, teacher_states, head, rows=256):
        student, teacher = student_states.flatten(0, -2), teacher_states.flatten(0, -2)
        gradient, total = torch.empty_like(student), 0.0
        for s, t, g in zip(student.split(rows), teacher.split(rows), gradient.split(rows), strict=True):
            log_p = head(t).float().log_softmax(-1)
            with torch.enable_grad():
                s = s.detach().requires_grad_()
                logits = head(s.view_as(s))  # a leaf would be refused by hooks that count operations
            log_q = logits.detach().float().log_softmax(-1)
            p = log_p.exp()
            total = total + (p * (log_p - log_q)).sum()
            g.copy_(*torch.autograd.grad(logits, s, (log_q.exp_() - p).to(logits.dtype)))
        ctx.save_for_backward(gradient.div_(len(student)).view_as(student_states))
        return total / len(student)

    @staticmethod
    def backward(ctx, upstream):
        return upstream * ctx.saved_tensors[0], None, None, None


@dataclass(frozen=True)
class Objective:
    """A loss with its settings. Its random times are drawn apart from it, for a whole batch at once, so that a batch
    that is spread over processes or turns of gradient accumulation sees the times it would see in one piece.

    Attributes:
        name: on the command line and in results.
        timed: the velocity must know the time; ``latent``: it is trained on hidden states, not on logits.
        needs_path: :meth:`loss` takes the teacher's own states, ``path`` ``(J+1, B, ..., D)``, too.
    """

    name: ClassVar[str]
    timed: ClassVar[bool] = True
    latent: ClassVar[bool] = True

    @property
    def needs_path(self) -> bool:
        """Whether :meth:`loss` is to be given the teacher's own states between x0 and x1."""
        return False

    def resolve(self, operator) -> "Objective":
        """Take what is not set (None) from the operator: training then takes the walk that the student takes."""
        own = {} if operator is None else operator.settings
        missing = {f.name: own[f.name] for f in fields(self) if getattr(self, f.name) is None and f.name in own}
        return replace(self, **missing)

    def times(self, n: int, generator: torch.Generator | None = None) -> Tensor | None:
        """The random times of ``n`` samples, ``(n, ...)`` in [0, 1] on the generator's device; None: nothing random."""
        return None

    def loss(self, velocity: Velocity, x0: Tensor, x1: Tensor, times=None, weight: Tensor | None = None) -> Tensor:
        """The mean loss of pairs ``(B, ..., D)``, given :meth:`times` of theirs."""
        raise NotImplementedError

    def evaluations(self, operator=None) -> int:
        """Velocity evaluations that one training step takes."""
        return 1


INTERPOLANTS = ("line", "teacher", "start")


@dataclass(frozen=True)
class FlowMatching(Objective):
    """:func:`flow_matching_loss`.

    Args:
        beta: t ~ Beta(1, beta). 1: uniform; the larger, the nearer to t = 0; infinite: always t = 0, where it is
            regression.
        interpolant: what x_t is. ``"line"``: between x0 and x1; ``"teacher"``: the teacher's own state at the last
            depth before t, from which the velocity is to point at x1, ``(x1 − x_t) / (1 − t)``, as it does on a line;
            ``"start"``: x0 at every t, so that nothing of x1 is to be seen.
    """

    name = "flow_matching"
    beta: float = 1.0
    interpolant: str = "line"

    def __post_init__(self):
        if not self.beta > 0:
            raise ValueError(f"beta={self.beta!r}: Beta(1, beta) needs a number above 0; infinity is t = 0.")
        if self.interpolant not in INTERPOLANTS:
            raise unknown_name_error("interpolant", self.interpolant, INTERPOLANTS)

    @property
    def needs_path(self):
        return self.interpolant == "teacher"

    def times(self, n, generator=None):
        u = torch.rand(n, generator=generator, device=_device(generator))
        return u if self.beta == 1 else 1 - (1 - u) ** (1 / self.beta)  # the inverse of Beta's distribution function

    def loss(self, velocity, x0, x1, times=None, weight=None, path=None):
        if self.interpolant == "line":
            return flow_matching_loss(velocity, x0, x1, weight=weight, times=times)
        if self.interpolant == "start":
            return mean_squared_error(velocity(x0, as_time(times, x0)), x1 - x0, weight)
        parts = len(path) - 1
        depth = (times * parts).long().clamp(max=parts - 1)
        t, x_t = depth / parts, path[depth, torch.arange(len(x0), device=x0.device)]
        return mean_squared_error(velocity(x_t, t), (x1 - x_t) / (1 - pad_t_like_x(t, x_t)), weight)


@dataclass(frozen=True)
class FlowWalking(Objective):
    """:func:`flow_walking_loss`. ``num_steps`` (k) and ``solver`` of the walk; None: the student's own.

    ``waypoints``: take equal steps and compare the state after each with the teacher's at the matching depth, too. The
    span must have a multiple of k layers.
    """

    name = "flow_walking"
    num_steps: int | None = None
    solver: str | None = None
    waypoints: bool = False

    def __post_init__(self):
        if self.num_steps is not None:
            check_steps(self.num_steps)
        if self.solver is not None and self.solver not in STEPS:
            raise unknown_name_error("solver", self.solver, STEPS)

    @property
    def needs_path(self):
        return self.waypoints

    def times(self, n, generator=None):
        return None if self.waypoints else random_times(self.num_steps, n, generator)

    def loss(self, velocity, x0, x1, times=None, weight=None, path=None):
        if path is None:
            return flow_walking_loss(velocity, x0, x1, step=STEPS[self.solver], weight=weight, times=times)
        every, rest = divmod(len(path) - 1, self.num_steps)
        if rest:
            raise ValueError(f"{len(path) - 1} layers in {self.num_steps} steps: no layer ends where a step does.")
        walked = walk(velocity, x0, uniform_times(self.num_steps), STEPS[self.solver], return_path=True)
        errors = [mean_squared_error(x, y, weight) for x, y in zip(walked[1:], path[every::every], strict=True)]
        return torch.stack(errors).mean()

    def evaluations(self, operator=None):
        own = self.resolve(operator)
        return own.num_steps * EVALUATIONS[own.solver]


@dataclass(frozen=True)
class Hybrid(FlowWalking):
    """:func:`hybrid_loss`, Flow Walking plus ``alpha`` times flow matching."""

    name = "hybrid"
    alpha: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if self.waypoints:
            raise ValueError("A hybrid has no waypoints: use flow_walking.")
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha={self.alpha!r}: give a number of at least 0.")

    def times(self, n, generator=None):
        walking = super().times(n, generator)
        return torch.cat([walking, FlowMatching().times(n, generator)[:, None]], 1)

    def loss(self, velocity, x0, x1, times=None, weight=None):
        walking = super().loss(velocity, x0, x1, times[:, :-1], weight)
        return walking + self.alpha * flow_matching_loss(velocity, x0, x1, weight=weight, times=times[:, -1])

    def evaluations(self, operator=None):
        return super().evaluations(operator) + 1


@dataclass(frozen=True)
class Regression(Objective):
    """:func:`regression_loss`."""

    name = "regression"
    timed = False

    def loss(self, velocity, x0, x1, times=None, weight=None):
        return regression_loss(velocity, x0, x1, weight)


@dataclass(frozen=True)
class LogitKL(Objective):
    """:func:`logit_kl_loss` of whole models: the student's own walk, and the gradient through its tail."""

    name = "logit_kl"
    timed = False
    latent = False

    def evaluations(self, operator=None):
        return 1 if operator is None else operator.nfe


OBJECTIVES = {cls.name: cls for cls in (FlowMatching, FlowWalking, Hybrid, Regression, LogitKL)}


def make_objective(objective: str | Objective, **options) -> Objective:
    """An objective by name, with its settings.

    Raises:
        ValueError: an unknown name, or a setting that this objective does not have.
    """
    if isinstance(objective, Objective):
        return replace(objective, **options) if options else objective
    if checks.word("objective", objective) not in OBJECTIVES:
        raise unknown_name_error("objective", objective, OBJECTIVES)
    known = {f.name for f in fields(OBJECTIVES[objective])}
    if extra := sorted(set(options) - known):
        has = f"only {', '.join(sorted(known))}" if known else "no settings"
        raise ValueError(f"{', '.join(extra)}: objective {objective!r} has {has}. Leave it out.")
    return OBJECTIVES[objective](**options)


def named(objective: str, num_steps: int, solver: str) -> Objective:
    """An objective by name, its walk (if it takes one) of these steps."""
    known = {f.name for f in fields(OBJECTIVES[objective])} & {"num_steps", "solver"}
    walk = {"num_steps": num_steps, "solver": solver}
    return make_objective(objective, **{name: walk[name] for name in known})


def evaluations(objective: str, num_steps: int, solver: str) -> int:
    """Velocity evaluations in a training step of an objective by name; 0 for ``"solved"``, a closed form."""
    if objective == "solved":
        return 0
    return named("flow_walking" if objective == "logit_kl" else objective, num_steps, solver).evaluations()


def _device(generator: torch.Generator | None, x: Tensor | None = None):
    """Where to draw: on the generator's device, else beside ``x``."""
    return generator.device if generator is not None else None if x is None else x.device


def _require_pairs(x0: Tensor, x1: Tensor) -> None:
    if not isinstance(x0, Tensor) or not isinstance(x1, Tensor):
        raise ValueError(f"x0 is a {type(x0).__name__}, x1 a {type(x1).__name__}: give two tensors of one shape.")
    if not (x0.is_floating_point() and x1.is_floating_point()) or x0.device.type != x1.device.type:
        what = f"x0 is {x0.dtype} on {x0.device}, x1 {x1.dtype} on {x1.device}"
        raise ValueError(f"{what}: give real numbers, .float(), on one device.")
    if x0.shape != x1.shape:
        raise ValueError(f"x0 {tuple(x0.shape)} and x1 {tuple(x1.shape)} are not pairs: their shapes must agree.")
