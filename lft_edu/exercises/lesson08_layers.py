"""Check of lesson 08: a KL, in layers skipped."""

import json
import math
from collections.abc import Callable

from ..loading.assets import ASSETS
from ..skipping import skipped_layers
from .checking import Wrong, describe, exercise

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
    results = json.loads((ASSETS / "results" / "ladder.json").read_text(encoding="utf-8"))
    curve = {int(j): skip["kl"] for j, skip in results["skip"].items()}
    return curve, [row for row in results["rows"] if row.get("shipped")]
