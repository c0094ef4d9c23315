"""The scan of all spans beside a plain loop over POT: seconds, exactness, growth with N, where the time goes.

    pip install --no-deps POT                    # the peer; --no-deps leaves your torch as it is
    python benchmarks/scan.py                    # about five minutes on two cores
    python benchmarks/scan.py --rounds 1 --n 128 --growth 64 128 --shape none   # a quick look

Prints a table a section and writes ``benchmarks/results/scan.json`` and ``scan.md``. Everything runs on one thread but
the row that says otherwise. The contenders take turns, a whole scan each: read the ratios, not the seconds. Exit status
2, before anything is measured, if POT is missing.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import math
import os
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from plane import median_ratio, percent, table
from torch import Tensor
from tqdm.auto import tqdm

import lft_edu as lft
from lft_edu.couplings import assign
from lft_edu.criteria import Depth, Pair
from lft_edu.latents import depth_states
from lft_edu.loading import corpora
from lft_edu.loading.teachers import random_teacher
from lft_edu.spans import scan_spans
from lft_edu.support.files import atomic_write, write_json
from lft_edu.support.statistics import summary

RESULTS = Path(__file__).parent / "results"
OURS, THREADED, POT = "ours: scan_spans", "ours: scan_spans, 2 threads", "POT: ot.dist, ot.emd, arg max"
SINKHORN = {f"POT: ot.sinkhorn, reg {share:g} × mean cost": share for share in (0.05, 0.005)}
CONTENDERS = (OURS, THREADED, POT, *SINKHORN)
LENGTHS = (6, 12, 18)  # of the spans that growth is measured on
BLOCK = 128  # tokens of a text, of which one is used
SHORT = 16  # the same for a wide teacher, whose states would else take minutes

EXPLANATION = {
    "peers": """\
*Exact* is SciPy's solver on distances taken one by one, ties going to the given pairs. At depth 0 a state is its
token's, so the same token twice is a tie, and there a plain solver breaks up pairs at no gain: its matching is optimal,
its R is not the least. Sinkhorn's plan is blurred by its regularisation, and the arg max of its rows is no permutation:
several points may choose one end. It stops after 1000 iterations whether it has converged or not.""",
    "growth": """\
The exponent is that of time against N since the row above: 2 for distances, up to 3 for assignment.""",
    "parts": """\
Summed over the spans, each part timed by itself. *Rest*: the fingerprint of the states, the count of duplicates.""",
    "wide": """\
Random weights: R says nothing here (its largest is {largest_ratio:.3f}, so assignment is easy). This is about time
only.""",
}


def spans_of(depth: int, lengths=None) -> list[tuple[int, int]]:
    return [(m, n) for m, n in itertools.combinations(range(depth + 1), 2) if lengths is None or n - m in lengths]


def stratified(spans: list, wanted: int) -> list:
    """Every k-th span, in order of length: all lengths and all places are among them."""
    ordered = sorted(spans, key=lambda s: (s[1] - s[0], s))
    return [ordered[i * len(ordered) // wanted] for i in range(min(wanted, len(ordered)))]


def exactly(states: Tensor, span: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Distances one by one, ``(N, N)``, and the exact assignment ``(N,)``, ties to the given pairs."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    cost = cdist(*(states[i].double().numpy() for i in span))
    return cost, linear_sum_assignment(cost - 1e-12 * cost.mean() * np.eye(len(cost)))[1]


def peer_assignment(name: str, x0: np.ndarray, x1: np.ndarray) -> np.ndarray:
    """As POT's documentation writes it: ``(N,)``, the end that each start sends most of its mass to."""
    import ot

    cost, even = ot.dist(x0, x1, "euclidean"), ot.unif(len(x0))
    plan = ot.sinkhorn(even, even, cost, SINKHORN[name] * cost.mean()) if name in SINKHORN else ot.emd(even, even, cost)
    return plan.argmax(1)


def peer_scan(name: str, states: Tensor, spans: list) -> dict:
    """A plain loop: seconds, assignments, and on how many spans POT warned (of no convergence)."""
    found, warned, started = [], 0, time.perf_counter()
    for m, n in spans:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found.append(peer_assignment(name, states[m].double().numpy(), states[n].double().numpy()))
        warned += bool(caught)
    return {"seconds": time.perf_counter() - started, "found": found, "warned": warned}


def our_scan(states: Tensor, workers: int = 1, lengths=None) -> tuple[float, Tensor]:
    """Seconds and the table of R."""
    started = time.perf_counter()
    ratios = scan_spans(states, workers=workers, lengths=lengths, progress=False).ratios
    return time.perf_counter() - started, ratios


def quality(found: list[np.ndarray], spans: list, exact: dict) -> dict:
    """Errors of R over spans (those that begin at depth 0 apart), cost above the optimum, ends nobody chose."""
    error, excess, lost = {}, [], []
    for span, assignment in zip(spans, found, strict=True):
        cost, best = exact[span]
        rows = np.arange(len(cost))
        error[span] = abs(float((assignment != rows).mean() - (best != rows).mean()))
        excess.append(float(cost[rows, assignment].sum() / cost[rows, best].sum() - 1))
        lost.append(1 - len(np.unique(assignment)) / len(rows))
    inner, first = ([e for (m, _), e in error.items() if bool(m) is wanted] for wanted in (True, False))
    return {
        "error_mean": statistics.fmean(inner),
        "error_max": max(inner),
        "error_mean_depth_0": statistics.fmean(first),
        "error_max_depth_0": max(first),
        "excess_cost_max": max(excess),
        "lost_mean": statistics.fmean(lost),
    }


def compare(states: Tensor, rounds: int, sampled: int) -> list[dict]:
    """A row a contender. They take turns; the slow ones scan a stratified sample of the spans."""
    spans = spans_of(len(states) - 1)
    chosen = {name: stratified(spans, sampled) if name in SINKHORN else spans for name in CONTENDERS}
    exact = {span: exactly(states, span) for span in tqdm(spans, desc="exact", unit="span", leave=False)}
    seconds: dict[str, list] = {name: [] for name in CONTENDERS}
    last: dict[str, dict] = {}
    peer_scan(POT, states, spans[:1]), our_scan(states[:, :64])  # the first call loads libraries
    for name in tqdm([*CONTENDERS] * rounds, desc="contenders", unit="scan", leave=False):
        if name in (OURS, THREADED):
            spent, ratios = our_scan(states, 1 if name == OURS else 2)
            last[name] = {"ratios": ratios, "warned": 0}
        else:
            last[name] = peer_scan(name, states, chosen[name])
            spent = last[name]["seconds"] * len(spans) / len(chosen[name])
        seconds[name].append(spent)
    depths = [Depth(x) for x in states]
    ours = [assign(Pair(depths[m], depths[n]).distances).numpy() for m, n in spans]  # scan_spans keeps ratios only
    kept = torch.tensor([float((a != np.arange(len(a))).mean()) for a in ours], dtype=torch.float64)
    assert all(torch.equal(last[o]["ratios"][tuple(zip(*spans, strict=True))], kept) for o in (OURS, THREADED))
    return [
        {
            "contender": name,
            "seconds": statistics.median(seconds[name]),
            "times_ours": median_ratio(seconds[name], seconds[OURS]),
            "spans": len(chosen[name]),
            "warned": last[name]["warned"],
            **quality(last[name].get("found", ours), chosen[name], exact),
        }
        for name in CONTENDERS
    ]


def growth(states: Tensor, sizes: list[int], rounds: int) -> list[dict]:
    """Milliseconds a span of ours, and of POT beside it, among more and more tokens."""
    rows, spans = [], spans_of(len(states) - 1, LENGTHS)
    for size in tqdm(sizes, desc="growth", unit="size", leave=False):
        few = states[:, :size].contiguous()
        repeats = range(rounds if size < 2048 else min(rounds, 2))
        taken = [(our_scan(few, lengths=LENGTHS)[0], peer_scan(POT, few, spans)) for _ in repeats]
        ours, peer = [t for t, _ in taken], [p["seconds"] for _, p in taken]
        row = {"n": size, "spans": len(spans), "milliseconds": 1000 * min(ours) / len(spans)}
        row |= {"pot_times_ours": median_ratio(peer, ours), "pot_warned": taken[0][1]["warned"]}
        before = rows[-1] if rows else None
        slope = before and math.log(row["milliseconds"] / before["milliseconds"]) / math.log(size / before["n"])
        rows.append(row | {"exponent": slope})
    return rows


def parts(states: Tensor, lengths, rounds: int) -> dict[str, float]:
    """Seconds of a scan on one thread, by part: the least of rounds, since what is left over is a small difference."""
    spans, taken = spans_of(len(states) - 1, lengths), []
    for _ in range(rounds):
        spent, clock = dict.fromkeys(("prepare", "distances", "assignment", "intervals"), 0.0), Stopwatch()
        depths = [Depth(x) for x in states]
        spent["prepare"] += clock.lap()
        for _, row in itertools.groupby(spans, key=lambda s: s[0]):
            samples = []
            for m, n in row:
                cost = Pair(depths[m], depths[n]).distances
                spent["distances"] += clock.lap()
                samples.append((assign(cost) != torch.arange(len(cost))).double())
                spent["assignment"] += clock.lap()
            summary(torch.stack(samples, -1))
            spent["intervals"] += clock.lap()
        total = our_scan(states, lengths=lengths)[0]
        taken.append(spent | {"whole scan": total})
    least = {key: min(t[key] for t in taken) for key in taken[0]}
    total = least.pop("whole scan")
    return least | {"rest": max(0.0, total - sum(least.values())), "whole scan": total}


class Stopwatch:
    """Seconds since the last lap."""

    def __init__(self):
        self.last = time.perf_counter()

    def lap(self) -> float:
        before, self.last = self.last, time.perf_counter()
        return self.last - before


def wide(shape: str, n: int) -> dict:
    """States and scan of a teacher of a published shape, random weights."""
    teacher, generator = random_teacher(shape, device="cpu"), torch.Generator().manual_seed(0)
    blocks = torch.randint(teacher.config.vocab_size, (n, SHORT), generator=generator)
    clock = Stopwatch()
    states = depth_states(teacher, blocks, n, generator)
    found = {"shape": shape, "layers": len(states) - 1, "width": states.shape[-1], "n": n, "block": SHORT}
    found |= {"spans": len(spans_of(len(states) - 1)), "states_seconds": clock.lap()}
    del teacher
    scans = {str(workers): our_scan(states, workers) for workers in (1, 2)}
    found["scan_seconds"] = {workers: seconds for workers, (seconds, _) in scans.items()}
    found["largest_ratio"] = scans["1"][1].nan_to_num().max().item()
    return found | {"parts": parts(states, None, 3)}


def error_cell(row: dict, where: str) -> str:
    return f"{row['error_max' + where]:.3f} ({row['error_mean' + where]:.3f})"


def peers_table(rows: list[dict]) -> str:
    cells = [["Contender", "Seconds", "Time, in ours", "Spans", "Error of R: largest (mean)", "… from depth 0"]]
    cells[0] += ["Most above the optimum", "Ends nobody chose", "Warnings"]
    for row in rows:
        duration = [f"{row['seconds']:.1f}", f"{row['times_ours']:.2f}", str(row["spans"])]
        errors = [error_cell(row, ""), error_cell(row, "_depth_0")]
        excess = 100 * row["excess_cost_max"]
        over = [f"{excess:.1f} %" if abs(excess) > 1e-6 else "0", percent(row["lost_mean"]), str(row["warned"])]
        cells.append([row["contender"], *duration, *errors, *over])
    return table(cells)


def growth_table(rows: list[dict]) -> str:
    cells = [["N", "ours, ms a span", "Exponent", "POT: ot.emd, in ours", "… stopped early, spans"]]
    for row in rows:
        slope = "" if row["exponent"] is None else f"{row['exponent']:.1f}"
        cells.append([str(row["n"]), f"{row['milliseconds']:.2f}", slope, f"{row['pot_times_ours']:.2f}"])
        cells[-1].append(f"{row['pot_warned']} of {row['spans']}")
    return table(cells)


def parts_table(results: dict) -> str:
    columns = results["parts"]
    cells = [["Part", *(f"N={c['n']}, {c['spans']} spans, s" for c in columns)]]
    cells.append(["states (the teacher's layers)", *(f"{c['states_seconds']:.2f}" for c in columns)])
    for key in columns[0]["seconds"]:
        shares = (100 * c["seconds"][key] / c["seconds"]["whole scan"] for c in columns)
        cells.append([key, *(f"{c['seconds'][key]:.2f} ({s:.0f} %)" for c, s in zip(columns, shares, strict=True))])
    return table(cells)


def wide_table(row: dict) -> str:
    cells = [["", "Seconds"], [f"states, {row['n']} texts of {row['block']} tokens", f"{row['states_seconds']:.1f}"]]
    cells += [[f"scan, {row['spans']} spans, {w} thread(s)", f"{s:.1f}"] for w, s in row["scan_seconds"].items()]
    cells += [[f"… of it: {name}", f"{s:.2f}"] for name, s in row["parts"].items() if name != "whole scan"]
    return table(cells)


def markdown(result: dict) -> str:
    stated = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    head = f"""\
# The scan of all spans

Written by `python benchmarks/scan.py` on {result["machine"]}, {result["cpus"]} processors: {stated}.

## Beside POT

The bundled teacher, {result["spans"]} spans, N = {result["n"]} tokens; medians of {result["rounds"]} rounds. Seconds of
a contender on fewer spans are scaled to all. Ours also makes the intervals.

{peers_table(result["peers"])}

{EXPLANATION["peers"]}

## Growth with N

Spans of {", ".join(map(str, LENGTHS))} layers, one thread; the least of the rounds.

{growth_table(result["growth"])}

{EXPLANATION["growth"]}

## Where the time goes

One thread; the least of the rounds. States: one token of each text of {BLOCK}, all texts run whole.

{parts_table(result)}

{EXPLANATION["parts"]}
"""
    if not result["wide"]:
        return head
    about = "{shape}: {layers} layers, width {width}, N = {n}".format(**result["wide"])
    note = EXPLANATION["wide"].format(**result["wide"])
    return f"{head}\n## A wider teacher\n\n{about}.\n\n{wide_table(result['wide'])}\n\n{note}\n"


def measure(a: argparse.Namespace) -> dict:
    """Everything, a section after another."""
    teacher, tokenizer = lft.load_teacher("bundled", device="cpu")
    most = max(a.n, *a.growth)
    blocks = corpora.token_sequences("python-packages", tokenizer, "validation", BLOCK, max_tokens=BLOCK * most)
    clock, columns = Stopwatch(), []
    states = depth_states(teacher, blocks, most, torch.Generator().manual_seed(0))
    each = clock.lap() / most  # seconds
    few = states[:, : a.n].contiguous()
    result = {"n": a.n, "rounds": a.rounds, "spans": len(spans_of(len(states) - 1)), "peers": []}
    result["peers"] = compare(few, a.rounds, a.spans)
    print(peers_table(result["peers"]), "\n", flush=True)
    result["growth"] = growth(states, a.growth, a.rounds)
    print(growth_table(result["growth"]), "\n", flush=True)
    for x, lengths, rounds in ((few, None, a.rounds), (states, LENGTHS, min(a.rounds, 2))):
        about = {"n": x.shape[1], "spans": len(spans_of(len(x) - 1, lengths)), "states_seconds": each * x.shape[1]}
        columns.append(about | {"seconds": parts(x, lengths, rounds)})
    result["parts"] = columns
    print(parts_table(result), "\n", flush=True)
    result["wide"] = None if a.shape == "none" else wide(a.shape, a.n)
    if result["wide"]:
        print(wide_table(result["wide"]), flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=512, help="tokens (default 512)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each contender scans (default 3)")
    parser.add_argument("--spans", type=int, default=60, help="spans that Sinkhorn scans (default 60, stratified)")
    parser.add_argument("--growth", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048], help="sizes N")
    parser.add_argument("--shape", default="pythia-410m", help="of the wider teacher; none: leave it out")
    a = parser.parse_args()
    if min(a.n, a.rounds, *a.growth) < 1 or a.spans < 24:
        parser.error("--n, --rounds and --growth must be at least 1, --spans at least 24.")
    if importlib.util.find_spec("ot") is None:
        print("Not installed: POT. Install with\n\n    pip install --no-deps POT\n", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    names = ("torch", "scipy", "numpy", "POT")
    result = {
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names},
        "machine": f"{platform.system()}, {platform.machine()}",
        "cpus": os.cpu_count(),
        **measure(a),
    }
    write_json(RESULTS / "scan.json", result)
    with atomic_write(RESULTS / "scan.md") as partial:
        partial.write_text(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
