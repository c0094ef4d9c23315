"""The student drafts for its teacher: speculative decoding (arXiv 2211.17192, 2302.01318).

Decoding waits for memory, not for arithmetic: a model reads five tokens in little more time than one. So the student
writes a few tokens ahead, and the teacher reads them all in one pass. It keeps those it would have written itself, and
adds one of its own. The text is the teacher's, token for token; only the time depends on the student.

transformers does the same: ``teacher.generate(ids, do_sample=False, assistant_model=student)``. The loop here is short
enough to read, and counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .families import cache_name
from .splicing import check_pair
from .support import checks
from .support.machine import evaluation_batch
from .support.modes import in_eval_mode
from .support.statistics import bootstrap_means, interval
from .support.whole import unwrapped
from .text import as_sequences, context_length, readable_ids

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel

    from .splicing import SplicedForCausalLM


class Reader:
    """A model and its KV cache: it reads each token of a growing text once."""

    def __init__(self, model: PreTrainedModel):
        from transformers import DynamicCache

        self.model, self.cache = model, DynamicCache(config=model.config.get_text_config(decoder=True))
        if any(self.cache.is_sliding):
            if not hasattr(self.cache, "activate_past_recording"):
                raise ValueError(
                    "This model attends in a sliding window, and this version of transformers throws away keys that "
                    "leave it: a refused draft cannot be taken back. Type: pip install -U 'transformers>=5.24,<6'."
                )
            self.cache.activate_past_recording()

    def choices(self, text: Tensor, count: int = 1) -> Tensor:
        """Return the likeliest next token after each of the last ``count`` tokens of ``text`` ``(1, T)``: (1, count).

        What has not been read yet is read, all in one pass.
        """
        new = text[:, self.cache.get_seq_length() :]
        out = self.model(input_ids=new, use_cache=True, logits_to_keep=count, **{cache_name(): self.cache})
        return out.logits.argmax(-1)

    def keep(self, length: int) -> None:
        """Forget what was read after the first ``length`` tokens."""
        surplus = self.cache.get_seq_length() - length
        if surplus > 0:
            self.cache.crop(-surplus)


@dataclass(frozen=True)
class Drafted:
    """A text that a student drafted for its teacher.

    Attributes:
        ids: ``(1, T)`` long, prompt and continuation: the teacher's own greedy text.
        new_tokens: tokens in the continuation.
        passes: how often the teacher ran, the pass that reads the prompt included.
        drafted: tokens that the student wrote.
        tested: of these, those that the teacher compared with its own choice: all up to the first it refused.
        accepted: of these, those in the text.
    """

    ids: Tensor
    new_tokens: int
    passes: int
    drafted: int
    tested: int
    accepted: int

    @property
    def tokens_per_pass(self) -> float:
        """New tokens per pass of the teacher; 1 without drafting."""
        return self.new_tokens / self.passes


@checks.takes(input_ids=checks.tensor, max_new_tokens=checks.whole(), lookahead=checks.whole())
@in_eval_mode
@torch.no_grad()
def draft(
    teacher: PreTrainedModel,
    student: SplicedForCausalLM,
    input_ids: Tensor,
    max_new_tokens: int = 64,
    lookahead: int = 4,
) -> Drafted:
    """Generate the teacher's greedy continuation of a prompt, from drafts of the student.

    The text is that of ``teacher.generate(input_ids, do_sample=False)`` up to rounding: a pass over several tokens
    rounds differently from one over a single token, so in half precision a tie may be broken differently. The
    teacher's end-of-text tokens end it; other settings of its generation config, such as a repetition penalty, are not
    applied.

    Args:
        input_ids: prompt, ``(1, T)`` token ids, at least one.
        max_new_tokens: length of the continuation, at least 1.
        lookahead: tokens per draft (γ), at least 1.

    Raises:
        ValueError: a student of another teacher, several prompts, an empty one, one that is too long for the teacher
            with its continuation or not of its vocabulary, a number below 1, or a sliding-window cache that this
            version of transformers cannot crop.
    """
    student, teacher = unwrapped(student), unwrapped(teacher)
    check_pair(student, teacher)
    if input_ids.ndim != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] < 1:
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)}: give one prompt without padding, (1, T) with T ≥ 1. In a "
            "batch each row accepts another number of tokens; call draft for each row, such as input_ids[:1]."
        )
    if max_new_tokens < 1 or lookahead < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}, lookahead={lookahead}: give at least 1 of each.")
    if input_ids.shape[1] + max_new_tokens > (longest := context_length(teacher)):
        raise ValueError(f"Prompt and continuation are longer than the {longest:,} tokens that this teacher reads.")
    judge, author, text = Reader(teacher), Reader(student), readable_ids(input_ids, teacher).to(teacher.device)
    eos = teacher.generation_config.eos_token_id
    ends = torch.tensor([] if eos is None else eos, device=text.device).flatten()
    prompt, passes, drafted, tested, accepted, ended = text.shape[1], 0, 0, 0, 0, False
    while not ended and (left := prompt + max_new_tokens - text.shape[1]) > 0:
        ahead = text
        for _ in range(min(lookahead, left - 1)):  # the teacher adds one token to every draft
            ahead = torch.cat([ahead, author.choices(ahead)], 1)
            if torch.isin(ahead[0, -1], ends):
                break
        guesses = ahead[0, text.shape[1] :]
        wanted = judge.choices(ahead, len(guesses) + 1)[0]
        matches = int((guesses == wanted[:-1]).cumprod(0).sum())
        new = wanted[: matches + 1]
        if end := torch.isin(new, ends).nonzero().tolist():
            new, ended = new[: end[0][0] + 1], True
        text = torch.cat([text, new[None]], 1)
        for reader in (judge, author):
            reader.keep(text.shape[1] - 1)  # nobody has read the last token yet
        passes, drafted, accepted = passes + 1, drafted + len(guesses), accepted + matches
        tested += min(matches + 1, len(guesses))
    return Drafted(text, text.shape[1] - prompt, passes, drafted, tested, accepted)


@dataclass(frozen=True)
class Acceptance:
    """How often a teacher accepts a token of its student, after the tokens of a corpus.

    Attributes:
        greedy: share of tokens after which both find the same token likeliest.
        sampling: probability that a sampled token is accepted, 1 − TV(p, q) = Σ min(p, q), mean over tokens.
        greedy_interval, sampling_interval: 95 % bootstrap intervals over sequences.
        tokens: number of tokens.
        sequence_greedy, sequence_sampling: ``(N,)`` float64, means of each sequence, for paired comparisons.
    """

    greedy: float
    greedy_interval: tuple[float, float]
    sampling: float
    sampling_interval: tuple[float, float]
    tokens: int
    sequence_greedy: Tensor = field(repr=False)
    sequence_sampling: Tensor = field(repr=False)

    def to_dict(self) -> dict:
        """Return all attributes but those of each sequence, for JSON."""
        return {k: v for k, v in vars(self).items() if not k.startswith("sequence_")}


@checks.takes(batch_size=checks.optional(checks.whole(1)))
@in_eval_mode
@torch.no_grad()
def acceptance(
    teacher: PreTrainedModel,
    student: SplicedForCausalLM,
    sequences: datasets.Dataset | Tensor,
    batch_size: int | None = None,
) -> Acceptance:
    """Measure how often the teacher would accept the student's next token, on every token of a corpus.

    Args:
        sequences: a dataset with a column ``input_ids``, or token ids ``(N, T)``.
        batch_size: sequences at once; chosen by :func:`~lft_edu.support.machine.evaluation_batch` if None.

    Raises:
        ValueError: a corpus that the teacher cannot read (:func:`~lft_edu.text.as_sequences`), or a student of another
            teacher.
    """
    student, teacher = unwrapped(student), unwrapped(teacher)
    check_pair(student, teacher)
    sequences = as_sequences(sequences, teacher)
    batch_size = batch_size or evaluation_batch(teacher.config.vocab_size, sequences.shape[1])
    rows = []
    for part in sequences.split(batch_size):
        ids = part.to(teacher.device)
        both = [model(input_ids=ids, use_cache=False).logits for model in (teacher, student)]
        for expected, given in zip(*both, strict=True):  # (T, V): probabilities of one sequence at a time
            same = (expected.argmax(-1) == given.argmax(-1)).float().mean()
            p, q = (logits.float().softmax(-1) for logits in (expected, given))
            rows.append([same.item(), torch.minimum(p, q).sum(-1).mean().item()])
    greedy, sampling = torch.tensor(rows, dtype=torch.float64).T
    ends = [interval(bootstrap_means(x)) for x in (greedy, sampling)]
    means = greedy.mean().item(), sampling.mean().item()
    return Acceptance(means[0], ends[0], means[1], ends[1], sequences.numel(), greedy, sampling)


@checks.takes(acceptance=checks.real, lookahead=checks.whole())
def expected_tokens(acceptance: float, lookahead: int) -> float:
    """Return the tokens per pass of the teacher, (1 − α^(γ+1)) / (1 − α) (arXiv 2211.17192, eq. 1).

    Args:
        acceptance: α, the probability that a drafted token is accepted, the same for every token.
        lookahead: γ, tokens per draft.

    Raises:
        ValueError: α outside [0, 1], or γ below 1.
    """
    if not 0 <= acceptance <= 1:
        raise ValueError(f"acceptance={acceptance}: it is a probability; give a number from 0 to 1.")
    if lookahead < 1:
        raise ValueError(f"lookahead={lookahead}: give at least 1 token per draft.")
    return float(sum(acceptance**i for i in range(lookahead + 1)))


def speedup(acceptance: float, cost_ratio: float, lookahead: int) -> float:
    """Return how many times faster drafting is than decoding, (1 − α^(γ+1)) / ((1 − α) (γ c + 1)) (theorem 3.8).

    Args:
        acceptance, lookahead: see :func:`expected_tokens`.
        cost_ratio: c, time of one pass of the student over that of the teacher. A pass of the teacher over γ + 1 tokens
            is taken to cost what one over a single token does.

    Raises:
        ValueError: α outside [0, 1], c not positive, or γ below 1.
    """
    if not cost_ratio > 0:
        raise ValueError(f"cost_ratio={cost_ratio}: give the student's time per token over the teacher's, above 0.")
    return expected_tokens(acceptance, lookahead) / (lookahead * cost_ratio + 1)


def best_speedup(acceptance: float, cost_ratio: float, most: int = 64) -> tuple[int, float]:
    """Return the lookahead γ from 1 to ``most`` with the largest :func:`speedup`, and that speed-up.

    Below 1 drafting does not pay: no lookahead is faster than the teacher alone.
    """
    return max(((g, speedup(acceptance, cost_ratio, g)) for g in range(1, most + 1)), key=lambda pair: pair[1])
