"""Find where a student fails most: tokens ranked by KL(teacher ‖ student)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .objectives import token_kl
from .splicing import check_pair
from .trajectories import encode, token_to_str

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .splicing import SplicedForCausalLM


@dataclass(frozen=True)
class Failure:
    """A token after which teacher and student predict differently.

    Attributes:
        text: the text; ``token`` the position in it, from 0.
        kl: KL(teacher ‖ student) of the next-token distributions there, nats.
        word: the token as a string.
        expected, given: the most likely next token of teacher and student.
        followed: the next token in the text.
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
    student: "SplicedForCausalLM",
    teacher: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    n: int = 10,
    batch_size: int = 16,
    progress: bool = False,
) -> list[Failure]:
    """Return the tokens with the largest KL(teacher ‖ student), at most one per text, worst first.

    Args:
        texts: evaluation texts; the last token of each is excluded, since nothing follows it.
        n: how many to return.
        batch_size: texts per forward pass.
        progress: show a progress bar.

    Raises:
        ValueError: no text of at least two tokens, or one longer than the models' context.
    """
    from tqdm.auto import tqdm

    check_pair(student, teacher)
    if isinstance(texts, str):
        raise ValueError("texts is a single string: give a list of strings.")
    rows = [(text, ids) for text in texts if len(ids := encode(teacher, tokenizer, text)) > 1]
    if not rows:
        raise ValueError(f"None of the {len(texts)} texts has two or more tokens: give longer texts.")
    found = []
    starts = range(0, len(rows), batch_size)
    for start in tqdm(starts, desc="failures", unit="batch", disable=not progress, mininterval=1.0):
        part = rows[start : start + batch_size]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for _, row in part], batch_first=True)
        logits = [model(input_ids=ids.to(teacher.device), use_cache=False).logits for model in (teacher, student)]
        divergence = token_kl(logits[1], logits[0]).cpu()
        for i, (text, row) in enumerate(part):
            t = int(divergence[i, : len(row) - 1].argmax())  # right padding: causal attention never sees it
            best = [int(x[i, t].argmax()) for x in logits]
            found.append(_failure(tokenizer, text, t, divergence[i, t], (row[t], *best, row[t + 1])))
    return sorted(found, key=lambda failure: -failure.kl)[:n]


def _failure(tokenizer, text: str, token: int, kl: Tensor, ids: tuple[int, int, int, int]) -> Failure:
    return Failure(text, token, kl.item(), *(token_to_str(tokenizer, i) for i in ids))
