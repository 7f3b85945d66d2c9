"""The fast form of every classifier: what the reference gives, in any company to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.networks.encoders import POSITIONS, classifier, rows
from tf_infer.config import SmallTransformerConfig
from tf_infer.networks.encoder_arrays import encoder_arrays_of
from tf_infer.networks.fast_encoder import EncoderForm, FastClassifier, layer_names
from tf_infer.networks.token_layout import Joined

# Of logits between -6 and 6, two layers deep. float32: the same products in another order, scales
# multiplied in beforehand. bfloat16: 8 bits of mantissa, int8: 7 bits of the largest of a row.
ATOL = {"float32": 3e-5, "bfloat16": 0.1, "int8": 0.2}
WIDTHS = (8, 16, POSITIONS)
LENGTHS = (1, 9, 3, 40, 16, 17, 8, 2, 12)
CASES = [("bert", "pooler"), ("small", "mean"),
         *(pytest.param(case, marks=pytest.mark.slow) for case in (
             ("distilbert", "first"), ("roberta", "max"), ("small", "first")))]
PACKED = ("bfloat16", "int8")


def form(precision: Any, **changes: Any) -> EncoderForm:
    return EncoderForm(**{"precision": precision, "widths": WIDTHS, "floats": (
        "float32" if precision == "float32" else "bfloat16"), **changes})


def in_graph(network: Any) -> Callable[..., np.ndarray]:
    """Return logits of ids, mask, segments, all from one trace with free shapes."""
    specs = [tf.TensorSpec([None, None], dtype) for dtype in (tf.int32, tf.bool, tf.int32)]
    traced = tf.function(lambda *given: network(*given), input_signature=specs, autograph=False)
    return lambda ids, mask, segments: traced(ids, mask, segments).numpy()


@pytest.fixture(scope="module", params=CASES, ids=str)
def reference(request: pytest.FixtureRequest) -> Any:
    return classifier(*request.param)


@pytest.fixture(scope="module")
def made(reference: Any) -> dict[str, Callable[..., np.ndarray]]:
    arrays = encoder_arrays_of(reference)
    return {precision: in_graph(FastClassifier(arrays, form(precision))) for precision in ATOL}


@pytest.mark.parametrize("precision", ATOL)
def test_it_gives_the_logits_of_the_reference(reference: Any, made: Any, precision: str) -> None:
    batch = rows(LENGTHS, 40)
    wanted, got = np.array(reference(*batch.values())), made[precision](**batch)
    assert np.abs(got - wanted).max() <= ATOL[precision]
    margin = np.diff(np.sort(wanted, axis=-1)[:, -2:], axis=-1)[:, 0]
    clear = margin > 2 * ATOL[precision]
    assert clear.sum() >= 3
    np.testing.assert_array_equal(got[clear].argmax(-1), wanted[clear].argmax(-1))


@pytest.mark.parametrize("precision", PACKED)
def test_a_row_is_the_same_to_the_last_bit_in_any_company(made: Any, precision: str) -> None:
    batch = rows(LENGTHS * 4, 40)
    crowd = made[precision](**batch)
    for row, length in enumerate(LENGTHS):
        for width in {length, 40}:  # with its padding and without
            alone = {name: array[row:row + 1, :width] for name, array in batch.items()}
            np.testing.assert_array_equal(made[precision](**alone)[0], crowd[row])
    order = np.random.default_rng(0).permutation(len(crowd))
    shuffled = made[precision](**{name: array[order] for name, array in batch.items()})
    np.testing.assert_array_equal(shuffled, crowd[order])


@pytest.mark.parametrize("precision", PACKED)
def test_a_row_of_a_wide_network_is_too(precision: str) -> None:
    """Sums of some hundred terms, which float32 products add in an order that depends on rows."""
    wide = SmallTransformerConfig(width=192, layers=1, heads=3, hidden=384, max_positions=POSITIONS)
    network = in_graph(FastClassifier(encoder_arrays_of(classifier(wide, "first")),
                                      form(precision)))
    batch = rows(LENGTHS * 4, 40)
    crowd = network(**batch)
    for row, length in enumerate(LENGTHS):
        alone = {name: array[row:row + 1, :length] for name, array in batch.items()}
        np.testing.assert_array_equal(network(**alone)[0], crowd[row])


@pytest.mark.parametrize("precision", ATOL)
def test_a_row_without_a_token_is_a_row_of_one(made: Any, precision: str) -> None:
    batch = rows((0, 5, 0), 8)
    crowd = made[precision](**batch)
    assert np.isfinite(crowd).all()
    np.testing.assert_allclose(crowd[0], crowd[2], rtol=0, atol=1e-5)
    alone = made[precision](**{name: array[:1, :1] for name, array in batch.items()})
    np.testing.assert_allclose(alone[0], crowd[0], rtol=0, atol=1e-5)


def test_no_rows_give_no_rows(made: Any) -> None:
    for precision in ATOL:
        assert made[precision](**rows((), 8)).shape == (0, 3)


def test_op_by_op_is_the_graph(reference: Any) -> None:
    network = FastClassifier(encoder_arrays_of(reference), form("float32"))
    batch = rows(LENGTHS, 40)
    got = in_graph(network)(**batch)
    np.testing.assert_allclose(network(*batch.values()), got, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", PACKED)
def test_op_by_op_the_layers_give_what_the_graph_gives_to_the_last_bit(
        reference: Any, precision: str) -> None:
    """A last bit decides what a product rounds to 8 bits: with 77 classes logits moved by 0.3."""
    network = FastClassifier(encoder_arrays_of(reference), form(precision))

    def hidden(ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor) -> tf.Tensor:
        layout = Joined(mask, tf.constant(40), 400)
        found = network.embed.look_up(layout, ids, segments)
        for block in network.stack:
            found = block.read(found, layout)
        return found

    batch = [tf.constant(array) for array in rows(LENGTHS, 40).values()]
    specs = [tf.TensorSpec([None, None], one.dtype) for one in batch]
    traced = tf.function(hidden, autograph=False, input_signature=specs)
    np.testing.assert_array_equal(traced(*batch), hidden(*batch))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ATOL)
def test_xla_gives_the_logits_of_the_reference(reference: Any, precision: str) -> None:
    network = FastClassifier(encoder_arrays_of(reference),
                             form(precision, xla=True, floats="float32"))
    batch = rows(LENGTHS, 40)
    compiled = tf.function(lambda *given: network(*given), jit_compile=True, autograph=False)
    got = np.array(compiled(*batch.values()))
    assert np.abs(got - np.array(reference(*batch.values()))).max() <= ATOL[precision]


def test_what_is_kept_is_float() -> None:
    arrays = encoder_arrays_of(classifier("bert"))
    names = layer_names(arrays)
    assert names[:3] == ("words", "layers[0].qkv", "layers[0].out") and len(names) == 9
    batch = rows(LENGTHS, 40)
    whole, none = (in_graph(FastClassifier(arrays, form(precision, floats="float32", keep=kept)))(
        **batch) for precision, kept in (("int8", frozenset(names)), ("float32", frozenset())))
    np.testing.assert_array_equal(whole, none)
    network = FastClassifier(arrays, form("int8", keep=frozenset({"layers[1].inner", "words"})))
    kept = [(layer.name, part) for layer in network.stack for part, product in
            layer.products.items() if product.precision == "bfloat16"]
    assert kept == [("layers_1", "inner")] and network.embed.table is None


def test_later_training_does_not_show_and_nothing_is_trained() -> None:
    reference = classifier("small")
    network = FastClassifier(encoder_arrays_of(reference), form("float32"))
    batch = rows((3, 5), 8)
    before = np.array(network(*batch.values()))
    for variable in reference.trainable_variables:
        variable.assign(variable * 2.0)
    np.testing.assert_array_equal(network(*batch.values()), before)
    assert not network.trainable_weights


def test_weights_take_the_bytes_of_their_precision() -> None:
    arrays = encoder_arrays_of(classifier("bert"))
    for precision, size in (("float32", 4), ("bfloat16", 2), ("int8", 1)):
        network = FastClassifier(arrays, form(precision))
        tables = [weight.value.dtype.size for weight in network.weights
                  if weight.path.split("/")[-1] in ("kernel", "rows", "words")]
        assert tables == [size] * 9
