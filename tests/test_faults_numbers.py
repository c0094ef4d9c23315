"""Inputs that would give a wrong number without a word: every function that measures or fits refuses them."""

import copy
import math

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GemmaTokenizer, GPT2Config, GPT2LMHeadModel, LlamaTokenizer

import lft_edu as lft
from lft_edu.couplings import Coupling, assign, recoupling_ratio
from lft_edu.criteria import CRITERIA
from lft_edu.fitting import LatentSource
from lft_edu.flow import MOST_STEPS, euler_step, midpoint_step, walk
from lft_edu.latents import StateStore, depth_states, span_latents, states_at
from lft_edu.loading.corpora import load_corpus, token_sequences
from lft_edu.objectives import OBJECTIVES, flow_matching_loss
from lft_edu.skipping import best_skips, skip_kl, skipped_layers
from lft_edu.support.tokens import token_ids
from lft_edu.text import as_sequences, complete, encode, first_ids, token_to_str

SPAN = (2, 5)


@pytest.fixture(scope="module")
def short(teacher):
    """The teacher, with a context of 32 tokens and a padding token that is not text."""
    model = copy.deepcopy(teacher)
    model.config.max_position_embeddings, model.config.pad_token_id = 32, 0
    return model


@pytest.fixture(scope="module")
def student(short):
    return lft.splice(short, SPAN, lft.Skip())


def readers(model, student, tmp_path) -> dict:
    """Everything that reads a corpus: name → function of it."""
    options = {"max_steps": 1, "batch_size": 2, "progress": False}
    return {
        "evaluate": lambda c: lft.evaluate(student, model, c),
        "ridge": lambda c: lft.fit(lft.splice(model, SPAN, lft.Ridge()), model, c, **options),
        "flow": lambda c: lft.fit(lft.splice(model, SPAN, lft.Flow()), model, c, **options),
        "cached": lambda c: lft.fit(lft.splice(model, SPAN, lft.Flow()), model, c, cache_latents=True, **options),
        "logit_kl": lambda c: lft.fit(lft.splice(model, SPAN, lft.Flow()), model, c, "logit_kl", **options),
        "depth_states": lambda c: depth_states(model, c, 1),
        "skip_kl": lambda c: skip_kl(model, c, [(1, 2)], progress=False),
        "best_skips": lambda c: best_skips(model, c, 1, progress=False),
        "acceptance": lambda c: lft.acceptance(model, student, c),
        "store": lambda c: StateStore(tmp_path / "store", model, as_sequences(c, model), [2]),
    }


READERS = list(readers(None, None, None))
TEXT = torch.randint(1, 300, (4, 16), generator=torch.Generator().manual_seed(0))
PADDED = torch.cat([torch.zeros(4, 3, dtype=torch.long), TEXT], 1)
MASK = (torch.arange(16) >= torch.tensor([0, 0, 2, 0])[:, None]).long()
UNREADABLE = {
    "longer than the context": (torch.randint(1, 300, (2, 33)), "reads up to 32"),
    "fractions": (torch.rand(4, 16), "whole numbers"),
    "truth values": (TEXT > 9, "whole numbers"),
    "negative": (-TEXT, "not in this model's vocabulary, 0 to 299"),
    "beyond the vocabulary": (TEXT + 299, "not in this model's vocabulary, 0 to 299"),
    "padded on the left": (PADDED, "Row 0 is padded"),
    "padded on the right": (PADDED.flip(1), "Row 0 is padded"),
    "a tokenizer's mask": ({"input_ids": TEXT, "attention_mask": MASK}, "Row 2 is padded"),
    "one token a row": (TEXT[:, :1], "2 or more tokens|at least 2"),
    "no row": (TEXT[:0], "empty"),
    "one row alone": (TEXT[0], r"\(N, T\)"),
    "lists of several lengths": ([[1, 2, 3], [4, 5]], "all of one length"),
    "splits": ({"train": TEXT}, "no column input_ids"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", UNREADABLE)
def test_text_that_a_model_cannot_read_is_refused_by_all_that_read(kind, reader, short, student, tmp_path):
    corpus, words = UNREADABLE[kind]
    with pytest.raises(ValueError, match=words):
        readers(short, student, tmp_path)[reader](corpus)


ROWS = {
    "longer than the context": ({"input_ids": [[5] * 33] * 2}, "reads up to 32"),
    "fractions": ({"input_ids": [[0.5] * 8] * 2}, "whole numbers"),
    "negative": ({"input_ids": [[-1] * 8] * 2}, "not in this model's vocabulary"),
    "masked": ({"input_ids": [[5] * 8] * 2, "attention_mask": [[1] * 8, [0] + [1] * 7]}, "padded"),
    "several lengths": ({"input_ids": [[5] * 8, [5] * 7]}, "all of one length"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ROWS)
def test_datasets_too(kind, reader, short, student, tmp_path):
    rows, words = ROWS[kind]
    with pytest.raises(ValueError, match=words):
        readers(short, student, tmp_path)[reader](datasets.Dataset.from_dict(rows))


@pytest.mark.parametrize("kind", ["fractions", "negative", "masked", "several lengths"])
def test_and_streams(kind, short):
    rows, words = ROWS[kind]
    stream = datasets.Dataset.from_dict(rows).to_iterable_dataset()
    with pytest.raises(ValueError, match=words):
        lft.fit(lft.splice(short, SPAN, lft.Flow()), short, stream, max_steps=1, batch_size=2, progress=False)


@given(st.data())
def test_ids_of_any_whole_type_and_form_are_the_same_ids(data):
    n, t = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    rows = data.draw(st.lists(st.lists(st.integers(0, 99), min_size=t, max_size=t), min_size=n, max_size=n))
    kind = data.draw(st.sampled_from([torch.int16, torch.int32, torch.int64, torch.uint8]))
    want = torch.tensor(rows)
    for same in (rows, want.to(kind), want.numpy(), {"input_ids": rows}, {"input_ids": rows, "attention_mask": None}):
        found = token_ids(same, 100, t)
        assert found.dtype == torch.long
        assert torch.equal(found, want)
    with pytest.raises(ValueError, match="not in this model's vocabulary"):
        token_ids(rows, max(map(max, rows)))


def test_what_a_tokenizer_returns_is_a_corpus(bundled, short):
    _, tokenizer = bundled
    plain = tokenizer(["x = 1", "y = 2"])
    assert as_sequences(plain).shape == (2, len(plain["input_ids"][0]))


def test_a_batch_that_no_memory_holds_is_refused_at_once(short):
    with pytest.raises(ValueError, match="Lower batch_size"):
        lft.fit(lft.splice(short, SPAN, lft.Flow()), short, TEXT, batch_size=10**9, progress=False)


def test_latents_of_another_teacher_are_refused(short):
    source = LatentSource(copy.deepcopy(short), SPAN, TEXT, 2)
    with pytest.raises(ValueError, match="another teacher"):
        lft.fit(lft.splice(short, SPAN, lft.Flow()), short, source, max_steps=1, progress=False)


# dropout


@pytest.fixture
def dropping():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=6, n_head=4, n_positions=64, **ids))
    return model.requires_grad_(False)


MEASURES = {
    "evaluate": lambda s, t, ids: lft.evaluate(s, t, ids).sequence_kl,
    "ridge": lambda s, t, ids: _ridge(t, ids),
    "flow": lambda s, t, ids: _trained(t, ids),
    "skip_kl": lambda s, t, ids: skip_kl(t, ids, [(1, 3)], progress=False)[1, 3],
    "acceptance": lambda s, t, ids: lft.acceptance(t, s, ids).sequence_sampling,
    "draft": lambda s, t, ids: lft.draft(t, s, ids[:1], 8).ids,
    "depth_states": lambda s, t, ids: depth_states(t, ids, 3, torch.Generator().manual_seed(0)),
    "span_latents": lambda s, t, ids: span_latents(t, (1, 3), ids).x1,
    "states_at": lambda s, t, ids: states_at(t, ids, [4])[4],
}


def _ridge(teacher, ids):
    student = lft.splice(teacher, (2, 4), lft.Ridge())
    lft.fit(student, teacher, ids, max_steps=2, batch_size=4, progress=False)
    return student.operator.weight


def _trained(teacher, ids):
    student = lft.splice(teacher, (2, 4), lft.Flow())
    lft.fit(student, teacher, ids, max_steps=2, batch_size=4, progress=False)
    return torch.cat([p.flatten() for p in student.operator.parameters()])


@pytest.mark.parametrize("measure", MEASURES)
def test_models_left_in_training_mode_are_measured_without_dropout(measure, dropping):
    ids = torch.randint(0, 97, (8, 16), generator=torch.Generator().manual_seed(1))
    student = lft.splice(dropping.eval(), (2, 4), lft.Skip())
    want = MEASURES[measure](student, dropping, ids)
    for model in (student, dropping):
        model.train()
    assert torch.equal(MEASURES[measure](student, dropping, ids), want)
    assert dropping.training  # as it was left
    assert student.training or measure not in ("evaluate", "acceptance", "draft")


# the token before every text


@pytest.fixture(scope="module")
def beginning(bundled):
    """The bundled tokenizer, made to put its end-of-text token before every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(bundled[1])
    parts = {"single": "<|endoftext|> $A", "special_tokens": [("<|endoftext|>", 0)]}
    tokenizer._tokenizer.post_processor = TemplateProcessing(**parts)
    return tokenizer


def test_what_begins_every_text_begins_every_sequence_once(beginning, bundled, tmp_path):
    teacher, plain = bundled
    assert (first_ids(beginning), first_ids(plain)) == ([0], [])
    (tmp_path / "text.txt").write_text("for name in names:\n    print(name)\n" * 40, encoding="utf-8")
    with_first, without = (
        as_sequences(load_corpus(tmp_path / "text.txt", tok, block_size=16)) for tok in (beginning, plain)
    )
    assert (with_first[:, 0] == 0).all()
    assert not (without[:, 0] == 0).all()
    assert with_first[:, 1:].flatten()[:90].tolist() == without.flatten()[:90].tolist()
    assert (token_sequences("python-stdlib", beginning, "test", 32, 640)[:, 0] == 0).all()
    for text in ("x", "<|endoftext|>x"):
        assert encode(teacher, beginning, text) == [0, *plain("x")["input_ids"]]
        assert lft.capture(teacher, beginning, text).ids.tolist() == [0, *plain("x")["input_ids"]]
    assert encode(teacher, plain, "<|endoftext|>" * 2) == [0, 0]  # both are the writer's own


def words_only(kind, **options):
    """A tokenizer of this class that knows ten words."""
    words = ["<unk>", "<s>", "</s>", "<pad>", "<eos>", "<bos>", "<mask>", "▁", "a", "b"]
    return kind(vocab={word: i for i, word in enumerate(words)}, merges=[], **options)


@pytest.mark.parametrize(("kind", "bos"), [(LlamaTokenizer, 1), (GemmaTokenizer, 5)])
def test_llama_and_gemma_begin_every_sequence_and_the_option_decides(kind, bos, tmp_path):
    (tmp_path / "text.txt").write_text("ab" * 200, encoding="utf-8")
    load = lambda tokenizer, **options: as_sequences(  # noqa: E731
        load_corpus(tmp_path / "text.txt", tokenizer, block_size=16, **options)
    )
    with_bos, without = words_only(kind, add_bos_token=True), words_only(kind)
    assert (load(with_bos)[:, 0] == bos).all()
    assert not (load(without) == bos).any()
    assert torch.equal(load(with_bos, add_bos=False), load(without))
    assert torch.equal(load(without, add_bos=True), load(with_bos))
    assert (load(with_bos)[:, 1:] != bos).all()
    without.bos_token = None
    with pytest.raises(ValueError, match=r"Set tokenizer\.bos_token"):
        load(without, add_bos=True)


def test_a_card_says_how_sequences_begin(short, student):
    begun = torch.cat([torch.full((4, 1), 7), TEXT], 1)
    for ids, token, words in ((begun, 7, "17, each beginning with token 7"), (TEXT, None, "16, beginning with text")):
        found = lft.evaluate(student, short, ids)
        assert found.first_token == token
        card = lft.make_card(student, short, found, "mine", latency=False)
        assert f"| Tokens a sequence | {words} |" in card.markdown()
        del card["held_out"]["first_token"]
        assert f"| Tokens a sequence | {words.partition(',')[0]} |" in card.markdown()


def test_a_tokenizer_without_end_of_text_is_refused(bundled, tmp_path):
    (tmp_path / "text.txt").write_text("x = 1\n" * 40, encoding="utf-8")
    tokenizer = copy.deepcopy(bundled[1])
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        load_corpus(tmp_path / "text.txt", tokenizer, block_size=16)


def test_text_and_what_is_written_fit_the_context(bundled):
    teacher, tokenizer = bundled
    with pytest.raises(ValueError, match="ask for at most 510"):
        complete(teacher, tokenizer, "x =", tokens=511)
    with pytest.raises(ValueError, match="512"):
        complete(teacher, tokenizer, "x = 1\n" * 400, tokens=1)
    with pytest.raises(ValueError, match="lone surrogate"):
        complete(teacher, tokenizer, "x\udcff", tokens=1)
    with pytest.raises(ValueError, match="temperature=nan"):
        complete(teacher, tokenizer, "x", tokens=1, temperature=math.nan)
    with pytest.raises(ValueError, match="longer than the 512"):
        lft.draft(teacher, lft.splice(teacher, (6, 18), lft.Skip()), torch.ones(1, 4, dtype=torch.long), 509)


def test_ids_beyond_the_tokenizer_have_a_name(bundled):
    assert token_to_str(bundled[1], 2111) == "unused id 2111"


# points


NARROW = {
    "walk": lambda u: walk(u, torch.randn(8, 3), [0.0, 1.0]),
    "flow matching": lambda u: flow_matching_loss(u, torch.randn(8, 3), torch.randn(8, 3)),
    **{name: lambda u, o=cls: _loss(o, u) for name, cls in OBJECTIVES.items() if cls.latent},
}


def _loss(cls, velocity):
    options = {"num_steps": 2, "solver": "euler"} if hasattr(cls, "solver") else {}
    objective, x = cls(**options), torch.randn(8, 3)
    return objective.loss(velocity, x, x + 1, objective.times(8))


@pytest.mark.parametrize("shape", [(8, 1), (1, 3), (8,), ()])
@pytest.mark.parametrize("user", NARROW)
def test_a_velocity_is_never_broadcast(user, shape):
    with pytest.raises(ValueError, match="shape"):
        NARROW[user](lambda x, t: torch.ones(shape))
    assert torch.isfinite(NARROW[user](lambda x, t: torch.ones_like(x))).all()


@pytest.mark.parametrize("step", [euler_step, midpoint_step])
def test_a_walk_back_arrives_where_the_walk_began(step):
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    field = lambda x, t: 0.3 * x + t  # noqa: E731
    errors = []
    for k in (50, 100):
        times = torch.linspace(0, 1, k + 1).tolist()
        back = walk(field, walk(field, x, times, step), times[::-1], step)
        errors.append((back - x).abs().max().item())
        assert torch.equal(back, walk(field, walk(field, x, times, step), torch.tensor(times).flip(0), step))
    order = {euler_step: 1, midpoint_step: 3}[step]  # of midpoint steps there and back, the second order cancels
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)
    one = walk(lambda x, t: torch.full_like(x, 2.0), x, [0.75, 0.25], step)
    assert torch.allclose(one, x - 1)  # (s − t) u, with its sign


def test_steps_have_a_largest_number():
    assert lft.Flow("euler", MOST_STEPS).settings["num_steps"] == MOST_STEPS
    for kind in (lambda k: lft.Flow("euler", k), lft.Loop, lambda k: lft.Regression(k), lambda k: lft.Flow(layers=k)):
        with pytest.raises(ValueError, match="at most 10,000"):
            kind(10**9)


def test_groups_are_whole_numbers():
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match="labels are whole numbers"):
        Coupling(x, x, torch.rand(4))
    assert Coupling(x, x, torch.tensor([1, 1, 0, 0], dtype=torch.int32)).group.dtype == torch.long


def test_outliers_do_not_hide_what_all_others_cost():
    cost = torch.tensor([[5, 1, 1e32], [1, 5, 1e32], [1e32, 1e32, 2]], dtype=torch.float64)
    assert assign(cost).tolist() == [1, 0, 2]
    generator = torch.Generator().manual_seed(0)
    x0, x1 = (torch.randn(64, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    before = recoupling_ratio(x0, x1).ratio
    x0[0] = x1[0] = 1e13
    assert recoupling_ratio(x0, x1).ratio == pytest.approx(before, abs=0.1)
    same = torch.randn(5, 2, generator=generator).repeat(4, 1)
    assert recoupling_ratio(same, same).ratio == 0  # ties keep the given pairs


def test_nan_is_no_depth_no_curve_and_no_count(bundled, short):
    teacher, tokenizer = bundled
    with pytest.raises(ValueError, match="No state"):
        lft.capture(teacher, tokenizer, "x").depth_index(math.nan)
    with pytest.raises(ValueError, match="curve"):
        skipped_layers(1.0, {1: math.nan})
    with pytest.raises(ValueError, match="n=-1"):
        depth_states(short, TEXT, -1)
    with pytest.raises(ValueError, match="8 layers"):
        best_skips(short, TEXT, 9, progress=False)


def test_scans_take_one_criterion_drop_doubles_and_refuse_lengths_without_spans(tmp_path):
    states = torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(0))
    quiet = {"progress": False, "workers": 1}
    once = lft.scan_spans(states, "recoupling", sizes=[4], **quiet)
    twice = lft.scan_spans(states, ["recoupling", "recoupling"], sizes=[4, 4], **quiet)
    assert torch.equal(once["recoupling"].nan_to_num(-1), twice["recoupling"].nan_to_num(-1))
    assert set(once.tables) == {"recoupling"} < set(CRITERIA)
    for lengths in ([0], [-1], [4], []):
        with pytest.raises(ValueError, match=r"1 to 3 layers|whole number"):
            lft.scan_spans(states, lengths=lengths, **quiet)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        lft.scan_spans(states, path=tmp_path, **quiet)
    once.save(tmp_path / "scan.json")
    good = (tmp_path / "scan.json").read_text(encoding="utf-8")
    for wrong in (good.replace('"layers": 3', '"layers": -1'), good.replace("[", "[1, 1, 1, 1, "), '{"layers": 3}'):
        (tmp_path / "bad.json").write_text(wrong, encoding="utf-8")
        with pytest.raises(ValueError, match="is not a scan"):
            lft.SpanScan.load(tmp_path / "bad.json")
