"""Fit an operator to its teacher: which loss, on which tokens, with which optimizer."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .closed_forms import Moments
from .families import layers_of
from .heads import Head
from .latents import Latents, layer_output, span_latents
from .objectives import OBJECTIVES, HeadKL, Objective, make_objective
from .operators import Flow, Operator
from .sinks import find_sink
from .sources import LatentSource
from .splicing import SplicedForCausalLM, check_pair
from .support import checks
from .support.machine import float64, require_memory
from .support.modes import in_eval_mode
from .support.progress import progress_bar
from .support.whole import require_no_adapters, require_one_device
from .training.callbacks import Callback, Evaluation, History
from .training.loop import optimize
from .training.optimizers import adamw, muon_and_adamw
from .training.processes import make_accelerator
from .training.sampling import ShuffledRows
from .training.settings import Training

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedModel

# the settings that a closed form has use for
SOLVED_BY = ("max_steps", "batch_size", "first_weight", "sink", "token_weight", "cache_latents")
FORMER_WALK = {"k": "num_steps", "step": "solver"}  # former names of an objective's settings


@in_eval_mode
def fit(
    student: SplicedForCausalLM,
    teacher: "PreTrainedModel",
    corpus: "Dataset | IterableDataset | Tensor | LatentSource",
    objective: str | Objective | None = None,
    *,
    training: Training | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **shorthand,
) -> History:
    """Fit the student's operator to the teacher's hidden states (or logits). The teacher is not changed.

    What is trained is the walk that the student takes: its solver, its number of steps. Closed-form operators
    (MeanShift, Procrustes, Ridge) are solved from at most ``max_steps`` batches; Regression and Flow are trained;
    Skip and Loop have nothing to fit.

    Args:
        student: made by :func:`lft_edu.splice` from this teacher.
        corpus: what :func:`lft_edu.load_corpus` returns, or token ids as a long tensor ``(N, T)``, or a
            :class:`LatentSource` that several operators share.
        objective: ``"flow_matching"`` (eq. 3), ``"flow_walking"`` (eq. 8), ``"hybrid"`` (eq. 9), ``"regression"``
            (one Euler step), ``"logit_kl"`` (through the whole model, the only one that is not trained on hidden
            states alone), or an :class:`~lft_edu.objectives.Objective`. None: Flow Walking for a flow, regression for
            a regression.
        training: optimizer, steps, precision and so on; see :class:`~lft_edu.training.settings.Training`.
        checkpoint, resume: a file or folder to save to, and whether to continue from what is there, bit for bit (but
            for a stream that shuffles in a buffer of its own, which warns).
        callbacks: :class:`~lft_edu.training.callbacks.Callback` objects, such as ``Evaluation``.
        shorthand: fields of ``training`` and of the objective by name: ``fit(..., max_steps=200, num_steps=2)``.

    Returns:
        :class:`~lft_edu.training.callbacks.History`.

    Raises:
        ValueError: an objective that is unknown or does not fit the operator, a setting out of its limits, an option
            that this operator would ignore, a corpus that the teacher cannot read, latents of another teacher, a batch
            that does not fit into memory, a student with adapters (PEFT), or a model spread by a device_map.
        FileExistsError: ``checkpoint`` exists and ``resume`` is not set.
        OSError: ``checkpoint`` cannot be written to.
        FloatingPointError: the loss became NaN or infinite.
    """
    why = "and an operator is fitted to the states that the teacher's own layers give it"
    require_no_adapters(student, why, "Fit first, then put adapters on the student.")
    check_pair(student, teacher)
    require_one_device(student, "student")
    require_one_device(teacher, "teacher")
    operator, span = student.operator, tuple(student.config.span)
    if objective is not None and not isinstance(objective, Objective):
        checks.word("objective", objective)
    if not isinstance(training, Training | None):
        raise ValueError(f"training is a {type(training).__name__}: give lft.Training(…), or its fields by name.")
    training, options, more = _sorted_out(training or Training(), shorthand)
    callbacks, log = [*callbacks, *more], shorthand.get("log")
    if not operator.trainable:
        given = {"objective": objective, "checkpoint": checkpoint, "resume": resume, "callbacks": callbacks, "log": log}
        _refuse_what_is_ignored(operator, training, {k: v for k, v in given.items() if v} | options)
        if not operator.closed_form:
            return History()
        source = _source(corpus, student, teacher, training, progress)
        return _solve(operator, source, training, _prepare(student, source, training), progress)

    goal = make_objective(objective or ("flow_walking" if isinstance(operator, Flow) else "regression"), **options)
    goal = goal.resolve(operator)
    _check(operator, goal, training)
    source = _source(corpus, student, teacher, training, progress, not goal.latent, goal.needs_path)
    if source.device.type == "cpu":  # 4 bytes for each number of x0, x1, a walk's end and its gradient, at the least
        need = 16 * training.batch_size * source.block_size * teacher.config.hidden_size
        require_memory(need, f"A batch of {training.batch_size:,} sequences", "Lower batch_size.")
    relative = _prepare(student, source, training)
    order = (lambda numbers: numbers) if source.streamed else ShuffledRows(len(source), training.seed)
    loss: nn.Module = LogitLoss(student, teacher)
    if goal.latent:
        loss = LatentLoss(operator, goal, _weight(source, training), relative)
    if training.compile:
        torch._dynamo.config.optimize_ddp = False  # it would cut one graph, the walk, into pieces of 25 MB
        loss.compile()
    accelerator = make_accelerator(teacher.device, training.precision)
    sequences = training.batch_size * training.gradient_accumulation_steps * accelerator.num_processes
    rate = training.rate(teacher.config.hidden_size)
    settings = training.deciding() | {f.name: getattr(goal, f.name) for f in fields(goal)}
    settings |= {"lr": rate, "objective": goal.name, "operator": operator.to_dict(), "span": list(span)}
    kept_type = next(operator.parameters()).dtype
    operator.float()  # a small step is lost on a bfloat16 weight
    try:
        return optimize(
            loss,
            _optimizers(operator, training.optimizer, rate),
            lambda numbers: (source(order(numbers)),),
            training,
            draw=goal.times,
            accelerator=accelerator,
            tokens_per_step=sequences * source.block_size,
            checkpoint=checkpoint,
            resume=resume,
            settings=settings | {"latents": source.fingerprint()},
            stream=source.blocks if source.streamed else None,
            callbacks=callbacks,
            log=log,
            description=f"{goal.name} {span[0]}–{span[1]}",
            progress=progress,
        )
    finally:
        operator.to(kept_type)


class LatentLoss(nn.Module):
    """A latent objective as a module: (latents, times) → the mean loss.

    Args:
        weight: of each squared difference, broadcast against ``(B, T, D)``; None: all alike.
        relative: divide each token's squared error by its squared norm in ``x1``.
    """

    def __init__(self, operator: Operator, objective: Objective, weight: Tensor | None = None, relative: bool = False):
        super().__init__()
        self.operator, self.objective, self.weight, self.relative = operator, objective, weight, relative

    def forward(self, latents: Latents, times: Tensor | None = None) -> Tensor:
        x0, x1 = latents.x0.float(), latents.x1.float()  # a walk adds small steps: bfloat16 would lose them
        x0, times = self.operator.with_sink(x0), None if times is None else times.to(x0.device)
        weight = self.weight
        if self.relative:
            token = 1 / x1.square().mean(-1, keepdim=True).clamp(min=1e-12)
            weight = token if weight is None else token * weight
        velocity = self.operator.field(x0, **latents.context)
        path = {}
        if self.objective.needs_path:
            path["path"] = torch.stack([x0, *(x.float() for x in latents.between), x1])
        return self.objective.loss(velocity, x0, x1, times, weight, **path)


class LogitLoss(nn.Module):
    """KL(teacher ‖ student) of whole models; the gradient reaches the operator through the student's tail.

    Given the latents of :func:`~lft_edu.latents.span_latents`, ``to_the_end`` (or token ids, from which it computes
    them): the layers before the span are the teacher's own, so they need not run again.
    """

    def __init__(self, student: SplicedForCausalLM, teacher: "PreTrainedModel"):
        super().__init__()
        self.operator = student.operator  # the only submodule: what is trained, saved and synchronized
        self.models = (student, teacher, Head(teacher))  # a tuple hides them from nn.Module

    def forward(self, latents: Latents | Tensor) -> Tensor:
        student, teacher, head = self.models
        if isinstance(latents, Tensor):
            copied = self.operator.layer_to_copy(*student.config.span)
            latents = span_latents(teacher, student.config.span, latents, to_the_end=True, context_of=copied)
        x = self.operator(latents.x0, **latents.context).to(latents.x1.dtype)  # the tail keeps the teacher's type
        for layer, context in zip(layers_of(student.model)[student.config.span[0] + 1 :], latents.tail, strict=True):
            x = layer_output(layer(x, **context))
        return HeadKL.apply(x, latents.x1, head)


def _sorted_out(training: Training, shorthand: dict) -> tuple[Training, dict, list[Callback]]:
    """Shorthand as (training, settings of the objective, callbacks)."""
    of_objectives = {f.name for cls in OBJECTIVES.values() for f in fields(cls)} | {*FORMER_WALK}
    options = {FORMER_WALK.get(name, name): value for name, value in shorthand.items() if name in of_objectives}
    rest = {name: value for name, value in shorthand.items() if name not in {*of_objectives, "evaluate", "log"}}
    training = replace(training, **Training.renamed(rest))  # TypeError for an unknown name, with the nearest one
    evaluate = shorthand.get("evaluate")
    return training, options, [Evaluation(evaluate, shorthand.get("log"))] if evaluate else []


def _refuse_what_is_ignored(operator: Operator, training: Training, given: dict) -> None:
    extra = [*given, *(name for name in training.changed() if name not in SOLVED_BY)]
    if extra:
        how = "is solved in closed form" if operator.closed_form else "has nothing to fit"
        raise ValueError(
            f"A {operator.kind!r} operator {how}: it would ignore {', '.join(extra)}. Leave out what it ignores; it "
            f"takes {', '.join(SOLVED_BY)}."
        )


def _check(operator: Operator, objective: Objective, training: Training) -> None:
    if objective.timed and not isinstance(operator, Flow):
        raise ValueError(
            f"A {operator.kind!r} operator is not time-dependent, so {objective.name!r} cannot train it. "
            'Use objective="regression", or the operator lft.Flow().'
        )
    ignored = {"first_weight", "scale_dimensions", "cache_latents"} & set(training.changed())
    if ignored and not objective.latent:
        raise ValueError(
            f"objective {objective.name!r} is trained on logits: it would ignore {', '.join(sorted(ignored))}. "
            "Leave it out."
        )


def _source(
    corpus,
    student: SplicedForCausalLM,
    teacher,
    training: Training,
    progress: bool,
    to_the_end: bool = False,
    between: bool = False,
) -> LatentSource:
    source, span = corpus, tuple(student.config.span)
    if not isinstance(corpus, LatentSource):
        source = LatentSource(teacher, span, corpus, training.batch_size, training.cache_latents, progress, between)
    if source.teacher is not teacher:
        raise ValueError("These latents are of another teacher: make the LatentSource from the model passed to fit.")
    if between and not source.between:
        raise ValueError(
            "This objective needs the teacher's states between the layers: LatentSource(..., between=True)."
        )
    if to_the_end:
        source = source.to_the_end(span[1])
    wanted = (span[0], len(layers_of(teacher))) if to_the_end else span
    if source.span != wanted:
        raise ValueError(f"These latents are of span {source.span}; this operator and objective need {wanted}.")
    return source.seen_by(student.operator.layer_to_copy(*span))


def _prepare(student: SplicedForCausalLM, source: LatentSource, training: Training) -> bool:
    """Give the operator the sink that its span writes, if it does; return whether errors are to be relative."""
    if training.sink != "auto" and training.token_weight != "auto":  # nothing is left to find out
        return training.token_weight == "relative"
    rows, span = torch.arange(min(training.batch_size, len(source))), tuple(student.config.span)
    here = source.tail_from is None  # else the source has the states at the span's start and at the model's end
    latents = source(rows) if here else span_latents(source.teacher, span, source.ids(rows))
    sink = find_sink(latents.x0, latents.x1)
    if sink.written and training.sink == "auto" and student.operator.sink is None:
        student.operator.set_sink(sink.state.to(source.device, source.teacher.dtype))
        student.wire()
    return training.token_weight == "relative" or (training.token_weight == "auto" and sink.present)


def _optimizers(operator: Operator, name: str, lr: float) -> list[torch.optim.Optimizer]:
    if name == "muon":
        return muon_and_adamw(operator, operator, muon_lr=lr, adamw_lr=lr / 5)
    return [adamw(operator.parameters(), lr, betas=(0.9, 0.98))]


def _weight(source: LatentSource, training: Training) -> Tensor | None:
    """Weight of positions and dimensions in the loss, ``(T, 1)``, ``(D,)`` or ``(T, D)``; the same on every process."""
    position = scale = None
    if training.first_weight != 1:
        position = torch.ones(source.block_size, 1)
        position[0] = training.first_weight
    if training.scale_dimensions:
        x1 = source(torch.arange(min(training.batch_size, len(source)))).x1
        scale = 1 / x1[:, 1:].float().flatten(0, 1).var(0).clamp(min=1e-6).cpu()
    found = [weight for weight in (position, scale) if weight is not None]
    if not found:
        return None
    return (found[0] if len(found) == 1 else found[0] * found[1]).to(source.device)


def _solve(operator: Operator, source: LatentSource, training: Training, relative: bool, progress: bool) -> History:
    """Solve a closed-form operator from up to ``max_steps`` batches."""
    start = 0 if training.first_weight else 1  # position
    moments, tokens, batch_size = None, 0, training.batch_size
    parts = range(0, min(len(source), training.max_steps * batch_size), batch_size)
    for start_row in progress_bar(parts, desc=operator.kind, unit="batch", disable=not progress):
        rows = torch.arange(start_row, min(len(source), start_row + batch_size))
        found = source(rows)
        moments = moments or Moments.zeros(found.x0.shape[-1])
        x0, x1 = (x[:, start:].flatten(0, 1) for x in (found.x0, found.x1))
        moments.add(x0, x1, 1 / float64(x1).square().mean(-1) if relative else None)
        tokens += found.x0.shape[:2].numel()
    operator.solve(moments)  # type: ignore[arg-type]  # a source is never empty
    return History(tokens=tokens)
