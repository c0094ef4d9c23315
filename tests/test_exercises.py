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
from lft_edu.exercises import EXERCISES, books, check
from lft_edu.exercises import checking as checks
from lft_edu.exercises.renumbered import RENUMBERED
from lft_edu.flow import euler_step, midpoint_step, random_times, uniform_times, walk
from lft_edu.objectives import flow_matching_loss, flow_walking_loss


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


def fm(velocity, x0, x1, t=None, target=None, at=None, reduce=torch.mean):
    t = torch.rand(len(x0)) if t is None else t
    x_t = torch.lerp(x0, x1, t[:, None])
    u = velocity(x_t if at is None else at(x0, x1, t[:, None]), t)
    return reduce((u - (target(x0, x1, x_t) if target else x1 - x0)).square())


def fw(velocity, x0, x1, k, times=None, step=midpoint_step, compare=None, graph=True):
    times = random_times(k, len(x0)) if times is None else times
    with torch.set_grad_enabled(graph):
        path = walk(velocity, x0, times, step, return_path=True)
    return (path[-1] - x1).square().mean() if compare is None else compare(path, x0, x1)


def teacher_forced(velocity, x0, x1, k):
    """Puts the point back on the straight line before each step."""
    times = random_times(k, len(x0))
    for i in range(k):
        x = torch.lerp(x0, x1, times[:, i, None])
        x = midpoint_step(velocity, x, times[:, i], times[:, i + 1])
    return (x - x1).square().mean()


def cut_between_steps(velocity, x0, x1, k):
    """The right loss, but no gradient flows from one step to the one before."""
    x, times = x0, random_times(k, len(x0))
    for i in range(k):
        x = midpoint_step(velocity, x.detach(), times[:, i], times[:, i + 1])
    return (x - x1).square().mean()


def backwards(velocity, x0, x1, k):
    """Forgets to sort the times."""
    times = torch.cat([torch.zeros(len(x0), 1), torch.rand(len(x0), k - 1), torch.ones(len(x0), 1)], 1)
    x = x0
    for i in range(k):
        x = midpoint_step(velocity, x, times[:, i], times[:, i + 1])
    return (x - x1).square().mean()


def jittered(k, batch):
    """A grid with a little noise, which is not uniform."""
    times = uniform_times(k).expand(batch, -1).clone()
    times[:, 1:-1] += 0.1 * (torch.rand(batch, k - 1) - 0.5)
    return times


def heun(velocity, x, t, s):
    flat = lambda t: t.flatten() if isinstance(t, torch.Tensor) and t.numel() > 1 else t  # noqa: E731
    u = velocity(x, flat(t))
    return x + (s - t) / 2 * (u + velocity(x + (s - t) * u, flat(s)))


def euler_twice(velocity, x, t, s):
    """Two half Euler steps: two looks, but not a midpoint step."""
    return euler_step(velocity, euler_step(velocity, x, t, (t + s) / 2), (t + s) / 2, s)


def ralston(velocity, x, t, s):
    d, u = s - t, velocity(x, t)
    return x + d * (u / 4 + 3 / 4 * velocity(x + 2 / 3 * d * u, t + 2 / 3 * d))


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
    ("2.1", lambda v, x0, x1: fm(v, x0, x1, t=torch.rand(1).expand(len(x0))), "one time *per point*"),
    ("2.1", functools.partial(fm, at=lambda x0, x1, t: torch.lerp(x1, x0, t)), "from x1 to x0"),
    ("2.1", functools.partial(fm, at=lambda x0, x1, t: x0), "You evaluated at x0"),
    ("2.1", functools.partial(fm, target=lambda x0, x1, x_t: x1 - x_t), "remaining displacement"),
    ("2.1", functools.partial(fm, reduce=torch.sum), "Take the mean over everything"),
    ("2.1", functools.partial(fm, reduce=lambda e: e.sum(-1).mean()), "Take the mean over everything"),
    ("2.1", functools.partial(fm, reduce=lambda e: e.sqrt().mean()), "square it"),
    ("2.1", lambda v, x0, x1: fm(v, x0, x1).detach(), "No gradient"),
    ("2.1", lambda v, x0, x1: fm(v, x0, x1).item(), "No gradient"),
    ("2.1", lambda v, x0, x1: x0.mean() * 0, "never evaluated the"),
    ("2.1", lambda v, x0, x1: fm(v, x0, x1, t=torch.linspace(0, 1, len(x0))), "same twice"),
    ("2.1", lambda v, x0, x1: fm(v, x0, x1, t=torch.rand(16, generator=seeded())), "same twice"),
    ("2.1", lambda v, x0, x1: fm(v, x0, x1, t=torch.rand(len(x0)) / 2), "uniform ones have 0.50"),
    ("2.1", lambda v, x0, x1: fm(v, x0, x1, t=torch.randn(len(x0)).mul(3).sigmoid()), "uniform ones have 0.50"),
    ("2.2", lambda v, x, t, s: x.add_((s - t) * v(x, t)), "changed x itself"),
    ("2.2", lambda v, x, t, s: x + v(x, t), "lasts s − t"),
    ("2.2", lambda v, x, t, s: x + s * v(x, t), "for the time s"),
    ("2.2", lambda v, x, t, s: x + (t - s) * v(x, t), "backwards"),
    ("2.2", lambda v, x, t, s: x + (s - t) * v(x, s), "at time s"),
    ("2.2", midpoint_step, "midpoint rule"),
    ("2.2", lambda v, x, t, s: v(x, t) * 0 + euler_step(v, x, t, s), "2 times"),
    ("2.3", euler_step, "t + d/2 (paper, eq. 5)"),
    ("2.3",
     lambda v, x, t, s: x + (s - t) * v(x + (s - t) / 2 * v(x, t), t),
     "The midpoint rule evaluates it at t + d/2"),
    ("2.3", lambda v, x, t, s: x + (s - t) * v(x, (t + s) / 2), "go half a step first"),
    ("2.3", lambda v, x, t, s: x + (s - t) * v(x + (s - t) * v(x, t), (t + s) / 2), "half is enough"),
    ("2.3", lambda v, x, t, s: x + (s - t) / 2 * v(x + (s - t) / 2 * v(x, t), (t + s) / 2), "only half the step"),
    ("2.3",
     lambda v, x, t, s: (h := x + (s - t) / 2 * v(x, t)) + (s - t) * v(h, (t + s) / 2),
     "stepped from the halfway"),
    ("2.3", lambda v, x, t, s: x + (s - t) * v(x + (s - t) * v(x, t), s), "end of the step"),
    ("2.3", heun, "Heun"),
    ("2.3", ralston, "Largest difference"),
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
    ("3.1",
     lambda k, b: torch.nn.functional.pad(torch.nn.functional.pad(torch.rand(b, k - 1), (1, 0)), (0, 1), value=1.0),
     "not sorted"),
    ("3.1", lambda k, b: torch.rand(b, k - 1).sort(-1).values, "put 0 in front"),
    ("3.1", lambda k, b: torch.rand(b, k + 1).sort(-1).values, "begins with 0"),
    ("3.1", lambda k, b: random_times(k, 1).expand(b, -1), "same times"),
    ("3.1", lambda k, b: random_times(k, b).square(), "uniform ones have 0.50"),
    ("3.1", lambda k, b: random_times(k, b, torch.Generator().manual_seed(0)), "same twice"),
    ("3.2", lambda v, x, t: walk(v, x, t, euler_step), "Euler steps"),
    ("3.2", lambda v, x, t: walk(v, x, uniform_times(t.shape[-1] - 1)), "equal steps"),
    ("3.2", lambda v, x, t: walk(v, x, t[..., :-1]), "one step early"),
    ("3.2", lambda v, x, t: walk(v, x, t[..., 1:]), "skipped the first step"),
    ("3.2", lambda v, x, t: walk(v, x, t, return_path=True), "whole path"),
    ("3.2", lambda v, x, t: walk(v, x, t[0] if t.ndim == 2 else t), "first row"),
    ("3.2", lambda v, x, t: walk(v, x, t).detach(), "No gradient"),
    ("3.2", lambda v, x, t: midpoint_step(v, x, t[..., -2], t[..., -1]), "only the last step"),
    ("3.3", functools.partial(fw, compare=lambda p, x0, x1: (p[1:] - x1).square().mean()), "Only the end counts"),
    ("3.3", functools.partial(fw, compare=lambda p, x0, x1: (p[-1] - x0).square().mean()), "compare with x0"),
    ("3.3",
     functools.partial(fw, compare=lambda p, x0, x1: (p[-1] - x1).square().sum()),
     "Take the mean over everything"),
    ("3.3", lambda v, x0, x1, k: flow_matching_loss(v, x0, x1), "that is flow matching"),
    ("3.3", functools.partial(fw, times=uniform_times(3)), "same time"),
    ("3.3", lambda v, x0, x1, k: fw(v, x0, x1, k, random_times(k, 16, torch.Generator().manual_seed(0))), "same twice"),
    ("3.3", functools.partial(fw, step=euler_step), "evaluated the velocity 3 times"),
    ("3.3", functools.partial(fw, graph=False), "No gradient"),
    ("3.3", teacher_forced, "Continue from where"),
    ("3.3", cut_between_steps, "detached"),
    ("3.3", backwards, "back in time"),
    ("3.3", lambda v, x0, x1, k: fw(v, x0, x1, 3), "Is k used?"),
    ("3.3", lambda v, x0, x1, k: fw(v, x0, x1, k, jittered(k, len(x0))), "uniform ones have 0.50"),
    ("3.3", functools.partial(fw, step=lambda v, x, t, s: heun(v, x, t[:, None], s[:, None])), "Largest difference"),
    ("3.2", lambda v, x, t: walk(v, x, t, euler_twice), "Largest"),
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
    assert check("2.2", lambda v, x, t, s: euler_step(v, x.double(), t, s))
    assert check("2.5", lambda x, t, s: -2 * np.tanh(x.numpy() * (1 - 2 * t) / s**2))
    assert check("3.1", lambda k, b: random_times(k, b).numpy())
    assert check("2.1", lambda v, x0, x1: flow_matching_loss(v, x0.double(), x1.double()))
    assert check("3.3", lambda v, x0, x1, k: flow_walking_loss(v, x0, x1, k))


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


def asked_for() -> dict:
    """The name that each exercise asks for, as its source has it."""
    pairs = [found for source in books.sources() for found in books.CHECK.findall(source.read_text())]
    return dict(pairs)


def test_old_numbers_lead_to_the_exercises_that_had_them():
    assert {now for now, _ in RENUMBERED.values()} <= set(EXERCISES)
    for number, (now, name) in RENUMBERED.items():
        assert name == asked_for()[now]
        report = check(number, solutions()[now])
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


def test_an_autograder_sees_an_exception(monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    with pytest.raises(AssertionError, match="Not filled in yet"):
        check("1.1", inspect.unwrap(lambda *a: (_ for _ in ()).throw(NotImplementedError)))
    assert check("1.1", optimal_assignment)


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
    ours = books.student(books.read(books.sources()[0]))
    shown = [c for c in ours.cells if "<details><summary>And" not in c.source and not c.id.endswith("-solution")]
    plain = lambda c: books.LESSON.sub(r"*\1*", books.CHECK.sub(books.GRADED, c.source))  # noqa: E731
    assert [c.source for c in released.cells] == [plain(c) for c in shown]
    sly = copy.deepcopy(released)  # hides from `check` that marks are given
    sly.cells.insert(0, nbformat.v4.new_code_cell('import os\nos.environ.pop("NBGRADER_EXECUTION")'))
    able = books.solution(books.read(books.sources()[0]))
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
