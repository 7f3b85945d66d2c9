"""Regular expressions as automata, against Python's re; no TensorFlow."""

from __future__ import annotations

import itertools
import re
import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.constraints.vocabularies import full
from tf_infer.constraints import byte_automaton
from tf_infer.constraints.byte_automaton import Bounds, from_pattern
from tf_infer.constraints.compiler import compiled
from tf_infer.constraints.integers import integer_range
from tf_infer.constraints.patterns import merged, negated, translated
from tf_infer.constraints.schemas import NUMBER
from tf_infer.errors import BackendMissing, ConfigError

pytest.importorskip("outlines_core", reason="needs pip install 'tf-infer[constraints]'")

ALPHABET = "ab1_ é中🙂\n.-٣\u0301K"
TEXTS = ["".join(parts) for size in range(4) for parts in itertools.product(ALPHABET, repeat=size)]


def matched(pattern: str, texts: list[str]) -> set[str]:
    """Return the texts that the automaton over bytes lets through."""
    automaton = from_pattern(translated(pattern), Bounds(), where="regex")
    found = set()
    for text in texts:
        state = 0
        for byte in text.encode():
            state = automaton.next[state, byte]
        if automaton.accepting[state]:
            found.add(text)
    return found


@pytest.mark.parametrize("pattern", [
    r"a*b", r"(a|é)+", r"\w+", r"[^\W\d]{1,2}", r"\d", r"\D\s?", r".{0,2}", r"(?s:.)(?a:\w)",
    r"^(?:a|b1)?$", r"[é-中]|a{2,}", r"(?:a|ab)(?:b|)", r"(?P<x>[.\-]).*?", r"[^a]b?", r"\A🙂\Z",
    "", r"a{,2}", r"[[a]|[a&&b]", r"(?x) a  b # c", r"(^a|b$)", r"\S"])
def test_a_text_passes_exactly_when_re_fullmatch_matches(pattern: str) -> None:
    with pytest.warns(FutureWarning) if "[[" in pattern else _nothing():
        expression = re.compile(pattern)
    assert matched(pattern, TEXTS) == {text for text in TEXTS if expression.fullmatch(text)}


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


pieces = st.sampled_from(["a", "b", "é", "1", r"\d", r"\w", "[^a]", "[ab]", ".", r"\s"])
expressions = st.recursive(pieces, lambda inner: st.one_of(
    st.tuples(inner, inner).map("".join), st.tuples(inner, inner).map("(?:{0[0]}|{0[1]})".format),
    st.tuples(inner, st.sampled_from(["*", "?", "{1,2}", "+", "{2}"])).map(
        "(?:{0[0]}){0[1]}".format)), max_leaves=6)


@settings(max_examples=15, deadline=None)
@given(pattern=expressions)
def test_random_expressions_agree_with_re(pattern: str) -> None:
    expression = re.compile(pattern)
    assert matched(pattern, TEXTS) == {text for text in TEXTS if expression.fullmatch(text)}


@pytest.mark.parametrize(("pattern", "message"), [
    ("ab(", r"regex: expected a regular expression .* at position 2: missing \)"),
    ("a[b", r"at position 1: unterminated character set"),
    ("a(?=b)c", r"got look-around at position 1"), ("(?<!a)b", r"got look-around at position 0"),
    (r"(a)\1", r"got a back-reference at position 3"), (r"a(?>b)", r"got an atomic group|error"),
    (r"\bword", r"got a word boundary at position 0"), ("(?i)a", "got a flag that ignores case"),
    ("a^b", "got an anchor inside at position 1"), ("a$b", "got an anchor inside at position 1"),
    ("(a|^b)*", "got an anchor inside"), (r"a[^\s\S]", "expected a set that holds a character"),
    ("a{100000}b{9999}", "expected at most 100000 characters with every repetition"),
    ("(" * 3_000 + ")" * 3_000, "nested too deep|too deep"),
    ("a" * 100_001, "expected at most 100000 characters, got 100001"),
    (r"\w" * 50_000, "with all their ranges written out"),
    ("\ud800", "expected a set that holds a character of a text")])
def test_what_no_automaton_can_do_is_refused_with_its_place(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        translated(pattern)


def test_messages_quote_nothing_of_the_expression() -> None:
    for pattern in (r"secret\q", "(?P<secret>a)(?P<secret>b)", "a(?P=secret)", "(?secret)",
                    "[z-a]"):
        with pytest.raises(ConfigError) as caught:
            translated(pattern)
        assert "secret" not in str(caught.value) and "z-a" not in str(caught.value)


def test_a_pattern_is_bounded_in_states_and_seconds() -> None:
    with pytest.raises(ConfigError, match="got one with more states"):
        compiled("regex", "(a|b)*a(a|b){8}", full(), Bounds(states=100))
    with pytest.raises(ConfigError, match="got one that takes longer"):
        compiled("regex", "(a|b)*a(a|b){30}", full(), Bounds(seconds=0.5))


@pytest.mark.slow
def test_a_compiler_out_of_memory_is_told_apart_from_a_crash_of_ours() -> None:
    with pytest.raises(ConfigError, match="ran out of memory or gave up"):
        compiled("regex", "(a|b)*a(a|b){22}", full(),
                 Bounds(compiler_bytes=200 << 20, seconds=60.0))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(byte_automaton.sys, "executable", str(_python_without_site(tmp_path)))
    with pytest.raises(BackendMissing, match=r"pip install 'tf-infer\[constraints\]'"):
        compiled("regex", "a", full())


def _python_without_site(folder: object) -> str:
    import sys
    from pathlib import Path
    script = Path(str(folder)) / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_ranges_are_joined_and_turned_round() -> None:
    assert merged([(5, 7), (1, 2), (3, 4)]) == ((1, 7),)
    assert negated(((1, 7),)) == ((0, 0), (8, 0x10FFFE))


@pytest.mark.parametrize("pattern", [f"{NUMBER},{NUMBER}", integer_range(-10**16, 10**16)],
                         ids=["numbers", "integers"])
def test_a_pattern_that_could_begin_at_every_byte_compiles_as_soon_as_others(pattern: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    from_pattern(pattern, Bounds(), where="regex")
    # 0.04 s; 1 and 2, if the library also looks for it in the middle of texts
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 0.5
