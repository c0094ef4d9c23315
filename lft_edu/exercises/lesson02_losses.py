"""Checks of lesson 02: the least possible loss, and a path that is not straight."""

import math

import torch

from .checking import Wrong, close, exercise, tensor
from .lesson02 import Probe, average_velocity, field, require_fresh_times, require_gradient


def least_loss(sigma: float) -> float:
    """The flow-matching loss of the exact average velocity on two crossing beams of width ``sigma``, by quadrature."""
    t = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2)
    x = (1 - 2 * t)[:, None] + sigma * z  # the beam that starts at +1; the other one is its mirror image
    error = (average_velocity(x, t[:, None], sigma) + 2).square()
    return ((error * weight).sum(1) / weight.sum()).mean().item()


@exercise("2.7", "The floor", difficulty=2, minutes=15)
def floor(answer):
    yield "a number that is not negative"
    value = float(tensor(answer(0.3), (), "the least loss"))
    if value < 0:
        raise Wrong("A mean of squares cannot be negative.")
    yield "the mean squared distance from the average velocity, σ = 0.3"
    for sigma in (0.3, 0.6):
        value, want = float(tensor(answer(sigma), (), "the least loss")), least_loss(sigma)
        if abs(value - want) < 0.05 * want:
            continue
        if abs(value - (4 - want)) < 0.05 * (4 - want):
            raise Wrong(
                "This is the mean square of the *average* velocity. The floor is what it leaves unexplained: the mean "
                "of (v − u)², where v = −2 or +2 is the velocity of the point's own line."
            )
        if abs(value - 4) < 0.2:
            raise Wrong("4 is the mean square of v itself: subtract the average velocity u(x_t, t) before you square.")
        if value > 4:
            raise Wrong(
                f"You found {value:.2f}, more than predicting zero costs (4). A point that starts at +1 has v = −2: "
                "check that u has the sign of its own beam at t = 0."
            )
        if abs(value - want / 2) < 0.05 * want:
            raise Wrong("Half of the floor: there is one coordinate here. Do not divide by 2.")
        raise Wrong(
            f"For σ = {sigma} you found {value:.3f}, it is {want:.3f}. Draw t from U(0, 1), start at s = ±1 with "
            "offset σ z, x_t = s (1 − 2t) + σ z, v = −2 s, and average (v − u(x_t, t))² over at least 100,000 draws."
        )
    yield "narrow beams: small, but not zero"
    value, want = float(tensor(answer(0.05), (), "the least loss")), least_loss(0.05)
    if abs(value - want) > 0.1 * want:
        raise Wrong(
            f"For σ = 0.05 you found {value:.4f}, it is {want:.4f}: few draws fall where beams meet. Draw more."
        )


@exercise("2.8", "A curved path", difficulty=2, minutes=15)
def curved(answer):
    generator = torch.Generator().manual_seed(8)
    x0, x1 = torch.randn(16, 3, generator=generator), torch.randn(16, 3, generator=generator)
    probe = Probe()
    yield "a single number"
    mine = tensor(answer(probe, x0, x1), (), "the loss", "take the mean over points and dimensions")
    yield "at random times, one per point"
    if not probe.asked:
        raise Wrong("You never evaluated the velocity: call velocity(x_t, t).")
    x_t, t = probe.asked[0]
    if t.numel() != 16 or len(t.unique()) < 8:
        raise Wrong("Draw one time per point, torch.rand(len(x0)).")
    angle = math.pi / 2 * t.reshape(-1, 1)
    yield "on the quarter circle, x_t = cos(πt/2) x0 + sin(πt/2) x1"
    path = angle.cos() * x0 + angle.sin() * x1
    close(x_t, path, "x_t", {
        "This is the straight line. The path asked for is cos(πt/2) x0 + sin(πt/2) x1.": torch.lerp(x0, x1, t[:, None]),
        "The angle runs from 0 to π/2, a quarter turn: multiply t by π/2.":
            t[:, None].cos() * x0 + t[:, None].sin() * x1,
        "You turn twice as far: the angle is πt/2, not πt.": (2 * angle).cos() * x0 + (2 * angle).sin() * x1,
        "Your path runs from x1 to x0: at t = 0 it must be at x0.": angle.cos() * x1 + angle.sin() * x0,
    })  # fmt: skip
    yield "against the velocity of *this* path, its derivative in t"
    with torch.no_grad():
        u = field(path, t.reshape(-1, 1))
    turning = angle.cos() * x1 - angle.sin() * x0
    loss = lambda target: (u - target).square().mean()  # noqa: E731
    close(mine, loss(math.pi / 2 * turning), "the loss", {
        "x1 − x0 is the velocity of the straight line. Here it changes along the path: differentiate x_t in t.":
            loss(x1 - x0),
        "The factor π/2 is missing: the derivative of cos(πt/2) is −(π/2) sin(πt/2).": loss(turning),
        "The sign: the derivative of cos is −sin, that of sin is +cos.":
            loss(math.pi / 2 * (angle.cos() * x1 + angle.sin() * x0)),
        "You sum over dimensions (or points). Take the mean over everything.": 3 * loss(math.pi / 2 * turning),
    })  # fmt: skip
    yield "the times are uniform, and drawn again in each call"
    require_fresh_times(answer, x0, x1)
    yield "the gradient flows"
    require_gradient(answer(probe, x0, x1), probe)
