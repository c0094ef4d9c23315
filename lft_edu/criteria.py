"""Criteria that predict, from the states at the two ends of a span, the damage of replacing its layers.

Each takes a :class:`Pair` and returns one value per token, ``(N,)`` float64, whose mean is the criterion (or ``(1,)``
where there is no value per token). Small predicts little damage. Sources are named; what is ours is marked [D].
"""

import math
from functools import cached_property

import torch
from torch import Tensor

from .couplings import assign


class Depth:
    """The states of N tokens at one depth, ``(N, D)``, with cached quantities that several spans use."""

    def __init__(self, states: Tensor):
        self.x = states.detach().cpu().double()
        self.squares = self.x.square().sum(-1)
        self.centered = self.x - self.x.mean(0)

    @cached_property
    def similarity(self) -> float:
        """Return ``‖XᵀX‖`` of the centered states X, one factor of CKA's denominator."""
        return (self.centered.T @ self.centered).norm().item()

    @cached_property
    def unexplained(self) -> Tensor:
        """Return the matrix ``(N, N)`` from targets to leave-one-out residuals of ridge regression on these states.

        Closed form (PRESS, Allen 1974): the residual over ``1 − h``, h the leverage.
        """
        n, width = self.x.shape
        covariance = self.centered.T @ self.centered
        penalty = (RIDGE_PENALTY * covariance.trace() / width).clamp(min=1e-12)
        solved = torch.linalg.solve(covariance + penalty * torch.eye(width, dtype=torch.float64), self.centered.T)
        residual = torch.eye(n, dtype=torch.float64) - 1 / n - self.centered @ solved
        return residual / residual.diagonal().clamp(min=1e-12)[:, None]


class Pair:
    """The states at both ends of a span. One Gram matrix gives all distances."""

    def __init__(self, start: Depth, end: Depth):
        self.start, self.end = start, end

    @cached_property
    def dots(self) -> Tensor:
        """Return ``x0[i] · x1[j]``, ``(N, N)``."""
        return self.start.x @ self.end.x.T

    @cached_property
    def distances(self) -> Tensor:
        """Return ``‖x0[i] − x1[j]‖``, ``(N, N)``."""
        return _squared_distances(self.start.squares, self.end.squares, self.dots).sqrt()

    @cached_property
    def cosines(self) -> Tensor:
        """Return the cosine similarity of ``x0[i]`` and ``x1[j]``, ``(N, N)``."""
        norms = self.start.squares[:, None].sqrt() * self.end.squares.sqrt()
        return (self.dots / norms.clamp(min=1e-300)).clamp(-1, 1)


RIDGE_PENALTY = 1e-4  # that of lft.Ridge


def _squared_distances(a: Tensor, b: Tensor, dots: Tensor) -> Tensor:
    return (a[:, None] + b - 2 * dots).clamp(min=0)


def _re_paired(cost: Tensor) -> Tensor:
    return (assign(cost) != torch.arange(len(cost))).double()


def recoupling(pair: Pair) -> Tensor:
    """Return 1 where optimal transport would re-pair a token, else 0 (paper, eq. 6–7; Euclidean distance: [D])."""
    return _re_paired(pair.distances)


def recoupling_cosine(pair: Pair) -> Tensor:
    """Return the same as :func:`recoupling`, with cosine distance."""
    return _re_paired(1 - pair.cosines)


def recoupling_among(pair: Pair, size: int) -> float:
    """Return the recoupling ratio of ``size`` tokens, the mean over disjoint consecutive subsets of that size."""
    n = len(pair.distances)
    draws = [pair.distances[i : i + size, i : i + size] for i in range(0, n - size + 1, size)]
    return torch.stack([_re_paired(cost).mean() for cost in draws]).mean().item()


def angular(pair: Pair) -> Tensor:
    """Return the angle between start and end over π (Gromov et al., arXiv 2403.17887, who use the last token only)."""
    return pair.cosines.diagonal().arccos() / math.pi


def block_influence(pair: Pair) -> Tensor:
    """Return 1 − cosine similarity of start and end (ShortGPT's block influence, arXiv 2403.03853)."""
    return 1 - pair.cosines.diagonal()


def ridge(pair: Pair) -> Tensor:
    """Return the leave-one-out squared error of ridge regression over the variance of the ends (idea: ReplaceMe,
    arXiv 2505.02819). The penalty shrinks the map towards the identity, as in :class:`lft_edu.Ridge`."""
    error = pair.start.unexplained @ (pair.end.x - pair.start.x)
    return error.square().sum(-1) / pair.end.centered.square().sum(-1).mean().clamp(min=1e-300)


def cka(pair: Pair) -> Tensor:
    """Return 1 − linear CKA (Kornblith et al., arXiv 1905.00414), ``(1,)``: it has no value per token."""
    joint = (pair.start.centered.T @ pair.end.centered).norm().square()
    return (1 - joint / max(pair.start.similarity * pair.end.similarity, 1e-300)).reshape(1)


def collision(pair: Pair) -> Tensor:
    """Return how close another token comes when all move on straight lines from start to end. [D]

    1 − (distance of closest approach / distance of the nearest neighbor at the closer end), in [0, 1]: 1 if two tokens
    meet, which is to be at the same place at the same time; 0 if none comes closer than at the ends.
    """
    dots, start, end = pair.dots, pair.start, pair.end
    gap0 = _squared_distances(start.squares, start.squares, start.x @ start.x.T)
    gap1 = _squared_distances(end.squares, end.squares, end.x @ end.x.T)
    own = dots.diagonal()
    both = own[:, None] + own - dots - dots.T  # the gap at the start · the gap at the end
    t = ((gap0 - both) / (gap0 + gap1 - 2 * both).clamp(min=1e-300)).clamp(0, 1)
    gap = ((1 - t).square() * gap0 + 2 * t * (1 - t) * both + t.square() * gap1).clamp(min=0)
    nearest = [_nearest(squares) for squares in (gap, gap0, gap1)]
    at_ends = torch.minimum(nearest[1], nearest[2])
    return torch.where(at_ends > 0, 1 - nearest[0] / at_ends.clamp(min=1e-300), 0.0).clamp(0, 1)


def _nearest(squares: Tensor) -> Tensor:
    """Return the distance of each point to its nearest neighbor, from squared distances ``(N, N)``."""
    return squares.clone().fill_diagonal_(torch.inf).amin(1).sqrt()


CRITERIA = {
    "recoupling": recoupling,
    "recoupling-cosine": recoupling_cosine,
    "angular": angular,
    "block-influence": block_influence,
    "ridge": ridge,
    "cka": cka,
    "meeting": collision,  # the key in stored scans
}
TITLES = {
    "recoupling": "Recoupling ratio",
    "recoupling-same-token": "Recoupling ratio, one token",
    "recoupling-cosine": "Recoupling ratio, cosine",
    "angular": "Angular distance",
    "block-influence": "Block influence, 1 − cosine",
    "ridge": "Ridge error",
    "cka": "1 − linear CKA",
    "meeting": "Collision",
    "skip": "KL of skipping",
}  # of these, and of those that the recipes add
