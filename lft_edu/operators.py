"""Transport operators: what stands in for a span of layers.

Each maps the hidden states that enter the span, ``x0`` of shape ``(B, T, D)``, to an estimate of those that leave it.
All are called as the layers they replace: ``operator(x0, attention_mask=..., position_embeddings=..., ...)``.

* ``Skip``, ``MeanShift``, ``Procrustes``, ``Ridge``: closed form, one token at a time.
* ``Loop``, ``Regression``: one transformer layer, repeated or retrained.
* ``Flow``: a learned velocity, walked from t = 0 to 1.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .flow import EVALUATIONS, STEPS, check_steps, walk
from .support.errors import unknown_name_error
from .velocity import VelocityEstimator, _OwnsLayer


class CacheSlot:
    """A key-value cache as one velocity evaluation sees it: whoever writes, it is slot ``index`` that is written."""

    def __init__(self, cache, index: int):
        self._cache, self._index = cache, index

    def update(self, keys, values, layer_idx, *args, **kwargs):
        return self._cache.update(keys, values, self._index, *args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._cache, name)


def at_slot(context: dict, index: int) -> dict:
    """A layer's keyword arguments with their cache, if any, narrowed to one slot."""
    from transformers import Cache

    return {key: CacheSlot(value, index) if isinstance(value, Cache) else value for key, value in context.items()}


class Operator(nn.Module):
    """Base of all transport operators.

    Attributes:
        kind: the name in configs, tables and on the command line.
        slots: cache slots it owns, one per velocity (or layer) evaluation.
        nfe: evaluations of a layer-sized network per token.
        first_slot: its first cache slot; set by the splice.
    """

    kind = "skip"
    slots = 0
    closed_form = False
    trainable = False

    def __init__(self):
        super().__init__()
        self.settings: dict = {}
        self.first_slot = 0

    @property
    def nfe(self) -> int:
        return self.slots

    def layer_to_copy(self, m: int, n: int) -> int:
        """Which teacher layer of the span [m, n) :meth:`build` is given a copy of."""
        return m

    def build(self, layer: nn.Module, config, generator: torch.Generator | None = None) -> "Operator":
        """Allocate parameters for a teacher with this config. ``layer``: a layer to own, or to ignore."""
        return self

    def to_dict(self) -> dict:
        """JSON that :func:`operator_from_dict` turns into the same operator."""
        return {"kind": self.kind, **self.settings}

    def forward(self, x: Tensor, **context) -> Tensor:
        return x

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.settings.items())


class Skip(Operator):
    """Leave the span out: ``x1 = x0``."""


@dataclass
class Moments:
    """Sums over tokens from which every closed-form operator is solved; float64, added up batch by batch."""

    n: int
    sum0: Tensor  # (D,)
    sum1: Tensor  # (D,)
    cross00: Tensor  # (D, D), Σ x0ᵀ x0
    cross01: Tensor  # (D, D), Σ x0ᵀ x1

    @classmethod
    def zeros(cls, width: int) -> "Moments":
        return cls(
            0, *(torch.zeros(shape, dtype=torch.float64) for shape in [width, width, (width,) * 2, (width,) * 2])
        )

    def add(self, x0: Tensor, x1: Tensor) -> None:
        """Take in pairs ``(N, D)``.

        Raises:
            ValueError: NaN or infinity among them.
        """
        x0, x1 = (x.detach().double().cpu() for x in (x0, x1))
        if not bool(torch.isfinite(x0).all() and torch.isfinite(x1).all()):
            raise ValueError("The latents hold NaN or infinity: load the teacher in float32 or bfloat16 and try again.")
        self.n += len(x0)
        self.sum0 += x0.sum(0)
        self.sum1 += x1.sum(0)
        self.cross00 += x0.T @ x0
        self.cross01 += x0.T @ x1

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        return self.sum0 / self.n, self.sum1 / self.n

    @property
    def covariances(self) -> tuple[Tensor, Tensor]:
        """Of x0 with itself and with x1, ``(D, D)`` each."""
        mean0, mean1 = self.means
        return self.cross00 / self.n - torch.outer(mean0, mean0), self.cross01 / self.n - torch.outer(mean0, mean1)


class _Affine(Operator):
    """``x1 = x0 + x0 · weight + bias``: the correction is what is stored, so zeros mean skip."""

    closed_form = True

    def build(self, layer, config, generator=None):
        self.weight = nn.Parameter(torch.zeros(config.hidden_size, config.hidden_size), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(config.hidden_size), requires_grad=False)
        return self

    def forward(self, x, **context):
        return x + x @ self.weight + self.bias

    @torch.no_grad()
    def solve(self, moments: Moments) -> None:
        """Fit to the pairs summed up in ``moments``."""
        matrix, mean0, mean1 = self.linear_map(moments), *moments.means
        self.weight.copy_(matrix - torch.eye(len(matrix), dtype=matrix.dtype))
        self.bias.copy_(mean1 - mean0 @ matrix)


class MeanShift(_Affine):
    """Add the mean difference: ``x1 = x0 + E[x1 − x0]``."""

    kind = "mean-shift"

    def build(self, layer, config, generator=None):
        self.bias = nn.Parameter(torch.zeros(config.hidden_size), requires_grad=False)
        return self

    def forward(self, x, **context):
        return x + self.bias

    @torch.no_grad()
    def solve(self, moments):
        self.bias.copy_(moments.means[1] - moments.means[0])


class Procrustes(_Affine):
    """The best rotation, scale and shift: least squares under ``W = s R``, ``RᵀR = 1`` (Schönemann 1966)."""

    kind = "procrustes"

    def linear_map(self, moments: Moments) -> Tensor:
        covariance, cross = moments.covariances
        u, s, vt = torch.linalg.svd(cross)
        return s.sum() / covariance.trace() * (u @ vt)


class Ridge(_Affine):
    """Linear least squares towards the identity, the idea of ReplaceMe (arXiv 2505.02819).

    ``penalty`` is relative to the mean variance of x0: it pulls the map towards skipping, never towards zero.
    """

    kind = "ridge"

    def __init__(self, penalty: float = 1e-4):
        if not (isinstance(penalty, int | float) and penalty >= 0):
            raise ValueError(f"penalty={penalty!r}: give a number of at least 0.")
        super().__init__()
        self.settings = {"penalty": penalty}

    def linear_map(self, moments):
        covariance, cross = moments.covariances
        identity = torch.eye(len(covariance), dtype=covariance.dtype)
        lam = (self.settings["penalty"] * covariance.trace() / len(covariance)).clamp(min=1e-12)
        return identity + torch.linalg.solve(covariance + lam * identity, cross - covariance)


class Regression(_OwnsLayer, Operator):
    """One transformer layer, started from the teacher's and retrained (the idea of LLM-Streamline, ICLR 2025)."""

    kind = "regression"
    slots = 1
    trainable = True

    def build(self, layer, config, generator=None):
        self.layer = layer
        return self

    def field(self, **context):
        """The layer's update as a velocity: ``u(x, t) = Layer(x) − x``, blind to time."""
        slots = itertools.count(self.first_slot)
        return lambda x, t: self.layer(x, **at_slot(context, next(slots))) - x

    def forward(self, x, **context):
        return self.layer(x, **at_slot(context, self.first_slot))


class Loop(Regression):
    """One teacher layer (the span's middle one), unchanged, ``repeats`` times."""

    kind = "loop"
    trainable = False

    def __init__(self, repeats: int = 3):
        super().__init__()
        self.settings = {"repeats": check_steps(repeats)}

    @property
    def slots(self):
        return self.settings["repeats"]

    def layer_to_copy(self, m, n):
        return (m + n) // 2

    def forward(self, x, **context):
        for i in range(self.slots):
            x = self.layer(x, **at_slot(context, self.first_slot + i))
        return x


class Flow(Operator):
    """Walk a learned velocity from t = 0 to t = 1 in equal steps (paper, alg. 3).

    Args:
        solver: ``"euler"`` (one evaluation a step) or ``"midpoint"`` (two).
        steps: k, at least 1. May differ from training; change it later with ``student.set_solver``.
    """

    kind = "flow"
    trainable = True

    def __init__(self, solver: str = "euler", steps: int = 1):
        if solver not in STEPS:
            raise ValueError(f"solver={solver!r}: choose one of {', '.join(STEPS)}.")
        super().__init__()
        self.settings = {"solver": solver, "steps": check_steps(steps)}

    @property
    def slots(self):
        return EVALUATIONS[self.settings["solver"]] * self.settings["steps"]

    def build(self, layer, config, generator=None):
        self.velocity = VelocityEstimator(layer, config, generator)
        return self

    def field(self, **context):
        """``u(x, t)`` for tokens in this context. Its i-th call writes the i-th of the operator's cache slots."""
        slots = itertools.count(self.first_slot)
        return lambda x, t: self.velocity(x, t, **at_slot(context, next(slots)))

    def forward(self, x, **context):
        k = self.settings["steps"]
        return walk(self.field(**context), x, [i / k for i in range(k + 1)], STEPS[self.settings["solver"]])


OPERATORS = {cls.kind: cls for cls in (Skip, MeanShift, Procrustes, Ridge, Loop, Regression, Flow)}


def operator_from_dict(settings: dict) -> Operator:
    """The operator that :meth:`Operator.to_dict` described, not built yet.

    Raises:
        ValueError: unknown kind or settings.
    """
    settings = dict(settings)
    kind = settings.pop("kind", None)
    if kind not in OPERATORS:
        raise unknown_name_error("operator", kind, OPERATORS)
    try:
        return OPERATORS[kind](**settings)
    except TypeError as error:
        raise ValueError(f"Operator {kind!r} does not take these settings: {settings} ({error}).") from error


def row_title(row: dict) -> str:
    """The name of a row of ``ladder.json`` with its solver: ``flow-walking (midpoint × 3)``."""
    solver = row["operator"].get("solver")
    return f"{row['name']} ({solver} × {row['operator']['steps']})" if solver else row["name"]


def operator_title(card: dict) -> str:
    """Such as ``flow (midpoint × 3)``."""
    operator = card["operator"]
    return (
        f"{operator['kind']} ({operator['solver']} × {operator['steps']})" if "solver" in operator else operator["kind"]
    )


@torch.no_grad()
def operator_path(operator: Operator, x0: Tensor, context: dict, between: int = 0) -> tuple[list[Tensor], Tensor]:
    """What an operator makes of ``x0`` ``(B, T, D)``, and the t in (0, 1] of each state: the end of each of a flow's
    steps and ``between`` states inside it; of any other operator its result alone, t = 1."""
    if not isinstance(operator, Flow):
        return [operator(x0, **context)], torch.ones(1, dtype=torch.float64)
    k, step, velocity = operator.settings["steps"], STEPS[operator.settings["solver"]], operator.field(**context)
    states, times, parts, start = [], [], between + 1, x0
    for i in range(k):
        for j in range(1, parts + 1):
            states.append(step(velocity, start, i / k, (i * parts + j) / (k * parts)))
            times.append((i * parts + j) / (k * parts))
        start = states[-1]
    return states, torch.tensor(times, dtype=torch.float64)
