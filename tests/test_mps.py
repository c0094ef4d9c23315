"""Nothing makes a float64 tensor on Apple's GPU, which has none: everything runs on a stand-in, to the same numbers."""

import copy

import accelerate
import pytest
import torch
from pretend_mps import MPS, PretendMPS
from torch import Tensor
from torch.utils._pytree import tree_leaves

import lft_edu as lft
from lft_edu import fitting
from lft_edu.couplings import Coupling
from lft_edu.flow import walk
from lft_edu.latents import depth_states, span_latents
from lft_edu.skipping import best_skips, skip_kl
from lft_edu.training import loop
from lft_edu.trajectories import velocity_at

SPAN = (6, 18)
TEXT = "for x in y:"


@pytest.fixture
def pretend(monkeypatch):
    """A place where ``.to("mps")`` works, and where Accelerate is told that it is there."""

    def accelerator(device, precision):
        made = accelerate.Accelerator(cpu=True, device_placement=False)
        made.state.device = device
        return made

    monkeypatch.setattr(fitting, "make_accelerator", accelerator)
    draw = loop.step_generator
    monkeypatch.setattr(loop, "step_generator", lambda seed, step, device: draw(seed, step, torch.device("cpu")))
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # or parameters would forget where they are
    try:
        with PretendMPS():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def test_the_stand_in_refuses_what_a_gpu_refuses(pretend):
    there = torch.ones(2, device="mps")
    for make in (there.double, lambda: torch.ones(2).double().to(MPS), lambda: there.new_ones(2, dtype=torch.float64)):
        with pytest.raises(TypeError, match="float64"):
            make()
    with pytest.raises(RuntimeError, match="same device"):
        torch.add(there, torch.ones(2))
    assert (there.cpu().device.type, there.cpu().double().dtype) == ("cpu", torch.float64)


def fitted(operator, *objective, **settings):
    """Fit to two batches, and evaluate."""

    def run(teacher, tokenizer, ids):
        student = lft.splice(teacher, SPAN, operator)
        if operator.trainable:
            settings["max_steps"] = 2
        lft.fit(student, teacher, ids, *objective, batch_size=2, progress=False, **settings)
        return lft.evaluate(student, teacher, ids).sequence_kl

    return run


def spliced(measure):
    return lambda teacher, tokenizer, ids: measure(
        lft.splice(teacher, SPAN, lft.Flow("midpoint", 2)), teacher, tokenizer, ids
    )


def field(x, t):
    return x * t[..., None] if t.ndim else x * t


def clouds(teacher):
    return torch.arange(12.0, device=teacher.device).sin().reshape(2, 3, 2)


CLOSED_FORMS = lft.Ridge(), lft.MeanShift(), lft.Procrustes(), lft.LinearPatch()
CALLS = {
    "evaluate": spliced(lambda s, t, tok, ids: lft.evaluate(s, t, ids).sequence_kl),
    "acceptance": spliced(lambda s, t, tok, ids: lft.acceptance(t, s, ids).sequence_greedy),
    "worst tokens": spliced(lambda s, t, tok, ids: torch.tensor([f.kl for f in lft.worst_tokens(s, t, tok, [TEXT])])),
    "draft": spliced(lambda s, t, tok, ids: lft.draft(t, s, ids[:1].to(t.device), 3).ids),
    "capture": spliced(lambda s, t, tok, ids: lft.capture(s, tok, TEXT, substeps=1).states),
    "logit lens": lambda t, tok, ids: lft.capture(t, tok, TEXT).log_probabilities(),
    "velocity": spliced(lambda s, t, tok, ids: velocity_at(s, lft.capture(s, tok, TEXT), 1, 0.3, torch.zeros(2, 64))),
    "skip KL": lambda t, tok, ids: skip_kl(t, ids, [SPAN], progress=False)[SPAN],
    "best skips": lambda t, tok, ids: torch.tensor(best_skips(t, ids, 1, progress=False)[1]["kl"]),
    "latents": lambda t, tok, ids: span_latents(t, SPAN, ids.to(t.device)).x1,
    "scan": lambda t, tok, ids: lft.scan_spans(
        depth_states(t, ids, 3, torch.Generator().manual_seed(0)), ["recoupling", "angular", "cka"], progress=False
    ).tables["angular"],
    "coupling": lambda t, tok, ids: Coupling(*clouds(t)).optimal_transport().x1,
    "recoupling": lambda t, tok, ids: torch.tensor(lft.recoupling_ratio(*clouds(t)).ratio),
    "walk": lambda t, tok, ids: walk(field, torch.ones(2, 2, device=t.device), [[0, 0.5, 1], [0, 0.2, 1]]),
    **{o.kind: fitted(o) for o in CLOSED_FORMS},
    "regression": fitted(lft.Regression()),
    **{
        name: fitted(lft.Flow("midpoint", 2), name, lr=1e-3)
        for name in ("flow_matching", "flow_walking", "hybrid", "logit_kl")
    },
    "every option": fitted(
        lft.Flow(), cache_latents=True, scale_dimensions=True, first_weight=0.5, token_weight="relative"
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_everything_runs_without_float64_on_the_device(call, bundled, ids, pretend):
    teacher, tokenizer = bundled
    there = copy.deepcopy(teacher).to("mps")
    assert {p.device for p in there.parameters()} == {MPS}
    expected, found = (CALLS[call](model, tokenizer, ids) for model in (teacher, there))
    assert all(isinstance(x, Tensor) for x in tree_leaves(found))
    torch.testing.assert_close(found.cpu(), expected, equal_nan=True)
