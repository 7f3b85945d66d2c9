"""Which texts run together, how long anybody waits, and that a bad row fails alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_infer.config import BytesConfig, ShapeGrid, WordPieceConfig
from tf_infer.errors import Code, ConfigError
from tf_infer.server.batching import (
    Batch,
    TextLimits,
    Waiting,
    after_failure,
    bytes_per_token,
    limits_for,
    next_batch,
)

LIMITS = TextLimits(max_rows=8, max_tokens=256, run_tokens=0, widths=(16, 32, 64))


def requests(*costs: int, rows: int = 1, key: str = "k") -> list[Waiting]:
    return [Waiting(ticket, key, rows, cost) for ticket, cost in enumerate(costs)]


def test_nobody_waits_no_batch() -> None:
    assert next_batch([], LIMITS) is None


def test_a_single_request_goes_at_once() -> None:
    assert next_batch(requests(20), LIMITS) == Batch((0,), 1, 32)


def test_texts_of_one_width_run_together_in_the_order_they_came() -> None:
    assert next_batch(requests(20, 3, 17, 60, 32, 33), LIMITS) == Batch((0, 2, 4), 3, 32)


def test_whoever_waited_longest_is_first_even_when_others_would_fill_a_batch() -> None:
    assert next_batch(requests(60, *[5] * 8), LIMITS) == Batch((0,), 1, 64)


@pytest.mark.parametrize(("cost", "width"), [(0, 16), (16, 16), (17, 32), (64, 64), (65, 64),
                                             (10**9, 64)])
def test_a_text_has_the_width_that_holds_it_and_the_last_one_when_none_does(
        cost: int, width: int) -> None:
    batch = next_batch(requests(cost, cost), LIMITS)
    assert batch == Batch((0, 1), 2, width)


@pytest.mark.parametrize("other", [0, 16, 33, 99])
def test_a_text_of_another_width_is_left_for_later(other: int) -> None:
    assert next_batch(requests(17, other, 32), LIMITS) == Batch((0, 2), 2, 32)


@pytest.mark.parametrize("cost", [0, 5, 16])
def test_rows_are_bounded(cost: int) -> None:
    assert next_batch(requests(*[cost] * 20), LIMITS) == Batch(tuple(range(8)), 8, 16)


def test_tokens_are_bounded() -> None:
    assert next_batch(requests(*[60] * 20), LIMITS) == Batch((0, 1, 2, 3), 4, 64)


def test_a_request_that_does_not_fit_is_passed_over_and_comes_next() -> None:
    waiting = [Waiting(0, "k", 5, 9), Waiting(1, "k", 4, 9), Waiting(2, "k", 3, 9)]
    assert next_batch(waiting, LIMITS) == Batch((0, 2), 8, 16)
    assert next_batch(waiting[1:2], LIMITS) == Batch((1,), 4, 16)


@pytest.mark.parametrize(("rows", "cost"), [(9, 5), (500, 5), (5, 60), (500, 60), (8, 5)])
def test_a_request_as_large_as_the_limits_or_larger_goes_alone(rows: int, cost: int) -> None:
    waiting = [Waiting(7, "k", rows, cost), *requests(cost, cost)]
    batch = next_batch(waiting, LIMITS)
    assert batch is not None and batch.tickets == (7,) and batch.rows == rows


def test_a_request_without_rows_goes_alone() -> None:
    empty = Waiting(9, "k", 0, 0)
    assert next_batch([empty, *requests(5, 5)], LIMITS) == Batch((9,), 0, 16)
    assert next_batch([*requests(5, 5), empty], LIMITS) == Batch((0, 1), 2, 16)


def test_different_keys_never_share_a_batch() -> None:
    waiting = [Waiting(n, key, 1, 5) for n, key in enumerate("abab")]
    assert next_batch(waiting, LIMITS) == Batch((0, 2), 2, 16)
    assert next_batch(waiting[1:], LIMITS) == Batch((1, 3), 2, 16)


# what one of 16 costs a batch of 32, in padding, against half a run; and one of 32 a batch of 64
@pytest.mark.parametrize(("costs", "run_tokens", "expected"), [
    ((20, 5), 32, Batch((0, 1), 2, 32)),
    ((20, 5), 31, Batch((0,), 1, 32)),
    ((20, 5, 5), 63, Batch((0,), 1, 32)),
    ((20, 5, 5), 64, Batch((0, 1, 2), 3, 32)),
    ((5, 20, 5), 64, Batch((0, 1, 2), 3, 32)),
    ((20, 60), 64, Batch((0, 1), 2, 64)),
    ((20, 60, 20), 127, Batch((0, 2), 2, 32)),
    ((20, 60, 20), 128, Batch((0, 1, 2), 3, 64)),
    ((5, 60, 20), 100, Batch((0, 2), 2, 32)),  # the nearest width first
    ((5, 20, 60), 200, Batch((0, 1, 2), 3, 64)),
])
def test_another_width_runs_along_when_that_saves_half_a_run(
        costs: tuple[int, ...], run_tokens: float, expected: Batch) -> None:
    limits = TextLimits(max_rows=8, max_tokens=256, run_tokens=run_tokens, widths=(16, 32, 64))
    assert next_batch(requests(*costs), limits) == expected


def test_part_of_another_width_never_runs_along() -> None:
    limits = TextLimits(max_rows=4, max_tokens=999, run_tokens=999, widths=(16, 32, 64))
    assert next_batch(requests(20, 5, 5, 5), limits) == Batch((0, 1, 2, 3), 4, 32)
    assert next_batch(requests(20, 5, 5, 5, 5), limits) == Batch((0,), 1, 32)
    assert next_batch(requests(*[20] * 6, 5), limits) == Batch((0, 1, 2, 3), 4, 32)


def test_another_width_waits_while_anybody_of_the_own_width_does() -> None:
    limits = TextLimits(max_rows=4, max_tokens=999, run_tokens=999, widths=(16, 32))
    waiting = [Waiting(0, "k", 2, 20), Waiting(1, "k", 1, 5), Waiting(2, "k", 3, 20)]
    assert next_batch(waiting, limits) == Batch((0,), 2, 32)


def test_a_wider_batch_must_hold_all_of_it() -> None:
    limits = TextLimits(max_rows=8, max_tokens=128, run_tokens=999, widths=(16, 32, 64))
    assert next_batch(requests(20, 20, 60), limits) == Batch((0, 1), 2, 32)
    assert next_batch(requests(20, 60), limits) == Batch((0, 1), 2, 64)


@pytest.mark.parametrize("cost", [5, 99])
@pytest.mark.parametrize(("waiting", "rows"), [
    (1, 1), (2, 1), (3, 3), (7, 7), (8, 8), (9, 8), (16, 8), (17, 17), (31, 31), (40, 32)])
def test_a_compiled_model_is_cut_down_where_two_runs_cost_less_than_padding(
        cost: int, waiting: int, rows: int) -> None:
    limits = TextLimits(max_rows=32, max_tokens=512, run_tokens=32, widths=(16,),
                        row_sizes=(1, 8, 32))
    assert next_batch(requests(*[cost] * waiting), limits) == Batch(tuple(range(rows)), rows, 16)


def test_a_request_is_never_cut_down_itself() -> None:
    limits = TextLimits(max_rows=32, max_tokens=512, run_tokens=0, widths=(16,), row_sizes=(8, 32))
    waiting = [Waiting(0, "k", 9, 5), Waiting(1, "k", 1, 5)]
    assert next_batch(waiting, limits) == Batch((0, 1), 10, 16)
    assert next_batch(waiting[::-1], limits) == Batch((1,), 1, 16)


def test_other_widths_fill_the_rows_that_a_compiled_model_would_pad() -> None:
    limits = TextLimits(max_rows=8, max_tokens=512, run_tokens=0, widths=(16, 32), row_sizes=(8,))
    assert next_batch(requests(20, 20, 5, 5), limits) == Batch((0, 1, 2, 3), 4, 32)
    assert next_batch(requests(20, 20, *[5] * 7), limits) == Batch((0, 1), 2, 32)


def test_a_compiled_model_stays_within_its_tokens_when_padded() -> None:
    limits = TextLimits(max_rows=32, max_tokens=512, run_tokens=9999, widths=(16, 32),
                        row_sizes=(1, 8, 32))
    batch = next_batch(requests(*[20] * 31), limits)  # 16 rows fit, but would be padded to 32
    assert batch == Batch(tuple(range(8)), 8, 32)


def test_the_limits_of_a_model_come_from_its_grid() -> None:
    grid = ShapeGrid(rows=(1, 40), tokens=(8, 24))
    assert limits_for(grid, compiled=False, run_tokens=7) == TextLimits(
        max_rows=40, max_tokens=512, run_tokens=7, widths=(8, 24))
    assert limits_for(grid, compiled=True).row_sizes == (1, 40)


@pytest.mark.parametrize(("run_tokens", "expected"), [
    (0, 512), (32, 512), (50, 800), (59, 944), (5000, 960)])
def test_a_run_that_costs_more_gets_larger_batches_within_the_grid(
        run_tokens: float, expected: int) -> None:
    grid = ShapeGrid(rows=(1, 40), tokens=(8, 24))
    assert limits_for(grid, compiled=False, run_tokens=run_tokens).max_tokens == expected


def test_byte_tokenizers_have_a_token_a_byte() -> None:
    assert bytes_per_token(BytesConfig()) == 1
    assert bytes_per_token(WordPieceConfig()) > 1


@pytest.mark.parametrize("wrong", [
    {"max_rows": 0}, {"max_tokens": 0}, {"run_tokens": -1}, {"widths": ()}, {"widths": (8, 4)},
    {"widths": (0, 4)}, {"row_sizes": (4, 4)}])
def test_limits_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TextLimits(**wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------ any arrivals, any limits

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True).map(
    lambda found: tuple(sorted(found)))
any_limits = st.builds(TextLimits, max_rows=st.integers(1, 12), max_tokens=st.integers(1, 300),
                       run_tokens=st.integers(0, 200), widths=sizes,
                       row_sizes=st.one_of(st.just(()), sizes))
arrivals = st.tuples(st.sampled_from("ab"), st.integers(0, 14), st.integers(0, 50))
# a number: as many workers come free; else a request arrives
events = st.lists(st.one_of(arrivals, arrivals, st.integers(1, 3)), max_size=60)


def width_of(cost: int, limits: TextLimits) -> int:
    return next((width for width in limits.widths if width >= cost), limits.widths[-1])


class World:
    """Requests that arrive, and workers that come free: runs events, checks every batch."""

    def __init__(self, limits: TextLimits) -> None:
        self.limits = limits
        self.waiting: list[Waiting] = []
        self.arrived: list[int] = []
        self.answered: list[int] = []
        self.ahead: dict[int, list[Waiting]] = {}
        self.batches_before: dict[int, int] = {}

    def arrive(self, key: str, rows: int, cost: int) -> None:
        item = Waiting(len(self.arrived), key, rows, cost)
        self.ahead[item.ticket] = [other for other in self.waiting if other.key == key]
        self.batches_before[item.ticket] = 0
        self.waiting.append(item)
        self.arrived.append(item.ticket)

    def work(self) -> None:
        batch = next_batch(self.waiting, self.limits)
        assert (batch is None) == (not self.waiting)
        if batch is None:
            return
        members = [item for item in self.waiting if item.ticket in batch.tickets]
        assert [item.ticket for item in members] == list(batch.tickets), "their order"
        assert members[0] is self.waiting[0], "who waits longest is in it"
        self.check_bounds(batch, members)
        self.answered += batch.tickets
        self.waiting = [item for item in self.waiting if item.ticket not in batch.tickets]
        for item in self.waiting:
            self.batches_before[item.ticket] += item.key == members[0].key

    def check_bounds(self, batch: Batch, members: Sequence[Waiting]) -> None:
        limits, sizes = self.limits, self.limits.row_sizes
        widths = [width_of(item.cost_tokens, limits) for item in members]
        assert len({item.key for item in members}) == 1
        assert batch.width == max(widths)
        assert batch.rows == sum(item.rows for item in members)
        if len(members) == 1:
            return
        assert all(item.rows > 0 for item in members)
        assert batch.rows <= limits.max_rows
        assert batch.rows * batch.width <= limits.max_tokens
        padded = next((size for size in sizes if size >= batch.rows), batch.rows)
        if sizes and sizes[0] <= min(limits.max_rows, limits.max_tokens // batch.width):
            assert padded * batch.width <= limits.max_tokens
        if len(set(widths)) > 1:
            self.check_saving(batch, members, widths)

    def check_saving(self, batch: Batch, members: Sequence[Waiting],
                     widths: Sequence[int]) -> None:
        whole = [item for item in self.waiting if item.key == members[0].key and item.rows
                 and width_of(item.cost_tokens, self.limits) in widths]
        assert whole == list(members), "all of each width"
        apart = sum(self.limits.cost(sum(item.rows for item, at in zip(members, widths)
                                         if at == width), width) for width in set(widths))
        saved = apart - self.limits.cost(batch.rows, batch.width)
        assert 2 * saved >= (len(set(widths)) - 1) * self.limits.run_tokens

    def check_waits(self) -> None:
        for ticket, ahead in self.ahead.items():
            assert self.batches_before[ticket] <= len(ahead)
            if not self.limits.row_sizes and all(item.rows for item in ahead):
                assert self.batches_before[ticket] <= self.bound(ahead)

    def bound(self, ahead: Sequence[Waiting]) -> int:
        rows: dict[int, int] = {}
        for item in ahead:
            width = width_of(item.cost_tokens, self.limits)
            rows[width] = rows.get(width, 0) + item.rows
        return sum(1 + 2 * count // max(1, self.limits.capacity(width))
                   for width, count in rows.items())


@settings(deadline=None)
@given(any_limits, events)
def test_nobody_is_lost_or_answered_twice_and_nobody_waits_for_those_who_come_later(
        limits: TextLimits, happening: list[tuple[str, int, int] | int]) -> None:
    world = World(limits)
    for event in happening:
        if isinstance(event, int):
            for _ in range(event):
                world.work()
        else:
            world.arrive(*event)
    for _ in range(len(world.waiting)):
        world.work()
    assert world.waiting == []
    assert sorted(world.answered) == world.arrived
    world.check_waits()


# ------------------------------------------------------------------ a bad row fails alone


def run_apart(tickets: tuple[int, ...], fails: dict[int, Code]) -> tuple[dict[int, object], int]:
    """Run a batch as the loop does; a run fails with the code of its first bad request."""
    outcomes: dict[int, object] = {}
    batches, runs = [tickets], 0
    while batches:
        batch = batches.pop()
        runs += 1
        failure = next((fails[ticket] for ticket in batch if ticket in fails), None)
        parts = after_failure(batch, failure) if failure is not None else ()
        batches += parts
        if not parts:
            assert not set(batch) & set(outcomes), "answered twice"
            outcomes |= {ticket: failure or f"answer {ticket}" for ticket in batch}
    return outcomes, runs


@settings(deadline=None)
@given(st.integers(1, 40), st.data())
def test_every_request_has_the_outcome_that_it_has_alone_in_few_runs(
        count: int, data: st.DataObject) -> None:
    tickets = tuple(data.draw(st.permutations(range(count))))
    bad = data.draw(st.dictionaries(
        st.integers(0, count - 1),
        st.sampled_from([Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.INTERNAL])))
    outcomes, runs = run_apart(tickets, bad)
    assert outcomes == {ticket: bad.get(ticket, f"answer {ticket}") for ticket in tickets}
    assert runs <= 2 * count - 1
    assert runs <= 1 + 2 * len(bad) * math.ceil(math.log2(count))


def test_halves_keep_the_order() -> None:
    assert after_failure((5, 3, 8), Code.INVALID_ARGUMENT) == ((5, 3), (8,))


@pytest.mark.parametrize("code", [Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNAVAILABLE,
                                  Code.ABORTED])
def test_what_no_row_can_be_blamed_for_is_not_tried_again(code: Code) -> None:
    assert after_failure((1, 2, 3), code) == ()


def test_a_request_alone_is_not_tried_again() -> None:
    assert after_failure((1,), Code.INVALID_ARGUMENT) == ()
