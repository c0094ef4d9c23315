"""Names of a transformer's parts: one small declaration per model family.

To add a family, declare where its parts are and add it to ``FAMILIES`` under its ``model_type``. The velocity
estimator, splicing and everything that uses them then work; ``tests/test_families.py`` tests what must hold.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """Paths of the parts in the model, and names of the parts in one layer."""

    layers: str  # path of the list of layers in the CausalLM
    final_norm: str
    attention: str  # this and the next five: names in a layer
    mlp: str
    attention_norm: str | None = "input_layernorm"  # of what attention reads; None: it reads the state itself
    mlp_norm: str | None = "post_attention_layernorm"
    attention_post_norm: str | None = None  # of what attention adds to the state; None: added as it is
    mlp_post_norm: str | None = None
    parallel_switch: str | None = None  # config field: attention and MLP read the same input; None: never
    update_scale: str | None = None  # config field: a factor of what attention and MLP add; None: 1
    positional: tuple[str, ...] = ()  # a layer's positional arguments after the hidden states
    cache_index: str | None = None  # path in a layer of the index into the cache; None: attention's layer_idx
    returns_tuple: bool = False  # the model takes the first of what a layer returns
    static_cache: bool = True  # its attention can read a cache of fixed length

    @property
    def parts(self) -> set[str]:
        """Names of the modules in a layer."""
        names = (self.attention_norm, self.attention, self.attention_post_norm, self.mlp_norm, self.mlp)
        return {name for name in (*names, self.mlp_post_norm) if name}


GPT_NEOX = Family(
    layers="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    attention="attention",
    mlp="mlp",
    parallel_switch="use_parallel_residual",
)
LLAMA = Family(layers="model.layers", final_norm="model.norm", attention="self_attn", mlp="mlp")
GPT2 = Family(
    layers="transformer.h",
    final_norm="transformer.ln_f",
    attention="attn",
    mlp="mlp",
    attention_norm="ln_1",
    mlp_norm="ln_2",
    positional=("past_key_values", "attention_mask", "encoder_hidden_states"),
)
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "smollm3", "gemma", "olmo", "phi3")
OLMO2 = replace(  # norms of what is added, none of what is read
    LLAMA,
    attention_norm=None,
    mlp_norm=None,
    attention_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
GEMMA3 = replace(OLMO2, attention_norm="input_layernorm", mlp_norm="pre_feedforward_layernorm")  # norms of both
FAMILIES = {  # by the config's model_type
    "gpt_neox": GPT_NEOX,
    **dict.fromkeys(LLAMA_LIKE, LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA3),
    "granite": replace(LLAMA, update_scale="residual_multiplier"),
    "olmo2": OLMO2,
    "stablelm": replace(LLAMA, parallel_switch="use_parallel_residual"),
    "gpt2": GPT2,
    "gpt_neo": replace(
        GPT2, positional=(), cache_index="attn.attention.layer_id", returns_tuple=True, static_cache=False
    ),
}


def family_of(config: PretrainedConfig) -> Family:
    """Return the family of a model's config.

    Raises:
        ValueError: the family is not declared here.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"Teachers of type {config.model_type!r} are not supported yet; choose one of {', '.join(FAMILIES)} "
            f"(Pythia is gpt_neox), or declare the family in lft_edu/families.py.{_unlike(config)}"
        )
    return FAMILIES[config.model_type]


def _unlike(config: PretrainedConfig) -> str:
    """Say how the layers of such a model differ from the most similar ones that are declared; empty if not known."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(with_layers(config, [0]))
    except Exception:  # of any library: it is only a hint
        return ""
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == 1]
    if not lists:
        return ""
    found = {name for name, _ in lists[0][0].named_children()}
    name, parts = min(((name, f.parts) for name, f in FAMILIES.items()), key=lambda pair: len(pair[1] ^ found))
    if parts == found:
        return f" Its layers have the parts of those of {name}; what it does with them may differ."
    lacks, more = (", ".join(sorted(names)) or "nothing" for names in (parts - found, found - parts))
    return f" Its layers are most like those of {name}: they lack {lacks}, and have {more} besides."


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers of a causal language model."""
    return model.get_submodule(family_of(model.config).layers)  # type: ignore[return-value]  # typed Module


# config fields with one entry per layer, in some families, and the entry of a layer that none is known of
PER_LAYER = {"layer_types": "full_attention", "attention_layers": "global", "no_rope_layers": 1}


def attention_types(config: PretrainedConfig) -> list[str]:
    """Return each layer's kind of attention, such as ``"full_attention"``; empty in families that have but one."""
    return getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or []


def widest_layer(config: PretrainedConfig, m: int, n: int) -> int:
    """Return the first of the layers [m, n) whose attention reaches every earlier token; m if none is known to."""
    types = attention_types(config)
    return next((i for i in range(m, n) if types and types[i] in ("full_attention", "global")), m)


def keep_layers(config: PretrainedConfig, picks: list[int]) -> PretrainedConfig:
    """Change a config, in place, to that of a model with only these layers, in this order; return it.

    A layer picked from a config of none has the entries of ``PER_LAYER``: an operator without attention stands there.
    """
    for name, default in PER_LAYER.items():
        entries = getattr(config, name, None)
        if entries is not None:
            setattr(config, name, [entries[min(i, len(entries) - 1)] if entries else default for i in picks])
    if hasattr(config, "attention_layers"):  # GPT-Neo writes only the short form, from which it makes the list
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]
    if hasattr(config, "mlp_only_layers"):  # a mixture of experts: which layers have none
        every = config.decoder_sparse_step
        dense = [i in config.mlp_only_layers or (i + 1) % every != 0 for i in picks]
        config.mlp_only_layers, config.decoder_sparse_step = [j for j, one in enumerate(dense) if one], 1
    config.num_hidden_layers = len(picks)
    return config


def with_layers(config: PretrainedConfig, picks: list[int]) -> PretrainedConfig:
    """Return a copy of a config, changed by :func:`keep_layers`."""
    return keep_layers(copy.deepcopy(config), picks)


def cache_name() -> str:
    """Return the name of the key-value cache: ``cache`` since transformers 5.24, ``past_key_values`` before."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def by_name(family: Family, args: tuple, kwargs: dict) -> dict:
    """Return a layer's arguments besides the hidden states, all by name."""
    names = [cache_name() if name == "past_key_values" else name for name in family.positional]
    return {**dict(zip(names, args[1:], strict=False)), **kwargs}


def layer_output(output) -> Tensor:
    """Return the hidden states from a layer's output, which is a tensor or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


def renumber(layer: nn.Module, family: Family, slot: int) -> None:
    """Set which entry of the key-value cache a layer uses."""
    path, _, name = (family.cache_index or f"{family.attention}.layer_idx").rpartition(".")
    setattr(layer.get_submodule(path), name, slot)
