"""The learner's copy of the course: given, updated, never overwritten, given back; and the command line around it."""

import datetime
import json
import re
from pathlib import Path

import nbformat
import pytest

from lft_edu import __version__, cli, course
from lft_edu.loading import assets

LESSON, EXERCISE = "03_flow_walking.ipynb", "exercises/03_flow_walking.ipynb"
TODAY = datetime.date.today().isoformat()


@pytest.fixture
def small(monkeypatch):
    """A course of four small files, to be changed."""
    files = {course.START: b"start", LESSON: b"lesson", EXERCISE: b"stub", f"exercises/solutions/{LESSON}": b"solved"}
    monkeypatch.setattr(course, "contents", lambda: dict(files))
    return files


def test_a_copy_holds_every_lesson_and_no_link_leads_nowhere(tmp_path):
    done = course.give(tmp_path / "new" / "lft-course")
    copy = tmp_path / "new" / "lft-course"
    books = {p.relative_to(copy).as_posix() for p in copy.rglob("*.ipynb")}
    assert books == {p.relative_to(assets.NOTEBOOKS).as_posix() for p in assets.NOTEBOOKS.rglob("*.ipynb")
                     if ".ipynb_checkpoints" not in p.parts}  # fmt: skip
    assert set(done.new) > books
    assert not done.updated + done.kept
    links = [
        (name, link)
        for name in books
        for cell in nbformat.read(copy / name, 4).cells
        if cell.cell_type == "markdown"
        for link in re.findall(r"\]\(([^)#\s]+)\)", cell.source)
        if "://" not in link
    ]
    assert len(links) > 50
    assert [(name, link) for name, link in links if not (copy / name).parent.joinpath(link).exists()] == []
    assert all((copy / name).parent.joinpath(link).resolve().is_relative_to(copy.resolve()) for name, link in links)


def test_giving_twice_writes_nothing(tmp_path, small):
    course.give(tmp_path)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.ipynb")}
    assert course.give(tmp_path) == course.Given()
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.ipynb")} == times


def test_unchanged_files_are_updated_and_changed_ones_kept(tmp_path, small):
    course.give(tmp_path)
    (tmp_path / LESSON).write_bytes(b"mine")
    (tmp_path / EXERCISE).unlink()
    done = course.give(tmp_path)
    assert (done.new, done.updated, done.kept, done.outdated) == ([EXERCISE], [], [LESSON], [])
    small.update({course.START: b"start 2", LESSON: b"lesson 2", "10_new.ipynb": b"new"})
    for _ in range(2):  # that a newer version exists is said until the learner takes it
        done = course.give(tmp_path)
        assert (done.kept, done.outdated) == ([LESSON], [LESSON])
    assert (tmp_path / course.START).read_bytes() == b"start 2"
    assert (tmp_path / "10_new.ipynb").read_bytes() == b"new"
    assert (tmp_path / LESSON).read_bytes() == b"mine"
    small[course.START] = b"start 3"
    done = course.give(tmp_path)
    assert done.updated == [course.START]
    report = done.report(tmp_path)
    assert "Updated to the course's newer version: 00_start_here." in report
    assert "Kept as you changed them: 03_flow_walking." in report
    assert "newer versions of: 03_flow_walking." in report


def test_a_lesson_that_has_another_number_now_stays_where_it_is_and_is_named(tmp_path, small):
    course.give(tmp_path)
    small["04_flow_walking.ipynb"] = small.pop(LESSON)
    done = course.give(tmp_path)
    assert (done.new, done.former) == (["04_flow_walking.ipynb"], [LESSON])
    assert "yours to keep or delete: 03_flow_walking." in done.report(tmp_path)
    assert (tmp_path / LESSON).read_bytes() == b"lesson"
    assert course.give(tmp_path) == course.Given()  # said once


def test_an_interrupted_copy_is_completed_and_an_interrupted_update_too(tmp_path, small, monkeypatch):
    write = course._write

    def stop_at_the_exercise(path, data):
        if path.name == LESSON and path.parent.name == "exercises":
            raise KeyboardInterrupt
        write(path, data)

    for version in (b"", b" 2"):
        small.update({name: data + version for name, data in small.items()})
        monkeypatch.setattr(course, "_write", stop_at_the_exercise)
        with pytest.raises(KeyboardInterrupt):
            course.give(tmp_path)
        monkeypatch.setattr(course, "_write", write)
        assert course.give(tmp_path).kept == []
        assert {name: (tmp_path / name).read_bytes() for name in small} == small


@pytest.mark.parametrize(
    ("lesson", "name"),
    [
        ("03", LESSON),
        ("3", LESSON),
        ("03_flow_walking", LESSON),
        ("notebooks/03_flow_walking.ipynb", LESSON),
        ("exercises/03", EXERCISE),
        ("exercises\\3", EXERCISE),
        ("exercises/solutions/03", f"exercises/solutions/{LESSON}"),
    ],
)
def test_reset_finds_a_notebook(tmp_path, small, lesson, name):
    course.give(tmp_path)
    (tmp_path / name).write_bytes(b"mine")
    path, saved = course.reset(lesson, tmp_path)
    assert path == tmp_path / name
    assert path.read_bytes() == small[name]
    assert saved == path.with_name(f"03_flow_walking (my copy {TODAY}).ipynb")
    assert saved.read_bytes() == b"mine"


def test_reset_never_overwrites_an_earlier_copy(tmp_path, small):
    course.give(tmp_path)
    for text in (b"one", b"two", b"three"):
        (tmp_path / LESSON).write_bytes(text)
        course.reset("03", tmp_path)
    kept = {p.name: p.read_bytes() for p in tmp_path.glob("*my copy*")}
    names = [f"03_flow_walking (my copy {TODAY}{more}).ipynb" for more in ("", ", 2", ", 3")]
    assert kept == dict(zip(names, (b"one", b"two", b"three"), strict=True))


def test_reset_keeps_no_copy_of_what_was_not_changed_and_brings_the_newer_version(tmp_path, small):
    course.give(tmp_path)
    small[LESSON] = b"lesson 2"
    assert course.reset("03", tmp_path) == (tmp_path / LESSON, None)
    (tmp_path / LESSON).unlink()
    assert course.reset("03", tmp_path)[1] is None
    assert (tmp_path / LESSON).read_bytes() == b"lesson 2"
    small[LESSON] = b"lesson 3"  # given back, it counts as unchanged
    assert course.give(tmp_path).updated == [LESSON]


def _file(folder: Path) -> Path:
    folder.write_text("")
    return folder


def _other_files(folder: Path) -> Path:
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    return folder


def _damaged(folder: Path, text: str = "{") -> Path:
    course.give(folder)
    (folder / course.MANIFEST).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_file, "is a file: give a new folder"),
        (_other_files, "holds other files: give a new or empty folder"),
        (lambda folder: _file(folder) / "inside", "Give a folder that is yours"),
        (lambda folder: assets.NOTEBOOKS / "mine", "--in-place"),
        (_damaged, "Delete it and run `lft-edu lab "),
        (lambda folder: _damaged(folder, '["files"]'), "is damaged"),
    ],
)
def test_folders_that_will_not_do(tmp_path, small, capsys, make, words):
    folder = make(tmp_path / "x")
    assert cli.main(["lab", "--copy-only", str(folder)]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x" / "thesis.tex").exists() or [p.name for p in folder.iterdir()] == ["thesis.tex"]


def test_the_remedy_for_a_damaged_manifest_helps(tmp_path, small):
    folder = _damaged(tmp_path / "x")
    (folder / LESSON).write_bytes(b"mine")
    (folder / course.MANIFEST).unlink()
    assert course.give(folder).kept == [LESSON]
    assert course.reset("03", folder)[1].read_bytes() == b"mine"


def test_reset_says_what_it_can_give_back(tmp_path, small, capsys):
    assert cli.main(["reset", "03", str(tmp_path)]) == 2
    assert "is not a copy of the course: run `lft-edu lab` first" in capsys.readouterr().err
    course.give(tmp_path)
    assert cli.main(["reset", "exercise/03", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'exercises/03'?" in error
    assert "00, 03, exercises/03, exercises/solutions/03." in error


def test_without_a_folder_it_is_lft_course_or_the_copy_one_is_in(tmp_path, small, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["lab", "--copy-only"]) == 0
    monkeypatch.chdir(tmp_path / "lft-course" / "exercises")  # as in a terminal of JupyterLab
    assert cli.main(["lab", "--copy-only"]) == 0
    (tmp_path / "lft-course" / EXERCISE).write_bytes(b"mine")
    assert cli.main(["reset", "exercises/03"]) == 0
    assert f"Your copy is kept beside it: 03_flow_walking (my copy {TODAY}).ipynb" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.rglob("lft-course*")) == ["lft-course"]
    assert json.loads((tmp_path / "lft-course" / course.MANIFEST).read_text())["version"] == __version__


def test_authors_open_the_clone_itself(monkeypatch, capsys, tmp_path):
    assert course.clone() == assets.NOTEBOOKS.parent
    assert cli.main(["lab", "--in-place", str(tmp_path)]) == 2
    assert "leave out --in-place" in capsys.readouterr().err
    monkeypatch.setattr(course, "INSTALLED", True)
    assert cli.main(["lab", "--in-place"]) == 2
    assert "installed wheel" in capsys.readouterr().err


def test_list_names_what_the_loaders_take(capsys):
    from lft_edu import listing, objectives, operators
    from lft_edu.loading import corpora, teachers

    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")] == list(listing.KINDS)
    names = {line.split()[0] for line in lines if line.startswith(" ")}
    tables = (teachers.known_teachers(), teachers.bundled_students(), corpora.NAMES, objectives.OBJECTIVES)
    assert {name for table in (*tables, operators.OPERATORS) for name in table} <= names
    assert cli.main(["list", "students"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"bundled/flow-walking-6-18 +flow \(midpoint × 3\) for layers 6–18\n", out)
    assert "corpora" not in out


def test_version_and_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"lft-edu {__version__}\n"
    assert cli.main([]) == 0
    assert "reset" in capsys.readouterr().out
