"""The one place where token ids are checked before a model reads them."""

from collections.abc import Mapping

import torch
from torch import Tensor

UNPADDED = "Give rows of one length without padding, such as those of lft.load_corpus."


def token_ids(batch, vocabulary: int | None = None, longest: float | None = None, padding: int | None = None) -> Tensor:
    """Return token ids ``(N, T)`` as a long tensor, or a ValueError that says why no model can read them.

    Args:
        batch: ids as a tensor, an array or lists; or a mapping with ``input_ids``, and perhaps ``attention_mask``, such
            as rows of a dataset, or what a tokenizer returns.
        vocabulary: ids must be below it; None: not known.
        longest: the context of the model, in tokens; None: not known.
        padding: the id that pads; a row that begins or ends with two of it is padded. None: not known.

    Raises:
        ValueError: no ``input_ids``; ids that are not whole numbers or not in the vocabulary; rows of several lengths,
            padded, or longer than the context.
    """
    ids, mask = batch, None
    if isinstance(batch, Mapping):
        if "input_ids" not in batch:
            names = ", ".join(map(str, batch)) or "nothing"
            raise ValueError(f"There is no column input_ids, but {names}: give rows of token ids.")
        ids, mask = batch["input_ids"], batch.get("attention_mask")
    ids = _table(ids)
    if ids.ndim != 2:
        raise ValueError(f"The token ids have shape {tuple(ids.shape)}: give (N, T), N sequences of T tokens.")
    if ids.numel() == 0:
        return ids.long()
    if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
        raise ValueError(f"Token ids are whole numbers; these are {ids.dtype}. Give what a tokenizer returns.")
    if longest is not None and ids.shape[1] > longest:
        raise ValueError(
            f"The sequences have {ids.shape[1]:,} tokens; this model reads up to {longest:,}. Use a smaller block_size "
            "(sequence_length)."
        )
    low, high = (int(x) for x in ids.aminmax())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        allowed = f"0 to {vocabulary - 1}" if vocabulary else "from 0 on"
        raise ValueError(
            f"Token id {low if low < 0 else high} is not in this model's vocabulary, {allowed}: use the tokenizer that "
            "belongs to the model."
        )
    padded = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    if mask is not None:
        padded |= (_table(mask) == 0).any(1).to(ids.device)
    if padding is not None and ids.shape[1] > 1:
        padded |= (ids[:, :2] == padding).all(1) | (ids[:, -2:] == padding).all(1)
    if bool(padded.any()):
        row = int(padded.nonzero()[0])
        raise ValueError(f"Row {row} is padded, and padding would be taken for text. {UNPADDED}")
    return ids.long()


def _table(rows) -> Tensor:
    if isinstance(rows, Tensor):
        return rows
    import numpy

    try:
        return torch.as_tensor(numpy.asarray(rows))
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise ValueError(f"These are not rows of numbers, all of one length. {UNPADDED}") from None
