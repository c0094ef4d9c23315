"""Exercises with instant checks: ``check("3.2", my_walk)``. ``books`` builds the exercise notebooks."""

from . import (
    lesson01,
    lesson02,
    lesson03,
    lesson04,
    lesson04_failures,
    lesson05,
    lesson05_assembly,
    lesson05_cache,
    lesson05_generation,
    lesson05_training,
    lesson07,
    lesson07_teacher,
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
    "lesson05_assembly",
    "lesson05_cache",
    "lesson05_generation",
    "lesson05_training",
    "lesson07",
    "lesson07_teacher",
    "lesson08",
    "lesson08_costs",
    "lesson08_layers",
]
