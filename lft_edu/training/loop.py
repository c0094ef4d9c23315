"""One training loop, on Accelerate: CPU, one GPU or many.

Step ``i`` draws its sequences and its random numbers from generators seeded by ``(seed, i)`` alone, for all processes
together; each process takes its share. So a run is resumed *bit for bit* from weights, optimizer state and a step
number (and, for a stream of text, the place in it), and it does not matter how many processes share the work: two give
what one gives with twice the batch, up to the order of sums.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from .callbacks import Callback, Checkpointing, GracefulShutdown, History, Progress, Recording, RunState
from .optimizers import _set_rates, warmup_stable_decay
from .processes import make_accelerator
from .sampling import places, step_generator
from .settings import Training
from .streams import StreamError, StreamInterrupted


def optimize(
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batch_at: Callable[[torch.Tensor], tuple],
    training: Training,
    *,
    draw: Callable[[int, torch.Generator], torch.Tensor | None] | None = None,
    schedule: Callable[[int, int], float] = warmup_stable_decay,
    accelerator=None,
    tokens_per_step: int = 0,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    settings: dict | None = None,
    stream=None,
    callbacks: Sequence[Callback] = (),
    log: Callable[[dict], None] | None = None,
    description: str = "train",
    progress: bool = True,
) -> History:
    """Minimize ``module(*batch_at(numbers), random)``, a scalar loss, for ``training.max_steps`` steps.

    Args:
        module: its forward returns the mean loss of its batch; its parameters are what the optimizers hold.
        batch_at: numbers ``(batch_size,)`` of sequences of the run → tuple of inputs, the same for the same numbers.
            A step takes ``batch_size · gradient_accumulation_steps · processes`` numbers, the next step the next ones.
        draw: (n, generator) → the random numbers of the n samples of a step, ``(n, ...)``, of which each batch is given
            its rows; None, or a draw of None: the module is called without.
        schedule: (step, max_steps) → factor on every learning rate.
        tokens_per_step: of all processes together, for the history and the bar.
        checkpoint, resume, settings, stream: see :class:`~lft_edu.training.callbacks.Checkpointing`. Without
            ``resume`` an existing checkpoint is an error, never overwritten.
        callbacks: called in this order, after the history is written and before a checkpoint is.
        log: is given each row of numbers that is recorded, on the main process.

    Raises:
        FileExistsError: ``checkpoint`` exists and ``resume`` is not set.
        FloatingPointError: the loss is no longer finite; the last checkpoint stays as it was.
        KeyboardInterrupt: SIGINT or SIGTERM came; with a ``checkpoint``, the state at that step has been saved.
        ConnectionError: the stream of text broke off. A single process has saved the steps that it had done.
    """
    accelerator = accelerator or make_accelerator(next(module.parameters()).device)
    rank, world = accelerator.process_index, accelerator.num_processes
    batch_size, turns = training.batch_size, training.gradient_accumulation_steps
    sequences = batch_size * turns * world
    module.to(accelerator.device)
    run = RunState(module, optimizers, accelerator, training, tokens_per_step=tokens_per_step)
    settings = (settings or {}) | {"sequences_a_step": sequences}
    saving = Checkpointing(checkpoint, settings, training.save_total_limit, stream)
    saving.restore(run, resume)
    run.first = run.step
    bar, shutdown = [Progress(description)] * progress, [GracefulShutdown()] * (checkpoint is not None)
    callbacks = [Recording(log), *bar, *callbacks, saving, *shutdown]
    if hasattr(stream, "stopping"):
        stream.stopping = lambda: run.alone and run.stop_requested
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    parallel = accelerator.prepare_model(module)
    parameters = [p for p in module.parameters() if p.requires_grad]

    def gradient(step: int) -> torch.Tensor:
        """Add up the gradient of one step; returns its mean loss."""
        random = draw(sequences, step_generator(training.seed, step, accelerator.device)) if draw else None
        losses = []
        for turn in range(turns):
            mine = places(batch_size, turn, rank, world)
            batch = batch_at(step * sequences + mine)  # outside autocast: the teacher's states keep its precision
            if random is not None:
                batch = (*batch, random[mine.to(random.device, non_blocking=True)])
            with accelerator.no_sync(parallel) if turn + 1 < turns else nullcontext():
                with accelerator.autocast():
                    loss = parallel(*batch)
                accelerator.backward(loss / turns)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def one_step(step: int) -> torch.Tensor:
        run.rate_factor = schedule(step, training.max_steps)
        _set_rates(optimizers, rates, run.rate_factor)
        loss = gradient(step)
        norm = nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.stack([loss + 0 * norm, norm])  # NaN if the gradient was

    def read_numbers() -> None:
        """The only wait for the device; what all processes must agree on, they agree on here."""
        stop = torch.tensor([float(run.stop_requested)], device=pending[0].device)
        mine = torch.cat([torch.stack(pending).mean(0), stop])
        run.loss, run.grad_norm, stopping = accelerator.reduce(mine, "mean").tolist()
        run.stopping = stopping > 0
        pending.clear()
        _require_finite(run.loss, run.step, saving)

    module.train()
    pending: list[torch.Tensor] = []
    try:
        for callback in callbacks:
            callback.on_train_begin(run)
        while run.step < training.max_steps:
            try:
                pending.append(one_step(run.step))
            except (StreamError, StreamInterrupted):  # no text, so nothing of this step has been done
                if run.alone and checkpoint is not None and run.step > run.first:
                    saving.save(run)
                raise
            run.step += 1
            wanted = [callback.on_step_end(run) for callback in callbacks]
            if any(wanted):
                read_numbers()
                for callback in callbacks:
                    callback.on_numbers(run)
            if run.stopping and not run.finished:
                accelerator.wait_for_everyone()  # a process that left now would have the launcher end one that saves
                raise KeyboardInterrupt(f"Stopped after step {run.step:,} of {training.max_steps:,}.")
    finally:
        for callback in callbacks:
            callback.on_train_end(run)
    module.eval()
    _set_rates(optimizers, rates, 1.0)
    return run.history


def _require_finite(loss: float, step: int, saving: Checkpointing) -> None:
    if not math.isfinite(loss):
        files = saving.files.files()
        last = f"The last good checkpoint is {files[0]}." if files else "No checkpoint had been written."
        raise FloatingPointError(
            f"The loss or its gradient became {loss} by step {step}; training stopped. {last} "
            "Lower the learning rate, or look for NaN in the latents, then resume."
        )
