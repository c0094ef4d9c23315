"""Mend what students handed in, so that one doubled cell or another file name does not cost all their marks.

nbgrader marks no cell of a notebook in which two cells have the same name, and no notebook that is called otherwise
than the assignment. Nothing that a student wrote is changed or deleted.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ..support.files import atomic_write


def mend(course: Path) -> list[str]:
    """Mend every notebook in ``course/submitted`` in place; the first state of each changed one is kept beside it.

    * Cells that were copied: the last one that was run is marked, or the last one; the others stay, as plain cells.
    * The only notebook of a submission, under another name: it is copied to the name that nbgrader looks for.

    Args:
        course: the folder that ``lft-edu classroom`` wrote.

    Returns:
        A line for everything that was mended or cannot be marked, such as cells that are missing.

    Raises:
        ValueError: there is no course, or nothing was handed in.
    """
    if not (course / "nbgrader_config.py").is_file():
        raise ValueError(f"{course} is not an nbgrader course: give the folder that `lft-edu classroom` wrote.")
    folders = sorted(path for path in course.glob("submitted/*/*") if path.is_dir())
    if not folders:
        raise ValueError(
            f"Nothing was handed in: put notebooks into {course}/submitted/STUDENT/01_couplings/01_couplings.ipynb."
        )
    return [f"{folder.parent.name}, {folder.name}: {line}" for folder in folders for line in _mend(course, folder)]


def _mend(course: Path, folder: Path) -> list[str]:
    import nbformat

    path, lines = folder / f"{folder.name}.ipynb", []
    source = course / "source" / folder.name / path.name
    if not source.is_file():
        return [
            f"there is no such assignment; there are {', '.join(sorted(p.name for p in (course / 'source').glob('*')))}"
        ]
    others = [one for one in folder.glob("*.ipynb") if one != path]
    if not path.is_file():
        if len(others) != 1:
            return [f"{len(others)} notebooks, none called {path.name}: rename the one that counts"]
        shutil.copy(others[0], path)
        lines.append(f"{others[0].name} is marked as {path.name}")
    try:
        book = nbformat.read(path, 4)
    except Exception as error:  # not JSON, not a notebook, not readable
        return [*lines, f"{path.name} is not a notebook ({type(error).__name__}): ask for it again"]
    doubled = _single_out(book)
    if doubled:
        kept = folder / f"{path.stem}.as-handed-in"
        if not kept.exists():
            shutil.copy(path, kept)
        with atomic_write(path) as partial:
            partial.write_text(nbformat.writes(book) + "\n", encoding="utf-8")
        lines += [f"{name} was there {count} times; the last one that was run is marked" for name, count in doubled]
    wanted = [name for cell in nbformat.read(source, 4).cells if (name := _name(cell))]
    present = {_name(cell) for cell in book.cells}
    lines += [f"{name} is missing: it gets no points" for name in wanted if name not in present]
    return lines


def _single_out(book) -> list[tuple[str, int]]:
    """Take nbgrader's mark off all but one of the cells that share a name; return each such name with its count."""
    by_name: dict[str, list] = {}
    for cell in book.cells:
        if name := _name(cell):
            by_name.setdefault(name, []).append(cell)
    doubled = {name: cells for name, cells in by_name.items() if len(cells) > 1}
    for cells in doubled.values():
        marked = max(cells, key=lambda cell: (cell.get("execution_count") or 0, cells.index(cell)))
        for cell in cells:
            if cell is not marked:
                del cell.metadata["nbgrader"]
    return [(name, len(cells)) for name, cells in doubled.items()]


def _name(cell) -> str | None:
    return cell.metadata.get("nbgrader", {}).get("grade_id")
