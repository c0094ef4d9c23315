"""Submissions with doubled, missing or renamed parts still get marks for the rest."""

import copy
import json

import nbformat
import pytest
from nbgrader.nbgraderformat import ValidationError, read

from lft_edu import cli
from lft_edu.exercises import books, handed_in

NAME = "01_couplings"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    books.course(folder)
    return folder


@pytest.fixture
def hand_in(course, tmp_path):
    """A function: a notebook → the file in which it was handed in, in a course of its own."""
    (tmp_path / "nbgrader_config.py").touch()
    (tmp_path / "source").symlink_to(course / "source")
    folder = tmp_path / "submitted" / "ada" / NAME
    folder.mkdir(parents=True)

    def put(book, name=f"{NAME}.ipynb"):
        text = book if isinstance(book, str) else nbformat.writes(book)
        (folder / name).write_text(text, encoding="utf-8")
        return folder / f"{NAME}.ipynb"

    return put


def solved():
    return books.solution(books.read(next(path for path in books.sources() if path.stem == NAME)))


def marked(path):
    return [cell.metadata.nbgrader.grade_id for cell in nbformat.read(path, 4).cells if "nbgrader" in cell.metadata]


@pytest.mark.parametrize("name", ["answer-1-1", "check-1-1"])
def test_of_doubled_cells_the_last_one_that_was_run_is_marked(hand_in, tmp_path, name):
    book = solved()
    place, cell = next(
        (i, c) for i, c in enumerate(book.cells) if c.metadata.get("nbgrader", {}).get("grade_id") == name
    )
    for i, (count, mark) in enumerate([(7, "# run last"), (None, "# never run")]):
        other = copy.deepcopy(cell)
        other.id, other.execution_count, other.source = f"copy{i}", count, f"{cell.source}\n{mark}"
        book.cells.insert(place + 1 + i, other)
    cell.execution_count = 3
    whole = nbformat.writes(book)
    path = hand_in(book)
    with pytest.raises(ValidationError):
        read(path, 4)
    assert handed_in.mend(tmp_path) == [f"ada, {NAME}: {name} was there 3 times; the last one that was run is marked"]
    assert sorted(marked(path)) == sorted(set(marked(path)))
    (kept,) = (c for c in nbformat.read(path, 4).cells if c.metadata.get("nbgrader", {}).get("grade_id") == name)
    assert kept.source.endswith("# run last")
    assert [c.source for c in nbformat.read(path, 4).cells] == [c.source for c in book.cells]
    assert (path.parent / f"{NAME}.as-handed-in").read_text(encoding="utf-8") == whole
    assert handed_in.mend(tmp_path) == []
    assert read(path, 4).cells


def test_what_is_missing_is_named(hand_in, tmp_path, capsys):
    book = solved()
    book.cells = [
        c for c in book.cells if c.metadata.get("nbgrader", {}).get("grade_id") not in ("answer-1-2", "check-1-3")
    ]
    path, before = hand_in(book), nbformat.writes(book)
    assert cli.main(["classroom", str(tmp_path), "--mend"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"ada, {NAME}: answer-1-2 is missing: it gets no points",
        f"ada, {NAME}: check-1-3 is missing: it gets no points",
    ]
    assert path.read_text(encoding="utf-8") == before


def test_a_notebook_of_another_name_is_marked_if_it_is_the_only_one(hand_in, tmp_path):
    path = hand_in(solved(), "My homework (final).ipynb")
    assert handed_in.mend(tmp_path) == [f"ada, {NAME}: My homework (final).ipynb is marked as {NAME}.ipynb"]
    assert marked(path)
    assert handed_in.mend(tmp_path) == []
    path.unlink()
    hand_in(solved(), "other.ipynb")
    assert handed_in.mend(tmp_path) == [
        f"ada, {NAME}: 2 notebooks, none called {NAME}.ipynb: rename the one that counts"
    ]


@pytest.mark.parametrize(
    "text", ["", "{}", "no notebook", json.dumps({"cells": 3, "nbformat": 4, "nbformat_minor": 5})]
)
def test_what_is_no_notebook_is_said(hand_in, tmp_path, text):
    hand_in(text)
    (line,) = handed_in.mend(tmp_path)
    assert "is not a notebook" in line


def test_a_folder_that_is_no_course_and_one_without_submissions(course, tmp_path):
    with pytest.raises(ValueError, match="is not an nbgrader course"):
        handed_in.mend(tmp_path)
    with pytest.raises(ValueError, match="Nothing was handed in"):
        handed_in.mend(course)
    (tmp_path / "nbgrader_config.py").touch()
    (tmp_path / "source" / NAME).mkdir(parents=True)
    (tmp_path / "submitted" / "ada" / "homework 1").mkdir(parents=True)
    assert handed_in.mend(tmp_path) == [f"ada, homework 1: there is no such assignment; there are {NAME}"]
