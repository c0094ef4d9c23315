"""Bootstrap intervals and rank correlations."""

import numpy as np
import torch
from torch import Tensor

from . import checks

RESAMPLES = 2000


@checks.takes(samples=checks.tensor)
def interval(samples: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Return the ends ``(low, high)`` of the central ``level`` of ``samples`` ``(R,)``."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}: an interval's level lies between 0 and 1, such as 0.95.")
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"samples has shape {tuple(samples.shape)}: give (R,), R at least 1.")
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return tuple(samples.double().cpu().quantile(tails).tolist())


def bootstrap_rows(
    n: int, resamples: int = RESAMPLES, generator: torch.Generator | None = None, strata: Tensor | None = None
) -> Tensor:
    """Draw row numbers with replacement: ``(resamples, n)`` long.

    ``scipy.stats.bootstrap`` resamples one statistic at a time; tables over the same sequences must be resampled
    together, also when they are computed in different places. So the default generator always draws the same rows.

    Args:
        n: number of rows.
        resamples: number of bootstrap samples.
        generator: source of randomness; a new one with seed 0, if None.
        strata: ``(n,)`` long. Rows are then drawn within each stratum, and each sample is sorted by stratum.
    """
    generator = generator or torch.Generator().manual_seed(0)
    if strata is None:
        return torch.randint(n, (resamples, n), generator=generator)
    groups = [(strata == value).nonzero()[:, 0] for value in strata.unique()]
    drawn = [g[torch.randint(len(g), (len(g),), generator=generator)] for _ in range(resamples) for g in groups]
    return torch.cat(drawn).reshape(resamples, n)


def bootstrap_means(values: Tensor, resamples: int = RESAMPLES, generator: torch.Generator | None = None) -> Tensor:
    """Return the mean of each bootstrap sample of rows (:func:`bootstrap_rows`): ``(N, …)`` → ``(resamples, …)``."""
    rows = bootstrap_rows(len(values), resamples, generator)
    counts = torch.zeros(rows.shape, dtype=torch.float64).scatter_add_(1, rows, torch.ones_like(rows).double())
    return torch.tensordot(counts, values.double().cpu(), 1) / len(values)


def ratio_interval(kl: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the 95 % interval of mean ``kl`` / mean ``other``, ``(N,)`` each over the same sequences."""
    means = bootstrap_means(torch.stack([kl, other], -1))
    return interval(means[:, 0] / means[:, 1])


def summary(samples: Tensor, level: float = 0.95) -> Tensor:
    """Return mean and bootstrap interval over the N rows: ``(N, S)`` → ``(3, S)``; the interval of one row is NaN."""
    mean = samples.double().mean(0)
    if len(samples) == 1:
        return torch.stack([mean, *[torch.full_like(mean, float("nan"))] * 2])
    ends = [interval(column, level) for column in bootstrap_means(samples).T]
    return torch.cat([mean[None], torch.tensor(ends, dtype=torch.float64).T])


def rank_correlation(
    predicted: Tensor, measured: Tensor, strata: Tensor | None = None, level: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """Return Spearman's rank correlation of a criterion with a measurement, and its bootstrap interval over spans.

    Spans overlap, so they are not independent, and the true interval is wider than this one.

    Args:
        predicted, measured: ``(S,)``, one number per span.
        strata: ``(S,)`` long, such as the spans' lengths. Ranks are then taken within each stratum, because a longer
            span is worse by any criterion.
        level: of the interval, between 0 and 1.
        resamples: number of bootstrap samples.

    Returns:
        ``(rho, low, high)``; NaN if a criterion is the same for all spans.

    Raises:
        ValueError: different shapes, or fewer than 3 spans.
    """
    rho = _resampled_rho(predicted, measured, strata, resamples)
    samples = rho[1:] if rho[1:].isnan().all() else rho[1:][~rho[1:].isnan()]
    return rho[0].item(), *interval(samples, level)


def rank_correlation_gain(
    first: Tensor,
    second: Tensor,
    measured: Tensor,
    strata: Tensor | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> tuple[float, float, float]:
    """Return how much larger the rank correlation of criterion ``first`` is than that of ``second``, with its interval.

    Both are resampled together: two correlations whose own intervals overlap may still differ clearly, because spans
    that are hard for one criterion are hard for the other.

    Args:
        first, second, measured: ``(S,)``, one number per span.
        strata, level, resamples: see :func:`rank_correlation`.

    Returns:
        ``(difference of rho, low, high)``; NaN if a criterion is the same for all spans.

    Raises:
        ValueError: different shapes, or fewer than 3 spans.
    """
    gain = _resampled_rho(first, measured, strata, resamples) - _resampled_rho(second, measured, strata, resamples)
    samples = gain[1:] if gain[1:].isnan().all() else gain[1:][~gain[1:].isnan()]
    return gain[0].item(), *interval(samples, level)


def _resampled_rho(predicted: Tensor, measured: Tensor, strata: Tensor | None, resamples: int) -> Tensor:
    """Return the rank correlation of all spans, then those of bootstrap samples: ``(1 + resamples,)``."""
    strata = torch.zeros(len(predicted), dtype=torch.long) if strata is None else torch.as_tensor(strata)
    if not predicted.shape == measured.shape == strata.shape or predicted.ndim != 1 or len(predicted) < 3:
        shapes = ", ".join(str(tuple(x.shape)) for x in (predicted, measured, strata))
        raise ValueError(f"Shapes {shapes}: give predicted, measured and strata of one length, at least 3 spans.")
    order, sizes = strata.argsort(stable=True), strata.unique(return_counts=True)[1].tolist()
    rows = torch.cat([order[None], bootstrap_rows(len(strata), resamples, strata=strata)])
    return torch.from_numpy(spearman(predicted.cpu()[rows], measured.cpu()[rows], sizes))


def spearman(a: np.ndarray | Tensor, b: np.ndarray | Tensor, sizes: list[int] | None = None) -> np.ndarray:
    """Return Spearman's rank correlation along the last axis: two ``(…, N)`` → ``(…)`` float64; NaN for a constant.

    Args:
        a, b: paired values; ties get their average rank.
        sizes: lengths of consecutive strata, whose sum is N: ranks are taken and centered within each.
    """
    from scipy.stats import rankdata

    def centered(x) -> np.ndarray:
        parts = np.split(np.asarray(x), np.cumsum(sizes or [])[:-1].astype(int), axis=-1)
        return np.concatenate([rankdata(part, axis=-1) - (part.shape[-1] + 1) / 2 for part in parts], axis=-1)

    u, v = centered(a), centered(b)
    scale = np.sqrt((u * u).sum(-1) * (v * v).sum(-1))
    return np.divide((u * v).sum(-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def evenly_spaced(rows: int, wanted: int) -> list[int]:
    """Return ``wanted`` row numbers, evenly spaced over ``rows``; all of them if there are no more."""
    return list(range(rows)) if wanted >= rows else [i * rows // wanted for i in range(wanted)]
