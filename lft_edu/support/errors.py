"""Error messages for mistyped names, and for errors raised by other libraries."""

import difflib
import importlib.metadata
from collections.abc import Iterable


def unknown_name_error(what: str, name: object, known: Iterable[str], advice: str = "") -> ValueError:
    """Return a ValueError for an unknown name, with the most similar known name and all known names.

    Args:
        what: the kind of thing, such as ``"objective"``.
        name: what was given.
        known: the allowed names.
        advice: what else is allowed, appended to the list, such as ``", or a folder"``.
    """
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"Unknown {what} {str(name)!r}.{hint} Choose one of {', '.join(known)}{advice}.")


def reload_hint(value: object, *classes: type) -> str:
    """Return what to do about a value of a class that was one of these until its module was reloaded; else nothing."""
    names = {(cls.__module__, cls.__qualname__) for cls in classes}
    same = (type(value).__module__, type(value).__qualname__) in names and type(value) not in classes
    return " It comes from a module that was reloaded: restart the kernel." if same else ""


def import_advice(error: ImportError) -> str:
    """Return what to do where transformers cannot import a model: most often torchvision belongs to another torch."""
    versions = {}
    for name in ("torch", "torchvision", "torchaudio"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    installed = ", ".join(f"{name} {version}" for name, version in versions.items())
    others = " ".join(name for name in versions if name != "torch")
    remedy = f"pip uninstall -y {others} (the course does without)" if others else "pip install -e . again"
    return f"transformers cannot import its models here ({reason(error, 300)}; {installed}). Try: {remedy}."


def reason(error: Exception, max_length: int = 160) -> str:
    """Return another library's error on one line: its class and the first ``max_length`` characters of its message."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:max_length]}"
