"""The base of all transport operators: what replaces a span of layers is called like a layer.

An operator owns one KV-cache entry per velocity evaluation, and may keep the state of the attention sink.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn


class CacheSlot:
    """A KV cache as one velocity evaluation sees it: every write goes to entry ``index``."""

    def __init__(self, cache, index: int):
        self._cache, self._index = cache, index

    def update(self, keys, values, layer_idx, *args, **kwargs):
        return self._cache.update(keys, values, self._index, *args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._cache, name)


def at_slot(context: dict, index: int) -> dict:
    """A layer's keyword arguments, with their KV cache, if any, narrowed to one entry."""
    from transformers import Cache

    return {key: CacheSlot(value, index) if isinstance(value, Cache) else value for key, value in context.items()}


def first_tokens(shape, attention_mask, cache, device) -> Tensor:
    """Which of these tokens, ``(B, T)``, are the first of their sequence: after the padding, before anything cached."""
    batch, length = shape
    past = 0 if cache is None else int(cache.get_seq_length())
    places = torch.arange(past, past + length, device=device).expand(batch, length)
    if attention_mask is None or attention_mask.ndim != 2:
        return places == 0
    start = attention_mask.to(torch.int).argmax(-1, keepdim=True)
    return places == start.to(device)


class Operator(nn.Module):
    """Base of all transport operators.

    Attributes:
        kind: the name in configs, tables and on the command line.
        slots: KV-cache entries it owns, one per velocity (or layer) evaluation.
        nfe: number of function evaluations per token, each of a layer-sized network.
        first_slot: its first KV-cache entry; set by the splice.
        sink: ``(D,)``, the state that a sequence's first token has on entry and on exit, whatever the token; None: it
            is treated like the others. A span whose layers write the attention sink needs it (:mod:`lft_edu.sinks`).
        first: ``(B, T)``, which tokens of the current call are first in their sequence; set by the spliced model.
            None: position 0.
        closed_form: it is solved from :class:`Moments`; ``trainable``: it is trained by gradient descent.
    """

    kind = "skip"
    slots = 0
    closed_form = False
    trainable = False

    def __init__(self):
        super().__init__()
        self.settings: dict = {}
        self.first_slot = 0
        self.sink: nn.Parameter | None = None
        self.first: Tensor | None = None
        self.register_forward_pre_hook(_enter_with_sink)
        self.register_forward_hook(_leave_with_sink)

    @property
    def nfe(self) -> int:
        return self.slots

    def layer_to_copy(self, m: int, n: int) -> int:
        """The teacher layer of the span [m, n) of which :meth:`build` is given a copy: ``init_layer``, or the first.

        Raises:
            ValueError: ``init_layer`` is not in the span.
        """
        layer = self.settings.get("init_layer", m)
        if not m <= layer < n:
            raise ValueError(f"init_layer={layer} is not in the span {m}–{n}: give one of its layers, {m} to {n - 1}.")
        return layer

    def build(self, layer: nn.Module, config, generator: torch.Generator | None = None) -> "Operator":
        """Allocate parameters for a teacher with this config. ``layer`` is a copy to own, or to ignore."""
        return self

    def set_sink(self, state: Tensor) -> None:
        """Keep a state ``(D,)`` for the first token of every sequence."""
        self.sink = nn.Parameter(state.detach().clone(), requires_grad=False)
        self.settings["sink"] = True

    def with_sink(self, x: Tensor) -> Tensor:
        """States ``(B, T, D)`` with the sink in the place of every sequence's first token."""
        if self.sink is None:
            return x
        first = self.first
        if first is None:
            first = (torch.arange(x.shape[-2], device=x.device) == 0).expand(x.shape[:-1])
        return torch.where(first[..., None], self.sink.to(x), x)

    if TYPE_CHECKING:  # what only some operators have: those that are trained, and those in closed form

        def field(self, x0: Tensor | None = None, **context) -> Callable[..., Tensor]: ...

        def solve(self, moments) -> None: ...

    def to_dict(self) -> dict:
        """Return JSON that :func:`operator_from_dict` turns into the same operator."""
        return {"kind": self.kind, **self.settings}

    def forward(self, x: Tensor, **context) -> Tensor:
        """Hidden states that enter the span ``(B, T, D)`` → an estimate of those that leave it."""
        return x

    def as_layers(self) -> list[nn.Module] | None:
        """Return the transformer layers that do the same one after another; None: no list of layers does."""
        return None

    def path(self, x0: Tensor, context: dict, substeps: int = 0) -> tuple[list[Tensor], Tensor]:
        """The states on the way from ``x0`` ``(B, T, D)``, and the t in (0, 1] of each: here only the result, t = 1.

        Args:
            context: what the span's first layer is given besides the states (:class:`~lft_edu.latents.Latents`).
            substeps: states inside each step of a flow, besides its end.
        """
        return [self(x0, **context)], torch.ones(1, dtype=torch.float64)

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.settings.items())


def _enter_with_sink(operator: Operator, args: tuple) -> tuple:
    return (operator.with_sink(args[0]), *args[1:]) if args else args


def _leave_with_sink(operator: Operator, args: tuple, output: Tensor) -> Tensor:
    return operator.with_sink(output)
