"""Blocks of tokens by number, out of a stream that can only be read from its beginning on.

A stream is read in *lanes*: lane ``l`` of ``S`` has its share of the files (shards of ``datasets``), and block ``b`` of
a run is the next one of lane ``b mod S``. So the order of blocks does not depend on how many processes share the work,
and where ``S`` is a multiple of their number, each process opens its own files only. (Where the files are no multiple
of ``S``, some lanes have one less, and come round again sooner.)
"""

import copy
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait

import torch
from torch import Tensor

from ..support.errors import reason

MAX_READERS = 32
AHEAD = 8  # requests that a thread reads ahead while the device works


def num_readers(corpus) -> int:
    """In how many lanes a stream is read: the largest power of two, as numbers of processes are, that its files allow.

    Where the processes are as many, or half, or a quarter, none reads a file of another's.
    """
    return 1 << min(max(1, corpus.num_shards), MAX_READERS).bit_length() - 1


class StreamError(ConnectionError):
    """The text could not be read on."""


class StreamInterrupted(KeyboardInterrupt):
    """Somebody asked to stop while the text was waited for."""


class Reader:
    """One thread that does what it is given, in order. It ends with the process, even while the network is silent."""

    def __init__(self):
        self.tasks: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=Reader._work, args=(self.tasks,), name="stream", daemon=True).start()
        weakref.finalize(self, self.tasks.put, None)

    def submit(self, work: Callable, *args) -> Future:
        future = Future()
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
            del task, future, work, args  # they hold the stream, whose end is this thread's


class ShardReader:
    """One share of a stream's files, read forwards; after its last block comes its first again."""

    def __init__(self, corpus, index: int, lanes: int):
        self.corpus = corpus.shard(lanes, index)  # of its own: data sets that share their files share their places
        self.epoch, self.position, self.rows = 0, 0, None
        self.restored: dict | None = None  # until the first block after it is read, the data set does not know

    def block(self, position: int) -> list[int]:
        """The block at this position of the lane; a smaller one than the last starts the lane anew."""
        if position < self.position:
            self._begin_again()
            self.position = 0
        while self.position <= position:
            row = self._next()
        return row

    def _next(self) -> list[int]:
        self.rows, self.restored = self.rows or iter(self.corpus), None
        row = next(self.rows, None)
        if row is None:
            self._begin_again()
            row = next(self.rows, None)
        if row is None:
            raise ValueError("The stream is empty: it gave not one block of tokens.")
        self.position += 1
        return row["input_ids"]

    def _begin_again(self) -> None:
        self.epoch, self.restored = self.epoch + 1, None
        self.corpus.set_epoch(self.epoch)  # a state that was loaded counts for its own epoch only
        self.rows = iter(self.corpus)

    def state(self) -> dict:
        """JSON from which :meth:`restore` goes on."""
        if self.restored:
            return self.restored
        return {"position": self.position, "epoch": self.epoch, "corpus": copy.deepcopy(self.corpus.state_dict())}

    def restore(self, state: dict) -> None:
        self.position, self.epoch, self.rows, self.restored = state["position"], state["epoch"], None, state
        self.corpus.set_epoch(self.epoch)
        self.corpus.load_state_dict(copy.deepcopy(state["corpus"]))  # it goes on writing in what it is given


class TokenStream:
    """The blocks of an ``IterableDataset`` with a column ``input_ids``, by number; it never ends.

    Meant to be asked for numbers in rising order at equal strides: while one request is being used, a thread prepares
    the next ones.
    """

    def __init__(self, corpus):
        self.corpus, self.lanes = corpus, {}
        self.count = num_readers(corpus)
        self.thread: Reader | None = None
        self.stopping: Callable[[], bool] = lambda: False  # asked while the text is waited for
        self.ahead: deque[tuple[tuple, Future]] = deque()
        self.last: tuple | None = None
        self.served: dict = {}  # the state after the last request that was handed out
        self.first: Tensor | None = None

    def __len__(self) -> int:
        return 2**62  # unknown; nobody reads that far

    def __getitem__(self, numbers: list[int]) -> dict[str, Tensor]:
        if numbers == [0] and self.first is not None:  # what tells one corpus from another, asked for again and again
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
        """What the thread has read; StreamError if it could not, StreamInterrupted if it takes too long to stop."""
        while not wait([future], timeout=0.5).done:
            if self.stopping():
                raise StreamInterrupted("Stopped while the text was waited for.")
        try:
            return future.result()
        except Exception as error:  # of the hub's clients and of the readers of its files, which share no class
            if type(error) is ValueError:  # our own
                raise
            raise StreamError(
                f"The text could not be read on ({reason(error)}). When it can be, go on with resume=True (--resume)."
            ) from error

    def _submit(self, numbers: tuple) -> Future:
        self.thread = self.thread or Reader()
        return self.thread.submit(self._read, numbers)

    def _read(self, numbers: tuple) -> tuple[Tensor, dict]:
        rows = [self._lane(number % self.count).block(number // self.count) for number in numbers]
        return torch.tensor(rows), self._state()

    def _lane(self, index: int) -> ShardReader:
        if index not in self.lanes:
            self.lanes[index] = ShardReader(self.corpus, index, self.count)
        return self.lanes[index]

    def _state(self) -> dict:
        return {str(index): lane.state() for index, lane in self.lanes.items()}

    def _forget(self) -> None:
        """Drop what was read ahead, and go back to where the last request had ended."""
        if self.ahead:
            for _, future in self.ahead:
                future.cancel()
            self.ahead.clear()
            self._submit_restore(self.served)

    def _submit_restore(self, state: dict) -> None:
        self.thread = self.thread or Reader()
        self._wait(self.thread.submit(self._restore, state))

    def _restore(self, state: dict) -> None:
        self.lanes = {}
        for index, place in state.items():
            self._lane(int(index)).restore(place)

    def state(self) -> dict:
        """Lane → where it stood after the last request that was handed out; JSON."""
        return self.served

    def restore(self, state: dict) -> None:
        """Go on from a :meth:`state`, no matter how many processes it comes from."""
        self._forget()
        self.last, self.served = None, state
        self._submit_restore(state)
