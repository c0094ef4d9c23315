"""Lesson 05: every typical mistake gets the message meant for it. (Solutions, stubs, garbage: test_exercises.py.)"""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from test_exercises import solutions
from torch.nn.functional import layer_norm
from transformers import DynamicCache

import lft_edu as lft
from lft_edu.exercises import check, lesson05, lesson05_assembly, lesson05_generation
from lft_edu.flow import EVALUATIONS, STEPS, euler_step, midpoint_step, uniform_times, walk
from lft_edu.latents import span_latents


# --- 5.1 ----------------------------------------------------------------------------------------------------------
def clock(t, scale=1000.0, base=10_000.0, of=64, start=0, count=64, order=None):
    angles = scale * t[:, None] * base ** (-(torch.arange(count) + start) / of)
    parts = angles.cos(), angles.sin()
    return torch.cat(parts, -1) if order is None else order(*parts)


def angles_alone(t):
    angles = 1000 * t[:, None] * 10_000 ** (-torch.arange(64) / 64)
    return torch.cat([angles, angles], -1)


def logarithm(log):
    return lambda t: clock(t, base=math.exp(log(10_000)))


def alternate(a, b):
    return torch.stack([a, b], -1).flatten(-2)


# --- 5.2 ----------------------------------------------------------------------------------------------------------
def u(x, knobs, attend, mlp, norm1, norm2, see=lambda z, g, b: (1 + g) * z + b, order=range(6)):
    g1, b1, a1, g2, b2, a2 = knobs[list(order)]
    return a1 * attend(see(norm1(x), g1, b1)) + a2 * mlp(see(norm2(x), g2, b2))


def knobs_read(*order):
    return functools.partial(u, order=order)


def seen(see):
    return functools.partial(u, see=see)


def before_the_norm(x, knobs, attend, mlp, norm1, norm2):
    g1, b1, a1, g2, b2, a2 = knobs
    return a1 * attend(norm1((1 + g1) * x + b1)) + a2 * mlp(norm2((1 + g2) * x + b2))


def alpha_inside(x, knobs, attend, mlp, norm1, norm2):
    g1, b1, a1, g2, b2, a2 = knobs
    return attend(a1 * ((1 + g1) * norm1(x) + b1)) + mlp(a2 * ((1 + g2) * norm2(x) + b2))


def one_plus_alpha(x, knobs, *parts):
    return u(x, knobs + torch.tensor([0.0, 0, 1, 0, 0, 1])[:, None], *parts)


def no_alpha(x, knobs, *parts):
    return u(x, knobs.index_fill(0, torch.tensor([2, 5]), 1.0), *parts)


def sequential(x, knobs, attend, mlp, norm1, norm2):
    g1, b1, a1, g2, b2, a2 = knobs
    attended = a1 * attend((1 + g1) * norm1(x) + b1)
    return attended + a2 * mlp((1 + g2) * norm2(x + attended) + b2)


def in_line(x, knobs, attend, mlp, norm1, norm2):
    g1, b1, a1, g2, b2, a2 = knobs
    return a2 * mlp((1 + g2) * norm2(a1 * attend((1 + g1) * norm1(x) + b1)) + b2)


def attention_alone(x, knobs, attend, mlp, *norms):
    return u(x, knobs, attend, lambda x: 0 * x, *norms)


def mlp_alone(x, knobs, attend, mlp, *norms):
    return u(x, knobs, lambda x: 0 * x, mlp, *norms)


def asks_twice(x, knobs, attend, *rest):
    attend(x)
    return u(x, knobs, attend, *rest)


def adds_in_place(x, knobs, *parts):
    x += u(x, knobs, *parts)
    return x


def own_norm(x, knobs, attend, mlp, norm1, norm2):
    """Norms without what they have learned."""
    plain = lambda x: layer_norm(x, x.shape[-1:])  # noqa: E731
    return u(x, knobs, attend, mlp, plain, plain)


# --- 5.3 ----------------------------------------------------------------------------------------------------------
def parts_run(pick):
    """What runs is what ``pick(all layer numbers, m, n)`` says."""

    def model(x, layers, span, operator, norm, head):
        for name in pick([*range(len(layers))], *span):
            x = (layers[name] if isinstance(name, int) else {"o": operator, "n": norm, "h": head}[name])(x)
        return x

    return model


def run_of(head=lambda a, m, n: a[:m], middle=("o",), tail=lambda a, m, n: a[n:], end=("n", "h")):
    return parts_run(lambda a, m, n: [*head(a, m, n), *middle, *tail(a, m, n), *end])


def after_head(use):
    """Right parts, but the tail reads what ``use(x, head's output, operator)`` gives."""

    def model(x, layers, span, operator, norm, head):
        before = x
        for layer in layers[: span[0]]:
            before = layer(before)
        y = use(x, before, operator)
        for layer in layers[span[1] :]:
            y = layer(y)
        return head(norm(y))

    return model


right_splice = run_of()


def deletes(x, layers, span, *rest):
    m, n = span
    model = right_splice(x, layers, span, *rest)
    del layers[m:n]
    return model


def only_middle(x, layers, span, *rest):
    """Right for spans inside the model: a negative slice goes wrong where the tail is empty."""
    tail = lambda a, m, n: a[-(len(a) - n) :]  # noqa: E731
    return run_of(tail=tail)(x, layers, span, *rest)


# --- 5.4 ----------------------------------------------------------------------------------------------------------
def cost(weights=None, evaluations=None, cache=None):
    """A budget that is right but for what is given: functions of layers that stay and go, D, looks a step, and k."""

    def budget(layers, width, span, solver, steps):
        gone, looks = span[1] - span[0], EVALUATIONS[solver]
        right = lesson05_assembly.budget(layers, width, span, solver, steps)
        mine = [
            f(layers - gone, gone, width, looks, steps) if f else r
            for f, r in zip((weights, evaluations, cache), right, strict=True)
        ]
        return tuple(mine)

    return budget


def layer(D):
    return 12 * D**2


def hands(D):
    return 128 * D + 6 * D**2


def right_budget(*case):
    return lesson05_assembly.budget(*case)


# --- 5.5 ----------------------------------------------------------------------------------------------------------
def slotted(
    number, following=None, when=lambda i, half, k: (i + half / 2) / k, d=lambda k: 1 / k, steps=None, as_=None
):
    """A walk whose look ``half`` (0, 1) of step i has slot ``number(i, half, j)``, j the looks before it."""

    def answer(look, x, first, solver, k):
        j, k, solver = 0, steps or k, as_ or solver
        for i in range(k):
            v = look(x, when(i, 0, k), number(first, i, 0, j))
            j += 1
            if solver == "midpoint":
                v = look(x + v * d(k) / 2, when(i, 1, k), number(first, i, 1, j))
                j += 1
            x = x + v * d(k)
        return x, (first + j if following is None else following(first, j, k))

    return answer


right_slots = slotted(lambda first, i, half, j: first + j)
ahead = functools.partial(slotted, lambda first, i, half, j: first + j)


def counter():
    """One counter for all passes."""
    used = []

    def answer(look, x, first, solver, k):
        def number(first, i, half, j):
            used.append(1)
            return first + len(used) - 1

        return slotted(number, following=lambda first, j, k: first + j)(look, x, first, solver, k)

    return answer


def backwards(look, x, first, solver, k):
    """Slots from the last to the first: each look has its own, always the same."""
    last = first + k * EVALUATIONS[solver] - 1
    return slotted(lambda first, i, half, j: last - j)(look, x, first, solver, k)


def walks_in_place(look, x, first, solver, k):
    end, following = right_slots(look, x, first, solver, k)
    return x.copy_(end), following


def by_library(look, x, first, solver, k):
    """Library walk, slots from a counter."""
    used = iter(range(first, 1000))
    return walk(lambda x, t: look(x, t, next(used)), x, uniform_times(k).double(), STEPS[solver]), next(used)


# --- 5.6 ----------------------------------------------------------------------------------------------------------
def loop(
    feed=lambda text, new: new,
    choose=lambda logits: logits[:, -1:].argmax(-1),
    keep=True,
    stop=lambda new, eos, text: new.item() == eos,
    more=lambda text, new, past: {},
    n_of=lambda n: n,
):
    @torch.no_grad()
    def generate(model, input_ids, n, eos):
        text, new, cache = input_ids, input_ids, None
        for i in range(n_of(n)):
            given = feed(text, new) if i else input_ids
            past = cache.get_seq_length() if cache is not None else 0
            out = model(input_ids=given, past_key_values=cache, use_cache=keep, **more(text, given, past))
            cache = out.past_key_values if keep else None
            new = choose(out.logits)
            text = torch.cat([text, new], 1)
            if stop(new, eos, text):
                break
        return text

    return generate


right_loop = loop()


def then(change):
    """The right text, changed: ``change(text, prompt length, eos)``."""
    return lambda model, ids, n, eos: change(right_loop(model, ids, n, eos), ids.shape[1], eos)


def forgets_cache(model, ids, n, eos):
    text, new = ids, ids
    for _ in range(n):
        new = model(input_ids=new).logits[:, -1:].argmax(-1)
        text = torch.cat([text, new], 1)
    return text


def last_token_first(model, ids, n, eos):
    text, new, cache = ids, ids[:, -1:], None
    for _ in range(n):
        out = model(input_ids=new, past_key_values=cache, use_cache=True)
        cache, new = out.past_key_values, out.logits[:, -1:].argmax(-1)
        text = torch.cat([text, new], 1)
    return text


def random_draw(logits):
    return torch.multinomial(logits[:, -1].softmax(-1), 1)


def one_by_one(model, ids, n, eos):
    cache = DynamicCache(config=model.config.text_config)
    for token in ids.split(1, 1):
        out = model(input_ids=token, past_key_values=cache, use_cache=True)
    text = ids
    for i in range(n):
        new = out.logits[:, -1:].argmax(-1)
        text = torch.cat([text, new], 1)
        if new.item() == eos:
            break
        if i < n - 1:
            out = model(input_ids=new, past_key_values=cache, use_cache=True)
    return text


def stale(model, ids, n, eos):
    """Feeds the token before the last one."""
    text, cache, given = ids, None, ids
    for _ in range(n):
        out = model(input_ids=given, past_key_values=cache, use_cache=True)
        cache, given = out.past_key_values, text[:, -1:]
        text = torch.cat([text, out.logits[:, -1:].argmax(-1)], 1)
    return text


def cut_afterwards(model, ids, n, eos):
    text = loop(stop=lambda *a: False)(model, ids, n, eos)
    new = text[0, ids.shape[1] :].tolist()
    return text[:, : ids.shape[1] + new.index(eos) + 1] if eos in new else text


def fill(text, T, eos, n=12):
    return torch.cat([text, torch.full((1, n - (text.shape[1] - T)), eos)], 1)


def leaves(do):
    def generate(model, ids, n, eos):
        text = right_loop(model, ids, n, eos)
        do(model)
        return text

    return generate


def appends_in_place(model, ids, n, eos):
    text = right_loop(model, ids, n, eos)
    ids[0, 0] = 1
    return text


def positions(of):
    return lambda text, new, past: {"position_ids": of(new, past)}


def no_stop(new, eos, text):
    return False


# --- 5.7 ----------------------------------------------------------------------------------------------------------
def stepped(
    loss=lambda path, x0, x1: (path[-1] - x1)[:, 1:].square().mean(),
    order=("zero_grad", "backward", "step"),
    frozen=True,
    graph=True,
    through=lambda times: times,
    returned=lambda value: value.item(),
    step=midpoint_step,
    cut=lambda x: x,
    given=lambda x: x,
):
    """A training step, with one thing changed: the loss of a path, the order of calls, what has a gradient."""

    def answer(head, span, velocity, optimizer, ids, times):
        with torch.set_grad_enabled(not frozen):
            x0 = given(head(ids))
            x1 = span(x0)
        path = [x0]
        with torch.set_grad_enabled(graph):
            for t, s in itertools.pairwise(through(times)):
                path.append(step(velocity, cut(path[-1]), t, s))
        value = loss(path, x0, x1)
        calls = {"zero_grad": optimizer.zero_grad, "backward": value.backward, "step": optimizer.step}
        for name in order:
            calls[name]()
        return returned(value)

    return answer


def along_the_path(first):
    return lambda path, x0, x1: (torch.stack(path[1:]) - x1)[:, :, first:].square().mean()


def of_the_end(f):
    return lambda path, x0, x1: f((path[-1] - x1)[:, 1:])


def climbs(head, span, velocity, optimizer, ids, times):
    return -stepped(lambda *a: -of_the_end(lambda e: e.square().mean())(*a))(
        head, span, velocity, optimizer, ids, times
    )


def number_too_early(*parts):
    return stepped(loss=lambda path, x0, x1: (path[-1] - x1)[:, 1:].square().mean().item())(*parts)


def steps_first(head, span, velocity, optimizer, *rest):
    optimizer.step()
    return stepped(order=("zero_grad", "backward"))(head, span, velocity, optimizer, *rest)


def detaches(head, span, velocity, optimizer, ids, times):
    """No torch.no_grad(): the teacher's states are detached."""
    x0 = head(ids).detach()
    x1 = span(x0).detach()
    loss = (walk(velocity, x0, times) - x1)[:, 1:].square().mean()
    velocity.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


WRONG = [
    ("5.1", functools.partial(clock, scale=1.0), "cosine 0.970"),
    ("5.1", lambda t: clock(t, order=lambda c, s: torch.cat([s, c], -1)), "begin with the sines"),
    ("5.1", lambda t: clock(t, order=alternate), "torch.cat, not stack"),
    ("5.1", lambda t: clock(t, order=lambda c, s: alternate(s, c)), "alternate, and begin with a sine"),
    ("5.1", lambda t: clock(t, order=lambda c, s: torch.cat([c.flip(-1), s.flip(-1)], -1)), "lowest; yours rise"),
    ("5.1", lambda t: clock(t, order=lambda c, s: torch.cat([c, c], -1)), "cosines twice"),
    ("5.1", lambda t: clock(t, order=lambda c, s: torch.cat([s, s], -1)), "sines twice"),
    ("5.1", lambda t: clock(t, order=lambda c, s: c), "64 *frequencies*"),
    ("5.1", lambda t: clock(t, count=128, of=128), "256 features"),
    ("5.1", lambda t: clock(t, order=lambda c, s: torch.stack([c, s], -1)), "stack made a new axis"),
    ("5.1", lambda t: clock(t).T, "one time per *row*"),
    ("5.1", lambda t: clock(t)[0], "features of one time"),
    ("5.1", lambda t: clock(t, order=lambda c, s: torch.cat([c, s])), "Join along the features"),
    ("5.1", functools.partial(clock, base=1e-4), "with a minus"),
    ("5.1", functools.partial(clock, of=63), "divided by 63"),
    ("5.1", functools.partial(clock, start=1), "from 1 to 64"),
    ("5.1", functools.partial(clock, of=128), "divided i by 128"),
    ("5.1", functools.partial(clock, of=32), "−2i/64"),
    ("5.1", logarithm(math.log10), "yours is log10"),
    ("5.1", logarithm(math.log2), "yours is log2"),
    ("5.1", functools.partial(clock, base=math.e), "left out the 10000"),
    ("5.1", functools.partial(clock, base=1000.0), "took 1000 for both"),
    ("5.1", functools.partial(clock, scale=10_000.0), "took 10000 for both"),
    ("5.1", functools.partial(clock, scale=10_000.0, base=1000.0), "exchanged them"),
    ("5.1", functools.partial(clock, scale=2000 * math.pi), "2π as well"),
    ("5.1", functools.partial(clock, scale=2 * math.pi), "2π instead of 1000"),
    ("5.1", functools.partial(clock, scale=1000 * math.pi / 180), "degrees"),
    ("5.1", lambda t: clock((1000 * t).round() / 1000), "rounded the scaled times"),
    ("5.1", lambda t: clock((1000 * t).long() / 1000), "cut the scaled times"),
    ("5.1", lambda t: clock(t.bfloat16().float()), "bfloat16"),
    ("5.1", angles_alone, "These are the angles"),
    ("5.1", lambda t: clock(t).square(), "Largest difference"),
    ("5.1", lambda t: t, "must have shape (3, 128)"),
    ("5.1", lambda t: clock(torch.tensor([0, 1, 0.4567])), "features of 50 times"),
    ("5.2", lambda x, k, *p: x + u(x, k, *p), "You added x"),
    ("5.2", lambda x, k, *p: u(x, k, *p) - x, "subtracted x"),
    ("5.2", seen(lambda z, g, b: g * z + b), "γ without the 1 +"),
    ("5.2", seen(lambda z, g, b: (1 + g) * (z + b)), "shift before you scale"),
    ("5.2", seen(lambda z, g, b: (1 + g) * z - b), "subtract β"),
    ("5.2", seen(lambda z, g, b: (1 + g) * z), "left out β"),
    ("5.2", seen(lambda z, g, b: z + b), "left out γ"),
    ("5.2", seen(lambda z, g, b: (1 + g) * z + 1 + b), "shift with 1 + β"),
    ("5.2", before_the_norm, "before the norm"),
    ("5.2", lambda x, k, a, m, n1, n2: u(x, k, a, m, lambda x: x, lambda x: x), "left out the norms"),
    ("5.2", no_alpha, "left out the α's"),
    ("5.2", alpha_inside, "α on the inputs"),
    ("5.2", one_plus_alpha, "Only γ has"),
    ("5.2", lambda x, k, a, m, n1, n2: u(x, k, a, m, n2, n1), "norms are swapped"),
    ("5.2", lambda x, k, a, m, n1, n2: u(x, k, a, m, n1, n1), "norm1 for both"),
    ("5.2", lambda x, k, a, m, n1, n2: u(x, k, a, m, n2, n2), "norm2 for both"),
    ("5.2", lambda x, k, a, m, n1, n2: u(x, k, m, a, n1, n2), "Attention and MLP are swapped"),
    ("5.2", own_norm, "Largest difference"),
    ("5.2", knobs_read(3, 4, 5, 0, 1, 2), "first three for the MLP"),
    ("5.2", knobs_read(1, 0, 2, 4, 3, 5), "β for γ"),
    ("5.2", knobs_read(0, 2, 4, 1, 3, 5), "read γ1, γ2"),
    ("5.2", knobs_read(2, 1, 0, 5, 4, 3), "read α, β, γ"),
    ("5.2", knobs_read(1, 2, 0, 4, 5, 3), "read α, γ, β"),
    ("5.2", knobs_read(2, 0, 1, 5, 3, 4), "read β, α, γ"),
    ("5.2", knobs_read(0, 2, 1, 3, 5, 4), "read γ, α, β"),
    ("5.2", knobs_read(0, 1, 2, 0, 1, 2), "attention's modulations for both"),
    ("5.2", knobs_read(3, 4, 5, 3, 4, 5), "MLP's modulations for both"),
    ("5.2", sequential, "*parallel*"),
    ("5.2", in_line, "reads attention's output"),
    ("5.2", attention_alone, "attention's part alone"),
    ("5.2", mlp_alone, "MLP's part alone"),
    ("5.2", lambda *a: attention_alone(*a) * mlp_alone(*a), "multiplied both"),
    ("5.2", lambda x, k, *p: u(x, k, *p) / 2, "mean of both"),
    ("5.2", asks_twice, "called attend 2 times"),
    ("5.2", adds_in_place, "changed x itself"),
    ("5.2", lambda x, k, a, m, n1, n2: a(k), "You called attend with"),
    ("5.2", lambda x, k, *p: u(x, k, *p)[0], "must have shape (2, 5, 6)"),
    ("5.3", run_of(tail=lambda a, m, n: a[m:]), "tail begins at layer m"),
    ("5.3", run_of(head=lambda a, m, n: a[:n]), "and then the operator"),
    ("5.3", run_of(tail=lambda a, m, n: a[n + 1 :]), "Layer 4 is missing. The span"),
    ("5.3", run_of(tail=lambda a, m, n: a[n - 1 :]), "Layer 3 runs though"),
    ("5.3", run_of(head=lambda a, m, n: a[: m - 1]), "Layer 1 is missing: the head"),
    ("5.3", run_of(head=lambda a, m, n: a[: m + 1]), "Layer 2 runs though"),
    ("5.3", run_of(lambda a, m, n: a[: m - 1], ("o",), lambda a, m, n: a[n - 1 :]), "one layer early"),
    ("5.3", run_of(lambda a, m, n: a[: m + 1], ("o",), lambda a, m, n: a[n + 1 :]), "one layer late"),
    ("5.3", run_of(lambda a, m, n: a[: m - 1], ("o",), lambda a, m, n: a[n + 1 :]), "one layer more at each end"),
    ("5.3", run_of(head=lambda a, m, n: a[1:m]), "Layer 0 is missing"),
    ("5.3", run_of(tail=lambda a, m, n: a[n:-1]), "the last one, is missing"),
    ("5.3", parts_run(lambda a, m, n: [*a[:m], *["o"] * (n - m), *a[n:], "n", "h"]), "The operator ran 2 times"),
    ("5.3", run_of(middle=()), "with the span skipped"),
    ("5.3", parts_run(lambda a, m, n: [*a, "n", "h"]), "whole teacher"),
    ("5.3", parts_run(lambda a, m, n: [*a, "o", "n", "h"]), "after all layers"),
    ("5.3", parts_run(lambda a, m, n: [*a[:m], *a[n:], "o", "n", "h"]), "after the tail"),
    ("5.3", parts_run(lambda a, m, n: ["o", *a[:m], *a[n:], "n", "h"]), "ran first"),
    ("5.3", run_of(end=("h",)), "final norm is missing"),
    ("5.3", run_of(end=("n", "n", "h")), "final norm ran twice"),
    ("5.3", run_of(middle=("o", "n")), "after the operator, too"),
    ("5.3", run_of(middle=("o", "n"), end=("h",)), "before the tail"),
    ("5.3", run_of(middle=("n", "o")), "before the operator, too"),
    ("5.3", run_of(tail=lambda a, m, n: []), "The tail never ran"),
    ("5.3", run_of(head=lambda a, m, n: []), "The head layers never ran"),
    ("5.3", run_of(lambda a, m, n: [], ("o",), lambda a, m, n: []), "Only the operator ran"),
    ("5.3", run_of(lambda a, m, n: a[n:], ("o",), lambda a, m, n: a[:m]), "exchanged"),
    ("5.3", run_of(lambda a, m, n: a[m:n], ("o",), lambda a, m, n: []), "they are the ones replaced"),
    ("5.3", run_of(head=lambda a, m, n: a[:m][::-1]), "head runs backwards"),
    ("5.3", run_of(tail=lambda a, m, n: a[n:][::-1]), "tail runs backwards"),
    ("5.3", run_of(head=lambda a, m, n: [0, *a[:m]]), "You ran: 0 0 1 operator 4 5 norm head"),
    ("5.3", run_of(end=("n",)), "You returned states"),
    ("5.3", lambda *a: right_splice(*a)[-1], "logits of every token"),
    ("5.3", lambda *a: right_splice(*a).argmax(-1), "logits of every token"),
    ("5.3", parts_run(lambda a, m, n: [*a[:m], "o", *a[n:], "h", "n"]), "You handed the norm"),
    ("5.3", after_head(lambda x, before, o: o(x)), "The operator read the input of layer 0"),
    ("5.3", after_head(lambda x, before, o: before + o(before)), "added the operator's output"),
    ("5.3", after_head(lambda x, before, o: (o(before), before)[1]), "discarded the operator's output"),
    ("5.3", lambda *a: right_splice(*a).softmax(-1), "without softmax"),
    ("5.3", deletes, "changed the list of layers"),
    ("5.3", only_middle, "Span (5, 8) of 8 layers"),
    ("5.4", cost(evaluations=lambda s, g, D, u, k: s + k), "A midpoint step needs two evaluations"),
    ("5.4", cost(evaluations=lambda s, g, D, u, k: s + 2 * k), "An Euler step needs one evaluation"),
    ("5.4", cost(evaluations=lambda s, g, D, u, k: s + u), "left out k"),
    ("5.4", cost(evaluations=lambda s, g, D, u, k: s + 1), "one layer's *weights*"),
    ("5.4", cost(evaluations=lambda s, g, D, u, k: s - 1 + u * k), "You took one more"),
    ("5.4", cost(evaluations=lambda s, g, D, u, k: s + 1 + u * k), "You took one less"),
    ("5.4", cost(evaluations=lambda s, g, D, u, k: u * k), "Count the whole model"),
    ("5.4", cost(evaluations=lambda s, g, D, u, k: s), "operator is evaluated, too"),
    ("5.4", cost(evaluations=lambda s, g, D, u, k: s + g + u * k), "Nothing is replaced"),
    ("5.4", cost(evaluations=lambda s, g, D, u, k: g + u * k), "which are gone"),
    ("5.4", cost(evaluations=lambda s, g, D, u, k: s + g), "That is the teacher"),
    ("5.4", cost(lambda s, g, D, u, k: layer(D) * (s + 1)), "left out the time embedding"),
    ("5.4", cost(lambda s, g, D, u, k: layer(D) * s + hands(D)), "One layer is missing"),
    ("5.4", cost(lambda s, g, D, u, k: layer(D) * s + u * k * (layer(D) + hands(D))), "operator once per evaluation"),
    ("5.4", cost(lambda s, g, D, u, k: layer(D) * (s + u * k) + hands(D)), "operator's layer once per evaluation"),
    ("5.4", cost(lambda s, g, D, u, k: layer(D) * s + k * (layer(D) + hands(D))), "weights once per step"),
    ("5.4", cost(lambda s, g, D, u, k: layer(D) * (s + k) + hands(D)), "operator's layer once per step"),
    ("5.4", cost(lambda s, g, D, u, k: layer(D) * (s + 1) + 6 * D**2), "its first, from 128"),
    ("5.4", cost(lambda s, g, D, u, k: layer(D) * (s + 1) + 128 * D), "its last, from D"),
    ("5.4", cost(lambda s, g, D, u, k: layer(D) * (s + 1) + 134 * D), "not 6·D"),
    ("5.4", cost(lambda s, g, D, u, k: layer(D) * (s + 1) + 128 * D + D**2), "*six* modulations"),
    ("5.4", cost(lambda s, g, D, u, k: layer(D) * s), "left out altogether"),
    ("5.4", cost(lambda s, g, D, u, k: layer(D) + hands(D)), "operator's alone"),
    ("5.4", cost(lambda s, g, D, u, k: layer(D) * (s + g)), "That is the teacher"),
    ("5.4", cost(lambda s, g, D, u, k: layer(D) * (s + 2) + hands(D)), "you took one less"),
    ("5.4", cost(lambda s, g, D, u, k: 4 * D**2 * (s + 1) + hands(D)), "attention's alone"),
    ("5.4", cost(lambda s, g, D, u, k: 8 * D**2 * (s + 1) + hands(D)), "MLP's alone"),
    ("5.4", cost(lambda s, g, D, u, k: 12 * D * (s + 1) + hands(D)), "not 12·D"),
    ("5.4", cost(cache=lambda s, g, D, u, k: D * (s + u * k)), "a key *and* a value"),
    ("5.4", cost(cache=lambda s, g, D, u, k: s + u * k), "These are cache entries"),
    ("5.4", cost(cache=lambda s, g, D, u, k: 2 * D * (s + 1)), "one cache entry for the operator"),
    ("5.4", cost(cache=lambda s, g, D, u, k: 2 * D * (s + k)), "two cache entries per step"),
    ("5.4", cost(cache=lambda s, g, D, u, k: 2 * D * (s + 2 * k)), "one cache entry per step"),
    ("5.4", cost(cache=lambda s, g, D, u, k: 2 * D * s), "left out the cache entries of the operator"),
    ("5.4", cost(cache=lambda s, g, D, u, k: 2 * D * u * k), "those of the layers that stay"),
    ("5.4", cost(cache=lambda s, g, D, u, k: 2 * D * (s + g)), "That is the teacher's"),
    ("5.4", cost(cache=lambda s, g, D, u, k: D**2 * (s + u * k)), "not D² numbers"),
    ("5.4", lambda *c: right_budget(*c)[::-1], "in another order"),
    ("5.4", lambda *c: right_budget(*c)[1], "(weights, evaluations, cache)"),
    ("5.4", lambda *c: dict(zip("wec", right_budget(*c), strict=True)), "You returned a dict"),
    ("5.4", cost(lambda s, g, D, u, k: 1.5), "whole numbers"),
    ("5.5", slotted(lambda first, i, half, j: first), "All 6 evaluations share slot 4"),
    ("5.5", slotted(lambda first, i, half, j: first), "its states differ by up to"),
    ("5.5", slotted(lambda first, i, half, j: first, following=lambda first, j, k: first + 1), "All 6 evaluations"),
    ("5.5", slotted(lambda first, i, half, j: 0), "All 6 evaluations share slot 0"),
    ("5.5", slotted(lambda first, i, half, j: first + i), "one slot per *step*"),
    ("5.5", slotted(lambda first, i, half, j: first + half), "two slots for all steps"),
    ("5.5", slotted(lambda first, i, half, j: first + i + half), "Some are shared"),
    ("5.5", slotted(lambda first, i, half, j: j), "begin at first_slot = 4."),
    ("5.5", slotted(lambda first, i, half, j: j + 1), "not at 1"),
    ("5.5", slotted(lambda first, i, half, j: first + j + 1), "Slot 4 stays empty"),
    ("5.5", slotted(lambda first, i, half, j: first + j - 1), "Slot 3 belongs to a head layer"),
    ("5.5", slotted(lambda first, i, half, j: first + 2 * j), "There are 6 evaluations: use the slots"),
    ("5.5", counter(), "in a later pass"),
    ("5.5", ahead(following=lambda first, j, k: j), "the number of evaluations"),
    ("5.5", ahead(following=lambda first, j, k: first + j - 1), "the last slot that you used"),
    ("5.5", ahead(following=lambda first, j, k: first), "overwrite the operator's keys"),
    ("5.5", ahead(following=lambda first, j, k: first + k), "first_slot + k"),
    ("5.5", ahead(following=lambda first, j, k: first + j + 5), "so it is 10"),
    ("5.5", ahead(following=lambda first, j, k: first + j + 0.5), "give an integer, the first slot"),
    ("5.5", ahead(as_="euler"), "These are Euler steps"),
    ("5.5", ahead(as_="midpoint"), "These are midpoint steps"),
    ("5.5", ahead(steps=1), "whatever `steps` says"),
    ("5.5", ahead(d=lambda k: 1), "lasts 1 / steps"),
    ("5.5", ahead(when=lambda i, half, k: 0), "always evaluated at t = 0"),
    ("5.5", ahead(when=lambda i, half, k: i / k), "Largest difference"),
    ("5.5", lambda look, x, first, solver, k: (x, first + k * EVALUATIONS[solver]), "returned x unchanged"),
    ("5.5", lambda look, x, *a: ((e := right_slots(look, x, *a))[0] - x, e[1]), "not the position"),
    ("5.5", lambda *a: right_slots(*a)[0], "return two, (x, slot)"),
    ("5.5", lambda *a: right_slots(*a)[::-1], "must have shape (1, 5, 6)"),
    ("5.5", lambda look, *a: right_slots(lambda x, t, slot: look(x, t), *a), "missing 1 required positional argument"),
    ("5.5", lambda look, *a: right_slots(lambda x, t, slot: look(x, t, slot / 2), *a), "an integer as slot"),
    ("5.5", lambda look, *a: right_slots(lambda x, t, slot: look(t, x, slot), *a), "it takes states"),
    ("5.5", walks_in_place, "changed x itself"),
    ("5.6", loop(feed=lambda text, new: text), "reads it twice"),
    ("5.6", forgets_cache, "it does not see the tokens before"),
    ("5.6", last_token_first, "The whole prompt goes in first"),
    ("5.6", stale, "the token that was chosen last"),
    ("5.6", loop(more=positions(lambda new, past: torch.arange(new.shape[1])[None])), "Positions continue"),
    ("5.6", loop(more=positions(lambda new, past: torch.arange(new.shape[1])[None] + 2 * past)), "Positions continue"),
    ("5.6", loop(feed=lambda text, new: text, keep=False), "With a cache each is run once"),
    ("5.6", one_by_one, "pass the prompt at once"),
    ("5.6", loop(choose=random_draw), "draws tokens at random"),
    ("5.6", loop(choose=lambda logits: logits[:, -1:].argmin(-1)), "least likely"),
    ("5.6", loop(choose=lambda logits: logits[:, :1].argmax(-1)), "the prompt's *first* token"),
    ("5.6", loop(choose=lambda logits: logits[:, -1:].topk(2).indices[..., 1]), "the most likely there is"),
    ("5.6", loop(n_of=lambda n: n - 1), "The last token belongs to the text, too"),
    ("5.6", loop(n_of=lambda n: n + 1), "one too many"),
    ("5.6", loop(n_of=lambda n: 0), "the prompt alone"),
    ("5.6", then(lambda text, T, eos: text[:, T:]), "new ones alone"),
    ("5.6", then(lambda text, T, eos: torch.cat([text[:, :T], text], 1)), "it contains the prompt twice"),
    ("5.6", then(lambda text, T, eos: torch.cat([text[:, T:], text[:, :T]], 1)), "new tokens before it"),
    ("5.6", then(lambda text, T, eos: text[0]), "keep the batch axis"),
    ("5.6", then(lambda text, T, eos: text[0].tolist()), "keep the batch axis"),
    ("5.6", then(lambda text, T, eos: text[..., None]), "must have shape (1, T + 9)"),
    ("5.6", then(lambda text, T, eos: text + 0.5), "not token ids"),
    ("5.6", loop(stop=no_stop), "Do not continue after eos"),
    ("5.6", then(lambda text, T, eos: text[:, :-1] if text[0, -1] == eos else text), "eos itself belongs"),
    ("5.6", then(lambda text, T, eos: fill(text, T, eos) if text[0, -1] == eos else text), "Do not fill it up"),
    ("5.6", loop(stop=lambda new, eos, text: eos in text), "only a new one ends"),
    ("5.6", cut_afterwards, "cut the text afterwards"),
    ("5.6", leaves(lambda model: model.train()), "training mode"),
    ("5.6", leaves(lambda model: setattr(model.config.text_config, "use_cache", False)), "use_cache"),
    ("5.6", leaves(lambda model: model.set_solver("euler", 1)), "the solver"),
    ("5.6", leaves(lambda model: model.register_forward_hook(print)), "hooks"),
    ("5.6", leaves(lambda model: torch.set_grad_enabled(not torch.is_grad_enabled())), "disabled gradients"),
    ("5.6", appends_in_place, "changed input_ids"),
    ("5.6", lambda model, ids, n, eos: model.generate(ids, max_new_tokens=n), "Write the loop yourself"),
    ("5.6", loop(more=lambda text, new, past: {"attention_mask": torch.ones(1, new.shape[1])}), "a mask of 1 tokens"),
    ("5.6", lambda model, ids, n, eos: lesson05_generation.greedy_text(model.model, ids, n), "never called model(…)"),
    ("5.6", lambda model, ids, n, eos: model(input_ids=ids[0]).logits, "You gave the model a tensor of shape (5,)"),
    ("5.6", lambda model, ids, n, eos: model(input_ids=ids).logits, "must have shape (1, T + 9)"),
    ("5.7", stepped(frozen=False), "You trained the teacher, too"),
    ("5.7", stepped(frozen=False, order=("zero_grad", "backward")), "The gradient ran into the teacher"),
    ("5.7", stepped(returned=lambda value: None), "returned nothing: return the loss"),
    ("5.7", stepped(loss=along_the_path(1)), "Only the end counts"),
    ("5.7", stepped(loss=along_the_path(0)), "and position 0 is in the loss"),
    ("5.7", stepped(loss=lambda path, x0, x1: (path[-1] - x1).square().mean()), "Position 0 is in the loss"),
    ("5.7", stepped(loss=lambda path, x0, x1: (path[-1] - x0)[:, 1:].square().mean()), "compare with x0"),
    ("5.7", stepped(loss=of_the_end(lambda e: 0.8 * e.square().mean())), "divide by all tokens still"),
    ("5.7", stepped(loss=of_the_end(lambda e: e.square().sum())), "You sum: take the mean"),
    ("5.7", stepped(loss=of_the_end(lambda e: e.square().sum(-1).mean())), "sum over dimensions"),
    ("5.7", stepped(loss=of_the_end(lambda e: e.norm(dim=-1).mean())), "not its square"),
    ("5.7", stepped(given=lambda x: x[:, 1:]), "leave it out of the loss only"),
    ("5.7", stepped(step=euler_step), "These are Euler steps"),
    ("5.7", stepped(through=lambda times: [0.0, 1.0]), "one step from 0 to 1"),
    ("5.7", stepped(through=lambda times: [0.0, 1 / 3, 2 / 3, 1.0]), "You took equal steps"),
    ("5.7", stepped(through=lambda times: times[:-1]), "one step early"),
    ("5.7", stepped(cut=torch.Tensor.detach), "detached between its steps"),
    ("5.7", climbs, "you climb"),
    ("5.7", stepped(order=("backward", "step")), "*adds* to the gradients"),
    ("5.7", stepped(order=("backward", "zero_grad", "step")), "cleared the gradient between"),
    ("5.7", stepped(order=("step", "zero_grad", "backward")), "optimizer.step() comes last"),
    ("5.7", steps_first, "The step came before backward"),
    ("5.7", stepped(order=("zero_grad", "backward")), "No optimizer.step()"),
    ("5.7", stepped(order=("zero_grad", "step")), "Nothing computed the gradient"),
    ("5.7", stepped(order=("zero_grad", "backward", "step", "step")), "Each call takes one step"),
    ("5.7", stepped(graph=False), "Only the teacher's part belongs"),
    ("5.7", number_too_early, "Call backward on the loss itself"),
    ("5.7", stepped(returned=lambda value: torch.set_grad_enabled(False) and None), "disabled gradients globally"),
    ("5.7", stepped(returned=lambda value: value.expand(2)), "must have a single number"),
    ("5.7", lambda head, span, velocity, optimizer, ids, times: head(ids.float()), "it takes the token ids"),
    ("5.7", lambda head, span, velocity, optimizer, ids, times: span(head(ids)[0]), "it takes states"),
    ("5.7", stepped(returned=lambda value: 2 * value.item()), "Largest difference in the loss"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "answer", "words"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_typical_mistakes_get_their_message(number, answer, words):
    report = check(number, answer)
    assert not report
    assert words in report.message
    assert report.failed


def test_other_ways_pass():
    """numpy, float64, slots in another order, the prompt in two parts, one pass too many: what counts is the value."""
    assert check("5.1", lambda t: clock(t.double()).numpy())
    assert check("5.1", lambda t: clock(t, order=lambda c, s: torch.cat([c, s], -1).half().float()))
    assert check("5.2", lambda x, k, *p: u(x, k, *p).numpy())
    assert check("5.2", lambda x, k, a, m, n1, n2: u(x, k[:, None, None], a, m, n1, n2))
    assert check("5.3", lambda *a: right_splice(*a).double())
    assert check("5.4", lambda *case: np.array(right_budget(*case)))
    assert check("5.4", lambda *case: [float(number) for number in right_budget(*case)])
    assert check("5.5", by_library)
    assert check("5.5", lambda look, *a: right_slots(lambda x, t, slot: look(x, torch.tensor(t), np.int64(slot)), *a))
    assert check("5.5", backwards)
    assert check("5.6", right_loop)
    assert check("5.6", loop(more=positions(lambda new, past: torch.arange(past, past + new.shape[1])[None])))
    assert check("5.6", loop(more=lambda text, new, past: {"attention_mask": torch.ones(text.shape, dtype=torch.long)}))
    assert check("5.6", lambda *a: right_loop(*a).numpy())
    assert check("5.6", prompt_in_two_parts)
    assert check("5.7", detaches)
    assert check("5.7", stepped(order=("backward", "step", "zero_grad"), returned=lambda value: value))


def prompt_in_two_parts(model, ids, n, eos):
    """All but the last token of the prompt first; and the last new token is run, though nobody reads on."""
    text, cache = ids, DynamicCache(config=model.config.text_config)
    if ids.shape[1] > 1:
        model(ids[:, :-1], past_key_values=cache)
    for _ in range(n):
        new = model(text[:, -1:], past_key_values=cache).logits[:, -1:].argmax(-1)
        text = torch.cat([text, new], 1)
        if new.item() == eos:
            break
    return text


# --- what the exercises teach is what the library does --------------------------------------------------------------


def test_features_are_the_librarys(teacher):
    modulation = lft.splice(teacher, (2, 5), lft.Flow()).operator.velocity.modulation
    seen = []
    modulation.inner.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    t = torch.tensor([0.0, 0.3, 0.77, 1.0])
    modulation(t)
    torch.testing.assert_close(solutions()["5.1"](t), seen[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(lesson05.features(t).float(), seen[0], atol=1e-3, rtol=0)


def test_velocity_is_the_librarys(teacher, ids):
    velocity = lft.splice(teacher, (2, 5), lft.Flow()).operator.velocity
    latents, layer = span_latents(teacher, (2, 5), ids), velocity.layer
    with torch.no_grad():
        velocity.modulation.outer.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        knobs = velocity.modulation(torch.tensor(0.4))
        attend = lambda x: layer.attention(x, **latents.context)[0]  # noqa: E731
        norms = layer.input_layernorm, layer.post_attention_layernorm
        mine = solutions()["5.2"](latents.x0, knobs, attend, layer.mlp, *norms)
        torch.testing.assert_close(mine, velocity(latents.x0, 0.4, **latents.context), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("solver", "steps"), [("euler", 2), ("midpoint", 3)])
def test_budget_is_what_a_model_costs(teacher, ids, solver, steps):
    """Matrices counted one by one, slots in the cache, attentions that run."""
    student = lft.splice(teacher, (2, 5), lft.Flow(solver, steps))
    looks = []
    layers = student.model.gpt_neox.layers
    for layer in [*layers[:2], student.operator.velocity.layer, *layers[3:]]:
        layer.attention.register_forward_hook(lambda *a: looks.append(1))
    cache = student(input_ids=ids, use_cache=True).past_key_values
    matrices = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
    numbers = sum(slot.keys.numel() + slot.values.numel() for slot in cache.layers) // ids.numel()
    assert solutions()["5.4"](8, 64, (2, 5), solver, steps) == (matrices, len(looks), numbers)


def test_text_is_the_librarys(bundled):
    teacher, tokenizer = bundled
    student = lft.load_student("bundled/flow-walking-6-18", teacher)
    ids = tokenizer("for i, name in enumerate(names):\n    print(", return_tensors="pt")["input_ids"]
    for eos in (0, tokenizer(" name")["input_ids"][0]):
        mine = solutions()["5.6"](student, ids, 24, eos)
        assert mine.tolist() == student.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=eos).tolist()


def test_numbers_in_the_answers():
    """Those of exercises 5.1 and 5.4; the others need a corpus and were measured once."""
    cosine = lambda a, b: torch.nn.functional.cosine_similarity(a, b, dim=-1).item()  # noqa: E731
    for scale, neighbors, ends in ((1.0, 0.999, 0.970), (1000.0, 0.386, 0.159)):
        at = lesson05.features(torch.tensor([0, 1 / 6, 1.0]), scale=scale)
        assert cosine(at[0], at[1]) == pytest.approx(neighbors, abs=5e-4)
        assert cosine(at[0], at[2]) == pytest.approx(ends, abs=5e-4)
    weights, evaluations, cache = right_budget(24, 1024, (6, 12), "midpoint", 3)
    assert (round(weights / 1e6), evaluations, cache) == (245, 24, 49_152)
    weights, evaluations, cache = right_budget(24, 1024, (6, 18), "euler", 1)
    assert (round(weights / 1e6), evaluations, cache) == (170, 13, 26_624)


def test_a_shared_slot_is_shown_not_asserted():
    """The message of 5.5 holds what was observed: cached states differ from uncached ones."""
    message = check("5.5", slotted(lambda first, i, half, j: first)).message
    apart = float(message.split("differ by up to ")[1].split()[0])
    assert apart > 0.1


@pytest.mark.parametrize("number", ["5.1", "5.2", "5.3", "5.4", "5.5", "5.6", "5.7"])
def test_stranger_answers_do_not_crash_a_check(number):
    import pandas

    for value in (
        pandas.DataFrame({"a": [1.0]}),
        torch.zeros(2, device="meta"),
        {1, 2},
        object(),
        np.array("a"),
        1e300,
        (torch.zeros(1, 5, 6), "text"),
        (torch.zeros(1, 5, 6), float("nan")),
        (1, 2, 3),
    ):
        assert check(number, lambda *a, value=value: value).message


def test_functions_called_with_anything_do_not_crash_a_check():
    for nonsense in (None, 3, "x", torch.zeros(2, device="meta"), torch.zeros(1, 5, dtype=torch.complex64), []):
        assert check("5.2", lambda x, k, a, *rest, y=nonsense: a(y)).message
        assert check("5.3", lambda x, layers, span, o, norm, head, y=nonsense: head(y)).message
        assert check("5.5", lambda look, x, *a, y=nonsense: (look(y, 0.0, 3), 4)).message
        assert check("5.5", lambda look, x, *a, y=nonsense: (look(x, y, 3), 4)).message
        assert check("5.5", lambda look, x, *a, y=nonsense: (look(x, 0.0, y), 4)).message
        assert check("5.6", lambda model, ids, n, eos, y=nonsense: model(input_ids=y)).message
        assert check("5.6", lambda model, ids, n, eos, y=nonsense: model(ids, past_key_values=y)).message
    assert check("5.6", lambda model, ids, n, eos: ids[:, :0]).message


def test_a_learners_model_and_gradients_are_left_alone():
    """A check that fails leaves torch's switch as it was."""

    def off(model, ids, n, eos):
        torch.set_grad_enabled(False)
        raise RuntimeError

    before = torch.is_grad_enabled()
    check("5.6", off)
    assert torch.is_grad_enabled() == before
