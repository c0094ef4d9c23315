"""Teachers, students and text from a hub: the real clients, against a server on loopback that can be made to fail."""

import errno
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from hub import Hub, connected, jsonl_bytes, parquet_bytes, tiny_pythia
from huggingface_hub import HfApi, ModelCard, constants, hf_hub_download
from safetensors.torch import load_file, save

import lft_edu as lft
from lft_edu import doctor, skipping
from lft_edu.loading.hub import (
    cache_folder,
    dataset_commit,
    explain,
    fetch,
    is_reachable,
    look_up,
    require_complete,
    require_room,
)
from lft_edu.runs import cards

NAME = "lab/pythia"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bundled):
    return tiny_pythia(tmp_path_factory.mktemp("models") / "pythia", bundled[1], layers=2)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub(tmp_path / "hub") as hub:
        connected(hub, tmp_path / "home", monkeypatch)
        yield hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[1, 2, 3]])).logits


def partial_files() -> list[Path]:
    return [p for p in cache_folder().rglob("*.incomplete") if p.stat().st_size]


def test_pythia_410m_shaped_from_the_hub_by_its_name(hub, tmp_path, bundled):
    """The real width, heads, vocabulary and config; two of its layers, random weights."""
    commit = hub.add("EleutherAI/pythia-410m", tiny_pythia(tmp_path / "m", bundled[1], layers=2, shape="pythia-410m"))
    assert is_reachable()
    teacher, tokenizer = lft.load_teacher("EleutherAI/pythia-410m", dtype=torch.bfloat16, device="cpu")
    assert (teacher.config.hidden_size, teacher.config.num_attention_heads) == (1024, 16)
    assert teacher.lft_origin == {"name": "EleutherAI/pythia-410m", "revision": commit}
    student = lft.splice(teacher, (0, 1), lft.Flow())
    lft.fit(student, teacher, torch.randint(9, 2000, (2, 8)), steps=1, batch_size=2, precision="bf16", progress=False)
    assert tokenizer.padding_side == "left"


def test_files_as_they_were_published_in_2023(hub, folder, bundled):
    """Pythia's own files: another name for the head, masks among the weights, rotary settings under their old names,
    and no generation config."""
    expected = logits(lft.load_teacher(folder, "cpu")[0])
    weights = {name.replace("lm_head.", "embed_out."): x for name, x in load_file(folder / "model.safetensors").items()}
    for i in range(2):
        buffers = {"bias": torch.ones(1, 1, 8, 8).tril() > 0, "masked_bias": torch.tensor(-1e9)}
        buffers["rotary_emb.inv_freq"] = torch.rand(4)
        weights |= {f"gpt_neox.layers.{i}.attention.{name}": buffer for name, buffer in buffers.items()}
    config = {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "bos_token_id": 0, "eos_token_id": 0,
        "hidden_act": "gelu", "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4,
        "num_hidden_layers": 2, "rotary_emb_base": 10000, "rotary_pct": 0.25, "max_position_embeddings": 2048,
        "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": True,
        "use_parallel_residual": True, "vocab_size": 50304,
    }  # fmt: skip
    words = {"tokenizer_class": "GPTNeoXTokenizer", "add_prefix_space": False}
    words |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), bundled[1].eos_token)
    files = {"model.safetensors": save(weights, {"format": "pt"}), "config.json": json.dumps(config).encode()}
    files["tokenizer_config.json"] = json.dumps(words).encode()
    files["tokenizer.json"] = (folder / "tokenizer.json").read_bytes()
    hub.add(NAME, files)
    teacher, tokenizer = lft.load_teacher(NAME, device="cpu")
    assert torch.equal(logits(teacher), expected)
    assert tokenizer("x = 1")["input_ids"] == bundled[1]("x = 1")["input_ids"]
    assert tokenizer.eos_token_id == teacher.config.eos_token_id
    assert lft.splice(teacher, (0, 1), lft.Flow()).config.depth == 2


def test_a_revision_is_pinned(hub, folder, tmp_path):
    first = hub.add(NAME, folder)
    hub.tag(NAME, "v1", first)
    hub.add(NAME, tiny_pythia(tmp_path / "other", lft.load_teacher("bundled")[1], layers=1))
    depths = {r: lft.load_teacher(NAME, "cpu", revision=r)[0].config.num_hidden_layers for r in (None, "v1", first)}
    assert depths == {None: 1, "v1": 2, first: 2}
    with pytest.raises(FileNotFoundError, match="no revision 'v2'"):
        lft.load_teacher(NAME, revision="v2")
    with pytest.raises(ValueError, match="without revisions"):
        lft.load_teacher(folder, revision="v1")


def test_code_and_pickles_are_never_asked_for(hub, folder):
    files = files_of(folder) | {
        "modeling_evil.py": b"boom",
        "pytorch_model.bin": b"pickle",
        "onnx/model.safetensors": b"x",
    }
    config = files["config.json"].replace(b"{", b'{"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"},', 1)
    hub.add(NAME, files | {"config.json": config})
    lft.load_teacher(NAME, device="cpu")
    assert not [path for _, path, _ in hub.requests if path.endswith((".py", ".bin")) or "onnx" in path]
    hub.add("lab/pickled", {"config.json": config, "pytorch_model.bin": b"pickle"})
    with pytest.raises(FileNotFoundError, match="no safetensors weights"):
        lft.load_teacher("lab/pickled")
    hub.add("lab/nothing", {"README.md": b"hello"})
    with pytest.raises(FileNotFoundError, match="no model files"):
        lft.load_teacher("lab/nothing")


@pytest.mark.parametrize("where", ["hub", "folder"])
def test_code_that_comes_along_is_not_run_even_if_asked(hub, folder, tmp_path, monkeypatch, where):
    """A type that transformers does not know, with code for it: nobody is asked whether to run that, it is refused."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    config = {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "tokenizer_evil.C", "AutoModelForCausalLM": "tokenizer_evil.M"},
    }
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n".encode()
    files = files_of(folder) | {"config.json": json.dumps(config).encode(), "tokenizer_evil.py": code}
    if where == "hub":
        hub.add(NAME, files)
        name = NAME
    else:
        name = tmp_path / "local"
        name.mkdir()
        for file, data in files.items():
            (name / file).write_bytes(data)
    with pytest.raises(ValueError, match="its own code, which is never run"):
        lft.load_teacher(name)
    assert not (tmp_path / "ran").exists()
    assert not [path for _, path, _ in hub.requests if path.endswith(".py")]


def test_a_pickled_student_is_not_loaded(bundled, tmp_path):
    student = lft.splice(bundled[0], (6, 18), lft.Flow())
    student.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(student.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="no loadable model"):
        lft.load_student(tmp_path)


def test_weights_that_are_missing_are_not_made_up(bundled, folder, tmp_path):
    """Transformers would draw them at random and say so in a table."""
    lft.splice(bundled[0], (6, 18), lft.Flow()).save_pretrained(tmp_path / "student")
    shutil.copytree(folder, tmp_path / "teacher")
    for load, place, part in ((lft.load_student, "student", "modulation"), (lft.load_teacher, "teacher", "layers.1.")):
        file = tmp_path / place / "model.safetensors"
        weights = {name: x for name, x in load_file(file).items() if part not in name}
        file.write_bytes(save(weights, {"format": "pt"}))
        with pytest.raises(FileNotFoundError, match=f"lacks weights .*{part}"):
            load(tmp_path / place)


def test_a_student_whose_config_was_changed_is_refused(bundled, tmp_path):
    lft.splice(bundled[0], (6, 18), lft.Flow()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"span": [12, 6]}, {"span": [6, 99]}, {"span": ["a", "b"]}, {"depth": 30}, {"operator": None}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises((ValueError, FileNotFoundError)):
            lft.load_student(tmp_path)


def test_half_a_download_is_not_taken_for_a_whole_one(hub, folder):
    """Without the hub, nobody else says what is missing."""
    hub.add(NAME, folder)
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        hf_hub_download(NAME, name)
    hub.down()
    with pytest.raises(ConnectionError, match=r"tokenizer.json missing|cached snapshot"):  # ours, or its clients' word
        lft.load_teacher(NAME)
    hub.up()
    found = fetch(NAME)
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        (found / name).rename(found / "kept")
        with pytest.raises(ConnectionError, match=f"incomplete in .*{name} missing"):
            require_complete(found, NAME)
        (found / "kept").rename(found / name)
    hub.add("lab/mute", {name: data for name, data in files_of(folder).items() if not name.startswith("tokenizer")})
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        lft.load_teacher("lab/mute")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_small_files_are_checked_too(hub, folder, name):
    hub.add(NAME, folder)
    hub.corrupt(name)  # and others that end so
    with pytest.raises(ValueError, match=f"{name}.*It has been removed"):
        lft.load_teacher(NAME)
    hub.mend()
    assert len((fetch(NAME) / name).resolve().name) == 40  # git's hash


def test_files_are_hashed_after_a_download_only_and_whoever_downloaded_them(hub, folder, monkeypatch):
    """A part may come from a download that was interrupted, or from another program."""
    hub.add(NAME, folder)
    hub.corrupt("config.json")
    hf_hub_download(NAME, "config.json")
    hub.mend()
    with pytest.raises(ValueError, match=r"Checksum mismatch .*: config.json"):
        fetch(NAME)
    found = fetch(NAME)
    monkeypatch.setattr("lft_edu.loading.hub.verify", lambda folder: pytest.fail("hashed again"))
    assert fetch(NAME) == found
    hub.down()
    assert fetch(NAME) == found


def test_a_download_that_breaks_off_goes_on(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    hub.add(NAME, folder)
    size = (folder / "model.safetensors").stat().st_size
    assert look_up(NAME).missing == look_up(NAME).size > size
    hub.cut("model.safetensors", after_bytes=size // 2, times=1)
    found = fetch(NAME)
    assert (found / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert [r for r in hub.requests if r[1].endswith("model.safetensors") and r[2]]  # it asked for the rest only
    assert look_up(NAME).missing == 0


def test_a_download_that_keeps_breaking_off_leaves_nothing_that_loads(hub, folder, monkeypatch):
    hub.add(NAME, folder)
    hub.cut("model.safetensors", after_bytes=1_000_000, times=1000)
    with pytest.raises(ConnectionError, match="resumes where it stopped"):
        lft.load_teacher(NAME)
    hub.down()
    with pytest.raises(ConnectionError):
        lft.load_teacher(NAME)
    hub.up()
    hub.mend()
    assert torch.equal(logits(lft.load_teacher(NAME, "cpu")[0]), logits(lft.load_teacher(folder, "cpu")[0]))
    assert not partial_files()


def test_altered_bytes_never_load(hub, folder):
    hub.add(NAME, folder)
    hub.corrupt("model.safetensors", from_byte=5_000_000)
    for _ in range(2):  # not the second time either
        with pytest.raises(ValueError, match="Checksum mismatch"):
            lft.load_teacher(NAME)
    hub.mend()
    assert torch.equal(logits(lft.load_teacher(NAME, "cpu")[0]), logits(lft.load_teacher(folder, "cpu")[0]))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_the_doctor_finds_a_file_that_rots_in_the_cache_and_it_is_downloaded_again(hub, folder, name):
    hub.add(NAME, folder)
    blob = (fetch(NAME) / name).resolve()
    assert [(f.status, f.what) for f in doctor._downloads()] == [(doctor.OK, NAME)]
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    (found,) = doctor._downloads()
    assert found.status == doctor.FAIL
    assert name in found.remedy
    assert not blob.exists()
    assert torch.equal(logits(lft.load_teacher(NAME, "cpu")[0]), logits(lft.load_teacher(folder, "cpu")[0]))
    assert [f.status for f in doctor._downloads()] == [doctor.OK]


def test_what_was_fetched_needs_no_hub(hub, folder, monkeypatch):
    hub.add(NAME, folder)
    lft.load_teacher(NAME)
    hub.down()
    assert not is_reachable()
    lft.load_teacher(NAME)
    hub.up()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    lft.load_teacher(NAME)
    assert lft.plan(lft.RunSettings(teacher=NAME, span=(0, 1))).download == 0
    assert len(hub.requests) == before
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        lft.load_teacher("lab/another")


def test_missing_and_gated_models_say_what_to_do(hub, folder):
    hub.add("lab/gated", folder, gated=True)
    with pytest.raises(PermissionError, match="accept its terms"):
        lft.load_teacher("lab/gated")
    with pytest.raises(FileNotFoundError, match="The hub has no 'lab/nothing'"):
        lft.load_teacher("lab/nothing")
    with pytest.raises(ValueError, match="not a valid hub name"):
        lft.load_teacher("lab/a b")


def test_a_full_disk_is_said_before_the_download(hub, folder, monkeypatch):
    hub.add(NAME, folder)
    monkeypatch.setattr("lft_edu.support.machine.free_space", lambda folder: 1_000_000)
    with pytest.raises(OSError, match="Make room, or set HF_HOME") as caught:
        lft.load_teacher(NAME)
    assert caught.value.errno == errno.ENOSPC
    assert not [r for r in hub.requests if r[0] == "GET" and "resolve" in r[1]]
    require_room(900_000, "A model")
    full = OSError(errno.ENOSPC, "No space left on device")
    assert "The disk is full" in str(explain(full, NAME))


# --- students -----------------------------------------------------------------------------------------------------


def test_a_student_goes_to_the_hub_and_comes_back(hub, bundled, monkeypatch):
    teacher, tokenizer = bundled
    student = lft.load_student("bundled/flow-walking-6-18", teacher)
    held = lft.load_corpus("python-stdlib", tokenizer, "test", max_tokens=1024)
    card = lft.make_card(student, teacher, lft.evaluate(student, teacher, held), "python-stdlib", latency=False)
    for wrong in ({}, {"tokenizer": tokenizer, "card": dict(card)}):  # never transformers' own upload, without a card
        with pytest.raises(ValueError, match="Give the tokenizer"):
            student.push_to_hub("lab/student", **wrong)
    assert not [request for request in hub.requests if request[0] == "POST"]
    address = student.push_to_hub("lab/student", tokenizer, card, token="hf_test")
    assert address == f"{hub.url}/lab/student"
    again = lft.load_student("lab/student", device="cpu")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, student(ids).logits, atol=1e-4)
    wanted = {"README.md", "card.json", "model.safetensors", "tokenizer.json", "config.json"}
    assert wanted <= set(HfApi().list_repo_files("lab/student"))
    readme = Path(hf_hub_download("lab/student", "README.md")).read_text()
    header = ModelCard(readme).data
    assert (header.library_name, header.base_model, header.license) == ("transformers", None, None)
    measured = {result.metric_type: result for result in header.eval_results}
    assert measured["kl"].metric_value == card["results"]["kl"]
    assert measured["perplexity"].dataset_name == "python-stdlib"
    assert f"{card['results']['kl']:.4f} nats" in readme
    assert cards.Card.load(hf_hub_download("lab/student", "card.json")) == card
    assert 'lft.load_student("lab/student")' in readme


@pytest.mark.parametrize(
    ("readme", "license"),
    [("---\nlicense: apache-2.0\n---\n", "apache-2.0"), ("# No header", None), ("---\n[\n---\n", None)],
)
def test_a_model_card_names_teacher_text_and_license(hub, tmp_path, bundled, readme, license):
    teacher, tokenizer = bundled
    commit = hub.add(NAME, {"README.md": readme.encode()})
    student = lft.splice(teacher, (6, 12), lft.Skip())
    found = lft.evaluate(student, teacher, torch.randint(1, 300, (2, 32)))
    training = {"corpus": "wikitext-103", "tokens": 100, "objective": "flow_walking", "seconds": 1}
    card = cards.Card.of(student, teacher, found, "wikitext-2", training=training, latency=False)
    card["teacher"] |= {"name": NAME, "revision": commit}
    student.push_to_hub("lab/student", tokenizer, card, token="hf_test")
    header = ModelCard.load(hf_hub_download("lab/student", "README.md")).data
    assert (header.base_model, header.license, header.datasets) == (NAME, license, ["Salesforce/wikitext"])
    assert header.eval_results[0].dataset_config == "wikitext-2-raw-v1"
    card["teacher"] |= {"name": "a\n---\nlicense: mit\n<b>", "revision": None}
    injected = card.model_card("lab/student")
    assert injected.data.license is None
    assert "<b>" not in injected.text


def test_a_card_says_what_was_measured_and_escapes_what_it_is_told(bundled, tmp_path):
    teacher, tokenizer = bundled
    student = lft.splice(teacher, (6, 12), lft.Skip())
    held = lft.load_corpus("python-stdlib", tokenizer, "test", max_tokens=1024)
    found = lft.evaluate(student, teacher, held)
    skips = skipping.best_skips(teacher, held, 2, progress=False)
    assert 0 < skips[1]["kl"] < skips[2]["kl"]
    card = lft.make_card(student, teacher, found, "<b>|text", skips=skips)
    card.save(tmp_path)
    assert cards.Card.load(tmp_path) == cards.Card.load(tmp_path / "card.json") == card
    text = (tmp_path / "card.md").read_text()
    assert "&lt;b>\\|text" in text
    assert f"{found.kl:.4f} nats per token" in text
    assert "Skipping the best 2" in text
    assert card["latency_ms_per_token"]["student"]["decode"] > 0
    assert "| skip | 6–12 |" in cards.table([card])


# --- text ---------------------------------------------------------------------------------------------------------

LINES = [f" = Title {i} = \n" if i % 9 == 0 else f"def f_{i}(x): return x + {i * i}\n" for i in range(4000)]


@pytest.fixture
def wikitext(hub):
    parts = {
        "train-00000-of-00002": LINES[:2000],
        "train-00001-of-00002": LINES[2000:],
        "test-00000-of-00001": LINES[:500],
    }
    files = {f"wikitext-103-raw-v1/{name}.parquet": parquet_bytes(texts) for name, texts in parts.items()}
    splits = "".join(f"  - {{split: {s}, path: wikitext-103-raw-v1/{s}-*}}\n" for s in ("train", "test"))
    files["README.md"] = f"---\nconfigs:\n- config_name: wikitext-103-raw-v1\n  data_files:\n{splits}---\n".encode()
    hub.add("Salesforce/wikitext", files, kind="dataset")
    return hub


def test_wikitext_whole_and_streamed_are_the_same_blocks(wikitext, bundled):
    whole, streamed = (
        lft.load_corpus("wikitext-103", bundled[1], "test", 64, streaming=streaming) for streaming in (False, True)
    )
    assert whole["input_ids"] == [row["input_ids"] for row in streamed]
    start = bundled[1].decode([token for block in whole["input_ids"][:10] for token in block])
    assert "".join(LINES[:20]) in start  # lines are joined, and are no documents of their own


def test_the_pile_as_it_lies_on_the_hub(hub, bundled):
    """Thirty files of training text in a folder, and one each of validation and test text beside it."""
    parts = {f"train/{i:02d}.jsonl.zst": [f"train {i}\n" * 40] for i in range(30)}
    parts |= {"val.jsonl.zst": ["validation\n" * 40], "test.jsonl.zst": ["test\n" * 40]}
    hub.add(
        "monology/pile-uncopyrighted", {name: jsonl_bytes(texts, "zstd") for name, texts in parts.items()}, "dataset"
    )
    for split in ("train", "validation", "test"):
        corpus = lft.load_corpus("pile", bundled[1], split, block_size=16)
        assert corpus.num_shards == (30 if split == "train" else 1)
        assert split in bundled[1].decode(next(iter(corpus))["input_ids"])


def test_a_commit_of_a_corpus_is_kept_to(wikitext, bundled):
    first = dataset_commit("Salesforce/wikitext")
    before = lft.load_corpus("wikitext-103", bundled[1], "test", 64, streaming=True, revision=first)
    wanted = next(iter(before))["input_ids"]
    files = {"wikitext-103-raw-v1/test-00000-of-00001.parquet": parquet_bytes(["other text "] * 400)}
    wikitext.add("Salesforce/wikitext", files, kind="dataset")
    assert dataset_commit("Salesforce/wikitext") != first
    assert next(iter(before))["input_ids"] == wanted
    wikitext.down()
    assert dataset_commit("Salesforce/wikitext") is None


def test_a_missing_corpus_is_named(hub, bundled):
    with pytest.raises(FileNotFoundError, match="no 'Salesforce/wikitext"):
        lft.load_corpus("wikitext-2", bundled[1])
    hub.down()
    with pytest.raises(ConnectionError, match="python-stdlib"):
        lft.load_corpus("wikitext-2", bundled[1])


def test_a_stream_outlives_a_short_silence_of_the_hub(wikitext, bundled, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0.1)
    wanted = [row["input_ids"] for row in lft.load_corpus("wikitext-103", bundled[1], "train", 64, streaming=True)]
    rows = iter(lft.load_corpus("wikitext-103", bundled[1], "train", 64, streaming=True))
    found = [next(rows)["input_ids"] for _ in range(5)]
    wikitext.down()
    threading.Timer(0.5, wikitext.up).start()
    assert found + [row["input_ids"] for row in rows] == wanted
