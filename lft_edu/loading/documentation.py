"""English that is on every machine with Python packages: their descriptions, documentation files and docstrings.

Documents are split by a hash of their path, like source files (:func:`split_of`). Packages copy
text from each other, so a paragraph is kept only where it is met first, in the order test, validation, train: no
paragraph is in two splits, and none is in one split twice.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

SPLITS = ("train", "validation", "test")
SUFFIXES = {".md", ".rst", ".txt", ".py"}
# Not documentation: data of tests, licenses (the same ones everywhere), other languages' packages, vendored copies.
SKIPPED_FOLDERS = {
    "site-packages", "dist-packages", "test", "tests", "testing", "data", "licenses", "node_modules", "_vendor",
    "vendored", "lft_edu",
}  # fmt: skip
SKIPPED_FILES = re.compile(r"licen[sc]e|copying|authors|contributors|notice|top_level|entry_points|requirements", re.I)
DOCSTRING = re.compile(r'^[ \t]*[rRuU]?"""(.*?)"""', re.S | re.M)
PARAGRAPH = re.compile(r"\n[ \t]*\n")
SHORT = 60  # characters; shorter paragraphs, such as headings, may be repeated
LEAST = 200  # characters in a docstring, and in a document, that count
LONGEST = 20_000  # characters of one document, so that none outweighs the others


def split_of(path: str) -> str:
    """Return the split of a file, from the SHA-256 of its path relative to its library's root."""
    bucket = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") % 20
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def documents(split: str, characters: int | None = None) -> Iterator[str]:
    """Yield the documents of one split, ordered by the hash of their path: any prefix is a random sample.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        characters: stop after about this many; None: never.
    """
    files = _files()
    order = sorted(files, key=lambda key: hashlib.sha256(key.encode()).digest())
    seen: set[bytes] = set()
    for part in ("test", "validation", "train"):
        for key in order:
            if split_of(key) != part:
                continue
            text = _new_paragraphs(_read(files[key]), seen)
            if part == split and len(text) >= LEAST and _is_prose(text):
                yield text[:LONGEST]
                if characters is not None and (characters := characters - len(text[:LONGEST])) <= 0:
                    return
        if part == split:
            return


def _files() -> dict[str, Path]:
    """Name → path. The name has no version in it, so that a new version of a package is in the split of the old one."""
    paths = sysconfig.get_paths()
    found = {}
    for root in dict.fromkeys(Path(paths[name]) for name in ("purelib", "platlib", "stdlib")):
        for path in root.rglob("*"):
            inside = path.relative_to(root)
            if path.name == "METADATA" and path.parent.suffix == ".dist-info":
                found[path.parent.name.partition("-")[0] + "/METADATA"] = path
            elif path.suffix in SUFFIXES and not _is_skipped(inside):
                found[inside.as_posix()] = path
    return found


def _is_skipped(inside: Path) -> bool:
    own = inside.parent.suffix == ".dist-info" or SKIPPED_FILES.search(inside.name)
    return bool(own) or not SKIPPED_FOLDERS.isdisjoint(inside.parts)


def _read(path: Path) -> str:
    """Return the documentation in a file: of a Python file its docstrings, of METADATA what follows the header."""
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return ""
    if path.suffix == ".py":
        return "\n\n".join(cleandoc(d) for d in DOCSTRING.findall(text) if len(d) >= LEAST)
    return text.partition("\n\n")[2] if path.name == "METADATA" else text


def _new_paragraphs(text: str, seen: set[bytes]) -> str:
    """Return the text without paragraphs that are in ``seen``, but for spaces and numbers; add the others to it."""
    kept = []
    for paragraph in PARAGRAPH.split(text):
        if len(paragraph) >= SHORT:
            words = re.sub(r"\d+", "0", " ".join(paragraph.split()).lower())
            key = hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=8).digest()
            if key in seen:
                continue
            seen.add(key)
        kept.append(paragraph.rstrip())
    return "\n\n".join(kept).strip()


def _is_prose(text: str) -> bool:
    """Return whether at least 62 % of the characters are ASCII letters, and one in twelve separates words."""
    sample = text[:LONGEST]
    letters = sum(c.isascii() and c.isalpha() for c in sample)
    return letters >= 0.62 * len(sample) and sample.count(" ") >= len(sample) / 12
