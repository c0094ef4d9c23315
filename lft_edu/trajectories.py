"""Trajectories: where every token of a text is at every depth of a model, as data.

A teacher's token stands at L+1 *stations*: what enters layer 0, and what leaves each layer, before the final norm. In a
spliced model the layers of a span are gone; there, a flow's stations are the ends of its steps, at depth m + t (n − m).
So every model is measured along one axis, depth in layers of the teacher, and its states lie in one space.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .families import family_of, layers_of
from .latents import hidden_states_at_all_layers
from .objectives import token_kl
from .operators import Flow, operator_path
from .splicing import SplicedForCausalLM
from .support.machine import require_memory
from .text import encode, token_to_str


@dataclass(frozen=True)
class Trajectory:
    """One text on its way through one model.

    Attributes:
        states: ``(S, T, D)`` float32 on the CPU, the hidden states at S stations.
        times: ``(S,)`` float64, increasing: depth in layers, from 0 to L; inside a flow m + t (n − m).
        tokens: T strings that can be shown as they are: bytes that are no UTF-8 are written ``\\xf0``.
        ids: ``(T,)`` token ids.
        text: what was captured.
        span: ``(m, n)`` of a spliced model; None for a teacher.
    """

    states: Tensor = field(repr=False)
    times: Tensor = field(repr=False)
    tokens: list[str]
    ids: Tensor = field(repr=False)
    text: str
    span: tuple[int, int] | None
    readout: "Readout" = field(repr=False)

    def at(self, depths: float | Sequence[float] | Tensor) -> Tensor:
        """States at these depths, ``(K, T, D)``; between two stations, on the straight line from one to the other.

        Raises:
            ValueError: a depth below 0 or above L.
        """
        depths = torch.as_tensor(depths, dtype=torch.float64).reshape(-1)
        if not bool(((depths >= self.times[0]) & (depths <= self.times[-1])).all()):  # NaN is not, either
            raise ValueError(f"Depths run from 0 to {self.times[-1]:g} layers; you asked for {depths.tolist()}.")
        after = torch.searchsorted(self.times, depths).clamp(min=1)
        before, after_time = self.times[after - 1], self.times[after]
        share = ((depths - before) / (after_time - before)).float()[:, None, None]
        return torch.lerp(self.states[after - 1], self.states[after], share)

    def station(self, depth: float) -> int:
        """The index of the station at this depth.

        Raises:
            ValueError: there is none.
        """
        found = (self.times - depth).abs().argmin().item()
        if abs(self.times[found].item() - depth) > 1e-6:
            after = int(torch.searchsorted(self.times, float(depth)))
            near = " and ".join(f"{t:.4g}" for t in self.times[max(0, after - 1) : after + 1].tolist())
            raise ValueError(f"There is no station at depth {depth:g}; beside it there are {near}.")
        return found

    def norms(self) -> Tensor:
        """‖state‖ at each station, ``(S, T)``."""
        return self.states.norm(dim=-1)

    def cosines(self) -> Tensor:
        """Cosine of each state with the one at the station before, ``(S−1, T)``."""
        return torch.nn.functional.cosine_similarity(self.states[1:], self.states[:-1], dim=-1)

    def step_lengths(self) -> Tensor:
        """Distance from station to station, ``(S−1, T)``; their sum is the length of the path."""
        return self.states.diff(dim=0).norm(dim=-1)

    def path_length(self) -> Tensor:
        """Length of each token's path, ``(T,)``."""
        return self.step_lengths().sum(0)

    def straightness(self) -> Tensor:
        """Distance from first to last station over the length of the path, ``(T,)`` in [0, 1]; 1 is a straight line."""
        return (self.states[-1] - self.states[0]).norm(dim=-1) / self.path_length().clamp_min(1e-12)

    def curvature(self) -> Tensor:
        """By how much the path turns at each inner station, ``(S−2, T)``: radians, 0 straight on, π back again."""
        steps = torch.nn.functional.normalize(self.states.diff(dim=0).double(), dim=-1)
        # 2 atan2(‖a − b‖, ‖a + b‖) is exact near 0, where the arc cosine of the dot product is not
        there, back = (steps[1:] - steps[:-1]).norm(dim=-1), (steps[1:] + steps[:-1]).norm(dim=-1)
        return (2 * torch.atan2(there, back)).float()

    def log_probabilities(self, station: int = -1) -> Tensor:
        """Log-probabilities of the next token ``(T, V)``, as the model's own last layer reads them off a station."""
        return self.readout(self.states[station]).log_softmax(-1)

    def loss(self) -> Tensor:
        """−log p(next token), nats, ``(T−1,)``: how surprised the model is by what follows each token."""
        return -self.log_probabilities()[:-1].gather(1, self.ids[1:, None])[:, 0]

    def logit_lens(self, k: int = 5) -> "Lens":
        """What each state would predict if the model ended there (the logit lens, nostalgebraist 2020).

        Args:
            k: how many of the likeliest tokens to keep, at most the vocabulary.
        """
        if not 1 <= k <= self.readout.vocabulary:
            raise ValueError(f"k={k}: keep between 1 and {self.readout.vocabulary} tokens.")
        final = self.log_probabilities()
        found = []
        for station in range(len(self.states)):  # one at a time: all at once would be S × T × V numbers
            here = self.log_probabilities(station)
            found.append((*here.exp().topk(k), token_kl(here, final)))
        probabilities, ids, kl = (torch.stack(part) for part in zip(*found, strict=True))
        words = {i: self.readout.word(i) for i in ids.unique().tolist()}
        return Lens(ids, probabilities, kl, self.times, words)


@dataclass(frozen=True)
class Lens:
    """The logit lens of one trajectory.

    Attributes:
        ids, probabilities: ``(S, T, k)``, the likeliest next tokens at each station, best first.
        kl: ``(S, T)``, KL(the model's own final distribution ‖ the one read off here), nats; 0 at the last station.
        times: ``(S,)``, depth in layers.
        words: id → the token as a string that can be shown.
    """

    ids: Tensor = field(repr=False)
    probabilities: Tensor = field(repr=False)
    kl: Tensor
    times: Tensor = field(repr=False)
    words: dict[int, str] = field(repr=False)

    def top(self, station: int, token: int) -> list[tuple[str, float]]:
        """The k likeliest next tokens after one token at one station: ``(word, probability)``, best first."""
        ids, shares = self.ids[station, token].tolist(), self.probabilities[station, token].tolist()
        return [(self.words[i], p) for i, p in zip(ids, shares, strict=True)]


@dataclass(frozen=True)
class Readout:
    """A model's final norm and head, and its tokenizer: from states to words."""

    norm: torch.nn.Module
    head: torch.nn.Module
    tokenizer: object

    @torch.no_grad()
    def __call__(self, states: Tensor) -> Tensor:
        """Logits ``(..., V)`` float32 on the CPU of states ``(..., D)``."""
        weight = self.head.weight
        return self.head(self.norm(states.to(weight.device, weight.dtype))).float().cpu()

    @property
    def vocabulary(self) -> int:
        return len(self.head.weight)

    def word(self, token: int) -> str:
        return token_to_str(self.tokenizer, token)


def capture(
    model, tokenizer, text: str | Sequence[str], between: int = 0, batch_size: int = 16, progress: bool = False
) -> Trajectory | list[Trajectory]:
    """Every token's hidden state at every depth of a teacher or a spliced model.

    Args:
        model: a causal language model of a declared family (:mod:`lft_edu.families`), or a spliced one.
        text: one text, or several.
        between: pictures inside each step of a flow: where the step would have ended had it been shorter. An Euler
            step is a straight line, a midpoint step is not.
        batch_size: texts a pass.

    Returns:
        A :class:`Trajectory`, or for several texts a list of them.

    Raises:
        ValueError: an empty text, one longer than the model was made for, or more than fits into memory.
    """
    from tqdm.auto import tqdm

    texts = list(text) if isinstance(text, list | tuple) else [text]
    rows = [encode(model, tokenizer, one) for one in texts]
    if not rows:
        raise ValueError("There is no text: give a string, or a list of them.")
    if isinstance(between, bool) or not isinstance(between, int) or between < 0:
        raise ValueError(f"between={between!r}: give the number of pictures inside each step, 0 or more.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: give the number of texts a pass, 1 or more.")
    _require_room(model, rows, between, batch_size)
    body, span = (model.model, tuple(model.config.span)) if isinstance(model, SplicedForCausalLM) else (model, None)
    norm, head = body.get_submodule(family_of(body.config).final_norm), body.get_output_embeddings()
    readout = Readout(norm, head, tokenizer)
    found = []
    starts = range(0, len(rows), batch_size)
    for start in tqdm(starts, desc="capture", unit="batch", disable=not progress, mininterval=1.0):
        part = rows[start : start + batch_size]
        # Padding goes to the right, where no token looks: no mask is needed.
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in part], batch_first=True)
        states, times = path_of_ids(model, ids.to(body.device), between)
        for i, row in enumerate(part):
            words = [readout.word(token) for token in row]
            one = states[:, i, : len(row)].clone()
            found.append(Trajectory(one, times, words, ids[i, : len(row)], texts[start + i], span, readout))
    return found if isinstance(text, list | tuple) else found[0]


@torch.no_grad()
def path_of_ids(model, input_ids: Tensor, between: int = 0) -> tuple[Tensor, Tensor]:
    """States ``(S, B, T, D)``, float32 on the CPU, of token ids ``(B, T)``, and the depth ``(S,)`` of each station."""
    if not isinstance(model, SplicedForCausalLM):
        states, _, _ = hidden_states_at_all_layers(model, input_ids)
        return torch.stack([x.float().cpu() for x in states]), torch.arange(len(states), dtype=torch.float64)
    m, n = model.config.span
    states, _, contexts = hidden_states_at_all_layers(model.model, input_ids)
    inside, t = operator_path(model.operator, states[m], contexts[m], between)
    head, tail = states[: m + 1], states[m + 2 :]
    inner = (m + t * (n - m)).round(decimals=9)  # what is 15 layers deep shall be 15 exactly, as in the teacher
    times = torch.cat([torch.arange(m + 1), inner, torch.arange(n + 1, n + 1 + len(tail))])
    return torch.stack([x.float().cpu() for x in (*head, *inside, *tail)]), times


@torch.no_grad()
def velocity_at(student: SplicedForCausalLM, path: Trajectory, token: int, t: float, moves: Tensor) -> Tensor:
    """The velocity ``(G, D)`` that a flow gives one token at time t, moved by ``moves`` ``(G, D)`` from where its path
    has it; the other tokens stay on theirs.

    Raises:
        ValueError: an operator that is no flow, or a trajectory of another model.
    """
    if not isinstance(student.operator, Flow):
        raise ValueError(f"A {student.operator.kind!r} operator has no velocity; only a flow has.")
    m, n = student.config.span
    if path.span != (m, n):
        raise ValueError(f"This trajectory has the span {path.span}, the student ({m}, {n}): capture the student.")
    context = hidden_states_at_all_layers(student.model, path.ids[None].to(student.device))[2][m]
    x = path.at(m + t * (n - m)).expand(len(moves), -1, -1).clone()
    x[:, token] += moves
    x = x.to(student.device, student.dtype)
    return student.operator.velocity(x, t, **context)[:, token].float().cpu()


def shared_depths(*paths: Trajectory) -> Tensor:
    """Depths ``(K,)`` at which all of these have a station: where they can be compared."""
    shared = [set(path.times.tolist()) for path in paths]
    return torch.tensor(sorted(set.intersection(*shared)), dtype=torch.float64)


def divergence(teacher: Trajectory, student: Trajectory) -> Tensor:
    """KL(teacher ‖ student) of the next-token distributions after each token, ``(T,)`` nats.

    Raises:
        ValueError: the two are of different texts.
    """
    if not torch.equal(teacher.ids, student.ids):
        raise ValueError("These are trajectories of different texts: capture both models on one text.")
    return token_kl(student.log_probabilities(), teacher.log_probabilities())


def _require_room(model, rows: list[list[int]], between: int, batch_size: int) -> None:
    """ValueError if the states, and what one pass needs besides, will not fit into memory."""
    spliced = isinstance(model, SplicedForCausalLM)
    body = model.model if spliced else model
    stations = len(layers_of(body)) + 1
    if spliced and isinstance(model.operator, Flow):
        stations += model.operator.settings["steps"] * (between + 1) - 1
    config, kept, widest = body.config, sum(map(len, rows)), min(batch_size, len(rows)) * max(map(len, rows))
    states = 4 * stations * config.hidden_size * (kept + 3 * widest)
    logits = 4 * widest * config.vocab_size
    require_memory(states + logits, f"The states of {kept:,} tokens at {stations} depths", "Give less text at a time.")
