"""Text that a language model writes itself, to train on: every machine that has the model has it.

What a model writes when it is given nothing but the start of a document is a sample of what it was trained on, as it
remembers it; a model that was trained to chat also writes both sides of a conversation, if it is given only the head of
one (the idea of Magpie, arXiv 2406.08464).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..families import cache_name
from ..support.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOP = 256  # tokens to choose among: sampling from all 49,152 takes longer than the model


def beginnings(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens to start from: twice that of a document, once that of a conversation, if it has a template."""
    document = [tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.eos_token_id]
    if not tokenizer.chat_template:
        return [document]
    # the template up to the first message's words
    marked = tokenizer.apply_chat_template([{"role": "user", "content": "\x00"}], tokenize=False)
    return [document, document, tokenizer(marked.partition("\x00")[0])["input_ids"]]


@torch.no_grad()
def written(
    model: PreTrainedModel,
    beginning: list[int],
    sequences: int,
    length: int,
    generator: torch.Generator,
    temperature: float = 1.0,
) -> Tensor:
    """Sample token sequences ``(sequences, length)`` that begin with ``beginning``; ends of documents do not stop them.

    Args:
        generator: draws the tokens.
        temperature: 1 samples from the model's own distribution (cut to its ``TOP`` likeliest tokens).
    """
    from transformers import DynamicCache

    device = model.device
    ids = torch.tensor(beginning, device=device).repeat(sequences, 1)
    cache, step = DynamicCache(config=model.config), ids
    while ids.shape[1] < length:
        logits = model(step, use_cache=True, logits_to_keep=1, **{cache_name(): cache}).logits[:, -1]
        likely, tokens = logits.float().topk(min(TOP, logits.shape[-1]))
        drawn = torch.multinomial((likely / temperature).softmax(-1).cpu(), 1, generator=generator).to(device)
        step = tokens.gather(1, drawn)
        ids = torch.cat([ids, step], 1)
    return ids[:, :length]


def own_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    length: int,
    seed: int = 0,
    batch: int = 256,
) -> Tensor:
    """Return about ``tokens`` tokens of a model's own text, ``(N, length)``."""
    generator, starts, found = torch.Generator().manual_seed(seed), beginnings(tokenizer), []
    for i in progress_bar(range(max(1, tokens // (batch * length))), desc="writing", unit="batch"):
        begin = starts[i % len(starts)]
        alone = len(begin) == 1  # a lone mark of a document's start is left out: sequences begin with a word
        text = written(model, begin, batch, length + alone, generator)
        found.append(text[:, alone:].cpu())
    return torch.cat(found)
