"""The built wheel, installed in a clean environment and used from another folder, without the clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lft_edu import course
from lft_edu.loading.assets import ASSETS, NOTEBOOKS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
RUBBISH = ("__pycache__", ".ipynb_checkpoints", "*.partial", "*.egg-info")
USE = """
import lft_edu as lft
from lft_edu.couplings import optimal_assignment

teacher, tokenizer = lft.load_teacher("bundled")
student = lft.load_student("bundled/flow-walking-6-18", teacher)
lft.TrajectoryExplorer(teacher, {"flow walking": student}, tokenizer, text="for x in y:").export_html("page.html")
assert lft.exercises.check("1.1", optimal_assignment)
print(lft.__file__)
"""


def run(*command, cwd: Path, status: int = 0) -> str:
    """What a command prints; PYTHONPATH, by which it could find the clone, is not passed on."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the clone, so that no build folder is left in it, nor an earlier one used."""
    clone = tmp_path_factory.mktemp("clone")
    for name in ("lft_edu", "assets", "notebooks"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns(*RUBBISH))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist", ".", cwd=clone)
    (built,) = (clone / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def venv(wheel, tmp_path_factory) -> Path:
    """A new environment with the wheel, which borrows the heavy packages of the running one.

    A path in a .pth file is searched last, and .pth files in *it* are not read: so the clone, installed as editable
    here, is not found through it.
    """
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    return folder


def test_the_wheel_holds_the_whole_package_and_the_course(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    homes = {ROOT / "lft_edu": "lft_edu", ASSETS: "lft_edu/_assets", NOTEBOOKS: "lft_edu/_notebooks"}
    for folder, inside in homes.items():
        files = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.name != "ruff.toml"]
        wanted = {f"{inside}/{p.as_posix()}" for p in files if not any(p.match(f"*/{r}/*") for r in RUBBISH[:2])}
        assert wanted - names == set(), "add the folder to packages or package-data in pyproject.toml"
    assert not [name for name in names if any(part.strip("*") in name for part in RUBBISH)]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 40e6


def test_models_explorer_and_checks_work(venv, tmp_path):
    file = run(venv / "bin" / "python", "-c", USE, cwd=tmp_path).splitlines()[-1]
    assert Path(file).is_relative_to(venv)
    assert "flow walking" in (tmp_path / "page.html").read_text()


def test_doctor_is_content_and_has_a_remedy_without_a_clone(venv, tmp_path):
    out = run(venv / "bin" / "lft-edu", "doctor", cwd=tmp_path)
    assert "assets/teacher" in out
    assert out.strip().endswith("Ready.")
    (asset,) = venv.glob("lib/python*/site-packages/lft_edu/_assets/atlas/atlas.safetensors")
    whole = asset.read_bytes()
    try:
        asset.write_bytes(whole[:1000])
        out = run(venv / "bin" / "lft-edu", "doctor", cwd=tmp_path, status=1)
    finally:
        asset.write_bytes(whole)
    assert "atlas.safetensors is damaged" in out
    assert "pip install --force-reinstall --no-deps" in out


def test_lab_copies_the_course_and_reset_gives_a_lesson_back(venv, tmp_path):
    lft_edu = venv / "bin" / "lft-edu"
    run(lft_edu, "lab", "--copy-only", cwd=tmp_path)
    copy = tmp_path / "lft-course"
    assert {name: (copy / name).read_bytes() for name in course.contents()} == course.contents()
    (copy / course.START).write_text("mine")
    run(lft_edu, "lab", "--copy-only", cwd=tmp_path)
    assert (copy / course.START).read_text() == "mine"
    run(lft_edu, "reset", "00", cwd=copy)
    assert (copy / course.START).read_bytes() == course.contents()[course.START]
    (saved,) = copy.glob("00_start_here (my copy *).ipynb")
    assert saved.read_text() == "mine"


def test_a_teacher_gets_a_classroom(venv, tmp_path):
    pytest.importorskip("jupytext")
    run(venv / "bin" / "lft-edu", "classroom", "class", cwd=tmp_path)
    sources = {p.stem for p in (NOTEBOOKS / "exercises" / "sources").glob("*.py")}
    assert {p.stem for p in (tmp_path / "class" / "source").rglob("*.ipynb")} == sources
