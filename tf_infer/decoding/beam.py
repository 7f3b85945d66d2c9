"""Beam search: the best continuations of every row; a finished one is frozen.

Two tables are kept for each row. `live` holds the K best unfinished hypotheses, which all have the
same number of tokens and so are ranked by their sums. `done` holds the K best finished ones by
their rank, the sum divided by a power of the length; nothing is ever added to them. A row ends when
its limit is reached or when no live hypothesis can come to rank before the last of `done`, which
is decided by a bound that holds for every continuation; so ending early changes no answer.

Sums and ranks are the model's own. Of what a processor makes of the logits only its bans count: a
token it leaves with `processors.BANNED` is not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_infer.decoding import staged
from tf_infer.decoding.contracts import Cache, Hypotheses, Limits, Processor, Start, StepFn
from tf_infer.decoding.loop import with_shapes_of
from tf_infer.decoding.processors import BANNED
from tf_infer.decoding.score import finite
from tf_infer.decoding.shared import Shared
from tf_infer.stages import DECODING

VOID = -1e30  # sum of a place that holds no hypothesis; float32 holds it, and what is added to it


class BeamOptions(NamedTuple):
    """How hypotheses are ranked, for each row for itself.

    Attributes:
        length_penalty: [B] float32, p: a hypothesis of n tokens (its end token counted) ranks by
            its sum / n ** p. 0 ranks by sums; above 0 favours longer ones, below 0 shorter ones.
        diversity: [B] float32 >= 0, what a token costs in a group for each hypothesis of an earlier
            group that takes it in the same step. Without effect on one group.
    """

    length_penalty: tf.Tensor
    diversity: tf.Tensor


class _Table(NamedTuple):
    """K hypotheses of each group of each row: [B, G, K] each, ids [B, G, K, L]."""

    ids: tf.Tensor
    lengths: tf.Tensor
    sums: tf.Tensor
    ranks: tf.Tensor
    finished: tf.Tensor


class _State(NamedTuple):
    """The loop's variables, B rows first."""

    count: tf.Tensor      # [B] int32, tokens of every live hypothesis
    live: tf.Tensor       # [B] bool, the row still searches
    tokens: tf.Tensor     # [B, G, K] int32, the last ones
    ids: tf.Tensor        # [B, G, K, L] int32, live
    sums: tf.Tensor       # [B, G, K] float32, live
    done: _Table


class _Held(NamedTuple):
    """What there is of each live hypothesis; B x G x K rows first."""

    cache: Cache
    states: tuple[Any, ...]  # what each processor remembers


class Rules(NamedTuple):
    """What a search is held to, the same in every step."""

    limits: Limits
    options: BeamOptions
    processors: Sequence[Processor]


def search(step: StepFn, start: Start, limits: Limits, options: BeamOptions, *, beams: int,
           groups: int = 1, processors: Sequence[Processor] = ()) -> Hypotheses:
    """Find the `beams` best continuations of each row.

    Args:
        step: reads one token of each of B x `beams` rows; see `StepFn`.
        start: what prefill gave, B rows.
        limits: buffer size, tokens allowed for each row, end ids.
        options: length penalty and diversity of each row.
        beams: hypotheses of a row, fixed when traced; a multiple of `groups`.
        groups: > 1 searches in groups of `beams / groups`, each avoiding the tokens of those before
            it (diverse beam search, Vijayakumar et al. 2016, arXiv:1610.02424).
        processors: whose bans hold; their states have B rows.

    Returns:
        Hypotheses with K = `beams`, best rank first, groups put together. `scores` are sums. Where
        a row has fewer hypotheses than K, the last ones are empty and score minus infinity.

    Raises:
        ValueError: `beams` is no multiple of `groups` (checked while tracing).

    Ties go to the hypothesis that was finished first, then to the earlier parent, then to the lower
    id. With `beams` >= V ** capacity the answer is the best of all sequences. A row's answer does
    not depend on its neighbours. Cost: O(capacity) steps of B x `beams` rows.
    Source: Graves 2012, arXiv:1211.3711; the bound as in Huang et al. 2017, arXiv:1809.00069.
    """
    if beams < 1 or groups < 1 or beams % groups:
        raise ValueError(f"beams: expected a multiple of groups = {groups}, got {beams}.")
    rules = Rules(limits, options, processors)
    none, held, logits = _begun(start, rules, (groups, beams // groups))

    def advance(state: _State, states: Any, logits: tf.Tensor) -> Any:
        return _advance(state, states, logits, rules)

    def going(state: _State, held: _Held) -> tf.Tensor:
        del held
        return tf.reduce_any(state.live)

    def once(state: _State, held: _Held) -> tuple[_State, _Held]:
        return _turn(step, state, held, advance)

    with tf.name_scope(DECODING):
        first, states, _ = advance(none, held.states, logits)
    state, _ = tf.while_loop(going, once, (first, held._replace(states=states)))
    return _best_first(state.done)


def search_in_stages(step: StepFn, start: Start, options: Any, rules: Callable[[Any], Rules], *,
                     beams: int, groups: int = 1, width: Any, grown: staged.Grown,
                     prepared: Callable[[Any], Any] = lambda options: options) -> Hypotheses:
    """Do what `search` does, in a graph whose rows and positions are free; see `staged.stages`.

    Args:
        step: as of `search`; it may write into the cache that it is given.
        start: what prefill gave, B rows; its cache need have no room.
        options: a nest of tensors, B rows first.
        rules: what `prepared` gives of the options of some rows -> what these are held to.
        beams, groups: as of `search`.
        width, grown: as of `staged.run`.
        prepared: as of `staged.stages`.
    """
    made = prepared(options)
    none, held, logits = _begun(start, rules(made), (groups, beams // groups))
    specs = staged.specs_of((made, none, held.states, logits))
    advanced = Shared(DECODING, lambda made, state, states, logits: _advance(
        state, states, logits, rules(made)), specs, copied=True)
    # As in `staged.run`.
    first, states, _ = Shared(DECODING, advanced, specs)(made, none, held.states, logits)

    def turn(made: Any, state: _State, held: _Held) -> tuple[_State, _Held]:
        return _turn(step, state, held,
                     lambda state, states, logits: advanced(made, state, states, logits))

    def of(rows: tf.Tensor, held: _Held) -> _Held:
        every = rows[:, None] * beams + tf.range(beams)
        found: _Held = staged.rows_of(tf.reshape(every, [-1]), held)
        return found

    done, _ = staged.stages(
        turn, first, options, held._replace(states=states), lambda options, state: state.done,
        width=width, grown=lambda held, room: held._replace(cache=grown(held.cache, room)),
        prepared=prepared, of=of)
    return _best_first(done)


def _turn(step: StepFn, state: _State, held: _Held, advance: Callable[..., Any]
          ) -> tuple[_State, _Held]:
    """Read the last token of every live hypothesis, and let it take the next."""
    live = state.live[:, None, None] & (state.sums > VOID / 2)               # [B, G, K]
    logits, moved = step(tf.reshape(state.tokens, [-1]), tf.reshape(live, [-1]), held.cache)
    moved = with_shapes_of(moved, held.cache)
    with tf.name_scope(DECODING):
        logits = tf.reshape(logits, tf.concat([tf.shape(live), [tf.shape(logits)[1]]], 0))
        # Places that are not live may hold anything, NaN included.
        logits = tf.where(live[..., None], logits, 0.0)
        after, states, parents = advance(state, held.states, logits)
        return with_shapes_of(after, state), _Held(
            _gathered(moved, parents), with_shapes_of(states, held.states))


def _begun(start: Start, rules: Rules, shape: tuple[int, int]
           ) -> tuple[_State, _Held, tf.Tensor]:
    """Spread each row over its hypotheses: state without a token, what it holds, first logits."""
    limits = rules.limits
    with tf.name_scope(DECODING):
        logits = tf.convert_to_tensor(start.logits)
        rows = tf.shape(logits)[0]
        groups, width = shape
        nothing = tf.zeros([rows, groups, width], tf.int32)
        ids = tf.fill([rows, groups, width, limits.capacity], limits.pad_id)
        void = tf.cast(nothing, tf.float32) + VOID
        allowed = tf.minimum(limits.max_new_tokens, limits.capacity)
        # One hypothesis without tokens; it is the answer where none is allowed.
        empty = tf.where((tf.range(width) == 0) & (allowed == 0)[:, None, None]
                         & (tf.range(groups) == 0)[:, None], 0.0, void)
        done = _Table(ids, nothing, empty, empty, tf.zeros_like(nothing, tf.bool))
        root = tf.where(tf.range(width) == 0, 0.0, void)

        def repeated(nest: Any) -> Any:
            return tf.nest.map_structure(lambda leaf: tf.repeat(leaf, groups * width, axis=0), nest)

        state = _State(tf.zeros_like(allowed), allowed > 0, nothing, ids, root, done)
        held = _Held(repeated(start.cache),
                     tuple(repeated(processor.state) for processor in rules.processors))
        return state, held, tf.broadcast_to(
            logits[:, None, None, :], tf.concat([tf.shape(nothing), [tf.shape(logits)[1]]], 0))


def _advance(state: _State, states: tuple[Any, ...], logits: tf.Tensor, rules: Rules
             ) -> tuple[_State, tuple[Any, ...], tf.Tensor]:
    """Let every live hypothesis take one token: new state, states, and parents [B, G, K] int32.

    A parent is the place 0 .. K - 1 within the group that a live hypothesis continues.
    """
    limits, options, processors = rules
    log_probs = tf.nn.log_softmax(finite(logits))                            # [B, G, K, V]
    sums = tf.maximum(state.sums[..., None] + log_probs, VOID)
    if processors:
        produced = tf.repeat(state.count, sums.shape[1] * sums.shape[2])     # [B * G * K]
        sums = tf.where(_allowed(produced, states, logits, processors), sums, VOID)
    count = state.count + 1                                                  # [B]
    done = state.done
    if limits.end_ids:
        done = _merged(done, _ended(state, sums, limits, options))
    chosen, parents, tokens = _chosen(state, sums, limits, options)
    here = tf.range(limits.capacity) == count[:, None, None, None] - 1
    ids = tf.gather(state.ids, parents, batch_dims=2)                        # [B, G, K, L]
    ids = tf.where(here, tokens[..., None], ids)
    allowed = tf.minimum(limits.max_new_tokens, limits.capacity)             # [B]
    full = (allowed == count)[:, None, None]
    whole = _Table(ids, tf.zeros_like(tokens) + count[:, None, None], tf.where(full, chosen, VOID),
                   tf.where(full & (chosen > VOID / 2), _rank(chosen, count, options), VOID),
                   tf.zeros_like(tokens, tf.bool))
    done = _merged(done, whole)
    held = state.live[:, None, None]
    done = _Table(*(tf.where(held[..., None] if new.shape.rank == 4 else held, new, old)
                    for new, old in zip(done, state.done)))
    going = state.live & (count < allowed) & _can_improve(chosen, done, count, allowed, options)
    taken, live = tf.reshape(tokens, [-1]), tf.reshape(held & (chosen > VOID / 2), [-1])
    states = tuple(processor.accept(before, taken, live) for processor, before
                   in zip(processors, _gathered(states, parents), strict=True))
    # A row that has ended keeps its ids; what its places read is not looked at.
    return _State(tf.where(state.live, count, state.count), going, tokens,
                  tf.where(held[..., None], ids, state.ids), tf.where(held, chosen, state.sums),
                  done), states, parents


def _allowed(produced: tf.Tensor, states: tuple[Any, ...], logits: tf.Tensor,
             processors: Sequence[Processor]) -> tf.Tensor:
    """[B, G, K, V] bool: what no processor bans to a live hypothesis."""
    flat = tf.reshape(finite(logits), [-1, tf.shape(logits)[-1]])            # [B * G * K, V]
    for processor, remembered in zip(processors, states, strict=True):
        flat = processor.change(flat, produced, remembered)
    return tf.reshape(flat, tf.shape(logits)) > BANNED / 2


def _ended(state: _State, sums: tf.Tensor, limits: Limits, options: BeamOptions) -> _Table:
    """Return every live hypothesis as ended by each end id: [B, G, K * E]."""
    ends = tf.gather(sums, tf.constant(limits.end_ids, tf.int32), axis=-1)   # [B, G, K, E]
    flat = tf.concat([tf.shape(ends)[:2], [ends.shape[2] * len(limits.end_ids)]], 0)
    sums = tf.reshape(ends, flat)
    ids = tf.repeat(state.ids, len(limits.end_ids), axis=2)
    count = state.count + 1
    ranks = tf.where(sums > VOID / 2, _rank(sums, count, options), VOID)
    return _Table(ids, tf.zeros_like(sums, tf.int32) + state.count[:, None, None], sums, ranks,
                  tf.ones_like(sums, tf.bool))


def _chosen(state: _State, sums: tf.Tensor, limits: Limits, options: BeamOptions,
            ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Choose the live hypotheses: sums, parents and tokens [B, G, K]; end ids are not chosen."""
    size = tf.shape(sums)[-1]
    if limits.end_ids:
        is_end = tf.reduce_any(tf.range(size)[:, None] == tf.constant(limits.end_ids), axis=-1)
        sums = tf.where(is_end, VOID, sums)
    groups, width = sums.shape[1], sums.shape[2]
    taken = tf.zeros([tf.shape(sums)[0], size])                              # [B, V] how often
    found = []
    for group in range(groups):
        cost = options.diversity[:, None] * taken
        flat = tf.reshape(tf.maximum(sums[:, group] - cost[:, None, :], VOID),
                          [-1, width * size])                                # [B, K * V]
        _, places = tf.math.top_k(tf.pad(flat, [[0, 0], [0, width]], constant_values=VOID),
                                  k=width)
        places = tf.minimum(places, width * size - 1)
        tokens = places % size
        plain = tf.gather(tf.reshape(sums[:, group], [-1, width * size]), places, batch_dims=1)
        # With fewer continuations than places, the same one must not stand twice.
        plain = tf.where(_repeated(places), VOID, plain)
        found.append((plain, places // size, tokens))
        if group + 1 < groups:
            counted = tf.cast(plain > VOID / 2, tf.float32)[..., None]
            taken += tf.reduce_sum(tf.one_hot(tokens, size) * counted, axis=1)
    return tuple(tf.stack(part, axis=1) for part in zip(*found))


def _repeated(places: tf.Tensor) -> tf.Tensor:
    """[B, K] int32 -> [B, K] bool, True where the same number stands before."""
    same = places[:, :, None] == places[:, None, :]
    width = tf.shape(places)[1]
    before = tf.range(width)[None, :] < tf.range(width)[:, None]
    return tf.reduce_any(same & before, axis=-1)


def _rank(sums: tf.Tensor, count: tf.Tensor, options: BeamOptions) -> tf.Tensor:
    """[B, G, K] sums of hypotheses of `count` [] or [B] tokens -> what they rank by."""
    power = tf.pow(tf.cast(count, tf.float32), options.length_penalty)       # [B]
    return sums / power[:, None, None]


def _can_improve(sums: tf.Tensor, done: _Table, count: tf.Tensor, allowed: tf.Tensor,
                 options: BeamOptions) -> tf.Tensor:
    """[B] bool: some continuation of a live hypothesis may yet rank before the last of `done`.

    A sum only falls and is never above 0, so sum / n ** p of any continuation is at most the
    present sum over n ** p for the n that makes it largest: the limit for p > 0, else the next.
    """
    longest = tf.pow(tf.cast(allowed, tf.float32), options.length_penalty)   # [B]
    shortest = tf.pow(tf.cast(count + 1, tf.float32), options.length_penalty)
    bound = sums / tf.maximum(longest, shortest)[:, None, None]
    hope = (sums > VOID / 2) & (bound > done.ranks[:, :, -1:])               # [B, G, K]
    return tf.reduce_any(hope, axis=[1, 2])


def _merged(table: _Table, more: _Table) -> _Table:
    """Keep the K best by rank of two tables; of equals those of `table`."""
    width = table.ranks.shape[2]
    both = _Table(*(tf.concat(pair, axis=2) for pair in zip(table, more)))
    _, places = tf.math.top_k(both.ranks, k=width)
    return _Table(*(tf.gather(part, places, batch_dims=2) for part in both))


def _gathered(cache: Cache, parents: tf.Tensor) -> Cache:
    """Give every live hypothesis the cache of its parent; rows are numbered B x G x K."""
    groups, width = parents.shape[1], parents.shape[2]
    first = tf.range(tf.shape(parents)[0] * groups) * width
    rows = tf.reshape(tf.reshape(parents, [-1, width]) + first[:, None], [-1])
    return tf.nest.map_structure(lambda leaf: tf.gather(leaf, rows), cache)


def _best_first(done: _Table) -> Hypotheses:
    """Put the groups together, best rank first."""
    flat = [tf.reshape(part, tf.concat([[tf.shape(part)[0], done.ranks.shape[1]
                                         * done.ranks.shape[2]], tf.shape(part)[3:]], 0))
            for part in done]
    table = _Table(*flat)
    _, places = tf.math.top_k(table.ranks, k=done.ranks.shape[1] * done.ranks.shape[2])
    table = _Table(*(tf.gather(part, places, batch_dims=1) for part in table))
    real = table.ranks > VOID / 2
    return Hypotheses(ids=table.ids, lengths=tf.where(real, table.lengths, 0),
                      scores=tf.where(real, table.sums, -float("inf")),
                      finished=real & table.finished)
