"""Runs from settings to student: what is planned, kept, logged, interrupted, resumed and shared among processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from hub import Hub, hub_environment, parquet_bytes
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import lft_edu as lft
from lft_edu.fitting import LatentLoss
from lft_edu.latents import span_latents
from lft_edu.runs import costs
from lft_edu.training.callbacks import History, Interruption, MetricsLog, read_metrics
from lft_edu.training.checkpoints import Checkpoints, read_checkpoint
from lft_edu.training.optimizers import orthogonalise
from lft_edu.training.processes import make_accelerator

SMALL = {"span": (6, 12), "tokens": 4096, "block": 64, "batch": 4, "held": 2000, "k": 1}


# --- plans --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["flow_matching", "flow_walking", "regression", "hybrid"])
def test_operations_are_what_torch_counts(objective):
    """PyTorch's counter takes attention over the whole square; with one token in a block there is none to speak of."""
    teacher = lft.random_teacher("pythia-14m", device="cpu")
    shape, span, rows = costs.Shape.of(teacher), (1, 4), 64
    ids = torch.randint(1, 1000, (rows, 2))
    operator = lft.Regression() if objective == "regression" else lft.Flow("midpoint", 3)
    student = lft.splice(teacher, span, operator)
    loss = LatentLoss(student.operator, objective, 3, "midpoint", 0.1)
    with FlopCounterMode(display=False) as counter:
        loss(span_latents(teacher, span, ids)).backward()
    counted = 2 * costs.training_operations(shape, span, objective, 3, "midpoint", block=2) * ids.numel()
    # Not needed and so not made: the gradient of the states that enter the first evaluation.
    assert 0.85 < counter.get_total_flops() / counted < 1.02


def test_parameters_are_counted_exactly(teacher):
    shape = costs.Shape.of(teacher)
    for objective, operator in (("flow_walking", lft.Flow()), ("regression", lft.Regression())):
        student = lft.splice(teacher, (2, 5), operator)
        assert costs.student_parameters(shape, (2, 5), objective) == sum(p.numel() for p in student.parameters())


def test_a_plan_of_pythia_needs_no_weights(tmp_path, monkeypatch):
    model = lft.random_teacher("pythia-410m", layers=1, device="cpu")
    model.config.num_hidden_layers = 24
    model.config.save_pretrained(tmp_path)  # a config is all there is
    settings = lft.RunSettings(teacher=str(tmp_path), tokens=2_600_000_000, block=512, span=(6, 12))
    found = lft.plan(settings)
    assert found.shape.parameters == 405_334_016  # as published
    assert found.steps == 2_600_000_000 // (512 * 16)
    assert found.seconds > 3600
    assert found.memory > 4 * found.shape.parameters
    text = str(found)
    assert "405.3 M parameters" in text
    assert "days" in text or " h" in text
    two = lft.plan(settings, processes=2)
    assert two.seconds / found.seconds == pytest.approx(0.5, rel=0.5)
    assert two.steps == found.steps // 2


def test_pythia_is_planned_without_the_hub(monkeypatch):
    monkeypatch.setattr("lft_edu.loading.hub.look_up", Mock(side_effect=ConnectionError("no hub")))
    found = lft.plan(lft.RunSettings(teacher="EleutherAI/pythia-410m"))
    assert found.unseen
    assert found.download == 2 * found.shape.parameters == 2 * 405_334_016
    assert "The hub is out of reach" in str(found)
    with pytest.raises(ConnectionError):
        lft.plan(lft.RunSettings(teacher="lab/unknown"))


def test_text_is_no_faster_than_it_can_be_read(bundled, monkeypatch):
    monkeypatch.setattr("lft_edu.runs.costs.matmul_speed", lambda *_: 1e18)
    found = lft.plan(lft.RunSettings(tokens=7_500_000), bundled[0])
    assert found.seconds == found.reading == 10
    assert "as long as reading the text" in str(found)


def test_muon_is_counted_as_torch_counts_it():
    matrices = [(384, 128), (128, 128), (512, 128), (128, 512), (768, 128)]  # of a layer of width 128, and its knobs
    with FlopCounterMode(display=False) as counter:
        for shape in matrices:
            orthogonalise(torch.randn(1, *shape))
    layer = costs.Shape(128, 6, 50304, 12 * 128**2, 12 * 128**2 + 13 * 128, 0)
    assert counter.get_total_flops() == 2 * costs.optimizer_operations(layer, "flow_matching", "muon")
    assert costs.optimizer_operations(layer, "flow_matching", "adamw") == 0


def test_half_precision_keeps_half_as_much_for_the_gradient(bundled):
    settings = [lft.RunSettings(batch=64, precision=precision) for precision in ("no", "bf16")]
    full, half = (lft.plan(each, bundled[0]).memory for each in settings)
    assert half < full


def test_a_run_that_does_not_fit_is_cut_into_smaller_pieces(bundled, monkeypatch):
    settings = lft.RunSettings(batch=64, accumulate=2, block=512)
    whole = lft.plan(settings, bundled[0])
    assert lft.plans.plan_that_fits(settings, bundled[0]).settings == settings
    monkeypatch.setattr("lft_edu.support.machine.free_memory", lambda device: 0.7 * whole.memory)
    found = lft.plans.plan_that_fits(settings, bundled[0])
    assert found.fits
    assert found.settings.batch < 64
    assert found.settings.batch * found.settings.accumulate == 128
    assert found.steps == whole.steps
    monkeypatch.setattr("lft_edu.support.machine.free_memory", lambda device: 0)
    assert lft.plans.plan_that_fits(settings, bundled[0]).settings.batch == 1


def test_what_does_not_fit_is_said():
    assert "It does not fit" in str(lft.plan(lft.RunSettings(batch=10**9)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": 0}, "tokens=0"),
        ({"dtype": "float16"}, "float32, bfloat16"),
        ({"solver": "heun"}, "euler, midpoint"),
        ({"objective": "flow_wlaking"}, "Did you mean 'flow_walking'"),
        ({"operator": "rige"}, "Did you mean 'ridge'"),
        ({"dtype": "bfloat16"}, "set both"),
        ({"operator": "ridge", "objective": "hybrid"}, "takes no objective"),
    ],
)
def test_settings_that_can_not_work(options, words):
    with pytest.raises(ValueError, match=words):
        lft.RunSettings(**options)


# --- a run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(bundled, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    settings = lft.RunSettings(**SMALL, out=str(out), save_every=4, keep=2, evaluate_every=8, tensorboard=True)
    planned = lft.plan(settings, bundled[0])
    return planned, lft.train(settings, teacher=bundled[0], tokenizer=bundled[1], progress=False)


def test_a_run_leaves_everything_behind(finished):
    planned, run = finished
    out = run.teacher and lft.runs.Path(run.settings.out)
    assert {p.name for p in out.iterdir()} == {
        "settings.json", "checkpoints", "metrics.jsonl", "tensorboard", "student", "card.json", "card.md",
    }  # fmt: skip
    assert len(list((out / "checkpoints").iterdir())) == 2
    assert lft.RunSettings(**json.loads((out / "settings.json").read_text())) == run.settings
    student = lft.load_student(out / "student", device="cpu")
    again = lft.evaluate(student, run.teacher, lft.load_corpus("python-stdlib", run.tokenizer, "test", 64, 2000))
    assert again.kl == pytest.approx(run.evaluation.kl, rel=1e-5)
    assert run.card["training"]["tokens"] == run.history.tokens == 4096
    assert "taken" in planned.compared(run.taken)
    assert run.taken["disk"] > 0


def test_metrics_are_rows_of_json(finished):
    rows = read_metrics(lft.runs.Path(finished[1].settings.out) / "metrics.jsonl")
    losses = [row for row in rows if "loss" in row]
    assert [row["step"] for row in losses] == [4, 8, 10, 12, 16]
    assert {"loss", "gradient_norm", "tokens", "seconds", "tokens_per_second", "rate_factor"} <= set(losses[0])
    assert [row["step"] for row in rows if "kl" in row] == [8, 16]


def test_tensorboard_reads_them_too(finished):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(lft.runs.Path(finished[1].settings.out) / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [4, 8, 10, 12, 16]


def test_a_run_is_not_overwritten(finished):
    with pytest.raises(FileExistsError, match="--resume"):
        lft.train(finished[1].settings, progress=False)


def test_other_settings_are_refused_by_name_and_nothing_is_touched(finished):
    run = finished[1]
    kept = (lft.runs.Path(run.settings.out) / "settings.json").read_bytes()
    with pytest.raises(ValueError, match="tokens: 4096 then, 8192 now"):
        lft.train(replace(run.settings, tokens=8192), resume=True, teacher=run.teacher, tokenizer=run.tokenizer)
    with pytest.raises(ValueError, match="batch × accumulate × processes"):
        lft.train(replace(run.settings, batch=8), resume=True, teacher=run.teacher, tokenizer=run.tokenizer)
    assert (lft.runs.Path(run.settings.out) / "settings.json").read_bytes() == kept
    smaller = replace(run.settings, batch=2, accumulate=2, keep=1)  # the same steps, in smaller pieces
    again = lft.train(smaller, resume=True, teacher=run.teacher, tokenizer=run.tokenizer, progress=False)
    assert again.evaluation.kl == run.evaluation.kl
    assert again.taken["seconds"] > run.history.seconds  # of all sittings
    assert smaller.name == run.settings.name != replace(run.settings, tokens=8192).name


def test_a_log_forgets_the_steps_that_come_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1}\n{"step": 4, "loss": 1}\n{"step": 6, "lo')
    MetricsLog(path, done=2)({"step": 3, "loss": 0.5})
    assert [row["step"] for row in read_metrics(path)] == [2, 3]


def test_closed_forms_are_runs_too(bundled, tmp_path):
    settings = lft.RunSettings(**SMALL | {"k": 1}, operator="ridge", out=str(tmp_path / "ridge"))
    run = lft.train(settings, teacher=bundled[0], tokenizer=bundled[1], progress=False)
    assert run.evaluation.kl > 0
    assert (tmp_path / "ridge" / "student" / "config.json").exists()
    with pytest.raises(FileExistsError, match="holds a run"):
        lft.train(settings, teacher=bundled[0], tokenizer=bundled[1], progress=False)
    assert run.card["training"]["objective"] == "solved"
    assert "ridge for layers 6–12, solved" in str(lft.plan(settings, bundled[0]))


def test_a_bfloat16_teacher_trains_a_float32_operator(bundled, tmp_path):
    settings = lft.RunSettings(
        **SMALL, dtype="bfloat16", precision="bf16", evaluate_every=8, out=str(tmp_path / "half")
    )
    run = lft.train(settings, progress=False)
    assert run.history.losses[-1] < run.history.losses[0]
    assert run.student.dtype == torch.bfloat16
    _, tensors = read_checkpoint(Checkpoints(tmp_path / "half" / "checkpoints").files()[0])
    assert {t.dtype for name, t in tensors.items() if name.startswith("module.")} == {torch.float32}


@pytest.mark.parametrize("damage", [lambda data: data[:300], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(teacher, blocks, tmp_path, damage):
    """Cut short, or with one bit of one number changed."""
    options = {"steps": 6, "batch_size": 4, "checkpoint": tmp_path / "c", "save_every": 2, "progress": False}
    whole = lft.splice(teacher, (2, 5), lft.Flow())
    lft.fit(whole, teacher, blocks, **options)
    newest = Checkpoints(tmp_path / "c").files()[0]
    newest.write_bytes(damage(newest.read_bytes()))
    again = lft.splice(teacher, (2, 5), lft.Flow())
    with pytest.warns(UserWarning, match="Resuming from step-000000004"):
        lft.fit(again, teacher, blocks, **options, resume=True)
    for a, b in zip(whole.operator.parameters(), again.operator.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_damaged_checkpoint_never_costs_a_good_one(teacher, tmp_path):
    """With one to keep, and a damaged one that claims more steps: the damaged one goes."""
    student = lft.splice(teacher, (2, 5), lft.Flow())
    kept, notes = Checkpoints(tmp_path, keep=1), {"history": History(), "settings": {}}
    for step in (13, 16):
        kept.save(student.operator, [], notes | {"step": step})
    (tmp_path / "step-x.safetensors").write_bytes(b"a stray")
    kept.files()[0].write_bytes(b"damaged")
    kept.save(student.operator, [], notes | {"step": 14})
    assert [path.stem for path in kept.files()] == ["step-000000014"]
    assert kept.newest_step() == 14


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(teacher, tmp_path, monkeypatch):
    student = lft.splice(teacher, (2, 5), lft.Flow())
    kept, notes = Checkpoints(tmp_path), {"history": History(), "settings": {}, "step": 1}
    kept.save(student.operator, [], notes)
    full = SafetensorError("I/O error: No space left on device (os error 28)")
    monkeypatch.setattr("safetensors.torch.save_file", Mock(side_effect=full))
    with pytest.raises(OSError, match=r"MB\) could not be written .*Free disk space, then resume"):
        kept.save(student.operator, [], notes | {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.safetensors"]


def test_damaged_settings_are_named(finished, tmp_path):
    run = finished[1]
    shutil.copytree(run.settings.out, tmp_path / "copy")
    settings = replace(run.settings, out=str(tmp_path / "copy"))
    for text in ("garbage", "[]", '{"span": null}'):
        (tmp_path / "copy" / "settings.json").write_text(text)
        with pytest.raises(ValueError, match=r"settings.json is damaged"):
            lft.train(settings, resume=True, teacher=run.teacher, tokenizer=run.tokenizer)


def test_accumulated_batches_are_one_large_batch(teacher, blocks):
    ends = []
    for batch, turns in ((8, 1), (2, 4)):
        student = lft.splice(teacher, (2, 5), lft.Flow("midpoint", 2))
        options = {"steps": 5, "batch_size": batch, "accumulate": turns, "k": 2, "progress": False}
        history = lft.fit(student, teacher, blocks, "flow_walking", **options)
        assert history.tokens == 5 * 8 * 16
        ends.append(torch.cat([p.flatten() for p in student.operator.parameters()]))
    assert (ends[0] - ends[1]).abs().max() < 1e-5


def test_the_precision_of_one_run_is_not_the_next_ones():
    """Accelerate keeps its state for the life of a process: a notebook that trains twice would be refused."""
    precisions = [make_accelerator(torch.device("cpu"), wanted).mixed_precision for wanted in ("bf16", "no")]
    assert precisions == ["bf16", "no"]


@pytest.mark.slow
def test_a_compiled_loss_is_the_same_loss(teacher, blocks):
    losses = []
    for compile in (False, True):
        student = lft.splice(teacher, (2, 5), lft.Flow("midpoint", 2))
        options = {"steps": 3, "batch_size": 4, "k": 2, "compile": compile, "progress": False}
        losses.append(lft.fit(student, teacher, blocks, "flow_walking", **options).losses)
        assert "_orig_mod" not in "".join(student.state_dict())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# --- other processes ----------------------------------------------------------------------------------------------

TRAIN = [
    "train",
    "--span",
    "6:12",
    "--k",
    "1",
    "--tokens",
    "10k",
    "--block",
    "32",
    "--batch",
    "4",
    "--held",
    "1k",
    "--quiet",
]


def lft_edu(*words, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "lft_edu", *words], stderr=subprocess.PIPE, text=True, **options)


def weights(out) -> dict:
    return load_file(out / "student" / "model.safetensors")


def test_a_signal_that_comes_twice_at_once_is_one_wish(monkeypatch):
    interruption = Interruption()
    with interruption.watched():
        for _ in range(2):  # a scheduler's, and the launcher's copy of it
            signal.raise_signal(signal.SIGTERM)
        assert interruption.asked
        monkeypatch.setattr(Interruption, "ECHO", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert lft_edu(*TRAIN, "--out", str(whole)).wait(timeout=200) == 0
    for number in (signal.SIGTERM, signal.SIGINT):
        process, seen = lft_edu(*TRAIN, "--out", str(broken), "--resume"), _rows(broken)
        deadline = time.time() + 100
        while _rows(broken) <= seen and process.poll() is None and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 130, errors
        assert "--resume" in errors
        step = Checkpoints(broken / "checkpoints").newest_step()
        assert 0 < step < 80
        assert step == read_metrics(broken / "metrics.jsonl")[-1]["step"]  # not one step is lost
    assert lft_edu(*TRAIN, "--out", str(broken), "--resume").wait(timeout=200) == 0
    a, b = weights(whole), weights(broken)
    assert all(torch.equal(a[name], b[name]) for name in a)


def _rows(out) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def wikitext(tmp_path_factory, bundled):
    """A hub that streams a data set of two files and offers a teacher."""
    root = tmp_path_factory.mktemp("wikitext")
    bundled[0].save_pretrained(root / "model")
    bundled[1].save_pretrained(root / "model")
    lines = [f" = Title {i} = \n def f_{i}(x):\n    return x + {i * i}\n" for i in range(3000)]
    parts = {"train-00000-of-00002": lines[:1500], "train-00001-of-00002": lines[1500:]}
    parts |= {"test-00000-of-00001": lines[:100], "validation-00000-of-00001": lines[:50]}
    with Hub(root / "hub") as hub:
        hub.add("lab/teacher", root / "model")
        files = {f"wikitext-2-raw-v1/{name}.parquet": parquet_bytes(texts) for name, texts in parts.items()}
        splits = "".join(
            f"  - {{split: {s}, path: wikitext-2-raw-v1/{s}-*}}\n" for s in ("train", "test", "validation")
        )
        card = f"---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n{splits}---\n"
        files["README.md"] = card.encode()
        hub.add("Salesforce/wikitext", files, kind="dataset")
        yield hub, root / "home"


ON_A_DISK_OF_ITS_OWN = """
import os, sys
from lft_edu.cli import main
sys.exit(main([*sys.argv[2:], "--out", f"{sys.argv[1]}/disk{os.environ['RANK']}"]))
"""


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(wikitext, tmp_path):
    """`accelerate launch` of two processes (gloo, without a GPU), a stream of the hub, each process its own file
    of it, and each a disk of its own, as on two machines. Weights agree to 1e-6, all but the attention's biases: a bias
    on the keys moves no softmax, its gradient is rounding and nothing else, and Adam makes steps of full size out of
    any gradient. What two began, two or one go on with."""
    hub, home = wikitext
    env = hub_environment(hub, home) | {"OMP_NUM_THREADS": "1"}
    text = ["--teacher", "lab/teacher", "--corpus", "wikitext-2", "--streaming"]
    run = [*TRAIN, *text, "--tokens", "5k", "--save-every", "10"]
    (tmp_path / "on_a_disk.py").write_text(ON_A_DISK_OF_ITS_OWN)

    def launch(folder, *more) -> subprocess.CompletedProcess:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", port, str(tmp_path / "on_a_disk.py"), str(folder), *run, *more]
        return subprocess.run(command, env=env, timeout=300, capture_output=True, text=True)

    def apart(a, b, biases: bool) -> float:
        a, b = weights(a), weights(b)
        return max((a[k] - b[k]).abs().max().item() for k in a if k.endswith("query_key_value.bias") == biases)

    one, two = tmp_path / "one", tmp_path / "two" / "disk0"
    assert lft_edu(*run, "--batch", "8", "--out", str(one), env=env).wait(timeout=200) == 0
    done = launch(two.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    assert apart(one, two, biases=False) < 1e-6
    assert apart(one, two, biases=True) < 1e-3
    rows = [[row["loss"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row] for out in (one, two)]
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)
    newest, middle = Checkpoints(two / "checkpoints").files()
    lanes = read_checkpoint(newest)[0]["stream"]
    assert {lane: place["position"] for lane, place in lanes.items()} == {"0": 19 * 4, "1": 19 * 4}
    # A folder that holds a run is refused by both processes, though only one sees it.
    refused = launch(two.parent)
    assert refused.returncode != 0
    assert refused.stderr.count("holds a run") == 2
    # From the middle on: two go on, one goes on.
    mixed = tmp_path / "mixed" / "checkpoints"
    mixed.mkdir(parents=True)
    os.link(middle, mixed / middle.name)
    newest.unlink()
    done = launch(two.parent, "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert apart(one, two, biases=False) < 1e-6
    assert lft_edu(*run, "--batch", "8", "--out", str(mixed.parent), "--resume", env=env).wait(timeout=200) == 0
    assert apart(one, mixed.parent, biases=False) < 1e-6
