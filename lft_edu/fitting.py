"""Fitting an operator to its teacher: which loss, on which tokens, with which optimiser."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from . import objectives
from .families import layers_of
from .flow import STEPS, check_steps
from .latents import Latents, span_latents
from .objectives import OBJECTIVES
from .operators import Flow, Moments
from .splicing import check_pair
from .support.errors import unknown_name_error
from .support.machine import require_memory
from .training.callbacks import History
from .training.loop import optimise
from .training.optimizers import OPTIMIZERS, muon_and_adamw
from .training.processes import make_accelerator
from .training.sampling import ShuffledRows
from .training.streams import TokenStream


class LatentLoss(nn.Module):
    """One of the latent objectives, as a module that returns the loss.

    Args:
        k, step: of the walk that :func:`~lft_edu.objectives.flow_walking_loss` takes.
        alpha: weight of flow matching in the hybrid.
        position_weight: weight ``(T, 1)`` of each position in the loss, or None.
        scale: weight ``(D,)`` of each dimension, or None.
    """

    def __init__(self, operator, objective: str, k: int, step: str, alpha: float, position_weight=None, scale=None):
        super().__init__()
        self.operator, self.objective, self.k, self.step, self.alpha = operator, objective, k, STEPS[step], alpha
        self.weight = None
        for factor in (position_weight, scale):
            if factor is not None:
                self.weight = factor if self.weight is None else self.weight * factor

    def forward(self, latents, generator=None):
        velocity = self.operator.field(**latents.context)
        x0, x1 = latents.x0.float(), latents.x1.float()  # a walk adds small steps: bfloat16 would lose them
        weight = self.weight
        match self.objective:
            case "flow_matching":
                return objectives.flow_matching_loss(velocity, x0, x1, generator, weight)
            case "flow_walking":
                return objectives.flow_walking_loss(velocity, x0, x1, self.k, self.step, generator, weight)
            case "hybrid":
                return objectives.hybrid_loss(velocity, x0, x1, self.alpha, self.k, self.step, generator, weight)
            case "regression":
                return objectives.regression_loss(velocity, x0, x1, weight)


class LogitLoss(nn.Module):
    """KL(teacher ‖ student) of whole models; the gradient reaches the operator through the student's tail."""

    def __init__(self, student, teacher):
        super().__init__()
        self.operator = student.operator  # the one submodule: what is trained, checkpointed and synchronised
        self.models = (student, teacher)  # a tuple hides them from nn.Module

    def forward(self, ids, generator=None):
        student, teacher = self.models
        with torch.no_grad():
            target = teacher(input_ids=ids, use_cache=False).logits
        return objectives.logit_kl_loss(student(input_ids=ids, use_cache=False).logits, target)


def fit(
    student,
    teacher,
    corpus,
    objective: str = "flow_walking",
    *,
    steps: int = 1000,
    batch_size: int = 16,
    lr: float = 2e-3,
    k: int = 3,
    step: str = "midpoint",
    alpha: float = 0.1,
    first_weight: float = 0.0,
    scale_dimensions: bool = False,
    cache_latents: bool = False,
    optimizer: str = "adamw",
    seed: int = 0,
    precision: str = "no",
    checkpoint: str | Path | None = None,
    save_every: int = 200,
    resume: bool = False,
    accumulate: int = 1,
    keep: int = 2,
    compile: bool = False,
    evaluate=None,
    evaluate_every: int = 0,
    log=None,
    progress: bool = True,
) -> History:
    """Fit the student's operator to the teacher's hidden states (or logits). The teacher is not changed.

    Closed-form operators (MeanShift, Procrustes, Ridge) are solved from at most ``steps`` batches, whatever the
    objective; Regression and Flow are trained by AdamW or Muon; Skip and Loop have nothing to fit.

    Args:
        corpus: what :func:`lft_edu.load_corpus` returns, or token blocks as a long tensor ``(N, T)``, or a
            :class:`~lft_edu.fitting.LatentSource` that several operators share.
        objective: ``"flow_matching"`` (eq. 3), ``"flow_walking"`` (eq. 8), ``"hybrid"`` (eq. 9), ``"regression"``
            (one Euler step), or ``"logit_kl"`` (through the whole model, the one objective that is not latent only).
        steps, batch_size, lr: optimiser steps, blocks a step, peak learning rate.
        k, step, alpha: of the walk and the hybrid; see :mod:`lft_edu.objectives`.
        first_weight: weight of position 0, whose massive activations may be most of the loss, in [0, 1]. Closed forms
            take position 0 in whole or not at all; ``logit_kl`` has no use for it.
        scale_dimensions: weigh each dimension by one over its variance, outlier dimensions no more than others.
        cache_latents: compute the teacher's states once and keep them in memory (small corpora, several epochs).
        optimizer: ``"adamw"``, or ``"muon"`` for the operator's matrices (``lr`` is then Muon's, ten times larger).
        precision: ``"no"`` or ``"bf16"`` (autocast). The operator is trained in float32 either way, whatever the
            teacher's type: a small step is lost on a bfloat16 weight.
        compile: fuse the loss with ``torch.compile`` (minutes at the start, faster steps on a GPU).
        checkpoint, save_every, keep, resume, accumulate, log: see :func:`lft_edu.training.optimise`; continued bit for
            bit, streams of text too.

    Returns:
        :class:`~lft_edu.training.callbacks.History`.

    Raises:
        ValueError: an objective that is unknown or does not fit the operator, k < 1, an empty corpus.
        FloatingPointError: the loss became NaN or infinite.
    """
    check_pair(student, teacher)
    operator, span = student.operator, tuple(student.config.span)
    _check(operator, objective, k, step, steps, batch_size, precision, optimizer, lr, first_weight)
    if not operator.trainable and not operator.closed_form:
        return History()
    in_memory = cache_latents and objective != "logit_kl"
    shared = isinstance(corpus, LatentSource)
    source = corpus if shared else LatentSource(teacher, span, corpus, batch_size, in_memory, progress)
    if source.span != span:
        raise ValueError(f"These latents are of span {source.span}; the student's operator stands for {span}.")
    if operator.closed_form:
        return _solve(operator, source, steps, batch_size, first_weight, progress)

    accelerator = make_accelerator(teacher.device, precision)
    order = (lambda numbers: numbers) if source.streamed else ShuffledRows(len(source), seed)
    if objective == "logit_kl":
        loss, batch_at = LogitLoss(student, teacher), lambda numbers: (source.ids(order(numbers)),)
    else:
        weights = _weights(source, batch_size, first_weight, scale_dimensions)  # the same on every process
        weights = [weight if weight is None else weight.to(source.device) for weight in weights]
        loss = LatentLoss(operator, objective, k, step, alpha, *weights)
        batch_at = lambda numbers: (source(order(numbers)),)  # noqa: E731
    if compile:
        torch._dynamo.config.optimize_ddp = False  # it would cut one graph, the walk, into pieces of 25 MB
        loss.compile()
    whole_batch = batch_size * accumulate * accelerator.num_processes
    settings = {
        "objective": objective, "operator": operator.to_dict(), "span": list(span), "lr": lr,
        "k": k, "step": step, "alpha": alpha, "first_weight": first_weight, "scale_dimensions": scale_dimensions,
        "optimizer": optimizer, "seed": seed, "steps": steps, "precision": precision,
        "latents": source.fingerprint(),
    }  # fmt: skip
    kept_type = next(operator.parameters()).dtype
    operator.float()
    try:
        return optimise(
            loss,
            _optimizers(operator, optimizer, lr),
            batch_at,
            steps,
            batch_size=batch_size,
            accumulate=accumulate,
            accelerator=accelerator,
            seed=seed,
            tokens_per_step=whole_batch * source.block_size,
            checkpoint=checkpoint,
            save_every=save_every,
            keep=keep,
            resume=resume,
            settings=settings,
            stream=source.blocks if source.streamed else None,
            evaluate=evaluate,
            evaluate_every=evaluate_every,
            log=log,
            description=f"{objective} {span[0]}–{span[1]}",
            progress=progress,
        )
    finally:
        operator.to(kept_type)


def _check(operator, objective, k, step, steps, batch_size, precision, optimizer, lr, first_weight) -> None:
    if objective not in OBJECTIVES:
        raise unknown_name_error("objective", objective, OBJECTIVES)
    if operator.trainable and not isinstance(operator, Flow) and objective not in ("regression", "logit_kl"):
        raise ValueError(
            f"A {operator.kind!r} operator knows no time, so it can't be trained by {objective!r}. "
            'Use objective="regression", or operator lft.Flow().'
        )
    check_steps(k)
    if not lr > 0 or not 0 <= first_weight <= 1:
        raise ValueError(f"lr={lr}, first_weight={first_weight}: lr must be above 0 and first_weight within [0, 1].")
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value}: give at least 1.")
    for name, value, allowed in (
        ("step", step, tuple(STEPS)),
        ("precision", precision, ("no", "bf16")),
        ("optimizer", optimizer, OPTIMIZERS),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: choose one of {', '.join(allowed)}.")


def _optimizers(operator, name: str, lr: float) -> list:
    if name == "muon":
        return muon_and_adamw(operator, operator, muon_lr=lr, adamw_lr=lr / 5)
    return [torch.optim.AdamW(operator.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)]


def _weights(source, batch_size: int, first_weight: float, scale_dimensions: bool):
    """Weights of positions ``(T, 1)`` and dimensions ``(D,)``, None where all are equal."""
    position = scale = None
    if first_weight != 1:
        position = torch.ones(source.block_size, 1)
        position[0] = first_weight
    if scale_dimensions:
        x1 = source(torch.arange(min(batch_size, len(source)))).x1
        scale = 1 / x1[:, 1:].float().flatten(0, 1).var(0).clamp(min=1e-6).cpu()
    return position, scale


def _solve(operator, source, batches: int, batch_size: int, first_weight: float, progress: bool) -> History:
    """Solve a closed-form operator from up to ``batches`` batches."""
    from tqdm.auto import tqdm

    start = 0 if first_weight else 1  # position
    moments, tokens = None, 0
    parts = range(0, min(len(source), batches * batch_size), batch_size)
    for start_row in tqdm(parts, desc=operator.kind, unit="batch", disable=not progress, mininterval=1.0):
        rows = torch.arange(start_row, min(len(source), start_row + batch_size))
        found = source(rows)
        moments = moments or Moments.zeros(found.x0.shape[-1])
        moments.add(found.x0[:, start:].flatten(0, 1), found.x1[:, start:].flatten(0, 1))
        tokens += found.x0.shape[:2].numel()
    operator.solve(moments)
    return History(tokens=tokens)


class LatentSource:
    """Token blocks → :class:`Latents`, computed anew each time or kept in memory for a small corpus.

    Args:
        batch_size: blocks a call, and blocks a pass of the teacher while the cache is filled.
        cache: compute the latents of every block once and keep them.
    """

    def __init__(
        self, teacher, span: tuple[int, int], blocks, batch_size: int, cache: bool = False, progress: bool = True
    ):
        self.streamed = not hasattr(blocks, "__len__")
        if self.streamed:
            blocks = TokenStream(blocks)
            if cache:
                raise ValueError("A streamed corpus can't be kept in memory: use cache_latents=False.")
        if len(blocks) == 0:
            raise ValueError("The corpus is empty: give at least one block of tokens.")
        if hasattr(blocks, "with_format"):  # of datasets: tensors at once, not numbers one by one
            blocks = blocks.with_format("torch", columns=["input_ids"])
        self.teacher, self.span, self.blocks = teacher, tuple(span), blocks
        self.device = teacher.device
        self.stored: tuple[Tensor, Tensor] | None = None
        self.context: dict = {}
        if cache:
            self._fill(batch_size, progress)

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.ids(torch.zeros(1, dtype=torch.long)).shape[1]

    def ids(self, rows: Tensor) -> Tensor:
        """Token ids ``(B, T)`` of these rows of the corpus."""
        ids = self.blocks[rows] if isinstance(self.blocks, Tensor) else self.blocks[rows.tolist()]["input_ids"]
        if self.device.type == "cuda" and ids.device.type == "cpu":
            return ids.pin_memory().to(self.device, non_blocking=True).long()  # the GPU need not be waited for
        return ids.long().to(self.device)

    def fingerprint(self) -> str:
        """Tells one teacher, span and corpus from another: a hash of two layers and of the first and last block."""
        layers, (m, n) = layers_of(self.teacher), self.span
        ends = torch.tensor([0] if self.streamed else [0, len(self) - 1])
        tensors = [*layers[m].parameters(), *layers[n - 1].parameters(), self.ids(ends)]
        found = hashlib.sha256(f"{m} {n} {len(self)}".encode())
        for tensor in tensors:
            found.update(tensor.detach().cpu().float().numpy().tobytes())
        return found.hexdigest()[:16]

    def __call__(self, rows: Tensor) -> Latents:
        if self.stored is None:
            return span_latents(self.teacher, self.span, self.ids(rows))
        x0, x1 = (x[rows].to(self.device) for x in self.stored)
        return Latents(x0, x1, self.context)

    def _fill(self, batch_size: int, progress: bool) -> None:
        from tqdm.auto import tqdm

        rows = torch.arange(len(self.blocks))
        first = span_latents(self.teacher, self.span, self.ids(torch.arange(batch_size) % len(rows)))
        # The same for every batch of unpadded blocks, so one row of a mask serves batches of any size.
        self.context = {k: v[:1] if isinstance(v, Tensor) else v for k, v in first.context.items()}
        need = 2 * first.x0[0].nbytes * len(rows)
        require_memory(need, f"The latents of {len(rows):,} blocks", "Use cache_latents=False, or fewer tokens.")
        self.stored = tuple(torch.empty((len(rows), *first.x0.shape[1:]), dtype=first.x0.dtype) for _ in range(2))
        for part in tqdm(rows.split(batch_size), desc="latents", unit="batch", disable=not progress, mininterval=1.0):
            found = span_latents(self.teacher, self.span, self.ids(part))
            self.stored[0][part], self.stored[1][part] = found.x0.cpu(), found.x1.cpu()
