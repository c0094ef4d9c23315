"""Checks of lesson 04: hidden states, PCA, attention sink, logit lens, curvature."""

from contextlib import suppress

import torch
from torch import Tensor

from ..latents import hidden_states_at_all_layers
from .checking import Wrong, close, describe, exercise, tensor


def small_model(layers: int):
    """Build a random GPT-NeoX of width 32 in which every weight matters, including those of the final norm."""
    from ..loading.teachers import build_model

    model = build_model(32, 50, layers=layers, seed=1).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():
        p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model


def hooks_on(model) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


@exercise("4.1", "Catch the states", difficulty=2, minutes=12)
def catch(answer):
    model, ids = small_model(3), torch.tensor([[3, 41, 7, 7, 20]])
    right = torch.stack(hidden_states_at_all_layers(model, ids)[0])[:, 0]
    listed = torch.cat(model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states)
    before = hooks_on(model)
    yield "one tensor, (L + 1, T, D)"
    mine = _states(answer(model, ids), right, listed)

    yield "the input of layer 0, then the output of each layer, before the final norm"
    normed = model.gpt_neox.final_layer_norm(right)
    close(mine, right, "the states", {
        "The last state is *after* the final norm: that is what output_hidden_states gives. The states live in one "
        "space only before it. Hook the last layer.": listed,
        "All states went through the final norm. Return the outputs of the layers.": normed,
        "Off by one: you begin after layer 0 and end after the final norm.": torch.cat([right[1:], normed[-1:]]),
        "The input of layer 0 is there twice, the output of the last layer is missing.":
            torch.cat([right[:1], right[:-1]]),
        "The order is reversed: depth 0 comes first.": right.flip(0),
        "All your states are the last one. Does your hook keep a name that changes, instead of appending?":
            right[-1:].expand_as(right),
        "All your states are the first one. Hook every layer, not one.": right[:1].expand_as(right),
    })  # fmt: skip
    yield "the model is left as it was"
    if left := hooks_on(model) - before:
        raise Wrong(
            f"Your function left hooks on the model ({left}). They run at every later pass and keep their "
            "recorded states in memory. Keep the handle that register_…_hook returns, and call .remove() on it."
        )
    yield "any depth, any length"
    for model, ids in ((small_model(2), torch.arange(9)[None]), (small_model(6), torch.tensor([[8]]))):
        want = torch.stack(hidden_states_at_all_layers(model, ids)[0])[:, 0]
        close(_states(answer(model, ids), want, want), want, f"the states of {len(want) - 1} layers")


def _states(value, right: Tensor, listed: Tensor) -> Tensor:
    """Return the answer as (L+1, T, D), or explain what is wrong with its shape."""
    if isinstance(value, list | tuple):
        raise Wrong(f"You returned a {type(value).__name__} of {len(value)}: make one tensor of it, torch.stack(…).")
    (depths, tokens, width), found = right.shape, tensor(value, None, "the states")
    shape, layers = tuple(found.shape), depths - 1
    if len(shape) == 4 and shape[-2:] == (tokens, width) and 1 in shape[:2]:
        raise Wrong(f"You returned {describe(found)}: the batch axis is left in. There is one text: take state[0].")
    if len(shape) == 3 and shape[1:] == (tokens, width) and shape[0] != depths:
        here = f"You returned {shape[0]} states; {layers} layers have {depths} depths, before, between and after them."
        for message, outcome in {
            "The input of layer 0 is missing: a forward *pre*-hook on layer 0 records it.": right[1:],
            "The output of the last layer is missing: pre-hooks alone do not record it.": right[:-1],
            "The input of layer 0 is missing, and the last state is after the final norm.": listed[1:],
            "Each state between two layers is there twice: one pre-hook, on layer 0, is enough.":
                torch.stack([right[:-1], right[1:]], 1).flatten(0, 1),
        }.items():  # fmt: skip
            if found.shape == outcome.shape and torch.allclose(found, outcome.double(), atol=1e-4):
                raise Wrong(f"{here} {message}")
        raise Wrong(here)
    return tensor(found, (depths, tokens, width), "the states", "depths, tokens, width")


def cloud(n: int, width: int, seed: int) -> Tensor:
    """Draw points off the origin, with different variances along directions that are not coordinate axes."""
    generator = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    spread = 4 * 0.6 ** torch.arange(width)
    return torch.randn(n, width, generator=generator) * spread @ turned + 3 * torch.randn(width, generator=generator)


def _axes(states: Tensor) -> Tensor:
    return torch.linalg.svd(states).Vh  # (D, D), one axis per row


def align_signs(picture, like: Tensor) -> Tensor:
    """Flip the sign of each axis to match another projection: the signs of a PCA are arbitrary."""
    turn = (picture - like).square().sum(0) > (picture + like).square().sum(0)
    return torch.where(turn, -picture, picture)


@exercise("4.2", "One frozen picture", difficulty=2, minutes=12)
def project(answer):
    fitted, other = cloud(40, 6, 1), cloud(25, 6, 2)
    yield "one point in the plane for each of the other states"
    kept = fitted.clone(), other.clone()
    value = answer.uncopied(*kept)
    if not (torch.equal(kept[0], fitted) and torch.equal(kept[1], other)):
        raise Wrong(
            "You changed the states themselves: operators such as -= work in place. Make a new tensor: states - …"
        )
    if isinstance(value, tuple):
        raise Wrong(f"You returned {len(value)} things: return the points alone.")
    mine = tensor(value, None, "the projection")
    if tuple(mine.shape) == (40, 2):
        raise Wrong(
            "You returned 40 points: those of the states you fitted. U·S holds only those. Project others with "
            "the axes: (other − mean) @ axes.T, one point for each of the 25 other states."
        )
    if tuple(mine.shape) == (2, 25):
        raise Wrong("You returned (2, 25): a row for each axis. Transpose it, a row for each state.")
    tensor(mine, (25, 2), "the projection", "one row per other state, two axes")

    yield "mean and axes of the fitted states, used on the others (signs are free)"
    x, y = fitted.double(), other.double()
    mean, own, spread = x.mean(0), y.mean(0), x.std(0)
    (_, s, vh), raw, both = torch.linalg.svd(x - mean), _axes(x)[:2], torch.cat([x, y])
    at = (y - mean) @ vh.T  # places along all six axes, first the one along which the fitted states vary most
    mistakes = {
        "You fitted again, on the other states. Then the two projections differ and cannot be compared. "
        "The basis comes from the first argument alone.": (y - own) @ _axes(y - own)[:2].T,
        "You fitted on both together. The basis comes from the first argument alone.":
            (y - both.mean(0)) @ _axes(both - both.mean(0))[:2].T,
        "The axes are right, but you subtracted the other states' own mean: every cloud would be at the origin, and "
        "its displacement would be lost. Subtract the mean of the fitted states.": (y - own) @ vh[:2].T,
        "You did not subtract the mean from what you project.": y @ vh[:2].T,
        "You took the SVD of states that are not centered: its first axis points to their mean.": (y - mean) @ raw.T,
        "You subtracted no mean. Center first: PCA is about the variance, not the mean.": y @ raw.T,
        "One number is not the mean: each dimension has its own, .mean(0).": (y - x.mean()) @ _axes(x - x.mean())[:2].T,
        "You subtracted each state's own mean (dim=1). The mean is over states, dim=0.":
            (y - y.mean(1, True)) @ _axes(x - x.mean(1, True))[:2].T,
        "The axes are in the wrong order: the one with the largest singular value first.": at[:, [1, 0]],
        "These are the axes along which the states vary *least*. eigh sorts upward, svd downwards.": at[:, [5, 4]],
        "These are the axes along which the states vary *least*.": at[:, [4, 5]],
        "You took the first two columns of Vh. Its *rows* are the axes: Vh[:2].": (y - mean) @ vh[:, :2],
        "You divided by the singular values: distances along the two axes would no longer compare.": at[:, :2] / s[:2],
        "You scaled both axes to the same standard deviation: distances along them would no longer compare.":
            at[:, :2] / (s[:2] / 39**0.5),
        "You divided each dimension by its standard deviation. Project the states as they are.":
            (y - mean) / spread @ _axes((x - mean) / spread)[:2].T,
    }  # fmt: skip
    close(mine, align_signs(at[:, :2], mine), "the projection", {m: align_signs(v, mine) for m, v in mistakes.items()})

    yield "the projection of a state does not depend on the other states"
    every = list(range(25))
    for company, rows in ((other[:1], [0]), (other.flip(0), every[::-1]), (torch.cat([other, fitted]), every)):
        again = tensor(answer(fitted, company), (len(company), 2), "the projection", "one row per other state")
        again = again[: len(rows)]
        same, mirrored = (torch.allclose(x, mine[rows], atol=1e-3) for x in (again, align_signs(again, mine[rows])))
        if mirrored and not same:
            raise Wrong(
                "An axis changed its sign from one call to the next: the projections are mirror images. Does the sign "
                "depend on the other states, or on chance, as in pca_lowrank? Use torch.linalg.svd."
            )
        close(again, mine[rows], "the projection of a state together with other states")
    yield "fewer states than dimensions"
    few, more = cloud(12, 30, 3), cloud(20, 30, 4)
    mine = tensor(answer(few, more), (20, 2), "the projection", "one row per other state")
    right = (more - few.mean(0)) @ _axes(few - few.mean(0))[:2].T
    close(mine, align_signs(right, mine), "the projection", tolerance=1e-3)


def with_sink(table, peaked: tuple[int, int], seed: int = 0) -> Tensor:
    """Make states (S, T, 16) with these norms; the one at ``peaked`` (depth, token) is nonzero in one dimension."""
    table = torch.tensor(table)
    states = torch.randn(*table.shape, 16, generator=torch.Generator().manual_seed(seed)).sign()
    states[peaked] = torch.eye(16)[3]
    return states / states.norm(dim=-1, keepdim=True) * table[..., None]


SINKS = (
    with_sink([
        [1.0, 1.1, 0.9, 1.0, 1.2, 1.0, 0.8],
        [2.0, 2.2, 1.8, 1.9, 18.0, 12.0, 12.4],  # token 4, nine times the median
        [4.0, 4.2, 3.8, 4.0, 3.0, 5.0, 4.0],
        [8.0, 40.0, 8.0, 8.2, 7.8, 8.0, 8.1],
        [80.0, 82.0, 120.0, 80.0, 81.0, 130.0, 79.0],
    ], peaked=(1, 4)),
    with_sink([
        [1.0, 1.1, 1.2],
        [9.0, 1.0, 1.1],
        [10.0, 60.0, 20.0],
        [80.0, 70.0, 75.0],
    ], peaked=(2, 1)),
)  # fmt: skip


def ratios(states: Tensor) -> Tensor:
    norms = states.norm(dim=-1)
    return norms / norms.median(dim=1, keepdim=True).values


def place_of(table: Tensor) -> tuple[int, int]:
    """Return (token, depth) of the largest entry of a table (S, T)."""
    depth, token = divmod(int(table.argmax()), table.shape[1])
    return token, depth


@exercise("4.3", "Find the sink", difficulty=1, minutes=8)
def sink(answer):
    for i, states in enumerate(SINKS):
        yield ("two whole numbers, (token, depth)", "other states: the sink may be token 0, and at any depth")[i]
        (depths, tokens, _), value = states.shape, answer(states.clone())
        found = tensor(value, None, "token and depth")
        if tuple(found.shape) == ():
            raise Wrong(
                f"You returned {describe(float(found))}: return two, (token, depth). argmax without dim counts through "
                "the whole table: depth, token = divmod(i, T)."
            )
        found = tensor(found, (2,), "token and depth", "(token, depth)")
        if bool((found != found.round()).any()):
            raise Wrong(f"You returned {found.tolist()}: both are whole numbers.")
        mine = tuple(found.int().tolist())
        if i == 0:
            yield "the largest norm, measured by the median norm at its own depth"
        norms = states.norm(dim=-1)
        token, depth = right = place_of(ratios(states))
        for message, outcome in {
            "Token and depth are swapped: return (token, depth).": (depth, token),
            "That is the largest norm of all. States grow with depth, so the last layers win. Divide by the median "
            "norm of the tokens at the same depth first.": place_of(norms),
            "That is the largest sum of absolute values. A sink is large in a few dimensions: take the norm, the root "
            "of the sum of squares.": place_of((n := states.abs().sum(-1)) / n.median(1, True).values),
            "You divided by the mean norm: an outlier moves the mean, not the median.":
                place_of(norms / norms.mean(1, True)),
            "You compared each token with itself at other depths (median over dim 0). Compare it with the other tokens "
            "at its depth.": place_of(norms / norms.median(0).values),
            "You took the largest entry of a state. Take its norm.":
                place_of((n := states.abs().amax(-1)) / n.median(1, True).values),
        }.items():  # fmt: skip
            if mine == outcome != right:
                raise Wrong(message)
        if not (0 <= mine[0] < tokens and 0 <= mine[1] < depths):
            raise Wrong(f"You returned {mine}; there are {tokens} tokens and {depths} depths, counted from 0.")
        if mine != right:
            here = float(ratios(states)[mine[1], mine[0]])
            raise Wrong(
                f"Token {mine[0]} at depth {mine[1]} has {here:.1f} times the median norm of its depth; another has "
                f"{float(ratios(states).max()):.1f} times."
            )


@exercise("4.4", "The logit lens", difficulty=2, minutes=8)
def lens(answer):
    generator = torch.Generator().manual_seed(5)
    norm, head = torch.nn.LayerNorm(6), torch.nn.Linear(6, 9, bias=False)
    for p in (*norm.parameters(), *head.parameters()):
        p.requires_grad_(False).copy_(torch.randn(p.shape, generator=generator))
    x = 2 * torch.randn(4, 6, generator=generator) + 1
    logits, plain = head(norm(x)), head(torch.nn.functional.layer_norm(x, (6,)))
    yield "one distribution over all tokens for each state"
    value = tensor(answer(x, norm, head), None, "the probabilities")
    if tuple(value.shape) == (9,):
        raise Wrong("You returned one distribution, of 9 tokens: return one for each of the 4 states, (4, 9).")
    if tuple(value.shape) == (4,):
        raise Wrong("You returned one number for each state. The lens gives the whole distribution, (4, 9).")
    mine = tensor(value, (4, 9), "the probabilities", "states, vocabulary")

    yield "softmax(head(norm(state)))"
    close(mine, logits.softmax(-1), "the probabilities", {
        "You left out the final norm. The head was trained on normalized states.":
            head(x).softmax(-1),
        "The softmax is over the states (dim=0). It is over the vocabulary, dim=-1: each *row* sums to 1.":
            logits.softmax(0),
        "The softmax is over everything at once. Each row sums to 1: dim=-1.": logits.flatten().softmax(0).view(4, 9),
        "These are the logits. A softmax makes them probabilities.": logits,
        "These are log-probabilities: softmax, not log_softmax.": logits.log_softmax(-1),
        "You left out the final norm, and the softmax.": head(x),
        "You applied the norm twice.": head(norm(norm(x))).softmax(-1),
        "You normalized by hand, without the learned weight and bias of the norm. Call norm(state).":
            plain.softmax(-1),
        "You applied the softmax twice.": logits.softmax(-1).softmax(-1),
    })  # fmt: skip
    yield "at the last depth it gives the model's own prediction"
    model, ids = small_model(3), torch.tensor([[3, 41, 7, 7, 20]])
    states, said, _ = hidden_states_at_all_layers(model, ids)
    found = answer(states[-1][0], model.gpt_neox.final_layer_norm, model.get_output_embeddings())
    close(found, said[0].softmax(-1), "the probabilities at the last depth")


def turns(path: Tensor) -> Tensor:
    """Return the angles (S − 2,) between successive steps, float64."""
    steps = torch.nn.functional.normalize(path.double().diff(dim=0), dim=-1)
    return (steps[1:] * steps[:-1]).sum(-1).clamp(-1, 1).arccos()


@exercise("4.5", "How a path bends", difficulty=2, minutes=10)
def turning(answer):
    corner = torch.tensor([[1.0, 1.0], [4.0, 1.0], [4.0, 2.0], [0.0, 5.0]])
    path = torch.randn(7, 4, generator=torch.Generator().manual_seed(6)).cumsum(0) + 2
    yield "an angle at each inner state: S states have S − 2"
    mine = tensor(_not_nan(answer(corner)), None, "the angles")
    if mine.shape == (3,):
        raise Wrong(
            "You returned 3 angles for 4 states. Four states are three steps, and between three steps there are two "
            "turns. Take differences first: path.diff(dim=0)."
        )
    tensor(mine, (2,), "the angles", "S − 2 of them")

    yield "by hand: steps (3, 0), (0, 1), (−4, 3) turn by 90°, then by arccos(3/5)"
    steps = corner.diff(dim=0)
    unscaled = (steps[1:] * steps[:-1]).sum(-1).clamp(-1, 1).arccos()
    lengths = {"You did not divide by the lengths of the steps: cos = a·b / (|a| |b|).": unscaled}
    close(mine, turns(corner), "the angles", _wrong_angles(corner) | lengths)
    yield "any path, in any number of dimensions"
    want = turns(path)
    close(_not_nan(answer(path)), want, "the angles", _wrong_angles(path), tolerance=1e-3)
    close(_not_nan(answer(50 * path - 7)), want, "the angles of a path 50 times as large", tolerance=1e-3)
    yield "straight on is 0, and back again is π"
    for seed in range(40):
        step = torch.randn(5, generator=torch.Generator().manual_seed(seed))
        straight = torch.arange(1.0, 5)[:, None] * step
        close(_not_nan(answer(straight)), torch.zeros(2), "the angles of a straight line", tolerance=3e-3)
        back = torch.stack([0 * step, step, 0 * step])
        close(_not_nan(answer(back)), [torch.pi], "the angle of a path there and back", tolerance=3e-3)


def _not_nan(value):
    """Return ``value``, or explain NaN, which has one cause here."""
    with suppress(TypeError, ValueError, RuntimeError):  # not numbers: reported by the next check
        if torch.as_tensor(value).isnan().any():
            raise Wrong(
                "NaN. Rounding makes the cosine of two equal directions 1.0000001, and no angle has that cosine. Clamp "
                "it to [−1, 1] before the arccos; and divide by the lengths of the steps."
            )
    return value


def _wrong_angles(path: Tensor) -> dict[str, Tensor]:
    """Return what common mistakes give instead of the angles between steps: message → value."""
    right, x, steps = turns(path), path.double(), path.double().diff(dim=0)
    between = lambda a, b: torch.nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1).arccos()  # noqa: E731
    return {
        "You returned the cosine. The angle is its arccos.": right.cos(),
        "You returned 1 − cosine. The angle is the arccos of the cosine.": 1 - right.cos(),
        "You returned degrees: return radians, π is half a turn.": right.rad2deg(),
        "You returned π minus the angle: straight on would be π. Subtract states in the same order for both steps.":
            torch.pi - right,
        "That is the angle between *states*, seen from the origin: it changes when all states are translated. Take "
        "the angle between steps, path.diff(dim=0).": between(x[1:-1], x[2:]),
        "That is the angle between *states*. Take the angle between steps, path.diff(dim=0).": between(x[:-2], x[1:-1]),
        "You compared every step with the first one. Compare it with the one before.": between(steps[1:], steps[:1]),
    }  # fmt: skip
