"""Counters, histograms and gauges in memory, and the page that shows them to Prometheus.

Two kinds of names live side by side. TensorFlow's are paths ("/tensorflow/serving/request_count"),
which its page writes with colons (MO05) and without help; ours are written as they are. Every
family holds a bounded number of label sets: what comes after is counted under `OTHER`.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Union

Labels = tuple[str, ...]
Number = Union[int, float]

OTHER = "(other)"
MAX_LABEL_SETS = 1000
CONTENT_TYPE = "text/plain"  # MO04


def exponential(scale: float, growth: float, count: int) -> tuple[float, ...]:
    """Return `count` limits, each `growth` times the one before, as TensorFlow computes them."""
    limits, bound = [], scale
    for _ in range(count):
        limits.append(bound)
        bound *= growth
    return tuple(limits)


class Family:
    """One metric: a name, and a value for every set of label values.

    Args:
        name: TensorFlow's path, or a name of ours.
        help: one line; empty for TensorFlow's, whose page has none.
        labels: their names, in the order they are written.
        max_label_sets: more are counted together, every label `OTHER`.
    """

    kind: Literal["counter", "gauge", "histogram"]

    def __init__(self, name: str, help: str = "", labels: Sequence[str] = (), *,
                 max_label_sets: int = MAX_LABEL_SETS) -> None:
        self.name, self.help, self.labels = name, help, tuple(labels)
        self._max = max_label_sets
        self._lock = threading.Lock()
        self._cells: dict[Labels, Any] = {}

    def forget(self, **values: str) -> None:
        """Drop every label set that has all these values."""
        wanted = [(self.labels.index(label), value) for label, value in values.items()]
        with self._lock:
            for labels in [labels for labels in self._cells
                           if all(labels[place] == value for place, value in wanted)]:
                del self._cells[labels]

    def lines(self) -> Iterator[str]:
        """Yield the family's lines of the page."""
        name = exposed(self.name)
        if self.help:
            yield f"# HELP {name} {self.help}"
        yield f"# TYPE {name} {self.kind}"
        yield from self._samples(name)

    def _samples(self, name: str) -> Iterator[str]:
        raise NotImplementedError

    def _admitted(self, labels: Labels, held: int) -> Labels:
        return labels if held < self._max else (OTHER,) * len(self.labels)


class Counter(Family):
    """A number that only grows, for each set of label values."""

    kind = "counter"

    def __init__(self, name: str, help: str = "", labels: Sequence[str] = (), *,
                 max_label_sets: int = MAX_LABEL_SETS) -> None:
        super().__init__(name, help, labels, max_label_sets=max_label_sets)
        if not labels:
            self._cells[()] = 0

    def add(self, labels: Labels = (), amount: int = 1) -> None:
        """Let one value grow."""
        with self._lock:
            cells = self._cells
            if labels not in cells:
                labels = self._admitted(labels, len(cells))
            cells[labels] = cells.get(labels, 0) + amount

    def total(self) -> int:
        """Return the sum over all label sets (MS17)."""
        with self._lock:
            total: int = sum(self._cells.values())
        return total

    def _samples(self, name: str) -> Iterator[str]:
        with self._lock:
            cells = dict(self._cells)
        for labels in sorted(cells):
            yield f"{name}{{{_pairs(self.labels, labels)}}} {cells[labels]}"


class Histogram(Family):
    """How many values fell below each limit, for each set of label values.

    Args:
        limits: ascending; what is beyond the last is counted too.
        inclusive: a value that equals a limit belongs below it, as Prometheus says of `le`.
            TensorFlow puts it above.
    """

    kind = "histogram"

    def __init__(self, name: str, help: str = "", labels: Sequence[str] = (), *,
                 limits: Sequence[float], inclusive: bool = True,
                 max_label_sets: int = MAX_LABEL_SETS) -> None:
        super().__init__(name, help, labels, max_label_sets=max_label_sets)
        self._limits = tuple(limits)
        self._place = bisect_left if inclusive else bisect_right
        self._ends = [*(f"{limit:g}" for limit in self._limits), "+Inf"]
        if not labels:
            self._cells[()] = self._empty()

    def observe(self, labels: Labels, value: Number) -> None:
        """Count one value."""
        bucket = self._place(self._limits, value)
        with self._lock:
            cell = self._cells.get(labels)
            if cell is None:
                labels = self._admitted(labels, len(self._cells))
                cell = self._cells.setdefault(labels, self._empty())
            cell[bucket] += 1
            cell[-1] += value

    def _empty(self) -> list[Number]:
        """Return a cell: the counts of the buckets, then the sum."""
        return [0] * (len(self._ends) + 1)

    def _samples(self, name: str) -> Iterator[str]:
        with self._lock:
            cells = {labels: list(cell) for labels, cell in self._cells.items()}
        for labels in sorted(cells):
            *counts, total = cells[labels]
            pairs = _pairs(self.labels, labels)
            before = f"{name}_bucket{{{pairs}{',' if pairs else ''}le=\""
            below: Number = 0
            for end, count in zip(self._ends, counts):
                below += count
                yield f'{before}{end}"}} {below}'
            yield f"{name}_sum{{{pairs}}} {total}"
            yield f"{name}_count{{{pairs}}} {below}"


class Gauge(Family):
    """Values that are asked for when the page is.

    Args:
        read: label values -> number.
        kind: "counter" for values that only grow, counted elsewhere.
    """

    def __init__(self, name: str, help: str, labels: Sequence[str],
                 read: Callable[[], Mapping[Labels, Number]], *,
                 kind: Literal["counter", "gauge"] = "gauge") -> None:
        super().__init__(name, help, labels)
        self._read, self.kind = read, kind

    def _samples(self, name: str) -> Iterator[str]:
        values = self._read()
        for labels in sorted(values):
            yield f"{name}{{{_pairs(self.labels, labels)}}} {values[labels]}"


def page(families: Iterable[Family]) -> bytes:
    """Return what Prometheus reads, sorted by name."""
    lines = [line for family in sorted(families, key=lambda family: family.name)
             for line in family.lines()]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def exposed(name: str) -> str:
    """Return a metric's name on the page (MO05)."""
    clean = re.sub(r"[^a-zA-Z0-9_]", ":", name)
    return f"_{clean}" if clean[:1].isdigit() else clean


def _pairs(names: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values))


def _escaped(value: str) -> str:
    """Return a label's value as it is written (MO12); a line break would let it forge lines."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
