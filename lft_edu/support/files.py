"""Places to write to, looked at before the work; atomic writes: a file is complete or unchanged."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def make_folder(place: str | Path) -> Path:
    """Make a folder, and those above it; return it.

    Raises:
        ValueError: an empty name.
        FileExistsError: a file has the folder's name, or that of one above it.
        OSError: it cannot be made, or nothing can be written to it.
    """
    if not str(place):
        raise ValueError("The folder's name is empty: give one, or '.' for the current folder.")
    folder = Path(place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(p for p in (folder, *folder.parents) if p.exists() and not p.is_dir())
        raise FileExistsError(f"{file} is a file, not a folder. Move it away, or choose another folder.") from error
    except OSError as error:
        raise OSError(f"The folder {folder} can't be made ({error.strerror}). Choose another one.") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"Nothing may be written to {folder}. Choose another folder.")
    return folder


def file_to_write(place: str | Path) -> Path:
    """Return the path of a file that is to be written, after making its folder.

    Raises:
        ValueError: an empty name.
        IsADirectoryError: it is a folder.
        OSError: see :func:`make_folder`.
    """
    if not str(place):
        raise ValueError("The file's name is empty: give one.")
    path = Path(place)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Give the name of a file, such as {path / 'file.json'}.")
    make_folder(path.parent)
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder; the system ends the lock with the process, however that ends.

    Raises:
        FileExistsError: another process is in there.
        OSError: see :func:`make_folder`.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(make_folder(folder) / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise FileExistsError(
            f"Another process is at work in {folder}. Wait until it has ended, or choose another folder."
        ) from None
    except NotImplementedError:  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` if the block succeeds.

    A reader never sees an incomplete file. After an error or an interruption the old file is unchanged. ::

        with atomic_write(path) as partial:
            partial.write_text(text, encoding="utf-8")

    Raises:
        OSError: of writing, with the name of the file.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        full = error.filename is None and error.errno in FULL  # writing, unlike opening, does not say which file
        if full or error.filename == str(partial):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as indented JSON, atomically; create the folder if needed."""
    with atomic_write(file_to_write(path)) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
