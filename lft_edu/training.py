"""One training loop, on Accelerate: CPU, one GPU or many.

Step ``i`` draws its batch and its random numbers from generators seeded by ``(seed, i)`` alone. So a run is continued
*bit for bit* from nothing but weights, optimiser state and a step number, and those fit in one safetensors file that
is replaced in one motion: kill the process anywhere, the last checkpoint is whole.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from .files import whole


@dataclass
class History:
    """What happened in a run: losses by step, evaluations, tokens seen, seconds spent (over all its sittings)."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    evaluations: list[dict] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0


def warmup_stable_decay(step: int, steps: int, warmup: int = 60, decay: float = 0.4, floor: float = 0.02) -> float:
    """Learning-rate factor in (0, 1]: linear rise over ``warmup`` steps, flat, linear fall over the last ``decay``."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = (steps - step) / max(1.0, decay * steps)
    return rise * min(1.0, max(floor, fall))


def step_generator(seed: int, step: int, rank: int = 0, device="cpu") -> torch.Generator:
    """The random numbers of one step on one process, a function of its arguments alone."""
    return torch.Generator(device).manual_seed(((seed * 1_000_003 + step) * 1_009 + rank) % 2**63)


class ShuffledRows:
    """Which rows make up step ``i``: whole epochs in a fresh order each, for any ``i``, without history."""

    def __init__(self, rows: int, batch_size: int, seed: int = 0, rank: int = 0, world: int = 1):
        if rows < 1:
            raise ValueError("The corpus holds no blocks to train on.")
        self.rows, self.batch_size, self.seed, self.rank, self.world = rows, batch_size, seed, rank, world
        self._orders: dict[int, torch.Tensor] = {}

    def __call__(self, step: int) -> torch.Tensor:
        """Row numbers, ``(batch_size,)`` long, of this process's share of step ``step``."""
        first = (step * self.world + self.rank) * self.batch_size
        places = range(first, first + self.batch_size)
        return torch.stack([self._order(p // self.rows)[p % self.rows] for p in places])

    def _order(self, epoch: int) -> torch.Tensor:
        if epoch not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k >= epoch - 1}  # a step may straddle two
            generator = torch.Generator().manual_seed(self.seed * 7_919 + epoch)
            self._orders[epoch] = torch.randperm(self.rows, generator=generator)
        return self._orders[epoch]


class StreamedRows(ShuffledRows):
    """Rows in the order in which they come, for a stream that can't be shuffled as a whole."""

    def __call__(self, step: int) -> torch.Tensor:
        first = (step * self.world + self.rank) * self.batch_size
        return torch.arange(first, first + self.batch_size)


def save_checkpoint(path: Path, module: nn.Module, optimizers: list, step: int, history: History, settings: dict):
    """Write weights, optimiser state, step, history and settings as one safetensors file, all or nothing."""
    from safetensors.torch import save_file

    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    notes = {"step": step, "history": asdict(history), "settings": settings}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        save_file(tensors, partial, metadata={"lft_edu": json.dumps(notes)})


def load_checkpoint(path: Path, module: nn.Module, optimizers: list, settings: dict) -> tuple[int, History]:
    """Restore what :func:`save_checkpoint` wrote; returns the number of steps done and the history.

    Raises:
        ValueError: the file is damaged, or was written under other settings.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            notes = json.loads(file.metadata()["lft_edu"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error}). Delete it to start again.") from error
    changed = {k: (notes["settings"].get(k), v) for k, v in settings.items() if notes["settings"].get(k) != v}
    if changed:
        lines = "; ".join(f"{k}: {old!r} then, {new!r} now" for k, (old, new) in changed.items())
        raise ValueError(f"{path} comes from a run with other settings ({lines}). Use them, or another checkpoint.")
    module.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                _, _, j, key = name.split(".", 3)
                state.setdefault(int(j), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return notes["step"], History(**notes["history"])


def optimise(
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batch_at: Callable[[int], tuple],
    steps: int,
    *,
    schedule: Callable[[int, int], float] = warmup_stable_decay,
    accelerator=None,
    seed: int = 0,
    clip: float = 1.0,
    tokens_per_step: int = 0,
    checkpoint: str | Path | None = None,
    save_every: int = 200,
    resume: bool = False,
    settings: dict | None = None,
    evaluate: Callable[[int], dict] | None = None,
    evaluate_every: int = 0,
    log_every: int = 10,
    description: str = "train",
    progress: bool = True,
) -> History:
    """Minimise ``module(*batch_at(step), generator=g)``, a scalar loss, for ``steps`` steps.

    Args:
        module: forward returns the loss; its parameters are what the optimizers hold.
        batch_at: step number → tuple of inputs, the same for the same step.
        schedule: (step, steps) → factor on every learning rate.
        clip: largest gradient norm.
        checkpoint: file to save to every ``save_every`` steps and at the end.
        resume: continue from ``checkpoint`` if it is there. Without it an existing file is an error, never overwritten.
        settings: JSON values that must agree for a checkpoint to be continued.
        evaluate: step → numbers to record, called every ``evaluate_every`` steps and at the end, on process 0.

    Raises:
        FileExistsError: ``checkpoint`` is there and ``resume`` is not asked for.
        FloatingPointError: the loss is no longer finite; the last checkpoint stays as it was.
    """
    import accelerate
    from tqdm.auto import tqdm

    if save_every < 1:
        raise ValueError(f"save_every={save_every}: give at least 1.")
    accelerator = accelerator or accelerate.Accelerator()
    settings = settings or {}
    path = Path(checkpoint) if checkpoint else None
    module.to(accelerator.device)
    done, history = 0, History()
    if path and path.exists():
        if not resume:
            raise FileExistsError(
                f"{path} exists. Pass resume=True (--resume) to continue it, or delete it to start again."
            )
        done, history = load_checkpoint(path, module, optimizers, settings)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    parallel = accelerator.prepare_model(module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    bar = tqdm(
        total=steps, initial=min(done, steps), desc=description, unit="step", mininterval=1.0,
        disable=not (progress and accelerator.is_main_process),
    )  # fmt: skip
    started, spent, pending = time.perf_counter(), history.seconds, []
    module.train()
    for step in range(done, steps):
        factor = schedule(step, steps)
        for optimizer, base in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * factor
        generator = step_generator(seed, step, accelerator.process_index, accelerator.device)
        batch = batch_at(step)  # outside autocast: the teacher's states keep the teacher's precision
        with accelerator.autocast():
            loss = parallel(*batch, generator=generator)
        accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        pending.append(loss.detach() + 0 * norm)  # NaN if the gradient was, on every process alike
        history.tokens += tokens_per_step
        bar.update()
        last = step + 1 == steps
        saving = path is not None and (last or (step + 1) % save_every == 0)
        measuring = evaluate is not None and (last or (evaluate_every and (step + 1) % evaluate_every == 0))
        if last or saving or measuring or (step + 1) % log_every == 0:
            mean = torch.stack(pending).mean().item()  # the only wait for the device, every log_every steps
            pending.clear()
            _require_finite(mean, step, path)
            history.steps.append(step + 1)
            history.losses.append(mean)
            history.seconds = spent + time.perf_counter() - started
            rate = tokens_per_step * (step + 1 - done) / max(1e-9, history.seconds - spent)
            bar.set_postfix_str(f"loss {mean:.4g}" + (f", {rate:,.0f} tokens/s" if tokens_per_step else ""))
        if measuring and accelerator.is_main_process:
            module.eval()
            history.evaluations.append({"step": step + 1, **evaluate(step + 1)})
            module.train()
        if saving and accelerator.is_main_process:
            save_checkpoint(path, module, optimizers, step + 1, history, settings)
    bar.close()
    module.eval()
    for optimizer, base in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate
    return history


def _require_finite(loss: float, step: int, path: Path | None) -> None:
    if not math.isfinite(loss):
        kept = f"The last good checkpoint is {path}." if path and path.exists() else "No checkpoint had been written."
        raise FloatingPointError(
            f"The loss or its gradient became {loss} by step {step + 1}; training stopped. {kept} "
            "Lower the learning rate, or look for NaN in the latents, then resume."
        )
