"""Checks of lesson 06: a clock and six knobs. (Splice and budget: lesson06_assembly; cache: lesson06_generation.)"""

import math

import torch
from torch import Tensor

from .checking import Wrong, close, describe, exercise, tensor

# --- 6.1 ----------------------------------------------------------------------------------------------------------


def recognized(value: Tensor, mistakes: dict[str, Tensor], tolerance: float = 1e-4) -> list[str]:
    """The messages of those mistakes that make this value. A case by hand is plain, so that several mistakes may agree
    on it; what else was returned tells them apart."""
    same = lambda outcome: torch.allclose(value, outcome.double(), rtol=tolerance, atol=tolerance)  # noqa: E731
    return [message for message, outcome in mistakes.items() if value.shape == outcome.shape and same(outcome)]


HALF = 64  # frequencies: as many cosines and as many sines


def angles(t: Tensor, scale: float = 1000.0, base: float = 10_000.0, ticks: Tensor | None = None) -> Tensor:
    """``scale · t · base^(−tick)``, (N, 64); ticks i/64, if None."""
    ticks = torch.arange(HALF) / HALF if ticks is None else ticks
    return scale * t.double()[:, None] * base ** -ticks.double()


def features(t: Tensor, **kwargs) -> Tensor:
    """The features of :class:`lft_edu.operators.TimeModulation`: (N,) → (N, 128), cosines first."""
    found = angles(t, **kwargs)
    return torch.cat([found.cos(), found.sin()], -1)


def interleaved(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a, b], -1).flatten(-2)


def _not_features(t: Tensor) -> dict[str, Tensor]:
    """What is mistaken for the features."""
    i = torch.arange(HALF)
    cos, sin = angles(t).cos(), angles(t).sin()
    order = "These are the right numbers in another order. "
    fixed = "A network that learns anew would not mind; the weights of the bundled students do: first all cosines, "
    return {
        "You did not scale the times. The highest frequency is 1, so to it t = 1 is a sixth of a turn: the features of "
        "t = 0 and t = 1 have cosine 0.970. Multiply times by 1000; then it is 0.159.": features(t, scale=1.0),
        f"{order}{fixed}then all sines; yours begin with the sines.": torch.cat([sin, cos], -1),
        f"{order}{fixed}then all sines; yours alternate: torch.cat, not stack.": interleaved(cos, sin),
        f"{order}{fixed}then all sines; yours alternate, and begin with a sine.": interleaved(sin, cos),
        f"{order}{fixed}then all sines, each from the highest frequency (i = 0) to the lowest; yours rise.":
            torch.cat([cos.flip(-1), sin.flip(-1)], -1),
        "You have the cosines twice, and no sines.": torch.cat([cos, cos], -1),
        "You have the sines twice, and no cosines.": torch.cat([sin, sin], -1),
        "Your frequencies end at 1/10000: you divided by 63. They are 10000^(−i/64), so that the 65th would be there.":
            features(t, ticks=i / (HALF - 1)),
        "Your i runs from 1 to 64; it runs from 0 to 63, and the highest frequency is 1.":
            features(t, ticks=(i + 1) / HALF),
        "You divided i by 128. There are 64 frequencies: 10000^(−i/64).": features(t, ticks=i / (2 * HALF)),
        "Your exponent is −2i/64: as in papers whose i counts pairs up to d/2 and that divide by d. Here it is −i/64.":
            features(t, ticks=2 * i / HALF),
        "The logarithm is the wrong one: exp(−i/64 · ln 10000). math.log is the natural one; yours is log10.":
            features(t, base=math.exp(math.log10(10_000))),
        "The logarithm is the wrong one: exp(−i/64 · ln 10000). math.log is the natural one; yours is log2.":
            features(t, base=math.exp(math.log2(10_000))),
        "You left out the 10000: your frequencies are exp(−i/64), and the lowest is only a third of the highest.":
            features(t, base=math.e),
        "The base is 10000, the times are scaled by 1000; you took 1000 for both.": features(t, base=1000.0),
        "The base is 10000, the times are scaled by 1000; you took 10000 for both.": features(t, scale=10_000.0),
        "The base is 10000, the times are scaled by 1000; you exchanged them.":
            features(t, scale=10_000.0, base=1000.0),
        "You multiplied by 2π as well. The scaled times are radians already.": features(t, scale=2000 * math.pi),
        "You multiplied by 2π instead of 1000: one turn is little better than a sixth of one.":
            features(t, scale=2 * math.pi),
        "You took the angles for degrees: they are radians already.": features(t, scale=1000 * math.pi / 180),
        "You rounded the scaled times to whole numbers: times between two thousandths would be one.":
            features((1000 * t).round() / 1000),
        "You cut the scaled times to whole numbers: times between two thousandths would be one.":
            features((1000 * t).floor() / 1000),
        "You rounded the times to bfloat16, to which 0.996 and 0.999 are one number. Keep float32.":
            features(t.bfloat16()),
        "These are the angles: take their cosines and sines.": torch.cat([angles(t), angles(t)], -1),
    }  # fmt: skip


@exercise("6.1", "A clock", difficulty=1, minutes=8)
def clock(answer):
    t = torch.tensor([0.0, 1.0, 0.4567])
    yield "128 features for each time, (N, 128)"
    value = tensor(answer(t.clone()), None, "the features")
    if tuple(value.shape) == (3, HALF):
        raise Wrong(
            "You returned 64 features a time. There are 64 *frequencies*, and each gives a cosine and a sine: 128. "
            "With cosines alone, an angle and its negative would be the same."
        )
    if tuple(value.shape) == (3, 4 * HALF):
        raise Wrong("You returned 256 features a time: 64 frequencies, a cosine and a sine of each, make 128.")
    if tuple(value.shape) == (3, HALF, 2):
        raise Wrong(
            "You returned (3, 64, 2): stack made a new axis. Put all sines behind all cosines: torch.cat(…, -1)."
        )
    if tuple(value.shape) == (2 * HALF, 3):
        raise Wrong("You returned (128, 3): a time a *row*. t[:, None] times the frequencies is (N, 64).")
    if tuple(value.shape) == (2 * HALF,):
        raise Wrong("You returned the features of one time; there were 3: t[:, None] times the frequencies is (N, 64).")
    if tuple(value.shape) == (6, HALF):
        raise Wrong("You returned (6, 64): you joined along the times. Join along the features: torch.cat(…, -1).")
    mine = tensor(value, (3, 2 * HALF), "the features", "one row a time")

    rising = features(t, base=1e-4)
    vast = torch.arange(2 * HALF) % HALF > 8  # angles of which float32 does not know the cosine
    known = recognized(mine, _not_features(t) | {
        "Your frequencies rise: ω_i = 10000^(−i/64), with a minus, from 1 down to nearly 1/10000.":
            torch.where(vast, mine, rising),
    }, tolerance=2e-3)  # fmt: skip
    at = ("t = 0", "t = 1", "t = 0.4567")
    for i, stage in enumerate((
        "by hand: at t = 0 every angle is 0, all cosines are 1 and all sines 0",
        "by hand: at t = 1 the first angle is 1000 radians, its cosine 0.562",
        "any time",
    )):  # fmt: skip
        yield stage
        close(mine[i], features(t)[i], f"the features of {at[i]}", dict.fromkeys(known, mine[i]), tolerance=2e-3)
    many = torch.rand(50, generator=torch.Generator().manual_seed(0))
    yield "any number of times"
    close(answer(many), features(many), "the features of 50 times", _not_features(many), tolerance=2e-3)


# --- 6.2 ----------------------------------------------------------------------------------------------------------


class Body:
    """Attention, MLP and two norms of a layer of width 6 as plain functions; it counts who is asked how often."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        self.weights = {"attend": draw(6, 6), "mlp": draw(6, 6)}
        self.norms = {"norm1": (1 + 0.3 * draw(6), 0.5 * draw(6)), "norm2": (1 + 0.3 * draw(6), 0.5 * draw(6))}
        self.bias, self.x, self.knobs = draw(6), 2 * draw(2, 5, 6) + 1, 0.4 * draw(6, 6)
        self.knobs[[2, 5]] += 1
        self.asked: list[str] = []

    def _see(self, name: str, x) -> Tensor:
        self.asked.append(name)
        if not isinstance(x, Tensor) or tuple(x.shape) != tuple(self.x.shape):
            raise Wrong(
                f"You called {name} with {describe(x)}; it takes states, {tuple(self.x.shape)}. Knobs are (D,) and fit "
                "them as they are."
            )
        return x.to(self.x)

    def attend(self, x):
        """The mean of all tokens up to this one, through a matrix."""
        x = self._see("attend", x) @ self.weights["attend"]
        return x.cumsum(1) / torch.arange(1.0, 6)[:, None]

    def mlp(self, x):
        return torch.tanh(self._see("mlp", x)) @ self.weights["mlp"] + self.bias

    def norm1(self, x):
        return torch.nn.functional.layer_norm(self._see("norm1", x), (6,), *self.norms["norm1"])

    def norm2(self, x):
        return torch.nn.functional.layer_norm(self._see("norm2", x), (6,), *self.norms["norm2"])

    @property
    def parts(self) -> tuple:
        return self.attend, self.mlp, self.norm1, self.norm2


def modulate(x, gamma, beta):
    return (1 + gamma) * x + beta


def velocity(x, knobs, attend, mlp, norm1, norm2, see=modulate):
    """Parallel residual, and no x: what a layer adds. ``see``: how an input is modulated."""
    g1, b1, a1, g2, b2, a2 = knobs
    return a1 * attend(see(norm1(x), g1, b1)) + a2 * mlp(see(norm2(x), g2, b2))


def _not_velocities(x, knobs, attend, mlp, norm1, norm2) -> dict[str, Tensor]:
    """What is mistaken for the velocity."""
    g1, b1, a1, g2, b2, a2 = knobs
    parts = attend, mlp, norm1, norm2
    as_if = lambda *rows: velocity(x, knobs[list(rows)], *parts)  # noqa: E731
    seen = lambda see: velocity(x, knobs, *parts, see=see)  # noqa: E731
    u, attended = velocity(x, knobs, *parts), attend(modulate(norm1(x), g1, b1))
    inner = lambda z: mlp(modulate(norm2(z), g2, b2))  # noqa: E731
    bare = "Knobs that say γ = 0 must leave the norm's output as it is: (1 + γ) ⊙ LN(x) + β, paper's way and DiT's."
    order = "The knobs are in another order: γ1, β1, α1, γ2, β2, α2. You "
    return {
        "You added x. That is a layer; a velocity is only what the layer *adds*: u = Layer(x) − x.": x + u,
        "You subtracted x. Attention and MLP alone are what the layer adds: no x anywhere outside the norms.": u - x,
        f"γ without the 1 +. {bare}": seen(lambda z, g, b: g * z + b),
        "You shift before you scale: (1 + γ) ⊙ (LN(x) + β). It is (1 + γ) ⊙ LN(x) + β.":
            seen(lambda z, g, b: (1 + g) * (z + b)),
        "You subtract β: (1 + γ) ⊙ LN(x) + β.": seen(lambda z, g, b: (1 + g) * z - b),
        "You left out β.": seen(lambda z, g, b: (1 + g) * z),
        "You left out γ.": seen(lambda z, g, b: z + b),
        "Scale with 1 + γ, shift with β; you shift with 1 + β.": seen(lambda z, g, b: (1 + g) * z + 1 + b),
        "You modulated before the norm. A norm undoes much of that: it brings every state back to its own mean and "
        "scale. Modulate what comes *out* of the norm.":
            a1 * attend(norm1(modulate(x, g1, b1))) + a2 * mlp(norm2(modulate(x, g2, b2))),
        "You left out the norms: attention and MLP have only ever read normed states.":
            a1 * attend(modulate(x, g1, b1)) + a2 * mlp(modulate(x, g2, b2)),
        "You left out the α's: they scale what attention and MLP give out.": attended + inner(x),
        "You put α on the inputs. It scales what comes *out* of attention and MLP.":
            attend(a1 * modulate(norm1(x), g1, b1)) + mlp(a2 * modulate(norm2(x), g2, b2)),
        "Your α has a 1 + . Only γ has: the α's begin as 1 already.": (1 + a1) * attended + (1 + a2) * inner(x),
        "The norms are swapped: norm1 is attention's, norm2 the MLP's.": velocity(x, knobs, attend, mlp, norm2, norm1),
        "You used norm1 for both: the MLP has norm2.": velocity(x, knobs, attend, mlp, norm1, norm1),
        "You used norm2 for both: attention has norm1.": velocity(x, knobs, attend, mlp, norm2, norm2),
        "Attention and MLP are swapped: the first three knobs and norm1 are attention's.":
            velocity(x, knobs, mlp, attend, norm1, norm2),
        f"{order}took the first three for the MLP.": as_if(3, 4, 5, 0, 1, 2),
        f"{order}took β for γ and γ for β.": as_if(1, 0, 2, 4, 3, 5),
        f"{order}read γ1, γ2, β1, β2, α1, α2.": as_if(0, 2, 4, 1, 3, 5),
        f"{order}read α, β, γ.": as_if(2, 1, 0, 5, 4, 3),
        f"{order}read α, γ, β.": as_if(1, 2, 0, 4, 5, 3),
        f"{order}read β, α, γ.": as_if(2, 0, 1, 5, 3, 4),
        f"{order}read γ, α, β.": as_if(0, 2, 1, 3, 5, 4),
        "You used attention's knobs for both.": as_if(0, 1, 2, 0, 1, 2),
        "You used the MLP's knobs for both.": as_if(3, 4, 5, 3, 4, 5),
        "Your MLP reads what attention has added, one after the other, as in GPT-2 and Llama. In this family the "
        "residual is *parallel*: both read the same x.": a1 * attended + a2 * inner(x + a1 * attended),
        "Your MLP reads attention's output. Both read the same x, and their outputs are added.":
            a2 * inner(a1 * attended),
        "You returned attention's part alone: add the MLP's.": a1 * attended,
        "You returned the MLP's part alone: add attention's.": a2 * inner(x),
        "You multiplied both parts: add them.": a1 * attended * a2 * inner(x),
        "You took the mean of both parts: add them.": u / 2,
    }  # fmt: skip


@exercise("6.2", "Six knobs", difficulty=2, minutes=12)
def residual(answer):
    body = Body()
    yield "a velocity shaped like the states"
    x, untouched = body.x.clone(), torch.tensor([0.0, 0, 1, 0, 0, 1])[:, None].expand(6, 6).contiguous()
    mine = tensor(answer(x, untouched, *body.parts), x.shape, "the velocity", "batch, tokens, width, as x")
    if not torch.equal(x, body.x):
        raise Wrong("You changed x itself: += and its like work in place. The walk still needs x.")

    yield "by hand: untouched knobs (γ = β = 0, α = 1) give Attn(LN1 x) + MLP(LN2 x)"
    reference = Body()
    plain = reference.attend(reference.norm1(x)) + reference.mlp(reference.norm2(x))
    body = Body()
    turned = tensor(answer(x, body.knobs.clone(), *body.parts), x.shape, "the velocity", "batch, tokens, width, as x")
    mistakes = _not_velocities(x, body.knobs, *reference.parts)
    close(mine, plain, "the velocity", dict.fromkeys(recognized(turned, mistakes), mine))
    yield "turned knobs: u = α1 ⊙ Attn((1+γ1) ⊙ LN1 x + β1) + α2 ⊙ MLP((1+γ2) ⊙ LN2 x + β2)"
    close(turned, velocity(x, body.knobs, *reference.parts), "the velocity", mistakes)
    yield "attention and MLP are asked once each"
    for name in ("attend", "mlp"):
        if (times := body.asked.count(name)) != 1:
            raise Wrong(
                f"The right velocity, but you called {name} {times} times. Call it once and keep the result: it is the "
                "expensive part, and with a cache each call of attention writes its keys again."
            )
    yield "all α = 0: nothing moves, whatever γ and β say"
    still = Body().knobs.index_fill(0, torch.tensor([2, 5]), 0.0)
    close(answer(x, still, *Body().parts), torch.zeros_like(x), "the velocity")
