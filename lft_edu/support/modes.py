"""Measure without dropout, whatever mode a model was left in."""

import functools
from collections.abc import Callable
from typing import TypeVar

from torch import nn

F = TypeVar("F", bound=Callable)


def in_eval_mode(function: F) -> F:
    """Make a function run with the models among its arguments in evaluation mode; their mode is restored afterwards.

    A model that was left in training mode drops activations at random, and every measurement of it would differ.
    """

    @functools.wraps(function)
    def run(*args, **kwargs):
        models = [value for value in (*args, *kwargs.values()) if isinstance(value, nn.Module)]
        modes = [(module, module.training) for model in models for module in model.modules()]
        for module, _ in modes:
            module.training = False
        try:
            return function(*args, **kwargs)
        finally:
            for module, mode in modes:
                module.training = mode

    return run  # type: ignore[return-value]
