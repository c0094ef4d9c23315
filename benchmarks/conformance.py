"""What works with which model family, on the oldest and the newest libraries allowed: the table in docs/models.md.

    python -m benchmarks.conformance           # runs the tests on both, about ten minutes; also make test-versions
    python -m benchmarks.conformance --table   # writes the table from what was found before

Each cell is a group of tests in tests/test_families.py, which build a random model of the family. Other versions are
installed into build/versions, beside what is installed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lft_edu.families import FAMILIES
from lft_edu.recipes.common import into_page

ROOT = Path(__file__).parents[1]
FOUND, PAGE = ROOT / "benchmarks" / "results" / "conformance.json", ROOT / "docs" / "models.md"
COLUMNS = {  # column → tests
    "logit lens": ("layers_run_by_hand_are_the_model",),
    "splice": (
        "the_original_layers_give_the_teachers_logits",
        "skip_is_the_teacher_without_those_layers",
        "replaced_layers_are_not_in_the_model",
        "slots_are_one_per_evaluation",
        "edges_of_the_model_can_be_replaced",
        "attention_can_be_changed_in_place",
        "logits_agree_with_eager_attention",
        "nothing_sees_the_future",
    ),
    "flow": ("a_fresh_flow_is_the_teachers_layer", "velocity_is_its_formula", "set_solver_rewires_the_cache"),
    "training": ("a_flow_can_be_fitted_and_evaluated", "only_the_operator_is_trainable_after_loading_too"),
    "gradient checkpoints": ("gradient_checkpointing_gives_the_same_gradient_and_looks_again",),
    "generate": ("cached_generation_is_uncached_generation",),
    "beams": ("sampling_and_beams",),
    "static cache": ("a_static_cache_gives_the_same_text",),
    "left padding": ("left_padding_changes_nothing",),
    "drafting": ("a_student_drafts_for_its_teacher",),
    "save, load": ("save_and_load_is_the_same_function",),
    "half precision": ("half_precision_is_the_same_but_for_rounding",),
    "compile": ("compiles_to_one_graph",),
    "LoRA": ("adapters_are_trained_saved_and_merged",),
}
STREAMS = ["tests/test_teachers_corpora.py", "tests/test_streams.py"]  # what the library uses of datasets


class Recorder:
    """A plugin of pytest: family → column → [passed, failed]."""

    def __init__(self):
        self.found: dict[str, dict[str, list[int]]] = {}

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        name, _, params = report.nodeid.partition("::test_")[2].rstrip("]").partition("[")
        column = next((column for column, tests in COLUMNS.items() if name in tests), None)
        family = next((one for one in params.split("-") if one in FAMILIES), None)
        if column and family:
            self.found.setdefault(family, {}).setdefault(column, [0, 0])[not report.passed] += 1


def run_here(out: Path, streams: bool) -> None:
    """Run the tests on the libraries of this process, and write what passed."""
    recorder = Recorder()
    files = STREAMS if streams else ["tests/test_families.py"]
    failed = pytest.main(["-q", "-p", "no:cacheprovider", *files], plugins=[recorder])
    row = {name: version(name) for name in ("torch", "transformers", "datasets")}
    out.write_text(json.dumps(row | {"files": files, "passed": failed == 0, "families": recorder.found}))


def run_with(package: str, wanted: str) -> dict:
    """Run the tests in a process that sees this version of a library."""
    folder = ROOT / "build" / "versions" / f"{package}-{wanted}"
    if not folder.exists() and version(package) != wanted:
        install(f"{package}=={wanted}", folder)
        for need in unmet(package, folder):
            install(need, folder)
    out = ROOT / "build" / "versions" / f"{package}-{wanted}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "benchmarks.conformance", "--here", str(out)]
    command += ["--streams"] if package == "datasets" else []
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
    row = json.loads(out.read_text())
    if row[package] != wanted:
        raise SystemExit(f"The tests saw {package} {row[package]}, not {wanted}: delete {folder}, then run it again.")
    return row


def install(requirement: str, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, requirement], check=True)


def unmet(package: str, folder: Path) -> list[str]:
    """What a package in a folder requires in another version than the one that is installed."""
    (found,) = distributions(name=package, path=[str(folder)])
    needs = [Requirement(line) for line in found.requires or () if "extra ==" not in line]
    return [f"{need.name}{need.specifier}" for need in needs if version(need.name) not in need.specifier]


def versions(package: str) -> list[str]:
    """The oldest version that pyproject.toml allows, and the one that is installed."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (oldest,) = (re.search(r">=([\d.]+)", one).group(1) for one in wanted if re.match(rf"{package}\b", one))
    oldest += ".0" * (2 - oldest.count("."))
    return [oldest, version(package)]


def table(rows: list[dict]) -> str:
    """Format what was found with the newest transformers as Markdown, and with which others all of it passed."""
    *others, newest = [row for row in rows if row["families"]]
    heads = ["family", "transformers", *COLUMNS]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for family in FAMILIES:
        cells = [_cell(FAMILIES[family], column, newest["families"][family].get(column)) for column in COLUMNS]
        good = [row for row in (*others, newest) if not any(bad for _, bad in row["families"].get(family, {}).values())]
        lines.append(f"| {family} | {', '.join(row['transformers'] for row in good)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(family, column: str, counts: list[int] | None) -> str:
    if counts is None:
        return ""
    good, bad = counts
    refused = column == "static cache" and not family.static_cache
    return "refused" if refused and not bad else f"{bad} of {good + bad} fail" if bad else "✓"


def write_page(rows: list[dict]) -> None:
    into_page(PAGE, "conformance", table(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--streams", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.here:
        return run_here(a.here, a.streams)
    if not a.table:
        found = [run_with(package, one) for package in ("transformers", "datasets") for one in versions(package)]
        FOUND.write_text(json.dumps(found, indent=1) + "\n")
    write_page(json.loads(FOUND.read_text()))


if __name__ == "__main__":
    main()
