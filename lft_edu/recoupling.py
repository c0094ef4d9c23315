"""The recoupling ratio: how many pairs would optimal transport break up? (Paper, eq. 6 and 7.)

R = 0 says the given pairing is already the one of least total distance, so straight paths need not cross. R near 1
says almost every point would be better off with another's partner: paths cross, and flow matching averages them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .couplings import optimal_assignment


@dataclass(frozen=True)
class RecouplingRatio:
    """``ratio`` in [0, 1]; ``assignment`` ``(N,)`` long, the optimal partner of each point; ``n`` points."""

    ratio: float
    assignment: Tensor
    n: int

    @property
    def recoupled(self) -> Tensor:
        """``(N,)`` bool: the points that optimal transport pairs with someone else."""
        return self.assignment != torch.arange(self.n)

    def interval(self, level: float = 0.95, resamples: int = 1000, generator: torch.Generator | None = None):
        """Bootstrap interval of the ratio over points, the assignment held fixed: ``(low, high)``."""
        generator = generator or torch.Generator().manual_seed(0)
        drawn = torch.randint(self.n, (resamples, self.n), generator=generator)
        return interval(self.recoupled.double()[drawn].mean(1), level)


def interval(samples: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The central share ``level`` of samples ``(R,)``: ``(low, high)``."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}: an interval's level lies between 0 and 1, such as 0.95.")
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return tuple(samples.double().cpu().quantile(tails).tolist())


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
