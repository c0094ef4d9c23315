"""Exercises with instant checks: ``check("3.2", my_walk)``. ``books`` builds the exercise notebooks."""

from . import (
    lesson01,
    lesson02,
    lesson03,
    lesson04,
    lesson04_failures,
    lesson05,
    lesson05_teacher,
    lesson06,
    lesson06_assembly,
    lesson06_cache,
    lesson06_generation,
    lesson08,
    lesson08_costs,
    lesson08_layers,
)
from .checking import EXERCISES, Exercise, Report, check

__all__ = [
    "EXERCISES",
    "Exercise",
    "Report",
    "check",
    "lesson01",
    "lesson02",
    "lesson03",
    "lesson04",
    "lesson04_failures",
    "lesson05",
    "lesson05_teacher",
    "lesson06",
    "lesson06_assembly",
    "lesson06_cache",
    "lesson06_generation",
    "lesson08",
    "lesson08_costs",
    "lesson08_layers",
]
