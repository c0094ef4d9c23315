"""How many tokens are enough? The same operators, trained on ever more text.

    python -m lft_edu.recipes.tokens    # → assets/results/tokens.json; run it again to go on

Every run has its own schedule, from warm-up to decay, so each point is what that many tokens buy, and none is a glance
at a longer run. Needs torch, transformers, tokenizers, safetensors and accelerate only.
"""

import argparse
import json
from pathlib import Path

import torch
from tqdm.auto import tqdm

import lft_edu as lft
from lft_edu import corpora
from lft_edu.cli import count
from lft_edu.latents import LatentSource
from lft_edu.recipes.operators import ladder, weights_of
from lft_edu.recipes.teacher import hardware, write_json
from lft_edu.teachers import ASSETS

BLOCK = 128
BUDGETS = ("200k", "400k", "800k", "1.6M", "3.2M", "6.4M")
SPANS = {
    (6, 18): ("regression", "flow-matching", "flow-walking-euler", "flow-walking-midpoint", "flow-walking"),
    (6, 12): ("flow-matching", "flow-walking"),
}


def candidates() -> dict:
    """Name → (operator, options of :func:`lft_edu.fit`), from regression's one evaluation to the full walk's six."""
    found = {name: (operator, options) for name, (operator, options, start) in ladder(1).items() if not start}
    one_step = {**found["flow-walking"][1], "k": 1}
    return found | {"flow-walking-midpoint": (lft.Flow("midpoint", 1), one_step)}


def run(name: str, source: LatentSource, tokens: int, held, options: dict, checkpoint: Path) -> dict:
    """One operator, one budget: a row."""
    operator, training = candidates()[name]
    student = lft.splice(source.teacher, source.span, operator)
    steps = max(1, tokens // (options["batch_size"] * BLOCK))
    options = options | training | {"steps": steps}
    history = lft.fit(student, source.teacher, source, **options, checkpoint=checkpoint, resume=True)
    found = lft.evaluate(student, source.teacher, held).to_dict()
    checkpoint.unlink()
    about = {"name": name, "span": list(source.span), "operator": student.operator.to_dict(), "training": options}
    found["held_tokens"] = found.pop("tokens")
    return about | {"tokens": history.tokens, "seconds": round(history.seconds, 1), "loss": history.losses[-1], **found}


def collect(work: Path, about: dict) -> dict:
    """Everything in ``tokens.json``: what each run wrote, in order."""
    rows = [json.loads(path.read_text()) for path in work.glob("*-*-*.json")]
    return about | {"rows": sorted(rows, key=lambda r: (r["span"], r["name"], r["tokens"]))}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="bundled")
    parser.add_argument("--budget", type=count, nargs="+", default=[count(text) for text in BUDGETS])
    parser.add_argument("--only", nargs="+", choices=sorted({name for names in SPANS.values() for name in names}))
    parser.add_argument("--held", type=count, default=count("16384"), help="test tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/tokens"))
    parser.add_argument("--out", type=Path, default=ASSETS / "results")
    a = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    teacher, tokenizer = lft.load_teacher(a.teacher)
    blocks = corpora.token_blocks("python-packages", tokenizer, "train", BLOCK, max_tokens=max(a.budget))
    held = corpora.token_blocks("python-stdlib", tokenizer, "test", BLOCK, max_tokens=a.held)
    options = {"batch_size": 16, "lr": 0.03, "optimizer": "muon", "first_weight": 0.0, "seed": a.seed}
    about = {
        "teacher_sha256": weights_of(a.teacher),
        "corpus": {"name": "python-packages, train split by path hash", "tokens": blocks.numel()},
        "held": {"corpus": "python-stdlib, test split by path hash", "blocks": list(held.shape)},
        "hardware": hardware(),
    }
    a.work.mkdir(parents=True, exist_ok=True)
    for span, names in SPANS.items():
        todo = [(tokens, name) for tokens in sorted(a.budget) for name in names if name in (a.only or names)]
        todo = [(t, name) for t, name in todo if not (a.work / f"{span[0]}-{span[1]}-{name}-{t}.json").exists()]
        if not todo:
            continue
        source = LatentSource(teacher, span, blocks, 32, cache=True)
        for tokens, name in tqdm(todo, desc=f"{span[0]}–{span[1]}", unit="run"):
            path = a.work / f"{span[0]}-{span[1]}-{name}-{tokens}.json"
            write_json(path, run(name, source, tokens, held, options, path.with_suffix(".safetensors")))
            write_json(a.out / "tokens.json", collect(a.work, about))


if __name__ == "__main__":
    main()
