"""Does anything tell where to cut, before training? Train short runs on many spans, and measure.

    python -m lft_edu.recipes.span_selection            # → assets/results/cut.json; run it again to go on
    python -m lft_edu.recipes.span_selection --scan     # → assets/results/scan.json: every criterion of all spans
    python -m lft_edu.recipes.span_selection --render   # → the table of rank correlations in README.md

Each span gets the same tokens, steps and seed; only the place differs. Criteria are computed on the validation split,
KL on the test split. Needs torch, transformers, tokenizers, safetensors and accelerate only (``--scan``: scipy, too).
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

import lft_edu as lft

from .. import skipping
from ..criteria import CRITERIA, TITLES, Depth, Pair, recoupling
from ..fitting import LatentSource
from ..latents import depth_states, hidden_states_at_all_layers
from ..loading import corpora
from ..loading.assets import ASSETS
from ..spans import SpanScan, scan_spans
from ..support.arguments import count, span
from ..support.files import write_json
from ..support.machine import require_memory
from ..support.statistics import rank_correlation
from .common import fit, hardware, into_readme, ladder, weights_of

LENGTHS = (6, 12)  # the paper's
RUNS = ("ridge", "regression", "flow-matching", "flow-walking")
AS_MIDPOINT = ("flow-matching", "midpoint", 3)  # flow matching walked as Flow Walking is, for equal evaluations


def spans_of(depth: int, lengths=LENGTHS) -> list[tuple[int, int]]:
    """Every span of these lengths, those in the middle of the model first."""
    spans = [(m, m + length) for length in lengths for m in range(depth - length + 1)]
    return sorted(spans, key=lambda s: (abs(s[0] + s[1] - depth), s))


class Depths:
    """The states of all blocks at every depth, computed once: pairs of any span without running the teacher again."""

    def __init__(self, teacher, blocks: Tensor, batch_size: int):
        self.teacher, self.blocks, self.batch_size = teacher, blocks, batch_size
        shape = (teacher.config.num_hidden_layers + 1, *blocks.shape, teacher.config.hidden_size)
        require_memory(4 * torch.Size(shape).numel(), "The states at every depth", "Give fewer --tokens.")
        self.states = torch.empty(shape)
        for rows in tqdm(torch.arange(len(blocks)).split(batch_size), desc="states", unit="batch", mininterval=5.0):
            states, _, contexts = hidden_states_at_all_layers(teacher, blocks[rows].long().to(teacher.device))
            for depth, state in enumerate(states):
                self.states[depth, rows] = state.float().cpu()
        self.contexts = [{k: v[:1] if isinstance(v, Tensor) else v for k, v in context.items()} for context in contexts]

    def source(self, span: tuple[int, int]) -> LatentSource:
        """What :func:`lft_edu.fit` trains on, for one span."""
        m, n = span
        source = LatentSource(self.teacher, span, self.blocks, self.batch_size)
        source.stored, source.context = (self.states[m], self.states[n]), self.contexts[m]
        return source


def measured(student, teacher, held: Tensor) -> dict:
    """What is recorded of one trained student."""
    found = lft.evaluate(student, teacher, held)
    return {key: getattr(found, key) for key in ("kl", "kl_interval", "nmse", "nfe")}


def run(name: str, span: tuple[int, int], depths: Depths, held: Tensor, options: dict, checkpoint: Path) -> list[dict]:
    """Train one operator on one span: a row, or two for flow matching, which is also walked by midpoint steps."""
    operator, objective, _ = ladder(options["max_steps"])[name]
    student = lft.splice(depths.teacher, span, operator)
    fit(student, depths.teacher, depths.source(span), options | objective, checkpoint)
    about = {"span": list(span), "seed": options["seed"]}
    rows = [{"name": name, **about, **measured(student, depths.teacher, held)}]
    if name == AS_MIDPOINT[0]:
        student.set_solver(*AS_MIDPOINT[1:])
        rows.append({"name": "-".join(AS_MIDPOINT[:2]), **about, **measured(student, depths.teacher, held)})
    return rows


def collect(work: Path, about: dict) -> dict:
    """Everything in ``cut.json``: what each run wrote, in order."""
    rows = [row for path in sorted(work.glob("*-*-*.json")) for row in json.loads(path.read_text())]
    return about | {"rows": sorted(rows, key=lambda r: (r["seed"], r["span"][1] - r["span"][0], r["span"], r["name"]))}


def scan(teacher, blocks: Tensor, tokens: int, frequent: int, work: Path) -> SpanScan:
    """Every criterion of every span; the states of each of the most ``frequent`` tokens are also scanned alone."""
    generator = torch.Generator().manual_seed(0)
    states = depth_states(teacher, blocks, tokens, generator)
    sizes = [2**i for i in range(6, tokens.bit_length())]
    found = scan_spans(states, CRITERIA, sizes=sizes, path=work)
    common = blocks[:, 1:].flatten().long().bincount().argsort(descending=True)[:frequent].tolist()
    alone = [depth_states(teacher, blocks, min(512, tokens), generator, token) for token in common]
    spans = tqdm(found.spans(), desc="one token", unit="span")
    same = {(m, n): torch.cat([recoupling(Pair(Depth(x[m]), Depth(x[n]))) for x in alone]) for m, n in spans}
    found = found.add("recoupling-same-token", same)
    return found.add("skip", skipping.skip_kl(teacher, blocks[:64], found.spans()))


def trained(results: dict, name: str, seed: int = 0) -> dict[tuple[int, int], float]:
    """Span → KL after training, of one kind of run."""
    return {tuple(r["span"]): r["kl"] for r in results["rows"] if r["name"] == name and r["seed"] == seed}


def correlations(found: SpanScan, kl: dict[tuple[int, int], float]) -> dict[str, tuple[float, float, float]]:
    """Criterion → rank correlation with what was measured, within spans of one length, and its interval."""
    lengths = torch.tensor([n - m for m, n in kl])
    measured = torch.tensor(list(kl.values()))
    at = lambda name: torch.tensor([found[name][span].item() for span in kl])  # noqa: E731
    return {name: rank_correlation(at(name), measured, lengths) for name in found.tables}


def readme_table(found: SpanScan, results: dict) -> str:
    """Rank correlations of every criterion, best for flow matching first."""
    matched, walked, again = (trained(results, n) for n in ("flow-matching", "flow-walking", "flow-matching-midpoint"))
    measured = (matched, again, walked, {s: again[s] / walked[s] for s in walked})
    columns = [correlations(found, kl) for kl in measured]
    lines = [
        "| criterion, before training | flow matching, Euler × 1 | midpoint × 3 | Flow Walking, midpoint × 3 | "
        "flow matching ÷ Flow Walking, both midpoint × 3 |",
        "|---|---|---|---|---|",
    ]
    for name in sorted(columns[0], key=lambda name: -columns[0][name][0]):
        cells = (f"{rho:.2f} ({low:.2f} to {high:.2f})" for rho, low, high in (column[name] for column in columns))
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="bundled")
    parser.add_argument("--span", type=span, action="append", help="m:n; may be repeated (default: all of 6 and 12)")
    parser.add_argument("--only", nargs="+", default=RUNS, choices=RUNS)
    parser.add_argument("--tokens", type=count, default=count("400k"), help="training tokens, kept in memory")
    parser.add_argument("--held", type=count, default=count("8192"), help="test tokens")
    parser.add_argument("--steps", type=int, default=400, help="16 blocks of 128 tokens each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scan", action="store_true", help="only compute the criteria")
    parser.add_argument("--render", action="store_true", help="only write the table in README.md")
    parser.add_argument("--n", type=int, default=2048, help="tokens of the scan, each of another block")
    parser.add_argument("--frequent", type=int, default=4, help="tokens that are also scanned alone")
    parser.add_argument("--work", type=Path, default=Path("runs/cut"))
    parser.add_argument("--out", type=Path, default=ASSETS / "results")
    a = parser.parse_args(arguments)
    if a.render:
        found, results = SpanScan.load(a.out / "scan.json"), json.loads((a.out / "cut.json").read_text())
        into_readme("cut", readme_table(found, results))
        return
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    teacher, tokenizer = lft.load_teacher(a.teacher)
    a.work.mkdir(parents=True, exist_ok=True)
    if a.scan:
        text = corpora.token_sequences("python-packages", tokenizer, "validation", 128, max_tokens=128 * (a.n + 64))
        scan(teacher, text, a.n, a.frequent, a.work / "scan.json").save(a.out / "scan.json")
        return
    blocks = corpora.token_sequences("python-packages", tokenizer, "train", 128, max_tokens=a.tokens)
    held = corpora.token_sequences("python-stdlib", tokenizer, "test", 128, max_tokens=a.held)
    options = {
        "batch_size": 16, "max_steps": a.steps, "lr": 0.03, "optimizer": "muon", "first_weight": 0.0, "seed": a.seed,
    }  # fmt: skip
    about = {
        "teacher_sha256": weights_of(a.teacher),
        "training": options | {"corpus": "python-packages, train split by path hash", "corpus_tokens": blocks.numel()},
        "held": {"corpus": "python-stdlib, test split by path hash", "blocks": list(held.shape)},
        "hardware": hardware(),
    }
    depths = Depths(teacher, blocks, 16)
    todo = [(s, name) for s in a.span or spans_of(teacher.config.num_hidden_layers) for name in a.only]
    for (m, n), name in tqdm(todo, desc="spans", unit="run"):
        path = a.work / f"{m}-{n}-{name}-{a.seed}.json"
        if not path.exists():
            rows = run(name, (m, n), depths, held, options, path.with_suffix(".safetensors"))
            write_json(path, rows)
        write_json(a.out / "cut.json", collect(a.work, about))


if __name__ == "__main__":
    main()
