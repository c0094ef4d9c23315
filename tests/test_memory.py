"""A notebook that splices, fits and evaluates again and again holds what it held after the first time."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import torch

memory = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "memory.py")))


def test_rounds_leave_no_tensor_behind(teacher, blocks):
    def turn() -> dict[str, int]:
        for number in range(len(memory.TURNS)):
            memory.one_round(number, teacher, blocks[:8], (2, 5))
        held = memory.live()  # threads and files belong to other tests of this process, too
        return {name: held[name] for name in ("tensors", "tensor_bytes")}

    turn()  # what is made once for a process
    first, second = turn(), turn()
    assert all(second[name] <= first[name] for name in first)  # fewer: what other tests left is collected at any time


def test_what_grows_is_named():
    flat = [{"tensors": 9, "resident": 10**8 + 4096 * (i % 3)} for i in range(16)]
    assert memory.grown(flat, 300_000) == {}
    for name, each in (("tensors", 6), ("resident", 6 * 300_000)):
        leaking = [row | {name: row[name] + each * i} for i, row in enumerate(flat)]
        assert list(memory.grown(leaking, 300_000)) == [name]
    kept = torch.zeros(1000)
    before = memory.live()
    more = kept + 1
    after = memory.live()
    assert (after["tensors"] - before["tensors"], after["tensor_bytes"] - before["tensor_bytes"]) == (1, more.nbytes)
