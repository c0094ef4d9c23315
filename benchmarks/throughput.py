"""Training one operator: tokens a second of each objective, beside what its multiplications alone would take.

Measured by ``benchmarks/splice.py``, which says how to run it. The *floor* of a step is the multiply-adds it can't do
without, forward and backward, over the speed at which this machine multiplies matrices of these very shapes, measured
in turns with the steps. The best step has fraction 1.
"""

import statistics
import time
from collections.abc import Callable

import torch
from plane import table
from torch import Tensor, nn

import lft_edu as lft
from lft_edu import costs
from lft_edu.families import layers_of
from lft_edu.fitting import LatentLoss, LogitLoss
from lft_edu.latents import span_latents
from lft_edu.training import step_generator

K, SOLVER = 3, "midpoint"  # of the walk, as in the paper
OBJECTIVES = ("regression", "flow_matching", "flow_walking", "hybrid", "logit_kl")
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}  # dense bfloat16, FLOP/s, by the maker

EXPLANATION = """\
A step: loss, gradient, clipping, AdamW, as `lft.fit` does, the states of the teacher at hand. *Evaluations* are those
of the velocity. A step's floor counts the matrix products of its evaluations as PyTorch's `FlopCounterMode` does (once
forward, twice backward; attention over the whole square); `logit_kl` also runs the teacher, the student's kept layers,
and both heads.
*On the fly*: the teacher's layers up to the span's end run for every batch, as in `lft.fit` without `cache_latents`,
and are in the floor, too."""


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long ``work`` takes, the device waited for before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


class Matmuls:
    """The three products of every linear map in a layer, at the shapes of a step."""

    def __init__(self, shapes: list[tuple[int, int]], count: int, device, dtype):
        make = lambda *shape: torch.randn(*shape, device=device).to(dtype)  # noqa: E731
        self.sets = [(make(count, i), make(o, i), make(count, o)) for o, i in shapes]
        self.operations = 3 * sum(count * o * i for o, i in shapes)

    def __call__(self) -> None:
        for x, weight, gradient in self.sets:
            x @ weight.T, gradient @ weight, gradient.T @ x


def step_of(loss: nn.Module, batch, device, dtype) -> Callable[[], None]:
    """One optimiser step as :func:`lft_edu.training.optimise` takes it; a bfloat16 device computes under autocast."""
    parameters = list(loss.operator.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.0)
    generator = step_generator(0, 0, device=device)

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss(batch, generator=generator)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def steps_of(teacher, span: tuple[int, int], ids: Tensor) -> dict[str, Callable]:
    """Objective → one training step of an operator of its own, on the same batch."""
    latents, steps = span_latents(teacher, span, ids), {}
    weight = torch.ones(ids.shape[1], 1, device=ids.device)
    weight[0] = 0  # as lft.fit does by default: position 0 does not count
    for objective in OBJECTIVES:
        operator = lft.Regression() if objective == "regression" else lft.Flow(SOLVER, K)
        student = lft.splice(teacher, span, operator)
        student.operator.float().train()
        if objective == "logit_kl":
            loss, batch = LogitLoss(student, teacher), ids
        else:
            loss, batch = LatentLoss(student.operator, objective, K, SOLVER, 0.1, weight), latents
        steps[objective] = step_of(loss, batch, ids.device, teacher.dtype)
    return steps


def measure(teacher, span: tuple[int, int], rows: int, tokens: int, rounds: int) -> dict:
    """A row an objective: the matrix products, the teacher and the objectives take turns."""
    device, count = teacher.device, rows * tokens
    ids = torch.randint(teacher.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(0))
    ids = ids.to(device)
    matrices = [tuple(p.shape) for p in layers_of(teacher)[0].parameters() if p.ndim == 2]
    matmuls = Matmuls(matrices, count, device, teacher.dtype)
    works = {"matmuls": matmuls, "teacher": lambda: span_latents(teacher, span, ids)} | steps_of(teacher, span, ids)
    taken: dict[str, list] = {name: [] for name in works}
    for i in range(rounds + 1):
        for name, work in works.items():
            spent = seconds(work, device)
            if i:  # the first round pays for allocation
                taken[name].append(spent)
    speeds = [matmuls.operations / s for s in taken["matmuls"]]  # multiply-adds a second, round by round
    about = {"rows": rows, "tokens": tokens, "span": list(span), "speed": 2 * statistics.median(speeds)}
    about |= {"teacher_seconds": statistics.median(taken["teacher"]), "peak": peak(device)}
    counted = {name: costs.run_costs(teacher, span, name, K, SOLVER, tokens) for name in OBJECTIVES}
    lower = count * counted["flow_matching"].latents_flops / 2
    rows_ = []
    for name in OBJECTIVES:
        evaluations = costs.evaluations(name, K, SOLVER)
        needed = count * counted[name].loss_flops / 2  # multiply-adds
        fraction = statistics.median(needed / v / s for v, s in zip(speeds, taken[name], strict=True))
        row = {"objective": name, "evaluations": evaluations, "seconds": statistics.median(taken[name])}
        row |= {"tokens_per_second": count / row["seconds"], "multiply_adds": needed, "fraction_of_floor": fraction}
        if name != "logit_kl":
            both = [a + b for a, b in zip(taken[name], taken["teacher"], strict=True)]
            shares = [(needed + lower) / v / s for v, s in zip(speeds, both, strict=True)]
            row |= {"on_the_fly": count / statistics.median(both), "on_the_fly_fraction": statistics.median(shares)}
        if about["peak"]:
            row["fraction_of_peak"] = 2 * needed / row["seconds"] / about["peak"]
        rows_.append(row)
    return about | {"objectives": rows_}


def peak(device: torch.device) -> float | None:
    """The maker's bfloat16 FLOP/s of this GPU, if it is one of the few in ``PEAKS``."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((speed for part, speed in PEAKS.items() if part in name), None)


def render(found: dict) -> str:
    """The table, with a line above it."""
    cells = [["Objective", "Evaluations", "ms a step", "Tokens/s", "Of the floor", "On the fly, tokens/s", "… floor"]]
    if found["peak"]:
        cells[0].append("Of bf16 peak")
    for row in found["objectives"]:
        cells.append([row["objective"], str(row["evaluations"]), f"{1000 * row['seconds']:.1f}"])
        cells[-1] += [f"{row['tokens_per_second']:,.0f}", f"{row['fraction_of_floor']:.2f}"]
        fly = "on_the_fly" in row
        cells[-1] += [f"{row['on_the_fly']:,.0f}", f"{row['on_the_fly_fraction']:.2f}"] if fly else ["", ""]
        cells[-1] += [f"{row['fraction_of_peak']:.2f}"] if found["peak"] else []
    return (
        f"{found['rows']} sequences of {found['tokens']} tokens, span {found['span'][0]}–{found['span'][1]}. "
        f"Matrices of these shapes multiply at {found['speed'] / 1e9:,.0f} GFLOP/s. "
        f"The teacher's {found['span'][1]} layers take {1000 * found['teacher_seconds']:.0f} ms.\n\n{table(cells)}"
    )
