"""Flow matching and exact transport beside the libraries people use for them: speed and quality, in one run.

    pip install --no-deps torchcfm flow_matching POT   # the peers; --no-deps leaves your torch as it is
    python benchmarks/plane.py                         # a few minutes on one core
    python benchmarks/plane.py --steps 200 --rounds 1  # a quick look

Prints a table a section and writes ``benchmarks/results/plane.json`` and ``plane.md``. Everything runs on one thread.
The contenders take turns, a slice of the work each, so that a busy machine slows all of them alike: read the ratios,
not the milliseconds. Exit status 2, before anything is measured, if a peer is missing.
"""

import argparse
import copy
import importlib.metadata
import importlib.util
import operator
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lft_edu import plane, shapes
from lft_edu.couplings import optimal_assignment
from lft_edu.objectives import flow_matching_loss, flow_walking_loss
from lft_edu.support.files import atomic_write, write_json

RESULTS = Path(__file__).parent / "results"
PEERS = {"torchcfm": "torchcfm", "flow_matching": "flow_matching", "ot": "POT"}  # module → what pip calls it
PAIRS, BATCH, RATE, SLICE, WALK = 2000, 256, 3e-3, 50, 20

FM, FW, OT = "ours: flow matching", "ours: Flow Walking, k=3", "ours: flow matching on OT pairs"
CFM, PATH, OT_CFM = "torchcfm: ConditionalFlowMatcher", "flow_matching: AffineProbPath", "torchcfm: Exact OT matcher"
RIVALS = {FM: FM, CFM: FM, PATH: FM, FW: FM, OT: OT, OT_CFM: OT}  # who is compared with whom

OURS, POT, SAMPLER = "ours", "POT: ot.emd + argmax", "torchcfm: sample_plan"
ASSIGNERS = [*((name, "sqeuclidean") for name in (OURS, POT, SAMPLER)), (OURS, "euclidean"), (POT, "euclidean")]

# What was read in the sources of these versions, or seen in a profile. Say no more than that.
EXPLANATION = {
    "training": """\
The network takes most of a step, so the losses hardly differ, although torchcfm 1.0.7 draws noise and adds it even
for `sigma=0` and flow_matching 1.0.10 copies four schedules to find a velocity that is `x1 - x0`. Neither peer has a
loss that walks, so Flow Walking races nobody; it evaluates the network six times a step, flow matching once. The two
OT contenders pair every batch anew: they learn another map than the given one, so they cannot keep its pairs, and
their solver is most of a step.""",
    "assignment": """\
Ours and POT are exact by different algorithms, SciPy's shortest augmenting paths and a network simplex; SciPy's takes
far longer where points lie in clusters, and `ot.emd` stops after 100,000 iterations with only a warning, its pairs
then costing more than they need. torchcfm's `sample_plan` solves with that same `ot.emd` and then draws N of the
plan's N² cells *with replacement*, about a tenth of its time: some 37 % of the points come once, as many never, the
others more than once, and the mean cost of what was drawn scatters about the optimum, below it, too.""",
}


def contenders(seed: int) -> dict[str, plane.Loss]:
    """Each loss as its own library's documentation writes it. Peers draw from the global generators."""
    from flow_matching.path import AffineProbPath
    from flow_matching.path.scheduler import CondOTScheduler
    from torchcfm import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - torchcfm draws its pairs from numpy's global generator
    generator = torch.Generator().manual_seed(seed)
    path = AffineProbPath(scheduler=CondOTScheduler())

    def ours_ot(velocity, x0, x1):
        return flow_matching_loss(velocity, x0, x1[optimal_assignment(x0, x1, "sqeuclidean")], generator)

    def meta(velocity, x0, x1):
        sample = path.sample(x_0=x0, x_1=x1, t=torch.rand(len(x0)))
        return torch.nn.functional.mse_loss(velocity(sample.x_t, sample.t), sample.dx_t)

    def torchcfm(matcher):
        def loss(velocity, x0, x1):
            t, x_t, flow = matcher.sample_location_and_conditional_flow(x0, x1)
            return torch.nn.functional.mse_loss(velocity(x_t, t), flow)

        return loss

    return {
        FM: lambda velocity, x0, x1: flow_matching_loss(velocity, x0, x1, generator),
        CFM: torchcfm(ConditionalFlowMatcher(sigma=0.0)),
        PATH: meta,
        FW: lambda velocity, x0, x1: flow_walking_loss(velocity, x0, x1, k=3, generator=generator),
        OT: ours_ot,
        OT_CFM: torchcfm(ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)),
    }


def training(velocity, loss: plane.Loss, pairs, steps: int, seed: int) -> Iterator[float]:
    """The loop of :func:`lft_edu.plane.train`, halted every 50 steps: yields what a step of them took, in seconds."""
    generator = torch.Generator().manual_seed(seed)  # of the batches alone: the same for every loss
    optimizer = torch.optim.Adam(velocity.parameters(), lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for count in (min(SLICE, steps - done) for done in range(0, steps, SLICE)):
        start = time.perf_counter()
        for _ in range(count):
            rows = torch.randint(len(pairs), (BATCH,), generator=generator)
            value = loss(velocity, pairs.x0[rows], pairs.x1[rows])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            value.item()
        yield (time.perf_counter() - start) / count


def race(steps: int, seed: int) -> dict[str, dict]:
    """Train every contender once, a slice each in turn: seconds a step, and what the networks do to new pairs."""
    pairs, held = (shapes.beams(PAIRS, torch.Generator().manual_seed(s)) for s in (0, 1))
    start = plane.VelocityMLP(generator=torch.Generator().manual_seed(seed))
    losses = contenders(seed)
    networks = {name: copy.deepcopy(start) for name in losses}
    trainings = [training(networks[name], loss, pairs, steps, seed) for name, loss in losses.items()]
    seconds = zip(*zip(*trainings, strict=True), strict=True)  # the inner zip makes them take turns
    found = {}
    for (name, network), slices in zip(networks.items(), seconds, strict=True):
        ends = plane.carry(network, held.x0, WALK)
        error, kept = plane.coupling_error(ends, held).item(), plane.pairs_kept(ends, held).item()
        found[name] = {"seconds": slices, "coupling_error": error, "pairs_kept": kept}
    return found


def compare_training(steps: int, rounds: int) -> list[dict]:
    """A row a contender: steps per second, time of a step as a multiple of our loss's, coupling error, pairs kept."""
    races = [race(steps, seed) for seed in tqdm(range(rounds), desc="training", unit="round", leave=False)]
    rows = []
    for name, rival in RIVALS.items():
        seconds = [s for r in races for s in r[name]["seconds"]]
        beside = [s for r in races for s in r[rival]["seconds"]]
        row = {"contender": name, "steps_per_second": 1 / statistics.median(seconds)}
        row |= {"against": rival, "times_ours": median_ratio(seconds, beside)}
        row |= {f"{what}_by_round": [r[name][what] for r in races] for what in ("coupling_error", "pairs_kept")}
        row |= {what: statistics.median(row[f"{what}_by_round"]) for what in ("coupling_error", "pairs_kept")}
        rows.append(row)
    return rows


def clouds() -> list[tuple[str, Callable[[torch.Generator], tuple[Tensor, Tensor]]]]:
    """What is to be assigned: name, and a function that draws the two clouds."""

    def gauss(n, dimension):
        return lambda generator: tuple(torch.randn(2, n, dimension, generator=generator))

    def beams(n):
        return lambda generator: operator.attrgetter("x0", "x1")(shapes.beams(n, generator))

    plain = [(f"Gaussian, N={n}, D=2", gauss(n, 2)) for n in (128, 256, 512, 1024, 2048)]
    wide = [(f"Gaussian, N={n}, D=64", gauss(n, 64)) for n in (512, 2048)]
    return [*plain, *wide, *((f"beams, N={n}, D=2", beams(n)) for n in (256, 1024))]


def assign(name: str, metric: str, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs a contender returns: rows of ``x0`` and rows of ``x1``."""
    import ot
    from torchcfm.optimal_transport import OTPlanSampler

    if name == OURS:
        return x0, x1[optimal_assignment(x0, x1, metric)]
    if name == SAMPLER:
        return OTPlanSampler(method="exact").sample_plan(x0, x1)
    a, b = x0.double().numpy(), x1.double().numpy()
    plan = ot.emd(ot.unif(len(a)), ot.unif(len(b)), ot.dist(a, b, metric))
    return x0, x1[torch.from_numpy(plan.argmax(1))]


def weigh(name: str, metric: str, x0: Tensor, x1: Tensor) -> dict:
    """One assignment: its time, how often it uses the points, the mean cost of its pairs."""
    start = time.perf_counter()
    a, b = assign(name, metric, x0, x1)
    seconds = time.perf_counter() - start
    distance = (a.double() - b.double()).norm(dim=-1)
    uses = torch.unique(a, dim=0, return_counts=True)[1]
    return {
        "seconds": seconds,
        "sources_once": (uses == 1).sum().item() / len(x0),
        "sources_lost": 1 - len(uses) / len(x0),
        "targets_lost": 1 - len(torch.unique(b, dim=0)) / len(x1),
        "cost": (distance.square() if metric == "sqeuclidean" else distance).mean().item(),
    }


def compare_assignments(rounds: int) -> list[dict]:
    """A row a cloud and contender. New clouds each time; the contenders take turns on the same ones."""
    rows = []
    for label, draw in tqdm(clouds(), desc="assigning", unit="cloud", leave=False):
        size = len(draw(torch.Generator().manual_seed(0))[0])
        pairs = [draw(torch.Generator().manual_seed(i)) for i in range(max(rounds, rounds * 1024 // size))]
        for contender in ASSIGNERS:
            assign(*contender, *(x[:64] for x in pairs[0]))  # the first call loads libraries
        found = [{c: weigh(*c, x0, x1) for c in ASSIGNERS} for x0, x1 in pairs]
        rows += [assignment_row(label, contender, found) for contender in ASSIGNERS]
    return rows


def assignment_row(label: str, contender: tuple[str, str], found: list[dict]) -> dict:
    """Medians of one contender on one kind of clouds; costs against the cheapest pairing that leaves nobody out."""
    metric = contender[1]
    optima = [min(f[c]["cost"] for c in ((OURS, metric), (POT, metric)) if not f[c]["targets_lost"]) for f in found]
    mine, ours = ([f[c]["seconds"] for f in found] for c in (contender, (OURS, metric)))
    median = {key: statistics.median(f[contender][key] for f in found) for key in found[0][contender]}
    excess = [f[contender]["cost"] / best - 1 for f, best in zip(found, optima, strict=True)]
    return {
        "clouds": label,
        "contender": contender[0],
        "metric": metric,
        "milliseconds": 1000 * median.pop("seconds"),
        "times_ours": median_ratio(mine, ours),
        **median,
        "excess_cost": statistics.median(excess),
        "excess_cost_range": [min(excess), max(excess)],
    }


def median_ratio(times: list[float], ours: list[float]) -> float:
    """How many times as long as ours: the median over neighbors in time, which the machine's load affects alike."""
    return statistics.median(mine / theirs for mine, theirs in zip(times, ours, strict=True))


def training_table(rows: list[dict]) -> str:
    cells = [["Loss", "Steps per second", "Time of a step, in ours", "Coupling error", "Pairs kept"]]
    for row in rows:
        relative = f"{row['times_ours']:.2f} × {row['against'].removeprefix('ours: ')}"
        quality = [f"{row['coupling_error']:.3f}", percent(row["pairs_kept"])]
        cells.append([row["contender"], f"{row['steps_per_second']:.0f}", relative, *quality])
    return table(cells)


def assignment_table(rows: list[dict]) -> str:
    cells = [["Clouds", "Cost", "Contender", "ms", "Time, in ours", "Used once", "Left out", "Above the optimum"]]
    for row in rows:
        duration = [f"{row['milliseconds']:.1f}", f"{row['times_ours']:.2f}"]
        use = [percent(row["sources_once"]), percent(max(row["sources_lost"], row["targets_lost"]))]
        excess = span(row["excess_cost_range"])
        cells.append([row["clouds"], row["metric"], row["contender"], *duration, *use, excess])
    return table(cells)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def span(limits: list[float]) -> str:
    """An excess over the optimum from lowest to highest, or 0 where it is rounding."""
    low, high = limits
    return "0" if max(abs(low), abs(high)) < 1e-9 else f"{100 * low:+.2f} to {100 * high:+.2f} %"


def table(rows: list[list[str]]) -> str:
    """A Markdown table whose columns also line up on a terminal: a first row of heads, then cells."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    ruled = [rows[0], ["-" * w for w in widths], *rows[1:]]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in ruled)


def missing() -> list[str]:
    """Peers that are not installed, by the name pip knows."""
    return [package for module, package in PEERS.items() if importlib.util.find_spec(module) is None]


def versions() -> dict[str, str]:
    installed = {name: importlib.metadata.version(name) for name in ("torch", "scipy", "numpy", *PEERS.values())}
    return {"python": platform.python_version(), **installed}


def markdown(result: dict) -> str:
    stated = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"""\
# Beside other libraries

Written by `python benchmarks/plane.py --steps {result["steps"]} --rounds {result["rounds"]}` on {result["machine"]}.
One run, one thread, {result["cpus"]} processors: {stated}.

## Flow matching on `beams`

{result["steps"]} steps of {BATCH} pairs, Adam {RATE:g} on a cosine, network 3 → 64 → 64 → 2; medians of
{result["rounds"]} rounds. Error and pairs kept: {PAIRS:,} new pairs, {WALK} midpoint steps.

{training_table(result["training"])}

{EXPLANATION["training"]}

## Exact assignment

Times with the cost matrix, medians over new clouds each time. `sample_plan` knows the squared cost only.

{assignment_table(result["assignment"])}

{EXPLANATION["assignment"]}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="training steps of each contender (default 1500)")
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is done (default 3)")
    a = parser.parse_args()
    if a.steps < 1 or a.rounds < 1:
        parser.error("--steps and --rounds must be at least 1.")
    if packages := missing():
        command = f"pip install --no-deps {' '.join(packages)}"
        print(f"Not installed: {', '.join(packages)}. Install with\n\n    {command}\n", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    result = {"versions": versions(), "machine": f"{platform.system()}, {platform.machine()}", "cpus": os.cpu_count()}
    result |= {"steps": a.steps, "rounds": a.rounds, "training": compare_training(a.steps, a.rounds)}
    print(training_table(result["training"]), "\n", flush=True)
    result["assignment"] = compare_assignments(a.rounds)
    print(assignment_table(result["assignment"]), flush=True)
    write_json(RESULTS / "plane.json", result)
    with atomic_write(RESULTS / "plane.md") as partial:
        partial.write_text(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
