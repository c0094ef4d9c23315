"""Serve the trajectory explorer as a standalone web application with voila."""

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..loading import gguf
from ..loading.teachers import SHIPPED, operator_file, shipped_students, teacher_of

STUDENTS = tuple(f"bundled/{kind}-6-18" for kind in ("flow-walking", "flow-matching", "regression", "ridge"))
ENGLISH = (
    "The capital of France is Paris. The capital of Italy is"  # the first text of all teachers but the bundled one
)
# A pool of one: the next page's kernel has run the notebook before it is asked for, so that a page is there at once.
FLAGS = ("--preheat_kernel=True", "--pool_size=1")
CELL = """import lft_edu as lft
import torch
from lft_edu.support.machine import fastest_dtype
from transformers.utils import logging

logging.disable_progress_bar()
teacher, tokenizer = lft.load_teacher({teacher!r}, dtype={dtype})
students = {{name: lft.load_student(name, teacher, dtype=teacher.dtype) for name in {students!r}}}
lft.TrajectoryExplorer(teacher, students, tokenizer{text})
"""


def write_app(teacher: str | None = None, students: Sequence[str] = (), text: str | None = None) -> Path:
    """Write a one-cell notebook that opens the explorer to a temporary folder, and return its path.

    Args:
        teacher: name or folder for ``lft.load_teacher``. If None, that of the first shipped student, or else
            ``"bundled"``. The bundled teacher is loaded in float32, any other in the device's fastest type.
        students: names or folders for ``lft.load_student``; the teacher's shipped students if empty.
        text: the first text shown. If None, some Python for the bundled teacher and some English for any other.

    Raises:
        ValueError: voila is not installed, no students ship for this teacher, or a student of another teacher.
        FileNotFoundError: a teacher that must be fetched first.
    """
    import nbformat

    if importlib.util.find_spec("voila") is None:
        raise ValueError("The explorer application needs voila: pip install 'lft_edu[voila]' (or: make explore).")
    teacher = teacher or next(filter(None, map(teacher_of, students)), "bundled")
    if teacher in gguf.PUBLISHED:
        gguf.folder_of(teacher)  # raises here what would be a traceback on the page
    students = list(students) or _default_students(teacher)
    for name in students:
        if (owner := teacher_of(name)) is not None:
            operator_file(name)  # raises for an unknown name
            if owner != teacher:
                raise ValueError(f"{name!r} is a student of {owner!r}: give --teacher {owner}.")
    if text is None and teacher != "bundled":
        text = ENGLISH
    source = CELL.format(
        teacher=_absolute(teacher),
        dtype="torch.float32" if teacher == "bundled" else "fastest_dtype()",
        students=[_absolute(name) for name in students],
        text="" if text is None else f", text={text!r}",
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id="explorer")])
    book.metadata["title"] = "Trajectory explorer"  # of the browser's window
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = Path(tempfile.mkdtemp(prefix="lft_edu-")) / "explorer.ipynb"
    nbformat.write(book, path)
    return path


def real_teachers() -> list[str]:
    """Return the published language models that are on this computer and have shipped students."""
    return [name for name in gguf.PUBLISHED if gguf.is_ready(name) and name in SHIPPED and shipped_students(name)]


def _default_students(teacher: str) -> list[str]:
    """Return the names of the students to show with a teacher."""
    if teacher == "bundled":
        return list(STUDENTS)
    if not (names := shipped_students(teacher) if teacher in SHIPPED else []):
        raise ValueError(
            f"No students of {teacher!r} ship with the course: add --student with a folder that "
            f"`lft-edu train --teacher {teacher} --span m:n --out FOLDER` or student.save_pretrained wrote."
        )
    return names


def _absolute(name: str) -> str:
    """Return the absolute path of a file or folder, since the application runs elsewhere; other names unchanged."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() and name not in (*SHIPPED, *shipped_students()) else name
