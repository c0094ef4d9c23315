"""Colab, Binder and the class's image: what can be checked without them."""

import json
import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from lft_edu import cli, course

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
POST_BUILD = ROOT / "binder" / "postBuild"
DOCKERFILE = ROOT / "docs" / "teaching" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with its arguments."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def targets() -> set[str]:
    return set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def understood(line: str) -> bool:
    """Whether lft-edu takes these words."""
    _, *words = shlex.split(line)
    return cli.parser().parse_args(words).work is not None


@pytest.mark.parametrize("version", ["2.9.1", "2.13.0", "2.13.0+cpu", "2.15.0+cu130"])
def test_installing_leaves_a_recent_torch_alone(version):
    """On Colab and Binder there is one already, to which torchvision belongs; torch is pinned for the tests alone."""
    (torch,) = (Requirement(x) for x in PROJECT["dependencies"] if Requirement(x).name == "torch")
    assert torch.specifier.contains(version)
    pinned = {name for name, extra in PROJECT["optional-dependencies"].items() if any("torch==" in x for x in extra)}
    assert pinned == {"test"}


def test_binder_brings_python_and_a_cpu_torch_and_the_rest_is_ours():
    found = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text())["dependencies"]
    needs = {Requirement(x.replace("=3", "~=3", 1) if x.startswith("python=") else x) for x in found}
    assert {x.name for x in needs} == {"python", "pip", "pytorch-cpu"}
    (torch,) = (x for x in needs if x.name == "pytorch-cpu")
    assert f"torch{torch.specifier}" in {x.split(",")[0] for x in PROJECT["dependencies"]}
    assert os.access(POST_BUILD, os.X_OK)
    lines = POST_BUILD.read_text().splitlines()
    assert "pip install --no-cache-dir -e ." in lines
    assert all(understood(line.split("||")[0]) for line in lines if line.startswith("lft-edu"))


def test_the_image_copies_what_exists_and_docker_is_sent_it():
    sent = {
        line.removeprefix("!") for line in Path(f"{DOCKERFILE}.dockerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = {source for word, rest in instructions() if word == "COPY" for source in rest.split()[:-1]}
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)
    built = {
        *PROJECT["license-files"],
        PROJECT["readme"],
        "pyproject.toml",
        "Makefile",
        "lft_edu",
        "assets",
        "notebooks",
    }
    assert copied == built


def test_the_image_runs_what_the_makefile_and_the_course_have():
    words = [word for word, _ in instructions()]
    assert set(words) <= {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert words[0] == "FROM"
    made = [target for word, rest in instructions() if word == "RUN" for target in re.findall(r"\bmake (\w+)$", rest)]
    assert made == ["install", "model"]
    assert set(made) <= targets()
    last = {word: json.loads(rest) for word, rest in instructions() if word in ("ENTRYPOINT", "CMD")}
    command, _, then = last["ENTRYPOINT"][2].partition(" && ")
    assert understood(command)
    assert then == 'exec "$@"'
    (first,) = (x.rpartition("/lab/tree/lft-course/")[2] for x in last["CMD"] if "default_url" in x)
    assert first == course.START
    assert [rest for word, rest in instructions() if word == "USER"] == ["student"]
