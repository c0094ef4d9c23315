"""Speculative decoding: the text is the teacher's, the counts add up, the formulas are what they count."""

import copy
import itertools
import json

import pytest
import torch
from test_families import TEACHERS
from test_splicing import TheOriginalLayers
from transformers import AutoModelForCausalLM

import lft_edu as lft
from lft_edu.drafting import Reader, acceptance, best_speedup, draft, expected_tokens, speedup
from lft_edu.loading.assets import ASSETS
from lft_edu.loading.teachers import build_model, shipped_students
from lft_edu.operators import OPERATORS
from lft_edu.recipes import drafting as recipe

SPAN, NEW = (2, 5), 17
STUDENTS = {
    "skip": lambda teacher: lft.splice(teacher, SPAN, lft.Skip()),
    "euler": lambda teacher: lft.splice(teacher, SPAN, lft.Flow("euler", 2)),
    "midpoint": lambda teacher: lft.splice(teacher, SPAN, lft.Flow("midpoint", 2)),
    "sink": lambda teacher: with_sink(lft.splice(teacher, SPAN, lft.Flow("midpoint", 1))),
    "the first layers": lambda teacher: lft.splice(teacher, (0, 3), lft.Flow("euler", 1)),
    "one layer": lambda teacher: lft.splice(teacher, (4, 5), lft.Skip()),
    "no layer": lambda teacher: lft.splice(teacher, (0, 8), lft.Skip()),  # nothing is cached
}


def with_sink(student):
    student.operator.set_sink(torch.linspace(-9, 9, 64))
    student.wire()
    return student


def tiny(kind):
    """A random teacher of a family. Its embeddings are large: it doesn't repeat itself, and students are half right."""
    if kind == "gpt_neox":
        model = build_model(64, 300, layers=8, seed=1)
        model.generation_config.eos_token_id = None
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(TEACHERS[kind]())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
        model.get_input_embeddings().weight.mul_(8)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["gpt_neox", "llama"])
def teacher(request):
    return tiny(request.param)


@pytest.fixture(scope="module")
def perfect(teacher):
    """A student that is its teacher: the operator is the layers that were there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPERATORS, "original", TheOriginalLayers)
        TheOriginalLayers.source = teacher
        yield lft.splice(teacher, SPAN, TheOriginalLayers())


@pytest.fixture(scope="module")
def hopeless(teacher):
    """A student that always says the token its teacher finds least likely."""
    student = lft.splice(teacher, SPAN, lft.Skip())
    with torch.no_grad():
        student.get_output_embeddings().weight.neg_()
    return student


def greedy(teacher, ids, new=NEW, **options):
    return teacher.generate(ids, max_new_tokens=new, do_sample=False, pad_token_id=0, **options)


@pytest.mark.parametrize("name", STUDENTS)
def test_the_text_is_the_teachers(teacher, ids, name):
    student = STUDENTS[name](teacher)
    for prompt, lookahead in itertools.product((ids[:1], ids[1:2, :1]), (1, 2, 5)):
        found = draft(teacher, student, prompt, NEW, lookahead)
        assert torch.equal(found.ids, greedy(teacher, prompt))
        assert found.new_tokens == NEW == found.passes + found.accepted
        assert found.accepted <= found.tested <= found.drafted <= lookahead * found.passes
        assert found.tokens_per_pass == NEW / found.passes


@pytest.mark.parametrize("name", STUDENTS)
def test_transformers_writes_the_same_text(teacher, ids, name):
    student = STUDENTS[name](teacher)
    for prompt in (ids[:1], ids[1:2, :1]):
        assert torch.equal(greedy(teacher, prompt, assistant_model=student), greedy(teacher, prompt))


def test_transformers_takes_one_padded_prompt_and_refuses_two(teacher, ids):
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids[:2]], 1)
    mask = (torch.arange(15) >= 3).long().expand(2, -1)
    student = STUDENTS["sink"](teacher)
    found = greedy(teacher, padded[:1], attention_mask=mask[:1], assistant_model=student)
    assert torch.equal(found, greedy(teacher, padded[:1], attention_mask=mask[:1]))
    assert torch.equal(found[:, 3:], greedy(teacher, ids[:1]))
    with pytest.raises(ValueError, match="batch_size = 1"):
        greedy(teacher, padded, attention_mask=mask, assistant_model=student)


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "gpt2"])
def test_other_families_too_with_sliding_windows_shorter_than_the_text(kind, ids):
    teacher = tiny(kind)
    for operator in (lft.Skip(), lft.Flow("midpoint", 1)):
        student = lft.splice(teacher, SPAN, operator)
        expected = greedy(teacher, ids[:1])
        assert torch.equal(draft(teacher, student, ids[:1], NEW, 3).ids, expected)
        assert torch.equal(greedy(teacher, ids[:1], assistant_model=student), expected)


def test_a_refused_draft_leaves_the_cache_as_if_it_had_never_been(teacher, ids):
    student = STUDENTS["sink"](teacher)
    reader, other = Reader(student), Reader(student)
    reader.choices(torch.cat([ids[:1, :6], ids[1:2]], 1))
    reader.keep(6)
    other.choices(ids[:1, :6])
    found, expected = ([x for layer in r.cache.layers for x in (layer.keys, layer.values)] for r in (reader, other))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    assert torch.equal(reader.choices(ids[:1], 6), other.choices(ids[:1], 6))


def test_a_perfect_student_is_always_right_and_a_hopeless_one_never(teacher, perfect, hopeless, ids, blocks):
    found = draft(teacher, perfect, ids[:1], 18, lookahead=5)
    assert (found.passes, found.drafted, found.tested, found.accepted) == (3, 15, 15, 15)
    same = acceptance(teacher, perfect, blocks)
    assert same.greedy == 1
    assert same.sampling == pytest.approx(1, abs=1e-5)
    found = draft(teacher, hopeless, ids[:1], 6, lookahead=5)
    assert (found.passes, found.drafted, found.tested, found.accepted) == (6, 5 + 4 + 3 + 2 + 1, 5, 0)
    assert acceptance(teacher, hopeless, blocks).greedy == 0


@pytest.mark.parametrize("several", [False, True])
def test_an_end_of_text_ends_it(teacher, perfect, ids, several):
    """Wherever it falls: in the prompt it does nothing, and accepted in a draft, the teacher adds nothing to it."""
    written = greedy(teacher, ids[:1])[0, 12:].tolist()
    model = copy.deepcopy(teacher)
    for token in dict.fromkeys(written[:7]):
        model.generation_config.eos_token_id = [token, 299] if several else token
        expected = greedy(model, ids[:1])
        for student, lookahead in itertools.product((perfect, STUDENTS["one layer"](teacher)), (1, 5)):
            found = draft(model, student, ids[:1], NEW, lookahead)
            assert torch.equal(found.ids, expected)
            assert found.new_tokens in (found.passes + found.accepted, found.passes + found.accepted - 1)
            assert torch.equal(greedy(model, ids[:1], assistant_model=student), expected)
    assert found.ids.shape[1] < 12 + NEW


def test_one_new_token_takes_no_draft(teacher, hopeless, ids):
    found = draft(teacher, hopeless, ids[:1], max_new_tokens=1)
    assert (found.new_tokens, found.passes, found.drafted) == (1, 1, 0)


def test_acceptance_is_its_definition(teacher, blocks):
    student = STUDENTS["one layer"](teacher)
    found = acceptance(teacher, student, blocks, batch_size=7)
    p, q = (model(blocks).logits.double().softmax(-1) for model in (teacher, student))
    same = (p.argmax(-1) == q.argmax(-1)).double()
    assert found.greedy == pytest.approx(same.mean().item())
    assert found.sampling == pytest.approx(1 - 0.5 * (p - q).abs().sum(-1).mean().item(), abs=1e-5)
    for value, (low, high) in ((found.greedy, found.greedy_interval), (found.sampling, found.sampling_interval)):
        assert low < value < high
    assert found.tokens == blocks.numel()
    assert found.sequence_greedy.shape == (40,)
    assert set(found.to_dict()) == {"greedy", "greedy_interval", "sampling", "sampling_interval", "tokens"}


def test_the_formulas_are_what_a_simulation_counts(generator):
    for alpha, gamma in itertools.product((0.0, 0.3, 0.8, 1.0), (1, 4)):
        accepted = (torch.rand(20_000, gamma, generator=generator) < alpha).cumprod(1).sum(1)
        assert expected_tokens(alpha, gamma) == pytest.approx((1 + accepted).double().mean().item(), rel=0.02)
        time = 1 + gamma * 0.25  # of a pass of the teacher
        assert speedup(alpha, 0.25, gamma) == pytest.approx((1 + accepted).double().mean().item() / time, rel=0.02)
    assert expected_tokens(0.8, 3) == pytest.approx((1 - 0.8**4) / (1 - 0.8))


def test_the_best_lookahead():
    lookahead, gain = best_speedup(0.8, 13 / 24)  # 24 layers, of which a student replaces 12 by one
    assert lookahead == 2
    assert gain == pytest.approx(2.44 / (1 + 2 * 13 / 24))
    assert 1.17 < gain < 1.18
    assert best_speedup(0.9, 0.05)[0] > 5
    assert best_speedup(0.2, 0.5)[1] < 1, "drafting does not always pay"
    assert best_speedup(1.0, 0.5, most=8) == (8, pytest.approx(9 / 5))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: expected_tokens(1.1, 2), "from 0 to 1"),
        (lambda: expected_tokens(float("nan"), 2), "from 0 to 1"),
        (lambda: expected_tokens(0.5, 0), "at least 1 token"),
        (lambda: best_speedup(-0.1, 0.5), "from 0 to 1"),
        (lambda: best_speedup(0.5, 0.0), "above 0"),
        (lambda: speedup(0.5, 0.5, 0), "at least 1 token"),
    ],
)
def test_bad_numbers_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_bad_pairs_and_prompts_are_refused(teacher, ids, blocks):
    student = STUDENTS["skip"](teacher)
    other = build_model(64, 200, layers=8)  # another vocabulary
    for call in (lambda: draft(other, student, ids[:1]), lambda: acceptance(other, student, blocks)):
        with pytest.raises(ValueError, match="belongs to another teacher"):
            call()
    with pytest.raises(ValueError, match="not a spliced model"):
        draft(teacher, teacher, ids[:1])
    for prompt in (ids, ids[0], ids[:1, :0]):
        with pytest.raises(ValueError, match="one prompt without padding"):
            draft(teacher, student, prompt)
    for options in ({"lookahead": 0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match="at least 1 of each"):
            draft(teacher, student, ids[:1], **options)


def test_a_cache_that_cannot_be_cropped_is_refused(ids, monkeypatch):
    """Before transformers 5.24 a sliding window forgot what left it."""
    from transformers import DynamicCache

    mistral = tiny("mistral")
    monkeypatch.delattr("transformers.cache_utils.Cache.activate_past_recording")
    assert not hasattr(DynamicCache, "activate_past_recording")
    with pytest.raises(ValueError, match="sliding window"):
        draft(mistral, STUDENTS["skip"](mistral), ids[:1])


def test_the_recipe_measures_a_student_and_keeps_the_other_teachers_rows(tmp_path):
    (tmp_path / "drafting.json").write_text('{"smollm2-135m": {"rows": []}}')
    small = ["--only", "flow-walking-euler-6-12", "--tokens", "512", "--prompts", "2", "--new-tokens", "6"]
    recipe.main([*small, "--rounds", "1", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "drafting.json").read_text())
    assert list(results) == ["smollm2-135m", "bundled"]
    found = results["bundled"]
    assert found["sequences"] == [4, 128]
    assert set(found["pass_costs"]) == {"1", "2", "4"}
    (row,) = found["rows"]
    assert row["best_speedup"] == best_speedup(row["greedy"], row["cost_ratio"])[1]
    for one in row["draft"]:
        assert one["same_text"] == 1
        assert one["passes"] + one["accepted"] == 2 * 6
        assert one["speedup"] == pytest.approx(row["ms_loop"] / one["ms"])
    recipe.main(["--latency", "--rounds", "1", "--out", str(tmp_path)])
    (again,) = json.loads((tmp_path / "drafting.json").read_text())["bundled"]["rows"]
    assert again["draft"] == row["draft"]
    assert again["best_speedup"] == best_speedup(row["greedy"], again["cost_ratio"])[1]
    with pytest.raises(ValueError, match=r"fits no student.*bundled/ridge-6-12"):
        recipe.main(["--only", "nobody", "--tokens", "256", "--prompts", "1"])


def test_the_results_that_ship_hold_together():
    """Every shipped student has a row, the text is the teacher's, and the formula's numbers are the formula's."""
    for teacher, found in json.loads((ASSETS / "results" / "drafting.json").read_text()).items():
        assert [row["name"] for row in found["rows"]] == shipped_students(teacher)
        for row in found["rows"]:
            assert (row["best_lookahead"], row["best_speedup"]) == best_speedup(row["greedy"], row["cost_ratio"])
            assert all(one["same_text"] == 1 for one in row["draft"]) or found["dtype"] != "float32"
