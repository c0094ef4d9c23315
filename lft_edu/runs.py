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

from . import hub
from .cards import Card
from .checkpoints import Checkpoints, differences
from .corpora import HUB, load_corpus
from .costs import PeakMemory
from .files import whole
from .fitting import fit
from .metrics import Evaluation, blocks_of, evaluate
from .plans import DTYPES, RunSettings
from .splicing import splice
from .teachers import load_teacher
from .training import History, from_main, is_main, join, launched


@dataclass
class Run:
    """A finished run.

    Attributes:
        teacher, tokenizer, student, history: what it used and made.
        evaluation: on the test split; None on all processes but the first, as are ``card`` and ``taken``.
        card: the results card (:mod:`lft_edu.cards`).
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
        with whole(path) as partial:
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


@contextmanager
def in_turn(device: torch.device):
    """Under a launcher: a block that the main process runs first, then one process of every other machine, then the
    rest, from their machine's cache."""
    if not launched():
        yield
        return
    processes = join(device)
    with processes.main_process_first(), processes.local_main_process_first():
        yield


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
    from .teachers import default_device

    out, device = Path(settings.out), default_device()
    if launched():
        join(device)
    settings, begun = from_main(lambda: settled(settings, resume))
    if device.type == "cuda" and settings.precision == "bf16":
        torch.backends.cuda.matmul.allow_tf32 = True  # what is in float32 still, such as a teacher loaded so
    with in_turn(device):
        if teacher is None:
            teacher, tokenizer = load_teacher(
                settings.teacher, dtype=DTYPES[settings.dtype], revision=settings.revision
            )
        corpus, held = corpora_of(settings, tokenizer)
    student = splice(teacher, settings.span, settings.make_operator())
    if is_main():
        held = blocks_of(held)  # read once, not at every glance
        out.mkdir(parents=True, exist_ok=True)
        if not begun:
            with whole(out / "settings.json") as partial:
                partial.write_text(json.dumps(asdict(settings), indent=1))
    with PeakMemory(device) as memory:
        history = fit_operator(settings, student, teacher, corpus, held, resume, progress)
        trained = time.perf_counter()
        run = Run(settings, teacher, tokenizer, student, history)
        if is_main():
            run.evaluation = evaluate(student, teacher, held, progress=progress)
    if is_main():
        run.card = Card.of(student, teacher, run.evaluation, corpus=settings.corpus, training=training_notes(run))
        save(run, out)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        spent = history.seconds + time.perf_counter() - trained  # in all sittings, and after them
        run.taken = {"seconds": spent, "memory": memory.peak, "disk": size}
    return run


def settled(settings: RunSettings, resume: bool) -> tuple[RunSettings, bool]:
    """The settings with the commit of their text, and whether ``out`` holds a run that they go on with.

    Raises as :func:`train` does if it holds another.
    """
    out = Path(settings.out)
    begun = bool(Checkpoints(out / "checkpoints").files())
    closed = (out / "card.json").exists() and not begun  # an operator that was solved has a card and no checkpoints
    if (begun or closed) and not resume:
        raise FileExistsError(f"{out} holds a run. Pass resume=True (--resume) to continue it, or choose another out.")
    file = out / "settings.json"
    then = _settings_in(file) if begun and file.exists() else None
    if settings.corpus in HUB and settings.corpus_revision is None:
        commit = then.corpus_revision if then else hub.dataset_commit(HUB[settings.corpus].repository)
        settings = replace(settings, corpus_revision=commit)
    if then and (changed := differences(then.deciding(), settings.deciding())):
        lines = "; ".join(changed.values())
        raise ValueError(f"{out} holds a run with other settings ({lines}). Use those, or another out.")
    return settings, begun


def _settings_in(file: Path) -> RunSettings:
    """The settings of an earlier run; those of another version of this library that are no more are passed over."""
    known = {field.name for field in fields(RunSettings)}
    try:
        return RunSettings(**{name: value for name, value in json.loads(file.read_text()).items() if name in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}). Delete it to go on without its check.") from error


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
    if is_main():
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
    run.card.save(out)
