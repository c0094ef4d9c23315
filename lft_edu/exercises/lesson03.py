"""Checks of lesson 03: Flow Walking, a loss on the end of the path only."""

from functools import partial

import torch

from .. import plane, shapes
from ..couplings import Coupling
from ..flow import EVALUATIONS, STEPS, euler_step, uniform_times, walk
from ..objectives import flow_walking_loss, hybrid_loss
from .checking import Wrong, close, describe, exercise, tensor
from .lesson02 import START, Probe, require_gradient, require_uniform, spin, times_of


@exercise("3.1", "Random times", difficulty=1, minutes=6)
def times(answer):
    k, batch = 5, 64
    yield "a table of shape (batch, k + 1)"
    table = tensor(answer(k, batch), None, "the times")
    if tuple(table.shape) == (batch, k - 1):
        raise Wrong("Only the times in between: put 0 in front of each row and 1 at its end.")
    table = tensor(table, (batch, k + 1), "the times", "k steps have k + 1 ends, one row per point")
    yield "from 0 to 1"
    if (table[:, 0] != 0).any() or (table[:, -1] != 1).any():
        raise Wrong("Every row begins with 0 and ends with 1: paths start at x0 and end at t = 1.")
    yield "never backwards"
    if (table.diff(dim=1) < 0).any():
        raise Wrong("Some rows are not sorted: time would run backwards. Sort along the last dimension (dim=-1).")
    yield "each point has its own times"
    if len(table.unique(dim=0)) < batch:
        raise Wrong("Several points got the same times. Draw a whole table, torch.rand(batch, k - 1).")
    yield "uniform between 0 and 1, and redrawn in each call"
    require_uniform(torch.stack([tensor(answer(2, 64), (64, 3), "the times")[:, 1] for _ in range(20)]), "times")
    many = torch.cat([tensor(answer(k, batch), (batch, k + 1), "the times")[:, 1:-1].flatten() for _ in range(40)])
    if abs(many.mean() - 0.5) > 0.03 or abs(many.std() - 12**-0.5) > 0.03:
        raise Wrong(
            f"For k = 5 your times have mean {many.mean():.2f} and spread {many.std():.2f}; uniform ones have 0.50 and "
            "0.29. Draw with torch.rand and sort; no fixed grid, no cumulative sums."
        )
    yield "k = 1 is a single step"
    close(answer(1, 3), [[0.0, 1.0]] * 3, "the times for k = 1")


@exercise("3.2", "The walk", difficulty=2, minutes=10)
def walking(answer):
    grid = torch.tensor([0.0, 0.2, 0.7, 1.0])
    probe = Probe()
    yield "ends in a position shaped like x0"
    mine = answer(probe, START, grid)
    if tuple(getattr(mine, "shape", ())) == (len(grid), *START.shape):
        raise Wrong("You returned the whole path. Return where the walk ends.")
    tensor(mine, START.shape, "the end of the walk", "one row per point")

    yield "through the given times, by midpoint steps"

    def end(times, step=STEPS["midpoint"], x=START):
        with torch.no_grad():
            return walk(Probe(), x, times, step)

    close(mine, end(grid), "the end of the walk", {
        "These are Euler steps. Use the midpoint step of exercise 2.3 (eq. 5).": end(grid, euler_step),
        "You took equal steps. Use the times you were given.": end(uniform_times(3)),
        "You stopped one step early: K + 1 times make K steps.": end(grid[:-1]),
        "You took only the last step from x0: each step starts where the one before ended.": _last_step(grid),
        "You skipped the first step: start at times[0].": end(grid[1:]),
    })  # fmt: skip
    yield "each point has its own times"
    own = torch.tensor([[0.0, 0.1, 1.0], [0.0, 0.8, 1.0]])
    close(answer(Probe(), START, own), end(own), "the end of the walk", {
        "Every point used the first row: step i goes from times[:, i] to times[:, i + 1].": end(own[0]),
        "Every point used the last row: step i goes from times[:, i] to times[:, i + 1].": end(own[1]),
    })  # fmt: skip
    yield "many small steps of a quarter turn end where they should"
    fine = uniform_times(100, dtype=torch.float64)
    close(answer(spin, START.double(), fine), torch.stack([-START[:, 1], START[:, 0]], -1), "the end", tolerance=1e-3)
    yield "the gradient flows through every step"
    require_gradient(mine, probe)
    again = Probe()
    (full,) = torch.autograd.grad(walk(again, START, grid).sum(), again.a)
    (yours,) = torch.autograd.grad(mine.sum(), probe.a)
    close(yours, full, "the gradient", tolerance=1e-3)


def _last_step(grid):
    with torch.no_grad():
        return STEPS["midpoint"](Probe(), START, grid[-2], grid[-1])


@exercise("3.3", "The Flow Walking loss", difficulty=2, minutes=10)
def loss(answer):
    generator = torch.Generator().manual_seed(7)
    x0, x1 = torch.randn(16, 3, generator=generator), torch.randn(16, 3, generator=generator)
    yield "a single number"
    probe = Probe()
    value = answer(probe, x0, x1, 3)
    tensor(value, (), "the loss", "take the mean over points and dimensions")

    yield "2k evaluations: k midpoint steps, each from where the last one ended"
    if len(probe.asked) == 1:
        raise Wrong(
            "You evaluated the velocity once: that is flow matching. Here the points move step by step (eq. 8)."
        )
    if len(probe.asked) != 6:
        raise Wrong(f"You evaluated the velocity {len(probe.asked)} times; three midpoint steps evaluate it 6 times.")
    if (probe.asked[0][0] - x0).abs().max() > 1e-5:
        raise Wrong("The walk must start at x0.")
    second, t = probe.asked[2]
    straight = torch.lerp(x0, x1, t.reshape(-1, 1).expand(16, 1))
    if (second - straight).abs().max() < 1e-4:
        raise Wrong(
            "You put the point back on the straight line before each step. Continue from where the last step ended."
        )

    yield "the end against x1, where the times do not matter (constant velocity)"
    still = lambda x, t: 0.5 * torch.ones_like(x)  # noqa: E731
    end = x0 + 0.5
    value, again = (float(tensor(answer(still, x0, x1, 3), (), "the loss")) for _ in range(2))
    if abs(value - again) > 1e-5:
        raise Wrong(
            f"At constant velocity the end does not depend on the times, yet your loss was {value:.4f} and then "
            f"{again:.4f}. Do you average over intermediate states? Only the end counts (eq. 8)."
        )
    close(value, (end - x1).square().mean(), "the loss", {
        "You compare with x0: the walk must end at x1.": (end - x0).square().mean(),
        "You sum over dimensions (or points). Take the mean over everything.": (end - x1).square().sum(-1).mean(),
        "You sum over points and dimensions. Take the mean over everything.": (end - x1).square().sum(),
        "You measure the distance: square it.": (end - x1).norm(dim=-1).mean(),
    })  # fmt: skip

    yield "random times, different for each point"
    seen = probe.asked[2][1]
    if seen.numel() == 1 or len(seen.unique()) < 8:
        raise Wrong("All points changed step at the same time: draw times for each of them (exercise 3.1).")
    again = Probe()
    answer(again, x0, x1, 3)
    if torch.equal(again.asked[2][1], seen):
        raise Wrong(
            "The times were the same twice. Training on a fixed grid is right on that grid only: draw them again in "
            "each call."
        )
    require_uniform(torch.stack([_inner_times(answer, x0, x1) for _ in range(40)]), "times in between")
    yield "k steps for any k"
    for k in (1, 2, 5):
        probe = Probe()
        answer(probe, x0, x1, k)
        if len(probe.asked) != 2 * k:
            raise Wrong(f"For k = {k} you evaluated the velocity {len(probe.asked)} times, not {2 * k}. Is k used?")
    yield "midpoint steps, and the gradient flows through all of them"
    probe, again = Probe(), Probe()
    value = answer(probe, x0, x1, 3)
    asked = times_of(probe, 16)  # now and halfway, now and halfway, …
    grid = torch.cat([asked[0::2], (2 * asked[1::2] - asked[0::2])[-1:]]).T  # the times of this very walk
    if bool((grid.diff(dim=1) < -1e-5).any()):
        raise Wrong("Some points go back in time: sort the times of each (exercise 3.1).")
    true = (walk(again, x0, grid.clamp(0, 1).cummax(1).values) - x1).square().mean()
    close(value, true.detach(), "the loss of a walk by midpoint steps (eq. 5)", tolerance=1e-3)
    require_gradient(value, probe)
    yours, right = (torch.autograd.grad(v, p.a)[0].item() for v, p in ((value, probe), (true, again)))
    if abs(yours - right) > 1e-3 * max(1.0, abs(right)):
        raise Wrong(
            f"The loss is right, its gradient is not: {yours:.4f}, it should be {right:.4f}. Something is detached "
            "between the steps; the gradient must go through the whole walk."
        )


def _inner_times(answer, x0, x1) -> torch.Tensor:
    """Return the time between the two steps of a path with k = 2, for each point."""
    probe = Probe()
    answer(probe, x0, x1, 2)
    if len(probe.asked) != 4:
        raise Wrong(f"For k = 2 you evaluated the velocity {len(probe.asked)} times, not 4. Is k used?")
    return times_of(probe, len(x0))[2]


@exercise("3.4", "What a walk costs", difficulty=1, minutes=5)
def cost(answer):
    yield "a whole number"
    value = tensor(answer(24, (6, 18), "midpoint", 3), (), "the number of evaluations")
    if float(value) != round(float(value)):
        raise Wrong(f"You returned {float(value):g}: evaluations are counted in whole numbers.")
    yield "by hand: 24 layers, 6–18 replaced by one Euler step"
    close(answer(24, (6, 18), "euler", 1), 13, "the number of evaluations", {
        "Count the whole model: the layers that stay are evaluated, too.": 1,
        "The span 6–18 is half open: layers 6 … 17 go, twelve of them.": 12,
    })  # fmt: skip
    yield "by hand: 24 layers, 6–12 replaced by three midpoint steps"
    close(answer(24, (6, 12), "midpoint", 3), 24, "the number of evaluations", {
        "A midpoint step needs two evaluations of the velocity.": 21,
    })  # fmt: skip
    yield "any model, span, solver and k"
    for layers, span, solver, k in (
        (24, (6, 18), "midpoint", 3),
        (12, (0, 12), "euler", 5),
        (32, (8, 9), "midpoint", 2),
    ):
        right = layers - (span[1] - span[0]) + k * EVALUATIONS[solver]
        close(answer(layers, span, solver, k), right, f"the evaluations for {layers} layers, span {span}, {k} {solver}")


@exercise("3.5", "Jumped, not walked", difficulty=3, minutes=20)
def break_it(answer):
    yield "a coupling with groups"
    pairs = answer()
    if not isinstance(pairs, Coupling):
        raise Wrong(f"You returned {describe(pairs)}: return lft.couplings.Coupling(x0, x1, group).")
    if len(pairs) < 200 or not 2 <= len(pairs.group.unique()) <= 20 or pairs.x0.shape[1] > 2:
        raise Wrong(
            "Give at least 200 pairs in the plane or on a line, in 2 to 20 groups that should stay together; yours are "
            f"{len(pairs)} pairs in {len(pairs.group.unique())} groups and {pairs.x0.shape[1]} dimensions."
        )
    trained = plane.train(pairs, partial(flow_walking_loss, k=2))
    few, many = (trained.kept(pairs, k).item() for k in (2, 200))
    yield "trained with k = 2, two steps take 90 % of the points to their own group"
    if few < 0.9:
        raise Wrong(
            f"Only {few:.0%} are kept in two steps: this is too hard even with the number of steps of training."
        )
    yield "and two hundred steps lose a quarter"
    if many > 0.75:
        raise Wrong(
            f"Two hundred steps still keep {many:.0%}: here the network finds a detour. Where is there none, or one "
            "that is hard to find? Think of a line; of three clusters; of interleaved moons."
        )


@exercise("3.6", "Straight and right", difficulty=3, minutes=20)
def both(answer):
    yield "a positive α"
    alpha = float(tensor(answer(), (), "α"))
    if alpha <= 0:
        raise Wrong(f"α = {alpha:g} is Flow Walking alone; the hybrid needs a positive one.")
    pairs, test = (shapes.cycle(n, torch.Generator().manual_seed(seed)) for n, seed in ((2000, 0), (500, 9)))
    trained = plane.train(pairs, partial(hybrid_loss, alpha=alpha, k=3))
    path = plane.carry(trained.velocity, test.x0, 100, return_path=True)
    kept = plane.pairs_kept(path[-1], test).item()
    way = (path.diff(dim=0).norm(dim=-1).sum(0) / (test.x1 - test.x0).norm(dim=-1)).mean().item()
    yield "right: 90 % of three clusters in a cycle reach their own group in 100 steps (flow matching: almost none)"
    if kept < 0.9:
        raise Wrong(f"α = {alpha:g} keeps {kept:.0%}. The larger α, the closer to flow matching: make it smaller.")
    yield "straight: paths at most 5 % longer than the straight line (those of Flow Walking are longer)"
    if way > 1.05:
        raise Wrong(f"With α = {alpha:g} the path is {way:.2f} times the straight line. A larger α pulls it straight.")
