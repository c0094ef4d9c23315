"""Intervals by the bootstrap, and rank correlations."""

import math

import numpy as np
import torch
from torch import Tensor


def interval(samples: Tensor, level: float = 0.95) -> tuple[float, float]:
    """The central share ``level`` of samples ``(R,)``: ``(low, high)``."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}: an interval's level lies between 0 and 1, such as 0.95.")
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return tuple(samples.double().cpu().quantile(tails).tolist())


RESAMPLES = 2000


def bootstrap_means(values: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Means of rows drawn with replacement: ``(N, ...)`` → ``(resamples, ...)``. One seed draws one set of rows, so
    tables over the same sequences are resampled together."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (resamples, len(values)), generator=generator)
    return torch.stack([values[rows].mean(0) for rows in drawn])


def ratio_interval(kl: Tensor, other: Tensor) -> tuple[float, float]:
    """95 % interval of the ratio of two mean divergences of the same sequences, ``(N,)`` each, resampled together."""
    means = bootstrap_means(torch.stack([kl, other], -1))
    return interval(means[:, 0] / means[:, 1])


def summary(samples: Tensor, level: float = 0.95) -> Tensor:
    """``(N, S)`` samples → ``(3, S)``: mean, and its bootstrap interval over the N (resampled together)."""
    generator = torch.Generator().manual_seed(0)
    if len(samples) == 1:  # one number: nothing to resample
        return torch.cat([samples.double(), torch.full((2, samples.shape[1]), float("nan"), dtype=torch.float64)])
    drawn = torch.randint(len(samples), (RESAMPLES, len(samples)), generator=generator)
    counts = torch.zeros(RESAMPLES, len(samples), dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    means = counts @ samples.double() / len(samples)
    ends = [interval(column, level) for column in means.T]
    return torch.cat([samples.double().mean(0)[None], torch.tensor(ends, dtype=torch.float64).T])


def rank_correlation(
    predicted: Tensor, measured: Tensor, strata: Tensor | None = None, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float, float]:
    """Spearman's rank correlation of a criterion with what was measured, and its bootstrap interval over spans.

    Spans overlap, so they are not independent, and the true interval is wider than this one.

    Args:
        predicted, measured: ``(S,)``, one number a span.
        strata: ``(S,)`` long, such as the spans' lengths: ranks are then taken within each, since a longer span is
            worse by any criterion, and that much is known without one.

    Returns:
        ``(rho, low, high)``; NaN where a criterion says the same of all spans.

    Raises:
        ValueError: other shapes, or fewer than 3 spans.
    """
    strata = torch.zeros(len(predicted), dtype=torch.long) if strata is None else torch.as_tensor(strata)
    if not predicted.shape == measured.shape == strata.shape or predicted.ndim != 1 or len(predicted) < 3:
        shapes = ", ".join(str(tuple(x.shape)) for x in (predicted, measured, strata))
        raise ValueError(f"Shapes {shapes}: give predicted, measured and strata of one length, at least 3 spans.")
    generator = torch.Generator().manual_seed(0)
    groups = [(strata == value).nonzero()[:, 0] for value in strata.unique()]
    samples = []
    for _ in range(resamples):
        drawn = [group[torch.randint(len(group), (len(group),), generator=generator)] for group in groups]
        samples.append(_rho(predicted, measured, drawn))
    samples = torch.tensor(samples, dtype=torch.float64)
    kept = samples[~samples.isnan()]
    low, high = interval(kept, level) if len(kept) else (float("nan"),) * 2
    return _rho(predicted, measured, groups), low, high


def _rho(a: Tensor, b: Tensor, groups: list[Tensor]) -> float:
    """Correlation of ranks, taken and centred within each group."""
    from scipy.stats import rankdata

    ranks = [[torch.from_numpy(rankdata(x[group].numpy())) for group in groups] for x in (a, b)]
    u, v = (torch.cat([r - r.mean() for r in side]) for side in ranks)
    scale = (u.square().sum() * v.square().sum()).sqrt()
    return (u @ v / scale).item() if scale > 0 else float("nan")


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    ranked = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
    return float(spearmanr(a, b).statistic) if ranked else math.nan


def evenly_spaced(rows: int, wanted: int) -> list[int]:
    """``wanted`` row numbers, evenly spaced over ``rows``; all of them if there are no more."""
    return list(range(rows)) if wanted >= rows else [i * rows // wanted for i in range(wanted)]
