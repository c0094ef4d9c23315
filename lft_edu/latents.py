"""Training pairs: the hidden states that enter a span of the teacher, and those that leave it.

They are computed on the fly, since storing them for 2.6 billion tokens of Pythia-410M would take ten terabytes. Layers
after the span do not run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .families import Family, by_name, family_of, layer_output, layers_of
from .support import checks
from .support.files import write_json
from .support.modes import in_eval_mode
from .support.progress import progress_bar
from .text import as_sequences, readable_ids

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
        tail: the same of each layer after the span; empty if they are not needed.
        between: the states that enter the span's other layers, n − m − 1 of them; empty if they are not needed.
    """

    x0: Tensor
    x1: Tensor
    context: dict
    tail: list[dict] = field(default_factory=list)
    between: list[Tensor] = field(default_factory=list)


def layer_input(args: tuple, kwargs: dict, family: Family | None = None) -> tuple[Tensor, dict]:
    """Split a layer's arguments into the hidden states and the context: all others but the cache.

    Args:
        args, kwargs: as a forward pre-hook gets them.
        family: names the positional arguments after the states; if None, there are none.
    """
    state = args[0] if args else kwargs["hidden_states"]
    left_out = ("hidden_states", "use_cache", "layer_past", "past_key_values", "cache")
    return state, {k: v for k, v in (by_name(family, args, kwargs) if family else kwargs).items() if k not in left_out}


@in_eval_mode
@torch.no_grad()
def span_latents(
    teacher: PreTrainedModel,
    span: tuple[int, int],
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    to_the_end: bool = False,
    between: bool = False,
    context_of: int | None = None,
) -> Latents:
    """Run the teacher up to layer n−1; return the input of layer m and the output of layer n−1.

    Args:
        span: ``(m, n)``, layers m to n−1, with 0 ≤ m < n ≤ L.
        input_ids, attention_mask: ``(B, T)``.
        to_the_end: run all layers: ``x1`` leaves the *last* one, before the final norm (logits follow from it), and
            ``tail`` has what the layers after the span are given.
        between: also return the states between the span's layers.
        context_of: the layer of the span whose context is returned; None: layer m. Where a model mixes kinds of
            attention, their masks and rotary embeddings differ.
    """
    (m, n), layers = span, layers_of(teacher)
    family, seen, tail, path = family_of(teacher.config), {}, [], []

    def enter(module, args, kwargs):
        seen["x0"], seen["context"] = layer_input(args, kwargs, family)

    def look(module, args, kwargs):
        seen["context"] = layer_input(args, kwargs, family)[1]

    def follow(module, args, kwargs):
        tail.append(layer_input(args, kwargs, family)[1])

    def pass_by(module, args, kwargs):
        path.append(layer_input(args, kwargs, family)[0])

    def leave(module, args, output):
        seen["x1"] = layer_output(output)
        raise StopForward

    after = list(layers[n:]) if to_the_end else []
    hooks = [layers[m].register_forward_pre_hook(enter, with_kwargs=True)]
    if context_of is not None:
        hooks.append(layers[context_of].register_forward_pre_hook(look, with_kwargs=True))
    hooks += [layer.register_forward_pre_hook(follow, with_kwargs=True) for layer in after]
    if between:
        hooks += [layer.register_forward_pre_hook(pass_by, with_kwargs=True) for layer in layers[m + 1 : n]]
    hooks.append((layers[-1] if to_the_end else layers[n - 1]).register_forward_hook(leave))
    _run_until_stopped(teacher, hooks, input_ids=input_ids, attention_mask=attention_mask)
    return Latents(**seen, tail=tail, between=path)


def _run_until_stopped(teacher: PreTrainedModel, hooks: list, **inputs) -> None:
    """Run the teacher until one of these hooks raises :class:`StopForward`; remove them in any case."""
    try:
        teacher(**inputs, use_cache=False)
    except StopForward:
        pass
    finally:
        for hook in hooks:
            hook.remove()


@in_eval_mode
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


@checks.takes(n=checks.whole(1), token=checks.optional(checks.whole()))
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
        ValueError: ``n`` below 1, fewer than ``n`` sequences (with the token), or a corpus that the teacher cannot read
            (:func:`~lft_edu.text.as_sequences`).
    """
    sequences = as_sequences(corpus, teacher)
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
        states, _, _ = hidden_states_at_all_layers(teacher, sequences[part].to(teacher.device))
        parts.append(torch.stack([x[torch.arange(len(part)), place.to(x.device)] for x in states]))
    return torch.cat(parts, 1)


class StateStore:
    """Hidden states of a corpus at some depths, kept on disk: computed once, read many times.

    ``folder/depth-8.bin`` holds the states that enter layer 8, ``(N, T, D)`` in the teacher's type, mapped into memory
    when it is read. The depth after the last layer is stored before the final norm, so the teacher's logits follow.

    Args:
        folder: where; created if needed. What an earlier, interrupted call computed is used.
        sequences: token ids ``(N, T)``.
        depths: of the states to keep, 0 to L.

    Raises:
        ValueError: the folder holds the states of another teacher or corpus, or the teacher cannot read the corpus.
    """

    CHUNK = 16  # sequences in one pass of the teacher

    def __init__(self, folder: str | Path, teacher: PreTrainedModel, sequences: Tensor, depths: list[int]):
        self.folder, self.teacher, self.sequences = Path(folder), teacher, readable_ids(sequences, teacher)
        self.depths = sorted(depths)
        self.folder.mkdir(parents=True, exist_ok=True)
        whose = hashlib.sha256(sequences.contiguous().numpy().tobytes())
        for p in (*layers_of(teacher)[0].parameters(), *layers_of(teacher)[-1].parameters()):
            whose.update(p.detach().cpu().float().numpy().tobytes())
        about = {"shape": [*sequences.shape], "dtype": str(teacher.dtype), "sha256": whose.hexdigest()}
        note = self.folder / "store.json"
        if not note.exists():
            write_json(note, about)
        if json.loads(note.read_text(encoding="utf-8")) != about:
            raise ValueError(
                f"{folder} holds the states of another teacher or corpus. Give another folder, or delete it."
            )

    def _map(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        return torch.from_file(str(self.folder / f"{name}.bin"), shared=True, size=size, dtype=dtype)

    def states(self, depth: int) -> Tensor:
        """The states at one depth, ``(N, T, D)``, on disk."""
        shape = (*self.sequences.shape, self.teacher.config.hidden_size)
        return self._map(f"depth-{depth}", torch.Size(shape).numel(), self.teacher.dtype).view(shape)

    def _done(self, depth: int) -> Tensor:
        chunks = -(-len(self.sequences) // self.CHUNK)
        return self._map(f"done-{depth}", chunks, torch.uint8)

    @torch.no_grad()
    def fill(self, backwards: bool = False, progress: bool = True) -> StateStore:
        """Compute what is missing. A second process that goes ``backwards`` meets the first one in the middle."""
        parts = self.sequences.split(self.CHUNK)
        flags, states = {d: self._done(d) for d in self.depths}, {d: self.states(d) for d in self.depths}
        order = range(len(parts) - 1, -1, -1) if backwards else range(len(parts))
        for i in progress_bar(order, desc="states", unit="batch", disable=not progress):
            if all(flags[d][i] for d in self.depths):
                continue
            rows = slice(i * self.CHUNK, i * self.CHUNK + len(parts[i]))
            found = states_at(self.teacher, parts[i].to(self.teacher.device), self.depths)
            for d in self.depths:
                states[d][rows] = found[d].cpu()
                flags[d][i] = 1
        return self


@in_eval_mode
def states_at(teacher: PreTrainedModel, input_ids: Tensor, depths: list[int]) -> dict[int, Tensor]:
    """Run the teacher up to the deepest of these depths; return depth → the states ``(B, T, D)`` there."""
    layers, found, deepest = layers_of(teacher), {}, max(depths)

    def enter(depth):
        def hook(module, args, kwargs):
            found[depth] = layer_input(args, kwargs)[0]
            if depth == deepest:
                raise StopForward

        return hook

    def leave(module, args, output):
        found[len(layers)] = layer_output(output)
        raise StopForward

    hooks = [layers[d].register_forward_pre_hook(enter(d), with_kwargs=True) for d in depths if d < len(layers)]
    if deepest == len(layers):
        hooks.append(layers[-1].register_forward_hook(leave))
    _run_until_stopped(teacher, hooks, input_ids=input_ids)
    return found
