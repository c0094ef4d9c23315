"""Checks of exercises 8.1 and 8.2: the layer that writes the attention sink, and a KL in skipped layers."""

import json
import math
from collections.abc import Callable
from operator import index

import torch
from torch import Tensor

from ..loading.assets import ASSETS
from ..skipping import skipped_layers
from .checking import Wrong, describe, exercise

# --- 8.1 ----------------------------------------------------------------------------------------------------------

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


# --- 8.2 ----------------------------------------------------------------------------------------------------------

CURVE = {1: 0.1, 2: 0.4, 3: 0.3, 4: 0.8}  # skipping the best three layers costs less than the best two
BY_HAND = (0.04, 0.22, 0.65, 0.8, 0.9)  # below the first point, between two, after the dip, the last point, above


def _line(curve: dict[int, float], zero: bool = True, rising: bool = True) -> tuple[list, list]:
    """The points of the curve: (numbers of layers, KLs)."""
    js = sorted(curve)
    kls = [curve[j] for j in js]
    if rising:
        kls = [max(kls[: i + 1]) for i in range(len(kls))]
    return ([0, *js], [0.0, *kls]) if zero else (js, kls)


def _inverse(kl: float, js: list, kls: list, extend: bool = False, swapped: bool = False) -> float:
    """Interpolate linearly on the first segment that reaches ``kl``; with ``extend``, on the nearest one."""
    segments = list(zip(js[:-1], js[1:], kls[:-1], kls[1:], strict=True))
    for a, b, low, high in segments:
        if low < high and kl <= high and (kl >= low or extend):
            share = (kl - low) / (high - low)
            return a + (b - a) * (1 - share if swapped else share)
    if extend:
        a, b, low, high = segments[-1]
        return a + (b - a) * (kl - low) / (high - low)
    return math.inf


def _clamped(kl: float, curve: dict[int, float], zero: bool) -> float:
    """As numpy.interp: the first number of layers below the line, the last one above it."""
    js, kls = _line(curve, zero)
    return js[0] if kl < kls[0] else js[-1] if kl > kls[-1] else _inverse(kl, js, kls)


def _without_zero(kl: float, curve: dict[int, float], below: float | None) -> float:
    js, kls = _line(curve, zero=False)
    if kl >= kls[0]:
        return _inverse(kl, js, kls)
    return js[0] + (js[1] - js[0]) * (kl - kls[0]) / (kls[1] - kls[0]) if below is None else below


def _unit_steps(kl: float, curve: dict[int, float]) -> float:
    """Take the points for 1, 2, 3 … layers."""
    return skipped_layers(kl, dict(enumerate((curve[j] for j in sorted(curve)), 1)))


def _as_given(kl: float, curve: dict[int, float]) -> float:
    """Walk along the curve in the order of its keys."""
    j0, before = 0, 0.0
    for j, cost in curve.items():
        cost = max(cost, before)
        if kl <= cost:
            return j0 + (j - j0) * (kl - before) / max(cost - before, 1e-12)
        j0, before = j, cost
    return math.inf


def _whole(rule: Callable) -> Callable:
    """j*, made a whole number by ``rule``."""
    return lambda kl, curve: j if math.isinf(j := skipped_layers(kl, curve)) else rule(j)


NO_ZERO = "The curve has one more point: skipping no layers costs 0. Below curve[1] the line goes from (0, 0) to it."
ABOVE = (
    "Above the curve no number of skipped layers is known to cost so much. Do not guess beyond the last point: return "
    "infinity."
)
LAYER_MISTAKES: dict[str, Callable] = {
    "You rounded to a whole number of layers. Between two points the curve is a line: interpolate.": _whole(round),
    "You returned the most layers that cost no more than kl, a whole number. Between two points the curve is a line: "
    "interpolate.": _whole(math.floor),
    "You returned the fewest layers that cost at least kl, a whole number. Between two points the curve is a line: "
    "interpolate.": _whole(math.ceil),
    "You returned the point of the curve whose KL is nearest, a whole number of layers. Between two points the curve "
    "is a line: interpolate.":
        lambda kl, curve: min(curve, key=lambda j: abs(curve[j] - kl)),
    f"{NO_ZERO} You returned 1 there.": lambda kl, curve: _without_zero(kl, curve, 1),
    f"{NO_ZERO} You returned 0 there.": lambda kl, curve: _without_zero(kl, curve, 0),
    f"{NO_ZERO} You returned infinity there.": lambda kl, curve: _without_zero(kl, curve, math.inf),
    f"{NO_ZERO} You extended the line from curve[1] to curve[2].": lambda kl, curve: _without_zero(kl, curve, None),
    f"{NO_ZERO} Below it you returned the first number of layers, above the curve the last one, as numpy.interp does; "
    "above, return infinity.":
        lambda kl, curve: _clamped(kl, curve, zero=False),
    "Where the curve falls, use its running maximum: skipping three layers costs 0.3, but two cost 0.4 already, so the "
    "line goes on at 0.4.":
        lambda kl, curve: _inverse(kl, *_line(curve, rising=False)),
    f"{ABOVE} You returned the last number of layers.": lambda kl, curve: _clamped(kl, curve, zero=True),
    f"{ABOVE} You extended the last line.": lambda kl, curve: _inverse(kl, *_line(curve), extend=True),
    "At the last point itself kl is not above the curve. Compare by ≤: infinity is for more than that.":
        lambda kl, curve: math.inf if kl == max(curve.values()) else skipped_layers(kl, curve),
    "You divided by the last point: a share of its KL, not a number of layers.":
        lambda kl, curve: kl / curve[max(curve)],
    "You divided by the last point, as if each layer cost the same. The first layers are cheap: look for the segment "
    "of the curve in which kl lies.":
        lambda kl, curve: max(curve) * kl / curve[max(curve)],
    "That is the recovery, 1 − KL ÷ KL of skipping. Wanted is the number of layers whose skipping costs kl.":
        lambda kl, curve: 1 - kl / curve[max(curve)],
    "You swapped the weights of the two ends: at the lower KL the answer is the smaller number of layers.":
        lambda kl, curve: _inverse(kl, *_line(curve), swapped=True),
}  # fmt: skip


def same(a: float, b: float) -> bool:
    return a == b or math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6)


def as_layers(value) -> float:
    """Return ``value`` as a number (infinity allowed), or explain what it is instead."""
    try:
        found = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"You returned {describe(value)}; j* must be one number.") from None
    if math.isnan(found):
        raise Wrong("You returned NaN; j* must be a number. Is 0 divided by 0?")
    return found


@exercise("8.2", "Recovery, and layers", difficulty=2, minutes=10)
def equivalent_layers(answer):
    def ask(kl: float, curve: dict[int, float]) -> float:
        given = dict(curve)
        value = answer.or_none(kl, given)
        if given != curve:
            raise Wrong("You changed the curve you were given: make a copy.")
        if value is None:
            raise Wrong(
                f"For kl = {kl:g} and the curve {curve} you returned nothing. Above the curve return math.inf; does "
                "every path end in a `return`?"
            )
        return as_layers(value)

    yield "a number of layers"
    as_layers(answer(0.22, dict(CURVE)))
    yield f"by hand: the curve {CURVE}"
    got, right = [ask(kl, CURVE) for kl in BY_HAND], [skipped_layers(kl, CURVE) for kl in BY_HAND]
    _explain(got, right)
    yield "no cost is no layers"
    if not same(found := ask(0.0, CURVE), 0.0):
        raise Wrong(f"A KL of 0 is that of skipping no layers: j* = 0. Yours is {found:g}.")
    yield "each point of a rising curve gives its own number of layers, whatever the order and the gaps"
    gaps = {6: 1.5, 1: 0.1, 3: 0.5, 2: 0.2}
    for kl in (*gaps.values(), 0.05, 0.35, 1.0):
        found, wanted = ask(kl, gaps), skipped_layers(kl, gaps)
        if same(found, wanted):
            continue
        mistakes = {
            "The keys come in any order: sort them.": _as_given,
            "Not every number of layers is in the curve: use its keys, not 1, 2, 3 …": _unit_steps,
        }
        why = next((message for message, f in mistakes.items() if same(found, f(kl, gaps))), "")
        raise Wrong(f"{why}\nFor the curve {gaps} and kl = {kl:g} yours is {found:g}; it should be {wanted:g}.".strip())
    yield "the bundled students"
    curve, rows = measured()
    for row in rows:
        if not math.isclose(found := ask(row["kl"], curve), row["skipped_layers"], rel_tol=1e-4):
            name = f"{row['name']} on layers {row['span'][0]}–{row['span'][1]}"
            raise Wrong(f"{name}: KL {row['kl']:.3f}. Yours is {found:.2f}; it should be {row['skipped_layers']:.2f}.")


def _explain(got: list[float], right: list[float]) -> None:
    """Raise the message of the mistake that gives all of ``got``, else of one that gives the first wrong value."""
    wrong = [i for i in range(len(got)) if not same(got[i], right[i])]
    if not wrong:
        return
    kl = BY_HAND[wrong[0]]
    numbers = f"For kl = {kl:g} yours is {got[wrong[0]]:g}; it should be {right[wrong[0]]:g}."
    for places in (range(len(got)), wrong[:1]):
        for message, mistake in LAYER_MISTAKES.items():
            if all(same(got[i], mistake(BY_HAND[i], CURVE)) for i in places):
                raise Wrong(f"{message}\n{numbers}")
    raise Wrong(numbers)


def measured() -> tuple[dict[int, float], list[dict]]:
    """Load the bundled teacher's skipping curve, and the rows of the students that are bundled."""
    results = json.loads((ASSETS / "results" / "ladder.json").read_text())
    curve = {int(j): skip["kl"] for j, skip in results["skip"].items()}
    return curve, [row for row in results["rows"] if row.get("shipped")]
