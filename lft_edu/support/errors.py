"""What went wrong, in words: mistyped names, and errors of somebody else's."""

import difflib
from collections.abc import Iterable


def unknown_name_error(what: str, name, known: Iterable[str], advice: str = "") -> ValueError:
    """A ValueError for a name that is not known: the nearest one, all of them, and what else could be given."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"Unknown {what} {str(name)!r}.{hint} Choose one of {', '.join(known)}{advice}.")


def reason(error: Exception, most: int = 160) -> str:
    """An error of somebody else's in one line: its class, and the beginning of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:most]}"
