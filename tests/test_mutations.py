"""benchmarks/mutations.py breaks formulas by text: every text must still be in its file, and every test file exist."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MISTAKES = runpy.run_path(str(ROOT / "benchmarks" / "mutations.py"))["MISTAKES"]


@pytest.mark.parametrize(("file", "right", "wrong", "tests"), MISTAKES)
def test_every_mistake_can_still_be_made(file, right, wrong, tests):
    assert right != wrong
    assert right in (ROOT / "lft_edu" / file).read_text()
    assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in tests.split())
