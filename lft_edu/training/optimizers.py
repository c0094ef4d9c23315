"""Muon for matrices, AdamW for the rest: what the teacher and, if asked, the operators are trained by."""

import torch
from torch import nn


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised by five Newton–Schulz iterations (Jordan 2024), for matrices.

    ``torch.optim.Muon`` takes the matrices one by one in bfloat16; 24 small layers are 96 of them, and on a CPU without
    bfloat16 units that took as long as the model. Here equal shapes are stacked and iterated together, in float32; in
    bfloat16 on a GPU that multiplies it, where one large layer in float32 would take half as long as its whole step.
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
                update = orthogonalise(torch.stack([self._nesterov(p, group["momentum"]) for p in same]))
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                for p, direction in zip(same, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=rate)

    def _nesterov(self, p, momentum: float):
        buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        buffer.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum)


def orthogonalise(matrices, iterations: int = 5):
    """Matrices ``(N, R, C)`` with their singular values pushed towards 1 (quintic Newton–Schulz)."""
    x = matrices.bfloat16() if _multiplies_bfloat16(matrices.device) else matrices.float()
    x = x.mT if x.shape[1] > x.shape[2] else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Is it a GPU with units for bfloat16 (from Ampere on)?"""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def muon_and_adamw(matrices_of: nn.Module, model: nn.Module, muon_lr: float, adamw_lr: float) -> list:
    """Muon for the matrices inside ``matrices_of``, AdamW for everything else in ``model``."""
    matrices = [p for p in matrices_of.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [Muon(matrices, lr=muon_lr), torch.optim.AdamW(rest, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0)]


OPTIMIZERS = ("adamw", "muon")


def warmup_stable_decay(step: int, steps: int, warmup: int = 60, decay: float = 0.4, floor: float = 0.02) -> float:
    """Learning-rate factor in (0, 1]: linear rise over ``warmup`` steps, flat, linear fall over the last ``decay``."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = (steps - step) / max(1.0, decay * steps)
    return rise * min(1.0, max(floor, fall))


def _set_rates(optimizers: list, rates: list[list[float]], factor: float) -> None:
    for optimizer, base in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor
