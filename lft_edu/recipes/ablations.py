"""Ablations: which settings help an operator? The same short run, with one setting changed at a time.

python -m lft_edu.recipes.ablations     # → assets/results/levers.json and levers.md
"""

import argparse
from pathlib import Path

import torch

import lft_edu as lft

from ..fitting import LatentSource
from ..loading import corpora
from ..loading.assets import ASSETS
from ..support.arguments import count
from ..support.files import write_json
from .common import hardware

SPAN = (6, 18)
BASE = {"objective": "regression", "optimizer": "muon", "lr": 0.03, "first_weight": 0.0}
ABLATIONS = {
    "base: regression by one Euler step, Muon 0.03, position 0 left out": {},
    "position 0 in the loss": {"first_weight": 1.0},
    "position 0 at a twentieth": {"first_weight": 0.05},
    "every dimension weighted by 1 / variance": {"scale_dimensions": True},
    "AdamW 2e-3": {"optimizer": "adamw", "lr": 2e-3},
    "AdamW 8e-3": {"optimizer": "adamw", "lr": 8e-3},
    "Muon 0.01": {"lr": 0.01},
    "twice the steps": {"steps": 2},
    "four times the steps": {"steps": 4},
    "a quarter of the corpus": {"corpus": 0.25},
}


def measure(steps: int, tokens: int) -> list[dict]:
    """Train and evaluate each ablation.

    Args:
        steps: optimizer steps of the base run.
        tokens: training tokens of the base run.

    Returns:
        One row per ablation: settings, KL with interval, NMSE with and without position 0.
    """
    teacher, tokenizer = lft.load_teacher("bundled")
    sequences = corpora.token_sequences("python-packages", tokenizer, "train", 128, max_tokens=tokens)
    held_out = corpora.token_sequences("python-stdlib", tokenizer, "test", 128, max_tokens=64 * 128)
    sources = {share: LatentSource(teacher, SPAN, sequences[:: int(1 / share)], 16, cache=True) for share in (1, 0.25)}
    rows = []
    for name, change in ABLATIONS.items():
        options = BASE | change
        share, factor = options.pop("corpus", 1), options.pop("steps", 1)
        student = lft.splice(teacher, SPAN, lft.Flow("euler", 1))
        lft.fit(student, teacher, sources[share], max_steps=factor * steps, **options)
        found = lft.evaluate(student, teacher, held_out)
        measured = {key: getattr(found, key) for key in ("kl", "kl_interval", "nmse", "nmse_all")}
        about = {"lever": name, "steps": factor * steps, "corpus_tokens": sources[share].blocks.numel()}
        rows.append(about | options | measured)
    return rows


def render(rows: list[dict]) -> str:
    """Format the rows as a Markdown table."""
    lines = ["ablation | steps | KL (95 %) | NMSE | NMSE with position 0", "---|---|---|---|---"]
    for r in rows:
        low, high = r["kl_interval"]
        kl = f"{r['kl']:.3f} ({low:.3f}–{high:.3f})"
        lines.append(f"{r['lever']} | {r['steps']} | {kl} | {r['nmse']:.3f} | {r['nmse_all']:.3f}")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of the base run")
    parser.add_argument("--tokens", type=count, default=count("1M"), help="training tokens")
    parser.add_argument("--out", type=Path, default=ASSETS / "results")
    a = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    rows = measure(a.steps, a.tokens)
    write_json(a.out / "levers.json", {"span": SPAN, "hardware": hardware(), "rows": rows})
    (a.out / "levers.md").write_text(render(rows), encoding="utf-8")
    print(render(rows))


if __name__ == "__main__":
    main()
