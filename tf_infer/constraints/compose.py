"""An automaton over bytes and the bytes of every token -> the automaton over tokens.

The tokens form a tree of their beginnings. A node of it is a function: the state behind its bytes
for every state before them. Level by level the functions of the nodes are made from those of their
parents, each different one once, so the cost is that of the different functions and not of the
tokens: a vocabulary of 50,257 tokens has a few hundred of them for a usual schema.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from tf_infer.constraints.automaton import FORBIDDEN, TokenAutomaton
from tf_infer.constraints.byte_automaton import Bounds, ByteAutomaton
from tf_infer.errors import ConfigError
from tf_infer.token_bytes import TokenBytes

CHUNK = 2_048         # states whose functions are made at once
MULTIPLIERS = 2       # of independent hashes that tell functions apart


class Level(NamedTuple):
    """The nodes of one depth of the tree.

    Attributes:
        parents: [n] place of the parent among the nodes of the level before.
        bytes: [n] uint8, the last byte.
        ends: [m] ids of tokens that end here.
        at: [m] the node of each.
    """

    parents: np.ndarray
    bytes: np.ndarray
    ends: np.ndarray
    at: np.ndarray


class Vocabulary:
    """The tokens of a model, ready to be put together with any automaton over bytes.

    Args:
        tokens: the bytes of every id.
        size: V, ids of the network; those that `tokens` does not know may never come.
        end_ids: end a text; may come in accepting states and nowhere else.
    """

    def __init__(self, tokens: TokenBytes, size: int, end_ids: tuple[int, ...]) -> None:
        if not end_ids:
            raise ConfigError("end_ids: expected at least one id that ends a text, got none. A "
                              "model without one cannot say that a constrained text is over.")
        if not all(0 <= number < size for number in end_ids):
            raise ConfigError(f"end_ids: expected ids below {size}, got {end_ids}.")
        self.tokens, self.size, self.end_ids = tokens, size, end_ids
        plain = [b"" if number in end_ids else token
                 for number, token in enumerate(tokens.tokens[:size])]
        self.levels = _tree(plain)
        self.first_levels: list[Level] | None = None
        if tokens.first != tokens.tokens:
            self.first_levels = _tree([b"" if number in end_ids else token
                                       for number, token in enumerate(tokens.first[:size])])


def compose(automaton: ByteAutomaton, vocabulary: Vocabulary, bounds: Bounds, *, where: str
            ) -> TokenAutomaton:
    """Return the automaton over tokens that lets the same texts through.

    Raises:
        ConfigError: it is too large (`bounds`), or the vocabulary cannot spell any of the texts.
    """
    deadline = time.monotonic() + bounds.seconds
    dead = automaton.dead
    byte_class, table = _byte_classes(automaton)
    columns, tables = [], []
    for begin in range(0, dead, CHUNK):
        states = np.arange(begin, min(begin + CHUNK, dead), dtype=np.int32)
        classes, functions = _functions(vocabulary.levels, vocabulary.size, states, table,
                                        byte_class, dead, deadline, bounds, where)
        columns.append(classes)
        tables.append(functions)
    class_of, members = _joined(columns)
    if len(members) * dead * 4 > bounds.bytes:
        raise bounds.refuse(where, f"{dead} states of {len(members)} classes of tokens")
    step = np.concatenate([functions[members[:, i]] for i, functions in enumerate(tables)],
                          axis=1).T                                          # [D, C]
    step = np.where(step == dead, FORBIDDEN, step).astype(np.int32)
    first = None
    if vocabulary.first_levels is not None:
        start = np.zeros(1, np.int32)
        classes, functions = _functions(vocabulary.first_levels, vocabulary.size, start, table,
                                        byte_class, dead, deadline, bounds, where)
        target = functions[classes, 0]
        first = np.where(target == dead, FORBIDDEN, target).astype(np.int32)  # [V]
    return _finished(class_of, step, automaton.accepting[:dead], first, vocabulary, where)


def _tree(tokens: list[bytes]) -> list[Level]:
    """Return the tree of the tokens' beginnings without its root; empty tokens are not in it."""
    ids = np.array([number for number, token in enumerate(tokens) if token], np.int64)
    longest = max(map(len, tokens), default=0)
    sizes = np.array([len(tokens[number]) for number in ids], np.int64)
    data = b"".join(tokens[number] for number in ids)
    flat, begin = np.frombuffer(data, np.uint8), np.cumsum(sizes) - sizes
    node = np.zeros(len(ids), np.int64)
    levels = []
    for depth in range(longest):
        live = sizes > depth
        ids, sizes, begin, node = ids[live], sizes[live], begin[live], node[live]
        keys, node = np.unique(node * 256 + flat[begin + depth], return_inverse=True)
        ends = sizes == depth + 1
        levels.append(Level(keys // 256, (keys % 256).astype(np.uint8), ids[ends], node[ends]))
    return levels


def _byte_classes(automaton: ByteAutomaton) -> tuple[np.ndarray, np.ndarray]:
    """Return the class of each byte [256], and the states behind it: [K, D + 1] int32."""
    table, class_of = np.unique(automaton.next.T, axis=0, return_inverse=True)
    return class_of.reshape(-1), np.ascontiguousarray(table)


def _functions(levels: list[Level], size: int, states: np.ndarray, table: np.ndarray,
               byte_class: np.ndarray, dead: int, deadline: float, bounds: Bounds, where: str
               ) -> tuple[np.ndarray, np.ndarray]:
    """Return the function of every token on some states: class [V], and functions [C, D'].

    Class 0 is that of tokens that lead nowhere from all of these states, and of empty ones.
    """
    nowhere = np.full_like(states, dead)
    found: list[np.ndarray] = [nowhere[None]]      # functions of tokens, level by level
    class_of = np.zeros(size, np.int64)
    known = 1
    functions = states[None]                       # of the nodes of the level before: [F, D']
    of_node = np.zeros(1, np.int64)                # which of them, of each node; -1 leads nowhere
    for level in levels:
        parent = of_node[level.parents]
        live = parent >= 0
        kinds = len(table)
        keys, inverse = np.unique(parent[live] * kinds + byte_class[level.bytes[live]],
                                  return_inverse=True)
        functions, index = _stepped(functions, keys // kinds, keys % kinds, table, nowhere)
        of_node = np.full(len(parent), -1, np.int64)
        of_node[live] = index[inverse]
        ends = of_node[level.at]
        used, place = np.unique(ends[ends >= 0], return_inverse=True)
        class_of[level.ends[ends >= 0]] = known + place
        found.append(functions[used])
        known += len(used)
        if known * functions.shape[1] * 4 > 4 * bounds.bytes:
            raise bounds.refuse(where, f"{known} classes of tokens")
        if time.monotonic() > deadline:
            raise bounds.refuse(where, "one that takes longer")
        if not len(functions):
            break
    every = np.concatenate(found)
    distinct, first = _distinct(every)
    order = np.argsort(first)                      # class 0 stays the one that leads nowhere
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[distinct][class_of], every[first[order]]


def _stepped(functions: np.ndarray, sources: np.ndarray, kinds: np.ndarray, table: np.ndarray,
             nowhere: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make functions of those before them and a byte: distinct ones [F, D'], and which each is.

    -1 says that it leads nowhere.
    """
    made = [table[kind, functions[source]] for source, kind in zip(sources, kinds)]
    if not made:
        return functions[:0], np.zeros(0, np.int64)
    every = np.stack(made)
    live = (every != nowhere).any(axis=1)
    distinct, first = _distinct(every[live])
    index = np.full(len(every), -1, np.int64)
    index[live] = distinct
    return every[live][first], index


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which distinct row each is [n], and one example of each [m]."""
    if not len(rows):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    _, first, inverse = np.unique(_hashes(rows), axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    if not (rows == rows[first][inverse]).all():   # two rows of one hash
        _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        inverse = inverse.reshape(-1)
    return inverse, first


def _hashes(rows: np.ndarray) -> np.ndarray:
    """Return [n, MULTIPLIERS] hashes of rows of states."""
    draws = np.random.default_rng(7).integers(1, 2**62, (rows.shape[1], MULTIPLIERS)) | 1
    found: np.ndarray = (rows.astype(np.int64) + 1) @ draws.astype(np.int64)
    return found


def _joined(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Join the classes of several groups of states: class [V], and its members [C, groups]."""
    if len(columns) == 1:
        return columns[0], np.arange(columns[0].max() + 1)[:, None]
    members, class_of = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    return class_of.reshape(-1), members


def _finished(class_of: np.ndarray, step: np.ndarray, accepting: np.ndarray,
              first: np.ndarray | None, vocabulary: Vocabulary, where: str) -> TokenAutomaton:
    """Add the end ids and the first state, and drop states that no text goes through."""
    states, ended = len(step), len(step)
    if first is not None:  # one more state, whose row is not made of classes: they are split
        pairs, class_of = np.unique(np.stack([class_of, first], axis=1), axis=0,
                                    return_inverse=True)
        class_of = class_of.reshape(-1)
        step = np.concatenate([step[:, pairs[:, 0]], pairs[None, :, 1].astype(np.int32)])
        accepting = np.append(accepting, accepting[0])
        states, ended = states + 1, states + 1
    class_of = class_of.copy()
    class_of[list(vocabulary.end_ids)] = step.shape[1]
    ends = np.where(accepting, ended, FORBIDDEN).astype(np.int32)
    step = np.concatenate([step, ends[:, None]], axis=1)
    step = np.concatenate([step, np.full((1, step.shape[1]), FORBIDDEN, np.int32)])
    accepting = np.append(accepting, True)
    roots = [0] if first is None else [0, ended - 1]
    kept = _reaching(step, ended)
    kept &= _reached(np.where(kept[step], step, FORBIDDEN), [root for root in roots if kept[root]])
    if not kept[0]:
        raise ConfigError(f"{where}: expected a text that this vocabulary can spell, got a "
                          "constraint that allows none. Allow other characters.")
    number = np.full(len(step) + 1, FORBIDDEN, np.int32)
    number[:-1][kept] = np.arange(kept.sum(), dtype=np.int32)
    step = number[step[kept]]                      # FORBIDDEN is the last place of `number`
    used, class_of = np.unique(class_of, return_inverse=True)
    table, same = np.unique(step[:, used].T, axis=0, return_inverse=True)
    return TokenAutomaton(
        class_of=same.reshape(-1)[class_of.reshape(-1)].astype(np.int32),
        next=np.ascontiguousarray(table.T.astype(np.int32)), accepting=accepting[kept],
        first=0 if first is None else int(number[ended - 1]))


def _reached(step: np.ndarray, roots: list[int]) -> np.ndarray:
    """Return which states are reached from the roots: [S] bool."""
    seen = np.zeros(len(step), bool)
    front = np.array(roots)
    while len(front):
        seen[front] = True
        following = np.unique(step[front])
        front = following[(following >= 0) & ~seen[following]]
    return seen


def _reaching(step: np.ndarray, goal: int) -> np.ndarray:
    """Return which states lead to the goal: [S] bool."""
    edges = [np.unique(row[row >= 0]) for row in step]
    sources = np.repeat(np.arange(len(step)), [len(targets) for targets in edges])
    targets = np.concatenate(edges)
    order = np.argsort(targets, kind="stable")
    sources, begin = sources[order], np.searchsorted(targets[order], np.arange(len(step) + 1))
    seen = np.zeros(len(step), bool)
    front = [goal]
    while front:
        seen[front] = True
        before = np.unique(np.concatenate(
            [sources[begin[state]:begin[state + 1]] for state in front]))
        front = before[~seen[before]].tolist()
    return seen
