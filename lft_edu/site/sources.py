"""Stage the sources of the website: the tree of a clone, with what Sphinx needs beside it.

Paths stay as they are in a clone (``notebooks/``, ``docs/``), so that links between pages need no change.
"""

import argparse
import functools
import importlib
import json
import pkgutil
import re
import shutil
from importlib import resources
from pathlib import Path

import nbformat
from plotly.offline import get_plotlyjs

import lft_edu

from .. import course
from ..export import FIGURE, figure_html, read
from ..loading.assets import ASSETS, INSTALLED, NOTEBOOKS
from ..support.stored import KEYS_JS

DOCS = NOTEBOOKS.parent / "docs"
INTRODUCTION = """# Latent Flow Transformers

A course in notebooks, and the library under it: from two crossing points to a compressed language model.
Start with [lesson 00](../notebooks/00_start_here.ipynb).
"""
# Modules without a page: what they hold is in other pages, or not for callers.
WITHOUT_PAGE = re.compile(r"exercises\.(lesson\w+|renumbered|books)|plots\..*")


def stage(folder: Path) -> None:
    """Write everything that Sphinx reads into a new folder."""
    lessons = _notebooks(folder, "*.ipynb")
    exercises = _notebooks(folder, "exercises/*.ipynb")
    _write(folder / "notebooks/exercises/index.md", "# Exercises\n\nThey check your answers and say what is wrong.\n\n"
           + _toctree(None, exercises))  # fmt: skip
    if not INSTALLED and DOCS.is_dir():
        shutil.copytree(DOCS, folder / "docs")
    if not INSTALLED and (contributing := DOCS.parent / "CONTRIBUTING.md").is_file():
        shutil.copy(contributing, folder)
    if (figures := ASSETS / "figures").is_dir():
        shutil.copytree(figures, folder / "assets" / "figures")
    for name, data in course.contents().items():  # what "copy this lesson" gives, and the same as a script: see site.js
        if (folder / "notebooks" / name).exists():
            _write(folder / "extra" / "downloads" / name, data)
            _write(folder / "extra" / "downloads" / f"{name}.js", f"lessonFile({json.dumps(data.decode())})")
    _write(folder / "extra" / "index.html", _redirect("docs/index.html"))
    _write(folder / "static" / "plotly.min.js", get_plotlyjs())
    _write(folder / "static" / "keys.js", KEYS_JS.read_text("utf-8"))
    _math_font(folder / "static")
    _index(folder, lessons, _reference(folder))


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _notebooks(folder: Path, pattern: str) -> list[str]:
    """Stage notebooks with figures as HTML; their names for a table of contents."""
    names = []
    for path in sorted(NOTEBOOKS.glob(pattern)):
        book = read(path)
        for cell in book.cells:
            if cell.metadata.get("jupyter", {}).get("outputs_hidden"):  # the answer to a prediction
                cell.metadata.tags = [*cell.metadata.get("tags", ()), "hide-output"]
        for output in (output for cell in book.cells for output in cell.get("outputs", ())):
            if figure := output.get("data", {}).get(FIGURE):
                alt = output.metadata.get("image/jpeg", {}).get("alt")
                output.data = nbformat.from_dict({"text/html": figure_html(figure, alt)})
        name = f"notebooks/{path.relative_to(NOTEBOOKS).as_posix()}"
        _write(folder / name, nbformat.writes(book))
        names.append(f"/{name.removesuffix('.ipynb')}")
    return names


def _toctree(caption: str | None, pages: list[str]) -> str:
    options = f":hidden:\n:caption: {caption}" if caption else ":maxdepth: 1"
    return "\n".join(["```{toctree}", options, "", *pages, "```", ""])


def _index(folder: Path, lessons: list[str], reference: list[str]) -> None:
    """Give the first page its tables of contents: pages of ``docs/`` in the order in which it links to them."""
    index, docs = folder / "docs" / "index.md", folder / "docs"
    text = index.read_text(encoding="utf-8") if index.exists() else INTRODUCTION
    pages = {path.relative_to(docs).as_posix().removesuffix(".md") for path in docs.rglob("*.md")} - {"index"}
    linked = [name for name in re.findall(r"\]\(([\w/-]+)\.md[)#]", text) if name in pages]
    ordered = list(dict.fromkeys([*linked, *sorted(pages)]))
    trees = {
        "Lessons": lessons,
        "Practice": ["/notebooks/exercises/index"],
        "Guide": [f"/docs/{name}" for name in ordered if "/" not in name],
        "Teach": [f"/docs/{name}" for name in ordered if "/" in name],
        "Reference": ["/CONTRIBUTING"] * (folder / "CONTRIBUTING.md").exists() + reference,
    }
    _write(index, text + "\n" + "\n".join(_toctree(caption, pages) for caption, pages in trees.items() if pages))


def _reference(folder: Path) -> list[str]:
    """Stage the command line and a page per module of the core and per folder beside it, in the order of ``_HOMES``."""
    pages = ["/reference/cli"]
    _write(folder / "reference" / "cli.md", _command_line())
    for name in lft_edu._HOMES:
        if "." in name or name == "cli":
            continue
        module = importlib.import_module(f"lft_edu.{name}")
        inside = [found.name for found in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}.")]
        parts = [name, *(part for part in inside if not WITHOUT_PAGE.fullmatch(part))]
        _write(folder / "reference" / f"{name}.rst", "\n".join(map(_module, parts)))
        pages.append(f"/reference/{name}")
    return pages


def _module(name: str) -> str:
    title, line = f"lft_edu.{name}", "-" if "." in name else "="
    members = "" if name.endswith(".conf") else "   :members:\n"
    if name == "plots":
        members += "   :imported-members:\n"
    return f"``{title}``\n{line * (len(title) + 4)}\n\n.. automodule:: {title}\n{members}"


def _command_line() -> str:
    """A page with the help of every command."""
    top = importlib.import_module("lft_edu.cli").parser(["train"])  # by name, as every module that is described
    commands = next(action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    page = [f"# Command line\n\n{top.description}\n"]
    for name, command in commands.choices.items():
        command.formatter_class = functools.partial(argparse.HelpFormatter, width=88)  # not this terminal's
        page.append(f"## lft-edu {name}\n\n```text\n{command.format_help()}```\n")
    return "\n".join(page)


def _math_font(folder: Path) -> None:
    """Stage a font for equations: browsers have none of their own, and not every system brings one."""
    _write(folder / "math.ttf", (resources.files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf").read_bytes())


def _redirect(target: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url={target}">
<title>Latent Flow Transformers</title>
<a href="{target}">Latent Flow Transformers</a>
</html>
"""
