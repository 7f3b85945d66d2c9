"""What every decoder must do: the same checks for ours and for every family of KerasHub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_infer.networks.contracts import Cache

ATOL, RTOL = 1e-4, 1e-5  # float32 logits; the cached path multiplies other shapes
CAPACITY = 16
PATHS: dict[str, Any] = {
    "eager": lambda function: function,
    "graph": lambda function: tf.function(function, autograph=False),
    "xla": lambda function: tf.function(function, jit_compile=True, autograph=False),
}


def rows(vocabulary: int, *, count: int = 4, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Return ids [B, width] int32 and lengths [B], different ones."""
    ids = np.random.default_rng(5).integers(0, vocabulary, (count, width)).astype(np.int32)
    return ids, np.linspace(width, width // 2, count).astype(np.int32)


def whole(decoder: Any, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return logits [B, T, V] of the whole forward."""
    return np.array(decoder(tf.constant(ids), tf.sequence_mask(lengths, ids.shape[1])))


def close(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.array(got), np.array(wanted), atol=ATOL, rtol=RTOL)


def steps_equal_the_whole(decoder: Any, path: str) -> None:
    """Prefill and chunks of different sizes per row give what one forward gives."""
    ids, lengths = rows(decoder.vocab_size)
    wanted = whole(decoder, ids, lengths)
    prompt = np.array([3, 1, 4, 2], np.int32)
    prefill = PATHS[path](lambda i, n: decoder.prefill(i, n, capacity=CAPACITY))
    extend = PATHS[path](decoder.extend)
    logits, cache = prefill(tf.constant(ids[:, :5]), tf.constant(prompt))
    close(logits, wanted[np.arange(4), prompt - 1])
    done = prompt.copy()
    for width, counts in ((3, [3, 0, 2, 1]), (1, [1, 1, 0, 1]), (3, [0, 3, 3, 2]), (1, [1] * 4)):
        counts = np.minimum(counts, lengths - done).astype(np.int32)
        chunk = np.stack([np.resize(ids[n, done[n]:], width) if done[n] < 12
                          else np.zeros(width, np.int32) for n in range(4)])
        logits, cache = extend(tf.constant(chunk), tf.constant(counts), cache)
        for n, count in enumerate(counts):
            close(logits[n, :count], wanted[n, done[n]:done[n] + count])
        done += counts
        np.testing.assert_array_equal(cache.lengths, done)


def idle_rows_keep_their_cache(decoder: Any) -> None:
    ids, _ = rows(decoder.vocab_size)
    _, before = decoder.prefill(tf.constant(ids[:, :4]), tf.constant([4, 3, 2, 1]),
                                capacity=CAPACITY)
    _, after = decoder.extend(tf.constant(ids[:, 4:6]), tf.constant([0, 2, 0, 1]), before)
    np.testing.assert_array_equal(after.lengths, [4, 5, 2, 2])
    for old, new in zip(tf.nest.flatten(before.layers), tf.nest.flatten(after.layers)):
        np.testing.assert_array_equal(old[0], new[0])
        np.testing.assert_array_equal(old[2], new[2])
        assert np.abs(old[1] - new[1]).max() > 0


def rolled_back_rows_go_on_as_if_nothing_had_been(decoder: Any) -> None:
    ids, lengths = rows(decoder.vocab_size)
    wanted = whole(decoder, ids, lengths)
    _, cache = decoder.prefill(tf.constant(ids[:, :4]), tf.constant([4] * 4), capacity=CAPACITY)
    wrong = tf.constant((ids[:, 4:7] + 1) % decoder.vocab_size)
    _, cache = decoder.extend(wrong, tf.constant([3, 2, 1, 0]), cache)
    cache = decoder.rollback(cache, tf.constant([4, 3, 2, 9]))
    np.testing.assert_array_equal(cache.lengths, [4, 3, 2, 4])
    places = np.array([[4, 5], [3, 4], [2, 3], [4, 5]])
    again = np.take_along_axis(ids, places, 1)
    logits, _ = decoder.extend(tf.constant(again), tf.constant([2] * 4), cache)
    close(logits, wanted[np.arange(4)[:, None], places])


def a_row_alone_equals_the_row_in_a_crowd(decoder: Any) -> None:
    """Rows gathered out of a cache, as beam search does, and dead positions full of garbage."""
    ids, _ = rows(decoder.vocab_size)
    prompt = tf.constant([5, 2, 3, 1])
    crowd, cache = decoder.prefill(tf.constant(ids[:, :5]), prompt, capacity=CAPACITY)
    crowd_next, _ = decoder.extend(tf.constant(ids[:, 5:6]), tf.constant([1] * 4), cache)
    for n, length in enumerate(prompt.numpy()):
        one = slice(n, n + 1)
        alone, own = decoder.prefill(tf.constant(ids[one, :length]), prompt[one],
                                     capacity=CAPACITY + 3)
        close(alone[0], crowd[n])
        own = Cache(tf.nest.map_structure(lambda t, k=length: with_garbage(t, k), own.layers),
                    own.lengths)
        alone_next, _ = decoder.extend(tf.constant(ids[one, 5:6]), tf.constant([1]), own)
        close(alone_next[0], crowd_next[n])
        gathered = tf.nest.map_structure(lambda t, i=n: tf.gather(t, [i, i]), cache)
        twice, _ = decoder.extend(tf.constant(ids[[n, n], 5:6]), tf.constant([1, 1]), gathered)
        close(twice, np.stack([crowd_next[n]] * 2))


def with_garbage(tensor: tf.Tensor, length: int) -> tf.Tensor:
    live = tf.sequence_mask(length, tensor.shape[2])[None, None, :, None]
    return tf.where(live, tensor, 1e6)


class Exported(tf.Module):
    """Prefill and a loop of greedy steps as one signature, rows and capacity free."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def generate(self, ids: tf.Tensor, lengths: tf.Tensor, steps: tf.Tensor
                 ) -> dict[str, tf.Tensor]:
        capacity = tf.shape(ids)[1] + steps
        logits, cache = self.decoder.prefill(ids, lengths, capacity=capacity)
        found = tf.TensorArray(tf.int32, size=0, dynamic_size=True, element_shape=[None])
        _, logits, cache, found = tf.while_loop(
            lambda i, *_: i < steps, self._step, (0, logits, cache, found))
        return {"ids": tf.transpose(found.stack()), "lengths": cache.lengths}

    def _step(self, i: tf.Tensor, logits: tf.Tensor, cache: Cache, found: Any) -> Any:
        best = tf.argmax(logits, axis=-1, output_type=tf.int32)
        logits, cache = self.decoder.extend(best[:, None], tf.ones_like(best), cache)
        return i + 1, logits[:, 0], cache, found.write(i, best)


def it_runs_from_a_saved_model(decoder: Any, directory: Path) -> None:
    """A loop over the cache, saved with free rows, width and capacity, finds the greedy ids."""
    module = Exported(decoder)
    archive = keras.export.ExportArchive()
    archive.track(decoder)
    archive.add_endpoint("generate", module.generate, [
        tf.TensorSpec([None, None], tf.int32, "ids"), tf.TensorSpec([None], tf.int32, "lengths"),
        tf.TensorSpec([], tf.int32, "steps")])
    archive.write_out(str(directory), verbose=False)
    loaded = tf.saved_model.load(str(directory))
    for count, width, steps in ((1, 3, 4), (3, 5, 6)):
        ids, _ = rows(decoder.vocab_size, count=count, width=width)
        lengths = np.arange(width, width - count, -1).astype(np.int32)
        got = loaded.generate(ids=ids, lengths=lengths, steps=steps)["ids"].numpy()
        for n, length in enumerate(lengths):
            line = np.concatenate([ids[n, :length], got[n]])[None]
            logits = whole(decoder, line, np.array([length + steps]))[0, length - 1:-1]
            chosen = logits[np.arange(steps), got[n]]
            assert (chosen > logits.max(axis=1) - ATOL).all()


# Run op by op; every decoder must pass each.
CHECKS = (idle_rows_keep_their_cache, rolled_back_rows_go_on_as_if_nothing_had_been,
          a_row_alone_equals_the_row_in_a_crowd)
on_every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
