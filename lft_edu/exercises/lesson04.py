"""Checks of lesson 04: hidden states, PCA, attention sink. (Logit lens and turns: lesson04_lens.)"""

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


@torch.no_grad()
def parts_of(model, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return what attention and MLP read and what they add, ``(L, 2, T, D)`` each."""
    seen: list = []
    parts = [part for layer in model.gpt_neox.layers for part in (layer.attention, layer.mlp)]

    def note(module, args, kwargs, output):
        read = args[0] if args else kwargs["hidden_states"]
        seen.append((read[0], (output[0] if isinstance(output, tuple) else output)[0]))

    hooks = [part.register_forward_hook(note, with_kwargs=True) for part in parts]
    model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    read, added = (torch.stack(one).unflatten(0, (-1, 2)) for one in zip(*seen, strict=True))
    return read, added


@exercise("4.1", "Who adds what", difficulty=2, minutes=15)
def catch(answer):
    model, ids = small_model(3), torch.tensor([[3, 41, 7, 7, 20]])
    before, (read, right) = hooks_on(model), parts_of(model, ids)
    states = torch.stack(hidden_states_at_all_layers(model, ids)[0])[:, 0]
    yield "one tensor, (L, 2, T, D)"
    mine = _parts(answer(model, ids), right)

    yield "what attention and MLP of each layer add to the residual stream"
    close(mine, right, "the updates", {
        "You have what attention and MLP *read*. What they add is their output: a forward hook, not a pre-hook.": read,
        "The MLP comes first in yours: [attention, MLP].": right.flip(1),
        "These are states, before and after each layer. What is asked for is what each half of a layer adds to them.":
            torch.stack([states[:-1], states[1:]], 1),
        "You have the states after attention and MLP were added: take what is added, without the state.":
            states[:-1, None] + right,
        "The whole layer's update stands in both places: hook layer.attention and layer.mlp, not the layer.":
            right.sum(1, keepdim=True).expand_as(right),
        "The order is reversed: layer 0 comes first.": right.flip(0),
        "All your updates are those of the last layer. Does your hook keep a name that changes, instead of appending?":
            right[-1:].expand_as(right),
        "All your updates are those of layer 0. Hook every layer.": right[:1].expand_as(right),
        "You list all attentions first, then all MLPs, and cut that list in pairs: pair them layer by layer.":
            right.transpose(0, 1).reshape(right.shape),
    })  # fmt: skip
    yield "with the embeddings they add up to the last state"
    close(states[0] + mine.sum((0, 1)), states[-1], "the sum", tolerance=1e-3)
    yield "the model is left as it was"
    if left := hooks_on(model) - before:
        raise Wrong(
            f"Your function left hooks on the model ({left}). They run at every later pass and keep their "
            "recorded states in memory. Keep the handle that register_…_hook returns, and call .remove() on it."
        )
    yield "any depth, any length"
    for model, ids in ((small_model(2), torch.arange(9)[None]), (small_model(6), torch.tensor([[8]]))):
        want = parts_of(model, ids)[1]
        close(_parts(answer(model, ids), want), want, f"the updates of {len(want)} layers")


def _parts(value, right: Tensor) -> Tensor:
    """Return the answer as (L, 2, T, D), or explain what is wrong with its shape."""
    if isinstance(value, list | tuple):
        raise Wrong(f"You returned a {type(value).__name__} of {len(value)}: make one tensor of it, torch.stack(…).")
    found, (layers, _, tokens, width) = tensor(value, None, "the updates"), right.shape
    here = f"You returned {describe(found)}"
    for message, shape in {
        "the batch axis is left in. There is one text: take output[0].": (layers, 2, 1, tokens, width),
        "one update per layer. Keep attention's and the MLP's apart: hook layer.attention and layer.mlp.":
            (layers, tokens, width),
        "these are as many as there are depths. Updates lie between the depths, two per layer.":
            (layers + 1, tokens, width),
        "updates in one row. Give each layer its own, [attention, MLP]: .unflatten(0, (-1, 2)).":
            (2 * layers, tokens, width),
        "first attention or MLP, then the layer. The layer comes first: .transpose(0, 1).": (2, layers, tokens, width),
    }.items():  # fmt: skip
        if tuple(found.shape) == shape != tuple(right.shape):
            raise Wrong(f"{here}: {message}")
    return tensor(found, tuple(right.shape), "the updates", "layers, [attention, MLP], tokens, width")


def cloud(n: int, width: int, seed: int) -> Tensor:
    """Draw points off the origin, with different variances along directions that are not coordinate axes."""
    generator = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    spread = 4 * 0.6 ** torch.arange(width)
    return torch.randn(n, width, generator=generator) * spread @ turned + 3 * torch.randn(width, generator=generator)


def _axes(states: Tensor) -> Tensor:
    return torch.linalg.svd(states).Vh  # (D, D), one axis per row


def hidden_by(axes: Tensor, apart: Tensor) -> Tensor:
    """Return the fraction of the squared lengths of ``apart`` (N, D) that lies outside the axes (k, D)."""
    return 1 - (apart @ axes.T).square().sum() / apart.square().sum()


@exercise("4.2", "What the frozen picture hides", difficulty=2, minutes=12)
def project(answer):
    fitted, teacher = cloud(40, 6, 1), cloud(25, 6, 2)
    student = teacher + 0.3 * (cloud(25, 6, 3) - 1) * torch.tensor([0.2, 1.0, 0.5, 2.0, 1.0, 0.3])
    yield "a number from 0 to 1"
    kept = fitted.clone(), teacher.clone(), student.clone()
    value = answer.uncopied(*kept)
    if not all(torch.equal(one, given) for one, given in zip(kept, (fitted, teacher, student), strict=True)):
        raise Wrong(
            "You changed the states themselves: operators such as -= work in place. Make a new tensor: states - …"
        )
    mine = float(tensor(value, (), "the fraction", "one for all states together"))
    if not -1e-6 <= mine <= 1 + 1e-6:
        raise Wrong(f"You returned {mine:.3g}. A fraction of the whole squared distance lies between 0 and 1.")

    yield "by hand: a picture of the axes x and y, and all states moved by (3, 0, 4): 16 of 25 are hidden"
    flat = torch.randn(30, 3, generator=torch.Generator().manual_seed(4)) * torch.tensor([3.0, 2.0, 0.0]) + 5
    moved = torch.tensor([3.0, 0.0, 4.0])
    close(answer(flat, flat[:7], flat[:7] + moved), 16 / 25, "the fraction", {
        "That is the fraction that the picture *shows*. The hidden one is the rest.": 9 / 25,
        "Squares add up, lengths do not: 1 minus the fraction of the *squared* distance that is shown.": 2 / 5,
        "You took the root: the fraction of the *squared* distance is asked for.": 4 / 5,
    })  # fmt: skip
    yield "axes of the fitted states alone, the difference of the other two"
    for fit, one, other in (
        (fitted, teacher, student),
        (cloud(60, 9, 5), cloud(8, 9, 6), cloud(8, 9, 7)),
        (cloud(12, 30, 3), cloud(20, 30, 4), cloud(20, 30, 8)),  # fewer states than dimensions
    ):
        x, a, b = fit.double(), one.double(), other.double()
        close(
            answer(fit, one, other), hidden_by(_axes(x - x.mean(0))[:2], b - a), "the fraction", _wrong_hidden(x, a, b)
        )


def _wrong_hidden(x: Tensor, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Return what common mistakes give instead of what a picture of ``x`` hides of b − a: message → value."""
    d, centered = b - a, lambda s: _axes(s - s.mean(0))[:2]
    every, shown = _axes(x - x.mean(0)), centered(x)
    s = torch.linalg.svdvals(x - x.mean(0)).square()
    right, each = hidden_by(shown, d), (d @ shown.T).square().sum(1) / d.square().sum(1)
    other = "The picture is frozen: its axes come from the first argument alone. Yours were fitted "
    return {
        "That is the fraction that the picture *shows*. The hidden one is the rest.": 1 - right,
        "Squares add up, lengths do not: 1 minus the fraction of the *squared* distance that is shown.":
            1 - (1 - right).sqrt(),
        "You took the root: the fraction of the *squared* distance is asked for.": right.sqrt(),
        "This is the mean of the fractions of single states: a state that hardly differs counts as much as one that is "
        "far off. Add up the squares of all states first.": 1 - each.mean(),
        f"{other}to the teacher's states.": hidden_by(centered(a), d),
        f"{other}to the student's states.": hidden_by(centered(b), d),
        f"{other}to teacher and student together.": hidden_by(centered(torch.cat([a, b])), d),
        f"{other}to all three together.": hidden_by(centered(torch.cat([x, a, b])), d),
        f"{other}to the differences: the one picture that hides least of them.": hidden_by(_axes(d)[:2], d),
        f"{other}to the centered differences.": hidden_by(centered(d), d),
        "You centered teacher and student each by its own mean: what all states have moved by together is lost.":
            hidden_by(shown, d - d.mean(0)),
        "You took the SVD of states that are not centered: its first axis points to their mean.":
            hidden_by(_axes(x)[:2], d),
        "You took the first two columns of Vh. Its *rows* are the axes: Vh[:2].": hidden_by(every[:, :2].T, d),
        "These are the axes along which the states vary *least*. eigh sorts upward, svd downward.":
            hidden_by(every[-2:], d),
        "You took one axis: a picture has two.": hidden_by(every[:1], d),
        "You took three axes: a picture has two.": hidden_by(every[:3], d),
        "That is the variance of the *fitted* states that the picture lacks. How much of the difference of the other "
        "two?": 1 - s[:2].sum() / s.sum(),
    }  # fmt: skip


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
