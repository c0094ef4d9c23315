"""Between text and tokens."""

import math
from functools import cache

import torch
from torch import Tensor


def as_sequences(corpus) -> Tensor:
    """Token blocks ``(N, T)`` of a corpus or of a tensor of them."""
    blocks = corpus if isinstance(corpus, Tensor) else torch.tensor([row["input_ids"] for row in corpus])
    if blocks.ndim != 2 or blocks.shape[0] < 1 or blocks.shape[1] < 2:
        raise ValueError(f"The corpus has shape {tuple(blocks.shape)}: give at least one block of 2 or more tokens.")
    return blocks.long()


def token_to_str(tokenizer, token: int) -> str:
    """A token as it stands in the text; bytes that are no UTF-8 by themselves as ``\\xf0``.

    A byte-level tokenizer cuts an emoji into several tokens: decoding one of them gives the same "�" for all.
    """
    shown = tokenizer.decode([token])
    if "\ufffd" not in shown:
        return shown
    piece = tokenizer.convert_ids_to_tokens(token)
    letters = _byte_letters()
    if not all(letter in letters for letter in piece):  # not byte-level: the piece's own name says what it is
        return piece
    return bytes(letters[letter] for letter in piece).decode("utf-8", errors="backslashreplace")


@cache
def _byte_letters() -> dict[str, int]:
    """The letter by which byte-level tokenizers (GPT-2's, Pythia's, ours) write each byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}


def encode(model, tokenizer, text: str) -> list[int]:
    """Token ids of a text that the model can take.

    Raises:
        ValueError: no text, an empty one, or one longer than the model was made for.
    """
    if not isinstance(text, str):
        raise ValueError(f"text={text!r}: give a string, or a list of strings.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("The text holds half of a character (a lone surrogate): type it anew.") from None
    ids = tokenizer(text)["input_ids"]
    if not ids:
        raise ValueError("The text is empty: type some Python, such as 'for name in names:'.")
    config = getattr(model.config, "text_config", None) or model.config
    longest = getattr(config, "max_position_embeddings", math.inf)
    if len(ids) > longest:
        raise ValueError(f"The text has {len(ids):,} tokens; this model was made for up to {longest:,}. Shorten it.")
    return ids


def complete(model, tokenizer, text: str, tokens: int = 40, temperature: float = 0.0) -> str:
    """Continuation of ``text``, the new part only: greedy, or sampled at a temperature above 0.

    Raises:
        ValueError: empty text.
    """
    if not text:
        raise ValueError("The text is empty: type the beginning of some Python, such as 'def '.")
    if temperature < 0:
        raise ValueError(f"temperature={temperature}: give 0 for greedy, or a number above 0.")
    inputs = tokenizer(text, return_tensors="pt").to(model.device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=tokens, **sampling)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
