"""Hidden states as data: what is captured, on which axis, and what is read off it."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

import lft_edu as lft
from lft_edu import text, trajectories
from lft_edu.families import family_of
from lft_edu.flow import STEPS, uniform_times, walk
from lft_edu.trajectories import divergence, logit_lenses, path_of_ids, shared_depths

TEXT = "for name in names:\n    print(name)"
HOSTILE = ["<b>", "</script>", "\n", "🙂", "\udce9".encode("utf-8", "surrogateescape").decode("latin-1"), "שלום",
           "<img src=x onerror=alert(1)>", "\u202eabc", "\x00", "&amp;", "%{text}", "$x$"]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(bundled):
    return bundled[1]


@pytest.fixture(scope="module")
def models(bundled):
    teacher, _ = bundled
    names = ("flow-walking-6-18", "flow-matching-6-12", "regression-6-18", "ridge-6-12")
    return {"teacher": teacher} | {name: lft.load_student(f"bundled/{name}", teacher) for name in names}


def llama_like(config):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 2048}
    return AutoModelForCausalLM.from_config(config(**shape, num_attention_heads=4, num_key_value_heads=2)).eval()


@pytest.mark.parametrize("config", [None, LlamaConfig, MistralConfig, Qwen2Config])
def test_states_are_the_model_s_own_and_end_before_the_final_norm(config, bundled, tokenizer):
    model = bundled[0] if config is None else llama_like(config)
    path = lft.capture(model, tokenizer, TEXT)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    out = model(input_ids=ids, output_hidden_states=True)
    expected = torch.stack(out.hidden_states)[:, 0]
    assert path.states.shape == expected.shape
    assert path.times.tolist() == list(range(len(expected)))
    torch.testing.assert_close(path.states[:-1], expected[:-1])
    assert (path.states[-1] - expected[-1]).abs().max() > 0.1  # theirs has gone through the final norm
    norm = model.get_submodule(family_of(model.config).final_norm)
    torch.testing.assert_close(norm(path.states[-1]), expected[-1])
    torch.testing.assert_close(path.log_probabilities(), out.logits[0].log_softmax(-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["flow-walking-6-18", "flow-matching-6-12", "regression-6-18", "ridge-6-12"])
@pytest.mark.parametrize("between", [0, 3])
def test_teacher_and_student_share_the_axis_and_the_student_ends_in_its_logits(models, tokenizer, name, between):
    student, teacher = models[name], models["teacher"]
    path, truth = lft.capture(student, tokenizer, TEXT, substeps=between), lft.capture(teacher, tokenizer, TEXT)
    m, n = student.config.span
    assert path.span == (m, n)
    assert path.times[0] == 0
    assert path.times[-1] == 24
    assert (path.times.diff() > 0).all()
    assert len(path.states) == len(path.times)
    torch.testing.assert_close(path.at(range(m + 1)), truth.states[: m + 1], atol=1e-4, rtol=1e-4)
    steps = student.operator.settings.get("num_steps", 0)
    inside = (path.times > m) & (path.times < n)
    assert inside.sum() == (steps * (between + 1) - 1 if steps else 0)
    assert {m, n} <= set(shared_depths(truth, path).tolist())
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = student(input_ids=ids).logits[0].log_softmax(-1)
        truly = teacher(input_ids=ids).logits
    torch.testing.assert_close(path.log_probabilities(), expected, atol=1e-4, rtol=1e-4)
    kl = lft.objectives.token_kl(expected[None], truly)[0]
    torch.testing.assert_close(divergence(truth, path), kl, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_pictures_inside_a_step_do_not_change_where_it_ends(solver, generator):
    """A turning field, for which an Euler step is a straight line and a midpoint step is bent."""

    class Turn(lft.Flow):
        def field(self, x0=None, **context):
            return lambda x, t: 2 * torch.stack([-x[..., 1], x[..., 0]], -1)

    x0 = torch.randn(1, 5, 2, generator=generator, dtype=torch.float64)
    operator = Turn(solver, 3)
    plain, t = operator.path(x0, {})
    fine, dense = operator.path(x0, {}, substeps=4)
    assert t.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert dense.tolist() == pytest.approx([i / 15 for i in range(1, 16)])
    expected = walk(operator.field(), x0, uniform_times(3, dtype=torch.float64), STEPS[solver], return_path=True)[1:]
    torch.testing.assert_close(torch.stack(plain), expected)
    torch.testing.assert_close(torch.stack(fine)[4::5], expected)
    first = torch.stack([x0, *fine[:5]])
    bend = first.diff(dim=0).diff(dim=0).abs().max()
    assert (bend < 1e-12) == (solver == "euler")


def test_a_list_of_texts_gives_what_each_gives_alone(models, tokenizer):
    texts = ["x = 1", TEXT, "import os\n"]
    for model in (models["teacher"], models["flow-walking-6-18"]):
        together = lft.capture(model, tokenizer, texts, batch_size=2)
        assert [path.text for path in together] == texts
        for one, path in zip(texts, together, strict=True):
            alone = lft.capture(model, tokenizer, one)
            assert path.tokens == alone.tokens
            torch.testing.assert_close(path.states, alone.states, atol=2e-3, rtol=1e-4)


def test_a_flow_s_stations_meet_the_teacher_s_layers_exactly(teacher, ids):
    """(i/k)(n − m) in floating point need not be whole where it should be."""
    student = lft.splice(teacher, (0, 7), lft.Flow("euler", 7))
    _, times = path_of_ids(student, ids[:1])
    assert times.tolist() == list(range(9))


def test_at_goes_straight_between_stations(models, tokenizer):
    path = lft.capture(models["teacher"], tokenizer, TEXT)
    torch.testing.assert_close(path.at(path.times), path.states)
    torch.testing.assert_close(path.at(3.25)[0], 0.75 * path.states[3] + 0.25 * path.states[4])
    for outside in (-0.1, 24.5, math.nan):
        with pytest.raises(ValueError, match="from 0 to 24"):
            path.at(outside)


def test_a_station_is_found_by_its_depth_and_loss_by_its_token(models, tokenizer):
    path = lft.capture(models["flow-walking-6-18"], tokenizer, TEXT)
    assert path.times[path.depth_index(10)] == 10
    assert path.depth_index(18) != 18
    with pytest.raises(ValueError, match="No state was captured at depth 7; the nearest are 6 and 10"):
        path.depth_index(7)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        mean = models["flow-walking-6-18"](input_ids=ids, labels=ids).loss
    torch.testing.assert_close(path.loss().mean(), mean, atol=1e-4, rtol=1e-4)


def test_geometry_of_a_path_known_by_hand(models, tokenizer):
    path = lft.capture(models["teacher"], tokenizer, "x = 1")
    corner = torch.tensor([[0.0, 1.0], [3.0, 1.0], [3.0, 5.0], [3.0, 9.0]])[:, None].expand(4, len(path.tokens), 2)
    made = trajectories.Trajectory(corner, torch.arange(4.0), path.tokens, path.ids, "x = 1", None, path.unembed)
    assert made.step_lengths()[:, 0].tolist() == [3, 4, 4]
    assert made.path_length()[0] == 11
    assert made.straightness()[0].item() == pytest.approx(math.hypot(3, 8) / 11)
    assert made.curvature()[:, 0].tolist() == pytest.approx([math.pi / 2, 0.0], abs=1e-6)
    assert made.norms()[:, 0].tolist() == pytest.approx([1, 10**0.5, 34**0.5, 90**0.5])
    assert made.cosines()[0, 0].item() == pytest.approx(1 / 10**0.5)


def test_logit_lens_reads_what_the_head_reads(models, tokenizer):
    path = lft.capture(models["flow-matching-6-12"], tokenizer, TEXT, substeps=1)
    lens = path.logit_lens(3)
    assert lens.ids.shape == lens.probabilities.shape == (*path.states.shape[:2], 3)
    by_hand = path.unembed(path.states[9, 2]).softmax(-1)
    best = by_hand.argmax().item()
    assert lens.top(9, 2)[0] == (tokenizer.decode([best]), pytest.approx(by_hand[best].item(), rel=1e-4))
    final = path.log_probabilities()[2]
    kl = (final.exp() * (final - by_hand.log())).sum().item()
    assert lens.kl[9, 2].item() == pytest.approx(kl, rel=1e-3)
    assert lens.kl[-1].abs().max() < 1e-5
    assert lens.kl.min() > -1e-4
    for k in (0, 2049):
        with pytest.raises(ValueError, match="between 1 and 2048"):
            path.logit_lens(k)


def test_the_lenses_of_two_models_are_those_of_each_and_shared_states_are_read_once(models, tokenizer, monkeypatch):
    paths = [lft.capture(models[name], tokenizer, TEXT) for name in ("teacher", "flow-walking-6-18", "ridge-6-12")]
    alone = [path.logit_lens(4) for path in paths]
    rows, logits = [], trajectories.Unembed.logits
    monkeypatch.setattr(trajectories.Unembed, "logits", lambda self, x: (rows.append(len(x)), logits(self, x))[1])
    monkeypatch.setattr(trajectories, "evaluation_batch", lambda *a: 3)  # tokens per product
    together = logit_lenses(paths, 4)
    states = len(paths[0].states) + sum(len(path.states) - 7 for path in paths[1:])  # layers 0 to 5: 7 depths
    assert sum(rows) == states * len(paths[0].ids)
    for lens, expected in zip(together, alone, strict=True):
        assert torch.equal(lens.ids, expected.ids)
        assert torch.equal(lens.times, expected.times)
        assert lens.words == expected.words
        torch.testing.assert_close(lens.probabilities, expected.probabilities, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(lens.kl, expected.kl, rtol=1e-4, atol=1e-4)


def test_a_student_with_a_head_of_its_own_is_read_with_it(models, tokenizer):
    student = copy.deepcopy(models["ridge-6-12"])
    with torch.no_grad():
        student.get_output_embeddings().weight[:10].add_(1.0)
    paths = [lft.capture(model, tokenizer, TEXT) for model in (models["teacher"], student)]
    found = logit_lenses(paths, 3)
    assert not torch.equal(found[0].probabilities[0], found[1].probabilities[0])  # of the same states
    for lens, path in zip(found, paths, strict=True):
        torch.testing.assert_close(lens.probabilities, path.logit_lens(3).probabilities)
    halved = lft.capture(copy.deepcopy(student).bfloat16(), tokenizer, TEXT)  # of another type
    assert torch.equal(logit_lenses([paths[0], halved])[1].kl, halved.logit_lens().kl)
    with pytest.raises(ValueError, match="same text"):
        logit_lenses([paths[0], lft.capture(student, tokenizer, "x = 1")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_lens_s_kl_is_that_of_float64(bundled, tokenizer, dtype):
    path = lft.capture(copy.deepcopy(bundled[0]).to(dtype), tokenizer, TEXT)
    final, here = (path.unembed(x).double().log_softmax(-1) for x in (path.states[-1], path.states))
    exact = (final.exp() * (final - here)).sum(-1).float()
    # in bfloat16, logits of another number of rows may differ in their last of 8 bits
    torch.testing.assert_close(path.logit_lens(1).kl, exact, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 0.02)


def test_tokens_are_shown_as_they_stand_and_broken_bytes_as_bytes(tokenizer):
    ids = tokenizer("é🙂<b>")["input_ids"]
    words = [text.token_to_str(tokenizer, i) for i in ids]
    assert "\ufffd" not in "".join(words)
    assert "".join(words).endswith("<b>")
    assert bytes("".join(words), "latin-1").decode("unicode_escape").encode("latin-1").decode() == "é🙂<b>"


@settings(max_examples=25, deadline=None)
@given(text=st.text(min_size=1, max_size=40) | st.lists(st.sampled_from(HOSTILE), min_size=1).map("".join))
def test_any_text_is_captured(bundled, text):
    teacher, tokenizer = bundled
    path = lft.capture(teacher, tokenizer, text)
    assert path.states.shape == (25, len(path.tokens), 64)
    assert path.states.isfinite().all()
    assert len(path.tokens) == len(path.ids)
    assert all(isinstance(word, str) and "\ufffd" not in word for word in path.tokens) or "\ufffd" in text


def test_refusals_say_what_to_do(models, tokenizer, monkeypatch):
    teacher = models["teacher"]
    empty, nothing, number = "type some Python", "list of texts is empty", "give a string"
    for wrong, message in (
        ("\ud800", "lone surrogate"),
        ("", empty),
        (["x", ""], empty),
        ([], nothing),
        (["x", 3], number),
        (3, number),
    ):
        with pytest.raises(ValueError, match=message):
            lft.capture(teacher, tokenizer, wrong)
    with pytest.raises(ValueError, match=r"600 tokens; this model reads up to 512"):
        lft.capture(teacher, tokenizer, "a" * 600)
    for batch_size in (0, -1, True):
        with pytest.raises(ValueError, match="texts per forward pass"):
            lft.capture(teacher, tokenizer, "x", batch_size=batch_size)
    for between in (-1, 1.5, True):
        with pytest.raises(ValueError, match="states inside each step"):
            lft.capture(teacher, tokenizer, "x", substeps=between)
    one, other = (lft.capture(teacher, tokenizer, text) for text in ("x = 1", "y = 2"))
    with pytest.raises(ValueError, match="different texts"):
        divergence(one, other)
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 100_000})())
    ran = []
    monkeypatch.setattr(trajectories, "path_of_ids", lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=r"The states of \d+ tokens at 25 depths would take"):
        lft.capture(teacher, tokenizer, TEXT)
    assert not ran  # it was refused before anything was computed


def test_memory_is_predicted_from_what_is_kept(models, tokenizer, monkeypatch):
    asked = []
    monkeypatch.setattr(trajectories, "require_memory", lambda needed, *_: asked.append(needed))
    path = lft.capture(models["flow-walking-6-18"], tokenizer, TEXT, substeps=2)
    assert asked[0] >= path.states.nbytes
    assert asked[0] < 20 * path.states.nbytes + 4 * 2048 * len(path.tokens)


def test_padding_never_reaches_a_token(teacher, ids):
    alone, _ = path_of_ids(teacher, ids[:1, :5])
    padded, _ = path_of_ids(teacher, torch.cat([ids[:1, :5], torch.zeros(1, 7, dtype=torch.long)], 1))
    torch.testing.assert_close(padded[:, :, :5], alone, atol=1e-5, rtol=1e-4)
