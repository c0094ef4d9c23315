"""Count what a run takes before it starts: operations, time, memory, disk.

Operations are FLOP as PyTorch counts them, :class:`torch.utils.flop_counter.FlopCounterMode`: matrix products alone (a
multiply-add is two FLOP), attention over the whole square of positions. What is counted is the library's own code: a
training step, an optimizer step and an evaluation, run once on the meta device, where tensors have shapes and no
numbers. Time is the count over the speed at which this device multiplies matrices of the teacher's shapes, measured on
the spot, and over the share of it that whole steps reach.
"""

import copy
import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..families import cache_name, layers_of
from ..objectives import evaluations, named
from ..support.machine import synchronize
from ..support.progress import progress_bar

BYTES = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}
# Numbers per token and unit of width that one evaluation keeps for the gradient: float32, or bfloat16 under autocast.
ACTIVATIONS = 26
LOGIT_COPIES = 6  # of (tokens, vocabulary) in float32 while two models are compared: logits, log-softmax, products
TEXT_SPEED = 750_000  # tokens a second that one process reads and tokenizes (benchmarks/results/scale.md)
PROGRAM = 0.6e9  # bytes that Python, PyTorch and transformers take before any model


@dataclass(frozen=True)
class Shape:
    """The size of a model whose weights need not be there.

    Attributes:
        width, depth, vocabulary: hidden size, number of layers, number of tokens.
        parameters: of the whole model.
    """

    width: int
    depth: int
    vocabulary: int
    parameters: int

    @classmethod
    def of(cls, model) -> "Shape":
        config = model.config
        return cls(config.hidden_size, len(layers_of(model)), config.vocab_size, _numbers(model))


class RunCosts:
    """What one run costs. Made by :func:`run_costs`.

    Attributes:
        shape: of the teacher.
        student_parameters, operator_parameters: numbers in the whole student, and in its operator.
        latents_flops: FLOP per token of computing the teacher's states on the fly (only the layers below the span's end
            run); 0 for an objective that compares logits.
        loss_flops: FLOP per token of the loss and its gradient, the states given; of whole models for ``logit_kl``.
        optimizer_flops: FLOP of one optimizer step, whatever the batch: Muon multiplies matrices, AdamW does not.
        checkpoint_bytes: of one checkpoint, the operator and the optimizer's state in float32.
    """

    def __init__(self, teacher, span, operator, objective, k, solver, sequence_length, optimizer):
        from ..fitting import LatentLoss, LogitLoss, _optimizers
        from ..latents import span_latents
        from ..splicing import splice

        with torch.device("meta"):
            student = splice(teacher, span, operator)
            ids = torch.zeros(1, sequence_length, dtype=torch.long)
        self._models, self._ids = (teacher, student), ids
        self.shape, self.evaluations = Shape.of(teacher), evaluations(objective, k, solver)
        self.student_parameters, self.operator_parameters = _numbers(student), _numbers(student.operator)
        self.latents_flops = self.loss_flops = self.optimizer_flops = self.checkpoint_bytes = 0
        self.compares_logits = objective == "logit_kl"
        if self.compares_logits:
            loss, batch = LogitLoss(student, teacher), ids
        else:
            batch, flops = _counted(lambda: span_latents(teacher, span, ids))
            self.latents_flops = flops / sequence_length
        if objective == "solved":
            return
        inputs = (batch,)
        if not self.compares_logits:
            goal = named(objective, k, solver)
            loss, times = LatentLoss(student.operator, goal), goal.times(1)
            inputs = (batch,) if times is None else (batch, times.to("meta"))
        self.loss_flops = _counted(lambda: loss(*inputs).backward())[1] / sequence_length
        optimizers = _optimizers(student.operator, optimizer, lr=1e-3)
        self.optimizer_flops = _counted(lambda: [each.step() for each in optimizers])[1]
        states = [x for each in optimizers for state in each.state.values() for x in state.values()]
        self.checkpoint_bytes = sum(x.nbytes for x in (*student.operator.parameters(), *states))

    @property
    def training_flops(self) -> float:
        """FLOP per token of training, teacher included; the optimizer's come on top."""
        return self.latents_flops + self.loss_flops

    @functools.cached_property
    @torch.no_grad()
    def evaluation_flops(self) -> float:
        """FLOP per token of comparing student and teacher."""
        forward = lambda: [model(input_ids=self._ids, use_cache=False) for model in self._models]  # noqa: E731
        return _counted(forward)[1] / self._ids.shape[1]

    def training_memory(self, tokens: int, dtype: torch.dtype, precision: str = "no") -> int:
        """Bytes at the peak of a training step on ``tokens`` tokens.

        Teacher and student as they are loaded; the operator in float32 four times (weights, gradient, Adam's two
        moments); what each evaluation keeps for the gradient.
        """
        kept = (2 if precision == "bf16" else 4) * tokens * self.shape.width * ACTIVATIONS * self.evaluations
        logits = LOGIT_COPIES * 4 * tokens * self.shape.vocabulary if self.compares_logits else 0
        return self._loaded(dtype) + 16 * self.operator_parameters + kept + logits

    def evaluation_memory(self, tokens: int, dtype: torch.dtype) -> int:
        """Bytes at the peak of an evaluation in batches of ``tokens`` tokens."""
        return self._loaded(dtype) + LOGIT_COPIES * 4 * tokens * self.shape.vocabulary

    def _loaded(self, dtype: torch.dtype) -> int:
        return BYTES[dtype] * (self.shape.parameters + self.student_parameters)


def run_costs(
    teacher, span: tuple[int, int], objective: str = "flow_walking", k: int = 3, solver: str = "midpoint",
    sequence_length: int = 128, optimizer: str = "adamw", operator=None,
) -> RunCosts:  # fmt: skip
    """Count what training one operator costs.

    Args:
        teacher: a model of a supported family; only its config is read, so that one on the meta device will do.
        span: ``(m, n)``, the layers that are replaced.
        objective: of :func:`lft_edu.fit`, or ``"solved"`` for an operator in closed form.
        k, solver: of the walk in training.
        sequence_length: tokens per sequence.
        operator: that replaces the layers; None: one that fits the objective, walked as in training.

    Raises:
        ValueError: a span that does not fit the teacher, or an operator with unknown settings.
    """
    from ..operators import Flow, Regression

    operator = operator or (Regression() if objective == "regression" else Flow(solver, k))
    texts = teacher.config.to_json_string(), json.dumps(operator.to_dict())
    kind: Any = type(teacher.config)  # to mypy, a type is not hashable
    return _run_costs(kind, *texts, tuple(span), objective, k, solver, sequence_length, optimizer)


@functools.lru_cache(maxsize=32)  # a plan is made again for smaller and smaller batches
def _run_costs(kind, config: str, operator: str, span, *rest) -> RunCosts:
    from ..operators import operator_from_dict

    teacher = blank_model(kind.from_dict(json.loads(config)))
    return RunCosts(teacher, span, operator_from_dict(json.loads(operator)), *rest)


def skip_flops(teacher, most: int, sequence_length: int) -> float:
    """FLOP per token of trying to skip every contiguous span of 1 … ``most`` layers
    (:func:`lft_edu.skipping.best_skips`): the teacher once, and for each span its tail and the head."""
    from ..latents import span_latents

    model, ids = blank_model(teacher.config), torch.zeros(1, sequence_length, dtype=torch.long, device="meta")
    depth = len(layers_of(model))
    whole = _counted(lambda: model(input_ids=ids, use_cache=False))[1]
    layer = _counted(lambda: span_latents(model, (0, 1), ids))[1]
    tails = [depth - m - j for j in range(1, most + 1) for m in range(depth - j + 1)]
    head = whole - depth * layer
    return (whole + sum(tails) * layer + len(tails) * head) / sequence_length


def blank_model(config):
    """A frozen model without weights that runs on the meta device.

    Its attention is eager and its mask explicit: fused kernels, and the check whether a mask is needed, want numbers.
    So does sorting tokens by their experts: each token multiplies by copies of those that it chose.
    """
    from transformers import AutoModelForCausalLM

    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), **options)
    if getattr(config, "num_experts", 0):
        model.set_experts_implementation("batched_mm")

    def with_mask(model, args, kwargs):
        length = kwargs["input_ids"].shape[1]
        return args, kwargs | {"attention_mask": torch.zeros(1, 1, length, length, device="meta")}

    model.register_forward_pre_hook(with_mask, with_kwargs=True)
    return model.eval().requires_grad_(False)


def _counted(work: Callable[[], object]) -> tuple[object, int]:
    """What ``work`` returns, and the FLOP of its matrix products."""
    with FlopCounterMode(display=False) as counter:
        found = work()
    return found, counter.get_total_flops()


def _numbers(model) -> int:
    return sum(p.numel() for p in model.parameters())


def reached(width: int, device: torch.device) -> float:
    """Share of the speed of bare matrix products that whole steps reach. CPU: measured (benchmarks/results/splice.md:
    0.5–0.6 at width 64, 0.8–0.9 at Pythia-410M's). GPU: not yet measured; where bare products reach 80 % of the maker's
    peak, half of them is the goal of this course, 40 % of the peak."""
    if device.type == "cuda":
        return 0.5
    return 0.5 if width < 512 else 0.8


@torch.no_grad()
def matmul_speed(width: int, device: torch.device, dtype: torch.dtype, seconds: float = 0.3, rows: int = 0) -> float:
    """FLOP/s at which ``device`` multiplies ``rows`` tokens by a matrix of an MLP of this width; takes ``seconds``, or
    two products where one takes longer."""
    rows = rows or (8192 if device.type == "cuda" else 512)
    weight = torch.randn(width, 4 * width, device=device).to(dtype)
    states = torch.randn(rows, width, device=device).to(dtype)
    product = states @ weight

    def timed(times: int) -> float:
        synchronize(device)
        started = time.perf_counter()
        for _ in range(times):
            torch.mm(states, weight, out=product)
        synchronize(device)
        return (time.perf_counter() - started) / times

    deadline = time.perf_counter() + seconds
    best = timed(1)
    while time.perf_counter() + 8 * best < deadline:
        best = min(best, timed(8))
    return 2 * rows * 4 * width**2 / best


@torch.no_grad()
def latencies(models: dict, tokens: int = 128, new_tokens: int = 16, rounds: int = 5, progress: bool = False) -> dict:
    """Time models: milliseconds per token of ``prefill`` (one sequence) and of ``decode`` with the KV cache.

    The models take turns, ``rounds`` times, and the least of each counts: on a shared machine two models timed one
    after the other differ by what else ran meanwhile.

    Args:
        models: key → model.

    Returns:
        key → ``{"prefill": ms, "decode": ms}``.
    """
    best = {key: {"prefill": math.inf, "decode": math.inf} for key in models}
    for i in progress_bar(range(rounds + 1), desc="latency", unit="round", disable=not progress):
        for key, model in models.items():
            ids = torch.arange(2, 2 + tokens, device=model.device)[None] % model.get_input_embeddings().num_embeddings
            spent = {"prefill": _milliseconds(_prefill, model, ids) / tokens}
            spent["decode"] = _milliseconds(_decode, model, ids[:, :new_tokens]) / new_tokens
            if i:  # the first round pays for allocation
                best[key] = {what: min(best[key][what], ms) for what, ms in spent.items()}
    return best


def _prefill(model, ids) -> None:
    model(input_ids=ids, use_cache=False)


def _decode(model, ids) -> None:
    cache, name = None, cache_name()
    for i in range(ids.shape[1]):
        cache = model(input_ids=ids[:, i : i + 1], use_cache=True, **{name: cache})[name]


def _milliseconds(work, model, ids) -> float:
    _wait(model.device)
    started = time.perf_counter()
    work(model, ids)
    _wait(model.device)
    return 1000 * (time.perf_counter() - started)


def _wait(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
