"""Pythia-410M's exact shape, random weights: what loading, training and evaluating take, beside what was planned.

    python benchmarks/scale.py                    # memory and speed on this device: some minutes on a CPU
    python benchmarks/scale.py --batch 32         # a GPU: more sequences at once
    python benchmarks/scale.py --layers 2 --block 64 --out /tmp    # a quick look

Every stage runs in a process of its own, so that its peak of memory is its own: resident memory on a CPU, what PyTorch
allocated on a GPU. Training goes through ``lft.fit``, teacher included, as a run does. Writes
``benchmarks/results/scale.json`` and ``scale.md``. Needs torch, transformers and accelerate only (the rate at which
text is read is measured where datasets is there, too).
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from plane import table
from throughput import peak

import lft_edu as lft
from lft_edu.runs import costs
from lft_edu.support import machine
from lft_edu.support.files import atomic_write, write_json
from lft_edu.support.machine import default_device, evaluation_batch
from lft_edu.training.callbacks import Evaluation
from lft_edu.training.streams import TokenStream

RESULTS = Path(__file__).parent / "results"
PAPER_TOKENS = 2.6e9
# (objective, span, solver, steps of the walk): the paper's two, and the cheaper walk that lesson 08 finds as good.
RUNS = {
    "flow matching, 6–12": ("flow_matching", (6, 12), "euler", 1),
    "Flow Walking, 6–18": ("flow_walking", (6, 18), "midpoint", 3),
    "Flow Walking, one midpoint step, 6–18": ("flow_walking", (6, 18), "midpoint", 1),
}
EXPLANATION = """\
*Planned* is what `lft.plan` counts (`lft_edu/costs.py`). *Floor*: the counted operations over the speed of bare matrix
products of these shapes, measured in the same process; *of the floor* is the share of that speed which whole steps
reach. Hours are for the paper's 2.6 B tokens on this one device at this rate. Text was at hand: reading and tokenizing
it is not in these numbers, a thread does it beside the training, at the rate below (Python source from memory, the
bundled tokenizer, four lanes). The optimizer is AdamW on a CPU; on a GPU it is Muon, whose operations are counted."""


def span_of(span: tuple[int, int], layers: int) -> tuple[int, int]:
    """A span of 24 layers, at the same share of fewer."""
    return tuple(max(i, edge * layers // 24) for i, edge in enumerate(span))


def stage(name: str, folder: str, batch: int, block: int, steps: int) -> dict:
    """What one process measures."""
    device = default_device()
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    found = {"speed": 0.0}
    with machine.PeakMemory(device) as memory:
        started = time.perf_counter()
        if name == "text":
            return {"tokens_per_second": reading(block), "memory": 0}
        if name != "imports":
            teacher, _ = lft.load_teacher(folder, dtype=half)
            found["load_seconds"] = time.perf_counter() - started
            shape, tokens = costs.Shape.of(teacher), batch * block
        if name in RUNS:
            found |= training(RUNS[name], teacher, shape, batch, block, steps)
        if name == "evaluate":
            student = lft.splice(teacher, span_of((6, 18), shape.depth), lft.Flow("midpoint", 3))
            rows = evaluation_batch(shape.vocabulary, block)
            ids = torch.randint(shape.vocabulary, (rows, block), generator=torch.Generator().manual_seed(0))
            started = time.perf_counter()
            lft.evaluate(student, teacher, ids)
            found |= {"seconds": time.perf_counter() - started, "tokens": rows * block}
            tokens = rows * block
            found["planned"] = costs.run_costs(teacher, student.config.span).evaluation_memory(tokens, half)
        if name == "load":
            found["planned"] = shape.parameters * costs.BYTES[half]
    return found | {"memory": memory.peak}


def reading(block: int, documents: int = 1500) -> float:
    """Tokens a second that a stream of text delivers, tokenized and packed."""
    import datasets

    _, tokenizer = lft.load_teacher("bundled", device="cpu")
    files = lft.corpora.python_files("python-stdlib", "train")[:documents]
    texts = datasets.Dataset.from_dict({"text": list(lft.corpora.read_texts(files))}).to_iterable_dataset(num_shards=4)
    blocks = texts.map(
        lambda batch: {"input_ids": lft.corpora.pack(batch["text"], tokenizer, block)},
        batched=True, batch_size=64, remove_columns=["text"],
    )  # fmt: skip
    stream, rows, started = TokenStream(blocks), 32, time.perf_counter()
    steps = 2**21 // (rows * block)
    for i in range(steps):
        stream[list(range(rows * i, rows * (i + 1)))]
    return steps * rows * block / (time.perf_counter() - started)


def training(run: tuple, teacher, shape, batch: int, block: int, steps: int) -> dict:
    """Tokens a second of ``lft.fit`` after its first step, the floor, and the memory that was planned."""
    objective, span, solver, k = run
    span, device = span_of(span, shape.depth), teacher.device
    half = device.type == "cuda"
    blocks = torch.randint(shape.vocabulary, (4 * batch, block), generator=torch.Generator().manual_seed(0))
    student, times = lft.splice(teacher, span, lft.Flow(solver, k)), []

    def clock(step):
        machine.synchronize(device)
        times.append(time.perf_counter())
        return {}

    precision, optimizer, lr = ("bf16", "muon", 0.03) if half else ("no", "adamw", 5e-4)
    every = max(1, steps // 6)  # seldom: looking at the clock means waiting for the device
    options = {"max_steps": 6 * every, "batch_size": batch, "optimizer": optimizer, "lr": lr}
    options |= {
        "precision": precision,
        "compile": half,
        "callbacks": [Evaluation(clock)],
        "evaluate_every": every,
        "progress": False,
    }
    lft.fit(student, teacher, blocks, objective, **options)
    rate = 4 * every * batch * block / (times[5] - times[1])  # a GPU compiles first
    counted = costs.run_costs(teacher, span, objective, k, solver, block, optimizer)
    flops = counted.training_flops + counted.optimizer_flops / (batch * block)
    speed = costs.matmul_speed(shape.width, device, teacher.dtype, rows=batch * block)
    found = {"tokens_per_second": rate, "operations": flops / 2, "speed": speed}  # operations: multiply-adds
    found |= {"of_floor": flops * rate / speed, "hours": PAPER_TOKENS / rate / 3600}
    found |= {"floor_hours": PAPER_TOKENS * flops / speed / 3600}
    found["of_peak"] = flops * rate / peak(device) if peak(device) else None
    return found | {"planned": counted.training_memory(batch * block, teacher.dtype, precision)}


def measure(a: argparse.Namespace) -> dict:
    """Every stage in a process of its own."""
    stages = ["imports", "load", *RUNS, "evaluate"]
    stages += ["text"] if importlib.util.find_spec("datasets") else []
    with tempfile.TemporaryDirectory() as folder:
        lft.random_teacher(a.shape, layers=a.layers, device="cpu", dtype=torch.float16).save_pretrained(folder)
        lft.load_teacher("bundled", device="cpu")[1].save_pretrained(folder)  # loading wants one
        found = {}
        for name in stages:
            command = [sys.executable, __file__, "--stage", name, "--folder", folder, "--batch", str(a.batch)]
            command += ["--block", str(a.block), "--steps", str(a.steps)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
            found[name] = json.loads(done.stdout.splitlines()[-1])
            print(name, {k: v for k, v in found[name].items() if v}, flush=True)
    device = default_device()
    about = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, one thread"}
    about |= {"shape": a.shape, "layers": a.layers, "batch": a.batch, "block": a.block}
    about["versions"] = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")}
    return about | {"stages": found}


def render(found: dict) -> str:
    """Two tables: memory, and speed."""
    on_cpu = found["device"].startswith("CPU")
    extra = costs.PROGRAM if on_cpu else 0
    memory = [["Stage", "Memory at the peak", "Planned"]]
    speed = [["Training", "Tokens/s", "Of the floor", "Of bf16 peak", "Hours for 2.6 B tokens", "… at the floor"]]
    for name, row in found["stages"].items():
        planned = f"{(row['planned'] + extra) / 1e9:.2f} GB" if "planned" in row else ""
        if row["memory"]:
            memory.append([name, f"{row['memory'] / 1e9:.2f} GB", planned])
        if "hours" in row:
            share = f"{row['of_peak']:.2f}" if row["of_peak"] else "not known"
            speed.append([name, f"{row['tokens_per_second']:,.0f}", f"{row['of_floor']:.2f}", share])
            speed[-1] += [f"{row['hours']:,.1f}", f"{row['floor_hours']:,.1f}"]
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    text = found["stages"].get("text", {"tokens_per_second": math.nan})["tokens_per_second"]
    return (
        f"# The real size: {found['shape']}, random weights\n\nWritten by `python benchmarks/scale.py` on "
        f"{found['device']}: {versions}. {found['batch']} × {found['block']} tokens a step.\n\n"
        f"{EXPLANATION}\n\n{table(memory)}\n\n{table(speed)}\n\n"
        f"Text: {text:,.0f} tokens/s.\n"
    )


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="pythia-410m")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--batch", type=int, default=32 if gpu else 1, help="sequences a step")
    parser.add_argument("--block", type=int, default=512, help="tokens a sequence")
    parser.add_argument("--steps", type=int, default=120 if gpu else 6)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if not gpu:
        torch.set_num_threads(1)
    if a.stage:
        print(json.dumps(stage(a.stage, a.folder, a.batch, a.block, a.steps)))
        return
    found = measure(a)
    a.out.mkdir(parents=True, exist_ok=True)
    write_json(a.out / "scale.json", found)
    with atomic_write(a.out / "scale.md") as partial:
        partial.write_text(render(found))
    print(render(found))


if __name__ == "__main__":
    main()
