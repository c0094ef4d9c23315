"""Transport operators: what replaces a span of layers.

Each maps the hidden states that enter the span, ``x0`` of shape ``(B, T, D)``, to an estimate of those that leave it.
All are called like the layers they replace: ``operator(x0, attention_mask=..., position_embeddings=..., ...)``.

* ``Skip``, ``MeanShift``, ``Procrustes``, ``LinearPatch``, ``Ridge``: closed form, one token at a time.
* ``Loop``, ``Regression``: a transformer layer, repeated or retrained.
* ``Flow``: a learned velocity, walked from t = 0 to 1.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .flow import EVALUATIONS, STEPS, check_steps, walk
from .support.errors import unknown_name_error
from .velocity import VelocityEstimator, _OwnsLayer


class CacheSlot:
    """A KV cache as one velocity evaluation sees it: every write goes to entry ``index``."""

    def __init__(self, cache, index: int):
        self._cache, self._index = cache, index

    def update(self, keys, values, layer_idx, *args, **kwargs):
        return self._cache.update(keys, values, self._index, *args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._cache, name)


def at_slot(context: dict, index: int) -> dict:
    """A layer's keyword arguments, with their KV cache, if any, narrowed to one entry."""
    from transformers import Cache

    return {key: CacheSlot(value, index) if isinstance(value, Cache) else value for key, value in context.items()}


class Operator(nn.Module):
    """Base of all transport operators.

    Attributes:
        kind: the name in configs, tables and on the command line.
        slots: KV-cache entries it owns, one per velocity (or layer) evaluation.
        nfe: number of function evaluations per token, each of a layer-sized network.
        first_slot: its first KV-cache entry; set by the splice.
        sink: ``(D,)``, the state that a sequence's first token has on entry and on exit, whatever the token; None: it
            is treated like the others. A span whose layers write the attention sink needs it (:mod:`lft_edu.sinks`).
        first: ``(B, T)``, which tokens of the current call are first in their sequence; set by the spliced model.
            None: position 0.
        closed_form: it is solved from :class:`Moments`; ``trainable``: it is trained by gradient descent.
    """

    kind = "skip"
    slots = 0
    closed_form = False
    trainable = False

    def __init__(self):
        super().__init__()
        self.settings: dict = {}
        self.first_slot = 0
        self.sink: nn.Parameter | None = None
        self.first: Tensor | None = None
        self.register_forward_pre_hook(_enter_with_sink)
        self.register_forward_hook(_leave_with_sink)

    @property
    def nfe(self) -> int:
        return self.slots

    def layer_to_copy(self, m: int, n: int) -> int:
        """The teacher layer of the span [m, n) of which :meth:`build` is given a copy: ``init_layer``, or the first.

        Raises:
            ValueError: ``init_layer`` is not in the span.
        """
        layer = self.settings.get("init_layer", m)
        if not m <= layer < n:
            raise ValueError(f"init_layer={layer} is not in the span {m}–{n}: give one of its layers, {m} to {n - 1}.")
        return layer

    def build(self, layer: nn.Module, config, generator: torch.Generator | None = None) -> "Operator":
        """Allocate parameters for a teacher with this config. ``layer`` is a copy to own, or to ignore."""
        return self

    def set_sink(self, state: Tensor) -> None:
        """Keep a state ``(D,)`` for the first token of every sequence."""
        self.sink = nn.Parameter(state.detach().clone(), requires_grad=False)
        self.settings["sink"] = True

    def with_sink(self, x: Tensor) -> Tensor:
        """States ``(B, T, D)`` with the sink in the place of every sequence's first token."""
        if self.sink is None:
            return x
        first = self.first
        if first is None:
            first = (torch.arange(x.shape[-2], device=x.device) == 0).expand(x.shape[:-1])
        return torch.where(first[..., None], self.sink.to(x), x)

    if TYPE_CHECKING:  # what only some operators have: those that are trained, and those in closed form

        def field(self, **context) -> Callable[..., Tensor]: ...

        def solve(self, moments: "Moments") -> None: ...

    def to_dict(self) -> dict:
        """Return JSON that :func:`operator_from_dict` turns into the same operator."""
        return {"kind": self.kind, **self.settings}

    def forward(self, x: Tensor, **context) -> Tensor:
        """Hidden states that enter the span ``(B, T, D)`` → an estimate of those that leave it."""
        return x

    def path(self, x0: Tensor, context: dict, substeps: int = 0) -> tuple[list[Tensor], Tensor]:
        """The states on the way from ``x0`` ``(B, T, D)``, and the t in (0, 1] of each: here only the result, t = 1.

        Args:
            context: what the span's first layer is given besides the states (:class:`~lft_edu.latents.Latents`).
            substeps: states inside each step of a flow, besides its end.
        """
        return [self(x0, **context)], torch.ones(1, dtype=torch.float64)

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.settings.items())


def _enter_with_sink(operator: Operator, args: tuple) -> tuple:
    return (operator.with_sink(args[0]), *args[1:]) if args else args


def _leave_with_sink(operator: Operator, args: tuple, output: Tensor) -> Tensor:
    return operator.with_sink(output)


class Skip(Operator):
    """Skip the span: ``x1 = x0``."""


@dataclass
class Moments:
    """Sums over tokens, in float64, from which every closed-form operator is solved; added up batch by batch."""

    n: float  # of tokens, or the sum of their weights
    sum0: Tensor  # (D,)
    sum1: Tensor  # (D,)
    cross00: Tensor  # (D, D), Σ x0ᵀ x0
    cross01: Tensor  # (D, D), Σ x0ᵀ x1

    @classmethod
    def zeros(cls, width: int) -> "Moments":
        return cls(
            0,
            *(
                torch.zeros(shape, dtype=torch.float64)
                for shape in [(width,), (width,), (width, width), (width, width)]
            ),
        )

    def add(self, x0: Tensor, x1: Tensor, weight: Tensor | None = None) -> None:
        """Add pairs ``(N, D)``, each with a weight ``(N,)`` if given.

        Raises:
            ValueError: the pairs hold NaN or infinity.
        """
        x0, x1 = (x.detach().double().cpu() for x in (x0, x1))
        if not bool(torch.isfinite(x0).all() and torch.isfinite(x1).all()):
            raise ValueError("The latents hold NaN or infinity: load the teacher in float32 or bfloat16 and try again.")
        w = torch.ones(len(x0), 1, dtype=x0.dtype) if weight is None else weight.to(x0)[:, None]
        weighted = w * x0
        self.n += w.sum().item()
        self.sum0 += weighted.sum(0)
        self.sum1 += (w * x1).sum(0)
        self.cross00 += weighted.T @ x0
        self.cross01 += weighted.T @ x1

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        return self.sum0 / self.n, self.sum1 / self.n

    @property
    def covariances(self) -> tuple[Tensor, Tensor]:
        """Of x0 with itself and with x1, ``(D, D)`` each."""
        mean0, mean1 = self.means
        return self.cross00 / self.n - torch.outer(mean0, mean0), self.cross01 / self.n - torch.outer(mean0, mean1)


class _Affine(Operator):
    """``x1 = x0 + x0 · weight + bias``. The correction is stored, so zeros mean skip."""

    closed_form = True
    if TYPE_CHECKING:

        def linear_map(self, moments: Moments) -> Tensor: ...

    def build(self, layer, config, generator=None):
        self.weight = nn.Parameter(torch.zeros(config.hidden_size, config.hidden_size), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(config.hidden_size), requires_grad=False)
        return self

    def forward(self, x, **context):
        return x + x @ self.weight + self.bias

    @torch.no_grad()
    def solve(self, moments: Moments) -> None:
        """Fit to the pairs that are summed in ``moments``."""
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
    """Linear least squares, pulled to the identity (the idea of ReplaceMe, arXiv 2505.02819).

    ``penalty`` is relative to the mean variance of x0. It pulls the map to skipping, never to zero.
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


class LinearPatch(_Affine):
    """Scale each channel, in a rotated basis: ``x1 = x0 R diag(d) Rᵀ + bias`` (the idea of LinearPatch, NeurIPS 2025).

    The rotation spreads the few channels of massive size over all others. Theirs is a Hadamard matrix; ours is a random
    orthogonal one, which exists at every width. Each ``d`` is the least-squares scale of its channel.
    """

    kind = "linear-patch"

    def linear_map(self, moments: Moments) -> Tensor:
        covariance, cross = moments.covariances
        draw = torch.randn(covariance.shape, dtype=covariance.dtype, generator=torch.Generator().manual_seed(0))
        rotation = torch.linalg.qr(draw).Q
        scales = [(rotation * (matrix @ rotation)).sum(0) for matrix in (cross, covariance)]
        return rotation * (scales[0] / scales[1].clamp(min=1e-12)) @ rotation.T


class Regression(_OwnsLayer, Operator):
    """Transformer layers, initialized from one of the teacher's and retrained (the idea of LLM-Streamline, ICLR 2025).

    Args:
        layers: how many, each with weights of its own.
        repeats: how often they are applied: a *loop* of shared weights (retrofitted recurrence, arXiv 2511.07384), and
            the control for a flow of as many evaluations.
        init_layer: the teacher's layer to start from; None: the first one of the span.
    """

    kind = "regression"
    trainable = True

    def __init__(self, layers: int = 1, repeats: int = 1, init_layer: int | None = None):
        super().__init__()
        given = {"layers": check_steps(layers), "repeats": check_steps(repeats)}
        self.settings = {name: value for name, value in given.items() if value != 1}
        if init_layer is not None:
            self.settings["init_layer"] = init_layer

    @property
    def slots(self):
        return self.settings.get("layers", 1) * self.settings.get("repeats", 1)

    def build(self, layer, config, generator=None):
        self.layer = layer
        self.more = nn.ModuleList(copy.deepcopy(layer) for _ in range(self.settings.get("layers", 1) - 1))
        return self

    def field(self, **context):
        """Their update as a velocity that does not depend on time: ``u(x, t) = Layers(x) − x``."""
        return lambda x, t: self.applied(x, context) - x

    def applied(self, x: Tensor, context: dict) -> Tensor:
        """The layers, one after another, ``repeats`` times."""
        slots = itertools.count(self.first_slot)
        for _ in range(self.settings.get("repeats", 1)):
            for layer in (self.layer, *self.more):
                x = layer(x, **at_slot(context, next(slots)))
        return x

    def forward(self, x, **context):
        return self.applied(x, context)


class Loop(Regression):
    """One teacher layer (the span's middle one), unchanged, ``repeats`` times."""

    kind = "loop"
    trainable = False

    def __init__(self, repeats: int = 3):
        super().__init__()
        self.settings = {"repeats": check_steps(repeats)}

    def layer_to_copy(self, m, n):
        return (m + n) // 2


class Flow(Operator):
    """Walk a learned velocity from t = 0 to t = 1 in equal steps (paper, alg. 3).

    Args:
        solver: ``"euler"`` (one velocity evaluation per step) or ``"midpoint"`` (two).
        num_steps: k, at least 1. May differ from training; change it later with ``student.set_solver``.
        init_layer: the teacher's layer to start from; None: the first one of the span.
    """

    kind = "flow"
    trainable = True

    def __init__(
        self,
        solver: str = "euler",
        num_steps: int = 1,
        init_layer: int | None = None,
        *,
        steps: int | None = None,
    ):
        if solver not in STEPS:
            raise ValueError(f"solver={solver!r}: choose one of {', '.join(STEPS)}.")
        super().__init__()
        num_steps = num_steps if steps is None else steps  # its name before 1.0, and in operators saved then
        self.settings = {"solver": solver, "num_steps": check_steps(num_steps)}
        if init_layer is not None:
            self.settings["init_layer"] = init_layer

    @property
    def slots(self):
        return EVALUATIONS[self.settings["solver"]] * self.settings["num_steps"]

    def build(self, layer, config, generator=None):
        self.velocity = VelocityEstimator(layer, config, generator)
        return self

    def field(self, **context):
        """``u(x, t)`` for tokens in this context. Its i-th call writes the i-th of the operator's KV-cache entries."""
        slots = itertools.count(self.first_slot)
        return lambda x, t: self.velocity(x, t, **at_slot(context, next(slots)))

    def forward(self, x, **context):
        k = self.settings["num_steps"]
        return walk(self.field(**context), x, [i / k for i in range(k + 1)], STEPS[self.settings["solver"]])

    @torch.no_grad()
    def path(self, x0, context, substeps=0):
        k, step, velocity = self.settings["num_steps"], STEPS[self.settings["solver"]], self.field(**context)
        states, times, parts, start = [], [], substeps + 1, self.with_sink(x0)
        for i in range(k):
            for j in range(1, parts + 1):
                states.append(step(velocity, start, i / k, (i * parts + j) / (k * parts)))
                times.append((i * parts + j) / (k * parts))
            start = states[-1]
        return states, torch.tensor(times, dtype=torch.float64)


OPERATORS = {cls.kind: cls for cls in (Skip, MeanShift, Procrustes, LinearPatch, Ridge, Loop, Regression, Flow)}


def operator_from_dict(settings: dict) -> Operator:
    """Make the operator that :meth:`Operator.to_dict` described, not built yet.

    Raises:
        ValueError: unknown kind or settings.
    """
    settings = dict(settings)
    kind, has_sink = settings.pop("kind", None), settings.pop("sink", False)
    if kind not in OPERATORS:
        raise unknown_name_error("operator", kind, OPERATORS)
    try:
        operator = OPERATORS[kind](**settings)
    except TypeError as error:
        raise ValueError(f"Operator {kind!r} does not take these settings: {settings} ({error}).") from error
    if has_sink:
        operator.settings["sink"] = True
    return operator


def build_operator(settings: dict, layer: nn.Module, config, generator: torch.Generator | None = None) -> Operator:
    """Make the operator of :func:`operator_from_dict` and allocate its parameters (:meth:`Operator.build`)."""
    operator = operator_from_dict(settings).build(layer, config, generator)
    if operator.settings.get("sink"):
        operator.set_sink(torch.zeros(config.hidden_size))
    return operator


def row_title(row: dict) -> str:
    """The name of a row of ``ladder.json`` with its solver: ``flow-walking (midpoint × 3)``."""
    return row["name"] + _walk_of(row["operator"])


def operator_title(card: dict) -> str:
    """The operator of a results card with its solver: ``flow (midpoint × 3)``."""
    return card["operator"]["kind"] + _walk_of(card["operator"])


def _walk_of(operator: dict) -> str:
    """The walk of an operator's JSON, in brackets; ``steps`` is what ``num_steps`` was called before 1.0."""
    if "solver" not in operator:
        return ""
    return f" ({operator['solver']} × {operator.get('num_steps', operator.get('steps'))})"
