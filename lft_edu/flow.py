"""Flows: a velocity field, a step along it, and a walk of many steps.

A *velocity field* is any callable ``u(x, t)`` that returns a tensor shaped like ``x``. Here nothing knows what ``x``
is: a point in the plane or the hidden state of a token, the code is the same.

Shapes: ``x`` is ``(B, ..., D)``. A time is a number, or a tensor whose shape begins the shape of ``x``:
``()`` for all, ``(B,)`` one per sample, ``(B, T)`` one per token. Times lie in [0, 1].
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[Velocity, Tensor, Tensor, Tensor], Tensor]


def as_time(t: float | Tensor, x: Tensor) -> Tensor:
    """Return ``t`` as a tensor on the device of ``x``, in float32 or wider: bfloat16 cannot tell t = 0.997 from 1."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return t.to(x.device, dtype) if isinstance(t, Tensor) else torch.full((), float(t), dtype=dtype, device=x.device)


def pad_t_like_x(t: Tensor, x: Tensor) -> Tensor:
    """Give ``t`` trailing axes of length 1 and the type of ``x``, so that it multiplies ``x`` sample by sample."""
    if t.ndim >= x.ndim or t.shape != x.shape[: t.ndim]:
        raise ValueError(
            f"A time of shape {tuple(t.shape)} does not fit x of shape {tuple(x.shape)}: "
            "give a number, or one time per sample, shape (B,)."
        )
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)).to(x.dtype)


expand_time = pad_t_like_x  # its name before 1.0


def shaped_like_x(velocity: Velocity) -> Velocity:
    """Return the velocity, but with a ValueError where it is not shaped like ``x``: broadcast, it would move other
    points."""
    if not callable(velocity):
        raise ValueError(f"velocity is a {type(velocity).__name__}: give a function u(x, t).")

    def checked(x: Tensor, *times: Tensor) -> Tensor:
        u = velocity(x, *times)
        if u.shape != x.shape:
            raise ValueError(f"The velocity has shape {tuple(u.shape)} at points of shape {tuple(x.shape)}.")
        return u

    return checked


def euler_step(velocity: Velocity, x: Tensor, t, s) -> Tensor:
    """Step from time ``t`` to ``s`` by the velocity at ``t`` (paper, eq. 4).

    One evaluation; local error O((s − t)²).
    """
    t, s = as_time(t, x), as_time(s, x)
    return x + pad_t_like_x(s - t, x) * velocity(x, t)


def midpoint_step(velocity: Velocity, x: Tensor, t, s) -> Tensor:
    """Step from ``t`` to ``s`` by the velocity half a step ahead (paper, eq. 5).

    Two evaluations; local error O((s − t)³).
    """
    t, s = as_time(t, x), as_time(s, x)
    half = (s - t) / 2
    halfway = x + pad_t_like_x(half, x) * velocity(x, t)
    return x + pad_t_like_x(2 * half, x) * velocity(halfway, t + half)


def shortcut_step(velocity, x: Tensor, t, s) -> Tensor:
    """Step from ``t`` to ``s`` by a velocity that is told how long the step is, ``u(x, t, s − t)``.

    Such a velocity is the mean one of the whole step (shortcut models, arXiv 2410.12557; MeanFlow, arXiv 2505.13447):
    a long step need not be less exact than a short one. One evaluation.
    """
    t, s = as_time(t, x), as_time(s, x)
    return x + pad_t_like_x(s - t, x) * velocity(x, t, s - t)


STEPS: dict[str, Step] = {"euler": euler_step, "midpoint": midpoint_step}
EVALUATIONS = {"euler": 1, "midpoint": 2}  # velocity evaluations per step


def walk(velocity: Velocity, x0: Tensor, times, step: Step = midpoint_step, return_path: bool = False) -> Tensor:
    """Follow the velocity from ``x0`` through ``times`` (paper, alg. 3).

    Args:
        velocity: ``u(x, t)``.
        x0: ``(B, ..., D)``, the state at ``times[..., 0]``.
        times: a tensor ``(K+1,)`` for all samples or ``(B, K+1)``, or a list of numbers in [0, 1], in one direction:
            increasing, or decreasing to walk back (from x1, with times from 1 to 0; steps s − t are then negative).
        step: :func:`euler_step` or :func:`midpoint_step`.
        return_path: return every state on the way instead of the last one.

    Returns:
        The last state, shaped like ``x0``; with ``return_path`` all states, ``(K+1, B, ..., D)``.

    Raises:
        ValueError: fewer than two times, times that turn back, leave [0, 1] or do not fit ``x0``, or a velocity that is
            not shaped like ``x``. (Equal neighbors are a step of length zero, which random times may draw: allowed. The
            values of times on a GPU are not checked.)
    """
    times, velocity = check_times(times, x0), shaped_like_x(velocity)
    path = [x0]
    for t, s in itertools.pairwise(times):
        path.append(step(velocity, path[-1], t, s))
        if not return_path:
            del path[0]
    return torch.stack(path) if return_path else path[-1]


def check_times(times: Tensor | Sequence[float], x: Tensor) -> tuple:
    """Return the K+1 times one after another, numbers or ``(B,)`` tensors; ValueError if they are not valid times."""
    if not isinstance(x, Tensor):
        raise ValueError(f"x0 is a {type(x).__name__}: give a tensor, (B, ..., D).")
    try:
        table = times if isinstance(times, Tensor) else torch.tensor(times, dtype=torch.float64)
    except (TypeError, ValueError):
        raise ValueError(f"times={times!r}: give K+1 numbers from 0 to 1, or a tensor of them.") from None
    if table.is_complex() or (table.is_meta and not x.is_meta):
        raise ValueError(f"times are {table.dtype} on {table.device}: give real numbers from 0 to 1.")
    if table.ndim not in (1, 2) or table.shape[-1] < 2:
        raise ValueError(f"times has shape {tuple(table.shape)}: give (K+1,) or (B, K+1) with at least 2 times.")
    if table.ndim == 2 and len(table) != len(x):
        raise ValueError(f"times holds {len(table)} rows for a batch of {len(x)}: give one row per sample.")
    # Only where it costs nothing: a GPU, or a compiled graph, would have to stop and wait.
    if table.device.type == "cpu" and not torch.compiler.is_compiling():
        if not bool(((table >= 0) & (table <= 1)).all()):
            raise ValueError(f"times must lie in [0, 1]; these run from {table.min():g} to {table.max():g}.")
        steps = table.diff(dim=-1)
        if bool(((steps < 0).any(-1) & (steps > 0).any(-1)).any()):
            raise ValueError(
                "times must run in one direction: sort them, from 0 to 1, or from 1 to 0 to walk back from x1."
            )
    return table.unbind(-1) if isinstance(times, Tensor) or table.ndim == 2 else tuple(times)


MOST_STEPS = 10_000  # each step has an entry in the KV cache: a damaged config is not to ask for a billion of them


def check_steps(k: int) -> int:
    """Return ``k`` if it is a whole number from 1 to ``MOST_STEPS``; ValueError otherwise."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k={k!r}: a walk takes a whole number of steps, at least 1.")
    if k > MOST_STEPS:
        raise ValueError(f"k={k:,}: a walk takes at most {MOST_STEPS:,} steps.")
    return k


def uniform_times(k: int, device=None, dtype=torch.float32) -> Tensor:
    """The times of ``k`` equal steps from 0 to 1: ``(k+1,)``."""
    return torch.linspace(0, 1, check_steps(k) + 1, device=device, dtype=dtype)


def random_times(k: int, batch: int, generator: torch.Generator | None = None, device=None) -> Tensor:
    """``k`` steps from 0 to 1 through ``k - 1`` sorted uniform times, drawn again for each sample: ``(batch, k+1)``.

    Drawn on the generator's device, then moved to ``device``.
    """
    source = generator.device if generator is not None else device
    inner = torch.rand(batch, check_steps(k) - 1, generator=generator, device=source).sort(dim=-1).values.to(device)
    return torch.nn.functional.pad(torch.nn.functional.pad(inner, (1, 0), value=0.0), (0, 1), value=1.0)
