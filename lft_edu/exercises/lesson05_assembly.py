"""Checks of lesson 05: a splice of several spans, and the budget of a model with grouped-query attention."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ..flow import EVALUATIONS
from .checking import Wrong, close, describe, exercise, tensor

# --- 5.3 ----------------------------------------------------------------------------------------------------------

Spans = dict[str, tuple[int, int]]  # an operator's name, A, B or C → the layers that it replaces


class Parts:
    """Layers, operators, a norm and a head as functions; ``ran`` records the order in which they run.

    With ``digits``, layer i appends the digit i to a number, the operators A, B and C a 7, an 8 and a 9; norm and head
    do nothing.
    """

    def __init__(self, layers: int, digits: bool = False):
        self.ran: list = []
        self.shape = (1, 1) if digits else (4, 6)
        generator = torch.Generator().manual_seed(7)
        self.x = 3 * torch.ones(1, 1) if digits else torch.randn(4, 6, generator=generator)
        make = self._digit if digits else lambda name: self._bent(name, generator)
        self.layers = [make(i) for i in range(layers)]
        self.named = {name: make(name) for name in "ABC"}
        scale, out = 1 + torch.rand(6, generator=generator), torch.randn(6, 8, generator=generator)
        centered = lambda x: (x - x.mean(-1, True)) * scale + 0.3  # noqa: E731
        self.named["norm"] = self._noted("norm", (lambda x: x) if digits else centered)
        self.named["head"] = self._noted("head", (lambda x: x) if digits else lambda x: x @ out)

    def _noted(self, name, function):
        def part(x, *args, **kwargs):
            if not isinstance(x, Tensor) or tuple(x.shape) != self.shape:
                what = (
                    f"layer {name}" if isinstance(name, int) else f"the {name}" if len(name) > 1 else f"operator {name}"
                )
                raise Wrong(f"You handed {what} {describe(x)}; it takes states, {self.shape}.")
            self.ran.append(name)
            return function(x)

        return part

    def _digit(self, name):
        return self._noted(name, lambda x: 10 * x + (name if isinstance(name, int) else 7 + "ABC".index(name)))

    def _bent(self, name, generator):
        matrix, shift = torch.randn(6, 6, generator=generator), torch.randn(6, generator=generator)
        return self._noted(name, lambda x: x + torch.tanh(x @ matrix + shift))

    def run(self, names, use: Callable = lambda name, x, y: y) -> Tensor:
        """Run these parts; ``use(name, x, y)`` is what the next one reads after a part made y of x."""
        x = self.x
        for name in names:
            x = use(name, x, (self.layers[name] if isinstance(name, int) else self.named[name])(x))
        return x


def runs(layers: int, spans: Spans, of=lambda name, m, n: ([name], m, n)) -> list:
    """Return layers and operators in the order in which they run; ``of`` says what stands for which layers [m, n)."""
    parts, i = [], 0
    for name, (m, n) in sorted(spans.items(), key=lambda item: item[1]):
        put, start, end = of(name, m, n)
        parts += [*range(i, start), *put]
        i = end
    return [*parts, *range(i, layers)]


def cut_out(layers: int, spans: list) -> list:
    """Return what a list holds after each of these spans was replaced in it, one after the other."""
    parts: list = [*range(layers)]
    for name, (m, n) in spans:
        parts[m:n] = [name]
    return parts


def explain_run(ran: list, layers: int, spans: Spans) -> str:
    """Explain why these parts in this order are not the spliced model; empty if they are."""
    body, out, names = runs(layers, spans), ["norm", "head"], [*spans]
    right = body + out
    if ran == right:
        return ""
    upward = sorted(spans.items(), key=lambda item: item[1])
    shift = (
        "You replaced the spans in the list of layers one after the other. Each replacement makes the list shorter, "
        "and the later spans then mean other layers. m and n count the *teacher's* layers."
    )
    ends = "A span is half open: layers m … n − 1 go, layer n stays."
    taken = dict(zip(names, [span for _, span in upward], strict=True))
    with_norms = list(itertools.chain(*([name, "norm"] if name in spans else [name] for name in body)))
    for message, run in {
        f"{shift} (You took them as they were given.)": cut_out(layers, [*spans.items()]) + out,
        shift: cut_out(layers, upward) + out,
        "You sorted the spans, but not their operators with them: each stands in another one's place.":
            runs(layers, taken) + out,
        f"{ends} You took out layer n, too.": runs(layers, spans, lambda name, m, n: ([name], m, n + 1)) + out,
        f"{ends} Layer n − 1 still runs.": runs(layers, spans, lambda name, m, n: ([name], m, n - 1)) + out,
        f"{ends} Layer m still runs.": runs(layers, spans, lambda name, m, n: ([name], m + 1, n)) + out,
        f"{ends} You took out layer m − 1, too.": runs(layers, spans, lambda name, m, n: ([name], m - 1, n)) + out,
        "The operators ran, and so did the layers that they replace.":
            runs(layers, spans, lambda name, m, n: ([name], m, m)) + out,
        "The layers of the spans ran, and then the operators. They replace them.":
            runs(layers, spans, lambda name, m, n: ([name], n, n)) + out,
        "The operators never ran: these are the layers with the spans skipped.":
            runs(layers, spans, lambda name, m, n: ([], m, n)) + out,
        "No operator ran: this is the whole teacher.": [*range(layers), *out],
        "An operator ran once for each layer that it replaces. It replaces all of them: run it once.":
            runs(layers, spans, lambda name, m, n: ([name] * (n - m), m, n)) + out,
        "Only the first operator that was given is in its place.": runs(layers, dict([*spans.items()][:1])) + out,
        "Only the last operator that was given is in its place.": runs(layers, dict([*spans.items()][-1:])) + out,
        "Nothing ran after the last operator: the layers behind it are missing.":
            body[: len(body) - (layers - max((n for _, n in spans.values()), default=0))] + out,
        "Layer 0 is missing: layers are counted from 0.": body[1:] + out,
        "The operators ran after all the layers that stay. Each belongs where its span was.":
            [part for part in body if part not in spans] + names + out,
        "The final norm is missing: the head was trained on normalized states.": [*body, "head"],
        "The final norm ran twice. Once, after the last layer.": [*body, "norm", *out],
        "The final norm ran after each operator. Hidden states are not normalized: run it once, after the last layer.":
            with_norms + out,
        "The norm ran after the head: first norm, then head.": body + out[::-1],
    }.items():  # fmt: skip
        if run == ran:
            return message
    say = lambda run: " ".join(str(name) for name in run) or "nothing"  # noqa: E731
    return f"You ran: {say(ran[:40])}.\nIt should be: {say(right)}."


@exercise("5.3", "Several splices", difficulty=2, minutes=12)
def splice(answer):
    def run(layers, spans, digits=False):
        parts = Parts(layers, digits)
        given, pairs = list(parts.layers), [(span, parts.named[name]) for name, span in spans.items()]
        told = list(pairs)
        value = answer.uncopied(parts.x.clone(), given, pairs, parts.named["norm"], parts.named["head"])
        if given != parts.layers:
            raise Wrong("You changed the list of layers itself: the teacher would lose them. Make a new list.")
        if pairs != told:
            raise Wrong(
                "You changed the list of operators itself, as .sort() and .pop() do: sorted(…) makes a new one."
            )
        return parts, value

    first: Spans = {"A": (5, 7), "B": (1, 3)}
    yield "logits, one row per token"
    parts, value = run(8, first)
    value = tensor(value, None, "the logits")
    if tuple(value.shape) == (4, 6):
        raise Wrong("You returned states, (4, 6). Compute the logits: head(norm(x)).")
    if tuple(value.shape) in ((4,), (8,)):
        raise Wrong(f"You returned {describe(value)}: return the logits of every token, (4, 8).")
    tensor(value, (4, 8), "the logits", "tokens, vocabulary")
    yield (
        "by hand: layer i appends the digit i, operator A a 7, B an 8. A replaces layers 4, 5 of six, B layers 1, 2: 3 "
        "becomes 30837"
    )
    counting, number = run(6, {"A": (4, 6), "B": (1, 3)}, digits=True)
    made = float(tensor(number, (1, 1), "the number"))
    if made != 30_837:
        message = explain_run(counting.ran, 6, {"A": (4, 6), "B": (1, 3)})
        try:
            if not message:  # the right parts in the right order: which of them read the wrong state?
                _compare(value, 8, first)
        except Wrong as wrong:
            message = str(wrong)
        raise Wrong(f"Your model turns 3 into {made:.0f}. {message}".strip())
    yield "each part once, norm and head at the end"
    if message := explain_run(parts.ran, 8, first):
        raise Wrong(message)
    yield "each part reads the output of the one before"
    _compare(value, 8, first)
    yield "spans in any order, side by side, at the edges, one or none"
    cases: list[tuple[int, Spans]] = [
        (8, {"A": (1, 3), "B": (5, 7)}),
        (6, {"A": (2, 4), "B": (4, 5), "C": (0, 2)}),
        (9, {"A": (7, 9), "B": (0, 1), "C": (3, 6)}),
        (8, {"A": (0, 8)}),
        (5, {"A": (2, 3)}),
        (3, {}),
    ]
    for layers, spans in cases:
        parts, value = run(layers, spans)
        if message := explain_run(parts.ran, layers, spans):
            raise Wrong(f"{layers} layers, spans {[*spans.values()]}: {message}")
        _compare(value, layers, spans)


def _compare(value, layers: int, spans: Spans) -> None:
    """Compare the logits, given that the right parts ran in the right order."""
    names = [*runs(layers, spans), "norm", "head"]
    after = lambda use: Parts(layers).run(names, lambda name, x, y: use(x, y) if name in spans else y)  # noqa: E731
    right = after(lambda x, y: y)
    close(value, right, f"the logits of {layers} layers, spans {[*spans.values()]}", {
        "You added the operator's output to its input. An operator gives the new state, not a change of it.":
            after(lambda x, y: x + y),
        "You discarded the operators' outputs: the layers after them read what the operators had read.":
            after(lambda x, y: x),
        "These are probabilities: return logits, without softmax.": right.softmax(-1),
        "These are log-probabilities: return logits.": right.log_softmax(-1),
    })  # fmt: skip


# --- 5.4 ----------------------------------------------------------------------------------------------------------

TIME_FEATURES = 128  # the time embedding has matrices D × 128 and 6D × D


def layer_weights(width: int, heads: int, kv_heads: int, inner: int) -> int:
    """Return the weights of a layer with grouped-query attention and a gated MLP."""
    shared = width // heads * kv_heads  # numbers in a token's keys: as many as in its values
    return 2 * width**2 + 2 * width * shared + 3 * width * inner


def budget(model: dict[str, int], span: tuple[int, int], solver: str, steps: int) -> tuple[int, int, int]:
    """Return weights in the layers, layer evaluations per token, and cached numbers per token."""
    width, heads, kv_heads, inner = (model[key] for key in ("width", "heads", "kv_heads", "inner"))
    kept = model["layers"] - (span[1] - span[0])
    evaluations = kept + steps * EVALUATIONS[solver]
    embedding = TIME_FEATURES * width + 6 * width**2
    weights = layer_weights(width, heads, kv_heads, inner) * (kept + 1) + embedding
    return weights, evaluations, 2 * (width // heads * kv_heads) * evaluations


def _wrong_evaluations(model, span, solver, steps) -> dict[str, int]:
    layers, gone, per_step = model["layers"], span[1] - span[0], EVALUATIONS[solver]
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


def _wrong_parameters(model, span, solver, steps) -> dict[str, int]:
    width, heads, kv_heads, inner = (model[key] for key in ("width", "heads", "kv_heads", "inner"))
    kept, evaluations = model["layers"] - (span[1] - span[0]), steps * EVALUATIONS[solver]
    layer, embedding = layer_weights(width, heads, kv_heads, inner), TIME_FEATURES * width + 6 * width**2
    shared = width // heads * kv_heads
    as_if = lambda other: other * (kept + 1) + embedding  # noqa: E731
    return {
        "A layer of 12·D² is the lesson's, of GPT-NeoX. Count this one's matrices.": as_if(12 * width**2),
        "Keys and values have fewer heads than queries here: their matrices are D × (kv_heads · D / heads).":
            as_if(4 * width**2 + 3 * width * inner),
        "Only queries have all heads: the matrices of keys *and* values are smaller, the output's is D × D again.":
            as_if(3 * width**2 + width * shared + 3 * width * inner),
        "Attention has four matrices; the output's, D × D, is missing.":
            as_if(width**2 + 2 * width * shared + 3 * width * inner),
        "The output's matrix is D × D: it reads the heads of the queries.":
            as_if(width**2 + 3 * width * shared + 3 * width * inner),
        "This MLP is gated: it has three matrices, not two.":
            as_if(2 * width**2 + 2 * width * shared + 2 * width * inner),
        "You have attention's weights alone: add the MLP's.": as_if(2 * width**2 + 2 * width * shared),
        "You have the MLP's weights alone: add attention's.": as_if(3 * width * inner),
        "A head of keys has D / heads numbers, and there are kv_heads of them. You took kv_heads numbers in all.":
            as_if(2 * width**2 + 2 * width * kv_heads + 3 * width * inner),
        "You left out the time embedding: 128·D + 6·D² weights that map the time to six modulations per channel.":
            layer * (kept + 1),
        "One layer is missing. Did you leave out the operator's own (a velocity is a layer and a time embedding), or "
        "take a layer too many for the span, which is half open?": layer * kept + embedding,
        "You counted the operator once per evaluation. All evaluations use the same weights; that is the point.":
            layer * kept + evaluations * (layer + embedding),
        "You counted the operator's layer once per evaluation. All evaluations use the same weights; that is the "
        "point.": layer * (kept + evaluations) + embedding,
        "Of the time embedding you have 6·D², its last matrix; its first, from 128 features to D, is missing.":
            layer * (kept + 1) + 6 * width**2,
        "Of the time embedding you have 128·D, its first matrix; its last, from D to 6·D modulations, is missing.":
            layer * (kept + 1) + TIME_FEATURES * width,
        "The operator is left out altogether: a layer and a time embedding, 128·D + 6·D².": layer * kept,
        "These are the operator's alone: count the layers that stay, too.": layer + embedding,
        "That is the teacher.": layer * model["layers"],
        "The span is half open: n − m layers are replaced, and you took one less.": layer * (kept + 2) + embedding,
    }  # fmt: skip


def _wrong_cache(model, span, solver, steps) -> dict[str, int]:
    width, shared = model["width"], model["width"] // model["heads"] * model["kv_heads"]
    kept, per_step = model["layers"] - (span[1] - span[0]), EVALUATIONS[solver]
    entries = kept + steps * per_step
    return {
        "A key of D numbers is the lesson's. Here a token's keys have kv_heads · D / heads numbers: several heads of "
        "queries share one.": 2 * width * entries,
        "A cache entry is a key *and* a value: twice as many numbers.": shared * entries,
        "These are cache entries. Each keeps the keys and the values of a token.": entries,
        "You have one cache entry for the operator: each evaluation has different keys, and needs its own entry.":
            2 * shared * (kept + 1),
        "A midpoint step has two evaluations, at different states with different keys: two cache entries per step.":
            2 * shared * (kept + steps),
        "An Euler step has one evaluation: one cache entry per step.": 2 * shared * (kept + 2 * steps),
        "You left out the cache entries of the operator: its attention has keys, too, in each evaluation.":
            2 * shared * kept,
        "Each attention has a cache entry: those of the layers that stay, too.": 2 * shared * steps * per_step,
        "That is the teacher's.": 2 * shared * model["layers"],
        "A head has D / heads numbers: multiply the heads of keys by that.": 2 * model["kv_heads"] * entries,
    }  # fmt: skip


@exercise("5.4", "The budget of another family", difficulty=2, minutes=15)
def cost(answer):
    """Check each of the three numbers separately, to recognize its mistakes."""
    names = "the weights in the layers", "the evaluations per token", "the numbers in the cache per token"

    def compare(which, *case):
        model, (m, n), solver, steps = case
        value, right = tensor(answer(*case), (3,), "the budget"), budget(*case)
        mistakes = (_wrong_parameters, _wrong_evaluations, _wrong_cache)[which](*case)
        what = f"{names[which]} ({model}, layers {m}–{n}, {solver} × {steps})"
        close(value[which], right[which], what, mistakes, tolerance=1e-9)

    def model(layers, width, heads, kv_heads, inner):
        return {"layers": layers, "width": width, "heads": heads, "kv_heads": kv_heads, "inner": inner}

    yield "three numbers: weights, evaluations, cache"
    first = model(24, 64, 4, 2, 160), (6, 12), "midpoint", 3
    value, right = answer(*first), torch.tensor(budget(*first)).double()
    if isinstance(value, dict):
        raise Wrong("You returned a dict: return a tuple (weights, evaluations, cache).")
    value = tensor(value, (3,), "the budget", "(weights, evaluations, cache)")
    if bool((value != value.round()).any()):
        raise Wrong(f"You returned {value.tolist()}: all three are counted in whole numbers. Is there a / for a //?")
    if any(torch.equal(value[list(p)], right) for p in itertools.permutations(range(3))) and not value.equal(right):
        raise Wrong("The right numbers in another order: return (weights, evaluations, cache).")
    yield "evaluations by hand: 24 layers, 6 of them replaced by three midpoint steps: 18 + 3 · 2 = 24"
    compare(1, *first)
    yield "cache by hand: 24 entries of keys and values, 2 heads of 16 numbers each: 24 · 2 · 32 = 1536"
    compare(2, *first)
    yield "weights by hand: 19 layers of 2 · 64² + 2 · 64 · 32 + 3 · 64 · 160, and 128 · 64 + 6 · 64²: 849,920"
    compare(0, *first)
    yield "other models, spans, solvers and k"
    rest = [
        (model(30, 576, 9, 3, 1536), (10, 20), "midpoint", 2),
        (model(24, 64, 4, 1, 96), (6, 18), "euler", 1),
        (model(32, 96, 6, 6, 300), (0, 9), "midpoint", 2),
        (model(12, 80, 5, 1, 200), (4, 12), "euler", 5),
    ]
    for case, which in itertools.product(rest, (1, 0, 2)):
        compare(which, *case)
