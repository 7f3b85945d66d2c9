"""Let a row produce only what its constraint allows: a named automaton, or one of some texts.

Both are masks of the logits with a state for each row, and both win over every other option: a
token that the constraint forbids is never chosen, one that something else bans is if nothing else
is left. No row is ever stuck, since every state leads on to a whole text; where nothing but the end
is left, the end id is all that is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_infer.constraints.automaton import FORBIDDEN, TokenAutomaton
from tf_infer.constraints.prefix_tree import PrefixTree
from tf_infer.decoding.contracts import Processor
from tf_infer.decoding.processors import BANNED, only
from tf_infer.decoding.score import finite

LONGEST = 16  # bytes of the tokens that spell choices; longer ones are not needed to spell a text


def keep_allowed(logits: tf.Tensor, allowed: tf.Tensor) -> tf.Tensor:
    """Let only allowed tokens be chosen, whatever else bans them: [N, V] each -> [N, V]."""
    return tf.where(allowed, tf.maximum(finite(logits), BANNED), logits.dtype.min)


def first_only(words: tf.Tensor) -> Processor:
    """Return the processor that lets only some tokens be the first of a call.

    `words` [N, W] int32 as in `processors.only`; W may be less than V asks for: none behind them.
    """

    def change(logits: tf.Tensor, produced: tf.Tensor, state: tuple[()]) -> tf.Tensor:
        del state
        first = produced == 0
        missing = tf.maximum(-(-tf.shape(logits)[1] // 32) - tf.shape(words)[1], 0)
        return tf.cond((tf.shape(words)[1] > 0) & tf.reduce_any(first), lambda: tf.where(
            tf.expand_dims(first, 1), only(logits, tf.pad(words, [[0, 0], [0, missing]])), logits),
            lambda: logits)

    return Processor((), change, lambda state, tokens, live: state)


# ---------------------------------------------------------------------------- named automata


class Tables(NamedTuple):
    """Several automata as one; number 0 allows everything.

    States are numbered through. The state behind a token of class c is cells[row_of[state] + c].

    Attributes:
        class_of: [A, V] int32, class of each token in each automaton.
        automaton_of: [S] int32.
        row_of: [S] int32.
        cells: [.] int32, FORBIDDEN where a token may not come.
        accepting: [S] bool.
        starts, firsts: [A] int32, state before the first token, and where that takes its first
            form (FORBIDDEN: no text can be spelled there).
        ended: [A] int32, state behind an end id.
    """

    class_of: tf.Tensor
    automaton_of: tf.Tensor
    row_of: tf.Tensor
    cells: tf.Tensor
    accepting: tf.Tensor
    starts: tf.Tensor
    firsts: tf.Tensor
    ended: tf.Tensor


def tables(automata: Sequence[TokenAutomaton], size: int) -> Tables:
    """Put automata over V = `size` tokens together; they become number 1, 2, ..."""
    everything = TokenAutomaton(class_of=np.zeros(size, np.int32), next=np.zeros((1, 1), np.int32),
                                accepting=np.ones(1, bool))
    every = [everything, *automata]
    starts = np.cumsum([0, *(len(one.next) for one in every)])[:-1]
    cells = [np.where(one.next >= 0, one.next + start, FORBIDDEN).reshape(-1)
             for one, start in zip(every, starts)]
    begin = np.cumsum([0, *(len(part) for part in cells)])[:-1]
    rows = [first + np.arange(len(one.next)) * one.next.shape[1]
            for one, first in zip(every, begin)]
    numbers = np.repeat(np.arange(len(every)), [len(one.next) for one in every])
    firsts = [FORBIDDEN if one.first == FORBIDDEN else start + one.first
              for one, start in zip(every, starts)]

    def int32(values: object) -> tf.Tensor:
        return tf.constant(np.asarray(values), tf.int32)

    return Tables(
        class_of=int32(np.stack([one.class_of for one in every])), automaton_of=int32(numbers),
        row_of=int32(np.concatenate(rows)), cells=int32(np.concatenate(cells)),
        accepting=tf.constant(np.concatenate([one.accepting for one in every])),
        starts=int32(starts), firsts=int32(firsts),
        ended=int32([start + one.ended for one, start in zip(every, starts)]))


def begin(table: Tables, number: tf.Tensor, at_start: tf.Tensor) -> tf.Tensor:
    """Return the state before the first token: number [N] int32, at_start [N] bool -> [N] int32."""
    return tf.where(at_start, tf.gather(table.firsts, number), tf.gather(table.starts, number))


def allowed(table: Tables, state: tf.Tensor) -> tf.Tensor:
    """Return which tokens may come: [N] int32 -> [N, V] bool."""
    return _behind(table, state) >= 0


def follow(table: Tables, state: tf.Tensor, tokens: tf.Tensor, live: tf.Tensor) -> tf.Tensor:
    """Return the state behind a token of each live row; [N] each."""
    classes = tf.gather_nd(table.class_of, tf.stack(
        [tf.gather(table.automaton_of, state), tokens], axis=-1))            # [N]
    behind = tf.gather(table.cells, tf.gather(table.row_of, state) + classes)
    return tf.where(live & (behind >= 0), behind, state)


def _behind(table: Tables, state: tf.Tensor) -> tf.Tensor:
    """[N] int32 -> [N, V] int32, the state behind each token."""
    classes = tf.gather(table.class_of, tf.gather(table.automaton_of, state))
    return tf.gather(table.cells, tf.gather(table.row_of, state)[:, None] + classes)


def named(table: Tables, state: tf.Tensor) -> Processor:
    """Return the processor of rows that begin in `state` [N] int32."""
    anybody = tf.reduce_any(state > 0)

    def change(logits: tf.Tensor, produced: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        del produced
        # An engine may give logits for the ids of the codec alone, without those behind them.
        return tf.cond(anybody, lambda: keep_allowed(
            logits, allowed(table, state)[:, :tf.shape(logits)[1]]), lambda: logits)

    def accept(state: tf.Tensor, tokens: tf.Tensor, live: tf.Tensor) -> tf.Tensor:
        return tf.cond(anybody, lambda: follow(table, state, tokens, live), lambda: state)

    return Processor(state, change, accept)


# ---------------------------------------------------------------------------- choices


class Choices(NamedTuple):
    """Texts of each row, of which it produces one; each may begin another.

    The texts of a row stand one behind the other. Any way to cut one into tokens is allowed.

    Attributes:
        tokens: [N, F, M] int32, tokens that the text from byte f on begins with and that leave a
            rest which can be spelled, the one of m + 1 bytes at place m; FORBIDDEN for none.
        ends: [N, K] int32, one past the last byte of each text; 0 behind the last one.
    """

    tokens: tf.Tensor
    ends: tf.Tensor


class Saying(NamedTuple):
    """How far a row with choices is.

    Attributes:
        places: [N, K] int32, the byte that each text is at, FORBIDDEN where the row says another.
        ended: [N] bool, an end id came.
    """

    places: tf.Tensor
    ended: tf.Tensor


def asks(choices: Choices) -> tf.Tensor:
    """[N] bool, the row has choices."""
    return tf.reduce_any(choices.ends > 0, axis=-1)


def chosen(choices: Choices, end_ids: tuple[int, ...]) -> Processor:
    """Return the processor of choices; its state is `Saying`."""
    constrained = asks(choices)
    anybody = tf.reduce_any(constrained)
    starts = tf.concat([tf.zeros_like(choices.ends[:, :1]), choices.ends[:, :-1]], axis=1)
    starts = starts[:, :tf.shape(choices.ends)[1]]
    ends = tf.constant(end_ids, tf.int32)

    def here(places: tf.Tensor) -> tf.Tensor:
        """[N, K] -> [N, K, M] int32, the tokens that may come; FORBIDDEN in other places."""
        inside = (places >= 0) & (places < choices.ends)
        found = tf.gather(choices.tokens, tf.where(inside, places, 0), batch_dims=1)
        return tf.where(inside[..., None], found, FORBIDDEN)

    def masked(logits: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        rows, size = tf.shape(logits)[0], tf.shape(logits)[1]
        found = tf.reshape(here(places), [rows, -1])                         # [N, K * M]
        done = complete(choices, places)[:, None] & tf.ones_like(ends, tf.bool)
        found = tf.concat([found, tf.where(done, ends, FORBIDDEN)], axis=1)
        # One column more takes what is no token.
        spots = tf.where(found >= 0, found, size) + tf.range(rows)[:, None] * (size + 1)
        marks = tf.scatter_nd(tf.reshape(spots, [-1, 1]), tf.ones_like(tf.reshape(spots, [-1])),
                              [rows * (size + 1)])
        may = tf.reshape(marks, [rows, size + 1])[:, :size] > 0
        return tf.where(tf.expand_dims(constrained, 1), keep_allowed(logits, may), logits)

    def change(logits: tf.Tensor, produced: tf.Tensor, saying: Saying) -> tf.Tensor:
        del produced
        return tf.cond(anybody, lambda: masked(logits, saying.places), lambda: logits)

    def moved(saying: Saying, tokens: tf.Tensor, live: tf.Tensor) -> Saying:
        same = here(saying.places) == tokens[:, None, None]                  # [N, K, M]
        sizes = tf.range(1, tf.shape(same)[2] + 1)
        size = tf.reduce_max(tf.where(same, sizes, 0), axis=-1)              # [N, K]
        behind = tf.where(size > 0, saying.places + size, FORBIDDEN)
        is_end = tf.reduce_any(tf.expand_dims(tokens, 1) == ends, axis=-1)
        return Saying(tf.where((live & ~is_end)[:, None], behind, saying.places),
                      saying.ended | (live & is_end))

    def accept(saying: Saying, tokens: tf.Tensor, live: tf.Tensor) -> Saying:
        return tf.cond(anybody, lambda: moved(saying, tokens, live), lambda: saying)

    places = tf.where(choices.ends > 0, starts, FORBIDDEN)
    return Processor(Saying(tf.ensure_shape(places, choices.ends.shape),
                            tf.zeros_like(constrained)), change, accept)


def complete(choices: Choices, places: tf.Tensor) -> tf.Tensor:
    """Return whether what a row has produced is one of its texts: [N, K] int32 -> [N] bool."""
    return tf.reduce_any((places == choices.ends) & (choices.ends > 0), axis=-1)


def spelling(tree: PrefixTree, text: tf.Tensor, ends: tf.Tensor, at_start: tf.Tensor) -> Choices:
    """Find the tokens that texts can be cut into; not for XLA.

    Args:
        tree: of all tokens.
        text: [N, F] uint8, the texts of each row one behind the other.
        ends: [N, K] int32, one past the last byte of each; 0 behind the last one.
        at_start: [N] bool, the row's first token takes its first form.

    Returns:
        Choices; where a text cannot be spelled, none of its tokens.
    """
    rows, width = tf.shape(text)[0], tf.shape(text)[1]
    places = tf.broadcast_to(tf.range(width), [rows, width])                 # [N, F]
    last = tf.reduce_max(ends, axis=-1, keepdims=True)
    sorted_ends = tf.where(ends > 0, ends, tf.int32.max)
    owner = tf.searchsorted(sorted_ends, places, side="right")               # [N, F]
    owner = tf.minimum(owner, tf.shape(ends)[1] - 1)
    end = tf.where(places < last, tf.gather(ends, owner, batch_dims=1), 0)
    starts = tf.concat([tf.zeros_like(ends[:, :1]), ends[:, :-1]], axis=1)
    first = tf.gather(starts, owner, batch_dims=1) == places
    root = tf.where(first & tf.expand_dims(at_start, 1), tree.first_root, tree.root)
    found = _walk(tree, text, places, end, root)
    if tree.complete:
        return Choices(found, ends)
    return Choices(_without_dead_ends(found, places, end), ends)


def _walk(tree: PrefixTree, text: tf.Tensor, places: tf.Tensor, end: tf.Tensor, root: tf.Tensor
          ) -> tf.Tensor:
    """Return the tokens at every place: [N, F, M] int32."""
    longest = min(tree.longest, LONGEST)
    width = tf.shape(text)[1]
    token = tf.convert_to_tensor(tree.token)

    def once(size: tf.Tensor, node: tf.Tensor, found: tf.TensorArray
             ) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
        spot = places + size
        byte = tf.gather(text, tf.minimum(spot, width - 1), batch_dims=1)
        node = tf.where(spot < end, _child(tree, node, byte), -1)
        ids = tf.where(node >= 0, tf.gather(token, tf.maximum(node, 0)), FORBIDDEN)
        return size + 1, node, found.write(size, ids)

    found = tf.TensorArray(tf.int32, longest, element_shape=[None, None])
    # The TensorArray starts empty: lengths that no walk reaches hold nothing.
    _, _, found = tf.while_loop(lambda size, node, found: size < longest, once,
                                (tf.constant(0), root, found))
    return tf.transpose(found.stack(), [1, 2, 0])


def _child(tree: PrefixTree, node: tf.Tensor, byte: tf.Tensor) -> tf.Tensor:
    """Return the child of each node by its last byte, -1 for none or of node -1."""
    bytes_ = tf.convert_to_tensor(tree.bytes)
    known = tf.maximum(node, 0)
    low, high = tf.gather(tree.begin, known), tf.gather(tree.end, known)
    stop = high
    for _ in range(9):  # up to 256 children
        middle = (low + high) // 2
        less = tf.gather(bytes_, tf.minimum(middle, len(tree.bytes) - 1)) < byte
        open_ = low < high
        low, high = (tf.where(open_ & less, middle + 1, low),
                     tf.where(open_ & ~less, middle, high))
    spot = tf.minimum(low, len(tree.bytes) - 1)
    hit = (node >= 0) & (low < stop) & (tf.gather(bytes_, spot) == byte)
    return tf.where(hit, spot, -1)


def _without_dead_ends(found: tf.Tensor, places: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Drop tokens behind which the rest of the text cannot be spelled: [N, F, M] -> [N, F, M]."""
    rows, width, longest = tf.shape(found)[0], tf.shape(found)[1], tf.shape(found)[2]
    sizes = tf.range(1, longest + 1)
    viable = tf.zeros([rows, width + longest + 1], tf.bool)                  # at each place
    kept = tf.TensorArray(tf.int32, width, element_shape=[None, None])

    def once(i: tf.Tensor, viable: tf.Tensor, kept: tf.TensorArray
             ) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
        place = width - 1 - i
        behind = place + sizes                                               # [M]
        good = tf.gather(viable, behind, axis=1) | (behind == end[:, place, None])
        # The rest begins another text where this one ends.
        good &= behind <= end[:, place, None]
        ids = tf.where(good, found[:, place], FORBIDDEN)                     # [N, M]
        here = tf.one_hot(place, tf.shape(viable)[1], True, False, dtype=tf.bool)
        viable = viable | (here & tf.reduce_any(ids >= 0, axis=-1)[:, None])
        return i + 1, tf.ensure_shape(viable, [None, None]), kept.write(place, ids)

    _, _, kept = tf.while_loop(lambda i, viable, kept: i < width, once,
                               (tf.constant(0), viable, kept))
    return tf.transpose(kept.stack(), [1, 0, 2])
