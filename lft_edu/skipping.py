"""What skipping layers costs: the yardstick for every operator."""

import math

import torch
from torch import Tensor

from .families import family_of, layers_of
from .latents import hidden_states_at_all_layers
from .objectives import token_kl
from .splicing import check_span
from .support.machine import evaluation_batch
from .support.statistics import bootstrap_means, evenly_spaced, interval
from .text import as_sequences


@torch.no_grad()
def skip_kl(teacher, corpus, spans, batch_size: int = 16, progress: bool = True) -> dict[tuple, Tensor]:
    """KL(teacher ‖ teacher without layers m … n−1) of each sequence, ``(N,)``, for each span (m, n).

    The states at every depth are computed once; each span then costs only its tail.
    """
    from tqdm.auto import tqdm

    family, layers = family_of(teacher.config), layers_of(teacher)
    final_norm, head = teacher.get_submodule(family.final_norm), teacher.get_output_embeddings()
    spans = [check_span(span, len(layers)) for span in spans]
    blocks = as_sequences(corpus)
    # One table, allocated first: small results kept from between large temporaries would each pin a hole in the heap.
    table = torch.empty(len(spans), len(blocks), dtype=torch.float64)
    batches = blocks.split(batch_size)
    with tqdm(
        total=len(batches) * len(spans), desc="skip damage", unit="span", disable=not progress, mininterval=1.0
    ) as bar:
        for b, ids in enumerate(batches):
            columns = slice(b * batch_size, b * batch_size + len(ids))
            states, expected, contexts = hidden_states_at_all_layers(teacher, ids.to(teacher.device))
            for row, (m, n) in enumerate(spans):
                x = states[m]
                for layer, context in zip(layers[n:], contexts[n:], strict=True):
                    x = layer(x, **context)
                table[row, columns] = token_kl(head(final_norm(x)), expected).double().mean(1).cpu()
                bar.update()
    return dict(zip(spans, table, strict=True))


def skipped_layers(kl: Tensor | float, curve: dict[int, float]) -> float:
    """Equivalent skipped layers j*: at which j does skipping the best j layers cost ``kl``?

    Args:
        kl: nats per token.
        curve: j → KL of skipping the best contiguous span of j layers. Zero layers cost nothing; between whole numbers
            the curve is taken as straight; a dip is filled (skipping more never counts as better).

    Returns:
        j*, in layers; infinity beyond the curve's end.
    """
    if math.isnan(kl):
        raise ValueError("kl is NaN: the evaluation it came from went wrong.")
    before_j, before = 0, 0.0
    for j in sorted(curve):
        cost = max(curve[j], before)
        if kl <= cost:
            return before_j + (j - before_j) * (kl - before) / max(cost - before, 1e-12)
        before_j, before = j, cost
    return math.inf


def skipped_layers_interval(kl: Tensor, curve: dict[int, Tensor]) -> tuple[float, float]:
    """95 % interval of j* from per-sequence KL ``(N,)`` of the operator and of each skip, resampled together."""
    together = bootstrap_means(torch.stack([kl, *(curve[j] for j in sorted(curve))], -1))
    samples = [skipped_layers(row[0], dict(zip(sorted(curve), row[1:], strict=True))) for row in together.tolist()]
    beyond = 2.0 * max(curve)  # a quantile can't interpolate with infinity
    edges = interval(torch.tensor(samples, dtype=torch.float64).clamp(max=beyond))
    return tuple(edge if edge <= max(curve) else math.inf for edge in edges)


def recovery(kl: float, skip_kl: float) -> float:
    """Share of the damage of skipping the same span that the operator undoes: 1 − KL / KL(skip)."""
    return 1 - kl / skip_kl


def row_layers(row: dict) -> str:
    """j* of a row of ``ladder.json`` with its interval; ``> 12`` beyond the curve that was measured."""
    j, low, high = (
        "> 12" if x is None else f"{x:.2f}" for x in (row["skipped_layers"], *row["skipped_layers_interval"])
    )
    return f"{j} ({low}–{high})" if (low, high) != (j, j) else j


def best_skips(teacher, corpus, most: int = 3, sample: int = 64, progress: bool = True) -> dict[int, dict]:
    """For 1 … ``most`` layers: the contiguous span whose skipping costs least, with its KL. The bar to clear.

    Args:
        sample: sequences, spread over the corpus, on which the spans are compared; the best ones are then measured on
            all of it.
    """
    from .metrics import interval
    from .support.statistics import bootstrap_means
    from .text import as_sequences

    depth, blocks = len(layers_of(teacher)), as_sequences(corpus)
    spans = [(m, m + j) for j in range(1, most + 1) for m in range(depth - j + 1)]
    options = {"batch_size": evaluation_batch(teacher.config.vocab_size, blocks.shape[1]), "progress": progress}
    tried = skip_kl(teacher, blocks[evenly_spaced(len(blocks), sample)], spans, **options)
    best = [min((s for s in spans if s[1] - s[0] == j), key=lambda s: tried[s].mean()) for j in range(1, most + 1)]
    found = {}
    for span, kl in skip_kl(teacher, blocks, best, **options).items():
        low, high = interval(bootstrap_means(kl))
        found[span[1] - span[0]] = {"span": list(span), "kl": kl.mean().item(), "kl_interval": [low, high]}
    return found
