"""A run: from settings to a trained, evaluated, saved student. What ``lft-edu train`` and lesson 08 are made of.

    settings = lft.RunSettings(teacher="EleutherAI/pythia-410m", span=(6, 18), tokens=50_000_000, out="runs/pythia")
    print(lft.plan(settings))            # time, memory and disk, counted before anything starts
    run = lft.train(settings)            # interrupted? lft.train(settings, resume=True)

The folder ``out`` holds ``settings.json``, ``checkpoints/``, ``metrics.jsonl``, ``student/``, ``card.json`` and
``card.md``.
"""

import os
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..fitting import fit
from ..loading.corpora import HUB, load_corpus
from ..loading.teachers import load_teacher
from ..metrics import Evaluation, evaluate
from ..splicing import SplicedForCausalLM, splice
from ..support.files import locked, write_json
from ..support.machine import PeakMemory
from ..text import as_sequences
from ..training.callbacks import Evaluation as EvaluationCallback
from ..training.callbacks import History
from ..training.checkpoints import Checkpoints
from ..training.logs import MetricsLog
from ..training.processes import (
    broadcast_from_main,
    init_process_group,
    is_distributed,
    is_main_process,
    main_process_first,
)
from .cards import Card
from .settings import DTYPES, RunSettings, resolve_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Run:
    """A finished run.

    Attributes:
        teacher, tokenizer, student, history: what it used and made.
        evaluation: on the test split; None on all processes but the first, as are ``card`` and ``actual``.
        card: the results card (:mod:`lft_edu.runs.cards`).
        actual: seconds over all sittings, bytes of memory at the peak and on disk, to compare with the plan.
    """

    settings: RunSettings
    teacher: "PreTrainedModel" = field(repr=False)
    tokenizer: "PreTrainedTokenizerBase" = field(repr=False)
    student: SplicedForCausalLM = field(repr=False)
    history: History = field(repr=False)
    evaluation: Evaluation | None = None
    card: Card | None = field(default=None, repr=False)
    actual: dict | None = None


def train(
    settings: RunSettings,
    resume: bool = False,
    teacher: "PreTrainedModel | None" = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    progress: bool = True,
) -> Run:
    """Train, evaluate and save a student.

    Args:
        resume: continue from the newest checkpoint in ``settings.out``, if there is one.
        teacher, tokenizer: if they are already loaded.

    Raises:
        FileExistsError: the folder holds a run, and ``resume`` is not set; another process is training in it; or a file
            stands where one of its folders belongs.
        ValueError: it holds a run with other settings.
        KeyboardInterrupt: interrupted; a checkpoint is saved.
        OSError: see :func:`lft_edu.load_teacher`, :func:`lft_edu.load_corpus` and :func:`lft_edu.fit`.
    """
    from ..support.machine import default_device

    device = default_device()
    if is_distributed():
        init_process_group(device)
    with ExitStack() as claims:
        settings, begun = broadcast_from_main(lambda: _claimed(settings, resume, claims))
        return _trained(settings, begun, device, resume, teacher, tokenizer, progress)


def _claimed(settings: RunSettings, resume: bool, claims: ExitStack) -> tuple[RunSettings, bool]:
    """:func:`resolve_settings` of a folder that this process has for itself, and where all can be written."""
    out = Path(settings.out)
    claims.enter_context(locked(out))
    for name in ("student", "checkpoints"):
        if (out / name).exists() and not (out / name).is_dir():
            raise FileExistsError(f"{out / name} is a file, and the run writes a folder there. Move it away.")
    for name in ("settings.json", "metrics.jsonl", "card.json", "card.md"):
        if (out / name).is_dir():
            raise FileExistsError(f"{out / name} is a folder, and the run writes a file there. Move it away.")
    return resolve_settings(settings, resume)


def _trained(
    settings: RunSettings, begun: bool, device: torch.device, resume: bool, teacher, tokenizer, progress: bool
) -> Run:
    """:func:`train` in a folder that is claimed; ``begun``: there are checkpoints in it to resume from."""
    out = Path(settings.out)
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
        held = as_sequences(held, teacher)  # read once, not at every evaluation
        if not begun:
            write_json(out / "settings.json", asdict(settings))
    with PeakMemory(device) as memory:
        history = fit_operator(settings, student, teacher, corpus, held, resume, progress)
        trained = time.perf_counter()
        run = Run(settings, teacher, tokenizer, student, history)
        if is_main_process():
            run.evaluation = evaluate(student, teacher, held, progress=progress)
    if run.evaluation is not None:  # on the main process
        run.card = Card.of(student, teacher, run.evaluation, corpus=settings.corpus, training=training_notes(run))
        save(run, out)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        spent = history.seconds + time.perf_counter() - trained  # in all sittings, and after them
        run.actual = {"seconds": spent, "memory": memory.peak, "disk": size}
    return run


def corpora_of(settings: RunSettings, tokenizer) -> tuple:
    """The text to train on, and the text to evaluate on."""
    streamed = HUB[settings.corpus].streamed if settings.corpus in HUB else False
    if settings.streaming is not None:
        streamed = settings.streaming
    options: dict = {"streaming": settings.streaming, "revision": settings.corpus_revision}

    def load(split: str, max_tokens: int | None):
        return load_corpus(
            settings.corpus, tokenizer, split, settings.sequence_length, max_tokens=max_tokens, **options
        )

    return load("train", None if streamed else settings.total_tokens()), load(
        "test", settings.eval_tokens
    )  # a stream is read as needed


def fit_operator(settings: RunSettings, student, teacher, corpus, held_out, resume: bool, progress: bool) -> History:
    """:func:`lft_edu.fit` with everything the settings say."""
    out, objective = Path(settings.out), settings.make_objective()
    training = settings.training(int(os.environ.get("WORLD_SIZE", 1)))
    if objective is None:
        return fit(student, teacher, corpus, training=training, progress=progress)
    log = None
    if is_main_process():
        done = Checkpoints(out / "checkpoints").newest_step() if resume else 0
        log = MetricsLog(out / "metrics.jsonl", done, settings.trackers, settings.deciding())

    def measure(step: int) -> dict:
        with torch.autocast(teacher.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            found = evaluate(student, teacher, held_out)
        return {"kl": found.kl, "nmse": found.nmse}

    callbacks = [EvaluationCallback(measure, log)] if settings.evaluate_every else []
    try:
        return fit(
            student,
            teacher,
            corpus,
            objective,
            training=training,
            checkpoint=out / "checkpoints",
            resume=resume,
            callbacks=callbacks,
            log=log,
            progress=progress,
        )
    finally:
        if log:
            log.close()


def training_notes(run: Run) -> dict:
    """What the card says of the training."""
    settings, history = run.settings, run.history
    names = ("corpus", "corpus_revision", "sequence_length", "batch_size", "gradient_accumulation_steps", "optimizer")
    notes = {"objective": settings.objective_name, "lr": settings.rate(run.teacher.config.hidden_size)}
    notes |= {"num_steps": settings.walk[0], "solver": settings.walk[1]} if settings.operator == "flow" else {}
    notes |= {name: getattr(settings, name) for name in (*names, "precision", "dtype", "seed")}
    return notes | {"tokens": history.tokens, "seconds": round(history.seconds, 1)}


def save(run: Run, out: Path) -> None:
    """Save the student with its tokenizer, and the card."""
    run.student.save_pretrained(out / "student")
    run.tokenizer.save_pretrained(out / "student")
    run.card.save(out)
