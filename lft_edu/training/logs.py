"""The rows of numbers that a run writes: one JSON object per line, and trackers such as TensorBoard."""

import json
from pathlib import Path

from ..support.files import atomic_write


class MetricsLog:
    """Writes rows to a ``.jsonl`` file and to trackers. Call it with a row: ``{"step": 10, "loss": 0.3, ...}``.

    Args:
        path: the file. Rows beyond ``done`` steps are dropped from it: those steps come again.
        done: steps that the run resumes after.
        trackers: names that :mod:`accelerate.tracking` knows: ``"tensorboard"`` (event files in a folder of that name
            beside ``path``), ``"wandb"``, ``"mlflow"``, ``"trackio"``, … Each needs its package.
        settings: JSON values that trackers keep as the run's configuration.

    Raises:
        ValueError: an unknown tracker, or one whose package is not installed.
    """

    def __init__(self, path: Path, done: int = 0, trackers: tuple[str, ...] = (), settings: dict | None = None):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        with atomic_write(path) as partial:
            partial.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= done), encoding="utf-8")
        self.trackers = [_tracker(name, path.parent, done, settings or {}) for name in trackers]

    def __call__(self, row: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        numbers = {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
        for tracker in self.trackers:
            tracker.log(numbers, step=row["step"])

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.finish()


def _tracker(name: str, folder: Path, done: int, settings: dict):
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    known = {str(kind.value if hasattr(kind, "value") else kind): cls for kind, cls in LOGGER_TYPE_TO_CLASS.items()}
    if name not in known:
        raise ValueError(f"Unknown tracker {name!r}. Choose among {', '.join(known)}.")
    tracker_class = known[name]
    options: dict = {"logging_dir": str(folder)} if tracker_class.requires_logging_directory else {}
    if name == "tensorboard":
        options["purge_step"] = done + 1  # rows of steps that come again
    # TensorBoard's run name is a folder in its directory; elsewhere it is the project that runs are listed under.
    try:
        tracker = tracker_class("tensorboard" if name == "tensorboard" else "lft_edu", **options)
        start = getattr(tracker, "start", None)
        if start is not None:
            start()
    except (ImportError, NameError) as error:
        raise ValueError(f"report_to={name!r} needs its package: pip install {name} ({error}).") from error
    if name != "tensorboard":  # its hyper-parameters would be a second run in its list
        tracker.store_init_configuration(settings)
    return tracker


def _step_of(line: str) -> float:
    """The step of a line; a line that is damaged, or that a crash cut short, belongs to no step that is kept."""
    try:
        step = json.loads(line)["step"]
        return step if isinstance(step, int | float) and "\ufffd" not in line else float("inf")
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")


def read_metrics(path: str | Path) -> list[dict]:
    """The rows of a ``metrics.jsonl``; a last line that is still being written is left out."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return [json.loads(line) for line in lines if _step_of(line) < float("inf")]
