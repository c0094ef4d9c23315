"""Results cards: what a student is and what was measured of it, as JSON, Markdown, and a model card for the hub."""

import importlib.metadata
import json
import platform
import tempfile
from pathlib import Path

import torch

from ..support.statistics import evenly_spaced
from ..families import layers_of
from ..support.files import atomic_write
from ..metrics import Evaluation
from ..support.machine import evaluation_batch
from .costs import latencies

PACKAGES = ("lft_edu", "torch", "transformers", "datasets", "accelerate")


def make_card(
    student, teacher, found: Evaluation, corpus: str, split: str = "test", training: dict | None = None,
    skips: dict | None = None, latency: bool = True,
) -> dict:  # fmt: skip
    """Everything worth knowing of one student, as JSON values.

    Args:
        found: what :func:`lft_edu.evaluate` measured on ``split`` of ``corpus``.
        training: how it was trained, if known.
        skips: number of layers → ``{"span", "kl", "kl_interval"}`` of the best skip of so many, to compare with
            (:func:`best_skips`).
        latency: time teacher and student in turn (some seconds).
    """
    (m, n), depth = student.config.span, student.config.depth
    card = {
        "teacher": {
            **getattr(teacher, "lft_origin", {"name": "unknown", "revision": None}),
            "layers": depth, "parameters": sum(p.numel() for p in teacher.parameters()),
        },
        "span": [m, n],
        "operator": student.operator.to_dict(),
        "layers_evaluated": {"teacher": depth, "student": depth - (n - m) + found.nfe},
        "training": training,
        "held_out": {"corpus": corpus, "split": split, "block": found.tokens // len(found.sequence_kl)},
        "results": {**found.to_dict(), "kl_interval": list(found.kl_interval)},
        "skips": {str(j): skip for j, skip in skips.items()} if skips else None,
        "latency_ms_per_token": None,
        "device": torch.cuda.get_device_name(teacher.device) if teacher.device.type == "cuda" else "CPU",
        "dtype": str(teacher.dtype).removeprefix("torch."),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }  # fmt: skip
    if latency:
        card["latency_ms_per_token"] = latencies({"teacher": teacher, "student": student}, rounds=3)
    return card


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def rows_of(card: dict) -> list[tuple[str, str]]:
    """The card as names and values, for people."""
    results, teacher, held, (m, n) = card["results"], card["teacher"], card["held_out"], card["span"]
    low, high = results["kl_interval"]
    at = f" at {teacher['revision'][:12]}" if teacher["revision"] else ""
    rows = [
        ("Teacher", f"{teacher['name']}{at}, {teacher['layers']} layers, {teacher['parameters']:,} parameters"),
        ("Replaced", f"layers {m}–{n} (half open) by {operator_title(card)}"),
        ("Parameters", f"{results['parameters']:,}, {results['operator_parameters']:,} of them the operator"),
        ("Layer evaluations a token", "{student} (teacher: {teacher})".format(**card["layers_evaluated"])),
        ("Held-out text", f"{results['tokens']:,} tokens of {held['corpus']}, {held['split']}"),
        ("Tokens a sequence", f"{held['block']:,}"),
        ("KL(teacher ‖ student)", f"{results['kl']:.4f} nats a token (95 %: {low:.4f} to {high:.4f})"),
        ("Perplexity", f"{results['perplexity']:.2f} (teacher: {results['teacher_perplexity']:.2f})"),
        ("NMSE of the states", f"{results['nmse']:.4f}"),
    ]
    for j, skip in (card["skips"] or {}).items():
        rows.append((f"Skipping the best {j}", f"{skip['kl']:.4f} (layers {skip['span'][0]}–{skip['span'][1]})"))
    if card["training"]:
        t = card["training"]
        rows.append(("Trained on", f"{t['tokens']:,} tokens of {t['corpus']} by {t['objective']}, {t['seconds']:,} s"))
    if card["latency_ms_per_token"]:
        for what in ("prefill", "decode"):
            ms = {who: times[what] for who, times in card["latency_ms_per_token"].items()}
            rows.append((f"Milliseconds a token, {what}", f"{ms['student']:.3f} (teacher: {ms['teacher']:.3f})"))
    rows.append(("Measured on", f"{card['device']}, {card['dtype']}"))
    rows.append(("Versions", ", ".join(f"{name} {v}" for name, v in card["versions"].items() if v)))
    return rows


def markdown(card: dict) -> str:
    """The card as a Markdown table."""
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in map(_escaped, rows_of(card)))]
    return "\n".join(lines) + "\n"


def _escaped(row: tuple[str, str]) -> tuple[str, ...]:
    """Names of models and corpora are text from outside: no cell of a table may end early, no tag may begin."""
    return tuple(cell.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for cell in row)


def table(cards: list[dict]) -> str:
    """Several cards as one Markdown table, a row each."""
    lines = ["| operator | layers | tokens | evaluations | parameters | KL (95 %) | perplexity |", "|" + "---|" * 7]
    for card in cards:
        results, (m, n) = card["results"], card["span"]
        low, high = results["kl_interval"]
        tokens = f"{card['training']['tokens']:,}" if card["training"] else ""
        lines.append(
            f"| {operator_title(card)} | {m}–{n} | {tokens} | {results['nfe']} | {results['parameters']:,} | "
            f"{results['kl']:.3f} ({low:.3f}–{high:.3f}) | {results['perplexity']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def save_card(card: dict, folder: str | Path) -> None:
    """Write ``card.json`` and ``card.md``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("card.json", json.dumps(card, indent=1)), ("card.md", markdown(card))):
        with atomic_write(folder / name) as partial:
            partial.write_text(text)


def load_card(path: str | Path) -> dict:
    """A card that :func:`save_card` wrote: its file, or the folder."""
    path = Path(path)
    return json.loads((path / "card.json" if path.is_dir() else path).read_text())


def model_card(card: dict, name: str) -> str:
    """README.md of a student on the hub: what it is, how to load it, what was measured."""
    import yaml

    teacher = card["teacher"]
    header = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    header["tags"] = ["latent-flow-transformer", "lft_edu", "arxiv:2505.14513"]
    if "/" in teacher["name"] and teacher["revision"]:
        header |= {"base_model": teacher["name"], "base_model_relation": "finetune"}
    (m, n), results = card["span"], card["results"]
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---

# {name}

A [Latent Flow Transformer](https://arxiv.org/abs/2505.14513): layers {m} … {n - 1} of {teacher["name"]} are gone, and
one learned transport operator, {operator_title(card)}, stands in for them. Its KL to the teacher is
{results["kl"]:.3f} nats a token on held-out text. Made with lft_edu.

```python
import lft_edu as lft
from transformers import AutoTokenizer

student = lft.load_student("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
ids = tokenizer("The", return_tensors="pt").to(student.device)
print(tokenizer.decode(student.generate(**ids, max_new_tokens=20)[0]))
```

{markdown(card)}
It is no better than its teacher at anything; it is smaller. Where its teacher errs, expect it to err too.
"""


def publish(student, tokenizer, name: str, card: dict, private: bool | None = None, token: str | None = None) -> str:
    """Upload a student with its tokenizer, results card and model card; returns its address.

    Args:
        name: ``"owner/name"`` on the hub; made if it is not there.
        token: of an account that may write; that of ``hf auth login``, if None.
    """
    from huggingface_hub import HfApi, get_token

    from ..loading.hub import explained

    if not (token or get_token()):
        raise PermissionError(f"To upload {name!r}, log in first: `hf auth login`, with a token that may write.")
    with tempfile.TemporaryDirectory() as folder, explained(name, instead="keep it: save_pretrained"):
        student.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_card(card, folder)
        (Path(folder) / "card.md").unlink()  # the same table is in the model card
        (Path(folder) / "README.md").write_text(model_card(card, name))
        api = HfApi(token=token)
        api.create_repo(name, exist_ok=True, private=private)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="A Latent Flow Transformer")
        return f"{api.endpoint}/{name}"
