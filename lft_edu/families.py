"""What a transformer's parts are called, one small declaration a family."""

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
    splices: bool = True  # False: its states can be captured, but no operator has been put into it yet


FAMILIES = {
    "gpt_neox": Family(
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        attention_norm="input_layernorm",
        attention="attention",
        mlp_norm="post_attention_layernorm",
        mlp="mlp",
        parallel_switch="use_parallel_residual",
    ),
}
LLAMA = Family(
    layers="model.layers",
    final_norm="model.norm",
    attention_norm="input_layernorm",
    attention="self_attn",
    mlp_norm="post_attention_layernorm",
    mlp="mlp",
    splices=False,
)
FAMILIES |= dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), LLAMA)


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


def renumber(layer: nn.Module, family: Family, slot: int) -> None:
    """Tell a layer which slot of the key-value cache is its own."""
    getattr(layer, family.attention).layer_idx = slot
