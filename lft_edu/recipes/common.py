"""Shared by the recipes: the operators that ship and how they are trained, the hardware, tables in pages."""

import fnmatch
import functools
import math
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from filelock import FileLock, Timeout

import lft_edu as lft

from .. import skipping
from ..fitting import SOLVED_BY
from ..loading.assets import ASSETS, NOTEBOOKS, sha256
from ..support.files import atomic_write, write_json
from ..training.callbacks import History

README = ASSETS.parent / "README.md"
RESULTS = ASSETS.parent / "docs" / "results.md"


def hardware() -> str:
    """Describe the devices in use, for provenance."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"CPU, {os.environ.get('WORLD_SIZE', '1')} processes of one thread"


def experiments(steps: int) -> dict:
    """Return how each operator that ships is made.

    Args:
        steps: optimizer steps of Flow Walking; fine-tuning on the logits takes a tenth of them.

    Returns:
        Name → (operator, options of :func:`lft_edu.fit`, the name of the operator that it starts from, or None).
    """
    walk = {"objective": "flow_walking", "max_steps": steps}
    finish = {"objective": "logit_kl", "max_steps": max(1, steps // 10), "lr": 5e-3}
    return {
        "mean-shift": (lft.MeanShift(), {}, None),
        "procrustes": (lft.Procrustes(), {}, None),
        "ridge": (lft.Ridge(), {}, None),
        "regression": (lft.Regression(), {"objective": "regression"}, None),
        "flow-matching": (lft.Flow("euler", 1), {"objective": "flow_matching"}, None),
        "flow-walking-euler": (lft.Flow("euler", 1), walk, None),
        "flow-walking": (lft.Flow("midpoint", 3), walk, None),
        "hybrid": (lft.Flow("midpoint", 3), walk | {"objective": "hybrid", "alpha": 0.1}, None),
        "flow-walking-kl": (lft.Flow("midpoint", 3), finish, "flow-walking"),
    }


SPANS = ((6, 12), (6, 18))


def weights_of(teacher: str) -> str | None:
    """Return the SHA-256 of a teacher's weights, None if they are not on disk."""
    path = (ASSETS / "teacher" if teacher == "bundled" else Path(teacher)) / "model.safetensors"
    return sha256(path) if path.exists() else None


def fit(student, teacher, source, options: dict, checkpoint: Path) -> History:
    """Call :func:`lft_edu.fit` with the options that apply: a closed form takes neither rate nor checkpoint."""
    if student.operator.trainable:
        return lft.fit(student, teacher, source, **options, checkpoint=checkpoint, resume=True)
    options = {name: value for name, value in options.items() if name in SOLVED_BY}
    return lft.fit(student, teacher, source, **options)


def unless_done(path: Path, job: Callable[[], object]) -> None:
    """Write what ``job`` returns to a JSON file, unless the file exists or another process is at it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{path}.lock", timeout=0):
            if not path.exists():
                print(f"{time.strftime('%H:%M:%S')} {path.stem} (process {os.getpid()})", flush=True)
                write_json(path, job())
    except Timeout:
        pass


def each_variant(
    names: Iterable[str], only: str, span: tuple[int, int], seed: int, work: Path, job: Callable[[str], object]
) -> None:
    """Do a job for every variant that ``only`` matches and that is not done yet, each with a file of its own.

    Args:
        only: a pattern with ``*`` and ``?``.
        work: the folder of the files.
        job: the variant's name → its row, for JSON.
    """
    for name in fnmatch.filter(names, only):
        words = re.findall(r"[a-z0-9]+", name.lower())
        path = work / "-".join([*words, f"{span[0]}-{span[1]}-seed-{seed}.json"])
        unless_done(path, functools.partial(job, name))


def lessons() -> list[Path]:
    """The lessons, in the order in which they are taught."""
    return sorted(NOTEBOOKS.glob("[01][0-9]_*.ipynb"))


def in_layers(kl: torch.Tensor, curve: dict[int, torch.Tensor]) -> dict:
    """A KL in skipped layers, with its interval, for JSON: None where it is above the curve.

    Args:
        kl: of each sequence, ``(N,)`` float64.
        curve: layers skipped → KL of each sequence, nats per token.
    """
    finite = lambda j: j if math.isfinite(j) else None  # noqa: E731
    means = {j: one.mean().item() for j, one in curve.items()}
    return {
        "skipped_layers": finite(skipping.skipped_layers(kl.mean().item(), means)),
        "skipped_layers_interval": [finite(j) for j in skipping.skipped_layers_interval(kl, curve)],
    }


def into_page(page: Path, mark: str, text: str) -> None:
    """Replace the text between the marks ``<!-- mark -->`` and ``<!-- /mark -->`` of a Markdown page.

    Args:
        page: the file, such as ``RESULTS`` or ``README``.
        mark: the name in the two marks, each on a line of its own.
        text: the new content, with a newline at its end.

    Raises:
        ValueError: the page does not have both marks.
    """
    old, begin, end = page.read_text(encoding="utf-8"), f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    before, found, rest = old.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page} has no place for {mark!r}: put <!-- {mark} --> and {end} there, on two lines.")
    with atomic_write(page) as partial:
        partial.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")
