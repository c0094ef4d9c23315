"""Train every operator that ships with the course, for both of the paper's spans.

    python -m lft_edu.recipes.operators                  # all of them, one after another; if interrupted, run it again
    python -m lft_edu.recipes.operators --span 6:18      # one span: two processes can share the work
    python -m lft_edu.recipes.operators --collect        # only write checksums and provenance

Needs torch, transformers, tokenizers, safetensors and accelerate only. All operators of a span see the same tokens and
the same number of steps; only the objective differs.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
from safetensors.torch import load_file

import lft_edu as lft

from ..fitting import LatentSource
from ..loading import corpora
from ..loading.assets import ASSETS, operator_notes, sha256
from ..support.arguments import count, span
from ..support.files import atomic_write, write_json
from .common import SPANS, experiments, fit, hardware, weights_of


def save_operator(student, path: Path, notes: dict) -> None:
    """Write the operator alone as one safetensors file, atomically."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in student.operator.state_dict().items()}
    notes = {"span": student.config.span, "operator": student.operator.to_dict(), **notes}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        save_file(tensors, partial, metadata={"lft_edu": json.dumps(notes)})


def is_done(path: Path, teacher_sha256: str | None) -> bool:
    """Return whether this operator has been trained already, for a teacher with these weights."""
    return path.exists() and operator_notes(path)["teacher_sha256"] == teacher_sha256


def train(name: str, student, teacher, source, options: dict, work: Path) -> dict:
    """Fit one operator, with its own checkpoint; return its provenance."""
    history = fit(student, teacher, source, options, work / f"{name}.safetensors")
    every = max(1, len(history.steps) // 100)
    return {
        "training": options,
        "tokens_seen": history.tokens,
        "seconds": round(history.seconds, 1),
        "losses": list(zip(history.steps, history.losses, strict=True))[::every],
    }


def collect(out: Path) -> None:
    """Write ``PROVENANCE.json`` from the metadata of the operators in ``out``.

    Raises:
        ValueError: they belong to different teachers.
    """
    files = sorted(out.glob("*.safetensors"))
    operators = {path.stem: operator_notes(path) for path in files}
    teachers = {notes["teacher_sha256"] for notes in operators.values()}
    if len(teachers) > 1:
        raise ValueError(f"The operators in {out} belong to {len(teachers)} different teachers. Train them again.")
    provenance = {
        "recipe": "python -m lft_edu.recipes.operators",
        "corpus": "python-packages, train split by path hash",
        "teacher_sha256": teachers.pop() if teachers else None,
        "sha256": {path.name: sha256(path) for path in files},
        "operators": operators,
    }
    write_json(out / "PROVENANCE.json", provenance)


def main(arguments: list[str] | None = None) -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="bundled")
    parser.add_argument("--span", type=span, action="append", help="m:n; may be repeated (default: 6:12 and 6:18)")
    parser.add_argument("--only", nargs="+", help="only these operators, by name")
    parser.add_argument("--tokens", type=count, default=count("20M" if gpu else "2M"), help="training tokens")
    parser.add_argument("--steps", type=int, default=20_000 if gpu else 3_000)
    parser.add_argument(
        "--batch-size", "--batch", type=int, default=64 if gpu else 16, help="sequences of 128 tokens per step"
    )
    parser.add_argument("--lr", type=float, default=0.03, help="Muon's learning rate")
    parser.add_argument("--work", type=Path, default=Path("runs/operators"))
    parser.add_argument("--out", type=Path, default=ASSETS / "operators")
    parser.add_argument("--collect", action="store_true", help="only write PROVENANCE.json")
    a = parser.parse_args(arguments)
    if not gpu:
        torch.set_num_threads(1)
    common = {
        "batch_size": a.batch_size,
        "lr": a.lr,
        "max_steps": a.steps,
        "optimizer": "muon",
        "first_weight": 0.0,
        "seed": 0,
    }
    if not a.collect:
        teacher, tokenizer = lft.load_teacher(a.teacher)
        sequences = corpora.token_sequences("python-packages", tokenizer, "train", 128, max_tokens=a.tokens)
        about = {
            "teacher_sha256": weights_of(a.teacher),
            "corpus_tokens": sequences.numel(),
            "hardware": hardware(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
        for m, n in a.span or SPANS:
            source = LatentSource(teacher, (m, n), sequences, a.batch_size, cache=True)
            for name, (operator, options, start) in experiments(a.steps).items():
                path = a.out / f"{name}-{m}-{n}.safetensors"
                if is_done(path, about["teacher_sha256"]) or (a.only and name not in a.only):
                    continue
                student = lft.splice(teacher, (m, n), operator)
                if start:
                    student.operator.load_state_dict(load_file(a.out / f"{start}-{m}-{n}.safetensors"))
                notes = train(f"{name}-{m}-{n}", student, teacher, source, common | options, a.work)
                save_operator(student, path, notes | about | {"starts_from": start})
    collect(a.out)


if __name__ == "__main__":
    main()
