"""Training pairs: the hidden states that enter a span of the teacher, and those that leave it.

They are computed on the fly, since storing them for 2.6 billion tokens of Pythia-410M would take ten terabytes. Layers
after the span do not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .families import Family, by_name, family_of, layers_of

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedModel


class StopForward(Exception):
    """Raised by a hook to end a forward pass when the needed layers have run."""


@dataclass
class Latents:
    """The states at the two ends of a span.

    Attributes:
        x0, x1: ``(B, T, D)``, the states that enter and leave the span.
        context: the other arguments of its first layer (mask, rotary embeddings), which an operator needs too.
    """

    x0: Tensor
    x1: Tensor
    context: dict


def layer_input(args: tuple, kwargs: dict, family: Family | None = None) -> tuple[Tensor, dict]:
    """Split a layer's arguments into the hidden states and the context: all others but the cache.

    Args:
        args, kwargs: as a forward pre-hook gets them.
        family: names the positional arguments after the states; if None, there are none.
    """
    state = args[0] if args else kwargs["hidden_states"]
    left_out = ("hidden_states", "use_cache", "layer_past", "past_key_values", "cache")
    return state, {k: v for k, v in (by_name(family, args, kwargs) if family else kwargs).items() if k not in left_out}


def layer_output(output) -> Tensor:
    """Return the hidden states from a layer's output, which is a tensor or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def span_latents(
    teacher: PreTrainedModel, span: tuple[int, int], input_ids: Tensor, attention_mask: Tensor | None = None
) -> Latents:
    """Run the teacher up to layer n−1; return the input of layer m and the output of layer n−1.

    Args:
        span: ``(m, n)``, layers m to n−1, with 0 ≤ m < n ≤ L.
        input_ids, attention_mask: ``(B, T)``.
    """
    m, n = span
    family, seen = family_of(teacher.config), {}

    def enter(module, args, kwargs):
        seen["x0"], seen["context"] = layer_input(args, kwargs, family)

    def leave(module, args, output):
        seen["x1"] = layer_output(output)
        raise StopForward

    layers = layers_of(teacher)
    hooks = [layers[m].register_forward_pre_hook(enter, with_kwargs=True), layers[n - 1].register_forward_hook(leave)]
    try:
        teacher(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    except StopForward:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return Latents(**seen)


@torch.no_grad()
def hidden_states_at_all_layers(teacher: PreTrainedModel, input_ids: Tensor) -> tuple[list[Tensor], Tensor, list[dict]]:
    """Run the teacher and return the hidden states before and after every layer.

    Unlike ``output_hidden_states``, the last state is before the final norm.

    Args:
        input_ids: ``(B, T)``.

    Returns:
        L+1 states ``(B, T, D)``, the logits ``(B, T, V)``, and the L contexts of :func:`layer_input` (masks may differ
        between layers).
    """
    layers, family = layers_of(teacher), family_of(teacher.config)
    states, contexts = [], []

    def enter(module, args, kwargs):
        state, context = layer_input(args, kwargs, family)
        contexts.append(context)
        if len(contexts) == 1:
            states.append(state)

    def leave(module, args, output):
        states.append(layer_output(output))

    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    try:
        logits = teacher(input_ids=input_ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return states, logits, contexts


all_depths, state_entering, state_leaving = hidden_states_at_all_layers, layer_input, layer_output


def depth_states(
    teacher: PreTrainedModel,
    corpus: datasets.Dataset | Tensor,
    n: int,
    generator: torch.Generator | None = None,
    token: int | None = None,
) -> Tensor:
    """Return the states of ``n`` random tokens at every depth: ``(L+1, n, D)``.

    Position 0 is left out. Each sequence gives at most one token, so no two tokens share a prefix.

    Args:
        corpus: a dataset, or token ids ``(N, T)``.
        n: number of tokens.
        generator: chooses the tokens; torch's global generator if None.
        token: use occurrences of this token id only.

    Raises:
        ValueError: fewer than ``n`` sequences (with the token).
    """
    sequences = corpus if isinstance(corpus, Tensor) else torch.tensor(corpus[: len(corpus)]["input_ids"])
    allowed = torch.ones_like(sequences, dtype=torch.bool) if token is None else sequences == token
    allowed[:, 0] = False
    rows = allowed.any(1).nonzero()[:, 0]
    if len(rows) < n:
        what = "" if token is None else f" with token {token}"
        raise ValueError(
            f"{n} tokens need {n} sequences{what}, one each; the corpus has {len(rows)}. Lower n or give more text."
        )
    rows = rows[torch.randperm(len(rows), generator=generator)[:n]]
    places = torch.multinomial(allowed[rows].float(), 1, generator=generator)[:, 0]
    parts = []
    for part, place in zip(rows.split(16), places.split(16), strict=True):
        states, _, _ = hidden_states_at_all_layers(teacher, sequences[part].long().to(teacher.device))
        parts.append(torch.stack([x[torch.arange(len(part)), place.to(x.device)] for x in states]))
    return torch.cat(parts, 1)
