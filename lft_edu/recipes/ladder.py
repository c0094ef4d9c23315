"""Compare every operator that ships, and skipping layers, on held-out text.

Three steps, in this order:

    python -m lft_edu.recipes.ladder            # → assets/results/ladder.json and ladder.md
    python -m lft_edu.recipes.ladder --growth   # → assets/results/skip_growth.json, from the teacher's snapshots
    python -m lft_edu.recipes.ladder --render   # → the table in docs/results.md and its figure (takes matplotlib)
"""

import argparse
import json
from pathlib import Path

import torch

import lft_edu as lft

from .. import metrics, operators, skipping
from ..loading import corpora
from ..loading.assets import ASSETS, sha256
from ..operators import operator_from_dict
from ..runs import costs
from ..support import statistics
from ..support.files import write_json
from .common import RESULTS, SPANS, experiments, hardware, in_layers, into_page

# Every flow is also measured with these solvers and numbers of steps, besides the pair it ships with.
SOLVERS = [("euler", 1), ("euler", 2), ("euler", 3), ("midpoint", 1), ("midpoint", 2), ("midpoint", 3)]
COLUMNS = (
    "operator | layers | NFE | parameters | KL (95 %) | perplexity | NMSE | NMSE with position 0 | recovery | "
    "j* (95 %) | ms/token prefill | decode"
)


def best_and_centred(damage: dict, depth: int, lengths) -> dict[int, dict]:
    """Return, for each length, the least harmful contiguous span and the one in the middle, with their KL."""
    table = {}
    for j in lengths:
        best = min((s for s in damage if s[1] - s[0] == j), key=lambda s: damage[s].mean().item())
        middle = ((depth - j) // 2, (depth - j) // 2 + j)
        table[j] = {
            "best": list(best), "kl": damage[best].mean().item(),
            "kl_interval": metrics.interval(statistics.bootstrap_means(damage[best])),
            "centred": list(middle), "centred_kl": damage[middle].mean().item(),
        }  # fmt: skip
    return table


def row(name: str, student, teacher, blocks, curve: dict, same_span_skip: float) -> dict:
    """Evaluate one student.

    Args:
        blocks: test sequences, ``(N, T)``.
        curve: layers skipped → KL per sequence, nats per token.
        same_span_skip: KL of skipping the span that the student replaces.

    Returns:
        One row of the comparison.
    """
    found = lft.evaluate(student, teacher, blocks)
    return {
        "name": name,
        "span": student.config.span,
        "operator": student.operator.to_dict(),
        **found.to_dict(),
        "recovery": skipping.recovery(found.kl, same_span_skip),
        **in_layers(found.sequence_kl, curve),
    }


def measure(tokens: int, block: int = 128) -> dict:
    """Return the contents of ``ladder.json``, measured on ``tokens`` held-out tokens."""
    teacher, tokenizer = lft.load_teacher("bundled")
    blocks = corpora.token_sequences("python-stdlib", tokenizer, "test", block, max_tokens=tokens)
    depth = teacher.config.num_hidden_layers
    lengths = range(1, 13)
    spans = [(m, m + j) for j in lengths for m in range(depth - j + 1)]
    damage = skipping.skip_kl(teacher, blocks, spans)
    skips = best_and_centred(damage, depth, lengths)
    curve = {j: damage[tuple(skips[j]["best"])] for j in lengths}
    rows = []
    chosen = [tuple(skips[j][which]) for j in (1, 2, 3, 6, 12) for which in ("best", "centred")]
    for span in dict.fromkeys([*chosen, *SPANS]):
        student = lft.splice(teacher, span, lft.Skip())
        rows.append(row("skip", student, teacher, blocks, curve, damage[span].mean().item()))
    for m, n in SPANS:
        same = damage[m, n].mean().item()
        loop = lft.splice(teacher, (m, n), lft.Loop(3))
        rows.append(row("loop", loop, teacher, blocks, curve, same))
        for name in experiments(1):
            student = lft.load_student(f"bundled/{name}-{m}-{n}", teacher)
            rows.append(row(name, student, teacher, blocks, curve, same) | {"shipped": True})
            print(f"{name} {m}–{n}: KL {rows[-1]['kl']:.3f}", flush=True)
            shipped = student.operator.to_dict()
            for solver, steps in SOLVERS if student.operator.kind == "flow" else ():
                if student.set_solver(solver, steps).operator.to_dict() != shipped:
                    rows.append(row(name, student, teacher, blocks, curve, same))
    results = {
        "corpus": "python-stdlib, test split by path hash",
        "blocks": list(blocks.shape),
        "hardware": hardware(),
        "teacher": {
            "sha256": sha256(ASSETS / "teacher" / "model.safetensors"),
            "parameters": sum(p.numel() for p in teacher.parameters()),
            "layers": depth, "nfe": depth,
        },
        "skip": skips,
        "rows": rows,
    }  # fmt: skip
    add_latencies(results, teacher)
    return results


def student_of(row: dict, teacher):
    """Return the student that a row was measured on."""
    if row["name"] in ("skip", "loop"):
        return lft.splice(teacher, row["span"], operator_from_dict(row["operator"]))
    student = lft.load_student("bundled/{}-{}-{}".format(row["name"], *row["span"]), teacher)
    if "solver" in row["operator"]:
        student.set_solver(row["operator"]["solver"], row["operator"]["num_steps"])
    return student


def add_latencies(results: dict, teacher) -> None:
    """Time the teacher and the student of every row, taking turns."""
    entries = [results["teacher"], *results["rows"]]
    models = {i: student_of(row, teacher) for i, row in enumerate(results["rows"], 1)}
    found = costs.latencies({0: teacher} | models, progress=True)
    for i, entry in enumerate(entries):
        entry["ms_prefill"], entry["ms_decode"] = found[i]["prefill"], found[i]["decode"]


def render(results: dict) -> str:
    """Format the comparison as a Markdown table."""
    lines = [COLUMNS, "|".join(["---"] * (COLUMNS.count("|") + 1))]
    for r in results["rows"]:
        low, high = r["kl_interval"]
        lines.append(
            f"{operators.row_title(r)} | {r['span'][0]}–{r['span'][1]} | {r['nfe']} | {r['parameters']:,} | "
            f"{r['kl']:.3f} ({low:.3f}–{high:.3f}) | {r['perplexity']:.2f} | {r['nmse']:.3f} | {r['nmse_all']:.3f} | "
            f"{r['recovery']:.2f} | {skipping.row_layers(r)} | {r['ms_prefill']:.3f} | {r['ms_decode']:.2f}"
        )
    return "\n".join(lines) + "\n"


def page_table(results: dict) -> str:
    """Format the shipped rows for docs/results.md, with fewer columns."""
    lines = [
        "| operator | layers | parameters | NFE | KL, nats (95 %) | recovery | j* (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results["rows"]:
        if r.get("shipped") or r["name"] == "loop" or (r["name"] == "skip" and tuple(r["span"]) in SPANS):
            (m, n), (low, high) = r["span"], r["kl_interval"]
            lines.append(
                f"| {operators.row_title(r)} | {m}–{n} | {r['parameters'] / 1e6:.2f} M | {r['nfe']} | "
                f"{r['kl']:.3f} ({low:.3f}–{high:.3f}) | {r['recovery']:.2f} | {skipping.row_layers(r)} |"
            )
    best = "; ".join(f"{j} cost {results['skip'][j]['kl']:.3f}" for j in ("1", "2", "3", "6", "12"))
    return "\n".join(lines) + f"\n\nSkipping the best contiguous layers: {best} nats.\n"


def render_page(results: dict) -> None:
    """Write the table into docs/results.md, and its figure into assets/figures."""
    from .. import plots

    into_page(RESULTS, "ladder", page_table(results))
    figure = ASSETS / "figures" / "skipped_layers.png"
    figure.parent.mkdir(parents=True, exist_ok=True)
    figure.write_bytes(plots.still(plots.skipped_layers(results), alt="").data)


def growth(work: Path, tokens: int) -> dict:
    """Measure skipping 1, 2, 3, 6 and 12 contiguous layers in every snapshot of the teacher's training.

    Args:
        work: the folder of the snapshots.
        tokens: held-out tokens.
    """
    from transformers import AutoModelForCausalLM

    _, tokenizer = lft.load_teacher("bundled")
    blocks = corpora.token_sequences("python-stdlib", tokenizer, "test", 128, max_tokens=tokens)
    log = json.loads((ASSETS / "teacher" / "PROVENANCE.json").read_text(encoding="utf-8"))
    lengths = (1, 2, 3, 6, 12)
    spans = [(m, m + j) for j in lengths for m in range(24 - j + 1)]
    rows = []
    for e in log["log"]["evaluations"]:
        folder = work / f"step-{e['step']:06d}"
        if folder.exists():
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
            damage = skipping.skip_kl(model, blocks, spans)
            same = {f"{m}-{n}": damage[m, n].mean().item() for m, n in SPANS}
            rows.append({**e, "skip": best_and_centred(damage, 24, lengths), "span": same})
    return {"blocks": list(blocks.shape), "rows": rows}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=128 * 128, help="held-out tokens")
    parser.add_argument("--growth", action="store_true", help="measure how the KL of skipping grows with training")
    parser.add_argument("--latency", action="store_true", help="only measure the latency of every row again")
    parser.add_argument("--render", action="store_true", help="only write the table in docs/results.md and its figure")
    parser.add_argument("--work", type=Path, default=Path("runs/teacher"))
    parser.add_argument("--out", type=Path, default=ASSETS / "results")
    a = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    if a.render:
        render_page(json.loads((a.out / "ladder.json").read_text(encoding="utf-8")))
        return
    if a.growth:
        write_json(a.out / "skip_growth.json", growth(a.work, a.tokens))
        return
    if a.latency:
        results = json.loads((a.out / "ladder.json").read_text(encoding="utf-8"))
        add_latencies(results, lft.load_teacher("bundled")[0])
    else:
        results = measure(a.tokens)
    write_json(a.out / "ladder.json", results)
    (a.out / "ladder.md").write_text(render(results), encoding="utf-8")
    print(render(results))


if __name__ == "__main__":
    main()
