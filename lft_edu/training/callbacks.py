"""What happens beside the loop: records, logs, interruptions."""

import json
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..support.files import atomic_write


@dataclass
class History:
    """What happened in a run: losses by step, evaluations, tokens seen, seconds spent (over all its sittings)."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    evaluations: list[dict] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


class Interruption:
    """SIGINT (the stop button of a notebook, Ctrl-C) and SIGTERM (a scheduler's) are remembered, and acted on between
    two steps, once a checkpoint is written. A second one does not wait, unless it is the same wish once more: a
    scheduler and a launcher may both pass it on."""

    ECHO = 3.0  # seconds

    def __init__(self):
        self.asked_at: float | None = None

    @property
    def asked(self) -> bool:
        return self.asked_at is not None

    def _remember(self, number, frame) -> None:
        now = time.monotonic()
        if self.asked and now - self.asked_at > self.ECHO:
            raise KeyboardInterrupt
        self.asked_at = self.asked_at or now

    @contextmanager
    def watched(self, active: bool = True):
        """Watch the two signals inside the block. Only the main thread can."""
        if not active or threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Recorder:
    """Writes what happened into the history, onto the bar and into the log."""

    def __init__(self, history: History, bar, tokens_per_step: int, done: int, log: Callable[[dict], None] | None):
        self.history, self.bar, self.tokens_per_step, self.done, self.log = history, bar, tokens_per_step, done, log
        self.started, self.spent = time.perf_counter(), history.seconds

    def record(self, step: int, loss: float, norm: float, factor: float) -> None:
        """The mean loss and gradient norm of the steps since the last record."""
        h, sitting = self.history, time.perf_counter() - self.started
        h.steps.append(step)
        h.losses.append(loss)
        h.seconds = self.spent + sitting
        rate = self.tokens_per_step * (step - self.done) / max(1e-9, sitting)
        self.bar.set_postfix_str(f"loss {loss:.4g}" + (f", {rate:,.0f} tokens/s" if self.tokens_per_step else ""))
        if self.log:
            row = {"step": step, "loss": loss, "gradient_norm": norm, "rate_factor": factor, "tokens": h.tokens}
            self.log(row | {"seconds": round(h.seconds, 3), "tokens_per_second": round(rate, 1)})

    def evaluated(self, step: int, numbers: dict) -> None:
        self.history.evaluations.append({"step": step, **numbers})
        if self.log:
            self.log(self.history.evaluations[-1])


class MetricsLog:
    """Rows of numbers, one JSON object a line, and on request TensorBoard's files.

    Args:
        path: the ``.jsonl`` file. What it holds beyond ``done`` steps is dropped: those steps come again.
        tensorboard: also write event files, to the folder ``tensorboard`` beside it.
    """

    def __init__(self, path: Path, done: int = 0, tensorboard: bool = False):
        self.path, self.writer = path, None
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        with atomic_write(path) as partial:
            partial.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= done))
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError("tensorboard=True needs TensorBoard: pip install tensorboard") from error
            self.writer = SummaryWriter(path.with_name("tensorboard"), purge_step=done + 1)

    def __call__(self, row: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items() if self.writer else ():
            if name != "step" and isinstance(value, int | float):
                self.writer.add_scalar(name, value, row["step"])
        if self.writer:
            self.writer.flush()

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def _step_of(line: str) -> float:
    """The step of a line; a line that a crash cut short belongs to no step that is kept."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_metrics(path: str | Path) -> list[dict]:
    """The rows of a ``metrics.jsonl``; a last line that is being written is passed over."""
    return [json.loads(line) for line in Path(path).read_text().splitlines() if _step_of(line) < float("inf")]
