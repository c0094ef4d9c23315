"""Splice, fit and evaluate again and again in one process, as a notebook does, and see whether memory stays flat.

    python -m benchmarks.memory               # 200 rounds, some minutes on a slow core
    python -m benchmarks.memory --rounds 50

Rounds take turns among operators and objectives. When all have had theirs: resident memory of the process, live tensors
and their bytes, open files, threads. All must be, in the last quarter of the rounds, what they were in the second.
Writes ``benchmarks/results/memory.json``; exit status 1 if anything grew.
"""

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

import psutil
import torch
from transformers.utils.logging import disable_progress_bar

import lft_edu as lft
from lft_edu.support.files import write_json
from lft_edu.support.progress import progress_bar

RESULTS = Path(__file__).parent / "results" / "memory.json"
TURNS = [  # operator, objective: those of the lessons
    (lambda: lft.Flow("midpoint", 2), "flow_walking"),
    (lambda: lft.Flow("euler", 1), "flow_matching"),
    (lambda: lft.Flow("euler", 1), "logit_kl"),
    (lft.Regression, "regression"),
    (lft.Ridge, None),
    (lft.Skip, None),
]
# Resident memory comes in steps of 2 MB, so some growth is none: this share of one operator's weights per round.
TOLERATED = 0.25


def one_round(number: int, teacher, blocks: torch.Tensor, span: tuple[int, int], folder: Path | None = None) -> None:
    """Make a student, fit it for one step, evaluate it, and forget it; every sixth is saved and loaded."""
    operator, objective = TURNS[number % len(TURNS)]
    student = lft.splice(teacher, span, operator())
    lft.fit(student, teacher, blocks, objective, max_steps=1, batch_size=4, progress=False)
    lft.evaluate(student, teacher, blocks[:2])
    if folder and number % len(TURNS) == 0:
        student.save_pretrained(folder)
        lft.load_student(folder, device="cpu")


def live() -> dict[str, int]:
    """What this process holds: live tensors, their bytes, open files, threads, resident bytes."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)  # not what a compiler keeps to stand for tensors: it has no memory
    tensors = [one for one in gc.get_objects() if type(one) in kinds]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    process = psutil.Process()
    files = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    counts = {"tensors": len(tensors), "tensor_bytes": sum(storages.values())}
    return counts | {"files": files, "threads": process.num_threads(), "resident": process.memory_info().rss}


def grown(rows: list[dict[str, int]], operator_bytes: int) -> dict[str, float]:
    """What grew from the second quarter of the rounds to the last, and by how much per round.

    Args:
        rows: of :func:`live`, one for every turn of all operators; at least four.
        operator_bytes: of the weights of one operator: a leak of resident memory would be at least some of them.
    """
    quarter = len(rows) // 4
    early, late = rows[quarter : 2 * quarter], rows[3 * quarter :]
    change = {name: median(row[name] for row in late) - median(row[name] for row in early) for name in rows[0]}
    between = 2 * quarter * len(TURNS)  # rounds
    allowed = {"resident": TOLERATED * operator_bytes * between}
    return {name: by / between for name, by in change.items() if by > allowed.get(name, 0)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="at least 24 (default: 200)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(arguments)
    if a.rounds < 4 * len(TURNS):
        parser.error(f"--rounds {a.rounds}: give at least {4 * len(TURNS)}, four turns of {len(TURNS)} operators.")
    teacher, tokenizer = lft.load_teacher("bundled", device="cpu")
    blocks = torch.as_tensor(lft.load_corpus("python-stdlib", tokenizer, "test", 32, max_tokens=256)["input_ids"])
    one = lft.splice(teacher, (6, 12), lft.Flow()).operator
    operator_bytes, rows, resident = sum(p.nbytes for p in one.parameters()), [], []
    del one
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        for number in progress_bar(range(a.rounds), desc="memory", unit="round"):
            one_round(number, teacher, blocks, (6, 12), Path(folder))
            resident.append(psutil.Process().memory_info().rss)
            if (number + 1) % len(TURNS) == 0:  # looking at every object takes as long as a round
                rows.append(live())
    growth = grown(rows, operator_bytes)
    found = {"rounds": a.rounds, "operator_bytes": operator_bytes, "grew_per_round": growth, "flat": not growth}
    found["after"] = {
        f"round {len(TURNS) * i}": rows[i - 1] for i in sorted({1, *(len(rows) * n // 4 for n in (1, 2, 3, 4))})
    }
    write_json(a.out, found | {"resident": resident})
    print(json.dumps(found, indent=1))
    return int(bool(growth))


if __name__ == "__main__":
    sys.exit(main())
