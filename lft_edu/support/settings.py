"""Settings that are written once: each field of a dataclass carries its help, its limits and its former names. ::

    @dataclass(frozen=True)
    class Training(Settings):
        batch_size: int = setting(16, "sequences a process takes at once", at_least=1, formerly="batch")

Checks, error messages, command-line options and what may change when a run is resumed all come from there.
"""

import argparse
import dataclasses
import difflib
import typing
import warnings
from collections.abc import Callable

from .errors import unknown_name_error


def setting(
    default,
    help: str,
    *,
    choices=(),
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    formerly: str | None = None,
    incidental: bool = False,
    parse: Callable[[str], object] | None = None,
):
    """A field of a :class:`Settings` class.

    Args:
        default: its value if nothing is said; a default of None is not checked.
        help: what it is, in a line; it becomes the help of the command-line option.
        choices, at_least, at_most, above: what is allowed.
        formerly: a former name, still understood, with a warning.
        incidental: it does not change what is trained, so it may differ when a run is resumed.
        parse: reads it from the command line; the field's type, if None.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "choices": tuple(choices),
            "at_least": at_least,
            "at_most": at_most,
            "above": above,
            "formerly": formerly,
            "incidental": incidental,
            "parse": parse,
        },
    )


class _UnderstandsFormerNames(type):
    def __call__(cls, *args, **options):
        return super().__call__(*args, **cls.renamed(options))


class Settings(metaclass=_UnderstandsFormerNames):
    """Base of dataclasses whose fields are made by :func:`setting`.

    Raises:
        ValueError: a value out of its limits, by name; TypeError, a name that is unknown, with the nearest one.
    """

    __dataclass_fields__: typing.ClassVar[dict[str, dataclasses.Field]]  # of the subclasses, which are dataclasses

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            check(f, getattr(self, f.name))

    @classmethod
    def former_names(cls) -> dict[str, str]:
        """Former name → name."""
        return {f.metadata["formerly"]: f.name for f in dataclasses.fields(cls) if f.metadata.get("formerly")}

    @classmethod
    def renamed(cls, options: dict, warn: bool = True) -> dict:
        """Options under today's names.

        Raises:
            TypeError: names that are unknown.
        """
        names, former = [f.name for f in dataclasses.fields(cls)], cls.former_names()
        found = {}
        for name, value in options.items():
            if name in former and warn:
                warnings.warn(f"{name} is called {former[name]} now.", FutureWarning, stacklevel=3)
            name = former.get(name, name)
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"Unknown setting {name!r}.{hint} Choose among {', '.join(sorted(names))}.")
            if name in found:
                raise TypeError(f"{name} is given twice, once under its former name.")
            found[name] = value
        return found

    def changed(self) -> list[str]:
        """Names of the settings that are not at their defaults."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]

    def deciding(self) -> dict:
        """The settings that decide what is trained; the others may change when a run is resumed."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.metadata.get("incidental")}

    def __getattr__(self, name: str):
        if name in (former := type(self).former_names()):
            return getattr(self, former[name])
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def check(f: dataclasses.Field, value) -> None:
    """ValueError unless ``value`` is within the limits of its field."""
    limits = f.metadata
    if value is None and f.default is None:
        return
    if limits.get("choices") and value not in limits["choices"]:
        raise unknown_name_error(f.name, value, limits["choices"])
    for name, words, holds in (
        ("at_least", "give at least", lambda limit: value >= limit),
        ("above", "give a number above", lambda limit: value > limit),
        ("at_most", "give at most", lambda limit: value <= limit),
    ):
        limit = limits.get(name)
        if limit is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not holds(limit)):
            raise ValueError(f"{f.name}={value!r}: {words} {limit:g}.")
    if f.type is int and not isinstance(value, int):
        raise ValueError(f"{f.name}={value!r}: give a whole number.")


def _reader(f: dataclasses.Field, kind: type) -> Callable[[str], object]:
    """Reads a value of this field from the command line, and checks it there."""

    def read(text: str):
        try:
            value = (f.metadata["parse"] or kind)(text)
            check(f, value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return read


def add_arguments(parser: argparse.ArgumentParser, cls: type[Settings], skip=()) -> None:
    """One option per field, ``--gradient-accumulation-steps`` and so on; former names are understood, but not shown.

    Nothing has a default here: what is not given is left to the dataclass.
    """
    types = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if f.name in skip:
            continue
        kind = next((t for t in typing.get_args(types[f.name]) if t is not type(None)), types[f.name])
        shown = "" if f.default in (None, False) else f" (default: {f.default})"
        options: dict = {"dest": f.name, "default": argparse.SUPPRESS}
        if kind is bool:
            options["action"] = "store_true"
        else:
            options |= {"type": _reader(f, kind), "metavar": "|".join(f.metadata["choices"]) or None}
        flag = lambda name: "--" + name.replace("_", "-")  # noqa: E731
        parser.add_argument(flag(f.name), help=f.metadata["help"] + shown, **options)
        if former := f.metadata["formerly"]:
            parser.add_argument(flag(former), help=argparse.SUPPRESS, **options)
