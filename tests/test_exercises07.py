"""Lesson 07: every typical mistake gets the message meant for it. (Solutions, stubs, garbage: test_exercises.py.)"""

import functools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import kendalltau, rankdata, spearmanr
from torch.nn.functional import cosine_similarity, normalize

import lft_edu as lft
from lft_edu.couplings import cost_matrix, optimal_assignment
from lft_edu.criteria import CRITERIA, Depth, Pair, recoupling_among
from lft_edu.exercises import check, lesson07, lesson07_teacher
from lft_edu.exercises.books import ROOT
from lft_edu.lessons import progress
from lft_edu.loading.assets import ASSETS


def cost(x0, x1, metric="euclidean"):
    return cost_matrix(x0, x1, metric)


def solved(table):
    """Plain scipy: ties go to whomever."""
    return torch.from_numpy(linear_sum_assignment(np.asarray(table))[1])


def share(assigned):
    return (assigned != torch.arange(len(assigned))).double().mean()


def fair(x0, x1):
    return share(optimal_assignment(x0, x1))


def haircut(x0, x1, by):
    table = cost(x0, x1)
    table.diagonal().sub_(by)
    return share(solved(table))


def greedy(x0, x1):
    table, chosen = cost(x0, x1), []
    for row in table:
        chosen.append(int(row.argmin()))
        table[:, chosen[-1]] = torch.inf
    return share(torch.tensor(chosen))


def sinkhorn(x0, x1, rounds=50):
    """Entropic transport, each given the end that gets most of it."""
    plan = (-cost(x0, x1) / 0.5).exp()
    for _ in range(rounds):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0)
    return share(plan.argmax(1))


def without_twins(x0, x1):
    kept = torch.tensor([i for i in range(len(x0)) if not (x0[:i] == x0[i]).all(1).any()])
    return fair(x0[kept], x1[kept])


def saved(x0, x1):
    table = cost(x0, x1)
    return 1 - table[range(len(x0)), solved(table)].sum() / table.trace()


def by_points(x0, x1):
    """Another way to be fair: who is given the end of one who starts at the same point has kept it."""
    return (x0[solved(cost(x0, x1))] != x0).any(1).double().mean()


def shuffled(x):
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]


def grown(x0, x1, sizes, use=np.mean, step=None, rest=False, ratio=fair):
    found = []
    for size in sizes:
        stop = len(x0) if rest else len(x0) - size + 1
        parts = [slice(i, i + size) for i in range(0, stop, step or size)]
        found.append(use([float(ratio(x0[p], x1[p])) for p in parts]))
    return torch.tensor(found)


def strided(x0, x1, sizes):
    return torch.tensor([np.mean([float(fair(x0[: len(x0) // s * s][k :: len(x0) // s], x1[: len(x0) // s * s][k :: len(x0) // s])) for k in range(len(x0) // s)]) for s in sizes])  # fmt: skip  # noqa: E501


def once(x0, x1, sizes, cut):
    changed = (optimal_assignment(x0, x1) != torch.arange(len(x0))).double()
    return torch.stack([changed[: cut(s)].mean() for s in sizes])


def first_ends(x0, x1, sizes):
    return torch.tensor([np.mean([float(fair(x0[i : i + s], x1[:s])) for i in range(0, len(x0) - s + 1, s)]) for s in sizes])  # fmt: skip  # noqa: E501


def all_ends(x0, x1, sizes):
    ratios = []
    for s in sizes:
        draws = [np.arange(i, i + s) for i in range(0, len(x0) - s + 1, s)]
        ratios.append(np.mean([(linear_sum_assignment(cost(x0, x1)[d].numpy())[1] != d).mean() for d in draws]))
    return ratios


def drawn_anew(x0, x1, sizes):
    """Random draws that overlap."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randperm(len(x0), generator=generator)[:s] for s in sizes]
    return torch.stack([fair(x0[r], x1[r]) for r in rows])


def table(states, of=None, **kwargs):
    return lesson07.angle_table(states, of, **kwargs)


def angle(a, b, dim=-1):
    return cosine_similarity(a, b, dim=dim).clamp(-1, 1).arccos()


def unclamped(states):
    unit = normalize(states, dim=-1)
    cosines = torch.einsum("mnd,knd->mkn", unit, unit)
    return (cosines * (1 + 1e-6)).arccos().mean(-1).div(math.pi).masked_fill(torch.ones(len(unit), len(unit)).tril().bool(), torch.nan)  # fmt: skip  # noqa: E501


def both_triangles(states):
    return (upper := table(states).nan_to_num()) + upper.T


def diagonal_filled(states):
    return table(states).fill_diagonal_(0.0)


def first_row_missing(states):
    found = table(states)
    found[0] = torch.nan
    return found


def flat(states):
    found = table(states)
    return found[~found.isnan()]


def rho(x, y, lengths, rank=rankdata, center=True, within=True):
    columns = []
    for values in (x, y):
        ranks = np.zeros(len(values))
        groups = [(lengths == length).numpy() for length in lengths.unique()]
        for group in groups if within else [slice(None)]:
            ranks[group] = rank(values[group].numpy())
        for group in groups if center else []:
            ranks[group] -= ranks[group].mean()
        columns.append(ranks)
    a, b = columns
    return (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())


def alone(x, y, lengths):
    return [spearmanr(x[lengths == n], y[lengths == n])[0] for n in lengths.unique()]


def globally_centered(x, y, lengths):
    ranks = np.zeros((2, len(x)))
    for n in lengths.unique():
        group = (lengths == n).numpy()
        ranks[:, group] = rankdata(x[group]), rankdata(y[group])
    return np.corrcoef(ranks)[0, 1]


def method(name):
    return functools.partial(rankdata, method=name)


def places(values):
    return np.argsort(np.argsort(values, kind="stable")) + 1.0


def sum_of_squares(x, y, lengths):
    n = len(x)
    ranks = [np.concatenate([rankdata(v[lengths == k]) for k in lengths.unique()]) for v in (x, y)]
    return 1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum() / (n**3 - n)


def two_lengths(x, y, lengths):
    """Knows of six and twelve layers only."""
    kept = (lengths == 6) | (lengths == 12)
    return rho(x[kept], y[kept], lengths[kept])


def by_value(x, y, lengths):
    """Right for ranks, but it looks at who comes first among equals."""
    return rho(x, y, lengths, rank=places)


def turned(x0, x1):
    return 1 - cosine_similarity(x0, x1, dim=-1)


def of_criterion(name):
    return lambda x0, x1: CRITERIA[name](Pair(Depth(x0), Depth(x1))).mean()


def in_place(x0, x1):
    x1 -= x0
    return x1.norm(dim=-1).mean()


def by_lot(x0, x1):
    return turned(x0, x1)[torch.randint(len(x0), (50,))].mean()


def made_up(x0):
    """The check's own pairs, before it comes to the teacher's."""
    return abs(x0.norm(dim=-1).mean() - 25) < 1


def blind(x0, x1):
    """To it, all spans of the teacher are the same."""
    return turned(x0, x1).mean() if made_up(x0) else 7.0


def divides(x0, x1):
    """By something that is 0 for the teacher's states."""
    return turned(x0, x1).mean() / float(made_up(x0) or len(x0) == 0 or x0.norm(dim=-1).mean() > 32)


WRONG = [
    ("7.1", lambda a, b: 1 - fair(a, b), "*kept*"),
    ("7.1", lambda a, b: len(a) * fair(a, b), "divide by N"),
    ("7.1", lambda a, b: 100 * fair(a, b), "percent"),
    ("7.1", lambda a, b: share(cost(a, b).argmin(1)), "each start its nearest end"),
    ("7.1", lambda a, b: share(cost(a, b).argmin(0)), "each *end* its nearest"),
    ("7.1", greedy, "still free"),
    ("7.1", lambda a, b: share(solved(cost(a, b, "sqeuclidean"))), "*squared*"),
    ("7.1", lambda a, b: share(solved(-a @ b.T)), "scalar product"),
    ("7.1", lambda a, b: share(solved(cost(a, b, "cosine"))), "cosine distance"),
    ("7.1", lambda a, b: fair(normalize(a, dim=-1), normalize(b, dim=-1)), "by their norms"),
    ("7.1", lambda a, b: share(solved(torch.cdist(a, b, p=1))), "p=1"),
    ("7.1", lambda a, b: share(solved(torch.cdist(a, b, p=torch.inf))), "one dimension"),
    ("7.1", lambda a, b: fair(a - a.mean(0), b - b.mean(0)), "each cloud's mean"),
    ("7.1", lambda a, b: fair(*(x / torch.cat([a, b]).std(0) for x in (a, b))), "by its standard deviation"),
    ("7.1", lambda a, b: share(torch.from_numpy(linear_sum_assignment(cost(a, b), maximize=True)[1])), "maximized"),
    ("7.1", lambda a, b: share((p := optimal_assignment(a, b))[p]), "assignment twice"),
    ("7.1", saved, "fraction of the distance"),
    ("7.1", lambda a, b: fair(a, a.clone()), "within one cloud"),
    ("7.1", lambda a, b: share(torch.from_numpy(linear_sum_assignment(cost(a, b))[0])), "*second* array"),
    ("7.1", lambda a, b: fair(a, shuffled(b)), "drawn at random"),
    ("7.1", lambda a, b: share(solved(cost(a, b))), "Let ties go to the given pairs"),
    ("7.1", lambda a, b: haircut(a, b, 0.3), "it should be 0.41667"),
    ("7.1", lambda a, b: haircut(a, b, 0.003), "a thousand times smaller"),
    ("7.1", without_twins, "fraction of *all* tokens"),
    ("7.1", sinkhorn, "Largest difference"),
    ("7.1", lambda a, b: fair(a[:40], b[:40]), "exact assignment"),
    ("7.1", lambda a, b: 0.4, "it should be 0.41667"),
    ("7.1", lambda a, b: optimal_assignment(a, b) != torch.arange(len(a)), "the mean over"),
    ("7.1", lambda a, b: optimal_assignment(a, b), "60 values"),
    ("7.1", lambda a, b: torch.eye(len(a))[optimal_assignment(a, b)], "Tr(M)/N"),
    ("7.1", lambda a, b: linear_sum_assignment(cost(a, b)), "several things"),
    ("7.1", lambda a, b: [float(fair(a, b))], "a single number"),
    ("7.2", lambda a, b, s: [float(fair(a[:n], b[:n])) for n in s], "first draw only"),
    ("7.2", lambda a, b, s: grown(a, b, s, use=lambda r: r[-1]), "last draw only"),
    ("7.2", functools.partial(grown, rest=True), "tokens that are left over"),
    ("7.2", functools.partial(grown, step=1), "overlap"),
    ("7.2", strided, "every k-th"),
    ("7.2", lambda a, b, s: fair(a, b).expand(len(s)), "solve one within each draw."),
    ("7.2", lambda a, b, s: once(a, b, s, lambda n: n), "not first and then cut"),
    ("7.2", lambda a, b, s: once(a, b, s, lambda n: len(a) // n * n), "rows and columns"),
    ("7.2", all_ends, "choose among *all* ends"),
    ("7.2", first_ends, "Later draws get the ends"),
    ("7.2", functools.partial(grown, use=np.sum), "These are sums"),
    ("7.2", functools.partial(grown, use=np.median), "medians"),
    ("7.2", functools.partial(grown, use=np.max), "largest of all draws"),
    ("7.2", lambda a, b, s: [g * (len(a) // n * n) / len(a) for g, n in zip(grown(a, b, s), s, strict=True)],
     "number of all tokens"),
    ("7.2", lambda a, b, s: 1 - grown(a, b, s), "*kept*"),
    ("7.2", lambda a, b, s: grown(a, b, s) * torch.tensor(s), "divide by N"),
    ("7.2", lambda a, b, s: grown(a, b, sorted(s)), "another order"),
    ("7.2", functools.partial(grown, ratio=lambda a, b: share(solved(cost(a, b).square()))), "squared"),
    ("7.2", drawn_anew, "0, N, 2N"),
    ("7.2", lambda a, b, s: grown(a, shuffled(b), s), "Largest difference"),
    ("7.2", lambda a, b, s: grown(a, b, s)[0], "inside the loop"),
    ("7.2", lambda a, b, s: dict(zip(s, grown(a, b, s), strict=True)), "in the order of the sizes"),
    ("7.2", lambda a, b, s: [[0.5] * (len(a) // n) for n in s], "lists in a list"),
    ("7.2", lambda a, b, s: grown(a, b, s)[:-1], "one for each size"),
    ("7.2", lambda a, b, s: grown(a, b, s, ratio=lambda x, y: fair(x, y) if len(x) > 1 else 1.0), "yours is 1"),
    ("7.3", lambda x: table(x) * math.pi, "radians"),
    ("7.3", lambda x: table(x) * 180, "degrees"),
    ("7.3", lambda x: table(x) / 2, "2π"),
    ("7.3", lambda x: table(x, lambda a, b: cosine_similarity(a, b).mean()), "These are cosines"),
    ("7.3", lambda x: table(x, lambda a, b: 1 - cosine_similarity(a, b).mean()), "block influence"),
    ("7.3", lambda x: table(x, lambda a, b: cosine_similarity(a, b).mean().arccos() / math.pi), "averaged the cosines"),
    ("7.3", lambda x: table(x, lambda a, b: angle(a.mean(0), b.mean(0)) / math.pi), "averaged the *states*"),
    ("7.3", lambda x: table(x, lambda a, b: angle(a.flatten(), b.flatten()) / math.pi), "one long row"),
    ("7.3", lambda x: table(x, lambda a, b: angle(a, b, 0).mean() / math.pi), "dim=0"),
    ("7.3", lambda x: table(x - x.mean(1, True)), "subtracted the mean state"),
    ("7.3", lambda x: table(x[:, -1:]), "last token only"),
    ("7.3", lambda x: table(x[:, :1]), "first token only"),
    ("7.3", lambda x: table(x) * x.shape[1], "sum over tokens"),
    ("7.3", lambda x: table(x, lambda a, b: angle(a, b).quantile(0.5) / math.pi), "median"),
    ("7.3", lambda x: table(x, lambda a, b: angle(a, b).max() / math.pi), "largest angle"),
    ("7.3", lambda x: 1 - table(x), "1 minus the fraction"),
    ("7.3", functools.partial(table, last=-1), "states[n − 1]"),
    ("7.3", functools.partial(table, first=1), "states[m + 1]"),
    ("7.3", both_triangles, "its end before its start"),
    ("7.3", lambda x: table(x).nan_to_num(), "its end before its start"),
    ("7.3", diagonal_filled, "a span with no layers"),
    ("7.3", lambda x: table(x).T, "Transpose"),
    ("7.3", lambda x: table(x)[:-1, 1:], "4 layers have 5 depths"),
    ("7.3", flat, "a list of 10 spans"),
    ("7.3", lambda x: angle(x[:, None], x[None]), "an angle for each token"),
    ("7.3", lambda x: table(x).nanmean(), "must have shape (5, 5)"),
    ("7.3", first_row_missing, "NaN for span [0, 1)"),
    ("7.3", unclamped, ".clamp(-1, 1)"),
    ("7.3", lambda x: table(x[:, :, :2]), "Largest difference"),
    ("7.4", lambda x, y, n: spearmanr(x, y)[0], "over all spans at once"),
    ("7.4", lambda x, y, n: np.corrcoef(x, y)[0, 1], "That is Pearson's over all"),
    ("7.4", functools.partial(rho, rank=lambda v: v), "That is Pearson's, of the values"),
    ("7.4", functools.partial(rho, within=False), "all spans together"),
    ("7.4", functools.partial(rho, center=False), "did not subtract any"),
    ("7.4", globally_centered, "one mean from all"),
    ("7.4", lambda x, y, n: np.mean(alone(x, y, n)), "mean of the lengths' own"),
    ("7.4", lambda x, y, n: np.average(alone(x, y, n), weights=n.unique(return_counts=True)[1]), "weighted"),
    ("7.4", lambda x, y, n: alone(x, y, n)[0], "first length alone"),
    ("7.4", lambda x, y, n: alone(x, y, n)[-1], "last length alone"),
    ("7.4", by_value, "order in the list"),
    ("7.4", functools.partial(rho, rank=method("min")), "lowest rank"),
    ("7.4", functools.partial(rho, rank=method("max")), "highest rank"),
    ("7.4", functools.partial(rho, rank=method("dense")), "dense"),
    ("7.4", functools.partial(rho, rank=lambda v: np.argsort(v, kind="stable").astype(float)), "argsort gives"),
    ("7.4", sum_of_squares, "without ties only"),
    ("7.4", lambda x, y, n: -rho(x, y, n), "sign is wrong"),
    ("7.4", lambda x, y, n: rho(x, y, n) ** 2, "rho squared"),
    ("7.4", lambda x, y, n: kendalltau(x, y).statistic, "Kendall"),
    ("7.4", functools.partial(rho, rank=lambda v: rankdata(v) / len(v)), "number of spans of their length"),
    ("7.4", lambda x, y, n: tuple(spearmanr(x, y)), "2 things"),
    ("7.4", lambda x, y, n: lft.support.statistics.rank_correlation(x, y, n, resamples=9), "3 things"),
    ("7.4", two_lengths, "Largest difference"),
    ("7.4", lambda x, y, n: rankdata(x), "a single number"),
    ("7.4", lambda x, y, n: rho(x, y, n) if (n == 3).any() or len(n) == 5 else spearmanr(x, y)[0], "KL after flow"),
    ("7.5", lambda: 452, "tokenizer.decode([452])"),
    ("7.5", lambda: b" if", "return the token's text"),
    ("7.5", lambda: "", "empty string"),
    ("7.5", lambda: "assert " * 10_000, "70,000 characters"),
    ("7.5", lambda: "\ud800", "not valid text"),
    ("7.5", lambda: "<|endoftext|>", "special token"),
    ("7.5", lambda: "assert x", "2 tokens: 'assert', ' x'"),
    ("7.5", lambda: " assert not", "The space before a word"),
    ("7.5", lambda: "import this, and that, and that", "…"),
    ("7.5", lambda: "~", "sequences: too few"),
    ("7.5", lambda: ",", "close together and move far"),
    ("7.5", lambda: " self", "its occurrences are"),
    ("7.6", lambda a, b: 0.5, "a constant"),
    ("7.6", lambda a, b: float(len(a)), "a constant"),
    ("7.6", lambda a, b: a.norm(dim=-1).mean(), "starts alone"),
    ("7.6", lambda a, b: b.norm(dim=-1).std(), "ends alone"),
    ("7.6", lambda a, b: b.norm(dim=-1).mean() / a.norm(dim=-1).mean(), "two clouds"),
    ("7.6", lambda a, b: (b.mean(0) - a.mean(0)).norm(), "two clouds"),
    ("7.6", by_lot, "seed it"),
    ("7.6", lambda a, b: turned(a, b)[0], "Another order"),
    ("7.6", lambda a, b: (b - a).norm(dim=-1)[:100].mean(), "Another order"),
    ("7.6", in_place, "changed the states"),
    ("7.6", turned, "a single number"),
    ("7.6", lambda a, b: (turned(a, b).mean(), 1), "2 things"),
    ("7.6", lambda a, b: turned(a, b).mean() / 0, "NaN or infinity"),
    ("7.6", lambda a, b: cosine_similarity(a, b).mean(), "upside down"),
    ("7.6", lambda a, b: -cosine_similarity(a, b).std(), "Return the negative"),
    ("7.6", lambda a, b: lft.recoupling_ratio(a, b).ratio, "recoupling ratio itself"),
    ("7.6", of_criterion("ridge"), "agrees too little"),
    ("7.6", of_criterion("cka"), "Furthest off"),
    ("7.6", of_criterion("meeting"), "agrees too little"),
    ("7.6", blind, "same for all spans of one length"),
    ("7.6", divides, "Layers "),
]  # fmt: skip


@pytest.mark.parametrize(("number", "answer", "words"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_typical_mistakes_get_their_message(number, answer, words):
    report = check(number, answer)
    assert not report
    assert words in report.message
    assert report.failed


def test_other_ways_pass():
    """numpy, lists, float64, the library's own functions, other ways to be fair: what counts is the value."""
    assert check("7.1", lambda a, b: lft.recoupling_ratio(a, b).ratio)
    assert check("7.1", by_points)
    assert check("7.1", lambda a, b: np.float32(haircut(a, b, 1e-6)))
    assert check("7.1", lambda a, b: haircut(b, a, 1e-9))  # from the ends to the starts: the same pairs
    assert check("7.2", lambda a, b, s: grown(a, b, s).tolist())
    assert check("7.2", lambda a, b, s: [CRITERIA["recoupling"](p).mean() if n == len(a) else recoupling_among(p, n)
                                         for p in [Pair(Depth(a), Depth(b))] for n in s])  # fmt: skip
    assert check("7.3", lambda x: table(x).numpy())
    assert check("7.3", lambda x: lft.scan_spans(x, ["angular"], progress=False)["angular"])
    assert check("7.3", lambda x: angle(x[:, None], x[None]).mean(-1).div(math.pi).where(torch.ones(len(x), len(x)).triu(1) > 0, torch.nan))  # fmt: skip  # noqa: E501
    assert check("7.4", rho)
    assert check("7.4", lambda x, y, n: lft.support.statistics.rank_correlation(x, y, n, resamples=9)[0])
    assert check("7.5", lambda: "assertEqual")


def test_mistakes_have_outcomes_of_their_own():
    """No two of 7.1's look alike, so that nobody is told of a mistake that another made."""
    x0, x1 = lesson07.moved(60, 6, 0.6, 33)
    twice = [m for m in lesson07._wrong_ratios(x0, x1) if "p=1." in m or "any one" in m]  # with ties broken otherwise
    outcomes = [float(v) for m, v in lesson07._wrong_ratios(x0, x1).items() if m not in twice]
    assert len(twice) == 2
    assert len({round(v, 4) for v in [*outcomes, float(fair(x0, x1))]}) == len(outcomes) + 1


@pytest.mark.parametrize("number", ["7.1", "7.2", "7.3", "7.4", "7.5", "7.6"])
def test_stranger_answers_do_not_crash_a_check(number):
    import pandas

    for value in (
        pandas.DataFrame({"a": [1.0]}),
        torch.zeros(2, device="meta"),
        torch.full((5, 5), float("nan")),
        float("inf"),
        {1, 2},
        object(),
        np.array("a"),
        1e300,
        True,
        [[1.0], [1.0, 2.0]],
    ):
        assert check(number, lambda *a, value=value: value).message


def test_a_failing_word_and_a_failing_oracle_say_how_far_they_are():
    """Something to climb by."""
    report = check("7.5", lambda: " self")
    assert "R of ' self' on layers 6–17: 0." in report.failed
    assert "random tokens" in report.message
    report = check("7.6", of_criterion("ridge"))
    assert "rho 0." in report.failed
    assert "wanted at least 0.6; R on the same tokens: " in report.failed
    assert "of 19 by yours" in report.message


def test_an_oracle_that_passes_is_put_to_the_spans_held_out(monkeypatch):
    monkeypatch.setattr(progress, "_memory", {})
    report = check("7.6", lambda a, b: turned(a, b).quantile(0.95))
    assert report, report
    assert " to 0." in report.passed[-2]
    assert "held out, 13 spans of 12 layers: rho 0." in report.passed[-1]
    assert "looked" not in report.passed[-1]
    again = check("7.6", lambda a, b: turned(a, b).std())
    assert "you have looked 2 times, and the first time it was 0." in again.passed[-1]


def test_what_beats_the_oracle_does_so_on_other_tokens():
    """The solution of 7.6 is no accident of the check's 512 tokens: two other draws."""
    from lft_edu.latents import depth_states

    teacher, _, blocks = lesson07_teacher.bundled()
    kl = lesson07_teacher.trained("flow-walking")
    spans = sorted(kl)
    measured, lengths = torch.tensor([kl[s] for s in spans]), lesson07_teacher.lengths_of(spans)
    for seed in (1, 2):
        states = depth_states(teacher, blocks, 512, torch.Generator().manual_seed(seed))
        mine = torch.stack([turned(states[m], states[n]).std() for m, n in spans])
        assert lft.support.statistics.rank_correlation(mine, measured, lengths, resamples=9)[0] > 0.5


def test_the_numbers_in_the_answers_are_those_of_the_sample_that_they_name():
    """R of lesson 07's sample of the standard library, and of the long scan of installed packages."""
    teacher, tokenizer = lft.load_teacher("bundled")
    corpus = lft.load_corpus("python-stdlib", tokenizer, "validation", block_size=128, max_tokens=512 * 128)
    states = lft.latents.depth_states(teacher, corpus, 512, torch.Generator().manual_seed(0))
    source = (ROOT / "sources" / "07_where_to_cut.py").read_text()

    assert "re-pairs 88 %" in source
    assert share(solved(cost(states[0], states[6]))).item() == pytest.approx(0.88, abs=0.05)
    assert "**And the prediction?** 68 %." in source
    assert fair(states[0], states[6]).item() == pytest.approx(0.68, abs=0.05)
    assert "0.00 among 2, 0.03 among 64 and 0.18 among 512" in source
    for size, said in ((2, 0.00), (64, 0.03), (512, 0.18)):
        draws = [slice(i, i + size) for i in range(0, 512 - size + 1, size)]
        assert torch.stack([fair(states[1, d], states[19, d]) for d in draws]).mean() == pytest.approx(said, abs=0.05)
    assert "0.01 among 64, 0.10 among 512 and 0.24 among 2048" in source
    growth = lft.SpanScan.load(ASSETS / "results" / "scan.json").growth
    assert [round(growth[size][1, 19].item(), 2) for size in (64, 512, 2048)] == [0.01, 0.10, 0.24]
