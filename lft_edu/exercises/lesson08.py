"""Check of lesson 08: the layer that writes the attention sink."""

from collections.abc import Callable
from operator import index

import torch
from torch import Tensor

from .checking import Wrong, describe, exercise

# Root mean squares after each layer, the embeddings first: (first positions, other positions), one inner list per
# sequence. Each mistake below gives another pair of layers.
ONE = [
    ([1], [[2, 2, 2, 2]]),
    ([4], [[3, 3, 3, 3]]),  # more than the others
    ([20], [[5, 5, 5, 5]]),  # 16 times as much, squared
    ([45], [[5, 5, 5, 70]]),  # its norm, or another position
    ([60], [[5, 5, 5, 70]]),  # right: layer 3
    ([70], [[6, 6, 6, 60]]),
    ([900], [[7, 7, 7, 7]]),  # the largest jump; 10 times the mean
    ([1100], [[8, 8, 8, 8]]),  # the largest
    ([100], [[8, 8, 8, 8]]),  # the last
]
THREE = [
    ([1, 1, 1], [[2, 2, 2]] * 3),
    ([4, 4, 4], [[3, 3, 3]] * 3),
    ([20, 20, 20], [[5, 5, 5]] * 3),  # the mean of the states, in which other positions cancel
    ([4, 4, 60], [[5, 5, 5]] * 3),  # any sequence
    ([4, 4, 100], [[5, 5, 5]] * 3),  # the mean before the root
    ([4, 4, 200], [[5, 5, 70]] * 3),  # the mean after it, or another position
    ([200, 4, 4], [[5, 5, 5]] * 3),  # the first sequence
    ([100, 100, 40], [[5, 5, 40], [5, 5, 40], [5, 40, 40]]),  # right: layer 6
    ([200, 200, 40], [[6, 6, 6]] * 3),  # position 0 among the others
    ([1000, 1000, 1000], [[7, 7, 7]] * 3),  # all sequences
    ([1500, 1500, 1500], [[8, 8, 8]] * 3),
    ([120, 120, 120], [[8, 8, 8]] * 3),
]


def states_of(table: list) -> Tensor:
    """Make states (L+1, B, T, 4) with the root mean squares of a table. First positions point the same way."""
    first, others = (torch.tensor([row[i] for row in table], dtype=torch.float32) for i in (0, 1))
    signs = torch.tensor([[1.0, 1, -1, -1], [-1, 1, 1, -1], [1, -1, 1, 1]])  # their mean is ± a third
    signs = signs[: others.shape[1], None]
    return torch.cat([first[..., None, None].expand(-1, -1, 1, 4), others[..., None] * signs], 2)


def made_up(layers: int, writer: int | None, seed: int, high: float = 300.0) -> Tensor:
    """Make random states (layers + 1, 3, 24, 16) in which ``writer`` writes the sink; the others slowly grow."""
    states = torch.randn(layers + 1, 3, 24, 16, generator=torch.Generator().manual_seed(seed))
    states *= torch.linspace(1, 4, layers + 1)[:, None, None, None]
    if writer is not None:
        states[writer + 1 :, :, 0] *= high
    return states


def _rms(states: Tensor) -> Tensor:
    return states.double().square().mean(-1).sqrt()


def _median(values: Tensor) -> Tensor:
    """(L+1, …) → (L+1,)."""
    return values.flatten(1).median(1).values


def _writer(massive: Tensor) -> int | None:
    """The layer before the first state that is massive."""
    found = massive.nonzero().flatten().tolist()
    return found[0] - 1 if found else None


def writer_of(states: Tensor, factor: float = 10) -> int | None:
    """Return the layer that writes the sink: the answer to 8.1."""
    return _writer(_first(states) > factor * _others(states))


def _compare(first: Callable, others: Callable) -> Callable:
    return lambda states, factor: _writer(first(states) > factor * others(states))


def _first(states: Tensor) -> Tensor:
    return _median(_rms(states)[:, :, 0])


def _others(states: Tensor) -> Tensor:
    return _median(_rms(states)[:, :, 1:])


def _ratio(states: Tensor) -> Tensor:
    return _first(states) / _others(states)


def _jump(states: Tensor, factor: float) -> int:
    first = _first(states)
    return int((first[1:] / first[:-1]).argmax())


def _increase(states: Tensor, factor: float) -> int:
    return int(_first(states).diff().argmax())


BEFORE_THE_ROOT = (
    "You averaged over the sequences before the root, and one sequence decided. Take the root per token; then the "
    "median over the sequences."
)
SINK_MISTAKES: dict[str, Callable] = {
    "You returned the number of the *state*. states[0] are the embeddings; states[i + 1] is the output of layer i.":
        lambda x, factor: _plus(writer_of(x, factor), 1),
    "You subtracted one too many: states[i + 1] is the output of layer i.":
        lambda x, factor: _plus(writer_of(x, factor), -1),
    "You put position 0 among the tokens of the median. It is compared with the *other* positions: states[:, :, 1:].":
        _compare(_first, lambda x: _median(_rms(x))),
    "You took the mean of the other positions. One outlier among them (70 where the others have 5) raises it: take the "
    "median.":
        _compare(_first, lambda x: _rms(x)[:, :, 1:].flatten(1).mean(1)),
    "You took the mean of all positions, the first one included, which is an outlier and raises it. Take the median "
    "of the others.":
        _compare(_first, lambda x: _rms(x).flatten(1).mean(1)),
    "You returned the layer after which the first position is largest. The one that *writes* the sink comes before: "
    "the first layer after which it is massive.":
        lambda x, factor: int(_ratio(x).argmax()) - 1,
    "You returned the layer with the largest jump. The one that writes the sink is the first after which the state is "
    "massive, however large a later jump is.":
        _jump,
    "You returned the layer with the largest increase. The one that writes the sink is the first after which the state "
    "is massive, however much a later layer adds.":
        _increase,
    "You returned the last layer after which the first position is massive; wanted is the first one.":
        lambda x, factor: int((_ratio(x) > factor).nonzero()[-1]) - 1,
    BEFORE_THE_ROOT:
        _compare(lambda x: x[:, :, 0].square().mean((1, 2)).sqrt(),
                 lambda x: _median(x[:, :, 1:].square().mean((1, 3)).sqrt())),
    BEFORE_THE_ROOT + " (You averaged the states themselves: what differs between sequences cancels.)":
        _compare(lambda x: _rms(x.mean(1))[:, 0], lambda x: _median(_rms(x.mean(1))[:, 1:])),
    "You took the mean of the first positions over the sequences, and one sequence decided. Take the median.":
        _compare(lambda x: _rms(x)[:, :, 0].mean(1), _others),
    "You looked at the first sequence only. Take the median over all of them.":
        lambda x, factor: writer_of(x[:, :1], factor),
    "You stopped where *any* sequence has a massive first position. Take the median over the sequences.":
        _compare(lambda x: _rms(x)[:, :, 0].amax(1), _others),
    "You waited until *all* sequences have a massive first position. Take the median over the sequences.":
        _compare(lambda x: _rms(x)[:, :, 0].amin(1), _others),
    "You looked for a massive state at any position. A sink is at the first one: states[:, :, 0].":
        _compare(lambda x: _median(_rms(x).amax(2)), _others),
    "You left out the root: 4 times the root mean square is 16 times the mean square.":
        _compare(lambda x: _first(x).square(), lambda x: _others(x).square()),
    "You compared a norm with a root mean square. A norm is larger by the root of the width: take the same for both.":
        _compare(lambda x: _median(x[:, :, 0].norm(dim=-1)), _others),
    "You left out the factor: the first position must exceed the median of the others `factor` times.":
        lambda x, factor: writer_of(x, 1),
}  # fmt: skip


def _plus(layer: int | None, more: int) -> int | None:
    return None if layer is None else layer + more


def named(layer: int | None) -> str:
    return "None" if layer is None else f"layer {layer}"


def as_layer(value) -> int | None:
    """Return ``value`` as the number of a layer or None, or explain what it is instead."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        raise Wrong(
            f"You returned {describe(value)}; the number of the layer must be an int. Convert it: int(…), or .item()."
        )
    try:
        if isinstance(value, bool):
            raise TypeError
        return int(value) if isinstance(value, float) and value.is_integer() else index(value)
    except TypeError:
        raise Wrong(f"You returned {describe(value)}; the number of the layer must be a whole number.") from None


def _rows(states: Tensor) -> str:
    """Say what a correct function compares, state by state."""
    pairs = zip(_first(states).tolist(), _others(states).tolist(), strict=True)
    return ", ".join(f"{first:g} | {others:g}" for first, others in pairs)


@exercise("8.1", "Which layer writes the sink?", difficulty=1, minutes=8)
def sink_writer(answer):
    def ask(states: Tensor, *factor: float) -> int | None:
        given = states.clone()
        found = as_layer(answer.or_none(given, *factor))
        if not torch.equal(given, states):
            raise Wrong("You changed the states you were given: operators such as *= and square_ work in place.")
        return found

    yield "the number of a layer"
    as_layer(answer(made_up(30, 11, seed=0)))
    yield "by hand: one sequence, and three"
    cases = [states_of(ONE), states_of(THREE)]
    got, right = [ask(x) for x in cases], [writer_of(x) for x in cases]
    if got != right:
        _in_any_unit(ask, cases)  # a fixed number may choose what another mistake does
        numbers = f"Yours are {named(got[0])} for one sequence and {named(got[1])} for three; they should be "
        numbers += f"{named(right[0])} and {named(right[1])}."
        for message, mistake in SINK_MISTAKES.items():
            if got == [mistake(x, 10) for x in cases]:
                raise Wrong(f"{message}\n{numbers}")
        which = 0 if got[0] != right[0] else 1
        raise Wrong(
            f"{numbers}\nRoot mean squares for {('one sequence', 'three sequences')[which]}, in states[0], states[1] … "
            f"(median of the first positions | median of the others): {_rows(cases[which])}."
        )
    yield "another factor"
    for factor in (2, 30, 130):
        found, wanted = ask(cases[0], factor), writer_of(cases[0], factor)
        if found != wanted:
            ignored = "You compare with 10 times the median whatever `factor` is. " if found == right[0] else ""
            raise Wrong(f"{ignored}With factor {factor} yours is {named(found)}; it should be {named(wanted)}.")
    yield "thirty layers, written by the first, the twelfth or the last, in any unit"
    models = [made_up(30, writer, seed=writer) for writer in (0, 11, 29)]
    for states, writer in zip(models, (0, 11, 29), strict=True):
        found = ask(states)
        if found != writer:
            raise Wrong(f"Layer {writer} of 30 writes the sink; yours is {named(found)}.")
    _in_any_unit(ask, models)
    yield "no sink: None"
    quiet = {
        "All positions have about the same root mean square": made_up(30, None, seed=1),
        "The first position has about five times that of the others": made_up(30, 11, seed=2, high=5.0),
        "A massive state is there, but not at the first position": made_up(30, 11, seed=3).roll(3, 2),
    }
    for what, states in quiet.items():
        try:
            found = ask(states)
        except Wrong as wrong:
            raise Wrong(f"{what}. No layer writes a sink: return None.\n{wrong}") from None
        if found is not None:
            why = " (argmax of values that are all False is 0.)" if found in (0, -1) else ""
            raise Wrong(f"{what}. No layer writes a sink: return None. You returned {found}.{why}")


def _in_any_unit(ask: Callable, cases: list[Tensor]) -> None:
    """Require the same answer for states times 1000 and times a thousandth."""
    for states in cases:
        before = ask(states)
        for unit in (1000.0, 0.001):
            if (found := ask(states * unit)) != before:
                raise Wrong(
                    "You compared with a fixed number. Massive is meant relative to the other tokens: compare with "
                    f"`factor` times their median.\nThe same states times {unit:g}: yours is {named(found)} instead of "
                    f"{named(before)}."
                )
