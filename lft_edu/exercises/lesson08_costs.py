"""Checks of lesson 08: the cost of a run in operations, hours and bytes, and the cheapest of many runs."""

import json
import math

from ..loading.assets import ASSETS
from ..loading.teachers import random_teacher
from ..objectives import evaluations
from ..runs import costs
from .checking import Wrong, describe, exercise

LAYER = 12 * 1024**2  # numbers in the matrices of one of Pythia-410M's layers


def number(value, what: str) -> float:
    """Return ``value`` as a number, or explain what it is instead."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise Wrong(f"You returned {describe(value)}; {what} must be one number.") from None
    if not math.isfinite(found):
        raise Wrong(f"You returned {found}; {what} must be finite. Is something divided by zero?")
    return found


def equal(value, want: float, what: str, mistakes: dict[str, float], unit: str = "") -> None:
    """Require ``value`` to equal ``want`` within one part in a million; recognize known mistakes."""
    got = number(value, what)
    same = lambda a, b: math.isclose(a, b, rel_tol=1e-6)  # noqa: E731
    if same(got, want):
        return
    numbers = f"Yours is {got:,.6g}{unit}, it should be {want:,.6g}{unit}."
    for message, outcome in mistakes.items():
        if same(got, outcome):
            raise Wrong(f"{message}\n{numbers}")
    raise Wrong(f"Not {what}. {numbers} That is {got / want:.4g} times as much." if got > 0 else numbers)


# --- 8.3 ----------------------------------------------------------------------------------------------------------


def _wrong_operations(m: int, n: int, e: int, k: int) -> dict[str, float]:
    """Return what common mistakes give for Flow Walking on [m, n) with k midpoint steps (e = 2k evaluations)."""
    right = LAYER * (n + 3 * e)
    return {
        "You let all 24 layers of the teacher run. Layers from n on are not needed: x1 is the output of layer n − 1.":
            LAYER * (24 + 3 * e),
        "You let only the layers below m run. They give x0; x1 is the output of layer n − 1, so the span's own layers "
        "run, too.":
            LAYER * (m + 3 * e),
        "You let all 24 layers run, and all of them backward. The teacher is frozen, and nothing needs layer n.":
            3 * LAYER * (24 + e),
        "You forgot the gradient (each evaluation costs three times), and that a midpoint step has two evaluations.":
            LAYER * (n + k),
        "You count layers. Each has 12 · 1024² numbers in its matrices, and each is one multiply-add per token.":
            n + 3 * e,
        "You let only the layers of the span run. Its input comes from the layers below: n in all.":
            LAYER * (n - m + 3 * e),
        "You ran the teacher backward, too. It is frozen and its states are data: forward only.": 3 * LAYER * (n + e),
        "You count one evaluation per step. A midpoint step has two: k steps are 2k evaluations.":
            LAYER * (n + 3 * k),
        "You forgot the gradient. Each evaluation costs once forward and twice that backward: three times.":
            LAYER * (n + e),
        "Backward costs twice as much as forward (a gradient for the states and one for the weights): three times in "
        "all, not twice.": LAYER * (n + 2 * e),
        "You count FLOP; the question is for multiply-adds. A multiply-add is two FLOP.": 2 * right,
        "You left out the teacher: its layers below n compute x0 and x1 for every batch.": LAYER * 3 * e,
        "You added the output head. Training on hidden states computes no logits.": right + 1024 * 50304,
        "You let n + 1 layers run: layers 0 … n − 1 are n layers.": right + LAYER,
        "You let n − 1 layers run: layers 0 … n − 1 are n layers.": right - LAYER,
        "The matrices of a layer hold 12 D² numbers; you took 4 D² (attention alone).": right / 3,
        "The matrices of a layer hold 12 D² numbers; you took 8 D² (the MLP alone).": right * 2 / 3,
    }  # fmt: skip


@exercise("8.3", "Operations, by hand", difficulty=1, minutes=10)
def operations(answer):
    yield "Flow Walking on [5, 18) with four midpoint steps"
    m, n, k = 5, 18, 4
    equal(
        answer("flow_walking", (m, n), k),
        LAYER * (n + 6 * k),
        "the multiply-adds per token",
        _wrong_operations(m, n, 2 * k, k),
    )
    yield "flow matching evaluates once, whatever k is"
    mistakes = {
        "Flow matching takes no steps: it evaluates the velocity once, at one random time (eq. 3).":
            LAYER * (n + 6 * k),
        "Flow matching evaluates the velocity once, at one random time (eq. 3), not twice.": LAYER * (n + 6),
    } | _wrong_operations(m, n, 1, 1)  # fmt: skip
    equal(answer("flow_matching", (m, n), k), LAYER * (n + 3), "the multiply-adds per token", mistakes)
    yield "the paper's two runs, near what the library counts"
    pythia = random_teacher("pythia-410m", device="meta")
    for objective, span, k in (("flow_matching", (6, 12), 3), ("flow_walking", (6, 18), 3)):
        flops = costs.run_costs(pythia, span, objective, k, "midpoint", sequence_length=512).training_flops
        counted = flops / 2  # multiply-adds
        mine = number(answer(objective, span, k), "the multiply-adds per token")
        if not 0.9 < mine / counted < 1:
            raise Wrong(
                f"{objective} on {span}: yours is {mine:.4g}, with attention and modulation it is {counted:.4g}."
            )


# --- 8.4 ----------------------------------------------------------------------------------------------------------


@exercise("8.4", "Hours, before you start", difficulty=1, minutes=6)
def hours(answer):
    yield "by hand: 50 multiply-adds a token, 7200 tokens, 400 FLOP/s of which a fifth is reached"
    right = 2 * 50 * 7200 / (400 * 0.2) / 3600  # two and a half hours
    mistakes = {
        "A multiply-add is two FLOP, and devices are rated in FLOP/s: twice as long.": right / 2,
        "You have seconds; an hour has 3600.": right * 3600,
        "You have seconds, and half of them: a multiply-add is two FLOP.": right * 1800,
        "You have minutes; divide by 60 once more.": right * 60,
        "You have days.": right / 24,
        "You counted with the whole peak: multiply it by the fraction that is reached.": right / 5,
        "You counted with the whole peak, and one FLOP per multiply-add.": right / 10,
        "A smaller fraction takes longer: divide by it, do not multiply.": right / 25,
        "You have it upside down: work over speed is time, not speed over work.": 1 / right,
    }
    equal(answer(50, 7200, 400, 0.2), right, "the hours", mistakes, " h")
    yield "flow matching over layers 6–12, a run of 2.6 billion tokens, 40 % of an A100"
    wanted = 2 * LAYER * 15 * 2.6e9 / (312e12 * 0.4) / 3600
    equal(answer(LAYER * 15, 2.6e9, 312e12, 0.4), wanted, "the hours", {}, " h")


# --- 8.5 ----------------------------------------------------------------------------------------------------------


@exercise("8.5", "Will it fit?", difficulty=2, minutes=10)
def memory(answer):
    yield "by hand: teacher of 1000 weights, 600 kept by the student, operator of 70, bfloat16, activations of 31 bytes"
    teacher, kept, operator, each, activations = 1000, 600, 70, 2, 31
    frozen = each * (teacher + kept)
    right = frozen + 16 * operator + activations
    rest = frozen + activations
    mistakes = {
        "You left out the layers that the student keeps: they are copies, in addition to the teacher's own.":
            right - each * kept,
        "You left out the teacher: it computes the states.": right - each * teacher,
        "You gave the kept layers a gradient and moments, too. They are frozen; only the operator is trained.":
            each * teacher + 16 * (kept + operator) + activations,
        "You gave teacher and student gradients and moments. They are frozen; only the operator is trained.":
            16 * (teacher + kept + operator) + activations,
        "You kept the operator in the teacher's type. A small step is lost on a bfloat16 weight: it is trained in "
        "float32, 4 bytes per number, whatever the teacher's type.": rest + 4 * each * operator,
        "You left out Adam's moments: two more numbers per weight, in addition to weight and gradient.":
            rest + 8 * operator,
        "You have three numbers per weight of the operator; there are four: weight, gradient, two moments.":
            rest + 12 * operator,
        "You have only the operator's weights: training keeps a gradient and two moments for each.":
            rest + 4 * operator,
        "You have the operator twice, in the teacher's type as well: the float32 weights take its place.":
            right + each * operator,
        "You left out the activations that the backward pass needs.": right - activations,
        "You have gigabytes; the question is for bytes.": right / 1e9,
        "bytes_per_weight is 2 here; you have 4 for the frozen weights.": right + 2 * (teacher + kept),
        "You added numbers, not bytes: each takes 2 (bfloat16) or 4 (float32).":
            teacher + kept + 4 * operator + activations,
    }  # fmt: skip
    equal(answer(teacher, kept, operator, each, activations), right, "the bytes", mistakes, " bytes")
    yield "the same in float32"
    each = 4
    equal(
        answer(teacher, kept, operator, each, activations), each * (teacher + kept) + 16 * operator + activations,
        "the bytes", {"bytes_per_weight is 4 here; you have 2 for the frozen weights.": right}, " bytes",
    )  # fmt: skip


# --- 8.6 ----------------------------------------------------------------------------------------------------------

# each mistake chooses another row; the right one is chosen by none
BY_HAND = [
    {"name": "the best", "kl": 0.200, "tokens": 100, "operations": 10},
    {"name": "fewest tokens", "kl": 0.215, "tokens": 40, "operations": 20},
    {"name": "right", "kl": 0.218, "tokens": 90, "operations": 8},
    {"name": "cheapest per token", "kl": 0.219, "tokens": 200, "operations": 5},
    {"name": "within the range", "kl": 0.240, "tokens": 50, "operations": 10},
    {"name": "within 0.1 nats", "kl": 0.295, "tokens": 30, "operations": 10},
    {"name": "cheapest of all", "kl": 0.900, "tokens": 10, "operations": 10},
]
WHY = {
    "the best": "This one has the least KL. Others within 10 % of it took fewer operations.",
    "fewest tokens": "This one has the fewest tokens of those that are good enough, but its tokens are expensive: "
    "multiply by the operations per token.",
    "cheapest per token": "This one is the cheapest *per token* of the good ones, but it took many tokens: multiply.",
    "within the range": "You allowed a tenth of the range from best to worst. 10 % of the best KL, 0.2, is 0.02.",
    "within 0.1 nats": "You allowed 0.1 nats. 10 % of the best KL, 0.2, is 0.02.",
    "cheapest of all": "This one is the cheapest of all, and useless. Choose among those within 10 % of the best.",
}


def finished_runs() -> list[dict]:
    """Load the runs of ``assets/results/tokens.json`` on layers 6–18, each with its ``operations`` (multiply-adds) per
    token, counted as 8.3 does for a teacher of width 64."""
    table = json.loads((ASSETS / "results" / "tokens.json").read_text(encoding="utf-8"))["rows"]
    rows = []
    for row in (row for row in table if row["span"] == [6, 18]):
        training = row["training"]
        count = evaluations(training["objective"], training.get("k", 1), training.get("step", "euler"))
        each = 12 * 64**2 * (row["span"][1] + 3 * count)
        rows.append({"name": row["name"], "kl": row["kl"], "tokens": row["tokens"], "operations": each})
    return rows


def _cheapest(rows: list[dict], tolerance: float) -> dict:
    bar = (1 + tolerance) * min(row["kl"] for row in rows)
    return min((row for row in rows if row["kl"] <= bar), key=lambda row: row["tokens"] * row["operations"])


def _serves(answer, rows: list[dict]) -> bool:
    """Return whether the answer chooses a row at tolerance 0 (`min` of an empty list raises)."""
    try:
        answer([dict(row) for row in rows], 0.0)
    except Wrong as error:
        return "empty" not in str(error)
    return True


def _row(value, rows: list[dict]) -> dict:
    if not isinstance(value, dict) or value not in rows:
        raise Wrong(f"You returned {describe(value)}; return one of the rows, the dictionary itself.")
    return value


@exercise("8.6", "The cheapest that serves", difficulty=2, minutes=12)
def cheapest(answer):
    yield "seven made-up runs, of which each mistake chooses another"
    rows = [dict(row) for row in BY_HAND]
    found = _row(answer.uncopied(rows, 0.10), rows)
    if found["name"] != "right":
        raise Wrong(f"You chose {found}. {WHY[found['name']]}")
    yield "in any order, and with any tolerance"
    for tolerance in (0.0, 0.05, 0.5, 10.0):
        rows = [dict(row) for row in reversed(BY_HAND)]
        if tolerance == 0 and not _serves(answer, rows):
            raise Wrong("With tolerance 0 the best run itself is still allowed: its KL equals the limit. Compare by ≤.")
        found, wanted = _row(answer.uncopied(rows, tolerance), rows), _cheapest(BY_HAND, tolerance)
        if found["name"] != wanted["name"]:
            raise Wrong(f"With tolerance {tolerance:g} you chose {found}; it should be {wanted}.")
    if rows != list(reversed(BY_HAND)):
        raise Wrong("Your function changed the rows it was given.")
    yield "the thirty runs on the bundled teacher"
    rows = finished_runs()
    found, wanted = _row(answer([dict(row) for row in rows], 0.10), rows), _cheapest(rows, 0.10)
    if found != wanted:
        raise Wrong(f"You chose {found}; it should be {wanted}.")
