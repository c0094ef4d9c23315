"""The latents of a corpus, batch by batch: what an operator is fitted to."""

import copy
import hashlib

import torch
from torch import Tensor

from .families import attention_types, layers_of
from .latents import Latents, StateStore, span_latents
from .support.machine import require_memory
from .support.progress import progress_bar
from .text import as_sequences, readable_ids, require_corpus
from .training.streams import TokenStream


class LatentSource:
    """Token sequences → :class:`Latents`, computed each time or, for a small corpus, kept in memory.

    Args:
        batch_size: blocks a call, and blocks a pass of the teacher while the cache is filled.
        cache: compute the latents of every block once and keep them; or a :class:`~lft_edu.latents.StateStore` of
            the same blocks, which has them on disk.
        between: the states between the span's layers are needed, too.

    Raises:
        ValueError: a corpus that the teacher cannot read (:func:`~lft_edu.text.as_sequences`), at once or when its rows
            are read; a streamed one, if it is to be kept in memory.

    Attributes:
        tail_from: n, if the latents of the span (m, n) are to go to the end (:func:`~lft_edu.latents.span_latents`).
        context_of: the layer whose context they have; None: the span's first.
    """

    def __init__(
        self,
        teacher,
        span: tuple[int, int],
        blocks,
        batch_size: int,
        cache: bool | StateStore = False,
        progress: bool = True,
        between: bool = False,
    ):
        require_corpus(blocks)
        self.streamed = not hasattr(blocks, "__len__")
        if self.streamed:
            blocks = TokenStream(blocks)
            if cache:
                raise ValueError("A streamed corpus can't be kept in memory: use cache_latents=False.")
        elif not hasattr(blocks, "with_format"):
            blocks = as_sequences(blocks, teacher)
        else:  # of datasets: tensors at once, not numbers one by one
            if len(blocks) == 0:
                raise ValueError("The corpus is empty: give at least one sequence of tokens.")
            names = [name for name in ("input_ids", "attention_mask") if name in blocks.column_names]
            blocks = blocks.with_format("torch", columns=names or None)
        self.teacher, self.span, self.blocks = teacher, (span[0], span[1]), blocks
        self.device, self.between = teacher.device, between
        self.stored: list[Tensor] | None = None  # x0, the states between, x1; each (N, T, D)
        self.context: dict = {}
        self.tail: list[dict] = []
        self.tail_from: int | None = None
        self.context_of: int | None = None
        if isinstance(cache, StateStore):
            self.stored = [cache.states(d) for d in (range(span[0], span[1] + 1) if between else span)]
        elif cache:
            self._fill(batch_size, progress)

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.ids(torch.zeros(1, dtype=torch.long)).shape[1]

    def ids(self, rows: Tensor) -> Tensor:
        """Token ids ``(B, T)`` of these rows of the corpus."""
        whole = isinstance(self.blocks, Tensor)  # checked once
        ids = self.blocks[rows] if whole else readable_ids(self.blocks[rows.tolist()], self.teacher)
        if ids.shape[1] < 2:
            raise ValueError("The sequences have one token: give at least 2, one to read and one to predict.")
        if self.device.type == "cuda" and ids.device.type == "cpu":
            return ids.pin_memory().to(self.device, non_blocking=True)  # the GPU need not be waited for
        return ids.to(self.device)

    def fingerprint(self) -> str:
        """Tells one teacher, span and corpus from another: a hash of two layers and of the first and last block."""
        layers, (m, n) = layers_of(self.teacher), self.span
        ends = torch.tensor([0] if self.streamed else [0, len(self) - 1])
        tensors = [*layers[m].parameters(), *layers[n - 1].parameters(), self.ids(ends)]
        found = hashlib.sha256(f"{m} {n} {len(self)}".encode())
        for tensor in tensors:
            found.update(tensor.detach().cpu().float().numpy().tobytes())
        return found.hexdigest()[:16]

    def __call__(self, rows: Tensor) -> Latents:
        if self.stored is None:
            return self._computed(self.ids(rows))
        if not self.context:  # the same for every batch of unpadded blocks: one row of a mask serves any batch
            first = self._computed(self.ids(torch.arange(2) % len(self)))
            self.context, *self.tail = (
                {k: v[:1] if isinstance(v, Tensor) else v for k, v in context.items()}
                for context in (first.context, *first.tail)
            )
        x0, *path, x1 = (x[rows].to(self.device) for x in self.stored)
        return Latents(x0, x1, self.context, self.tail, path)

    def to_the_end(self, n: int) -> "LatentSource":
        """The same text, for an objective that compares logits, and a span that ends at layer n.

        What is stored of the states at layer n is of no use to it; what is stored of those at the model's end is kept.
        """
        other, (m, end), last = copy.copy(self), self.span, len(layers_of(self.teacher))
        other.tail_from, other.context, other.tail = n, {}, []
        if end != last and end == n:
            other.span, other.stored = (m, last), None
        return other

    def seen_by(self, layer: int) -> "LatentSource":
        """The same latents in the context of another layer of the span, which may attend in another way."""
        kind = attention_types(self.teacher.config)
        now = self.span[0] if self.context_of is None else self.context_of
        if not kind or kind[now] == kind[layer]:
            return self
        other = copy.copy(self)
        other.context_of, other.context, other.tail = layer, {}, []
        return other

    def _computed(self, ids: Tensor) -> Latents:
        if self.tail_from is None:
            return span_latents(self.teacher, self.span, ids, between=self.between, context_of=self.context_of)
        span = self.span[0], self.tail_from
        return span_latents(self.teacher, span, ids, to_the_end=True, context_of=self.context_of)

    def _fill(self, batch_size: int, progress: bool) -> None:
        rows = torch.arange(len(self.blocks))
        first = self._computed(self.ids(rows[:1]))
        need = (2 + len(first.between)) * first.x0[0].nbytes * len(rows)
        require_memory(need, f"The latents of {len(rows):,} blocks", "Use cache_latents=False, or fewer tokens.")
        stored = [first.x0.new_empty(len(rows), *x.shape[1:]) for x in (first.x0, *first.between, first.x1)]
        for part in progress_bar(rows.split(batch_size), desc="latents", unit="batch", disable=not progress):
            found = self._computed(self.ids(part))
            for kept, x in zip(stored, (found.x0, *found.between, found.x1), strict=True):
                kept[part] = x.cpu()
        self.stored = stored
