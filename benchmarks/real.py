"""How much faster is a student of the real language model, and what does training it cost?

    OMP_NUM_THREADS=1 python -m benchmarks.real         # → benchmarks/results/real.md

The ideal speed-up counts matrices: layers run by the teacher over layers run by the student, plus the head, which both
have. Teacher and students take turns, so that a busy machine slows all of them alike.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import psutil
import torch

import lft_edu as lft
from lft_edu.families import layers_of
from lft_edu.fitting import LatentSource
from lft_edu.loading.teachers import shipped_students
from lft_edu.recipes.common import hardware
from lft_edu.runs.costs import matmul_speed, run_costs

NAME = "smollm2-135m"
RESULTS = Path(__file__).parent / "results" / "real.md"


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.no_grad()
def prefill(model, ids) -> None:
    model(input_ids=ids, use_cache=False, logits_to_keep=1)


@torch.no_grad()
def decode(model, ids, tokens: int = 24) -> None:
    model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    )


def ideal(teacher, student) -> float:
    """Numbers in the matrices that the teacher reads per token, over those that the student reads."""
    layer = sum(p.numel() for p in layers_of(teacher)[0].parameters() if p.ndim == 2)
    head = teacher.get_output_embeddings().weight.numel()
    (m, n), depth = student.config.span, len(layers_of(teacher))
    return (depth * layer + head) / ((depth - (n - m) + student.operator.nfe) * layer + head)


def speed_ups(dtype: torch.dtype, threads: int, rounds: int) -> list[dict]:
    """Median ratio of the teacher's time to each student's, over rounds in which they take turns."""
    torch.set_num_threads(threads)
    teacher, tokenizer = lft.load_teacher(NAME, device="cpu", dtype=dtype)
    models = {"teacher": teacher} | {name: lft.load_student(name, teacher) for name in shipped_students(NAME)}
    ids = torch.randint(len(tokenizer), (1, 256), generator=torch.Generator().manual_seed(0))
    taken: dict = {(what, name): [] for what in ("prefill", "decode") for name in models}
    for i in range(rounds + 1):
        for name, model in models.items():
            for what, work in (("prefill", lambda model=model: prefill(model, ids)),
                               ("decode", lambda model=model: decode(model, ids[:, :32]))):  # fmt: skip
                spent = seconds(work)
                if i:  # the first round warms up
                    taken[what, name].append(spent)
    rows = []
    for name in models:
        row = {"model": name, "dtype": str(dtype).removeprefix("torch."), "threads": threads}
        if name != "teacher":
            row["ideal"] = ideal(teacher, models[name])
        for what in ("prefill", "decode"):
            ratios = [a / b for a, b in zip(taken[what, "teacher"], taken[what, name], strict=True)]
            row[what] = statistics.median(ratios)
            row[f"{what}_tokens_per_second"] = (256 if what == "prefill" else 24) / statistics.median(taken[what, name])
        rows.append(row)
    return rows


def training(steps: int) -> list[dict]:
    """Tokens per second of training on states in memory, against what the matrix products alone would allow."""
    torch.set_num_threads(1)
    teacher, tokenizer = lft.load_teacher(NAME, device="cpu", dtype=torch.bfloat16)
    ids = torch.randint(len(tokenizer), (32, 256), generator=torch.Generator().manual_seed(0))
    speed = matmul_speed(teacher.config.hidden_size, teacher.device, torch.bfloat16)
    rows = []
    for objective, operator, solver in (
        ("regression", lft.Regression(), "euler"),
        ("flow_matching", lft.Flow("euler", 1), "euler"),
        ("flow_walking", lft.Flow("midpoint", 1), "midpoint"),
        ("logit_kl", lft.Flow("midpoint", 1), "midpoint"),
    ):
        span = (8, 20)
        source = LatentSource(
            teacher, (8, 30) if objective == "logit_kl" else span, ids, 16, cache=objective != "logit_kl"
        )
        options = {"optimizer": "muon", "precision": "bf16", "batch_size": 16, "progress": False}
        student = lft.splice(teacher, span, operator)
        lft.fit(student, teacher, source, objective, max_steps=1, **options)
        count = steps if objective != "logit_kl" else max(1, steps // 8)
        spent = seconds(lambda: lft.fit(student, teacher, source, objective, max_steps=count, **options))  # noqa: B023
        costs = run_costs(teacher, span, objective, 1, solver, sequence_length=256, operator=operator)
        flops = costs.loss_flops + costs.optimizer_flops / 4096
        rows.append({
            "objective": objective, "tokens_per_second": count * 4096 / spent, "floor": speed / flops,
            "share": count * 4096 / spent / (speed / flops),
        })  # fmt: skip
    return rows


def report(speeds: list[dict], trained: list[dict]) -> str:
    lines = [
        "# A real language model, measured", "",
        f"`python -m benchmarks.real` on {hardware()}, torch {torch.__version__}. "
        f"Memory at the end: {psutil.Process().memory_info().rss / 2**30:.1f} GiB.", "",
        "Speed-up over the teacher: 256 tokens prefill, 24 decoded after 32 (batch 1), median of rounds in turn.",
        "", "| model | dtype | threads | ideal | prefill | decode | tokens/s prefill | tokens/s decode |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in speeds:
        best = f"{r['ideal']:.2f}" if "ideal" in r else ""
        lines.append(
            f"| {r['model']} | {r['dtype']} | {r['threads']} | {best} | {r['prefill']:.2f} | {r['decode']:.2f} | "
            f"{r['prefill_tokens_per_second']:.0f} | {r['decode_tokens_per_second']:.1f} |"
        )
    lines += ["", "Training on layers 8–20, bfloat16, one thread; the floor is the speed of bare matrix products:", ""]
    lines += ["| objective | tokens/s | floor | share |", "|---|---|---|---|"]
    lines += [
        f"| {r['objective']} | {r['tokens_per_second']:,.0f} | {r['floor']:,.0f} | {r['share']:.0%} |" for r in trained
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=24, help="of each training")
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args()
    speeds = [
        row
        for dtype in (torch.float32, torch.bfloat16)
        for threads in (1, 2)
        for row in speed_ups(dtype, threads, a.rounds)
    ]
    trained = training(a.steps)
    a.out.write_text(report(speeds, trained))
    a.out.with_suffix(".json").write_text(json.dumps({"speed_ups": speeds, "training": trained}, indent=1))
    print(report(speeds, trained))


if __name__ == "__main__":
    main()
