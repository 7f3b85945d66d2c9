"""Constraints in the loop, against automata on the host and against all texts."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding.paths import Runner, eager, graph, mostly_without_xla
from tf_infer.constraints.byte_automaton import Bounds, from_choices
from tf_infer.constraints.compose import Vocabulary, compose
from tf_infer.constraints.prefix_tree import prefix_tree
from tf_infer.decoding import constraints
from tf_infer.decoding.constraints import Choices, Tables
from tf_infer.decoding.contracts import Limits, Start
from tf_infer.decoding.greedy import choose
from tf_infer.decoding.loop import run as run_loop
from tf_infer.decoding.processors import BANNED
from tf_infer.token_bytes import TokenBytes

END, CAPACITY = 1, 12
TOKENS = (b"", b"", b"a", b"b", b"c", b" ", b"ab", b"bc", b" a", b"abc", b"aa", b"c")
FIRST = tuple(token.removeprefix(b" ") for token in TOKENS)
SIZE = len(TOKENS) + 2  # ids of the network that the codec does not have
WORDS = Vocabulary(TokenBytes(tokens=TOKENS, first=FIRST, vanishing=frozenset({0, 1, 5})), SIZE,
                   (END,))
TREE = prefix_tree(WORDS.levels, WORDS.first_levels)


def automaton(texts: list[bytes]):
    return compose(from_choices(texts), WORDS, Bounds(), where="test")


SETS = [[b"a", b"ab", b"abcab"], [b" ab c"], [b"cc", b"bca a"]]
AUTOMATA = [automaton(texts) for texts in SETS]
TABLES = constraints.tables(AUTOMATA, SIZE)


def noisy_step(seeds: tf.Tensor):
    """Return a step whose logits depend on a row's seed and how far it is, and the first logits."""
    table = tf.constant(np.random.default_rng(0).normal(size=(64, SIZE)) * 4, tf.float32)

    def logits(counts: tf.Tensor) -> tf.Tensor:
        return tf.gather(table, (seeds * 7 + counts * 13) % 64)

    def step(tokens: tf.Tensor, live: tf.Tensor, counts: tf.Tensor):
        counts = counts + tf.cast(live, tf.int32)
        return logits(counts), counts

    return step, Start(logits(tf.zeros_like(seeds)), tf.zeros_like(seeds))


def said(ids: np.ndarray, length: int, at_start: bool) -> bytes:
    return WORDS.tokens.join(ids[:length].tolist(), at_start=at_start)


def with_names(number: tf.Tensor, at_start: tf.Tensor, seeds: tf.Tensor, most: tf.Tensor):
    step, start = noisy_step(seeds)
    state = constraints.begin(TABLES, number, at_start)
    progress, _ = run_loop(step, start, Limits(CAPACITY, most, (END,), 0), choose,
                           (constraints.named(TABLES, state),))
    return (progress.ids, progress.lengths, progress.finished,
            tf.gather(TABLES.accepting, progress.states[0]))


@mostly_without_xla
def test_rows_of_a_name_say_one_of_its_texts(run: Runner) -> None:
    rows = [(number, start, seed) for number in (0, 1, 2, 3) for start in (False, True)
            for seed in range(6) if not (number == 2 and start)]  # " ab c" cannot begin a text
    number, start, seeds = (tf.constant(column) for column in zip(*rows))
    most = tf.fill([len(rows)], CAPACITY)
    ids, lengths, finished, whole = (t.numpy() for t in run(with_names, number, start, seeds, most))
    heard = set()
    for row, (name, at_start, _) in enumerate(rows):
        if name:
            assert finished[row] and whole[row]
            text = said(ids[row], lengths[row], at_start)
            assert text in SETS[name - 1]
            heard.add(text)
    assert len(heard) >= 4
    free = [row for row, (name, *_) in enumerate(rows) if name == 0]
    alone = run(with_names, *(tf.gather(t, free) for t in (number, start, seeds, most)))
    assert (alone[0].numpy() == ids[free]).all()
    one = run(with_names, number[-1:], start[-1:], seeds[-1:], most[-1:])
    assert (one[0].numpy()[0] == ids[-1]).all()


def test_a_row_whose_limit_comes_first_is_not_whole() -> None:
    number, start = tf.constant([2, 2]), tf.constant([False, False])
    _, lengths, finished, whole = with_names(number, start, tf.constant([1, 2]),
                                             tf.constant([1, 0]))
    assert lengths.numpy().tolist() == [1, 0]
    assert not finished.numpy().any() and not whole.numpy().any()


def test_the_tables_allow_what_the_automata_allow() -> None:
    for number, one in enumerate(AUTOMATA, start=1):
        start = int(TABLES.starts[number])
        states = tf.range(start, start + len(one.next))
        masks = constraints.allowed(TABLES, states).numpy()
        assert (masks == np.stack([one.allowed(s) for s in range(len(one.next))])).all()
    assert constraints.allowed(TABLES, tf.constant([0])).numpy().all()


def test_the_constraint_wins_over_bans_and_broken_logits() -> None:
    mask = tf.constant([[True, True, False, False]])
    logits = tf.constant([[BANNED, float("nan"), 5.0, float("inf")]])
    kept = constraints.keep_allowed(logits, mask).numpy()[0]
    assert kept[0] == kept[1] == np.float32(BANNED) and (kept[2:] < BANNED).all()


def with_choices(text: tf.Tensor, ends: tf.Tensor, at_start: tf.Tensor, seeds: tf.Tensor):
    return loop_of(constraints.spelling(TREE, text, ends, at_start), seeds)


def loop_of(found: Choices, seeds: tf.Tensor):
    step, start = noisy_step(seeds)
    limits = Limits(CAPACITY, tf.fill([tf.shape(seeds)[0]], CAPACITY), (END,), 0)
    progress, _ = run_loop(step, start, limits, choose, (constraints.chosen(found, (END,)),))
    return (progress.ids, progress.lengths, progress.finished,
            constraints.complete(found, progress.states[0].places))


def laid_out(rows: list[list[bytes]]) -> tuple[tf.Tensor, tf.Tensor]:
    width = max(len(b"".join(row)) for row in rows) + 2
    text = [list(b"".join(row).ljust(width, b"\0")) for row in rows]
    most = max(map(len, rows)) + 1
    ends = [(np.cumsum([len(one) for one in row]).tolist() + [0] * most)[:most] for row in rows]
    return tf.constant(text, tf.uint8), tf.constant(ends, tf.int32)


def test_rows_say_one_of_their_own_choices() -> None:
    sets = [SETS[0], [], SETS[1], SETS[2], [b"abc", b"abca", b"a"]]
    rows = [(texts, start, seed) for texts in sets for start in (False, True) for seed in range(5)
            if not (start and texts == SETS[1])]
    text, ends = laid_out([row[0] for row in rows])
    start, seeds = tf.constant([row[1] for row in rows]), tf.constant([row[2] for row in rows])
    found = [t.numpy() for t in eager(with_choices, text, ends, start, seeds)]
    heard = set()
    for row, (texts, at_start, _) in enumerate(rows):
        if texts:
            assert found[2][row] and found[3][row]
            assert said(found[0][row], found[1][row], at_start) in texts
            heard.add((said(found[0][row], found[1][row], at_start), tuple(texts)))
    assert len(heard) >= 7
    traced = graph(with_choices, text, ends, start, seeds)
    assert all((a == b.numpy()).all() for a, b in zip(found, traced))
    # Alone, with less room around its texts, a row says the same.
    short, few = laid_out([rows[0][0]])
    alone = with_choices(short, few, start[:1], seeds[:1])
    assert (alone[0].numpy()[0] == found[0][0]).all()


def test_choices_under_xla_are_those_of_the_graph() -> None:
    text, ends = laid_out([SETS[0], [], SETS[2]])
    found = constraints.spelling(TREE, text, ends, tf.constant([False, True, True]))
    compiled = tf.function(lambda tokens, ends, seeds: loop_of(Choices(tokens, ends), seeds),
                           jit_compile=True, autograph=False)
    seeds = tf.constant([3, 4, 5])
    for a, b in zip(loop_of(found, seeds), compiled(*found, seeds)):
        assert (a.numpy() == b.numpy()).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_tokens_at_each_place_are_those_that_leave_a_spelling(seed: int) -> None:
    random = np.random.default_rng(seed)
    sets = [[bytes(random.choice(list(b"abc d"), size=random.integers(1, 7)))
             for _ in range(random.integers(1, 4))] for _ in range(8)]
    starts = random.random(8) < 0.5
    text, ends = laid_out(sets)
    found = constraints.spelling(TREE, text, ends, tf.constant(starts)).tokens.numpy()
    for row, texts in enumerate(sets):
        place = 0
        for one in texts:
            for i in range(len(one)):
                table = FIRST if starts[row] and i == 0 else TOKENS
                wanted = {n for n, token in enumerate(table) if token and one[i:].startswith(token)
                          and spelled(one[i + len(token):]) and n == last(table, token)}
                assert set(found[row, place + i].tolist()) - {-1} == wanted
            place += len(one)
        assert (found[row, place:] == -1).all()


def spelled(rest: bytes) -> bool:
    return not rest or any(t and rest.startswith(t) and spelled(rest[len(t):]) for t in TOKENS)


def last(table: tuple[bytes, ...], token: bytes) -> int:
    return max(n for n, other in enumerate(table) if other == token)


def test_many_tokens_and_every_byte_are_found() -> None:
    random = np.random.default_rng(5)
    tokens = [b"", b"", *(bytes([i]) for i in range(256)),
              *{random.bytes(random.integers(2, 5)) for _ in range(3_000)}]
    vocab = Vocabulary(TokenBytes(tokens=tuple(tokens), first=tuple(tokens),
                                  vanishing=frozenset()), len(tokens), (1,))
    tree = prefix_tree(vocab.levels, None)
    assert tree.complete and not TREE.complete
    ids = random.integers(2, len(tokens), 20).tolist()
    text, ends = laid_out([[tokens[i]] for i in ids])
    found = constraints.spelling(tree, text, ends, tf.zeros([20], tf.bool)).tokens.numpy()
    for row, number in enumerate(ids):
        assert found[row, 0, len(tokens[number]) - 1] == number


def test_no_choices_at_all_are_no_constraint() -> None:
    empty = Choices(tf.zeros([2, 0, 4], tf.int32), tf.zeros([2, 0], tf.int32))
    step, start = noisy_step(tf.constant([1, 2]))
    limits = Limits(CAPACITY, tf.constant([5, 5]), (END,), 0)
    free, _ = run_loop(step, start, limits, choose)
    held, _ = run_loop(step, start, limits, choose, (constraints.chosen(empty, (END,)),))
    assert (free.ids.numpy() == held.ids.numpy()).all()


def test_tables_are_constants_of_the_right_kind() -> None:
    assert isinstance(TABLES, Tables)
    assert TABLES.class_of.shape == (4, SIZE) and TABLES.cells.dtype == tf.int32
