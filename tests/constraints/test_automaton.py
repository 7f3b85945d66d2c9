"""Automata over tokens against brute force; no TensorFlow."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.constraints.vocabularies import BYTES, full, vocabulary
from tf_infer.constraints.automaton import FORBIDDEN, TokenAutomaton, packed, unpacked
from tf_infer.constraints.byte_automaton import Bounds, from_choices
from tf_infer.constraints.compose import CHUNK, Vocabulary, compose
from tf_infer.errors import ConfigError


def of_choices(choices: list[bytes], vocab: Vocabulary) -> TokenAutomaton:
    return compose(from_choices(choices), vocab, Bounds(), where="test")


def spelled(rest: bytes, tokens: list[bytes]) -> bool:
    """Return whether a text is some tokens joined."""
    return not rest or any(token and rest.startswith(token) and spelled(rest[len(token):], tokens)
                           for token in tokens)


letters = st.lists(st.text("ab", min_size=1, max_size=4).map(str.encode), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(choices=letters, tokens=letters)
def test_a_token_is_allowed_exactly_where_it_leads_to_a_choice(
        choices: list[bytes], tokens: list[bytes]) -> None:
    vocab = vocabulary(tokens)
    if not any(spelled(choice, tokens) for choice in choices):
        with pytest.raises(ConfigError, match="this vocabulary can spell"):
            of_choices(choices, vocab)
        return
    automaton = of_choices(choices, vocab)

    def follow(said: bytes, state: int) -> None:
        mask = automaton.allowed(state)
        assert not mask[0]
        assert mask[1] == (said in choices) == automaton.accepting[state]
        for number, token in enumerate(tokens, start=2):
            whole = said + token
            leads = any(choice.startswith(whole) and spelled(choice[len(whole):], tokens)
                        for choice in choices)
            assert mask[number] == leads
            assert (automaton.advance(state, number) >= 0) == leads
            if leads:
                follow(whole, automaton.advance(state, number))

    follow(b"", automaton.start(at_start=False))


def test_a_choice_may_begin_another() -> None:
    automaton = of_choices([b"a", b"ab"], full())
    behind = automaton.advance(0, 2 + ord("a"))
    assert set(np.flatnonzero(automaton.allowed(behind))) == {1, 2 + ord("b")}
    end = automaton.advance(behind, 1)
    assert end == automaton.ended and not automaton.allowed(end).any()
    # Nothing can follow the longer one: the end is all that is left.
    longer = automaton.advance(behind, 2 + ord("b"))
    assert set(np.flatnonzero(automaton.allowed(longer))) == {1}


def test_the_first_token_may_take_another_form() -> None:
    vocab = vocabulary([b" a", b"a", b"b", b" "], first=[b"a", b"a", b"b", b""],
                       vanishing=frozenset({5}))
    plain, spaced = of_choices([b"ab"], vocab), of_choices([b" ab"], vocab)
    assert set(np.flatnonzero(plain.allowed(plain.start(at_start=False)))) == {3}
    assert set(np.flatnonzero(plain.allowed(plain.start(at_start=True)))) == {2, 3}
    assert plain.accepts([2, 4], at_start=True) and not plain.accepts([2, 4])
    assert set(np.flatnonzero(spaced.allowed(spaced.start(at_start=False)))) == {2, 5}
    # A text that begins with a space cannot be spelled where the space would be dropped.
    assert spaced.start(at_start=True) == FORBIDDEN


def test_ids_of_the_network_that_the_codec_does_not_have_never_come() -> None:
    automaton = of_choices([b"ab"], vocabulary(BYTES, size=300))
    assert automaton.class_of.shape == (300,)
    assert not automaton.allowed(0)[258:].any()
    assert automaton.advance(0, 299) == automaton.advance(0, 5_000) == FORBIDDEN


def test_many_states_are_put_together_from_groups() -> None:
    choices = [bytes(pair) for pair in itertools.product(range(97, 97 + 14), repeat=3)]
    automaton = of_choices(choices, full())  # more states than one group
    assert len(automaton.next) > CHUNK
    for text in (b"nnn", b"abc", b"fff"):
        assert automaton.accepts([2 + byte for byte in text])
        assert not automaton.accepts([2 + byte for byte in text[:2]])
    assert automaton.accepts([2 + 256 + 1])  # the token "abc"


@pytest.mark.parametrize("size", [1, 31, 32, 33, 257])
def test_a_mask_as_bits_and_back(size: int) -> None:
    mask = np.random.default_rng(size).random(size) < 0.5
    words = packed(mask)
    assert words.dtype == np.int32 and words.shape == ((size + 31) // 32,)
    assert [bool(words[i // 32] >> i % 32 & 1) for i in range(size)] == mask.tolist()
    assert (unpacked(words, size) == mask).all()


def test_a_model_without_an_end_is_refused() -> None:
    vocab = full()
    with pytest.raises(ConfigError, match="end_ids: expected at least one id"):
        Vocabulary(vocab.tokens, vocab.size, ())
    with pytest.raises(ConfigError, match="end_ids: expected ids below"):
        Vocabulary(vocab.tokens, vocab.size, (9_999,))


def test_an_automaton_over_tokens_is_bounded() -> None:
    with pytest.raises(ConfigError, match="classes of tokens"):
        compose(from_choices([b"abcdefgh" * 50]), full(), Bounds(bytes=1_000), where="test")
