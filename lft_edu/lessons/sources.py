"""Library code in a lesson, as it is, in color and without its docstring."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.display import Code


def show_source(function: Callable | type) -> "Code":
    """Return the source of a function or class without its docstring, for a notebook to show.

    ``lft.show_source(lft.flow.midpoint_step)``

    Args:
        function: a function, method or class that is written in Python.

    Returns:
        The code, which a notebook shows in color; ``str(code.data)`` is its text.

    Raises:
        ValueError: no source can be found, as for a function that is written in C.
    """
    from IPython.display import Code

    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (TypeError, OSError):
        raise ValueError(
            f"{function!r} has no Python source that can be shown: give a function or a class, "
            "such as lft.flow.midpoint_step."
        ) from None
    return Code(_without_docstring(source), language="python")


def _without_docstring(source: str) -> str:
    """Leave out the lines of a definition's docstring, and the blank lines that follow it."""
    body = ast.parse(source).body[0].body  # type: ignore[attr-defined]  # a definition has a body
    first, *rest = body
    if not rest or not isinstance(first, ast.Expr) or not isinstance(getattr(first.value, "value", None), str):
        return source.rstrip()  # no docstring, or nothing but one
    lines = source.splitlines()
    start, end = first.lineno - 1, first.end_lineno or first.lineno
    while not lines[end].strip():
        end += 1
    return "\n".join([*lines[:start], *lines[end:]]).rstrip()
