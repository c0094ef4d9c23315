"""Which sequences and which random numbers a step takes, as functions of (seed, step) alone."""

import torch


def step_generator(seed: int, step: int, device="cpu") -> torch.Generator:
    """The random numbers of one step, a function of its arguments alone; the same on every process."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + step) * 1_009 % 2**63)


class ShuffledRows:
    """Which row is the ``i``-th sequence of a run: epochs, each in a fresh order, for any ``i`` without history."""

    def __init__(self, rows: int, seed: int = 0):
        if rows < 1:
            raise ValueError("The corpus holds no blocks to train on.")
        self.rows, self.seed = rows, seed
        self._orders: dict[int, torch.Tensor] = {}

    def __call__(self, numbers: torch.Tensor) -> torch.Tensor:
        """Row numbers, shaped like ``numbers`` ``(B,)``, of these sequences of the run."""
        return torch.stack([self._order(i // self.rows)[i % self.rows] for i in numbers.tolist()])

    def _order(self, epoch: int) -> torch.Tensor:
        if epoch not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k >= epoch - 1}  # a step may straddle two
            generator = torch.Generator().manual_seed(self.seed * 7_919 + epoch)
            self._orders[epoch] = torch.randperm(self.rows, generator=generator)
        return self._orders[epoch]


def places(batch_size: int, turn: int = 0, rank: int = 0, world: int = 1) -> torch.Tensor:
    """Which of a step's sequences one process takes in one turn of gradient accumulation: ``(batch_size,)``.

    Processes take every ``world``-th, so that each can read its own files of a stream.
    """
    return (turn * batch_size + torch.arange(batch_size)) * world + rank
