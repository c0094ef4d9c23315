"""What a learner's function may do to a check: spoil its arguments, end the program, never end, return too much."""

import sys
import threading

import pytest
import torch
from test_exercises import solutions

from lft_edu.exercises import EXERCISES, check
from lft_edu.exercises import checking as checks

# without 8.6, which is to return one of its arguments
LESSONS = ("1", "2", "8")
QUICK = [n for n in EXERCISES if n in ("3.1", "3.2", "4.1", "4.2", "5.1", "5.2") or (n[0] in LESSONS and n != "8.6")]


def scramble(value) -> None:
    """Write into everything that can be written into."""
    if isinstance(value, torch.Tensor) and not value.requires_grad:
        value.fill_(float("nan") if value.is_floating_point() else 0)
    elif isinstance(value, list | tuple):
        for item in value:
            scramble(item)
        if isinstance(value, list):
            value.clear()
    elif isinstance(value, dict):
        for item in value.values():
            scramble(item)
        value.clear()


@pytest.mark.parametrize("number", QUICK)
def test_an_answer_may_spoil_what_it_is_given(number):
    right = solutions()[number]

    def spoils(*args, **kwargs):
        try:
            return checks.clones(right(*args, **kwargs))
        finally:
            scramble([*args, *kwargs.values()])

    report = check(number, spoils)  # it passes, or is told what it changed; the check itself survives
    assert report or "changed" in report.message or "raised" in report.message, report
    after = check(number, right)
    assert after, after


def test_a_slip_does_not_change_what_is_right():
    def slip(velocity, x, t, s):
        x /= 0 * x
        return x

    for number in ("2.2", "2.3"):
        assert not check(number, slip)
        assert check(number, solutions()[number])


def test_what_is_right_by_looking_at_its_own_changes_is_not():
    assert not check("1.1", lambda x0, x1: (x1.copy_(x0), torch.arange(len(x0)))[1])


@pytest.mark.parametrize("end", [sys.exit, quit, lambda: sys.exit("done")])
def test_an_answer_that_ends_the_program_is_a_wrong_answer(end):
    assert "sys.exit() or quit()" in check("2.2", lambda *a: end()).message


@pytest.mark.parametrize(
    "value", [torch.zeros(1).expand(10**11), torch.zeros(1).expand(10**6, 10**6), 10**400, -(10**400)]
)
@pytest.mark.parametrize("number", ["1.1", "1.2", "2.2"])
def test_answers_of_any_size_are_described_and_not_copied(number, value):
    report = check(number, lambda *a: value)
    assert report.message.startswith("You returned")


def test_an_answer_that_turns_gradients_off_harms_no_other():
    def off(*args):
        torch.set_grad_enabled(False)
        return args[1]

    assert not check("2.2", off)
    assert torch.is_grad_enabled()
    assert check("2.2", solutions()["2.2"])
    with torch.no_grad():
        assert check("2.2", solutions()["2.2"])


def test_a_check_that_still_runs_says_so(monkeypatch, capfd):
    monkeypatch.setattr(checks, "PATIENCE", 0.01)
    wait = threading.Event()

    def slow(velocity, x, t, s):
        wait.wait(0.2)
        return x

    check("2.2", slow)
    assert "2.2 still runs" in capfd.readouterr().err
    monkeypatch.setattr(checks, "PATIENCE", 0.3)
    check("2.2", lambda velocity, x, t, s: x)
    wait.wait(0.5)
    assert not capfd.readouterr().err
