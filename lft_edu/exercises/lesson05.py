"""Checks of lesson 05: time embedding, modulation. (Splice, budget: lesson05_assembly; cache: lesson05_cache.)"""

import math
from contextlib import suppress

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


def read_off(seen: Tensor, i: int) -> Tensor:
    """Read the times (N,) off features (N, 128) by frequency i alone, as if its angle stayed between −π and π."""
    return torch.atan2(seen[:, HALF + i], seen[:, i]) / turn(i)


def turn(i: int) -> float:
    """Return the angle of frequency i at t = 1, in radians."""
    return 1000 * 10_000 ** (-i / HALF)


def explain_times(value: Tensor, seen: Tensor) -> str:
    """Explain times that were read wrongly off features; empty if it is none of the known mistakes."""
    same = lambda outcome, tolerance=2e-3: torch.allclose(value, outcome.double(), atol=tolerance, rtol=1e-3)  # noqa: E731
    slower = "Different times look alike there: read a slower one."
    for i in range(HALF):
        angle, cosine = turn(i) * read_off(seen, i), seen[:, i].clamp(-1, 1).arccos()
        here = f"You read frequency {i}, which has turned by {turn(i):.3g} radians at t = 1, and "
        if turn(i) > math.pi and same(angle / turn(i)):
            return f"{here}atan2 knows angles from −π to π only. {slower}"
        if turn(i) > math.pi and same(cosine / turn(i)):
            return f"{here}arccos knows angles from 0 to π only. {slower}"
        if turn(i) > 2 * math.pi and same((angle % (2 * math.pi)) / turn(i)):
            return f"{here}modulo 2π its whole turns are lost. {slower}"
        if same(cosine / turn(i), 0.02):
            return "Near t = 0 a cosine hardly changes. Take sine and cosine together: torch.atan2(sine, cosine)."
        if same(angle):
            return f"You returned the angle of frequency {i}: divide by what it is at t = 1, 1000 · 10000^(−{i}/64)."
        if same(1000 * angle / turn(i)):
            return "These are the times multiplied by 1000, as they were before the cosines: divide by that, too."
        if same((math.pi / 2 - angle) / turn(i)):
            return "Sine and cosine are exchanged: the cosines come first, and torch.atan2 takes the sine first."
        if same(torch.atan2(seen[:, 2 * i + 1], seen[:, 2 * i]) / turn(i)):
            return "The 64 cosines come first, then the 64 sines. You read them as if they alternated."
    return ""


@exercise("5.1", "Read the clock", difficulty=2, minutes=12)
def time_embedding(answer):
    t = torch.tensor([0.0, 1.0, 0.4567, 0.98, 0.03])
    seen = features(t).float()
    yield "a time for each row of features, (N,)"
    value = tensor(_without_nan(answer(seen)), None, "the times")
    if tuple(value.shape) == (5, HALF):
        raise Wrong("You returned 64 times per row, one for each frequency. Choose the frequency that can be trusted.")
    if tuple(value.shape) == (5, 1):
        raise Wrong("You returned (5, 1): a column was kept. One number per row, (5,).")
    if tuple(value.shape) == ():
        raise Wrong("You returned one number; there were 5 rows, one for each time.")
    mine = tensor(value, (5,), "the times", "one per row of features")
    yield "exact features, at t = 0, 1, 0.4567, 0.98, 0.03"
    message = explain_times(mine, seen)
    close(mine, t, "the times", {message: mine} if message else None, tolerance=1e-3)
    yield "any number of times"
    many = torch.rand(200, generator=torch.Generator().manual_seed(0))
    found = tensor(_without_nan(answer(features(many).float())), (200,), "the times", "one per row of features")
    message = explain_times(found, features(many).float())
    close(found, many, "200 times", {message: found} if message else None, tolerance=1e-3)
    yield "features with noise of up to 0.01: still right to 0.01"
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        many = 0.02 + 0.96 * torch.rand(200, generator=generator)
        noise = 0.02 * torch.rand(200, 2 * HALF, generator=generator) - 0.01
        found = tensor(_without_nan(answer(features(many).float() + noise)), (200,), "the times", "one per row")
        if (worst := (found - many).abs().max().item()) > 0.01:
            raise Wrong(
                f"With noise of up to 0.01 in the features, your times are off by up to {worst:.3f}. An error of 0.01 "
                "in the angle is one of 0.01 / (the angle at t = 1) in the time: of the frequencies whose angle stays "
                "unambiguous, take the fastest."
            )


def _without_nan(value):
    """Return ``value``, or explain NaN, which has one cause here."""
    with suppress(TypeError, ValueError, RuntimeError):  # not numbers: reported by the next check
        if torch.as_tensor(value).isnan().any():
            raise Wrong("NaN: a cosine above 1, from rounding or noise, has no angle. torch.atan2(sine, cosine) has.")
    return value


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
    """Return the update of a sequential-residual layer, without x; ``see`` modulates the inputs."""
    g1, b1, a1, g2, b2, a2 = modulations
    attended = a1 * attend(see(norm1(x), g1, b1))
    return attended + a2 * mlp(see(norm2(x + attended), g2, b2))


def _wrong_velocities(x, modulations, attend, mlp, norm1, norm2) -> dict[str, Tensor]:
    """Return what common mistakes give instead of the velocity: message → value."""
    g1, b1, a1, g2, b2, a2 = modulations
    parts = attend, mlp, norm1, norm2
    as_if = lambda *rows: velocity(x, modulations[list(rows)], *parts)  # noqa: E731
    seen = lambda see: velocity(x, modulations, *parts, see=see)  # noqa: E731

    def as_if_alpha(alpha):
        changed = modulations.clone()
        changed[[2, 5]] = alpha
        return velocity(x, changed, *parts)

    u, attended = velocity(x, modulations, *parts), a1 * attend(modulate(norm1(x), g1, b1))
    inner = lambda z: mlp(modulate(norm2(z), g2, b2))  # noqa: E731
    after = x + attended
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
            (before := a1 * attend(norm1(modulate(x, g1, b1)))) + a2 * mlp(norm2(modulate(x + before, g2, b2))),
        "You left out the norms: attention and MLP were trained on normalized states.":
            velocity(x, modulations, attend, mlp, lambda z: z, lambda z: z),
        "You left out the α's: they scale the outputs of attention and MLP.": as_if_alpha(1.0),
        "Your α has a 1 + . Only γ has one: the α's are initialized to 1.": as_if_alpha(modulations[[2, 5]] + 1),
        "You put α on the inputs. It scales the *outputs* of attention and MLP.":
            (early := attend(a1 * modulate(norm1(x), g1, b1))) + mlp(a2 * modulate(norm2(x + early), g2, b2)),
        "The MLP comes first in yours. Attention does, and the MLP reads the state after it.":
            (first := a2 * inner(x)) + a1 * attend(modulate(norm1(x + first), g1, b1)),
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
        "Your MLP reads x (parallel residual, as in Pythia and in the lesson). In this family it reads the state after "
        "attention: x plus what attention adds.": attended + a2 * inner(x),
        "Your MLP reads x plus attention's output without α1. What attention adds is α1 ⊙ Attn(…).":
            attended + a2 * inner(x + attend(modulate(norm1(x), g1, b1))),
        "Your MLP reads what attention adds, without x. It reads the state after attention: x plus that.":
            attended + a2 * inner(attended),
        "You returned the MLP's part alone. The layer adds attention's, too: u is what the *whole* layer adds to x.":
            a2 * inner(after),
        "You returned attention's part alone: add the MLP's.": attended,
        "You multiplied both parts: add them.": attended * a2 * inner(after),
        "You took the mean of both parts: add them.": u / 2,
    }  # fmt: skip


@exercise("5.2", "One after the other", difficulty=2, minutes=12)
def residual(answer):
    body = Body()
    yield "a velocity shaped like the states"
    x, untouched = body.x.clone(), torch.tensor([0.0, 0, 1, 0, 0, 1])[:, None].expand(6, 6).contiguous()
    mine = tensor(answer.uncopied(x, untouched, *body.parts), x.shape, "the velocity", "batch, tokens, width, as x")
    if not torch.equal(x, body.x):
        raise Wrong("You changed x itself: operators such as += work in place. The solver still needs x.")

    yield "by hand: with the identity modulation (γ = β = 0, α = 1) it is the layer, without x"
    reference = Body()
    attended = reference.attend(reference.norm1(x))
    plain = attended + reference.mlp(reference.norm2(x + attended))
    body = Body()
    value = answer(x, body.modulations.clone(), *body.parts)
    turned = tensor(value, x.shape, "the velocity", "batch, tokens, width, as x")
    mistakes = _wrong_velocities(x, body.modulations, *reference.parts)
    close(mine, plain, "the velocity", dict.fromkeys(matching_mistakes(turned, mistakes), mine))
    yield "any modulation"
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
