"""Checks of lesson 01: couplings."""

import torch

from ..couplings import Coupling, cost_matrix, optimal_assignment
from .checking import Wrong, close, describe, exercise, tensor

TINY = torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.4], [5.0, 0.6]])  # both nearest to the first


def clouds(n: int, seed: int, dimension: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw two independent clouds, ``(n, dimension)`` each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dimension, generator=generator), torch.randn(n, dimension, generator=generator) + 0.5


@exercise("1.1", "Pair by optimal transport", difficulty=1, minutes=5)
def pair(answer):
    x0, x1 = clouds(40, seed=1)
    yield "one whole number per point"
    mine = tensor(answer(x0, x1), None, "the assignment")
    if mine.shape == x0.shape:
        raise Wrong(
            f"You returned {describe(mine)}: points. The assignment is which of them, as indices: (N,) integers."
        )
    mine = tensor(mine, (40,), "the assignment", "for each point of x0 the index of its partner in x1")
    if not torch.equal(mine, mine.round()) or mine.min() < 0 or mine.max() >= 40:
        raise Wrong(
            f"The assignment holds indices of points, 0 to 39; yours runs from {mine.min():g} to {mine.max():g}."
        )

    yield "by hand: two starts, both nearest to the same end"
    small = tensor(answer(*TINY), (2,), "the assignment").long()
    if len(small.unique()) < 2:
        raise Wrong(
            f"Both points go to x1[{small[0]}]. That is the nearest neighbor; optimal transport uses every point "
            "exactly once: a permutation."
        )

    yield "a permutation"
    mine = mine.long()
    if len(mine.unique()) < 40:
        raise Wrong(f"{40 - len(mine.unique())} points of x1 are left out: every one must be used exactly once.")

    yield "of least total distance"
    cost, best = cost_matrix(x0, x1), optimal_assignment(x0, x1)
    yours, least = (float(cost[torch.arange(40), a].sum()) for a in (mine, best))
    if yours > least * (1 + 1e-6):
        inverse = mine.argsort()
        if torch.equal(inverse, best):
            raise Wrong(
                "Right pairs in the wrong direction: you list for each point of x1 its partner in x0. Row i of the "
                "answer belongs to x0[i]; check which cloud is the rows of your cost matrix."
            )
        if torch.equal(mine, optimal_assignment(x0, x1, "sqeuclidean")):
            raise Wrong("This is optimal for the *squared* distance. Use the distance itself here.")
        if torch.equal(mine, torch.arange(40)):
            raise Wrong("You returned 0, 1, 2, …: the rows. The partners are the second array, the columns.")
        raise Wrong(f"Your pairs are {yours:.3f} long in total; {least:.3f} is possible: the least sum of all.")


@exercise("1.2", "The recoupling ratio", difficulty=1, minutes=5)
def ratio(answer):
    yield "a number between 0 and 1"
    x0, _ = clouds(30, seed=2)
    x1 = x0 * torch.tensor([2.0, 0.5])  # stretched: the metrics and the nearest neighbors all disagree here
    value = float(tensor(answer(x0, x1), (), "the ratio"))
    if not 0 <= value <= 1:
        raise Wrong(f"You returned {value:g}. R is a *fraction* of the N points: divide by N.")

    yield "by hand: three points that stay where they are"
    still = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    close(answer(still, still.clone()), 0.0, "R", {
        "You count the pairs that are *kept*. R is the fraction that optimal transport would re-pair: 1 − that (eq. "
        "7).":
            1.0,
    })  # fmt: skip

    yield "by hand: two of three points change places"
    close(answer(still, still[[1, 0, 2]]), 2 / 3, "R", {
        "You count the pairs that are *kept*. R is the fraction that optimal transport would re-pair: 1 − that (eq. "
        "7).":
            1 / 3,
    })  # fmt: skip

    yield "30 points and a stretch"
    n = torch.arange(30)
    best, near = optimal_assignment(x0, x1), cost_matrix(x0, x1).argmin(1)
    close(answer(x0, x1), (best != n).double().mean(), "R", {
        "You look at nearest neighbors. Optimal transport pairs all points at once, each used exactly once.":
            (near != n).double().mean(),
        "This is R for the *squared* distance: use the distance itself.":
            (optimal_assignment(x0, x1, "sqeuclidean") != n).double().mean(),
    })  # fmt: skip


@exercise("1.3", "Which lines cross?", difficulty=2, minutes=12)
def crossings(answer):
    def count(x0, x1):
        return tensor(answer(torch.tensor(x0), torch.tensor(x1)), (), "the number of crossings")

    yield "by hand: an X"
    close(count([[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 0.0]]), 1, "the number of crossings", {
        "You count each crossing twice, as (i, j) and as (j, i).": 2,
    })  # fmt: skip
    yield "by hand: two parallel lines"
    close(count([[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]]), 0, "the number of crossings")
    yield "by hand: lines that would cross if they were longer"
    close(count([[0.0, 0.0], [0.5, 1.0]], [[1.0, 0.0], [0.5, 3.0]]), 0, "the number of crossings", {
        "These two cross only when extended. Each must have the *other's two ends* on different sides.": 1,
    })  # fmt: skip
    yield "25 random pairs"
    x0, x1 = clouds(25, seed=3)
    true = Coupling(x0, x1).crossings().triu().sum()
    close(answer(x0, x1), true, "the number of crossings", {
        "You count each crossing twice, as (i, j) and as (j, i).": 2 * true,
    })  # fmt: skip
    yield "none, once paired by optimal transport"
    close(answer(x0, x1[optimal_assignment(x0, x1)]), 0, "the number of crossings")


@exercise("1.4", "Crossed and yet optimal", difficulty=2, minutes=12)
def crossed(answer):
    yield "two pairs of points in the plane"
    x0, x1 = _two_clouds(answer(), 2)
    yield "their lines cross"
    if not Coupling(x0, x1).crossings().any():
        raise Wrong("Your two lines do not cross (touching does not count). Start from an X and move its ends.")
    yield "optimal transport with squared distances keeps them"
    cost = cost_matrix(x0, x1, "sqeuclidean")
    kept, swapped = float(cost[0, 0] + cost[1, 1]), float(cost[0, 1] + cost[1, 0])
    if kept >= swapped:
        raise Wrong(
            f"As given the squared distances add up to {kept:.3g}, swapped to {swapped:.3g}: swapping wins. One long "
            "line costs more than two medium ones when squared: make the swap produce a very long one. (With the "
            "plain distance this is impossible: by the triangle inequality, crossing lines are never optimal.)"
        )


@exercise("1.5", "R near 1, and nobody meets", difficulty=3, minutes=15)
def nobody_meets(answer):
    n = 64
    yield "two clouds of 64 points in the plane"
    x0, x1 = _two_clouds(answer(n), n)
    apart = torch.pdist(x0).min().item(), torch.pdist(x1).min().item()
    if min(apart) < 1e-6:
        raise Wrong("Some of your points are in the same place. Give 64 different ones on each side.")
    pairs = Coupling(x0, x1)
    yield "optimal transport would re-pair more than 90 %"
    share = (optimal_assignment(x0, x1) != torch.arange(n)).double().mean().item()
    if share <= 0.9:
        raise Wrong(f"R = {share:.2f}. Send every point far from its nearest target: what about a rotation?")
    yield "and still no two points come close to each other on their straight paths"
    start = torch.cdist(x0, x0)
    nearness = (pairs.closest_approach() / start.clamp_min(1e-12)).fill_diagonal_(1)
    if (worst := nearness.min().item()) < 0.2:
        i, j = divmod(int(nearness.argmin()), n)
        raise Wrong(
            f"Points {i} and {j} start {start[i, j]:.2f} apart and come within {worst * start[i, j]:.3f} of each other "
            "at the same moment; keep at least a fifth of the distance. (A half turn sends all points "
            "through the center at t = 1/2. What does less than a half turn do?)"
        )


def _two_clouds(value, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise Wrong(f"You returned {describe(value)}: return two tensors, x0 and x1.")
    return tuple(tensor(x, (n, 2), name, "one row per point") for x, name in zip(value, ("x0", "x1"), strict=True))
