"""Transport operators: what stands in for a span of layers.

Each maps the hidden states that enter the span, ``x0`` of shape ``(B, T, D)``, to an estimate of those that leave it.
All are called as the layers they replace: ``operator(x0, attention_mask=..., position_embeddings=..., ...)``.

* ``Skip``, ``MeanShift``, ``Procrustes``, ``Ridge``: closed form, one token at a time.
* ``Loop``, ``Regression``: one transformer layer, repeated or retrained.
* ``Flow``: a learned velocity, walked from t = 0 to 1.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .families import family_of
from .flow import EVALUATIONS, STEPS, check_steps, walk
from .naming import unknown


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


class _OwnsLayer(nn.Module):
    """Owns a teacher layer, ``self.layer``, whose dropout stays off: a velocity is a function of state and time."""

    def train(self, mode: bool = True):
        super().train(mode)
        self.layer.eval()
        return self


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


class TimeModulation(nn.Module):
    """Time → γ1, β1, α1, γ2, β2, α2 (adaLN of DiT, arXiv 2212.09748), ``(..., 6, D)``. Starts as γ = β = 0, α = 1.

    Times are scaled by 1000 first: to sinusoids of periods from 2π up, t = 0 and t = 1 are nearly the same number.
    """

    FEATURES = 128

    def __init__(self, width: int, generator: torch.Generator | None = None):
        super().__init__()
        self.inner = nn.Linear(self.FEATURES, width)
        self.outer = nn.Linear(width, 6 * width)
        nn.init.normal_(self.inner.weight, std=self.FEATURES**-0.5, generator=generator)
        for zero in (self.inner.bias, self.outer.weight, self.outer.bias):
            nn.init.zeros_(zero)

    def forward(self, t: Tensor) -> Tensor:
        t = t.to(torch.promote_types(t.dtype, torch.float32))  # bfloat16 would round 996 and 999 to one number
        half = self.FEATURES // 2
        frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000) / half))
        angles = 1000 * t[..., None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], -1).to(self.inner.weight.dtype)
        with torch.autocast(t.device.type, enabled=False):  # near α = 1, bfloat16 knows steps of 1/128 only
            knobs = self.outer(nn.functional.silu(self.inner(features))).unflatten(-1, (6, -1))
        is_alpha = torch.arange(6, device=t.device) % 3 == 2
        return knobs.to(torch.promote_types(knobs.dtype, torch.float32)) + is_alpha[:, None]


class VelocityEstimator(_OwnsLayer, GradientCheckpointingLayer):
    """A transformer layer that has learned to be a velocity.

    Parallel residual (Pythia): ``u = α1 ⊙ Attn((1+γ1) ⊙ LN1(x) + β1) + α2 ⊙ MLP((1+γ2) ⊙ LN2(x) + β2)``.
    The six modulations depend on t alone. Attention, rotary positions and masks are the teacher's own code.
    After ``student.gradient_checkpointing_enable()`` each evaluation in training keeps only its input, and is made
    again for the gradient: memory of one evaluation instead of 2k, for a third more time.
    """

    def __init__(self, layer: nn.Module, config, generator: torch.Generator | None = None):
        super().__init__()
        self.family = family_of(config)
        self.parallel = bool(self.family.parallel_switch and getattr(config, self.family.parallel_switch))
        self.layer = layer
        self.modulation = TimeModulation(config.hidden_size, generator)

    def forward(self, x: Tensor, t: Tensor, **context) -> Tensor:
        """Velocity at ``x`` ``(B, T, D)`` and ``t``, a number, ``(B,)`` or ``(B, T)``; shaped like ``x``."""
        part = lambda name: getattr(self.layer, name)  # noqa: E731
        t = torch.as_tensor(t, device=x.device)
        knobs = self.modulation(t).to(x.dtype).unbind(-2)
        per_token = t.shape + (1,) * (x.ndim - 1 - t.ndim) + x.shape[-1:]
        gamma1, beta1, alpha1, gamma2, beta2, alpha2 = (knob.reshape(per_token) for knob in knobs)
        read = _for_products(torch.addcmul(beta1, 1 + gamma1, part(self.family.attention_norm)(x)))
        attended, *_ = part(self.family.attention)(read, **context)
        update = alpha1 * attended
        seen = x if self.parallel else x + update
        read = _for_products(torch.addcmul(beta2, 1 + gamma2, part(self.family.mlp_norm)(seen)))
        return torch.addcmul(update, alpha2, part(self.family.mlp)(read))


def _for_products(x: Tensor) -> Tensor:
    """Cast to autocast's type, once: attention and MLP read it up to three times, and each would cast it again."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


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
        raise unknown("operator", kind, OPERATORS)
    try:
        return OPERATORS[kind](**settings)
    except TypeError as error:
        raise ValueError(f"Operator {kind!r} does not take these settings: {settings} ({error}).") from error
