"""Where a student fails most: tokens of held-out text ranked by divergence."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .objectives import token_kl
from .splicing import check_pair
from .trajectories import encode, literal


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
    return Failure(text, token, kl.item(), *(literal(tokenizer, i) for i in ids))
