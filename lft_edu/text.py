"""Convert between text and tokens."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def as_sequences(corpus: datasets.Dataset | Tensor) -> Tensor:
    """Return the token ids ``(N, T)`` of a corpus as a long tensor.

    Args:
        corpus: a dataset with a column ``input_ids``, or a tensor of ids.

    Raises:
        ValueError: no sequence, or sequences shorter than 2 tokens.
    """
    sequences = corpus if isinstance(corpus, Tensor) else torch.tensor([row["input_ids"] for row in corpus])
    if sequences.ndim != 2 or sequences.shape[0] < 1 or sequences.shape[1] < 2:
        shape = tuple(sequences.shape)
        raise ValueError(f"The corpus has shape {shape}: give (N, T), at least one sequence of 2 or more tokens.")
    return sequences.long()


def token_to_str(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token as text; bytes that are not valid UTF-8 as escapes such as ``\\xf0``.

    A byte-level tokenizer splits an emoji into several tokens, and decodes each of them to the same "�".
    """
    shown = str(tokenizer.decode([token]))
    if "\ufffd" not in shown:
        return shown
    piece = str(tokenizer.convert_ids_to_tokens(token))
    letters = _byte_letters()
    if not all(letter in letters for letter in piece):  # not a byte-level tokenizer
        return piece
    return bytes(letters[letter] for letter in piece).decode("utf-8", errors="backslashreplace")


@cache
def _byte_letters() -> dict[str, int]:
    """Return letter → byte, as byte-level tokenizers (GPT-2's, Pythia's, ours) encode bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}


blocks_of, literal = as_sequences, token_to_str


def encode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text, after checking that the model can read it.

    Raises:
        ValueError: not a string, empty, or longer than the model's context.
    """
    if not isinstance(text, str):
        raise ValueError(f"text={text!r}: give a string, or a list of strings.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("The text has half of a character (a lone surrogate): type it again.") from None
    ids = tokenizer(text)["input_ids"]
    if not ids:
        raise ValueError("The text is empty: type some Python, such as 'for name in names:'.")
    config = getattr(model.config, "text_config", None) or model.config
    longest = getattr(config, "max_position_embeddings", math.inf)
    if len(ids) > longest:
        raise ValueError(f"The text has {len(ids):,} tokens; this model reads up to {longest:,}. Shorten it.")
    return ids


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    tokens: int = 40,
    temperature: float = 0.0,
    **options,
) -> str:
    """Generate a continuation of ``text``; return the new part only.

    Args:
        tokens: maximum number of new tokens.
        temperature: 0 for greedy decoding; above 0, sample at this temperature.
        options: passed on to the model's ``generate``, such as ``stopping_criteria``.

    Raises:
        ValueError: empty text, or a negative temperature.
    """
    if not text:
        raise ValueError("The text is empty: type the beginning of some text, such as 'def '.")
    return _generated(model, tokenizer, tokenizer(text, return_tensors="pt"), tokens, temperature, **options)


def chat(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    tokens: int = 100,
    temperature: float = 0.0,
) -> str:
    """Answer a question with a model that was trained to chat, by its tokenizer's chat template.

    Raises:
        ValueError: an empty question, a negative temperature, or a tokenizer without a chat template.
    """
    if not question:
        raise ValueError("The question is empty: type one, such as 'What is a river?'.")
    if not tokenizer.chat_template:
        raise ValueError("This model was not trained to chat (its tokenizer has no chat template): use complete.")
    messages = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return _generated(model, tokenizer, inputs, tokens, temperature)


def _generated(model, tokenizer, inputs, tokens: int, temperature: float, **options) -> str:
    """The new part of a generation, as text."""
    if temperature < 0:
        raise ValueError(f"temperature={temperature}: give 0 for greedy, or a number above 0.")
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    inputs = inputs.to(model.device)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=tokens, **sampling, **options)
    return str(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
