"""Checks of lesson 03: Flow Walking, a loss on the end of the path only."""

from functools import partial

import torch

from .. import plane, shapes
from ..couplings import Coupling
from ..flow import EVALUATIONS, euler_step, uniform_times, walk
from ..objectives import flow_walking_loss, hybrid_loss
from .checking import Unfilled, Wrong, close, describe, exercise, tensor, truth
from .lesson02 import Probe, require_gradient, require_uniform, times_of


@exercise("3.1", "Times with a smallest step", difficulty=2, minutes=10)
def times(answer):
    k, batch, least = 5, 64, 0.1

    def table_of(k, batch, least):
        return tensor(
            answer(k, batch, least), (batch, k + 1), "the times", "k steps have k + 1 ends, one row per point"
        )

    yield "a table of shape (batch, k + 1)"
    table = tensor(answer(k, batch, least), None, "the times")
    if tuple(table.shape) == (batch, k - 1):
        raise Wrong("Only the times in between: put 0 in front of each row and 1 at its end.")
    if tuple(table.shape) == (batch, k):
        raise Wrong("k numbers in each row: are these the lengths of the steps? The times are their sums, from 0 on.")
    table = table_of(k, batch, least)
    yield "from 0 to 1"
    if table[:, 0].abs().max() > 0 or (table[:, -1] - 1).abs().max() > 1e-5:
        raise Wrong(
            f"Every row begins with 0 and ends with 1; yours end between {table[:, -1].min():.3g} and "
            f"{table[:, -1].max():.3g}. (Steps that are made longer must take it from others.)"
        )
    yield "each step lasts at least `least`"
    steps = table.diff(dim=1)
    if (steps < 0).any():
        raise Wrong("Some rows are not sorted: time would run backwards. Sort along the last dimension (dim=-1).")
    if steps.min() < least - 1e-5:
        raise Wrong(
            f"Your shortest step is {steps.min():.3g}; none may be below {least:g}. Set least aside for each of the k "
            "steps first, and cut only the rest, 1 − k·least, by chance."
        )
    yield "each point has its own times"
    if len(table.unique(dim=0)) < batch:
        raise Wrong("Several points got the same times. Draw a whole table, torch.rand(batch, k - 1).")
    yield "all such times are equally likely, and redrawn in each call"
    for k, least in ((2, 0.2), (5, 0.1), (5, 0.0), (4, 0.24)):
        draws = [table_of(k, batch, least)[:, 1:-1] for _ in range(40)]
        if len(torch.stack(draws).unique(dim=0)) < len(draws):
            raise Wrong("Your times are the same twice: draw them again in each call, without a fixed seed or grid.")
        _require_spacings(torch.cat(draws), k, least)
    yield "k = 1 is a single step"
    close(answer(1, 3, 0.5), [[0.0, 1.0]] * 3, "the times for k = 1")


def _require_spacings(inner, k: int, least: float) -> None:
    """Require inner times (N, k − 1) with the mean and the spread of times that are cut uniformly."""
    i = torch.arange(1, k)
    free = 1 - k * least  # what is cut by chance: the i-th cut of the unit interval has mean i/k
    spread = free * (i * (k - i) / (k + 1)).sqrt() / k
    if (
        float((inner.mean(0) - i / k).abs().max()) < 0.12 * free
        and float((inner.std(0) / spread - 1).abs().max()) < 0.1
    ):
        return
    raise Wrong(
        f"For k = {k} and least = {least:g} your times in between have the means "
        f"{', '.join(f'{x:.2f}' for x in inner.mean(0))} and spreads {', '.join(f'{x:.3f}' for x in inner.std(0))}; "
        f"they should be {', '.join(f'{x:.2f}' for x in i / k)} and {', '.join(f'{x:.3f}' for x in spread)}. Draw the "
        "cuts of the rest uniformly and sort them. (Steps made of uniform numbers divided by their sum are too even.)"
    )


WALKS = {  # mistakes that a test of a walk has to notice: what it does → how
    "takes Euler steps": {"step": euler_step},
    "stops one step early": {"through": lambda times: times[..., :-1]},
    "takes equal steps, whatever times it is given": {"through": lambda times: uniform_times(times.shape[-1] - 1)},
    "uses the first row of the times for all points": {"through": lambda times: times[0] if times.ndim == 2 else times},
    "evaluates the velocity at t where it should at t + d/2": {"late": False},
    "starts each step at x0": {"onward": False},
    "returns a result that is cut off from x0 and from the velocity: no gradient": {"after": torch.Tensor.detach},
    "detaches between its steps: the right end, and the gradient of the last step only": {
        "before": torch.Tensor.detach
    },
}


def slipping_walk(
    step=None, through=lambda times: times, late=True, onward=True, before=lambda x: x, after=lambda x: x
):
    """Make a walk by midpoint steps with one mistake, or a right one without arguments.

    Args:
        step: another step. ``late``: evaluate at t + d/2. ``onward``: start a step where the one before ended.
        through: changes the times. ``before``, ``after``: what is done to x before each step, and to the end.
    """

    def midpoint(velocity, x, t, s):
        d = (s - t)[..., None] if isinstance(s - t, torch.Tensor) and (s - t).ndim else s - t
        halfway = x + d / 2 * velocity(x, t)
        return x + d * velocity(halfway, (t + s) / 2 if late else t)

    def walk_(velocity, x0, times):
        x, times = x0, through(torch.as_tensor(times))
        for i in range(times.shape[-1] - 1):
            x = (step or midpoint)(velocity, before(x) if onward else x0, times[..., i], times[..., i + 1])
        return after(x)

    return walk_


RIGHT = slipping_walk(after=lambda x: x * (1 + 3e-7))


@exercise("3.2", "A test for a walk", difficulty=2, minutes=15)
def walking(answer):
    yield "True or False"
    truth(answer(walk), "is this walk right?")
    yield "a right walk passes, however it is written"
    for name, right in {"the library's": walk, "one that rounds a little differently": RIGHT}.items():
        if not truth(answer(right), "is this walk right?"):
            raise Wrong(
                f"Your test rejects a right walk ({name}). Do you compare floats with ==? Use torch.allclose. Do you "
                "expect a number that the midpoint rule does not give? It is exact only for simple fields."
            )
    for name, slip in WALKS.items():
        yield f"notices a walk that {name}"
        try:
            passes = truth(answer(slipping_walk(**slip)), "is this walk right?")
        except Unfilled:
            raise
        except Wrong:
            continue  # a test that raises has noticed, too
        if passes:
            raise Wrong(f"Your test lets a walk pass that {name}. {UNSEEN[name.split()[0]]}")


UNSEEN = {
    "takes": "Choose a velocity that changes with x and t, on which this gives another end, and times that are neither "
    "equal nor few.",
    "stops": "Choose a velocity that still moves the points in the last step, and compare the whole end.",
    "uses": "Give it a table of times, (B, K + 1), whose rows differ.",
    "evaluates": "Choose a velocity that depends on t.",
    "starts": "Take more than one step, and a velocity that is not zero in the first.",
    "returns": "Compare not only the end: ask for its gradient, too.",
    "detaches": "Its end is right; compare its gradient with that of a right walk, torch.autograd.grad(end.sum(), x0).",
}


@exercise("3.3", "There and back", difficulty=2, minutes=15)
def loss(answer):
    generator = torch.Generator().manual_seed(7)
    x0, x1 = torch.randn(16, 3, generator=generator), torch.randn(16, 3, generator=generator)

    def walked(k):
        """Call the answer; return its value and its probe, which was asked 4k times."""
        probe = Probe()
        value = answer(probe, x0, x1, k)
        if len(probe.asked) != 4 * k:
            raise Wrong(f"For k = {k} you evaluated the velocity {len(probe.asked)} times, not {4 * k}. Is k used?")
        return value, probe

    yield "a single number"
    probe = Probe()
    tensor(answer(probe, x0, x1, 3), (), "the loss", "take the mean over points and dimensions")

    yield "4k evaluations: k midpoint steps from x0 at t = 0, then k from x1 at t = 1"
    if len(probe.asked) in (3, 6):
        raise Wrong(
            f"You evaluated the velocity {len(probe.asked)} times: that is one direction only, or Euler steps. "
            "There *and* back, three midpoint steps each, evaluate it 12 times."
        )
    if len(probe.asked) != 12:
        raise Wrong(
            f"You evaluated the velocity {len(probe.asked)} times; three midpoint steps there and three back evaluate "
            "it 12 times."
        )
    if (probe.asked[0][0] - x0).abs().max() > 1e-5 or probe.asked[0][1].abs().max() > 0:
        raise Wrong("The first walk must start at x0, at t = 0.")
    place, t = probe.asked[6]
    if (place - x1).abs().max() > 1e-5:
        raise Wrong(
            "The walk back must start at x1, the partner. (From where the first walk ended it would lead back to x0 "
            "whatever the end was.)"
        )
    if (t - 1).abs().max() > 1e-5:
        raise Wrong("The walk back starts at t = 1: it is walked against time, through the times from 1 down to 0.")

    yield "by hand, at the constant velocity 0.5: x0 + 0.5 against x1, and x1 − 0.5 against x0"
    still = lambda x, t: 0.5 * torch.ones_like(x)  # noqa: E731
    value, again = (float(tensor(answer(still, x0, x1, 3), (), "the loss")) for _ in range(2))
    if abs(value - again) > 1e-5:
        raise Wrong(
            f"At constant velocity the ends do not depend on the times, yet your loss was {value:.4f} and then "
            f"{again:.4f}. Do you average over intermediate states? Only the two ends count."
        )
    there, onward = (x0 + 0.5 - x1).square().mean(), (x1 + 0.5 - x0).square().mean()
    close(value, 2 * there, "the loss", {
        "On the walk back you move *along* the velocity: steps from 1 to 0 have a negative length s − t.":
            there + onward,
        "This is the mean of both ways: add them.": there,
        "You sum over dimensions (or points). Take the mean over everything.":
            2 * (x0 + 0.5 - x1).square().sum(-1).mean(),
        "You measure the distance: square it.": 2 * (x0 + 0.5 - x1).norm(dim=-1).mean(),
    })  # fmt: skip

    yield "random times, different for each point, and k steps for any k"
    for k in (3, 1, 2, 5):
        _, again = walked(k)
        for way, (_, seen) in {"there": again.asked[2], "back": again.asked[2 * k + 2]}.items() if k == 3 else ():
            if len(seen.unique()) < 8:
                raise Wrong(f"On the walk {way} all points change step at the same time: draw times for each point.")
    drawn = torch.stack([times_of(walked(2)[1], 16)[[2, 6]] for _ in range(40)])
    for column in range(2):
        require_uniform(drawn[:, column], "times in between")
    yield "midpoint steps both ways, and the gradient flows through all of them"
    (value, probe), again = walked(3), Probe()
    asked = times_of(probe, 16)  # now and halfway, now and halfway, …
    grids = []
    for way in (asked[:6], asked[6:]):
        grids.append(torch.cat([way[0::2], (2 * way[1::2] - way[0::2])[-1:]]).T)  # the times of this very walk
    if bool((grids[0].diff(dim=1) < -1e-5).any()):
        raise Wrong("On the walk there some points go back in time: sort the times of each.")
    if bool((grids[1].diff(dim=1) > 1e-5).any()):
        raise Wrong("On the walk back some times rise: flip the sorted times of each point, 1 first.")
    true = sum(
        (slipping_walk()(again, start, grid) - end).square().mean()
        for grid, start, end in zip(grids, (x0, x1), (x1, x0), strict=True)
    )
    close(value, true.detach(), "the loss of two walks by midpoint steps (eq. 5)", tolerance=1e-3)
    require_gradient(value, probe)
    yours, right = (torch.autograd.grad(v, p.a)[0].item() for v, p in ((value, probe), (true, again)))
    if abs(yours - right) > 1e-3 * max(1.0, abs(right)):
        raise Wrong(
            f"The loss is right, its gradient is not: {yours:.4f}, it should be {right:.4f}. Something is detached "
            "between the steps; the gradient must go through both walks."
        )


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
