"""The table in docs/results.md of what was done to the code to break it, from what the benchmarks have measured.

    python -m benchmarks.reliability    # seconds

``benchmarks.crash``, ``memory``, ``properties`` and ``mutation_score`` (``make mutation``) write the files.
"""

import argparse
import json
from pathlib import Path

from lft_edu.recipes.common import RESULTS as PAGE
from lft_edu.recipes.common import into_page

FOLDER = Path(__file__).parent / "results"


def load(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def table() -> str:
    """Format what was tried and what came of it as Markdown."""
    lines = ["| tried | how often | what came of it |", "|---|---|---|"]
    return "\n".join([*lines, *crash(), *properties(), *memory(), *mutants()]) + "\n"


def crash() -> list[str]:
    found = load("crash")
    kills, runs, two = found["kills"], found["runs"], found["two_in_one_folder"]
    half = sum(bool(kill["unfinished_files"]) for kill in kills if kill["moment"] == "writing a checkpoint")
    at = ", ".join(f"{count} while {moment}" for moment, count in found["moments"].items())
    at = at.replace("writing a checkpoint", f"writing a checkpoint ({half} left half a file)")
    wrong = [one for one in (*kills, *runs) if one["differs"]]
    equal = f"{len(wrong)} differ" if wrong else "each run ends as without a kill, to the last bit"
    fine = two["second_exits"] == 2 and not two["differs"]
    met = "refused by name; the first run ends as if alone" if fine else "not kept apart"
    return [
        f"| a training run is killed (SIGKILL) and resumed | {len(kills)} kills of {len(runs)} runs: {at} | {equal} |",
        f"| a second process trains in the same folder | once | {met} |",
    ]


def properties() -> list[str]:
    found = load("properties")
    held = f"{len(found['failed'])} do not hold" if found["failed"] else "all hold"
    return [
        f"| what must hold for any input is tried on random inputs | {found['examples']:,} inputs of "
        f"{found['properties']} properties, 10,000 each or all there are | {held} |"
    ]


def memory() -> list[str]:
    found = load("memory")
    first, *_, last = found["after"].values()
    flat = "nothing grows" if found["flat"] else f"{', '.join(found['grew_per_round'])} grow"
    sizes = " → ".join(f"{row['resident'] / 1e6:.0f} MB" for row in (first, last))
    return [
        f"| splice, fit, evaluate, forget, in one process | {found['rounds']} rounds | {flat}: "
        f"{first['tensors']} → {last['tensors']} live tensors, {sizes} of memory |"
    ]


def mutants() -> list[str]:
    if not (FOLDER / "mutation.json").exists():
        return []
    modules = load("mutation")["modules"]
    rows = []
    for module, counts in modules.items():
        judged = sum(counts.get(kind, 0) for kind in ("noticed", "unnoticed", "not reached"))
        if judged:
            score = f"tests notice {counts.get('noticed', 0)} ({counts['score']:.0%})"
            rows.append(f"| `{Path(module).name}` is changed in one place | {judged:,} changes | {score} |")
    return rows


def render(page: Path = PAGE) -> None:
    """Write the table into docs/results.md."""
    into_page(page, "reliability", table())


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    render()
