"""A student that is made of transformer layers alone, as an ordinary model that needs no lft_edu."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import nn

from .families import family_of, layers_of, renumber
from .splicing import SplicedForCausalLM
from .support.whole import require_no_adapters, require_one_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export_plain(student: SplicedForCausalLM) -> PreTrainedModel:
    """Return a student as a model of its teacher's class: fewer layers, the same logits bit for bit.

    Its operator must be made of ordinary layers: a Skip is none, a Regression its layers, a Loop one layer, repeated.
    What the new model saves, ``AutoModelForCausalLM.from_pretrained`` loads, on computers without lft_edu too.

    Args:
        student: made by :func:`lft_edu.splice`, or loaded. It is not changed; all weights are copied.

    Returns:
        The model, in evaluation mode; all its weights can be trained.

    Raises:
        ValueError: no ordinary architecture has a place for this operator, no layer would be left, or the student has
            adapters or is spread over devices.
    """
    if not isinstance(student, SplicedForCausalLM):
        raise ValueError(f"A {type(student).__name__} is not a spliced model: give what lft.splice returns.")
    require_no_adapters(student, "which would be lost", "Merge them first: merge_and_unload() of the PEFT model.")
    require_one_device(student, "student")
    operator, m = student.operator, student.config.span[0]
    standing_in = operator.as_layers()
    if standing_in is None:
        sink = " with an attention sink" * (operator.sink is not None)
        raise ValueError(
            f"No architecture of transformers has a place for a {operator.kind!r} operator{sink}, so there is no "
            "ordinary model of it. Save it by student.save_pretrained(folder), and load it where lft_edu is installed; "
            "lft.Skip(), lft.Regression() and lft.Loop() can be exported."
        )
    if not student.config.text_config.num_hidden_layers:
        raise ValueError("This student has no layer left, and transformers loads no such model: skip fewer layers.")
    plain = copy.deepcopy(student.model)
    del plain.save_pretrained  # the student's refusal: this model may be saved
    kept, family = layers_of(plain), family_of(student.model.config)
    layers = nn.ModuleList([*kept[:m], *(copy.deepcopy(layer) for layer in standing_in), *kept[m + 1 :]])
    for i, layer in enumerate(layers):
        renumber(layer, family, i)
    path, _, name = family.layers.rpartition(".")
    setattr(plain.get_submodule(path), name, layers)
    config = copy.deepcopy(student.config.text_config)  # it counts what has an entry in the cache: these layers
    vars(plain.config).update(vars(config))  # every part of the model holds this one config
    plain.generation_config = copy.deepcopy(student.generation_config)
    return plain.requires_grad_(True).eval()
