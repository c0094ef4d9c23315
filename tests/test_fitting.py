"""Training: what it fits, what it leaves alone, and that a killed run goes on as if nothing had happened."""

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge as SklearnRidge

import lft_edu as lft
from lft_edu import latents
from lft_edu.closed_forms import Moments
from lft_edu.families import layers_of
from lft_edu.fitting import LatentSource
from lft_edu.latents import StateStore, depth_states, hidden_states_at_all_layers, span_latents
from lft_edu.objectives import OBJECTIVES, HeadKL, logit_kl_loss
from lft_edu.training import optimizers, sampling
from lft_edu.training.callbacks import Evaluation
from lft_edu.training.loop import optimize
from lft_edu.training.settings import Training

SPAN = (2, 5)


@pytest.fixture(scope="module")
def pairs(teacher, blocks):
    found = span_latents(teacher, SPAN, blocks)
    return found.x0[:, 1:].flatten(0, 1), found.x1[:, 1:].flatten(0, 1)


def test_latents_are_what_enters_and_leaves_the_span(teacher, blocks):
    with torch.no_grad():
        states = teacher(input_ids=blocks[:2], output_hidden_states=True).hidden_states
    found = span_latents(teacher, SPAN, blocks[:2])
    assert torch.equal(found.x0, states[2])
    assert torch.equal(found.x1, states[5])


def test_latents_run_no_layer_above_the_span(teacher, blocks):
    calls = []
    hooks = [layer.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, layer in enumerate(layers_of(teacher))]
    span_latents(teacher, SPAN, blocks[:2])
    for hook in hooks:
        hook.remove()
    assert calls == [0, 1, 2, 3, 4]


def test_the_last_state_is_taken_before_the_final_norm(teacher, blocks):
    x1 = span_latents(teacher, (5, 8), blocks[:2]).x1
    with torch.no_grad():
        assert torch.allclose(
            teacher.lm_head(teacher.gpt_neox.final_layer_norm(x1)), teacher(blocks[:2]).logits, atol=1e-6
        )


def test_cached_latents_are_the_same(teacher, blocks):
    rows = torch.tensor([3, 17, 5])
    fresh = LatentSource(teacher, SPAN, blocks, 8)(rows)
    kept = LatentSource(teacher, SPAN, blocks, 8, cache=True, progress=False)(rows)
    assert torch.allclose(fresh.x0, kept.x0, atol=1e-5)
    assert torch.allclose(fresh.x1, kept.x1, atol=1e-5)
    velocity = lft.splice(teacher, SPAN, lft.Flow()).operator
    with torch.no_grad():
        assert torch.allclose(velocity(fresh.x0, **fresh.context), velocity(kept.x0, **kept.context), atol=1e-4)


def test_states_between_the_layers_are_the_teachers(teacher, blocks):
    states, _, _ = hidden_states_at_all_layers(teacher, blocks[:3])
    for cache in (False, True):
        source = LatentSource(teacher, SPAN, blocks[:3], 2, cache=cache, progress=False, between=True)
        found = source(torch.arange(3))
        assert len(found.between) == SPAN[1] - SPAN[0] - 1
        for x, expected in zip([found.x0, *found.between, found.x1], states[SPAN[0] : SPAN[1] + 1], strict=True):
            assert torch.allclose(x, expected, atol=1e-5)
    assert LatentSource(teacher, SPAN, blocks[:3], 2)(torch.arange(3)).between == []


@pytest.mark.parametrize(
    "options", [{"objective": "flow_matching", "interpolant": "teacher"}, {"waypoints": True, "num_steps": 3}]
)
def test_the_teachers_own_states_train_an_operator(teacher, blocks, options):
    student = lft.splice(teacher, SPAN, lft.Flow("euler", 1))
    settings = {"max_steps": 30, "batch_size": 8, "log_every": 1, "progress": False}
    history = lft.fit(student, teacher, blocks, **settings, **options)
    assert history.losses[-1] < 0.9 * history.losses[0]
    plain = LatentSource(teacher, SPAN, blocks, 8)
    with pytest.raises(ValueError, match="between=True"):
        lft.fit(student, teacher, plain, **settings, **options)


@pytest.mark.parametrize("operator", [lft.Regression(), lft.Flow("euler", 1)])
def test_one_euler_step_of_the_field_is_the_operator(teacher, blocks, operator):
    """What is trained is what is run."""
    from lft_edu.flow import euler_step

    built, found = lft.splice(teacher, SPAN, operator).operator, span_latents(teacher, SPAN, blocks[:3])
    with torch.no_grad():
        stepped = euler_step(built.field(**found.context), found.x0, 0.0, 1.0)
        assert torch.allclose(stepped, built(found.x0, **found.context), atol=1e-5)


def test_depth_states_avoid_position_zero(teacher, blocks):
    marked = torch.cat([torch.zeros(40, 1, dtype=torch.long), blocks], 1)  # token 0 stands at position 0 only
    found = depth_states(teacher, marked, 40, torch.Generator().manual_seed(0))
    assert found.shape == (9, 40, 64)
    assert not (found[0] == teacher.gpt_neox.embed_in.weight[0]).all(-1).any()
    with pytest.raises(ValueError, match="Lower n"):
        depth_states(teacher, blocks, 41)


def test_ridge_is_scikit_learns(teacher, blocks, pairs):
    student = lft.splice(teacher, SPAN, lft.Ridge(penalty=0.1))
    lft.fit(student, teacher, blocks, batch_size=7, progress=False)
    x, y = (p.double().numpy() for p in pairs)
    penalty = 0.1 * np.trace(np.cov(x.T, bias=True)) / 64 * len(x)
    reference = SklearnRidge(alpha=penalty).fit(x, y - x)
    assert np.allclose(student.operator.weight.numpy(), reference.coef_.T, atol=1e-4)
    assert np.allclose(student.operator.bias.numpy(), reference.intercept_, atol=1e-4)


def test_mean_shift_is_numpys(teacher, blocks, pairs):
    student = lft.splice(teacher, SPAN, lft.MeanShift())
    lft.fit(student, teacher, blocks, batch_size=7, progress=False)
    assert np.allclose(student.operator.bias.numpy(), (pairs[1] - pairs[0]).double().mean(0).numpy(), atol=1e-5)


def test_procrustes_is_scipys(teacher, blocks, pairs):
    student = lft.splice(teacher, SPAN, lft.Procrustes())
    lft.fit(student, teacher, blocks, batch_size=7, progress=False)
    x, y = (p.double().numpy() - p.double().numpy().mean(0) for p in pairs)
    rotation, scale = orthogonal_procrustes(x, y)
    expected = scale / np.square(x).sum() * rotation
    assert np.allclose(student.operator.weight.numpy() + np.eye(64), expected, atol=1e-4)
    mean = torch.from_numpy(pairs[0].double().numpy().mean(0)).float()
    assert torch.allclose(student.operator(mean), pairs[1].double().mean(0).float(), atol=1e-4)


def test_moments_refuse_nan():
    moments = Moments.zeros(2)
    with pytest.raises(ValueError, match="NaN or infinity"):
        moments.add(torch.tensor([[1.0, float("nan")]]), torch.zeros(1, 2))


def test_closed_forms_improve_on_skipping(teacher, blocks):
    error = {}
    for operator in (lft.Skip(), lft.MeanShift(), lft.Procrustes(), lft.Ridge()):
        student = lft.splice(teacher, SPAN, operator)
        lft.fit(student, teacher, blocks, batch_size=8, progress=False)
        error[operator.kind] = lft.evaluate(student, teacher, blocks).nmse
    assert error["ridge"] < error["procrustes"] < error["mean-shift"] < error["skip"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_brings_the_student_nearer(teacher, blocks, objective):
    student = lft.splice(teacher, SPAN, lft.Flow("euler", 2))
    before = lft.evaluate(student, teacher, blocks)
    kept = copy.deepcopy({k: v for k, v in student.state_dict().items() if ".layers.2." not in k})
    weights = copy.deepcopy(teacher.state_dict())
    history = lft.fit(student, teacher, blocks, objective, max_steps=60, batch_size=8, lr=3e-3, progress=False)
    after = lft.evaluate(student, teacher, blocks)
    assert after.kl < before.kl
    assert objective == "logit_kl" or after.nmse < 0.8 * before.nmse
    assert history.tokens == 60 * 8 * 16
    assert history.losses[-1] < history.losses[0]
    assert all(torch.equal(weights[k], v) for k, v in teacher.state_dict().items())
    assert all(torch.equal(v, student.state_dict()[k]) for k, v in kept.items())


@pytest.mark.parametrize(
    "options", [{"optimizer": "muon", "lr": 0.02}, {"scale_dimensions": True}, {"first_weight": 1.0}]
)
def test_options_train_too(teacher, blocks, options):
    student = lft.splice(teacher, SPAN, lft.Regression())
    before = lft.evaluate(student, teacher, blocks).nmse
    lft.fit(student, teacher, blocks, "regression", max_steps=40, batch_size=8, progress=False, **options)
    assert lft.evaluate(student, teacher, blocks).nmse < before


def test_the_same_seed_gives_the_same_weights(teacher, blocks):
    runs = []
    for seed in (0, 0, 1):
        student = lft.splice(teacher, SPAN, lft.Flow())
        lft.fit(student, teacher, blocks, max_steps=5, batch_size=4, seed=seed, progress=False)
        runs.append(student.operator.state_dict())
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert not all(torch.equal(runs[0][k], runs[2][k]) for k in runs[0])


def test_skip_and_loop_have_nothing_to_fit(teacher, blocks):
    for operator in (lft.Skip(), lft.Loop()):
        assert lft.fit(lft.splice(teacher, SPAN, operator), teacher, blocks).losses == []


# --- the loop -----------------------------------------------------------------------------------------------------

RUN = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
import lft_edu as lft
from lft_edu.recipes.teacher import build_model
teacher = build_model(64, 300, layers=6, seed=1).eval()
blocks = torch.randint(1, 300, (30, 16), generator=torch.Generator().manual_seed(0))
student = lft.splice(teacher, (1, 4), lft.Flow())
lft.fit(student, teacher, blocks, "flow_walking", max_steps=int(sys.argv[2]), batch_size=4, save_every=7,
        optimizer="muon", lr=0.02, checkpoint=sys.argv[1], resume=True, progress=False)
"""


def run(path, steps=60):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(RUN).format(tests=""), str(path), str(steps)])


@pytest.mark.slow
def test_killed_and_resumed_is_bit_for_bit_the_uninterrupted_run(tmp_path):
    from safetensors.torch import load_file

    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    assert run(whole).wait(timeout=300) == 0
    kills = 0
    for _ in range(20):
        process = run(broken)
        seen = broken.stat().st_mtime_ns if broken.exists() else 0
        deadline = time.time() + 120
        while process.poll() is None and time.time() < deadline:
            if broken.exists() and broken.stat().st_mtime_ns != seen and kills < 2:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        if process.wait(timeout=300) == 0:
            break
    assert kills == 2
    a, b = load_file(whole), load_file(broken)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def small_loop(tmp_path, loss=None, steps=20, **kwargs):
    module = torch.nn.Linear(3, 1)
    loss = loss or (lambda step: module(torch.ones(3)).square().sum())

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, step):
            return loss(step)

    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    path = tmp_path / "c.safetensors"
    options = {name: kwargs.pop(name) for name in ("save_every",) if name in kwargs}
    return optimize(
        Loss(),
        [optimizer],
        lambda i: (i.item(),),
        Training(max_steps=steps, batch_size=1, **options),
        checkpoint=path,
        progress=False,
        **kwargs,
    )


def test_a_checkpoint_is_never_overwritten_unasked(tmp_path):
    small_loop(tmp_path)
    with pytest.raises(FileExistsError, match="resume=True"):
        small_loop(tmp_path)


def test_other_settings_are_not_resumed(tmp_path):
    small_loop(tmp_path, settings={"lr": 0.1})
    with pytest.raises(ValueError, match=r"lr: 0\.1 then, 0\.2 now"):
        small_loop(tmp_path, settings={"lr": 0.2}, resume=True)


def test_a_damaged_checkpoint_is_named(tmp_path):
    small_loop(tmp_path)
    path = tmp_path / "c.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        small_loop(tmp_path, resume=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path, bad):
    from safetensors import safe_open

    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(FloatingPointError, match=r"last good checkpoint is .*c\.safetensors"):
        small_loop(tmp_path, loss=lambda i: weight.sum() * (bad if i == 13 else 1.0), save_every=5)
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        assert json.loads(file.metadata()["lft_edu"])["step"] == 10
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_nan_in_the_teacher_stops_training(teacher, blocks):
    sick = copy.deepcopy(teacher)
    with torch.no_grad():
        layers_of(sick)[3].mlp.dense_h_to_4h.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN in the latents"):
        lft.fit(lft.splice(teacher, SPAN, lft.Flow()), sick, blocks, max_steps=10, batch_size=4, progress=False)
    with pytest.raises(ValueError, match="NaN or infinity"):
        lft.fit(lft.splice(teacher, SPAN, lft.Ridge()), sick, blocks, batch_size=4, progress=False)


def test_rows_are_whole_epochs_shared_out_among_processes():
    rows = sampling.ShuffledRows(10, seed=3)
    drawn = rows(torch.arange(20))
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))
    assert torch.equal(sampling.ShuffledRows(10, seed=3)(torch.arange(16, 20)), drawn[16:])
    for batch, turns, world in ((8, 1, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2)):
        shares = [sampling.places(batch, turn, rank, world) for turn in range(turns) for rank in range(world)]
        assert sorted(torch.cat(shares).tolist()) == list(range(8))


def test_schedule_rises_stays_and_falls():
    rates = [optimizers.warmup_stable_decay(i, 1000) for i in range(1000)]
    assert rates[0] < 0.05
    assert max(rates) == rates[100] == rates[590] == 1
    assert 0 < rates[-1] < 0.05
    assert all(a >= b for a, b in itertools.pairwise(rates[600:]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "flow_wlaking"}, "Did you mean 'flow_walking'"),
        ({"num_steps": 0}, "at least 1"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"lr": 0.0}, "a number above 0"),
        ({"first_weight": 2.0}, "at most 1"),
        ({"solver": "heun"}, "Choose one of euler, midpoint"),
        ({"precision": "fp8"}, "Choose one of no, bf16"),
        ({"optimizer": "sgd"}, "Choose one of adamw, muon"),
    ],
)
def test_bad_options_are_refused(teacher, blocks, options, words):
    with pytest.raises(ValueError, match=words):
        lft.fit(lft.splice(teacher, SPAN, lft.Flow()), teacher, blocks, **options)


def test_objectives_that_do_not_fit_are_refused(teacher, blocks):
    with pytest.raises(ValueError, match="not time-dependent"):
        lft.fit(lft.splice(teacher, SPAN, lft.Regression()), teacher, blocks, "flow_walking")
    with pytest.raises(ValueError, match="corpus is empty"):
        lft.fit(lft.splice(teacher, SPAN, lft.Flow()), teacher, blocks[:0])
    with pytest.raises(ValueError, match="latents are of span"):
        lft.fit(lft.splice(teacher, SPAN, lft.Flow()), teacher, LatentSource(teacher, (1, 3), blocks, 4))


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    """gloo on the CPU, through Accelerate: the same weights up to the order of sums."""
    from safetensors.torch import load_file

    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys, torch
            torch.set_num_threads(1)
            import lft_edu as lft
            from lft_edu.recipes.teacher import build_model
            teacher = build_model(64, 300, layers=4, seed=1).eval()
            blocks = torch.randint(1, 300, (24, 8), generator=torch.Generator().manual_seed(0))
            student = lft.splice(teacher, (1, 3), lft.Flow())
            options = {"max_steps": 6, "batch_size": int(sys.argv[2]), "checkpoint": sys.argv[1], "progress": False}
            lft.fit(student, teacher, blocks, "regression", **options)
            """
        )
    )
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    subprocess.run([sys.executable, script, one, "8"], check=True, timeout=200, env=env)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, script, two, "4"], check=True, timeout=200, env=env)
    a, b = load_file(one), load_file(two)
    weights = [k for k in a if k.startswith("module.")]
    assert max((a[k] - b[k]).abs().max() for k in weights) < 1e-4


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path):
    from safetensors.torch import load_file

    weight = torch.nn.Parameter(torch.zeros(1))

    def loss(step):  # finite itself, its gradient at 0 is not; step 14 is one that saves
        return (weight * 0).sum() + (weight.sum().abs().sqrt() if step == 14 else weight.sum())

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight

        def forward(self, step):
            return loss(step)

    path = tmp_path / "c.safetensors"
    stay = torch.optim.SGD([weight], lr=0.0)
    with pytest.raises(FloatingPointError):
        optimize(
            Loss(),
            [stay],
            lambda i: (i.item(),),
            Training(max_steps=20, batch_size=1, save_every=5),
            checkpoint=path,
            progress=False,
        )
    assert load_file(path)["module.weight"].isfinite().all()


def test_another_teacher_does_not_resume_the_run(teacher, blocks, tmp_path):
    options = {
        "max_steps": 2,
        "batch_size": 4,
        "checkpoint": tmp_path / "c.safetensors",
        "resume": True,
        "progress": False,
    }
    lft.fit(lft.splice(teacher, SPAN, lft.Flow()), teacher, blocks, **options)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        layers_of(other)[2].mlp.dense_h_to_4h.bias += 1
    with pytest.raises(ValueError, match="latents: "):
        lft.fit(lft.splice(other, SPAN, lft.Flow()), other, blocks, **options)
    with pytest.raises(ValueError, match="latents: "):
        lft.fit(lft.splice(teacher, SPAN, lft.Flow()), teacher, blocks[:-1], **options)


def test_precision_may_change_between_runs(teacher, blocks):
    for precision in ("no", "bf16", "no"):
        student = lft.splice(teacher, SPAN, lft.Flow())
        history = lft.fit(student, teacher, blocks, max_steps=3, batch_size=4, precision=precision, progress=False)
        assert history.losses[-1] > 0
        assert next(student.operator.parameters()).dtype == torch.float32


def test_cached_latents_serve_batches_of_any_size_with_eager_attention(teacher, blocks, tmp_path):
    from transformers import AutoModelForCausalLM

    teacher.save_pretrained(tmp_path)
    eager = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    source = LatentSource(eager, SPAN, blocks, 8, cache=True, progress=False)
    lft.fit(lft.splice(eager, SPAN, lft.Flow()), eager, source, max_steps=2, batch_size=16, progress=False)


class TestStreams:
    """A corpus that can only be read from its beginning on, such as the Pile."""

    @pytest.fixture
    def stream(self, blocks):
        import datasets

        return datasets.IterableDataset.from_generator(lambda: ({"input_ids": row} for row in blocks.tolist()))

    def test_fit_reads_it_in_order_and_begins_again_at_its_end(self, teacher, blocks, stream):
        source = LatentSource(teacher, SPAN, stream, 4)
        assert torch.equal(source.ids(torch.arange(6)), blocks[:6])
        assert torch.equal(source.ids(torch.arange(6, 9)), blocks[6:9])
        assert torch.equal(source.ids(torch.arange(2, 4)), blocks[2:4])
        assert torch.equal(source.ids(torch.arange(38, 42)), torch.cat([blocks[38:], blocks[:2]]))

    def test_stopped_and_resumed_is_the_whole_run(self, teacher, stream, tmp_path):
        ends = {}
        for name, stops in (("whole", [6]), ("parts", [2, 6])):
            for steps in stops:
                student = lft.splice(teacher, SPAN, lft.Flow())
                path, first = tmp_path / f"{name}.safetensors", steps != 6
                try:
                    lft.fit(
                        student, teacher, stream, max_steps=6, batch_size=4, checkpoint=path, save_every=2, resume=True,
                        progress=False, callbacks=[Evaluation(_stop)] * first, evaluate_every=3,
                    )  # fmt: skip
                except KeyboardInterrupt:
                    assert first
            ends[name] = student.operator.state_dict()
        assert all(torch.equal(v, ends["parts"][k]) for k, v in ends["whole"].items())

    def test_closed_forms_read_as_much_as_they_are_asked_to(self, teacher, blocks, stream):
        by_stream, by_blocks = (lft.splice(teacher, SPAN, lft.Ridge()) for _ in range(2))
        assert lft.fit(by_stream, teacher, stream, max_steps=3, batch_size=4, progress=False).tokens == 12 * 16
        lft.fit(by_blocks, teacher, blocks[:12], batch_size=4, progress=False)
        assert torch.allclose(by_stream.operator.weight, by_blocks.operator.weight)

    def test_it_is_not_kept_in_memory(self, teacher, stream):
        with pytest.raises(ValueError, match="cache_latents=False"):
            lft.fit(lft.splice(teacher, SPAN, lft.Flow()), teacher, stream, cache_latents=True)


def _stop(step):
    raise KeyboardInterrupt


def test_states_on_disk_are_the_teachers(teacher, blocks, tmp_path):
    store = StateStore(tmp_path, teacher, blocks, [2, 5, 8])
    store.fill(progress=False)
    states, _, _ = hidden_states_at_all_layers(teacher, blocks)
    for depth in (2, 5, 8):
        torch.testing.assert_close(store.states(depth), states[depth], atol=1e-5, rtol=1e-5)
    source, fresh = LatentSource(teacher, SPAN, blocks, 8, cache=store), LatentSource(teacher, SPAN, blocks, 8)
    rows = torch.tensor([3, 30, 17])
    torch.testing.assert_close(source(rows).x1, fresh(rows).x1, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="another teacher or corpus"):
        StateStore(tmp_path, teacher, blocks[1:], [2])


def test_filling_a_store_resumes_and_two_share_it(teacher, blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(StateStore, "CHUNK", 8)
    first = StateStore(tmp_path, teacher, blocks, [2, 5])
    passes, parts = [], []
    real = latents.states_at

    def counted(model, ids, depths):
        if len(passes) == 2:
            raise KeyboardInterrupt
        passes.append(len(ids))
        parts.append(ids)
        return real(model, ids, depths)

    monkeypatch.setattr(latents, "states_at", counted)
    with pytest.raises(KeyboardInterrupt):
        first.fill(progress=False)
    passes[:] = [0]  # one more pass is allowed before the next interruption
    with pytest.raises(KeyboardInterrupt):
        StateStore(tmp_path, teacher, blocks, [2, 5]).fill(backwards=True, progress=False)
    monkeypatch.setattr(latents, "states_at", real)
    StateStore(tmp_path, teacher, blocks, [2, 5]).fill(progress=False)
    assert [torch.equal(p, blocks[i : i + 8]) for p, i in zip(parts, (0, 8, 32), strict=True)] == [True] * 3
    torch.testing.assert_close(first.states(5), span_latents(teacher, SPAN, blocks).x1, atol=1e-5, rtol=1e-5)


def test_kl_of_final_states_is_kl_of_logits_with_its_gradient(teacher):
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(2, 7, 64, generator=draw, requires_grad=True)
    target = torch.randn(2, 7, 64, generator=draw)
    head = teacher.get_output_embeddings()
    plain = logit_kl_loss(head(states), head(target))
    (expected,) = torch.autograd.grad(3 * plain, states)
    found = HeadKL.apply(states, target, head, 5)
    (gradient,) = torch.autograd.grad(3 * found, states)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("cached", [False, True])
def test_the_logit_loss_is_the_whole_models(teacher, blocks, cached, tmp_path):
    student = lft.splice(teacher, SPAN, lft.Flow("midpoint", 1))
    source = LatentSource(teacher, (2, 8), blocks, 8)
    if cached:
        source = LatentSource(
            teacher, (2, 8), blocks, 8, StateStore(tmp_path, teacher, blocks, [2, 8]).fill(progress=False)
        )
    history = lft.fit(student, teacher, source, "logit_kl", max_steps=1, batch_size=8, log_every=1, progress=False)
    order = sampling.ShuffledRows(len(blocks), 0)(torch.arange(8))
    fresh = lft.splice(teacher, SPAN, lft.Flow("midpoint", 1))
    expected = logit_kl_loss(fresh(blocks[order]).logits, teacher(blocks[order]).logits)
    assert history.losses[0] == pytest.approx(expected.item(), rel=1e-4)


def test_layers_and_repeats_of_a_regression(teacher, blocks):
    one = lft.splice(teacher, SPAN, lft.Regression())
    latents = span_latents(teacher, SPAN, blocks[:2])
    once = one.operator(latents.x0, **latents.context)
    twice = one.operator(once, **latents.context)
    for operator, parameters in ((lft.Regression(repeats=2), 1), (lft.Regression(layers=2), 2)):
        student = lft.splice(teacher, SPAN, operator)
        torch.testing.assert_close(student.operator(latents.x0, **latents.context), twice)
        assert student.operator.nfe == 2
        count = sum(p.numel() for p in student.operator.parameters())
        assert count == parameters * sum(p.numel() for p in one.operator.parameters())
        loss = lft.fit(student, teacher, blocks, max_steps=40, batch_size=8, progress=False, log_every=1).losses
        assert loss[-1] < 0.8 * loss[0]
    assert lft.Regression().to_dict() == {"kind": "regression"}


def test_an_operator_can_start_from_another_layer(teacher):
    student = lft.splice(teacher, SPAN, lft.Regression(init_layer=4))
    expected = layers_of(teacher)[4].state_dict()
    assert all(torch.equal(p, expected[k]) for k, p in student.operator.layer.state_dict().items())
    with pytest.raises(ValueError, match="init_layer=5 is not in the span 2–5"):
        lft.splice(teacher, SPAN, lft.Flow(init_layer=5))


def test_linear_patch_scales_channels_of_a_rotated_basis(teacher, generator):
    """Pairs made by such a map are recovered; by no plain scaling of channels."""
    draw = torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(draw).Q
    scales = torch.linspace(0.5, 3, 64, dtype=torch.float64)
    x0 = torch.randn(500, 64, generator=generator, dtype=torch.float64)
    x1 = x0 @ (rotation * scales @ rotation.T) + 2
    student = lft.splice(teacher, SPAN, lft.LinearPatch())
    moments = Moments.zeros(64)
    moments.add(x0, x1)
    student.operator.solve(moments)
    # the scales are least squares per channel; with finite samples other channels are noise of 1/√N
    torch.testing.assert_close(student.operator(x0.float()), x1.float(), atol=1.0, rtol=0.2)
    assert (student.operator(x0.float()) - x1).square().mean() < 0.03 * (x0 - x1).square().mean()


def test_weighted_moments_are_moments_of_repeated_pairs(generator):
    x0, x1 = torch.randn(2, 30, 5, generator=generator)
    counts = torch.randint(1, 4, (30,), generator=generator)
    weighted, repeated = Moments.zeros(5), Moments.zeros(5)
    weighted.add(x0, x1, counts)
    repeated.add(x0.repeat_interleave(counts, 0), x1.repeat_interleave(counts, 0))
    for a, b in zip(weighted.covariances + weighted.means, repeated.covariances + repeated.means, strict=True):
        torch.testing.assert_close(a, b)
