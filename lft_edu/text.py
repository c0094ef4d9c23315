"""Between text and tokens."""

import math
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def blocks_of(corpus) -> Tensor:
    """Token blocks ``(N, T)`` of a corpus or of a tensor of them."""
    blocks = corpus if isinstance(corpus, Tensor) else torch.tensor([row["input_ids"] for row in corpus])
    if blocks.ndim != 2 or blocks.shape[0] < 1 or blocks.shape[1] < 2:
        raise ValueError(f"The corpus has shape {tuple(blocks.shape)}: give at least one block of 2 or more tokens.")
    return blocks.long()


def token_to_str(tokenizer: "PreTrainedTokenizerBase", token: int) -> str:
    """Decode one token id; bytes that are not valid UTF-8 by themselves are written ``\\xf0``.

    A byte-level tokenizer splits an emoji into several tokens, and ``decode`` returns "�" for each of them.
    """
    shown = tokenizer.decode([token])
    if "\ufffd" not in shown:
        return shown
    piece = tokenizer.convert_ids_to_tokens(token)
    letters = _byte_letters()
    if not all(letter in letters for letter in piece):  # not byte-level: the vocabulary entry is readable
        return piece
    return bytes(letters[letter] for letter in piece).decode("utf-8", errors="backslashreplace")


@cache
def _byte_letters() -> dict[str, int]:
    """Return the byte of each letter in the alphabet of byte-level tokenizers (GPT-2's, Pythia's, ours)."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}


def encode(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Tokenize a text and check that it fits the model's context.

    Raises:
        ValueError: not a string, an empty text, or one longer than the model's context.
    """
    if not isinstance(text, str):
        raise ValueError(f"text={text!r}: give a string, or a list of strings.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("The text contains a lone surrogate, half of a character: type it again.") from None
    ids = tokenizer(text)["input_ids"]
    if not ids:
        raise ValueError("The text is empty: type some Python, such as 'for name in names:'.")
    config = getattr(model.config, "text_config", None) or model.config
    longest = getattr(config, "max_position_embeddings", math.inf)
    if len(ids) > longest:
        raise ValueError(f"The text has {len(ids):,} tokens; this model's context is {longest:,}. Shorten it.")
    return ids


def complete(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    tokens: int = 40,
    temperature: float = 0.0,
) -> str:
    """Generate a continuation of ``text`` and return the new part only.

    Args:
        tokens: at most this many new tokens.
        temperature: 0 for greedy decoding, above 0 for sampling.

    Raises:
        ValueError: empty text, or a negative temperature.
    """
    if not text:
        raise ValueError("The text is empty: type the first lines of a Python file, such as 'def '.")
    if temperature < 0:
        raise ValueError(f"temperature={temperature}: give 0 for greedy decoding, or a number above 0 to sample.")
    inputs = tokenizer(text, return_tensors="pt").to(model.device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=tokens, **sampling)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
