"""Notebook hygiene: small, valid, run, no tracebacks, no stored widget state. Run by lint and before a commit."""

import sys
from pathlib import Path

import nbformat

LIMIT = 1_000_000  # bytes: beyond it a notebook is slow to open and to review


def problems(path: Path) -> list[str]:
    """What is wrong with a notebook, one line each."""
    found = []
    if path.stat().st_size > LIMIT:
        found.append(f"{path.stat().st_size / 1e6:.1f} MB; keep it below 1 MB")
    book = nbformat.read(path, as_version=4)
    try:
        nbformat.validate(book)
    except nbformat.ValidationError as error:
        found.append(f"not a valid notebook: {error.message}")
    if "widgets" in book.metadata:
        found.append("metadata.widgets is stored: remove it")
    for number, cell in enumerate(book.cells):
        if cell.cell_type != "code":
            continue
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(f"cell {number} stores a traceback")
        if cell.execution_count is None and cell.source.strip() and "exercises" not in path.parts:
            found.append(f"cell {number} has not been run")
    return found


def main() -> int:
    notebooks = sorted(Path("notebooks").rglob("*.ipynb"))
    notebooks = [path for path in notebooks if ".ipynb_checkpoints" not in path.parts]
    bad = [f"{path}: {problem}" for path in notebooks for problem in problems(path)]
    print("\n".join(bad) or f"{len(notebooks)} notebooks are clean")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
