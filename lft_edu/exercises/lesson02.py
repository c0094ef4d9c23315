"""Checks of lesson 02: flow matching and solvers."""

import math

import torch

from .. import plane, shapes
from ..flow import STEPS, euler_step, midpoint_step, uniform_times, walk
from .checking import Wrong, clones, close, describe, exercise, tensor


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
    if not probe.asked:
        raise Wrong("This time you did not evaluate the velocity at all.")
    for _, t in probe.asked:
        if t.numel() not in (1, points):
            raise Wrong(f"You called the velocity with {describe(t)} as times: there are {points} points, a time each.")
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


def require_fresh_times(answer, x0: torch.Tensor, *given: torch.Tensor) -> None:
    """Require that a loss of pairs ``(N, D)`` or ``(B, T, D)`` evaluates the velocity at uniform times that differ from
    call to call."""
    probes = [Probe() for _ in range(40)]
    for each in probes:
        answer(each, x0, *given)
    require_uniform(torch.stack([times_of(each, x0[..., 0].numel())[0] for each in probes]), "times")


def require_gradient(value, probe: Probe) -> None:
    """Require that the gradient of ``value`` reaches the velocity's parameter."""
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        raise Wrong(
            "No gradient flows back to the velocity: your result is cut off from it. Is there a .detach(), .item(), "
            "torch.no_grad() or a conversion to numpy in between?"
        )
    try:
        (gradient,) = torch.autograd.grad(value.sum(), probe.a, allow_unused=True, retain_graph=True)
    except RuntimeError as error:
        raise Wrong(f"The gradient cannot be computed: was a tensor that it needs changed in place?\n{error}") from None
    if gradient is None or float(gradient.abs()) == 0:
        raise Wrong("The gradient that reaches the velocity is zero: is it detached somewhere?")


def texts(seed: int = 4, lengths: tuple[int, ...] = (6, 2, 4, 1)) -> tuple[torch.Tensor, ...]:
    """Draw pairs of texts (B, T, 3) of different lengths, with garbage in the padding, and which tokens are real."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    x0, x1 = (torch.randn(*real.shape, 3, generator=generator) for _ in range(2))
    x1[~real] *= 100
    return x0, x1, real


@exercise("2.1", "Tokens and padding", difficulty=2, minutes=12)
def loss(answer):
    x0, x1, real = texts()
    probe = Probe()
    yield "a single number"
    tensor(answer(probe, x0, x1, real), (), "the loss", "take the mean over tokens and dimensions")

    yield "the velocity is evaluated at a time between 0 and 1 for each token"
    if not probe.asked:
        raise Wrong("You never evaluated the velocity: call velocity(x_t, t).")
    x_t, t = probe.asked[0]
    if x_t.shape != x0.shape:
        raise Wrong(
            f"You gave the velocity {describe(x_t)}. Give it whole texts, (B, T, D): in a transformer tokens attend to "
            "each other, and padding has a mask there. Select real tokens after the evaluation."
        )
    table = t.reshape(t.shape + (1,) * (2 - t.ndim)).expand(real.shape)
    if len(table.unique()) == 1:
        raise Wrong("All tokens got the same t. Draw one per token, torch.rand(x0.shape[:2]).")
    if len(table.unique(dim=1).T) == 1:
        raise Wrong("One time per text: all its tokens got the same t. Draw one per token, torch.rand(x0.shape[:2]).")
    if len(table.unique(dim=0)) == 1:
        raise Wrong("All texts got the same times. Draw one per token, torch.rand(x0.shape[:2]).")
    if t.min() < 0 or t.max() > 1:
        raise Wrong(f"Your times run from {t.min():.2g} to {t.max():.2g}: they lie between 0 and 1.")

    yield "on the straight line between partners (eq. 3)"
    line, back = torch.lerp(x0, x1, table[..., None]), torch.lerp(x1, x0, table[..., None])
    close(x_t[real], line[real], "x_t = (1 − t) x0 + t x1", {
        "Your line runs from x1 to x0: t = 0 must be at x0.": back[real],
        "You evaluated at x0. The velocity must be right along the whole path: evaluate at x_t.": x0[real],
    })  # fmt: skip
    for seed, lengths in ((4, (6, 2, 4, 1)), (5, (3, 5)), (6, (4,))):
        yield f"the mean over the real tokens alone, texts of {lengths} tokens"
        probe, given = Probe(), texts(seed, lengths)
        value = answer(probe, *given)
        _compare_loss(value, *given, times_of(probe, given[2].numel())[0].view(given[2].shape))
    yield "the times are uniform, and redrawn in each call"
    require_fresh_times(answer, x0, x1, real)
    yield "the gradient flows"
    require_gradient(answer(probe := Probe(), x0, x1, real), probe)


def _compare_loss(value, x0, x1, real, t) -> None:
    """Compare an answer to 2.1 with the loss at these times, (B, T)."""
    line = torch.lerp(x0, x1, t[..., None])
    with torch.no_grad():
        u = field(line, t[..., None])
    error = (u - (x1 - x0)).square()
    mean = lambda target: (u - target).square()[real].mean()  # noqa: E731
    each = [row[mask].mean() for row, mask in zip(error, real, strict=True)]
    close(value, error[real].mean(), "the loss", {
        "Padding is in the mean: there is nothing to learn there. Select the real tokens, [real].": error.mean(),
        "You set the error of padding to 0, and then divide by all tokens. Divide by the number of the real ones.":
            (error * real[..., None]).mean(),
        "This is the mean of the texts' means: a token of a short text weighs more than one of a long text. Take one "
        "mean over all real tokens.": torch.stack(each).mean(),
        "You kept the padding and left out the tokens: `real` is True where a token is real.": error[~real].mean(),
        "Your target is x0 − x1: it points backwards. The velocity of the line from x0 to x1 is x1 − x0.":
            mean(x0 - x1),
        "Your target is x1 − x_t: that is the remaining displacement, not the velocity.": mean(x1 - line),
        "You sum over dimensions (or tokens). Take the mean over everything.": error[real].sum(-1).mean(),
        "You sum over tokens and dimensions. Take the mean over everything.": error[real].sum(),
        "You take the absolute difference: square it.": error[real].sqrt().mean(),
    })  # fmt: skip


START = torch.tensor([[1.0, -2.0], [0.5, 3.0]])


def _untouched(answer, *table) -> torch.Tensor:
    """Return START, after checking that the answer does not modify its input."""
    x = START.clone()
    answer.uncopied(field, x, 0.2, 0.8, *clones(table))
    if not torch.equal(x, START):
        raise Wrong("You changed x itself: operators such as += work in place. Make a new tensor: x + …")
    return START


@exercise("2.2", "Heun's step", difficulty=1, minutes=8)
def heun(answer):
    yield "a position shaped like x"
    tensor(answer(Probe(), START, 0.0, 0.5), START.shape, "the new position", "one row per point, as in x")
    yield "by hand: speed 2t from t = 0 to 1, the mean of 0 and 2, covers exactly 1"
    close(answer(lambda x, t: 2 * t * torch.ones_like(x), torch.zeros(1, 1), 0.0, 1.0), [[1.0]], "the position", {
        "Your step uses the velocity at t alone, where it is 0: that is Euler's. Average it with the one at the end.":
            [[0.0]],
        "You moved by the sum of both velocities, or by the last one alone: take their mean.": [[2.0]],
        "You took only half the step.": [[0.5]],
        "You moved backwards: the step lasts s − t, not t − s.": [[-1.0]],
    })  # fmt: skip
    yield "two evaluations: at the start, and at the end of an Euler step"
    probe, (t, s), u = Probe(), (0.2, 0.8), field
    d, first = s - t, field(START, t)
    end, half = START + d * first, START + d / 2 * first
    mine = answer(probe, _untouched(answer), t, s)
    close(mine, START + d / 2 * (first + u(end, s)), "the position", {
        "This is Euler's step. Evaluate again at its end, and move by the mean of both velocities.": end,
        "This is the midpoint step: it evaluates half a step on, and moves by that velocity alone. Heun's evaluates at "
        "the end of a whole Euler step, and averages.": START + d * u(half, t + d / 2),
        "Your second evaluation is at the right place but at time t: it belongs to s.":
            START + d / 2 * (first + u(end, t)),
        "Your second evaluation is at the right time but at x: take the Euler step first.":
            START + d / 2 * (first + u(START, s)),
        "Your second evaluation is in the middle of the step. Heun's is at its end.":
            START + d / 2 * (first + u(half, t + d / 2)),
        "You moved by the velocity at the end alone: average both.": START + d * u(end, s),
        "You moved by the sum of both velocities: take their mean.": START + d * (first + u(end, s)),
        "You start the step at the end of the Euler step. Evaluate there, but start at x.":
            end + d / 2 * (first + u(end, s)),
    })  # fmt: skip
    if len(probe.asked) != 2:
        raise Wrong(f"The right position, but you evaluated the velocity {len(probe.asked)} times: twice is enough.")
    yield "halving the step quarters the error (order 2)"
    slope = order_of(lambda v, x, t, s: tensor(answer(v, x, t, s), x.shape, "the position"))
    if abs(slope - 2) > 0.1:
        raise Wrong(f"Measured order {slope:.2f}; Heun's method has 2.")
    yield "the gradient flows"
    require_gradient(mine, probe)


# Runge–Kutta methods: a, one row for each evaluation; b, the weights; c, the times as fractions of the step.
TABLES = {
    "Euler": ([[]], [1.0], [0.0]),
    "midpoint": ([[], [1 / 2]], [0.0, 1.0], [0.0, 1 / 2]),
    "Ralston": ([[], [1 / 2], [0.0, 3 / 4]], [2 / 9, 1 / 3, 4 / 9], [0.0, 1 / 2, 3 / 4]),
    "Kutta": ([[], [1 / 2], [-1.0, 2.0]], [1 / 6, 2 / 3, 1 / 6], [0.0, 1 / 2, 1.0]),
    "classical": ([[], [1 / 2], [0.0, 1 / 2], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], [0.0, 1 / 2, 1 / 2, 1.0]),
}  # fmt: skip


def runge_kutta(velocity, x, t, s, a, b, c, slip: str = ""):
    """Take one step of the method (a, b, c); ``slip`` names a mistake to make."""
    d, slopes, place = s - t, [], x
    for row, when in zip(a, c, strict=True):
        before = place if slip == "chained" else x
        length = 1.0 if slip == "no d" else d
        pairs = list(zip(row, slopes, strict=True))[-1 if slip == "last slope" else 0 :]
        place = x if slip == "at x" else before + length * sum((w * u for w, u in pairs), torch.zeros_like(x))
        at = {"at t": t, "c alone": t + when, "c s": s * when, "at s": s}.get(slip, t + when * d)
        slopes.append(velocity(place, at))
    start = place if slip == "from the last place" else x
    weights = {"equal": [1 / len(b)] * len(b), "last": [0.0] * (len(b) - 1) + [1.0], "sum": [1.0] * len(b)}.get(slip, b)
    move = sum((w * u for w, u in zip(weights, slopes, strict=True)), torch.zeros_like(x))
    return start + (1.0 if slip == "whole" else d) * move


SLIPS = {
    "at t": "All your evaluations are at time t. The i-th one is at t + c[i] d.",
    "at s": "All your evaluations are at time s. The i-th one is at t + c[i] d.",
    "c alone": "The fractions c are of the step: the i-th evaluation is at t + c[i] d, not at t + c[i].",
    "c s": "The fractions c are of the step, from t on: t + c[i] d, not c[i] s.",
    "at x": "All your evaluations are at x: the rows of a say where to look, x + d (a[i][0] u_0 + a[i][1] u_1 + …).",
    "no d": "The d is missing where you look: x + d (a[i][0] u_0 + …).",
    "chained": "Each place to look is reached from x, not from the place before.",
    "last slope": "You used the last velocity only: a[i] weighs *all* velocities before the i-th.",
    "equal": "You moved by the plain mean of the velocities: weigh them with b.",
    "sum": "You moved by the plain sum of the velocities: weigh them with b.",
    "last": "You moved by the last velocity alone: weigh all of them with b.",
    "from the last place": "You start the step at the last place where you looked. Start it at x.",
    "whole": "You moved by the whole mean velocity: the step lasts d = s − t.",
}


@exercise("2.3", "Any Runge–Kutta step", difficulty=2, minutes=15)
def any_step(answer):
    yield "a position shaped like x"
    tensor(
        answer(Probe(), START, 0.0, 0.5, *TABLES["Euler"]), START.shape, "the position", "one row per point, as in x"
    )
    yield "Euler's table, by hand: at speed 2, from t = 0.25 to 0.5 is 1.0 to 1.5"
    constant = lambda x, t: 2 * torch.ones_like(x)  # noqa: E731
    close(answer(constant, torch.ones(1, 1), 0.25, 0.5, *TABLES["Euler"]), [[1.5]], "the position", {
        SLIPS["whole"]: [[3.0]], "You moved for the time s. The step lasts d = s − t.": [[2.0]],
        "You moved backwards: d = s − t, not t − s.": [[0.5]],
    })  # fmt: skip
    for name in ("Ralston", "Kutta", "midpoint", "classical"):
        table = TABLES[name]
        yield f"the table of {len(table[1])} evaluations named {name}"
        probe, (t, s) = Probe(), (0.2, 0.7)
        mine = answer(probe, _untouched(answer, *table), t, s, *table)
        wrong = {message: runge_kutta(field, START, t, s, *table, slip=slip) for slip, message in SLIPS.items()}
        close(mine, runge_kutta(field, START, t, s, *table), "the position", wrong)
        if len(probe.asked) != len(table[1]):
            raise Wrong(
                f"The right position, but you evaluated the velocity {len(probe.asked)} times; this table has "
                f"{len(table[1])} rows. Keep each velocity when you have it."
            )
        require_gradient(mine, probe)
    yield "with the classical table, halving the step divides the error by 16 (order 4)"
    slope = order_of(lambda v, x, t, s: tensor(answer(v, x, t, s, *TABLES["classical"]), x.shape, "the position"), 8)
    if abs(slope - 4) > 0.2:
        raise Wrong(f"Measured order {slope:.2f}; the classical table has 4. Do you round to float32 in between?")


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
    return runge_kutta(velocity, x, t, s, *TABLES["classical"])


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
    yield "a step with four evaluations has order 4"
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
