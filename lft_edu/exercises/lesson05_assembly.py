"""Checks of lesson 05: the splice and its budget."""

import itertools

import torch
from torch import Tensor

from ..flow import EVALUATIONS
from .checking import Wrong, close, describe, exercise, tensor

# --- 5.3 ----------------------------------------------------------------------------------------------------------


class Parts:
    """Layers, an operator, a norm and a head as functions; ``ran`` records the order in which they run.

    With ``digits``, layer i appends the digit i to a number, the operator a 9; norm and head do nothing.
    """

    def __init__(self, layers: int, digits: bool = False):
        self.ran: list = []
        self.shape = (1, 1) if digits else (4, 6)
        generator = torch.Generator().manual_seed(7)
        self.x = 3 * torch.ones(1, 1) if digits else torch.randn(4, 6, generator=generator)
        make = self._digit if digits else lambda name: self._bent(name, generator)
        self.layers = [make(i) for i in range(layers)]
        self.operator = make("operator")
        scale, out = 1 + torch.rand(6, generator=generator), torch.randn(6, 8, generator=generator)
        centered = lambda x: (x - x.mean(-1, True)) * scale + 0.3  # noqa: E731
        self.norm = self._noted("norm", (lambda x: x) if digits else centered)
        self.head = self._noted("head", (lambda x: x) if digits else lambda x: x @ out)

    def _noted(self, name, function):
        def part(x, *args, **kwargs):
            if not isinstance(x, Tensor) or tuple(x.shape) != self.shape:
                what = f"layer {name}" if isinstance(name, int) else f"the {name}"
                raise Wrong(f"You handed {what} {describe(x)}; it takes states, {self.shape}.")
            self.ran.append(name)
            return function(x)

        return part

    def _digit(self, name):
        return self._noted(name, lambda x: 10 * x + (9 if name == "operator" else name))

    def _bent(self, name, generator):
        matrix, shift = torch.randn(6, 6, generator=generator), torch.randn(6, generator=generator)
        return self._noted(name, lambda x: x + torch.tanh(x @ matrix + shift))

    def run(self, names, x: Tensor | None = None) -> Tensor:
        x = self.x if x is None else x
        for name in names:
            x = (self.layers[name] if isinstance(name, int) else getattr(self, name))(x)
        return x


def spliced(layers: int, m: int, n: int) -> list:
    """Return the parts of a spliced model, in order."""
    return [*range(m), "operator", *range(n, layers), "norm", "head"]


def explain_run(ran: list, layers: int, m: int, n: int) -> str:
    """Explain why these parts in this order are not the spliced model; empty if they are."""
    right, all_of = spliced(layers, m, n), [*range(layers)]
    if ran == right:
        return ""
    head, span, tail, op, out = all_of[:m], all_of[m:n], all_of[n:], ["operator"], ["norm", "head"]
    ends = "Layers are counted from 0, and the span is half open: layers[:m] and layers[n:]."
    for message, run in {
        f"The tail begins at layer m = {m}, so the replaced layers run too. It is layers[n:].":
            head + op + span + tail + out,
        f"Layers {m} … {n - 1} run, and then the operator. It replaces them: the head is layers[:m].":
            head + span + op + tail + out,
        f"Layer {n} is missing. The span [m, n) is half open: layer n = {n} stays.": head + op + tail[1:] + out,
        f"Layer {n - 1} runs though it is replaced: the tail begins at n = {n}, layers[n:].":
            head + op + all_of[n - 1 :] + out,
        f"Layer {m - 1} is missing: the head is layers[:m], up to layer {m - 1}.": head[:-1] + op + tail + out,
        f"Layer {m} runs though it is replaced: the head is layers[:m], up to layer {m - 1}.":
            all_of[: m + 1] + op + tail + out,
        f"Both ends are one layer early. {ends}": head[:-1] + op + all_of[n - 1 :] + out,
        f"Both ends are one layer late. {ends}": all_of[: m + 1] + op + tail[1:] + out,
        f"You took the span for [m, n + 1), one layer more at each end. {ends}": head[:-1] + op + tail[1:] + out,
        "Layer 0 is missing: layers are counted from 0.": head[1:] + op + tail + out,
        f"Layer {layers - 1}, the last one, is missing: layers[n:] runs to the end.": head + op + tail[:-1] + out,
        f"The operator ran {n - m} times, once for each replaced layer. It replaces all of them: run it once.":
            head + op * (n - m) + tail + out,
        "The operator never ran: these are the layers with the span skipped.": head + tail + out,
        "The operator never ran: this is the whole teacher.": all_of + out,
        "The operator ran after all layers: it replaces the span.": all_of + op + out,
        "The operator ran after the tail: it belongs between head and tail.": head + tail + op + out,
        "The operator ran first: it belongs between head and tail.": op + head + tail + out,
        "The final norm is missing: the head was trained on normalized states.": head + op + tail + ["head"],
        "The final norm ran twice. Once, after the last layer.": head + op + tail + ["norm", *out],
        "The final norm ran after the operator, too. Hidden states are not normalized: run it once, after the last "
        "layer.": [*head, "operator", "norm", *tail, *out],
        "The final norm ran before the tail. It runs after the last layer.":
            [*head, "operator", "norm", *tail, "head"],
        "The final norm ran before the operator, too: once, after the last layer.":
            [*head, "norm", "operator", *tail, *out],
        "The norm ran after the head: first norm, then head.": head + op + tail + out[::-1],
        "The tail never ran.": head + op + out,
        "The head layers never ran.": op + tail + out,
        "Only the operator ran: head layers come before it, tail layers after it.": op + out,
        "Head and tail are exchanged.": tail + op + head + out,
        "You ran the layers of the span: they are the ones replaced.": span + op + out,
        "The head runs backwards.": head[::-1] + op + tail + out,
        "The tail runs backwards.": head + op + tail[::-1] + out,
    }.items():  # fmt: skip
        if run == ran:
            return message
    say = lambda run: " ".join(str(name) for name in run) or "nothing"  # noqa: E731
    return f"You ran: {say(ran[:40])}.\nIt should be: {say(right)}."


@exercise("5.3", "The splice", difficulty=1, minutes=8)
def splice(answer):
    def run(layers, span, digits=False):
        parts = Parts(layers, digits)
        given = list(parts.layers)
        value = answer.uncopied(parts.x.clone(), given, span, parts.operator, parts.norm, parts.head)
        if given != parts.layers:
            raise Wrong("You changed the list of layers itself: the teacher would lose them. Take slices: layers[:m].")
        return parts, value

    yield "logits, one row per token"
    parts, value = run(8, (2, 5))
    value = tensor(value, None, "the logits")
    if tuple(value.shape) == (4, 6):
        raise Wrong("You returned states, (4, 6). Compute the logits: head(norm(x)).")
    if tuple(value.shape) in ((4,), (8,)):
        raise Wrong(f"You returned {describe(value)}: return the logits of every token, (4, 8).")
    tensor(value, (4, 8), "the logits", "tokens, vocabulary")
    yield "by hand: layer i appends the digit i, the operator a 9; it replaces layers 2, 3 of six: 3 becomes 301 9 45"
    counting, number = run(6, (2, 4), digits=True)
    made = float(tensor(number, (1, 1), "the number"))
    if made != 301_945:
        message = explain_run(counting.ran, 6, 2, 4)
        try:
            if not message:  # the right parts in the right order: which of them read the wrong state?
                _compare(value, 8, 2, 5)
        except Wrong as wrong:
            message = str(wrong)
        raise Wrong(f"Your model turns 3 into {made:.0f}. {message}".strip())
    yield "norm and head run once, at the end"
    if message := explain_run(parts.ran, 8, 2, 5):
        raise Wrong(message)
    yield "each part reads the output of the one before"
    _compare(value, 8, 2, 5)
    yield "any span, also at the edges of the model"
    for layers, (m, n) in ((8, (0, 3)), (8, (5, 8)), (8, (0, 8)), (5, (2, 3)), (1, (0, 1))):
        parts, value = run(layers, (m, n))
        if message := explain_run(parts.ran, layers, m, n):
            raise Wrong(f"Span ({m}, {n}) of {layers} layers: {message}")
        _compare(value, layers, m, n)


def _compare(value, layers: int, m: int, n: int) -> None:
    """Compare the logits, given that the right parts ran in the right order."""
    parts = Parts(layers)
    before, tail = parts.run(range(m)), [*range(n, layers), "norm", "head"]
    after = parts.operator(before)
    right = parts.run(tail, after)
    close(value, right, f"the logits of {layers} layers, span ({m}, {n})", {
        "The operator read the input of layer 0, not the output of the head layers.":
            parts.run(tail, parts.operator(parts.x)),
        "You added the operator's output to its input. An operator gives the new state, not a change of it.":
            parts.run(tail, before + after),
        "You discarded the operator's output: the tail read the output of the head layers.": parts.run(tail, before),
        "The tail read the input of layer 0.": parts.run(tail, parts.x),
        "These are probabilities: return logits, without softmax.": right.softmax(-1),
        "These are log-probabilities: return logits.": right.log_softmax(-1),
    })  # fmt: skip


# --- 5.4 ----------------------------------------------------------------------------------------------------------

TIME_FEATURES = 128  # the time embedding has matrices D × 128 and 6D × D


def budget(layers: int, width: int, span: tuple[int, int], solver: str, steps: int) -> tuple[int, int, int]:
    """Return weights in the layers, layer evaluations per token, and cached numbers per token."""
    kept = layers - (span[1] - span[0])
    evaluations = kept + steps * EVALUATIONS[solver]
    parameters = 12 * width**2 * (kept + 1) + TIME_FEATURES * width + 6 * width**2
    return parameters, evaluations, 2 * width * evaluations


def _wrong_evaluations(layers, width, span, solver, steps) -> dict[str, int]:
    gone, per_step = span[1] - span[0], EVALUATIONS[solver]
    kept = layers - gone
    edges = (
        f"The span [{span[0]}, {span[1]}) is half open: it replaces layers {span[0]} … {span[1] - 1}, {gone} of them."
    )
    return {
        "A midpoint step needs two evaluations.": kept + steps,
        "An Euler step needs one evaluation.": kept + 2 * steps,
        "You left out k, the number of steps: the operator is evaluated in each.": kept + per_step,
        "The operator is one layer's *weights*, but it is evaluated k times with Euler, 2k times with midpoint.":
            kept + 1,
        f"{edges} You took one more.": kept - 1 + steps * per_step,
        f"{edges} You took one less.": kept + 1 + steps * per_step,
        "Count the whole model: the layers that stay are evaluated, too.": steps * per_step,
        "The operator is evaluated, too: k times with Euler, 2k times with midpoint.": kept,
        "Nothing is replaced in your count: subtract the layers of the span.": layers + steps * per_step,
        "You counted the layers of the span, which are gone, instead of those that stay.": gone + steps * per_step,
        "That is the teacher.": layers,
    }  # fmt: skip


def _wrong_parameters(layers, width, span, solver, steps) -> dict[str, int]:
    kept, per_step = layers - (span[1] - span[0]), EVALUATIONS[solver]
    layer, embedding, evaluations = 12 * width**2, TIME_FEATURES * width + 6 * width**2, steps * per_step
    return {
        "You left out the time embedding: 128·D + 6·D² weights that map the time to six modulations per channel.":
            layer * (kept + 1),
        "One layer is missing. Did you leave out the operator's own (a velocity is a layer and a time embedding), or "
        "take a layer too many for the span, which is half open?": layer * kept + embedding,
        "You counted the operator once per evaluation. All evaluations use the same weights; that is the point.":
            layer * kept + evaluations * (layer + embedding),
        "You counted the operator's layer once per evaluation. All evaluations use the same weights; that is the "
        "point.": layer * (kept + evaluations) + embedding,
        "You counted the operator's weights once per step. They are the same in all.":
            layer * kept + steps * (layer + embedding),
        "You counted the operator's layer once per step. It is the same in all.": layer * (kept + steps) + embedding,
        "Of the time embedding you have 6·D², its last matrix; its first, from 128 features to D, is missing.":
            layer * (kept + 1) + 6 * width**2,
        "Of the time embedding you have 128·D, its first matrix; its last, from D to 6·D modulations, is missing.":
            layer * (kept + 1) + TIME_FEATURES * width,
        "The time embedding's last matrix goes from D to 6·D: 6·D² weights, not 6·D.":
            layer * (kept + 1) + TIME_FEATURES * width + 6 * width,
        "The time embedding's last matrix gives *six* modulations per channel: 6·D², not D².":
            layer * (kept + 1) + TIME_FEATURES * width + width**2,
        "The operator is left out altogether: a layer, 12·D², and a time embedding, 128·D + 6·D².": layer * kept,
        "These are the operator's alone: count the layers that stay, too.": layer + embedding,
        "That is the teacher.": layer * layers,
        "The span is half open: n − m layers are replaced, and you took one less.": layer * (kept + 2) + embedding,
        "A layer has 12·D² weights; you have 4·D², attention's alone.": 4 * width**2 * (kept + 1) + embedding,
        "A layer has 12·D² weights; you have 8·D², the MLP's alone.": 8 * width**2 * (kept + 1) + embedding,
        "A layer has 12·D² weights, not 12·D.": 12 * width * (kept + 1) + embedding,
    }  # fmt: skip


def _wrong_cache(layers, width, span, solver, steps) -> dict[str, int]:
    kept, per_step = layers - (span[1] - span[0]), EVALUATIONS[solver]
    entries = kept + steps * per_step
    return {
        "A cache entry is a key *and* a value, D numbers each: 2·D.": width * entries,
        "These are cache entries. Each keeps a key and a value, D numbers each: 2·D numbers per token.": entries,
        "You have one cache entry for the operator: each evaluation has different keys, and needs its own entry.":
            2 * width * (kept + 1),
        "A midpoint step has two evaluations, at different states with different keys: two cache entries per step.":
            2 * width * (kept + steps),
        "An Euler step has one evaluation: one cache entry per step.": 2 * width * (kept + 2 * steps),
        "You left out the cache entries of the operator: its attention has keys, too, in each evaluation.":
            2 * width * kept,
        "Each attention has a cache entry: those of the layers that stay, too.": 2 * width * steps * per_step,
        "That is the teacher's.": 2 * width * layers,
        "A cache entry is two vectors, 2·D, not D² numbers.": width**2 * entries,
    }  # fmt: skip


@exercise("5.4", "The budget", difficulty=2, minutes=10)
def cost(answer):
    """Check each of the three numbers separately, to recognize its mistakes."""
    names = "the weights in the layers", "the evaluations per token", "the numbers in the cache per token"

    def compare(which, *case):
        layers, width, (m, n), solver, steps = case
        value, right = tensor(answer(*case), (3,), "the budget"), budget(*case)
        mistakes = (_wrong_parameters, _wrong_evaluations, _wrong_cache)[which](*case)
        what = f"{names[which]} ({layers} layers, D = {width}, {m}–{n}, {solver} × {steps})"
        close(value[which], right[which], what, mistakes, tolerance=1e-9)

    yield "three numbers: weights, evaluations, cache"
    first = 24, 64, (6, 12), "midpoint", 3
    value, right = answer(*first), torch.tensor(budget(*first)).double()
    if isinstance(value, dict):
        raise Wrong("You returned a dict: return a tuple (weights, evaluations, cache).")
    value = tensor(value, (3,), "the budget", "(weights, evaluations, cache)")
    if bool((value != value.round()).any()):
        raise Wrong(f"You returned {value.tolist()}: all three are counted in whole numbers. Is there a / for a //?")
    if any(torch.equal(value[list(p)], right) for p in itertools.permutations(range(3))) and not value.equal(right):
        raise Wrong("The right numbers in another order: return (weights, evaluations, cache).")
    rest = [
        (24, 64, (6, 18), "euler", 1),
        (24, 1024, (6, 12), "midpoint", 3),
        (32, 96, (0, 9), "midpoint", 2),
        (12, 80, (4, 12), "euler", 5),
    ]
    yield "evaluations by hand: 24 layers, 6 of them replaced by three midpoint steps: 18 + 3 · 2 = 24"
    compare(1, *first)
    yield "evaluations by hand: 24 layers, 12 of them replaced by one Euler step: 12 + 1 = 13"
    compare(1, *rest[0])
    yield "weights by hand: 24 layers, D = 64, 6 replaced: 12 · 64² · (18 + 1) + 128 · 64 + 6 · 64² = 966,656"
    compare(0, *first)
    yield "cache by hand: 24 entries of a key and a value, 2 · 64 numbers each: 3072"
    compare(2, *first)
    yield "other models, spans, solvers and k"
    for case, which in itertools.product(rest, (1, 0, 2)):
        compare(which, *case)
