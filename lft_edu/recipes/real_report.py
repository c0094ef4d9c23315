"""What :mod:`lft_edu.recipes.real` measured, as tables and figures for the lesson and the pages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..loading.assets import ASSETS, operator_notes, sha256
from ..operators import operator_title
from ..support.files import atomic_write, write_json
from .common import RESULTS, into_page
from .real_runs import MUON, SHIPPED, TEACHER, file_of

PAPER = {  # abstract of arXiv 2505.14513, Pythia-410M: KL of the operator, of the skip beside it
    "flow-matching": (0.407, 2, 0.529),
    "flow-walking": (0.736, 3, 0.932),
}
TITLES = {"flow-matching": "flow matching, 6 layers → 1", "flow-walking": "Flow Walking, 12 layers → 1"}
NAMES = {  # of runs whose operators differ by their number of evaluations, which has a column of its own
    "loop": "loop, untrained",
    **{f"loop-{k}": "trained loop" for k in (2, 3, 6)},
    **{f"flow-walking-{k}": "flow-walking" for k in (1, 6)},
    "two-layers": "two layers",
}
LAYERS = {"flow-matching": 6, "flow-walking": 12}


def load() -> dict:
    """The results that ship."""
    return json.loads((ASSETS / "results" / "real.json").read_text(encoding="utf-8"))


def row_of(results: dict, name: str) -> dict | None:
    """The row of one run; None if it has not been done."""
    return next((row for row in results["rows"] if row["name"] == name), None)


def headline(results: dict, kind: str, finished: bool = False) -> dict | None:
    """The row of the paper's operator of a kind, trained on states, or then on logits, too."""
    span = next(s for s in results["spans"] if s[1] - s[0] == LAYERS[kind])
    return row_of(results, f"headline/{'kl-' * finished}{kind}/{span[0]}-{span[1]}")


def seeds(results: dict, kind: str) -> list[float]:
    """The KL of the paper's operator of a kind, trained on states, with each seed."""
    first = headline(results, kind)
    m, n = first["span"]
    rows = [first, *(row for row in results["rows"] if row["name"].startswith(f"again/{kind}/{m}-{n}/"))]
    return [row["docs"]["kl"] for row in rows]


def paper_table(results: dict) -> str:
    """The paper's four numbers beside ours, in Markdown."""
    lines = [
        "| | the paper, Pythia-410M | SmolLM2-135M, trained on states | then on logits |",
        "|---|---|---|---|",
    ]
    for kind, (kl, bar, skipped) in PAPER.items():
        ours = [headline(results, kind), headline(results, kind, finished=True)]
        best = results["scan"]["best"][str(bar)]
        lines.append(f"| {TITLES[kind]} | {kl} | " + " | ".join(_kl(row) for row in ours) + " |")
        lines.append(f"| skipping {bar} layers | {skipped} | {best['kl']:.3f} | {best['kl']:.3f} |")
        ratios = [_ratio(row, bar) for row in ours]
        lines.append(f"| **ratio** (below 1: the claim holds) | **{kl / skipped:.2f}** | " + " | ".join(ratios) + " |")
        layers = [_layers(row) for row in ours]
        lines.append(f"| in layers skipped (the claim: below {bar}) | below {bar} | " + " | ".join(layers) + " |")
    return "\n".join(lines) + "\n"


def rows(results: dict, experiments: tuple[str, ...] = ("headline", "same")) -> list[dict]:
    """Return the rows of a table of some experiments, column → value, by span and then by KL.

    Args:
        results: as :func:`load` returns them.
        experiments: first parts of the runs' names. ``"same"`` includes the runs of other experiments that saw the same
            500,000 tokens with the same optimizer.
    """
    found = []
    for row in sorted(results["rows"], key=lambda row: (row["span"], row["docs"]["kl"])):
        experiment, name = row["name"].split("/")[:2]
        half = experiment in ("budget", "rate") and row["tokens"] == 500_000 and MUON.items() <= row["options"].items()
        if experiment in experiments or (half and "same" in experiments):
            name, end = name.removeprefix("kl-"), ", then logits" if name.startswith("kl-") else ""
            found.append({
                "operator": f"{NAMES.get(name, name)}{end} ({operator_title(row)})",
                "layers": "{}–{}".format(*row["span"]),
                "tokens": f"{row['tokens_seen'] / 1e6:.2g} M",
                "NFE": row["docs"]["nfe"],
                "KL, nats (95 %)": _kl(row),
                "in layers": _layers(row),
            })  # fmt: skip
    return found


def sink_rows(results: dict) -> list[dict]:
    """Return what each run of the sink experiment did about position 0, and its KL, column → value, the least first."""
    found = []
    for row in results["rows"]:
        experiment, *_, name = row["name"].split("/")
        if experiment == "sink":
            options, (low, high) = row["options"], row["docs"]["kl_interval"]
            apart = "counted" if options.get("first_weight") else "ignored"
            found.append({
                "weights": options.get("token_weight", "relative"),
                "position 0": apart if options.get("sink") == "ignore" else "stored",
                "starts from": name.partition("from ")[2] or f"layer {row['span'][0]}",
                "KL": row["docs"]["kl"],
                "95 %": f"{low:.3f} to {high:.3f}",
            })  # fmt: skip
    return sorted(found, key=lambda one: one["KL"])


def table(results: dict, experiments: tuple[str, ...] = ("headline", "same")) -> str:
    """Return :func:`rows` as a Markdown table."""
    found = rows(results, experiments)
    header, *body = ([*found[0]], *([str(value) for value in row.values()] for row in found))
    lines = [f"| {' | '.join(line)} |" for line in (header, *body)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]]) + "\n"


def _kl(row: dict | None) -> str:
    if row is None:
        return "–"
    low, high = row["docs"]["kl_interval"]
    return f"{row['docs']['kl']:.3f} ({low:.3f}–{high:.3f})"


def _ratio(row: dict | None, bar: int) -> str:
    if row is None:
        return "–"
    low, high = row[f"ratio_to_skip_{bar}_interval"]
    return f"**{row[f'ratio_to_skip_{bar}']:.2f}** ({low:.2f}–{high:.2f})"


def _layers(row: dict | None) -> str:
    if row is None:
        return "–"
    found = (row["skipped_layers"], *row["skipped_layers_interval"])
    j, low, high = ("> 15" if x is None else f"{x:.1f}" for x in found)
    return f"{j} ({low}–{high})"


def budget_table(results: dict, span: tuple[int, int]) -> dict:
    """The trainings on more and more tokens, as :func:`lft_edu.plots.budget` takes them: one row per operator and
    budget, the mean over its seeds."""
    found: dict[tuple[str, int], dict] = {}
    for row in results["rows"]:
        experiment, name = row["name"].split("/")[:2]
        swept = experiment == "rate" and MUON.items() <= row["options"].items()  # the sweep has this point already
        wanted = experiment in ("budget", "headline", "again") or swept
        if tuple(row["span"]) == tuple(span) and wanted and not name.startswith("kl-"):
            one = {"name": name, "tokens": row["tokens"], "span": row["span"], "operator": row["operator"]}
            found.setdefault((name, row["tokens"]), one | {"kl_seeds": []})["kl_seeds"].append(row["docs"]["kl"])
    rows = [row | {"kl": sum(row["kl_seeds"]) / len(row["kl_seeds"])} for row in found.values()]
    return {"rows": rows}


def render() -> None:
    """Write the tables into docs/results.md; README's come from :mod:`lft_edu.recipes.readme_report`."""
    results = load()
    into_page(RESULTS, "paper", paper_table(results))
    into_page(RESULTS, "real", table(results, ("headline", "same")))


def ship(work: Path, out: Path) -> None:
    """Copy the operators that ship to ``out``, with checksums, provenance and the attribution of their teacher."""
    out.mkdir(parents=True, exist_ok=True)
    for run, name in SHIPPED.items():
        source = work / "operators" / f"{file_of(run)}.safetensors"
        if source.exists():
            with atomic_write(out / f"{name}.safetensors") as partial:
                shutil.copyfile(source, partial)
    files = sorted(out.glob("*.safetensors"))
    from ..loading.gguf import PUBLISHED, provenance

    published = PUBLISHED[TEACHER]
    write_json(
        out / "PROVENANCE.json",
        {
            "recipe": "python -m lft_edu.recipes.real",
            "teacher": TEACHER,
            "teacher_sha256": provenance(TEACHER)["sha256"]["model.safetensors"],
            "attribution": f"Each operator was initialized from a layer of {published.model} by HuggingFaceTB, as in "
            f"the package {published.package} {published.version}, and changed by training. License of the model: "
            f"{published.license}.",
            "sha256": {path.name: sha256(path) for path in files},
            "operators": {path.stem: operator_notes(path) for path in files},
        },
    )
