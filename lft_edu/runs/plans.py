"""What a run will take, counted before it starts: time, memory, disk."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..loading.teachers import blank_teacher
from ..splicing import check_span
from ..support.machine import device_name, evaluation_batch, free_memory, free_space
from . import costs
from .costs import Shape
from .settings import DTYPES, RunSettings


@dataclass(frozen=True)
class Plan:
    """What a run will take: counted from the teacher's shape, its text and this device. Bytes, seconds, FLOP/s.

    Attributes:
        speed, share: of bare matrix products on this device, and the share of it that whole steps should reach.
        seconds, reading: of the run, and of reading its text alone, which happens at the same time.
        unseen: the hub was out of reach, and the teacher's shape is taken from memory.
    """

    settings: RunSettings
    shape: Shape
    device: str
    processes: int
    steps: int
    flops_per_token: float
    speed: float
    share: float
    seconds: float
    reading: float
    memory: float
    free_memory: float
    download: int
    disk: int
    free_disk: int
    unseen: bool = False

    @property
    def fits(self) -> bool:
        """Are memory and disk enough?"""
        return self.memory < self.free_memory and self.download + self.disk < self.free_disk

    @property
    def reads(self) -> bool:
        """Does reading the text take longer than computing with it?"""
        return self.reading >= self.seconds

    def __str__(self) -> str:
        s, (m, n) = self.settings, self.settings.span
        how = s.objective_name if s.objective_name == "solved" else f"trained by {s.objective_name}"
        rows = [
            ("teacher", f"{s.teacher}: {self.shape.depth} layers, width {self.shape.width}, "
                        f"{self.shape.parameters / 1e6:,.1f} M parameters"),
            ("operator", f"{s.operator} for layers {m}–{n}, {how}"),
            ("text", f"{self.steps:,} steps of {s.tokens_per_step(self.processes):,} tokens of {s.corpus}"),
            ("device", f"{self.device} × {self.processes}, {self.speed / 1e9:,.0f} GFLOP/s in matrix products, "
                       f"of which whole steps should reach {self.share:.0%}"),
            ("operations", f"{self.flops_per_token * s.tokens:.2e} FLOP, {self.flops_per_token / 1e6:,.1f} M/token"),
            ("time", duration(self.seconds) + (", as long as reading the text takes" if self.reads else "")),
            ("memory", f"{gigabytes(self.memory)} (free: {gigabytes(self.free_memory)})"),
            ("disk", f"{gigabytes(self.download)} to download, {gigabytes(self.disk)} for the run "
                     f"(free: {gigabytes(self.free_disk)})"),
        ]  # fmt: skip
        lines = [f"{name:<11} {text}" for name, text in rows]
        if self.unseen:
            lines.append("The hub is out of reach: shape and download are those that the model was published with.")
        if not self.fits:
            lines.append("It does not fit: lower batch or block, or free some memory or disk.")
        return "\n".join(lines)

    def compared(self, actual: dict) -> str:
        """Plan and outcome side by side; ``actual`` is ``run.actual``."""
        rows = [("", "planned", "actual")]
        rows.append(("time", duration(self.seconds), duration(actual["seconds"])))
        rows.append(("memory", gigabytes(self.memory), gigabytes(actual["memory"])))
        rows.append(("disk", gigabytes(self.disk), gigabytes(actual["disk"])))
        return "\n".join(f"{name:<8} {planned:>10} {actual:>10}" for name, planned, actual in rows)


def duration(seconds: float) -> str:
    """``90`` as ``"1.5 min"``."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def gigabytes(count: float) -> str:
    """Bytes as ``"1.25 GB"``, or in MB below a tenth of one."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def plan(settings: RunSettings, teacher=None, processes: int | None = None) -> Plan:
    """What a run will take, before it starts. Downloads at most a config, and times matrix products for a moment.

    Pythia is planned without the hub, too: its shape is known.

    Args:
        teacher: the teacher, if it is loaded already.
        processes: that will share the work; those of the launcher, if None.

    Raises:
        ValueError, OSError: settings that can't work, a teacher that is not there.
    """
    from ..support.machine import default_device

    device, dtype = default_device(), DTYPES[settings.dtype]
    model, download, unseen = (teacher, 0, False) if teacher is not None else _blank_or_published(settings)
    shape, (k, solver) = costs.Shape.of(model), settings.walk
    check_span(settings.span, shape.depth)
    processes = processes or int(os.environ.get("WORLD_SIZE", 1))
    length = settings.sequence_length
    counted = costs.run_costs(
        model, settings.span, settings.objective_name, k, solver, length, settings.optimizer, settings.make_operator()
    )
    speed = costs.matmul_speed(shape.width, device, torch.bfloat16 if settings.precision == "bf16" else dtype)
    share, training = costs.reached(shape.width, device), settings.training(processes)
    tokens = settings.total_tokens(processes)
    flops = counted.training_flops * tokens / processes
    flops += training.max_steps * counted.optimizer_flops + counted.evaluation_flops * settings.eval_tokens
    seconds, reading = flops / (speed * share), tokens / processes / costs.TEXT_SPEED
    at_once = evaluation_batch(shape.vocabulary, length) * length
    needs = [counted.training_memory(length * settings.batch_size, dtype, settings.precision)]
    needs.append(counted.evaluation_memory(at_once, dtype))
    saved = counted.student_parameters * costs.BYTES[dtype]
    return Plan(
        settings=settings,
        shape=shape,
        device=device_name(device),
        processes=processes,
        steps=training.max_steps,
        flops_per_token=counted.training_flops,
        speed=speed,
        share=share,
        seconds=max(seconds, reading),
        reading=reading,
        memory=max(needs) + (0 if device.type == "cuda" else costs.PROGRAM),
        free_memory=free_memory(device),
        download=download,
        disk=(settings.save_total_limit + 1) * counted.checkpoint_bytes + saved,
        free_disk=free_space(Path(settings.out)),
        unseen=unseen,
    )


def _blank_or_published(settings: RunSettings) -> tuple:
    """A blank teacher, its download, and whether both come from memory, since the hub is out of reach."""
    from ..loading.teachers import SHAPES, random_teacher

    try:
        return *blank_teacher(settings.teacher, settings.revision), False
    except ConnectionError:
        shape = settings.teacher.removeprefix("EleutherAI/")
        if shape not in SHAPES:
            raise
        model = random_teacher(shape, device="meta")
        return model, 2 * sum(p.numel() for p in model.parameters()), True  # published in float16


def plan_that_fits(settings: RunSettings, teacher=None, processes: int | None = None) -> Plan:
    """The plan of this run, in smaller pieces if memory asks for it.

    ``batch_size`` is halved and ``gradient_accumulation_steps`` doubled, so a step takes the same sequences. The
    plan's ``settings`` are the ones to train by. It may still not fit.
    """
    found = plan(settings, teacher, processes)
    while found.memory > found.free_memory and settings.batch_size % 2 == 0:
        settings = replace(
            settings,
            batch_size=settings.batch_size // 2,
            gradient_accumulation_steps=2 * settings.gradient_accumulation_steps,
        )
        found = plan(settings, teacher, processes)
    return found
