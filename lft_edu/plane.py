"""Flows small enough to watch: a velocity network of two hidden layers, its training, and where points end.

The losses are those of :mod:`lft_edu.objectives`, the walk is that of :mod:`lft_edu.flow`; nothing here is special to
the plane but the size of the network.

Several networks can be trained side by side, as *copies*: same pairs, same batches, another random start each. A
claim about training should hold for more than one of them.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .couplings import Coupling
from .flow import Step, as_time, midpoint_step, pad_t_like_x, uniform_times, walk

Loss = Callable[..., Tensor]  # (velocity, x0, x1, generator=...) → scalar


class VelocityMLP(torch.nn.Module):
    """``u(x, t)``: (x, t) → 64 → 64 → velocity, SiLU in between.

    ``x`` is ``(B, D)`` for one network, ``(B, copies, D)`` for several side by side; the answer has its shape.
    """

    def __init__(self, dimension: int = 2, width: int = 64, copies: int = 1, generator=None, device=None):
        super().__init__()
        sizes = list(itertools.pairwise([dimension + 1, width, width, dimension]))
        self.dimension, self.width, self.copies = dimension, width, copies

        def uniform(*shape, inputs):  # torch.nn.Linear's own start
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
        """Copy number ``i`` as a network of its own."""
        if not 0 <= i < self.copies:
            raise ValueError(f"copy {i}: this network has copies 0 to {self.copies - 1}.")
        alone = VelocityMLP(self.dimension, self.width, device=self.weights[0].device)
        alone.load_state_dict({name: value[i : i + 1] for name, value in self.state_dict().items()})
        return alone


@dataclass
class Trained:
    """A ``velocity`` and the ``losses`` of its training, one per step (the mean over copies)."""

    velocity: VelocityMLP
    losses: list[float]

    @property
    def steps(self) -> list[int]:
        return list(range(1, len(self.losses) + 1))

    def kept(self, pairs: Coupling, k: int, step: Step = midpoint_step) -> Tensor:
        """Share of points that a walk of ``k`` steps takes to their own group, for each copy: ``(copies,)``."""
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
    """Train a small velocity network on pairs with Adam, its learning rate falling to zero along a cosine.

    Args:
        loss: one of :mod:`lft_edu.objectives`, its options fixed by ``functools.partial``.
        copies: networks trained side by side.
        seed: of the networks' start and of the batches.
        velocity: go on with this network instead of a new one. It is changed in place, so an interrupted run
            (Ctrl-C) loses nothing.
        watch: called as ``watch(step, loss, velocity)`` after each step; stops the training by returning True.
    """
    from tqdm.auto import tqdm

    generator = torch.Generator().manual_seed(seed)
    device = pairs.x0.device
    velocity = velocity or VelocityMLP(pairs.x0.shape[1], width, copies, generator, device)
    optimizer = torch.optim.Adam(velocity.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for step in tqdm(range(1, steps + 1), desc="training", unit="step", disable=not progress, leave=False):
        rows = torch.randint(len(pairs), (batch,), generator=generator).to(device)
        x0, x1 = (abreast(x[rows], velocity) for x in (pairs.x0, pairs.x1))
        value = loss(velocity, x0, x1, generator=generator)
        optimizer.zero_grad()
        value.backward()  # the mean over copies scales each one's gradient, which Adam does not mind
        optimizer.step()
        schedule.step()
        losses.append(value.item())
        if watch is not None and watch(step, losses[-1], velocity):
            break
    return Trained(velocity, losses)


def abreast(x: Tensor, velocity) -> Tensor:
    """``x`` ``(B, D)`` as every copy of ``velocity`` sees it: ``(B, copies, D)``, or ``x`` itself for a single one."""
    copies = getattr(velocity, "copies", 1)
    return x if copies == 1 else x[:, None].expand(-1, copies, -1)


@torch.no_grad()
def carry(velocity, x0: Tensor, k: int, step: Step = midpoint_step, return_path: bool = False) -> Tensor:
    """Walk ``x0`` ``(N, D)`` in ``k`` equal steps: ``(N, D)``, or ``(N, copies, D)``; the path adds a first axis."""
    return walk(velocity, abreast(x0, velocity), uniform_times(k), step, return_path)


def pairs_kept(ends: Tensor, pairs: Coupling) -> Tensor:
    """Share of points that end nearest to a target of their own *group*: a number for ``ends`` ``(N, D)``.

    For ends ``(N, copies, D)`` one number per copy. It says nothing about the exact partner, and a point that ends in
    the middle of nowhere has a nearest target, too: read :func:`coupling_error` beside it.
    """
    nearest = torch.cdist(ends if ends.ndim == 2 else ends.transpose(0, 1), pairs.x1).argmin(-1)  # (..., N)
    return (pairs.group[nearest] == pairs.group).float().mean(-1)


def coupling_error(ends: Tensor, pairs: Coupling) -> Tensor:
    """``‖end − x1‖²`` over the variance of ``x1``: 0 at one's partner, 1 for who ends in the targets' mean."""
    x1 = pairs.x1 if ends.ndim == 2 else pairs.x1[:, None]
    return (ends - x1).square().sum(-1).mean(0) / (pairs.x1 - pairs.x1.mean(0)).square().sum(-1).mean()
