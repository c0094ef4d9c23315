"""From hidden states to logits as the model itself does it: final norm, head, and what a family does to the logits."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import Tensor, nn

from .families import family_of, layer_output, layers_of
from .latents import hidden_states_at_all_layers
from .support.modes import in_eval_mode
from .velocity import Parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Head(nn.Module):
    """A model without its layers: states that leave the last layer → logits.

    It calls the model's own ``forward`` with the final norm in the place of its body. So whatever the model does to its
    logits is done: a soft cap in Gemma, a scale in Granite. The weights are the model's, not copies.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        inner = getattr(model, "model", model) if model.config.model_type == "lft_spliced" else model
        self._matrix = (inner.get_output_embeddings(),)  # a tuple: it is a module of the model already
        self.model = copy.copy(inner)  # shallow: the modules are the same ones
        norm = inner.get_submodule(family_of(inner.config).final_norm)
        self.model._modules = {**inner._modules, inner.base_model_prefix: _FinalNorm(norm)}

    @property
    def weight(self) -> Tensor:
        """The matrix that makes logits, ``(V, D)``."""
        return self._matrix[0].weight

    def forward(self, states: Tensor) -> Tensor:
        """Return logits ``(..., V)`` of states ``(..., D)``, on the model's device and in its type."""
        if not self.weight.is_meta:  # else accelerate moves the states to where it loads the weights
            states = states.to(self.weight.device, self.weight.dtype)
        rows = states.reshape(1, -1, states.shape[-1])
        said = type(self.model).forward(self.model, inputs_embeds=rows, use_cache=False, return_dict=True)
        return said.logits.view(*states.shape[:-1], -1)


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the logits ``(..., V)`` that a teacher or student makes of states ``(..., D)`` of its last layer."""
    return Head(model)(states)


class _FinalNorm(nn.Module):
    """What stands in the place of a model's body."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, *args, inputs_embeds: Tensor, **kwargs) -> _Output:
        return _Output((self.norm(inputs_embeds),))


class _Output(tuple):
    """A body's output with the last state only; its cache and all else are None."""

    def __getattr__(self, name):
        return self[0] if name == "last_hidden_state" else None


_CHECKED: WeakSet = WeakSet()


@in_eval_mode
@torch.no_grad()
def check_parts(model: PreTrainedModel) -> None:
    """Raise ValueError unless the declared parts of a model, put together, give what the model gives.

    Four tokens are read, once per model. It protects from a model whose family is declared but that computes something
    else, such as one with another norm, a factor, or states that are changed between the layers.
    """
    if model in _CHECKED or any(p.is_meta for p in model.parameters()):
        return
    ids = torch.arange(1, 5, device=model.device)[None] % model.config.vocab_size
    states, logits, contexts = hidden_states_at_all_layers(model, ids)
    if not logits.isfinite().all():
        return  # there is nothing to compare; what is measured will say so
    _agree(model, Head(model)(states[-1]), logits, "its logits are not its head of its last layer's states")
    for i, layer in enumerate(layers_of(model)):
        context = contexts[i]
        alone, update = layer_output(layer(states[i], **context)) - states[i], states[i + 1] - states[i]
        _agree(model, alone, update, f"layer {i}, run alone, gives another state than inside the model")
    neutral = torch.tensor([0.0, 0, 1, 0, 0, 1], dtype=model.dtype, device=model.device)
    layer, x = layers_of(model)[0], states[0]
    update = Parts.of(layer, model.config).update(layer, x, neutral.unbind(), contexts[0])
    _agree(model, update, states[1] - x, "its layers add something else than their norms, attention and MLP together")
    _CHECKED.add(model)


def _agree(model: PreTrainedModel, found: Tensor, expected: Tensor, what: str) -> None:
    found, expected = found.float(), expected.float()
    allowed = 1e-3 if model.dtype == torch.float32 else 0.1  # a difference of states in bfloat16 has few bits left
    if not (found - expected).norm() <= allowed * expected.norm() + 1e-6:
        kind = model.config.model_type
        raise ValueError(
            f"This {kind!r} model is not what lft_edu/families.py declares of its family: {what}. Nothing measured on "
            f"it would be right. Declare a family of its own there, or load the model that transformers calls {kind!r}."
        )
