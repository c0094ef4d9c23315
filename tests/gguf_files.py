"""Small GGUF files with random weights, written as the format's own library writes them."""

import json
from pathlib import Path

import torch
from gguf import GGUFWriter

from lft_edu.loading.assets import ASSETS

TEMPLATE = "{% for m in messages %}<|endoftext|>{{ m['role'] }}: {{ m['content'] }}{% endfor %}"


def write_gguf(path: Path, architecture: str = "llama", layers: int = 4, width: int = 32, seed: int = 0) -> Path:
    """Write a Llama of random weights with the bundled teacher's vocabulary; another architecture only by name."""
    vocabulary = json.loads((ASSETS / "teacher" / "tokenizer.json").read_text())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in vocabulary["merges"]]
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    for name in ("bos", "eos", "unk", "pad"):
        getattr(writer, f"add_{name}_token_id")(0)
    writer.add_chat_template(TEMPLATE)
    draw = torch.Generator().manual_seed(seed)
    half, inner = width // 2, 2 * width
    shapes = {"token_embd": (len(tokens), width), "output_norm": (width,)}
    for i in range(layers):
        layer = {
            "attn_norm": (width,), "attn_q": (width, width), "attn_k": (half, width), "attn_v": (half, width),
            "attn_output": (width, width), "ffn_norm": (width,), "ffn_gate": (inner, width), "ffn_up": (inner, width),
            "ffn_down": (width, inner),
        }  # fmt: skip
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    for name, shape in shapes.items():
        values = torch.ones(shape) if len(shape) == 1 else 0.1 * torch.randn(shape, generator=draw)
        writer.add_tensor(f"{name}.weight", values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
