"""Numbers on pages and in lessons are those that were measured.

A comment behind a number says where it was measured. It is invisible on the page. This test compares the two, to the
precision that is printed:

    Skipping two layers costs 0.27<!-- real.json: scan.best.2.kl --> nats.
    … 0.435 (0.393–0.482)<!-- real.json: rows[headline/flow-walking/8-20].docs.kl; rows[...].docs.kl_interval -->
    … on 6–18: 0.302<!-- ladder.json: rows[name=flow-walking-euler, span=6-18, shipped=True].kl -->

* ``NAME.json`` is in ``assets/results/``, ``benchmarks/NAME.json`` in ``benchmarks/results/``. In a path, ``[…]`` holds
  a key with dots in it, or picks the one row of a list by its name or by ``field=value``; ``A / B`` is a ratio.
* Several paths, separated by ``;``, and lists stand for as many numbers, in the order in which they are printed.
* ``lesson 07`` says that the number stands in the stored outputs of lesson 07.
* ``%``, ``k``, ``M`` and ``GB`` behind a number are understood: 68 % is 0.68.
* A comment must not begin a line: Markdown would end the paragraph there. A space before it stays on the page.
"""

import functools
import json
import re
import runpy
from pathlib import Path

import pytest

from lft_edu.recipes import real_report

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
LESSONS = [*sorted(ROOT.glob("notebooks/*.ipynb")), *sorted(ROOT.glob("notebooks/exercises/*.ipynb"))]
SOURCE = re.compile(r"<!--\s*(?:((?:benchmarks/)?\w+\.json)\s*:\s*(.+?)|lesson (\d\d))\s*-->", re.S)
NUMBER = re.compile(r"(?<![\w.])[−-]?\d+(?:,\d{3})*(?:\.\d+)?(?:[ \u00a0]?(?:%|(?:GB|M|k)\b))?")
SCALE = {"%": 100, "k": 1e-3, "M": 1e-6, "GB": 1e-9}
# On these pages, every decimal number of the prose must say where it comes from.
STRICT = [ROOT / "README.md", ROOT / "docs" / "index.md", ROOT / "docs" / "results.md"]


@functools.cache
def measured(name: str):
    folder = ROOT / "benchmarks" / "results" if name.startswith("benchmarks/") else ROOT / "assets" / "results"
    return json.loads((folder / name.removeprefix("benchmarks/")).read_text(encoding="utf-8"))


def one_row(rows: list, wanted: str):
    """The row with this name, or that meets ``field=value, field=value``."""
    found = [row for row in rows if isinstance(row, dict) and row.get("name") == wanted]
    if not found:
        fields = dict(part.split("=", 1) for part in re.split(r", (?=\w+=)", wanted) if "=" in part)
        as_text = lambda value: "-".join(map(str, value)) if isinstance(value, list) else str(value)  # noqa: E731
        found = [row for row in rows if fields and all(as_text(row.get(k)) == v for k, v in fields.items())]
    assert len(found) == 1, f"{len(found)} rows are [{wanted}]; one must be"
    return found[0]


def pick(data, path: str):
    """What stands at a path such as ``rows[a name].kl_interval``."""
    for bracket, key in re.findall(r"\[([^\]]*)\]|([^.\[\]]+)", path.strip()):
        if isinstance(data, list):
            data = data[int(key or bracket)] if (key or bracket).isdigit() else one_row(data, bracket or key)
        else:
            assert (bracket or key) in data, f"no {bracket or key!r} at {path!r}; there are {list(data)[:12]}"
            data = data[bracket or key]
    return data


def values_of(name: str, paths: str) -> list[float]:
    """The numbers that a comment stands for, in order."""
    found = []
    for path in paths.split(";"):
        parts = [pick(measured(name), part) for part in re.split(r"\s/\s", path)]
        value = parts[0] / parts[1] if len(parts) == 2 else parts[0]
        found += value if isinstance(value, list) else [value]
    return found


@functools.cache
def printed_in(number: str) -> frozenset:
    """Every number in the stored outputs of a lesson."""
    (path,) = ROOT.glob(f"notebooks/{number}_*.ipynb")
    texts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            pieces = [output.get("text", []), *(data.get(f"text/{kind}", []) for kind in ("plain", "markdown", "html"))]
            texts += ["".join(piece) for piece in pieces]
    return frozenset(bare(found) for found in NUMBER.findall(re.sub(r"<[^>]*>", " ", "\n".join(texts))))


def bare(text: str) -> str:
    """A number without its unit, with a plain minus."""
    return text.rstrip("%MkGB \u00a0").replace("−", "-").replace(",", "")


def agrees(text: str, value: float) -> bool:
    """Whether a printed number is a value, to the precision that is printed."""
    number, unit = bare(text), re.search(r"[%kMGB]*$", text)[0]
    decimals = len(number.partition(".")[2])
    return abs(float(number) - value * SCALE.get(unit, 1)) <= 0.5 * 10**-decimals * (1 + 1e-9)


def problems(text: str) -> list[str]:
    """What is wrong with the numbers of a Markdown text that say where they come from."""
    found, begin = [], 0
    for source in SOURCE.finditer(text):
        if not text[: source.start()].rpartition("\n")[2].strip():
            found.append(f"{' '.join(source[0].split())}: begins a line")
        if text[: source.start()].endswith(" ") and text[source.end() :].startswith((".", ",", ";", ":", ")")):
            found.append(f"{' '.join(source[0].split())}: leave no space before it, for punctuation follows")
        before, begin = text[begin : source.start()], source.end()
        numbers, says = NUMBER.findall(before), " ".join(source[0].split())
        if source[3]:
            if not numbers or bare(numbers[-1]) not in printed_in(source[3]):
                found.append(f"{numbers[-1:]} is not in the outputs of lesson {source[3]}")
            continue
        try:
            values = values_of(source[1], source[2])
        except (AssertionError, OSError, LookupError, TypeError) as error:
            found.append(f"{says}: {error}")
            continue
        numbers = numbers[-len(values) :]
        if len(numbers) < len(values):
            found.append(f"{says}: {len(values)} numbers must stand before it")
        found += [f"{says}: printed {n}, measured {v:.4g}" for n, v in zip(numbers, values, strict=False)
                  if not agrees(n, v)]  # fmt: skip
    return found


def prose(text: str) -> str:
    """A page without code, rendered tables, targets of links, and numbers that say where they come from."""
    text = re.sub(r"```.*?```|<!-- (\w+) -->.*?<!-- /\1 -->", "", text, flags=re.S)
    kept, begin = [], 0
    for source in SOURCE.finditer(text):
        before, begin = text[begin : source.start()], source.end()
        count = 1 if source[3] else len(values_of(source[1], source[2]))
        for number in reversed(list(NUMBER.finditer(before))[-count:]):
            before = before[: number.start()] + before[number.end() :]
        kept.append(before)
    return re.sub(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->", "", "".join([*kept, text[begin:]]), flags=re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_numbers_of_a_page_are_the_measured_ones(page):
    assert problems(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_numbers_of_a_lesson_are_the_measured_ones(lesson):
    cells = json.loads(lesson.read_text(encoding="utf-8"))["cells"]
    assert problems("\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")) == []


@pytest.mark.parametrize("page", STRICT, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_number_of_these_pages_is_without_a_source(page):
    papers = {str(number) for row in real_report.PAPER.values() for number in row}
    left = set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", prose(page.read_text(encoding="utf-8"))))
    left -= papers | {"4.0", "2.0", "3.11"}  # of licenses and of Python
    assert not left, f"Write <!-- NAME.json: path --> behind them (top of {Path(__file__).name})."


def test_the_table_of_what_was_done_to_break_the_code_is_what_was_measured():
    table = runpy.run_path(str(ROOT / "benchmarks" / "reliability.py"))["table"]()
    assert f"<!-- reliability -->\n{table}<!-- /reliability -->" in (ROOT / "docs" / "results.md").read_text("utf-8")
    assert table.count("\n") >= 6
    for name in ("crash", "memory", "properties"):
        found = measured(f"benchmarks/{name}.json")
        assert found.get("passed") or found.get("flat") or found.get("failed") == []


def test_a_wrong_number_is_found():
    right = "Two layers cost 0.27<!-- real.json: scan.best.2.kl -->, that is 0.266 (0.251–0.281) " \
            "<!-- real.json: scan.best.2.kl; scan.best.2.kl_interval --> nats."  # fmt: skip
    assert problems(right) == []
    assert problems(right.replace("0.27", "0.26")) == [
        "<!-- real.json: scan.best.2.kl -->: printed 0.26, measured 0.2665"
    ]
    assert len(problems(right.replace("0.281", "0.29"))) == 1
    assert "no 'best2'" in problems("1.0 <!-- real.json: scan.best2 -->")[0]
    assert "0 rows are [no such run]" in problems("1.0 <!-- real.json: rows[no such run].docs.kl -->")[0]
    assert "2 numbers must" in problems("0.25 <!-- real.json: scan.best.2.kl_interval -->")[0]
    assert "0.123456" in problems("0.123456 <!-- lesson 02 -->")[0]
    row = "rows[name=flow-walking, span=6-18, shipped=True]"
    assert problems(f"84 % <!-- ladder.json: {row}.recovery -->") == []
    assert problems("3.84 GB <!-- benchmarks/scale.json: stages[flow matching, 6–12].memory -->") == []
    assert "leave no space" in problems("0.27 <!-- real.json: scan.best.2.kl -->.")[0]
    assert "begins a line" in problems("0.27\n<!-- real.json: scan.best.2.kl -->")[0]
    assert problems(f"0.95 M <!-- ladder.json: {row}.parameters -->") == []
    assert prose("1.5 a 0.27 <!-- real.json: scan.best.2.kl --> b `2.5` [3.5](4.5.md)").split() == [
        "1.5",
        "a",
        "b",
        "[3.5",
    ]
