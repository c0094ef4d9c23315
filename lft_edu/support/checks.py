"""One check for each kind of argument: what can be converted is, and all else is refused in words.

``@takes(x0=tensor, n=whole(1))`` above a function checks the arguments of these names before it runs.
"""

import functools
import inspect
import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

F = TypeVar("F", bound=Callable)
Check = Callable[[str, Any], Any]  # (name of the argument, what was given) → what the function gets


def takes(**checks: Check) -> Callable[[F], F]:
    """Make a function check arguments, by name. Those that are left out keep their defaults, unchecked."""

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            for name in checks.keys() & bound.arguments.keys():
                bound.arguments[name] = checks[name](name, bound.arguments[name])
            return function(*bound.args, **bound.kwargs)

        return run  # type: ignore[return-value]

    return decorate


def optional(check: Check) -> Check:
    """None, or what ``check`` takes."""
    return lambda name, value: None if value is None else check(name, value)


def _given(name: str, value: object) -> str:
    """How to call what was given: its value if that is short, else its type."""
    if value is None or isinstance(value, bool | int | float | str):
        return f"{name}={value!r:.40}"
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    return f"{name} is a {type(value).__name__}{shape}"


def tensor(name: str, value: Any) -> Tensor:
    """A tensor of numbers; arrays and lists are converted."""
    if not isinstance(value, Tensor):
        import numpy

        try:
            if isinstance(value, bool):
                raise TypeError("a truth value")
            value = torch.as_tensor(numpy.asarray(value) if isinstance(value, list | tuple) else value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{_given(name, value)}: give a tensor, an array, or lists of numbers.") from None
    if value.is_meta or value.is_complex():
        what = "is on the meta device and has no numbers" if value.is_meta else f"is {value.dtype}"
        raise ValueError(f"{name} {what}: give a tensor of real numbers.")
    return value


def whole(least: int = 0) -> Check:
    """A whole number of at least ``least``; of torch and numpy, too."""

    def check(name: str, value: Any) -> int:
        try:
            number = operator.index(value)
        except (TypeError, ValueError, RuntimeError):
            number = None
        if number is None or isinstance(value, bool) or number < least:
            raise ValueError(f"{_given(name, value)}: give a whole number of at least {least}.")
        return number

    return check


def real(name: str, value: Any) -> float:
    """A number, of torch and numpy, too; a truth value is none."""
    try:
        if isinstance(value, str | bool):
            raise TypeError("no number")
        return float(value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):  # the last: of torch's meta device
        raise ValueError(f"{_given(name, value)}: give a number.") from None


def word(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ValueError(f"{_given(name, value)}: give a string.")
    return value


def several(check: Check, of: str) -> Check:
    """A collection of what ``check`` takes, as a list; a string is no collection. ``of`` names what it holds."""

    def each(name: str, value: Any) -> list:
        if isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1:
            raise ValueError(f"{_given(name, value)}: give a list of {of}.")
        return [check(name, one) for one in value]

    return each


def function(name: str, value: Any) -> Callable:
    """Something that can be called."""
    if not callable(value):
        raise ValueError(f"{_given(name, value)}: give a function.")
    return value


def model(name: str, value: Any) -> Any:
    """A transformers model, or one with adapters around it."""
    if not (isinstance(value, nn.Module) and hasattr(value, "config")):
        raise ValueError(f"{_given(name, value)}: give a transformers model, such as lft.load_teacher returns.")
    return value


def tokenizer(name: str, value: Any) -> Any:
    """A tokenizer."""
    if not (callable(value) and hasattr(value, "decode") and hasattr(value, "eos_token_id")):
        raise ValueError(f"{_given(name, value)}: give a tokenizer, such as lft.load_teacher returns.")
    return value
