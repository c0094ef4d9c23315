"""Exercises that had another number before their lessons were put into the order in which they are taught.

Copies of the exercise notebooks from before still call ``check("6.3", my_spliced)``, which is 5.3 now.
"""

from collections.abc import Collection
from types import FunctionType

# What the exercises ask for, in their order.
CUT = ["my_ratio", "my_growth", "my_angles", "my_rho", "my_word", "my_oracle"]
BUILD = ["my_features", "my_velocity", "my_spliced", "my_budget", "my_walk", "my_generate"]
RENUMBERED = {f"5.{i}": (f"7.{i}", name) for i, name in enumerate(CUT, 1)}
RENUMBERED |= {f"6.{i}": (f"5.{i}", name) for i, name in enumerate(BUILD, 1)}


def renumber(number: str, answer: object, exercises: Collection[str]) -> tuple[str, str]:
    """Find the exercise that is meant by a number that may be an old one.

    An old number is one that no exercise has any more, or one handed over with the function of the exercise that had it
    before: ``my_ratio`` with 5.1.

    Returns:
        Its number now, and a line that says so; the same number and no line if it is not an old one.
    """
    now, asked = RENUMBERED.get(number, (number, ""))
    name = answer.__name__ if isinstance(answer, FunctionType) else ""
    if now == number or (number in exercises and name != asked):
        return number, ""
    return now, f'Exercise {number} is called {now} now: check("{now}", {name if name.isidentifier() else asked}).'
