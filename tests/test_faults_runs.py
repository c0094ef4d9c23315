"""Runs that would lose work, mix two runs, or tell of a success that is none."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

import lft_edu as lft
from lft_edu.cli import main
from lft_edu.runs import cards, run
from lft_edu.support.files import atomic_write, file_to_write, locked, make_folder
from lft_edu.training.callbacks import Evaluation, GracefulShutdown, History
from lft_edu.training.checkpoints import Checkpoints, digest, read_checkpoint, restore, save_checkpoint
from lft_edu.training.logs import MetricsLog, read_metrics

SPAN = (2, 5)
FIT = {"max_steps": 6, "batch_size": 2, "progress": False}
NOTES = {"step": 35, "settings": {"lr": 0.1}, "stream": {}}


# checkpoints


def small_checkpoint(path: Path, **notes) -> torch.nn.Module:
    module = torch.nn.Linear(3, 2)
    save_checkpoint(path, module, [], NOTES | {"history": History()} | notes)
    return module


def test_every_bit_of_a_checkpoint_counts(tmp_path):
    path = tmp_path / "c.safetensors"
    small_checkpoint(path)
    whole = path.read_bytes()
    assert read_checkpoint(path)[0]["step"] == 35
    changed, refused, start = [], set(), whole.index(b"lft_edu")
    for place in range(start, whole.index(b"}}", start) + 2, 3):  # of the notes and of the checksum
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        try:
            notes, tensors = read_checkpoint(path)
            changed.append((notes, sorted(tensors)))  # what a reader does not look at, such as white space
        except ValueError as error:
            refused.add("not a readable checkpoint" in str(error))
    path.write_bytes(whole)
    notes, tensors = read_checkpoint(path)
    assert all(found == (notes, sorted(tensors)) for found in changed)
    assert len(changed) < 5
    assert refused == {True}


def test_checkpoints_of_before_are_still_read(tmp_path):
    tensors = {"module.weight": torch.ones(2)}
    notes = NOTES | {"history": asdict(History()), "sha256": digest(tensors)}
    save_file(tensors, tmp_path / "c.safetensors", metadata={"lft_edu": json.dumps(notes)})
    assert read_checkpoint(tmp_path / "c.safetensors")[0]["step"] == 35


WRONG = [{"step": -5}, {"step": "x"}, {"step": 2.5}, {"step": True}, {"settings": []}, {"history": []}, {"history": 3}]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_notes_that_no_run_wrote_are_not_resumed_from(wrong, tmp_path):
    path = tmp_path / "c.safetensors"
    small_checkpoint(path)
    with safe_open(path, "pt") as file:
        notes = json.loads(file.metadata()["lft_edu"]) | wrong
    tensors, text = load_file(path), json.dumps(notes)
    save_file(tensors, path, metadata={"lft_edu": text, "sha256": digest(tensors, text)})
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("change", [lambda w: w.popitem(), lambda w: w.update({"module.weight": torch.ones(5)})])
def test_weights_of_another_operator_are_refused_in_words(change, tmp_path):
    module = small_checkpoint(tmp_path / "c.safetensors")
    _, tensors = read_checkpoint(tmp_path / "c.safetensors")
    change(tensors)
    with pytest.raises(ValueError, match="another operator"):
        restore(tensors, module, [])


def test_places_are_looked_at_before_the_first_step(teacher, blocks, tmp_path):
    (tmp_path / "file.py").write_text("x", encoding="utf-8")
    (tmp_path / "folder.safetensors").mkdir()
    steps = []
    for place, error in (
        ("", ValueError),
        ("/proc/x", OSError),
        (tmp_path / "file.py", FileExistsError),
        (tmp_path / "file.py" / "c.safetensors", FileExistsError),
        (tmp_path / "folder.safetensors", IsADirectoryError),
    ):
        with pytest.raises(error):
            lft.fit(lft.splice(teacher, SPAN, lft.Flow()), teacher, blocks, **FIT, checkpoint=place, log=steps.append)
    assert not steps


def test_an_evaluation_that_json_cannot_hold_is_refused_at_once(teacher, blocks, tmp_path):
    seen = []

    def evaluate(step):
        seen.append(step)
        return {"a": object()}

    with pytest.raises(ValueError, match="return numbers"):
        lft.fit(
            lft.splice(teacher, SPAN, lft.Flow()), teacher, blocks, **FIT, evaluate_every=2,
            callbacks=[Evaluation(evaluate)], checkpoint=tmp_path / "c",
        )  # fmt: skip
    assert seen == [2]


# streams


def stream_of(*shards: int) -> datasets.IterableDataset:
    def rows(shards):
        for n in shards:
            for i in range(n):
                yield {"input_ids": [(7 * n + i + j) % 290 + 1 for j in range(8)]}

    return datasets.IterableDataset.from_generator(rows, gen_kwargs={"shards": list(shards)})


def test_an_empty_share_of_a_stream_is_named(teacher):
    with pytest.raises(ValueError, match=r"share 3 of 4 .* leave out files that hold nothing"):
        lft.fit(lft.splice(teacher, SPAN, lft.Flow()), teacher, stream_of(16, 16, 0, 16), **FIT)


@pytest.mark.parametrize("after", [lambda c: c, lambda c: c.map(lambda row: row), lambda c: c.take(40)])
def test_a_shuffle_buffer_that_no_checkpoint_holds_is_said(after, teacher, tmp_path):
    fit = lambda corpus, **more: lft.fit(lft.splice(teacher, SPAN, lft.Flow()), teacher, corpus, **FIT, **more)  # noqa: E731
    shuffled = after(stream_of(16, 16).shuffle(seed=1, buffer_size=8))
    with pytest.warns(UserWarning, match="shuffles in a buffer"):
        fit(shuffled, checkpoint=tmp_path / "a")


def test_other_streams_are_not_warned_of(teacher, tmp_path, recwarn):
    lft.fit(lft.splice(teacher, SPAN, lft.Flow()), teacher, stream_of(16, 16), **FIT, checkpoint=tmp_path / "b")
    lft.fit(lft.splice(teacher, SPAN, lft.Flow()), teacher, stream_of(16, 16).shuffle(seed=1, buffer_size=8), **FIT)
    assert not [w for w in recwarn if "buffer" in str(w.message)]


# a run's folder


def settings_for(out: Path, **more) -> lft.RunSettings:
    return lft.RunSettings(
        span=SPAN, operator="ridge", tokens=1000, eval_tokens=500, sequence_length=32, out=str(out), **more
    )


@pytest.mark.parametrize("place", ["student", "checkpoints", "settings.json", "metrics.jsonl", "card.json", "card.md"])
def test_what_stands_in_the_way_is_named_before_anything_is_loaded(place, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "load_teacher", lambda *a, **k: pytest.fail("loaded"))
    (tmp_path / place).mkdir() if "." in place else (tmp_path / place).write_text("", encoding="utf-8")
    with pytest.raises(FileExistsError, match="Move it away"):
        lft.train(settings_for(tmp_path), progress=False)


@pytest.mark.parametrize("out", ["file", "file/run", "/proc/x"])
def test_a_run_is_refused_where_it_cannot_write(out, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "load_teacher", lambda *a, **k: pytest.fail("loaded"))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="folder"):
        lft.train(settings_for(tmp_path / out), progress=False)


LOCKING = "import sys, time; from pathlib import Path; from lft_edu.support.files import locked\n" \
    "with locked(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"  # fmt: skip


def test_one_folder_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "load_teacher", lambda *a, **k: pytest.fail("loaded"))
    other = subprocess.Popen([sys.executable, "-c", LOCKING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(FileExistsError, match="Another process"):
            lft.train(settings_for(tmp_path), progress=False)
    finally:
        other.kill()
        other.wait()
    with locked(tmp_path), pytest.raises(FileExistsError, match="Another process"), locked(tmp_path):
        pass  # what the dead process held is free
    with locked(tmp_path):
        pass


SETTINGS = [
    ("lr", 0), ("lr", -1), ("lr", float("nan")), ("train_num_steps", 0), ("train_num_steps", -1),
    ("alpha", float("nan")), ("evaluate_every", -5), ("seed", 10**23), ("seed", -1), ("out", ""),
    ("num_steps", 0), ("batch_size", 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=str)
def test_settings_out_of_their_limits_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}"):
        lft.RunSettings(**{name: value})


# logs


def test_damaged_rows_are_dropped_and_others_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        b'{"step": 10, "loss": 1.0}',
        b'{"step": "x"}',
        b'{"step": 20, "name": "\xff"}',
        b"[" * 100_000,
        b"3",
        b'{"st',
    ]
    path.write_bytes(b"\n".join(rows))
    assert read_metrics(path) == [{"step": 10, "loss": 1.0}]
    MetricsLog(path, done=15)({"step": 30, "loss": 0.5})
    assert [row["step"] for row in read_metrics(path)] == [10, 30]


def test_a_full_disk_names_the_file(tmp_path):
    resource = pytest.importorskip("resource", reason="of Unix")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "a.json").write_text("old", encoding="utf-8")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(OSError, match=r"a\.json'$"), atomic_write(tmp_path / "a.json") as partial:
            partial.write_text("x" * 50_000, encoding="utf-8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "old"
    with pytest.raises(OSError, match="nowhere") as error, atomic_write(tmp_path / "nowhere" / "b") as partial:
        partial.write_text("", encoding="utf-8")
    assert ".partial" not in str(error.value)


def test_folders_and_files_are_made_or_refused(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert file_to_write(tmp_path / "c" / "d.json").parent.is_dir()
    for make in (make_folder, file_to_write):
        with pytest.raises(ValueError, match="empty"):
            make("")
    with pytest.raises(IsADirectoryError):
        file_to_write(tmp_path)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up")
def test_a_terminal_that_closes_stops_a_run_after_a_checkpoint(teacher, blocks, tmp_path):
    hang_up = lambda row: os.kill(os.getpid(), signal.SIGHUP) if row["step"] == 2 else None  # noqa: E731
    student = lft.splice(teacher, SPAN, lft.Flow())
    before = signal.getsignal(signal.SIGHUP)
    with pytest.raises(KeyboardInterrupt, match="after step 3"):
        lft.fit(student, teacher, blocks, **FIT, checkpoint=tmp_path, log=hang_up, log_every=1)
    assert Checkpoints(tmp_path).newest_step() == 3
    assert signal.getsignal(signal.SIGHUP) == before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        shutdown = GracefulShutdown()
        shutdown.on_train_begin(None)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as nohup asks
        shutdown.on_train_end(None)
    finally:
        signal.signal(signal.SIGHUP, before)


# words and letters


def test_no_text_file_is_read_or_written_in_the_letters_of_the_machine():
    """Two lines of "‖" in a card, and Windows or LC_ALL=C would lose a run's report."""
    import ast

    owned, found = [*Path(lft.__file__).parent.rglob("*.py")], []
    for path in owned:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(getattr(node, "func", None), "attr", "")
            if name in ("read_text", "write_text"):
                given = {word.arg for word in node.keywords}
                if "encoding" not in given and len(node.args) < (1 if name == "read_text" else 2):
                    found.append(f"{path.name}:{node.lineno}")
    assert found == []
    assert len(owned) > 100


def test_a_terminal_without_letters_loses_nothing():
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    code = "from lft_edu import cli; cli.main(['list', 'objectives']); print('KL(a \\u2016 b) \\u2192 1')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(b"KL(a ? b) ? 1")


BAD = {
    "train --span 6:18 --tokens inf": "not a number of tokens",
    "train --span 6:18 --lr nan --dry-run": "lr=nan",
    "train --span 6:18 --train-k -1 --dry-run": "train_num_steps=-1",
    "evaluate --student bundled": "is a teacher",
    "evaluate --student bundled/ridge-6-12 --skips -1": "whole number",
    "evaluate --student bundled/ridge-6-12 --skips 25 --tokens 500": "24 layers",
    "evaluate --student bundled/ridge-6-12 --push-to ../../x": "owner/name",
    "evaluate --student bundled/ridge-6-12 --out FILE": "is a file",
    "scan --out FOLDER": "is a folder",
    "scan --lengths 0": "at least 1",
    "generate x --temperature nan --tokens 1": "temperature=nan",
    "generate x\udcff --tokens 1": "lone surrogate",
    "generate x --tokens 600": "at most 511",
}


@pytest.mark.parametrize("words", BAD)
def test_the_command_line_refuses_in_one_line(words, tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    places = {"FILE": str(tmp_path / "file"), "FOLDER": str(tmp_path)}
    try:
        status = main([places.get(word, word) for word in words.split(" ")])
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr().err
    assert status == 2
    assert BAD[words] in said.splitlines()[-1]


@pytest.mark.parametrize("student", ["bundled", "smollm2-135m", "bundled/rigde-6-12"])
def test_a_wrong_students_name_is_told_before_anything_is_loaded(student, capsys, monkeypatch):
    monkeypatch.setattr(lft, "load_teacher", lambda *args, **options: pytest.fail("a teacher was loaded"))
    assert main(["evaluate", "--student", student]) == 2
    assert ("is a teacher" if "/" not in student else "Did you mean") in capsys.readouterr().err


@pytest.fixture
def interrupts():
    """Leave the handler of Ctrl-C as it was."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["parser", "_quieten", "evaluate"])
def test_an_interruption_is_one_line_wherever_it_comes_and_so_are_two(where, capsys, monkeypatch, interrupts):
    from lft_edu import cli

    def pressed(*args):
        raise KeyboardInterrupt

    pressed.__name__ = where
    monkeypatch.setattr(cli, where, pressed)
    assert main(["evaluate", "--student", "bundled"]) == 130
    os.kill(os.getpid(), signal.SIGINT)  # pressed again on the way out
    said = capsys.readouterr().err
    assert said.startswith("lft-edu evaluate: interrupted; run it again")
    assert len(said.splitlines()) == 1


def test_a_deleted_folder_is_said(tmp_path, monkeypatch, capsys):
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["reset", "03"]) == 2
    assert (
        capsys.readouterr().err == "lft-edu reset: The current folder has been deleted. Go to one that exists: cd ~\n"
    )


def test_a_course_on_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    whole, files = Path.write_text, []

    def filling(path, text, **options):
        files.append(path)
        if len(files) == 3:
            whole(path, text[:9], **options)
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, text, **options)

    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", filling)
        assert main(["classroom", str(tmp_path)]) == 2
    assert "No space left on device). Choose another folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*")] == ["mine.txt"]
    assert main(["classroom", str(tmp_path)]) == 0
    assert len([*tmp_path.glob("source/*/*.ipynb")]) > 3


def test_a_broken_installation_is_one_line_and_the_way_to_the_doctor(capsys, monkeypatch):
    from lft_edu import cli

    def broken(args):
        raise ModuleNotFoundError("Could not import module 'GPTNeoXForCausalLM'.")

    monkeypatch.setattr(cli, "generate", broken)
    broken.__name__ = "generate"
    assert main(["generate", "x"]) == 2
    assert "Run `lft-edu doctor`" in capsys.readouterr().err


@pytest.mark.parametrize("training", ['"x"', '{"tokens": "many"}', "[]", "3"])
def test_a_card_that_does_not_say_how_it_was_trained_is_damaged(training, tmp_path):
    from lft_edu.runs.cards import training_of

    (tmp_path / "card.json").write_text(f'{{"training": {training}}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"card\.json is damaged"):
        training_of(str(tmp_path))


def test_names_in_cards_are_code_and_keep_folders_to_themselves(teacher, ids, tmp_path, monkeypatch):
    student = lft.splice(teacher, SPAN, lft.Skip())
    card = lft.make_card(
        student, teacher, lft.evaluate(student, teacher, ids), str(tmp_path / "text.txt"), latency=False
    )
    for name in ("[c](javascript:1)", "![i](http://x)", "<img src=x>", "a|b", "``x``"):
        card["teacher"] |= {"name": name, "revision": None}
        for text in (card.markdown(), card.model_card("owner/name").text):
            assert "<img" not in text
            line = next(line for line in text.splitlines() if "Teacher" in line or line.startswith("`"))
            assert line.count("`") == 2
    link = "[c](javascript:1) <b>"
    card["training"] = {"tokens": 1, "seconds": 1, "corpus": link, "objective": link}
    card |= {"device": link, "dtype": link, "operator": {"kind": link}}
    card["teacher"]["revision"], card["held_out"]["split"] = link, link
    for text in (card.markdown(), card.model_card("owner/name").text):
        assert re.sub(r"`[^`\n]*`", "", text).count("](") == ("owner" in text)  # one link of ours, to the paper
    card["operator"] = student.operator.to_dict()
    card["teacher"]["name"] = str(tmp_path / "my-teacher")
    for text in (card.markdown(), card.model_card("owner/name").text, json.dumps(card.without_folders())):
        assert str(tmp_path) not in text
    assert card.without_folders()["teacher"]["name"] == "my-teacher"
    monkeypatch.setattr(cards, "get_token", lambda: None)
    with pytest.raises(PermissionError, match="log in first"):
        cards.require_login("owner/name")
    for name in ("name", "../../x", "a/b/c", ""):
        with pytest.raises(ValueError, match="owner/name"):
            cards.require_login(name, "hf_x")
