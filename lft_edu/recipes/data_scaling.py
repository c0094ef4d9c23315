"""Data scaling: how many tokens are enough? The same operators, trained on more and more text.

    python -m lft_edu.recipes.data_scaling    # → assets/results/tokens.json; if interrupted, run it again: it resumes

Every run has its own learning-rate schedule, from warm-up to decay, so each point is a full training with that many
tokens and not an intermediate checkpoint of a longer one. Each is repeated with other seeds: another order of the text,
other random times, another initialization of the time embedding.

Needs torch, transformers, tokenizers, safetensors and accelerate only.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path

import torch

import lft_edu as lft

from ..fitting import LatentSource
from ..loading import corpora
from ..loading.assets import ASSETS
from ..support.arguments import count
from ..support.files import write_json
from ..support.progress import progress_bar
from .common import experiments, fit, hardware, weights_of

SEQUENCE_LENGTH = 128
BUDGETS = ("200k", "400k", "800k", "1.6M", "3.2M", "6.4M")
SPANS = {
    (6, 18): ("regression", "flow-matching", "flow-walking-euler", "flow-walking-midpoint", "flow-walking"),
    (6, 12): ("flow-matching", "flow-walking"),
}


def candidates() -> dict:
    """Return name → (operator, options of :func:`lft_edu.fit`), from one velocity evaluation (regression) to six."""
    found = {name: (operator, options) for name, (operator, options, start) in experiments(1).items() if not start}
    return found | {"flow-walking-midpoint": (lft.Flow("midpoint", 1), found["flow-walking"][1])}


def run(name: str, source: LatentSource, tokens: int, held_out, options: dict, checkpoint: Path) -> dict:
    """Train and evaluate one operator with one budget and one seed.

    Args:
        name: of :func:`candidates`.
        source: where the teacher's states come from.
        tokens: training tokens.
        held_out: test sequences, ``(N, T)``.
        options: of :func:`lft_edu.fit`, with ``seed``.
        checkpoint: a file to resume from; deleted at the end.

    Returns:
        A row of results.
    """
    operator, training = candidates()[name]
    start = torch.Generator().manual_seed(options["seed"])
    student = lft.splice(source.teacher, source.span, operator, start)
    steps = max(1, tokens // (options["batch_size"] * SEQUENCE_LENGTH))
    options = options | training | {"max_steps": steps}
    history = fit(student, source.teacher, source, options, checkpoint)
    found = lft.evaluate(student, source.teacher, held_out).to_dict()
    checkpoint.unlink()
    about = {"name": name, "span": list(source.span), "operator": student.operator.to_dict(), "training": options}
    found["held_tokens"] = found.pop("tokens")
    return about | {"tokens": history.tokens, "seconds": round(history.seconds, 1), "loss": history.losses[-1], **found}


def row_file(work: Path, span: tuple[int, int], tokens: int, seed: int, name: str) -> Path:
    """Return the file of a finished run, kept until all are collected."""
    return work / f"{span[0]}-{span[1]}-{name}-{tokens}-{seed}.json"


def collect(work: Path, about: dict) -> dict:
    """Return the contents of ``tokens.json``: a row per operator and budget, over all seeds that have run."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in work.glob("*-*-*-*.json")]
    point = lambda row: (row["span"], row["name"], row["tokens"])  # noqa: E731
    rows.sort(key=lambda row: (*point(row), row["training"]["seed"]))
    return about | {"rows": [over_seeds(list(same)) for _, same in itertools.groupby(rows, point)]}


def over_seeds(rows: list[dict]) -> dict:
    """Merge runs that differ only in their seed: ``kl`` is their mean, ``kl_seeds`` lists them."""
    row = {key: rows[0][key] for key in ("name", "span", "operator", "tokens", "nfe", "parameters", "held_tokens")}
    row["training"] = {key: value for key, value in rows[0]["training"].items() if key != "seed"}
    row["seeds"] = [each["training"]["seed"] for each in rows]
    row["kl_seeds"] = [each["kl"] for each in rows]
    for key in ("kl", "nmse", "perplexity", "loss", "seconds"):
        row[key] = statistics.fmean(each[key] for each in rows)
    return row


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="bundled")
    parser.add_argument("--budget", type=count, nargs="+", default=[count(text) for text in BUDGETS])
    parser.add_argument("--only", nargs="+", choices=sorted({name for names in SPANS.values() for name in names}))
    parser.add_argument("--eval-tokens", "--held", type=count, default=count("16384"), help="held-out tokens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/tokens"))
    parser.add_argument("--out", type=Path, default=ASSETS / "results")
    a = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    teacher, tokenizer = lft.load_teacher(a.teacher)
    sequences = corpora.token_sequences(
        "python-packages", tokenizer, "train", SEQUENCE_LENGTH, max_tokens=max(a.budget)
    )
    held_out = corpora.token_sequences("python-stdlib", tokenizer, "test", SEQUENCE_LENGTH, max_tokens=a.eval_tokens)
    options = {"batch_size": 16, "lr": 0.03, "optimizer": "muon", "first_weight": 0.0}
    about = {
        "teacher_sha256": weights_of(a.teacher),
        "corpus": {"name": "python-packages, train split by path hash", "tokens": sequences.numel()},
        "held": {"corpus": "python-stdlib, test split by path hash", "blocks": list(held_out.shape)},
        "hardware": hardware(),
    }
    a.work.mkdir(parents=True, exist_ok=True)
    for span, names in SPANS.items():
        wanted = itertools.product(sorted(a.budget), a.seeds, [name for name in names if name in (a.only or names)])
        runs = [(row_file(a.work, span, *each), *each) for each in wanted]
        todo = [each for each in runs if not each[0].exists()]
        if not todo:
            continue
        source = LatentSource(teacher, span, sequences, 32, cache=True)
        for path, tokens, seed, name in progress_bar(todo, desc=f"{span[0]}–{span[1]}", unit="run"):
            mine = options | {"seed": seed}
            write_json(path, run(name, source, tokens, held_out, mine, path.with_suffix(".safetensors")))
            write_json(a.out / "tokens.json", collect(a.work, about))


if __name__ == "__main__":
    main()
