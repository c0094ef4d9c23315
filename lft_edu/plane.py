"""Train and evaluate small velocity networks on points in the plane, with the losses of :mod:`lft_edu.objectives` and
the solvers of :mod:`lft_edu.flow`.

Several networks can be trained side by side as *copies*: same pairs, same batches, different initializations. A claim
about training should hold for more than one of them.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .couplings import Coupling
from .flow import Step, as_time, midpoint_step, pad_t_like_x, uniform_times, walk
from .support.progress import progress_bar

Loss = Callable[..., Tensor]  # (velocity, x0, x1, generator=...) → scalar


class VelocityMLP(torch.nn.Module):
    """A velocity network ``u(x, t)``: an MLP with two hidden layers and SiLU.

    Maps ``x`` ``(B, D)``, or ``(B, copies, D)`` for several networks, and t in [0, 1] to velocities shaped like ``x``.

    Args:
        dimension: D. width: of the hidden layers. copies: number of networks.
        generator: for the initialization; torch's global one if None.
    """

    def __init__(self, dimension: int = 2, width: int = 64, copies: int = 1, generator=None, device=None):
        super().__init__()
        sizes = list(itertools.pairwise([dimension + 1, width, width, dimension]))
        self.dimension, self.width, self.copies = dimension, width, copies

        def uniform(*shape, inputs):  # the initialization of torch.nn.Linear
            drawn = torch.rand(*shape, generator=generator) * 2 - 1
            return torch.nn.Parameter((drawn / inputs**0.5).to(device))

        self.weights = torch.nn.ParameterList([uniform(copies, a, b, inputs=a) for a, b in sizes])
        self.biases = torch.nn.ParameterList([uniform(copies, 1, b, inputs=a) for a, b in sizes])

    def forward(self, x: Tensor, t: float | Tensor) -> Tensor:
        x = x[:, None] if (single := x.ndim == 2) else x
        time = pad_t_like_x(as_time(t, x), x).expand(*x.shape[:-1], 1)
        hidden = torch.cat([x, time], -1).transpose(0, 1)  # (copies, B, D + 1): one matrix product for all copies
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, torch.nn.functional.silu(hidden) if i else hidden, weight)
        velocity = hidden.transpose(0, 1)
        return velocity[:, 0] if single else velocity

    def one(self, i: int = 0) -> "VelocityMLP":
        """Return copy ``i`` as a network by itself.

        Raises:
            ValueError: there is no such copy.
        """
        if not 0 <= i < self.copies:
            raise ValueError(f"i={i}: give a copy from 0 to {self.copies - 1}.")
        alone = VelocityMLP(self.dimension, self.width, device=self.weights[0].device)
        alone.load_state_dict({name: value[i : i + 1] for name, value in self.state_dict().items()})
        return alone


@dataclass
class Trained:
    """A trained network ``velocity`` and its ``losses``, one per step (the mean over copies)."""

    velocity: VelocityMLP
    losses: list[float]

    @property
    def steps(self) -> list[int]:
        return list(range(1, len(self.losses) + 1))

    def kept(self, pairs: Coupling, k: int, step: Step = midpoint_step) -> Tensor:
        """Return the fraction of points that ``k`` steps take to their own group, for each copy, ``(copies,)``."""
        return pairs_kept(carry(self.velocity, pairs.x0, k, step), pairs)


def train(
    pairs: Coupling,
    loss: Loss,
    steps: int = 1500,
    batch: int = 256,
    lr: float = 3e-3,
    copies: int = 1,
    width: int = 64,
    seed: int = 0,
    velocity: VelocityMLP | None = None,
    watch: Callable[[int, float, VelocityMLP], object] | None = None,
    progress: bool = True,
) -> Trained:
    """Train a small velocity network on pairs with Adam and a cosine learning-rate schedule that ends at zero.

    Args:
        loss: one of :mod:`lft_edu.objectives`, its options bound with ``functools.partial``.
        steps: optimizer steps. batch: pairs per step. lr: initial learning rate.
        copies: networks trained side by side.
        width: of the hidden layers.
        seed: of the initialization and of the batches.
        velocity: train this network, in place, instead of a new one.
        watch: called as ``watch(step, loss, velocity)`` after each step; training stops when it returns True.
        progress: show a progress bar.
    """
    generator = torch.Generator().manual_seed(seed)
    device = pairs.x0.device
    velocity = velocity or VelocityMLP(pairs.x0.shape[1], width, copies, generator, device)
    optimizer = torch.optim.Adam(velocity.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for step in progress_bar(range(1, steps + 1), desc="training", unit="step", disable=not progress, leave=False):
        rows = torch.randint(len(pairs), (batch,), generator=generator).to(device)
        x0, x1 = (expand_to_copies(x[rows], velocity) for x in (pairs.x0, pairs.x1))
        value = loss(velocity, x0, x1, generator=generator)
        optimizer.zero_grad()
        value.backward()  # the mean over copies scales each gradient; Adam is invariant to that
        optimizer.step()
        schedule.step()
        losses.append(value.item())
        if watch is not None and watch(step, losses[-1], velocity):
            break
    return Trained(velocity, losses)


def expand_to_copies(x: Tensor, velocity) -> Tensor:
    """Expand ``x`` ``(B, D)`` to ``(B, copies, D)`` for a network with copies; return ``x`` itself for a single one."""
    copies = getattr(velocity, "copies", 1)
    return x if copies == 1 else x[:, None].expand(-1, copies, -1)


@torch.no_grad()
def carry(velocity, x0: Tensor, k: int, step: Step = midpoint_step, return_path: bool = False) -> Tensor:
    """Integrate the velocity from ``x0`` ``(N, D)`` in ``k`` equal steps.

    Returns:
        The end points, ``(N, D)``, or ``(N, copies, D)`` for a network with copies; with ``return_path`` all k + 1
        states along a new first axis.
    """
    return walk(velocity, expand_to_copies(x0, velocity), uniform_times(k), step, return_path)


def pairs_kept(ends: Tensor, pairs: Coupling) -> Tensor:
    """Return the fraction of points whose nearest target ``x1`` is of their own *group*.

    Neither the exact partner nor the distance to it counts: see :func:`coupling_error` too.

    Args:
        ends: ``(N, D)``, or ``(N, copies, D)`` for one fraction per copy.
    """
    nearest = torch.cdist(ends if ends.ndim == 2 else ends.transpose(0, 1), pairs.x1).argmin(-1)  # (..., N)
    return (pairs.group[nearest] == pairs.group).float().mean(-1)


def coupling_error(ends: Tensor, pairs: Coupling) -> Tensor:
    """Return the mean ``‖end − x1‖²`` over the variance of ``x1``: 0 at the partners, 1 at the mean of the targets.

    Args:
        ends: ``(N, D)``, or ``(N, copies, D)`` for one number per copy.
    """
    x1 = pairs.x1 if ends.ndim == 2 else pairs.x1[:, None]
    return (ends - x1).square().sum(-1).mean(0) / (pairs.x1 - pairs.x1.mean(0)).square().sum(-1).mean()
