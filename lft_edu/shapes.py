"""Toy couplings of two point clouds in the plane or on a line, as :class:`~lft_edu.couplings.Coupling`.

Every shape takes a number of pairs ``n``, a ``torch.Generator`` and usually a ``spread`` (standard deviation of the
noise), and lies within about [-2, 2]². ``group`` marks the pairs that move together. In all of them ``x1`` is a
function of ``x0``, as it is in a transformer.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .couplings import Coupling
from .support.errors import unknown_name_error


def beams(n: int = 256, generator: torch.Generator | None = None, spread: float = 0.15) -> Coupling:
    """Make two clusters that cross: top left goes to bottom right, bottom left to top right."""
    return _clusters(n, generator, spread, starts=[(-1.5, 1.0), (-1.5, -1.0)], ends=[(1.5, -1.0), (1.5, 1.0)])


def cycle(n: int = 256, generator: torch.Generator | None = None, spread: float = 0.15) -> Coupling:
    """Make three clusters that each move one place down, the lowest to the top: two parallel beams and one across."""
    starts, ends = ([(x, y) for y in heights] for x, heights in ((-1.5, (1.2, 0.0, -1.2)), (1.5, (0.0, -1.2, 1.2))))
    return _clusters(n, generator, spread, starts, ends)


def overtaking(n: int = 256, generator: torch.Generator | None = None, spread: float = 0.15) -> Coupling:
    """Make a cluster that overtakes another: no lines cross, yet points meet (same place at the same time)."""
    return _clusters(n, generator, spread, starts=[(-1.5, 0.0), (-0.5, 0.0)], ends=[(1.5, 0.0), (0.5, 0.0)])


def moons(n: int = 256, generator: torch.Generator | None = None, spread: float = 0.06) -> Coupling:
    """Make two interleaved half-moons; each point goes to its mirror image on the other moon."""
    group, noise = _groups(n, 2, generator), spread * torch.randn(n, 2, generator=generator)
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], -1) * 1.3
    x0 = torch.where(group[:, None] == 0, upper, -upper) + noise
    return Coupling(x0, -x0, group)


def rings(n: int = 256, generator: torch.Generator | None = None, spread: float = 0.04) -> Coupling:
    """Make a small ring that grows and rotates by 150 degrees. Groups: thirds of the ring."""
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    x0 = torch.stack([angle.cos(), angle.sin()], -1) * (0.8 + spread * torch.randn(n, 1, generator=generator))
    return Coupling(x0, 2.2 * turn(x0, 150), (3 * angle / (2 * math.pi)).long().clamp(max=2))


def spirals(n: int = 256, generator: torch.Generator | None = None, spread: float = 0.05) -> Coupling:
    """Make two arms of a spiral that swap: all lines pass through the center."""
    group = _groups(n, 2, generator)
    radius = torch.rand(n, generator=generator).sqrt()
    x0 = turn(torch.stack([1.8 * radius + 0.15, torch.zeros(n)], -1), 360 * radius + 180 * group)
    return Coupling(x0 + spread * torch.randn(n, 2, generator=generator), turn(x0, 180), group)


def rotation(n: int = 256, generator: torch.Generator | None = None, degrees: float = 120.0) -> Coupling:
    """Make a Gaussian cloud that rotates about its center by ``degrees``. Groups: quadrants of ``x0``."""
    x0 = 0.8 * torch.randn(n, 2, generator=generator)
    return Coupling(x0, turn(x0, degrees), (x0[:, 0] > 0).long() + 2 * (x0[:, 1] > 0).long())


def line(n: int = 256, generator: torch.Generator | None = None, spread: float = 0.15) -> Coupling:
    """Make two clusters on a line that swap, −1 to +1 and +1 to −1, ``(N, 1)``."""
    return _clusters(n, generator, spread, starts=[(-1.0,), (1.0,)], ends=[(1.0,), (-1.0,)])


SHAPES: dict[str, Callable[..., Coupling]] = {
    f.__name__: f for f in (beams, cycle, overtaking, moons, rings, spirals, rotation, line)
}


def make(name: str, n: int = 256, generator: torch.Generator | None = None, **options) -> Coupling:
    """Make a shape by name, a key of :data:`SHAPES`; ``options`` go to its function.

    Raises:
        ValueError: unknown name.
    """
    if name not in SHAPES:
        raise unknown_name_error("shape", name, SHAPES)
    return SHAPES[name](n, generator, **options)


def from_text(starts: str, ends: str) -> Coupling:
    """Parse pairs from two texts with one point per line, ``0.5 -1`` or ``0.5, -1``; line i pairs with line i.

    Raises:
        ValueError: a line that is not two numbers, or texts with different numbers of points.
    """
    clouds = [_points(text, name) for text, name in ((starts, "starts"), (ends, "ends"))]
    if len(clouds[0]) != len(clouds[1]):
        raise ValueError(f"{len(clouds[0])} starts but {len(clouds[1])} ends: give each start its end, line by line.")
    if len(clouds[0]) < 1:
        raise ValueError("Give at least one pair of points, one point per line, such as '0.5 -1'.")
    return Coupling(*clouds)


def turn(x: Tensor, degrees: float | Tensor) -> Tensor:
    """Rotate ``x`` ``(N, 2)`` about the origin, counterclockwise, by ``degrees`` (a number, or ``(N,)``)."""
    angle = torch.as_tensor(degrees, dtype=x.dtype).deg2rad()
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], -1)


def _clusters(n: int, generator, spread: float, starts: list, ends: list) -> Coupling:
    """Make clusters that each move rigidly from one center to another."""
    group = _groups(n, len(starts), generator)
    offset = spread * torch.randn(n, len(starts[0]), generator=generator)
    return Coupling(torch.tensor(starts)[group] + offset, torch.tensor(ends)[group] + offset, group)


def _groups(n: int, groups: int, generator) -> Tensor:
    """Assign n points to groups of nearly equal size in random order, ``(n,)``."""
    if isinstance(n, bool) or not isinstance(n, int) or n < groups:
        raise ValueError(f"n={n!r}: give an integer number of pairs, at least {groups} for this shape.")
    return torch.arange(n)[torch.randperm(n, generator=generator)] % groups


def _points(text: str, name: str) -> Tensor:
    points = []
    for number, written in enumerate(text.splitlines(), 1):
        if not written.strip():
            continue
        try:
            x, y = (float(part) for part in written.replace(",", " ").split())
        except ValueError:
            raise ValueError(
                f"Line {number} of the {name} is {written.strip()!r}: write two numbers, such as '0.5 -1'."
            ) from None
        points.append((x, y))
    return torch.tensor(points).reshape(-1, 2)
