"""Couplings: which point of one cloud is paired with which point of another.

Three couplings of the same two clouds: as given, independent (random), and by optimal transport, the permutation
with the least total distance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .support import checks
from .support.machine import float64
from .support.statistics import bootstrap_means, interval

METRICS = ("euclidean", "sqeuclidean", "cosine")


def check_pairs(x0: Tensor, x1: Tensor) -> None:
    """Raise ValueError unless ``x0`` and ``x1`` are finite ``(N, D)`` float tensors of one shape, N at least 1."""
    if x0.ndim != 2 or x0.shape != x1.shape or len(x0) == 0:
        raise ValueError(f"Pairs must be two (N, D) tensors of one shape; got {tuple(x0.shape)} and {tuple(x1.shape)}.")
    for name, x in (("x0", x0), ("x1", x1)):
        if not x.is_floating_point():
            raise ValueError(f"{name} is {x.dtype}: convert it with .float().")
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).any(-1).sum())
            raise ValueError(f"{name} has NaN or infinity in {bad} of {len(x)} points: remove or replace them first.")


@checks.takes(x0=checks.tensor, x1=checks.tensor)
def cost_matrix(x0: Tensor, x1: Tensor, metric: str = "euclidean") -> Tensor:
    """Return the distance of every point of ``x0`` to every point of ``x1``: ``(N, N)`` float64.

    Args:
        x0, x1: ``(N, D)``.
        metric: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``.
    """
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r}: choose one of {', '.join(METRICS)}.")
    a, b = float64(x0.detach()), float64(x1.detach())
    if metric == "cosine":
        a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (a, b))
        return 1 - a @ b.T
    distance = torch.cdist(
        a, b, compute_mode="donot_use_mm_for_euclid_dist" if len(a) <= 256 else "use_mm_for_euclid_dist"
    )
    return distance.square() if metric == "sqeuclidean" else distance


@checks.takes(x0=checks.tensor, x1=checks.tensor)
def optimal_assignment(x0: Tensor, x1: Tensor, metric: str = "euclidean") -> Tensor:
    """Solve the linear assignment problem exactly: pair ``x0[i]`` with ``x1[assignment[i]]`` at the least total cost.

    Ties keep the given pairs: partners are swapped only if that costs less (which matters for duplicate points). O(N³)
    in the worst case; seconds at N = 2,000.

    Args:
        x0, x1: ``(N, D)`` float tensors.
        metric: see :func:`cost_matrix`.

    Returns:
        ``(N,)`` long tensor on the CPU, a permutation of 0 … N−1.
    """
    check_pairs(x0, x1)
    return assign(cost_matrix(x0, x1, metric).cpu())


@checks.takes(cost=checks.tensor)
def assign(cost: Tensor) -> Tensor:
    """Return the permutation of least total ``cost`` ``(N, N)``, as :func:`optimal_assignment` does.

    Raises:
        ValueError: not a square table of finite numbers.
    """
    from scipy.optimize import linear_sum_assignment

    if cost.ndim != 2 or cost.shape[0] != cost.shape[1] or not len(cost):
        raise ValueError(f"cost has shape {tuple(cost.shape)}: give (N, N), what each pair costs, N at least 1.")
    if not bool(cost.isfinite().all()):
        raise ValueError("cost has NaN or infinity: no assignment is the least.")
    cost = cost.double() if not cost.is_floating_point() else cost.clone()
    sample = cost.flatten()[:: max(1, cost.numel() // 4096)]
    sample = sample[sample > 0]  # the median, since the mean of a few outliers may be above all other costs
    tie_break = 1e-12 * float(sample.median() if len(sample) else 0) + 1e-300  # below differences, above rounding
    cost.diagonal().sub_(tie_break)
    cost -= cost.amin(1, keepdim=True)  # a constant per row or column does not change the optimum; halves the time
    cost -= cost.amin(0, keepdim=True)
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1]).long()


@dataclass(frozen=True)
class Coupling:
    """Pairs of points.

    Attributes:
        x0, x1: ``(N, D)`` float tensors; ``x0[i]`` is paired with ``x1[i]``.
        group: ``(N,)`` long, a label per pair, such as its cluster; by default, each pair is its own group.
    """

    x0: Tensor
    x1: Tensor
    group: Tensor = None  # type: ignore[assignment]  # None may be given; it is a tensor from then on

    def __post_init__(self):
        for name in ("x0", "x1"):
            object.__setattr__(self, name, checks.tensor(name, getattr(self, name)))
        check_pairs(self.x0, self.x1)
        group = (
            torch.arange(len(self.x0), device=self.x0.device)
            if self.group is None
            else checks.tensor("group", self.group)
        )
        if group.shape != self.x0.shape[:1]:
            raise ValueError(f"group has shape {tuple(group.shape)}: give one number per pair, ({len(self.x0)},).")
        if group.is_floating_point() or group.is_complex():
            raise ValueError(f"group is {group.dtype}: labels are whole numbers; convert them with .long().")
        object.__setattr__(self, "group", group.long())

    def __len__(self) -> int:
        return len(self.x0)

    def independent(self, generator: torch.Generator | None = None) -> "Coupling":
        """Return the independent coupling of the same clouds: a random permutation of ``x1``."""
        device = generator.device if generator is not None else None
        return self.re_paired(torch.randperm(len(self), generator=generator, device=device))

    def optimal_transport(self, metric: str = "euclidean") -> "Coupling":
        """Return the optimal-transport coupling of the same clouds (:func:`optimal_assignment`)."""
        return self.re_paired(optimal_assignment(self.x0, self.x1, metric))

    def re_paired(self, assignment: Tensor) -> "Coupling":
        """Return the same clouds with ``x0[i]`` paired with ``x1[assignment[i]]``. Groups stay with ``x0``."""
        return Coupling(self.x0, self.x1[assignment.to(self.x1.device)], self.group)

    repaired = re_paired

    @checks.takes(t=checks.real)
    def at(self, t: float) -> Tensor:
        """Return the linear interpolants (1−t) x0 + t x1, ``(N, D)``, for ``t`` in [0, 1]."""
        return torch.lerp(self.x0, self.x1, t)

    def crossings(self) -> Tensor:
        """Return which line segments x0[i] x1[i] cross: ``(N, N)`` bool, symmetric. D must be 2.

        Segments that only touch or overlap do not count. Crossing is about space alone; see :meth:`closest_approach`.
        """
        if self.x0.shape[1] != 2:
            raise ValueError(
                f"crossings() needs points in the plane; these have D = {self.x0.shape[1]}. Use closest_approach()."
            )
        a, b = float64(self.x0), float64(self.x1)
        starts, ends = _side(a, b, a), _side(a, b, b)  # of point j, as seen from line i
        parted = starts * ends < 0
        return parted & parted.T

    def closest_approach(self) -> Tensor:
        """Return the least distance over t of any two interpolants *at the same time*: ``(N, N)``, any D.

        Lines may cross without a meeting (same place at the same time), and only a meeting makes a velocity ambiguous.
        """
        gap = self.x0[:, None] - self.x0[None]  # at t = 0; it changes linearly to that at t = 1
        change = self.x1[:, None] - self.x1[None] - gap
        t = -(gap * change).sum(-1) / change.square().sum(-1).clamp_min(1e-30)
        return (gap + t.clamp(0, 1)[..., None] * change).norm(dim=-1)


def _side(a: Tensor, b: Tensor, point: Tensor) -> Tensor:
    """Return the side of line ``a[i] b[i]`` on which point ``j`` lies: ``(N, N)``, positive on the left."""
    along, to = (b - a)[:, None], point[None] - a[:, None]
    return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]


@dataclass(frozen=True)
class RecouplingRatio:
    """The fraction of pairs that optimal transport would re-pair.

    Attributes:
        ratio: in [0, 1].
        assignment: ``(N,)`` long, the optimal partner of each point.
        n: number of points.
    """

    ratio: float
    assignment: Tensor
    n: int

    @property
    def re_paired(self) -> Tensor:
        """Return which points get another partner by optimal transport: ``(N,)`` bool."""
        return self.assignment != torch.arange(self.n)

    recoupled = re_paired

    def interval(
        self, level: float = 0.95, resamples: int = 1000, generator: torch.Generator | None = None
    ) -> tuple[float, float]:
        """Return the bootstrap interval ``(low, high)`` of the ratio over points, with the assignment held fixed."""
        return interval(bootstrap_means(self.re_paired, resamples, generator), level)


def recoupling_ratio(x0: Tensor, x1: Tensor, metric: str = "euclidean") -> RecouplingRatio:
    """Compute the recoupling ratio ``R = 1 − E[Tr(M)/N]``, with M the exact optimal-transport assignment of the pairs.

    Args:
        x0, x1: ``(N, D)`` float tensors. R grows with N, so compare ratios only at the same N.
        metric: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"`` (the paper does not say; Euclidean is our choice).

    Raises:
        ValueError: different shapes, NaN or infinity, unknown metric.
    """
    assignment = optimal_assignment(x0, x1, metric)
    kept = (assignment == torch.arange(len(x0))).double().mean().item()
    return RecouplingRatio(ratio=1 - kept, assignment=assignment, n=len(x0))
