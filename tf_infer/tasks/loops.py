"""A decoder's prefill and its two loops, which all signatures share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf

from tf_infer.decoding import record, sampling, staged, stops
from tf_infer.decoding.constraints import LONGEST, first_only
from tf_infer.decoding.contracts import Limits, Processor, SamplingOptions, Start, Watcher
from tf_infer.decoding.loop import Choose, Progress, advance, begin, run
from tf_infer.decoding.processors import History
from tf_infer.decoding.shared import Shared
from tf_infer.decoding.staged import Told
from tf_infer.networks.axes import sizes
from tf_infer.networks.cached import grown, own
from tf_infer.networks.contracts import Cache
from tf_infer.stages import CORE, DECODING
from tf_infer.tasks import options

if TYPE_CHECKING:
    from tf_infer.tasks.causal_lm import CausalLM

Dense = Mapping[str, tf.Tensor]
DRAWING = (*options.SAMPLING, "draw")
ASKS = "asks"  # a dense option of the loops' own: whether any row asks for more than plain options
AT_ONCE, ONE_CHAIN = 16, 128  # positions, see `_alike`; the first is a power of two


class Made(NamedTuple):
    """What a loop made of N rows.

    Attributes:
        ids: [N, L] int32, padding behind the end.
        lengths: [N] int32.
        scores: [N] float32, nats, of ids and end.
        finished: [N] bool, not by the limit.
        log_probs: [N, L] float32, nats, of each id.
        top_ids, top_log_probs: [N, L, A].
        cut: [N] int32, bytes from the end of the text back to a stop string, 0 for none.
        incomplete: [N] bool, the row's constraint asks for more.
        state: [N] int32, of the named constraint.
    """

    ids: tf.Tensor
    lengths: tf.Tensor
    scores: tf.Tensor
    finished: tf.Tensor
    log_probs: tf.Tensor
    top_ids: tf.Tensor
    top_log_probs: tf.Tensor
    cut: tf.Tensor
    incomplete: tf.Tensor
    state: tf.Tensor


class Plain(NamedTuple):
    """The first five of `Made`."""

    ids: tf.Tensor
    lengths: tf.Tensor
    scores: tf.Tensor
    finished: tf.Tensor
    log_probs: tf.Tensor


class _Rules(NamedTuple):
    """What rows are held to: the arguments of `loop.run` behind `start`."""

    limits: Limits
    choose: Choose
    processors: Sequence[Processor]
    watchers: Sequence[Watcher]


class Loops:
    """The loops around a task's network, with their options dense.

    A graph holds each once, whatever asks for it; what XLA compiles holds its own.
    """

    def __init__(self, task: CausalLM) -> None:
        self.task = task

    # ------------------------------------------------------------------ what is shared

    def prefill(self, ids: tf.Tensor, lengths: tf.Tensor) -> Start:
        """Read prompts [B, T]; there is room for `config.capacity` tokens more, or all that fit."""
        return self.with_room(self.read(ids, lengths))

    def read(self, ids: tf.Tensor, lengths: tf.Tensor) -> Start:
        """Read prompts [B, T], and leave no room."""
        found: Start = self._prefill(ids, lengths)
        return found

    def with_room(self, start: Start) -> Start:
        """Give what `read` gave the room that `prefill` gives."""
        cache = grown(start.cache, self._most_positions(start.cache))
        return Start(start.logits, cache)

    def _most_positions(self, cache: Cache, beyond: int = 0) -> tf.Tensor:
        """Return how many positions the loops need behind the prompts of a cache."""
        width = sizes(cache.layers[0][0])[2]
        return _alike(beyond + tf.minimum(
            width + self.task.config.capacity, self.task.network.max_positions))

    def roomy(self, cache: Cache, beyond: int = 0) -> staged.Grown:
        """Return what gives room to a loop in stages that begins with this cache.

        `beyond`: positions of tokens that are read and given up.
        """
        most = self._most_positions(cache, beyond)

        def grow(cache: Cache, room: tf.Tensor) -> Cache:
            return own(grown(cache, tf.where(room > 0, tf.minimum(_alike(room), most), 0)))

        return grow

    def plainly(self, start: Start, dense: Dense) -> Plain:
        """Decode with `max_new_tokens`, `options.SAMPLING` and perhaps `draw` of `dense` alone.

        `start` is what `read` gave.
        """
        given = {"draw": tf.zeros_like(dense["max_new_tokens"]), **dense}
        found: Plain = self._plainly(start, {name: given[name] for name in self._plain_specs})
        return found

    def as_asked(self, start: Start, dense: Dense, *, together: bool = False
                 ) -> tuple[Made, Cache]:
        """Decode with every option; the cache is that which the last step left.

        Args:
            start: of N rows; what `read` gave, or with all the room that is needed.
            dense: what `RowOptions.dense` and `RowConstraints.dense` give (of the last without
                choices for none); `history` [N, H] and `history_length` [N], what each row holds;
                `produced` [N], tokens of it that earlier calls produced; `allowed` [N, W], as in
                `constraints.first_only`; `state` [N], of the named constraint.
            together: there is room already, and all rows stay to the end; else the cache is that of
                the rows which were there last.
        """
        none = tf.zeros_like(dense["state"])[:, None][:, :0]                 # [N, 0]
        given = {"choice_ends": none, "allowed": none,
                 "choice_tokens": none[..., None] + tf.zeros([LONGEST], tf.int32),
                 "produced": tf.zeros_like(dense["state"]), **dense}
        given = {name: given[name] for name in self._asked_specs}
        if self.shapes_stay:
            return self._asked_at_once(start if together else self.with_room(start), given)
        found: tuple[Made, Cache] = self._as_asked(start, given, tf.constant(together))
        return found

    @property
    def shapes_stay(self) -> bool:
        """Whether there are no stages: op by op, and for XLA."""
        return tf.executing_eagerly() or self.task.compiled == "xla"

    @cached_property
    def cache_spec(self) -> Cache:
        """The cache, rows and positions free."""
        with tf.init_scope():
            _, cache = self.task.network.prefill(tf.zeros([1, 1], tf.int32), tf.ones([1], tf.int32),
                                                 capacity=1)
        return Cache(tuple(tuple(tf.TensorSpec([None, part.shape[1], None, part.shape[3]],
                                               part.dtype) for part in layer)
                           for layer in cache.layers), tf.TensorSpec([None], tf.int32))

    @cached_property
    def _plain_specs(self) -> dict[str, tf.TensorSpec]:
        found = self.task.row_options.dense_specs()
        return {name: found[name] for name in ("max_new_tokens", *DRAWING)}

    @property
    def _drawing_specs(self) -> SamplingOptions:
        return self.task.row_options.sampling(self.task.row_options.dense_specs())

    @cached_property
    def _asked_specs(self) -> dict[str, tf.TensorSpec]:
        one, some = tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, None], tf.int32)
        held = self.task.row_constraints.dense_specs()
        del held["at_start"]
        return {**self.task.row_options.dense_specs(), **held, "history": some, "allowed": some,
                "history_length": one, "produced": one, "state": one}

    def _held(self, function: Callable[..., Any], *specs: Callable[[], Any], stage: str = CORE,
              copied: bool = False) -> Callable[..., Any]:
        if self.task.compiled == "xla":
            return function
        return Shared(stage, function, [spec() for spec in specs], optimised=True, copied=copied)

    @cached_property
    def _prefill(self) -> Callable[..., Any]:
        return self._held(self._prefilled, lambda: tf.TensorSpec([None, None], tf.int32),
                          lambda: tf.TensorSpec([None], tf.int32))

    @cached_property
    def _plainly(self) -> Callable[..., Any]:
        return self._held(self._decoded_plainly, self._start_spec, lambda: self._plain_specs)

    @cached_property
    def _as_asked(self) -> Callable[..., Any]:
        return self._held(self._asked_in_stages, self._start_spec, lambda: self._asked_specs,
                          lambda: tf.TensorSpec([], tf.bool))

    @cached_property
    def step(self) -> Callable[..., Any]:
        # Tensors of loops are their own.
        return self._held(partial(self.task.step, owned=True),
                          lambda: tf.TensorSpec([None], tf.int32),
                          lambda: tf.TensorSpec([None], tf.bool), lambda: self.cache_spec,
                          copied=True)

    @cached_property
    def _choose(self) -> Callable[..., Any]:
        return self._held(sampling.choose, lambda: self._start_spec().logits,
                          lambda: self._drawing_specs, lambda: tf.TensorSpec([None], tf.int32),
                          stage=DECODING, copied=True)

    def _start_spec(self) -> Start:
        return Start(tf.TensorSpec([None, self.task.network.vocab_size], tf.float32),
                     self.cache_spec)

    # ------------------------------------------------------------------ the loops themselves

    def _prefilled(self, ids: tf.Tensor, lengths: tf.Tensor) -> Start:
        logits, cache = self.task.network.prefill(ids, tf.maximum(lengths, 1),
                                                  capacity=sizes(ids)[1])
        return Start(tf.cast(logits, tf.float32), cache)

    def _decoded_plainly(self, start: Start, dense: Dense) -> Plain:
        if self.shapes_stay:
            progress, _ = run(self.step, self.with_room(start), *self._plain_rules(dense))
            return _plain(dense, progress)
        found, _ = self._in_stages(start, dense, self._plain_rules(dense),
                                   self._advanced_plainly, _plain)
        return found

    def _asked_in_stages(self, start: Start, dense: Dense, together: tf.Tensor
                         ) -> tuple[Made, Cache]:
        # Found out here, once and not at every token.
        dense = {**dense, ASKS: self._asked(dense) & tf.ones_like(dense["state"], tf.bool)}
        return self._in_stages(start, dense, self._asked_rules(dense), self._advanced_as_asked,
                               self._told, together)

    def _asked_at_once(self, start: Start, dense: Dense) -> tuple[Made, Cache]:
        progress, cache = run(self.step, start, *self._asked_rules(dense))
        return self._told(dense, progress), cache

    def _in_stages(self, start: Start, dense: Dense, rules: _Rules, advanced: staged.Advance,
                   tell: Callable[[Dense, Progress], Told],
                   together: tf.Tensor | bool = False) -> tuple[Told, Cache]:
        return staged.run(
            self.step, start, dict(dense), begin(rules.limits, rules.processors, rules.watchers),
            advanced, tell, width=sizes(start.cache.layers[0][0])[2],
            grown=self.roomy(start.cache), together=together)

    def _plain_rules(self, dense: Dense) -> _Rules:
        off, before = tf.zeros_like(dense["temperature"]), dense.get("produced", 0)
        chosen = SamplingOptions(**{name: dense[name] for name in DRAWING}, min_p=off,
                                 typical_p=off)
        nothing = tf.zeros_like(dense["max_new_tokens"])
        return _Rules(self.task.limits(dense["max_new_tokens"]),
                      lambda values, produced: self._choose(values, chosen, before + produced), (),
                      (record.watcher(nothing, self.task.config.capacity, 0),))

    def _advanced_plainly(self, dense: Dense, progress: Progress, logits: tf.Tensor) -> Progress:
        return advance(progress, logits, *self._plain_rules(dense))

    def _asked_rules(self, dense: Dense) -> _Rules:
        task, config, before = self.task, self.task.config, dense["produced"]
        chosen, length = task.row_options.sampling(dense), dense["history_length"]
        history = History(dense["history"], tf.maximum(length - before, 0), length)
        return _Rules(
            task.limits(dense["max_new_tokens"], dense["stop_ids"]),
            lambda values, produced: self._choose(values, chosen, before + produced),
            (*task.processors(dense, history, before=before), first_only(dense["allowed"]),
             *task.row_constraints.processors(dense)),
            (record.watcher(dense["logprobs"], config.capacity, config.top_logprobs),
             stops.watcher(task.row_options.spellings, dense["stops"] - 1)))

    def _advanced_as_asked(self, dense: Dense, progress: Progress, logits: tf.Tensor) -> Progress:
        def plainly() -> Progress:
            # Nobody asks again later: what only those who ask remember may stay as it is.
            told, *others = progress.seen
            moved = self._advanced_plainly(
                dense, progress._replace(states=(), seen=(told,)), logits)
            return moved._replace(states=progress.states, seen=(*moved.seen, *others))

        return tf.cond(tf.reduce_any(dense[ASKS]),
                       lambda: advance(progress, logits, *self._asked_rules(dense)), plainly)

    def _asked(self, dense: Dense) -> tf.Tensor:
        """Return whether any row asks for more than plain options: [] bool."""
        task = self.task
        return (task.row_options.asked(dense) | task.row_constraints.asked(dense)
                | (tf.size(dense["allowed"]) > 0))

    def _told(self, dense: Dense, progress: Progress) -> Made:
        held = self.task.row_constraints
        told, search = progress.seen
        return Made(progress.ids, progress.lengths, progress.scores, progress.finished,
                    told.log_probs, told.top_ids, told.top_log_probs, search.cut,
                    held.incomplete(dense, progress), held.state_of(progress))


def _alike(positions: tf.Tensor) -> tf.Tensor:
    """Return so much room, or a little more, that sums over it are added up in the same order.

    TensorFlow adds up a softmax 16 numbers at once, and products of one row otherwise below
    ONE_CHAIN columns; the last bit of a sum may decide a rounding to 8 bits. Then how wide the
    prompts beside a row are changes nothing in it.
    """
    whole = tf.bitwise.bitwise_and(positions + (AT_ONCE - 1), -AT_ONCE)
    return tf.maximum(whole, ONE_CHAIN)


def _plain(dense: Dense, progress: Progress) -> Plain:
    del dense
    return Plain(progress.ids, progress.lengths, progress.scores, progress.finished,
                 progress.seen[0].log_probs)
