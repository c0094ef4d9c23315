"""How far a student is from its teacher, on held-out text."""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .families import cache_name, family_of, layers_of
from .latents import all_depths, state_leaving
from .objectives import token_kl
from .recoupling import interval
from .splicing import check_pair, check_span

RESAMPLES = 2000


@dataclass(frozen=True)
class Evaluation:
    """Of one student against one teacher.

    Attributes:
        kl: KL(teacher ‖ student), nats per token, mean over all tokens; ``kl_interval`` its 95 % bootstrap interval
            over sequences.
        nmse: squared error of the operator's output over the variance of the true one, position 0 left out;
            ``nmse_all`` with it.
        perplexity, teacher_perplexity: of the next token.
        tokens: tokens evaluated.
        parameters: of the student; ``operator_parameters`` of its operator.
        nfe: layer-sized evaluations the operator takes a token.
        sequence_kl: ``(N,)`` mean KL of each sequence, for paired comparisons.
    """

    kl: float
    kl_interval: tuple[float, float]
    nmse: float
    nmse_all: float
    perplexity: float
    teacher_perplexity: float
    tokens: int
    parameters: int
    operator_parameters: int
    nfe: int
    sequence_kl: Tensor = field(repr=False)

    def to_dict(self) -> dict:
        """JSON: everything but the per-sequence table."""
        return {k: v for k, v in vars(self).items() if k != "sequence_kl"}

    def __str__(self) -> str:
        low, high = self.kl_interval
        return (
            f"KL {self.kl:.3f} nats/token (95 %: {low:.3f} to {high:.3f}) · NMSE {self.nmse:.3f} · "
            f"perplexity {self.perplexity:.2f} (teacher {self.teacher_perplexity:.2f}) · {self.tokens:,} tokens · "
            f"{self.parameters:,} parameters · {self.nfe} evaluations"
        )


def bootstrap_means(values: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Means of rows drawn with replacement: ``(N, ...)`` → ``(resamples, ...)``. One seed draws one set of rows, so
    tables over the same sequences are resampled together."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (resamples, len(values)), generator=generator)
    return torch.stack([values[rows].mean(0) for rows in drawn])


def blocks_of(corpus) -> Tensor:
    """Token blocks ``(N, T)`` of a corpus or of a tensor of them."""
    blocks = corpus if isinstance(corpus, Tensor) else torch.tensor([row["input_ids"] for row in corpus])
    if blocks.ndim != 2 or blocks.shape[0] < 1 or blocks.shape[1] < 2:
        raise ValueError(f"The corpus has shape {tuple(blocks.shape)}: give at least one block of 2 or more tokens.")
    return blocks.long()


class _Tap:
    """Keeps the latest output of a module while it is in use."""

    def __init__(self, module):
        self.hook = module.register_forward_hook(self._keep)

    def _keep(self, module, args, output):
        self.value = state_leaving(output)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.hook.remove()


def evaluation_batch(vocabulary: int, block: int, most: int = 16, room: float = 256e6) -> int:
    """Blocks to compare at once, so that one model's logits in float32 take at most ``room`` bytes (six copies are
    alive at the peak)."""
    return max(1, min(most, int(room // (4 * vocabulary * block))))


@torch.no_grad()
def evaluate(student, teacher, corpus, batch_size: int | None = None, progress: bool = False) -> Evaluation:
    """Compare a spliced model with its teacher, token by token.

    Args:
        corpus: a corpus of equal blocks, or a long tensor ``(N, T)``.
        batch_size: blocks at once; :func:`evaluation_batch`, if None.

    Returns:
        An :class:`Evaluation`.

    Raises:
        ValueError: an empty corpus.
    """
    from tqdm.auto import tqdm

    check_pair(student, teacher)
    blocks = blocks_of(corpus)
    batch_size = batch_size or evaluation_batch(teacher.config.vocab_size, blocks.shape[1])
    last = student.config.span[1] - 1
    sequence_kl, losses = [], []
    first, rest = _SquaredError(), _SquaredError()
    with _Tap(student.operator) as transported, _Tap(layers_of(teacher)[last]) as truth:
        for part in tqdm(
            blocks.split(batch_size), desc="evaluate", unit="batch", disable=not progress, mininterval=1.0
        ):
            ids = part.to(teacher.device)
            expected = teacher(input_ids=ids, use_cache=False).logits
            logits = student(input_ids=ids, use_cache=False).logits
            sequence_kl.append(token_kl(logits, expected).double().mean(1).cpu())
            losses.append(torch.stack([next_token_loss(x, ids) for x in (logits, expected)], -1).cpu())
            first.add(transported.value[:, :1], truth.value[:, :1])
            rest.add(transported.value[:, 1:], truth.value[:, 1:])
    divergence = torch.cat(sequence_kl)
    if not bool(divergence.isfinite().all()):
        raise ValueError("The logits hold NaN or infinity: load teacher and student in float32 or bfloat16.")
    perplexity = torch.cat(losses).mean(0).exp()
    return Evaluation(
        kl=divergence.mean().item(),
        kl_interval=interval(bootstrap_means(divergence)),
        nmse=rest.normalised(),
        nmse_all=(first + rest).normalised(),
        perplexity=perplexity[0].item(),
        teacher_perplexity=perplexity[1].item(),
        tokens=blocks.numel(),
        parameters=sum(p.numel() for p in student.parameters()),
        operator_parameters=sum(p.numel() for p in student.operator.parameters()),
        nfe=student.operator.nfe,
        sequence_kl=divergence,
    )


@dataclass
class _SquaredError:
    """Sums from which Σ‖error‖² over Σ‖state − mean state‖² comes: 1 is what predicting the mean costs."""

    n: int = 0
    error: Tensor | float = 0.0
    total: Tensor | float = 0.0  # Σ state, (D,)
    square: Tensor | float = 0.0  # Σ ‖state‖²

    def add(self, estimate: Tensor, state: Tensor) -> None:
        estimate, state = (x.double().flatten(0, 1) for x in (estimate, state))
        self.n += len(state)
        self.error += (estimate - state).square().sum()
        self.total += state.sum(0)
        self.square += state.square().sum()

    def __add__(self, other: "_SquaredError") -> "_SquaredError":
        return _SquaredError(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def normalised(self) -> float:
        return (self.error / (self.square - self.total.square().sum() / self.n)).item()


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross-entropy of each sequence's next tokens, ``(B,)`` float64."""
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
    return loss.double().mean(1)


@torch.no_grad()
def skip_damage(teacher, corpus, spans, batch_size: int = 16, progress: bool = True) -> dict[tuple, Tensor]:
    """KL(teacher ‖ teacher without layers m … n−1) of each sequence, ``(N,)``, for each span (m, n).

    The states at every depth are computed once; each span then costs only its tail.
    """
    from tqdm.auto import tqdm

    family, layers = family_of(teacher.config), layers_of(teacher)
    final_norm, head = teacher.get_submodule(family.final_norm), teacher.get_output_embeddings()
    spans = [check_span(span, len(layers)) for span in spans]
    blocks = blocks_of(corpus)
    # One table, allocated first: small results kept from between large temporaries would each pin a hole in the heap.
    table = torch.empty(len(spans), len(blocks), dtype=torch.float64)
    batches = blocks.split(batch_size)
    with tqdm(
        total=len(batches) * len(spans), desc="skip damage", unit="span", disable=not progress, mininterval=1.0
    ) as bar:
        for b, ids in enumerate(batches):
            columns = slice(b * batch_size, b * batch_size + len(ids))
            states, expected, contexts = all_depths(teacher, ids.to(teacher.device))
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


def row_title(row: dict) -> str:
    """The name of a row of ``ladder.json`` with its solver: ``flow-walking (midpoint × 3)``."""
    solver = row["operator"].get("solver")
    return f"{row['name']} ({solver} × {row['operator']['steps']})" if solver else row["name"]


def row_layers(row: dict) -> str:
    """j* of a row of ``ladder.json`` with its interval; ``> 12`` beyond the curve that was measured."""
    j, low, high = (
        "> 12" if x is None else f"{x:.2f}" for x in (row["skipped_layers"], *row["skipped_layers_interval"])
    )
    return f"{j} ({low}–{high})" if (low, high) != (j, j) else j


def ratio_interval(kl: Tensor, other: Tensor) -> tuple[float, float]:
    """95 % interval of the ratio of two mean divergences of the same sequences, ``(N,)`` each, resampled together."""
    means = bootstrap_means(torch.stack([kl, other], -1))
    return interval(means[:, 0] / means[:, 1])


def recovery(kl: float, skip_kl: float) -> float:
    """Share of the damage of skipping the same span that the operator undoes: 1 − KL / KL(skip)."""
    return 1 - kl / skip_kl


@torch.no_grad()
def latencies(models: dict, tokens: int = 128, new_tokens: int = 16, rounds: int = 5, progress: bool = False) -> dict:
    """Milliseconds a token of each model: ``prefill`` of one sequence and ``decode`` with the cache.

    The models take turns, ``rounds`` times, and the least of each counts: on a shared machine two models timed one
    after the other differ by what else ran meanwhile.

    Args:
        models: key → model.

    Returns:
        key → ``{"prefill": ms, "decode": ms}``.
    """
    from tqdm.auto import tqdm

    best = {key: {"prefill": math.inf, "decode": math.inf} for key in models}
    for i in tqdm(range(rounds + 1), desc="latency", unit="round", disable=not progress):
        for key, model in models.items():
            ids = torch.arange(2, 2 + tokens, device=model.device)[None] % model.get_input_embeddings().num_embeddings
            spent = {"prefill": _milliseconds(_prefill, model, ids) / tokens}
            spent["decode"] = _milliseconds(_decode, model, ids[:, :new_tokens]) / new_tokens
            if i:  # the first round pays for allocation
                best[key] = {what: min(best[key][what], ms) for what, ms in spent.items()}
    return best


def _prefill(model, ids) -> None:
    model(input_ids=ids, use_cache=False)


def _decode(model, ids) -> None:
    cache, name = None, cache_name()
    for i in range(ids.shape[1]):
        cache = model(input_ids=ids[:, i : i + 1], use_cache=True, **{name: cache})[name]


def _milliseconds(work, model, ids) -> float:
    _wait(model.device)
    started = time.perf_counter()
    work(model, ids)
    _wait(model.device)
    return 1000 * (time.perf_counter() - started)


def _wait(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
