"""What this machine has: devices, memory, disk, cores."""

import os
import shutil
from pathlib import Path

import torch


def evaluation_batch(vocabulary: int, block: int, most: int = 16, room: float = 256e6) -> int:
    """Blocks to compare at once, so that one model's logits in float32 take at most ``room`` bytes (six copies are
    alive at the peak)."""
    return max(1, min(most, int(room // (4 * vocabulary * block))))


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_memory(needed: int, what: str, advice: str) -> None:
    """ValueError if ``needed`` bytes are more than four fifths of the memory that is free."""
    import psutil

    free = psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise ValueError(f"{what} would take {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free. {advice}")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or in this computer."""
    import psutil

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


class PeakMemory:
    """Most memory in use while the block runs: of the GPU if there is one, else of this process (resident). Bytes.

    A thread looks at the process every few milliseconds; the kernel's own high-water mark knows no beginning.
    """

    def __init__(self, device: torch.device):
        self.device, self.peak = device, 0

    def __enter__(self):
        import threading

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc):
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._stop.set()
            self._thread.join()

    def _watch(self):
        import psutil

        process = psutil.Process()
        while True:
            self.peak = max(self.peak, process.memory_info().rss)
            if self._stop.wait(0.01):
                return


def synchronize(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def default_device() -> torch.device:
    """A GPU if there is one (under a launcher, this process's), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def free_space(folder: Path) -> int:
    """Bytes free on the disk where ``folder`` is or would be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free
