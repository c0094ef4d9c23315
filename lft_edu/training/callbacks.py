"""What happens beside the loop. :func:`lft_edu.training.loop.optimize` calls each of these between its steps."""

import json
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..support.progress import progress_bar
from .checkpoints import Checkpoints, restore
from .processes import broadcast_from_main
from .settings import Training

if TYPE_CHECKING:
    import accelerate


@dataclass
class History:
    """What happened in a run: losses by step, evaluations, tokens seen, seconds spent (over all its sittings)."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    evaluations: list[dict] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class RunState:
    """Where a run is. The loop moves it on; callbacks read it.

    Attributes:
        step: steps done; ``first``: those that were done before this sitting.
        loss, grad_norm: means since the last time they were read from the device; ``rate_factor`` of the schedule.
        stop_requested: this process wants to stop after the step; ``stopping``: all have agreed to.
        tokens_per_step: of all processes together; 0, if unknown.
    """

    module: nn.Module
    optimizers: list[torch.optim.Optimizer]
    accelerator: "accelerate.Accelerator"
    training: Training
    history: History = field(default_factory=History)
    step: int = 0
    first: int = 0
    loss: float = math.nan
    grad_norm: float = math.nan
    rate_factor: float = 1.0
    stop_requested: bool = False
    stopping: bool = False
    tokens_per_step: int = 0

    @property
    def finished(self) -> bool:
        return self.step == self.training.max_steps

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def alone(self) -> bool:
        return self.accelerator.num_processes == 1

    def every(self, steps: int) -> bool:
        """Is it the turn of something done every so many steps (0: never) and at the end?"""
        return self.finished or (steps > 0 and self.step % steps == 0)


class Callback:
    """Something done beside the loop. Subclass it and pass it to ``lft.fit(..., callbacks=[...])``."""

    def on_train_begin(self, run: RunState) -> None:
        """Before the first step of this sitting."""

    def on_step_end(self, run: RunState) -> bool:
        """After each step. Return True to be called with the numbers of this step, which the device is then waited
        for: on every process alike."""
        return False

    def on_numbers(self, run: RunState) -> None:
        """``run.loss`` and ``run.grad_norm`` are up to date."""

    def on_train_end(self, run: RunState) -> None:
        """After the last step of this sitting, also after an error."""


class Recording(Callback):
    """Writes the history, and hands each row of numbers to ``log`` on the main process."""

    def __init__(self, log: Callable[[dict], None] | None = None):
        self.log = log

    def on_train_begin(self, run):
        self.started, self.before = time.perf_counter(), run.history.seconds

    def on_step_end(self, run):
        run.history.tokens += run.tokens_per_step
        return run.every(run.training.log_every)

    def on_numbers(self, run):
        h, sitting = run.history, time.perf_counter() - self.started
        h.steps.append(run.step)
        h.losses.append(run.loss)
        h.seconds = self.before + sitting
        if self.log and run.is_main:
            rate = run.tokens_per_step * (run.step - run.first) / max(1e-9, sitting)
            row = {"step": run.step, "loss": run.loss, "gradient_norm": run.grad_norm, "rate_factor": run.rate_factor}
            row |= {"tokens": h.tokens, "seconds": round(h.seconds, 3), "tokens_per_second": round(rate, 1)}
            self.log(row)


class Progress(Callback):
    """A bar with loss and tokens per second, on the main process."""

    def __init__(self, description: str = "train"):
        self.description, self.bar = description, None

    def on_train_begin(self, run):
        total, off = run.training.max_steps, not run.is_main
        self.started = time.perf_counter()
        self.bar = progress_bar(
            total=total, initial=min(run.step, total), desc=self.description, unit="step", disable=off
        )

    def on_step_end(self, run):
        self.bar.update()
        return False

    def on_numbers(self, run):
        rate = run.tokens_per_step * (run.step - run.first) / max(1e-9, time.perf_counter() - self.started)
        self.bar.set_postfix_str(f"loss {run.loss:.4g}" + (f", {rate:,.0f} tokens/s" if rate else ""))

    def on_train_end(self, run):
        if self.bar is not None:
            self.bar.close()


class Evaluation(Callback):
    """Calls ``evaluate(step)`` every ``training.evaluate_every`` steps and at the end, on the main process, and keeps
    the numbers that it returns in the history."""

    def __init__(self, evaluate: Callable[[int], dict], log: Callable[[dict], None] | None = None):
        self.evaluate, self.log = evaluate, log

    def on_step_end(self, run):
        return run.every(run.training.evaluate_every)

    def on_numbers(self, run):
        if not (run.is_main and run.every(run.training.evaluate_every)):
            return
        run.module.eval()
        row = {"step": run.step, **self.evaluate(run.step)}
        run.module.train()
        try:
            json.dumps(row)
        except (TypeError, ValueError) as error:  # a checkpoint could not be written
            raise ValueError(f"evaluate returned what JSON has no place for ({error}): return numbers.") from error
        run.history.evaluations.append(row)
        if self.log:
            self.log(row)


class Checkpointing(Callback):
    """Saves every ``training.save_every`` steps, before a stop, and at the end; restores when a run is resumed.

    Args:
        place: a file, which is replaced, or a folder, which keeps the newest ``training.save_total_limit``.
        settings: JSON values that must agree for a checkpoint to be resumed.
        stream: has ``state()`` and ``restore(state)``, JSON: a place in a stream of text to come back to.
    """

    def __init__(self, place: Path | str | None, settings: dict, save_total_limit: int = 2, stream=None):
        self.files, self.settings, self.stream = Checkpoints(place, save_total_limit), settings, stream

    def restore(self, run: RunState, resume: bool) -> None:
        """Put a run where its newest checkpoint is, if there is one.

        Raises:
            FileExistsError: there is one, and ``resume`` was not asked for.
            ValueError: it is of another operator, of other settings, or not readable.
            OSError: the place can't be written to.
        """

        def newest() -> tuple[dict, dict] | None:
            self.files.make_place()
            if not self.files.files():
                return None
            if not resume:
                raise FileExistsError(
                    f"{self.files.place} exists. Pass resume=True (--resume) to continue it, or delete it to start "
                    "again."
                )
            return self.files.read(self.settings)

        if self.files.place is not None and getattr(self.stream, "buffered", False):
            warnings.warn(
                "This stream shuffles in a buffer, which no checkpoint holds: resumed, the run reads its text in "
                "another order. Leave .shuffle() out: a step takes its sequences from all files in turn.",
                stacklevel=2,
            )
        if found := broadcast_from_main(newest):
            notes, tensors = found
            restore(tensors, run.module, run.optimizers)
            try:
                run.step, run.history = notes["step"], History(**notes["history"])
            except TypeError as error:
                raise ValueError(
                    f"The newest checkpoint in {self.files.place} is of another version ({error})."
                ) from None
            if self.stream is not None:
                self.stream.restore(notes.get("stream") or {})

    def on_step_end(self, run):
        return self.files.place is not None and run.every(run.training.save_every)

    def on_numbers(self, run):
        if self.files.place is not None and (run.stopping or run.every(run.training.save_every)):
            self.save(run)

    def save(self, run: RunState) -> None:
        from accelerate.utils import gather_object

        states = gather_object([self.stream.state()]) if self.stream is not None else []
        if run.is_main:
            # A shard may be known to several processes, of which one reads it on: that one is farthest.
            farthest = sorted((item for part in states for item in part.items()), key=lambda item: item[1]["position"])
            notes = {"step": run.step, "history": run.history, "settings": self.settings, "stream": dict(farthest)}
            self.files.save(run.module, run.optimizers, notes)


class GracefulShutdown(Callback):
    """Remembers SIGINT (the stop button of a notebook, Ctrl-C), SIGTERM (a scheduler's) and SIGHUP (a terminal that
    closes), so that the run stops between two steps, after a checkpoint. A second signal does not wait, unless it comes
    within ``ECHO`` seconds: a scheduler and a launcher may both pass on the same one."""

    ECHO = 3.0

    def __init__(self):
        self.asked_at: float | None = None
        self.run: RunState | None = None
        self.before: dict = {}

    def on_train_begin(self, run):
        self.run = run
        if threading.current_thread() is threading.main_thread():  # no other thread may
            numbers = [signal.SIGINT, signal.SIGTERM]
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
                numbers.append(signal.SIGHUP)
            self.before = {number: signal.signal(number, self.remember) for number in numbers}

    def remember(self, number=None, frame=None) -> None:
        now = time.monotonic()
        if self.asked_at is not None and now - self.asked_at > self.ECHO:
            raise KeyboardInterrupt
        self.asked_at = self.asked_at or now
        self.run.stop_requested = True

    def on_step_end(self, run):
        return run.alone and run.stop_requested  # several processes agree on it when they next meet

    def on_train_end(self, run):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
