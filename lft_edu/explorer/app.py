"""The trajectory explorer as an application of its own, without a notebook around it: served by voila."""

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
    """A notebook of one cell, in a folder of its own, that opens the explorer.

    Raises:
        ValueError: voila is not installed, or there is no student.
    """
    import nbformat

    if importlib.util.find_spec("voila") is None:
        raise ValueError("The explorer as an application takes voila: pip install 'lft_edu[voila]' (or: make explore).")
    if not students:
        raise ValueError("There is no student: give --student with a folder that student.save_pretrained wrote.")
    source = CELL.format(teacher=teacher, students=list(students), text="" if text is None else f", text={text!r}")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id="explorer")])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = Path(tempfile.mkdtemp(prefix="lft_edu-")) / "explorer.ipynb"
    nbformat.write(book, path)
    return path
