"""Claims: sentences of a lesson that are checked each time it runs."""

import ast
import reprlib
import sys
import types

from executing import Source

SHOWN = reprlib.Repr()
SHOWN.maxother, SHOWN.maxlist, SHOWN.maxdict = 60, 8, 8


def claim(sentence: str, *conditions) -> None:
    """Print a sentence with a check mark, if everything it says holds.

    ``lft.claim("Flow matching takes most points to the wrong group", share < 0.1)``

    Args:
        sentence: what is claimed, as a reader should read it.
        conditions: truth values (or tensors and arrays of one), all of which must be true.

    Raises:
        AssertionError: a condition is false; the message has the sentence, the condition as it stands in the cell, and
            the values of the names in it.
        ValueError: no condition is given.
    """
    if not conditions:
        raise ValueError(f"Nothing to check: claim({sentence!r}, ...) needs the condition that makes it true.")
    failed = [i for i, condition in enumerate(conditions) if not bool(condition)]
    if failed:
        lines = [f"✗ {sentence}", *_evidence(sys._getframe(1), failed)]
        raise AssertionError("\n".join(lines))
    print(f"✓ {sentence}")


def _evidence(frame: types.FrameType, failed: list[int]) -> list[str]:
    """The conditions that failed, as they stand in the source, each with the values of its names."""
    call = Source.executing(frame).node
    if not isinstance(call, ast.Call) or any(isinstance(argument, ast.Starred) for argument in call.args):
        return []  # no source to read: run from a string, or conditions unpacked from a list
    lines = []
    for condition in (call.args[1 + i] for i in failed):
        lines.append(f"    {ast.unparse(condition)}")
        for part in dict.fromkeys(_readable(condition)):
            try:
                value = eval(part, frame.f_globals, frame.f_locals)
            except Exception:  # the name of a comprehension's own variable
                continue
            if not callable(value) and not isinstance(value, types.ModuleType):
                lines.append(f"    {part} = {SHOWN.repr(value)}")
    return lines


def _readable(node: ast.AST):
    """The names, attributes and items in an expression, the longest that can be looked up without calling anything."""
    if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)) and not any(
        isinstance(part, (ast.Call, ast.Await, ast.NamedExpr)) for part in ast.walk(node)
    ):
        yield ast.unparse(node)
        return
    for child in ast.iter_child_nodes(node):
        yield from _readable(child)
