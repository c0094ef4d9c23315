"""Devices by torch.accelerator: a Mac's or another GPU is used where there is one. Simulated here, on the CPU."""

import mmap
from collections import namedtuple

import psutil
import pytest
import torch

from lft_edu.support import machine

GPUS = ["cuda", "mps", "xpu"]


@pytest.fixture(params=GPUS)
def gpu(request, monkeypatch):
    """A machine whose current accelerator is the second one of a type."""
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(request.param)
    )
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    return request.param


def test_the_cpu_where_there_is_no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    assert machine.default_device() == torch.device("cpu")
    assert machine.device_name(torch.device("cpu")).startswith("CPU, ")


def test_any_accelerator_is_the_default_and_a_launcher_says_which(gpu, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert machine.default_device() == torch.device(gpu, 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert machine.default_device() == torch.device(gpu, 0)


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_bfloat16_on_a_gpu_that_has_units_for_it(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert machine.fastest_dtype(torch.device("cuda", 0)) == expected
    assert machine.fastest_dtype(torch.device("mps")) == torch.float32  # cannot be asked


def test_bfloat16_on_a_cpu_that_has_units_for_it(monkeypatch):
    monkeypatch.setattr(machine, "default_device", lambda: torch.device("cpu"))
    for units, expected in (({"avx2": True}, torch.float32), ({"amx_bf16": True}, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units)
        assert machine.fastest_dtype() == expected


def test_names_per_device_type(gpu, monkeypatch):
    """MPS has no function that names the chip."""
    device = torch.device(gpu, 0)
    if gpu != "mps":
        monkeypatch.setattr(torch.get_device_module(gpu), "get_device_name", lambda device: "Chip 9")
    assert machine.device_name(device) == ("MPS device" if gpu == "mps" else "Chip 9")


def test_free_memory_is_the_gpus_or_the_computers(gpu, monkeypatch):
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(7))
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda device: (5, 10))
    assert machine.free_memory(torch.device(gpu, 0)) == (7 if gpu == "mps" else 5)
    assert machine.free_memory(torch.device("cpu")) == 7


def test_synchronize_waits_for_gpus_only(gpu, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    machine.synchronize(torch.device("cpu"))
    machine.synchronize(torch.device(gpu, 0))
    assert waited == [torch.device(gpu, 0)]


def test_peak_memory_of_a_gpu(gpu, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", calls.append)
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda device: 3_000)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", iter([1, 3_000, 2, *[2] * 1000]).__next__)
    with machine.PeakMemory(torch.device(gpu, 0)) as memory:
        if gpu == "mps":
            memory._stop.wait(0.2)
    assert memory.peak == 3_000
    assert len(calls) == (gpu != "mps")


def test_peak_memory_of_the_process_holds_what_is_gone_again():
    before, size = psutil.Process().memory_info().rss, 2**28
    # Pages from the system: the heap may reuse some that were resident before.
    with machine.PeakMemory(torch.device("cpu")) as memory, mmap.mmap(-1, size) as fresh:
        for page in range(0, size, mmap.PAGESIZE):
            fresh[page] = 1
        memory._stop.wait(0.2)
    assert memory.peak >= before + 0.8 * size
