"""Muon and AdamW: the arithmetic against an independent reference, and the type in which Newton–Schulz iterates."""

import copy

import numpy as np
import pytest
import torch

from lft_edu.training.optimizers import BF16_MIN_SIDE, Muon, adamw, muon_and_adamw, newton_schulz, newton_schulz_dtype

CPU = torch.device("cpu")
SHAPES = [(3, 40, 40), (2, 24, 96), (2, 96, 24)]


def conditioned(shape, least: float = 0.05):
    """Matrices whose singular values run evenly from ``least`` to 1 times the largest."""
    generator = torch.Generator().manual_seed(0)
    u, s, vt = torch.linalg.svd(torch.randn(shape, generator=generator, dtype=torch.float64), full_matrices=False)
    return (u * torch.linspace(1, least, s.shape[-1], dtype=torch.float64)[None, None] @ vt).float()


def reference_newton_schulz(matrix: np.ndarray, iterations: int = 5) -> np.ndarray:
    """The same map on singular values alone, in float64: s → a s + b s³ + c s⁵."""
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    s = s / (np.sqrt((s**2).sum()) + 1e-7)
    for _ in range(iterations):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_maps_singular_values_and_keeps_singular_vectors(shape):
    matrices = conditioned(shape)
    found = newton_schulz(matrices, dtype=torch.float32)
    for one, result in zip(matrices.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(result, reference_newton_schulz(one), atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_pushes_the_same_singular_values_near_one(shape):
    matrices = conditioned(shape)
    exact = torch.linalg.svdvals(newton_schulz(matrices, dtype=torch.float32))
    halved = newton_schulz(matrices, dtype=torch.bfloat16)
    assert halved.dtype == torch.bfloat16
    values = torch.linalg.svdvals(halved.float())
    assert (values.sort().values - exact.sort().values).abs().max() < 0.05  # bfloat16 keeps 8 bits: 0.4 % a product
    for found in (exact, values):
        assert found.min() > 0.6
        assert found.max() < 1.3


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "amx_bf16": False, "avx512_bf16": False}, torch.float32),
        ({"avx512_f": True, "avx512_vnni": True, "amx_int8": True}, torch.float32),  # none of these multiplies bfloat16
        ({}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_tile": True, "amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
    ],
)
def test_bfloat16_only_where_the_cpu_has_units_for_it(capabilities, expected):
    assert newton_schulz_dtype(CPU, 576, capabilities) == expected
    assert newton_schulz_dtype(CPU, BF16_MIN_SIDE, capabilities) == expected
    assert newton_schulz_dtype(CPU, BF16_MIN_SIDE - 1, capabilities) == torch.float32  # the toy's width stays as it was


def test_without_onednn_bfloat16_units_are_out_of_reach(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert newton_schulz_dtype(CPU, 576, {"amx_bf16": True}) == torch.float32


def test_this_cpu_is_asked_by_default(monkeypatch):
    for known in ({"amx_bf16": True}, {"amx_bf16": False}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        found = newton_schulz(torch.eye(BF16_MIN_SIDE)[None]).dtype
        assert found == (torch.bfloat16 if known["amx_bf16"] else torch.float32)


def test_muon_steps_as_the_plain_formula_does():
    generator = torch.Generator().manual_seed(1)
    shapes = [(12, 8), (8, 12), (10, 10), (12, 8)]  # two alike are stacked
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    expected = [p.detach().double().numpy() for p in parameters]
    momenta = [np.zeros(shape) for shape in shapes]
    lr, momentum, decay = 0.1, 0.9, 0.2
    muon = Muon(parameters, lr=lr, momentum=momentum, weight_decay=decay)
    for _ in range(4):
        for i, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, generator=generator)
            gradient = p.grad.double().numpy()
            momenta[i] = momentum * momenta[i] + (1 - momentum) * gradient
            direction = reference_newton_schulz((1 - momentum) * gradient + momentum * momenta[i])
            scale = lr * np.sqrt(max(1, p.shape[0] / p.shape[1]))
            expected[i] = (1 - lr * decay) * expected[i] - scale * direction
        muon.step()
        for p, value in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), value, atol=2e-4)


def test_a_bfloat16_update_leaves_parameters_and_momentum_in_float32(monkeypatch):
    monkeypatch.setattr("lft_edu.training.optimizers.newton_schulz_dtype", lambda *_: torch.bfloat16)
    start = conditioned((1, 16, 32))[0]
    half, full = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    for p in (half, full):
        p.grad = conditioned((1, 16, 32), least=0.2)[0]
        muon = Muon([p], lr=0.1)
        muon.step()
        assert p.dtype == muon.state[p]["momentum_buffer"].dtype == torch.float32
        monkeypatch.setattr("lft_edu.training.optimizers.newton_schulz_dtype", lambda *_: torch.float32)
    assert 0 < (half - full).abs().max() < 0.1 * 0.03


def test_adamw_takes_the_steps_of_torchs_plain_one_and_resumes_bit_for_bit():
    def gradient(step):
        return torch.randn(7, generator=torch.Generator().manual_seed(step))

    ours, plain, resumed = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(3))
    optimizers = [adamw([ours], 0.05, (0.9, 0.98))]
    optimizers.append(torch.optim.AdamW([plain], lr=0.05, betas=(0.9, 0.98), weight_decay=0.0, fused=False))
    for step in range(6):
        ours.grad, plain.grad = gradient(step), gradient(step)
        for optimizer in optimizers:
            optimizer.step()
        if step == 2:
            with torch.no_grad():
                resumed.copy_(ours)
            again = adamw([resumed], 0.05, (0.9, 0.98))
            again.load_state_dict(copy.deepcopy(optimizers[0].state_dict()))  # it shares tensors
        elif step > 2:
            resumed.grad = gradient(step)
            again.step()
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=0)
    assert torch.equal(ours, resumed)


def test_every_parameter_has_one_optimizer_and_matrices_have_muon():
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    muon, rest = muon_and_adamw(model[1:], model, muon_lr=0.02, adamw_lr=0.001)
    held = [[id(p) for p in o.param_groups[0]["params"]] for o in (muon, rest)]
    assert held[0] == [id(model[1].weight)]
    assert sorted(held[0] + held[1]) == sorted(id(p) for p in model.parameters())
