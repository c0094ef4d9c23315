"""What skipping layers costs, the baseline for every operator."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .families import layer_output, layers_of
from .heads import Head
from .latents import hidden_states_at_all_layers
from .objectives import token_kl
from .splicing import check_span
from .support.machine import evaluation_batch
from .support.modes import in_eval_mode
from .support.progress import progress_bar
from .support.statistics import bootstrap_means, evenly_spaced, interval
from .text import as_sequences

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel


@in_eval_mode
@torch.no_grad()
def skip_kl(
    teacher: PreTrainedModel,
    corpus: datasets.Dataset | Tensor,
    spans: Iterable[tuple[int, int]],
    batch_size: int = 16,
    progress: bool = True,
) -> dict[tuple[int, int], Tensor]:
    """Measure KL(teacher ‖ teacher without layers m … n−1) for each span (m, n).

    The states at every depth are computed once; each span then runs only the layers after it.

    Args:
        corpus: a dataset, or token ids ``(N, T)``.
        spans: pairs (m, n), 0 ≤ m < n ≤ L.
        batch_size: sequences at once.

    Returns:
        span → ``(N,)`` float64, mean KL of each sequence in nats per token.

    Raises:
        ValueError: a span that does not fit, or a corpus that the teacher cannot read
            (:func:`~lft_edu.text.as_sequences`).
    """
    layers, head = layers_of(teacher), Head(teacher)
    spans = [check_span(span, len(layers)) for span in spans]
    sequences = as_sequences(corpus, teacher)
    # One table, allocated first: small tensors allocated between large temporaries would fragment the heap.
    table = torch.empty(len(spans), len(sequences), dtype=torch.float64)
    batches = sequences.split(batch_size)
    with progress_bar(total=len(batches) * len(spans), desc="skip KL", unit="span", disable=not progress) as bar:
        for b, ids in enumerate(batches):
            columns = slice(b * batch_size, b * batch_size + len(ids))
            states, expected, contexts = hidden_states_at_all_layers(teacher, ids.to(teacher.device))
            for row, (m, n) in enumerate(spans):
                x = states[m]
                for layer, context in zip(layers[n:], contexts[n:], strict=True):
                    x = layer_output(layer(x, **context))
                table[row, columns] = token_kl(head(x), expected).cpu().double().mean(1)
                bar.update()
    return dict(zip(spans, table, strict=True))


skip_damage = skip_kl


def skipped_layers(kl: Tensor | float, curve: dict[int, float]) -> float:
    """Return the equivalent number of skipped layers j*, at which skipping the best j* layers costs ``kl``.

    Args:
        kl: nats per token.
        curve: j → KL of skipping the best contiguous span of j layers, 0 for j = 0. Between integers it is interpolated
            linearly; where it decreases, its running maximum is used.

    Returns:
        j* in layers; infinity if ``kl`` is above the curve.

    Raises:
        ValueError: ``kl`` or the curve is NaN.
    """
    kl = float(kl)
    if math.isnan(kl):
        raise ValueError("kl is NaN: check the evaluation that it came from.")
    before_j, before = 0, 0.0
    if any(math.isnan(cost) for cost in curve.values()):
        raise ValueError("The curve holds NaN: leave out the numbers of layers that were not measured.")
    for j in sorted(curve):
        cost = max(curve[j], before)
        if kl <= cost:
            return before_j + (j - before_j) * (kl - before) / max(cost - before, 1e-12)
        before_j, before = j, cost
    return math.inf


def skipped_layers_interval(kl: Tensor, curve: dict[int, Tensor]) -> tuple[float, float]:
    """Return the 95 % interval of j* from the KL per sequence, ``(N,)``, of the operator and of each skip."""
    together = bootstrap_means(torch.stack([kl, *(curve[j] for j in sorted(curve))], -1))
    samples = [skipped_layers(row[0], dict(zip(sorted(curve), row[1:], strict=True))) for row in together.tolist()]
    beyond = 2.0 * max(curve)  # a quantile can't interpolate with infinity
    edges = interval(torch.tensor(samples, dtype=torch.float64).clamp(max=beyond))
    low, high = (edge if edge <= max(curve) else math.inf for edge in edges)
    return low, high


def recovery(kl: float, skip_kl: float) -> float:
    """Return the fraction of the cost of skipping the same span that the operator recovers: 1 − KL / KL(skip)."""
    return 1 - kl / skip_kl


def row_layers(row: dict) -> str:
    """Format j* of a row of ``ladder.json`` with its interval; ``> 12`` above the measured curve."""
    j, low, high = (
        "> 12" if x is None else f"{x:.2f}" for x in (row["skipped_layers"], *row["skipped_layers_interval"])
    )
    return f"{j} ({low}–{high})" if (low, high) != (j, j) else j


def best_skips(
    teacher: PreTrainedModel,
    corpus: datasets.Dataset | Tensor,
    most: int = 3,
    sample: int = 64,
    progress: bool = True,
) -> dict[int, dict]:
    """Find the contiguous span of 1 … ``most`` layers that is cheapest to skip: the baseline for an operator.

    Args:
        corpus: a dataset, or token ids ``(N, T)``.
        most: largest number of layers.
        sample: number of sequences, evenly spaced, on which spans are compared; the best are measured on all.

    Returns:
        number of layers → ``{"span": [m, n], "kl": …, "kl_interval": [low, high]}``, in nats per token.

    Raises:
        ValueError: ``most`` is not between 1 and the number of layers, or the teacher cannot read the corpus.
    """
    depth = len(layers_of(teacher))
    if not 1 <= most <= depth:
        raise ValueError(f"most={most}: this teacher has {depth} layers; give 1 to {depth}.")
    sequences = as_sequences(corpus, teacher)
    spans = [(m, m + j) for j in range(1, most + 1) for m in range(depth - j + 1)]
    options: dict = {
        "batch_size": evaluation_batch(teacher.config.vocab_size, sequences.shape[1]),
        "progress": progress,
    }
    tried = skip_kl(teacher, sequences[evenly_spaced(len(sequences), sample)], spans, **options)
    best = [min((s for s in spans if s[1] - s[0] == j), key=lambda s: tried[s].mean()) for j in range(1, most + 1)]
    found = {}
    for span, kl in skip_kl(teacher, sequences, best, **options).items():
        low, high = interval(bootstrap_means(kl))
        found[span[1] - span[0]] = {"span": list(span), "kl": kl.mean().item(), "kl_interval": [low, high]}
    return found
