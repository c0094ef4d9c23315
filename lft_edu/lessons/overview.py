"""How far a learner has come."""

from ..exercises import EXERCISES
from . import progress
from .tables import Table, table


def my_progress(lesson: int | None = None) -> Table:
    """Return a table of the course: exercises passed and predictions that came true, lesson by lesson.

    Args:
        lesson: only this one, such as 2; None: all.

    Raises:
        ValueError: the lesson has neither exercises nor predictions.
    """
    kept = progress.load()
    passed = set(kept.get("exercises", {}))
    predictions = [one for one in kept.get("predictions", {}).values() if isinstance(one, dict) and one.get("lesson")]
    numbers: dict[str, list[str]] = {}
    for number in sorted(EXERCISES, key=lambda number: [int(part) for part in number.split(".")]):
        numbers.setdefault(f"{int(number.split('.')[0]):02}", []).append(number)
    known = sorted({*numbers, *(one["lesson"] for one in predictions)})
    wanted = known if lesson is None else [f"{lesson:02}"]
    if unknown := set(wanted) - set(known):
        raise ValueError(f"Nothing is known of lesson {unknown.pop()}. Lessons with exercises: {', '.join(numbers)}.")
    rows = []
    for name in wanted:
        graded = [one for one in predictions if one["lesson"] == name and one.get("said") and "right" in one]
        mine = numbers.get(name, [])
        rows.append({
            "lesson": name,
            "exercises passed": f"{len(passed & set(mine))} of {len(mine)}" if mine else None,
            "still to do": ", ".join(number for number in mine if number not in passed) or None,
            "predictions right": f"{sum(bool(one['right']) for one in graded)} of {len(graded)}" if graded else None,
        })  # fmt: skip
    return table(rows)
