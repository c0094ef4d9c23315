"""Coordinate the processes of a distributed run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    import accelerate

T = TypeVar("T")
TIMEOUT = timedelta(hours=3)  # the main process may download, read or evaluate while the others wait


def is_distributed() -> bool:
    """Return whether a launcher, such as ``accelerate launch``, started this process."""
    return "WORLD_SIZE" in os.environ


def is_main_process() -> bool:
    """Return whether this is rank 0, the process that writes, prints and evaluates."""
    return int(os.environ.get("RANK", 0)) == 0


def init_process_group(device: torch.device) -> accelerate.PartialState:
    """Initialize the process group with a timeout of 3 hours (torch's default is 10 minutes); return its state."""
    import accelerate

    return accelerate.PartialState(cpu=device.type == "cpu", timeout=TIMEOUT)


def leave_process_group() -> None:
    """Under a launcher: leave the process group in good order. After an error no goodbye: the others can't answer it,
    they wait for this process, and the launcher ends them when it is gone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def broadcast_from_main(work: Callable[[], T]) -> T:
    """Run ``work()`` on the main process only; return its result, or raise its error, on every process.

    Machines without a shared folder would otherwise see different checkpoints.
    """
    if not is_distributed():
        return work()
    from accelerate.utils import broadcast_object_list

    outcome: list = [None, None]  # result, error
    if is_main_process():
        try:
            outcome[0] = work()
        except Exception as raised:
            outcome[1] = raised
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result


def make_accelerator(device: torch.device, precision: str = "no") -> accelerate.Accelerator:
    """Return an Accelerator for a device and a precision.

    Accelerate keeps both for the life of the process. Without a launcher, that state is reset first, so that two runs
    in one process may differ. Under a launcher it holds the process group, and stays.

    Args:
        device: the device of the model.
        precision: ``"no"`` or ``"bf16"``.

    Raises:
        ValueError: the launcher has given this process another device.
    """
    import accelerate

    if is_distributed():
        init_process_group(device)
    else:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        if device.type != "cpu" and device.index is not None:
            torch.accelerator.set_device_index(device.index)  # Accelerate uses the current device
    accelerator = accelerate.Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    if accelerator.device.type != device.type:
        raise ValueError(f"The model is on {device}, this process trains on {accelerator.device}. Move it there.")
    return accelerator


@contextmanager
def main_process_first(device: torch.device) -> Iterator[None]:
    """Under a launcher, run the block on the main process first, then on one process per machine, then on the others.

    What the first process of a machine downloads, the others find in its cache.
    """
    if not is_distributed():
        yield
        return
    processes = init_process_group(device)
    with processes.main_process_first(), processes.local_main_process_first():
        yield
