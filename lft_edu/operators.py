"""Transport operators: what replaces a span of layers.

Each maps the hidden states that enter the span, ``x0`` of shape ``(B, T, D)``, to an estimate of those that leave it.
All are called like the layers they replace: ``operator(x0, attention_mask=..., position_embeddings=..., ...)``.

* ``Skip``, ``MeanShift``, ``Procrustes``, ``LinearPatch``, ``Ridge``: closed form, one token at a time.
* ``Loop``, ``Regression``: a transformer layer, repeated or retrained.
* ``Flow``: a learned velocity, walked from t = 0 to 1.
"""

import copy
import itertools

import torch
from torch import Tensor, nn

from .closed_forms import LinearPatch, MeanShift, Procrustes, Ridge
from .families import layer_output
from .flow import EVALUATIONS, STEPS, check_steps, shortcut_step, walk
from .support import checks
from .support.errors import unknown_name_error
from .transport import Operator, at_slot
from .velocity import VelocityEstimator, _OwnsLayer


class Skip(Operator):
    """Skip the span: ``x1 = x0``."""

    def as_layers(self):
        return [] if self.sink is None else None


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

    def field(self, x0=None, **context):
        """Their update as a velocity that does not depend on time: ``u(x, t) = Layers(x) − x``."""
        return lambda x, t: self.applied(x, context) - x

    def applied(self, x: Tensor, context: dict) -> Tensor:
        """The layers, one after another, ``repeats`` times."""
        slots = itertools.count(self.first_slot)
        for _ in range(self.settings.get("repeats", 1)):
            for layer in (self.layer, *self.more):
                x = layer_output(layer(x, **at_slot(context, next(slots))))
        return x

    def forward(self, x, **context):
        return self.applied(x, context)

    def as_layers(self):
        return [self.layer, *self.more] * self.settings.get("repeats", 1) if self.sink is None else None


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
        layers: of which the velocity is made, each with weights and modulations of its own.
        conditional: the velocity is given x0 besides x_t (through a matrix that starts at zero), so that no two paths
            can be taken for one another: u(x_t, t; x0).
        step_aware: the velocity is told how long the step is, u(x, t, Δt), and is the mean one of that step, so that
            one set of weights may serve any number of steps. For Euler steps only.
    """

    kind = "flow"
    trainable = True

    def __init__(
        self,
        solver: str = "euler",
        num_steps: int = 1,
        init_layer: int | None = None,
        layers: int = 1,
        conditional: bool = False,
        step_aware: bool = False,
        *,
        steps: int | None = None,
    ):
        if checks.word("solver", solver) not in STEPS:
            raise ValueError(f"solver={solver!r}: choose one of {', '.join(STEPS)}.")
        if step_aware and solver != "euler":
            raise ValueError(f"solver={solver!r}: a step-aware velocity is for Euler steps. Use solver='euler'.")
        super().__init__()
        num_steps = num_steps if steps is None else steps  # its name before 1.0, and in operators saved then
        self.settings = {"solver": solver, "num_steps": check_steps(num_steps)}
        if init_layer is not None:
            self.settings["init_layer"] = init_layer
        if check_steps(layers) != 1:
            self.settings["layers"] = layers
        if conditional:
            self.settings["conditional"] = True
        if step_aware:
            self.settings["step_aware"] = True

    @property
    def step(self):
        """The function that takes a step, such as :func:`lft_edu.flow.euler_step`."""
        return shortcut_step if self.settings.get("step_aware") else STEPS[self.settings["solver"]]

    @property
    def slots(self):
        walked = EVALUATIONS[self.settings["solver"]] * self.settings["num_steps"]
        return walked * self.settings.get("layers", 1)

    def build(self, layer, config, generator=None):
        more = [copy.deepcopy(layer) for _ in range(self.settings.get("layers", 1) - 1)]
        estimator = lambda one: VelocityEstimator(one, config, generator, self.settings.get("step_aware", False))  # noqa: E731
        self.velocity, self.more = estimator(layer), nn.ModuleList(estimator(one) for one in more)
        if self.settings.get("conditional"):
            self.start = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            nn.init.zeros_(self.start.weight)
        return self

    def field(self, x0: Tensor | None = None, **context):
        """``u(x, t)`` for tokens in this context; ``u(x, t, Δt)`` if the operator is step-aware. Its i-th call writes
        the i-th of the operator's KV-cache entries.

        ``x0`` is where the walk starts; only a conditional velocity needs it.

        Raises:
            ValueError: the velocity is conditional and ``x0`` is not given.
        """
        slots, start = itertools.count(self.first_slot), None
        if self.settings.get("conditional"):
            if x0 is None:
                raise ValueError("A conditional velocity needs to know where the walk starts: field(x0, ...).")
            start = self.start(x0)

        def velocity(x, *times):
            if (len(times) == 2) != self.settings.get("step_aware", False):
                raise ValueError(
                    "This velocity is told the time alone, u(x, t); lft.Flow(step_aware=True) is told the step, too."
                    if len(times) == 2
                    else "A step-aware velocity is told how long the step is, u(x, t, Δt): train it by an objective "
                    "that walks with shortcut_step (lft_edu.recipes.any_steps has two)."
                )
            update = self.velocity(x if start is None else x + start, *times, **at_slot(context, next(slots)))
            for layer in self.more:
                update = update + layer(x + update, *times, **at_slot(context, next(slots)))
            return update

        return velocity

    def forward(self, x, **context):
        k = self.settings["num_steps"]
        return walk(self.field(x, **context), x, [i / k for i in range(k + 1)], self.step)

    @torch.no_grad()
    def path(self, x0, context, substeps=0):
        k = self.settings["num_steps"]
        states, times, parts, start = [], [], substeps + 1, self.with_sink(x0)
        velocity = self.field(start, **context)
        for i in range(k):
            for j in range(1, parts + 1):
                states.append(self.step(velocity, start, i / k, (i * parts + j) / (k * parts)))
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
