"""Checks of lesson 02: flow matching and solvers."""

import math

import torch

from .. import plane, shapes
from ..flow import STEPS, euler_step, midpoint_step, uniform_times, walk
from .checking import Wrong, close, describe, exercise, tensor


def field(x, t, a=0.7, b=2.0):
    """Return a nonlinear velocity, on which different solvers disagree."""
    return a * torch.sin(2 * x) + b * t**2


class Probe:
    """The velocity :func:`field` with a parameter, for gradients; records its calls as (x, t) in ``asked``."""

    def __init__(self):
        self.a = torch.tensor(0.7, requires_grad=True)
        self.asked = []

    def __call__(self, x, t):
        x = torch.as_tensor(x)
        t = torch.as_tensor(t, dtype=torch.float32, device=x.device)
        self.asked.append((x.detach(), t.detach()))
        if t.ndim and t.shape != x.shape[: t.ndim]:
            raise Wrong(
                f"You called the velocity with times of shape {tuple(t.shape)} at points of shape {tuple(x.shape)}: "
                "give a number, or one time per point, shape (B,)."
            )
        return field(x, t.reshape(t.shape + (1,) * (x.ndim - t.ndim)).to(x), self.a.to(x))


def times_of(probe: Probe, points: int) -> torch.Tensor:
    """Return the times of a probe's calls, ``(calls, points)``."""
    return torch.stack([t.float().cpu().flatten().expand(points) for _, t in probe.asked])


def require_uniform(drawn: torch.Tensor, which: str) -> None:
    """Require times ``(calls, points)`` that look uniform in [0, 1] and differ between calls."""
    if len(drawn.unique(dim=0)) < len(drawn):
        raise Wrong(f"Your {which} are the same twice: draw them again in each call, without a fixed seed or grid.")
    mean, spread = drawn.mean().item(), drawn.std().item()
    if abs(mean - 0.5) > 0.05 or abs(spread - 12**-0.5) > 0.04:
        raise Wrong(
            f"Your {which} have mean {mean:.2f} and spread {spread:.2f}; uniform ones have 0.50 and 0.29. "
            "Draw them with torch.rand."
        )


def require_fresh_times(answer, x0: torch.Tensor, x1: torch.Tensor) -> None:
    """Require that a loss of pairs ``(N, D)`` evaluates the velocity at uniform times that differ from call to call."""
    probes = [Probe() for _ in range(40)]
    for each in probes:
        answer(each, x0, x1)
    require_uniform(torch.stack([times_of(each, len(x0))[0] for each in probes]), "times")


def require_gradient(value, probe: Probe) -> None:
    """Require that the gradient of ``value`` reaches the velocity's parameter."""
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        raise Wrong(
            "No gradient flows back to the velocity: your result is cut off from it. Is there a .detach(), .item(), "
            "torch.no_grad() or a conversion to numpy in between?"
        )
    (gradient,) = torch.autograd.grad(value.sum(), probe.a, allow_unused=True, retain_graph=True)
    if gradient is None or float(gradient.abs()) == 0:
        raise Wrong("The gradient that reaches the velocity is zero: is it detached somewhere?")


@exercise("2.1", "The flow-matching loss", difficulty=1, minutes=8)
def loss(answer):
    generator = torch.Generator().manual_seed(4)
    x0, x1 = torch.randn(16, 3, generator=generator), torch.randn(16, 3, generator=generator)
    probe = Probe()
    yield "a single number"
    value = answer(probe, x0, x1)
    mine = tensor(value, (), "the loss", "take the mean over points and dimensions")

    yield "the velocity is evaluated at random times between 0 and 1, one per point"
    if not probe.asked:
        raise Wrong("You never evaluated the velocity: call velocity(x_t, t).")
    x_t, t = probe.asked[0]
    if t.numel() == 1 or len(t.unique()) < 8:
        raise Wrong(
            "All 16 points got the same t. Draw one time *per point*, torch.rand(len(x0)), so that each batch covers "
            "all times from 0 to 1."
        )
    if t.min() < 0 or t.max() > 1:
        raise Wrong(f"Your times run from {t.min():.2g} to {t.max():.2g}: they lie between 0 and 1.")

    yield "on the straight line between partners (eq. 3)"
    line = torch.lerp(x0, x1, t.reshape(-1, 1))
    close(x_t, line, "x_t = (1 − t) x0 + t x1", {
        "Your line runs from x1 to x0: t = 0 must be at x0.": torch.lerp(x1, x0, t.reshape(-1, 1)),
        "You evaluated at x0. The velocity must be right along the whole path: evaluate at x_t.": x0,
    })  # fmt: skip

    yield "against the velocity of the straight line, x1 − x0"
    with torch.no_grad():
        u = field(line, t.reshape(-1, 1))
    close(mine, (u - (x1 - x0)).square().mean(), "the loss", {
        "Your target is x0 − x1: it points backwards. The velocity of the line from x0 to x1 is x1 − x0.":
            (u - (x0 - x1)).square().mean(),
        "Your target is x1 − x_t: that is the remaining displacement, not the velocity.":
            (u - (x1 - line)).square().mean(),
        "You sum over dimensions (or points). Take the mean over everything.": (u - (x1 - x0)).square().sum(-1).mean(),
        "You sum over points and dimensions. Take the mean over everything.": (u - (x1 - x0)).square().sum(),
        "You take the absolute difference: square it.": (u - (x1 - x0)).abs().mean(),
    })  # fmt: skip
    yield "the times are uniform, and redrawn in each call"
    require_fresh_times(answer, x0, x1)
    yield "the gradient flows"
    require_gradient(answer(probe, x0, x1), probe)


START = torch.tensor([[1.0, -2.0], [0.5, 3.0]])


@exercise("2.2", "An Euler step", difficulty=1, minutes=4)
def euler(answer):
    yield "a position shaped like x"
    tensor(answer(Probe(), START, 0.0, 0.5), START.shape, "the new position", "one row per point, as in x")
    yield "by hand: at speed 2, half a second takes 1.0 to 2.0"
    constant = lambda x, t: 2 * torch.ones_like(x)  # noqa: E731
    close(answer(constant, torch.ones(1, 1), 0.0, 0.5), [[2.0]], "the position", {
        "You moved by the whole velocity. A step from t to s lasts s − t.": [[3.0]],
        "You moved backwards: the step lasts s − t, not t − s.": [[0.0]],
    })  # fmt: skip
    yield "by hand: a step that starts at t = 0.25"
    close(answer(constant, torch.ones(1, 1), 0.25, 0.5), [[1.5]], "the position", {
        "You moved for the time s. The step lasts s − t (eq. 4).": [[2.0]],
    })  # fmt: skip
    yield "one evaluation, at the start"
    probe = Probe()
    mine = answer(probe, _untouched(answer), 0.25, 0.75)
    want = START + 0.5 * field(START, 0.25)
    close(mine, want, "the position", {
        "You evaluated the velocity at time s. Euler evaluates it where the step starts: at x, at time t.":
            START + 0.5 * field(START, 0.75),
        "This is the midpoint rule. Euler evaluates the velocity once (eq. 4).": _midpoint(START, 0.25, 0.75),
    })  # fmt: skip
    if len(probe.asked) != 1:
        raise Wrong(f"The right position, but you evaluated the velocity {len(probe.asked)} times: once is enough.")
    yield "the gradient flows"
    require_gradient(mine, probe)


def _untouched(answer) -> torch.Tensor:
    """Return START, after checking that the answer does not modify its input."""
    x = START.clone()
    answer.uncopied(field, x, 0.2, 0.8)
    if not torch.equal(x, START):
        raise Wrong("You changed x itself: operators such as += work in place. Make a new tensor: x + …")
    return START


def _midpoint(x, t, s):
    with torch.no_grad():
        return midpoint_step(Probe(), x, t, s)


@exercise("2.3", "A midpoint step", difficulty=2, minutes=8)
def midpoint(answer):
    yield "a position shaped like x"
    tensor(answer(Probe(), START, 0.0, 0.5), START.shape, "the new position", "one row per point, as in x")
    yield "by hand: speed 2t from t = 0 to 1 covers exactly 1"
    close(answer(lambda x, t: 2 * t * torch.ones_like(x), torch.zeros(1, 1), 0.0, 1.0), [[1.0]], "the position", {
        "Your step uses the velocity at t, where it is 0. The midpoint rule evaluates it at t + d/2 (paper, eq. 5).":
            [[0.0]],
        "Your step uses the velocity at the end of the step: evaluate it in the middle, at t + d/2 (eq. 5).": [[2.0]],
        "You took only half the step: evaluate in the middle, then step by the whole d.": [[0.5]],
    })  # fmt: skip
    yield "two evaluations: at the start and half a step on"
    probe, (t, s), u = Probe(), (0.2, 0.8), field
    d = s - t
    half = START + d / 2 * u(START, t)
    mine = answer(probe, _untouched(answer), t, s)
    close(mine, _midpoint(START, t, s), "the position", {
        "This is Euler's step. Take half of it, evaluate again *there*, then step from x (eq. 5).":
            START + d * u(START, t),
        "Your second evaluation is at the right position but at time t: it belongs to t + d/2 (paper, eq. 5).":
            START + d * u(half, t),
        "Your second evaluation is at the right time but at x: go half a step first (eq. 5).":
            START + d * u(START, t + d / 2),
        "You stepped from the halfway point. Evaluate there, but start the step at x.": half + d * u(half, t + d / 2),
        "You averaged the velocities at the start and the end of the step: that is Heun's method. Evaluate in the "
        "middle.":
            START + d / 2 * (u(START, t) + u(START + d * u(START, t), s)),
        "You took a whole step before the second evaluation: half is enough, the method is called midpoint.":
            START + d * u(START + d * u(START, t), t + d / 2),
    })  # fmt: skip
    if len(probe.asked) != 2:
        raise Wrong(f"The right position, but you evaluated the velocity {len(probe.asked)} times: twice is enough.")
    yield "halving the step quarters the error (order 2)"
    slope = order_of(lambda v, x, t, s: tensor(answer(v, x, t, s), x.shape, "the position"))
    if abs(slope - 2) > 0.1:
        raise Wrong(f"Measured order {slope:.2f}; the midpoint rule has 2.")
    yield "the gradient flows"
    require_gradient(mine, probe)


def spin(x, t):
    """Return the velocity of a quarter turn from t = 0 to 1, whose exact end is known."""
    return math.pi / 2 * torch.stack([-x[..., 1], x[..., 0]], -1)


def order_of(step, k: int = 32) -> float:
    """Measure the order of convergence: log₂ of the error's ratio when the number of steps doubles."""
    x0 = torch.tensor([[1.0, 0.0], [0.3, -2.0]], dtype=torch.float64)
    exact = torch.stack([-x0[:, 1], x0[:, 0]], -1)
    times = [uniform_times(n, dtype=torch.float64) for n in (k, 2 * k)]
    coarse, fine = ((walk(spin, x0, t, step) - exact).norm().item() for t in times)
    return math.log2(coarse / fine)


def _kutta(velocity, x, t, s):
    """Take a classical Runge–Kutta step of order 4."""
    d = s - t
    a = velocity(x, t)
    b = velocity(x + d / 2 * a, t + d / 2)
    c = velocity(x + d / 2 * b, t + d / 2)
    e = velocity(x + d * c, s)
    return x + d / 6 * (a + 2 * b + 2 * c + e)


def _thrice(velocity, x, t, s):
    """Take a step with three evaluations and order 2: the halfway point is computed twice."""
    d = s - t
    halfway = x + d / 2 * velocity(x, t)
    halfway = x + d / 2 * velocity(halfway, t + d / 2)
    return x + d * velocity(halfway, t + d / 2)


@exercise("2.4", "Measure the order", difficulty=2, minutes=12)
def order(answer):
    yield "a number for Euler's step"
    first = float(tensor(answer(euler_step), (), "the order"))
    if abs(first + 1) < 0.15:
        raise Wrong("−1: the slope of error against the number of *steps* is falling. The order is its size, +1.")
    yield "Euler has order 1"
    if abs(first - 1) > 0.15:
        raise Wrong(
            f"You found {first:.2f}. Double the number of steps; if the error is divided by 2, the order is 1; by 4, "
            "it is 2: order = log2(error at k / error at 2k)."
        )
    yield "midpoint has order 2"
    second = float(tensor(answer(midpoint_step), (), "the order"))
    if abs(second - 2) > 0.15:
        raise Wrong(
            f"You found {second:.2f}. Did you pass the `step` you were given on to the walk? With very many steps in "
            "float32 rounding hides the error: use float64 and k below a hundred."
        )
    yield "a step with three evaluations and order 2"
    third = float(tensor(answer(_thrice), (), "the order"))
    if abs(third - 2) > 0.15:
        raise Wrong(
            f"You found {third:.2f}. More evaluations do not always mean a higher order: measure, do not count."
        )
    yield "a step you have not seen has order 4"
    fourth = float(tensor(answer(_kutta), (), "the order"))
    if abs(fourth - 4) > 0.3:
        raise Wrong(f"You found {fourth:.2f} for a Runge–Kutta step of order 4. Use float64: its error is tiny.")


def average_velocity(x, t, sigma):
    """Return the exact minimizer of the flow-matching loss for the two beams of :func:`lft_edu.shapes.line`."""
    return -2 * torch.tanh(x * (1 - 2 * t) / sigma**2)


@exercise("2.5", "The average arrow, exactly", difficulty=3, minutes=20)
def average(answer):
    x = torch.linspace(-1.5, 1.5, 13, dtype=torch.float64)
    right = average_velocity
    yield "a velocity for each x"
    tensor(answer(x, 0.3, 0.5), x.shape, "the velocity", "one number for each x")
    yield "by hand: at t = 1/2, where the two beams meet, the directions cancel"
    close(answer(x, 0.5, 0.5), torch.zeros(13), "the average velocity")
    yield "by hand: far to the right at t = 0 all points go left, with velocity −2"
    far = torch.tensor([3.0], dtype=torch.float64)
    close(answer(far, 0.0, 0.5), [-2.0], "the average velocity", {
        "A point that starts at +1 goes to −1: the velocity there is −2, not +2.": [2.0],
        "The path from +1 to −1 is two units long.": [-1.0],
    }, tolerance=1e-3)  # fmt: skip
    yield "everywhere, at several times and widths"
    for t, sigma in ((0.0, 0.4), (0.2, 0.6), (0.6, 0.4), (0.9, 0.8)):
        close(answer(x, t, sigma), right(x, t, sigma), f"the average velocity at t = {t}, σ = {sigma}", {
            "Use σ², the variance: a Gaussian is exp(−(x − μ)² / 2σ²).": right(x, t, sigma**0.5),
            "You left out that the centers move: at time t they are at ±(1 − 2t).": right(x, 0.0, sigma),
            "A factor 2 in the exponent: the two squares differ by 4 x μ, halved by the 2 in 2σ².":
                -2 * torch.tanh(x * (1 - 2 * t) / (2 * sigma**2)),
        })  # fmt: skip


@exercise("2.6", "A walk that keeps every pair", difficulty=2, minutes=10)
def lucky(answer):
    yield "a solver and a number of steps"
    value = answer()
    if isinstance(value, (tuple, list)) and value and str(value[0]).lower() in set(STEPS) - {str(value[0])}:
        raise Wrong(f"Write the solver in lower case: {str(value[0]).lower()!r}.")
    if not isinstance(value, (tuple, list)) or len(value) != 2 or value[0] not in STEPS:
        raise Wrong(f"You returned {describe(value)}: return a solver and k, such as ('midpoint', 3).")
    solver, k = value
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise Wrong(f"k = {k!r}: give an integer number of steps, at least 1.")
    yield "keeps at least 95 of 100 pairs of two crossing beams"
    pairs = shapes.line(1000, torch.Generator().manual_seed(6))
    ends = plane.carry(lambda x, t: average_velocity(x, t, 0.15), pairs.x0, k, STEPS[solver])
    kept = plane.pairs_kept(ends, pairs).item()
    if kept < 0.95:
        hint = (
            "Some is chance: where the beams meet the velocity is nearly zero; points stop there, or continue by "
            "chance."
            if kept > 0.3
            else "The more exactly you follow the average arrow, the more exactly all points bounce."
        )
        raise Wrong(f"k = {k} with {solver} keeps {kept:.0%} of the pairs. {hint}")
