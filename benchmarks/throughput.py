"""Training one operator: tokens per second of each objective, beside what its matrix products alone would take.

    python benchmarks/throughput.py                  # SmolLM2's shape and width 64, one thread of the CPU: 3 minutes
    python benchmarks/throughput.py --compile        # also with torch.compile: some minutes more
    python benchmarks/throughput.py --seconds 20 --batch 2 64 --out /tmp   # a quick look

Prints a table per width and writes ``benchmarks/results/throughput.json`` and ``throughput.md``: tokens per second and
the share of each part of a step, with Muon as it was (float32 Newton–Schulz) and as it is. ``benchmarks/splice.py``
measures all objectives with AdamW at Pythia's shape, by :func:`measure`.
The *floor* of a step is the multiply-adds it can't do without, forward and backward, over the speed at which this
machine multiplies matrices of these very shapes, measured in turns with the steps. The best step has fraction 1.
"""

import argparse
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from plane import table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

import lft_edu as lft
from lft_edu import objectives
from lft_edu.families import layers_of
from lft_edu.fitting import LatentLoss, LogitLoss
from lft_edu.latents import Latents, span_latents
from lft_edu.runs import costs
from lft_edu.support.files import atomic_write, write_json
from lft_edu.training.optimizers import A, B, C, Muon, adamw, muon_and_adamw, newton_schulz_dtype
from lft_edu.training.sampling import step_generator

RESULTS = Path(__file__).parent / "results"

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


class Step:
    """One optimizer step as :func:`lft_edu.training.loop.optimize` takes it; bfloat16 computes under autocast.

    A call returns the CPU seconds of each of ``PARTS``: time of this process alone, so that a busy machine counts less.
    """

    PARTS = ("reading", "forward", "backward", "clipping", "optimizer")

    def __init__(self, loss: nn.Module, read: Callable, optimizers: list, device: torch.device, dtype: torch.dtype):
        self.loss, self.read, self.optimizers, self.device = loss, read, optimizers, device
        self.autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
        self.parameters = list(loss.operator.parameters())
        self.generator = step_generator(0, 0, device=device)

    def __call__(self) -> dict[str, float]:
        marks = [time.process_time()]
        batch = self.read()
        goal = getattr(self.loss, "objective", None)
        times = None if goal is None else goal.times(len(batch.x0), self.generator)
        batch = (batch,) if times is None else (batch, times)
        marks.append(time.process_time())
        with self.autocast():
            value = self.loss(*batch)
        marks.append(time.process_time())
        value.backward()
        marks.append(time.process_time())
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        marks.append(time.process_time())
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        marks.append(time.process_time())
        return {name: end - start for name, start, end in zip(self.PARTS, marks, marks[1:], strict=False)}


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
            goal = objectives.named(objective, K, SOLVER)
            loss, batch = LatentLoss(student.operator, goal, weight), latents
        optimizers = [adamw(loss.operator.parameters(), 1e-4, betas=(0.9, 0.98))]
        steps[objective] = Step(loss, lambda batch=batch: batch, optimizers, ids.device, teacher.dtype)
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
        evaluations = objectives.evaluations(name, K, SOLVER)
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


# What follows is the benchmark of its own: parts of a step with Muon, before and after.
SHAPES = {576: (1536, 9, 3), 64: (256, 4, 4)}  # width → MLP, heads, key-value heads: SmolLM2-135M's, and a toy's
WALKS = ("flow_matching", "flow_walking")
PARTS_EXPLANATION = """\
A step as `lft.fit` takes it with `optimizer="muon"` and the latents in memory: reading the pairs, forward, backward,
clipping, optimizer (Muon for matrices, AdamW for the rest). *Before*: Newton–Schulz in float32 with sums of its own, as
it was. *After*: as `lft_edu.training.optimizers` does it, in the type it finds fastest here. *Of bare products*: the
seconds that the model's products alone take, three for each linear map and evaluation, measured in turns with the
steps, over the step's. CPU seconds of one thread, medians; speed-up is the median over rounds. Random weights."""


class FormerMuon(Muon):
    """Muon as it was: always float32, and every sum of the polynomial a pass over memory of its own."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes: dict[tuple, list] = {}
            for p in group["params"]:
                shapes.setdefault(tuple(p.shape), []).append(p)
            for (rows, columns), same in shapes.items():
                x = torch.stack([self._nesterov(p, group["momentum"]) for p in same])
                x = x.mT if rows > columns else x
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                for _ in range(5):
                    gram = x @ x.mT
                    x = A * x + (B * gram + C * gram @ gram) @ x
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                for p, direction in zip(same, x.mT if rows > columns else x, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=rate)

    def _nesterov(self, p, momentum: float):
        buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        buffer.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum)


def muon_steps(teacher, rows: int, tokens: int, compiled: bool) -> dict[tuple[str, str], Step]:
    """(objective, variant) → a step, each with an operator of its own that starts from the same weights."""
    generator, span, steps = torch.Generator().manual_seed(0), (0, teacher.config.num_hidden_layers), {}
    ids = torch.randint(teacher.config.vocab_size, (2 * rows, tokens), generator=generator)
    stored = span_latents(teacher, span, ids)
    weight = torch.ones(tokens, 1)
    weight[0] = 0

    def read() -> Latents:
        chosen = torch.randperm(2 * rows, generator=generator)[:rows]
        return Latents(stored.x0[chosen], stored.x1[chosen], stored.context)

    for objective in WALKS:
        for variant in ("before", "after", *(["after, compiled"] if compiled else [])):
            operator = lft.splice(teacher, span, lft.Flow(SOLVER, K)).operator.float().train()
            muon, rest = muon_and_adamw(operator, operator, muon_lr=0.02, adamw_lr=0.004)
            if variant == "before":
                muon = FormerMuon(muon.param_groups[0]["params"], lr=0.02)
                rest = torch.optim.AdamW(rest.param_groups[0]["params"], 0.004, (0.9, 0.95), weight_decay=0.0)
            loss = LatentLoss(operator, objectives.named(objective, K, SOLVER), weight)
            if "compiled" in variant:
                loss.compile()
            steps[objective, variant] = Step(loss, read, [muon, rest], teacher.device, teacher.dtype)
    return steps


def measure_parts(width: int, dtype: torch.dtype, rows: int, tokens: int, budget: float, compiled: bool) -> dict:
    """The steps and the bare products take turns for about ``budget`` seconds; the first round pays for allocation."""
    mlp, heads, kv_heads = SHAPES[width]
    config = LlamaConfig(
        hidden_size=width, intermediate_size=mlp, num_attention_heads=heads, num_key_value_heads=kv_heads,
        num_hidden_layers=2, vocab_size=512, max_position_embeddings=max(tokens, 512),
    )  # fmt: skip
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    steps, count = muon_steps(teacher, rows, tokens, compiled), rows * tokens
    bare = Matmuls([tuple(p.shape) for p in layers_of(teacher)[0].parameters() if p.ndim == 2], count, "cpu", dtype)
    rounds, started = [], time.perf_counter()
    while True:
        before = time.process_time()
        bare()
        rounds.append({"bare": time.process_time() - before} | {key: step() for key, step in steps.items()})
        spent = time.perf_counter() - started
        if spent * (1 + 1 / len(rounds)) > budget:
            break
    rounds = rounds[1:] or rounds
    speed = [bare.operations / r["bare"] for r in rounds]  # multiply-adds per second
    found = {"width": width, "dtype": str(dtype)[6:], "rows": rows, "tokens": tokens, "rounds": len(rounds)}
    found |= {"newton_schulz": str(newton_schulz_dtype(teacher.device, width))[6:]}
    found |= {"speed": 2 * statistics.median(speed), "steps": []}
    for objective, variant in steps:
        parts = [r[objective, variant] for r in rounds]
        whole_steps = [sum(p.values()) for p in parts]
        needed = count * costs.run_costs(teacher, (0, 2), objective, K, SOLVER, tokens).loss_flops / 2
        former = [sum(r[objective, "before"].values()) for r in rounds]
        row = {"objective": objective, "variant": variant, "seconds": statistics.median(whole_steps)}
        row |= {"tokens_per_second": count / row["seconds"]}
        row |= {"speed_up": statistics.median(f / s for f, s in zip(former, whole_steps, strict=True))}
        row |= {"of_bare": statistics.median(needed / v / s for v, s in zip(speed, whole_steps, strict=True))}
        shares = {n: statistics.median(p[n] / s for p, s in zip(parts, whole_steps, strict=True)) for n in Step.PARTS}
        found["steps"].append(row | {"shares": shares})
    return found


def render_parts(found: dict) -> str:
    """A title, a line and the table of one width."""
    cells = [["Objective", "Muon", "Tokens/s", "Speed-up", "ms per step", "Of bare products", *Step.PARTS]]
    for row in found["steps"]:
        cells.append([row["objective"], row["variant"], f"{row['tokens_per_second']:,.0f}", f"{row['speed_up']:.2f}"])
        cells[-1] += [f"{1000 * row['seconds']:,.0f}", f"{row['of_bare']:.2f}"]
        cells[-1] += [f"{100 * row['shares'][name]:.1f} %" for name in Step.PARTS]
    return (
        f"## Width {found['width']}, {found['dtype']}\n\n{found['rows']} sequences of {found['tokens']} tokens; Flow "
        f"Walking with k = {K}, {SOLVER}. Matrices of these shapes multiply at {found['speed'] / 1e9:,.0f} GFLOP/s; "
        f"Newton–Schulz at this width runs in {found['newton_schulz']}. Rounds: {found['rounds']}.\n\n{table(cells)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs=2, default=(16, 256), metavar=("SEQUENCES", "TOKENS"))
    parser.add_argument("--seconds", type=float, default=120, help="of measuring width 576 (default 120)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 if the CPU multiplies it")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile, too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args()
    if min(*a.batch, a.seconds) <= 0:
        parser.error("Numbers must be above 0.")
    torch.set_num_threads(1)
    cpu, (rows, tokens) = torch.device("cpu"), a.batch
    dtype = getattr(torch, a.dtype) if a.dtype else newton_schulz_dtype(cpu, 576)
    units = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(name)]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    machine = f"{platform.system()}, {platform.machine()}, one thread; the CPU has {', '.join(units) or 'none of AVX'}"
    result = {"versions": {"python": platform.python_version()} | versions, "machine": machine, "widths": []}
    for width, kind, budget in ((576, dtype, a.seconds), (64, torch.float32, a.seconds / 8)):
        result["widths"].append(measure_parts(width, kind, rows, tokens, budget, a.compile))
        print(render_parts(result["widths"][-1]), "\n", flush=True)
    stated = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = ["# Tokens per second of training, and the parts of a step"]
    lines += [f"Written by `python benchmarks/throughput.py` on {machine}: {stated}.", PARTS_EXPLANATION]
    a.out.mkdir(parents=True, exist_ok=True)
    write_json(a.out / "throughput.json", result)
    with atomic_write(a.out / "throughput.md") as partial_file:
        partial_file.write_text("\n\n".join([*lines, *map(render_parts, result["widths"])]) + "\n")


if __name__ == "__main__":
    main()
