"""Constraints of requests: compiled once, kept within bounds, followed row by row."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.constraints.vocabularies import BYTES, full, vocabulary
from tests.constraints.walks import distances, walk
from tf_infer.constraints.automaton import unpacked
from tf_infer.constraints.byte_automaton import Bounds
from tf_infer.constraints.compiler import ConstraintCompiler, Matcher, check, compiled
from tf_infer.errors import ConfigError

VOCABULARY = full()


def compiler(**settings: object) -> ConstraintCompiler:
    return ConstraintCompiler(VOCABULARY.tokens, VOCABULARY.size, (1,), **settings)  # type: ignore[arg-type]


def test_a_row_is_followed_to_its_end() -> None:
    matcher = compiler().matcher("choices", "ab\x1fabc")
    said = []
    while not matcher.finished:
        mask = unpacked(matcher.allowed(), VOCABULARY.size)
        # The longest token that may come; the end only when nothing else may.
        token = max(np.flatnonzero(mask), key=lambda i: len(VOCABULARY.tokens.tokens[i]))
        matcher.accept(int(token))
        said.append(int(token))
        assert matcher.complete == (VOCABULARY.tokens.join(said) in (b"ab", b"abc"))
    assert VOCABULARY.tokens.join(said) == b"abc" and said[-1] == 1
    assert not matcher.allowed().any()
    with pytest.raises(ValueError, match="token: expected one that the constraint allows, got 2"):
        matcher.accept(2)


def test_a_token_that_is_not_allowed_changes_nothing() -> None:
    matcher = compiler().matcher("choices", "ab")
    for token in (1, 0, -1, 10**6, 2 + ord("b")):
        with pytest.raises(ValueError, match="expected one that the constraint allows"):
            matcher.accept(token)
    matcher.accept(2 + ord("a"))
    assert set(np.flatnonzero(unpacked(matcher.allowed(), VOCABULARY.size))) == {2 + ord("b")}


def test_nothing_that_begins_with_a_dropped_space_can_begin_a_text() -> None:
    vocab = vocabulary([b" a", b"a"], first=[b"a", b"a"])
    with pytest.raises(ConfigError, match="expected a prompt that shows some text"):
        Matcher(compiled("choices", " a", vocab), at_start=True)
    assert not Matcher(compiled("choices", " a", vocab)).finished


def test_the_same_constraint_is_compiled_once_for_all_threads() -> None:
    pytest.importorskip("outlines_core", reason="needs pip install 'tf-infer[constraints]'")
    kept = compiler()
    gate = threading.Barrier(8)

    def ask(_: int) -> object:
        gate.wait()
        return kept.automaton("regex", "[ab]{1,9}")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert all(one is found[0] for one in found)
    assert kept.nbytes == found[0].nbytes  # type: ignore[attr-defined]


def test_the_cache_is_bounded_and_keeps_what_was_used_last() -> None:
    size = compiled("choices", "aaaa", VOCABULARY).nbytes
    kept = compiler(cache_bytes=int(2.5 * size))
    first, second = kept.automaton("choices", "aaaa"), kept.automaton("choices", "bbbb")
    assert kept.automaton("choices", "aaaa") is first
    kept.automaton("choices", "cccc")
    assert kept.nbytes <= 2.5 * size
    assert kept.automaton("choices", "aaaa") is first
    assert kept.automaton("choices", "bbbb") is not second


def test_a_constraint_that_was_refused_is_not_tried_again() -> None:
    kept = compiler(bounds=Bounds(bytes=10))
    messages = []
    for _ in range(2):
        with pytest.raises(ConfigError, match="classes of tokens") as caught:
            kept.automaton("choices", "abc")
        messages.append(caught.value)
    assert messages[0] is not messages[1] and kept.nbytes <= 2_000


def test_who_waits_too_long_for_others_is_told() -> None:
    kept = compiler(bounds=Bounds(seconds=0.05))
    with kept._compiling, ThreadPoolExecutor(1) as pool, pytest.raises(
            ConfigError, match="others before it that take as long"):
        pool.submit(kept.automaton, "choices", "x").result()


@pytest.mark.parametrize(("kind", "value", "message"), [
    ("choices", "", "expected 1 to 10000 choices, none of them empty"),
    ("choices", "a\x1f", "none of them empty"), ("choices", "a\x1f" * 10_001 + "a", "got 10002"),
    ("choices", "a\ud800", "got halves of characters at position 1"),
    ("grammar", "x", "constraint: expected one of regex, json_schema, choices"),
    ("regex", "(", "constraint: expected a regular expression"),
    ("json_schema", "{", "constraint: expected JSON")])
def test_what_is_no_constraint_is_refused_before_it_is_compiled(
        kind: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(kind, value)


def test_choices_with_too_many_beginnings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"choices: expected an automaton .* got one with more"):
        compiler(bounds=Bounds(states=10)).automaton("choices", "abcdefghijk")


def test_a_constraint_that_the_vocabulary_cannot_spell_is_refused() -> None:
    with pytest.raises(ConfigError, match="choices: expected a text that this vocabulary can"):
        ConstraintCompiler(vocabulary(BYTES[97:99]).tokens, 4, (1,)).automaton("choices", "abc")


RANDOM_CONSTRAINTS = [
    ("regex", r"\w{1,8}( \d+){0,2}"), ("regex", r"(?:[a-c]|é|中)+!?"),
    ("json_schema", json.dumps({"type": "array", "items": {"type": "string", "maxLength": 9}})),
    ("choices", "yes\x1fno\x1fyes, please")]


@pytest.mark.parametrize(("kind", "value"), RANDOM_CONSTRAINTS)
def test_random_rows_keep_their_constraint(kind: str, value: str) -> None:
    if kind != "choices":
        pytest.importorskip("outlines_core", reason="needs pip install 'tf-infer[constraints]'")
    automaton = compiled(kind, value, VOCABULARY)
    random, far = np.random.default_rng(1), distances(automaton)
    for _ in range(50):
        text = VOCABULARY.tokens.join(walk(automaton, random, far, free_tokens=12)).decode()
        if kind == "regex":
            assert re.fullmatch(value, text)
        elif kind == "choices":
            assert text in value.split("\x1f")
        else:
            assert all(len(one) <= 9 for one in json.loads(text))
