"""Operators that are solved, not trained: one linear map for every token, from sums over all tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .transport import Operator


@dataclass
class Moments:
    """Sums over tokens, in float64, from which every closed-form operator is solved; added up batch by batch."""

    n: float  # of tokens, or the sum of their weights
    sum0: Tensor  # (D,)
    sum1: Tensor  # (D,)
    cross00: Tensor  # (D, D), Σ x0ᵀ x0
    cross01: Tensor  # (D, D), Σ x0ᵀ x1

    @classmethod
    def zeros(cls, width: int) -> "Moments":
        return cls(
            0,
            *(
                torch.zeros(shape, dtype=torch.float64)
                for shape in [(width,), (width,), (width, width), (width, width)]
            ),
        )

    def add(self, x0: Tensor, x1: Tensor, weight: Tensor | None = None) -> None:
        """Add pairs ``(N, D)``, each with a weight ``(N,)`` if given.

        Raises:
            ValueError: the pairs hold NaN or infinity.
        """
        x0, x1 = (x.detach().cpu().double() for x in (x0, x1))
        if not bool(torch.isfinite(x0).all() and torch.isfinite(x1).all()):
            raise ValueError("The latents hold NaN or infinity: load the teacher in float32 or bfloat16 and try again.")
        w = torch.ones(len(x0), 1, dtype=x0.dtype) if weight is None else weight.to(x0)[:, None]
        weighted = w * x0
        self.n += w.sum().item()
        self.sum0 += weighted.sum(0)
        self.sum1 += (w * x1).sum(0)
        self.cross00 += weighted.T @ x0
        self.cross01 += weighted.T @ x1

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        return self.sum0 / self.n, self.sum1 / self.n

    @property
    def covariances(self) -> tuple[Tensor, Tensor]:
        """Of x0 with itself and with x1, ``(D, D)`` each."""
        mean0, mean1 = self.means
        return self.cross00 / self.n - torch.outer(mean0, mean0), self.cross01 / self.n - torch.outer(mean0, mean1)


class _Affine(Operator):
    """``x1 = x0 + x0 · weight + bias``. The correction is stored, so zeros mean skip."""

    closed_form = True
    if TYPE_CHECKING:

        def linear_map(self, moments: Moments) -> Tensor: ...

    def build(self, layer, config, generator=None):
        self.weight = nn.Parameter(torch.zeros(config.hidden_size, config.hidden_size), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(config.hidden_size), requires_grad=False)
        return self

    def forward(self, x, **context):
        return x + x @ self.weight + self.bias

    @torch.no_grad()
    def solve(self, moments: Moments) -> None:
        """Fit to the pairs that are summed in ``moments``."""
        matrix, mean0, mean1 = self.linear_map(moments), *moments.means
        self.weight.copy_(matrix - torch.eye(len(matrix), dtype=matrix.dtype))
        self.bias.copy_(mean1 - mean0 @ matrix)


class MeanShift(_Affine):
    """Add the mean difference: ``x1 = x0 + E[x1 − x0]``."""

    kind = "mean-shift"

    def build(self, layer, config, generator=None):
        self.bias = nn.Parameter(torch.zeros(config.hidden_size), requires_grad=False)
        return self

    def forward(self, x, **context):
        return x + self.bias

    @torch.no_grad()
    def solve(self, moments):
        self.bias.copy_(moments.means[1] - moments.means[0])


class Procrustes(_Affine):
    """The best rotation, scale and shift: least squares under ``W = s R``, ``RᵀR = 1`` (Schönemann 1966)."""

    kind = "procrustes"

    def linear_map(self, moments: Moments) -> Tensor:
        covariance, cross = moments.covariances
        u, s, vt = torch.linalg.svd(cross)
        return s.sum() / covariance.trace() * (u @ vt)


class Ridge(_Affine):
    """Linear least squares, pulled to the identity (the idea of ReplaceMe, arXiv 2505.02819).

    ``penalty`` is relative to the mean variance of x0. It pulls the map to skipping, never to zero.
    """

    kind = "ridge"

    def __init__(self, penalty: float = 1e-4):
        if not (isinstance(penalty, int | float) and penalty >= 0):
            raise ValueError(f"penalty={penalty!r}: give a number of at least 0.")
        super().__init__()
        self.settings = {"penalty": penalty}

    def linear_map(self, moments):
        covariance, cross = moments.covariances
        identity = torch.eye(len(covariance), dtype=covariance.dtype)
        lam = (self.settings["penalty"] * covariance.trace() / len(covariance)).clamp(min=1e-12)
        return identity + torch.linalg.solve(covariance + lam * identity, cross - covariance)


class LinearPatch(_Affine):
    """Scale each channel, in a rotated basis: ``x1 = x0 R diag(d) Rᵀ + bias`` (the idea of LinearPatch, NeurIPS 2025).

    The rotation spreads the few channels of massive size over all others. Theirs is a Hadamard matrix; ours is a random
    orthogonal one, which exists at every width. Each ``d`` is the least-squares scale of its channel.
    """

    kind = "linear-patch"

    def linear_map(self, moments: Moments) -> Tensor:
        covariance, cross = moments.covariances
        draw = torch.randn(covariance.shape, dtype=covariance.dtype, generator=torch.Generator().manual_seed(0))
        rotation = torch.linalg.qr(draw).Q
        scales = [(rotation * (matrix @ rotation)).sum(0) for matrix in (cross, covariance)]
        return rotation * (scales[0] / scales[1].clamp(min=1e-12)) @ rotation.T
