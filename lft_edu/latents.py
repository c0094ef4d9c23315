"""Pairs to train on: the states that enter a span of the teacher and those that leave it.

They are computed on the fly: storing them for 2.6 billion tokens of Pythia-410M would take ten terabytes. Only the
layers below the span's end run; the rest of the teacher never does.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .families import Family, by_name, family_of, layers_of


class StopForward(Exception):
    """Raised by a hook once the layers that matter have run."""


@dataclass
class Latents:
    """``x0``, ``x1``: ``(B, T, D)``, states entering and leaving the span. ``context``: what its first layer was given
    besides (mask, rotary positions), which an operator needs too."""

    x0: Tensor
    x1: Tensor
    context: dict


def layer_input(args: tuple, kwargs: dict, family: Family | None = None) -> tuple[Tensor, dict]:
    """From a layer's arguments: the hidden states, and the rest without the cache (the context an operator needs).

    ``family`` says what is given by position, where a family gives more than the states that way.
    """
    state = args[0] if args else kwargs["hidden_states"]
    left_out = ("hidden_states", "use_cache", "layer_past", "past_key_values", "cache")
    return state, {k: v for k, v in (by_name(family, args, kwargs) if family else kwargs).items() if k not in left_out}


def layer_output(output) -> Tensor:
    """The hidden states in a layer's output, which is they or a tuple that begins with them."""
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def span_latents(teacher, span: tuple[int, int], input_ids: Tensor, attention_mask: Tensor | None = None) -> Latents:
    """Run the teacher up to layer n−1: what entered layer m, and what left layer n−1 (before any final norm)."""
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
def hidden_states_at_all_layers(teacher, input_ids: Tensor) -> tuple[list[Tensor], Tensor, list[dict]]:
    """The L+1 states ``(B, T, D)`` entering layer 0, 1, … and leaving the last (before the final norm), the logits
    ``(B, T, V)``, and the L contexts that the layers are given (some look through another mask than others)."""
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


def depth_states(teacher, corpus, n: int, generator: torch.Generator | None = None, token: int | None = None) -> Tensor:
    """States of ``n`` random tokens at every depth, ``(L+1, n, D)``. Position 0 is never among them; each block of the
    corpus gives at most one token, so no two share a prefix.

    Args:
        token: only occurrences of this token id.

    Raises:
        ValueError: fewer than ``n`` blocks, or fewer that hold the token.
    """
    blocks = corpus if isinstance(corpus, Tensor) else torch.tensor(corpus[: len(corpus)]["input_ids"])
    allowed = torch.ones_like(blocks, dtype=torch.bool) if token is None else blocks == token
    allowed[:, 0] = False
    rows = allowed.any(1).nonzero()[:, 0]
    if len(rows) < n:
        what = "" if token is None else f" with token {token}"
        raise ValueError(
            f"{n} tokens from blocks of their own need {n} blocks{what}; the corpus has {len(rows)}. Lower n."
        )
    rows = rows[torch.randperm(len(rows), generator=generator)[:n]]
    places = torch.multinomial(allowed[rows].float(), 1, generator=generator)[:, 0]
    parts = []
    for part, place in zip(rows.split(16), places.split(16), strict=True):
        states, _, _ = hidden_states_at_all_layers(teacher, blocks[part].long().to(teacher.device))
        parts.append(torch.stack([x[torch.arange(len(part)), place.to(x.device)] for x in states]))
    return torch.cat(parts, 1)
