"""What must hold for any input: statistics, losses, walks, pairings, spans, settings. `make properties` tries 10,000 of
each."""

import itertools
import json
import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import lft_edu as lft
from lft_edu import objectives
from lft_edu.couplings import Coupling, assign
from lft_edu.flow import STEPS, check_times, random_times, uniform_times, walk
from lft_edu.metrics import _SquaredError
from lft_edu.skipping import recovery, skipped_layers
from lft_edu.spans import SpanScan
from lft_edu.support.statistics import bootstrap_means, bootstrap_rows, evenly_spaced, interval, spearman, summary
from lft_edu.support.tokens import token_ids
from lft_edu.training.checkpoints import differences
from lft_edu.training.settings import Training

seeds = st.integers(0, 2**31)
numbers = st.floats(-1e6, 1e6, allow_subnormal=False)
steps, solvers = st.integers(1, 6), st.sampled_from(sorted(STEPS))


def draw(seed: int, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# statistics


@given(pairs=st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=12))
def test_rank_correlation_is_that_of_scipy_ties_and_all(pairs):
    a, b = np.array(pairs, dtype=float).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
        expected = scipy.stats.spearmanr(a, b).statistic
    found = spearman(a, b)
    assert (math.isnan(found) and math.isnan(expected)) or found == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(spearman(np.exp(a), -b), -found)  # ranks alone count


@given(values=st.lists(numbers, min_size=1, max_size=20), level=st.floats(0.01, 0.98), more=st.floats(0, 0.01))
def test_an_interval_lies_among_its_samples_and_grows_with_its_level(values, level, more):
    low, high = interval(torch.tensor(values, dtype=torch.float64), level)
    assert min(values) <= low <= high <= max(values)
    wide = interval(torch.tensor(values, dtype=torch.float64), level + more)
    assert wide[0] <= low
    assert high <= wide[1]


@given(groups=st.lists(st.integers(0, 3), min_size=1, max_size=12), seed=seeds)
def test_each_bootstrap_sample_has_as_many_rows_of_each_stratum(groups, seed):
    strata, generator = torch.tensor(groups), torch.Generator().manual_seed(seed)
    rows = bootstrap_rows(len(groups), 5, generator, strata)
    assert rows.shape == (5, len(groups))
    for row in rows:
        assert strata[row].tolist() == sorted(groups)


@given(values=st.lists(numbers, min_size=1, max_size=12), seed=seeds)
def test_bootstrap_means_are_means_of_rows_that_exist(values, seed):
    x = torch.tensor(values, dtype=torch.float64)
    means = bootstrap_means(x, 7, torch.Generator().manual_seed(seed))
    again = x[bootstrap_rows(len(x), 7, torch.Generator().manual_seed(seed))].mean(1)
    torch.testing.assert_close(means, again, rtol=1e-9, atol=1e-6)
    found = summary(x[:, None])
    assert found[0].item() == pytest.approx(x.mean().item())
    assert len(x) == 1 or x.min() - 1e-6 <= found[1] <= found[2] <= x.max() + 1e-6


@given(rows=st.integers(0, 10**4), wanted=st.integers(1, 300))
def test_evenly_spaced_rows_exist_and_are_as_far_apart_as_they_can_be(rows, wanted):
    found = evenly_spaced(rows, wanted)
    assert len(found) == min(rows, wanted)
    assert all(0 <= row < rows for row in found)
    gaps = {b - a for a, b in itertools.pairwise(found)}
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


# losses and measures


@given(seed=seeds, scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
def test_a_divergence_is_zero_for_equals_and_never_below(seed, scale, shift):
    teacher, student = scale * draw(seed, 2, 3, 7, dtype=torch.float32), draw(seed + 1, 2, 3, 7, dtype=torch.float32)
    assert objectives.token_kl(teacher, teacher).abs().max() == 0
    found = objectives.token_kl(student, teacher)
    assert found.min() > -1e-5
    torch.testing.assert_close(objectives.token_kl(student + shift, teacher), found, atol=1e-3, rtol=1e-3)
    ones, mask = torch.ones(2, 3), torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    torch.testing.assert_close(objectives.logit_kl_loss(student, teacher, ones), found.mean())
    torch.testing.assert_close(objectives.logit_kl_loss(student, teacher, mask), found[mask.bool()].mean())


@given(seed=seeds, k=steps, solver=solvers, constant=st.floats(1e-3, 1e3))
def test_the_true_velocity_has_no_loss_and_a_constant_weight_no_effect(seed, k, solver, constant):
    x0, x1 = draw(seed, 4, 3), draw(seed + 1, 4, 3)
    generator = torch.Generator().manual_seed(seed)
    times = random_times(k, 4, generator)
    straight = lambda x, t: x1 - x0  # noqa: E731
    wrong = lambda x, t: 0.3 * x + lft.flow.pad_t_like_x(lft.flow.as_time(t, x), x)  # noqa: E731
    weight = constant * torch.ones(3, dtype=torch.float64)
    for loss in (
        lambda u, w=None: objectives.flow_matching_loss(u, x0, x1, weight=w, times=times[:, 0]),
        lambda u, w=None: objectives.flow_walking_loss(u, x0, x1, step=STEPS[solver], weight=w, times=times),
        lambda u, w=None: objectives.regression_loss(u, x0, x1, w),
    ):
        assert loss(straight) < 1e-12
        assert loss(wrong) > 0
        torch.testing.assert_close(loss(wrong, weight), loss(wrong))


@given(seed=seeds, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5), offset=st.floats(-100, 100))
def test_a_squared_error_does_not_depend_on_the_batches(seed, sizes, offset):
    assume(sum(sizes) > 1)
    state, estimate = offset + draw(seed, sum(sizes), 2, 3), offset + draw(seed + 1, sum(sizes), 2, 3)
    parts, begin = _SquaredError(), 0
    for size in sizes:
        one = _SquaredError()
        one.add(estimate[begin : begin + size], state[begin : begin + size])
        parts, begin = parts + one, begin + size
    flat = state.flatten(0, 1)
    expected = (estimate - state).square().sum() / (flat - flat.mean(0)).square().sum()
    assert parts.normalized() == pytest.approx(expected.item(), rel=1e-6)


@given(costs=st.lists(st.floats(0, 10), min_size=1, max_size=8), share=st.floats(0, 1))
def test_skipped_layers_are_read_off_the_curve(costs, share):
    curve = dict(enumerate(costs, 1))
    top = [max(costs[: j + 1]) for j in range(len(costs))]
    assert skipped_layers(top[-1] + 0.1, curve) == math.inf
    found = [skipped_layers(kl, curve) for kl in sorted([*costs, share * top[-1]])]
    assert all(0 <= j <= len(costs) for j in found)
    assert found == sorted(found)
    for j, cost in enumerate(costs, 1):
        if cost == top[j - 1] > (top[j - 2] if j > 1 else 0) + 1e-9:  # the curve rises here
            assert skipped_layers(cost, curve) == pytest.approx(j)
            assert recovery(cost, cost) == 0


# walks and pairings


@given(seed=seeds, k=steps, solver=solvers, cut=st.integers(0, 6))
def test_a_walk_may_rest_anywhere(seed, k, solver, cut):
    x0, times = draw(seed, 3, 2), random_times(k, 3, torch.Generator().manual_seed(seed))
    field = lambda x, t: torch.sin(x) + lft.flow.pad_t_like_x(t, x)  # noqa: E731
    whole = walk(field, x0, times, STEPS[solver], return_path=True)
    assert torch.equal(whole[-1], walk(field, x0, times, STEPS[solver]))
    if 1 <= cut < k:
        rest = walk(field, whole[cut], times[:, cut:], STEPS[solver])
        assert torch.equal(rest, whole[-1])


@given(times=st.lists(st.floats(-0.5, 1.5, width=32), min_size=1, max_size=5))
def test_times_are_taken_or_refused_for_a_reason(times):
    one_way = times in (sorted(times), sorted(times, reverse=True))
    good = len(times) > 1 and one_way and min(times) >= 0 and max(times) <= 1
    for form in (times, torch.tensor(times), torch.tensor([times, times])):
        if good:
            assert [
                float(t.max()) if isinstance(t, torch.Tensor) else t for t in check_times(form, torch.zeros(2, 1))
            ] == times
        else:
            with pytest.raises(ValueError, match="times"):
                check_times(form, torch.zeros(2, 1))


@given(k=st.integers(1, 300))
def test_equal_steps_are_equal(k):
    times = uniform_times(k, dtype=torch.float64)
    assert (times[0], times[-1], len(times)) == (0, 1, k + 1)
    assert (times.diff() - 1 / k).abs().max() < 1e-12


@given(
    cost=st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 4), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_the_least_cost_is_found_and_a_tie_keeps_the_given_pairs(cost):
    table = torch.tensor(cost, dtype=torch.float64)
    total = lambda order: sum(cost[i][j] for i, j in enumerate(order))  # noqa: E731
    best = min(map(total, itertools.permutations(range(len(cost)))))
    found = assign(table).tolist()
    assert sorted(found) == list(range(len(cost)))
    assert total(found) == best
    if total(range(len(cost))) == best:
        assert found == list(range(len(cost)))


@given(seed=seeds, n=st.integers(1, 9), groups=st.integers(1, 3))
def test_re_pairing_moves_partners_and_nothing_else(seed, n, groups):
    pairs = Coupling(draw(seed, n, 2), draw(seed + 1, n, 2), torch.arange(n) % groups)
    for other in (pairs.independent(torch.Generator().manual_seed(seed)), pairs.optimal_transport()):
        assert torch.equal(other.x0, pairs.x0)
        assert torch.equal(other.group, pairs.group)
        assert sorted(map(tuple, other.x1.tolist())) == sorted(map(tuple, pairs.x1.tolist()))
    near = pairs.closest_approach()
    torch.testing.assert_close(near, near.T)
    assert (near <= torch.minimum(torch.cdist(pairs.x0, pairs.x0), torch.cdist(pairs.x1, pairs.x1)) + 1e-6).all()


# spans, tokens, settings


@given(seed=seeds, layers=st.integers(1, 6), missing=st.floats(0, 0.6))
def test_the_best_span_has_the_least_value_also_after_a_save(seed, layers, missing, tmp_path_factory):
    table = draw(seed, 3, layers + 1, layers + 1).abs()
    hole = torch.rand(layers + 1, layers + 1, generator=torch.Generator().manual_seed(seed)) < missing
    table[:, hole | torch.ones_like(hole).tril()] = torch.nan
    scan = SpanScan({"recoupling": table}, n=9, source="a test")
    path = tmp_path_factory.getbasetemp() / "scan.json"
    scan.save(path)
    again = SpanScan.load(path)
    assert (
        again.spans()
        == scan.spans()
        == [(m, n) for m, n in itertools.combinations(range(layers + 1), 2) if not hole[m, n]]
    )
    for length in range(1, layers + 1):
        values = {(m, n): table[0, m, n] for m, n in scan.spans() if n - m == length}
        if values:
            assert scan.best(length) == again.best(length) == min(values, key=values.get)
        else:
            with pytest.raises(ValueError, match="were not scanned"):
                scan.best(length)


@given(
    rows=st.lists(st.lists(st.integers(-2, 12), min_size=3, max_size=3), min_size=1, max_size=3),
    mask=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_ids_are_taken_or_refused_for_a_reason(rows, mask):
    flat = [i for row in rows for i in row]
    batch = {"input_ids": rows, "attention_mask": [mask] * len(rows)}
    if min(flat) < 0 or max(flat) >= 10:
        with pytest.raises(ValueError, match="not in this model's vocabulary"):
            token_ids(batch, 10)
    elif not all(mask):
        with pytest.raises(ValueError, match="Row 0 is padded"):
            token_ids(batch, 10)
    else:
        assert token_ids(batch, 10).tolist() == rows


RANGES = {
    "max_steps": st.integers(-2, 10**6), "batch_size": st.integers(-2, 64), "lr": st.none() | st.floats(-1, 1),
    "max_grad_norm": st.floats(-1, 9), "seed": st.integers(-2, 10**13), "first_weight": st.floats(-0.5, 1.5),
    "precision": st.sampled_from(["no", "bf16", "fp8"]), "evaluate_every": st.integers(-2, 99),
}  # fmt: skip
ALLOWED = {
    "max_steps": lambda v: v >= 1, "batch_size": lambda v: v >= 1, "lr": lambda v: v is None or v > 0,
    "max_grad_norm": lambda v: v > 0, "seed": lambda v: 0 <= v <= 10**12, "first_weight": lambda v: 0 <= v <= 1,
    "precision": lambda v: v != "fp8", "evaluate_every": lambda v: v >= 0,
}  # fmt: skip


@given(options=st.fixed_dictionaries({}, optional=RANGES))
def test_settings_are_kept_or_refused_by_name_and_survive_json(options):
    wrong = [name for name, value in options.items() if not ALLOWED[name](value)]
    if wrong:
        with pytest.raises(ValueError, match="|".join(wrong)):
            Training(**options)
        return
    training = Training(**options)
    again = Training(**json.loads(json.dumps({name: getattr(training, name) for name in training.changed()})))
    assert again == training
    assert differences(training.deciding(), again.deciding()) == {}
    assert all(getattr(training, name) == value for name, value in options.items())
