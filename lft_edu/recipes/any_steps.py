"""One set of weights for any number of steps: must the velocity be told how long the step is?

    python -m lft_edu.recipes.any_steps             # the bundled teacher, 6–18 and 6–12, two seeds
    python -m lft_edu.recipes.any_steps --collect   # only write any_steps.json and the table in docs/results.md

A velocity that was trained for three steps is worse with one, two or eight (lesson 03). Three ways to train one that
serves any k from 1 to 8, each walked in all of them, beside the walk that was trained for three steps only:

*any k*: Flow Walking, with the number of steps drawn again at each update, from 1 to 8.
*any k, told the step*: the same, with a velocity u(x, t, Δt).
*shortcut*: flow matching for Δt = 0, and for longer steps self-consistency: one step of 2d must say what two steps of d
   say (Frans et al., arXiv 2410.12557).

What lesson 10 knows predicts that the shortcut must do worst: it builds on flow matching, whose first step is bad.
"""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import dataclass
from pathlib import Path

import torch

import lft_edu as lft

from ..flow import as_time, pad_t_like_x, random_times, shortcut_step, walk
from ..loading.assets import ASSETS
from ..objectives import FlowWalking, Objective, flow_matching_loss, mean_squared_error
from ..operators import operator_from_dict
from ..support.files import write_json
from .common import RESULTS, each_variant, hardware, into_page
from .why import Bundled, measured

MOST, STEPS = 8, (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class AnySteps(FlowWalking):
    """Flow Walking with a number of steps that is drawn again at each update, from 1 to ``MOST``."""

    step_aware: bool = False

    def times(self, n, generator=None):
        k = int(torch.randint(1, MOST + 1, (), generator=generator))
        return random_times(k, n, generator)

    def loss(self, velocity, x0, x1, times=None, weight=None, path=None):
        if not self.step_aware:
            return super().loss(velocity, x0, x1, times, weight)
        return mean_squared_error(walk(velocity, x0, times, shortcut_step), x1, weight)

    def evaluations(self, operator=None):
        return (1 + MOST) // 2


@dataclass(frozen=True)
class Shortcut(Objective):
    """Flow matching at Δt = 0, and at Δt = 2d what two steps of d say, d = 1/2, 1/4, … (shortcut models). The second
    part has a quarter of the weight, as in their paper, where a quarter of the batch is of that kind."""

    name = "shortcut"

    def times(self, n, generator=None):
        return torch.rand(n, 3, generator=generator)

    def loss(self, velocity, x0, x1, times=None, weight=None):
        t, which, where = times.unbind(-1)
        matching = flow_matching_loss(lambda x, t: velocity(x, t, torch.zeros_like(t)), x0, x1, weight=weight, times=t)
        parts = 2 ** (which * (1 + MOST.bit_length() - 1)).long()  # 1, 2, 4, 8 steps of length 2d
        d = 0.5 / parts
        t = (where * parts).long() / parts
        x = torch.lerp(x0, x1, pad_t_like_x(as_time(t, x0), x0))
        with torch.no_grad():
            two = walk(velocity, x, torch.stack([t, t + d, t + 2 * d], -1), shortcut_step)
            mean = (two - x) / pad_t_like_x(2 * d, x)
        return matching + mean_squared_error(velocity(x, t, 2 * d), mean, weight) / 4

    def evaluations(self, operator=None):
        return 4


# At 0.01 and above self-consistency diverges: its target is what the network itself says.
SLOW = {"lr": 0.003}
EULER, AWARE = {"kind": "flow", "num_steps": 3}, {"kind": "flow", "num_steps": 3, "step_aware": True}
VARIANTS = {  # name → (operator, objective, options of fit)
    "trained for three steps": (EULER, FlowWalking(), {}),
    "any k": (EULER, AnySteps(), {}),
    "any k, told the step": (AWARE, AnySteps(step_aware=True), {}),
    "shortcut": (AWARE, Shortcut(), SLOW),
}


def train(bench, source, name: str, seed: int, tokens: int) -> dict:
    """Train one variant → its row: KL and NMSE in each number of steps."""
    operator, objective, options = VARIANTS[name]
    student = lft.splice(bench.teacher, source.span, operator_from_dict(operator))
    history = lft.fit(
        student, bench.teacher, source, objective, optimizer="muon", batch_size=bench.batch_size, seed=seed,
        max_steps=max(1, tokens // (bench.batch_size * source.block_size)), **{"lr": bench.lr} | options,
    )  # fmt: skip
    row = {"name": name, "span": list(source.span), "seed": seed, "tokens": history.tokens, "operator": operator}
    row["seconds"] = round(history.seconds, 1)
    row["by_steps"] = {k: measured(student.set_solver(num_steps=k), bench) for k in STEPS}
    return row


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=Bundled.tokens, help="of training text per run")
    parser.add_argument("--only", default="*", help="names of variants, with * and ?")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/any_steps"))
    parser.add_argument("--out", type=Path, default=ASSETS / "results")
    parser.add_argument("--collect", action="store_true", help="only write any_steps.json and the table")
    a = parser.parse_args(arguments)
    if not a.collect:
        torch.set_num_threads(1)
        bench = Bundled(a.tokens)
        for span in reversed(bench.spans):
            source = bench.source(span)
            for seed in range(a.seeds):
                job = functools.partial(train, bench, source, seed=seed, tokens=a.tokens)
                each_variant(VARIANTS, a.only, span, seed, a.work, job)
    collect(a.work, a.out)


def collect(work: Path, out: Path) -> dict:
    """Write ``any_steps.json``: the rows of all runs, in the order of ``VARIANTS``."""
    order = list(VARIANTS)
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(work.glob("*.json"))]
    found = {
        "hardware": hardware(),
        "rows": sorted(rows, key=lambda row: (row["span"], order.index(row["name"]), row["seed"])),
    }
    write_json(out / "any_steps.json", found)
    if out == ASSETS / "results":
        into_page(RESULTS, "any_steps", page_table(json.loads(json.dumps(found))))
    return found


def load() -> dict:
    """Return the results that ship."""
    return json.loads((ASSETS / "results" / "any_steps.json").read_text(encoding="utf-8"))


def curves(results: dict, span: tuple[int, int]) -> dict[str, tuple[list[int], list[float]]]:
    """Variant → the numbers of steps, and the KL in each, nats per token, averaged over seeds."""
    found = {}
    for name in VARIANTS:
        rows = [row["by_steps"] for row in results["rows"] if row["name"] == name and row["span"] == list(span)]
        if rows:
            found[name] = (list(STEPS), [sum(row[str(k)]["kl"] for row in rows) / len(rows) for k in STEPS])
    return found


def page_table(results: dict) -> str:
    """Format the curves of both spans as a Markdown table: KL in nats per token, by the number of steps."""
    lines = ["| layers | trained | " + " | ".join(f"k = {k}" for k in STEPS) + " |", "|---" * (2 + len(STEPS)) + "|"]
    for m, n in Bundled.spans:
        for name, (_, kl) in curves(results, (m, n)).items():
            lines.append(f"| {m}–{n} | {name} | " + " | ".join(f"{one:.3f}" for one in kl) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
