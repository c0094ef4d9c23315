"""Checks of lesson 05: time embedding and modulation. (Splice, budget: lesson05_assembly; cache: lesson05_cache.)"""

import math

import torch
from torch import Tensor

from .checking import Wrong, close, describe, exercise, tensor

# --- 5.1 ----------------------------------------------------------------------------------------------------------


def matching_mistakes(value: Tensor, mistakes: dict[str, Tensor], tolerance: float = 1e-4) -> list[str]:
    """Return the messages of the mistakes that give this value. Several may agree on a simple case by hand; another
    value tells them apart."""
    same = lambda outcome: torch.allclose(value, outcome.double(), rtol=tolerance, atol=tolerance)  # noqa: E731
    return [message for message, outcome in mistakes.items() if value.shape == outcome.shape and same(outcome)]


HALF = 64  # frequencies: as many cosines and as many sines


def angles(t: Tensor, scale: float = 1000.0, base: float = 10_000.0, ticks: Tensor | None = None) -> Tensor:
    """Return ``scale · t · base^(−tick)``, (N, 64); ticks i/64 if None."""
    ticks = torch.arange(HALF) / HALF if ticks is None else ticks
    return scale * t.double()[:, None] * base ** -ticks.double()


def features(t: Tensor, **kwargs) -> Tensor:
    """Return the sinusoidal features of times (N,), (N, 128), cosines first."""
    found = angles(t, **kwargs)
    return torch.cat([found.cos(), found.sin()], -1)


def interleaved(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a, b], -1).flatten(-2)


def _wrong_features(t: Tensor) -> dict[str, Tensor]:
    """Return what common mistakes give instead of the features: message → value."""
    i = torch.arange(HALF)
    cos, sin = angles(t).cos(), angles(t).sin()
    order = "These are the right numbers in another order. "
    fixed = "A new network could learn either order; the weights of the bundled students expect first all cosines, "
    return {
        "You did not scale the times. The highest frequency is 1, so for it t = 1 is a sixth of a turn: the features "
        "of t = 0 and t = 1 have cosine 0.970. Multiply times by 1000; then it is 0.159.": features(t, scale=1.0),
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
        "You multiplied by 2π instead of 1000: one turn is hardly better than a sixth of one.":
            features(t, scale=2 * math.pi),
        "You took the angles for degrees: they are radians already.": features(t, scale=1000 * math.pi / 180),
        "You rounded the scaled times to whole numbers: nearby times would be equal.":
            features((1000 * t).round() / 1000),
        "You cut the scaled times to whole numbers: nearby times would be equal.":
            features((1000 * t).floor() / 1000),
        "You rounded the times to bfloat16, in which 0.996 and 0.999 are equal. Keep float32.":
            features(t.bfloat16()),
        "These are the angles: take their cosines and sines.": torch.cat([angles(t), angles(t)], -1),
    }  # fmt: skip


@exercise("5.1", "A time embedding", difficulty=1, minutes=8)
def time_embedding(answer):
    t = torch.tensor([0.0, 1.0, 0.4567])
    yield "128 features for each time, (N, 128)"
    value = tensor(answer(t.clone()), None, "the features")
    if tuple(value.shape) == (3, HALF):
        raise Wrong(
            "You returned 64 features per time. There are 64 *frequencies*, and each gives a cosine and a sine: 128. "
            "With cosines alone, an angle and its negative would be the same."
        )
    if tuple(value.shape) == (3, 4 * HALF):
        raise Wrong("You returned 256 features per time: 64 frequencies, a cosine and a sine of each, make 128.")
    if tuple(value.shape) == (3, HALF, 2):
        raise Wrong(
            "You returned (3, 64, 2): stack made a new axis. Put all sines after all cosines: torch.cat(…, -1)."
        )
    if tuple(value.shape) == (2 * HALF, 3):
        raise Wrong("You returned (128, 3): one time per *row*. t[:, None] times the frequencies is (N, 64).")
    if tuple(value.shape) == (2 * HALF,):
        raise Wrong("You returned the features of one time; there were 3: t[:, None] times the frequencies is (N, 64).")
    if tuple(value.shape) == (6, HALF):
        raise Wrong("You returned (6, 64): you joined along the times. Join along the features: torch.cat(…, -1).")
    mine = tensor(value, (3, 2 * HALF), "the features", "one row per time")

    rising = features(t, base=1e-4)
    vast = torch.arange(2 * HALF) % HALF > 8  # angles too large for float32 cosines
    known = matching_mistakes(mine, _wrong_features(t) | {
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
    close(answer(many), features(many), "the features of 50 times", _wrong_features(many), tolerance=2e-3)


# --- 5.2 ----------------------------------------------------------------------------------------------------------


class Body:
    """Attention, MLP and two norms of a layer of width 6 as plain functions; records the calls in ``asked``."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        self.weights = {"attend": draw(6, 6), "mlp": draw(6, 6)}
        self.norms = {"norm1": (1 + 0.3 * draw(6), 0.5 * draw(6)), "norm2": (1 + 0.3 * draw(6), 0.5 * draw(6))}
        self.bias, self.x, self.modulations = draw(6), 2 * draw(2, 5, 6) + 1, 0.4 * draw(6, 6)
        self.modulations[[2, 5]] += 1
        self.asked: list[str] = []

    def _see(self, name: str, x) -> Tensor:
        self.asked.append(name)
        if not isinstance(x, Tensor) or tuple(x.shape) != tuple(self.x.shape):
            raise Wrong(
                f"You called {name} with {describe(x)}; it takes states, {tuple(self.x.shape)}. Modulations have "
                "shape (D,) and broadcast."
            )
        return x.to(self.x)

    def attend(self, x):
        """Average all tokens up to this one, after a matrix product."""
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


def velocity(x, modulations, attend, mlp, norm1, norm2, see=modulate):
    """Return the update of a parallel-residual layer, without x; ``see`` modulates the inputs."""
    g1, b1, a1, g2, b2, a2 = modulations
    return a1 * attend(see(norm1(x), g1, b1)) + a2 * mlp(see(norm2(x), g2, b2))


def _wrong_velocities(x, modulations, attend, mlp, norm1, norm2) -> dict[str, Tensor]:
    """Return what common mistakes give instead of the velocity: message → value."""
    g1, b1, a1, g2, b2, a2 = modulations
    parts = attend, mlp, norm1, norm2
    as_if = lambda *rows: velocity(x, modulations[list(rows)], *parts)  # noqa: E731
    seen = lambda see: velocity(x, modulations, *parts, see=see)  # noqa: E731
    u, attended = velocity(x, modulations, *parts), attend(modulate(norm1(x), g1, b1))
    inner = lambda z: mlp(modulate(norm2(z), g2, b2))  # noqa: E731
    bare = "γ = 0 must leave the norm's output unchanged: (1 + γ) ⊙ LN(x) + β, as in the paper and DiT."
    order = "The modulations are in another order: γ1, β1, α1, γ2, β2, α2. You "
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
        "scale. Modulate the *output* of the norm.":
            a1 * attend(norm1(modulate(x, g1, b1))) + a2 * mlp(norm2(modulate(x, g2, b2))),
        "You left out the norms: attention and MLP were trained on normalized states.":
            a1 * attend(modulate(x, g1, b1)) + a2 * mlp(modulate(x, g2, b2)),
        "You left out the α's: they scale the outputs of attention and MLP.": attended + inner(x),
        "You put α on the inputs. It scales the *outputs* of attention and MLP.":
            attend(a1 * modulate(norm1(x), g1, b1)) + mlp(a2 * modulate(norm2(x), g2, b2)),
        "Your α has a 1 + . Only γ has one: the α's are initialized to 1.": (1 + a1) * attended + (1 + a2) * inner(x),
        "The norms are swapped: norm1 is attention's, norm2 the MLP's.":
            velocity(x, modulations, attend, mlp, norm2, norm1),
        "You used norm1 for both: the MLP has norm2.": velocity(x, modulations, attend, mlp, norm1, norm1),
        "You used norm2 for both: attention has norm1.": velocity(x, modulations, attend, mlp, norm2, norm2),
        "Attention and MLP are swapped: the first three modulations and norm1 are attention's.":
            velocity(x, modulations, mlp, attend, norm1, norm2),
        f"{order}took the first three for the MLP.": as_if(3, 4, 5, 0, 1, 2),
        f"{order}took β for γ and γ for β.": as_if(1, 0, 2, 4, 3, 5),
        f"{order}read γ1, γ2, β1, β2, α1, α2.": as_if(0, 2, 4, 1, 3, 5),
        f"{order}read α, β, γ.": as_if(2, 1, 0, 5, 4, 3),
        f"{order}read α, γ, β.": as_if(1, 2, 0, 4, 5, 3),
        f"{order}read β, α, γ.": as_if(2, 0, 1, 5, 3, 4),
        f"{order}read γ, α, β.": as_if(0, 2, 1, 3, 5, 4),
        "You used attention's modulations for both.": as_if(0, 1, 2, 0, 1, 2),
        "You used the MLP's modulations for both.": as_if(3, 4, 5, 3, 4, 5),
        "Your MLP reads x plus attention's update (sequential residual, as in GPT-2 and Llama). In this family the "
        "residual is *parallel*: both read the same x.": a1 * attended + a2 * inner(x + a1 * attended),
        "Your MLP reads attention's output. Both read the same x, and their outputs are added.":
            a2 * inner(a1 * attended),
        "You returned attention's part alone: add the MLP's.": a1 * attended,
        "You returned the MLP's part alone: add attention's.": a2 * inner(x),
        "You multiplied both parts: add them.": a1 * attended * a2 * inner(x),
        "You took the mean of both parts: add them.": u / 2,
    }  # fmt: skip


@exercise("5.2", "Six modulations", difficulty=2, minutes=12)
def residual(answer):
    body = Body()
    yield "a velocity shaped like the states"
    x, untouched = body.x.clone(), torch.tensor([0.0, 0, 1, 0, 0, 1])[:, None].expand(6, 6).contiguous()
    mine = tensor(answer.uncopied(x, untouched, *body.parts), x.shape, "the velocity", "batch, tokens, width, as x")
    if not torch.equal(x, body.x):
        raise Wrong("You changed x itself: operators such as += work in place. The solver still needs x.")

    yield "by hand: the identity modulation (γ = β = 0, α = 1) gives Attn(LN1 x) + MLP(LN2 x)"
    reference = Body()
    plain = reference.attend(reference.norm1(x)) + reference.mlp(reference.norm2(x))
    body = Body()
    value = answer(x, body.modulations.clone(), *body.parts)
    turned = tensor(value, x.shape, "the velocity", "batch, tokens, width, as x")
    mistakes = _wrong_velocities(x, body.modulations, *reference.parts)
    close(mine, plain, "the velocity", dict.fromkeys(matching_mistakes(turned, mistakes), mine))
    yield "any modulation: u = α1 ⊙ Attn((1+γ1) ⊙ LN1 x + β1) + α2 ⊙ MLP((1+γ2) ⊙ LN2 x + β2)"
    close(turned, velocity(x, body.modulations, *reference.parts), "the velocity", mistakes)
    yield "attention and MLP are called once each"
    for name in ("attend", "mlp"):
        if (times := body.asked.count(name)) != 1:
            raise Wrong(
                f"The right velocity, but you called {name} {times} times. Call it once and keep the result: it is the "
                "expensive part, and with a cache each call of attention writes its keys again."
            )
    yield "all α = 0: the velocity is 0, whatever γ and β are"
    closed = Body().modulations.index_fill(0, torch.tensor([2, 5]), 0.0)
    close(answer(x, closed, *Body().parts), torch.zeros_like(x), "the velocity")
