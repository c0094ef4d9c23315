"""Check of exercise 5.5: one KV-cache entry per velocity evaluation."""

from operator import index

import torch
from torch import Tensor

from ..flow import EVALUATIONS, STEPS, uniform_times, walk
from .checking import Wrong, close, describe, exercise, tensor


class Toy:
    """A model of attention layers only: head layers, a velocity, two tail layers, with a KV cache if ``keep``.

    ``calls`` records for each pass the velocity evaluations as (time, slot).
    """

    def __init__(self, keep: bool):
        self.keep, self.slots, self.calls = keep, {}, []

    def attend(self, x: Tensor, slot: int, seed: int) -> Tensor:
        """Apply causal attention to the given tokens and those cached in this slot."""
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (x @ torch.randn(6, 6, generator=generator, dtype=x.dtype) for _ in range(3))
        if self.keep:
            old_k, old_v = self.slots.get(slot, (k[:, :0], v[:, :0]))
            self.slots[slot] = k, v = torch.cat([old_k, k], 1), torch.cat([old_v, v], 1)
        allowed = torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).bool()
        scores = (q @ k.mT / 3).masked_fill(~allowed, -torch.inf)
        return torch.tanh(scores.softmax(-1) @ v)

    def velocity(self, x: Tensor, t: float, slot: int) -> Tensor:
        return (1 + 2 * t) * self.attend(x, slot, seed=99) + torch.cos(3 * t * x)

    def look(self, x, t, slot) -> Tensor:
        """Call :meth:`velocity` and record the call; this is passed to the learner."""
        if not isinstance(x, Tensor) or x.shape[-1:] != (6,) or x.ndim != 3:
            raise Wrong(f"You called velocity with {describe(x)}: it takes states, (B, T, D), a time and a slot.")
        try:
            t, slot = float(t), index(slot)
        except (TypeError, ValueError, RuntimeError):
            raise Wrong(
                f"You called velocity(x, t, slot) with t = {describe(t)}, slot = {describe(slot)}: give a number from "
                "0 to 1 as time and an integer as slot."
            ) from None
        self.calls[-1].append((t, slot))
        return self.velocity(x.double(), t, slot)

    def run(self, answer, pieces, first: int, solver: str, steps: int) -> Tensor:
        """Return the model's output for a text given in pieces."""
        ends = []
        for x in pieces:
            for slot in range(first):
                x = x + self.attend(x, slot, seed=slot)
            self.calls.append([])
            x, following = walked(answer(self.look, x, first, solver, steps), x.shape)
            for i in range(2):
                x = x + self.attend(x, following + i, seed=50 + i)
            ends.append(x)
        return torch.cat(ends, 1)


def walked(value, shape) -> tuple[Tensor, int]:
    """Return an answer to 5.5 as (state, next free slot), or explain what is wrong with it."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise Wrong(
            f"You returned {describe(value)}: return two, (x, slot): the state at t = 1, and the first slot that is "
            "free for the tail."
        )
    x, slot = value
    x = tensor(x, tuple(shape), "the state", "batch, tokens, width, as x")
    number = float(tensor(slot, (), "the next slot", "the first one that is free for the tail"))
    if number != round(number) or not 0 <= number < 1000:
        raise Wrong(f"Your next slot is {number:g}: give an integer, the first slot that is free for the tail.")
    return x, int(number)


def explain_slots(calls: list[list[tuple]], following: int, first: int, solver: str, steps: int) -> str:
    """Explain what is wrong with these slots; empty if nothing is."""
    count, asked = EVALUATIONS[solver] * steps, [slot for _, slot in calls[0]]
    right, last = [*range(first, first + count)], first + count
    said = f"Your {len(asked)} evaluations used the slots {', '.join(map(str, asked))}"
    if any([slot for _, slot in call] != asked for call in calls[1:]):
        return (
            f"{said}, but in a later pass {', '.join(str(slot) for _, slot in calls[1])}. The same evaluation must "
            "have the same slot in every pass, to find its earlier keys. Begin at first_slot each time you are called."
        )
    if count > 1 and len(set(asked)) == 1:
        return (
            f"All {count} evaluations share slot {asked[0]}. Each has different states and so different keys; in a "
            "shared slot each attends to the keys of the others. The i-th evaluation (i = 0, 1, …) belongs in slot "
            "first_slot + i."
        )
    if solver == "midpoint" and steps > 1 and asked[0::2] == asked[1::2]:
        return (
            f"{said}: one slot per *step*. The two evaluations of a midpoint step have different states, x and half a "
            "step on. They need a slot each."
        )
    if solver == "midpoint" and steps > 1 and len(set(asked)) == 2:
        return f"{said}: two slots for all steps. Each step has different states: 2k slots, not 2."
    if len(set(asked)) < len(asked):
        return f"{said}. Some are shared, and attend to each other's keys. Use one slot per evaluation."
    below = f"Slots 0 … {first - 1} belong to the head layers: begin at first_slot = {first}"
    if sorted(asked) != right:
        for message, start in {
            f"{below}.": 0,
            f"{below}, not at 1.": 1,
            f"Slot {first} stays empty: the first evaluation has first_slot = {first}.": first + 1,
            f"Slot {first - 1} belongs to a head layer: the first evaluation has first_slot = {first}.": first - 1,
        }.items():
            if asked == [*range(start, start + count)]:
                return f"{said}. {message}"
        return f"{said}. There are {count} evaluations: use the slots first_slot … {last - 1}, from {first} on."
    if following == last:
        return ""
    for message, slot in {
        f"You returned {following}, the number of evaluations. The next free is first_slot + {count} = {last}.": count,
        f"You returned {following}, the last slot that you used. The next *free* one is {last}.": last - 1,
        f"You returned {following}, first_slot: the tail would overwrite the operator's keys. The next free slot is "
        f"{last}.": first,
        f"You returned {following}, first_slot + k. A midpoint step uses two slots: {last}.": first + steps,
    }.items():
        if following == slot:
            return message
    return f"You returned {following} as the next free slot; you used {first} … {last - 1}, so it is {last}."


@exercise("5.5", "A cache entry for each evaluation", difficulty=2, minutes=12)
def slots(answer):
    text = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    cases = [(4, "midpoint", 3), (0, "euler", 4), (7, "midpoint", 1), (2, "euler", 1), (1, "midpoint", 2)]

    def run_uncached(first, solver, steps):
        """Run the answer without a cache: (model, end of the path, next free slot)."""
        toy, start = Toy(keep=False), text.clone()
        toy.calls.append([])
        end, following = walked(answer.uncopied(toy.look, start, first, solver, steps), text.shape)
        if not torch.equal(start, text):
            raise Wrong("You changed x itself: operators such as += work in place. Make a new tensor: x = x + …")
        return toy, end, following

    def compare_walk(first, solver, steps):
        toy, end, _ = run_uncached(first, solver, steps)
        u = lambda x, t: toy.velocity(x, float(t), 0)  # noqa: E731
        ends = {(s, k): walk(u, text, uniform_times(k).double(), STEPS[s]) for s in STEPS for k in {1, steps}}
        other = "euler" if solver == "midpoint" else "midpoint"
        name = {"euler": "Euler", "midpoint": "midpoint"}
        whole = text
        for i in range(steps):
            whole = STEPS[solver](lambda x, t, i=i: u(x, (i + t) / steps), whole, 0.0, 1.0)
        early = walk(u, text, uniform_times(steps).double()[:-1], STEPS[solver]) if steps > 1 else text
        constant = walk(lambda x, t: u(x, 0), text, uniform_times(steps).double(), STEPS[solver])
        close(end, ends[solver, steps], f"the end of the walk ({solver}, {steps} steps)", {
            f"These are {name[other]} steps; the solver is {solver!r}.": ends[other, steps],
            "You took one step, from 0 to 1, whatever `steps` says.": ends[solver, 1],
            "Each of your steps lasts 1. A step lasts 1 / steps.": whole,
            "You stop one step early: the walk ends at t = 1.": early,
            "You always evaluated at t = 0. The i-th step begins at t = i / steps.": constant,
            "You returned x unchanged.": text,
            "You returned the displacement, not the position: x at t = 1.": ends[solver, steps] - text,
        })  # fmt: skip

    def compare_slots(first, solver, steps):
        toy, _, following = run_uncached(first, solver, steps)
        if message := explain_slots(toy.calls, following, first, solver, steps):
            raise Wrong(f"{solver}, {steps} steps, first_slot = {first}. {message}")

    yield "a state and the next free slot"
    run_uncached(*cases[0])
    yield "the path itself, without a cache"
    for case in cases[:2]:
        compare_walk(*case)
    yield "token by token with a cache, the model gives the same states as for the whole text without one"
    for case in cases[:2]:
        plain, cached = Toy(keep=False), Toy(keep=True)
        whole = plain.run(answer, [text], *case)
        apart = (cached.run(answer, text.split(1, dim=1), *case) - whole).abs().max().item()
        if apart > 1e-6:
            _, _, following = run_uncached(*case)
            raise Wrong(
                f"A model of {case[0]} head layers, your walk ({case[1]}, {case[2]} steps) and two tail layers, run "
                f"token by token with a cache: its states differ by up to {apart:.2g} from those of the whole text at "
                f"once, without one.\n{explain_slots(cached.calls, following, *case)}".rstrip()
            )
    yield "one slot per evaluation, from first_slot on"
    for case in cases[:2]:
        compare_slots(*case)
    yield "other solvers, steps and heads"
    for case in cases[2:]:
        compare_walk(*case)
        compare_slots(*case)
