"""Measure what students are worth as drafters for their teacher (speculative decoding), on held-out text.

python -m lft_edu.recipes.drafting                          # the bundled teacher → assets/results/drafting.json
python -m lft_edu.recipes.drafting --teacher smollm2-135m   # the real one; the other's rows are kept
"""

import argparse
import fnmatch
import json
import math
import time
from pathlib import Path

import torch

import lft_edu as lft

from .. import drafting
from ..loading import corpora
from ..loading.assets import ASSETS
from ..loading.teachers import SHIPPED, shipped_students
from ..runs import costs
from ..support.arguments import count
from ..support.files import write_json
from .common import hardware

CORPORA = {"bundled": "python-stdlib", "smollm2-135m": "package-docs"}
LOOKAHEADS = (1, 2, 4)
COUNTS = ("passes", "drafted", "tested", "accepted")
PROMPT = 32  # tokens
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@torch.no_grad()
def greedy(teacher, prompt: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """Decode without a draft, by the same loop: what drafting has to beat."""
    reader, text = drafting.Reader(teacher), prompt
    for _ in range(new_tokens):
        text = torch.cat([text, reader.choices(text)], 1)
    return text


def generated(teacher, student, prompts: torch.Tensor, new_tokens: int, rounds: int) -> dict:
    """Decode every prompt with and without drafts, taking turns ``rounds`` times; the least time of each counts.

    Args:
        prompts: ``(N, T)``. End-of-text does not stop the text, so that every way writes the same tokens.

    Returns:
        ``"ms_generate"`` and ``"ms_loop"``: milliseconds per new token of ``teacher.generate`` and of :func:`greedy`;
        ``"draft"``: one row per lookahead.
    """
    options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    ways = {
        "generate": lambda ids: teacher.generate(ids, **options),
        "loop": lambda ids: greedy(teacher, ids, new_tokens),
        **{g: lambda ids, g=g: drafting.draft(teacher, student, ids, new_tokens, g) for g in LOOKAHEADS},
    }
    best, found = {way: [math.inf] * len(prompts) for way in ways}, {}
    for _ in range(rounds):
        for i, ids in enumerate(prompts.split(1)):
            for way, work in ways.items():
                started = time.perf_counter()
                found[way, i] = work(ids)
                best[way][i] = min(best[way][i], time.perf_counter() - started)
    ms = {way: 1000 * sum(seconds) / (len(prompts) * new_tokens) for way, seconds in best.items()}
    rows = []
    for g in LOOKAHEADS:
        texts = [found[g, i] for i in range(len(prompts))]
        total = {name: sum(getattr(text, name) for text in texts) for name in COUNTS}
        rows.append({
            "lookahead": g, **total, "acceptance": total["accepted"] / total["tested"],
            "tokens_per_pass": len(prompts) * new_tokens / total["passes"],
            "same_text": sum(torch.equal(text.ids, found["generate", i]) for i, text in enumerate(texts)) / len(texts),
            "ms": ms[g], "speedup": ms["loop"] / ms[g], "speedup_over_generate": ms["generate"] / ms[g],
        })  # fmt: skip
    return {"ms_generate": ms["generate"], "ms_loop": ms["loop"], "draft": rows}


@torch.no_grad()
def pass_costs(teacher, prompt: torch.Tensor, rounds: int) -> dict[int, float]:
    """Time one pass of the teacher over γ + 1 tokens, in passes over one: the formula takes it for 1.

    Returns:
        γ → ratio of the least times.
    """
    reader, seconds = drafting.Reader(teacher), dict.fromkeys((0, *LOOKAHEADS), math.inf)
    length = prompt.shape[1] - max(LOOKAHEADS) - 1
    reader.choices(prompt[:, :length])
    for _ in range(10 * rounds):
        for g in seconds:
            started = time.perf_counter()
            reader.choices(prompt[:, : length + g + 1], g + 1)
            seconds[g] = min(seconds[g], time.perf_counter() - started)
            reader.keep(length)
    return {g: seconds[g] / seconds[0] for g in LOOKAHEADS}


def row(name: str, student, teacher, sequences, prompts, cost_ratio: float, new_tokens: int, rounds: int) -> dict:
    """Measure one student.

    Args:
        sequences: held-out text, ``(N, T)``.
        prompts: beginnings of other held-out text, ``(P, PROMPT)``.
        cost_ratio: time per token of the student over that of the teacher, decoding.
    """
    evaluation = lft.evaluate(student, teacher, sequences, progress=False)
    accepted = drafting.acceptance(teacher, student, sequences)
    return {
        "name": name, "span": student.config.span, "operator": student.operator.to_dict(), "nfe": evaluation.nfe,
        "kl": evaluation.kl, "kl_interval": evaluation.kl_interval, **accepted.to_dict(),
        **at_best(accepted.greedy, cost_ratio), **generated(teacher, student, prompts, new_tokens, rounds),
    }  # fmt: skip


def at_best(accepted: float, cost_ratio: float) -> dict:
    """Return what the formula promises of a student, by its greedy acceptance and its cost ratio."""
    lookahead, gain = drafting.best_speedup(accepted, cost_ratio)
    return {"cost_ratio": cost_ratio, "best_lookahead": lookahead, "best_speedup": gain}


def decode_times(teacher, students: dict, rounds: int) -> dict[str, float]:
    """Time a decoding step of each, in turns: name, or ``"teacher"`` → milliseconds. Many turns: a ratio needs them."""
    models = {"teacher": teacher} | students
    spent = costs.latencies(models, tokens=PROMPT, new_tokens=PROMPT, rounds=5 * rounds, progress=True)
    return {name: ms["decode"] for name, ms in spent.items()}


def time_again(found: dict, a: argparse.Namespace) -> None:
    """Measure the cost ratio of every row again."""
    teacher, _ = lft.load_teacher(a.teacher, dtype=DTYPES[found["dtype"]])
    decode = decode_times(teacher, {r["name"]: lft.load_student(r["name"], teacher) for r in found["rows"]}, a.rounds)
    found["ms_decode"] = decode["teacher"]
    for r in found["rows"]:
        r |= at_best(r["greedy"], decode[r["name"]] / decode["teacher"])
        print(line(r), flush=True)


def measure(a: argparse.Namespace) -> dict:
    """Return the entry of one teacher in ``drafting.json``."""
    teacher, tokenizer = lft.load_teacher(a.teacher, dtype=DTYPES[a.dtype])
    teacher.generation_config.eos_token_id = None
    corpus, wanted = CORPORA[a.teacher], max(1, a.tokens // a.block)
    held = corpora.token_sequences(corpus, tokenizer, "test", a.block, max_tokens=(wanted + a.prompts) * a.block)
    sequences, prompts = held[: -a.prompts], held[-a.prompts :, :PROMPT].to(teacher.device)
    names = [name for name in shipped_students(a.teacher) if fnmatch.fnmatch(name.partition("/")[2], a.only)]
    if not names:
        raise ValueError(f"--only {a.only!r} fits no student. Choose among {', '.join(shipped_students(a.teacher))}.")
    students = {name: lft.load_student(name, teacher) for name in names}
    decode, rows = decode_times(teacher, students, a.rounds), []
    for name, student in students.items():
        ratio = decode[name] / decode["teacher"]
        rows.append(row(name, student, teacher, sequences, prompts, ratio, a.new_tokens, a.rounds))
        print(line(rows[-1]), flush=True)
    return {
        "corpus": f"{corpus}, test split by path hash", "sequences": list(sequences.shape),
        "prompts": list(prompts.shape), "new_tokens": a.new_tokens, "dtype": a.dtype,
        "threads": torch.get_num_threads(), "hardware": hardware(), "ms_decode": decode["teacher"],
        "pass_costs": pass_costs(teacher, prompts[:1], a.rounds), "rows": rows,
    }  # fmt: skip


def line(row: dict) -> str:
    """One student on one line."""
    shown = "; ".join(f"{d['lookahead']}: {d['tokens_per_pass']:.2f}, {d['speedup']:.2f}×" for d in row["draft"])
    return (
        f"{row['name']}: KL {row['kl']:.3f}, α {row['greedy']:.3f} greedy, {row['sampling']:.3f} sampling, "
        f"c {row['cost_ratio']:.2f}, at best {row['best_speedup']:.2f}× (γ = {row['best_lookahead']}); "
        f"measured, γ: tokens per pass, speed-up: {shown}"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", choices=SHIPPED, default="bundled")
    parser.add_argument("--only", default="*", help="names of students, with * and ?")
    parser.add_argument("--tokens", type=count, default=count("16k"), help="held-out tokens")
    parser.add_argument("--block", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--prompts", type=int, default=8, help="prompts to continue")
    parser.add_argument("--new-tokens", type=int, default=48, help="tokens per continuation")
    parser.add_argument("--rounds", type=int, default=3, help="timings of each; the least counts")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--latency", action="store_true", help="only measure the cost ratio of every row again")
    parser.add_argument("--out", type=Path, default=ASSETS / "results")
    a = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    path = a.out / "drafting.json"
    if a.latency:
        time_again(found := json.loads(path.read_text(encoding="utf-8"))[a.teacher], a)
    else:
        found = measure(a)
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, results | {a.teacher: found})


if __name__ == "__main__":
    main()
