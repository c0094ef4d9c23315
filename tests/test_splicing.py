"""What must hold for every operator inside a language model."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, OPTConfig, OPTForCausalLM, pipeline

import lft_edu as lft
from lft_edu.families import cache_name, family_of, keep_layers, layer_output, layers_of, widest_layer
from lft_edu.latents import span_latents
from lft_edu.objectives import flow_walking_loss, token_kl
from lft_edu.operators import OPERATORS, Operator, operator_from_dict

SPAN = (2, 5)
CASES = {
    "skip": lft.Skip(),
    "mean-shift": lft.MeanShift(),
    "procrustes": lft.Procrustes(),
    "ridge": lft.Ridge(),
    "loop": lft.Loop(3),
    "regression": lft.Regression(),
    "euler-1": lft.Flow("euler", 1),
    "euler-3": lft.Flow("euler", 3),
    "midpoint-2": lft.Flow("midpoint", 2),
    "two-layers": lft.Flow("euler", 2, layers=2),
    "conditional": lft.Flow("midpoint", 1, conditional=True),
    "step-aware": lft.Flow("euler", 2, step_aware=True),
}


@pytest.fixture(scope="module", params=CASES)
def student(request, teacher):
    """Each operator in the span, its parameters shaken so that time and weights matter."""
    model = lft.splice(teacher, SPAN, CASES[request.param])
    g = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for p in model.operator.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return model


@torch.no_grad()
def logits(model, ids, **kwargs):
    return model(input_ids=ids, use_cache=False, **kwargs).logits


class TheOriginalLayers(Operator):
    """The layers that were there, as an operator: the identity of splicing."""

    kind = "original"
    trainable = False

    def __init__(self, layers=None):
        super().__init__()
        self.layers = layers

    def build(self, layer, config, generator=None):
        self.layers = copy.deepcopy(layers_of(TheOriginalLayers.source)[SPAN[0] : SPAN[1]])
        return self

    @property
    def slots(self):
        return SPAN[1] - SPAN[0]

    def forward(self, x, **context):
        from lft_edu.operators import at_slot

        for i, layer in enumerate(self.layers):
            x = layer_output(layer(x, **at_slot(context, self.first_slot + i)))
        return x


def test_the_original_layers_give_the_teachers_logits(teacher, ids, monkeypatch):
    monkeypatch.setitem(OPERATORS, "original", TheOriginalLayers)
    TheOriginalLayers.source = teacher
    whole = lft.splice(teacher, SPAN, TheOriginalLayers())
    assert (logits(whole, ids) - logits(teacher, ids)).abs().max() <= 1e-5
    greedy = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(whole.generate(ids, **greedy), teacher.generate(ids, **greedy))


def test_skip_is_the_teacher_without_those_layers(teacher, ids):
    by_hand = copy.deepcopy(teacher)
    layers = layers_of(by_hand)
    del layers[SPAN[0] : SPAN[1]]
    keep_layers(by_hand.config, [i for i in range(8) if not SPAN[0] <= i < SPAN[1]])
    assert torch.equal(logits(lft.splice(teacher, SPAN, lft.Skip()), ids), logits(by_hand, ids))


def test_a_fresh_flow_is_the_teachers_layer(teacher, ids):
    """Modulation starts as the identity: one Euler step of an untrained flow is layer m itself."""
    flow, layer = (lft.splice(teacher, SPAN, op) for op in (lft.Flow("euler", 1), lft.Regression()))
    assert (logits(flow, ids) - logits(layer, ids)).abs().max() < 1e-4
    assert (logits(flow, ids) - logits(lft.splice(teacher, SPAN, lft.Skip()), ids)).abs().max() > 1e-2


def test_what_a_flow_may_be_made_of_starts_as_the_teachers_layers(teacher, ids):
    """Given x0, a velocity is at first what it is without; two layers are the two that two-layer regression has."""
    plain, given = (lft.splice(teacher, SPAN, lft.Flow("midpoint", 2, conditional=c)) for c in (False, True))
    assert (logits(plain, ids) - logits(given, ids)).abs().max() < 1e-6
    flow, layers = (lft.splice(teacher, SPAN, op) for op in (lft.Flow(layers=2), lft.Regression(layers=2)))
    assert (logits(flow, ids) - logits(layers, ids)).abs().max() < 1e-4
    assert flow.operator.nfe == layers.operator.nfe == 2


def test_a_conditional_velocity_knows_where_the_walk_starts(teacher):
    operator = lft.splice(teacher, SPAN, lft.Flow("midpoint", 1, conditional=True)).operator
    with torch.no_grad():
        operator.start.weight.normal_(generator=torch.Generator().manual_seed(0))
    x0, x = torch.randn(2, 2, 4, 64, generator=torch.Generator().manual_seed(1))
    place = {"position_embeddings": teacher.gpt_neox.rotary_emb(x, torch.arange(4)[None]), "attention_mask": None}
    with torch.no_grad():
        here, there = (operator.field(start, **place)(x, 0.5) for start in (x0, x0 + 1))
    assert (here - there).abs().max() > 1e-3
    with pytest.raises(ValueError, match="where the walk starts"):
        operator.field(**place)


def test_a_step_aware_velocity_is_told_how_long_the_step_is(teacher, ids):
    """At first it is what the teacher's layer is; once it has learned, the same field walked in other steps differs."""
    plain, aware = (lft.splice(teacher, SPAN, lft.Flow("euler", 2, step_aware=a)) for a in (False, True))
    assert (logits(plain, ids) - logits(aware, ids)).abs().max() < 1e-6
    operator = aware.operator
    with torch.no_grad():
        operator.velocity.modulation.outer.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(1))
    place = {"position_embeddings": teacher.gpt_neox.rotary_emb(x, torch.arange(4)[None]), "attention_mask": None}
    with torch.no_grad():
        u = operator.field(**place)
        half, whole = u(x, 0.0, 0.5), operator.field(**place)(x, 0.0, 1.0)
        walked = operator(x, **place)
        by_hand = operator.field(**place)
        first = x + 0.5 * by_hand(x, 0.0, 0.5)
        second = first + 0.5 * by_hand(first, 0.5, 0.5)
    assert (half - whole).abs().max() > 1e-3
    assert (walked - second).abs().max() < 1e-6


def test_a_step_aware_velocity_refuses_what_it_cannot_do(teacher, ids):
    with pytest.raises(ValueError, match="step-aware velocity is for Euler steps"):
        lft.Flow("midpoint", step_aware=True)
    aware, plain = (lft.splice(teacher, SPAN, lft.Flow(step_aware=a)) for a in (True, False))
    with pytest.raises(ValueError, match="step-aware velocity is for Euler steps"):
        aware.set_solver("midpoint", 1)
    assert aware.set_solver(num_steps=3).operator.settings == {
        "solver": "euler",
        "num_steps": 3,
        "step_aware": True,
    }
    with pytest.raises(ValueError, match="told how long the step is"):
        lft.fit(aware, teacher, ids, objective="flow_matching", max_steps=1, batch_size=1)
    with pytest.raises(ValueError, match="told the time alone"):
        plain.operator.field()(torch.zeros(1, 2, 64), 0.0, 0.5)


def test_cached_generation_is_uncached_generation(student, ids):
    greedy = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    cached, plain = (student.generate(ids, use_cache=use, **greedy) for use in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    gap = (torch.stack(cached.logits) - torch.stack(plain.logits)).abs().max()
    assert gap < 1e-4


def test_a_cache_slot_shared_by_two_evaluations_is_caught(teacher, ids, monkeypatch):
    """The test above can fail: let every evaluation write the same slot, and cached logits part from uncached ones."""
    from lft_edu import operators

    broken = lft.splice(teacher, SPAN, lft.Flow("euler", 3))
    right = operators.at_slot
    monkeypatch.setattr(operators, "at_slot", lambda context, index: right(context, SPAN[0]))
    with torch.no_grad():
        cache = broken(input_ids=ids[:, :-1], use_cache=True).past_key_values
        last = broken(input_ids=ids[:, -1:], past_key_values=cache, position_ids=torch.full((3, 1), 11)).logits
    assert (last[:, 0] - logits(broken, ids)[:, -1]).abs().max() > 1e-3


def test_slots_are_one_per_evaluation(student, ids):
    with torch.no_grad():
        cache = student(input_ids=ids, use_cache=True, past_key_values=DynamicCache()).past_key_values
    expected = 8 - 3 + student.operator.slots
    assert len(cache) == expected == student.config.get_text_config().num_hidden_layers
    assert {cache.get_seq_length(i) for i in range(expected)} == {ids.shape[1]}


@pytest.mark.parametrize("position", [1, 5, 11])
def test_nothing_sees_the_future(student, ids, position):
    other = ids.clone()
    other[:, position] = (other[:, position] + 7) % 299 + 1
    before, after = logits(student, ids), logits(student, other)
    assert (before[:, :position] - after[:, :position]).abs().max() < 1e-5
    assert (before[:, position:] - after[:, position:]).abs().max() > 1e-3


def test_left_padding_changes_nothing(student, ids):
    padded = torch.cat([torch.zeros(3, 4, dtype=torch.long), ids], 1)
    mask = (torch.arange(16) >= 4).long().expand(3, -1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = logits(student, padded, attention_mask=mask, position_ids=positions)[:, 4:]
    assert (found - logits(student, ids)).abs().max() < 1e-4
    greedy = {"max_new_tokens": 6, "do_sample": False}
    alone = student.generate(ids, **greedy)[:, 12:]
    assert torch.equal(student.generate(padded, attention_mask=mask, **greedy)[:, 16:], alone)


def test_save_and_load_is_the_same_function(student, ids, tmp_path):
    student.save_pretrained(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} <= {".safetensors", ".json"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is lft.SplicedForCausalLM
    gap = (logits(loaded, ids) - logits(student, ids)).abs().max()
    assert gap < 1e-6  # weights are equal; where they lie in memory may change the last bit of a product
    assert loaded.operator.to_dict() == student.operator.to_dict()
    greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert torch.equal(loaded.generate(ids, **greedy), student.generate(ids, **greedy))


def test_replaced_layers_are_not_in_the_model(teacher):
    size = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    replaced = size(layers_of(teacher)[SPAN[0] : SPAN[1]])
    assert size(lft.splice(teacher, SPAN, lft.Skip())) == size(teacher) - replaced
    kept = size(layers_of(teacher)[widest_layer(teacher.config, *SPAN)])
    assert size(lft.splice(teacher, SPAN, lft.Regression())) == size(teacher) - replaced + kept
    names = "".join(lft.splice(teacher, SPAN, lft.Flow()).state_dict())
    inside = family_of(teacher.config).layers
    assert f"{inside}.5." in names
    assert f"{inside}.6." not in names


def test_sampling_and_beams(student, ids):
    beams = student.generate(ids, max_new_tokens=5, num_beams=3, do_sample=False)
    uncached = student.generate(ids, max_new_tokens=5, num_beams=3, do_sample=False, use_cache=False)
    assert torch.equal(beams, uncached)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert student.generate(ids, max_new_tokens=5, do_sample=True).shape == (3, 17)


def test_logits_agree_with_eager_attention(student, ids, tmp_path):
    student.save_pretrained(tmp_path)
    eager = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert (logits(eager, ids) - logits(student, ids)).abs().max() < 1e-4


def test_attention_can_be_changed_in_place(teacher, ids):
    model = lft.splice(teacher, SPAN, lft.Flow("midpoint", 2))
    expected = logits(model, ids)
    model.set_attn_implementation("eager")
    used = {m.config._attn_implementation for m in model.modules() if hasattr(m, "config") and m is not model}
    assert used == {"eager"}
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "loss"), [(torch.bfloat16, 0.02), (torch.float16, 0.002)])
def test_half_precision_is_the_same_but_for_rounding(teacher, ids, dtype, loss):
    """A fresh flow by one Euler step is the span's first layer: in any precision near the float32 model's word."""
    full = lft.splice(teacher, SPAN, lft.Flow("midpoint", 2))
    half = lft.splice(copy.deepcopy(teacher).to(dtype), SPAN, lft.Flow("midpoint", 2))
    assert next(half.operator.parameters()).dtype == dtype
    assert token_kl(logits(half, ids), logits(full, ids)).mean() < loss


def test_compiles_to_one_graph(teacher, ids):
    model = lft.splice(teacher, SPAN, lft.Flow("midpoint", 2))
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)  # raises where a graph would break
    torch.testing.assert_close(logits(compiled, ids), logits(model, ids), atol=1e-6, rtol=1e-5)


def test_the_cache_may_be_called_either_name(teacher, ids):
    student = lft.splice(teacher, SPAN, lft.Flow("euler", 2))
    whole = logits(student, ids)[:, -1]
    for name in ("past_key_values", "cache"):
        first = student(input_ids=ids[:, :-1], use_cache=True, **{name: DynamicCache()})
        kept = first[cache_name()]
        assert kept.get_seq_length() == ids.shape[1] - 1
        torch.testing.assert_close(student(input_ids=ids[:, -1:], **{name: kept}).logits[:, -1], whole)


def test_a_compiled_model_writes_and_trains_as_it_does_uncompiled(teacher, ids, blocks):
    written, losses = [], []
    for compiled in (False, True):
        torch.compiler.reset()
        model = lft.splice(teacher, SPAN, lft.Flow("euler", 2))
        if compiled:
            model.operator.velocity.compile(backend="aot_eager")
            model.forward = torch.compile(model.forward, backend="aot_eager", dynamic=True)
        written.append(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0).tolist())
        losses.append(lft.fit(model, teacher, blocks, objective="flow_walking", steps=11, progress=False).losses)
    assert written[0] == written[1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")  # the name older transformers knows
def test_gradient_checkpointing_gives_the_same_gradient_and_looks_again(teacher, ids):
    """One evaluation's activations are kept at a time: each is made anew on the way back. No dropout in either."""
    gradients, asked = [], []
    for checkpointing in (False, True):
        model = lft.splice(teacher, SPAN, lft.Flow("midpoint", 2))
        if checkpointing:
            model.gradient_checkpointing_enable()
        operator, latents = model.operator.train(), span_latents(teacher, SPAN, ids)
        count = []
        attention = getattr(operator.velocity.layer, family_of(teacher.config).attention)
        attention.register_forward_hook(lambda *a, count=count: count.append(1))
        loss = flow_walking_loss(operator.field(**latents.context), latents.x0, latents.x1, 3, generator=seeded())
        loss.backward()
        asked.append(len(count))
        gradients.append({name: p.grad for name, p in operator.named_parameters() if p.grad is not None})
    assert asked == [6, 12]
    assert gradients[0].keys() == gradients[1].keys() != set()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def seeded():
    return torch.Generator().manual_seed(0)


def test_edges_of_the_model_can_be_replaced(teacher, ids):
    for span, operator in [
        ((0, 3), lft.Skip()),
        ((0, 3), lft.Flow()),
        ((6, 8), lft.Flow("midpoint", 1)),
        ((0, 8), lft.Flow()),
    ]:
        model = lft.splice(teacher, span, operator)
        greedy = {"max_new_tokens": 5, "do_sample": False}
        assert torch.equal(model.generate(ids, **greedy), model.generate(ids, use_cache=False, **greedy))
    assert lft.splice(teacher, (0, 8), lft.Skip()).generate(ids, max_new_tokens=3).shape == (3, 15)


def test_set_solver_rewires_the_cache(teacher, ids):
    model = lft.splice(teacher, SPAN, lft.Flow("euler", 1))
    fresh = lft.splice(teacher, SPAN, lft.Flow("midpoint", 3))
    assert torch.equal(logits(model.set_solver("midpoint", 3), ids), logits(fresh, ids))
    assert model.config.text_config.num_hidden_layers == 5 + 6
    greedy = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(ids, **greedy), model.generate(ids, use_cache=False, **greedy))
    with pytest.raises(ValueError, match="no solver"):
        lft.splice(teacher, SPAN, lft.Skip()).set_solver("euler", 1)


def test_time_matters_per_sample_and_per_token(teacher):
    velocity = lft.splice(teacher, SPAN, lft.Flow()).operator.velocity
    with torch.no_grad():
        velocity.modulation.outer.weight.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(1))
    cos, sin = teacher.gpt_neox.rotary_emb(x, torch.arange(4)[None])
    context = {"attention_mask": None, "position_embeddings": (cos, sin)}
    with torch.no_grad():
        one, many = velocity(x, torch.tensor(0.3), **context), velocity(x, torch.full((2,), 0.3), **context)
        tokens = velocity(x, torch.full((2, 4), 0.3), **context)
        later = velocity(x, torch.tensor(0.9), **context)
    assert torch.allclose(one, many, atol=1e-5)
    assert torch.allclose(one, tokens, atol=1e-5)
    assert (one - later).abs().max() > 1e-2


def test_velocity_is_its_formula(teacher):
    """u = α1 ⊙ Attn((1+γ1) ⊙ LN1(x) + β1) + α2 ⊙ MLP((1+γ2) ⊙ LN2(x) + β2), written out."""
    velocity = lft.splice(teacher, SPAN, lft.Flow()).operator.velocity
    with torch.no_grad():
        velocity.modulation.outer.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(1))
    rotary = teacher.gpt_neox.rotary_emb(x, torch.arange(4)[None])
    with torch.no_grad():
        g1, b1, a1, g2, b2, a2 = velocity.modulation(torch.tensor(0.4))
        layer = velocity.layer
        attended = layer.attention(layer.input_layernorm(x) * (1 + g1) + b1, None, position_embeddings=rotary)[0]
        expected = a1 * attended + a2 * layer.mlp(layer.post_attention_layernorm(x) * (1 + g2) + b2)
        found = velocity(x, 0.4, attention_mask=None, position_embeddings=rotary)
    assert torch.allclose(found, expected, atol=1e-5)


def test_splicing_touches_neither_teacher_nor_global_randomness(teacher, ids):
    weights, state = copy.deepcopy(teacher.state_dict()), torch.get_rng_state()
    model = lft.splice(teacher, SPAN, lft.Flow())
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0)
    assert all(torch.equal(weights[k], v) for k, v in teacher.state_dict().items())
    assert teacher.config.num_hidden_layers == 8
    assert [layer.attention.layer_idx for layer in layers_of(teacher)] == list(range(8))


def test_text_generation_pipeline(bundled):
    teacher, tokenizer = bundled
    student = lft.splice(teacher, (6, 18), lft.Flow("midpoint", 1))
    out = pipeline("text-generation", model=student, tokenizer=tokenizer)("def f(", max_new_tokens=4)
    assert out[0]["generated_text"].startswith("def f(")


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ((-1, 3), r"0 ≤ m < n ≤ 8"),
        ((2, 9), r"span=\(2, 9\) does not fit a teacher of 8 layers"),
        ((3, 3), "does not fit"),
        ((5, 2), "does not fit"),
        ((1, 2, 3), "two layer numbers"),
        ("13", "two layer numbers"),
        ((1.9, 3.2), "two layer numbers"),
        ("middle", "two layer numbers"),
        (None, "two layer numbers"),
    ],
)
def test_bad_spans_are_refused(teacher, span, words):
    with pytest.raises(ValueError, match=words):
        lft.splice(teacher, span, lft.Skip())


def test_bad_operators_and_teachers_are_refused(teacher):
    with pytest.raises(ValueError, match="give an operator object"):
        lft.splice(teacher, SPAN, "ridge")
    with pytest.raises(ValueError, match="already spliced"):
        lft.splice(lft.splice(teacher, SPAN, lft.Skip()), (1, 2), lft.Skip())
    with pytest.raises(ValueError, match="Did you mean 'regression'"):
        operator_from_dict({"kind": "regresion"})
    with pytest.raises(ValueError, match="does not take"):
        operator_from_dict({"kind": "skip", "steps": 3})
    for bad in [lambda: lft.Flow("heun"), lambda: lft.Flow(steps=0), lambda: lft.Loop(0), lambda: lft.Ridge(-1)]:
        with pytest.raises(ValueError, match=r"choose one|at least"):
            bad()
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    with pytest.raises(ValueError, match="'opt' are not supported yet"):
        lft.splice(OPTForCausalLM(OPTConfig(ffn_dim=32, word_embed_proj_dim=32, **small)), (0, 1), lft.Skip())


def test_a_student_of_another_teacher_is_refused(teacher, blocks):
    from lft_edu.loading.teachers import build_model

    for other in (build_model(32, 300, layers=8), build_model(64, 300, layers=6), build_model(64, 200, layers=8)):
        for operator in (lft.Ridge(), lft.Flow()):
            student = lft.splice(teacher, SPAN, operator)
            with pytest.raises(ValueError, match="belongs to another teacher"):
                lft.fit(student, other, blocks, progress=False)
            with pytest.raises(ValueError, match="belongs to another teacher"):
                lft.evaluate(student, other, blocks)
    with pytest.raises(ValueError, match="not a spliced model"):
        lft.evaluate(teacher, teacher, blocks)
    with pytest.raises(ValueError, match="teacher is a spliced model"):
        lft.evaluate(student, student, blocks)


def test_sequential_residuals_too(ids):
    """GPT-NeoX may also feed the MLP what attention has added: a fresh flow is the teacher's layer there as well."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=300, use_parallel_residual=False, **shape)).eval()
    flow, layer = (lft.splice(model, (1, 3), op) for op in (lft.Flow("euler", 1), lft.Regression()))
    assert (logits(flow, ids) - logits(layer, ids)).abs().max() < 1e-5
    parallel = lft.splice(model, (1, 3), lft.Flow("euler", 1))
    velocity = parallel.operator.velocity
    velocity.parts = replace(velocity.parts, parallel=True)
    assert (logits(parallel, ids) - logits(layer, ids)).abs().max() > 1e-5


def test_tied_embeddings_survive_saving(ids, tmp_path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=300, tie_word_embeddings=True, **shape)).eval()
    student = lft.splice(model, (1, 2), lft.Flow())
    student.save_pretrained(tmp_path)
    loaded = lft.SplicedForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, ids), logits(student, ids))
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight


def test_only_the_operator_is_trainable_after_loading_too(teacher, tmp_path):
    lft.splice(teacher, SPAN, lft.Flow()).save_pretrained(tmp_path)
    loaded = lft.load_student(tmp_path, device="cpu")
    trainable = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trainable
    assert all(f"{family_of(teacher.config).layers}.2." in name for name in trainable)


def test_recording_states_is_refused_not_cut_short(teacher, ids):
    with pytest.raises(ValueError, match="hidden_states_at_all_layers"):
        lft.splice(teacher, SPAN, lft.Flow())(ids, output_hidden_states=True)
