"""Span selection: does any criterion predict where to cut, before training? Train short runs on many spans to find out.

    python -m lft_edu.recipes.span_selection            # → assets/results/cut.json; if interrupted, run it again
    python -m lft_edu.recipes.span_selection --scan     # → assets/results/scan.json: every criterion for all spans
    python -m lft_edu.recipes.span_selection --render   # → the table of rank correlations in docs/results.md

Each span gets the same tokens, steps and seed; only the span differs. Criteria are computed on the validation split,
KL on the test split. Needs torch, transformers, tokenizers, safetensors and accelerate; ``--scan`` needs scipy too.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

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
from ..support.progress import progress_bar
from ..support.statistics import rank_correlation
from .common import RESULTS, experiments, fit, hardware, into_page, weights_of

LENGTHS = (6, 12)  # the paper's
RUNS = ("ridge", "regression", "flow-matching", "flow-walking")
AS_MIDPOINT = ("flow-matching", "midpoint", 3)  # flow matching with Flow Walking's solver, at equal NFE


def spans_of(depth: int, lengths=LENGTHS) -> list[tuple[int, int]]:
    """Return every span of these lengths, starting with those in the middle of the model."""
    spans = [(m, m + length) for length in lengths for m in range(depth - length + 1)]
    return sorted(spans, key=lambda s: (abs(s[0] + s[1] - depth), s))


class Depths:
    """The states of all sequences at every depth, computed once, so that any span can be trained without the teacher.

    Args:
        sequences: token ids, ``(N, T)``.
        batch_size: sequences per pass of the teacher, and per batch of training.
    """

    def __init__(self, teacher, sequences: Tensor, batch_size: int):
        self.teacher, self.sequences, self.batch_size = teacher, sequences, batch_size
        shape = (teacher.config.num_hidden_layers + 1, *sequences.shape, teacher.config.hidden_size)
        require_memory(4 * torch.Size(shape).numel(), "The states at every depth", "Give fewer --tokens.")
        self.states = torch.empty(shape)
        for rows in progress_bar(
            torch.arange(len(sequences)).split(batch_size), desc="states", unit="batch", mininterval=5.0
        ):
            states, _, contexts = hidden_states_at_all_layers(teacher, sequences[rows].long().to(teacher.device))
            for depth, state in enumerate(states):
                self.states[depth, rows] = state.float().cpu()
        self.contexts = [{k: v[:1] if isinstance(v, Tensor) else v for k, v in context.items()} for context in contexts]

    def source(self, span: tuple[int, int]) -> LatentSource:
        """Return what :func:`lft_edu.fit` trains on, for one span."""
        m, n = span
        source = LatentSource(self.teacher, span, self.sequences, self.batch_size)
        source.stored, source.context = (self.states[m], self.states[n]), self.contexts[m]
        return source


def measured(student, teacher, held_out: Tensor) -> dict:
    """Evaluate one trained student."""
    found = lft.evaluate(student, teacher, held_out)
    return {key: getattr(found, key) for key in ("kl", "kl_interval", "nmse", "nfe")}


def run(
    name: str, span: tuple[int, int], depths: Depths, held_out: Tensor, options: dict, checkpoint: Path
) -> list[dict]:
    """Train and evaluate one operator on one span.

    Args:
        name: of :func:`.common.experiments`.
        span: layers [m, n) that it replaces.
        depths: the teacher's states.
        held_out: test sequences, ``(N, T)``.
        options: of :func:`lft_edu.fit`, with ``seed``.
        checkpoint: a file to resume from.

    Returns:
        One row; for flow matching a second one, walked in midpoint steps.
    """
    operator, objective, _ = experiments(options["max_steps"])[name]
    student = lft.splice(depths.teacher, span, operator)
    fit(student, depths.teacher, depths.source(span), options | objective, checkpoint)
    about = {"span": list(span), "seed": options["seed"]}
    rows = [{"name": name, **about, **measured(student, depths.teacher, held_out)}]
    if name == AS_MIDPOINT[0]:
        student.set_solver(*AS_MIDPOINT[1:])
        rows.append({"name": "-".join(AS_MIDPOINT[:2]), **about, **measured(student, depths.teacher, held_out)})
    return rows


def collect(work: Path, about: dict) -> dict:
    """Return the contents of ``cut.json``: the rows of every run, in order."""
    rows = [row for path in sorted(work.glob("*-*-*.json")) for row in json.loads(path.read_text(encoding="utf-8"))]
    return about | {"rows": sorted(rows, key=lambda r: (r["seed"], r["span"][1] - r["span"][0], r["span"], r["name"]))}


def scan(teacher, sequences: Tensor, tokens: int, frequent: int, work: Path) -> SpanScan:
    """Compute every criterion for every span.

    Args:
        sequences: token ids, ``(N, T)``.
        tokens: how many tokens to pair.
        frequent: how many of the most frequent tokens are also scanned on their own.
        work: a file to resume from.
    """
    generator = torch.Generator().manual_seed(0)
    states = depth_states(teacher, sequences, tokens, generator)
    sizes = [2**i for i in range(6, tokens.bit_length())]
    found = scan_spans(states, CRITERIA, sizes=sizes, path=work)
    common = sequences[:, 1:].flatten().long().bincount().argsort(descending=True)[:frequent].tolist()
    alone = [depth_states(teacher, sequences, min(512, tokens), generator, token) for token in common]
    spans = progress_bar(found.spans(), desc="one token", unit="span")
    same = {(m, n): torch.cat([recoupling(Pair(Depth(x[m]), Depth(x[n]))) for x in alone]) for m, n in spans}
    found = found.add("recoupling-same-token", same)
    return found.add("skip", skipping.skip_kl(teacher, sequences[:64], found.spans()))


def trained(results: dict, name: str, seed: int = 0) -> dict[tuple[int, int], float]:
    """Return span → KL after training, nats per token, for one kind of run."""
    return {tuple(r["span"]): r["kl"] for r in results["rows"] if r["name"] == name and r["seed"] == seed}


def correlations(found: SpanScan, kl: dict[tuple[int, int], float]) -> dict[str, tuple[float, float, float]]:
    """Return criterion → (rank correlation with the measured KL within spans of one length, its 95 % interval)."""
    lengths = torch.tensor([n - m for m, n in kl])
    measured = torch.tensor(list(kl.values()))
    at = lambda name: torch.tensor([found[name][span].item() for span in kl])  # noqa: E731
    return {name: rank_correlation(at(name), measured, lengths) for name in found.tables}


def page_table(found: SpanScan, results: dict) -> str:
    """Format the rank correlations as a Markdown table, the best criterion for flow matching first."""
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
    parser.add_argument("--eval-tokens", "--held", type=count, default=count("8192"), help="held-out tokens")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of 16 sequences of 128 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scan", action="store_true", help="only compute the criteria")
    parser.add_argument("--render", action="store_true", help="only write the table in docs/results.md")
    parser.add_argument("--n", type=int, default=2048, help="tokens of the scan, each from a different sequence")
    parser.add_argument("--frequent", type=int, default=4, help="frequent tokens that are also scanned on their own")
    parser.add_argument("--work", type=Path, default=Path("runs/cut"))
    parser.add_argument("--out", type=Path, default=ASSETS / "results")
    a = parser.parse_args(arguments)
    if a.render:
        found, results = (
            SpanScan.load(a.out / "scan.json"),
            json.loads((a.out / "cut.json").read_text(encoding="utf-8")),
        )
        into_page(RESULTS, "cut", page_table(found, results))
        return
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    teacher, tokenizer = lft.load_teacher(a.teacher)
    a.work.mkdir(parents=True, exist_ok=True)
    if a.scan:
        text = corpora.token_sequences("python-packages", tokenizer, "validation", 128, max_tokens=128 * (a.n + 64))
        scan(teacher, text, a.n, a.frequent, a.work / "scan.json").save(a.out / "scan.json")
        return
    sequences = corpora.token_sequences("python-packages", tokenizer, "train", 128, max_tokens=a.tokens)
    held_out = corpora.token_sequences("python-stdlib", tokenizer, "test", 128, max_tokens=a.eval_tokens)
    options = {
        "batch_size": 16, "max_steps": a.steps, "lr": 0.03, "optimizer": "muon", "first_weight": 0.0, "seed": a.seed,
    }  # fmt: skip
    corpus = {"corpus": "python-packages, train split by path hash", "corpus_tokens": sequences.numel()}
    about = {
        "teacher_sha256": weights_of(a.teacher),
        "training": options | corpus,
        "held": {"corpus": "python-stdlib, test split by path hash", "blocks": list(held_out.shape)},
        "hardware": hardware(),
    }
    depths = Depths(teacher, sequences, 16)
    todo = [(s, name) for s in a.span or spans_of(teacher.config.num_hidden_layers) for name in a.only]
    for (m, n), name in progress_bar(todo, desc="spans", unit="run"):
        path = a.work / f"{m}-{n}-{name}-{a.seed}.json"
        if not path.exists():
            rows = run(name, (m, n), depths, held_out, options, path.with_suffix(".safetensors"))
            write_json(path, rows)
        write_json(a.out / "cut.json", collect(a.work, about))


if __name__ == "__main__":
    main()
