"""Runs from settings to student: what is planned, kept, logged, interrupted, resumed and shared among processes."""

import copy
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from hub import Hub, hub_environment, parquet_bytes
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from test_families import TEACHERS
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import lft_edu as lft
from lft_edu.fitting import LatentLoss
from lft_edu.latents import span_latents
from lft_edu.objectives import make_objective
from lft_edu.runs import costs
from lft_edu.skipping import skip_kl
from lft_edu.training.callbacks import GracefulShutdown, History
from lft_edu.training.checkpoints import Checkpoints, digest, read_checkpoint
from lft_edu.training.logs import MetricsLog, read_metrics
from lft_edu.training.optimizers import newton_schulz
from lft_edu.training.processes import make_accelerator

SMALL = {"span": (6, 12), "tokens": 4096, "sequence_length": 64, "batch_size": 4, "eval_tokens": 2000, "num_steps": 1}


# --- plans --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TEACHERS)
def test_without_weights_the_same_is_counted_as_with_them(family):
    """A step and an evaluation on the meta device, against those of real weights on the CPU, in every family."""
    teacher = AutoModelForCausalLM.from_config(TEACHERS[family](), attn_implementation="eager")
    teacher.eval().requires_grad_(False)
    if "moe" in family:
        teacher.set_experts_implementation("batched_mm")  # of the default products, some are not counted
    student = lft.splice(teacher, (2, 5), lft.Flow("midpoint", 2))
    goal, ids = make_objective("hybrid").resolve(student.operator), torch.randint(1, 300, (1, 24))
    loss = LatentLoss(student.operator, goal)
    with FlopCounterMode(display=False) as training:
        loss(span_latents(teacher, (2, 5), ids), goal.times(1)).backward()
    with FlopCounterMode(display=False) as evaluation:
        lft.evaluate(student, teacher, ids)
    counted = costs.run_costs(teacher, (2, 5), "hybrid", 2, "midpoint", 24)
    assert counted.training_flops * 24 == pytest.approx(training.get_total_flops(), rel=0.02)
    assert counted.evaluation_flops * 24 == pytest.approx(evaluation.get_total_flops(), rel=0.02)
    assert counted.student_parameters == sum(p.numel() for p in student.parameters())
    assert counted.operator_parameters == sum(p.numel() for p in student.operator.parameters())


@pytest.mark.parametrize(
    ("objective", "evaluations"), [("flow_matching", 1), ("flow_walking", 6), ("regression", 1), ("hybrid", 7)]
)
def test_operations_are_those_that_lesson_08_counts_by_hand(objective, evaluations):
    layer = 12 * 1024**2
    counted = costs.run_costs(lft.random_teacher("pythia-410m", device="meta"), (6, 12), objective, sequence_length=512)
    by_hand = 2 * layer * (12 + 3 * evaluations)
    assert 1.05 < counted.training_flops / by_hand < 1.10  # attention: 512 / (6 · 1024)
    assert counted.loss_flops == pytest.approx(counted.latents_flops * evaluations / 4, rel=0.01)


def test_logit_kl_runs_both_models_whole(teacher):
    parts = costs.run_costs(teacher, (2, 5), "flow_walking", 1)
    whole = costs.run_costs(teacher, (2, 5), "logit_kl", 1)
    assert whole.latents_flops == 0
    # The gradient passes the tail and the head, whose weights take none, and both of the operator's evaluations; the
    # student's first layers are the teacher's and do not run again.
    assert 1.05 < whole.training_flops / (whole.evaluation_flops + parts.loss_flops * 2 / 3) < 1.5
    more = whole.training_memory(1000, torch.float32) - parts.training_memory(1000, torch.float32)
    assert more == costs.LOGIT_COPIES * 4 * 1000 * 300


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_takes_what_was_counted(teacher, blocks, tmp_path, optimizer):
    student = lft.splice(teacher, (2, 5), lft.Flow())
    lft.fit(student, teacher, blocks, max_steps=1, optimizer=optimizer, checkpoint=tmp_path / "run.safetensors")
    size = (tmp_path / "run.safetensors").stat().st_size
    counted = costs.run_costs(teacher, (2, 5), optimizer=optimizer).checkpoint_bytes
    assert counted < size < 1.05 * counted + 10_000  # and a header, with names


def test_a_closed_form_costs_its_states_alone(teacher):
    counted = costs.run_costs(teacher, (2, 5), "solved", operator=lft.MeanShift())
    assert counted.training_flops == counted.latents_flops > 0
    assert (counted.operator_parameters, counted.optimizer_flops, counted.checkpoint_bytes) == (64, 0, 0)


def test_a_search_for_the_best_skip_is_counted_as_it_runs(teacher):
    eager = AutoModelForCausalLM.from_config(copy.deepcopy(teacher.config), attn_implementation="eager").eval()
    spans = [(m, m + j) for j in (1, 2) for m in range(8 - j + 1)]
    with FlopCounterMode(display=False) as counter:
        skip_kl(eager, torch.randint(1, 300, (1, 24)), spans, progress=False)
    assert counter.get_total_flops() == pytest.approx(24 * costs.skip_flops(teacher, 2, 24), rel=1e-3)


def test_a_plan_of_pythia_needs_no_weights(tmp_path, monkeypatch):
    model = lft.random_teacher("pythia-410m", layers=1, device="cpu")
    model.config.num_hidden_layers = 24
    model.config.save_pretrained(tmp_path)  # a config is all there is
    settings = lft.RunSettings(teacher=str(tmp_path), tokens=2_600_000_000, sequence_length=512, span=(6, 12))
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
    matrices = [(384, 128), (128, 128), (512, 128), (128, 512), (768, 128), (128, 128)]  # of a layer of width 128
    with FlopCounterMode(display=False) as counter:
        for shape in matrices:  # the last two are the time modulation's
            newton_schulz(torch.randn(1, *shape))
    pythia = lft.random_teacher("pythia-14m", device="meta")
    muon, adamw = (costs.run_costs(pythia, (1, 4), optimizer=name).optimizer_flops for name in ("muon", "adamw"))
    assert (muon, adamw) == (counter.get_total_flops(), 0)


def test_half_precision_keeps_half_as_much_for_the_gradient(bundled):
    settings = [lft.RunSettings(batch_size=64, precision=precision) for precision in ("no", "bf16")]
    full, half = (lft.plan(each, bundled[0]).memory for each in settings)
    assert half < full


def test_a_run_that_does_not_fit_is_cut_into_smaller_pieces(bundled, monkeypatch):
    settings = lft.RunSettings(batch_size=64, gradient_accumulation_steps=2, sequence_length=512)
    whole = lft.plan(settings, bundled[0])
    assert lft.plans.plan_that_fits(settings, bundled[0]).settings == settings
    monkeypatch.setattr("lft_edu.runs.plans.free_memory", lambda device: 0.7 * whole.memory)
    found = lft.plans.plan_that_fits(settings, bundled[0])
    assert found.fits
    assert found.settings.batch_size < 64
    assert found.settings.batch_size * found.settings.gradient_accumulation_steps == 128
    assert found.steps == whole.steps
    monkeypatch.setattr("lft_edu.runs.plans.free_memory", lambda device: 0)
    assert lft.plans.plan_that_fits(settings, bundled[0]).settings.batch_size == 1


def test_what_does_not_fit_is_said():
    assert "It does not fit" in str(lft.plan(lft.RunSettings(batch_size=10**9)))


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
    settings = lft.RunSettings(
        **SMALL, out=str(out), save_every=4, save_total_limit=2, evaluate_every=8, report_to="tensorboard"
    )
    planned = lft.plan(settings, bundled[0])
    return planned, lft.train(settings, teacher=bundled[0], tokenizer=bundled[1], progress=False)


def test_a_run_leaves_everything_behind(finished):
    planned, run = finished
    out = run.teacher and Path(run.settings.out)
    assert {p.name for p in out.iterdir()} == {
        "settings.json", "checkpoints", "metrics.jsonl", "tensorboard", "student", "card.json", "card.md", ".lock",
    }  # fmt: skip
    assert len(list((out / "checkpoints").iterdir())) == 2
    assert lft.RunSettings(**json.loads((out / "settings.json").read_text())) == run.settings
    student = lft.load_student(out / "student", device="cpu")
    again = lft.evaluate(student, run.teacher, lft.load_corpus("python-stdlib", run.tokenizer, "test", 64, 2000))
    assert again.kl == pytest.approx(run.evaluation.kl, rel=1e-5)
    assert run.card["training"]["tokens"] == run.history.tokens == 4096
    assert "actual" in planned.compared(run.actual)
    assert run.actual["disk"] > 0


def test_metrics_are_rows_of_json(finished):
    rows = read_metrics(Path(finished[1].settings.out) / "metrics.jsonl")
    losses = [row for row in rows if "loss" in row]
    assert [row["step"] for row in losses] == [4, 8, 10, 12, 16]
    assert {"loss", "gradient_norm", "tokens", "seconds", "tokens_per_second", "rate_factor"} <= set(losses[0])
    assert [row["step"] for row in rows if "kl" in row] == [8, 16]


def test_tensorboard_reads_them_too(finished):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(Path(finished[1].settings.out) / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [4, 8, 10, 12, 16]


def test_a_run_is_not_overwritten(finished):
    with pytest.raises(FileExistsError, match="--resume"):
        lft.train(finished[1].settings, progress=False)


def test_other_settings_are_refused_by_name_and_nothing_is_touched(finished):
    run = finished[1]
    kept = (Path(run.settings.out) / "settings.json").read_bytes()
    with pytest.raises(ValueError, match="tokens: 4096 then, 8192 now"):
        lft.train(replace(run.settings, tokens=8192), resume=True, teacher=run.teacher, tokenizer=run.tokenizer)
    with pytest.raises(ValueError, match="batch × accumulate × processes"):
        lft.train(replace(run.settings, batch_size=8), resume=True, teacher=run.teacher, tokenizer=run.tokenizer)
    assert (Path(run.settings.out) / "settings.json").read_bytes() == kept
    smaller = replace(
        run.settings, batch_size=2, gradient_accumulation_steps=2, save_total_limit=1
    )  # the same steps, in smaller pieces
    again = lft.train(smaller, resume=True, teacher=run.teacher, tokenizer=run.tokenizer, progress=False)
    assert again.evaluation.kl == run.evaluation.kl
    assert again.actual["seconds"] > run.history.seconds  # of all sittings
    assert smaller.name == run.settings.name != replace(run.settings, tokens=8192).name


def test_a_log_forgets_the_steps_that_come_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1}\n{"step": 4, "loss": 1}\n{"step": 6, "lo')
    MetricsLog(path, done=2)({"step": 3, "loss": 0.5})
    assert [row["step"] for row in read_metrics(path)] == [2, 3]


def test_closed_forms_are_runs_too(bundled, tmp_path):
    settings = lft.RunSettings(**SMALL | {"num_steps": 1}, operator="ridge", out=str(tmp_path / "ridge"))
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
    options = {"max_steps": 6, "batch_size": 4, "checkpoint": tmp_path / "c", "save_every": 2, "progress": False}
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
        options = {"max_steps": 5, "batch_size": batch, "gradient_accumulation_steps": turns, "progress": False}
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
        options = {"max_steps": 3, "batch_size": 4, "compile": compile, "progress": False}
        losses.append(lft.fit(student, teacher, blocks, "flow_walking", **options).losses)
        assert "_orig_mod" not in "".join(student.state_dict())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# --- other processes ----------------------------------------------------------------------------------------------

TRAIN = [
    "train",
    "--span",
    "6:12",
    "--num-steps",
    "1",
    "--tokens",
    "10k",
    "--sequence-length",
    "32",
    "--batch-size",
    "4",
    "--eval-tokens",
    "1k",
    "--quiet",
]


def lft_edu(*words, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "lft_edu", *words], stderr=subprocess.PIPE, text=True, **options)


def weights(out) -> dict:
    return load_file(out / "student" / "model.safetensors")


def test_a_signal_that_comes_twice_at_once_is_one_wish(monkeypatch):
    shutdown, run = GracefulShutdown(), SimpleNamespace(stop_requested=False)
    shutdown.on_train_begin(run)
    try:
        for _ in range(2):  # a scheduler's, and the launcher's copy of it
            signal.raise_signal(signal.SIGTERM)
        assert run.stop_requested
        monkeypatch.setattr(GracefulShutdown, "ECHO", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        shutdown.on_train_end(run)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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


def test_the_crash_campaign_tells_a_changed_run_from_an_equal_one(finished, tmp_path):
    """benchmarks/crash.py compares a run that was killed with one that was not: it must see the smallest change."""
    crash = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "crash.py")))
    broken = Path(shutil.copytree(finished[1].settings.out, tmp_path / "run"))
    whole, changes = crash.contents(broken), []
    assert crash.differing(whole, crash.contents(broken), ended=True) == []

    def changed(*names: str, ended: bool = True) -> bool:
        return crash.differing(whole, crash.contents(broken), ended) == sorted([*changes, *names])

    newest = Checkpoints(broken / "checkpoints").files()[0]
    notes, tensors = read_checkpoint(newest)
    for kind in ("module.", "optimizer."):
        name = next(name for name, tensor in tensors.items() if name.startswith(kind) and tensor.numel() > 1)
        tensors[name].view(-1)[0] = torch.nextafter(tensors[name].view(-1)[0], torch.tensor(9.0))
    text = json.dumps(notes)
    save_file(tensors, newest, metadata={"lft_edu": text, "sha256": digest(tensors, text)})
    changes += [f"{newest.stem}, weights", f"{newest.stem}, optimizer"]
    assert changed(ended=False)
    rows = (broken / "metrics.jsonl").read_text().splitlines()
    (broken / "metrics.jsonl").write_text("\n".join([rows[0].replace('"loss": ', '"loss": 1'), *rows[2:]]) + "\n")
    changes += ["log, step 4, loss"]
    gone = json.loads(rows[1])
    assert changed(ended=False)
    changes += [f"log, step {gone['step']}, {'kl' if 'kl' in gone else 'loss'} (missing)"]
    card = json.loads((broken / "card.json").read_text())
    card["training"]["seconds"] += 1  # a clock
    (broken / "card.json").write_text(json.dumps(card))
    assert changed()
    card["training"]["tokens"] += 1
    (broken / "card.json").write_text(json.dumps(card))
    (broken / "student" / "config.json").write_text("{}")
    assert changed("card.json", "student/config.json")
    newest.write_bytes(newest.read_bytes()[:-1])
    assert f"{newest.stem}, damaged" in crash.differing(whole, crash.contents(broken), ended=False)
