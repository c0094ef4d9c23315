"""A run: from settings to a trained, evaluated, saved student. What ``lft-edu train`` and lesson 08 are made of.

    settings = lft.RunSettings(teacher="EleutherAI/pythia-410m", span=(6, 18), tokens=50_000_000, out="runs/pythia")
    print(lft.plan(settings))            # time, memory and disk, counted before anything starts
    run = lft.train(settings)            # interrupted? lft.train(settings, resume=True)

The folder ``out`` holds ``settings.json``, ``checkpoints/``, ``metrics.jsonl``, ``student/``, ``card.json`` and
``card.md``.
"""

import json
import os
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch

from ..loading import hub
from .cards import make_card, save_card
from ..training.checkpoints import Checkpoints, differences
from ..loading.corpora import HUB, load_corpus
from ..support.machine import PeakMemory
from ..support.files import atomic_write
from ..fitting import fit
from ..metrics import Evaluation, evaluate
from ..text import as_sequences
from .settings import DTYPES, RunSettings
from ..splicing import splice
from ..loading.teachers import load_teacher
from ..training.callbacks import History
from ..training.processes import (
    broadcast_from_main,
    init_process_group,
    is_distributed,
    is_main_process,
    main_process_first,
)


@dataclass
class Run:
    """A finished run.

    Attributes:
        teacher, tokenizer, student, history: what it used and made.
        evaluation: on the test split; None on all processes but the first, as are ``card`` and ``taken``.
        card: the results card (:mod:`lft_edu.runs.cards`).
        taken: seconds over all sittings, bytes of memory at the peak and of disk, to be held against the plan.
    """

    settings: RunSettings
    teacher: object = field(repr=False)
    tokenizer: object = field(repr=False)
    student: object = field(repr=False)
    history: History = field(repr=False)
    evaluation: Evaluation | None = None
    card: dict | None = field(default=None, repr=False)
    taken: dict | None = None


def train(settings: RunSettings, resume: bool = False, teacher=None, tokenizer=None, progress: bool = True) -> Run:
    """Train, evaluate and save a student.

    Args:
        resume: go on from the newest checkpoint in ``settings.out``, if there is one.
        teacher, tokenizer: if they are loaded already.

    Raises:
        FileExistsError: the folder holds a run, and ``resume`` is not asked for.
        ValueError: it holds a run with other settings.
        KeyboardInterrupt: interrupted; a checkpoint is saved.
        OSError: see :func:`lft_edu.load_teacher`, :func:`lft_edu.load_corpus` and :func:`lft_edu.fit`.
    """
    from ..support.machine import default_device

    out, device = Path(settings.out), default_device()
    if is_distributed():
        init_process_group(device)
    settings, begun = broadcast_from_main(lambda: settled(settings, resume))
    if device.type == "cuda" and settings.precision == "bf16":
        torch.backends.cuda.matmul.allow_tf32 = True  # what is in float32 still, such as a teacher loaded so
    with main_process_first(device):
        if teacher is None:
            teacher, tokenizer = load_teacher(
                settings.teacher, dtype=DTYPES[settings.dtype], revision=settings.revision
            )
        corpus, held = corpora_of(settings, tokenizer)
    student = splice(teacher, settings.span, settings.make_operator())
    if is_main_process():
        held = as_sequences(held)  # read once, not at every glance
        out.mkdir(parents=True, exist_ok=True)
        if not begun:
            with atomic_write(out / "settings.json") as partial:
                partial.write_text(json.dumps(asdict(settings), indent=1))
    with PeakMemory(device) as memory:
        history = fit_operator(settings, student, teacher, corpus, held, resume, progress)
        trained = time.perf_counter()
        run = Run(settings, teacher, tokenizer, student, history)
        if is_main_process():
            run.evaluation = evaluate(student, teacher, held, progress=progress)
    if is_main_process():
        run.card = make_card(student, teacher, run.evaluation, corpus=settings.corpus, training=training_notes(run))
        save(run, out)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        spent = history.seconds + time.perf_counter() - trained  # in all sittings, and after them
        run.taken = {"seconds": spent, "memory": memory.peak, "disk": size}
    return run


def corpora_of(settings: RunSettings, tokenizer) -> tuple:
    """The text to train on, and the text to evaluate on."""
    streamed = settings.streaming or (settings.streaming is None and settings.corpus == "pile")
    wanted = None if streamed else settings.tokens  # a stream is read as far as the steps go
    options = {"streaming": settings.streaming, "revision": settings.corpus_revision}
    load = lambda split, tokens: load_corpus(  # noqa: E731
        settings.corpus, tokenizer, split, settings.block, max_tokens=tokens, **options
    )
    return load("train", wanted), load("test", settings.held)


def fit_operator(settings: RunSettings, student, teacher, corpus, held, resume: bool, progress: bool) -> History:
    """:func:`lft_edu.fit` with everything the settings say."""
    out, (k, solver) = Path(settings.out), settings.walk
    processes = int(os.environ.get("WORLD_SIZE", 1))
    log = None
    if is_main_process():
        done = Checkpoints(out / "checkpoints").newest_step() if resume else 0
        log = MetricsLog(out / "metrics.jsonl", done, settings.tensorboard)

    def glance(step: int) -> dict:
        with torch.autocast(teacher.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            found = evaluate(student, teacher, held)
        return {"kl": found.kl, "nmse": found.nmse}

    try:
        return fit(
            student, teacher, corpus, settings.objective or settings.default_objective,
            steps=settings.steps(1 if settings.trained_by == "solved" else processes), batch_size=settings.batch,
            accumulate=settings.accumulate, lr=settings.rate(teacher.config.hidden_size), k=k, step=solver,
            alpha=settings.alpha, optimizer=settings.optimizer, seed=settings.seed, precision=settings.precision,
            compile=settings.compile, checkpoint=out / "checkpoints", save_every=settings.save_every,
            keep=settings.keep, resume=resume, evaluate=glance if settings.evaluate_every else None,
            evaluate_every=settings.evaluate_every, log=log, progress=progress,
        )  # fmt: skip
    finally:
        if log:
            log.close()


def training_notes(run: Run) -> dict:
    """What the card says of the training."""
    settings, history = run.settings, run.history
    names = ("corpus", "corpus_revision", "block", "batch", "accumulate", "optimizer", "precision", "dtype", "seed")
    notes = {"objective": settings.trained_by, "lr": settings.rate(run.teacher.config.hidden_size)}
    notes |= {"k": settings.walk[0], "solver": settings.walk[1]} if settings.operator == "flow" else {}
    notes |= {name: getattr(settings, name) for name in names}
    return notes | {"tokens": history.tokens, "seconds": round(history.seconds, 1)}


def save(run: Run, out: Path) -> None:
    """The student with its tokenizer, and the card."""
    run.student.save_pretrained(out / "student")
    run.tokenizer.save_pretrained(out / "student")
    save_card(run.card, out)
