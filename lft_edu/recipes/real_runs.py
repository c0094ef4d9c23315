"""The runs of :mod:`lft_edu.recipes.real`: which operators, on which layers, trained how, in which order."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

TEACHER, DEPTH, LENGTH = "smollm2-135m", 30, 256  # its name, its layers, tokens per sequence
SPANS = ((13, 19), (8, 20))  # the six and the twelve contiguous layers that cost least to skip


def file_of(run: str) -> str:
    """The name of a run as that of its files."""
    return run.replace("/", "-")


@dataclass(frozen=True)
class Run:
    """One operator, trained once.

    Attributes:
        name: experiment/operator/…, unique.
        span: layers replaced, half-open.
        operator: as :meth:`lft_edu.operators.Operator.to_dict` has it.
        options: of :func:`lft_edu.fit`.
        tokens: training tokens, repetitions included.
        seed: of order, times and new weights.
        start: name of the run whose operator this one continues from; None: the teacher's layer.
        everywhere: also measure it on Python and on other text.
        text: to train on, "docs" or "mixed".
    """

    name: str
    span: tuple[int, int]
    operator: dict
    options: dict = field(default_factory=dict)
    tokens: int = 500_000
    seed: int = 0
    start: str | None = None
    everywhere: bool = False
    text: str = "docs"

    @property
    def file(self) -> str:
        return file_of(self.name)

    def to_dict(self) -> dict:
        return asdict(self)


def flow(solver: str, num_steps: int, **more) -> dict:
    return {"kind": "flow", "solver": solver, "num_steps": num_steps, **more}


MUON = {"optimizer": "muon", "lr": 0.04}  # the best of the sweep "rate" for all three
REGRESSION = {"kind": "regression"}
OPERATORS = {  # name → (operator, options of fit)
    "regression": (REGRESSION, {"objective": "regression"}),
    "flow-matching": (flow("euler", 1), {"objective": "flow_matching"}),
    "flow-walking": (flow("midpoint", 1), {"objective": "flow_walking"}),
    "flow-walking-1": (flow("euler", 1), {"objective": "flow_walking"}),
    "flow-walking-6": (flow("midpoint", 3), {"objective": "flow_walking"}),
    "hybrid": (flow("midpoint", 1), {"objective": "hybrid", "alpha": 0.1}),
    "loop-2": (REGRESSION | {"repeats": 2}, {"objective": "regression"}),
    "loop-3": (REGRESSION | {"repeats": 3}, {"objective": "regression"}),
    "loop-6": (REGRESSION | {"repeats": 6}, {"objective": "regression"}),
    "two-layers": (REGRESSION | {"layers": 2}, {"objective": "regression"}),
}
HEADLINE = ("flow-matching", "regression", "flow-walking")


def trained(experiment: str, name: str, span, tokens: int, seed: int = 0, more=None, operator=None, **rest) -> Run:
    """A run of one of ``OPERATORS``; ``more`` are further options of fit, ``operator`` further settings."""
    settings, options = OPERATORS[name]
    m, n = span
    title = f"{experiment}/{name}/{m}-{n}"
    return Run(title, span, settings | (operator or {}), MUON | options | (more or {}), tokens, seed, **rest)


def renamed(run: Run, suffix: str) -> Run:
    return Run(**(vars(run) | {"name": f"{run.name}/{suffix}"}))


SINK = {  # how an operator over the span that writes the sink may treat it (8–20, layer 11 writes it)
    "equal, ignored": ({"sink": "ignore", "token_weight": "equal"}, {}),
    "equal, position 0 in the loss": ({"sink": "ignore", "token_weight": "equal", "first_weight": 1.0}, {}),
    "relative, ignored": ({"sink": "ignore", "token_weight": "relative"}, {}),
    "relative, position 0 in the loss": ({"sink": "ignore", "token_weight": "relative", "first_weight": 1.0}, {}),
    "relative, position 0 in, from layer 11": (
        {"sink": "ignore", "token_weight": "relative", "first_weight": 1.0},
        {"init_layer": 11},
    ),
    "equal, stored": ({"token_weight": "equal"}, {}),
    "relative, stored": ({}, {}),
    "relative, stored, from layer 14": ({}, {"init_layer": 14}),
    "relative, stored, from layer 19": ({}, {"init_layer": 19}),
}
SIX, TWELVE = SPANS
FINISH = {"objective": "logit_kl", "lr": 0.02}
BUDGETS = (250_000, 500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000)


def headline() -> list[Run]:
    """The operators that ship: trained long on states, then on logits."""
    walking = trained("headline", "flow-walking", TWELVE, 4_000_000, everywhere=True)
    matching = trained("headline", "flow-matching", SIX, 4_000_000, everywhere=True)
    runs = [walking, matching, trained("headline", "regression", SIX, 4_000_000, everywhere=True)]
    runs += [trained("headline", "regression", TWELVE, 4_000_000), trained("headline", "flow-walking", SIX, 4_000_000)]
    finished = [finish(runs[i], 1_000_000) for i in (0, 1, 2)]
    return [*runs[:2], *finished[:2], runs[2], finished[2], *runs[3:]]


def again() -> list[Run]:
    """The paper's two operators with another seed: other new weights, another order, other times."""
    runs = (
        trained("again", name, span, 4_000_000, 1) for name, span in (("flow-matching", SIX), ("flow-walking", TWELVE))
    )
    return [renamed(run, f"seed {run.seed}") for run in runs]


def finish(run: Run, tokens: int) -> Run:
    """Continue a run on the logits of the whole model."""
    name = run.name.replace("headline/", "headline/kl-")
    return Run(
        name, run.span, run.operator, MUON | FINISH, tokens, run.seed, start=run.name, everywhere=True, text="mixed"
    )


def budget(seeds=(0,), tokens=BUDGETS[:4]) -> list[Run]:
    """The same operators, trained on more and more tokens, each with a schedule of its own."""
    return [
        renamed(trained("budget", name, span, n, seed), f"{n / 1e6:g}M/seed {seed}")
        for n in tokens
        for seed in seeds
        for span in SPANS
        for name in HEADLINE
        if (span, n, seed) != (TWELVE, 500_000, 0)  # those are in the sweep of rates
    ]


def comparison() -> list[Run]:
    """Every operator on the same tokens."""
    closed = {name: {"kind": name} for name in ("mean-shift", "linear-patch", "ridge", "loop")}
    runs = [Run(f"same/{name}/{m}-{n}", (m, n), kind) for m, n in SPANS for name, kind in closed.items()]
    others = [name for name in OPERATORS if name not in HEADLINE]
    return runs + [trained("same", name, span, 500_000) for name in others for span in SPANS]


SHIPPED = {  # run → name of the student, after the teacher's
    "headline/kl-flow-matching/13-19": "flow-matching-kl-13-19",
    "headline/flow-walking/8-20": "flow-walking-8-20",
    "headline/kl-flow-walking/8-20": "flow-walking-kl-8-20",
}
RUNS: list[Run] = [
    *(
        renamed(trained("sink", "regression", TWELVE, 500_000, more={"lr": 0.02} | options, operator=settings), how)
        for how, (options, settings) in SINK.items()
    ),
    *(
        renamed(
            trained("rate", name, TWELVE, 500_000, more={"optimizer": optimizer, "lr": rate}), f"{optimizer} {rate}"
        )
        for name in HEADLINE
        for optimizer, rates in (("muon", (0.01, 0.02, 0.04, 0.08)), ("adamw", (0.0005, 0.001, 0.002, 0.004)))
        for rate in rates
    ),
    *headline(),
    *budget(),
    *comparison(),
    *again(),
    *budget(tokens=BUDGETS[5:]),
]
