"""Check answers to exercises in stages, with explanations, and never crash on what a learner passes.

The check of an exercise is a generator function. It takes the learner's answer, yields the name of each stage before
running it, and raises :class:`Wrong` with an explanation where the answer fails::

    @exercise("2.2", "An Euler step", difficulty=1, minutes=4)
    def euler(answer):
        yield "a case by hand"
        close(answer(velocity, x, 0.0, 0.5), 2.0, "x after half a second at speed 2, from 1")
"""

import html
import os
import reprlib
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..lessons import progress
from .renumbered import renumber

EXERCISES: dict[str, "Exercise"] = {}
PATIENCE = 20.0  # seconds, after which a check that still runs says so
LARGEST = 10**7  # numbers in an answer: none has that many, and more may not fit into memory
NOTHING = "Your function returned nothing. Not filled in yet, or is `return` missing?"


class Wrong(Exception):
    """The answer is wrong or missing; the message explains why and gives a hint."""


class Unfilled(Wrong):
    """The stub has not been filled in."""


@dataclass(frozen=True)
class Exercise:
    """A registered exercise. ``difficulty`` is 1 to 3; ``minutes`` the expected time after reading the lesson."""

    number: str
    title: str
    difficulty: int
    minutes: int
    run: Callable

    @property
    def heading(self) -> str:
        return (
            f"{self.number} · {self.title} {'●' * self.difficulty + '○' * (3 - self.difficulty)} {self.minutes} minutes"
        )


@dataclass
class Report:
    """The result of a check: stages ``passed``, the stage that ``failed`` and why. True if all passed.

    ``renumbered``: a line about the exercise's number, if the one asked for was an old one.
    """

    exercise: Exercise
    passed: list[str] = field(default_factory=list)
    failed: str = ""
    message: str = ""
    renumbered: str = ""

    def __bool__(self) -> bool:
        return not self.message

    def __repr__(self) -> str:
        lines = [self.renumbered] if self.renumbered else []
        lines += [f"{self.exercise.number} · {self.exercise.title}: {'passed' if self else 'not yet'}"]
        lines += [f"  ✓ {stage}" for stage in self.passed]
        lines += [f"  ✗ {self.failed}"] if self.failed else []
        return "\n".join([*lines, *(f"    {line}" for line in self.message.splitlines())])

    def _repr_html_(self) -> str:
        color = "#00664A" if self else "#A04000"
        text = html.escape(repr(self))
        return (
            f"<pre role='status' style='white-space:pre-wrap;border-left:4px solid {color};padding:4px 12px;margin:0'>"
            f"{text}</pre>"
        )


def exercise(number: str, title: str, difficulty: int, minutes: int):
    """Register the decorated generator function as the check of an exercise."""

    def register(run):
        EXERCISES[number] = Exercise(number, title, difficulty, minutes, run)
        return run

    return register


def check(number: str, answer: Callable) -> Report:
    """Check your answer to an exercise and report which stages pass.

    Args:
        number: the exercise, such as ``"3.2"``. An old number is understood (:mod:`.renumbered`).
        answer: your function itself, not called.

    Raises:
        ValueError: unknown exercise.
        AssertionError: the answer is wrong and nbgrader is running (it sets ``NBGRADER_EXECUTION``).
    """
    current, renumbered = renumber(str(number), answer, EXERCISES)
    if current not in EXERCISES:
        from ..support.errors import unknown_name_error

        raise unknown_name_error("exercise", number, EXERCISES)
    chosen = EXERCISES[current]
    report = Report(chosen, renumbered=renumbered)
    stage = "is a function"
    waiting = threading.Timer(PATIENCE, _still_running, [chosen.number])
    waiting.daemon = True
    waiting.start()
    try:
        with torch.enable_grad():  # whatever an earlier answer left behind
            for following in chosen.run(Answer(answer, chosen.number)):
                if stage != "is a function":
                    report.passed.append(stage)
                stage = following
        report.passed.append(stage)
    except Wrong as wrong:
        report.failed, report.message = "" if isinstance(wrong, Unfilled) else stage, str(wrong)
    finally:
        waiting.cancel()
    if report:
        progress.keep("exercises", chosen.number, True)
    if not report and os.environ.get("NBGRADER_EXECUTION"):
        raise AssertionError(repr(report))
    return report


def _still_running(number: str) -> None:
    print(f"The check of {number} still runs: does a loop in your function never end? Stop it with ■.", file=sys.stderr)


def clones(value):
    """Copy the tensors and arrays in a value, so that a function may write into what it is given."""
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        return value.clone() if isinstance(value, Tensor) else value.copy()
    if type(value) in (list, tuple):
        return type(value)(map(clones, value))
    if type(value) is dict:
        return {key: clones(item) for key, item in value.items()}
    return value


class Answer:
    """A learner's function, whose exceptions become :class:`Wrong`.

    It is given copies of tensors, so that it may write into them and every check starts from the same numbers. A check
    that looks whether it does calls :meth:`uncopied`.
    """

    def __init__(self, function, number: str):
        self.function, self.number = function, number
        if not callable(function):
            raise_unless_callable(function, number)

    def __call__(self, *args, **kwargs):
        return self.uncopied(*clones(args), **clones(kwargs))

    def uncopied(self, *args, **kwargs):
        """Call the function on the arguments themselves."""
        value = self.or_none(*args, **kwargs)
        if value is None:
            raise Unfilled(NOTHING)
        return value

    def or_none(self, *args, **kwargs):
        """Call the function on the arguments themselves, where None is an answer, too."""
        try:
            value = self.function(*args, **kwargs)
        except NotImplementedError:
            raise Unfilled("Not filled in yet: replace `raise NotImplementedError` by your code.") from None
        except Wrong:  # raised by a probe that the check passed in
            raise
        except SystemExit:
            raise Wrong("Your function called sys.exit() or quit(): return the result instead.") from None
        except Exception as error:
            raise Wrong(explain(error, self.function)) from None
        if value is ...:
            raise Unfilled(NOTHING)
        return value


def raise_unless_callable(value, number: str):
    """Raise a message that explains how to pass a function."""
    if value is None or value is ...:
        raise Unfilled("There is nothing to check yet: pass your function.")
    raise Wrong(
        f"This is {describe(value)}, not a function. Pass the function itself, without calling it: "
        f'check("{number}", my_function), not check("{number}", my_function(...)).'
    )


def explain(error: Exception, function) -> str:
    """Describe an exception in a learner's function, with the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    code = getattr(function, "__code__", None)
    own = [f for f in frames if code is not None and f.filename == code.co_filename]
    where = f"\nin line {own[-1].lineno}: {own[-1].line}" if own and own[-1].line else ""
    if isinstance(error, TypeError) and code is not None and not own:  # the call itself failed
        where = (
            "\nThe exercise calls it with other arguments: compare with the stub. In an older copy of the notebook the "
            "exercise may be another one: `lft-edu reset exercises/` with the lesson's number gives the new notebook."
        )
    return f"Your function raised {type(error).__name__}: {error}{where}"


def describe(value) -> str:
    """Describe a value in a few words: ``a tensor of shape (3, 2)``, ``a list``, ``the number 3``."""
    if isinstance(value, bool):
        return f"the truth value {value}"
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**15):
        return f"the number {value:g}"
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{'a tensor' if isinstance(value, Tensor) else 'an array'} of shape {tuple(shape)}"
    return f"a {type(value).__name__} ({reprlib.repr(value)})"


def tensor(value, shape: tuple | None, what: str, meaning: str = "") -> Tensor:
    """Convert an answer (tensor on any device, array, list, number) to a float64 tensor on the CPU.

    Args:
        shape: required shape; None for any.
        what: name of the value in messages, such as ``"the new position"``.
        meaning: explanation of the shape, such as ``"one row per point"``.

    Raises:
        Wrong: not real numbers, another shape, NaN or infinity.
    """
    try:
        found = value if isinstance(value, Tensor) else torch.as_tensor(value)
        if found.is_complex() or found.device.type == "meta":
            raise TypeError
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise Wrong(f"You returned {describe(value)}; {what} must be a tensor of real numbers.") from None
    if shape is not None and tuple(found.shape) != tuple(shape):
        tail = f": {meaning}" if meaning else ""
        wanted = f"shape {tuple(shape)}" if shape else "a single number, shape ()"
        raise Wrong(f"You returned {describe(value)}; {what} must have {wanted}{tail}.")
    if found.numel() > LARGEST:  # before it is copied: an expanded tensor may be larger than the memory
        raise Wrong(f"You returned {describe(value)}: far more numbers than {what} has.")
    found = found.detach().cpu().double()
    if not bool(torch.isfinite(found).all()):
        raise Wrong(f"You returned NaN or infinity in {what}. Is something divided by zero?")
    return found


def truth(value, question: str) -> bool:
    """Convert an answer, True or False in Python, numpy or torch, to a bool.

    Raises:
        Wrong: anything else, with the question that was to be answered.
    """
    kind = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    if kind != "bool" or getattr(value, "shape", ()) != ():
        raise Wrong(f"You returned {describe(value)}: return True or False, {question}")
    return bool(value)


def close(value, want, what: str, mistakes: dict[str, Tensor] | None = None, tolerance: float = 1e-4) -> Tensor:
    """Require that ``value`` equals ``want``, and return it as a tensor; recognize known mistakes.

    Args:
        mistakes: message → the value that this mistake gives.
        tolerance: largest difference allowed, relative to the largest entry of ``want`` (at least 1).

    Raises:
        Wrong: with the message of a known mistake, or the largest difference.
    """
    want = torch.as_tensor(want, dtype=torch.float64).detach()
    got = tensor(value, want.shape, what)
    allowed = tolerance * max(1.0, float(want.abs().max()))
    difference = (got - want).abs()
    if float(difference.max()) <= allowed:
        return got
    for message, outcome in (mistakes or {}).items():
        outcome = torch.as_tensor(outcome).detach().double()
        if outcome.shape == got.shape and float((got - outcome).abs().max()) <= allowed:
            raise Wrong(f"{message}\n{_largest(got, want, difference, what)}")
    raise Wrong(_largest(got, want, difference, what))


def _largest(got: Tensor, want: Tensor, difference: Tensor, what: str) -> str:
    """Describe the largest difference, with both numbers."""
    place = int(difference.argmax())
    index = [] if not want.shape else [int(i) for i in torch.unravel_index(torch.tensor(place), want.shape)]
    at = f" (at index {index})" if index else ""
    yours, right = got.flatten()[place].item(), want.flatten()[place].item()
    return f"Largest difference in {what}: yours is {yours:.5g}, it should be {right:.5g}{at}."
