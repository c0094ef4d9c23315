"""Couplings: which point of one cloud belongs to which point of another.

Two clouds do not say how they are paired; a coupling does. Three pairings of the same clouds: as given, at random
(independent), and by optimal transport, the permutation of least total distance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .support.statistics import bootstrap_means, interval

METRICS = ("euclidean", "sqeuclidean", "cosine")


def check_pairs(x0: Tensor, x1: Tensor) -> None:
    """ValueError unless ``x0`` and ``x1`` are finite ``(N, D)`` float tensors of one shape, N at least 1."""
    if x0.ndim != 2 or x0.shape != x1.shape or len(x0) == 0:
        raise ValueError(f"Pairs must be two (N, D) tensors of one shape; got {tuple(x0.shape)} and {tuple(x1.shape)}.")
    for name, x in (("x0", x0), ("x1", x1)):
        if not x.is_floating_point():
            raise ValueError(f"{name} holds {x.dtype}: convert it with .float().")
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).any(-1).sum())
            raise ValueError(f"{name} holds NaN or infinity in {bad} of {len(x)} points: remove or repair them first.")


def cost_matrix(x0: Tensor, x1: Tensor, metric: str = "euclidean") -> Tensor:
    """Distance of every point of ``x0`` to every point of ``x1``: ``(N, N)`` float64."""
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r}: choose one of {', '.join(METRICS)}.")
    a, b = x0.detach().double(), x1.detach().double()
    if metric == "cosine":
        a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (a, b))
        return 1 - a @ b.T
    distance = torch.cdist(
        a, b, compute_mode="donot_use_mm_for_euclid_dist" if len(a) <= 256 else "use_mm_for_euclid_dist"
    )
    return distance.square() if metric == "sqeuclidean" else distance


def optimal_assignment(x0: Tensor, x1: Tensor, metric: str = "euclidean") -> Tensor:
    """The permutation of least total cost, exactly: point ``i`` of ``x0`` goes to point ``assignment[i]`` of ``x1``.

    Ties go to the given pairing: where keeping partners costs no more than swapping them (duplicate points), they are
    kept. O(N³) in the worst case; seconds at N = 2,000.

    Returns:
        ``(N,)`` long tensor, on the CPU, a permutation of 0 … N−1.
    """
    check_pairs(x0, x1)
    return assign(cost_matrix(x0, x1, metric).cpu())


def assign(cost: Tensor) -> Tensor:
    """The permutation of least total ``cost`` ``(N, N)``: :func:`optimal_assignment` from a cost matrix."""
    from scipy.optimize import linear_sum_assignment

    cost = cost.clone()
    tie_break = 1e-12 * float(cost.mean()) + 1e-300  # far below any real difference, above rounding in ties
    cost.diagonal().sub_(tie_break)
    cost -= cost.amin(1, keepdim=True)  # a constant a row or column changes no optimum and halves the solver's work
    cost -= cost.amin(0, keepdim=True)
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1]).long()


@dataclass(frozen=True)
class Coupling:
    """Pairs of points: ``x0[i]`` belongs to ``x1[i]``. Both ``(N, D)`` float tensors.

    ``group`` ``(N,)`` long says which pairs travel together (a cluster, a beam); by default each pair is its own.
    """

    x0: Tensor
    x1: Tensor
    group: Tensor | None = None

    def __post_init__(self):
        check_pairs(self.x0, self.x1)
        group = torch.arange(len(self.x0), device=self.x0.device) if self.group is None else self.group
        if group.shape != self.x0.shape[:1]:
            raise ValueError(f"group has shape {tuple(group.shape)}: give one number per pair, ({len(self.x0)},).")
        object.__setattr__(self, "group", group.long())

    def __len__(self) -> int:
        return len(self.x0)

    def independent(self, generator: torch.Generator | None = None) -> "Coupling":
        """The same clouds, partners drawn by lot (a random permutation)."""
        device = generator.device if generator is not None else None
        return self.re_paired(torch.randperm(len(self), generator=generator, device=device))

    def optimal_transport(self, metric: str = "euclidean") -> "Coupling":
        """The same clouds, paired by :func:`optimal_assignment`: every point used exactly once."""
        return self.re_paired(optimal_assignment(self.x0, self.x1, metric))

    def re_paired(self, assignment: Tensor) -> "Coupling":
        """The same clouds, ``x0[i]`` paired with ``x1[assignment[i]]``. Groups stay with ``x0``."""
        return Coupling(self.x0, self.x1[assignment.to(self.x1.device)], self.group)

    def at(self, t: float) -> Tensor:
        """Where everyone is at time ``t`` on the straight line to its partner: ``(N, D)``."""
        return torch.lerp(self.x0, self.x1, t)

    def crossings(self) -> Tensor:
        """Which straight lines cross on paper: ``(N, N)`` bool, symmetric. For points in the plane, D = 2.

        Lines that only touch, or lie in one another, do not count.
        """
        if self.x0.shape[1] != 2:
            raise ValueError(f"Lines cross in the plane; these points have {self.x0.shape[1]} dimensions.")
        a, b = self.x0.double(), self.x1.double()
        starts, ends = _side(a, b, a), _side(a, b, b)  # of point j, seen from line i
        parted = starts * ends < 0
        return parted & parted.T

    def closest_approach(self) -> Tensor:
        """How near two pairs come to each other *at the same time*, on straight lines: ``(N, N)``, any D.

        Lines may cross on paper and never meet: what matters to a velocity field is being in one place at one time.
        """
        gap = self.x0[:, None] - self.x0[None]  # at t = 0; it grows linearly to that of x1
        change = self.x1[:, None] - self.x1[None] - gap
        t = -(gap * change).sum(-1) / change.square().sum(-1).clamp_min(1e-30)
        return (gap + t.clamp(0, 1)[..., None] * change).norm(dim=-1)


def _side(a: Tensor, b: Tensor, point: Tensor) -> Tensor:
    """On which side of line ``a[i] b[i]`` point ``j`` lies: ``(N, N)``, positive to the left, 0 on the line."""
    along, to = (b - a)[:, None], point[None] - a[:, None]
    return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]


@dataclass(frozen=True)
class RecouplingRatio:
    """``ratio`` in [0, 1]; ``assignment`` ``(N,)`` long, the optimal partner of each point; ``n`` points."""

    ratio: float
    assignment: Tensor
    n: int

    @property
    def re_paired(self) -> Tensor:
        """``(N,)`` bool: the points that optimal transport pairs with someone else."""
        return self.assignment != torch.arange(self.n)

    def interval(self, level: float = 0.95, resamples: int = 1000, generator: torch.Generator | None = None):
        """Bootstrap interval of the ratio over points, the assignment held fixed: ``(low, high)``."""
        return interval(bootstrap_means(self.re_paired, resamples, generator), level)


def recoupling_ratio(x0: Tensor, x1: Tensor, metric: str = "euclidean") -> RecouplingRatio:
    """``R = 1 − E[Tr(M)/N]`` of the pairs ``(x0[i], x1[i])``, M their exact optimal-transport assignment.

    Args:
        x0, x1: ``(N, D)`` float tensors. R grows with N: compare ratios at one N only.
        metric: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"`` (the paper names none; Euclidean is our choice).

    Raises:
        ValueError: shapes that are no pairs, NaN or infinity, unknown metric.
    """
    assignment = optimal_assignment(x0, x1, metric)
    kept = (assignment == torch.arange(len(x0))).double().mean().item()
    return RecouplingRatio(ratio=1 - kept, assignment=assignment, n=len(x0))
