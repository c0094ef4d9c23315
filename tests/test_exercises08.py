"""Lesson 08: every typical mistake gets the message meant for it. (Solutions, stubs, garbage: test_exercises.py.)"""

import pytest
from test_exercises import solutions

import lft_edu as lft
from lft_edu.exercises import check
from lft_edu.exercises.lesson08 import BY_HAND, LAYER, WHY, _wrong_operations, finished_runs
from lft_edu.families import layers_of
from lft_edu.runs import costs


def operations(teacher=lambda m, n: n, factor=3, per_step=2, matching=1, scale=1, extra=0):
    """A wrong count, by what is wrong with it."""

    def answer(objective, span, k):
        evaluations = per_step * k if objective == "flow_walking" else matching
        return scale * LAYER * (teacher(*span) + factor * evaluations) + extra

    return answer


def hours(seconds=3600.0, flop=2, reached=lambda fraction: fraction):
    return lambda ops, tokens, peak, fraction: flop * ops * tokens / (peak * reached(fraction)) / seconds


def memory(kept=1, teacher=1, copies=16, activations=1, trained=lambda t, k, o: o):
    def answer(t, k, o, each, a):
        return each * (teacher * t + kept * k) + copies * trained(t, k, o) + activations * a

    return answer


def chooses(name):
    return lambda rows, tolerance: next(row for row in rows if row["name"] == name)


def cheapest_below(rows, tolerance):
    bar = (1 + tolerance) * min(row["kl"] for row in rows)
    return min((row for row in rows if row["kl"] < bar), key=lambda row: row["tokens"] * row["operations"])


MISTAKES = [
    ("8.1", operations(teacher=lambda m, n: 24), "all 24 layers"),
    ("8.1", operations(teacher=lambda m, n: n - m), "only the layers of the span"),
    ("8.1", operations(teacher=lambda m, n: 3 * n), "You ran the teacher backward, too"),
    ("8.1", operations(teacher=lambda m, n: m), "only the layers below m"),
    ("8.1", operations(teacher=lambda m, n: 72), "all of them backward"),
    ("8.1", operations(per_step=1, factor=1), "and that a midpoint step has two"),
    ("8.1", operations(scale=1 / LAYER), "You count layers"),
    ("8.1", operations(per_step=1), "A midpoint step has two"),
    ("8.1", operations(factor=1), "You forgot the gradient"),
    ("8.1", operations(factor=2), "three times in all"),
    ("8.1", operations(scale=2), "You count FLOP"),
    ("8.1", operations(teacher=lambda m, n: 0), "You left out the teacher"),
    ("8.1", operations(extra=1024 * 50304), "the output head"),
    ("8.1", operations(teacher=lambda m, n: n + 1), "n + 1 layers"),
    ("8.1", operations(teacher=lambda m, n: n - 1), "n − 1 layers"),
    ("8.1", operations(scale=1 / 3), "attention alone"),
    ("8.1", operations(scale=2 / 3), "the MLP alone"),
    ("8.1", lambda objective, span, k: LAYER * (span[1] + 6 * k), "Flow matching takes no steps"),
    ("8.1", operations(matching=2), "not twice"),
    ("8.1", lambda *_: "many", "must be one number"),
    ("8.1", lambda *_: float("inf"), "must be finite"),
    ("8.2", hours(flop=1), "A multiply-add is two FLOP"),
    ("8.2", hours(seconds=1), "You have seconds; an hour"),
    ("8.2", hours(seconds=1, flop=1), "seconds, and half of them"),
    ("8.2", hours(seconds=60), "You have minutes"),
    ("8.2", hours(seconds=86_400), "You have days"),
    ("8.2", hours(reached=lambda f: 1), "with the whole peak: multiply"),
    ("8.2", hours(reached=lambda f: 1, flop=1), "one FLOP per multiply-add"),
    ("8.2", hours(reached=lambda f: 1 / f), "divide by it"),
    ("8.2", lambda *case: 1 / hours()(*case), "upside down"),
    ("8.3", memory(kept=0), "the layers that the student keeps"),
    ("8.3", memory(teacher=0), "You left out the teacher"),
    ("8.3", lambda t, k, o, each, a: each * t + 16 * (k + o) + a, "You gave the kept layers"),
    ("8.3", lambda t, k, o, each, a: 16 * (t + k + o) + a, "teacher and student gradients"),
    ("8.3", lambda t, k, o, each, a: each * (t + k) + 4 * each * o + a, "trained in float32"),
    ("8.3", memory(copies=12), "there are four"),
    ("8.3", memory(copies=4), "only the operator's weights"),
    ("8.3", memory(copies=18), "the operator twice"),
    ("8.3", memory(activations=0), "the activations"),
    ("8.3", lambda *case: memory()(*case) / 1e9, "You have gigabytes"),
    ("8.3", lambda t, k, o, each, a: memory()(t, k, o, 4, a), "is 2 here"),
    ("8.3", lambda t, k, o, each, a: t + k + 4 * o + a, "numbers, not bytes"),
    ("8.3", lambda t, k, o, each, a: 2 * (t + k) + 16 * o + a, "bytes_per_weight is 4 here"),
    *[("8.4", chooses(name), why[:40]) for name, why in WHY.items()],
    ("8.4", lambda rows, tolerance: 3, "return one of the rows"),
    ("8.4", cheapest_below, "Compare by ≤"),
    ("8.4", lambda rows, tolerance: rows[2], "With tolerance"),
]


@pytest.mark.parametrize(("number", "answer", "words"), MISTAKES)
def test_mistakes_get_the_message_meant_for_them(number, answer, words):
    report = check(number, answer)
    assert not report
    assert words in report.message, report


def test_no_two_mistakes_are_the_same_number():
    layers = [round(outcome) for outcome in _wrong_operations(5, 18, 8, 4).values()]
    assert len(set(layers)) == len(layers)
    assert round(operations()("flow_walking", (5, 18), 4)) not in layers


def test_changed_rows_are_noticed():
    def spoil(rows, tolerance):
        found = solutions()["8.4"]([dict(row) for row in rows], tolerance)
        rows[0]["kl"] += 1 if tolerance == 10.0 else 0
        return next(row for row in rows if row["name"] == found["name"])

    assert "changed the rows" in check("8.4", spoil).message


def test_every_row_made_by_hand_has_a_reason():
    assert {row["name"] for row in BY_HAND} == {*WHY, "right"}


def test_operations_by_hand_are_near_what_the_library_counts(bundled):
    """Left out by hand: attention, up to a quarter of a layer of width 64, and the time modulation."""
    layer = layers_of(lft.random_teacher("pythia-410m", device="meta"))[0]
    assert sum(p.numel() for p in layer.parameters() if p.ndim == 2) == LAYER
    ratios = []
    for row in finished_runs()[::7]:
        objective = row["name"].replace("-", "_").replace("_euler", "").replace("_midpoint", "")
        k, solver = {"flow-walking": (3, "midpoint"), "flow-walking-midpoint": (1, "midpoint")}.get(
            row["name"], (1, "euler")
        )
        ratios.append(2 * row["operations"] / costs.run_costs(bundled[0], (6, 18), objective, k, solver).training_flops)
    assert len(ratios) > 3
    assert 0.7 < min(ratios) < 1.02 * min(ratios) > max(ratios), "The order of the runs is the same."


def test_what_the_text_says_of_the_table():
    rows = finished_runs()
    best = min(row["kl"] for row in rows)
    serve = {(row["name"], row["tokens"]) for row in rows if row["kl"] <= 1.1 * best}
    assert {name for name, _ in serve} == {"flow-walking-midpoint", "flow-walking"}
    found = solutions()["8.4"](rows, 0.10)
    assert (found["name"], round(found["tokens"], -5)) == ("flow-walking-midpoint", 3_200_000)
    assert solutions()["8.4"](rows, 0.20)["tokens"] == found["tokens"] // 2
