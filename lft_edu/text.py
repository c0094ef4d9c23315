"""Convert between text and tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .support import checks
from .support.modes import in_eval_mode
from .support.tokens import token_ids

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def context_length(model: PreTrainedModel) -> float:
    """Return how many tokens a model can read at once; infinity if its config does not say."""
    config = getattr(model.config, "text_config", None) or model.config
    return getattr(config, "max_position_embeddings", None) or math.inf


def readable_ids(batch, model: PreTrainedModel) -> Tensor:
    """Return token ids ``(N, T)`` after checking that this model can read them (:func:`.support.tokens.token_ids`)."""
    config = getattr(model.config, "text_config", None) or model.config
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index,arg-type]  # to torch, a module
    return token_ids(batch, vocabulary, context_length(model), getattr(config, "pad_token_id", None))


def require_corpus(corpus: object) -> None:
    """Raise ValueError unless this could be a corpus."""
    if isinstance(corpus, str) or not hasattr(corpus, "__iter__") or (isinstance(corpus, Tensor) and not corpus.ndim):
        raise ValueError(
            f"The corpus is a {type(corpus).__name__}: give what lft.load_corpus returns, or token ids (N, T)."
        )


def as_sequences(corpus: datasets.Dataset | Tensor, model: PreTrainedModel | None = None) -> Tensor:
    """Return the token ids ``(N, T)`` of a corpus as a long tensor.

    Args:
        corpus: a dataset with a column ``input_ids``, a tensor, array or lists of ids, or what a tokenizer returns.
        model: which is to read them; None: only the shape is checked.

    Raises:
        ValueError: no sequence, sequences shorter than 2 tokens or longer than the model's context, padded ones, or ids
            that are not whole numbers or not in the model's vocabulary.
    """
    require_corpus(corpus)
    if not isinstance(corpus, Tensor | Mapping):
        rows = list(corpus)
        corpus = rows  # type: ignore[assignment]
        if rows and isinstance(rows[0], Mapping):
            names = [name for name in ("input_ids", "attention_mask") if name in rows[0]] or list(rows[0])
            corpus = {name: [row[name] for row in rows] for name in names}  # type: ignore[assignment]
    if isinstance(corpus, Tensor | list) and len(corpus) == 0:
        raise ValueError("The corpus is empty: give at least one sequence of tokens.")
    sequences = token_ids(corpus) if model is None else readable_ids(corpus, model)
    if sequences.shape[1] < 2:
        shape = tuple(sequences.shape)
        raise ValueError(f"The corpus has shape {shape}: give (N, T), sequences of 2 or more tokens.")
    return sequences


def token_to_str(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return a token as text; bytes that are not valid UTF-8 as escapes such as ``\\xf0``.

    A byte-level tokenizer splits an emoji into several tokens, and decodes each of them to the same "�".
    """
    shown = str(tokenizer.decode([token]))
    if not shown and tokenizer.convert_ids_to_tokens(token) is None:
        return f"unused id {token}"  # a vocabulary may be rounded up beyond the tokenizer's
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


def first_ids(tokenizer: PreTrainedTokenizerBase, add_bos: bool | None = None) -> list[int]:
    """Return what is to come before every text: ``[bos]`` or nothing.

    Args:
        add_bos: whether the tokenizer's beginning-of-text token does; as the tokenizer itself has it, if None.

    Raises:
        ValueError: the token is wanted, and the tokenizer has none.
    """
    if add_bos is not None:
        if add_bos and tokenizer.bos_token_id is None:
            raise ValueError("add_bos=True: this tokenizer has no beginning-of-text token. Set tokenizer.bos_token.")
        return [tokenizer.bos_token_id] * add_bos
    ids = tokenizer("")["input_ids"]
    return list(ids[:1]) if ids and ids[0] == tokenizer.bos_token_id else []


def encode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, new: int = 0) -> list[int]:
    """Return the token ids of a text, after checking that the model can read it.

    A tokenizer that puts a token before every text puts it there once, also if the text begins with it.

    Args:
        new: tokens that the model is to write after it.

    Raises:
        ValueError: not a string, empty, or longer than the model's context (with the new tokens).
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
    first = first_ids(tokenizer)
    if first and ids[:2] == 2 * first:
        ids = ids[1:]
    longest = context_length(model)
    if len(ids) > longest:
        raise ValueError(f"The text has {len(ids):,} tokens; this model reads up to {longest:,}. Shorten it.")
    if len(ids) + new > longest:
        raise ValueError(
            f"The text has {len(ids):,} tokens; {new:,} new ones make it longer than the {longest:,} that this model "
            f"reads. Shorten it, or ask for at most {longest - len(ids):,}."
        )
    return ids


@checks.takes(model=checks.model, tokenizer=checks.tokenizer, text=checks.word, tokens=checks.whole(1))
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
        ValueError: empty text, one that is longer than the model's context with the new tokens, or a temperature that
            is not a number of at least 0.
    """
    if not text:
        raise ValueError("The text is empty: type the beginning of some text, such as 'def '.")
    ids = torch.tensor([encode(model, tokenizer, text, tokens)])
    return _generated(model, tokenizer, ids, tokens, temperature, **options)


def chat(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    tokens: int = 100,
    temperature: float = 0.0,
) -> str:
    """Answer a question with a model that was trained to chat, by its tokenizer's chat template.

    Raises:
        ValueError: an empty question, one too long for the model's context, a temperature that is not a number of at
            least 0, or a tokenizer without a chat template.
    """
    if not question:
        raise ValueError("The question is empty: type one, such as 'What is a river?'.")
    if not tokenizer.chat_template:
        raise ValueError("This model was not trained to chat (its tokenizer has no chat template): use complete.")
    messages = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids: Tensor = inputs["input_ids"]  # type: ignore[assignment,index,call-overload]
    return _generated(model, tokenizer, ids, tokens, temperature)


@in_eval_mode
def _generated(model, tokenizer, ids: Tensor, tokens: int, temperature: float, **options) -> str:
    """The new part of a generation from ``ids`` ``(1, T)``, as text."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature}: give 0 for greedy, or a number above 0.")
    if (length := ids.shape[1] + tokens) > (longest := context_length(model)):
        raise ValueError(f"Text and answer would have {length:,} tokens; this model reads up to {longest:,}.")
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    ids = ids.to(model.device)
    with torch.no_grad():
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, **sampling, **options)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
