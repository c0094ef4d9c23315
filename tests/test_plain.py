"""A student made of ordinary layers, as a model that plain transformers loads."""

import pytest
import torch
from peft import get_peft_model
from test_ecosystem import LORA, SPAN, other, spread  # noqa: F401  (a fixture)
from transformers import AutoModelForCausalLM

import lft_edu as lft
from lft_edu.families import layers_of

STANDING_IN = {
    "skip": lft.Skip(),
    "loop": lft.Loop(3),
    "regression": lft.Regression(),
    "two layers, twice": lft.Regression(layers=2, repeats=2),
}


@pytest.mark.parametrize("operator", STANDING_IN)
@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "qwen3"])
def test_layers_alone_are_a_plain_model(family, operator, teacher, ids, tmp_path):
    model = teacher if family == "gpt_neox" else other(family)
    student = lft.splice(model, SPAN, STANDING_IN[operator])
    with torch.no_grad():
        for p in student.operator.parameters():
            p.add_(0.01)
    plain = lft.export_plain(student)
    assert (type(plain), len(layers_of(plain))) == (type(model), len(layers_of(model)) - 3 + student.operator.slots)
    assert all(p.requires_grad for p in plain.parameters())
    plain.save_pretrained(tmp_path)
    again, loading = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    greedy = {"do_sample": False, "max_new_tokens": 5}
    for one in (plain, again):
        assert torch.equal(one(ids).logits, student(ids).logits)
        assert torch.equal(one.generate(ids, **greedy), student.generate(ids, **greedy))
    expected = student(ids).logits
    with torch.no_grad():
        next(plain.parameters()).zero_()
    assert torch.equal(student(ids).logits, expected)
    assert "lft" not in (tmp_path / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "operator", [lft.Flow(), lft.Ridge(), lft.MeanShift(), lft.LinearPatch()], ids=lambda o: o.kind
)
def test_what_has_no_place_in_a_plain_model_is_refused(operator, teacher):
    with pytest.raises(ValueError, match=rf"'{operator.kind}' operator, .* student\.save_pretrained"):
        lft.export_plain(lft.splice(teacher, SPAN, operator))


def test_neither_sinks_nor_nothing_nor_teachers_are_exported(teacher):
    student = lft.splice(teacher, SPAN, lft.Skip())
    student.operator.set_sink(torch.ones(64))
    with pytest.raises(ValueError, match="'skip' operator with an attention sink"):
        lft.export_plain(student)
    with pytest.raises(ValueError, match="no layer left"):
        lft.export_plain(lft.splice(teacher, (0, 8), lft.Skip()))
    with pytest.raises(ValueError, match="GPTNeoXForCausalLM is not a spliced model"):
        lft.export_plain(teacher)


def test_adapters_and_spread_weights_are_refused(teacher, spread):  # noqa: F811
    student = lft.splice(teacher, SPAN, lft.Skip())
    wrapped = get_peft_model(student, LORA)
    with pytest.raises(ValueError, match=r"adapters \(PEFT\).*merge_and_unload"):
        lft.export_plain(student)
    assert len(layers_of(lft.export_plain(wrapped.merge_and_unload()))) == 5
    with pytest.raises(ValueError, match="student was loaded with a device_map"):
        lft.export_plain(spread["student"])
