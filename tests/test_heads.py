"""Logits are the model's own, whatever it does to them; a model that is not what its family declares is refused."""

import copy

import pytest
import torch
from test_families import LOCAL, TEACHERS
from transformers import AutoModelForCausalLM, Cohere2Config, LlamaConfig, LlamaForCausalLM, Olmo3Config, OPTConfig

import lft_edu as lft
from lft_edu.families import FAMILIES, LLAMA, attention_types, family_of
from lft_edu.heads import Head, check_parts
from lft_edu.latents import hidden_states_at_all_layers
from lft_edu.objectives import HeadKL, logit_kl_loss
from lft_edu.sources import LatentSource

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 50, "num_attention_heads": 2}
IDS = torch.arange(20).view(2, 10)


@pytest.fixture
def llama():
    return random_llama(LlamaForCausalLM)


def random_llama(cls):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(LlamaConfig(**SHAPE)).eval().requires_grad_(False)


class Capped(LlamaForCausalLM):
    """As Gemma 2 caps its logits; here it changes the order of none, and every probability."""

    def forward(self, *args, **kwargs):
        said = super().forward(*args, **kwargs)
        said.logits = 0.05 * torch.tanh(said.logits / 0.05)
        return said


def test_what_a_model_does_to_its_logits_is_done(llama):
    capped = random_llama(Capped)
    for model in (llama, capped):
        states, said, _ = hidden_states_at_all_layers(model, IDS)
        torch.testing.assert_close(lft.logits_of(model, states[-1]), said)
        torch.testing.assert_close(lft.logits_of(model, states[-1][1, 4]), said[1, 4], atol=1e-6, rtol=1e-5)
        student = lft.splice(model, (1, 2), lft.Skip())
        torch.testing.assert_close(lft.logits_of(student, states[-1]), said)
    assert said.abs().max() <= 0.05
    plain, other = (lft.logits_of(model, states[-1]) for model in (llama, capped))
    assert (plain - other).abs().max() > 0.01


def test_skipping_and_kl_of_states_are_those_of_the_model_s_own_logits():
    capped = random_llama(Capped)
    found = lft.skipping.skip_kl(capped, IDS, [(1, 2)], progress=False)[1, 2]
    skipped = lft.splice(capped, (1, 2), lft.Skip())
    assert found.mean().item() == pytest.approx(logit_kl_loss(skipped(IDS).logits, capped(IDS).logits).item(), rel=1e-4)
    states = [torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    mine = states[0].requires_grad_()
    expected = logit_kl_loss(lft.logits_of(capped, mine), lft.logits_of(capped, states[1]))
    found = HeadKL.apply(mine, states[1], Head(capped), 5)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, mine)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-8, rtol=1e-3)


def test_a_head_shares_the_weights_and_leaves_the_model_as_it_is(llama):
    names, before = [*dict(llama.named_modules())], llama(IDS).logits
    head = Head(llama)
    assert [*dict(llama.named_modules())] == names
    assert torch.equal(llama(IDS).logits, before)
    assert {p.data_ptr() for p in head.parameters()} == {
        llama.lm_head.weight.data_ptr(),
        llama.model.norm.weight.data_ptr(),
    }
    assert head.weight is llama.lm_head.weight


def halved(module, args, output):
    return output / 2


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("model.norm", None),  # a part that is declared may compute what it likes
        ("model.layers.0.mlp", None),
        ("model.layers.0", "its layers add something else than their norms"),
        ("model", "its logits are not its head of its last layer's states"),
    ],
)
def test_a_model_that_computes_something_else_is_refused(llama, place, what):
    if place == "model":  # something between the body and the head
        llama.model.register_forward_hook(lambda m, a, out: (setattr(out, "last_hidden_state", out[0] / 2), out)[1])
    else:
        llama.get_submodule(place).register_forward_hook(halved)
    if what is None:
        check_parts(llama)
        return
    for use in (check_parts, lambda m: lft.splice(copy.deepcopy(m), (1, 2), lft.Skip())):
        with pytest.raises(ValueError, match=what):
            use(llama)


def test_states_that_are_changed_between_layers_are_noticed(llama):
    inside = [True, False]
    llama.model.layers[1].register_forward_pre_hook(
        lambda module, args: (args[0] * (1.5 if inside[0] else 1.0),), prepend=True
    )
    llama.model.norm.register_forward_pre_hook(lambda module, args: inside.__setitem__(0, False))
    with pytest.raises(ValueError, match="layer 1, run alone"):
        check_parts(llama)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (OPTConfig(hidden_size=32, num_hidden_layers=2, ffn_dim=48, num_attention_heads=2), "lack .*mlp.*have .*fc1"),
        (Cohere2Config(**SHAPE), "lack post_attention_layernorm, and have nothing besides"),
        (Olmo3Config(**SHAPE), "parts of those of olmo2; what it does with them may differ"),
    ],
)
def test_a_family_that_is_not_declared_is_refused_with_what_differs(config, said):
    with pytest.raises(ValueError, match=f"not supported yet.*{said}"):
        family_of(config)


def test_a_declared_family_needs_only_its_declaration(llama, monkeypatch):
    """What the documentation tells people to do: one entry, and the whole of the library works."""
    monkeypatch.setitem(FAMILIES, "nobody_has_this", LLAMA)
    llama.config.model_type = "nobody_has_this"
    check_parts(llama)
    assert lft.splice(llama, (1, 2), lft.Flow())(IDS).logits.shape == (2, 10, 50)


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_a_velocity_is_trained_in_the_context_in_which_it_will_stand(family):
    """A span that begins with a layer of local attention is replaced by what copies one of full attention."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = AutoModelForCausalLM.from_config(TEACHERS[family]()).eval().requires_grad_(False)
    assert attention_types(teacher.config) == LOCAL
    student = lft.splice(teacher, (3, 6), lft.Flow())
    assert student.operator.settings["init_layer"] == LOCAL.index("full_attention", 3) == 5
    assert lft.splice(teacher, (3, 6), lft.Flow(init_layer=4)).operator.settings["init_layer"] == 4
    seen = {}
    student.operator.register_forward_pre_hook(lambda m, args, kw: seen.update(kw), with_kwargs=True)
    student(IDS)
    source = LatentSource(teacher, (3, 6), IDS, 2).seen_by(5)
    latents = source(torch.arange(2))
    for name in ("attention_mask", "position_embeddings"):
        torch.testing.assert_close(latents.context[name], seen[name])
    local = LatentSource(teacher, (3, 6), IDS, 2)(torch.arange(2)).context
    assert local["attention_mask"] is not None  # a window; all that is earlier needs no mask
    assert seen["attention_mask"] is None
    assert source.seen_by(5) is source
    by_hand = (student.operator(latents.x0, **seen) - latents.x1).square().mean()
    history = lft.fit(student, teacher, IDS, max_steps=1, batch_size=2, log_every=1, progress=False, first_weight=1)
    assert history.losses[0] == pytest.approx(by_hand.item(), rel=1e-4)
