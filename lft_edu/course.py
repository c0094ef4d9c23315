"""Give learners a copy of the course, update it, and give one notebook back.

Learners work in a copy, so that running and editing lessons changes nothing in the clone or in the installed package.
A manifest in the copy remembers the SHA-256 of each file as it was given: a file that still has it is unchanged and may
be replaced by a newer version of the course; any other file is the learner's and is never overwritten.
"""

import datetime
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from . import __version__
from .loading.assets import ASSETS, INSTALLED, NOTEBOOKS, RESTORE
from .support.errors import unknown_name_error
from .support.files import atomic_write

FOLDER = "lft-course"
START = "00_start_here.ipynb"
MANIFEST = ".lft_edu.json"
PATTERNS = ("*.ipynb", "exercises/*.ipynb", "exercises/solutions/*.ipynb")
OUTSIDE = re.compile(r"\[([^\[\]]*)\]\(\.\./([^()\s]+)\)")  # links of lessons to what is not a notebook


@dataclass
class Given:
    """What :func:`give` did: names of files, by what happened to them. ``outdated``: changed by the learner *and* in
    the course since it was given; these are among ``kept``. ``former``: given before, and no longer in the course under
    this name; they stay where they are."""

    new: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    outdated: list[str] = field(default_factory=list)
    former: list[str] = field(default_factory=list)

    def report(self, folder: Path) -> str:
        """Say it in a line each; ``folder`` is where the copy lies."""
        lines = [f"Your copy of the course: {folder}. `lft-edu reset 03` there gives lesson 03 back as it was."]
        if self.updated:
            lines.append(f"Updated to the course's newer version: {_names(self.updated)}.")
        if self.kept:
            lines.append(f"Kept as you changed them: {_names(self.kept)}.")
        if self.outdated:
            lines.append(f"Of these, the course has newer versions of: {_names(self.outdated)}.")
        if self.former:
            lines.append(f"No longer in the course by this name, yours to keep or delete: {_names(self.former)}.")
        return "\n".join(lines)


def _names(files: list[str]) -> str:
    return ", ".join(name.removesuffix(".ipynb") for name in files)


def clone(folder: str | None = None) -> Path:
    """Return the clone of the course that runs, for ``lab --in-place``.

    Raises:
        ValueError: this is an installed wheel, or a ``folder`` was named beside ``--in-place``.
    """
    if folder:
        raise ValueError(f"--in-place opens the clone's own notebooks: leave out --in-place, or {folder!r}.")
    if INSTALLED:
        raise ValueError("--in-place is for a clone of the course, and this is an installed wheel: leave it out.")
    return NOTEBOOKS.parent


def contents() -> dict[str, bytes]:
    """Read what a copy holds: lessons, exercises, solutions, and pictures that lessons link to.

    Returns:
        The bytes of each file by its path in the copy. The first lesson comes first.

    Raises:
        FileNotFoundError: the notebooks are not where the course keeps them.
    """
    found, pictures = {}, {}

    def settle(link: re.Match) -> str:
        """A link that leads out of the folder of notebooks: a picture comes along, other files stay in the clone."""
        text, target = link.groups()
        if not target.startswith("assets/"):
            return text
        pictures[target] = (ASSETS / target.removeprefix("assets/")).read_bytes()
        return f"[{text}]({target})"

    for pattern in PATTERNS:
        for path in sorted(NOTEBOOKS.glob(pattern)):
            data = path.read_bytes()
            if "/" not in pattern:
                data = OUTSIDE.sub(settle, data.decode()).encode()
            found[path.relative_to(NOTEBOOKS).as_posix()] = data
    if START not in found:
        raise FileNotFoundError(f"No {START} in {NOTEBOOKS}. {RESTORE}")
    return found | pictures


def is_copy(folder: Path) -> bool:
    """Whether :func:`give` made this folder."""
    return (folder / MANIFEST).is_file()


def default_folder() -> Path:
    """The copy that the current directory lies in (as JupyterLab's terminals do), else ``lft-course`` here."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if is_copy(folder)), Path(FOLDER))


def give(folder: Path) -> Given:
    """Copy the course into a folder, or bring an earlier copy up to date. Never overwrites what the learner changed.

    Args:
        folder: a new or empty folder, or one that holds a copy. Files that were deleted there are given again.

    Raises:
        FileExistsError: ``folder`` is a file, or holds something else.
        ValueError: it is the course's own folder, or its manifest is damaged.
        OSError: it cannot be written.
    """
    folder = _usable(folder)
    before, now, done, course = _read_manifest(folder), {}, Given(), contents()
    done.former = [name for name in before if name not in course and (folder / name).exists()]
    for name, data in course.items():
        path, new = folder / name, _sha256(data)
        mine = _sha256(path.read_bytes()) if path.exists() else None
        if mine in (None, before.get(name)) and mine != new:
            _write(path, data)
            (done.updated if mine else done.new).append(name)
        elif mine != new:
            done.kept.append(name)
            if before.get(name, new) != new:
                done.outdated.append(name)
            now[name] = before.get(name, new)  # still the version that it was made from
            continue
        now[name] = new
    _write_manifest(folder, now)
    return done


def reset(lesson: str, folder: Path) -> tuple[Path, Path | None]:
    """Give a notebook of a copy back as the course has it, and keep the learner's beside it.

    Args:
        lesson: its number, ``"03"``; ``"exercises/03"`` and ``"exercises/solutions/03"`` for those; or its name.
        folder: a copy that :func:`give` made.

    Returns:
        The notebook, and where the learner's is kept: ``03_flow_walking (my copy 2026-11-26).ipynb``, with a number if
        there is one of that day already; None if it was not changed.

    Raises:
        FileNotFoundError: ``folder`` holds no copy of the course.
        ValueError: there is no such lesson, or the manifest is damaged.
        OSError: it cannot be written.
    """
    if not is_copy(folder):
        raise FileNotFoundError(
            f"{folder} is not a copy of the course: run `lft-edu lab` first, or name the folder of your copy, "
            f"`lft-edu reset {lesson} FOLDER`."
        )
    given, course = _read_manifest(folder), contents()
    name = _find(lesson, course)
    path, saved = folder / name, None
    if path.exists() and _sha256(mine := path.read_bytes()) not in (given.get(name), _sha256(course[name])):
        saved = _free(path)
        _write(saved, mine)
    _write(path, course[name])
    _write_manifest(folder, given | {name: _sha256(course[name])})
    return path, saved


def _find(lesson: str, course: dict[str, bytes]) -> str:
    """The notebook that is meant by ``"03"``, ``"exercises/3"`` or a name."""
    books = {name.removesuffix(".ipynb"): name for name in course if name.endswith(".ipynb")}
    asked = PurePosixPath(lesson.replace("\\", "/").removesuffix(".ipynb").removeprefix("notebooks/"))
    numbers = {str(PurePosixPath(stem).parent / PurePosixPath(stem).name[:2]): name for stem, name in books.items()}
    number = str(asked.parent / asked.name.zfill(2))
    if number not in numbers and str(asked) not in books:
        raise unknown_name_error("lesson", lesson, numbers)
    return numbers.get(number) or books[str(asked)]


def _free(path: Path) -> Path:
    """A name beside ``path`` that no file has yet, for the learner's copy."""
    day, number = datetime.date.today().isoformat(), 1
    while (saved := path.with_stem(f"{path.stem} (my copy {day}{f', {number}' * (number > 1)})")).exists():
        number += 1
    return saved


def _usable(folder: Path) -> Path:
    """The folder, made if it is not there; an error if it holds anything but a copy."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: give a new folder, such as `lft-edu lab {FOLDER}`.")
    if folder.resolve().is_relative_to(NOTEBOOKS.resolve()):
        raise ValueError(
            f"{folder} is where the course keeps its own notebooks: give another folder for your copy, or write "
            "`lft-edu lab --in-place` to edit the course itself."
        )
    if folder.exists() and not is_copy(folder) and not (folder / START).exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds other files: give a new or empty folder, `lft-edu lab FOLDER`.")
    return folder


def _read_manifest(folder: Path) -> dict[str, str]:
    """SHA-256 of each file as it was given; empty where nothing was given yet."""
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {str(name): str(checksum) for name, checksum in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}). Delete it and run `lft-edu lab {folder}` again: files that "
            "differ from the course's are then kept as yours."
        ) from None


def _write_manifest(folder: Path, files: dict[str, str]) -> None:
    _write(folder / MANIFEST, json.dumps({"version": __version__, "files": files}, indent=1).encode())


def _write(path: Path, data: bytes) -> None:
    """Write a file whole, or say that this folder will not do."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror}). Give a folder that is yours: `lft-edu lab FOLDER`."
        ) from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
