"""Every solution passes its check, every typical mistake gets the message meant for it, nothing crashes a check."""

import copy
import functools
import inspect
import math
import os
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

import lft_edu as lft
from lft_edu import shapes
from lft_edu.couplings import Coupling, cost_matrix, optimal_assignment
from lft_edu.exercises import EXERCISES, books, check, lesson02
from lft_edu.exercises import checking as checks
from lft_edu.exercises.renumbered import RENUMBERED
from lft_edu.flow import euler_step, midpoint_step, random_times, uniform_times, walk
from lft_edu.objectives import flow_walking_loss


@functools.cache
def solutions() -> dict:
    """Every solution, as the solution notebooks define it: number → function."""
    found = {}
    for source in books.sources():
        space = {}
        for cell in books.solution(books.read(source)).cells:
            if cell.cell_type == "code" and not re.search(r"^report = ", cell.source, re.M):
                exec(cell.source, space)
        for number, name in re.findall(r'^check\("(\S+)", (\w+)\)', source.read_text(), re.M):
            found[number] = space[name]
    return found


def test_every_exercise_has_a_solution_and_every_solution_a_check():
    assert set(solutions()) == set(EXERCISES)
    for lesson in ("1", "2", "3", "4", "5", "7", "8"):
        assert sum(number.startswith(lesson + ".") for number in EXERCISES) >= 4


@pytest.mark.parametrize("number", [n for n in EXERCISES if n not in ("3.5", "3.6")])  # these run in the notebook
def test_solutions_pass(number):
    report = check(number, solutions()[number])
    assert report, report
    assert len(report.passed) >= 2
    assert "passed" in repr(report)
    assert "✗" not in repr(report)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", ["2.1", "2.7", "2.8", "3.1", "3.3"])
def test_solutions_that_draw_pass_whatever_the_seed(number, seed):
    torch.manual_seed(seed)
    report = check(number, solutions()[number])
    assert report, report


# --- typical mistakes ---------------------------------------------------------------------------------------------


def assignment(x0, x1, metric="euclidean"):
    return optimal_assignment(x0, x1, metric)


def seeded():
    return torch.Generator().manual_seed(0)


def share(x0, x1, assigned):
    return (assigned != torch.arange(len(x0))).float().mean().item()


def sides(x0, x1, p):
    along, to = (x1 - x0)[:, None], p[None] - x0[:, None]
    return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]


def crossing_table(x0, x1):
    parted = sides(x0, x1, x0) * sides(x0, x1, x1) < 0
    return parted & parted.T


def fm(velocity, x0, x1, real, t=None, target=None, at=None, reduce=lambda e, real: e[real].mean(), give=None):
    t = torch.rand(x0.shape[:2]) if t is None else t
    x_t = (1 - t[..., None]) * x0 + t[..., None] * x1
    x_t = x_t if at is None else at(x0, x1, t[..., None])
    u = velocity(x_t, t if give is None else give(t))
    return reduce((u - (target(x0, x1, x_t) if target else x1 - x0)).square(), real)


def drawn_for(shape):
    """The loss of 2.1 with times of another shape, expanded to all tokens."""
    return lambda v, x0, x1, real: fm(v, x0, x1, real, t=torch.rand(shape).expand(real.shape))


def grid_like(x0):
    return torch.linspace(0, 1, x0[..., 0].numel()).view(x0.shape[:2])


def mean_of_means(error, real):
    return torch.stack([row[mask].mean() for row, mask in zip(error, real, strict=True)]).mean()


def real_tokens_only(velocity, x0, x1, real):
    x0, x1 = x0[real], x1[real]
    t = torch.rand(len(x0))
    return (velocity(torch.lerp(x0, x1, t[:, None]), t) - (x1 - x0)).square().mean()


def heun(velocity, x, t, s, at=None, place=None, share=0.5, from_=None):
    """A step of Heun's method with something changed."""
    d, u = s - t, velocity(x, t)
    end = x + d * u
    last = velocity(end if place is None else place(x, d, u), s if at is None else at(t, s))
    return (x if from_ is None else from_(end)) + d * share * (u + last)


def table_step(slip):
    return lambda *args: lesson02.runge_kutta(*args, slip=slip)


def spaced(k, batch, least, cuts=lambda b, k: torch.rand(b, k - 1).sort(-1).values, wide=None, last=1.0, add=None):
    """Times of 3.1 with something changed."""
    inner = (1 - k * least if wide is None else wide(k, least)) * cuts(batch, k)
    inner = inner + least * (torch.arange(1, k) if add is None else add(k))
    return torch.cat([torch.zeros(batch, 1), inner, torch.full((batch, 1), last)], -1)


def normalized(k, batch, least):
    """Steps made of uniform numbers divided by their sum."""
    steps = torch.rand(batch, k)
    steps = least + (1 - k * least) * steps / steps.sum(-1, keepdim=True)
    return torch.nn.functional.pad(steps.cumsum(-1), (1, 0))


def exponential(k, batch, least):
    """Another right way: steps in proportion to exponential waiting times."""
    steps = -torch.rand(batch, k).log()
    steps = least + (1 - k * least) * steps / steps.sum(-1, keepdim=True)
    return torch.nn.functional.pad(steps.cumsum(-1), (1, 0))


def clamped(k, batch, least):
    steps = random_times(k, batch).diff(dim=1).clamp_min(least)
    return torch.nn.functional.pad(steps.cumsum(-1), (1, 0))


def wavy(x, t):
    t = torch.as_tensor(t)
    return torch.sin(2 * x) + 2 * (t[:, None] if t.ndim else t) ** 2


def examine_on(
    velocity=wavy,
    times=((0.0, 0.1, 0.7, 1.0), (0.0, 0.5, 0.6, 1.0)),
    gradient=True,
    of=lambda g: g,
    equal=torch.allclose,
):
    """A test of a walk that looks at this field and these times only."""

    def test(walked):
        x0 = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
        ends = [w(velocity, x0, torch.tensor(times)) for w in (walk, walked)]
        if not equal(*ends):
            return False
        return not gradient or torch.allclose(*(of(torch.autograd.grad(end.sum(), x0)[0]) for end in ends))

    return test


def asks_for_any_gradient(walked):
    """Right about the end, and content with a gradient that is not zero."""
    a = torch.tensor(1.0, requires_grad=True)
    end = walked(
        lambda x, t: a * wavy(x, t), torch.ones(2, 2), torch.tensor([[0.0, 0.1, 0.7, 1.0], [0.0, 0.5, 0.6, 1.0]])
    )
    return examine_on(gradient=False)(walked) and bool(torch.autograd.grad(end.sum(), a)[0])


def fw2(
    velocity, x0, x1, k, times=None, step=midpoint_step, ends=None, back=None, sign=1, cut=lambda x: x, flip=True,
    reduce=lambda e: e.square().mean(), total=lambda a, b: a + b, ways=2, path=False,
):  # fmt: skip
    """The loss of 3.3 with something changed."""
    times = random_times(k, len(x0)) if times is None else times(k, len(x0))
    found, end = [], x0
    for way in range(ways):
        grid = times.flip(-1) if way and flip else times
        x, states = (x1 if back is None else back(end)) if way else x0, []
        for i in range(grid.shape[-1] - 1):
            u = (lambda x, t: sign * velocity(x, t)) if way else velocity
            x = step(u, cut(x), grid[:, i], grid[:, i + 1])
            states.append(x)
        end = x
        states = torch.stack(states) if path else x
        found.append(reduce(states - (x0 if way else x1)))
    return total(*found) if ways == 2 else found[0]


def unsorted(k, batch):
    return torch.cat([torch.zeros(batch, 1), torch.rand(batch, k - 1), torch.ones(batch, 1)], 1)


def jittered(k, batch):
    """A grid with a little noise, which is not uniform."""
    times = uniform_times(k).expand(batch, -1).clone()
    times[:, 1:-1] += 0.1 * (torch.rand(batch, k - 1) - 0.5)
    return times


def count_looks(step):
    looks = []
    step(lambda x, t: looks.append(1) or x, torch.zeros(1, 1), 0.0, 1.0)
    return len(looks)


def orders(k, dtype=torch.float64, sign=1, keep=True):
    def measure(step):
        x0, exact = torch.tensor([[1.0, 0.0]], dtype=dtype), torch.tensor([[0.0, 1.0]], dtype=dtype)
        spin = lambda x, t: math.pi / 2 * torch.stack([-x[:, 1], x[:, 0]], -1)  # noqa: E731
        e = [
            (walk(spin, x0, uniform_times(n, dtype=dtype), step if keep else euler_step) - exact).norm()
            for n in (k, 2 * k)
        ]
        return sign * math.log2(float(e[0]) / max(float(e[1]), 1e-12))

    return measure


def two_walls(n):
    """R near 1 and all points meet in the middle."""
    x0 = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return x0, -x0


FAR = [[10.0, 0.0], [6.0, 1.0]]
WRONG = [
    ("1.1", lambda x0, x1: cost_matrix(x0, x1).argmin(1), "nearest neighbor"),
    ("1.1", lambda x0, x1: assignment(x1, x0), "in the wrong direction"),
    ("1.1", lambda x0, x1: x1[assignment(x0, x1)], "points. The assignment is which of them"),
    ("1.1", lambda x0, x1: assignment(x0, x1, "sqeuclidean"), "*squared* distance"),
    ("1.1", lambda x0, x1: torch.arange(len(x0)), "the rows"),
    ("1.1", lambda x0, x1: torch.arange(len(x0)).roll(2), "is possible"),
    ("1.1", lambda x0, x1: assignment(x0, x1) + 1, "0 to 39"),
    ("1.1", lambda x0, x1: torch.eye(len(x0))[assignment(x0, x1)], "must have shape (40,)"),
    ("1.1", lambda x0, x1: assignment(x0, x1)[torch.randint(len(x0), (len(x0),))], "exactly once"),
    ("1.2", lambda x0, x1: 1 - share(x0, x1, assignment(x0, x1)), "*kept*"),
    ("1.2", lambda x0, x1: len(x0) * share(x0, x1, assignment(x0, x1)), "divide by N"),
    ("1.2", lambda x0, x1: share(x0, x1, cost_matrix(x0, x1).argmin(1)), "nearest neighbors"),
    ("1.2", lambda x0, x1: share(x0, x1, assignment(x0, x1, "sqeuclidean")), "*squared* distance"),
    ("1.3", lambda x0, x1: int(crossing_table(x0, x1).sum()), "twice"),
    ("1.3", lambda x0, x1: int(((p := sides(x0, x1, x0) * sides(x0, x1, x1) < 0) | p.T).sum()) // 2, "different sides"),
    ("1.3", lambda x0, x1: crossing_table(x0, x1), "a single number"),
    ("1.4", lambda: (torch.zeros(2, 2), torch.tensor(FAR)), "do not cross"),
    ("1.4", lambda: (torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])), "swapping wins"),
    ("1.4", lambda: torch.zeros(2, 2), "return two tensors"),
    ("1.5", two_walls, "a half turn"),
    ("1.5", lambda n: (torch.randn(n, 2), torch.zeros(n, 2)), "same place"),
    ("1.5", lambda n: (x := torch.randn(n, 2), x + 1), "R = 0.00"),
    ("2.1", functools.partial(fm, target=lambda x0, x1, x_t: x0 - x1), "points backwards"),
    ("2.1", drawn_for(1), "All tokens got the same t"),
    ("2.1", drawn_for((4, 1)), "One time per text"),
    ("2.1", drawn_for(6), "All texts got the same times"),
    ("2.1", lambda v, *a: fm(v, *a, t=torch.rand(4, 1).expand(4, 6), give=lambda t: t[:, 0]), "One time per text"),
    ("2.1", real_tokens_only, "Give it whole texts"),
    ("2.1", functools.partial(fm, at=lambda x0, x1, t: torch.lerp(x1, x0, t)), "from x1 to x0"),
    ("2.1", functools.partial(fm, at=lambda x0, x1, t: x0), "You evaluated at x0"),
    ("2.1", functools.partial(fm, target=lambda x0, x1, x_t: x1 - x_t), "remaining displacement"),
    ("2.1", functools.partial(fm, reduce=lambda e, real: e.mean()), "Padding is in the mean"),
    ("2.1", functools.partial(fm, reduce=lambda e, real: (e * real[..., None]).mean()), "divide by all tokens"),
    ("2.1", functools.partial(fm, reduce=mean_of_means), "mean of the texts' means"),
    ("2.1", functools.partial(fm, reduce=lambda e, real: e[~real].mean()), "You kept the padding"),
    ("2.1", functools.partial(fm, reduce=lambda e, real: e[real].sum()), "You sum over tokens and"),
    ("2.1", functools.partial(fm, reduce=lambda e, real: e[real].sum(-1).mean()), "You sum over dimensions"),
    ("2.1", functools.partial(fm, reduce=lambda e, real: e[real].sqrt().mean()), "square it"),
    ("2.1", functools.partial(fm, reduce=lambda e, real: e[real]), "a single number"),
    ("2.1", lambda *a: fm(*a).detach(), "No gradient"),
    ("2.1", lambda *a: fm(*a).item(), "No gradient"),
    ("2.1", lambda v, x0, *a: x0.mean() * 0, "never evaluated the"),
    ("2.1", lambda v, x0, *a: fm(v, x0, *a, t=grid_like(x0)), "same twice"),
    ("2.1", lambda v, x0, *a: fm(v, x0, *a, t=torch.rand(x0.shape[:2], generator=seeded())), "same twice"),
    ("2.1", lambda v, x0, *a: fm(v, x0, *a, t=torch.rand(x0.shape[:2]) / 2), "uniform ones have 0.50"),
    ("2.1", lambda v, x0, *a: fm(v, x0, *a, t=3 * torch.rand(x0.shape[:2])), "they lie between 0 and 1"),
    ("2.1", lambda v, x0, *a: fm(v, x0, *a) if len(x0) == 4 else x0.mean(), "did not evaluate the velocity at all"),
    ("2.2", lambda v, x, t, s: x.add_(heun(v, x, t, s) - x), "changed x itself"),
    ("2.2", euler_step, "Euler's"),
    ("2.2", midpoint_step, "Heun's evaluates at the end"),
    ("2.2", functools.partial(heun, share=1.0), "take their mean"),
    ("2.2", functools.partial(heun, share=0.25), "only half the step"),
    ("2.2", lambda v, x, t, s: 2 * x - heun(v, x, t, s), "not t − s"),
    ("2.2", functools.partial(heun, at=lambda t, s: t), "Euler's. Average"),
    ("2.2", functools.partial(heun, place=lambda x, d, u: x), "take the Euler step first"),
    ("2.2", functools.partial(heun, at=lambda t, s: (t + s) / 2, place=lambda x, d, u: x + d / 2 * u), "half the step"),
    ("2.2", functools.partial(heun, from_=lambda end: end), "start at x"),
    ("2.2", lambda v, x, t, s: x + (s - t) * v(x + (s - t) * v(x, t), s), "the last one alone"),
    ("2.2", lambda v, x, t, s: v(x, t) * 0 + heun(v, x, t, s), "3 times"),
    ("2.2", lambda v, x, t, s: heun(v, x, t, s).detach(), "No gradient"),
    ("2.3", lambda v, x, t, s, *table: euler_step(v, x, t, s), "Largest difference"),
    ("2.3", table_step("at t"), "All your evaluations are at time t"),
    ("2.3", table_step("at s"), "All your evaluations are at time s"),
    ("2.3", table_step("c alone"), "not at t + c[i]"),
    ("2.3", table_step("c s"), "not c[i] s"),
    ("2.3", table_step("at x"), "say where to look"),
    ("2.3", table_step("no d"), "The d is missing"),
    ("2.3", table_step("chained"), "from x, not from the place before"),
    ("2.3", table_step("last slope"), "weighs *all* velocities"),
    ("2.3", table_step("equal"), "plain mean"),
    ("2.3", table_step("sum"), "plain sum"),
    ("2.3", table_step("last"), "the last velocity alone"),
    ("2.3", table_step("from the last place"), "the last place where you looked"),
    ("2.3", table_step("whole"), "the step lasts d"),
    ("2.3", lambda v, x, t, s, *table: lesson02.runge_kutta(v, x, 0, s, *table), "You moved for the time s"),
    ("2.3", lambda v, x, t, s, *table: lesson02.runge_kutta(v, x, s, t, *table), "not t − s"),
    ("2.3", lambda v, x, *a: v(x, 0.0) * 0 + lesson02.runge_kutta(v, x, *a), "Keep each velocity"),
    ("2.3", lambda *a: lesson02.runge_kutta(*a).detach(), "No gradient"),
    ("2.3", lambda v, x, *a: x.copy_(lesson02.runge_kutta(v, x, *a)), "changed x itself"),
    ("2.3", lambda *a: lesson02.runge_kutta(*a) + 0.003 * (a[3] - a[2]) ** 3, "Largest difference"),
    ("2.4", lambda step: count_looks(step), "measure, do not count"),
    ("2.4", orders(16, sign=-1), "falling"),
    ("2.4", orders(16, keep=False), "Did you pass the `step`"),
    ("2.4", orders(16, dtype=torch.float32), "float64"),
    ("2.4", lambda step: 7.0, "order = log2"),
    ("2.5", lambda x, t, s: 2 * torch.tanh(x * (1 - 2 * t) / s**2), "goes to −1"),
    ("2.5", lambda x, t, s: -torch.tanh(x * (1 - 2 * t) / s**2), "two units long"),
    ("2.5", lambda x, t, s: -2 * torch.tanh(x * (1 - 2 * t) / s), "variance"),
    ("2.5", lambda x, t, s: -2 * torch.tanh(x * (1 - 2 * t) / (2 * s**2)), "factor 2"),
    ("2.5", lambda x, t, s: -2 * torch.tanh(x / s**2), "average velocity"),
    ("2.6", lambda: ("midpoint", 50), "all points bounce"),
    ("2.6", lambda: ("midpoint", 2), "Some is chance"),
    ("2.6", lambda: ("heun", 2), "return a solver and k"),
    ("2.6", lambda: ("Euler", 1), "lower case"),
    ("2.6", lambda: ("euler", 0), "at least 1"),
    ("3.1", functools.partial(spaced, cuts=lambda b, k: torch.rand(b, k - 1)), "not sorted"),
    ("3.1", lambda k, b, least: spaced(k, b, least)[:, 1:-1], "put 0 in front"),
    ("3.1", lambda k, b, least: spaced(k, b, least).diff(dim=1), "the lengths of the steps"),
    ("3.1", lambda k, b, least: torch.rand(b, k + 1).sort(-1).values, "begins with 0"),
    ("3.1", clamped, "must take it from others"),
    ("3.1", lambda k, b, least: random_times(k, b), "Your shortest step is"),
    ("3.1", functools.partial(spaced, wide=lambda k, least: 1 - (k - 1) * least), "Your shortest step is"),
    ("3.1", functools.partial(spaced, wide=lambda k, least: 1 - least, add=lambda k: 0), "Your shortest step is"),
    ("3.1", lambda k, b, least: spaced(k, 1, least).expand(b, -1), "same times"),
    ("3.1", lambda k, b, least: spaced(k, b, least, lambda b, k: torch.rand(b, k - 1, generator=seeded()).sort(-1)[0]),
     "same twice"),
    ("3.1", lambda k, b, least: spaced(k, b, least, lambda b, k: torch.rand(b, k - 1).sort(-1)[0] ** 2), "means"),
    ("3.1", normalized, "too even"),
    ("3.1", lambda k, b, least: spaced(k, b, least, lambda b, k: jittered(k, b)[:, 1:-1]), "spreads"),
    ("3.2", lambda walked: True, "lets a walk pass that takes Euler steps"),
    ("3.2", lambda walked: False, "rejects a right walk"),
    ("3.2", lambda walked: 1, "return True or False"),
    ("3.2", lambda walked: walked(wavy, torch.ones(2, 2), torch.tensor([0.0, 1.0])) > 0, "return True or False"),
    ("3.2", examine_on(equal=torch.equal), "with =="),
    ("3.2", examine_on(lambda x, t: torch.ones_like(x)), "takes Euler steps. Choose a velocity"),
    ("3.2", examine_on(lambda x, t: torch.sin(2 * x)), "depends on t"),
    ("3.2", examine_on(times=((0.0, 0.5, 1.0),) * 2), "takes equal steps"),
    ("3.2", examine_on(times=((0.0, 0.2, 1.0),) * 2), "uses the first row"),
    ("3.2", examine_on(times=(0.0, 0.2, 1.0)), "uses the first row"),
    ("3.2", examine_on(gradient=False), "no gradient"),
    ("3.2", asks_for_any_gradient, "gradient of the last step only"),
    ("3.3", functools.partial(fw2, path=True), "Only the two ends count"),
    ("3.3", functools.partial(fw2, ways=1), "one direction only"),
    ("3.3", functools.partial(fw2, step=euler_step), "or Euler steps"),
    ("3.3", functools.partial(fw2, back=lambda end: end), "must start at x1, the partner"),
    ("3.3", functools.partial(fw2, flip=False), "starts at t = 1"),
    ("3.3", functools.partial(fw2, sign=-1), "have a negative length"),
    ("3.3", functools.partial(fw2, total=lambda a, b: (a + b) / 2), "add them"),
    ("3.3", functools.partial(fw2, reduce=lambda e: e.square().sum(-1).mean()), "You sum over dimensions"),
    ("3.3", functools.partial(fw2, reduce=lambda e: e.norm(dim=-1).mean()), "square it"),
    ("3.3", lambda v, x0, x1, k: fw2(v, x1, x0, k), "The first walk must start at x0"),
    ("3.3", functools.partial(fw2, times=lambda k, b: uniform_times(k).expand(b, -1)), "same time"),
    ("3.3", functools.partial(fw2, times=lambda k, b: random_times(k, b, seeded())), "same twice"),
    ("3.3", functools.partial(fw2, times=jittered), "uniform ones have 0.50"),
    ("3.3", functools.partial(fw2, times=unsorted), "back in time"),
    ("3.3", lambda v, x0, x1, k: fw2(v, x0, x1, 3), "Is k used?"),
    ("3.3", functools.partial(fw2, step=lambda v, x, t, s: midpoint_step(v, x, t, s) + 0.1 * x), "Only the two ends"),
    ("3.3", functools.partial(fw2, cut=torch.Tensor.detach), "detached"),
    ("3.3", lambda *a: fw2(*a).detach(), "No gradient"),
    ("3.3", flow_walking_loss, "one direction only"),
    ("3.4", lambda layers, span, solver, k: k * {"euler": 1, "midpoint": 2}[solver], "whole model"),
    ("3.4",
     lambda layers, span, solver, k: layers - span[1] + span[0] - 1 + k * (2 if solver == "midpoint" else 1),
     "half open"),
    ("3.4", lambda layers, span, solver, k: layers - span[1] + span[0] + k, "two evaluations of the velocity"),
    ("3.4", lambda layers, span, solver, k: 0.5, "whole numbers"),
    ("3.5", lambda: (torch.zeros(300, 2), torch.zeros(300, 2)), "return lft.couplings.Coupling"),
    ("3.5", lambda: Coupling(torch.randn(300, 2), torch.randn(300, 2)), "2 to 20 groups"),
    ("3.6", lambda: -0.1, "needs a positive one"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "answer", "words"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_typical_mistakes_get_their_message(number, answer, words):
    report = check(number, answer)
    assert not report
    assert words in report.message
    assert report.failed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "answer", "words"),
    [
        ("3.5", lambda: shapes.beams(1000, torch.Generator().manual_seed(0)), "finds a detour"),
        ("3.6", lambda: 3.0, "make it smaller"),
    ],
)
def test_mistakes_that_take_training(monkeypatch, number, answer, words):
    from lft_edu import plane

    monkeypatch.setattr(plane, "train", functools.partial(plane.train, steps=700, progress=False))
    assert words in check(number, answer).message


# --- whatever a learner passes ------------------------------------------------------------------------------------


def raises(*args):
    raise KeyError("no such thing <b>")


@pytest.mark.parametrize("number", EXERCISES)
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "nothing to check yet"),
        (..., "nothing to check yet"),
        (3.0, "Pass the function itself"),
        (torch.zeros(3), "Pass the function itself"),
        (lambda *a: None, "returned nothing"),
        (lambda *a: ..., "returned nothing"),
        (lambda: None, ""),
        (raises, "KeyError: 'no such thing <b>'\nin line"),
        (lambda *a: "text", "You returned"),
        (lambda *a: np.zeros((7, 7, 7)), "You returned"),
        (lambda *a: torch.full((16,), float("nan")), ""),
        (lambda *a: [], "You returned"),
        (lambda *a: {"a": 1}, "You returned"),
    ],
)
def test_nothing_crashes_a_check(number, answer, words):
    report = check(number, answer)
    assert not report
    assert words in report.message
    assert "<b>" not in report._repr_html_()


@pytest.mark.parametrize("number", EXERCISES)
def test_unfilled_stubs_are_told_so(number):
    def stub(*args, **kwargs):
        raise NotImplementedError

    report = check(number, stub)
    assert "Not filled in yet" in report.message
    assert "✗" not in repr(report)


def test_answers_in_other_types_pass():
    """numpy, lists, float64, half precision: what counts is the value."""
    assert check("1.1", lambda x0, x1: optimal_assignment(x0, x1).numpy())
    assert check("1.1", lambda x0, x1: optimal_assignment(x0, x1).tolist())
    assert check("2.2", lambda v, x, t, s: heun(v, x.double(), t, s))
    assert check("2.3", lambda v, x, *a: lesson02.runge_kutta(v, x.double(), *a))
    assert check("2.5", lambda x, t, s: -2 * np.tanh(x.numpy() * (1 - 2 * t) / s**2))
    assert check("2.1", lambda v, x0, x1, real: fm(v, x0.double(), x1.double(), real))
    assert check("3.1", lambda *a: spaced(*a).numpy())
    assert check("3.1", exponential)
    assert check("3.2", lambda walked: np.bool_(examine_on()(walked)))
    assert check("3.3", fw2)
    assert check("3.3", by_the_library)


def by_the_library(velocity, x0, x1, k):
    """The way back as a walk from 0 to 1 of the velocity that leads back."""
    there, back = (random_times(k, len(x0)) for _ in range(2))
    return (walk(velocity, x0, there) - x1).square().mean() + (
        walk(lambda x, t: -velocity(x, 1 - t), x1, back) - x0
    ).square().mean()


def test_values_on_another_device_are_fetched():
    """A tensor of any device is brought to the CPU: checked with one that has no data, which cannot come back."""
    for value in (torch.zeros(3, device="meta"), torch.zeros(3, dtype=torch.complex64)):
        with pytest.raises(checks.Wrong, match="must be a tensor of real numbers"):
            checks.tensor(value, (3,), "x")
    assert checks.tensor(torch.ones(3, dtype=torch.bfloat16, requires_grad=True), (3,), "x").dtype == torch.float64


def test_the_largest_difference_is_shown():
    with pytest.raises(checks.Wrong, match=r"yours is 5, it should be 2 \(at index \[1, 0\]\)"):
        checks.close(torch.tensor([[1.0], [5.0]]), torch.tensor([[1.0], [2.0]]), "x")


def test_unknown_exercises_are_named():
    with pytest.raises(ValueError, match=r"Did you mean '3\.2'"):
        check("32", lambda: None)


def test_old_numbers_lead_to_the_exercises_that_had_them():
    assert {now for now, _ in RENUMBERED.values()} <= set(EXERCISES)
    for number, (now, name) in RENUMBERED.items():
        solved = solutions()[now]

        def old(*args, solved=solved):
            return solved(*args)

        old.__name__ = name  # as an old copy has it; what is asked for may have another name now
        report = check(number, old)
        assert report.exercise.number == now
        assert repr(report).startswith(f'Exercise {number} is called {now} now: check("{now}", {name}).\n{now} · ')
        assert number in report._repr_html_()


def test_an_old_number_that_is_in_use_again_is_told_by_the_name_of_the_function():
    def my_ratio(x0, x1):
        raise NotImplementedError

    assert check("5.1", my_ratio).exercise.number == "7.1"
    assert "Not filled in yet" in check("5.1", my_ratio).message
    for answer in (solutions()["5.1"], lambda t: t, None, torch.zeros(2)):
        report = check("5.1", answer)
        assert report.exercise.number == "5.1"
        assert not report.renumbered


def test_an_old_number_that_no_exercise_has_is_understood_whatever_is_handed_over():
    for answer, name in ((lambda *a: 0, "my_budget"), (None, "my_budget"), (raises, "raises")):
        report = check("6.4", answer)
        assert not report
        assert repr(report).startswith(f'Exercise 6.4 is called 5.4 now: check("5.4", {name}).')
    with pytest.raises(ValueError, match=r"6\.7"):
        check("6.7", None)


def test_a_function_with_other_arguments_may_be_from_an_older_notebook():
    def my_flow_matching_loss(velocity, x0, x1):
        return x0.mean()

    message = check("2.1", my_flow_matching_loss).message
    assert "3 positional arguments but 4 were given" in message
    assert "`lft-edu reset exercises/`" in message
    message = check("2.1", raises).message
    assert "reset" not in message


def test_an_autograder_sees_an_exception(monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    with pytest.raises(AssertionError, match="Not filled in yet"):
        check("1.1", inspect.unwrap(lambda *a: (_ for _ in ()).throw(NotImplementedError)))
    assert check("1.1", optimal_assignment)


def test_lecturers_are_told_how_many_there_are():
    page = (books.ROOT.parents[1] / "docs" / "teaching" / "classroom.md").read_text(encoding="utf-8")
    points = sum(one.difficulty for one in EXERCISES.values())
    assert f"{len(books.sources())} assignments, {len(EXERCISES)} exercises, {points} points" in page


# --- notebooks ----------------------------------------------------------------------------------------------------


def test_notebooks_are_what_their_sources_say():
    assert books.write(check=True) == [], "run `make exercises`"


@pytest.mark.parametrize("source", books.sources(), ids=lambda p: p.stem)
def test_sources_are_complete(source):
    """Each exercise: heading as registered, a prediction, a hint, shapes in the stub, nothing of the solution left."""
    student = books.student(books.read(source))
    text = {number: "" for number, _ in re.findall(r'^check\("(\S+)", (\w+)\)', source.read_text(), re.M)}
    cells = iter(student.cells)
    for number in text:
        for cell in cells:
            text[number] += cell.source + "\n"
            if cell.id.endswith("-solution"):
                break
        found = text[number]
        assert f"## {EXERCISES[number].heading}" in found
        assert "**Predict first.**" in found
        assert "<summary>Hint" in found
        assert "<summary>Solution" in found
        assert '"""' in found
        assert "raise NotImplementedError" in found
        assert "SOLUTION" not in found


def test_links_lead_somewhere():
    for path in [
        *books.ROOT.glob("*.ipynb"),
        *books.ROOT.glob("solutions/*.ipynb"),
        *books.ROOT.parent.glob("*.ipynb"),
    ]:
        for cell in nbformat.read(path, 4).cells:
            for link in re.findall(r"\]\(([^)#]+?\.ipynb)\)", cell.source) if cell.cell_type == "markdown" else ():
                assert (path.parent / link).exists(), f"{path.name}: {link}"


@pytest.mark.filterwarnings("ignore::Warning")  # of the libraries under nbgrader
def test_nbgrader_makes_assignments_and_marks_them(tmp_path, monkeypatch):
    """The whole way of a class: course, release, one filled in and one empty submission, marks."""
    pytest.importorskip("nbgrader", reason="pip install nbgrader to test the classroom")
    from nbgrader.api import Gradebook
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config

    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # nbgrader calls alembic
    made = books.course(tmp_path)
    assert len(made) == len(books.sources())
    assert not any("](../" in path.read_text(encoding="utf-8") for path in made), "students have this one file"
    with pytest.raises(FileExistsError, match="another folder"):
        books.course(tmp_path)
    name = "01_couplings"
    config = Config()
    config.CourseDirectory.root = str(tmp_path)
    config.CourseDirectory.course_id = "c"
    config.CourseDirectory.db_url = f"sqlite:///{tmp_path}/gradebook.db"
    config.ClearSolutions.code_stub = {"python": "raise NotImplementedError"}
    api = NbGraderAPI(config=config)
    done = api.generate_assignment(name)
    assert done["success"], done["log"]
    released = nbformat.read(tmp_path / "release" / name / f"{name}.ipynb", 4)
    (source,) = (path for path in books.sources() if path.stem == name)
    ours = books.student(books.read(source))
    shown = [c for c in ours.cells if "<details><summary>And" not in c.source and not c.id.endswith("-solution")]
    plain = lambda c: books.LESSON.sub(r"*\1*", books.CHECK.sub(books.GRADED, c.source))  # noqa: E731
    assert [c.source for c in released.cells] == [plain(c) for c in shown]
    sly = copy.deepcopy(released)  # hides from `check` that marks are given
    sly.cells.insert(0, nbformat.v4.new_code_cell('import os\nos.environ.pop("NBGRADER_EXECUTION")'))
    able = books.solution(books.read(source))
    for student, book in (("able", able), ("new", released), ("sly", sly)):
        folder = tmp_path / "submitted" / student / name
        folder.mkdir(parents=True)
        nbformat.write(book, folder / f"{name}.ipynb")
        marked = api.autograde(name, student)
        assert marked["success"], marked["log"]
    with Gradebook(config.CourseDirectory.db_url) as marks:
        scores = {s.student.id: s.score for s in marks.assignment_submissions(name)}
        total = marks.find_assignment(name).max_score
    assert total == sum(e.difficulty for n, e in EXERCISES.items() if n.startswith("1."))
    assert scores == {"able": total, "new": 0, "sly": 0}


def test_lft_namespace_has_the_checks():
    assert lft.exercises.check is check
