"""Names, paths and files that are wrong, and what is said about them; corpora and the bundled assets."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

import lft_edu as lft
from lft_edu.loading import assets, corpora, teachers
from lft_edu.loading.assets import DamagedAssetError


@pytest.fixture
def tokenizer(bundled):
    return bundled[1]


def test_bundled_teacher_is_what_it_says(bundled):
    model, tokenizer = bundled
    provenance = json.loads((assets.ASSETS / "teacher" / "PROVENANCE.json").read_text())
    assert model.config.num_hidden_layers == 24
    assert sum(p.numel() for p in model.parameters()) == provenance["parameters"]
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert tokenizer.padding_side == "left"
    text = 'def f(x):\n    return "é 漢 \\x00"\n'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    size = sum(p.stat().st_size for p in (assets.ASSETS / "teacher").iterdir())
    assert size <= 16 * 2**20


def test_bundled_teacher_predicts_held_out_python(bundled):
    """Far better than chance, on files it never saw: chance is ln(vocabulary), 7.6 nats."""
    model, tokenizer = bundled
    blocks = corpora.token_sequences("python-stdlib", tokenizer, "test", 128, max_tokens=4096)
    with torch.no_grad():
        assert model(blocks, labels=blocks).loss < 3.5


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "no provenance"])
def test_damaged_assets_are_named(monkeypatch, tmp_path, harm):
    shutil.copytree(assets.ASSETS / "teacher", tmp_path / "teacher")
    monkeypatch.setattr(teachers, "ASSETS", tmp_path)
    weights = tmp_path / "teacher" / "model.safetensors"
    content = weights.read_bytes()
    match harm:
        case "truncate":
            weights.write_bytes(content[:1000])
        case "flip":
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "remove":
            weights.unlink()
        case "no provenance":
            (tmp_path / "teacher" / "PROVENANCE.json").write_text("{")
    with pytest.raises(DamagedAssetError, match="git checkout -- assets"):
        lft.load_teacher("bundled")


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("bundeld", ValueError, "Did you mean 'bundled'"),
        ("bundled/flow-walking-6-18", ValueError, "is a student"),
        ("pythia-410", ValueError, "Did you mean 'EleutherAI/pythia-410m'"),
        ("./nowhere", FileNotFoundError, "existing folder"),
        ("/no/such/folder", FileNotFoundError, "existing folder"),
    ],
)
def test_bad_teacher_names(name, error, words):
    with pytest.raises(error, match=words):
        lft.load_teacher(name)


def test_a_hub_name_without_the_hub_offers_the_bundled_teacher(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r'load_teacher\("bundled"\)'):
        lft.load_teacher("EleutherAI/pythia-410m")


def test_a_folder_without_a_model_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox"}')
    with pytest.raises(FileNotFoundError, match="no loadable model"):
        lft.load_teacher(tmp_path)


def test_random_teacher_has_the_published_shape():
    model = lft.random_teacher("pythia-410m", layers=1, device="cpu", dtype=torch.bfloat16)
    assert (model.config.hidden_size, model.config.num_attention_heads, model.config.vocab_size) == (1024, 16, 50304)
    with pytest.raises(ValueError, match="Choose one of pythia-14m"):
        lft.random_teacher("pythia-13b")


def test_students_ship_for_every_name_of_the_contract():
    kinds = ("ridge", "regression", "flow-matching", "flow-walking", "hybrid", "flow-walking-kl")
    wanted = {f"bundled/{kind}-{span}" for kind in kinds for span in ("6-12", "6-18")}
    assert wanted <= set(teachers.bundled_students())


def test_students_load_run_and_agree_with_their_span(bundled):
    for name in teachers.bundled_students():
        student = lft.load_student(name, bundled[0])
        m, n = student.config.span
        assert name.endswith(f"-{m}-{n}")
        with torch.no_grad():
            assert student(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def test_bad_student_names():
    with pytest.raises(ValueError, match="Did you mean 'bundled/flow-walking-6-18'"):
        lft.load_student("bundled/flow-walkin-6-18")
    with pytest.raises(ValueError, match="Did you mean 'bundled/flow-walking-6-18'"):
        lft.load_student("flow-walking-6-18")
    with pytest.raises(ValueError, match="Did you mean 'bundled/ridge-6-12'"):
        lft.load_student("bundeld/ridge-6-12")
    with pytest.raises(FileNotFoundError):
        lft.load_student("./nothing")


def test_a_teacher_is_no_student_and_damage_is_named(bundled, tmp_path):
    with pytest.raises(ValueError, match="Not a spliced model"):
        lft.load_student(assets.ASSETS / "teacher")
    lft.splice(bundled[0], (6, 18), lft.Flow()).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(FileNotFoundError, match="incomplete or damaged"):
        lft.load_student(tmp_path)


def test_a_bundled_operator_fits_the_bundled_teacher_only(teacher):
    with pytest.raises(ValueError, match="does not fit a teacher of 8 layers"):
        lft.load_student("bundled/ridge-6-12", teacher)
    from lft_edu.loading.teachers import build_model

    with pytest.raises(ValueError, match="fits the teacher 'bundled' only"):
        lft.load_student("bundled/ridge-6-12", build_model(32, 300, layers=24))


def test_an_operator_without_a_checksum_is_refused(monkeypatch, tmp_path, bundled):
    shutil.copytree(assets.ASSETS / "operators", tmp_path / "operators")
    monkeypatch.setattr(teachers, "ASSETS", tmp_path)
    shutil.copy(tmp_path / "operators" / "ridge-6-12.safetensors", tmp_path / "operators" / "extra-6-12.safetensors")
    with pytest.raises(DamagedAssetError, match="no checksum"):
        lft.load_student("bundled/extra-6-12", bundled[0])


def test_another_family_is_refused_by_name_and_a_llama_is_loaded(tmp_path, bundled):
    from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    models = {
        "opt": OPTForCausalLM(
            OPTConfig(
                vocab_size=2048,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                ffn_dim=32,
                word_embed_proj_dim=32,
            )
        ),
        "llama": LlamaForCausalLM(LlamaConfig(vocab_size=2048, **shape)),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        bundled[1].save_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match="'opt' are not supported yet"):
        lft.load_teacher(tmp_path / "opt")
    teacher, tokenizer = lft.load_teacher(tmp_path / "llama", device="cpu")
    assert lft.capture(teacher, tokenizer, "x = 1").states.shape[::2] == (3, 32)


# --- corpora ------------------------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_stable():
    files = {split: set(corpora.python_files("python-stdlib", split)) for split in corpora.SPLITS}
    total = sum(map(len, files.values()))
    assert len(set.union(*files.values())) == total > 500
    assert 0.85 < len(files["train"]) / total < 0.95
    assert corpora.split_of("asyncio/events.py") == corpora.split_of("asyncio/events.py")
    assert not any("site-packages" in str(p) for p in files["train"])


def test_the_standard_library_keeps_its_split_in_the_larger_corpus():
    small, large = (set(corpora.python_files(name, "test")) for name in ("python-stdlib", "python-packages"))
    assert small <= large


def test_looking_for_packages_leaves_setuptools_importable():
    """importlib.util.find_spec("pip") would not: setuptools then refuses to be imported in the same process."""
    code = "from lft_edu import corpora; assert corpora.python_files('python-packages', 'test'); import setuptools"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_load_corpus_gives_blocks(tokenizer):
    corpus = lft.load_corpus("python-stdlib", tokenizer, "validation", block_size=64, max_tokens=6400)
    assert corpus.column_names == ["input_ids"]
    assert len(corpus) == 100
    assert {len(row["input_ids"]) for row in corpus} == {64}


def test_a_small_budget_is_spread_over_many_files(tokenizer):
    """128 blocks from the test split must not be one long file cut in pieces."""
    files = corpora.python_files("python-stdlib", "test")
    blocks = corpora.token_sequences("python-stdlib", tokenizer, "test", 128, max_tokens=128 * 128)
    assert blocks.shape == (128, 128)
    starts = [tokenizer.decode(block[20:60]) for block in blocks]
    owners = {next((i for i, f in enumerate(files) if s in f.read_text(errors="replace")), None) for s in starts}
    assert len(owners) > 30


def test_windows_begin_at_a_line_and_depend_on_the_text_alone(tmp_path):
    path = tmp_path / "long.py"
    path.write_text("".join(f"line_{i} = {i}\n" for i in range(2000)))
    (found,) = corpora.read_texts([path], window=500)
    assert len(found) == 500
    assert found.startswith("line_")
    assert list(corpora.read_texts([path], window=500)) == [found]
    assert len(next(corpora.read_texts([path]))) > 20_000


def test_packing_loses_nothing_but_the_tail(tokenizer):
    texts = ["def f():\n    pass\n", "x = 1\n" * 30]
    flat = [token for block in corpora.pack(texts, tokenizer, 8) for token in block]
    stream = [t for text in texts for t in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert flat == stream[: len(stream) // 8 * 8]


def test_files_and_folders_are_corpora(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("print('hello')\n" * 50)
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe\x00" * 50)
    for path in (tmp_path, tmp_path / "a.txt", str(tmp_path)):
        assert len(lft.load_corpus(path, tokenizer, block_size=16)) > 5


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("python-stdlb", {}, ValueError, "Did you mean 'python-stdlib'"),
        ("wikitxt-103", {}, ValueError, "Did you mean 'wikitext-103'"),
        ("./none.txt", {}, FileNotFoundError, "existing path"),
        ("", {}, ValueError, "name is empty"),
        ("python-stdlib", {"split": "dev"}, ValueError, "train, validation, test"),
        ("python-stdlib", {"block_size": 1}, ValueError, "at least 2 tokens"),
        ("python-stdlib", {"max_tokens": 0}, ValueError, "positive number"),
    ],
)
def test_bad_corpora(tokenizer, name, options, error, words):
    with pytest.raises(error, match=words):
        lft.load_corpus(name, tokenizer, **options)


def test_too_little_text(tokenizer, tmp_path):
    (tmp_path / "short.txt").write_text("x = 1")
    with pytest.raises(ValueError, match="too short for one sequence"):
        lft.load_corpus(tmp_path / "short.txt", tokenizer)
    (tmp_path / "short.txt").write_text("  \n")
    with pytest.raises(ValueError, match="no readable UTF-8 text"):
        lft.load_corpus(tmp_path / "short.txt", tokenizer)


def test_a_hub_corpus_without_the_hub(tokenizer, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="python-stdlib"):
        lft.load_corpus("wikitext-2", tokenizer)


def test_hub_corpora_are_asked_for_by_name_and_streamed(tokenizer, monkeypatch):
    """The Pile is an IterableDataset all the way: blocks are made as they are drawn."""
    import datasets

    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        rows = [{"text": f"line {i} of a long text\n" * 5, "meta": {}} for i in range(40)]
        return datasets.IterableDataset.from_generator(lambda: iter(rows))

    monkeypatch.setattr(datasets, "load_dataset", load)
    stream = lft.load_corpus("pile", tokenizer, "train", block_size=16, max_tokens=160)
    rows = list(stream)
    assert len(rows) == 10
    assert {len(row["input_ids"]) for row in rows} == {16}
    wanted = {"split": "train", "streaming": True, "data_files": lft.corpora.PILE, "revision": None}
    assert asked == [(("monology/pile-uncopyrighted", None), wanted)]
