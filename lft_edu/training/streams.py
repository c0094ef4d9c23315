"""Random access by number to the token sequences of a dataset that can only be read from its start.

The dataset's files (shards) are divided among ``S`` shard readers, and sequence ``b`` of a run is the next one of
reader ``b mod S``. So the order of sequences does not depend on the number of processes; if ``S`` is a multiple of it,
each process opens only its own files. (If the number of files is not a multiple of ``S``, some readers have fewer files
and start over sooner.)
"""

from __future__ import annotations

import copy
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from torch import Tensor

from ..support.errors import reason
from ..support.tokens import UNPADDED, token_ids

if TYPE_CHECKING:
    import datasets

MAX_READERS = 32
AHEAD = 8  # requests that a thread reads ahead while the device computes


def num_readers(corpus: datasets.IterableDataset) -> int:
    """Return the number of shard readers: the largest power of two up to the number of files, at most 32.

    A power of two, because it is then a multiple of most numbers of processes.
    """
    return 1 << min(max(1, corpus.num_shards), MAX_READERS).bit_length() - 1


def has_shuffle_buffer(corpus: datasets.IterableDataset) -> bool:
    """Return whether a dataset shuffles in a buffer, whose content is not part of the state that it saves."""
    parts = [getattr(corpus, "_ex_iterable", None)]  # datasets has no public name for it
    while parts:
        part = parts.pop()
        if "BufferShuffled" in type(part).__name__:
            return True
        inside = getattr(part, "ex_iterable", None)
        parts += [*([] if inside is None else [inside]), *getattr(part, "ex_iterables", ())]
    return False


class StreamError(ConnectionError):
    """Reading the text stream failed."""


class StreamInterrupted(KeyboardInterrupt):
    """A stop was requested while waiting for text."""


class ReaderThread:
    """Run tasks in order on one daemon thread, which never keeps the process alive, even if the network hangs."""

    def __init__(self):
        self.tasks: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=ReaderThread._work, args=(self.tasks,), name="stream", daemon=True).start()
        weakref.finalize(self, self.tasks.put, None)

    def submit(self, work: Callable, *args) -> Future:
        """Queue ``work(*args)``; return the future of its result."""
        future: Future = Future()
        self.tasks.put((future, work, args))
        return future

    @staticmethod
    def _work(tasks: queue.SimpleQueue) -> None:
        while (task := tasks.get()) is not None:
            future, work, args = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work(*args))
                except BaseException as error:
                    future.set_exception(error)
            del task, future, work, args  # they keep the stream alive, and this thread ends with the stream


class ShardReader:
    """Read one share of a dataset's files in order, and start over after the last sequence."""

    def __init__(self, corpus: datasets.IterableDataset, index: int, readers: int):
        self.share = f"share {index + 1} of {readers} of the stream's {corpus.num_shards} files"
        self.corpus = corpus.shard(readers, index)  # a copy of its own: datasets that share files share a position
        self.epoch, self.position = 0, 0
        self.rows: Iterator[dict] | None = None
        self.restored: dict | None = None  # until the next sequence is read, the dataset does not know its state

    def sequence(self, position: int) -> list[int]:
        """Return the tokens at a position in this share; a position before the last one starts over."""
        if position < self.position:
            self._start_over()
            self.position = 0
        while self.position <= position:
            row = self._next()
        return row

    def _next(self) -> list[int]:
        self.rows, self.restored = self.rows or iter(self.corpus), None
        row = next(self.rows, None)
        if row is None:
            self._start_over()
            row = next(self.rows, None)
        if row is None:
            raise ValueError(
                f"The stream has less than one sequence of tokens in {self.share}: give more text or a smaller "
                "block_size, or leave out files that hold nothing."
            )
        self.position += 1
        if not all(row.get("attention_mask") or ()):
            raise ValueError(f"A row of the stream is padded, and padding would be taken for text. {UNPADDED}")
        return row["input_ids"]

    def _start_over(self) -> None:
        self.epoch, self.restored = self.epoch + 1, None
        self.corpus.set_epoch(self.epoch)  # a loaded state is valid for its own epoch only
        self.rows = iter(self.corpus)

    def state(self) -> dict:
        """Return the position as JSON, for :meth:`restore`."""
        if self.restored:
            return self.restored
        return {"position": self.position, "epoch": self.epoch, "corpus": copy.deepcopy(self.corpus.state_dict())}

    def restore(self, state: dict) -> None:
        """Continue from a :meth:`state`."""
        self.position, self.epoch, self.rows, self.restored = state["position"], state["epoch"], None, state
        self.corpus.set_epoch(self.epoch)
        self.corpus.load_state_dict(copy.deepcopy(state["corpus"]))  # it modifies what it is given


class TokenStream:
    """Endless sequences of an ``IterableDataset`` with a column ``input_ids``, by number: ``stream[[4, 5]]``.

    Intended for increasing numbers at a constant stride: while one request is used, a thread reads the next ones.

    Raises (from indexing):
        StreamError: reading failed. The stream can be resumed.
        StreamInterrupted: ``stopping()`` became true while waiting.
        ValueError: a share of the dataset is empty, or its rows are not token ids of one length.
    """

    def __init__(self, corpus: datasets.IterableDataset):
        self.buffered = has_shuffle_buffer(corpus)
        self.corpus = corpus
        self.readers: dict[int, ShardReader] = {}
        self.count = num_readers(corpus)
        self.thread: ReaderThread | None = None
        self.stopping: Callable[[], bool] = lambda: False  # called while waiting for text
        self.ahead: deque[tuple[tuple, Future]] = deque()
        self.last: tuple | None = None
        self.served: dict = {}  # the state after the last request that was returned
        self.first: Tensor | None = None

    def __len__(self) -> int:
        return 2**62  # endless

    def __getitem__(self, numbers: list[int]) -> dict[str, Tensor]:
        if numbers == [0] and self.first is not None:  # identifies the corpus, and is requested repeatedly
            return {"input_ids": self.first[None]}
        asked, waiting = tuple(numbers), dict(self.ahead)
        if asked not in waiting:
            self._forget()
        while self.ahead and self.ahead[0][0] != asked:
            self.ahead.popleft()
        rows, self.served = self._wait(self.ahead.popleft()[1] if self.ahead else self._submit(asked))
        if asked[0] == 0:
            self.first = rows[0]
        self._read_ahead(asked)
        return {"input_ids": rows}

    def _read_ahead(self, asked: tuple) -> None:
        stride = asked[0] - self.last[0] if self.last else 0
        self.last = asked
        while stride > asked[-1] - asked[0] and len(self.ahead) < AHEAD:
            newest = self.ahead[-1][0] if self.ahead else asked
            following = tuple(number + stride for number in newest)
            self.ahead.append((following, self._submit(following)))

    def _wait(self, future: Future):
        """Return the result of the thread, or raise what indexing raises."""
        while not wait([future], timeout=0.5).done:
            if self.stopping():
                raise StreamInterrupted("Stopped while waiting for text.")
        try:
            return future.result()
        except Exception as error:  # the hub's clients and file readers share no error class
            if type(error) is ValueError:  # our own
                raise
            raise StreamError(
                f"Reading the text stream failed ({reason(error)}). To continue, use resume=True (--resume)."
            ) from error

    def _submit(self, numbers: tuple) -> Future:
        self.thread = self.thread or ReaderThread()
        return self.thread.submit(self._read, numbers)

    def _read(self, numbers: tuple) -> tuple[Tensor, dict]:
        rows = [self._reader(number % self.count).sequence(number // self.count) for number in numbers]
        return token_ids(rows), self._state()

    def _reader(self, index: int) -> ShardReader:
        if index not in self.readers:
            self.readers[index] = ShardReader(self.corpus, index, self.count)
        return self.readers[index]

    def _state(self) -> dict:
        return {str(index): reader.state() for index, reader in self.readers.items()}

    def _forget(self) -> None:
        """Discard what was read ahead, and return to the end of the last request."""
        if self.ahead:
            for _, future in self.ahead:
                future.cancel()
            self.ahead.clear()
            self._submit_restore(self.served)

    def _submit_restore(self, state: dict) -> None:
        self.thread = self.thread or ReaderThread()
        self._wait(self.thread.submit(self._restore, state))

    def _restore(self, state: dict) -> None:
        self.readers = {}
        for index, position in state.items():
            self._reader(int(index)).restore(position)

    def state(self) -> dict:
        """Return reader → its position after the last request that was returned, as JSON."""
        return self.served

    def restore(self, state: dict) -> None:
        """Continue from a :meth:`state`, saved by any number of processes."""
        self._forget()
        self.last, self.served = None, state
        self._submit_restore(state)
