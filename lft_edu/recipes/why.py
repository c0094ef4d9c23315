"""Why does flow matching lose to regression in one step? Each explanation, and the experiment that could refute it.

    python -m lft_edu.recipes.why                            # the bundled teacher: 6–12 and 6–18, three seeds
    python -m lft_edu.recipes.why --teacher smollm2-135m     # the states of `recipes.real`, 13–19
    python -m lft_edu.recipes.why --render                   # only write the table in docs/results.md

In one Euler step from t = 0 flow matching must say what regression must: x1 − x0, given x0 and the prefix, is a single
value. So what is learned *there* is made worse by what is learned elsewhere, or by how. The hypotheses:

H1 *capacity*: one layer must be right at all t. Then training nearer to t = 0 must help, Beta(1, b) with b up to
   infinity; and two layers must close the gap.
H2 *averaging*: at t > 0 paths may be confused. Then a velocity that is given x0 beside x_t must close the gap.
H3 *unfamiliar states*: x_t on a straight line is a state that no layer has seen. Then training on the teacher's own
   states at matching depths must close it.
H4 *budget*: only a share of the tokens is seen near t = 0. Then flow matching must do as regression does on that share,
   and training longer must close the gap.
H5 *the answer leaks*: x_t = x0 + t (x1 − x0) shows where x1 lies, the more the larger t is. What reads it there has not
   learned to compute it from x0, which is all there is at inference. Then the error must fall steeply with t; giving x0
   beside x_t, with which x1 can be read exactly, must make the first step *worse*; more steps must not help, since each
   reads off x_t only where the step before was going; and with the same random times, but x0 in the place of x_t, the
   gap must be gone.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from pathlib import Path

import torch

import lft_edu as lft

from ..fitting import LatentSource
from ..latents import span_latents
from ..loading import corpora
from ..loading.assets import ASSETS
from ..operators import operator_from_dict
from ..support.files import write_json
from .common import each_variant, hardware
from .why_report import render

REGRESSION, FLOW = {"kind": "regression"}, {"kind": "flow", "solver": "euler", "num_steps": 1}
MATCHING = {"objective": "flow_matching"}
VARIANTS = {  # name → (operator, options of fit)
    "regression": (REGRESSION, {"objective": "regression"}),
    "flow matching": (FLOW, MATCHING),
    "Beta(1, 3)": (FLOW, MATCHING | {"beta": 3.0}),
    "Beta(1, 10)": (FLOW, MATCHING | {"beta": 10.0}),
    "always t = 0": (FLOW, MATCHING | {"beta": math.inf}),
    "two layers": (FLOW | {"layers": 2}, MATCHING),
    "two layers, regression": (REGRESSION | {"layers": 2}, {"objective": "regression"}),
    "x0 at every t": (FLOW, MATCHING | {"interpolant": "start"}),
    "four times the tokens": (FLOW, MATCHING | {"tokens": 4}),
    "regression, a quarter of the tokens": (REGRESSION, {"objective": "regression", "tokens": 0.25}),
    "regression, a tenth of the tokens": (REGRESSION, {"objective": "regression", "tokens": 0.1}),
    "given x0": (FLOW | {"conditional": True}, MATCHING),
    "teacher's states": (FLOW, MATCHING | {"interpolant": "teacher"}),
    "given x0, teacher's states": (FLOW | {"conditional": True}, MATCHING | {"interpolant": "teacher"}),
    "given x0, two layers": (FLOW | {"conditional": True, "layers": 2}, MATCHING),
    "Flow Walking, 2 evaluations": (FLOW | {"solver": "midpoint"}, {"objective": "flow_walking"}),
    "trained loop, 2 evaluations": (REGRESSION | {"repeats": 2}, {"objective": "regression"}),
    "Flow Walking, 6 evaluations": (
        FLOW | {"solver": "midpoint", "num_steps": 3},
        {"objective": "flow_walking"},
    ),
    "trained loop, 6 evaluations": (REGRESSION | {"repeats": 6}, {"objective": "regression"}),
    "Flow Walking through the teacher's states": (
        FLOW | {"solver": "midpoint", "num_steps": 3},
        {"objective": "flow_walking", "waypoints": True},
    ),
}
STEPS = (1, 2, 3, 6)  # of Euler, in which what flow matching trained is walked
TIMES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class Bundled:
    """The bundled teacher, its training text and its held-out text."""

    spans, seeds, batch_size, lr, precision = ((6, 12), (6, 18)), (0, 1, 2), 16, 0.03, "no"
    tokens = 1_000_000  # of a run, if it is not told otherwise

    def __init__(self, tokens: int):
        self.teacher, tokenizer = lft.load_teacher("bundled")
        self.sequences = corpora.token_sequences("python-packages", tokenizer, "train", 128, max_tokens=tokens)
        self.held_out = corpora.token_sequences("python-stdlib", tokenizer, "test", 128, max_tokens=64 * 128)

    def source(self, span: tuple[int, int]) -> LatentSource:
        return LatentSource(self.teacher, span, self.sequences, self.batch_size, cache=True, between=True)


class Real:
    """SmolLM2-135M, on the states that :mod:`lft_edu.recipes.real` keeps."""

    spans, seeds, batch_size, lr, precision = ((13, 19),), (0, 1), 16, 0.04, "bf16"
    tokens = 500_000

    def __init__(self, tokens: int):
        from .real import Bench

        self.bench = Bench(Path("runs/real"), 2_600_000, {})  # all that is stored, however little a run takes
        self.teacher, self.held_out = self.bench.teacher, self.bench.held_out

    def source(self, span: tuple[int, int]) -> LatentSource:
        store = self.bench.store("docs")
        return LatentSource(self.teacher, span, store.sequences, self.batch_size, cache=store, between=True)


BENCHES = {"bundled": Bundled, "smollm2-135m": Real}


def train(bench, source: LatentSource, name: str, seed: int, tokens: int) -> dict:
    """Train one variant → its row: KL, NMSE, in other numbers of steps, and the error of its velocity against t."""
    operator, options = VARIANTS[name]
    options = dict(options)
    tokens = int(tokens * options.pop("tokens", 1))
    student = lft.splice(bench.teacher, source.span, operator_from_dict(operator))
    options = options | {"batch_size": bench.batch_size, "lr": bench.lr, "precision": bench.precision, "seed": seed}
    steps = max(1, tokens // (bench.batch_size * source.block_size))
    history = lft.fit(student, bench.teacher, source, max_steps=steps, optimizer="muon", **options)
    row = {"name": name, "span": list(source.span), "seed": seed, "tokens": history.tokens, "operator": operator}
    row |= {"options": {k: v if v != math.inf else "infinity" for k, v in options.items()}}
    row |= {"seconds": round(history.seconds, 1)} | measured(student, bench)
    if options["objective"] == "flow_matching":
        row["error_by_t"] = dict(
            zip(TIMES, velocity_errors(student, bench.teacher, bench.held_out, TIMES), strict=True)
        )
        if options.get("beta", 1) == 1:
            row["by_steps"] = {k: measured(student.set_solver("euler", k), bench) for k in STEPS}
    return row


def measured(student, bench) -> dict:
    """KL and NMSE on the held-out text, and what the operator costs."""
    found = lft.evaluate(student, bench.teacher, bench.held_out, batch_size=4)
    kept = {name: getattr(found, name) for name in ("kl", "kl_interval", "nmse", "nfe", "operator_parameters")}
    return kept | {"sequence_kl": [round(x, 5) for x in found.sequence_kl.tolist()]}


@torch.no_grad()
def velocity_errors(student, teacher, held_out: torch.Tensor, times: tuple[float, ...], batch: int = 4) -> list[float]:
    """The mean squared error of the velocity on straight lines at each time, as a share of that of no motion at all.

    ``E ‖u(x_t, t) − (x1 − x0)‖² / E ‖x1 − x0‖²``, without position 0.
    """
    errors, total = torch.zeros(len(times), dtype=torch.float64), 0.0
    operator = student.operator
    kept_type = next(operator.parameters()).dtype
    operator.float()
    for ids in held_out.split(batch):
        latents = span_latents(teacher, student.config.span, ids.to(teacher.device))
        x0, x1 = operator.with_sink(latents.x0.float()), latents.x1.float()
        total += (x1 - x0)[:, 1:].square().sum().item()
        for i, t in enumerate(times):
            u = operator.field(x0, **latents.context)(torch.lerp(x0, x1, t), torch.tensor(t))
            errors[i] += (u - (x1 - x0))[:, 1:].double().square().sum().item()
    operator.to(kept_type)
    return (errors / total).tolist()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", choices=BENCHES, default="bundled")
    parser.add_argument("--tokens", type=int, default=None, help="of training text per run")
    parser.add_argument("--only", default="*", help="names of variants, with * and ?")
    parser.add_argument("--seed", type=int, action="append", help="may be repeated")
    parser.add_argument("--work", type=Path, default=Path("runs/why"))
    parser.add_argument("--out", type=Path, default=ASSETS / "results")
    parser.add_argument("--collect", action="store_true", help="only write why.json")
    parser.add_argument("--render", action="store_true", help="only write the table in docs/results.md")
    a = parser.parse_args(arguments)
    if a.render:
        render()
        return
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    if not a.collect:
        tokens = a.tokens or BENCHES[a.teacher].tokens
        bench = BENCHES[a.teacher](tokens)
        for seed in a.seed or bench.seeds:
            for span in bench.spans:
                work_through(bench, span, seed, tokens, a.work / a.teacher, a.only)
    collect(a.work, a.out)


def work_through(bench, span, seed: int, tokens: int, work: Path, only: str) -> None:
    """Train every variant that is not done yet, and that no other process is training."""
    source = functools.cache(bench.source)
    each_variant(VARIANTS, only, span, seed, work, lambda name: train(bench, source(span), name, seed, tokens))


def collect(work: Path, out: Path) -> dict:
    """Write ``why.json``: teacher → rows, in the order of ``VARIANTS``."""
    order, found = list(VARIANTS), {"hardware": hardware()}
    for teacher in BENCHES:
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((work / teacher).glob("*.json"))]
        found[teacher] = sorted(rows, key=lambda row: (row["span"], order.index(row["name"]), row["seed"]))
    write_json(out / "why.json", found)
    return found


if __name__ == "__main__":
    main()
