"""Train the bundled teacher: a small, deep GPT-NeoX language model of Python.

    python -m lft_edu.recipes.teacher                         # the whole recipe; if interrupted, run it again
    torchrun --nproc-per-node 2 -m lft_edu.recipes.teacher    # two processes (on a CPU: one thread each)

Needs torch, transformers, tokenizers, safetensors and accelerate only. It has twenty-four layers, so that layer
numbers mean what they mean in the paper; everything else is as small as possible for a model that writes Python.
"""

import argparse
import json
import os
import platform
import shutil
import sys
from pathlib import Path

import torch
from torch import nn

from ..loading import corpora
from ..loading.assets import ASSETS, sha256
from ..loading.teachers import build_model
from ..support.files import atomic_write
from ..support.machine import default_device
from ..training import processes, sampling
from ..training.callbacks import Evaluation
from ..training.loop import optimize
from ..training.optimizers import muon_and_adamw
from ..training.settings import Training
from .common import hardware

END = "<|endoftext|>"


def build_tokenizer(vocabulary: int, files: int = 900):
    """Train a byte-level BPE tokenizer on the first ``files`` training files."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    paths = corpora.python_files("python-packages", "train")[:files]
    bpe.train_from_iterator(corpora.read_texts(paths), vocab_size=vocabulary, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END, pad_token=END, padding_side="left"
    )


class NextToken(nn.Module):
    """Cross-entropy of the next token, nats per token, as a loss for the training loop."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model, sequences, batch_size: int = 16) -> float:
    """Return the cross-entropy in nats per token on sequences ``(N, T)``."""
    loss, device = NextToken(model), next(model.parameters()).device
    parts = [loss(chunk.to(device)) * len(chunk) for chunk in sequences.split(batch_size)]
    return (torch.stack(parts).sum() / len(sequences)).item()


def prepare(work: Path, vocabulary: int, block: int):
    """Return tokenizer, training and validation sequences; made once and kept in ``work``."""
    from safetensors.torch import load_file, save_file
    from transformers import PreTrainedTokenizerFast

    tokens = work / f"tokens-{vocabulary}-{block}.safetensors"
    if not tokens.exists():
        tokenizer = build_tokenizer(vocabulary)
        tokenizer.save_pretrained(work / f"tokenizer-{vocabulary}")
        train = corpora.token_sequences("python-packages", tokenizer, "train", block)
        with atomic_write(tokens) as partial:
            save_file({"train": train.to(torch.int16)}, partial)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / f"tokenizer-{vocabulary}")
    held_out = corpora.token_sequences("python-packages", tokenizer, "validation", block, max_tokens=256 * block)
    return tokenizer, load_file(tokens)["train"], held_out


def export(model, tokenizer, out: Path, provenance: dict) -> None:
    """Write the teacher in fp16 with its provenance into ``out``; an interrupted export leaves the old one."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.float16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    provenance["sha256"] = {p.name: sha256(p) for p in sorted(partial.iterdir())}
    (partial / "PROVENANCE.json").write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
    former = out.with_name(out.name + ".former")
    if out.exists():
        os.replace(out, former)  # a folder can't be replaced atomically; after two renames one of them is whole
    os.replace(partial, out)
    shutil.rmtree(former, ignore_errors=True)


def main(arguments: list[str] | None = None) -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=128 if gpu else 64, help="model width, a multiple of 32")
    parser.add_argument("--vocabulary", type=int, default=4096 if gpu else 2048, help="at most 32767")
    parser.add_argument("--steps", type=int, default=20_000 if gpu else 4_800)
    parser.add_argument("--tokens-per-step", type=int, default=32_768 if gpu else 4_096)
    parser.add_argument("--block", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", help="a remark to keep in the provenance")
    parser.add_argument("--work", type=Path, default=Path("runs/teacher"), help="checkpoints and tokens")
    parser.add_argument("--out", type=Path, default=ASSETS / "teacher")
    a = parser.parse_args(arguments)

    if not gpu:
        torch.set_num_threads(1)
    accelerator = processes.make_accelerator(default_device(), "bf16" if gpu else "no")
    a.work.mkdir(parents=True, exist_ok=True)
    with accelerator.main_process_first():
        tokenizer, sequences, held_out = prepare(a.work, a.vocabulary, a.block)
    model = build_model(a.width, a.vocabulary, seed=a.seed)
    batch = a.tokens_per_step // a.block // accelerator.num_processes
    rows = sampling.ShuffledRows(len(sequences), a.seed)

    def evaluate(step: int) -> dict:
        model.save_pretrained(a.work / f"step-{step:06d}")  # notebook 06: skipping layers costs more with training
        return {"held_out_loss": held_out_loss(model, held_out[::4]), "tokens": step * a.tokens_per_step}

    settings = {k: getattr(a, k) for k in ("width", "vocabulary", "tokens_per_step", "block", "seed")}
    module = NextToken(model).to(accelerator.device)
    history = optimize(
        module,
        muon_and_adamw(model.gpt_neox.layers, model, muon_lr=0.02, adamw_lr=4e-3),
        lambda numbers: (sequences[rows(numbers)].long().to(accelerator.device),),
        Training(max_steps=a.steps, batch_size=batch, seed=a.seed, evaluate_every=400),
        accelerator=accelerator,
        tokens_per_step=a.tokens_per_step,
        checkpoint=a.work / "checkpoint.safetensors",
        resume=True,
        settings=settings,
        callbacks=[Evaluation(evaluate)],
        description="teacher",
    )
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    model.to(torch.float16).float()  # measured as it ships
    provenance = {
        "recipe": "python -m lft_edu.recipes.teacher",
        "corpus": "Python source: the standard library and installed packages, train split by path hash",
        "packages": [
            p for p in corpora.PACKAGES if p in {q.split("/")[0] for q, _ in corpora._roots("python-packages")}
        ],
        "corpus_tokens": sequences.numel(),
        "tokens_seen": history.tokens,
        "steps": a.steps,
        "settings": settings,
        "optimizer": "Muon 0.02 (matrices), AdamW 4e-3 (rest); warm-up 60 steps, flat, linear over the last 40 %",
        "note": a.note,
        "hardware": hardware(),
        "hours": round(history.seconds / 3600, 3),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out_loss_nats": held_out_loss(model, held_out),
        "held_out_tokens": held_out.numel(),
        "log": {"steps": history.steps[::10], "losses": history.losses[::10], "evaluations": history.evaluations},
    }
    export(model, tokenizer, a.out, provenance)
    print(f"wrote {a.out}: held-out loss {provenance['held_out_loss_nats']:.3f} nats/token", file=sys.stderr)


if __name__ == "__main__":
    main()
