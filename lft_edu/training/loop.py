"""One training loop, on Accelerate: CPU, one GPU or many.

Step ``i`` draws its sequences and its random numbers from generators seeded by ``(seed, i)`` alone, for all processes
together; each process takes its share. So a run is continued *bit for bit* from weights, optimiser state and a step
number (and, for a stream of text, the place in it), and it does not matter how many processes share the work: two give
what one gives with twice the batch, up to the order of sums.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from .callbacks import History, Interruption, _Recorder
from .checkpoints import Checkpoints, restore
from .optimizers import _set_rates, warmup_stable_decay
from .processes import broadcast_from_main, make_accelerator
from .sampling import Share, places, step_generator
from .streams import StreamError, StreamInterrupted


def optimise(
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batch_at: Callable[[torch.Tensor], tuple],
    steps: int,
    *,
    batch_size: int = 1,
    accumulate: int = 1,
    schedule: Callable[[int, int], float] = warmup_stable_decay,
    accelerator=None,
    seed: int = 0,
    clip: float = 1.0,
    tokens_per_step: int = 0,
    checkpoint: str | Path | None = None,
    save_every: int = 200,
    keep: int = 2,
    resume: bool = False,
    settings: dict | None = None,
    stream=None,
    evaluate: Callable[[int], dict] | None = None,
    evaluate_every: int = 0,
    log: Callable[[dict], None] | None = None,
    log_every: int = 10,
    description: str = "train",
    progress: bool = True,
) -> History:
    """Minimise ``module(*batch_at(numbers), generator=g)``, a scalar loss, for ``steps`` steps.

    Args:
        module: forward returns the mean loss of its batch; its parameters are what the optimizers hold.
        batch_at: numbers ``(batch_size,)`` of sequences of the run → tuple of inputs, the same for the same numbers.
            A step takes ``batch_size · accumulate · processes`` numbers, the next step the next ones.
        accumulate: batches whose gradients are averaged into one step.
        schedule: (step, steps) → factor on every learning rate.
        clip: largest gradient norm.
        checkpoint: file to save to every ``save_every`` steps, when interrupted and at the end; or a folder, which
            keeps the newest ``keep`` of them.
        resume: continue from ``checkpoint`` if it is there. Without it an existing one is an error, never overwritten.
        settings: JSON values that must agree for a checkpoint to be continued.
        stream: has ``state()`` and ``restore(state)``, JSON: a place in a stream of text to come back to.
        evaluate: step → numbers to record, called every ``evaluate_every`` steps and at the end, on process 0.
        log: is given each row of numbers that is recorded, on process 0.

    Raises:
        FileExistsError: ``checkpoint`` is there and ``resume`` is not asked for.
        FloatingPointError: the loss is no longer finite; the last checkpoint stays as it was.
        KeyboardInterrupt: SIGINT or SIGTERM came; with a ``checkpoint``, the state at that step has been saved.
        ConnectionError: the stream of text broke off. A single process has saved the steps that it had done.
    """
    from accelerate.utils import gather_object
    from tqdm.auto import tqdm

    for name, value in (("save_every", save_every), ("accumulate", accumulate), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value}: give at least 1.")
    accelerator = accelerator or make_accelerator(next(module.parameters()).device)
    rank, world = accelerator.process_index, accelerator.num_processes
    whole_batch = batch_size * accumulate * world
    settings = (settings or {}) | {"sequences_a_step": whole_batch}
    kept = Checkpoints(checkpoint, keep)
    module.to(accelerator.device)
    done, history = 0, History()

    def begun() -> tuple[dict, dict] | None:
        if kept.files() and not resume:
            raise FileExistsError(
                f"{kept.place} exists. Pass resume=True (--resume) to continue it, or delete it to start again."
            )
        return kept.read(settings) if kept.files() else None

    if found := broadcast_from_main(begun):
        notes, tensors = found
        restore(tensors, module, optimizers)
        done, history = notes["step"], History(**notes["history"])
        if stream is not None:
            stream.restore(notes.get("stream") or {})
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    parallel = accelerator.prepare_model(module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    main = accelerator.is_main_process
    bar = tqdm(
        total=steps, initial=min(done, steps), desc=description, unit="step", mininterval=1.0,
        disable=not (progress and main),
    )  # fmt: skip
    recorder = _Recorder(history, bar, tokens_per_step, done, log if main else None)

    def one_turn(step: int, turn: int) -> torch.Tensor:
        mine = places(batch_size, turn, rank, world)
        share = Share(step_generator(seed, step, accelerator.device), mine, whole_batch)
        batch = batch_at(step * whole_batch + mine)  # outside autocast: the teacher's states keep its precision
        waiting = turn + 1 < accumulate
        with accelerator.no_sync(parallel) if waiting else nullcontext():
            with accelerator.autocast():
                loss = parallel(*batch, generator=share)
            accelerator.backward(loss / accumulate)
        return loss.detach()

    def one_step(step: int) -> torch.Tensor:
        _set_rates(optimizers, rates, schedule(step, steps))
        loss = torch.stack([one_turn(step, turn) for turn in range(accumulate)]).mean()
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.stack([loss + 0 * norm, norm])  # NaN if the gradient was

    def save(step: int) -> None:
        states = gather_object([stream.state()]) if stream is not None else []
        if main:
            # A lane may be known to several processes, of which one reads it on: that one is farthest.
            farthest = sorted((item for part in states for item in part.items()), key=lambda item: item[1]["position"])
            place = dict(farthest)
            kept.save(module, optimizers, {"step": step, "history": history, "settings": settings, "stream": place})

    module.train()
    pending = []
    with Interruption().watched(kept.place is not None) as interruption:
        if hasattr(stream, "stopping"):
            stream.stopping = lambda: world == 1 and interruption.asked
        for step in range(done, steps):
            try:
                pending.append(one_step(step))
            except (StreamError, StreamInterrupted):  # no text, so nothing of this step has been done
                bar.close()
                if world == 1 and kept.place is not None and step > done:
                    save(step)
                raise
            history.tokens += tokens_per_step
            bar.update()
            last = step + 1 == steps
            saving = kept.place is not None and (last or (step + 1) % save_every == 0)
            measuring = evaluate is not None and (last or (evaluate_every and (step + 1) % evaluate_every == 0))
            stopping = world == 1 and interruption.asked
            if last or saving or measuring or stopping or (step + 1) % log_every == 0:
                # The only wait for the device, every log_every steps; what all processes agree on, they agree on here.
                asked = torch.tensor([float(interruption.asked)], device=pending[0].device)
                mine = torch.cat([torch.stack(pending).mean(0), asked])
                mean, norm, stopping = accelerator.reduce(mine, "mean").tolist()
                pending.clear()
                _require_finite(mean, step, kept)
                recorder.record(step + 1, mean, norm, schedule(step, steps))
            if measuring and main:
                module.eval()
                recorder.evaluated(step + 1, evaluate(step + 1))
                module.train()
            if saving or (stopping and kept.place is not None):
                save(step + 1)
            if stopping and not last:
                bar.close()
                accelerator.wait_for_everyone()  # a process that left now would have the launcher end one that saves
                raise KeyboardInterrupt(f"Stopped after step {step + 1:,} of {steps:,}.")
    bar.close()
    module.eval()
    _set_rates(optimizers, rates, 1.0)
    return history


def _require_finite(loss: float, step: int, kept: Checkpoints) -> None:
    if not math.isfinite(loss):
        files = kept.files()
        last = f"The last good checkpoint is {files[0]}." if files else "No checkpoint had been written."
        raise FloatingPointError(
            f"The loss or its gradient became {loss} by step {step + 1}; training stopped. {last} "
            "Lower the learning rate, or look for NaN in the latents, then resume."
        )
