"""Types of command-line arguments, and flags for the servers that the command line starts."""

import argparse
import os
import sys

MULTIPLES = {"k": 10**3, "m": 10**6, "b": 10**9}


def count(text: str) -> int:
    """``"200k"``, ``"2.6B"`` or ``"4096"`` as a whole number."""
    unit = MULTIPLES.get(text[-1:].lower(), 1)
    try:
        value = int(float(text[:-1] if unit > 1 else text) * unit)
    except (ValueError, OverflowError):  # no number; infinity
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens: write 4096, 200k, 5M or 2.6B")
    return value


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    """A whole number of at least 0."""
    return 0 if text == "0" else positive(text)


def span(text: str) -> tuple[int, int]:
    """``"6:18"`` as (6, 18)."""
    try:
        m, n = text.replace("-", ":").split(":")
        return int(m), int(n)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid span: write m:n, such as 6:18") from None


def server_flags(flags: list[str]) -> list[str]:
    """Return the flags for a server: the user's own, and no browser where there is no display."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        flags.append("--no-browser")
        print("No display: open the URL below in a browser.", file=sys.stderr)
    sys.stderr.flush()
    return flags
