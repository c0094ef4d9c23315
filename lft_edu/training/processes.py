"""Several processes: who is main, who waits for whom."""

import os
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta

import torch

PATIENCE = timedelta(hours=3)  # with a process that downloads, reads or evaluates for all


def is_distributed() -> bool:
    """Is this one of the processes of a launcher, such as ``accelerate launch``?"""
    return "WORLD_SIZE" in os.environ


def is_main_process() -> bool:
    """Is this the process that writes, prints and evaluates?"""
    return int(os.environ.get("RANK", 0)) == 0


def init_process_group(device: torch.device):
    """Meet the launcher's other processes; returns Accelerate's state of them. Their usual patience is ten minutes."""
    import accelerate

    return accelerate.PartialState(cpu=device.type == "cpu", timeout=PATIENCE)


def broadcast_from_main(work: Callable):
    """What ``work()`` returns on the main process, on every process; what it raises there, too.

    So one disk decides for all: machines that share no folder would else see different checkpoints.
    """
    if not is_distributed():
        return work()
    from accelerate.utils import broadcast_object_list

    outcome = [None, None]  # result, error
    if is_main_process():
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return result


def make_accelerator(device: torch.device, precision: str = "no"):
    """Accelerate for this device and precision.

    It keeps both for the life of the process, so a run with other ones needs the last run's forgotten; not under a
    launcher, where the process group lives there.

    Raises:
        ValueError: a launcher has given this process another device.
    """
    import accelerate

    if is_distributed():
        init_process_group(device)
    else:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        if device.type != "cpu" and device.index is not None:
            torch.accelerator.set_device_index(device.index)  # Accelerate takes the current one
    accelerator = accelerate.Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    if accelerator.device.type != device.type:
        raise ValueError(f"The model is on {device}, this process trains on {accelerator.device}: move it there.")
    return accelerator


@contextmanager
def main_process_first(device: torch.device):
    """Under a launcher: a block that the main process runs first, then one process of every other machine, then the
    rest, from their machine's cache."""
    if not is_distributed():
        yield
        return
    processes = init_process_group(device)
    with processes.main_process_first(), processes.local_main_process_first():
        yield
