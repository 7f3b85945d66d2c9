"""Who sits in which slot: no call is lost or doubled, prompts are read in order and in bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_infer.errors import ConfigError
from tf_infer.server.slots import Board, Join, Read, SlotLimits, slots_for


def board(slots: int = 2, queue: int = 3, chunk: int = 8, read: int = 8) -> Board[str]:
    return Board(SlotLimits(slots=slots, queue=queue, chunk=chunk, read=read))


def come(line: Board[str], key: str, length: int = 4) -> bool:
    taken = line.enqueue(key)
    line.measured(key, length)
    return taken


def read_turn(line: Board[str]) -> list[Read[str]]:
    """Read as the loop does in one turn."""
    reads: list[Read[str]] = []
    while found := line.next_reads(sum(one.stop - one.start for one in reads)):
        for read in found:
            line.did_read(read.key, read.stop)
        reads += found
    return reads


def test_prompts_join_in_the_order_they_came_into_the_lowest_free_slot() -> None:
    line = board()
    assert all(come(line, key) for key in "abc")
    assert line.join() == (Join("a", 0), Join("b", 1))
    assert line.waiting() == ("c",) and line.join() == ()
    assert line.leave("a") == 0
    assert line.join() == (Join("c", 0),)


def test_the_line_is_bounded_beside_the_free_slots() -> None:
    line = board(slots=2, queue=1)
    assert [come(line, key) for key in "abcd"] == [True, True, True, False]
    line.join()
    assert not come(line, "e")
    line.leave("c")
    assert come(line, "f") and not come(line, "g")
    assert board(slots=1, queue=0).enqueue("a")


def test_nobody_overtakes_one_whose_prompt_is_not_encoded_yet() -> None:
    line = board()
    line.enqueue("a")
    come(line, "b")
    assert line.join() == ()
    line.measured("a", 1)
    assert [join.key for join in line.join()] == ["a", "b"]


def test_a_long_prompt_is_read_in_chunks_while_others_produce() -> None:
    line = board(slots=3, chunk=8, read=5)
    come(line, "short", 3)
    come(line, "long", 20)
    come(line, "none", 0)
    line.join()
    assert read_turn(line) == [Read("short", 0, 0, 3), Read("long", 1, 0, 5)]
    assert line.producing() == ("short", "none")
    assert read_turn(line) == [Read("long", 1, 5, 10)], "the next part does not fit"
    line.leave("short"), line.leave("none")
    assert read_turn(line) == [Read("long", 1, 10, 15)], "nobody waits for more than one reading"
    line.did_read("long", 20)  # the rest was restored
    assert read_turn(line) == [] and line.producing() == ("long",)


def test_prompts_that_fit_into_a_turn_are_read_together() -> None:
    line = board(slots=5, queue=9, chunk=8, read=20)
    for key, length in (("a", 6), ("b", 7), ("c", 5), ("d", 9)):
        come(line, key, length)
    line.join()
    assert line.next_reads() == (Read("a", 0, 0, 6), Read("b", 1, 0, 7), Read("c", 2, 0, 5))
    assert len(read_turn(line)) == 3, "d is not begun for the 2 ids that are left"
    come(line, "e", 3)
    line.join()
    assert read_turn(line) == [Read("d", 3, 0, 8)]
    assert line.next_reads() == (Read("d", 3, 8, 9), Read("e", 4, 0, 3))


def test_a_prompt_is_cut_alike_in_any_company() -> None:
    line = board(chunk=8, read=20)
    come(line, "a", 3)
    come(line, "b", 19)
    line.join()
    assert read_turn(line) == [Read("a", 0, 0, 3), Read("b", 1, 0, 8)]
    assert [read_turn(line), read_turn(line)] == [[Read("b", 1, 8, 16)], [Read("b", 1, 16, 19)]]
    alone = board(chunk=8, read=20)
    come(alone, "b", 19)
    alone.join()
    assert read_turn(alone) == [
        Read("b", 0, 0, 8), Read("b", 0, 8, 16), Read("b", 0, 16, 19)]


def test_slots_come_and_go_only_before_anybody_sits() -> None:
    line = board(slots=9, queue=0)
    assert [come(line, key) for key in "abc"] == [True] * 3
    line.resize(2, 8)
    assert [join.slot for join in line.join()] == [0, 1] and line.waiting() == ("c",)
    with pytest.raises(AssertionError):
        line.resize(3, 8)


def test_a_slot_is_read_forwards() -> None:
    line = board()
    come(line, "a", 4)
    line.join()
    line.did_read("a", 3)
    with pytest.raises(AssertionError):
        line.did_read("a", 2)
    with pytest.raises(AssertionError):
        line.did_read("a", 5)


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"queue": -1}, {"chunk": 0}, {"read": 0}])
def test_limits_that_cannot_be_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"SlotLimits.{next(iter(wrong))}"):
        board(**wrong)


def test_slots_are_bounded_by_memory_but_one_there_is() -> None:
    assert slots_for(0, 8, 100, 1000) == 8
    assert slots_for(0, 8, 300, 1000) == 3
    assert slots_for(2, 8, 300, 1000) == 2
    assert slots_for(99, 8, 0, 1000) == 8
    assert slots_for(4, 8, 3000, 1000) == 1


LIMITS = st.builds(SlotLimits, slots=st.integers(1, 4), queue=st.integers(0, 5),
                   chunk=st.integers(1, 9), read=st.integers(1, 9))
EVENTS = st.lists(st.one_of(
    st.tuples(st.just("come"), st.integers(0, 30)),
    st.tuples(st.just("turn"), st.just(0)),
    st.tuples(st.just("leave"), st.integers(0, 10**6))), max_size=60)


@given(LIMITS, EVENTS)
def test_no_call_is_lost_or_doubled_and_no_slot_holds_two(
        limits: SlotLimits, events: list[tuple[str, int]]) -> None:
    line: Board[int] = Board(limits)
    lengths: dict[int, int] = {}
    came: list[int] = []    # accepted, in order
    joined: list[int] = []  # in order
    gone: set[int] = set()
    done: dict[int, int] = {}
    for number, (kind, value) in enumerate(events):
        if kind == "come":
            waiting, free = len(line.waiting()), limits.slots - len(line.seated())
            taken = line.enqueue(number)
            assert taken is (waiting < limits.queue + free)
            if taken:
                came.append(number)
                lengths[number], done[number] = value, 0
                line.measured(number, value)
        elif kind == "leave" and len(line):
            there = [*line.waiting(), *line.seated()]
            key = there[value % len(there)]
            slot = line.slot(key)
            assert line.leave(key) == slot
            gone.add(key)
        elif kind == "turn":
            joined += [join.key for join in line.join()]
            spent, waited = 0, False
            while reads := line.next_reads(spent):
                waited |= any(done[key] == lengths[key] for key in line.seated())
                for read in reads:
                    assert read.start == done[read.key] < read.stop <= lengths[read.key]
                    assert read.start % limits.part == 0
                    assert read.stop == min(read.start + limits.part, lengths[read.key])
                    assert read.slot == line.slot(read.key)
                    older = [key for key in line.seated() if key < read.key]
                    assert all(done[key] == lengths[key] for key in older)
                    spent += read.stop - read.start
                    done[read.key] = read.stop
                    line.did_read(read.key, read.stop)
            assert spent <= (limits.chunk if waited else limits.read)
            left = [lengths[key] - done[key] for key in line.seated() if done[key] < lengths[key]]
            most = limits.chunk if line.producing() else limits.read
            assert not left or spent + min(left[0], limits.part) > most, "more would have fitted"
            assert set(line.producing()) == {
                key for key in line.seated() if done[key] == lengths[key]}
            assert not line.waiting() or len(line.seated()) == limits.slots
        slots = [line.slot(key) for key in line.seated()]
        assert len(set(slots)) == len(slots) <= limits.slots
        assert all(slot is not None and 0 <= slot < limits.slots for slot in slots)
        assert {*line.waiting(), *line.seated(), *gone} == set(came)
        assert not set(line.waiting()) & set(line.seated())
    assert joined == sorted(joined), "somebody was overtaken"
