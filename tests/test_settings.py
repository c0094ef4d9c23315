"""Settings written once; and what ``fit`` trains, takes and refuses."""

import dataclasses
import json

import pytest
import torch

import lft_edu as lft
from lft_edu import objectives
from lft_edu.cli import parser
from lft_edu.training.callbacks import Callback, Evaluation
from lft_edu.training.settings import Training

SPAN = (2, 5)


def test_every_training_setting_is_an_option_of_the_command_line_with_help():
    command = parser(["train"])._subparsers._group_actions[0].choices["train"]
    flags = {flag for action in command._actions for flag in action.option_strings}
    for f in dataclasses.fields(lft.RunSettings):
        assert "--" + f.name.replace("_", "-") in flags
        assert f.metadata["help"]
    assert {"--batch", "--accumulate", "--keep", "--held", "--k", "--block", "--train-k"} <= flags  # former names


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [("--batch-size", "batch_size", 4), ("--held", "eval_tokens", 4), ("--tokens", "tokens", 4), ("--lr", "lr", 4.0)],
)
def test_the_command_line_sets_what_it_names(flag, name, value):
    from lft_edu.cli import _settings

    settings = _settings(parser(["train"]).parse_args(["train", "--span", "6:18", flag, "4"]))
    assert getattr(settings, name) == value
    assert settings.changed() == [name]


def test_former_names_are_understood_with_a_warning():
    with pytest.warns(FutureWarning, match="batch is called batch_size now"):
        settings = lft.RunSettings(batch=4)
    assert settings.batch_size == settings.batch == 4
    assert Training(batch_size=4) == dataclasses.replace(Training(), batch_size=4)
    with pytest.raises(TypeError, match="given twice"):
        lft.RunSettings(batch=4, batch_size=8)


@pytest.mark.parametrize("cls", [Training, lft.RunSettings])
def test_every_limit_is_refused_by_name(cls):
    tried = 0
    for f in dataclasses.fields(cls):
        limits = f.metadata
        for bad in [limits["at_least"] - 1] if limits["at_least"] is not None else []:
            with pytest.raises(ValueError, match=f"{f.name}={bad}"):
                cls(**{f.name: bad})
            tried += 1
        if limits["choices"]:
            with pytest.raises(ValueError, match=f"Unknown {f.name} 'nonsense'"):
                cls(**{f.name: "nonsense"})
            tried += 1
    assert tried > 8
    with pytest.raises(TypeError, match="Did you mean 'batch_size'"):
        cls(batchsize=4)
    with pytest.raises(ValueError, match="whole number"):
        cls(batch_size=2.5)
    with pytest.raises(ValueError, match="above 0"):
        cls(lr=0)


def test_settings_of_the_old_form_are_read(tmp_path):
    from lft_edu.runs.settings import _settings_in

    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"span": [6, 12], "batch": 4, "held": 100, "k": 2, "tensorboard": True, "gone": 1}))
    found = _settings_in(file)
    assert (found.span, found.batch_size, found.eval_tokens, found.num_steps) == ((6, 12), 4, 100, 2)
    assert found.trackers == ("tensorboard",)


# --- fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "steps"), [("euler", 1), ("euler", 3), ("midpoint", 2)])
def test_training_takes_the_walk_that_the_student_takes(teacher, blocks, solver, steps, monkeypatch):
    seen = []
    whole = objectives.FlowWalking.loss

    def loss(self, velocity, x0, x1, times=None, weight=None):
        seen.append((self.solver, times.shape[1] - 1))
        return whole(self, velocity, x0, x1, times, weight)

    monkeypatch.setattr(objectives.FlowWalking, "loss", loss)
    student = lft.splice(teacher, SPAN, lft.Flow(solver, steps))
    lft.fit(student, teacher, blocks, max_steps=1, batch_size=2, progress=False)
    lft.fit(student, teacher, blocks, max_steps=1, batch_size=2, num_steps=4, solver="euler", progress=False)
    lft.fit(student, teacher, blocks, lft.FlowWalking(num_steps=5), max_steps=1, batch_size=2, progress=False)
    assert seen == [(solver, steps), ("euler", 4), (solver, 5)]


def test_one_step_of_flow_walking_is_regression(teacher, blocks):
    """By one Euler step, Flow Walking's loss is regression's: the same weights come out."""
    ends = []
    for objective in ("flow_walking", "regression"):
        student = lft.splice(teacher, SPAN, lft.Flow("euler", 1))
        lft.fit(student, teacher, blocks, objective, max_steps=4, batch_size=4, progress=False)
        ends.append(torch.cat([p.flatten() for p in student.operator.parameters()]))
    assert torch.allclose(*ends, atol=1e-6)


@pytest.mark.parametrize(
    ("operator", "options", "words"),
    [
        (lft.Ridge(), {"lr": 0.1}, r"ridge.*would ignore lr"),
        (lft.Ridge(), {"objective": "flow_walking"}, "would ignore objective"),
        (lft.Ridge(), {"checkpoint": "c.safetensors", "resume": True}, "would ignore checkpoint, resume"),
        (lft.Ridge(), {"callbacks": [Callback()]}, "would ignore callbacks"),
        (lft.MeanShift(), {"num_steps": 2}, "would ignore num_steps"),
        (lft.Skip(), {"seed": 3}, "nothing to fit.*would ignore seed"),
        (lft.Flow(), {"objective": "flow_matching", "num_steps": 2}, "has only beta, interpolant"),
        (lft.Flow(), {"objective": "flow_walking", "alpha": 1.0}, "has only num_steps, solver, waypoints"),
        (lft.Flow(), {"objective": "logit_kl", "first_weight": 1.0}, "would ignore first_weight"),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(teacher, blocks, operator, options, words):
    with pytest.raises(ValueError, match=words):
        lft.fit(lft.splice(teacher, SPAN, operator), teacher, blocks, progress=False, **options)


def test_a_mistyped_option_gets_the_nearest_name(teacher, blocks):
    with pytest.raises(TypeError, match="Did you mean 'max_steps'"):
        lft.fit(lft.splice(teacher, SPAN, lft.Flow()), teacher, blocks, maxsteps=3)


def test_former_options_of_fit_are_understood(teacher, blocks):
    student = lft.splice(teacher, SPAN, lft.Flow())
    with pytest.warns(FutureWarning, match="steps is called max_steps now"):
        history = lft.fit(student, teacher, blocks, steps=2, k=2, step="midpoint", batch_size=2, progress=False)
    assert history.tokens == 2 * 2 * blocks.shape[1]


class Counting(Callback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self, run):
        self.calls.append("begin")

    def on_step_end(self, run):
        return run.step == 3

    def on_numbers(self, run):
        self.calls.append((run.step, run.loss > 0))

    def on_train_end(self, run):
        self.calls.append("end")


def test_callbacks_are_called_at_the_steps_they_ask_for(teacher, blocks):
    counting, measured = Counting(), []
    student = lft.splice(teacher, SPAN, lft.Flow())
    history = lft.fit(
        student,
        teacher,
        blocks,
        max_steps=7,
        batch_size=2,
        evaluate_every=5,
        callbacks=[counting, Evaluation(lambda step: {"at": measured.append(step) or step})],
        progress=False,
    )
    assert counting.calls == ["begin", (3, True), (5, True), (7, True), "end"]  # all are called when one asks
    assert measured == [5, 7]
    assert [row["at"] for row in history.evaluations] == [5, 7]
    assert history.steps == [3, 5, 7]


def test_callbacks_end_also_after_an_error(teacher, blocks):
    class Broken(Counting):
        def on_numbers(self, run):
            raise RuntimeError("broken")

    broken = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        lft.fit(lft.splice(teacher, SPAN, lft.Flow()), teacher, blocks, max_steps=4, callbacks=[broken], progress=False)
    assert broken.calls == ["begin", "end"]


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_times_of_a_batch_are_rows_of_the_whole(name):
    """What is random is drawn for a whole step, so a share of it sees what it would see in one piece."""
    objective = objectives.make_objective(name).resolve(lft.Flow("midpoint", 3))
    times = objective.times(8, torch.Generator().manual_seed(0))
    if times is None:
        assert name in ("regression", "logit_kl")
        return
    assert len(times) == 8
    assert ((times >= 0) & (times <= 1)).all()
    x0, x1 = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(1))
    field = lambda x, t: x * objectives.pad_t_like_x(objectives.as_time(t, x), x)  # noqa: E731
    whole = objective.loss(field, x0, x1, times)
    parts = [objective.loss(field, x0[i::2], x1[i::2], times[i::2]) for i in range(2)]
    assert torch.allclose(whole, torch.stack(parts).mean(), atol=1e-6)


def test_an_unknown_tracker_is_named(tmp_path):
    from lft_edu.training.logs import MetricsLog

    with pytest.raises(ValueError, match=r"Unknown tracker 'notebook'.*tensorboard"):
        MetricsLog(tmp_path / "metrics.jsonl", trackers=("notebook",))
