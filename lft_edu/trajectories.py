"""Capture every token's hidden state at every depth of a model.

A teacher with L layers has states at L+1 depths: the input of layer 0 and the output of each layer, before the final
norm. In a spliced model a flow replaces the layers [m, n); the state at flow time t has depth m + t (n − m). So all
models share one depth axis, in layers of the teacher, and one space.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .families import layers_of
from .heads import Head, check_parts
from .latents import hidden_states_at_all_layers
from .objectives import token_kl
from .operators import Flow
from .splicing import SplicedForCausalLM
from .support import checks
from .support.machine import evaluation_batch, require_memory
from .support.progress import progress_bar
from .support.whole import unwrapped
from .text import encode, token_to_str

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Trajectory:
    """The hidden states of one text in one model.

    Attributes:
        states: ``(S, T, D)`` float32 on the CPU, the hidden states at S depths.
        times: ``(S,)`` float64, increasing: the depths in layers, from 0 to L; m + t (n − m) inside a flow.
        tokens: T printable strings; bytes that are not valid UTF-8 are written ``\\xf0``.
        ids: ``(T,)`` token ids.
        text: the text captured.
        span: ``(m, n)`` of a spliced model; None for a teacher.
        unembed: maps states to logits, see :class:`Unembed`.
    """

    states: Tensor = field(repr=False)
    times: Tensor = field(repr=False)
    tokens: list[str]
    ids: Tensor = field(repr=False)
    text: str
    span: tuple[int, int] | None
    unembed: "Unembed" = field(repr=False)

    def at(self, depths: float | Sequence[float] | Tensor) -> Tensor:
        """Return the states at K depths, ``(K, T, D)``, interpolated linearly between the captured depths.

        Raises:
            ValueError: a depth below 0 or above L.
        """
        depths = checks.tensor("depths", depths).double().reshape(-1)
        if not bool(((depths >= self.times[0]) & (depths <= self.times[-1])).all()):  # NaN is not, either
            raise ValueError(f"Depths run from 0 to {self.times[-1]:g} layers; you asked for {depths.tolist()}.")
        after = torch.searchsorted(self.times, depths).clamp(min=1)
        before, after_time = self.times[after - 1], self.times[after]
        share = ((depths - before) / (after_time - before)).float()[:, None, None]
        return torch.lerp(self.states[after - 1], self.states[after], share)

    @checks.takes(depth=checks.real)
    def depth_index(self, depth: float) -> int:
        """Return the index into ``times`` of a captured depth.

        Raises:
            ValueError: no state was captured at this depth.
        """
        found = int((self.times - depth).abs().argmin())
        if not abs(self.times[found].item() - depth) <= 1e-6:  # NaN is at no depth, either
            after = int(torch.searchsorted(self.times, float(depth)))
            near = " and ".join(f"{t:.4g}" for t in self.times[max(0, after - 1) : after + 1].tolist())
            raise ValueError(
                f"No state was captured at depth {depth:g}; the nearest are {near}. Interpolate with .at()."
            )
        return found

    station = depth_index

    def norms(self) -> Tensor:
        """Return the Euclidean norm of each state, ``(S, T)``."""
        return self.states.norm(dim=-1)

    def cosines(self) -> Tensor:
        """Return the cosine similarity of each state with the one before, ``(S−1, T)``."""
        return torch.nn.functional.cosine_similarity(self.states[1:], self.states[:-1], dim=-1)

    def step_lengths(self) -> Tensor:
        """Return the distance between successive states, ``(S−1, T)``."""
        return self.states.diff(dim=0).norm(dim=-1)

    def path_length(self) -> Tensor:
        """Return the length of each token's path, the sum of its step lengths, ``(T,)``."""
        return self.step_lengths().sum(0)

    def straightness(self) -> Tensor:
        """Return the distance from first to last state over the path length, ``(T,)``, in [0, 1]; 1 if straight."""
        return (self.states[-1] - self.states[0]).norm(dim=-1) / self.path_length().clamp_min(1e-12)

    def curvature(self) -> Tensor:
        """Return the angle between successive steps, ``(S−2, T)``, in radians: 0 straight on, π reversed."""
        steps = torch.nn.functional.normalize(self.states.diff(dim=0).double(), dim=-1)
        # 2 atan2(‖a − b‖, ‖a + b‖) is exact near 0, where the arc cosine of the dot product is not
        there, back = (steps[1:] - steps[:-1]).norm(dim=-1), (steps[1:] + steps[:-1]).norm(dim=-1)
        return (2 * torch.atan2(there, back)).float()

    def log_probabilities(self, index: int = -1) -> Tensor:
        """Return next-token log-probabilities, ``(T, V)``: the final norm and head applied to ``states[index]``."""
        return self.unembed(self.states[index]).log_softmax(-1)

    def loss(self) -> Tensor:
        """Return the cross-entropy of the token that follows each token, nats, ``(T−1,)``."""
        return -self.log_probabilities()[:-1].gather(1, self.ids[1:, None])[:, 0]

    def logit_lens(self, k: int = 5) -> "Lens":
        """Apply the model's final norm and head to every state (the logit lens, nostalgebraist 2020).

        Args:
            k: number of most likely tokens to keep, from 1 to the vocabulary size.

        Raises:
            ValueError: ``k`` out of range.
        """
        return logit_lenses([self], k)[0]


@dataclass(frozen=True)
class Lens:
    """The logit lens of one trajectory.

    Attributes:
        ids, probabilities: ``(S, T, k)``, the most likely next tokens at each depth, best first.
        kl: ``(S, T)``, KL(final distribution ‖ the distribution at this depth), nats; 0 at the last depth.
        times: ``(S,)``, depth in layers.
        words: token id → printable string.
    """

    ids: Tensor = field(repr=False)
    probabilities: Tensor = field(repr=False)
    kl: Tensor
    times: Tensor = field(repr=False)
    words: dict[int, str] = field(repr=False)

    def top(self, index: int = -1, token: int = -1, station: int | None = None) -> list[tuple[str, float]]:
        """Return the k most likely next tokens at a depth index and position: ``(word, probability)``, best first."""
        index = index if station is None else station  # an earlier name
        ids, shares = self.ids[index, token].tolist(), self.probabilities[index, token].tolist()
        return [(self.words[i], p) for i, p in zip(ids, shares, strict=True)]


@dataclass(frozen=True)
class Unembed:
    """A model's final norm and output head, with its tokenizer: maps hidden states to logits, and ids to strings."""

    head: Head
    tokenizer: "PreTrainedTokenizerBase"

    @torch.no_grad()
    def __call__(self, states: Tensor) -> Tensor:
        """Return logits ``(..., V)``, float32 on the CPU, of states ``(..., D)``."""
        return self.logits(states).float().cpu()

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """Return logits ``(..., V)`` of states ``(..., D)``, on the model's device and in its type."""
        return self.head(states)

    def has_weights_of(self, other: "Unembed") -> bool:
        """Return whether norm and head have the same weights, bit for bit, as those of another model."""
        mine, theirs = self.head.state_dict(), other.head.state_dict()
        places = [{name: (x.dtype, x.device) for name, x in weights.items()} for weights in (mine, theirs)]
        return places[0] == places[1] and all(torch.equal(mine[name], theirs[name]) for name in mine)

    @property
    def vocab_size(self) -> int:
        return len(self.head.weight)

    def word(self, token: int) -> str:
        return token_to_str(self.tokenizer, token)


def logit_lenses(paths: Sequence[Trajectory], k: int = 5) -> list[Lens]:
    """Apply the logit lens to several trajectories of one text, such as a teacher's and a student's.

    States that a trajectory shares with the first one, such as those before the span, are unembedded only once.

    Args:
        paths: at least one trajectory.
        k: number of most likely tokens to keep, from 1 to the vocabulary size.

    Raises:
        ValueError: ``k`` out of range, or trajectories of different texts.
    """
    first, *others = paths
    unembed = first.unembed
    if not 1 <= k <= unembed.vocab_size:
        raise ValueError(f"k={k}: keep between 1 and {unembed.vocab_size} tokens.")
    if not all(torch.equal(first.ids, path.ids) for path in others):
        raise ValueError("The trajectories are of different texts: capture all models on the same text.")
    if not all(unembed.has_weights_of(path.unembed) for path in others):
        return [path.logit_lens(k) for path in paths]
    states, rows = first.states, [list(range(len(first.states)))]
    for path in others:
        pairs = zip(first.states, path.states, strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: torch.equal(*pair), pairs))
        rows.append([*range(same), *range(len(states), len(states) + len(path.states) - same)])
        states = torch.cat([states, path.states[same:]])
    shares, ids, kl = [], [], []
    # many rows per product, which reads the whole head; then one token at a time, which fits into the CPU's cache
    for part in states.split(evaluation_batch(unembed.vocab_size, len(states)), dim=1):
        rows_of_tokens = part.transpose(0, 1).flatten(0, 1)  # a matrix: bfloat16 is 20 times as slow in batches of them
        for logits in unembed.logits(rows_of_tokens).split(len(states)):
            here = logits.log_softmax(-1, dtype=torch.float32)
            top = here.topk(k)
            shares.append(top.values.exp())
            ids.append(top.indices)
            expected = [(here @ here[own[-1]].exp())[own] for own in rows]  # Σ p_final log p at each depth
            kl.append(torch.cat([x[-1] - x for x in expected]))
    all_shares, all_ids, all_kl = (torch.stack(x, 1).cpu() for x in (shares, ids, kl))
    lenses = []
    for path, own, own_kl in zip(paths, rows, all_kl.split([len(own) for own in rows]), strict=True):
        words = {i: path.unembed.word(i) for i in all_ids[own].unique().tolist()}
        lenses.append(Lens(all_ids[own], all_shares[own], own_kl, path.times, words))
    return lenses


@checks.takes(model=checks.model, tokenizer=checks.tokenizer)
def capture(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: str | Sequence[str],
    substeps: int = 0,
    batch_size: int = 16,
    progress: bool = False,
    between: int = 0,
) -> Trajectory | list[Trajectory]:
    """Capture every token's hidden state at every depth of a teacher or a spliced model.

    Args:
        model: a causal language model of a supported family (:mod:`lft_edu.families`), or a spliced model.
        text: one text, or a list of texts.
        substeps: additional states inside each step of a flow, each the end of a shorter step from the same start.
        batch_size: texts per forward pass.
        progress: show a progress bar.

    Returns:
        A :class:`Trajectory`, or for a list of texts a list of them.

    Raises:
        ValueError: an empty text, one longer than the model's context, or more states than fit into memory.
    """
    model, substeps = unwrapped(model), substeps or between  # an earlier name
    texts: list = list(text) if isinstance(text, list | tuple) else [text]
    rows = [encode(model, tokenizer, one) for one in texts]
    if not rows:
        raise ValueError("The list of texts is empty: give a string, or a list of strings.")
    if isinstance(substeps, bool) or not isinstance(substeps, int) or substeps < 0:
        raise ValueError(f"substeps={substeps!r}: give the number of states inside each step, 0 or more.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: give the number of texts per forward pass, 1 or more.")
    _require_memory(model, rows, substeps, batch_size)
    body, span = (model.model, tuple(model.config.span)) if isinstance(model, SplicedForCausalLM) else (model, None)
    if span is None:
        check_parts(model)
    unembed = Unembed(Head(body), tokenizer)
    found = []
    starts = range(0, len(rows), batch_size)
    for start in progress_bar(starts, desc="capture", unit="batch", disable=not progress):
        part = rows[start : start + batch_size]
        # padding is on the right, which causal attention never sees: no mask is needed
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in part], batch_first=True)
        states, times = path_of_ids(model, ids.to(body.device), substeps)
        for i, row in enumerate(part):
            words = [unembed.word(token) for token in row]
            one = states[:, i, : len(row)].clone()
            found.append(Trajectory(one, times, words, ids[i, : len(row)], texts[start + i], span, unembed))
    return found if isinstance(text, list | tuple) else found[0]


@torch.no_grad()
def path_of_ids(model: "PreTrainedModel", input_ids: Tensor, substeps: int = 0) -> tuple[Tensor, Tensor]:
    """Return the states ``(S, B, T, D)``, float32 on the CPU, of token ids ``(B, T)``, and their depths ``(S,)``."""
    if not isinstance(model, SplicedForCausalLM):
        states, _, _ = hidden_states_at_all_layers(model, input_ids)
        return torch.stack([x.float().cpu() for x in states]), torch.arange(len(states), dtype=torch.float64)
    m, n = model.config.span
    states, _, contexts = hidden_states_at_all_layers(model.model, input_ids)
    inside, t = model.operator.path(states[m], contexts[m], substeps)
    head, tail = states[: m + 1], states[m + 2 :]
    inner = (m + t * (n - m)).round(decimals=9)  # depth 15 must be exactly 15, as in the teacher
    times = torch.cat([torch.arange(m + 1), inner, torch.arange(n + 1, n + 1 + len(tail))])
    return torch.stack([x.float().cpu() for x in (*head, *inside, *tail)]), times


@checks.takes(token=checks.whole(), t=checks.real, moves=checks.tensor)
@torch.no_grad()
def velocity_at(student: SplicedForCausalLM, path: Trajectory, token: int, t: float, moves: Tensor) -> Tensor:
    """Return a flow's velocity ``(G, D)`` at time t for one token displaced from its path; other tokens are not.

    Args:
        path: a trajectory of ``student``.
        token: position in the text.
        t: flow time in [0, 1].
        moves: ``(G, D)``, displacements of the token's state.

    Raises:
        ValueError: the operator is not a flow, or the trajectory is of another model.
    """
    if not isinstance(student.operator, Flow):
        raise ValueError(f"A {student.operator.kind!r} operator has no velocity: give a student with a flow.")
    if not 0 <= t <= 1:
        raise ValueError(f"t={t:g}: flow time runs from 0 to 1.")
    if moves.ndim != 2 or moves.shape[1] != student.config.hidden_size:
        raise ValueError(f"moves has shape {tuple(moves.shape)}: give (G, {student.config.hidden_size}).")
    m, n = student.config.span
    if path.span != (m, n):
        raise ValueError(f"The trajectory has span {path.span}, the student ({m}, {n}): give capture(student, ...).")
    context = hidden_states_at_all_layers(student.model, path.ids[None].to(student.device))[2][m]
    x = path.at(m + t * (n - m)).expand(len(moves), -1, -1).clone()
    x[:, token] += moves
    x = x.to(student.device, student.dtype)
    return student.operator.velocity(x, t, **context)[:, token].float().cpu()


def shared_depths(*paths: Trajectory) -> Tensor:
    """Return the depths ``(K,)`` at which all these trajectories have a captured state."""
    shared = [set(path.times.tolist()) for path in paths]
    return torch.tensor(sorted(set.intersection(*shared)), dtype=torch.float64)


def divergence(teacher: Trajectory, student: Trajectory) -> Tensor:
    """Return KL(teacher ‖ student) of the next-token distributions at each position, ``(T,)``, nats.

    Raises:
        ValueError: trajectories of different texts.
    """
    if not torch.equal(teacher.ids, student.ids):
        raise ValueError("The trajectories are of different texts: capture both models on the same text.")
    return token_kl(student.log_probabilities(), teacher.log_probabilities())


def _require_memory(model, rows: list[list[int]], substeps: int, batch_size: int) -> None:
    """Raise ValueError if the states and the activations of one pass do not fit into memory."""
    spliced = isinstance(model, SplicedForCausalLM)
    body = model.model if spliced else model
    depths = len(layers_of(body)) + 1
    if spliced and isinstance(model.operator, Flow):
        depths += model.operator.settings["num_steps"] * (substeps + 1) - 1
    config, kept, widest = body.config, sum(map(len, rows)), min(batch_size, len(rows)) * max(map(len, rows))
    states = 4 * depths * config.hidden_size * (kept + 3 * widest)
    logits = 4 * widest * config.vocab_size
    require_memory(states + logits, f"The states of {kept:,} tokens at {depths} depths", "Give less text at a time.")
