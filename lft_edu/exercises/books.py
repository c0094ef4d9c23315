"""Build the exercise notebooks from their sources, percent scripts with nbgrader's solution markers.

    make exercises                              # rebuild all
    python -m lft_edu.exercises.books --check   # exit status 1 if one differs from its source

From ``notebooks/exercises/sources/01_couplings.py`` it builds ``notebooks/exercises/01_couplings.ipynb``, with stubs
and solutions folded below each check, and ``notebooks/exercises/solutions/01_couplings.ipynb``, in which every check
must pass. :func:`course` builds the same for nbgrader.
"""

import argparse
import contextlib
import copy
import re
import sys
import textwrap
from pathlib import Path

from ..loading.assets import NOTEBOOKS, RESTORE
from .checking import EXERCISES

SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n(.*?)^ *### END SOLUTION\n?", re.S | re.M)
ANSWER = "**And the prediction?** "
PREDICTION = re.compile(r"\s*\*My\s+prediction: …\*")
HINT = re.compile(r"<details><summary>Hint.*?</details>", re.S)
CHECK = re.compile(r'^check\("(\d+\.\d+)", (\w+)\)$', re.M)
# A cell that does not raise is given its points: so it raises by itself, whatever a submission did to what check asks.
GRADED = r'report = check("\1", \2)\ndisplay(report)\nassert report, "not yet: see above"'
LESSON = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")
ROOT = NOTEBOOKS / "exercises"
LINKS = {"student": ("](../../", "](../"), "solution": ("](../../", "](../../")}


def sources() -> list[Path]:
    """List the sources; raise FileNotFoundError where they are missing."""
    found = sorted((ROOT / "sources").glob("*.py"))
    if not found:
        raise FileNotFoundError(f"No exercise sources in {ROOT / 'sources'}. {RESTORE}")
    return found


def read(source: Path):
    """Read a source as a notebook, with its solution markers and nbgrader's cell metadata."""
    try:
        import jupytext
    except ImportError:
        raise ValueError("Building exercise notebooks needs jupytext: pip install 'lft_edu[classroom]'.") from None

    book = jupytext.read(source, fmt="py:percent")
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    book.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    for cell, following in zip(code, [*code[1:], None], strict=True):
        if SOLUTION.search(cell.source + "\n"):
            asked = following and CHECK.search(following.source)
            if not asked:
                raise ValueError(f"{source.name}: no check() follows this solution: {cell.source[:60]!r}")
            number, points = asked[1], EXERCISES[asked[1]].difficulty
            cell.metadata["nbgrader"] = _grading(f"answer-{number}", solution=True)
            following.metadata["nbgrader"] = _grading(f"check-{number}", grade=True, locked=True, points=points)
    for i, cell in enumerate(book.cells):
        cell.id = f"cell-{i:02d}"
    return book


def _grading(grade_id: str, **given) -> dict:
    flags = {"grade": False, "locked": False, "schema_version": 3, "solution": False, "task": False}
    return {**flags, "grade_id": grade_id.replace(".", "-"), **given}


def asked(cell, number: str):
    """Split an exercise's text: the question, a line to write the prediction in, and each hint in a cell of its own, so
    that opening one cell does not show what stands in another."""
    import nbformat

    hints = HINT.findall(cell.source)
    text, found = PREDICTION.subn("", HINT.sub("", cell.source).rstrip())
    cell.source = text
    yield cell
    if found:
        source = f'guess = lft.predict("Your prediction for {number}")'
        yield nbformat.v4.new_code_cell(source, id=f"{cell.id}-prediction")
    for i, hint in enumerate(hints):
        yield nbformat.v4.new_markdown_cell(hint, id=f"{cell.id}-hint-{i}")


def for_learners(book):
    """Return a copy with a line to write each prediction in, hints in cells of their own, and at the end what has been
    passed."""
    import nbformat

    book, cells, number = copy.deepcopy(book), [], ""
    for cell in book.cells:
        number = found[1] if (found := re.search(r"^## (\d+\.\d+)", cell.source, re.M)) else number
        cells += asked(cell, number) if cell.cell_type == "markdown" else [cell]
    first = next(cell for cell in cells if cell.cell_type == "code")
    if "import lft_edu as lft" not in first.source:  # for the predictions
        first.source = first.source.replace("from lft_edu", "import lft_edu as lft\nfrom lft_edu", 1)
    lesson = int(number.split(".")[0])
    done = nbformat.v4.new_code_cell(f"lft.my_progress({lesson})", id="cell-progress")
    book.cells = [*cells[:-1], done, cells[-1]]
    return book


def student(book):
    """Return the student's version: stubs, with solutions and answers to the predictions folded below each check."""
    import nbformat

    book, cells, answer = for_learners(book), [], ""
    for cell in book.cells:
        if cell.cell_type == "code" and (found := SOLUTION.search(cell.source + "\n")):
            answer = textwrap.dedent(found[2]).rstrip()
            cell.source = SOLUTION.sub(r"\1raise NotImplementedError\n", cell.source + "\n").rstrip()
        if cell.cell_type == "markdown" and cell.source.startswith(ANSWER):
            text = cell.source.removeprefix(ANSWER)
            cell.source = f"<details><summary>And the prediction?</summary>\n\n{text}\n\n</details>"
        cells.append(cell)
        if cell.cell_type == "code" and CHECK.search(cell.source):
            fold = f"<details><summary>Solution</summary>\n\n```python\n{answer}\n```\n\n</details>"
            cells.append(nbformat.v4.new_markdown_cell(fold, id=f"{cell.id}-solution"))
    book.cells = cells
    return book


def solution(book):
    """Return the version with solutions, in which a failing check raises."""
    book = copy.deepcopy(book)
    for cell in book.cells:
        cell.source = PREDICTION.sub("", cell.source)
        if cell.cell_type == "code":
            cell.source = re.sub(r"^ *### (BEGIN|END) SOLUTION\n?", "", cell.source + "\n", flags=re.M).rstrip()
            cell.source = CHECK.sub(r'report = check("\1", \2)\nassert report, report\nreport', cell.source)
    return book


def write(check: bool = False) -> list[Path]:
    """Write all exercise notebooks, or with ``check`` none; return the paths that differ from their source."""
    import nbformat

    changed = []
    for source in sources():
        book = read(source)
        folders = {"student": ROOT, "solution": ROOT / "solutions"}
        for kind, made in (("student", student(book)), ("solution", solution(book))):
            path = folders[kind] / f"{source.stem}.ipynb"
            for cell in made.cells:  # links in the sources are relative to their folder
                cell.source = cell.source.replace(*LINKS[kind])
            text = nbformat.writes(made) + "\n"
            if path.exists() and path.read_text(encoding="utf-8") == text:
                continue
            changed.append(path)
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    return changed


def course(folder: Path, name: str = "latent-flow-transformers") -> list[Path]:
    """Create an nbgrader course in ``folder``: its configuration and one assignment per lesson, with solutions.

    There, ``nbgrader generate_assignment 01_couplings`` builds the students' version, and ``nbgrader autograde`` grades
    submissions (points = difficulty). It runs students' code: use a container or a separate account.

    Raises:
        FileExistsError: the folder already contains a course; nothing is overwritten.
        OSError: it cannot be written, such as for a full disk; what was written of it is removed.
    """
    import nbformat

    if (folder / "nbgrader_config.py").exists():
        raise FileExistsError(f"{folder} already contains a course: give another folder, or delete it first.")
    books = {}
    for source in sources():
        book = for_learners(read(source))
        book.cells = [cell for cell in book.cells if not cell.source.startswith(ANSWER)]  # students must not see it yet
        for cell in book.cells:  # a student is given this one file: a link to another would lead nowhere
            code = cell.cell_type == "code"
            cell.source = CHECK.sub(GRADED, cell.source) if code else LESSON.sub(r"*\1*", cell.source)
        books[folder / "source" / source.stem / f"{source.stem}.ipynb"] = nbformat.writes(book) + "\n"
    settings = (
        f"c = get_config()\nc.CourseDirectory.course_id = {name!r}\n"
        "c.ClearSolutions.code_stub = {'python': 'raise NotImplementedError'}\n"
        "c.ExecutePreprocessor.timeout = 300\n"
    )
    files = books | {folder / "nbgrader_config.py": settings}
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        for path in files:
            path.unlink(missing_ok=True)
        for place in (*(path.parent for path in books), folder / "source"):
            with contextlib.suppress(OSError):  # it holds something else, or was never made
                place.rmdir()
        raise OSError(f"The course cannot be written to {folder} ({error.strerror}). Choose another folder.") from error
    return [*books]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if something would change")
    options = parser.parse_args(arguments)
    changed = write(options.check)
    for path in changed:
        print(f"{'differs from its source' if options.check else 'written'}: {path.relative_to(ROOT)}")
    if options.check and changed:
        print("Run `make exercises`.")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
