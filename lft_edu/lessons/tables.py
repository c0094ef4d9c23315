"""Tables of a lesson: rows of Python values in, a Markdown table out."""

import html
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

_SPECIAL = re.compile(r"([\\`*_\[\]|~$#])")


def escape_markdown(text: str) -> str:
    """Escape a text for a cell of a Markdown table: what it shows is what it says, whatever it says."""
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


class Table:
    """A table that a notebook shows as Markdown, and everything else as aligned text. Made by :func:`table`."""

    def __init__(self, header: list[str], rows: list[list[str]], numeric: list[bool], best: set[tuple[int, int]]):
        self.header, self.rows, self.numeric, self.best = header, rows, numeric, best

    def _repr_markdown_(self) -> str:
        rule = ["---:" if numeric else "---" for numeric in self.numeric]
        body = [
            [
                f"**{escape_markdown(cell)}**" if (i, j) in self.best else escape_markdown(cell)
                for j, cell in enumerate(row)
            ]
            for i, row in enumerate(self.rows)
        ]
        lines = [[escape_markdown(name) for name in self.header], rule, *body]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def __repr__(self) -> str:
        marked = [
            [f"{cell} *" if (i, j) in self.best else cell for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        lines = [self.header, *marked]
        widths = [max(_width(line[j]) for line in lines) for j in range(len(self.header))]
        padded = [
            [" " * (w - _width(cell)) + cell if right else cell + " " * (w - _width(cell))
             for cell, w, right in zip(line, widths, self.numeric, strict=True)]
            for line in lines
        ]  # fmt: skip
        return "\n".join("  ".join(line).rstrip() for line in padded)


def _width(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def table(
    rows: Sequence[Mapping] | Mapping[str, Mapping | object],
    formats: Mapping[str, str] | None = None,
    best: Mapping[str, Callable] | None = None,
) -> Table:
    """Lay out rows as a table.

    Args:
        rows: dictionaries from column to value, one per row; a row may lack a column. Or a dictionary from the row's
            name to its dictionary (or to a single value): the names make the first column, without a heading.
        formats: column → format specification, such as ``".3f"`` or ``".0%"``. Otherwise: ``,`` for whole numbers,
            three significant digits for others, "yes" and "no" for truth values, "–" for what is missing.
        best: column → ``min`` or ``max``: that row's value is set in bold.

    Returns:
        A :class:`Table`; make it the last line of a cell, or ``display`` it.

    Raises:
        ValueError: no rows, rows that are not dictionaries, or a column in ``formats`` or ``best`` that is not there.
    """
    if isinstance(rows, Mapping):
        rows = [{"": name} | (dict(row) if isinstance(row, Mapping) else {"value": row}) for name, row in rows.items()]
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError("A table needs at least one row, each a dictionary from column to value.")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    formats, best = formats or {}, best or {}
    if unknown := sorted({*formats, *best} - set(columns)):
        raise ValueError(f"No column {', '.join(map(repr, unknown))}. The columns: {', '.join(map(repr, columns))}.")
    values = {name: [_plain(row.get(name)) for row in rows] for name in columns}
    cells = [[_cell(values[name][i], formats.get(name)) for name in columns] for i in range(len(rows))]
    numeric = [all(v is None or isinstance(v, (int, float)) for v in values[name]) for name in columns]
    marked = {
        (values[name].index(which(v for v in values[name] if v is not None)), columns.index(name))
        for name, which in best.items()
    }
    return Table([str(name) for name in columns], cells, numeric, marked)


def _plain(value):
    """A number instead of a tensor or an array of one."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _cell(value, form: str | None) -> str:
    if value is None:
        return "–"
    if form is not None and not isinstance(value, str):
        return format(value, form)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
