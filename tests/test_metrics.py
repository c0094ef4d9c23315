"""Numbers against numbers worked out another way."""

import math

import pytest
import torch

import lft_edu as lft
from lft_edu import metrics, skipping
from lft_edu.runs import costs
from lft_edu.support import statistics


@pytest.fixture(scope="module")
def found(teacher, blocks):
    student = lft.splice(teacher, (2, 5), lft.MeanShift())
    lft.fit(student, teacher, blocks, progress=False)
    return student, lft.evaluate(student, teacher, blocks, batch_size=7)


def test_evaluation_against_formulas_over_all_tokens_at_once(found, teacher, blocks):
    student, result = found
    with torch.no_grad():
        p, q = (m(blocks).logits.double().log_softmax(-1) for m in (teacher, student))
        x0, x1 = (teacher(blocks, output_hidden_states=True).hidden_states[i].double() for i in (2, 5))
    kl = (p.exp() * (p - q)).sum(-1)
    assert result.kl == pytest.approx(kl.mean().item(), rel=1e-4)
    assert torch.allclose(result.sequence_kl, kl.mean(1), rtol=1e-3)
    error = x0 + student.operator.bias.double() - x1
    for name, start in (("nmse", 1), ("nmse_all", 0)):
        truth = x1[:, start:].flatten(0, 1)
        expected = error[:, start:].square().sum() / (truth - truth.mean(0)).square().sum()
        assert getattr(result, name) == pytest.approx(expected.item(), rel=1e-4)
    for name, logp in (("perplexity", q), ("teacher_perplexity", p)):
        nll = -logp[:, :-1].gather(-1, blocks[:, 1:, None]).mean()
        assert getattr(result, name) == pytest.approx(nll.exp().item(), rel=1e-4)
    assert result.tokens == blocks.numel()
    low, high = result.kl_interval
    assert low < result.kl < high


def test_the_teacher_itself_costs_nothing(teacher, blocks):
    student = lft.splice(teacher, (2, 3), lft.Regression())
    result = lft.evaluate(student, teacher, blocks)
    assert abs(result.kl) < 1e-5
    assert result.nmse < 1e-8
    assert result.perplexity == pytest.approx(result.teacher_perplexity, rel=1e-4)


def test_counts(teacher, blocks):
    student = lft.splice(teacher, (2, 5), lft.Flow("midpoint", 3))
    result = lft.evaluate(student, teacher, blocks[:2])
    assert result.nfe == 6
    assert result.parameters == sum(p.numel() for p in student.parameters())
    assert str(result).startswith("KL ")
    assert "tensor" not in str(result) + repr(result)
    assert "sequence_kl" not in result.to_dict()


def test_skipped_layers_interpolates():
    curve = {1: 0.1, 2: 0.3, 3: 0.2, 4: 1.0}
    assert skipping.skipped_layers(0.1, curve) == pytest.approx(1)
    assert skipping.skipped_layers(0.05, curve) == pytest.approx(0.5)
    assert skipping.skipped_layers(0.2, curve) == pytest.approx(1.5)
    assert skipping.skipped_layers(0.65, curve) == pytest.approx(3.5)
    assert skipping.skipped_layers(2.0, curve) == math.inf
    with pytest.raises(ValueError, match="NaN"):
        skipping.skipped_layers(math.nan, curve)


def test_skipped_layers_interval_is_paired(generator):
    noise = torch.rand(50, generator=generator)
    curve = {j: j * 0.1 + noise for j in (1, 2, 3)}
    low, high = skipping.skipped_layers_interval(curve[2], curve)
    assert low == pytest.approx(2, abs=1e-6)
    assert high == pytest.approx(2, abs=1e-6)


def test_an_operator_worse_than_the_whole_curve_has_no_number(generator):
    noise = 0.01 * torch.rand(50, generator=generator)
    curve = {j: j * 0.1 + noise for j in (1, 2)}
    assert skipping.skipped_layers_interval(1.0 + noise, curve) == (math.inf, math.inf)


def test_nan_logits_are_reported(teacher, blocks):
    student = lft.splice(teacher, (2, 5), lft.MeanShift())
    with torch.no_grad():
        student.operator.bias[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity"):
        lft.evaluate(student, teacher, blocks)


def test_recovery():
    assert skipping.recovery(0.1, 1.0) == pytest.approx(0.9)


def test_bootstrap_interval_covers_the_mean_of_a_known_law(generator):
    """About 95 of 100 intervals from a normal law hold its mean; 88 is four deviations off."""
    hits = 0
    for _ in range(100):
        low, high = metrics.interval(statistics.bootstrap_means(torch.randn(80, generator=generator), resamples=400))
        hits += low <= 0 <= high
    assert hits >= 86


def test_latencies_are_measured_in_turn(teacher):
    half = lft.splice(teacher, (0, 7), lft.Skip())
    times = costs.latencies({"whole": teacher, "one layer": half}, tokens=64, new_tokens=4, rounds=3)
    for what in ("prefill", "decode"):
        assert 0 < times["one layer"][what] < times["whole"][what]
    assert times["whole"]["decode"] > times["whole"]["prefill"]


def test_an_empty_corpus_is_refused(teacher, blocks):
    with pytest.raises(ValueError, match="at least one sequence"):
        lft.evaluate(lft.splice(teacher, (2, 5), lft.Skip()), teacher, blocks[:0])


def test_skip_damage_is_the_spliced_models(teacher, blocks):
    found = skipping.skip_kl(teacher, blocks, [(2, 5), (0, 1), (7, 8), (0, 8)], batch_size=16, progress=False)
    for span, kl in found.items():
        by_splice = lft.evaluate(lft.splice(teacher, span, lft.Skip()), teacher, blocks)
        assert torch.allclose(kl, by_splice.sequence_kl, atol=1e-5)
    with pytest.raises(ValueError, match="does not fit"):
        skipping.skip_kl(teacher, blocks, [(5, 9)])


def test_titles_name_the_walk_also_of_cards_from_before():
    from lft_edu.operators import operator_title, row_title

    for name in ("num_steps", "steps"):
        operator = {"kind": "flow", "solver": "midpoint", name: 3}
        assert operator_title({"operator": operator}) == "flow (midpoint × 3)"
        assert row_title({"name": "flow-walking", "operator": operator}) == "flow-walking (midpoint × 3)"
    assert operator_title({"operator": {"kind": "ridge", "penalty": 1e-4}}) == "ridge"
