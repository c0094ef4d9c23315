"""Exact assignment against brute force; what the recoupling ratio must not depend on."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lft_edu as lft
from lft_edu.couplings import METRICS, Coupling, optimal_assignment


def clouds(n, d, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g), torch.randn(n, d, generator=g)


def distance(a, b, metric):
    if metric == "cosine":
        return 1 - torch.nn.functional.cosine_similarity(a, b, dim=-1)
    squared = ((a - b) ** 2).sum(-1)
    return squared if metric == "sqeuclidean" else squared.sqrt()


@given(n=st.integers(1, 7), d=st.integers(1, 4), seed=st.integers(0, 10_000), metric=st.sampled_from(METRICS))
def test_assignment_is_the_best_of_all_permutations(n, d, seed, metric):
    x0, x1 = (x.double() for x in clouds(n, d, seed))
    best = min(distance(x0, x1[list(p)], metric).sum() for p in permutations(range(n)))
    found = optimal_assignment(x0, x1, metric)
    assert sorted(found.tolist()) == list(range(n))
    assert torch.allclose(distance(x0, x1[found], metric).sum(), best, atol=1e-9)


@given(seed=st.integers(0, 1000), n=st.integers(2, 40))
def test_ratio_is_invariant(seed, n):
    x0, x1 = clouds(n, 3, seed)
    ratio = lft.recoupling_ratio(x0, x1).ratio
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert lft.recoupling_ratio(x0[order], x1[order]).ratio == pytest.approx(ratio)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    shift = torch.tensor([5.0, -3.0, 2.0])
    assert lft.recoupling_ratio(3 * x0.double() @ q + shift, 3 * x1.double() @ q + shift).ratio == pytest.approx(ratio)


def test_ratio_at_its_ends():
    x0, x1 = clouds(50, 2, 0)
    assert lft.recoupling_ratio(x0, x0 + 0.01).ratio == 0
    swapped = torch.cat([x0[25:], x0[:25]])
    assert lft.recoupling_ratio(x0, swapped).ratio == 1
    assert Coupling(x0, x1).optimal_transport().x1.shape == (50, 2)
    assert lft.recoupling_ratio(x0, Coupling(x0, x1).optimal_transport().x1).ratio == 0


def test_ratio_counts_those_paired_anew():
    x0 = torch.tensor([[0.0], [10], [20], [30]])
    found = lft.recoupling_ratio(x0, torch.tensor([[10.1], [0.1], [20], [30]]))
    assert found.ratio == 0.5
    assert found.assignment.tolist() == [1, 0, 2, 3]
    assert found.re_paired.tolist() == [True, True, False, False]


def test_duplicates_keep_their_partners():
    """The same token at position 0 of every sequence: identical pairs must not count as recoupled."""
    x0, x1 = torch.zeros(30, 4), torch.ones(30, 4)
    for metric in METRICS[:2]:
        assert lft.recoupling_ratio(x0, x1, metric).ratio == 0


def test_interval_holds_the_ratio():
    found = lft.recoupling_ratio(*clouds(100, 2, 1))
    low, high = found.interval()
    assert 0 <= low <= found.ratio <= high <= 1
    assert high > low


def test_independent_is_a_permutation_drawn_by_the_generator():
    x0, x1 = clouds(20, 2, 3)
    a, b = (Coupling(x0, x1).independent(torch.Generator().manual_seed(7)).x1 for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, x1)
    assert sorted(map(tuple, a.tolist())) == sorted(map(tuple, x1.tolist()))


def test_scan_fills_every_span():
    states = torch.randn(4, 20, 3, generator=torch.Generator().manual_seed(0))
    found = lft.scan_spans(states, progress=False)
    assert found.ratios.shape == (4, 4)
    assert found.ratios.isnan().sum() == 10
    assert found.ratios[1, 3] == lft.recoupling_ratio(states[1], states[3]).ratio
    assert (found.low <= found.ratios)[~found.ratios.isnan()].all()
    m, n = found.best(2)
    assert n - m == 2
    assert found.ratios[m, n] == found.ratios.diagonal(2).min()


def test_best_names_only_what_was_scanned():
    states = torch.randn(5, 10, 3, generator=torch.Generator().manual_seed(0))
    found = lft.scan_spans(states, lengths=[3], progress=False)
    assert found.best(3)[1] - found.best(3)[0] == 3
    with pytest.raises(ValueError, match="not scanned"):
        found.best(2)
    with pytest.raises(ValueError, match="1 to 4 layers"):
        found.best(5)


@pytest.mark.parametrize(
    ("x0", "x1", "metric", "words"),
    [
        (torch.zeros(3, 2), torch.zeros(4, 2), "euclidean", "one shape"),
        (torch.zeros(3), torch.zeros(3), "euclidean", "one shape"),
        (torch.zeros(0, 2), torch.zeros(0, 2), "euclidean", "one shape"),
        (torch.full((3, 2), float("nan")), torch.zeros(3, 2), "euclidean", "NaN or infinity in 3 of 3"),
        (torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, 2), "euclidean", "float"),
        (torch.zeros(3, 2), torch.zeros(3, 2), "manhattan", "choose one of"),
    ],
)
def test_bad_pairs_are_refused(x0, x1, metric, words):
    with pytest.raises(ValueError, match=words):
        lft.recoupling_ratio(x0, x1, metric)
