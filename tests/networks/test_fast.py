"""The fast form of every decoder: it keeps the contract and gives what the reference gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import golden, suite
from tf_infer.config import SmallTransformerConfig
from tf_infer.errors import ConfigError
from tf_infer.networks import build, checkpoints
from tf_infer.networks.cached import own
from tf_infer.networks.fast import FastDecoder
from tf_infer.networks.products import ACTIVATIONS

# Of the logits, which here lie between -8 and 8. float32: the same products in another order, and
# scales that were multiplied in beforehand. bfloat16: 8 bits of mantissa, int8: 7 bits of the
# largest weight of a row, two layers deep.
ATOL = {"float32": 2e-5, "bfloat16": 0.1, "int8": 0.2}
FAMILIES = ("small", "gpt2", "llama3", "llama_tied")


def reference_of(family: str) -> Any:
    if family != "small":
        return golden.layer_of(checkpoints.read(golden.FOLDER / family))
    config = SmallTransformerConfig(width=16, layers=2, heads=2, hidden=32, max_positions=20)
    layer = build.decoder(config, vocab_size=30)
    draw = np.random.default_rng(0)
    for variable in layer.weights:
        variable.assign(variable + draw.normal(size=variable.shape) * 0.3)
    return layer


@pytest.fixture(scope="module", params=FAMILIES)
def reference(request: pytest.FixtureRequest) -> Any:
    return reference_of(request.param)


@pytest.fixture(scope="module")
def decoder(reference: Any) -> Any:
    return FastDecoder(reference)


@pytest.mark.parametrize("precision", ATOL)
def test_it_gives_the_logits_of_the_reference(reference: Any, precision: Any) -> None:
    fast = FastDecoder(reference, precision)
    ids, lengths = suite.rows(reference.vocab_size)
    real = np.arange(12) < lengths[:, None]
    wanted, got = (suite.whole(layer, ids, lengths)[real] for layer in (reference, fast))
    assert np.abs(got - wanted).max() <= ATOL[precision]
    margin = np.diff(np.sort(wanted, axis=-1)[:, -2:], axis=-1)[:, 0]
    clear = margin > 2 * ATOL[precision]
    assert clear.sum() >= 8
    np.testing.assert_array_equal(got[clear].argmax(-1), wanted[clear].argmax(-1))


def test_steps_equal_the_whole(decoder: Any) -> None:
    suite.steps_equal_the_whole(decoder, "graph")


@pytest.mark.slow
def test_steps_equal_the_whole_under_xla(reference: Any) -> None:
    suite.steps_equal_the_whole(FastDecoder(reference, xla=True), "xla")


@suite.on_every_check
def test_it_keeps_the_contract(decoder: Any, check: Callable[[Any], None]) -> None:
    check(decoder)


def test_a_single_step_of_rows_without_a_new_position_keeps_their_cache(decoder: Any) -> None:
    ids, _ = suite.rows(decoder.vocab_size)
    _, before = decoder.prefill(tf.constant(ids[:, :4]), tf.constant([4, 3, 2, 4]), capacity=4)
    # The last row is full: what would stand behind its last position is dropped.
    _, after = decoder.extend(tf.constant(ids[:, 4:5]), tf.constant([0, 1, 0, 1]), before)
    np.testing.assert_array_equal(after.lengths, [4, 4, 2, 5])
    for old, new in zip(tf.nest.flatten(before.layers), tf.nest.flatten(after.layers)):
        np.testing.assert_array_equal(np.array(old)[[0, 2, 3]], np.array(new)[[0, 2, 3]])
        np.testing.assert_array_equal(old[1, :, :3], new[1, :, :3])
        assert np.abs(old[1, :, 3] - new[1, :, 3]).max() > 0


def test_a_cache_is_written_into_only_where_its_owner_says_so(decoder: Any) -> None:
    ids, _ = suite.rows(decoder.vocab_size)
    _, before = decoder.prefill(tf.constant(ids[:, :4]), tf.constant([4, 3, 2, 4]), capacity=6)
    untouched = [np.array(part) for part in tf.nest.flatten(before.layers)]
    step, counts = tf.constant(ids[:, 4:5]), tf.constant([0, 1, 1, 1])
    logits, after = decoder.extend(step, counts, before)
    given = own(before)
    found, written = decoder.extend(step, counts, given, owned=True)
    np.testing.assert_array_equal(found, logits)
    for part, other in zip(tf.nest.flatten(written), tf.nest.flatten(after)):
        np.testing.assert_array_equal(part, other)
    for part, old in zip(tf.nest.flatten(before.layers), untouched):
        np.testing.assert_array_equal(part, old)
    for part, new in zip(tf.nest.flatten(given.layers), tf.nest.flatten(after.layers)):
        np.testing.assert_array_equal(part, new)


@pytest.mark.parametrize("precision", ATOL)
def test_no_rows_give_no_rows(reference: Any, precision: Any) -> None:
    fast = FastDecoder(reference, precision)
    none = tf.zeros([0], tf.int32)
    logits, cache = fast.prefill(tf.zeros([0, 3], tf.int32), none, capacity=5)
    assert logits.shape == (0, reference.vocab_size)
    logits, cache = fast.extend(tf.zeros([0, 1], tf.int32), none, cache)
    assert logits.shape == (0, 1, reference.vocab_size) and cache.layers[0][0].shape[0] == 0


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_row_is_the_same_to_the_last_bit_among_any_number(reference: Any, precision: Any
                                                             ) -> None:
    fast = FastDecoder(reference, precision)
    ids, lengths = suite.rows(reference.vocab_size, count=33)
    free = [tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)]

    @tf.function(input_signature=[*free, free[0]], autograph=False)
    def two_reads(prompt: tf.Tensor, counts: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        _, cache = fast.prefill(prompt, counts, capacity=8)
        return fast.extend(tf.ensure_shape(step, [None, 1]), tf.ones_like(counts), cache)[0]

    def run(rows: slice) -> np.ndarray:
        some = tf.constant(ids[rows])
        return np.array(two_reads(some[:, :5], tf.minimum(lengths[rows], 5), some[:, 5:6]))

    crowd = run(slice(0, 33))
    for count in (1, 2, 17):
        np.testing.assert_array_equal(run(slice(0, count)), crowd[:count])


@pytest.mark.slow
def test_it_runs_from_a_saved_model(decoder: Any, tmp_path: Path) -> None:
    suite.it_runs_from_a_saved_model(decoder, tmp_path)


def test_the_embedding_is_stored_once_and_nothing_can_be_trained() -> None:
    reference = reference_of("gpt2")
    for precision, size in (("float32", 4), ("bfloat16", 2), ("int8", 1)):
        fast = FastDecoder(reference, precision)
        assert fast.head is fast.words and not fast.trainable_weights
        rows = reference.backbone.vocabulary_size
        table = [w.value.dtype.size for w in fast.weights if w.shape[0] == rows
                 and len(w.shape) == 2]
        assert sum(table) == size


def test_later_training_of_the_reference_does_not_show() -> None:
    reference = reference_of("small")
    fast = FastDecoder(reference)
    ids, lengths = suite.rows(reference.vocab_size)
    before = suite.whole(fast, ids, lengths)
    for variable in reference.weights:
        variable.assign(variable * 2.0)
    np.testing.assert_array_equal(suite.whole(fast, ids, lengths), before)


def test_quick_activations_are_those_of_keras() -> None:
    import keras

    places = tf.linspace(-8.0, 8.0, 321)
    wanted = {"gelu": keras.activations.gelu(places, approximate=False),
              "gelu_tanh": keras.activations.gelu(places, approximate=True),
              "relu": keras.activations.relu(places), "silu": keras.activations.silu(places)}
    assert set(wanted) == set(ACTIVATIONS)
    for name, function in ACTIVATIONS.items():
        np.testing.assert_allclose(function(places), wanted[name], rtol=0, atol=2e-6)


def test_a_network_that_is_no_decoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a GPT-2, a Llama or a small_transformer"):
        FastDecoder(build.encoder(SmallTransformerConfig(width=16, heads=2), vocab_size=30))
