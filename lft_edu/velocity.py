"""The velocity estimator: a transformer layer that is told the time. The one new module of the paper."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import maybe_autocast

from .families import Family, family_of


class _OwnsLayer(nn.Module):
    """Owns teacher layers, in ``self.layer`` (and ``self.more``), whose dropout stays off: a velocity is a function of
    state and time."""

    def train(self, mode: bool = True):
        super().train(mode)
        for owned in ("layer", "more"):
            if hasattr(self, owned):
                getattr(self, owned).eval()
        return self


class TimeModulation(nn.Module):
    """Time → γ1, β1, α1, γ2, β2, α2 (adaLN of DiT, arXiv 2212.09748), ``(..., 6, D)``. Starts as γ = β = 0, α = 1.

    Times are scaled by 1000 first: to sinusoids with periods of at least 2π, t = 0 and t = 1 look nearly alike.
    ``inputs`` is how many numbers it is told: the time alone, or the time and the length of the step.
    """

    FEATURES = 128

    def __init__(self, width: int, generator: torch.Generator | None = None, inputs: int = 1):
        super().__init__()
        self.inner = nn.Linear(inputs * self.FEATURES, width)
        self.outer = nn.Linear(width, 6 * width)
        nn.init.normal_(self.inner.weight, std=self.FEATURES**-0.5, generator=generator)
        for zero in (self.inner.bias, self.outer.weight, self.outer.bias):
            nn.init.zeros_(zero)

    def forward(self, *times: Tensor) -> Tensor:
        half, waves = self.FEATURES // 2, []
        for t in times:
            t = t.to(torch.promote_types(t.dtype, torch.float32))  # bfloat16 would round 996 and 999 to one number
            frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000) / half))
            angles = 1000 * t[..., None] * frequencies
            waves += [angles.cos(), angles.sin()]
        features = torch.cat(waves, -1).to(self.inner.weight.dtype)
        with maybe_autocast(features.device.type, enabled=False):  # near α = 1, bfloat16 has steps of 1/128
            modulations = self.outer(nn.functional.silu(self.inner(features))).unflatten(-1, (6, -1))
        is_alpha = torch.arange(6, device=t.device) % 3 == 2
        return modulations.to(torch.promote_types(modulations.dtype, torch.float32)) + is_alpha[:, None]


class VelocityEstimator(_OwnsLayer, GradientCheckpointingLayer):
    """A transformer layer as a velocity ``u(x, t)``.

    Parallel residual (Pythia): ``u = α1 ⊙ Attn((1+γ1) ⊙ LN1(x) + β1) + α2 ⊙ MLP((1+γ2) ⊙ LN2(x) + β2)``; other
    families in their own order (:class:`Parts`).
    The six modulations depend on t alone. Attention, rotary positions and masks are the teacher's own code.
    After ``student.gradient_checkpointing_enable()`` each evaluation in training keeps only its input and is recomputed
    for the gradient: the memory of one evaluation instead of 2k, for a third more time.
    """

    def __init__(self, layer: nn.Module, config, generator: torch.Generator | None = None, step_aware: bool = False):
        super().__init__()
        self.parts = Parts.of(layer, config)
        self.layer = layer
        self.modulation = TimeModulation(config.hidden_size, generator, inputs=2 if step_aware else 1)

    def forward(self, x: Tensor, t: Tensor, *length: Tensor, **context) -> Tensor:
        """Velocity at ``x`` ``(B, T, D)`` and ``t``, a number, ``(B,)`` or ``(B, T)``; shaped like ``x``. A step-aware
        one is told the ``length`` of the step, too, shaped like ``t``."""
        t = torch.as_tensor(t, device=x.device)
        told = [t, *(torch.as_tensor(one, device=x.device) for one in length)]
        modulations = self.modulation(*told).to(x.dtype).unbind(-2)
        per_token = t.shape + (1,) * (x.ndim - 1 - t.ndim) + x.shape[-1:]
        return self.parts.update(self.layer, x, [one.reshape(per_token) for one in modulations], context)


@dataclass(frozen=True)
class Parts:
    """How a layer is put together: what it adds to a state, with six modulations (γ = β = 0 and α = 1: unchanged)."""

    family: Family
    mlp_norm: str | None
    parallel: bool  # attention and MLP read the same state
    scale: float  # of what they add

    @classmethod
    def of(cls, layer: nn.Module, config) -> "Parts":
        """Return the parts of a layer of a model with this config."""
        family = family_of(config)
        parallel = bool(family.parallel_switch and getattr(config, family.parallel_switch))
        one_norm = parallel and getattr(layer, family.mlp_norm or "", None) is None  # StableLM's serves both
        mlp_norm = family.attention_norm if one_norm else family.mlp_norm
        return cls(family, mlp_norm, parallel, getattr(config, family.update_scale) if family.update_scale else 1.0)

    def update(self, layer: nn.Module, x: Tensor, modulations, context: dict) -> Tensor:
        """What ``layer`` adds to states ``x`` ``(B, T, D)``, given γ1, β1, α1, γ2, β2, α2 that broadcast against it."""
        gamma1, beta1, alpha1, gamma2, beta2, alpha2 = modulations
        names, part = self.family, partial(_part, layer)
        read = _for_products(torch.addcmul(beta1, 1 + gamma1, part(names.attention_norm)(x)))
        attended, *_ = part(names.attention)(read, **context)
        update = self.scale * alpha1 * part(names.attention_post_norm)(attended)
        seen = x if self.parallel else x + update
        read = _for_products(torch.addcmul(beta2, 1 + gamma2, part(self.mlp_norm)(seen)))
        return torch.addcmul(update, self.scale * alpha2, part(names.mlp_post_norm)(part(names.mlp)(read)))


def _part(layer: nn.Module, name: str | None):
    """A layer's module of this name; without a name, what changes nothing."""
    return getattr(layer, name) if name else lambda x: x


def _for_products(x: Tensor) -> Tensor:
    """Cast to autocast's type, once: attention and MLP read it up to three times, and each would cast it again."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))
