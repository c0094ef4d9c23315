"""The settings of a training: the one place where each has its name, its default, its limits and its help."""

from dataclasses import dataclass

from ..support.settings import Settings, setting
from .optimizers import OPTIMIZERS

PRECISIONS = ("no", "bf16")


@dataclass(frozen=True)
class Training(Settings):
    """How an operator is trained. Every field is an option of :func:`lft_edu.fit`, of :class:`lft_edu.RunSettings` and
    of ``lft-edu train``; what each means is its ``help``."""

    max_steps: int = setting(1000, "optimizer steps", at_least=1, formerly="steps")
    batch_size: int = setting(
        16, "sequences a process takes at once", at_least=1, formerly="batch", incidental=True
    )  # a step must take as many as before: `optimize` looks after that
    gradient_accumulation_steps: int = setting(
        1, "batches per optimizer step", at_least=1, formerly="accumulate", incidental=True
    )
    optimizer: str = setting("adamw", "adamw, or muon for the operator's matrices", choices=OPTIMIZERS)
    lr: float | None = setting(
        None, "peak learning rate (default: 0.03 for Muon; 0.002 for AdamW, less for wider models)", above=0
    )
    max_grad_norm: float = setting(1.0, "largest gradient norm", above=0, formerly="clip")
    precision: str = setting("no", "bf16: autocast; weights of the operator stay in float32", choices=PRECISIONS)
    compile: bool = setting(
        False,
        "torch.compile the loss: minutes to start, then faster on a GPU, or on a CPU at real widths",
        incidental=True,
    )
    seed: int = setting(0, "of sequences, times and new weights", at_least=0, at_most=10**12)
    first_weight: float = setting(
        0.0, "weight of position 0 in the loss, whose massive activations may be most of it", at_least=0, at_most=1
    )
    sink: str = setting(
        "auto",
        "the first token's state, if it is an attention sink that the span writes: auto, store it; ignore, leave it to "
        "the operator",
        choices=("auto", "ignore"),
    )
    token_weight: str = setting(
        "auto",
        "of each token's squared error: equal; relative, one over the token's squared norm; auto, relative where the "
        "span's end has an attention sink",
        choices=("auto", "equal", "relative"),
    )
    scale_dimensions: bool = setting(False, "weigh each dimension of the state by one over its variance")
    cache_latents: bool = setting(False, "compute the teacher's states once and keep them in memory", incidental=True)
    save_every: int = setting(200, "steps between checkpoints", at_least=1, incidental=True)
    save_total_limit: int = setting(2, "checkpoints to keep", at_least=1, formerly="keep", incidental=True)
    evaluate_every: int = setting(0, "steps between evaluations; 0: only at the end", at_least=0, incidental=True)
    log_every: int = setting(10, "steps between rows of the log", at_least=1, incidental=True)

    def rate(self, width: int) -> float:
        """Peak learning rate for a model of this width. The rule for AdamW, ``0.002 · (64 / width)^½``, is ours."""
        if self.lr is not None:
            return self.lr
        return 0.03 if self.optimizer == "muon" else 2e-3 * (64 / width) ** 0.5
