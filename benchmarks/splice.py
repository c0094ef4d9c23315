"""Latency, memory and training speed of spliced transformers, against what the number of layers promises.

    python benchmarks/splice.py                          # both teachers: about eight minutes on a CPU
    python benchmarks/splice.py --shape bundled          # the bundled teacher alone
    python benchmarks/splice.py --shape pythia-410m      # a published shape, random weights; the same on a GPU
    python benchmarks/splice.py --rounds 1 --tokens 64 --context 32 --rss none --out /tmp   # a quick look

Prints tables and writes ``benchmarks/results/splice.json`` and ``splice.md``. Takes a GPU if there is one (then in
bfloat16), else one thread of the CPU. Teacher and students take turns; ratios are taken of neighbors in time, then
their median. Needs torch and transformers only.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import throughput
import torch
from plane import table
from throughput import seconds
from torch import Tensor, nn

import lft_edu as lft
from lft_edu.loading.teachers import SHAPES, random_teacher
from lft_edu.support.files import atomic_write, write_json
from lft_edu.support.machine import default_device

RESULTS = Path(__file__).parent / "results"
SPANS = ((6, 12), (6, 18))
SOLVERS = [(solver, k) for solver in ("euler", "midpoint") for k in (1, 2, 3)]
QUICK = 5  # times the rounds, and the teacher before every student, where a round takes a second
PACE = 3  # elsewhere: students between two measurements of the teacher
GOAL = "flow: euler × 1"
EXPLANATION = """\
*Prefill*: a sequence with the cache, logits of its last token, as `generate` begins. *Decode*: one token more, with the
cache. *By layers*: L over the layers kept and the evaluations made. *Ideal*: the same with the rest of the model
(embedding, masks, rotary positions, last norm, head) counted as it was measured, on a student without any layer:
teacher ÷ (rest + layers · (teacher − rest) ÷ L). *Fraction*: the speed-up reached over each of the two. The regression
operator is a plain layer: what a flow with one evaluation takes beyond it is the flow's own."""


@dataclass
class Contender:
    """A model, the solver to set before it runs, and the layers it evaluates a token."""

    name: str
    model: nn.Module
    layers: int
    solver: tuple[str, int] | None = None

    def ready(self) -> nn.Module:
        if self.solver:
            self.model.set_solver(*self.solver)
        return self.model


def contenders(teacher, span: tuple[int, int]) -> list[Contender]:
    """Closed forms, a plain layer, and one flow under every solver. Weights decide no time, so nothing is fitted."""
    kept = teacher.config.num_hidden_layers - (span[1] - span[0])
    plain = {"skip": lft.Skip(), "ridge": lft.Ridge(), "regression": lft.Regression()}
    students = {name: lft.splice(teacher, span, operator) for name, operator in plain.items()}
    found = [Contender(name, s, kept + s.operator.nfe) for name, s in students.items()]
    flow = lft.splice(teacher, span, lft.Flow())
    return found + [
        Contender(f"flow: {solver} × {k}", flow, kept + flow.set_solver(solver, k).operator.nfe, (solver, k))
        for solver, k in SOLVERS
    ]


class Prefill:
    """One sequence into an empty cache."""

    def __init__(self, ids: Tensor):
        self.ids = ids

    @torch.no_grad()
    def __call__(self, contender: Contender) -> float:
        model = contender.ready()
        return seconds(lambda: model(input_ids=self.ids, use_cache=True, logits_to_keep=1), self.ids.device)


class Decode:
    """``new`` tokens, one by one, after a context; the cache of each contender is filled once and cut back."""

    def __init__(self, ids: Tensor, new: int):
        self.ids, self.new, self.caches = ids, new, {}

    @torch.no_grad()
    def cache(self, contender: Contender):
        key = (id(contender.model), contender.solver)
        if key not in self.caches:
            found = contender.ready()(input_ids=self.ids, use_cache=True, logits_to_keep=1)
            self.caches[key] = found.past_key_values
        return self.caches[key]

    @torch.no_grad()
    def __call__(self, contender: Contender) -> float:
        model, cache = contender.ready(), self.cache(contender)

        def work():
            for _ in range(self.new):
                model(input_ids=self.ids[:, :1], past_key_values=cache, use_cache=True)

        spent = seconds(work, self.ids.device) / self.new
        if cache.get_seq_length():  # a model without layers keeps nothing
            cache.crop(-self.new)
        return spent


def race(teacher: Contender, rest: Contender, students: list[Contender], work, rounds: int, pace: int) -> list[dict]:
    """Seconds of each student beside those of its teacher, with the medians over rounds of the ratios."""
    taken: dict[str, list] = {s.name: [] for s in students}
    for contender in (teacher, rest, students[0]):
        work(contender)  # the first to come pays for allocation
    for _ in range(rounds):
        for j, student in enumerate(students):
            if j % pace == 0:
                t, r = work(teacher), work(rest)
            taken[student.name].append((t, r, work(student)))
    return [outcome(s, teacher.layers, taken[s.name]) for s in students]


def outcome(student: Contender, depth: int, taken: list[tuple]) -> dict:
    """One row. ``layers`` and ``ideal`` are speed-ups to expect, the fractions what was reached of them."""
    ideals = [t / (r + student.layers * (t - r) / depth) for t, r, _ in taken]
    reached = [t / s for t, _, s in taken]
    middle = statistics.median
    row = {"name": student.name, "evaluations": student.layers, "seconds": middle(s for *_, s in taken)}
    row |= {"teacher_seconds": middle(t for t, *_ in taken), "rest_seconds": middle(r for _, r, _ in taken)}
    row |= {"speed_up": middle(reached), "layers": depth / student.layers, "ideal": middle(ideals)}
    row["fraction_of_ideal"] = middle(a / b for a, b in zip(reached, ideals, strict=True))
    row["fraction_of_layers"] = row["speed_up"] / row["layers"]
    t, r, s = (min(times) for times in zip(*taken, strict=True))  # as if nothing else had run on the machine
    return row | {"fraction_of_ideal_least": (r + student.layers * (t - r) / depth) / s}


def weight_bytes(model: nn.Module) -> int:
    return sum(x.nbytes for x in [*model.parameters(), *model.buffers()])  # each tensor once


def cache_bytes(cache) -> int:
    """Bytes of the keys and values in a cache."""
    return sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values) if isinstance(x, Tensor))


def memory(found: list[Contender], decode: Decode, prefill: Prefill) -> list[dict]:
    """A row a contender: weights, cache after the context, and on a GPU what a prefill takes besides."""
    rows, device = [], prefill.ids.device
    for contender in found:
        row = {"name": contender.name, "weights": weight_bytes(contender.model)}
        row["cache"] = cache_bytes(decode.cache(contender))
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            prefill(contender)
            row["peak"] = torch.cuda.max_memory_allocated(device) - before
        rows.append(row)
    return rows


def resident(teacher, span: tuple[int, int], tokens: int) -> dict:
    """Peak memory of a process that does nothing but load a model and prefill; teacher and one-step flow."""
    models, found = {"teacher": teacher, GOAL: lft.splice(teacher, span, lft.Flow())}, {}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}  # no padding of the heap
    for name, model in models.items():
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            command = [sys.executable, __file__, "--peak-of", folder, "--tokens", str(tokens)]
            done = subprocess.run(command, env=clean, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_of(folder: str, tokens: int) -> None:
    """What :func:`resident` runs: prints bytes that this process came to hold beyond those it began with."""
    from transformers import AutoModelForCausalLM

    def high() -> int:  # not getrusage, which inherits the peak of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    before = high()
    model = AutoModelForCausalLM.from_pretrained(folder)
    loaded = high()
    Prefill(torch.arange(tokens)[None])(Contender("", model.eval(), 0))
    print(json.dumps({"weights": weight_bytes(model), "loaded": loaded - before, "prefilled": high() - before}))


def measure(name: str, teacher, a: argparse.Namespace) -> dict:
    """Everything of one teacher."""
    most, depth = teacher.config.max_position_embeddings, teacher.config.num_hidden_layers
    tokens, context = min(a.tokens, most), min(a.context, most - a.new)
    ids = torch.randint(teacher.config.vocab_size, (1, most), generator=torch.Generator().manual_seed(0))
    ids = ids.to(teacher.device)
    first = Contender("teacher", teacher, depth)
    rest = Contender("rest", lft.splice(teacher, (0, depth), lft.Skip()), 0)
    about = {"teacher": name, "layers": depth, "width": teacher.config.hidden_size, "dtype": str(teacher.dtype)[6:]}
    turns = (a.rounds * QUICK, 1) if name == "bundled" or teacher.device.type == "cuda" else (a.rounds, PACE)
    found = about | {"rounds": turns[0], "tokens": tokens, "context": context, "new": a.new, "spans": []}
    for span in SPANS if "latency" in a.only else ():
        students = contenders(teacher, span)
        prefill, decode = Prefill(ids[:, :tokens]), Decode(ids[:, :context], a.new)
        row = {"span": list(span), "prefill": race(first, rest, students, prefill, *turns)}
        row |= {"decode": race(first, rest, students, decode, *turns)}
        row |= {"memory": memory([first, *students], decode, prefill)}
        found["spans"].append(row)
        print(f"{name}, {span}\n\n{latency_table(row)}\n\n{memory_table(row['memory'])}\n", flush=True)
        del students, decode
    if "training" in a.only:
        rows, length = a.batch if teacher.device.type == "cuda" or name == "bundled" else (4, 128)
        found["training"] = throughput.measure(teacher, SPANS[-1], rows, min(length, most), turns[0])
        print(throughput.render(found["training"]), "\n", flush=True)
    if name == a.rss and teacher.device.type == "cpu" and sys.platform == "linux":
        found["resident"] = resident(teacher, SPANS[-1], tokens)
    return found


def latency_table(row: dict) -> str:
    """Prefill and decode, a table each."""
    parts = []
    for what in ("prefill", "decode"):
        cells = [["Student", "Layers run", f"{what}, ms", "Speed-up", "By layers", "Ideal", "Fraction of layers"]]
        cells[0].append("… of ideal")
        for r in row[what]:
            cells.append([r["name"], str(r["evaluations"]), f"{1000 * r['seconds']:.1f}"])
            names = ("speed_up", "layers", "ideal", "fraction_of_layers", "fraction_of_ideal")
            cells[-1] += [f"{r[x]:.2f}" for x in names]
        teacher, rest = (1000 * row[what][0][x] for x in ("teacher_seconds", "rest_seconds"))
        line = f"{what.capitalize()}: the teacher takes {teacher:.1f} ms, of it the rest {rest:.1f} ms."
        parts.append(f"{line}\n\n{table(cells)}")
    return "\n\n".join(parts)


def goal_table(teachers: list[dict]) -> str:
    """Half of the layers become one evaluation: is the speed-up at least 0.9 of the ideal?"""
    cells = [["Teacher", "", "Speed-up", "By layers", "Ideal", "Fraction of layers", "… of ideal", "… by least times"]]
    names = ("speed_up", "layers", "ideal", "fraction_of_layers", "fraction_of_ideal", "fraction_of_ideal_least")
    for teacher in teachers:
        for what in ("prefill", "decode"):
            for part in teacher["spans"][-1:]:
                found = next(r for r in part[what] if r["name"] == GOAL)
                cells.append([teacher["teacher"], what, *(f"{found[x]:.2f}" for x in names)])
    return table(cells)


def memory_table(rows: list[dict]) -> str:
    peaks = "peak" in rows[0]
    cells = [["Model", "Weights, MB", "Cache, MB", *(["A prefill besides, MB"] if peaks else [])]]
    names = ("weights", "cache", *(["peak"] if peaks else []))
    return table([*cells, *([row["name"], *(f"{row[x] / 1e6:.2f}" for x in names)] for row in rows)])


def resident_lines(found: dict) -> str:
    rows = [
        [name, *(f"{row[x] / 1e6:,.0f}" for x in ("weights", "loaded", "prefilled"))] for name, row in found.items()
    ]
    head = "Peak of a process's memory (RSS) beyond what it began with, MB; the file is mapped while it is loaded:"
    return f"{head}\n\n{table([['Model', 'Weights', 'After loading', 'After a prefill'], *rows])}"


def markdown(result: dict) -> str:
    stated = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        "# Spliced transformers against the number of layers",
        f"Written by `python benchmarks/splice.py` on {result['machine']}: {stated}.",
        EXPLANATION,
        "## The goal: {}–{}, {}, at least 0.9 of the ideal".format(*SPANS[-1], GOAL),
        goal_table(result["teachers"]),
    ]
    for row in result["teachers"]:
        random = "" if row["teacher"] == "bundled" else ", random weights"
        lines.append(
            f"## {row['teacher']}: {row['layers']} layers, width {row['width']}, {row['dtype']}{random}\n\n"
            f"Prefill of {row['tokens']} tokens; decode at a context of {row['context']}, mean of {row['new']} tokens. "
            f"Medians of {row['rounds']} rounds."
        )
        for part in row["spans"]:
            title = "### Span {}–{}".format(*part["span"])
            lines += [title, latency_table(part), memory_table(part["memory"])]
        lines += [resident_lines(row["resident"])] if "resident" in row else []
        if "training" in row:
            lines += ["### Training an operator", throughput.render(row["training"]), throughput.EXPLANATION]
    return "\n\n".join(lines) + "\n"


def load(shape: str, a: argparse.Namespace):
    device = torch.device(a.device) if a.device else default_device()
    dtype = a.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    dtype = getattr(torch, dtype)
    if shape == "bundled":
        return lft.load_teacher("bundled", device=device, dtype=dtype)[0]
    return random_teacher(shape, layers=a.layers, device=device, dtype=dtype)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=["bundled", "pythia-410m"], choices=["bundled", *SHAPES])
    parser.add_argument("--layers", type=int, default=24, help="of a published shape (default 24; at least 18)")
    parser.add_argument("--tokens", type=int, default=512, help="of the prefill (default 512)")
    parser.add_argument("--context", type=int, default=384, help="before decoding (default 384)")
    parser.add_argument("--new", type=int, default=8, help="tokens decoded at a time (default 8)")
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is measured (default 3)")
    parser.add_argument("--batch", type=int, nargs=2, default=(16, 128), metavar=("SEQUENCES", "TOKENS"),
                        help="of training; a published shape on a CPU takes 4 × 128")  # fmt: skip
    parser.add_argument("--only", nargs="+", default=["latency", "training"], choices=["latency", "training"])
    parser.add_argument(
        "--rss", default="pythia-410m", help="whose process memory to measure (on Linux, CPU); none: nobody's"
    )
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 on a GPU, float32 else")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if min(a.tokens, a.context, a.new, a.rounds, *a.batch) < 1 or a.layers < SPANS[-1][1]:
        parser.error(f"Numbers must be at least 1, --layers at least {SPANS[-1][1]}.")
    return a


def main() -> None:
    a = parse()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    if a.peak_of:
        return peak_of(a.peak_of, a.tokens)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "one thread of the CPU"
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    result = {
        "versions": {"python": platform.python_version()} | versions,
        "machine": f"{platform.system()}, {platform.machine()}, {device}",
        "teachers": [measure(shape, load(shape, a), a) for shape in a.shape],
    }
    write_json(a.out / "splice.json", result)
    with atomic_write(a.out / "splice.md") as partial:
        partial.write_text(markdown(result))


if __name__ == "__main__":
    main()
