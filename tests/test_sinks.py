"""The attention sink: found where it is written, carried by the operator under padding and caches, saved and loaded."""

import copy

import pytest
import torch

import lft_edu as lft
from lft_edu.families import layers_of
from lft_edu.latents import span_latents
from lft_edu.sinks import find_sink

SPAN = (2, 5)
OPERATORS = [lft.Skip(), lft.Ridge(), lft.Regression(), lft.Regression(repeats=2), lft.Flow("midpoint", 2)]


class WritesTheSink(torch.nn.Module):
    """A teacher's layer that also gives each sequence's first token an enormous state, as layer 11 of SmolLM2 does."""

    def __init__(self, layer, state):
        super().__init__()
        self.layer, self.state = layer, state

    def forward(self, x, attention_mask=None, **context):
        out = self.layer(x, attention_mask=attention_mask, **context)
        first = torch.zeros(x.shape[:2], dtype=torch.bool)
        first[:, 0] = True
        return torch.where(first[..., None], self.state + 0.01 * out, out)


@pytest.fixture(scope="module")
def sunk(teacher):
    """The tiny teacher, whose layer 3 writes a sink."""
    model = copy.deepcopy(teacher)
    layers = layers_of(model)
    state = 300 * torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(5)), dim=0)
    layers[3] = WritesTheSink(layers[3], state * 8)
    return model


def test_it_is_found_where_it_is_written_and_only_there(sunk, blocks):
    def look(m, n):
        latents = span_latents(sunk, (m, n), blocks)
        return find_sink(latents.x0, latents.x1)

    assert look(2, 5).written
    assert look(2, 5).present
    assert not look(4, 6).written, "it passes through: the residual carries it"
    assert look(4, 6).present
    assert not look(0, 3).present
    assert look(2, 5).spread < 0.1


def test_an_ordinary_first_token_is_no_sink(bundled):
    teacher, tokenizer = bundled
    ids = lft.corpora.token_sequences("python-stdlib", tokenizer, "test", 64, max_tokens=16 * 64)
    for span in ((6, 12), (6, 18)):
        latents = span_latents(teacher, span, ids)
        assert not find_sink(latents.x0, latents.x1).present


@pytest.mark.parametrize("operator", OPERATORS[1:], ids=lambda o: o.kind)
def test_fit_stores_the_sink_that_the_span_writes(sunk, blocks, operator):
    student = lft.splice(sunk, SPAN, operator)
    lft.fit(student, sunk, blocks, max_steps=2, batch_size=8, progress=False)
    truth = span_latents(sunk, SPAN, blocks)
    x1 = student.operator(truth.x0, **truth.context)
    torch.testing.assert_close(x1[:, 0], truth.x1[:, 0], rtol=0.05, atol=1.0)
    assert student.config.operator["sink"] is True
    assert not student.operator.sink.requires_grad


def test_it_can_be_left_to_the_operator(sunk, blocks):
    student = lft.splice(sunk, SPAN, lft.Flow())
    lft.fit(student, sunk, blocks, max_steps=2, batch_size=8, progress=False, sink="ignore")
    assert student.operator.sink is None
    assert "sink" not in student.config.operator


def with_sink(teacher, operator):
    student = lft.splice(teacher, SPAN, operator)
    student.operator.set_sink(torch.linspace(-9, 9, 64))
    student.wire()
    return student


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.kind)
def test_left_padding_moves_it_to_the_first_real_token(teacher, ids, operator):
    student = with_sink(teacher, operator)
    padding = torch.zeros(len(ids), 3, dtype=torch.long)
    mask = torch.cat([padding, torch.ones_like(ids)], 1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    padded = student(torch.cat([padding, ids], 1), attention_mask=mask, position_ids=places).logits
    torch.testing.assert_close(padded[:, 3:], student(ids).logits, atol=1e-4, rtol=1e-4)
    assert student.operator.first is None, "nothing is left over from the call"


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.kind)
def test_cached_generation_is_uncached_generation(teacher, ids, operator):
    student = with_sink(teacher, operator)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        student.generate(ids, use_cache=True, **options), student.generate(ids, use_cache=False, **options)
    )


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.kind)
def test_save_and_load_keep_it(teacher, ids, operator, tmp_path):
    student = with_sink(teacher, operator)
    student.save_pretrained(tmp_path)
    again = lft.SplicedForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.operator.sink, student.operator.sink)
    torch.testing.assert_close(again(ids).logits, student(ids).logits)


def test_another_solver_keeps_it(teacher, ids):
    student = with_sink(teacher, lft.Flow("euler", 1))
    student.set_solver("midpoint", 2)
    assert student.config.operator == {"kind": "flow", "solver": "midpoint", "num_steps": 2, "sink": True}
    out = student.operator(torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)), **context_of(teacher))
    assert torch.equal(out[:, 0], student.operator.sink.expand(2, -1))


def context_of(teacher):
    return span_latents(teacher, SPAN, torch.ones(2, 5, dtype=torch.long)).context


def test_relative_error_weighs_a_token_by_its_norm(teacher, blocks):
    """A token a hundred times larger counts ten thousandfold by an equal weight, and once by a relative one."""
    from lft_edu.fitting import LatentLoss
    from lft_edu.latents import Latents
    from lft_edu.objectives import Regression

    student = lft.splice(teacher, SPAN, lft.Regression())
    latents = span_latents(teacher, SPAN, blocks[:4])
    off = student.operator(latents.x0, **latents.context) - latents.x1

    loss = LatentLoss(student.operator, Regression(), relative=True)(latents)
    weight = 1 / latents.x1.square().mean(-1)
    expected = (off.square().mean(-1) * weight).sum() / weight.sum()
    torch.testing.assert_close(loss, expected)
    large = latents.x1.clone()
    large[0, 3] *= 100
    changed = LatentLoss(student.operator, Regression(), relative=True)(Latents(latents.x0, large, latents.context))
    plain = LatentLoss(student.operator, Regression())(Latents(latents.x0, large, latents.context))
    assert changed < 2 * loss < plain
