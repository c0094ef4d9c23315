"""What a run will cost, counted before it starts: operations, time, memory, disk.

Operations are multiply-adds (a FLOP is half of one). Only matrix products and attention are counted; everything else a
transformer does is small beside them on a good kernel. Time is the count over the speed at which this device multiplies
matrices of the teacher's shapes, measured on the spot, and over the share of it that whole steps reach.
"""

import time
from dataclasses import dataclass

import torch

from ..families import layers_of
from ..flow import EVALUATIONS

BYTES = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}
# Numbers per token and unit of width that one evaluation keeps for the gradient: float32, or bfloat16 under autocast.
ACTIVATIONS = 26
LOGIT_COPIES = 6  # of (tokens, vocabulary) in float32 while two models are compared: logits, log-softmax, products
TEXT_SPEED = 750_000  # tokens a second that one process reads and tokenizes (benchmarks/results/scale.md)
PROGRAM = 0.6e9  # bytes that Python, PyTorch and transformers take before any model


@dataclass(frozen=True)
class Shape:
    """What costs depend on: of a model whose weights need not be there.

    Attributes:
        layer_matrices: numbers in the matrices of one layer; each is multiplied once per token.
        layer_parameters, parameters: of a layer, and of the whole model.
        matrix_count: matrices in one layer.
    """

    width: int
    depth: int
    vocabulary: int
    layer_matrices: int
    layer_parameters: int
    parameters: int
    matrix_count: int = 4

    @classmethod
    def of(cls, model) -> "Shape":
        layers = layers_of(model)
        return cls(
            model.config.hidden_size,
            len(layers),
            model.config.vocab_size,
            sum(p.numel() for p in layers[0].parameters() if p.ndim == 2),
            sum(p.numel() for p in layers[0].parameters()),
            sum(p.numel() for p in model.parameters()),
            sum(p.ndim == 2 for p in layers[0].parameters()),
        )

    def layer(self, block: int) -> int:
        """Multiply-adds of one layer, per token of a sequence of ``block`` tokens: causal attention is half a square,
        once for keys and once for values."""
        return self.layer_matrices + self.attention(block)

    def attention(self, block: int) -> int:
        return block * self.width

    @property
    def head(self) -> int:
        """Multiply-adds of the output head, per token."""
        return self.width * self.vocabulary

    @property
    def modulation(self) -> int:
        """Parameters of an operator's time modulation; used once a sequence."""
        return 128 * self.width + self.width + 6 * self.width * (self.width + 1)


def operator_operations(shape: Shape, span, objective: str, k: int, solver: str, block: int) -> int:
    """Multiply-adds per token of a training step, the teacher's states given: three times the evaluations' (once
    forward, twice backward). ``logit_kl`` has no states to be given: it counts whole models."""
    count, (m, n) = evaluations(objective, k, solver), span
    layer, tail = shape.layer(block), shape.depth - n
    if objective != "logit_kl":
        timed = 0 if objective == "regression" else shape.modulation // block
        return 3 * count * (layer + timed)
    through_tail = tail * (shape.layer_matrices + 2 * shape.attention(block))  # frozen: only the states have a gradient
    return (shape.depth + m + tail) * layer + through_tail + 3 * shape.head + 3 * count * layer


def teacher_operations(shape: Shape, span, objective: str, block: int) -> int:
    """Multiply-adds per token of computing the states on the fly: only the layers below the span's end run."""
    return 0 if objective == "logit_kl" else span[1] * shape.layer(block)


def training_operations(
    shape: Shape, span, objective: str, k: int = 3, solver: str = "midpoint", block: int = 128
) -> int:
    """Multiply-adds per token of training, teacher included."""
    found = teacher_operations(shape, span, objective, block)
    return found + operator_operations(shape, span, objective, k, solver, block)


def optimizer_operations(shape: Shape, objective: str, optimizer: str) -> int:
    """Multiply-adds of one optimiser step, whatever the batch. Muon's five Newton–Schulz iterations multiply each of
    the operator's matrices twice by its Gram matrix, and that by itself; AdamW multiplies no matrices."""
    if optimizer != "muon" or objective == "solved":
        return 0
    timed = objective != "regression"  # six knobs for each unit of width, in one matrix (the smaller one is left out)
    numbers = shape.layer_matrices + timed * 6 * shape.width**2
    return 5 * (2 * numbers * shape.width + (shape.matrix_count + timed) * shape.width**3)


def skip_operations(shape: Shape, most: int, block: int) -> int:
    """Multiply-adds per token of trying to skip every contiguous span of 1 … ``most`` layers
    (:func:`lft_edu.skipping.best_skips`): the teacher once, and for each span its tail and the head."""
    tails = [shape.depth - m - j for j in range(1, most + 1) for m in range(shape.depth - j + 1)]
    return (shape.depth + sum(tails)) * shape.layer(block) + (1 + len(tails)) * shape.head


def evaluation_operations(shape: Shape, span, nfe: int, block: int) -> int:
    """Multiply-adds per token of comparing student and teacher."""
    layers = 2 * shape.depth - (span[1] - span[0]) + nfe
    return layers * shape.layer(block) + 2 * shape.head


def reached(shape: Shape, device: torch.device) -> float:
    """Share of the speed of bare matrix products that whole steps reach. CPU: measured (benchmarks/results/splice.md:
    0.5–0.6 at width 64, 0.8–0.9 at Pythia-410M's). GPU: not yet measured; where bare products reach 80 % of the maker's
    peak, half of them is the goal of this course, 40 % of the peak."""
    if device.type == "cuda":
        return 0.5
    return 0.5 if shape.width < 512 else 0.8


def operator_parameters(shape: Shape, objective: str) -> int:
    """Of the operator that an objective trains; of a closed form, a matrix and a shift."""
    if objective == "solved":
        return shape.width**2 + shape.width
    return shape.layer_parameters + (0 if objective == "regression" else shape.modulation)


def student_parameters(shape: Shape, span, objective: str) -> int:
    replaced = (span[1] - span[0]) * shape.layer_parameters
    return shape.parameters - replaced + operator_parameters(shape, objective)


def training_memory(
    shape: Shape, span, objective: str, count: int, tokens: int, dtype: torch.dtype, precision: str = "no"
) -> int:
    """Bytes at the peak of a training step on ``tokens`` tokens with ``count`` evaluations.

    Teacher and student as they are loaded; the operator in float32 four times (weights, gradient, Adam's two moments);
    what each evaluation keeps for the gradient.
    """
    weights = BYTES[dtype] * (shape.parameters + student_parameters(shape, span, objective))
    kept = (2 if precision == "bf16" else 4) * tokens * shape.width * ACTIVATIONS * count
    logits = LOGIT_COPIES * 4 * tokens * shape.vocabulary if objective == "logit_kl" else 0
    return int(weights + 16 * operator_parameters(shape, objective) + kept + logits)


def evaluation_memory(shape: Shape, span, objective: str, tokens: int, dtype: torch.dtype) -> int:
    """Bytes at the peak of an evaluation in batches of ``tokens`` tokens."""
    weights = BYTES[dtype] * (shape.parameters + student_parameters(shape, span, objective))
    return int(weights + LOGIT_COPIES * 4 * tokens * shape.vocabulary)


def checkpoint_bytes(shape: Shape, objective: str) -> int:
    """Bytes of one checkpoint: the operator and Adam's two moments, float32."""
    return 12 * operator_parameters(shape, objective)


@torch.no_grad()
def matmul_speed(shape: Shape, device: torch.device, dtype: torch.dtype, seconds: float = 0.3, rows: int = 0) -> float:
    """FLOP/s at which ``device`` multiplies ``rows`` tokens by a matrix of the teacher's MLP; takes ``seconds``, or two
    products where one takes longer."""
    rows = rows or (8192 if device.type == "cuda" else 512)
    weight = torch.randn(shape.width, 4 * shape.width, device=device).to(dtype)
    states = torch.randn(rows, shape.width, device=device).to(dtype)
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
    return 2 * rows * 4 * shape.width**2 / best


@torch.no_grad()
def latencies(models: dict, tokens: int = 128, new_tokens: int = 16, rounds: int = 5, progress: bool = False) -> dict:
    """Milliseconds a token of each model: ``prefill`` of one sequence and ``decode`` with the cache.

    The models take turns, ``rounds`` times, and the least of each counts: on a shared machine two models timed one
    after the other differ by what else ran meanwhile.

    Args:
        models: key → model.

    Returns:
        key → ``{"prefill": ms, "decode": ms}``.
    """
    from tqdm.auto import tqdm

    best = {key: {"prefill": math.inf, "decode": math.inf} for key in models}
    for i in tqdm(range(rounds + 1), desc="latency", unit="round", disable=not progress):
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
