"""How far a student is from its teacher, on held-out text."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .families import layers_of
from .latents import layer_output
from .objectives import token_kl
from .splicing import check_pair
from .support.machine import evaluation_batch
from .support.statistics import bootstrap_means, interval
from .text import as_sequences, encode, token_to_str


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


class OutputRecorder:
    """Keeps the latest output of a module while it is in use."""

    def __init__(self, module):
        self.hook = module.register_forward_hook(self._keep)

    def _keep(self, module, args, output):
        self.value = layer_output(output)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.hook.remove()


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
    blocks = as_sequences(corpus)
    batch_size = batch_size or evaluation_batch(teacher.config.vocab_size, blocks.shape[1])
    last = student.config.span[1] - 1
    sequence_kl, losses = [], []
    first, rest = _SquaredError(), _SquaredError()
    with OutputRecorder(student.operator) as transported, OutputRecorder(layers_of(teacher)[last]) as truth:
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
        nmse=rest.normalized(),
        nmse_all=(first + rest).normalized(),
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

    def normalized(self) -> float:
        return (self.error / (self.square - self.total.square().sum() / self.n)).item()


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross-entropy of each sequence's next tokens, ``(B,)`` float64."""
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
    return loss.double().mean(1)


@dataclass(frozen=True)
class Failure:
    """One token after which teacher and student expect different things.

    Attributes:
        text: in which it stands; ``token`` its position.
        kl: KL(teacher ‖ student) after it, nats.
        word: the token itself; ``expected`` and ``given`` what teacher and student find likeliest next.
        followed: what really follows.
    """

    text: str
    token: int
    kl: float
    word: str
    expected: str
    given: str
    followed: str


@torch.no_grad()
def worst_tokens(
    student, teacher, tokenizer, texts: Sequence[str], n: int = 10, batch_size: int = 16, progress: bool = False
) -> list[Failure]:
    """The tokens with the largest KL(teacher ‖ student), at most one a text, worst first.

    Args:
        texts: held-out texts; the last token of each is left out, since nothing follows it.
        n: how many to find.

    Raises:
        ValueError: no text of at least two tokens, or one longer than the models were made for.
    """
    from tqdm.auto import tqdm

    check_pair(student, teacher)
    if isinstance(texts, str):
        raise ValueError("texts is one string: give a list of texts.")
    rows = [(text, ids) for text in texts if len(ids := encode(teacher, tokenizer, text)) > 1]
    if not rows:
        raise ValueError("There is no text of two tokens or more to look for failures in.")
    found = []
    starts = range(0, len(rows), batch_size)
    for start in tqdm(starts, desc="failures", unit="batch", disable=not progress, mininterval=1.0):
        part = rows[start : start + batch_size]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for _, row in part], batch_first=True)
        logits = [model(input_ids=ids.to(teacher.device), use_cache=False).logits for model in (teacher, student)]
        divergence = token_kl(logits[1], logits[0]).cpu()
        for i, (text, row) in enumerate(part):
            t = int(divergence[i, : len(row) - 1].argmax())  # padding is to the right, where no token looks
            best = [int(x[i, t].argmax()) for x in logits]
            found.append(_failure(tokenizer, text, t, divergence[i, t], (row[t], *best, row[t + 1])))
    return sorted(found, key=lambda failure: -failure.kl)[:n]


def _failure(tokenizer, text: str, token: int, kl: Tensor, ids: tuple[int, int, int, int]) -> Failure:
    return Failure(text, token, kl.item(), *(token_to_str(tokenizer, i) for i in ids))
