"""The tables of README, from the results that ship and from the lessons.

    python -m lft_edu.recipes.readme_report    # seconds

A test compares README with what this writes.
"""

import argparse
import json
import re
from pathlib import Path

import torch

from ..loading.assets import ASSETS
from ..spans import SpanScan
from ..support.statistics import rank_correlation
from . import real_report, why_report
from .common import README, into_page, lessons
from .span_selection import trained

PLANE = ASSETS.parent / "benchmarks" / "results" / "plane.json"
SKIPPED = {"flow-matching": 2, "flow-walking": 3}  # layers that the paper's claims compare with


def lessons_table() -> str:
    """Format the lessons as a Markdown table: number, title, question and minutes, from each lesson's first cell."""
    lines = ["| | lesson | minutes |", "|---|---|---|"]
    for path in lessons():
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        title, question = re.search(r"^# \d+ · (.+)\n+## (.+)$", first, re.M).groups()
        (row,) = re.findall(r"\*\*Minutes\*\* \|(.*)\|", first)
        numbers = re.findall(r"\d+(?:–\d+)?", re.sub(r"\]\([^)]*\)", "", row))
        minutes = [numbers[0], numbers[-1]] if "[exercises]" in row else numbers[:1]
        lines.append(f"| [{path.name[:2]}](notebooks/{path.name}) | {title}: {question} | {' + '.join(minutes)} |")
    return "\n".join(lines) + "\n"


def results_table() -> str:
    """Format what was claimed, what was measured here, and whether the claim held, as a Markdown table of six rows."""
    lines = ["| claim | measured here | does it hold? |", "|---|---|---|"]
    kept = {row["contender"]: row["pairs_kept"] for row in json.loads(PLANE.read_text(encoding="utf-8"))["training"]}
    lines.append(
        "| In the plane, Flow Walking keeps pairs that flow matching loses | "
        f"{kept['ours: Flow Walking, k=3']:.0%} of points against {kept['ours: flow matching']:.1%} | yes |"
    )
    real = real_report.load()
    for kind, skipped in SKIPPED.items():
        title = real_report.TITLES[kind]
        title = title[0].upper() + title[1:]
        states, finished = (_ratio(real_report.headline(real, kind, end), skipped) for end in (False, True))
        lines.append(
            f"| {title}: less KL than skipping {skipped} layers | {states[0]} times as much, then "
            f"{finished[0]} | {_verdict(states)} on states; {_verdict(finished)} after logits |"
        )
    why, pair = why_report.load(), ("Flow Walking, 2 evaluations", "trained loop, 2 evaluations")
    loops = [f"{why_report.compare(why, 'bundled', span, *pair)['ratio']:.2f}" for span in ((6, 12), (6, 18))]
    lines.append(
        "| It is the flow that helps | at two evaluations, its KL over that of one layer looped twice: "
        f"{' and '.join(loops)}; two layers do better | hardly |"
    )
    rho = {name: f"{value:.2f}" for name, value in _predicted().items()}
    lines.append(
        "| The recoupling ratio tells where to cut | rank correlation with flow matching's KL: "
        f"{rho['recoupling']}; of a matrix's error: {rho['ridge']} | no better than a matrix |"
    )
    lines.append("| All this on the paper's Pythia-410M | **not run**: it takes the model hub and a GPU | unknown |")
    return "\n".join(lines) + "\n"


def _ratio(row: dict, skipped: int) -> tuple[str, float, float]:
    """KL over that of skipping, with its interval, as text, and the ends of the interval."""
    low, high = row[f"ratio_to_skip_{skipped}_interval"]
    return f"{row[f'ratio_to_skip_{skipped}']:.2f} ({low:.2f}–{high:.2f})", low, high


def _verdict(ratio: tuple[str, float, float]) -> str:
    _, low, high = ratio
    return "yes" if high < 1 else "no" if low > 1 else "open"


def _predicted() -> dict[str, float]:
    """Rank correlation of two criteria with the KL of flow matching, within spans of one length."""
    folder = ASSETS / "results"
    scan = SpanScan.load(folder / "scan.json")
    kl = trained(json.loads((folder / "cut.json").read_text(encoding="utf-8")), "flow-matching")
    lengths, after = torch.tensor([n - m for m, n in kl]), torch.tensor(list(kl.values()))
    at = {name: torch.tensor([scan[name][span].item() for span in kl]) for name in ("recoupling", "ridge")}
    return {name: rank_correlation(values, after, lengths)[0] for name, values in at.items()}


def render(readme: Path = README) -> None:
    """Write both tables into README."""
    into_page(readme, "lessons", lessons_table())
    into_page(readme, "results", results_table())


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(arguments)
    render()


if __name__ == "__main__":
    main()
