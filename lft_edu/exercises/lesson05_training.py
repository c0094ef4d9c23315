"""Check of exercise 5.7: one training step of an operator."""

import copy
import itertools

import torch
from torch import Tensor, nn

from .checking import NOTHING, Unfilled, Wrong, close, describe, exercise

RATE, WIDTH, TOKENS = 0.05, 4, 5


class Head(nn.Module):
    """The teacher's layers before the span: token ids → states. The first token's state is ten times as large."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, WIDTH)

    def forward(self, ids):
        if not isinstance(ids, Tensor) or ids.is_floating_point():
            raise Wrong(f"You gave `head` {describe(ids)}: it takes the token ids, (B, T).")
        return self.embedding(ids) * _first_token(9.0)


class Span(nn.Module):
    """The layers that the operator replaces: states → states."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + torch.tanh(self.layer(_states(x, "span"))) * _first_token(4.0)


class Attending(nn.Module):
    """A velocity in which each token reads the mean of all up to it."""

    def __init__(self):
        super().__init__()
        self.own, self.past, self.time = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x, t):
        t = torch.as_tensor(t, dtype=x.dtype) if isinstance(x, Tensor) else t
        past = _states(x, "velocity").cumsum(1) / torch.arange(1, TOKENS + 1)[:, None]
        return torch.tanh(self.own(x) + self.past(past) + self.time(t.reshape(-1, 1, 1).expand(-1, 1, WIDTH)))


def _first_token(more: float) -> Tensor:
    """Weights of positions, (T, 1): 1 + ``more`` for the first, 1 for the others."""
    return 1 + more * (torch.arange(TOKENS) == 0).double()[:, None]


def _states(x, name: str) -> Tensor:
    if isinstance(x, Tensor) and x.ndim == 3 and x.shape[1] == TOKENS - 1:
        raise Wrong(
            f"You gave `{name}` states without position 0. The other tokens attend to it, so it must walk along: leave "
            "it out of the loss only."
        )
    if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[1:] != (TOKENS, WIDTH):
        raise Wrong(f"You gave `{name}` {describe(x)}: it takes states, (B, {TOKENS}, {WIDTH}).")
    return x


class Watched(torch.optim.SGD):
    """Plain gradient descent on everything it finds, that notes when it is called."""

    def __init__(self, parameters, events: list):
        super().__init__(parameters, lr=RATE)
        self.events = events

    def zero_grad(self, set_to_none: bool = True):
        self.events.append("zero_grad")
        super().zero_grad(set_to_none)

    def step(self, closure=None):
        self.events.append("step")
        return super().step(closure)


class World:
    """A teacher, an operator and an optimizer that was given the weights of both; ``events`` is what was called."""

    def __init__(self, seed: int = 0):
        self.events: list[str] = []
        self.head, self.span, self.velocity = Head().double(), Span().double(), Attending().double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        self.velocity.own.weight.register_hook(lambda gradient: self.events.append("backward"))
        self.optimizer = Watched(self.parameters(), self.events)

    def parameters(self) -> list[nn.Parameter]:
        return [p for part in (self.head, self.span, self.velocity) for p in part.parameters()]

    def teacher(self) -> Tensor:
        return _flat(self.head, self.span)

    def operator(self) -> Tensor:
        return _flat(self.velocity)

    def assign(self, weights: Tensor) -> None:
        """Set the operator's weights, given as one vector."""
        torch.nn.utils.vector_to_parameters(weights, self.velocity.parameters())

    def expect(self, ids: Tensor, times: list[float], **changes) -> tuple[float, Tensor]:
        """Return the loss, and the operator's weights after one step; ``changes`` as in :func:`loss_of`."""
        velocity = copy.deepcopy(self.velocity)
        with torch.no_grad():
            x0 = self.head(ids)
            x1 = self.span(x0)
        loss = loss_of(velocity, x0, x1, times, **changes)
        gradients = torch.autograd.grad(loss, list(velocity.parameters()), allow_unused=True)
        with torch.no_grad():
            for p, gradient in zip(velocity.parameters(), gradients, strict=True):
                if gradient is not None:
                    p -= RATE * gradient
        return loss.item(), _flat(velocity)


def _flat(*parts: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for part in parts for p in part.parameters()])


def loss_of(
    velocity, x0, x1, times, euler=False, cut=False, path=False, first=False, target=None, reduce=torch.mean
) -> Tensor:
    """Return the Flow Walking loss of all tokens but the first.

    Args:
        euler: take Euler steps. ``cut``: no gradient from one step to the one before.
        path: compare the state after each step, not the last alone. ``first``: count position 0, too.
        target, reduce: what is compared with instead of x1, and how squared differences become a number.
    """
    x, states = x0, []
    for t, s in itertools.pairwise(times):
        x = x.detach() if cut else x
        u = velocity(x, t)
        x = x + (s - t) * (u if euler else velocity(x + (s - t) / 2 * u, (t + s) / 2))
        states.append(x)
    kept = slice(None if first else 1, None)
    apart = torch.stack(states if path else states[-1:]) - (x1 if target is None else target)
    return reduce(apart[:, :, kept].square())


@exercise("5.7", "Train it yourself", difficulty=2, minutes=15)
def train(answer):
    grids = [0.0, 0.3, 0.7, 1.0], [0.0, 0.55, 0.6, 1.0]
    texts = torch.tensor([[1, 4, 4, 2, 7], [3, 0, 8, 5, 5]]), torch.tensor([[6, 2, 1, 8, 3], [5, 5, 4, 0, 7]])

    def step(world, i=0):
        """Take the learner's step on text i; return what it returned."""
        before, enabled = world.operator(), torch.is_grad_enabled()
        try:
            with torch.enable_grad():
                value = answer.or_none(
                    world.head, world.span, world.velocity, world.optimizer, texts[i].clone(), list(grids[i])
                )
                left = torch.is_grad_enabled()
        except Wrong as wrong:
            raise _about_gradients(wrong) from None
        finally:
            torch.set_grad_enabled(enabled)
        if not left:
            raise Wrong("You disabled gradients globally. Use `with torch.no_grad():` around the teacher's part.")
        if value is None and torch.equal(before, world.operator()):
            raise Unfilled(NOTHING)
        return value

    yield "the teacher stays as it is"
    world, untouched = World(), World()
    value = step(world)
    if not torch.equal(world.teacher(), untouched.teacher()):
        raise Wrong(
            "You trained the teacher, too: its weights have moved. The optimizer holds them (as one made of "
            "student.parameters() does), and moves whatever has a gradient. Compute x0 and x1 under torch.no_grad()."
        )
    if any(p.grad is not None for part in (world.head, world.span) for p in part.parameters()):
        raise Wrong(
            "The gradient ran into the teacher: time and memory for nothing, and the next optimizer step would move "
            "it. Compute x0 and x1 under torch.no_grad()."
        )
    yield "the loss is returned, one number"
    if value is None:
        raise Wrong("You took the step and returned nothing: return the loss, loss.item().")
    right, weights = untouched.expect(texts[0], grids[0])
    close(value, right, "the loss", _wrong_losses(untouched, texts[0], grids[0]), tolerance=1e-6)
    yield "zero_grad, backward, step, in this order"
    step(world, 1)
    if message := explain_order(world.events):
        twice = World()
        for i in range(2):
            twice.assign(twice.expect(texts[i], grids[i])[1])
        if not torch.allclose(world.operator(), twice.operator()):
            raise Wrong(message)
    yield "the operator's weights after one step"
    world = World()
    step(world)
    close(world.operator(), weights, "the operator's weights", {
        "The loss is right, its gradient is not: the walk is detached between its steps, so only the last one learns. "
        "The gradient must go through all of them.": untouched.expect(texts[0], grids[0], cut=True)[1],
        "Right but for the sign: you climb.": 2 * untouched.operator() - weights,
    }, tolerance=1e-6)  # fmt: skip
    yield "other models, texts and times"
    for seed in (1, 2):
        world, untouched = World(seed), World(seed)
        right, weights = untouched.expect(texts[1], grids[1])
        close(step(world, 1), right, "the loss", _wrong_losses(untouched, texts[1], grids[1]), tolerance=1e-6)
        close(world.operator(), weights, "the operator's weights", tolerance=1e-6)


def _wrong_losses(world: World, ids: Tensor, times: list[float]) -> dict[str, Tensor]:
    """Return what common mistakes give instead of the loss: message → value."""
    of = lambda times=times, **changes: torch.tensor(world.expect(ids, times, **changes)[0])  # noqa: E731
    x0 = world.head(ids).detach()
    share = (TOKENS - 1) / TOKENS
    equal = torch.linspace(0, 1, len(times)).tolist()
    return {
        "Position 0 is in the loss. Where it is an attention sink, its state is far larger than others (lesson 04), "
        "and its error may be most of the sum. Leave it out: [:, 1:].": of(first=True),
        "You left position 0 out of the sum, and divide by all tokens still: take the mean over [:, 1:].":
            share * of(),
        "You compare every state of the path with x1. Only the end counts (eq. 8): where the path runs is left to the "
        "operator.": of(path=True),
        "You compare every state of the path with x1, and position 0 is in the loss.": of(path=True, first=True),
        "You compare with x0: the walk must end at x1, what `span` makes of x0.": of(target=x0),
        "These are Euler steps: take midpoint steps, as in lesson 03.": of(euler=True),
        "You took one step from 0 to 1: walk through the given times.": of([0.0, 1.0]),
        "You took equal steps: walk through the given times.": of(equal),
        "You stop one step early: the walk ends at t = 1.": of(times[:-1]),
        "You sum: take the mean over everything.": of(reduce=torch.sum),
        "You sum over dimensions: take the mean over everything.": WIDTH * of(),
        "You measure the distance, not its square.": of(reduce=lambda e: e.sum(-1).sqrt().mean()),
    }  # fmt: skip


def explain_order(events: list[str]) -> str:
    """Explain what is wrong with the calls of two training steps; empty if nothing is."""
    said = " → ".join(events) or "nothing"
    here = f"Two calls of your function did: {said}. "
    if "backward" not in events:
        return f"{here}Nothing computed the gradient: loss.backward()."
    if "step" not in events:
        return f"{here}No optimizer.step(): the weights do not move."
    if events.count("backward") != 2 or events.count("step") != 2:
        return f"{here}Each call takes one step: one backward, one optimizer.step()."
    first = [name for name in events if name != "zero_grad"]
    if first[0] == "step":
        return f"{here}The step came before backward: there was no gradient yet, or that of the batch before."
    for backward, after in itertools.pairwise(i for i, name in enumerate(events) if name != "zero_grad"):
        between = "zero_grad" in events[backward:after]
        if events[backward] == "backward" and between:
            return f"{here}You cleared the gradient between backward and step: nothing was left to step along."
        if events[backward] == "step" and not between:
            return (
                f"{here}Without optimizer.zero_grad(), backward *adds* to the gradients of all batches before. Clear "
                "them in each step."
            )
    return ""


def _about_gradients(wrong: Wrong) -> Wrong:
    """Say what PyTorch's message about a missing graph means here."""
    text = str(wrong)
    if "does not require grad" in text:
        return Wrong(
            f"{text}\nThe walk ran without gradients, so nothing leads from the loss to the weights. Only the "
            "teacher's part belongs under torch.no_grad()."
        )
    if "modified by an inplace operation" in text:
        return Wrong(
            f"{text}\nThe weights moved after the loss was computed and before its gradient was: optimizer.step() "
            "comes last."
        )
    if "object has no attribute 'backward'" in text:
        return Wrong(f"{text}\nCall backward on the loss itself, a tensor; make a number of it afterwards.")
    return wrong
