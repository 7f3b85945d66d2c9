"""TensorFlow Serving's batching: parameters, and the queue driven by a clock of the test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_infer.errors import Code, InvalidRequest, ServingError
from tf_infer.server.serving_batching import (
    PER_MODEL_FILE,
    BatchingParameters,
    Piece,
    Queue,
    QueuedBatch,
    drop_expired,
    enqueue,
    next_queue,
    padded_rows,
    parameters_from,
    per_model_parameters,
    read_parameters,
    ready_at,
    take,
    timed_out,
    timeout_s,
    withdraw,
)
from tf_infer.wire import serving_pb2


def parsed(text: str) -> BatchingParameters:
    return parameters_from(text_format.Parse(text, serving_pb2.BatchingParameters()))


def filled(queue: Queue, *rows: int, now_s: float = 0.0) -> Queue:
    """Return the queue with requests of so many rows, their tickets counted on."""
    count = sum(len(batch.pieces) for batch in queue.batches)
    for ticket, number in enumerate(rows, start=count):
        queue = enqueue(queue, Piece(ticket, 0, number), now_s=now_s)
    return queue


def tickets(batch: QueuedBatch | None) -> list[int] | None:
    return None if batch is None else [piece.ticket for piece in batch.pieces]


# ------------------------------------------------------------------ parameters


def test_BA03_defaults() -> None:
    assert parsed("") == BatchingParameters(
        max_batch_size=1000, batch_timeout_micros=0, max_enqueued_batches=10, num_batch_threads=0,
        allowed_batch_sizes=(), pad_variable_length_inputs=False,
        enable_large_batch_splitting=False)


def test_BA02_every_parameter_is_read_wrapped_or_bare(tmp_path: Path) -> None:
    path = tmp_path / "batching.txt"
    path.write_text("""
        max_batch_size { value: 8 }  batch_timeout_micros { value: 2500 }
        max_enqueued_batches { value: 3 }  num_batch_threads { value: 2 }
        thread_pool_name { value: "pool" }  allowed_batch_sizes: 2  allowed_batch_sizes: 8
        pad_variable_length_inputs: true  enable_large_batch_splitting { value: true }
        max_execution_batch_size { value: 4 }""")
    found = read_parameters(path)
    assert found == BatchingParameters(
        max_batch_size=8, batch_timeout_micros=2500, max_enqueued_batches=3, num_batch_threads=2,
        thread_pool_name="pool", allowed_batch_sizes=(2, 8), pad_variable_length_inputs=True,
        enable_large_batch_splitting=True, max_execution_batch_size=4)
    assert found.batch_timeout_s == 0.0025
    assert found.batch_rows == 4


def test_BA02_a_bare_number_does_not_parse(tmp_path: Path) -> None:
    path = tmp_path / "batching.txt"
    path.write_text("max_batch_size: 8")
    with pytest.raises(InvalidRequest, match="Invalid protobuf file"):
        read_parameters(path)


@pytest.mark.parametrize(("text", "expected"), [
    ("num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
    ("num_batch_threads { value: -1 }", "num_batch_threads must be positive; was -1"),
    ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be non-negative; was -1"),
    ("max_batch_size { value: 0 }", "must be positive; was 0"),
    ("max_batch_size { value: -4 }", "must be positive; was -4"),
    ("max_enqueued_batches { value: 0 }", "max_enqueued_batches must be positive; was 0"),
    ("max_execution_batch_size { value: 0 }", "max_execution_batch_size must be positive; was 0"),
    ("max_batch_size { value: 4 } enable_large_batch_splitting { value: true } "
     "max_execution_batch_size { value: 5 }", "greater than or equal to max_execution_batch_size"),
])
def test_BA19_impossible_parameters_are_refused(text: str, expected: str) -> None:
    with pytest.raises(InvalidRequest, match=expected) as caught:
        parsed(text)
    assert caught.value.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(("text", "entry", "most"), [
    ("max_batch_size { value: 8 } allowed_batch_sizes: [2, 4]", 4, 8),
    ("max_batch_size { value: 4 } allowed_batch_sizes: [2, 8]", 8, 4),
    ("allowed_batch_sizes: [2, 4]", 4, 1000),
])
def test_BA08_the_last_allowed_size_must_be_the_largest_batch(
        text: str, entry: int, most: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(text)
    assert caught.value.details == (
        "Last entry in allowed_batch_sizes must match max_batch_size; "
        f"last entry was {entry}; expected {most}")


def test_BA20_a_version_has_its_own_parameters_and_the_threads_of_the_server(
        tmp_path: Path) -> None:
    server = BatchingParameters(max_batch_size=64, num_batch_threads=3, thread_pool_name="all")
    (tmp_path / PER_MODEL_FILE).write_text(
        'max_batch_size { value: 5 } num_batch_threads { value: 9 }')
    assert per_model_parameters(tmp_path, server) == BatchingParameters(
        max_batch_size=5, num_batch_threads=3, thread_pool_name="all")


def test_BA20_a_version_without_parameters_is_not_batched(tmp_path: Path) -> None:
    assert per_model_parameters(tmp_path, BatchingParameters()) is None


def test_BA20_impossible_parameters_of_a_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / PER_MODEL_FILE).write_text("max_batch_size { value: 0 }")
    with pytest.raises(InvalidRequest, match="must be positive"):
        per_model_parameters(tmp_path, BatchingParameters())


# ------------------------------------------------------------------ the queue

FOUR = BatchingParameters(max_batch_size=4, batch_timeout_micros=1_000_000)


def test_BA04_a_request_of_more_rows_than_a_batch_is_refused() -> None:
    with pytest.raises(ServingError) as caught:
        filled(Queue(FOUR), 5)
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert caught.value.details == "Task size 5 is larger than maximum input batch size 4"


def test_BA05_a_full_batch_runs_at_once() -> None:
    batch, rest = take(filled(Queue(FOUR), 1, 3), now_s=0.0)
    assert tickets(batch) == [0, 1]
    assert rest == Queue(FOUR)


def test_BA05_a_batch_that_is_not_full_runs_after_the_timeout_of_its_first_request() -> None:
    queue = filled(filled(Queue(FOUR), 1, now_s=10.0), 1, now_s=10.7)
    assert ready_at(queue) == 11.0
    assert take(queue, now_s=10.9) == (None, queue)
    assert tickets(take(queue, now_s=11.0)[0]) == [0, 1]


def test_BA05_without_a_timeout_whatever_waits_runs_at_once() -> None:
    queue = filled(Queue(BatchingParameters()), 1, now_s=3.0)
    assert tickets(take(queue, now_s=3.0)[0]) == [0]


def test_BA05_a_request_that_does_not_fit_closes_the_batch() -> None:
    queue = filled(Queue(FOUR), 3, 2)
    first, rest = take(queue, now_s=0.0)
    assert tickets(first) == [0]
    assert take(rest, now_s=0.5)[0] is None, "the open batch keeps its time"
    assert tickets(take(rest, now_s=1.0)[0]) == [1]


def test_a_queue_that_closes_waits_for_nothing() -> None:
    assert tickets(take(filled(Queue(FOUR), 1), now_s=0.0, closing=True)[0]) == [0]
    assert take(Queue(FOUR), now_s=0.0, closing=True) == (None, Queue(FOUR))
    assert ready_at(Queue(FOUR)) is None


def test_BA06_a_full_queue_refuses_with_UNAVAILABLE() -> None:
    queue = filled(Queue(replace(FOUR, max_enqueued_batches=2)), 4, 3)
    with pytest.raises(ServingError) as caught:
        filled(queue, 2)
    assert caught.value.code == Code.UNAVAILABLE
    assert caught.value.details == (
        "The batch scheduling queue to which this task was submitted is full; "
        "currently 2 batches enqueued and max_enqueued_batches is 2")
    assert [batch.rows for batch in filled(queue, 1).batches] == [4, 4], "what fits is taken"
    _, rest = take(queue, now_s=0.0)
    assert [batch.rows for batch in filled(rest, 2).batches] == [3, 2], "a batch has left"


SPLITTING = BatchingParameters(max_batch_size=10, batch_timeout_micros=1_000_000,
                               max_enqueued_batches=3, enable_large_batch_splitting=True,
                               max_execution_batch_size=4)


def test_BA21_a_large_request_fills_the_open_batch_and_goes_on_in_the_next() -> None:
    queue = filled(Queue(SPLITTING), 3, 6)
    assert [batch.pieces for batch in queue.batches] == [
        (Piece(0, 0, 3), Piece(1, 0, 1)), (Piece(1, 1, 4),), (Piece(1, 5, 1),)]


def test_BA21_a_request_after_a_full_batch_starts_a_new_one() -> None:
    queue = filled(Queue(SPLITTING), 4, 5)
    assert [batch.pieces for batch in queue.batches] == [
        (Piece(0, 0, 4),), (Piece(1, 0, 4),), (Piece(1, 4, 1),)]


def test_BA21_requests_up_to_max_batch_size_are_taken_and_no_larger_ones() -> None:
    assert [batch.rows for batch in filled(Queue(SPLITTING), 10).batches] == [4, 4, 2]
    with pytest.raises(InvalidRequest, match="Task size 11 is larger than maximum input batch "
                                             "size 10"):
        filled(Queue(SPLITTING), 11)


def test_BA06_BA21_a_request_that_does_not_fit_into_the_queue_is_refused_whole() -> None:
    queue = filled(Queue(SPLITTING), 4, 4, 2)
    with pytest.raises(ServingError) as caught:
        filled(queue, 3)
    assert caught.value.code == Code.UNAVAILABLE
    assert caught.value.details == (
        "The batch scheduling queue to which this task was submitted is full; task size is 3 but "
        "scheduling capacity is only 2 (num_enqueued_batches=3, max_enqueued_batches=3, "
        "open_batch_size=2, max_execution_batch_size=4)")
    assert [batch.rows for batch in filled(queue, 2).batches] == [4, 4, 4]


def test_BA21_without_a_size_of_its_own_a_batch_is_as_large_as_a_request() -> None:
    parameters = replace(SPLITTING, max_execution_batch_size=0)
    assert [batch.rows for batch in filled(Queue(parameters), 6, 6).batches] == [10, 2]


def test_BA21_max_execution_batch_size_alone_splits_nothing() -> None:
    parameters = replace(SPLITTING, enable_large_batch_splitting=False)
    assert [batch.rows for batch in filled(Queue(parameters), 6, 6).batches] == [6, 6]


def test_BA25_a_request_without_rows_waits_and_runs_like_any_other() -> None:
    queue = filled(Queue(FOUR), 0, 4, 0)
    assert tickets(take(queue, now_s=0.0)[0]) == [0, 1, 2]


def test_BA17_only_requests_whose_time_ran_out_are_dropped() -> None:
    early, late, calm = Piece(0, 0, 1, 5.0), Piece(1, 0, 1, 7.0), Piece(2, 0, 1)
    batch = QueuedBatch((early, late, calm), 3, 1.0)
    assert drop_expired(batch, now_s=4.9) == ((early, late, calm), ())
    assert drop_expired(batch, now_s=5.0) == ((late, calm), (early,))
    assert drop_expired(batch, now_s=99.0) == ((calm,), (early, late))


def test_BA17_their_answer_is_RESOURCE_EXHAUSTED() -> None:
    assert timed_out().code == Code.RESOURCE_EXHAUSTED
    assert timed_out().details == "Run() timeout exceeded while waiting in batching queue"


@pytest.mark.parametrize(("deadlines", "expected"), [
    ([5.0], 3.0), ([5.0, 9.0, 6.0], 7.0), ([5.0, None], None), ([None], None)])
def test_BA18_a_batch_has_the_largest_time_left(
        deadlines: list[float | None], expected: float | None) -> None:
    assert timeout_s(deadlines, now_s=2.0) == expected


@pytest.mark.parametrize(("rows", "expected"), [(1, 2), (2, 2), (3, 4), (5, 8), (9, 9)])
def test_BA07_a_batch_is_padded_to_the_next_allowed_size(rows: int, expected: int) -> None:
    assert padded_rows(rows, (2, 4, 8)) == expected
    assert padded_rows(rows, ()) == rows


def test_BA24_free_threads_go_round_the_queues() -> None:
    ready, slow, empty = filled(Queue(FOUR), 4), filled(Queue(FOUR), 1), Queue(FOUR)
    queues = [ready, empty, slow, ready]
    assert [next_queue(queues, start, now_s=0.0) for start in range(4)] == [0, 3, 3, 3]
    assert [next_queue(queues, start, now_s=1.0) for start in range(4)] == [0, 2, 2, 3]
    assert next_queue([ready, empty, slow], 1, now_s=0.5) == 0
    assert next_queue([empty, slow], 1, now_s=0.5) is None
    assert next_queue([], 0, now_s=0.0) is None


def test_a_request_whose_caller_has_gone_leaves_the_queue_with_all_its_pieces() -> None:
    queue = filled(Queue(SPLITTING), 1, 8, 1)
    left = withdraw(queue, {1})
    assert [batch.pieces for batch in left.batches] == [(Piece(0, 0, 1),), (Piece(2, 0, 1),)]
    assert [batch.rows for batch in left.batches] == [1, 1]
    assert withdraw(left, {0, 2}) == Queue(SPLITTING)
    assert withdraw(queue, {7}) == queue


def test_a_batch_that_lost_a_request_keeps_its_time() -> None:
    queue = filled(filled(Queue(FOUR), 1, now_s=5.0), 1, now_s=5.5)
    assert ready_at(withdraw(queue, {0})) == 6.0


# ------------------------------------------------------------------ anything that happens

parameters = st.builds(
    BatchingParameters, max_batch_size=st.integers(1, 12), batch_timeout_micros=st.sampled_from(
        [0, 1_000_000, 3_000_000]), max_enqueued_batches=st.integers(1, 4),
    enable_large_batch_splitting=st.booleans(), max_execution_batch_size=st.integers(0, 12)).map(
        lambda found: replace(found, max_execution_batch_size=min(
            found.max_execution_batch_size, found.max_batch_size)))
# rows of a request that comes, "thread" when one is free, "gone" when the last caller gives up
events = st.lists(st.one_of(st.integers(0, 14), st.integers(0, 4), st.sampled_from(
    ["thread", "second", "gone"])), max_size=60)


@settings(deadline=None)
@given(parameters, events)
def test_every_row_that_is_taken_runs_once_in_order_and_within_bounds(
        found: BatchingParameters, happening: list[int | str]) -> None:
    queue, now_s = Queue(found), 0.0
    expected: dict[int, int] = {}
    ran: dict[int, list[int]] = {}
    arrived: dict[int, float] = {}
    served: list[int] = []

    def serve(*, closing: bool = False) -> bool:
        nonlocal queue
        batch, queue = take(queue, now_s=now_s, closing=closing)
        if batch is None:
            for waiting in queue.batches[:1]:
                assert waiting.rows < found.batch_rows
                assert all(now_s - arrived[piece.ticket] < found.batch_timeout_s
                           for piece in waiting.pieces)
            return False
        assert batch.pieces and batch.rows == sum(piece.rows for piece in batch.pieces)
        assert batch.rows <= found.batch_rows
        for piece in batch.pieces:
            ran[piece.ticket] += range(piece.start, piece.start + piece.rows)
            served.append(piece.ticket)
        return True

    for ticket, event in enumerate(happening):
        if event == "thread":
            serve()
        elif event == "second":
            now_s += 1.0
        elif event == "gone":
            if expected:
                gone = max(expected)
                queue = withdraw(queue, {gone})
                assert all(piece.ticket != gone for batch in queue.batches
                           for piece in batch.pieces)
                del expected[gone]
        else:
            assert isinstance(event, int)
            before = queue
            try:
                queue = enqueue(queue, Piece(ticket, 0, event), now_s=now_s)
            except ServingError as error:
                assert queue == before
                too_large = event > found.max_batch_size
                assert error.code == (Code.INVALID_ARGUMENT if too_large else Code.UNAVAILABLE)
                continue
            expected[ticket], ran[ticket], arrived[ticket] = event, [], now_s
        assert len(queue.batches) <= found.max_enqueued_batches
    while serve(closing=True):
        pass
    assert queue == Queue(found)
    assert all(ran[ticket] == list(range(count)) for ticket, count in expected.items())
    assert served == sorted(served), "first come, first served"
