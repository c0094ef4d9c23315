"""What a learner has done so far, kept in the learner's copy of the course."""

import contextlib
import json
import os
import re
from pathlib import Path

from ..course import MANIFEST
from ..support.files import write_json

FILE = ".progress.json"
_memory: dict[str, dict] = {}  # where no copy of the course is around: until the kernel ends


def course_folder() -> Path | None:
    """The learner's copy of the course that the current folder is in; None outside of one."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / MANIFEST).is_file()), None)


def lesson_of_notebook() -> str:
    """The number of the lesson whose notebook runs, such as ``"03"``; "" where Jupyter does not tell."""
    found = re.match(r"\d\d(?=_)", Path(os.environ.get("JPY_SESSION_NAME", "")).name)
    return found[0] if found else ""


def load() -> dict[str, dict]:
    """Everything kept so far: ``"exercises"`` → number → True; ``"predictions"`` → question → what was said.

    A file that cannot be read counts as empty: what is kept is a convenience, not work.
    """
    folder = course_folder()
    if folder is None:
        return _memory
    try:
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and all(isinstance(v, dict) for v in kept.values()) else {}


def keep(kind: str, name: str, value) -> None:
    """Keep ``value`` under ``kind`` and ``name``, on disk if there is a copy of the course and it can be written."""
    kept = load()
    kept.setdefault(kind, {})[name] = value
    folder = course_folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):  # a read-only course must not stop a lesson
        write_json(folder / FILE, kept)
