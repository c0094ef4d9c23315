"""Criteria: what the states at the two ends of a span might tell about the harm of replacing what lies between.

Each takes a :class:`Pair` and returns ``(N,)`` float64, one value a token, whose mean is the criterion (or ``(1,)``
where no token has a value of its own). Small promises little harm. Sources are named; what is ours is marked [D].
"""

import math
from functools import cached_property

import torch
from torch import Tensor

from .couplings import assign


class Depth:
    """The states of N tokens at one depth, ``(N, D)``, and what several spans need of them, computed once."""

    def __init__(self, states: Tensor):
        self.x = states.detach().cpu().double()
        self.squares = self.x.square().sum(-1)
        self.centered = self.x - self.x.mean(0)

    @cached_property
    def similarity(self) -> float:
        """``‖XᵀX‖`` of the centered states X, one half of CKA's denominator."""
        return (self.centered.T @ self.centered).norm().item()

    @cached_property
    def unexplained(self) -> Tensor:
        """``(N, N)``: any target's values → what ridge regression on these states leaves of each when *it* is left out.

        Leaving one out has a closed form (PRESS, Allen 1974): the residual over ``1 − h``, h the leverage.
        """
        n, width = self.x.shape
        covariance = self.centered.T @ self.centered
        penalty = (RIDGE_PENALTY * covariance.trace() / width).clamp(min=1e-12)
        solved = torch.linalg.solve(covariance + penalty * torch.eye(width, dtype=torch.float64), self.centered.T)
        residual = torch.eye(n, dtype=torch.float64) - 1 / n - self.centered @ solved
        return residual / residual.diagonal().clamp(min=1e-12)[:, None]


class Pair:
    """The states at both ends of a span. One Gram matrix gives every distance."""

    def __init__(self, start: Depth, end: Depth):
        self.start, self.end = start, end

    @cached_property
    def dots(self) -> Tensor:
        """``(N, N)``: ``x0[i] · x1[j]``."""
        return self.start.x @ self.end.x.T

    @cached_property
    def distances(self) -> Tensor:
        """``(N, N)``: ``‖x0[i] − x1[j]‖``."""
        return _squared_distances(self.start.squares, self.end.squares, self.dots).sqrt()

    @cached_property
    def cosines(self) -> Tensor:
        """``(N, N)``: cosine of the angle between ``x0[i]`` and ``x1[j]``."""
        norms = self.start.squares[:, None].sqrt() * self.end.squares.sqrt()
        return (self.dots / norms.clamp(min=1e-300)).clamp(-1, 1)


RIDGE_PENALTY = 1e-4  # as lft.Ridge


def _squared_distances(a: Tensor, b: Tensor, dots: Tensor) -> Tensor:
    return (a[:, None] + b - 2 * dots).clamp(min=0)


def _repaired(cost: Tensor) -> Tensor:
    return (assign(cost) != torch.arange(len(cost))).double()


def recoupling(pair: Pair) -> Tensor:
    """Would optimal transport give this token another's end? (Paper, eq. 6–7; Euclidean: [D].)"""
    return _repaired(pair.distances)


def recoupling_cosine(pair: Pair) -> Tensor:
    """The same, by cosine distance."""
    return _repaired(1 - pair.cosines)


def recoupling_among(pair: Pair, size: int) -> float:
    """The recoupling ratio among ``size`` tokens, mean over as many disjoint draws as there are."""
    n = len(pair.distances)
    draws = [pair.distances[i : i + size, i : i + size] for i in range(0, n - size + 1, size)]
    return torch.stack([_repaired(cost).mean() for cost in draws]).mean().item()


def angular(pair: Pair) -> Tensor:
    """Angle between start and end, as a share of π (Gromov et al., arXiv 2403.17887; there of the last token)."""
    return pair.cosines.diagonal().arccos() / math.pi


def block_influence(pair: Pair) -> Tensor:
    """1 − cosine of start and end (ShortGPT's block influence, arXiv 2403.03853)."""
    return 1 - pair.cosines.diagonal()


def ridge(pair: Pair) -> Tensor:
    """Squared error of the best linear map, each token left out of its own fit, over the variance of the ends
    (the idea of ReplaceMe, arXiv 2505.02819). The map is drawn to the identity, as :class:`lft_edu.Ridge` is."""
    error = pair.start.unexplained @ (pair.end.x - pair.start.x)
    return error.square().sum(-1) / pair.end.centered.square().sum(-1).mean().clamp(min=1e-300)


def cka(pair: Pair) -> Tensor:
    """1 − linear CKA (Kornblith et al., arXiv 1905.00414): no value of its own for a token."""
    joint = (pair.start.centered.T @ pair.end.centered).norm().square()
    return (1 - joint / max(pair.start.similarity * pair.end.similarity, 1e-300)).reshape(1)


def meeting(pair: Pair) -> Tensor:
    """How much nearer than at either end does another token come on the way, both on straight lines at one time? [D]

    0: nobody comes nearer than the nearest neighbor at the nearer end. 1: somebody is met.
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
    """Distance of each to the nearest other, from ``(N, N)`` squared distances."""
    return squares.clone().fill_diagonal_(torch.inf).amin(1).sqrt()


CRITERIA = {
    "recoupling": recoupling,
    "recoupling-cosine": recoupling_cosine,
    "angular": angular,
    "block-influence": block_influence,
    "ridge": ridge,
    "cka": cka,
    "meeting": meeting,
}
TITLES = {
    "recoupling": "Recoupling ratio",
    "recoupling-same-token": "Recoupling ratio, one token",
    "recoupling-cosine": "Recoupling ratio, cosine",
    "angular": "Angular distance",
    "block-influence": "Block influence, 1 − cosine",
    "ridge": "Ridge error",
    "cka": "1 − linear CKA",
    "meeting": "Meeting",
    "skip": "KL of skipping",
}  # of these, and of those the recipe adds
