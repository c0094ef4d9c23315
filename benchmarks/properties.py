"""Try what must hold for any input on 10,000 inputs each, where the tests try 25.

    python -m benchmarks.properties    # a quarter of an hour on a slow core; also make properties

Runs the tests of Hypothesis that leave the number of examples to the profile (tests/conftest.py); those that run a
model say their own. Writes ``benchmarks/results/properties.json``; exit status 1 if one failed. Hypothesis then prints
the smallest input that does not hold, and keeps it in ``.hypothesis/``: an ordinary test run tries it first.
"""

import argparse
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from lft_edu.support.files import write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "properties.json"
COUNTS = re.compile(r"(\d+) passing, (\d+) failing, and (\d+) invalid")


class Counter:
    """A plugin of pytest: keeps the tests of Hypothesis that follow the profile, and counts their examples."""

    def __init__(self):
        self.found: dict[str, dict] = {}

    def pytest_collection_modifyitems(self, config, items):
        own = "_hypothesis_internal_settings_applied"  # Hypothesis has no public name for it
        chosen = [item for item in items if hasattr(item.obj, "hypothesis") and not hasattr(item.obj, own)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when == "call":
            counts = [map(int, one) for one in COUNTS.findall(getattr(item, "hypothesis_statistics", ""))]
            passing, failing, invalid = map(sum, zip(*counts, strict=True)) if counts else (0, 0, 0)
            row = {"passing": passing, "failing": failing, "invalid": invalid, "seconds": round(call.duration, 1)}
            self.found[item.nodeid] = row | {"held": report.passed}
            print(f"{item.nodeid}: {row}", flush=True)
        return report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="thorough", help="of tests/conftest.py (default: thorough)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(arguments)
    files = [str(path) for path in sorted(ROOT.glob("tests/test_*.py")) if "from hypothesis" in path.read_text("utf-8")]
    counter, began = Counter(), time.monotonic()
    options = ["-q", "-s", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"--hypothesis-profile={a.profile}"]
    status = pytest.main([*options, *files], plugins=[counter])
    total = sum(row["passing"] for row in counter.found.values())
    found = {"examples": total, "properties": len(counter.found), "seconds": round(time.monotonic() - began)}
    failed = [name for name, row in counter.found.items() if not row["held"]]
    found |= {"failed": failed, "hypothesis": version("hypothesis"), "tests": counter.found}
    write_json(a.out, found)
    print(f"{total:,} examples of {len(counter.found)} properties; failed: {', '.join(failed) or 'none'}")
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
