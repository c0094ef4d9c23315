"""Devices, memory, disk and cores of this machine. ``torch.accelerator`` means CUDA, MPS (Apple), XPU and others."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")  # of x86 and Arm, as torch.cpu.get_capabilities has them


def evaluation_batch(vocabulary: int, sequence_length: int, most: int = 16, max_bytes: float = 256e6) -> int:
    """Return how many sequences to evaluate at once.

    Args:
        vocabulary: tokens in the vocabulary.
        sequence_length: tokens per sequence.
        most: upper limit of the result.
        max_bytes: limit for one model's float32 logits (six copies are alive at the peak).
    """
    return max(1, min(most, int(max_bytes // (4 * vocabulary * sequence_length))))


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_memory(needed: int, what: str, advice: str) -> None:
    """Raise ValueError if ``needed`` bytes are more than 80 % of the free memory."""
    import psutil

    free = psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise ValueError(f"{what} would take {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free. {advice}")


def default_device() -> torch.device:
    """Return the current accelerator (under a launcher, this process's), or the CPU if there is none."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", torch.accelerator.current_device_index()))
    return torch.device(accelerator.type, index)


def fastest_dtype(device: torch.device | None = None, capabilities: Mapping | None = None) -> torch.dtype:
    """Return bfloat16 if the device has units for it, else float32.

    Args:
        device: where a model runs; :func:`default_device` if None.
        capabilities: of the CPU, name → truth; default: ``torch.cpu.get_capabilities()``.
    """
    device = device or default_device()
    if device.type == "cuda":  # from Ampere on
        fast = torch.cuda.get_device_capability(device)[0] >= 8
    elif device.type == "cpu" and torch.backends.mkldnn.is_available():  # oneDNN's products are what reaches the units
        capabilities = torch.cpu.get_capabilities() if capabilities is None else capabilities
        fast = any(capabilities.get(unit, False) for unit in BF16_UNITS)
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def device_name(device: torch.device) -> str:
    """Return a name for people, such as ``"NVIDIA H100"`` or ``"CPU, 8 threads"``."""
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    module = torch.get_device_module(device)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else f"{device.type.upper()} device"


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a device; of this computer for the CPU and for MPS, which shares its memory."""
    import psutil

    if device.type in ("cpu", "mps"):
        return psutil.virtual_memory().available
    return torch.accelerator.get_memory_info(device)[0]


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def float64(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` in float64, on its device if it has that type (MPS does not), else on the CPU."""
    return (x.cpu() if x.device.type == "mps" else x).double()


class PeakMemory:
    """Measure the most memory in use, in bytes, while a block runs; ``peak`` holds it after the block.

    Of a GPU, what torch has allocated on it. For the CPU, the resident memory of this process. A thread reads the
    latter, and MPS's, every 10 ms: the kernel's high-water mark cannot be reset, and MPS has none.
    """

    def __init__(self, device: torch.device):
        self.device, self.peak = device, 0
        self.sampled = device.type in ("cpu", "mps")

    def __enter__(self) -> "PeakMemory":
        import threading

        if self.sampled:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        else:
            torch.accelerator.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *exc) -> None:
        if self.sampled:
            self._stop.set()
            self._thread.join()
        else:
            self.peak = torch.accelerator.max_memory_allocated(self.device)

    def _watch(self) -> None:
        import psutil

        process = psutil.Process()
        in_use = torch.mps.driver_allocated_memory if self.device.type == "mps" else lambda: process.memory_info().rss
        while True:
            self.peak = max(self.peak, in_use())
            if self._stop.wait(0.01):
                return


def free_space(folder: Path) -> int:
    """Return the free bytes on the disk where ``folder`` is, or would be created."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free
