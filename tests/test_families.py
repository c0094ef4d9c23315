"""What must hold of a spliced GPT-NeoX must hold in every declared family: the tests are test_splicing's own."""

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_splicing import (  # noqa: F401  (collected here with this file's teachers)
    CASES,
    SPAN,
    TheOriginalLayers,
    logits,
    test_a_fresh_flow_is_the_teachers_layer,
    test_attention_can_be_changed_in_place,
    test_cached_generation_is_uncached_generation,
    test_compiles_to_one_graph,
    test_edges_of_the_model_can_be_replaced,
    test_gradient_checkpointing_gives_the_same_gradient_and_looks_again,
    test_half_precision_is_the_same_but_for_rounding,
    test_left_padding_changes_nothing,
    test_logits_agree_with_eager_attention,
    test_nothing_sees_the_future,
    test_only_the_operator_is_trainable_after_loading_too,
    test_replaced_layers_are_not_in_the_model,
    test_sampling_and_beams,
    test_save_and_load_is_the_same_function,
    test_set_solver_rewires_the_cache,
    test_skip_is_the_teacher_without_those_layers,
    test_the_original_layers_give_the_teachers_logits,
)
from transformers import AutoModelForCausalLM
from transformers.models.gemma import GemmaConfig
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_neo import GPTNeoConfig
from transformers.models.gpt_neox import GPTNeoXConfig
from transformers.models.granite import GraniteConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.olmo import OlmoConfig
from transformers.models.olmo2 import Olmo2Config
from transformers.models.phi3 import Phi3Config
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen2_moe import Qwen2MoeConfig
from transformers.models.qwen3 import Qwen3Config
from transformers.models.qwen3_moe import Qwen3MoeConfig
from transformers.models.smollm3 import SmolLM3Config
from transformers.models.stablelm import StableLmConfig

import lft_edu as lft
from lft_edu.families import FAMILIES
from lft_edu.heads import check_parts
from lft_edu.latents import hidden_states_at_all_layers, layer_output, span_latents

SHAPE = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
LOCAL = ["sliding_attention" if i in (0, 2, 3, 4, 6) else "full_attention" for i in range(8)]
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5, "layer_types": LOCAL}
TEACHERS = {
    "gpt_neox": lambda: GPTNeoXConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=8, num_attention_heads=4,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    ),
    "llama": lambda: LlamaConfig(**SHAPE),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=5),
    "qwen2": lambda: Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=5, layer_types=LOCAL),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True),
    "smollm3": lambda: SmolLM3Config(**SHAPE, no_rope_layers=[1, 0, 1, 1, 1, 0, 1, 0]),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, shared_expert_intermediate_size=48,
        mlp_only_layers=[1, 4],
    ),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **SHAPE, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, decoder_sparse_step=2,
    ),
    "gemma": lambda: GemmaConfig(**SHAPE, head_dim=16),
    "gemma3_text": lambda: Gemma3TextConfig(
        **SHAPE, **GEMMA, final_logit_softcapping=3.0,
    ),
    "gemma2": lambda: Gemma2Config(
        **SHAPE, **GEMMA, final_logit_softcapping=3.0, attn_logit_softcapping=5.0,
    ),
    "olmo": lambda: OlmoConfig(**SHAPE, clip_qkv=8.0),
    "olmo2": lambda: Olmo2Config(**SHAPE),
    "phi3": lambda: Phi3Config(**SHAPE, sliding_window=5),
    "stablelm": lambda: StableLmConfig(**SHAPE, use_qkv_bias=True, qk_layernorm=True, use_parallel_residual=True),
    "granite": lambda: GraniteConfig(
        **SHAPE, embedding_multiplier=3.0, residual_multiplier=0.6, attention_multiplier=0.2, logits_scaling=2.0,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=300, n_embd=64, n_layer=8, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=None,
        pad_token_id=0,
    ),
    "gpt_neo": lambda: GPTNeoConfig(
        vocab_size=300, hidden_size=64, num_layers=8, num_heads=4, max_position_embeddings=64, window_size=5,
        attention_types=[[["local", "local", "global", "local"], 2]], bos_token_id=None, eos_token_id=None,
        pad_token_id=0,
    ),
}  # fmt: skip
OPERATORS = ("skip", "ridge", "loop", "regression", "euler-1", "midpoint-2")


@pytest.fixture(scope="module", params=TEACHERS)
def teacher(request):
    """Eight random layers, every weight large enough to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(TEACHERS[request.param]()).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=OPERATORS)
def student(request, teacher):
    model = lft.splice(teacher, SPAN, CASES[request.param])
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for p in model.operator.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def test_every_declared_family_is_tested():
    assert set(FAMILIES) == set(TEACHERS)


def test_slots_are_one_per_evaluation(student, ids):
    with torch.no_grad():
        cache = student(input_ids=ids, use_cache=True).past_key_values
    assert len(cache) == 8 - 3 + student.operator.slots == student.config.get_text_config().num_hidden_layers


def test_velocity_is_its_formula(teacher, ids):
    """Sequential residual: a = α1 ⊙ Attn((1+γ1) ⊙ N1(x) + β1), u = a + α2 ⊙ MLP((1+γ2) ⊙ N2(x + a) + β2).

    Or with norms of what Attn and MLP give, without N1 and N2, with both scaled, or with both reading x or N1(x).
    """
    model = lft.splice(teacher, SPAN, lft.Flow())
    velocity, family = model.operator.velocity, FAMILIES[teacher.config.model_type]
    with torch.no_grad():
        velocity.modulation.outer.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        latents = span_latents(teacher, SPAN, ids, context_of=model.operator.layer_to_copy(*SPAN))
        x, layer = latents.x0, velocity.layer
        part = lambda name: getattr(layer, name) if name else lambda x: x  # noqa: E731
        g1, b1, a1, g2, b2, a2 = velocity.modulation(torch.tensor(0.4))
        normed = part(family.attention_norm)(x)
        attended = part(family.attention)(normed * (1 + g1) + b1, **latents.context)[0]
        scale = {"granite": 0.6}.get(teacher.config.model_type, 1)
        attended = scale * a1 * part(family.attention_post_norm)(attended)
        if teacher.config.model_type != "stablelm":
            normed = part(family.mlp_norm)(x if teacher.config.model_type == "gpt_neox" else x + attended)
        expected = attended + scale * a2 * part(family.mlp_post_norm)(part(family.mlp)(normed * (1 + g2) + b2))
        found = velocity(x, 0.4, **latents.context)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_layers_run_by_hand_are_the_model(teacher, ids):
    """Each depth's state through the layer that follows, in its own context: masks of some layers differ."""
    with torch.no_grad():
        states, said, contexts = hidden_states_at_all_layers(teacher, ids)
        for layer, context, before, after in zip(
            teacher.get_submodule(FAMILIES[teacher.config.model_type].layers),
            contexts,
            states,
            states[1:],
            strict=False,
        ):
            torch.testing.assert_close(layer_output(layer(before, **context)), after, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(said, logits(teacher, ids))
    torch.testing.assert_close(lft.logits_of(teacher, states[-1]), said)
    check_parts(teacher)


def test_a_static_cache_gives_the_same_text(student, ids):
    greedy = {"max_new_tokens": 6, "do_sample": False}
    static = lambda: student.generate(ids, **greedy, cache_implementation="static")  # noqa: E731
    if FAMILIES[student.model.config.model_type].static_cache:
        assert torch.equal(static(), student.generate(ids, **greedy))
    else:
        with pytest.raises(ValueError, match="Use the cache that grows"):
            static()


def test_a_student_drafts_for_its_teacher(student, teacher, ids):
    greedy = {"max_new_tokens": 6, "do_sample": False}
    drafted = teacher.generate(ids[:1], **greedy, assistant_model=student)
    assert torch.equal(drafted, teacher.generate(ids[:1], **greedy))


@pytest.mark.filterwarnings("ignore")  # of peft, about GPT-2's kind of matrices
def test_adapters_are_trained_saved_and_merged(teacher, ids, tmp_path):
    fresh = lambda: lft.splice(teacher, SPAN, lft.Flow("midpoint", 2))  # noqa: E731
    student = get_peft_model(fresh(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    trained = [p for p in student.parameters() if p.requires_grad]
    student(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(trained, 0.01).step()
    expected = logits(student.eval(), ids)
    assert (expected - logits(fresh(), ids)).abs().max() > 1e-3
    student.save_pretrained(tmp_path / "adapters")
    again = PeftModel.from_pretrained(fresh(), tmp_path / "adapters")
    torch.testing.assert_close(logits(again, ids), expected)
    again.merge_and_unload().save_pretrained(tmp_path / "student")
    merged = lft.load_student(tmp_path / "student", device="cpu")
    torch.testing.assert_close(logits(merged, ids), expected, atol=1e-3, rtol=1e-3)


def test_a_flow_can_be_fitted_and_evaluated(teacher, blocks):
    student = lft.splice(teacher, SPAN, lft.Flow("midpoint", 2))
    before = lft.evaluate(student, teacher, blocks)
    history = lft.fit(student, teacher, blocks, objective="flow_walking", max_steps=30, batch_size=8, progress=False)
    after = lft.evaluate(student, teacher, blocks)
    assert history.losses[-1] < history.losses[0]
    assert after.nmse < before.nmse
    skip = lft.evaluate(lft.splice(teacher, SPAN, lft.Skip()), teacher, blocks)
    damage = lft.skipping.skip_kl(teacher, blocks, [SPAN], progress=False)[SPAN]
    assert damage.mean().item() == pytest.approx(skip.kl, rel=1e-3)


def test_a_tiny_llama_lives_as_the_docs_say(bundled, tmp_path, monkeypatch, capsys):
    """The example in docs/models.md, word for word."""
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "LlamaConfig(" in block)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space = {"lft": lft, "tokenizer": bundled[1]}
    exec(code, space)
    assert len(code.splitlines()) <= 14
    assert space["scan"].spans() == [(m, n) for m in range(6) for n in range(m + 1, 7)]
    assert space["history"].losses[-1] < space["history"].losses[0]
    assert isinstance(space["student"], lft.SplicedForCausalLM)
    assert (tmp_path / "tiny-lft" / "model.safetensors").exists()
    assert capsys.readouterr().out.startswith("def area(")
