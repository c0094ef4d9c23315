"""What :mod:`lft_edu.recipes.why` measured, as ratios with intervals, for lessons 06 and 10 and docs/results.md."""

from __future__ import annotations

import json

import torch

from ..loading.assets import ASSETS
from ..support.statistics import ratio_interval
from .common import RESULTS, into_page

TEACHERS = ("bundled", "smollm2-135m")


def load() -> dict:
    """The results that ship."""
    return json.loads((ASSETS / "results" / "why.json").read_text(encoding="utf-8"))


def settings(results: dict) -> list[tuple[str, tuple[int, int]]]:
    """The (teacher, span) that were measured."""
    found = ((teacher, tuple(row["span"])) for teacher in TEACHERS for row in results[teacher])
    return list(dict.fromkeys(found))


def rows_of(results: dict, teacher: str, span, name: str) -> dict[int, dict]:
    """The rows of one variant: seed → row."""
    rows = (row for row in results[teacher] if tuple(row["span"]) == tuple(span) and row["name"] == name)
    return {row["seed"]: row for row in rows}


def compare(results: dict, teacher: str, span, name: str, to: str = "regression") -> dict | None:
    """A variant's KL as a ratio to another's, trained with the same seeds.

    Returns:
        ``ratio`` of the means over seeds and held-out sequences; ``interval``, 95 %, paired over the sequences (not
        over trainings); ``seeds``, the ratio in each; ``kl``. None where one of the two was not measured.
    """
    one, other = (rows_of(results, teacher, span, n) for n in (name, to))
    both = sorted(set(one) & set(other))
    if not both:
        return None
    kl, bar = (
        torch.tensor([rows[seed]["sequence_kl"] for seed in both], dtype=torch.float64).mean(0) for rows in (one, other)
    )
    return {
        "ratio": (kl.mean() / bar.mean()).item(),
        "interval": list(ratio_interval(kl, bar)),
        "seeds": [one[seed]["kl"] / other[seed]["kl"] for seed in both],
        "kl": kl.mean().item(),
        "nfe": one[both[0]]["nfe"],
    }


def dots(results: dict, names: list[str] | tuple[str, ...], to: str = "regression") -> dict:
    """Variants as :func:`lft_edu.plots.dots` takes them: setting → variant → (ratio, low, high)."""
    found: dict = {}
    for teacher, (m, n) in settings(results):
        for name in names:
            one = compare(results, teacher, (m, n), name, to)
            if one:
                found.setdefault(f"{teacher}, {m}–{n}", {})[name] = (one["ratio"], *one["interval"])
    return found


def errors_by_time(results: dict, teacher: str, span, names) -> dict:
    """The error of the velocity against t: variant → (times, errors), means over seeds."""
    found = {}
    for name in names:
        rows = list(rows_of(results, teacher, span, name).values())
        times = [float(t) for t in rows[0]["error_by_t"]]
        errors = torch.tensor([list(row["error_by_t"].values()) for row in rows]).mean(0)
        found[name] = (times, errors.tolist())
    return found


def table(results: dict, names, to: str = "regression") -> str:
    """Variants as Markdown: evaluations, and for each setting KL and its ratio to another variant."""
    places = settings(results)
    lines = ["| variant | NFE | " + " | ".join(f"{t}, {m}–{n}" for t, (m, n) in places) + " |"]
    lines.append("|---" * (2 + len(places)) + "|")
    for name in names:
        found = [compare(results, teacher, span, name, to) for teacher, span in places]
        nfe = next(one["nfe"] for one in found if one)
        lines.append(f"| {name} | {nfe} | " + " | ".join(_cell(one) for one in found) + " |")
    return "\n".join(lines) + "\n"


def _cell(one: dict | None) -> str:
    if one is None:
        return "–"
    low, high = one["interval"]
    return f"{one['kl']:.3f} · {one['ratio']:.2f} ({low:.2f}–{high:.2f})"


def render() -> None:
    """Write the table into docs/results.md."""
    results = load()
    names = dict.fromkeys(row["name"] for teacher in TEACHERS for row in results[teacher])
    into_page(RESULTS, "why", table(results, names))
