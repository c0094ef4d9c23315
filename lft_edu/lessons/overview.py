"""How far a learner has come."""

from ..exercises import EXERCISES
from . import progress
from .tables import Table, table


def my_progress() -> Table:
    """Return a table of the course: exercises passed and predictions that came true, lesson by lesson."""
    kept = progress.load()
    passed = set(kept.get("exercises", {}))
    predictions = [one for one in kept.get("predictions", {}).values() if isinstance(one, dict)]
    lessons = sorted(
        {int(number.split(".")[0]) for number in EXERCISES} | {int(p["lesson"]) for p in predictions if p.get("lesson")}
    )
    rows = []
    for lesson in lessons:
        numbers = sorted((n for n in EXERCISES if int(n.split(".")[0]) == lesson), key=lambda n: int(n.split(".")[1]))
        graded = [p for p in predictions if p.get("lesson") == f"{lesson:02}" and p.get("said") and "right" in p]
        rows.append({
            "lesson": f"{lesson:02}",
            "exercises passed": f"{len(passed & set(numbers))} of {len(numbers)}" if numbers else None,
            "still to do": ", ".join(n for n in numbers if n not in passed) or None,
            "predictions right": f"{sum(bool(p['right']) for p in graded)} of {len(graded)}" if graded else None,
        })  # fmt: skip
    return table(rows)
