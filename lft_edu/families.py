"""Names of a transformer's parts: one small declaration per model family.

To add a family, declare where its parts are and add it to ``FAMILIES`` under its ``model_type``. The velocity
estimator, splicing and everything that uses them then work; ``tests/test_families.py`` tests what must hold.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """Paths of the parts in the model, and names of the parts in one layer."""

    layers: str  # path of the list of layers in the CausalLM
    final_norm: str
    attention_norm: str  # this and the next three: names in a layer
    attention: str
    mlp_norm: str
    mlp: str
    parallel_switch: str | None = None  # config field: attention and MLP read the same input; None: never
    positional: tuple[str, ...] = ()  # a layer's positional arguments after the hidden states


GPT_NEOX = Family(
    layers="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    attention_norm="input_layernorm",
    attention="attention",
    mlp_norm="post_attention_layernorm",
    mlp="mlp",
    parallel_switch="use_parallel_residual",
)
LLAMA = Family(
    layers="model.layers",
    final_norm="model.norm",
    attention_norm="input_layernorm",
    attention="self_attn",
    mlp_norm="post_attention_layernorm",
    mlp="mlp",
)
GPT2 = Family(
    layers="transformer.h",
    final_norm="transformer.ln_f",
    attention_norm="ln_1",
    attention="attn",
    mlp_norm="ln_2",
    mlp="mlp",
    positional=("past_key_values", "attention_mask", "encoder_hidden_states"),
)
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
FAMILIES = {"gpt_neox": GPT_NEOX, **dict.fromkeys(LLAMA_LIKE, LLAMA), "gpt2": GPT2}  # by the config's model_type


def family_of(config: PretrainedConfig) -> Family:
    """Return the family of a model's config.

    Raises:
        ValueError: the family is not declared here.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"Teachers of type {config.model_type!r} are not supported yet; choose one of {', '.join(FAMILIES)} "
            "(Pythia is gpt_neox), or declare the family in lft_edu/families.py."
        )
    return FAMILIES[config.model_type]


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder layers of a causal language model."""
    return model.get_submodule(family_of(model.config).layers)  # type: ignore[return-value]  # typed Module


# config fields with one entry per layer, in some families, and the entry of a layer that none is known of
PER_LAYER = {"layer_types": "full_attention", "no_rope_layers": 1}


def keep_layers(config: PretrainedConfig, picks: list[int]) -> PretrainedConfig:
    """Change a config, in place, to that of a model with only these layers, in this order; return it.

    A layer picked from a config of none has the entries of ``PER_LAYER``: an operator without attention stands there.
    """
    for name, default in PER_LAYER.items():
        entries = getattr(config, name, None)
        if entries is not None:
            setattr(config, name, [entries[min(i, len(entries) - 1)] if entries else default for i in picks])
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


def renumber(layer: nn.Module, family: Family, slot: int) -> None:
    """Set which entry of the key-value cache a layer uses."""
    getattr(layer, family.attention).layer_idx = slot
