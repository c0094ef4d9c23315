"""Muon for matrices, AdamW for the rest: what the teacher and, if asked, the operators are trained by."""

from collections.abc import Mapping

import torch
from torch import nn

from ..support.machine import fastest_dtype

A, B, C = 3.4445, -4.7750, 2.0315  # the quintic a·s + b·s³ + c·s⁵ of Jordan 2024: steepest at 0 that stays bounded
# Sides below this stay in float32 on a CPU: their products are too short for bfloat16 units to pay for the conversion.
BF16_MIN_SIDE = 128
OPTIMIZERS = ("adamw", "muon")


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized by Newton–Schulz iterations (Jordan 2024), for matrices.

    ``torch.optim.Muon`` takes the matrices one by one in bfloat16; 24 small layers are 96 of them, and on a CPU without
    bfloat16 units that took as long as the model. Here equal shapes are stacked and iterated together, in the type
    that :func:`newton_schulz_dtype` finds fastest.

    Args:
        params: matrices, each with a gradient at every step.
        lr: learning rate; a tall matrix ``(R, C)`` takes ``lr · sqrt(R / C)``.
        momentum: share of the momentum buffer that a step keeps, in [0, 1).
        weight_decay: decoupled, per unit of ``lr``.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.05):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes: dict[tuple, list] = {}
            for p in group["params"]:
                shapes.setdefault(tuple(p.shape), []).append(p)
            for (rows, columns), same in shapes.items():
                grads, buffers = [p.grad for p in same], [self._buffer(p) for p in same]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                update = newton_schulz(torch.stack(torch._foreach_lerp(grads, buffers, group["momentum"])))
                torch._foreach_mul_(same, 1 - group["lr"] * group["weight_decay"])
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                torch._foreach_sub_(same, update.unbind(), alpha=rate)

    def _buffer(self, p):
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return self.state[p]["momentum_buffer"]


def newton_schulz(matrices, iterations: int = 5, dtype: torch.dtype | None = None):
    """Push the singular values of matrices towards 1 by the quintic Newton–Schulz iteration (Jordan 2024).

    Args:
        matrices: ``(N, R, C)``, taken one by one.
        iterations: five bring singular values of 0.01 to 1 times the Frobenius norm to between 0.68 and 1.14.
        dtype: of the products; default: the fastest here, see :func:`newton_schulz_dtype`.

    Returns:
        ``(N, R, C)`` in ``dtype``.
    """
    rows, columns = matrices.shape[1:]
    dtype = dtype or newton_schulz_dtype(matrices.device, min(rows, columns))
    x = matrices.float()
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(iterations):  # the polynomial multiplies from the shorter side; sums are taken inside the products
        gram = x @ x.mT if rows <= columns else x.mT @ x
        polynomial = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        factors = (polynomial, x) if rows <= columns else (x, polynomial)
        x = torch.baddbmm(x, *factors, beta=A)
    return x


def newton_schulz_dtype(device: torch.device, side: int, capabilities: Mapping | None = None) -> torch.dtype:
    """Choose the type in which Newton–Schulz iterates: bfloat16 where the device has units for it, else float32.

    On an AMX core at width 576, bfloat16 is 3.4 times as fast as float32; on one with AVX2 alone, four times as slow
    in single products (and far worse in ``baddbmm``, which then has no kernel for it).
    Capabilities are asked, not timed: a resumed run must choose as the first one did.

    Args:
        device: of the matrices.
        side: the shorter side of the matrices.
        capabilities: of the CPU, name → truth; default: ``torch.cpu.get_capabilities()``.
    """
    if device.type == "cpu" and side < BF16_MIN_SIDE:
        return torch.float32
    return fastest_dtype(device, capabilities)


def muon_and_adamw(matrices_of: nn.Module, model: nn.Module, muon_lr: float, adamw_lr: float) -> list:
    """Muon for the matrices inside ``matrices_of``, AdamW for everything else in ``model``."""
    matrices = [p for p in matrices_of.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [Muon(matrices, lr=muon_lr), adamw(rest, adamw_lr, betas=(0.9, 0.95))]


def adamw(params, lr: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW without weight decay, in one kernel: four times as fast on a CPU as torch's default, at any width."""
    params = list(params)
    fused = all(p.device.type != "meta" for p in params)  # where costs are counted, there is no kernel
    return torch.optim.AdamW(params, lr=lr, betas=betas, weight_decay=0.0, fused=fused)


def warmup_stable_decay(step: int, steps: int, warmup: int = 60, decay: float = 0.4, floor: float = 0.02) -> float:
    """Learning-rate factor in (0, 1]: linear rise over ``warmup`` steps, flat, linear fall over the last ``decay``."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = (steps - step) / max(1.0, decay * steps)
    return rise * min(1.0, max(floor, fall))


def _set_rates(optimizers: list, rates: list[list[float]], factor: float) -> None:
    for optimizer, base in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor
