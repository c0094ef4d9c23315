"""Lesson 05: every typical mistake gets the message meant for it. (Solutions, stubs, garbage: test_exercises.py.)"""

import functools
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_exercises import solutions
from torch.nn.functional import layer_norm
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import lft_edu as lft
from lft_edu.exercises import check, lesson05, lesson05_assembly, lesson05_generation
from lft_edu.flow import EVALUATIONS, euler_step, midpoint_step, walk
from lft_edu.latents import span_latents


# --- 5.1 ----------------------------------------------------------------------------------------------------------
def read(i=41, angle=lambda c, s: torch.atan2(s, c), of=lambda a, turn: a / turn, sines=64):
    """Read the time off frequency i, with something changed."""
    return lambda f: of(angle(f[:, i], f[:, sines + i]), 1000 * 10_000 ** (-i / 64))


def by_arccos(i):
    return read(i, angle=lambda c, s: c.arccos())


def in_turns(i):
    return read(i, angle=lambda c, s: torch.atan2(s, c) % (2 * math.pi))


def by_search(f):
    """Another right way: the nearest of many times, by all features."""
    grid = torch.linspace(0, 1, 10_001)
    return grid[torch.cdist(f.double(), lesson05.features(grid)).argmin(1)]


# --- 5.2 ----------------------------------------------------------------------------------------------------------
def u(x, knobs, attend, mlp, norm1, norm2, see=lambda z, g, b: (1 + g) * z + b, order=range(6), seen_by_mlp=torch.add):
    g1, b1, a1, g2, b2, a2 = knobs[list(order)]
    attended = a1 * attend(see(norm1(x), g1, b1))
    return attended + a2 * mlp(see(norm2(seen_by_mlp(x, attended)), g2, b2))


def knobs_read(*order):
    return functools.partial(u, order=order)


def seen(see):
    return functools.partial(u, see=see)


def before_the_norm(x, knobs, attend, mlp, norm1, norm2):
    g1, b1, a1, g2, b2, a2 = knobs
    attended = a1 * attend(norm1((1 + g1) * x + b1))
    return attended + a2 * mlp(norm2((1 + g2) * (x + attended) + b2))


def alpha_inside(x, knobs, attend, mlp, norm1, norm2):
    g1, b1, a1, g2, b2, a2 = knobs
    attended = attend(a1 * ((1 + g1) * norm1(x) + b1))
    return attended + mlp(a2 * ((1 + g2) * norm2(x + attended) + b2))


def unscaled_for_the_mlp(x, knobs, *parts):
    a1 = knobs[2]
    return u(x, knobs, *parts, seen_by_mlp=lambda x, attended: x + attended / a1)


def mlp_first(x, knobs, attend, mlp, norm1, norm2):
    return u(x, knobs[[3, 4, 5, 0, 1, 2]], mlp, attend, norm2, norm1)


def one_plus_alpha(x, knobs, *parts):
    return u(x, knobs + torch.tensor([0.0, 0, 1, 0, 0, 1])[:, None], *parts)


def no_alpha(x, knobs, *parts):
    return u(x, knobs.index_fill(0, torch.tensor([2, 5]), 1.0), *parts)


def attention_alone(x, knobs, attend, mlp, *norms):
    return u(x, knobs, attend, lambda x: 0 * x, *norms)


def mlp_alone(x, knobs, attend, mlp, *norms):
    return u(x, knobs, attend, mlp, *norms) - attention_alone(x, knobs, attend, mlp, *norms)


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
    """What runs is what ``pick(number of layers, spans by name)`` says; ``A`` is the first operator that was given."""

    def model(x, layers, operators, norm, head):
        named = {"norm": norm, "head": head} | dict(zip("ABC", (op for _, op in operators), strict=False))
        for name in pick(len(layers), dict(zip("ABC", (span for span, _ in operators), strict=False))):
            x = (layers[name] if isinstance(name, int) else named[name])(x)
        return x

    return model


def then_out(pick, end=("norm", "head")):
    return parts_run(lambda layers, spans: [*pick(layers, spans), *end])


def replaced(of=lambda name, m, n: ([name], m, n), end=("norm", "head")):
    return then_out(lambda layers, spans: lesson05_assembly.runs(layers, spans, of), end)


right_splice = replaced()


def in_order(spans):
    return sorted(spans.items(), key=lambda item: item[1])


def each_operator(use):
    """Right parts, but what is read after an operator is ``use(what it read, its output)``."""

    def model(x, layers, operators, norm, head):
        changed = [(span, lambda x, op=op: use(x, op(x))) for span, op in operators]
        return right_splice(x, layers, changed, norm, head)

    return model


def norm_after_each(layers, spans):
    parts = lesson05_assembly.runs(layers, spans)
    return [name for part in parts for name in ([part, "norm"] if part in spans else [part])]


def deletes(x, layers, operators, *rest):
    made = right_splice(x, layers, operators, *rest)
    layers.pop()
    return made


def sorts_in_place(x, layers, operators, *rest):
    made = right_splice(x, layers, operators, *rest)
    operators.sort(key=lambda pair: pair[0])
    return made


def backwards_in_a_list(x, layers, operators, norm, head):
    """Another right way: replace in a copy of the list, from the last span to the first."""
    parts = list(layers)
    for (m, n), op in sorted(operators, key=lambda pair: pair[0], reverse=True):
        parts[m:n] = [op]
    for part in parts:
        x = part(x)
    return head(norm(x))


# --- 5.4 ----------------------------------------------------------------------------------------------------------
def cost(weights=None, evaluations=None, cache=None):
    """A budget that is right but for what is given: functions of a namespace with all that is counted."""

    def budget(model, span, solver, steps):
        c = SimpleNamespace(**model, k=steps, per=EVALUATIONS[solver], gone=span[1] - span[0])
        c.D, c.F, c.kept = c.width, c.inner, c.layers - c.gone
        c.keys = c.D // c.heads * c.kv_heads
        c.layer, c.time = 2 * c.D**2 + 2 * c.D * c.keys + 3 * c.D * c.F, 128 * c.D + 6 * c.D**2
        c.entries = c.kept + c.per * c.k
        right = lesson05_assembly.budget(model, span, solver, steps)
        return tuple(f(c) if f else r for f, r in zip((weights, evaluations, cache), right, strict=True))

    return budget


def layer_of(count):
    return cost(lambda c: count(c) * (c.kept + 1) + c.time)


def right_budget(*case):
    return lesson05_assembly.budget(*case)


# --- 5.5 ----------------------------------------------------------------------------------------------------------
def near(a, b):
    return torch.allclose(a, b, atol=1e-4)


def compares(*cuts, part=lambda states: states, same=near):
    """A test that compares the whole text with these ways to cut it: lists of the lengths of the pieces."""

    def test(run, text):
        whole = run([text])
        return all(same(part(whole), part(run(list(text.split(list(cut), 1))))) for cut in cuts)

    return test


SINGLY, IN_THREE = (1,) * 7, (3, 2, 2)


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
    ("5.1", read(0), "frequency 0, which has turned by 1e+03 radians at t = 1, and atan2"),
    ("5.1", read(40), "atan2 knows angles"),
    ("5.1", by_arccos(30), "arccos knows angles"),
    ("5.1", in_turns(20), "modulo 2π its whole turns are lost"),
    ("5.1", by_arccos(60), "Near t = 0 a cosine hardly changes"),
    ("5.1", read(of=lambda a, turn: a), "the angle of frequency 41"),
    ("5.1", read(of=lambda a, turn: 1000 * a / turn), "multiplied by 1000"),
    ("5.1", read(angle=lambda c, s: torch.atan2(c, s)), "Sine and cosine are exchanged"),
    ("5.1", lambda f: read()(torch.cat([f[:, 0::2], f[:, 1::2]], 1)), "as if they alternated"),
    ("5.1", read(63), "take the fastest"),
    ("5.1", read(50), "take the fastest"),
    ("5.1", read(41, angle=lambda c, s: (1.0001 * c).arccos()), "no angle"),
    ("5.1", lambda f: torch.stack([read(i)(f) for i in range(64)], 1), "one for each frequency"),
    ("5.1", lambda f: read()(f)[:, None], "a column was kept"),
    ("5.1", lambda f: read()(f)[0], "You returned one number"),
    ("5.1", lambda f: f, "must have shape (5,)"),
    ("5.1", lambda f: read()(f) + 0.1, "Largest difference"),
    ("5.1", lambda f: torch.tensor([0.0, 1.0, 0.4567, 0.98, 0.03]), "must have shape (200,)"),
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
    ("5.2", functools.partial(u, seen_by_mlp=lambda x, attended: x), "parallel residual"),
    ("5.2", functools.partial(u, seen_by_mlp=lambda x, attended: attended), "without x. It reads"),
    ("5.2", unscaled_for_the_mlp, "without α1"),
    ("5.2", mlp_first, "The MLP comes first"),
    ("5.2", attention_alone, "attention's part alone"),
    ("5.2", mlp_alone, "MLP's part alone"),
    ("5.2", lambda *a: attention_alone(*a) * mlp_alone(*a), "multiplied both"),
    ("5.2", lambda x, k, *p: u(x, k, *p) / 2, "mean of both"),
    ("5.2", asks_twice, "called attend 2 times"),
    ("5.2", adds_in_place, "changed x itself"),
    ("5.2", lambda x, k, a, m, n1, n2: a(k), "You called attend with"),
    ("5.2", lambda x, k, *p: u(x, k, *p)[0], "must have shape (2, 5, 6)"),
    ("5.3", then_out(lambda L, spans: lesson05_assembly.cut_out(L, [*spans.items()])), "as they were given"),
    ("5.3", then_out(lambda L, spans: lesson05_assembly.cut_out(L, in_order(spans))), "makes the list shorter"),
    (
        "5.3",
        then_out(lambda L, s: lesson05_assembly.runs(L, dict(zip(s, [b for _, b in in_order(s)], strict=True)))),
        "not their operators with them",
    ),
    ("5.3", replaced(lambda name, m, n: ([name], m, n + 1)), "You took out layer n, too"),
    ("5.3", replaced(lambda name, m, n: ([name], m, n - 1)), "Layer n − 1 still runs"),
    ("5.3", replaced(lambda name, m, n: ([name], m + 1, n)), "Layer m still runs"),
    ("5.3", replaced(lambda name, m, n: ([name], m - 1, n)), "You took out layer m − 1"),
    ("5.3", replaced(lambda name, m, n: ([name], m, m)), "and so did the layers that they replace"),
    ("5.3", replaced(lambda name, m, n: ([name], n, n)), "and then the operators"),
    ("5.3", replaced(lambda name, m, n: ([], m, n)), "with the spans skipped"),
    ("5.3", then_out(lambda L, spans: range(L)), "whole teacher"),
    ("5.3", replaced(lambda name, m, n: ([name] * (n - m), m, n)), "once for each layer"),
    ("5.3", then_out(lambda L, s: lesson05_assembly.runs(L, dict([*s.items()][:1]))), "Only the first operator"),
    ("5.3", then_out(lambda L, s: lesson05_assembly.runs(L, dict([*s.items()][-1:]))), "Only the last operator"),
    ("5.3", then_out(lambda L, s: lesson05_assembly.runs(max((n for _, n in s.values()), default=L), s)), "behind it"),
    ("5.3", then_out(lambda L, s: lesson05_assembly.runs(L, s)[1:]), "Layer 0 is missing"),
    (
        "5.3",
        then_out(lambda L, s: [*(i for i in range(L) if not any(m <= i < n for m, n in s.values())), *s]),
        "Each belongs where its span was",
    ),
    ("5.3", replaced(end=("head",)), "final norm is missing"),
    ("5.3", replaced(end=("norm", "norm", "head")), "final norm ran twice"),
    ("5.3", then_out(norm_after_each), "after each operator"),
    ("5.3", then_out(lambda L, spans: [0, *lesson05_assembly.runs(L, spans)]), "You ran: 0 0 B 3 A norm head"),
    ("5.3", replaced(end=("norm",)), "You returned states"),
    ("5.3", replaced(end=("head", "norm")), "You handed the norm"),
    ("5.3", lambda *a: right_splice(*a)[-1], "logits of every token"),
    ("5.3", lambda *a: right_splice(*a).argmax(-1), "logits of every token"),
    ("5.3", each_operator(lambda x, y: x + y), "added the operator's output"),
    ("5.3", each_operator(lambda x, y: x), "discarded the operators' outputs"),
    ("5.3", lambda *a: right_splice(*a).softmax(-1), "without softmax"),
    ("5.3", lambda *a: right_splice(*a).log_softmax(-1), "log-probabilities"),
    ("5.3", deletes, "changed the list of layers"),
    ("5.3", sorts_in_place, "changed the list of operators"),
    ("5.3", lambda x, layers, ops, *out: right_splice(x, layers, ops[:2], *out), "spans [(2, 4), (4, 5), (0, 2)]"),
    ("5.4", cost(evaluations=lambda c: c.kept + c.k), "A midpoint step needs two evaluations"),
    ("5.4", cost(evaluations=lambda c: c.kept + 2 * c.k), "An Euler step needs one evaluation"),
    ("5.4", cost(evaluations=lambda c: c.kept + c.per), "left out k"),
    ("5.4", cost(evaluations=lambda c: c.kept + 1), "one layer's *weights*"),
    ("5.4", cost(evaluations=lambda c: c.entries - 1), "You took one more"),
    ("5.4", cost(evaluations=lambda c: c.entries + 1), "You took one less"),
    ("5.4", cost(evaluations=lambda c: c.per * c.k), "Count the whole model"),
    ("5.4", cost(evaluations=lambda c: c.kept), "operator is evaluated, too"),
    ("5.4", cost(evaluations=lambda c: c.layers + c.per * c.k), "Nothing is replaced"),
    ("5.4", cost(evaluations=lambda c: c.gone + c.per * c.k), "which are gone"),
    ("5.4", cost(evaluations=lambda c: c.layers), "That is the teacher"),
    ("5.4", layer_of(lambda c: 12 * c.D**2), "of GPT-NeoX"),
    ("5.4", layer_of(lambda c: 4 * c.D**2 + 3 * c.D * c.F), "fewer heads than queries"),
    ("5.4", layer_of(lambda c: c.layer + c.D**2 - c.D * c.keys), "keys *and* values"),
    ("5.4", layer_of(lambda c: c.layer - c.D**2), "the output's, D × D, is missing"),
    ("5.4", layer_of(lambda c: c.layer - c.D**2 + c.D * c.keys), "The output's matrix is D × D"),
    ("5.4", layer_of(lambda c: c.layer - c.D * c.F), "three matrices, not two"),
    ("5.4", layer_of(lambda c: c.layer - 3 * c.D * c.F), "attention's weights alone"),
    ("5.4", layer_of(lambda c: 3 * c.D * c.F), "MLP's weights alone"),
    ("5.4", layer_of(lambda c: 2 * c.D**2 + 2 * c.D * c.kv_heads + 3 * c.D * c.F), "kv_heads numbers in all"),
    ("5.4", cost(lambda c: c.layer * (c.kept + 1)), "left out the time embedding"),
    ("5.4", cost(lambda c: c.layer * c.kept + c.time), "One layer is missing"),
    ("5.4", cost(lambda c: c.layer * c.kept + c.per * c.k * (c.layer + c.time)), "operator once per evaluation"),
    ("5.4", cost(lambda c: c.layer * c.entries + c.time), "operator's layer once per evaluation"),
    ("5.4", cost(lambda c: c.layer * (c.kept + 1) + 6 * c.D**2), "its first, from 128"),
    ("5.4", cost(lambda c: c.layer * (c.kept + 1) + 128 * c.D), "its last, from D"),
    ("5.4", cost(lambda c: c.layer * c.kept), "left out altogether"),
    ("5.4", cost(lambda c: c.layer + c.time), "operator's alone"),
    ("5.4", cost(lambda c: c.layer * c.layers), "That is the teacher"),
    ("5.4", cost(lambda c: c.layer * (c.kept + 2) + c.time), "you took one less"),
    ("5.4", cost(cache=lambda c: 2 * c.D * c.entries), "several heads of queries share one"),
    ("5.4", cost(cache=lambda c: c.keys * c.entries), "a key *and* a value"),
    ("5.4", cost(cache=lambda c: c.entries), "These are cache entries"),
    ("5.4", cost(cache=lambda c: 2 * c.keys * (c.kept + 1)), "one cache entry for the operator"),
    ("5.4", cost(cache=lambda c: 2 * c.keys * (c.kept + c.k)), "two cache entries per step"),
    ("5.4", cost(cache=lambda c: 2 * c.keys * (c.kept + 2 * c.k)), "one cache entry per step"),
    ("5.4", cost(cache=lambda c: 2 * c.keys * c.kept), "left out the cache entries of the operator"),
    ("5.4", cost(cache=lambda c: 2 * c.keys * c.per * c.k), "those of the layers that stay"),
    ("5.4", cost(cache=lambda c: 2 * c.keys * c.layers), "That is the teacher's"),
    ("5.4", cost(cache=lambda c: 2 * c.kv_heads * c.entries), "multiply the heads of keys by that"),
    ("5.4", lambda *c: right_budget(*c)[::-1], "in another order"),
    ("5.4", lambda *c: right_budget(*c)[1], "(weights, evaluations, cache)"),
    ("5.4", lambda *c: dict(zip("wec", right_budget(*c), strict=True)), "You returned a dict"),
    ("5.4", cost(lambda c: 1.5), "whole numbers"),
    ("5.5", lambda run, text: True, "lets a model pass that keeps nothing"),
    ("5.5", lambda run, text: False, "rejects a right model, one in exact arithmetic"),
    ("5.5", compares(SINGLY, IN_THREE, same=torch.equal), "rejects a right model, one that rounds"),
    ("5.5", lambda run, text: torch.equal(run([text]), text), "rejects a right model"),
    ("5.5", lambda run, text: run([text]), "return True or False"),
    ("5.5", lambda run, text: 1.0, "return True or False"),
    ("5.5", compares((3, 4)), "keeps the last piece only. With two pieces"),
    ("5.5", compares(SINGLY), "see each other's future. Where each later piece"),
    ("5.5", compares(SINGLY, IN_THREE, same=functools.partial(torch.allclose, atol=1.0)), "rounds what it keeps"),
    ("5.5", compares(SINGLY, IN_THREE, part=lambda x: x[:, :1]), "keeps nothing"),
    ("5.5", lambda run, text: run(text).sum() > 0, "Give `run` a list of pieces"),
    ("5.5", lambda run, text: run([text[0]]).sum() > 0, "Each piece must be (1, tokens, D)"),
    ("5.5", lambda run, text: run([]).sum() > 0, "Give `run` a list of pieces"),
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
    assert check("5.1", lambda f: read(44)(f).double().numpy())
    assert check("5.1", by_search)
    assert check("5.2", lambda x, k, *p: u(x, k, *p).numpy())
    assert check("5.2", lambda x, k, a, m, n1, n2: u(x, k[:, None, None], a, m, n1, n2))
    assert check("5.3", lambda *a: right_splice(*a).double())
    assert check("5.3", backwards_in_a_list)
    assert check("5.4", lambda *case: np.array(right_budget(*case)))
    assert check("5.4", lambda *case: [float(number) for number in right_budget(*case)])
    assert check("5.5", compares((1, 2, 4)))
    assert check("5.5", lambda run, text: torch.tensor(compares(SINGLY, IN_THREE)(run, text)))
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
    torch.testing.assert_close(solutions()["5.1"](seen[0]), t, atol=1e-4, rtol=0)
    torch.testing.assert_close(lesson05.features(t).float(), seen[0], atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def llama():
    """Four random layers with grouped queries, a gated MLP and a sequential residual."""
    config = LlamaConfig(
        vocab_size=90, hidden_size=48, intermediate_size=80, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval().requires_grad_(False)


def test_velocity_is_the_librarys(llama):
    velocity = lft.splice(llama, (1, 3), lft.Flow()).operator.velocity
    latents, layer = span_latents(llama, (1, 3), torch.arange(7)[None]), velocity.layer
    with torch.no_grad():
        velocity.modulation.outer.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        knobs = velocity.modulation(torch.tensor(0.4))
        attend = lambda x: layer.self_attn(x, **latents.context)[0]  # noqa: E731
        norms = layer.input_layernorm, layer.post_attention_layernorm
        mine = solutions()["5.2"](latents.x0, knobs, attend, layer.mlp, *norms)
        torch.testing.assert_close(mine, velocity(latents.x0, 0.4, **latents.context), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("solver", "steps"), [("euler", 2), ("midpoint", 3)])
def test_budget_is_what_a_model_costs(llama, solver, steps):
    """Matrices counted one by one, entries in the cache, attentions that run."""
    student, ids = lft.splice(llama, (1, 3), lft.Flow(solver, steps)), torch.arange(7)[None]
    looks = []
    layers = student.model.model.layers
    for layer in (layers[0], student.operator.velocity.layer, layers[-1]):
        layer.self_attn.register_forward_hook(lambda *a: looks.append(1))
    cache = student(input_ids=ids, use_cache=True).past_key_values
    matrices = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
    numbers = sum(entry.keys.numel() + entry.values.numel() for entry in cache.layers) // ids.numel()
    model = {"layers": 4, "width": 48, "heads": 6, "kv_heads": 2, "inner": 80}
    assert solutions()["5.4"](model, (1, 3), solver, steps) == (matrices, len(looks), numbers)


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
    smollm = {"layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "inner": 1536}
    weights, evaluations, cache = right_budget(smollm, (10, 20), "midpoint", 2)
    whole = 30 * lesson05_assembly.layer_weights(576, 9, 3, 1536)
    assert (round(whole / 1e6), round(weights / 1e6), round(1 - weights / whole, 2)) == (106, 76, 0.28)
    assert (evaluations, cache, 30 * 2 * 192) == (24, 9216, 11_520)
    assert lesson05.turn(41) == pytest.approx(2.74, abs=0.005)
    assert lesson05.turn(41) < math.pi < lesson05.turn(40)


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
        assert check("5.3", lambda x, layers, operators, norm, head, y=nonsense: head(y)).message
        assert check("5.5", lambda run, text, y=nonsense: run(y)).message
        assert check("5.5", lambda run, text, y=nonsense: run([y])).message
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
