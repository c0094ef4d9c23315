"""The hub of ``hub.py`` against the real clients: downloads, streams, uploads, errors and faults."""

import huggingface_hub
import pytest
from datasets import load_dataset
from datasets.distributed import split_dataset_by_node
from hub import Hub, connected, jsonl_bytes, parquet_bytes, tiny_pythia
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModelForCausalLM

TEXTS = [f"line {n} of the corpus" for n in range(40)]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub(tmp_path / "hub") as hub:
        connected(hub, tmp_path / "home", monkeypatch)
        yield hub
    assert hub.missed == []


def snapshot(repo_id: str, **options) -> dict[str, bytes]:
    from pathlib import Path

    folder = Path(snapshot_download(repo_id, **options))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_model_by_branch_commit_and_tag(hub, tmp_path):
    old, new = {"config.json": b"{}", "model.safetensors": b"old"}, {"config.json": b"{}", "deep/er/model.bin": b"new"}
    first = hub.add("owner/model", old)
    hub.tag("owner/model", "v1", first)
    second = hub.add("owner/model", new)
    assert snapshot("owner/model") == new
    assert snapshot("owner/model", revision=first) == snapshot("owner/model", revision="v1") == old
    assert HfApi().model_info("owner/model").sha == second != first
    assert snapshot("owner/model", allow_patterns="*.json", local_dir=tmp_path / "some")["config.json"] == b"{}"


def test_from_pretrained(hub, tmp_path):
    hub.add("owner/pythia", tiny_pythia(tmp_path / "model", layers=1))
    model = AutoModelForCausalLM.from_pretrained("owner/pythia", use_safetensors=True)
    assert (model.config.num_hidden_layers, model.config.vocab_size) == (1, 50304)


def test_a_cut_download_goes_on_where_it_ended(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # what it has read, it keeps by these
    data = bytes(range(256)) * 1000
    hub.add("owner/model", {"model.safetensors": data})
    hub.cut("model.safetensors", after_bytes=120_000)
    with open(hf_hub_download("owner/model", "model.safetensors"), "rb") as file:
        assert file.read() == data
    assert [r for r in hub.requests if r[0] == "GET"][-1][2] == "bytes=100000-"


def test_corrupt_bytes_pass_for_the_file(hub):
    hub.add("owner/model", {"model.safetensors": b"0123456789"})
    hub.corrupt("model.safetensors", from_byte=5)
    assert snapshot("owner/model")["model.safetensors"] == b"01234" + bytes(255 - b for b in b"56789")
    hub.mend()
    assert snapshot("owner/model", force_download=True)["model.safetensors"] == b"0123456789"


def shards(texts, kind, make) -> dict[str, bytes]:
    half = len(texts) // 2
    return {kind.format(n): make(part) for n, part in enumerate((texts[:half], texts[half:]))}


def test_parquet_streamed_and_split_over_two_processes(hub):
    files = shards(TEXTS, "wiki-raw-v1/train-{:05d}-of-00002.parquet", parquet_bytes)
    other = {"other/train-00000-of-00001.parquet": parquet_bytes(["no"])}
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/train-*\n"
        for c in ("other", "wiki-raw-v1")
    )
    hub.add("owner/wiki", files | other | {"README.md": (card + "---\n").encode()}, kind="dataset")
    stream = load_dataset("owner/wiki", "wiki-raw-v1", split="train", streaming=True)
    assert [row["text"] for row in stream] == TEXTS
    nodes = [[row["text"] for row in split_dataset_by_node(stream, n, 2)] for n in range(2)]
    assert nodes == [TEXTS[:20], TEXTS[20:]]
    assert load_dataset("owner/wiki", "wiki-raw-v1", split="train")["text"] == TEXTS


@pytest.mark.parametrize(("ending", "compression"), [("jsonl", None), ("jsonl.gz", "gzip")])
def test_json_lines_streamed(hub, ending, compression):
    hub.add("owner/pile", shards(TEXTS, "train/{:02d}." + ending, lambda t: jsonl_bytes(t, compression)), "dataset")
    stream = load_dataset("owner/pile", split="train", streaming=True)
    assert [row["text"] for row in stream] == TEXTS


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_an_uploaded_folder_comes_back_whole(hub, tmp_path, kind):
    files = {"README.md": b"# Read", "weights/model.safetensors": bytes(range(256)) * 5000, "empty.txt": b""}
    for path, data in files.items():
        (tmp_path / "up" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / path).write_bytes(data)
    api = HfApi(endpoint=hub.url, token="hf_test")
    repo_id = api.create_repo("tester/mine", repo_type=kind, exist_ok=True).repo_id
    assert api.create_repo("tester/mine", repo_type=kind, exist_ok=True).repo_id == repo_id
    commit = api.upload_folder(folder_path=tmp_path / "up", repo_id=repo_id, repo_type=kind).oid
    assert snapshot(repo_id, repo_type=kind) == snapshot(repo_id, repo_type=kind, revision=commit) == files
    api.delete_file("README.md", repo_id, repo_type=kind)
    assert api.list_repo_files(repo_id, repo_type=kind) == sorted(files.keys() - {"README.md"})


def test_each_error_has_its_name(hub):
    hub.add("owner/model", {"config.json": b"{}"})
    hub.add("owner/gated", {"config.json": b"{}"}, gated=True)
    for error, repo_id, filename, revision in [
        (RepositoryNotFoundError, "owner/nothing", "config.json", None),
        (RevisionNotFoundError, "owner/model", "config.json", "v9"),
        (EntryNotFoundError, "owner/model", "nothing.json", None),
        (GatedRepoError, "owner/gated", "config.json", None),
    ]:
        with pytest.raises(error):
            hf_hub_download(repo_id, filename, revision=revision)


@pytest.mark.parametrize("status", [None, 503])
def test_down_and_up_again(hub, status):
    hub.add("owner/model", {"config.json": b"{}", "later.json": b"[]"})
    url = hub.url
    cached = hf_hub_download("owner/model", "config.json")
    hub.down(status)
    assert hf_hub_download("owner/model", "config.json") == cached
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("owner/model", "later.json")
    hub.up()
    assert hub.url == url
    assert hf_hub_download("owner/model", "later.json")
