"""Where to cut? Everything that might tell, for every span of layers, from the states at its two ends.

A *criterion* is a number for each span [m, n), small where cutting promises to do little harm. Nothing here knows a
teacher: :func:`scan_spans` is given states, and other measurements (such as the damage of skipping) are added by
:meth:`SpanScan.add`.
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
from .support.errors import unknown_name_error
from .support.files import atomic_write
from .support.machine import _cores
from .support.statistics import summary

RESAMPLES = 1000


@dataclass(frozen=True)
class SpanScan:
    """Criteria of spans.

    Attributes:
        tables: criterion → ``(3, L+1, L+1)`` float64: its value for span [m, n) at ``[0, m, n]``, then the ends of its
            interval; NaN where m ≥ n, where a span was not scanned, and where a criterion has no interval.
        n: tokens.
        growth: N → ``(L+1, L+1)``, the recoupling ratio among N of these tokens, mean over as many draws as they give.
        duplicates: ``(L+1,)``, the share of tokens whose state at a depth is another's, too (the same token at depth
            0). Ties go to the given pairs, so duplicates alone never raise the recoupling ratio.
        source: fingerprint of the states and settings it was made from.
    """

    tables: dict[str, Tensor]
    n: int
    growth: dict[int, Tensor] = field(default_factory=dict)
    duplicates: Tensor | None = None
    source: str = ""

    def __getitem__(self, criterion: str) -> Tensor:
        """The values of a criterion, ``(L+1, L+1)``."""
        return self._table(criterion)[0]

    def _table(self, criterion: str) -> Tensor:
        if criterion not in self.tables:
            raise unknown_name_error("criterion", criterion, self.tables)
        return self.tables[criterion]

    def intervals(self, criterion: str) -> tuple[Tensor, Tensor]:
        """Low and high ends of a criterion's intervals, ``(L+1, L+1)`` each."""
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
        """The spans (m, n) for which there is a value."""
        table = self[criterion or next(iter(self.tables))]
        return [tuple(place) for place in (~table.isnan()).nonzero().tolist()]

    def best(self, length: int, criterion: str = "recoupling") -> tuple[int, int]:
        """The span of ``length`` layers with the least value; the first of several."""
        if not 1 <= length <= self.depth:
            raise ValueError(f"length={length}: spans of this model have 1 to {self.depth} layers.")
        diagonal = self[criterion].diagonal(length)
        if bool(diagonal.isnan().all()):
            raise ValueError(f"Spans of {length} layers were not scanned.")
        start = int(diagonal.nan_to_num(nan=torch.inf).argmin())
        return start, start + length

    def add(self, criterion: str, samples: dict[tuple[int, int], Tensor], level: float = 0.95) -> "SpanScan":
        """This scan with one more criterion.

        Args:
            samples: span → ``(N,)`` values whose mean is the criterion, such as the KL of each sequence that
                :func:`lft_edu.skipping.skip_kl` returns.
        """
        table = _empty(self.depth + 1)
        found = summary(torch.stack(list(samples.values()), -1), level)
        for (m, n), column in zip(samples, found.T, strict=True):
            table[:, m, n] = column
        return replace(self, tables={**self.tables, criterion: table})

    def save(self, path: str | Path) -> None:
        """Write one JSON file, whole or not at all."""
        fields = {
            "tokens": self.n,
            "layers": self.depth,
            "source": self.source,
            "criteria": {name: _by_span(table) for name, table in self.tables.items()},
            "growth": {size: _by_span(table[None]) for size, table in self.growth.items()},
            "duplicates": self.duplicates.tolist() if self.duplicates is not None else None,
        }
        with atomic_write(Path(path)) as partial:
            partial.write_text(json.dumps(fields) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "SpanScan":
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: something else, or half a file.
        """
        try:
            fields = json.loads(Path(path).read_text())
            depth, duplicates = fields["layers"] + 1, fields["duplicates"]
            return cls(
                tables={name: _table_of(spans, depth) for name, spans in fields["criteria"].items()},
                n=fields["tokens"],
                growth={int(size): _table_of(spans, depth)[0] for size, spans in fields["growth"].items()},
                duplicates=None if duplicates is None else torch.tensor(duplicates, dtype=torch.float64),
                source=fields["source"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} holds no scan ({error!r}). Give another file, or scan again.") from error


def _empty(depth: int, kinds: int = 3) -> Tensor:
    return torch.full((kinds, depth, depth), float("nan"), dtype=torch.float64)


def _by_span(table: Tensor) -> dict[str, list]:
    """``(K, L+1, L+1)`` → span → its K numbers; JSON knows no NaN."""
    spans = (~table[0].isnan()).nonzero().tolist()
    return {f"{m}-{n}": [None if x != x else x for x in table[:, m, n].tolist()] for m, n in spans}


def _table_of(spans: dict[str, list], depth: int) -> Tensor:
    table = _empty(depth)
    for name, numbers in spans.items():
        m, n = map(int, name.split("-"))
        values = [float("nan") if x is None else x for x in numbers]
        table[: len(values), m, n] = torch.tensor(values, dtype=table.dtype)
    return table


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
    """Criteria for every span of layers, from the states of N tokens at every depth.

    A Gram matrix a span serves all distances, every sample size and the criterion of meeting; what belongs to one depth
    is computed once. Threads share the work: the assignment, most of it, runs outside Python's lock.

    Args:
        states: ``(L+1, N, D)``: the states of N tokens entering layer 0, 1, … and leaving the last, as
            :func:`lft_edu.latents.depth_states` draws them (no position 0, no two tokens of one text).
        criteria: names from :data:`lft_edu.criteria.CRITERIA`.
        sizes: numbers of tokens, each at most N, to show how the recoupling ratio grows with.
        lengths: only spans of these lengths; all, if None.
        level: of the intervals.
        path: a JSON file that finished parts are written to; called again with the same states, the scan goes on.
        workers: threads; as many as there are cores, if None.

    Returns:
        A :class:`SpanScan`.

    Raises:
        ValueError: states of another shape, with NaN or infinity; unknown criteria; ``path`` holds another scan.
    """
    from tqdm.auto import tqdm

    criteria, sizes = tuple(criteria), tuple(sorted(sizes))
    _check(states, criteria, sizes)
    depth = len(states)
    ends = [[n for n in range(m + 1, depth) if lengths is None or n - m in lengths] for m in range(depth)]
    scan = _begin(path, states, criteria, sizes, f"{ends} {level}")
    todo = [m for m in range(depth) if any(bool(scan.tables[criteria[0]][0, m, n].isnan()) for n in ends[m])]
    depths = [Depth(x) for x in states]
    # one thread of torch's in each of ours: two that wait for each other are slower than one
    pool = ThreadPoolExecutor(workers or _cores(), initializer=torch.set_num_threads, initargs=(1,))
    with tqdm(total=sum(map(len, ends)), desc="scan", unit="span", disable=not progress) as bar:
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
    """All spans that start at layer m: criterion → ``(3, S)``, and number of tokens → ``(1, S)``."""
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
    """The scan to go on with: what ``path`` holds already, or an empty one."""
    source = hashlib.sha256(states.detach().cpu().float().numpy().tobytes())
    source.update(f"{criteria} {sizes} {settings}".encode())
    source = source.hexdigest()[:16]
    if path and Path(path).exists():
        scan = SpanScan.load(path)
        if scan.source != source:
            raise ValueError(f"{path} holds a scan of other states or criteria: give another path, or delete it.")
        return scan
    return SpanScan(
        tables={name: _empty(len(states)) for name in criteria},
        n=states.shape[1],
        growth={size: _empty(len(states), 1)[0] for size in sizes},
        duplicates=torch.stack([_duplicates(x) for x in states]),
        source=source,
    )


def _check(states: Tensor, criteria: tuple, sizes: tuple) -> None:
    if states.ndim != 3 or len(states) < 2:
        raise ValueError(f"states has shape {tuple(states.shape)}: give (L+1, N, D) with at least one layer.")
    if not bool(states.isfinite().all()):
        raise ValueError("The states hold NaN or infinity: load the teacher in float32 or bfloat16 and try again.")
    if not criteria:
        raise ValueError(f"No criteria: give at least one of {', '.join(CRITERIA)}.")
    for name in criteria:
        if name not in CRITERIA:
            raise unknown_name_error("criterion", name, CRITERIA)
    for size in sizes:
        if not 1 <= size <= states.shape[1]:
            raise ValueError(f"sizes={sizes}: there are {states.shape[1]} tokens; give numbers from 1 to that.")


def _duplicates(x: Tensor) -> Tensor:
    """Share of rows that equal another row."""
    _, counts = x.detach().cpu().unique(dim=0, return_counts=True)
    return counts[counts > 1].sum().double() / len(x)
