"""Which prompt is in which slot, what is read in this turn, who produces, who leaves. Pure.

The loop of `slot_engine.py` goes round in turns. A turn lets prompts join free slots, reads a part
of those that are not read yet, and lets every row that has been read produce.

 1. First come, first served: prompts join in the order of their arrival, into the lowest free slot,
    and are read in that order.
 2. While somebody produces, a turn reads at most `chunk` ids of prompts, whoever they belong to:
    that is the longest that running rows wait for the prompts of others between two of their
    tokens. A prompt of n ids that is first in the line has been read after ceil(n / part) turns.
    What fits is read together.
 3. A prompt is read in parts that its own ids alone decide: of `part` ids each, the last of what is
    left. Where a prompt is cut may be seen in the last bits of what it makes, and a last bit in a
    rounding to 8 bits, which would be another answer.
 4. A call that comes is refused when `queue` calls wait beside those that free slots will take.
 5. A slot holds one call or none, and a call waits, or has one slot, or is gone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

from tf_infer.config import check

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotLimits:
    """How much there is of everything.

    Attributes:
        slots: rows that run at once.
        queue: calls that may wait for a slot.
        chunk: prompt ids read in a turn in which somebody produces.
        read: ids of one prompt in one reading, what the form can do at once; of all prompts in a
            turn in which nobody produces.
    """

    slots: int
    queue: int
    chunk: int
    read: int

    def __post_init__(self) -> None:
        check(self.slots >= 1, "SlotLimits.slots", ">= 1", self.slots)
        check(self.queue >= 0, "SlotLimits.queue", ">= 0", self.queue)
        check(self.chunk >= 1, "SlotLimits.chunk", ">= 1", self.chunk)
        check(self.read >= 1, "SlotLimits.read", ">= 1", self.read)

    @property
    def part(self) -> int:
        """Ids of a part of a prompt; all parts but the last end at a multiple of it."""
        return min(self.chunk, self.read)


class Join(NamedTuple, Generic[K]):
    """A call that has got a slot."""

    key: K
    slot: int


class Read(NamedTuple, Generic[K]):
    """Ids `start` .. `stop` - 1 of a call's prompt, to be read into its slot."""

    key: K
    slot: int
    start: int
    stop: int


@dataclass(slots=True)
class _Seat:
    slot: int
    length: int  # ids to read before the call may produce
    read: int = 0


class Board(Generic[K]):
    """Who waits and who sits where; see the module. Not for several threads at once.

    Args:
        limits: how much there is of everything.
    """

    def __init__(self, limits: SlotLimits) -> None:
        self.limits = limits
        self._waiting: OrderedDict[K, int | None] = OrderedDict()  # ids to read, once known
        self._seated: OrderedDict[K, _Seat] = OrderedDict()        # in the order they joined
        self._free = list(range(limits.slots))

    def resize(self, slots: int, read: int) -> None:
        """Have so many slots, and read so many ids at once, before anybody has a slot."""
        assert not self._seated, "slots come and go only while nobody sits in them"
        self.limits = replace(self.limits, slots=slots, read=read)
        self._free = list(range(self.limits.slots))

    # ------------------------------------------------------------------ coming

    def full(self) -> bool:
        """Whether a call that came now would be refused."""
        return len(self._waiting) >= self.limits.queue + len(self._free)

    def enqueue(self, key: K) -> bool:
        """Let a call wait, the last in the line; False when it is refused."""
        assert key not in self._waiting and key not in self._seated, "a call comes once"
        if self.full():
            return False
        self._waiting[key] = None
        return True

    def measured(self, key: K, length: int) -> None:
        """Take how many ids of a waiting call are to be read before it can produce, >= 0."""
        if key in self._waiting:
            self._waiting[key] = length

    def join(self) -> tuple[Join[K], ...]:
        """Give free slots to those who have waited longest; one not measured holds up the line."""
        joined = []
        while self._waiting and self._free:
            key, length = next(iter(self._waiting.items()))
            if length is None:
                break
            del self._waiting[key]
            slot = min(self._free)
            self._free.remove(slot)
            self._seated[key] = _Seat(slot, length)
            joined.append(Join(key, slot))
        return tuple(joined)

    # ------------------------------------------------------------------ reading, producing

    def next_reads(self, spent: int = 0) -> tuple[Read[K], ...]:
        """Return what to read next in this turn, all at once; nothing when it has read enough.

        Args:
            spent: ids that this turn has read already.
        """
        most = self.limits.chunk if self._anybody_produces() else self.limits.read
        found: list[Read[K]] = []
        for key, seat in self._seated.items():
            left = seat.length - seat.read
            if not left:
                continue
            count = min(left, self.limits.part - seat.read % self.limits.part)
            if spent + count > most:
                break
            found.append(Read(key, seat.slot, seat.read, seat.read + count))
            spent += count
            if count < left:  # whoever is behind it waits
                break
        return tuple(found)

    def _anybody_produces(self) -> bool:
        return any(seat.read == seat.length for seat in self._seated.values())

    def did_read(self, key: K, stop: int) -> None:
        """Take that a call's first `stop` ids stand in its slot."""
        seat = self._seated[key]
        assert seat.read <= stop <= seat.length, "a slot is read forwards, and not beyond its ids"
        seat.read = stop

    def producing(self) -> tuple[K, ...]:
        """Return who has been read, in the order they joined."""
        return tuple(key for key, seat in self._seated.items() if seat.read == seat.length)

    # ------------------------------------------------------------------ leaving, looking

    def leave(self, key: K) -> int | None:
        """Let a call go, wherever it is; return the slot that is free now, None if it had none."""
        if key in self._waiting:
            del self._waiting[key]
            return None
        slot = self._seated.pop(key).slot
        self._free.append(slot)
        return slot

    def slot(self, key: K) -> int | None:
        """Return a call's slot, None if it has none."""
        seat = self._seated.get(key)
        return None if seat is None else seat.slot

    def waiting(self) -> tuple[K, ...]:
        """Return who waits, the first in the line first."""
        return tuple(self._waiting)

    def seated(self) -> tuple[K, ...]:
        """Return who has a slot, in the order they joined."""
        return tuple(self._seated)

    def __contains__(self, key: object) -> bool:
        return key in self._waiting or key in self._seated

    def __len__(self) -> int:
        return len(self._waiting) + len(self._seated)


def slots_for(wanted: int, most: int, row_bytes: int, cache_bytes: int) -> int:
    """Return how many slots there are.

    Args:
        wanted: by the operator; 0 for as many as there can be.
        most: what the form can run at once.
        row_bytes: of the cache of one slot.
        cache_bytes: of all caches together, at most; a single slot there is always.
    """
    room = cache_bytes // row_bytes if row_bytes > 0 else most
    return max(1, min(wanted or most, most, room))
