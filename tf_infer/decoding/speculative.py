"""Speculative decoding: guess several tokens, let the model read them all at once, keep what fits.

The answer is that of `loop.decode`, token by token, for greedy search and for sampling alike: the
token of each place is chosen from the model's own logits, with the row's own draw of that place,
and a guess only decides whether those logits are there already. So a guess can cost time but never
change a token, and the same seed gives the same text with and without guessing.

(The usual rule, Leviathan et al. 2023, arXiv:2211.17192, accepts a guess d drawn from q with
probability min(1, p(d) / q(d)). Choosing first and comparing accepts it with p(d) when the guess is
fixed, which is the same, and a little less often when a draft model draws it.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from tf_infer.decoding import staged
from tf_infer.decoding.contracts import (
    Cache,
    Hypotheses,
    Limits,
    Processor,
    Start,
    StepFn,
    Watcher,
)
from tf_infer.decoding.loop import (
    Choose,
    Progress,
    advance,
    begin,
    hypotheses,
    in_rows,
    with_shapes_of,
)
from tf_infer.decoding.shared import Shared
from tf_infer.stages import DECODING

State: TypeAlias = Any  # what a proposer remembers: tensors with the rows first, or an empty tuple
Advance: TypeAlias = Callable[[Progress, tf.Tensor], Progress]  # with the logits [N, V] of a place


class Target(NamedTuple):
    """The model whose answer it is.

    Attributes:
        extend: ids [N, S] int32, counts [N] int32 in 0 .. S, cache -> logits [N, S, V], cache.
        drop: cache, positions [N] int32 to forget, the last ones -> cache.
    """

    extend: Callable[[tf.Tensor, tf.Tensor, Cache], tuple[tf.Tensor, Cache]]
    drop: Callable[[Cache, tf.Tensor], Cache]


class Proposer(NamedTuple):
    """Who guesses.

    Attributes:
        width: guesses at most in a round, fixed when traced.
        propose: progress, state -> ids [N, width] int32, counts [N] int32, state. The ids are what
            may follow `progress.tokens`; only the first `counts` are meant.
        settle: state, written [N] int32 -> state. How many tokens the round wrote, `tokens` of the
            next one among them; a proposer with a cache forgets what it has read beyond.
        state: before the first round; the rows are those of `Start`.
    """

    width: int
    propose: Callable[[Progress, State], tuple[tf.Tensor, tf.Tensor, State]]
    settle: Callable[[State, tf.Tensor], State]
    state: State


class Guessing(NamedTuple):
    """How well the guesses did: [B] int32 each.

    Attributes:
        rounds: times that the target has read.
        proposed: guesses that it read.
        accepted: of them, those that were what it chose.
    """

    rounds: tf.Tensor
    proposed: tf.Tensor
    accepted: tf.Tensor


class _State(NamedTuple):
    progress: Progress
    cache: Cache
    proposer: State
    guessing: Guessing


class _Rows(NamedTuple):
    """How far rows have come, and how well their guesses did."""

    progress: Progress
    guessing: Guessing

    @property
    def live(self) -> tf.Tensor:
        return self.progress.live


class Rules(NamedTuple):
    """What decides a token, the same in every round."""

    limits: Limits
    choose: Choose
    processors: Sequence[Processor] = ()
    watchers: Sequence[Watcher] = ()


def decode(target: Target, start: Start, limits: Limits, choose: Choose, proposer: Proposer,
           processors: Sequence[Processor] = (), watchers: Sequence[Watcher] = (),
           ) -> tuple[Hypotheses, Guessing]:
    """Produce what `loop.decode` produces with the same decision, in fewer rounds.

    Args:
        target: the model.
        start: what its prefill gave, B rows; the cache has room for the limit of each row.
        limits: capacity, limits and end ids.
        choose: the decision, from logits [N, V] and the tokens produced [N].
        proposer: who guesses.
        processors: change the logits that `choose` sees; a draft's guesses do without them.
        watchers: look at what was chosen.

    Returns:
        Hypotheses with K = 1, and how well the guesses did.

    Runs eagerly, in a graph and under XLA. Cost: a round reads 1 + width tokens; a row of n tokens
    takes at most n - 1 rounds, and n / (1 + width) when every guess is right. A batch goes on
    until its last row has ended.
    """
    rules = Rules(limits, choose, processors, watchers)
    first = advance(begin(limits, processors, watchers), start.logits, *rules)
    state = _State(first, start.cache, proposer.state, _nobody(first))

    def going(state: _State) -> tf.Tensor:
        return tf.reduce_any(state.progress.live)

    def once(state: _State) -> tuple[_State]:
        return (with_shapes_of(_round(
            target, state, limits, lambda progress, logits: advance(progress, logits, *rules),
            proposer), state),)

    (state,) = tf.while_loop(going, once, (state,))
    return hypotheses(state.progress), state.guessing


def decode_in_stages(
        target: Target, start: Start, state: State, options: Any, rules: Callable[[Any], Rules],
        proposer: Callable[[Any], Proposer], *, width: Any,
        grown: Callable[[Cache, State, tf.Tensor], tuple[Cache, State]],
        ) -> tuple[Hypotheses, Guessing]:
    """Do what `decode` does, in a graph whose rows and positions are free; see `staged.stages`.

    Args:
        target: as of `decode`; it may write into the cache that it is given.
        start: what its prefill gave, B rows; its cache need have no room.
        state: what the proposer remembers before the first round.
        options: a nest of tensors, B rows first.
        rules: options of some rows -> what decides their tokens.
        proposer: options of some rows -> who guesses for them; its `state` is not looked at.
        width: as of `staged.run`, of both caches.
        grown: as of `staged.run`, of the target's cache and of what the proposer remembers.
    """
    given = rules(options)
    none = begin(given.limits, given.processors, given.watchers)
    logits = tf.convert_to_tensor(start.logits)
    specs = staged.specs_of((options, none, logits))
    advanced = Shared(DECODING, lambda options, progress, logits: with_shapes_of(
        advance(progress, logits, *rules(options)), progress), specs, copied=True)
    first = Shared(DECODING, advanced, specs)(options, none, logits)  # as in `staged.run`

    def turn(options: Any, rows: _Rows, held: tuple[Cache, State]) -> Any:
        cache, remembered = held
        after = _round(
            target, _State(rows.progress, cache, remembered, rows.guessing), rules(options).limits,
            lambda progress, own: advanced(options, progress, with_shapes_of(own, logits)),
            proposer(options))
        return _Rows(after.progress, after.guessing), (after.cache, after.proposer)

    (progress, guessing), _ = staged.stages(
        turn, _Rows(first, _nobody(first)), options, (start.cache, state),
        lambda options, rows: rows, width=width,
        grown=lambda held, room: grown(held[0], held[1], room),
        reach=1 + proposer(options).width,
        used=lambda before, rows: tf.reduce_max(rows.progress.lengths))
    return hypotheses(progress), guessing


def _nobody(progress: Progress) -> Guessing:
    """Return that nothing was guessed."""
    none = tf.zeros_like(progress.lengths)
    return Guessing(none, none, none)


def _round(target: Target, state: _State, limits: Limits, advanced: Advance,
           proposer: Proposer) -> _State:
    """Guess, read, choose at every place, keep what fits."""
    before = state.progress
    with tf.name_scope(DECODING):
        guesses, counts, remembered = proposer.propose(before, state.proposer)
        # The last token of a row is never read, so no more than that need be guessed.
        room = tf.minimum(limits.max_new_tokens, limits.capacity) - before.lengths - 1
        counts = tf.where(before.live, tf.clip_by_value(counts, 0, tf.maximum(room, 0)), 0)
        reads = tf.where(before.live, counts + 1, 0)
    logits, cache = target.extend(
        tf.concat([before.tokens[:, None], guesses], axis=1), reads, state.cache)
    with tf.name_scope(DECODING):
        progress, written = _written(before, logits, guesses, counts, advanced)
        guessing = Guessing(
            state.guessing.rounds + tf.cast(before.live, tf.int32),
            state.guessing.proposed + counts,
            state.guessing.accepted + tf.where(before.live, tf.minimum(written - 1, counts), 0))
        # The target must have read one token for each that was written: the one pending before.
        return _State(progress, target.drop(cache, tf.maximum(reads - written, 0)),
                      proposer.settle(remembered, written), guessing)


def _written(before: Progress, logits: tf.Tensor, guesses: tf.Tensor, counts: tf.Tensor,
             advanced: Advance) -> tuple[Progress, tf.Tensor]:
    """Choose place by place while the guesses are what was chosen: progress, tokens written [N]."""
    progress, follows = before, before.live
    written = tf.zeros_like(before.lengths)
    width = guesses.shape[1]
    for place in range(width + 1):
        # Places beyond a row's reads hold no logits of its own.
        own = tf.where(follows[:, None], logits[:, place], 0.0)
        progress = in_rows(follows, advanced(progress, own), progress)
        written += tf.cast(follows, tf.int32)
        if place < width:
            follows &= (progress.live & (place < counts)
                        & (guesses[:, place] == progress.tokens))
    return progress, written


def from_draft(step: StepFn, drop: Callable[[Cache, tf.Tensor], Cache], cache: Cache,
               choose: Choose, *, width: int) -> Proposer:
    """Return a proposer that lets a smaller model guess.

    Args:
        step: of the draft model.
        drop: as `Target.drop`, of the draft model.
        cache: what the draft model's prefill of the same prompts gave.
        choose: the decision of the target: with the same draws, draft and target agree whenever
            their distributions put the same token under the draw.
        width: guesses in a round.
    """

    def propose(progress: Progress, cache: Cache) -> tuple[tf.Tensor, tf.Tensor, Cache]:
        tokens, found = progress.tokens, []
        for place in range(width + 1):  # the last one is read only to be remembered
            logits, cache = step(tokens, progress.live, cache)
            if place < width:
                logits = tf.where(progress.live[:, None], logits, 0.0)
                tokens = choose(logits, progress.lengths + place)
                found.append(tokens)
        return (tf.stack(found, axis=1), tf.where(progress.live, width, 0),
                (cache, progress.live))

    def settle(state: tuple[Cache, tf.Tensor], written: tf.Tensor) -> Cache:
        cache, read = state
        return drop(cache, tf.where(read, tf.maximum(width + 1 - written, 0), 0))

    return Proposer(width, propose, settle, cache)


def from_prompt(prompt: tf.Tensor, prompt_lengths: tf.Tensor, *, width: int, ngram: int = 3,
                ) -> Proposer:
    """Return a proposer that looks for the last tokens in what stands before (prompt look-up).

    Args:
        prompt: [B, T] int32, the first `prompt_lengths` [B] int32 of each row count.
        width: guesses in a round.
        ngram: longest run of last tokens that is looked for; shorter ones when it is not found.

    The latest place counts, the longest run first. Needs no model and no cache.
    Source: Saxena 2023, prompt lookup decoding.
    """

    def propose(progress: Progress, state: State) -> tuple[tf.Tensor, tf.Tensor, State]:
        text, total = joined(prompt, prompt_lengths, progress.ids, progress.lengths)
        ends = tf.zeros_like(total)  # one past the run that was found, 0 for none
        for size in range(ngram, 0, -1):
            ends = tf.where(ends > 0, ends, _last_run(text, total, size))
        found = tf.where(progress.live & (ends > 0), tf.minimum(total - ends, width), 0)
        places = tf.minimum(ends[:, None] + tf.range(width), tf.shape(text)[1] - 1)
        return tf.gather(text, places, batch_dims=1), found, state

    return Proposer(width, propose, lambda state, written: state, ())


def joined(prompt: tf.Tensor, prompt_lengths: tf.Tensor, ids: tf.Tensor, lengths: tf.Tensor,
           ) -> tuple[tf.Tensor, tf.Tensor]:
    """[B, T] and [B, L] -> [B, T + L] without a gap between them, and how much of it counts [B]."""
    width = tf.shape(prompt)[1] + tf.shape(ids)[1]
    both = tf.concat([prompt, ids], axis=1)
    places = tf.range(width)[None, :]
    moved = places - prompt_lengths[:, None] + tf.shape(prompt)[1]
    source = tf.where(places < prompt_lengths[:, None], places, moved)
    return (tf.gather(both, tf.minimum(source, width - 1), batch_dims=1),
            prompt_lengths + lengths)


def _last_run(text: tf.Tensor, total: tf.Tensor, size: int) -> tf.Tensor:
    """Return one past the latest place where the last `size` tokens stood before: [B], 0 for none.

    At least one token stands behind that place.
    """
    last = tf.maximum(total[:, None] - size + tf.range(size), 0)             # [B, size]
    wanted = tf.gather(text, last, batch_dims=1)
    width = tf.shape(text)[1]
    padded = tf.pad(text, [[0, 0], [0, size]])
    same = tf.ones_like(text, tf.bool)
    for place in range(size):
        same &= padded[:, place:place + width] == wanted[:, place:place + 1]
    ends = tf.range(width) + size                                            # [T + L]
    same &= ends < total[:, None]
    return tf.reduce_max(tf.where(same, ends, 0), axis=1)
