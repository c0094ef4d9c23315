"""Students among the tools that people use around transformers: adapters, offloading, launchers, plain files."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

import lft_edu as lft

SPAN = (2, 5)
LORA = LoraConfig(r=2, target_modules=["query_key_value"], init_lora_weights=False)


@pytest.fixture(scope="module")
def tokenizer(bundled):
    return bundled[1]


def other(kind):
    """A model of another family, with 6 layers and the vocabulary of the tests' teacher."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gpt2":
            ends = {"bos_token_id": None, "eos_token_id": None}
            model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=6, n_head=4, n_positions=64, **ends))
        else:
            shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4}
            kinds = ["full_attention" if i in (0, 2, 5) else "sliding_attention" for i in range(6)]
            local = {"use_sliding_window": True, "sliding_window": 4, "layer_types": kinds, "tie_word_embeddings": True}
            model = Qwen3ForCausalLM(Qwen3Config(vocab_size=300, num_key_value_heads=2, head_dim=8, **shape, **local))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn(p.shape))
    return model.eval().requires_grad_(False)


# adapters


@pytest.fixture
def adapted(teacher):
    """A student with adapters in every layer, and a copy of it with them merged into the weights."""
    student = get_peft_model(lft.splice(teacher, SPAN, lft.Flow("midpoint", 2)), LORA).eval()
    return student, copy.deepcopy(student).merge_and_unload()


def test_students_with_adapters_are_measured_as_they_are(adapted, teacher, tokenizer, ids):
    student, merged = adapted
    plain = lft.evaluate(lft.splice(teacher, SPAN, lft.Flow("midpoint", 2)), teacher, ids).kl
    for with_adapters in (student, student.get_base_model()):
        found = lft.evaluate(with_adapters, teacher, ids)
        assert found.kl == pytest.approx(lft.evaluate(merged, teacher, ids).kl, rel=1e-3)
        assert found.kl != pytest.approx(plain, rel=0.1)
        expected = lft.acceptance(teacher, merged, ids).sampling
        assert lft.acceptance(teacher, with_adapters, ids).sampling == pytest.approx(expected, rel=1e-3)
        assert torch.equal(
            lft.draft(teacher, with_adapters, ids[:1], 5).ids, lft.draft(teacher, merged, ids[:1], 5).ids
        )


def test_states_of_students_with_adapters_are_captured(bundled):
    teacher, tokenizer = bundled
    student = get_peft_model(lft.splice(teacher, (6, 18), lft.Flow()), LORA).eval()
    found = lft.capture(student, tokenizer, "x = 1")
    merged = copy.deepcopy(student).merge_and_unload()
    torch.testing.assert_close(found.states, lft.capture(merged, tokenizer, "x = 1").states, rtol=1e-3, atol=1e-2)
    assert found.span == (6, 18)


@pytest.mark.parametrize("operator", [lft.Flow(), lft.Ridge()], ids=lambda o: o.kind)
def test_adapters_are_refused_where_they_would_be_lost_or_ignored(operator, teacher, blocks, tmp_path):
    student = lft.splice(teacher, SPAN, operator)
    wrapped = get_peft_model(student, LORA)  # puts adapters into the student itself
    for one in (student, wrapped):
        with pytest.raises(ValueError, match=r"adapters \(PEFT\).*Fit first"):
            lft.fit(one, teacher, blocks)
    with pytest.raises(ValueError, match=r"adapters \(PEFT\).*merge_and_unload"):
        student.save_pretrained(tmp_path / "student")
    assert not (tmp_path / "student").exists()
    wrapped.merge_and_unload().save_pretrained(tmp_path / "student")
    assert lft.load_student(tmp_path / "student", device="cpu").operator.kind == operator.kind


def test_a_teacher_with_adapters_is_refused_until_they_are_merged(teacher, blocks):
    wrapped = get_peft_model(copy.deepcopy(teacher), LORA)
    for one in (wrapped, wrapped.get_base_model()):
        with pytest.raises(ValueError, match=r"teacher = teacher\.merge_and_unload\(\)"):
            lft.splice(one, SPAN, lft.Flow())
    merged = wrapped.merge_and_unload()
    assert lft.evaluate(lft.splice(merged, SPAN, lft.Skip()), merged, blocks[:2]).kl > 0


# one device, and several


@pytest.fixture(scope="module")
def spread(teacher, tmp_path_factory):
    """The teacher and a student, saved, and loaded with most of their weights on disk."""
    found = {}
    for name, model in (("teacher", teacher), ("student", lft.splice(teacher, SPAN, lft.Flow("midpoint", 2)))):
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        size = sum(p.nbytes for p in model.parameters())
        found[name] = AutoModelForCausalLM.from_pretrained(
            folder, device_map="auto", max_memory={"cpu": size // 2}, offload_folder=folder / "offloaded"
        ).eval()
        assert set(found[name].hf_device_map.values()) == {"cpu", "disk"}
    return found


def test_offloaded_models_give_the_same_bits(spread, teacher, tokenizer, blocks):
    whole = lft.splice(teacher, SPAN, lft.Flow("midpoint", 2))
    greedy = {"do_sample": False, "max_new_tokens": 5}
    assert torch.equal(spread["student"].generate(blocks[:1], **greedy), whole.generate(blocks[:1], **greedy))
    for student, judge in ((spread["student"], teacher), (whole, spread["teacher"])):
        found, expected = lft.evaluate(student, judge, blocks[:3]), lft.evaluate(whole, teacher, blocks[:3])
        assert torch.equal(found.sequence_kl, expected.sequence_kl)
        assert (found.nmse, found.parameters) == (expected.nmse, expected.parameters)
        assert torch.equal(lft.draft(judge, student, blocks[:1], 4).ids, lft.draft(teacher, whole, blocks[:1], 4).ids)
    found, expected = (
        lft.skipping.skip_kl(t, blocks[:2], [SPAN], progress=False) for t in (spread["teacher"], teacher)
    )
    assert torch.equal(found[SPAN], expected[SPAN])


def test_an_offloaded_student_is_saved_whole(spread, blocks, tmp_path):
    student = spread["student"]
    student.save_pretrained(tmp_path)
    assert torch.equal(lft.load_student(tmp_path, device="cpu")(blocks[:2]).logits, student(blocks[:2]).logits)


@pytest.mark.parametrize("operator", [lft.Flow(), lft.Ridge(), lft.Skip()], ids=lambda o: o.kind)
def test_spread_models_are_refused_where_their_weights_are_needed(operator, spread, teacher, blocks):
    with pytest.raises(ValueError, match=r"teacher was loaded with a device_map.* leave out device_map"):
        lft.splice(spread["teacher"], SPAN, operator)
    whole = lft.splice(teacher, SPAN, operator)
    with pytest.raises(ValueError, match="teacher was loaded with a device_map"):
        lft.fit(whole, spread["teacher"], blocks)
    with pytest.raises(ValueError, match="student was loaded with a device_map"):
        lft.fit(spread["student"], teacher, blocks)


def test_a_teacher_without_weights_is_not_taken_for_a_spread_one():
    meta = lft.random_teacher("pythia-14m", layers=3, device="meta")
    assert lft.splice(meta, (1, 2), lft.Flow()).device.type == "meta"


# ways to generate


def test_what_transformers_offers_for_generation_gives_the_same_text(ids, teacher):
    student, options = lft.splice(teacher, SPAN, lft.Flow("midpoint", 2)), {"do_sample": False, "max_new_tokens": 8}
    expected = student.generate(ids[:1], **options)
    ways = [
        {"prompt_lookup_num_tokens": 3}, {"assistant_model": teacher}, {"assistant_early_exit": 3},
        {"prefill_chunk_size": 5}, {"cache_implementation": "static", "disable_compile": True}, {"use_cache": False},
    ]  # fmt: skip
    for way in ways:
        assert torch.equal(student.generate(ids[:1], **way, **options), expected), way
    beams = [student.generate(ids, num_beams=3, **way, **options) for way in ways[-2:]]
    assert torch.equal(*beams)


def test_a_paged_cache_is_refused_before_anything_runs(ids, teacher):
    student = lft.splice(teacher, SPAN, lft.Flow())
    with pytest.raises(ValueError, match="no paged cache"):
        student.generate(ids, cache_implementation="paged", max_new_tokens=2)
    with pytest.raises(ValueError, match="no paged cache"):
        student.generate_batch(ids.tolist(), max_new_tokens=2)


# copies and launchers


def changed(model):
    """A student of this model that has all that a student may have besides layers: a sink, hooks, a flow of two."""
    student = lft.splice(model, SPAN, lft.Flow("midpoint", 2, layers=2))
    student.operator.set_sink(torch.ones(model.config.hidden_size))
    student.wire()
    return student


@pytest.mark.parametrize("way", ["copy", "pickle", "torch.save"])
@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "qwen3"])
def test_a_copy_is_the_same_and_shares_nothing(family, way, teacher, ids, tmp_path):
    student = changed(teacher if family == "gpt_neox" else other(family))
    if way == "torch.save":
        torch.save(student, file := io.BytesIO())
        again = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    else:
        again = copy.deepcopy(student) if way == "copy" else pickle.loads(pickle.dumps(student))
    expected = student(ids).logits
    assert torch.equal(again(ids).logits, expected)
    greedy = {"do_sample": False, "max_new_tokens": 4}
    assert torch.equal(again.generate(ids, **greedy), student.generate(ids, **greedy))
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in student.parameters()]
    with pytest.raises(ValueError, match=r"student\.save_pretrained"):
        again.model.save_pretrained(tmp_path)
    with torch.no_grad():
        for p in again.parameters():
            p.zero_()
    again.set_solver("euler", 1)
    assert torch.equal(student(ids).logits, expected)


def test_a_student_crosses_to_another_process(teacher, ids, tmp_path):
    student = changed(teacher)
    (tmp_path / "student").write_bytes(pickle.dumps((student, ids)))
    script = (
        "import pickle, sys, torch; student, ids = pickle.load(open(sys.argv[1], 'rb'));"
        "torch.save(student(ids).logits, sys.argv[2])"
    )
    places = [str(tmp_path / name) for name in ("student", "logits")]
    subprocess.run([sys.executable, "-c", script, *places], check=True, timeout=120)
    assert torch.equal(torch.load(places[1]), student(ids).logits)
