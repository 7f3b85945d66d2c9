"""Saved beginnings of prompts: the longest is found, memory is bounded, the least used goes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tf_infer.server.prefixes import Prefixes

BLOCK = 4


def ids(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def saved(text: str) -> np.ndarray:
    """A stand-in for what a slot holds: 10 bytes an id."""
    return np.zeros(10 * len(text), np.uint8)


def holding(most_bytes: int, *texts: str) -> tuple[Prefixes[np.ndarray], list[np.ndarray]]:
    prefixes: Prefixes[np.ndarray] = Prefixes(most_bytes, BLOCK)
    kept = [saved(text) for text in texts]
    for text, one in zip(texts, kept):
        prefixes.add(ids(text), one)
    return prefixes, kept


def test_the_longest_common_beginning_is_found_in_whole_blocks() -> None:
    prefixes, kept = holding(1000, "aaaabbbbcccc", "aaaadddd")
    for text, place, length in [("aaaabbbbccccz", 0, 12), ("aaaabbbbccc", 0, 8),
                                ("aaaaddddbbbb", 1, 8)]:
        found = prefixes.find(ids(text))
        assert found is not None and found.saved is kept[place] and found.length == length
    assert prefixes.find(ids("aaa")) is None and prefixes.find(ids("baaaabbbb")) is None
    # the same block at another place is another beginning
    assert prefixes.find(ids("bbbbcccc")) is None


def test_what_is_saved_already_is_not_worth_saving_again() -> None:
    prefixes, _ = holding(1000, "aaaabbbb")
    assert [prefixes.to_save(ids(text)) for text in ("aaaabbbbc", "aaaa", "aaaabbbbcccc", "aa")] \
        == [0, 0, 12, 0]
    assert Prefixes(0, BLOCK).to_save(ids("aaaabbbb")) == 0


def test_prompts_that_share_their_first_block_are_told_by_a_key() -> None:
    prefixes, _ = holding(1000)
    keys = [prefixes.beginning(ids(text)) for text in ("aaaab", "aaaacccc", "aaab", "aaa")]
    assert keys[0] == keys[1] != keys[2] and keys[3] is None
    assert Prefixes(0, BLOCK).beginning(ids("aaaa")) is None


def test_a_longer_one_takes_the_place_of_what_it_covers() -> None:
    prefixes, kept = holding(1000, "aaaa", "aaaabbbb")
    assert len(prefixes) == 1 and prefixes.nbytes == 80
    found = prefixes.find(ids("aaaaz"))
    assert found is not None and found.saved is kept[1] and found.length == 4


def test_the_least_recently_used_goes_first_and_its_beginning_with_it() -> None:
    prefixes, kept = holding(170, "aaaabbbb", "ccccdddd")
    assert prefixes.find(ids("aaaabbbb")) is not None
    prefixes.add(ids("eeee"), saved("eeee"))
    assert prefixes.nbytes == 120
    assert prefixes.find(ids("ccccdddd")) is None
    found = prefixes.find(ids("aaaa"))
    assert found is not None and found.saved is kept[0]


def test_one_that_is_too_large_changes_nothing() -> None:
    prefixes, _ = holding(100, "aaaabbbb")
    prefixes.add(ids("cccc" * 3), saved("cccc" * 3))
    assert len(prefixes) == 1 and prefixes.find(ids("cccccccc")) is None
    prefixes.add(ids("aaaabbbb"), saved("aaaabbbb"))
    assert prefixes.nbytes == 80
    prefixes.clear()
    assert prefixes.nbytes == len(prefixes) == 0 and prefixes.find(ids("aaaabbbb")) is None


@given(st.integers(0, 200), st.lists(st.tuples(
    st.booleans(), st.text(alphabet="ab", max_size=5).map(lambda text: "".join(
        letter * BLOCK for letter in text))), max_size=30))
def test_memory_is_bounded_and_what_is_found_begins_alike(
        most_bytes: int, events: list[tuple[bool, str]]) -> None:
    prefixes: Prefixes[np.ndarray] = Prefixes(most_bytes, BLOCK)
    texts: dict[int, str] = {}
    kept: list[np.ndarray] = []
    for adding, text in events:
        if adding:
            kept.append(saved(text))
            texts[id(kept[-1])] = text
            prefixes.add(ids(text), kept[-1])
        elif (found := prefixes.find(ids(text))) is not None:
            assert text[:found.length] == texts[id(found.saved)][:found.length]
            assert 0 < found.length <= len(text) and found.length % BLOCK == 0
        held = {id(entry.saved) for entry in prefixes._entries.values()}
        assert prefixes.nbytes == sum(10 * len(texts[one]) for one in held) <= most_bytes
        assert set(prefixes._owners) == {key for entry in prefixes._entries.values()
                                         for key in entry.keys}
