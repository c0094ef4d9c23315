"""Scan all spans of layers for where to cut, from the states at the two ends of each.

A *criterion* is a number for each span [m, n); small predicts little damage. :func:`scan_spans` takes states, not a
model; other measurements (such as the KL of skipping) are added by :meth:`SpanScan.add`.
"""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from .criteria import CRITERIA, Depth, Pair, recoupling_among
from .support import checks
from .support.errors import unknown_name_error
from .support.files import atomic_write, file_to_write
from .support.machine import _cores
from .support.progress import progress_bar
from .support.statistics import summary

RESAMPLES = 1000


@dataclass(frozen=True)
class SpanScan:
    """Values of criteria for every span of a model's layers.

    Attributes:
        tables: criterion → ``(3, L+1, L+1)`` float64: ``[0, m, n]`` is its value for span [m, n), ``[1:, m, n]`` the
            ends of its interval; NaN where m ≥ n, where a span was not scanned, and where a criterion has no interval.
        n: number of tokens.
        growth: N → ``(L+1, L+1)``, the recoupling ratio of N tokens, the mean over disjoint subsets of that size.
        duplicates: ``(L+1,)``, the fraction of tokens whose state at a depth equals another token's (at depth 0, equal
            tokens). Ties keep the given pairs, so duplicates alone never raise the recoupling ratio.
        source: fingerprint of the states and settings of the scan.
    """

    tables: dict[str, Tensor]
    n: int
    growth: dict[int, Tensor] = field(default_factory=dict)
    duplicates: Tensor | None = None
    source: str = ""

    def __getitem__(self, criterion: str) -> Tensor:
        """Return the values of a criterion, ``(L+1, L+1)``."""
        return self._table(criterion)[0]

    def _table(self, criterion: str) -> Tensor:
        if criterion not in self.tables:
            raise unknown_name_error("criterion", criterion, self.tables)
        return self.tables[criterion]

    def intervals(self, criterion: str) -> tuple[Tensor, Tensor]:
        """Return the low and high ends of a criterion's intervals, ``(L+1, L+1)`` each."""
        return tuple(self._table(criterion)[1:])

    @property
    def ratios(self) -> Tensor:
        """Recoupling ratios (Euclidean), ``(L+1, L+1)``; ``low`` and ``high`` are their intervals."""
        return self["recoupling"]

    @property
    def low(self) -> Tensor:
        return self.intervals("recoupling")[0]

    @property
    def high(self) -> Tensor:
        return self.intervals("recoupling")[1]

    @property
    def depth(self) -> int:
        """L, the number of layers."""
        return next(iter(self.tables.values())).shape[-1] - 1

    def spans(self, criterion: str | None = None) -> list[tuple[int, int]]:
        """Return the spans (m, n) that have a value."""
        table = self[criterion or next(iter(self.tables))]
        return [tuple(place) for place in (~table.isnan()).nonzero().tolist()]

    def best(self, length: int, criterion: str = "recoupling") -> tuple[int, int]:
        """Return the span (m, n) of ``length`` layers with the smallest value, the first of several.

        Raises:
            ValueError: no span of this length was scanned.
        """
        if not 1 <= length <= self.depth:
            raise ValueError(f"length={length}: spans of this model have 1 to {self.depth} layers.")
        diagonal = self[criterion].diagonal(length)
        if bool(diagonal.isnan().all()):
            raise ValueError(f"Spans of {length} layers were not scanned.")
        start = int(diagonal.nan_to_num(nan=torch.inf).argmin())
        return start, start + length

    def add(self, criterion: str, samples: dict[tuple[int, int], Tensor], level: float = 0.95) -> "SpanScan":
        """Return this scan with one more criterion.

        Args:
            criterion: its name.
            samples: span → ``(N,)`` values whose mean is the criterion, such as the KL of each sequence.
            level: of the bootstrap intervals.
        """
        table = _empty(self.depth + 1)
        found = summary(torch.stack(list(samples.values()), -1), level)
        for (m, n), column in zip(samples, found.T, strict=True):
            table[:, m, n] = column
        return replace(self, tables={**self.tables, criterion: table})

    def save(self, path: str | Path) -> None:
        """Write the scan as JSON, atomically."""
        fields = {
            "tokens": self.n,
            "layers": self.depth,
            "source": self.source,
            "criteria": {name: _by_span(table) for name, table in self.tables.items()},
            "growth": {size: _by_span(table[None]) for size, table in self.growth.items()},
            "duplicates": self.duplicates.tolist() if self.duplicates is not None else None,
        }
        with atomic_write(file_to_write(path)) as partial:
            partial.write_text(json.dumps(fields) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "SpanScan":
        """Read a scan that :meth:`save` wrote.

        Raises:
            ValueError: not a scan, or a truncated file.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            depth, duplicates = fields["layers"] + 1, fields["duplicates"]
            if not (isinstance(depth, int) and depth > 1 and fields["criteria"]):
                raise ValueError("no layers or no criteria")
            return cls(
                tables={name: _table_of(spans, depth) for name, spans in fields["criteria"].items()},
                n=fields["tokens"],
                growth={int(size): _table_of(spans, depth)[0] for size, spans in fields["growth"].items()},
                duplicates=None if duplicates is None else torch.tensor(duplicates, dtype=torch.float64),
                source=fields["source"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise ValueError(f"{path} is not a scan ({error!r}). Give another file, or scan again.") from error


def _empty(depth: int, kinds: int = 3) -> Tensor:
    return torch.full((kinds, depth, depth), float("nan"), dtype=torch.float64)


def _by_span(table: Tensor) -> dict[str, list]:
    """Convert ``(K, L+1, L+1)`` to span → K numbers, NaN as None, which JSON has."""
    spans = (~table[0].isnan()).nonzero().tolist()
    return {f"{m}-{n}": [None if x != x else x for x in table[:, m, n].tolist()] for m, n in spans}


def _table_of(spans: dict[str, list], depth: int) -> Tensor:
    table = _empty(depth)
    for name, numbers in spans.items():
        m, n = map(int, name.split("-"))
        values = [float("nan") if x is None else x for x in numbers]
        table[: len(values), m, n] = torch.tensor(values, dtype=table.dtype)
    return table


@checks.takes(
    states=checks.tensor,
    sizes=checks.several(checks.whole(1), "numbers"),
    lengths=checks.optional(checks.several(checks.whole(), "numbers")),
)
def scan_spans(
    states: Tensor,
    criteria: Iterable[str] = ("recoupling",),
    *,
    sizes: Iterable[int] = (),
    lengths: Iterable[int] | None = None,
    level: float = 0.95,
    path: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> SpanScan:
    """Compute criteria for every span of layers from the states of N tokens at every depth.

    Threads share the work: most of it is the assignment, which releases Python's lock.

    Args:
        states: ``(L+1, N, D)``, the input of layer 0 and the output of each of L layers, as
            :func:`lft_edu.latents.depth_states` samples them (no position 0, no two tokens of one text).
        criteria: names from :data:`lft_edu.criteria.CRITERIA`, or one name.
        sizes: sample sizes, each at most N, for :attr:`SpanScan.growth`.
        lengths: scan spans of these lengths only; all if None.
        level: of the bootstrap intervals.
        path: JSON file to save partial results to; called again with the same arguments, the scan resumes.
        workers: number of threads; one per core if None.
        progress: show a progress bar.

    Raises:
        ValueError: states of another shape or with NaN or infinity, unknown criteria, lengths that no span has, or
            another scan at ``path``.
        OSError: ``path`` cannot be written to.
    """
    criteria = tuple(
        dict.fromkeys(
            [criteria] if isinstance(criteria, str) else checks.several(checks.word, "names")("criteria", criteria)
        )
    )
    sizes, lengths = tuple(sorted(set(sizes))), None if lengths is None else set(lengths)
    _check(states, criteria, sizes, lengths)
    path = None if path is None else file_to_write(path)
    depth = len(states)
    ends = [[n for n in range(m + 1, depth) if lengths is None or n - m in lengths] for m in range(depth)]
    scan = _begin(path, states, criteria, sizes, f"{ends} {level}")
    todo = [m for m in range(depth) if any(bool(scan.tables[criteria[0]][0, m, n].isnan()) for n in ends[m])]
    depths = [Depth(x) for x in states]
    # one torch thread in each of ours: threads that wait for each other are slower than one
    pool = ThreadPoolExecutor(workers or _cores(), initializer=torch.set_num_threads, initargs=(1,))
    with progress_bar(total=sum(map(len, ends)), desc="scan", unit="span", disable=not progress) as bar:
        bar.update(sum(len(spans) for m, spans in enumerate(ends) if m not in todo))
        try:
            work = {pool.submit(_row, depths, m, ends[m], criteria, sizes, level): m for m in todo}
            for done in as_completed(work):
                m = work[done]
                for name, found in done.result().items():
                    table = scan.tables[name] if name in scan.tables else scan.growth[name][None]
                    table[:, m, ends[m]] = found
                bar.update(len(ends[m]))
                if path:
                    scan.save(path)
        finally:
            pool.shutdown(cancel_futures=True)
    return scan


def _row(depths: list[Depth], m: int, ends: list[int], criteria: tuple, sizes: tuple, level: float) -> dict:
    """Compute all S spans that start at layer m: criterion → ``(3, S)``, sample size → ``(1, S)``."""
    found: dict = {name: [] for name in (*criteria, *sizes)}
    for n in ends:
        pair = Pair(depths[m], depths[n])
        for name in criteria:
            found[name].append(CRITERIA[name](pair))
        for size in sizes:
            found[size].append(recoupling_among(pair, size))
    intervals = {name: summary(torch.stack(found[name], -1), level) for name in criteria}
    return intervals | {size: torch.tensor(found[size], dtype=torch.float64)[None] for size in sizes}


def _begin(path: str | Path | None, states: Tensor, criteria: tuple, sizes: tuple, settings: str) -> SpanScan:
    """Return the scan to resume from ``path``, or an empty one."""
    found = hashlib.sha256(states.detach().cpu().float().numpy().tobytes())
    found.update(f"{criteria} {sizes} {settings}".encode())
    source = found.hexdigest()[:16]
    if path and Path(path).exists():
        scan = SpanScan.load(path)
        if scan.source != source:
            raise ValueError(f"{path} is a scan of other states or criteria: give another path, or delete the file.")
        return scan
    return SpanScan(
        tables={name: _empty(len(states)) for name in criteria},
        n=states.shape[1],
        growth={size: _empty(len(states), 1)[0] for size in sizes},
        duplicates=torch.stack([_duplicates(x) for x in states]),
        source=source,
    )


def _check(states: Tensor, criteria: tuple, sizes: tuple, lengths: set | None) -> None:
    if states.ndim != 3 or len(states) < 2:
        raise ValueError(f"states has shape {tuple(states.shape)}: give (L+1, N, D) with at least one layer.")
    if not bool(states.isfinite().all()):
        raise ValueError("The states contain NaN or infinity: load the teacher in float32 or bfloat16 and try again.")
    if not criteria:
        raise ValueError(f"criteria is empty: give at least one of {', '.join(CRITERIA)}.")
    for name in criteria:
        if name not in CRITERIA:
            raise unknown_name_error("criterion", name, CRITERIA)
    if lengths is not None and not (lengths and all(1 <= length < len(states) for length in lengths)):
        raise ValueError(f"lengths={sorted(lengths)}: spans of this model have 1 to {len(states) - 1} layers.")
    for size in sizes:
        if not 1 <= size <= states.shape[1]:
            raise ValueError(f"sizes={sizes}: give sample sizes from 1 to {states.shape[1]}, the number of tokens.")


def _duplicates(x: Tensor) -> Tensor:
    """Return the fraction of rows that equal another row."""
    _, counts = x.detach().cpu().unique(dim=0, return_counts=True)
    return counts[counts > 1].sum().double() / len(x)
