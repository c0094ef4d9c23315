"""What a transformer's parts are called, one small declaration a family.

To add one, say where it keeps its parts and put it into ``FAMILIES`` under its ``model_type``. The velocity estimator,
the splice and everything on top of them follow; ``tests/test_families.py`` shows what must then hold.
"""

import copy
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Family:
    """Where a family of decoders keeps its parts: paths inside the model, names inside one layer."""

    layers: str  # inside the CausalLM: the list of layers
    final_norm: str
    attention_norm: str  # inside a layer
    attention: str
    mlp_norm: str
    mlp: str
    parallel_switch: str | None = None  # config field: attention and MLP read the same input; None: never
    positional: tuple[str, ...] = ()  # what the model gives a layer by position, after the hidden states


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


def family_of(config) -> Family:
    """The family of a transformers config.

    Raises:
        ValueError: a family that is not declared here.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"Teachers of type {config.model_type!r} are not supported yet; these are: {', '.join(FAMILIES)} "
            "(Pythia is gpt_neox). A family is one declaration in lft_edu/families.py."
        )
    return FAMILIES[config.model_type]


def layers_of(model) -> nn.ModuleList:
    """The decoder layers of a causal language model."""
    return model.get_submodule(family_of(model.config).layers)


PER_LAYER = ("layer_types", "no_rope_layers")  # config fields that hold an entry a layer, where a family has them


def keep_layers(config, picks: list[int]):
    """Change a config into that of a model made of these of its layers, in this order; returns it. With none picked,
    entries a layer stay, so that one can still be picked later."""
    for name in PER_LAYER:
        entries = getattr(config, name, None)
        if entries and picks:
            setattr(config, name, [entries[min(i, len(entries) - 1)] for i in picks])
    config.num_hidden_layers = len(picks)
    return config


def with_layers(config, picks: list[int]):
    """A copy of a config, changed by :func:`keep_layers`."""
    return keep_layers(copy.deepcopy(config), picks)


def cache_name() -> str:
    """What models call their key-value cache: ``cache`` since transformers 5.24, ``past_key_values`` before."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def by_name(family: Family, args: tuple, kwargs: dict) -> dict:
    """What a layer is given besides its hidden states, all of it by name."""
    return {**dict(zip(family.positional, args[1:], strict=False)), **kwargs}


def renumber(layer: nn.Module, family: Family, slot: int) -> None:
    """Tell a layer which slot of the key-value cache is its own."""
    getattr(layer, family.attention).layer_idx = slot
