"""Lessons 02 and 06: every typical mistake with losses, KL and intervals gets the message meant for it."""

import math

import pytest
import torch

from lft_edu.exercises import check
from lft_edu.exercises.lesson02 import average_velocity
from lft_edu.exercises.lesson02_losses import least_loss
from lft_edu.skipping import skipped_layers
from lft_edu.support.statistics import bootstrap_means, interval


def drawn(sigma, n=400_000, wrong=lambda v, u: v - u):
    t, z, s = torch.rand(n), torch.randn(n), torch.randint(2, (n,)) * 2 - 1
    return wrong(-2 * s, average_velocity(s * (1 - 2 * t) + sigma * z, t, sigma)).square().mean()


def curved(velocity, x0, x1, turn=math.pi / 2, target=None, reduce=torch.mean, times=None):
    t = torch.rand(len(x0)) if times is None else times
    c, s = (turn * t[:, None]).cos(), (turn * t[:, None]).sin()
    goal = turn * (c * x1 - s * x0) if target is None else target(c, s, x0, x1)
    return reduce((velocity(c * x0 + s * x1, t) - goal).square())


def kl(p, q, log=torch.log, of=float):
    p, q = (x.float().softmax(-1) for x in (p, q))
    return (p * (log(p) - log(q))).sum(-1)


def linear(j, kl, curve):
    below = max(i for i in curve if curve[i] <= kl)
    return (
        (below if kl == curve[below] else j)
        if below == max(curve)
        else below + (kl - curve[below]) / (curve[below + 1] - curve[below])
    )


def apart(a, b):
    one, other = (bootstrap_means(x, generator=torch.Generator().manual_seed(i)) for i, x in enumerate((a, b)))
    return interval(one - other)


MISTAKES = [
    ("2.7", lambda s: drawn(s, wrong=lambda v, u: u), "mean square of the *average* velocity"),
    ("2.7", lambda s: drawn(s, wrong=lambda v, u: 1.0 * v), "4 is the mean square of v itself"),
    ("2.7", lambda s: drawn(s, wrong=lambda v, u: v + u), "more than predicting zero"),
    ("2.7", lambda s: least_loss(s) / 2, "Do not divide by 2"),
    ("2.7", lambda s: -1.0, "cannot be negative"),
    ("2.7", lambda s: 1.5, "Draw t from U(0, 1)"),
    ("2.7", lambda s: least_loss(s) if s > 0.1 else 0.0, "few draws fall where beams meet"),
    (
        "2.8",
        lambda u, a, b: (u(torch.lerp(a, b, (t := torch.rand(16))[:, None]), t) - b).square().mean(),
        "straight line",
    ),
    ("2.8", lambda u, a, b: curved(u, a, b, turn=1.0), "multiply t by π/2"),
    ("2.8", lambda u, a, b: curved(u, a, b, turn=math.pi), "twice as far"),
    ("2.8", lambda u, a, b: curved(u, b, a), "runs from x1 to x0"),
    ("2.8", lambda u, a, b: curved(u, a, b, target=lambda c, s, a, b: b - a), "velocity of the straight line"),
    ("2.8", lambda u, a, b: curved(u, a, b, target=lambda c, s, a, b: c * b - s * a), "factor π/2 is missing"),
    ("2.8", lambda u, a, b: curved(u, a, b, target=lambda c, s, a, b: (c * b + s * a) * math.pi / 2), "cos is −sin"),
    ("2.8", lambda u, a, b: curved(u, a, b, reduce=lambda x: x.sum(-1).mean()), "sum over dimensions"),
    ("2.8", lambda u, a, b: curved(u, a, b, times=torch.full((16,), 0.3)), "one time per point"),
    ("2.8", lambda u, a, b: curved(u, a, b, times=torch.linspace(0, 1, 16)), "same twice"),
    ("2.8", lambda u, a, b: curved(u, a, b).detach(), "No gradient flows"),
    ("6.1", lambda t, s: kl(s, t), "swapped teacher and student"),
    ("6.1", lambda t, s: kl(t, s, torch.log2), "in bits"),
    ("6.1", lambda t, s: -kl(t, s), "The sign"),
    ("6.1", lambda t, s: kl(t, s).mean(-1), "One number per sequence"),
    ("6.1", lambda t, s: kl(t, s).mean(), "must have shape (2, 5)"),
    ("6.1", lambda t, s: -(t.softmax(-1) * s.log_softmax(-1)).sum(-1), "cross-entropy"),
    ("6.1", lambda t, s: kl(t, s) / t.shape[-1], "average over the vocabulary"),
    ("6.1", kl, "log_softmax"),
    ("6.1", lambda t, s: (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1), "three digits"),
    ("6.2", lambda k, c: min(c, key=lambda j: abs(c[j] - k)), "nearest whole number"),
    ("6.2", lambda k, c: min((j for j in c if c[j] >= k), default=math.inf), "next whole number"),
    ("6.2", lambda k, c: max(1.0, skipped_layers(k, c)), "curve begins at (0, 0)"),
    ("6.2", lambda k, c: min(skipped_layers(k, c), max(c)), "return math.inf"),
    ("6.2", lambda k, c: linear(math.inf, k, c), "running maximum"),
    ("6.3", lambda a, b: interval(bootstrap_means(b - a)), "Subtract the second from the first"),
    ("6.3", lambda a, b: interval(bootstrap_means(a - b))[::-1], "2.5 % quantile comes first"),
    ("6.3", lambda a, b: (a - b).mean(), "return (low, high)"),
    ("6.3", apart, "Draw row numbers once"),
    ("6.3", lambda a, b: interval(bootstrap_means(a - b), 0.68), "covers 68 %"),
    ("6.3", lambda a, b: interval(bootstrap_means(a - b), 0.9), "quantiles 0.025 and 0.975"),
    ("6.3", lambda a, b: interval(bootstrap_means(a)), "The mean difference is"),
]


@pytest.mark.parametrize(("number", "answer", "words"), MISTAKES)
def test_typical_mistakes_get_their_message(number, answer, words):
    report = check(number, answer)
    assert not report
    assert words in report.message


def test_the_floor_is_proportional_to_the_width_of_the_beams():
    assert least_loss(0.05) / least_loss(0.1) == pytest.approx(0.5, rel=0.02)


def test_other_ways_pass():
    assert check("2.7", lambda s: least_loss(s))
    assert check(
        "6.3", lambda a, b: torch.tensor([(d := a - b).mean() - (e := 1.96 * d.std() / 200**0.5), d.mean() + e])
    )
