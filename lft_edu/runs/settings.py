"""Everything that a run depends on: a :class:`~lft_edu.training.settings.Training`, with its teacher, span and text."""

import hashlib
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from ..flow import STEPS
from ..loading import hub
from ..loading.corpora import HUB
from ..objectives import OBJECTIVES, Objective, make_objective
from ..operators import Operator, operator_from_dict
from ..support import checks
from ..support.arguments import count
from ..support.settings import setting
from ..training.checkpoints import Checkpoints, differences
from ..training.settings import Training

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class RunSettings(Training):
    """Everything that a run depends on; what each field means is its ``help``, also in ``lft-edu train --help``."""

    # the only field that may be None here and not in a Training, which .training() makes
    max_steps: int | None = setting(  # type: ignore[assignment]
        None, "optimizer steps (default: as --tokens asks)", at_least=1, formerly="steps"
    )
    teacher: str = setting("bundled", "bundled, owner/name on the hub, or a folder")
    revision: str | None = setting(None, "commit, tag or branch of a teacher on the hub")
    span: tuple[int, int] = setting((6, 18), "layers m:n to replace, half-open, such as 6:18")
    operator: str = setting("flow", "flow, regression, ridge, procrustes or mean-shift")
    objective: str | None = setting(
        None, "what it is trained on (default: flow_walking; regression for a regression)", choices=OBJECTIVES
    )
    solver: str = setting("midpoint", "of the flow's walk", choices=STEPS)
    num_steps: int = setting(3, "steps of the walk", at_least=1, formerly="k")
    train_num_steps: int | None = setting(
        None, "steps of the walk in training, if not those of the student", at_least=1, formerly="train_k"
    )
    alpha: float = setting(0.1, "weight of flow matching in hybrid", at_least=0)
    corpus: str = setting("python-stdlib", "a corpus name, or a file or folder of text")
    corpus_revision: str | None = setting(None, "commit of a corpus on the hub (default: the newest, kept on resuming)")
    streaming: bool | None = setting(None, "read a corpus of the hub while training")
    tokens: int = setting(500_000, "tokens to train on, such as 500k or 2M", at_least=1, parse=count)
    sequence_length: int = setting(128, "tokens per sequence", at_least=2, formerly="block")
    dtype: str = setting("float32", "of the teacher", choices=DTYPES)
    eval_tokens: int = setting(
        20_000, "held-out tokens of the evaluation", at_least=1, formerly="held", incidental=True, parse=count
    )
    report_to: str = setting("", "trackers, such as tensorboard or wandb,mlflow", incidental=True)
    out: str = setting("runs/student", "the run's folder", incidental=True)

    def __post_init__(self):
        object.__setattr__(self, "span", tuple(checks.several(checks.whole(), "numbers")("span", self.span)))
        if len(self.span) != 2:
            raise ValueError(f"span={self.span}: give two layer numbers (m, n), such as (6, 18).")
        super().__post_init__()
        if not self.out:
            raise ValueError("out is an empty name: give the run's folder, such as runs/student.")
        self.make_operator()  # ValueError for an operator that is unknown
        if self.objective and not self.make_operator().trainable:
            raise ValueError(f"operator {self.operator!r} is solved, not trained: it takes no objective. Leave it out.")
        if self.dtype == "bfloat16" and self.precision == "no":
            raise ValueError('A bfloat16 teacher needs precision="bf16": set both, or neither.')

    @classmethod
    def renamed(cls, options: dict, warn: bool = True) -> dict:
        tensorboard = options.pop("tensorboard", False)  # a switch, before there were other trackers
        return super().renamed(options | ({"report_to": "tensorboard"} if tensorboard else {}), warn)

    @property
    def objective_name(self) -> str:
        """The objective, by name; ``"solved"`` for an operator in closed form."""
        if not self.make_operator().trainable:
            return "solved"
        return self.objective or ("regression" if self.operator == "regression" else "flow_walking")

    @property
    def walk(self) -> tuple[int, str]:
        """Steps and solver of the walk in training."""
        return self.num_steps if self.train_num_steps is None else self.train_num_steps, self.solver

    @property
    def name(self) -> str:
        """Such as ``flow_walking-6-18-3f2a91``: another name for any other result, to keep runs apart by."""
        what = json.dumps([self.deciding(), self.batch_size * self.gradient_accumulation_steps], sort_keys=True)
        digest = hashlib.sha256(what.encode()).hexdigest()[:6]
        return f"{self.objective or self.operator}-{self.span[0]}-{self.span[1]}-{digest}"

    @property
    def trackers(self) -> tuple[str, ...]:
        return tuple(filter(None, self.report_to.split(",")))

    def make_operator(self) -> Operator:
        """The operator, not built yet."""
        flow = {"solver": self.solver, "num_steps": self.num_steps} if self.operator == "flow" else {}
        return operator_from_dict({"kind": self.operator, **flow})

    def make_objective(self) -> Objective | None:
        """The objective with the settings of its walk; None for an operator in closed form."""
        if self.objective_name == "solved":
            return None
        num_steps, solver = self.walk
        options = {"num_steps": num_steps, "solver": solver, "alpha": self.alpha}
        known = {f.name for f in fields(OBJECTIVES[self.objective_name])}
        return make_objective(self.objective_name, **{k: v for k, v in options.items() if k in known})

    def training(self, processes: int = 1) -> Training:
        """How to train on so many processes. A closed form reads on one, and is given what it has use for."""
        solved = self.objective_name == "solved"
        names = (
            ("batch_size", "first_weight", "sink", "token_weight", "cache_latents")
            if solved
            else [f.name for f in fields(Training)]
        )
        options = {name: getattr(self, name) for name in names}
        return Training(**options | {"max_steps": self.steps(1 if solved else processes)})

    def tokens_per_step(self, processes: int = 1) -> int:
        """Tokens of one optimizer step, all processes together."""
        return self.sequence_length * self.batch_size * self.gradient_accumulation_steps * processes

    def total_tokens(self, processes: int = 1) -> int:
        """Tokens of the whole training: ``tokens``, or what ``max_steps`` steps take."""
        return self.tokens if self.max_steps is None else self.max_steps * self.tokens_per_step(processes)

    def steps(self, processes: int = 1) -> int:
        """Optimizer steps: ``max_steps``, or what ``tokens`` tokens make."""
        return self.max_steps or max(1, self.tokens // self.tokens_per_step(processes))


def resolve_settings(settings: RunSettings, resume: bool) -> tuple[RunSettings, bool]:
    """The settings with the commit of their text, and whether ``out`` holds a run that they resume.

    Raises:
        FileExistsError: ``out`` holds a run, and ``resume`` is not set; ValueError: a run with other settings.
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
    """The settings of an earlier run, also under their former names; those that are no more are passed over."""
    known = {f.name for f in fields(RunSettings)} | set(RunSettings.former_names()) | {"tensorboard"}
    try:
        found = {name: value for name, value in json.loads(file.read_text(encoding="utf-8")).items() if name in known}
        return RunSettings(**RunSettings.renamed(found, warn=False))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}). Delete it to resume without this check.") from error
