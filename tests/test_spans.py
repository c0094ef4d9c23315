"""Every criterion against its definition, written out another way; a scan that can be interrupted, saved and read."""

import json
import math

import numpy as np
import pytest
import torch

import lft_edu as lft
from lft_edu import skipping
from lft_edu.criteria import CRITERIA, RIDGE_PENALTY, Depth, Pair
from lft_edu.latents import depth_states, hidden_states_at_all_layers
from lft_edu.spans import SpanScan, scan_spans
from lft_edu.support.statistics import rank_correlation, rank_correlation_gain, summary


def layered(depth=4, n=60, d=5, seed=0, step=0.7):
    """States that wander: (depth + 1, n, d)."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(depth + 1, n, d, generator=g).mul(step).cumsum(0)


@pytest.fixture(scope="module")
def states():
    return layered()


@pytest.fixture(scope="module")
def scan(states):
    return scan_spans(states, CRITERIA, sizes=(20, 60), progress=False)


def pair_of(x0, x1):
    return Pair(Depth(x0), Depth(x1))


def test_tables_hold_every_span_and_nothing_else(scan):
    for name in CRITERIA:
        values = scan[name]
        assert values.shape == (5, 5)
        assert bool((~values.isnan() == torch.ones(5, 5).triu(1).bool()).all())
        if name != "cka":
            low, high = scan.intervals(name)
            inside = ~values.isnan()
            assert bool((low <= values + 1e-12)[inside].all() and (values <= high + 1e-12)[inside].all())
    assert bool(scan.intervals("cka")[0].isnan().all())
    assert scan.spans() == [(m, n) for m in range(5) for n in range(m + 1, 5)]
    assert scan.depth == 4
    assert scan.n == 60


def test_ratios_are_those_of_one_pair(scan, states):
    for m, n in scan.spans():
        assert scan.ratios[m, n] == pytest.approx(lft.recoupling_ratio(states[m], states[n]).ratio)
        expected = lft.recoupling_ratio(states[m], states[n], "cosine").ratio
        assert scan["recoupling-cosine"][m, n] == pytest.approx(expected)
    assert 0.1 < scan.ratios[0, 4] < 1


def test_the_interval_of_the_ratio_is_the_bootstrap_of_its_share(scan):
    """Resampling marks of 0 and 1 gives binomial counts."""
    from scipy.stats import binom

    share = scan.ratios[0, 4].item()
    wanted = binom.ppf([0.025, 0.975], 60, share) / 60
    assert [scan.low[0, 4].item(), scan.high[0, 4].item()] == pytest.approx(wanted, abs=1.5 / 60)


def test_growth_is_the_mean_over_disjoint_draws(scan, states):
    parts = [lft.recoupling_ratio(states[0, i : i + 20], states[4, i : i + 20]).ratio for i in (0, 20, 40)]
    assert scan.growth[20][0, 4] == pytest.approx(sum(parts) / 3)
    assert torch.equal(scan.growth[60].nan_to_num(), scan.ratios.nan_to_num())
    assert scan.growth[20][0, 4] < scan.growth[60][0, 4]


def test_angles_against_numpy(scan, states):
    a, b = states[1].numpy().astype(np.float64), states[3].numpy().astype(np.float64)
    cosines = [x @ y / math.sqrt(x @ x) / math.sqrt(y @ y) for x, y in zip(a, b, strict=True)]
    assert scan["block-influence"][1, 3] == pytest.approx(1 - np.mean(cosines))
    assert scan["angular"][1, 3] == pytest.approx(np.mean([math.acos(c) / math.pi for c in cosines]))


def test_ridge_leaves_each_token_out_of_its_own_fit(states):
    """The closed form against fitting N times."""
    x, y = states[0, :25].double(), states[3, :25].double()
    centered = x - x.mean(0)
    penalty = RIDGE_PENALTY * centered.square().sum() / x.shape[1]
    errors = []
    for i in range(25):
        rest = torch.arange(25) != i
        a, b = x[rest], (y - x)[rest]
        inner = a - a.mean(0)
        w = torch.linalg.solve(inner.T @ inner + penalty * torch.eye(5, dtype=a.dtype), inner.T @ (b - b.mean(0)))
        errors.append((x[i] + b.mean(0) + (x[i] - a.mean(0)) @ w - y[i]).square().sum())
    variance = (y - y.mean(0)).square().sum(-1).mean()
    found = CRITERIA["ridge"](pair_of(x, y))
    assert torch.allclose(found, torch.stack(errors) / variance, rtol=1e-6)


def test_ridge_is_nothing_for_a_linear_span_and_one_for_noise():
    x = layered(0, 400, 6)[0]
    linear = x @ torch.randn(6, 6, generator=torch.Generator().manual_seed(1)) + 3
    assert CRITERIA["ridge"](pair_of(x, linear)).mean() < 1e-4
    noise = torch.randn(400, 6, generator=torch.Generator().manual_seed(2))
    assert CRITERIA["ridge"](pair_of(x, noise)).mean() == pytest.approx(1, abs=0.15)


def test_cka_against_gram_matrices(scan, states):
    a, b = states[1].double(), states[4].double()
    n = len(a)
    center = torch.eye(n, dtype=torch.float64) - 1 / n
    k, q = center @ a @ a.T @ center, center @ b @ b.T @ center
    assert scan["cka"][1, 4] == pytest.approx(1 - ((k * q).sum() / k.norm() / q.norm()).item())


@pytest.mark.parametrize("turn", [0.0, 1.1])
def test_cka_sees_no_rotation_scale_or_shift(turn):
    x = layered(0, 80, 2)[0]
    c, s = math.cos(turn), math.sin(turn)
    turned = 3 * x @ torch.tensor([[c, s], [-s, c]]) + 5
    assert CRITERIA["cka"](pair_of(x, turned)).item() == pytest.approx(0, abs=1e-6)


def test_meeting_against_a_fine_grid(scan, states):
    """The closest approach, found by looking at 2,001 times."""
    from lft_edu.couplings import Coupling

    x0, x1 = states[0].double(), states[4].double()
    gaps = torch.stack([torch.cdist(y, y) for y in (Coupling(x0, x1).at(t) for t in torch.linspace(0, 1, 2001))])
    nearest = gaps.amin(0).fill_diagonal_(torch.inf).amin(1)
    at_ends = torch.stack([g.clone().fill_diagonal_(torch.inf).amin(1) for g in (gaps[0], gaps[-1])]).amin(0)
    assert scan["meeting"][0, 4] == pytest.approx((1 - nearest / at_ends).mean().item(), abs=1e-4)
    approach = Coupling(x0, x1).closest_approach().fill_diagonal_(torch.inf).amin(1)
    assert torch.allclose(approach, nearest, atol=1e-3)


def test_meeting_at_its_ends():
    left = torch.tensor([[0.0, 0], [1, 0], [0, 7]])
    assert CRITERIA["meeting"](pair_of(left, left + 4)).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    swapped = left[[1, 0, 2]]  # the first two walk through each other
    assert CRITERIA["meeting"](pair_of(left, swapped)).tolist() == pytest.approx([1, 1, 0], abs=1e-6)


def test_duplicates_are_said_and_do_not_count():
    states = layered(2, 30)
    states[0] = states[0, :1]  # one token everywhere, as at position 0 of every text
    found = scan_spans(states, CRITERIA, progress=False)
    assert found.duplicates.tolist() == [1.0, 0.0, 0.0]
    assert found.ratios[0, 2] == 0
    assert all(bool(found[name][0, 2].isfinite()) for name in CRITERIA)


def test_a_scan_goes_on_where_it_was_interrupted(tmp_path, states, monkeypatch):
    path = tmp_path / "scan.json"
    settings = {"sizes": (20,), "path": path, "progress": False}
    whole = scan_spans(states, ("ridge", "recoupling"), sizes=(20,), progress=False)
    save, saved = SpanScan.save, []

    def interrupted(scan, path):
        save(scan, path)
        saved.append(path)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SpanScan, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scan_spans(states, ("ridge", "recoupling"), **settings)
    part = SpanScan.load(path)
    assert 3 <= len(part.spans()) <= 7, "two rows are on disk"
    original = CRITERIA["ridge"]
    asked = []
    monkeypatch.setitem(CRITERIA, "ridge", lambda pair: asked.append(1) or original(pair))
    again = scan_spans(states, ("ridge", "recoupling"), **settings)
    assert len(asked) == 10 - len(part.spans()), "what was done is not done again"
    for name in whole.tables:
        assert torch.equal(again.tables[name].nan_to_num(), whole.tables[name].nan_to_num())
    assert torch.equal(again.growth[20].nan_to_num(), whole.growth[20].nan_to_num())
    with pytest.raises(ValueError, match="other states or criteria"):
        scan_spans(states + 1, ("ridge", "recoupling"), **settings)


def test_threads_change_nothing(states):
    one, three = (scan_spans(states, CRITERIA, workers=k, progress=False) for k in (1, 3))
    assert all(torch.equal(one.tables[k].nan_to_num(), three.tables[k].nan_to_num()) for k in CRITERIA)
    before = torch.get_num_threads()
    scan_spans(states, workers=2, progress=False)
    assert torch.get_num_threads() == before


def test_saved_and_read_it_is_the_same(tmp_path, scan):
    scan.save(tmp_path / "scan.json")
    again = SpanScan.load(tmp_path / "scan.json")
    assert all(torch.equal(again.tables[k].nan_to_num(), scan.tables[k].nan_to_num()) for k in CRITERIA)
    assert list(again.growth) == list(scan.growth)
    assert torch.equal(again.duplicates, scan.duplicates)
    assert not list(tmp_path.glob("*.partial"))
    json.loads((tmp_path / "scan.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    for broken in ("", "{}", '{"layers": 3}', "[]"):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(ValueError, match="is not a scan"):
            SpanScan.load(tmp_path / "broken.json")


def test_more_criteria_are_added(scan):
    samples = {(0, 2): torch.tensor([1.0, 3.0]), (1, 3): torch.tensor([2.0, 2.0])}
    more = scan.add("skip", samples)
    assert more["skip"][0, 2] == 2
    assert more["skip"][1, 3] == 2
    assert more["skip"].isnan().sum() == 23
    assert more.intervals("skip")[0][0, 2] == 1
    assert more.best(2, "skip") == (0, 2)
    assert "skip" not in scan.tables


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"states": x[0]}, r"\(L\+1, N, D\)"),
        (lambda x: {"states": x[:1]}, "at least one layer"),
        (lambda x: {"states": x / 0}, "NaN or infinity"),
        (lambda x: {"states": x, "criteria": ("recoupling", "ridg")}, "ridge"),
        (lambda x: {"states": x, "criteria": ()}, "at least one of recoupling"),
        (lambda x: {"states": x, "sizes": (61,)}, "from 1 to 60"),
    ],
)
def test_wrong_input_says_what_to_do(states, change, message):
    with pytest.raises(ValueError, match=message):
        scan_spans(**change(states), progress=False)


def test_unknown_criteria_and_lengths(scan):
    with pytest.raises(ValueError, match="cka"):
        scan["ckaa"]
    for length in (0, 5):
        with pytest.raises(ValueError, match="1 to 4 layers"):
            scan.best(length)


def test_summary_of_one_row_has_no_interval():
    assert summary(torch.tensor([[2.0, 3.0]])).isnan().tolist() == [[False] * 2, [True] * 2, [True] * 2]


def test_a_gain_of_rank_correlation_is_their_difference_resampled_together():
    generator = torch.Generator().manual_seed(0)
    a, noise, other = torch.randn(3, 40, generator=generator)
    strata = torch.arange(40) % 2
    near, far = a + 0.1 * noise, a + 2 * other
    gain, low, high = rank_correlation_gain(near, far, a, strata)
    assert gain == pytest.approx(rank_correlation(near, a, strata)[0] - rank_correlation(far, a, strata)[0])
    assert 0 < low < gain < high
    assert rank_correlation_gain(near, near, a, strata) == (0, 0, 0)
    with pytest.raises(ValueError, match="one length"):
        rank_correlation_gain(near, far[:3], a)


def test_rank_correlation_is_scipys_within_one_stratum():
    from scipy.stats import spearmanr

    g = torch.Generator().manual_seed(3)
    a = torch.randn(40, generator=g)
    b = (a + torch.randn(40, generator=g)).mul(4).round()  # with ties
    rho, low, high = rank_correlation(a, b)
    assert rho == pytest.approx(spearmanr(a, b).statistic)
    assert low < rho < high
    assert rank_correlation(a, -a.exp()) == pytest.approx((-1, -1, -1))


def test_rank_correlation_within_lengths_is_blind_to_length():
    """Longer is worse by both; within a length they disagree."""
    lengths = torch.arange(4).repeat_interleave(6)
    inside = torch.arange(6.0).repeat(4)
    a, b = 10 * lengths + inside, 10 * lengths - inside
    assert rank_correlation(a, b)[0] > 0.8
    assert rank_correlation(a, b, lengths)[0] == pytest.approx(-1)


def test_rank_correlation_of_a_criterion_that_says_nothing_is_not_a_number():
    assert all(math.isnan(x) for x in rank_correlation(torch.zeros(9), torch.arange(9.0)))
    with pytest.raises(ValueError, match="one length"):
        rank_correlation(torch.zeros(9), torch.zeros(8))
    with pytest.raises(ValueError, match="at least 3"):
        rank_correlation(torch.zeros(2), torch.zeros(2))


def test_a_teacher_is_scanned_and_its_skips_are_added(teacher, blocks):
    """Only deep spans cost much: the sums agree with skipping for real."""
    states = depth_states(teacher, blocks, len(blocks), torch.Generator().manual_seed(0))
    found = scan_spans(states, ("recoupling", "ridge"), progress=False)
    found = found.add("skip", skipping.skip_kl(teacher, blocks, [(1, 2), (0, 2)], progress=False))
    student = lft.splice(teacher, (0, 2), lft.Skip())
    assert found["skip"][0, 2] == pytest.approx(lft.evaluate(student, teacher, blocks).kl, rel=1e-4)


def test_states_of_one_token(teacher, blocks):
    token = int(blocks[:, 1:].flatten().mode().values)
    n = int((blocks[:, 1:] == token).any(1).sum())
    states = depth_states(teacher, blocks, n, torch.Generator().manual_seed(0), token=token)
    assert states.shape[1] == n
    known, _, _ = hidden_states_at_all_layers(teacher, torch.tensor([[token, token]]))
    assert torch.allclose(states[0], known[0][0, 1].expand(n, -1), atol=1e-6), "one embedding, one token"
    with pytest.raises(ValueError, match=f"with token {token}"):
        depth_states(teacher, blocks, n + 1, token=token)
