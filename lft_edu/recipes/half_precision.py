"""What bfloat16 does to a KL divergence, token by token: the table of docs/pythia.md.

    python -m lft_edu.recipes.half_precision             # a minute on a CPU → assets/results/half_precision.json
    python -m lft_edu.recipes.half_precision --render    # only write the table

The bundled teacher and its Flow Walking student for layers 6–17, on held-out Python.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import Tensor

import lft_edu as lft

from ..loading import corpora
from ..loading.assets import ASSETS
from ..objectives import token_kl
from ..support.files import write_json
from .common import hardware, into_page, weights_of

PAGE = ASSETS.parent / "docs" / "pythia.md"
ROWS = {  # name in the results → title in the table
    "float32": "student and teacher in float32",
    "bfloat16": "student and teacher in bfloat16",
    "moved": "how far one token moves",
    "floor": "teacher in bfloat16 against itself in float32",
}


@torch.no_grad()
def logits_of(model, sequences: Tensor, dtype: torch.dtype) -> Tensor:
    """Run a copy of the model in a dtype; return logits ``(B, T, V)`` in float32."""
    return copy.deepcopy(model).to(dtype)(sequences).logits.float()


def measure(teacher, student, sequences: Tensor) -> dict:
    """Compare both precisions on sequences of token ids, ``(B, T)``.

    Returns:
        For each of ``ROWS`` the ``mean``, ``median``, 99 % quantile ``q99`` and ``largest`` over tokens, nats;
        ``softmax``, the mean and the least KL of a token whose softmax is taken in bfloat16.
    """
    full, half = (
        [logits_of(model, sequences, dtype) for model in (student, teacher)]
        for dtype in (torch.float32, torch.bfloat16)
    )
    before, after = token_kl(*full), token_kl(*half)
    found = {"float32": before, "bfloat16": after, "moved": (after - before).abs(), "floor": token_kl(half[1], full[1])}
    student_log, teacher_log = (one.bfloat16().log_softmax(-1) for one in full)
    rounded = (teacher_log.exp() * (teacher_log - student_log)).sum(-1).float()
    rows = {name: _summary(values.flatten()) for name, values in found.items()}
    return {"rows": rows, "softmax": {"mean": rounded.mean().item(), "least": rounded.min().item()}}


def _summary(values: Tensor) -> dict[str, float]:
    named = {"mean": values.mean(), "median": values.median(), "q99": values.quantile(0.99), "largest": values.max()}
    return {name: value.item() for name, value in named.items()}


def page_table(results: dict) -> str:
    """Format the comparison as a Markdown table."""
    lines = ["| | mean | median | 99 % | largest |", "|---|---|---|---|---|"]
    for name, title in ROWS.items():
        lines.append(f"| {title} | " + " | ".join(f"{value:.4f}" for value in results["rows"][name].values()) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096, help="held-out tokens")
    parser.add_argument("--render", action="store_true", help="only write the table in docs/pythia.md")
    parser.add_argument("--out", type=Path, default=ASSETS / "results" / "half_precision.json")
    a = parser.parse_args(arguments)
    if not a.render:
        teacher, tokenizer = lft.load_teacher("bundled", device="cpu")
        sequences = corpora.token_sequences("python-stdlib", tokenizer, "test", 128, max_tokens=a.tokens)
        student = lft.load_student("bundled/flow-walking-6-18", teacher)
        about = {"teacher_sha256": weights_of("bundled"), "sequences": list(sequences.shape), "hardware": hardware()}
        write_json(a.out, about | measure(teacher, student, sequences.long()))
    if a.out == ASSETS / "results" / "half_precision.json":
        into_page(PAGE, "half", page_table(json.loads(a.out.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
