"""How far a student is from its teacher, on held-out text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .families import layers_of
from .latents import layer_output
from .objectives import token_kl
from .splicing import check_pair
from .support import checks
from .support.machine import evaluation_batch, float64
from .support.modes import in_eval_mode
from .support.progress import progress_bar
from .support.statistics import bootstrap_means, interval
from .support.whole import unwrapped
from .text import as_sequences, encode, token_to_str

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .splicing import SplicedForCausalLM


@dataclass(frozen=True)
class Evaluation:
    """One student compared with its teacher.

    Attributes:
        kl: KL(teacher ‖ student) in nats per token, mean over all tokens.
        kl_interval: its 95 % bootstrap interval over sequences.
        nmse: squared error of the operator's output, divided by the variance of the teacher's states; 1 is what
            predicting the mean costs. Without position 0 (attention sink).
        nmse_all: the same with position 0.
        perplexity, teacher_perplexity: of the next token.
        tokens: number of tokens evaluated.
        parameters, operator_parameters: of the student, and of its operator alone.
        nfe: number of function evaluations (each the size of a layer) of the operator per token.
        first_token: id that all sequences begin with, such as beginning-of-text; None: they begin with text.
        sequence_kl: ``(N,)`` float64, mean KL of each sequence, for paired comparisons.
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
    first_token: int | None = None

    def to_dict(self) -> dict:
        """Return what was measured, but for ``sequence_kl``, for JSON."""
        return {k: v for k, v in vars(self).items() if k not in ("sequence_kl", "first_token")}

    def __str__(self) -> str:
        low, high = self.kl_interval
        return (
            f"KL {self.kl:.3f} nats/token (95 %: {low:.3f} to {high:.3f}) · NMSE {self.nmse:.3f} · "
            f"perplexity {self.perplexity:.2f} (teacher {self.teacher_perplexity:.2f}) · {self.tokens:,} tokens · "
            f"{self.parameters:,} parameters · {self.nfe} evaluations"
        )


class OutputRecorder:
    """Context manager: record the latest output of a module as ``value``."""

    def __init__(self, module):
        self.hook = module.register_forward_hook(self._keep)

    def _keep(self, module, args, output):
        self.value = layer_output(output)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.hook.remove()


@checks.takes(batch_size=checks.optional(checks.whole(1)))
@in_eval_mode
@torch.no_grad()
def evaluate(
    student: SplicedForCausalLM,
    teacher: PreTrainedModel,
    corpus: datasets.Dataset | Tensor,
    batch_size: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Compare a spliced model with its teacher on every token of a corpus.

    Args:
        corpus: a dataset with a column ``input_ids``, or token ids ``(N, T)``; unpadded, no longer than the context.
        batch_size: sequences at once; chosen by :func:`evaluation_batch` if None.
        progress: show a progress bar.

    Raises:
        ValueError: a corpus that the teacher cannot read (:func:`~lft_edu.text.as_sequences`), a student of another
            teacher, or logits that are not finite.
    """
    student, teacher = unwrapped(student), unwrapped(teacher)
    check_pair(student, teacher)
    sequences = as_sequences(corpus, teacher)
    batch_size = batch_size or evaluation_batch(teacher.config.vocab_size, sequences.shape[1])
    last = student.config.span[1] - 1
    sequence_kl, losses = [], []
    first, rest = _SquaredError(), _SquaredError()
    with OutputRecorder(student.operator) as transported, OutputRecorder(layers_of(teacher)[last]) as truth:
        for part in progress_bar(sequences.split(batch_size), desc="evaluate", unit="batch", disable=not progress):
            ids = part.to(teacher.device)
            expected = teacher(input_ids=ids, use_cache=False).logits
            logits = student(input_ids=ids, use_cache=False).logits
            sequence_kl.append(float64(token_kl(logits, expected)).mean(1).cpu())
            losses.append(torch.stack([next_token_loss(x, ids) for x in (logits, expected)], -1).cpu())
            first.add(transported.value[:, :1], truth.value[:, :1])
            rest.add(transported.value[:, 1:], truth.value[:, 1:])
    divergence = torch.cat(sequence_kl)
    if not bool(divergence.isfinite().all()):
        raise ValueError("The logits have NaN or infinity: load teacher and student in float32 or bfloat16.")
    perplexity = torch.cat(losses).mean(0).exp()
    return Evaluation(
        kl=divergence.mean().item(),
        kl_interval=interval(bootstrap_means(divergence)),
        nmse=rest.normalized(),
        nmse_all=(first + rest).normalized(),
        perplexity=perplexity[0].item(),
        teacher_perplexity=perplexity[1].item(),
        tokens=sequences.numel(),
        parameters=sum(p.numel() for p in student.parameters()),
        operator_parameters=sum(p.numel() for p in student.operator.parameters()),
        nfe=student.operator.nfe,
        sequence_kl=divergence,
        first_token=_shared(sequences[:, 0]),
    )


def _shared(ids: Tensor) -> int | None:
    """Return the id that all of several sequences have; None if there are several ids, or one sequence."""
    found = ids.unique().tolist()
    return found[0] if len(found) == 1 < len(ids) else None


@dataclass
class _SquaredError:
    """Accumulate Σ‖error‖² / Σ‖state − mean state‖² over batches."""

    n: int = 0
    error: Tensor | float = 0.0
    total: Tensor | float = 0.0  # Σ state, (D,)
    square: Tensor | float = 0.0  # Σ ‖state‖²

    def add(self, estimate: Tensor, state: Tensor) -> None:
        estimate, state = (float64(x).flatten(0, 1) for x in (estimate, state))
        self.n += len(state)
        self.error += (estimate - state).square().sum()
        self.total += state.sum(0)
        self.square += state.square().sum()

    def __add__(self, other: _SquaredError) -> _SquaredError:
        return _SquaredError(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def normalized(self) -> float:
        return (self.error / (self.square - self.total.square().sum() / self.n)).item()


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the mean next-token cross-entropy of each sequence, in nats.

    Args:
        logits: ``(B, T, V)``.
        ids: ``(B, T)``.

    Returns:
        ``(B,)`` float64.
    """
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
    return float64(loss).mean(1)


@dataclass(frozen=True)
class Failure:
    """One token after which teacher and student predict different things.

    Attributes:
        text: the text that contains it.
        token: its position in the text.
        kl: KL(teacher ‖ student) of the next token, in nats.
        word: the token itself.
        expected, given: the most likely next token for the teacher, and for the student.
        followed: the next token in the text.
    """

    text: str
    token: int
    kl: float
    word: str
    expected: str
    given: str
    followed: str


@checks.takes(
    tokenizer=checks.tokenizer,
    texts=checks.several(checks.word, "strings"),
    n=checks.whole(1),
    batch_size=checks.whole(1),
)
@in_eval_mode
@torch.no_grad()
def worst_tokens(
    student: SplicedForCausalLM,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    n: int = 10,
    batch_size: int = 16,
    progress: bool = False,
) -> list[Failure]:
    """Find the tokens with the largest KL(teacher ‖ student), at most one per text, worst first.

    Args:
        texts: held-out texts; the last token of each is left out, since nothing follows it.
        n: number of tokens to return.
        batch_size: texts at once.

    Raises:
        ValueError: no text of at least two tokens, or a text longer than the model's context.
    """
    student, teacher = unwrapped(student), unwrapped(teacher)
    check_pair(student, teacher)
    rows = [(text, ids) for text in texts if len(ids := encode(teacher, tokenizer, text)) > 1]
    if not rows:
        raise ValueError("No text has two tokens or more: give longer texts.")
    found = []
    starts = range(0, len(rows), batch_size)
    for start in progress_bar(starts, desc="failures", unit="batch", disable=not progress):
        part = rows[start : start + batch_size]
        batch = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for _, row in part], batch_first=True)
        logits = [model(input_ids=batch.to(teacher.device), use_cache=False).logits for model in (teacher, student)]
        divergence = token_kl(logits[1], logits[0]).cpu()
        for i, (text, row) in enumerate(part):
            t = int(divergence[i, : len(row) - 1].argmax())  # padding on the right is never attended to
            expected, predicted = (int(x[i, t].argmax()) for x in logits)
            found.append(_failure(tokenizer, text, t, divergence[i, t], (row[t], expected, predicted, row[t + 1])))
    return sorted(found, key=lambda failure: -failure.kl)[:n]


def _failure(
    tokenizer: PreTrainedTokenizerBase, text: str, token: int, kl: Tensor, ids: tuple[int, int, int, int]
) -> Failure:
    return Failure(text, token, kl.item(), *(token_to_str(tokenizer, i) for i in ids))
