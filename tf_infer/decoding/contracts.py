"""The types that every decoding algorithm starts from and ends with.

Axis letters: B rows, K hypotheses, L output tokens, V vocabulary, N rows inside a loop (B or B*K).
A `Cache` here is any nest of tensors with the row axis first in every leaf: an algorithm may only
gather its rows and hand it on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

Cache: TypeAlias = Any

# tokens [N] int32, live [N] bool, cache -> logits [N, V] float32, cache. Rows that are not live
# keep their cache as it is, and their logits are not looked at. In a graph this is a decoder's
# `extend` with S = 1; around an engine it is the engine's own step.
StepFn: TypeAlias = Callable[[tf.Tensor, tf.Tensor, Cache], tuple[tf.Tensor, Cache]]


class Start(NamedTuple):
    """Where decoding begins: what `prefill` gave.

    Attributes:
        logits: [B, V] float32, of each row's first new token.
        cache: leading axis B in every leaf.
    """

    logits: tf.Tensor
    cache: Cache


class Limits(NamedTuple):
    """How far decoding goes.

    Attributes:
        capacity: L, size of the output buffer, fixed when traced.
        max_new_tokens: [B] int32, 0 .. capacity, chosen at run time.
        end_ids: ids that end a row; may be empty.
        pad_id: stands in the buffer behind a row's last token.
        stop_ids: [B, E] int32, ids that end this row as well, -1 for none; None for no row.
    """

    capacity: int
    max_new_tokens: tf.Tensor
    end_ids: tuple[int, ...]
    pad_id: int
    stop_ids: tf.Tensor | None = None


class Processor(NamedTuple):
    """Changes logits before a token is chosen, and remembers for each row what it needs for that.

    Attributes:
        state: before the first token: a nest of tensors with the row axis first in every leaf.
        change: logits [N, V] float32, produced [N] int32, state -> logits [N, V]. `produced` is
            how many tokens each row has. A row's result depends on that row alone.
        accept: state, tokens [N] int32, live [N] bool -> state, after each choice; only live rows
            have chosen, end ids included.
    """

    state: Any
    change: Callable[[tf.Tensor, tf.Tensor, Any], tf.Tensor]
    accept: Callable[[Any, tf.Tensor, tf.Tensor], Any]


class Choice(NamedTuple):
    """What was chosen in one step.

    Attributes:
        logits: [N, V] float32, the model's own.
        tokens: [N] int32.
        log_probs: [N] float32, nats, of these tokens under the model.
        kept: [N] bool, the token is part of the row; False in rows that are over, and of end ids.
        produced: [N] int32, tokens the row had before.
    """

    logits: tf.Tensor
    tokens: tf.Tensor
    log_probs: tf.Tensor
    kept: tf.Tensor
    produced: tf.Tensor


class Watcher(NamedTuple):
    """Looks at what is chosen, remembers what it needs, and may end rows.

    Attributes:
        state: before the first token: a nest of tensors with the row axis first in every leaf.
        watch: choice, state -> rows that end with this token [N] bool, state.
    """

    state: Any
    watch: Callable[[Choice, Any], tuple[tf.Tensor, Any]]


class SamplingOptions(NamedTuple):
    """How the next token is drawn, for each row for itself.

    Attributes:
        temperature: [B] float32 >= 0; 0 takes the best token (greedy) and ignores the rest.
        top_k: [B] int32, keep the k best tokens; 0 or >= V keeps all.
        top_p: [B] float32 in (0, 1], keep the smallest set with at least this mass; 1 keeps all.
        seed: [B] int64, of the row; the same seed and logits give the same tokens on every path
            and beside any neighbours.
        min_p: [B] float32 in [0, 1], keep tokens with at least this share of the best token's
            probability; 0 keeps all. None for no row.
        typical_p: [B] float32 in (0, 1], of what is left keep the tokens whose information lies
            nearest to the entropy, as few as have at least this mass; 1 keeps all. None for no row.
        draw: [B] int32 >= 0, which of several draws with one seed this is; None for 0.
    """

    temperature: tf.Tensor
    top_k: tf.Tensor
    top_p: tf.Tensor
    seed: tf.Tensor
    min_p: tf.Tensor | None = None
    typical_p: tf.Tensor | None = None
    draw: tf.Tensor | None = None


class Hypotheses(NamedTuple):
    """What decoding found, best first.

    Attributes:
        ids: [B, K, L] int32, pad_id after the end; the end token itself is not in it.
        lengths: [B, K] int32, without the end token.
        scores: [B, K] float32, sum of the natural-log probabilities of the model itself, before
            temperature and filters, over the ids and the end token where one was produced.
        finished: [B, K] bool, True where the row ended with an end id or a watcher ended it, False
            where its limit came first.
    """

    ids: tf.Tensor
    lengths: tf.Tensor
    scores: tf.Tensor
    finished: tf.Tensor
