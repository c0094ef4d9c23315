"""Check of exercise 5.5: a test that notices a wrong KV cache."""

from collections.abc import Callable

import torch
from torch import Tensor

from .checking import Unfilled, Wrong, exercise, truth

HEAD, TAIL, EVALUATIONS, WIDTH = 2, 2, 4, 6  # layers before and after an operator of two midpoint steps


class CachedModel:
    """A model of attention layers with a flow among them, run on a text that comes in pieces.

    Args:
        entry: which cache entry the operator's j-th evaluation uses in a pass, ``entry(j, number of the pass)``.
        tail: the first cache entry of the tail.
        keep: what is kept of the keys and values so far and those of this pass, ``keep(old, new)``.
        causal: a later piece hides each token's future, too.
        rounded: what becomes of the states at the end of a pass, ``rounded(x, number of the pass)``.
    """

    def __init__(
        self,
        entry: Callable = lambda j, number: HEAD + j,
        tail: int = HEAD + EVALUATIONS,
        keep: Callable = lambda old, new: torch.cat([old, new], 1),
        causal: bool = True,
        rounded: Callable = lambda x, number: x,
    ):
        self.entry, self.tail, self.keep, self.causal, self.rounded = entry, tail, keep, causal, rounded
        self.cache: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, pieces) -> Tensor:
        """Return the states (1, T, 6) of the whole text, read piece by piece with an empty cache at first."""
        if isinstance(pieces, Tensor) or not isinstance(pieces, list | tuple) or not pieces:
            raise Wrong("Give `run` a list of pieces, such as [text] or text.split(1, dim=1).")
        for x in pieces:
            if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[::2] != (1, WIDTH) or not x.shape[1]:
                raise Wrong("Each piece must be (1, tokens, D), with at least one token: text[:, :3], not text[:3].")
        self.cache, ends = {}, []
        for number, x in enumerate(pieces):
            ends.append(self.rounded(self._pass(x.double(), number), number))
        return torch.cat(ends, 1)

    def _pass(self, x: Tensor, number: int) -> Tensor:
        for i in range(HEAD):
            x = x + self._attend(x, i, i, number)
        for step in range(EVALUATIONS // 2):
            u = [self._velocity(x, step / 2, 2 * step, number)]
            u.append(self._velocity(x + u[0] / 4, step / 2 + 1 / 4, 2 * step + 1, number))
            x = x + u[1] / 2
        for i in range(TAIL):
            x = x + self._attend(x, self.tail + i, 50 + i, number)
        return x

    def _velocity(self, x: Tensor, t: float, j: int, number: int) -> Tensor:
        return (1 + 2 * t) * self._attend(x, self.entry(j, number), 99, number) + torch.cos(3 * t * x)

    def _attend(self, x: Tensor, entry: int, seed: int, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (x @ torch.randn(WIDTH, WIDTH, generator=generator, dtype=x.dtype) for _ in range(3))
        old = self.cache.get(entry, (k[:, :0], v[:, :0]))
        every_k, every_v = (torch.cat(pair, 1) for pair in zip(old, (k, v), strict=True))
        self.cache[entry] = self.keep(old[0], k), self.keep(old[1], v)
        allowed = torch.ones(q.shape[1], every_k.shape[1]).tril(every_k.shape[1] - q.shape[1]).bool()
        if number and not self.causal:
            allowed[:] = True
        scores = (q @ every_k.mT / 3).masked_fill(~allowed, -torch.inf)
        return torch.tanh(scores.softmax(-1) @ every_v)


def eight_bits(old: Tensor, new: Tensor) -> Tensor:
    """Keep keys and values in 8 bits: whole multiples of 1/32."""
    return torch.cat([old, (32 * new).round() / 32], 1)


RIGHT = {
    "in exact arithmetic": CachedModel(),
    "that rounds differently in later passes": CachedModel(rounded=lambda x, number: x * (1 + 1e-6 * (number > 0))),
}
SLIPS = {  # a model that … → (how, what a test needs to notice it)
    "keeps nothing": ({"keep": lambda old, new: old}, "Compare the text in pieces with the whole text at once."),
    "shares one entry among all evaluations of its operator": (
        {"entry": lambda j, number: HEAD},
        "Compare the text in pieces with the whole text at once.",
    ),
    "has one entry for both evaluations of a step": (
        {"entry": lambda j, number: HEAD + j // 2},
        "Compare all tokens, not the last one or the likeliest words.",
    ),
    "lets the tail write into the operator's last entry": (
        {"tail": HEAD + EVALUATIONS - 1},
        "Compare all tokens, not the last one or the likeliest words.",
    ),
    "counts its entries on from pass to pass": (
        {"entry": lambda j, number: HEAD + j + 100 * number},
        "Give it more than one piece.",
    ),
    "keeps the last piece only": (
        {"keep": lambda old, new: new},
        "With two pieces that is right, since all before is the last piece: give it at least three.",
    ),
    "lets the tokens of a later piece see each other's future": (
        {"causal": False},
        "Where each later piece is a single token there is no future in it: give it a later piece of several tokens.",
    ),
    "rounds what it keeps to 8 bits": (
        {"keep": eight_bits},
        "Your tolerance is too wide: 1e-4 is enough for rounding.",
    ),
}


@exercise("5.5", "A test for a cache", difficulty=2, minutes=12)
def slots(answer):
    question, text = (
        "is this model's cache right?",
        torch.randn(1, 7, WIDTH, generator=torch.Generator().manual_seed(8)),
    )
    yield "True or False"
    truth(answer(CachedModel(), text), question)
    yield "a right model passes"
    for name, right in RIGHT.items():
        if not truth(answer(right, text), question):
            raise Wrong(
                f"Your test rejects a right model, one {name}. In pieces or at once the sums run in another order, and "
                "the last digits differ: compare with torch.allclose and a tolerance of 1e-4. And compare the same "
                "tokens: what the model gives for the whole text, and for all its pieces."
            )
    for name, (slip, need) in SLIPS.items():
        yield f"notices a model that {name}"
        try:
            passes = truth(answer(CachedModel(**slip), text), question)
        except Unfilled:
            raise
        except Wrong:
            continue  # a test that raises has noticed, too
        if passes:
            raise Wrong(f"Your test lets a model pass that {name}. {need}")
