"""Plans: the settings of a run, and what it will take, counted before anything starts."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from . import costs, hub
from .costs import Shape
from .fitting import OBJECTIVES, OPTIMIZERS
from .flow import STEPS
from .metrics import evaluation_batch
from .naming import unknown
from .operators import operator_from_dict
from .splicing import check_span

# Settings that may change where a run goes on. (A step must take as many sequences as before, which `fit` looks after.)
INCIDENTAL = (
    "batch", "accumulate", "compile", "held", "save_every", "keep", "evaluate_every", "tensorboard", "out",
)  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class RunSettings:
    """Everything a run depends on.

    Attributes:
        teacher, revision: see :func:`lft_edu.load_teacher`.
        span, operator, solver, k: what replaces which layers; ``k`` steps of ``solver`` walk the flow.
        objective: of :func:`lft_edu.fit`; None: regression for a regression, else Flow Walking.
        train_k: steps of the walk in training, if others than ``k``; alpha: of the hybrid.
        corpus, tokens, block: text, number of tokens to train on, tokens a sequence.
        corpus_revision: commit of a corpus on the hub; None: a run takes the newest, and keeps to it.
        streaming: read a corpus of the hub while training; None: as the corpus needs.
        batch, accumulate: sequences a process takes at once, and how often before each step.
        optimizer, lr: lr None: 0.03 for Muon, for AdamW 0.002 at width 64 and less by the root of the width (ours).
        precision: ``"no"`` or ``"bf16"``; dtype: of the teacher, ``"float32"`` or ``"bfloat16"``.
        held: test tokens of the evaluation at the end.
        save_every, keep, evaluate_every: in steps; checkpoints to keep; 0 evaluates at the end only.
        out: the run's folder.
    """

    teacher: str = "bundled"
    revision: str | None = None
    span: tuple[int, int] = (6, 18)
    operator: str = "flow"
    objective: str | None = None
    solver: str = "midpoint"
    k: int = 3
    train_k: int | None = None
    alpha: float = 0.1
    corpus: str = "python-stdlib"
    corpus_revision: str | None = None
    streaming: bool | None = None
    tokens: int = 500_000
    block: int = 128
    batch: int = 16
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float | None = None
    precision: str = "no"
    dtype: str = "float32"
    compile: bool = False
    held: int = 20_000
    save_every: int = 200
    keep: int = 2
    evaluate_every: int = 0
    tensorboard: bool = False
    seed: int = 0
    out: str = "runs/student"

    def __post_init__(self):
        object.__setattr__(self, "span", tuple(self.span))
        for name in ("tokens", "block", "batch", "accumulate", "k", "save_every", "keep", "held"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1.")
        allowed = {"dtype": DTYPES, "solver": STEPS, "optimizer": OPTIMIZERS, "precision": ("no", "bf16")}
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}.")
        if self.objective and self.objective not in OBJECTIVES:
            raise unknown("objective", self.objective, OBJECTIVES)
        self.make_operator()  # ValueError for an operator that is unknown
        if self.objective and self.operator not in ("flow", "regression"):
            raise ValueError(f"operator {self.operator!r} is solved, not trained: it takes no objective. Leave it out.")
        if self.dtype == "bfloat16" and self.precision == "no":
            raise ValueError('A bfloat16 teacher is trained from under precision="bf16": set both, or neither.')

    @property
    def trained_by(self) -> str:
        """The objective, by name; ``"solved"`` for an operator in closed form."""
        if self.operator not in ("flow", "regression"):
            return "solved"
        return self.objective or self.default_objective

    @property
    def default_objective(self) -> str:
        return "regression" if self.operator == "regression" else "flow_walking"

    @property
    def walk(self) -> tuple[int, str]:
        """Steps and solver of the walk in training."""
        return self.train_k or self.k, self.solver

    @property
    def name(self) -> str:
        """Such as ``flow_walking-6-18-3f2a91``: another name for any other result, to keep runs apart by."""
        what = json.dumps([self.deciding(), self.batch * self.accumulate], sort_keys=True)
        digest = hashlib.sha256(what.encode()).hexdigest()[:6]
        return f"{self.objective or self.operator}-{self.span[0]}-{self.span[1]}-{digest}"

    def deciding(self) -> dict:
        """The settings that decide what is trained; the others say how much at once, what is kept and what is shown."""
        return {name: value for name, value in asdict(self).items() if name not in INCIDENTAL}

    def make_operator(self):
        """The operator, not built yet."""
        flow = {"solver": self.solver, "steps": self.k} if self.operator == "flow" else {}
        return operator_from_dict({"kind": self.operator, **flow})

    def rate(self, width: int) -> float:
        """Peak learning rate."""
        return self.lr or (0.03 if self.optimizer == "muon" else 2e-3 * (64 / width) ** 0.5)

    def tokens_a_step(self, processes: int = 1) -> int:
        """Tokens of one optimiser step, all processes together."""
        return self.block * self.batch * self.accumulate * processes

    def steps(self, processes: int = 1) -> int:
        """Optimiser steps that ``tokens`` tokens make."""
        return max(1, self.tokens // self.tokens_a_step(processes))


@dataclass(frozen=True)
class Plan:
    """What a run will take: counted from the teacher's shape, its text and this device. Bytes, seconds, FLOP/s.

    Attributes:
        speed, share: of bare matrix products on this device, and the share of it that whole steps should reach.
        seconds, reading: of the run, and of reading its text alone, which goes on beside it.
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
        how = s.trained_by if s.trained_by == "solved" else f"trained by {s.trained_by}"
        rows = [
            ("teacher", f"{s.teacher}: {self.shape.depth} layers, width {self.shape.width}, "
                        f"{self.shape.parameters / 1e6:,.1f} M parameters"),
            ("operator", f"{s.operator} for layers {m}–{n}, {how}"),
            ("text", f"{self.steps:,} steps of {s.tokens_a_step(self.processes):,} tokens of {s.corpus}"),
            ("device", f"{self.device} × {self.processes}, {self.speed / 1e9:,.0f} GFLOP/s in matrix products, "
                       f"of which whole steps should reach {self.share:.0%}"),
            ("operations", f"{self.flops_per_token * s.tokens:.2e} FLOP, {self.flops_per_token / 1e6:,.1f} M a token"),
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

    def compared(self, taken: dict) -> str:
        """Planned beside taken, of ``run.taken``."""
        rows = [("", "planned", "taken")]
        rows.append(("time", duration(self.seconds), duration(taken["seconds"])))
        rows.append(("memory", gigabytes(self.memory), gigabytes(taken["memory"])))
        rows.append(("disk", gigabytes(self.disk), gigabytes(taken["disk"])))
        return "\n".join(f"{name:<8} {planned:>10} {taken:>10}" for name, planned, taken in rows)


def duration(seconds: float) -> str:
    """``90`` as ``"1.5 min"``."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def gigabytes(count: float) -> str:
    """Bytes as ``"1.25 GB"``, or in MB below a tenth of one."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def blank_teacher(name: str, revision: str | None = None):
    """A teacher without weights (on torch's meta device), and the bytes that loading it would download.

    Raises:
        ValueError, OSError: a teacher that is not there; ConnectionError, the hub is out of reach.
    """
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig, AutoModelForCausalLM

    from .teachers import ASSETS, _folder_or_hub_name

    place = ASSETS / "teacher" if name == "bundled" else _folder_or_hub_name(name)
    download = 0
    if not isinstance(place, Path):
        try:
            found = hub.look_up(place, revision)
            download, commit, cached = found.missing, found.commit, False
        except ConnectionError:
            commit, cached = revision, True  # it may be on this disk
        with hub.explained(name, revision):
            place = Path(hf_hub_download(name, "config.json", revision=commit, local_files_only=cached)).parent
    config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config), download


def plan(settings: RunSettings, teacher=None, processes: int | None = None) -> Plan:
    """What a run will take, before it starts. Downloads at most a config, and times matrix products for a moment.

    Pythia is planned without the hub, too: its shape is known.

    Args:
        teacher: the teacher, if it is loaded already.
        processes: that will share the work; those of the launcher, if None.

    Raises:
        ValueError, OSError: settings that can't work, a teacher that is not there.
    """
    from .teachers import default_device

    device, dtype = default_device(), DTYPES[settings.dtype]
    model, download, unseen = (teacher, 0, False) if teacher is not None else _blank_or_published(settings)
    shape, objective, (k, solver) = Shape.of(model), settings.trained_by, settings.walk
    check_span(settings.span, shape.depth)
    processes = processes or int(os.environ.get("WORLD_SIZE", 1))
    tokens = settings.block * settings.batch
    counted = costs.run_costs(
        model, settings.span, objective, k, solver, settings.block, settings.optimizer, settings.make_operator()
    )
    speed = costs.matmul_speed(shape.width, device, torch.bfloat16 if settings.precision == "bf16" else dtype)
    steps, share = settings.steps(processes), costs.reached(shape.width, device)
    flops = counted.training_flops * settings.tokens / processes
    flops += steps * counted.optimizer_flops + counted.evaluation_flops * settings.held
    seconds = flops / (speed * share)
    reading = settings.tokens / processes / costs.TEXT_SPEED
    batch = evaluation_batch(shape.vocabulary, settings.block)
    needs = [counted.training_memory(tokens, dtype, settings.precision)]
    needs.append(counted.evaluation_memory(batch * settings.block, dtype))
    saved = counted.student_parameters * costs.BYTES[dtype]
    out = Path(settings.out)
    return Plan(
        settings=settings, shape=shape, device=device_name(device), processes=processes,
        steps=steps, flops_per_token=counted.training_flops, speed=speed, share=share,
        seconds=max(seconds, reading), reading=reading,
        memory=max(needs) + (0 if device.type == "cuda" else costs.PROGRAM), free_memory=free_memory(device),
        download=download, disk=(settings.keep + 1) * counted.checkpoint_bytes + saved,
        free_disk=hub.free_space(out), unseen=unseen,
    )  # fmt: skip


def _blank_or_published(settings: RunSettings) -> tuple:
    """A blank teacher, its download, and whether both come from memory, since the hub is out of reach."""
    from .teachers import SHAPES, random_teacher

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

    ``batch`` is halved and ``accumulate`` doubled, so a step takes the same sequences. The plan's ``settings`` are the
    ones to train by. It may still not fit.
    """
    found = plan(settings, teacher, processes)
    while found.memory > found.free_memory and settings.batch % 2 == 0:
        settings = replace(settings, batch=settings.batch // 2, accumulate=2 * settings.accumulate)
        found = plan(settings, teacher, processes)
    return found


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or in this computer."""
    import psutil

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
