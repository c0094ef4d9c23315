"""Serve the trajectory explorer as a standalone web application with voila."""

import importlib.util
import tempfile
from pathlib import Path

STUDENTS = tuple(f"bundled/{kind}-6-18" for kind in ("flow-walking", "flow-matching", "regression", "ridge"))
CELL = """import lft_edu as lft
from transformers.utils import logging

logging.disable_progress_bar()
teacher, tokenizer = lft.load_teacher({teacher!r})
students = {{name: lft.load_student(name, teacher) for name in {students!r}}}
lft.TrajectoryExplorer(teacher, students, tokenizer{text})
"""


def write_app(teacher: str = "bundled", students: tuple[str, ...] = STUDENTS, text: str | None = None) -> Path:
    """Write a one-cell notebook that opens the explorer to a temporary folder, and return its path.

    Args:
        teacher: name or folder for ``lft.load_teacher``. students: names or folders for ``lft.load_student``.
        text: the first text shown; the explorer's default if None.

    Raises:
        ValueError: voila is not installed, or ``students`` is empty.
    """
    import nbformat

    if importlib.util.find_spec("voila") is None:
        raise ValueError("The explorer application needs voila: pip install 'lft_edu[voila]' (or: make explore).")
    if not students:
        raise ValueError("No student was given: add --student with a folder written by student.save_pretrained.")
    source = CELL.format(teacher=teacher, students=list(students), text="" if text is None else f", text={text!r}")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id="explorer")])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = Path(tempfile.mkdtemp(prefix="lft_edu-")) / "explorer.ipynb"
    nbformat.write(book, path)
    return path
