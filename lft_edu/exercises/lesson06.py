"""Checks of lesson 06: KL, layers skipped, and whether two students differ."""

import math

import torch

from ..objectives import token_kl
from ..skipping import skipped_layers
from ..support.statistics import bootstrap_means, interval
from .checking import Wrong, close, describe, exercise, tensor


def _logits(seed: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, noise = (3 * torch.randn(2, 5, 11, generator=generator) for _ in range(2))
    return teacher.to(dtype), (teacher + 0.5 * noise).to(dtype)


@exercise("6.1", "KL by hand", difficulty=1, minutes=8)
def kl_by_hand(answer):
    teacher, student = _logits(0)
    right = token_kl(student, teacher)
    yield "one number per token, shape (B, T)"
    value = answer(teacher, student)
    if tuple(getattr(value, "shape", ())) == (2,):
        raise Wrong("One number per sequence: you average over its tokens. Keep one number per token.")
    tensor(value, (2, 5), "the divergence", "sum over the vocabulary, keep batch and tokens")

    yield "by hand: p = (1/2, 1/2), q = (1/4, 3/4)"
    p, q = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    want = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    close(answer(p, q), [[want]], "KL(teacher ‖ student)", {
        "You swapped teacher and student: the teacher's probabilities do the weighing, p · (log p − log q).":
            [[0.25 * math.log(0.5) + 0.75 * math.log(1.5)]],
        "You measure in bits. A nat uses the natural logarithm: torch.log, not log2.": [[want / math.log(2)]],
        "The sign: log p − log q, not log q − log p. A divergence is never below zero.": [[-want]],
        "This is the cross-entropy −Σ p log q. Subtract the teacher's own entropy.": [[math.log(2) + want]],
        "You average over the vocabulary: sum over it.": [[want / 2]],
    })  # fmt: skip
    yield "logits need a softmax first, whatever their level"
    close(answer(teacher + 7, student - 3), right, "KL(teacher ‖ student)")
    yield "logits far apart give no infinity"
    far = torch.tensor([[[0.0, -300.0]]]), torch.tensor([[[-300.0, 0.0]]])
    value = answer(*far)
    if isinstance(value, torch.Tensor) and not bool(torch.isfinite(value).all()):
        raise Wrong(
            "exp(−300) is 0 in float32, and log 0 is −∞. Take log_softmax of the logits instead of the log of softmax."
        )
    close(value, [[300.0]], "KL(teacher ‖ student)", tolerance=1e-3)
    yield "computed in float32, also from bfloat16 logits"
    halves = _logits(1, torch.bfloat16)
    value = answer(*halves)
    if getattr(value, "dtype", None) == torch.bfloat16:
        raise Wrong(
            "You compute in bfloat16, which has three digits: differences of logarithms drown in it. Call .float() on "
            "the logits first."
        )
    close(value, token_kl(*reversed(halves)), "KL(teacher ‖ student)", tolerance=1e-5)


CURVE = {0: 0.0, 1: 0.2, 2: 0.5, 3: 0.5, 4: 0.4, 5: 1.0}  # one step is flat, one falls
STEEP = {0: 0.0, 1: 0.1, 2: 0.4, 3: 1.0}


@exercise("6.2", "How many layers is it worth?", difficulty=2, minutes=10)
def layers_skipped(answer):
    yield "a number"
    tensor(answer(0.25, STEEP), (), "j*")
    yield "at a point of the curve, that many layers"
    for j in (1, 2, 3):
        close(answer(STEEP[j], STEEP), j, f"j* of KL = {STEEP[j]}")
    yield "between two points, on the straight line between them"
    close(answer(0.25, STEEP), 1.5, "j* of KL = 0.25, halfway between 0.1 (one layer) and 0.4 (two)", {
        "You took the nearest whole number. Between two numbers of layers the curve is a straight line.": 1.0,
        "You took the next whole number. Between two numbers of layers the curve is a straight line.": 2.0,
    })  # fmt: skip
    close(answer(0.05, STEEP), 0.5, "j* of KL = 0.05, halfway to the cost of one layer", {
        "Skipping no layer costs 0: the curve begins at (0, 0).": 1.0,
    })  # fmt: skip
    yield "above the whole curve: more than was measured, infinity"
    value = answer(2.0, STEEP)
    value = float(value) if isinstance(value, (int, float, torch.Tensor)) else 0.0
    if math.isfinite(value):
        raise Wrong(
            f"KL = 2.0 is above every point measured; you returned {value:g}. Nothing was measured there: return "
            "math.inf."
        )
    yield "a curve that is flat, or falls"
    close(answer(0.75, CURVE), 4.5, "j* of KL = 0.75", {
        "Skipping 4 layers costs less than skipping 3 on this text. That is no reason to start from 0.4: take the "
        "running maximum of the curve.": 4 + 0.35 / 0.6,
    })  # fmt: skip
    for kl, why in ((0.5, "the first number of layers that costs so much"), (0.45, "between one and two layers")):
        close(answer(kl, CURVE), skipped_layers(kl, CURVE), f"j* of KL = {kl}: {why}")


def _two_students(seed: int, gap: float, own: float) -> tuple[torch.Tensor, torch.Tensor]:
    """KL per sequence of two students: texts differ much, and both find the same ones hard."""
    generator = torch.Generator().manual_seed(seed)
    text, a, b = torch.randn(3, 200, generator=generator, dtype=torch.float64)
    level = 0.5 + 0.2 * text
    return level + own * a, level + gap + own * b


@exercise("6.3", "Which of the two is better?", difficulty=2, minutes=15)
def paired(answer):
    a, b = _two_students(0, gap=0.02, own=0.05)
    want = interval(bootstrap_means(a - b))
    half = (want[1] - want[0]) / 2
    yield "the two ends of an interval, the lower one first"
    value = answer(a, b)
    if not isinstance(value, (tuple, list, torch.Tensor)) or getattr(value, "ndim", 1) != 1 or len(value) != 2:
        raise Wrong(f"You returned {describe(value)}: return (low, high).")
    low, high = (float(tensor(one, (), "an end of the interval")) for one in value)
    if low > high:
        raise Wrong("Your lower end is above the upper one: the 2.5 % quantile comes first.")
    yield "around the mean difference, first student minus second"
    middle, mean = (low + high) / 2, (a - b).mean().item()
    if abs(middle + mean) < half < abs(middle - mean):
        raise Wrong("Your interval is about b − a. Subtract the second from the first: a − b.")
    if abs(middle - mean) > half:
        raise Wrong(f"The mean difference is {mean:.4f}; your interval runs from {low:.4f} to {high:.4f}.")
    yield "paired: a text that is drawn is drawn for both students"
    width, alone = (high - low) / 2, 1.96 * math.sqrt((a.var() + b.var()).item() / len(a))
    if abs(width - alone) < 0.15 * alone:
        raise Wrong(
            f"Your interval has half-width {width:.3f}; paired it is {half:.3f}. You drew texts for each student "
            "apart, so how hard the texts are counts as a difference between students. Draw row numbers once, and use "
            "them for both."
        )
    yield "95 %: from the 2.5 % to the 97.5 % quantile"
    spread = (a - b).std().item() / math.sqrt(len(a))
    if abs(width - spread) < 0.15 * spread:
        raise Wrong("Your interval is one standard error on each side: that covers 68 %, not 95 %.")
    if width > 5 * half:
        raise Wrong("This is the spread of single texts. Of interest is the spread of the *mean* over all 200.")
    if abs(width - half) > 0.12 * half:
        raise Wrong(
            f"Half-width {width:.4f}, it should be about {half:.4f}: 2,000 samples of len(a) rows each, with "
            "replacement; then the quantiles 0.025 and 0.975 of their means."
        )
    yield "two students that do not differ"
    a, b = _two_students(1, gap=0.0, own=0.05)
    low, high = (float(tensor(one, (), "an end of the interval")) for one in answer(a, b))
    if not low < 0 < high:
        raise Wrong(f"These two differ by chance alone, but your interval, {low:.4f} to {high:.4f}, excludes zero.")
