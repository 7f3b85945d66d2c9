"""Weights stored in fewer bits: small on disk, float32 after every kind of load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks.encoders import classifier, rows
from tf_infer.networks.encoder_arrays import encoder_arrays_of
from tf_infer.networks.fast_encoder import EncoderForm, FastClassifier

WIDTHS = (8, 16, 40)
ATOL = {"bfloat16": 0.1, "int8": 0.2}  # as in test_fast_encoder.py: the same rounding of weights
BYTES = {None: 4, "bfloat16": 2, "int8": 1}


def network_of(storage: Any) -> FastClassifier:
    arrays = encoder_arrays_of(classifier("bert", "pooler"))
    return FastClassifier(arrays, EncoderForm(widths=WIDTHS, storage=storage))


def written(network: FastClassifier, folder: Path) -> Path:
    archive = keras.export.ExportArchive()
    holder = tf.Module()
    holder.network = network
    archive.track(holder)  # as export.saved_model does
    specs = [tf.TensorSpec([None, None], dtype, name) for name, dtype in (
        ("ids", tf.int32), ("mask", tf.bool), ("segments", tf.int32))]
    archive.add_endpoint("serve", lambda ids, mask, segments: network(ids, mask, segments), specs)
    archive.write_out(str(folder), verbose=False)
    return folder


def written_bytes(folder: Path) -> int:
    """Return the bytes of all variables, without TensorFlow's own description of them."""
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    dtypes = reader.get_variable_to_dtype_map()
    return sum(int(np.prod(shape)) * dtypes[name].size for name, shape in
               reader.get_variable_to_shape_map().items() if dtypes[name] != tf.string)


def in_session(folder: Path, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Load as TensorFlow Serving does."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        signature = loaded.signature_def["serve"]
        output = next(iter(signature.outputs.values())).name
        return np.asarray(session.run(output, {
            signature.inputs[name].name: array for name, array in batch.items()}))


@pytest.mark.parametrize("storage", [
    pytest.param("bfloat16", marks=pytest.mark.slow), "int8"])
def test_it_is_the_same_after_every_load_and_near_the_reference(storage: str, tmp_path: Path
                                                                ) -> None:
    batch = rows((3, 40, 17, 1), 40)
    network = network_of(storage)
    here = np.array(network(*batch.values()))
    wanted = np.array(network_of(None)(*batch.values()))
    assert 1e-4 < np.abs(here - wanted).max() < ATOL[storage]
    folder = written(network, tmp_path / "1")
    assert written_bytes(folder) == sum(
        weight.value.shape.num_elements() * weight.value.dtype.size for weight in network.weights)
    np.testing.assert_allclose(in_session(folder, batch), here, rtol=0, atol=1e-5)
    for _ in range(2):  # two loaded at once, as while one replaces the other
        loaded = tf.saved_model.load(str(folder))
        got = loaded.serve(*(tf.constant(batch[name]) for name in ("ids", "mask", "segments")))
        np.testing.assert_allclose(got, here, rtol=0, atol=1e-5)


@pytest.mark.parametrize("storage", list(BYTES))
def test_words_and_kernels_take_so_many_bytes(storage: Any) -> None:
    network = network_of(storage)
    sizes = [weight.value.dtype.size for weight in network.weights
             if weight.path.split("/")[-1] in ("kernel", "words")]
    assert sizes == [BYTES[storage]] * 9


def test_what_is_stored_is_rounded_once() -> None:
    arrays = encoder_arrays_of(classifier("bert", "pooler"))
    table = np.array(tf.convert_to_tensor(network_of("int8").embed.words))
    largest = np.abs(arrays.words).max(axis=1, keepdims=True)
    np.testing.assert_allclose(table, np.rint(arrays.words / largest * 127) * (largest / 127),
                               rtol=1e-6)
    table = np.array(tf.convert_to_tensor(network_of("bfloat16").embed.words))
    np.testing.assert_array_equal(table, tf.cast(tf.cast(arrays.words, tf.bfloat16), tf.float32))
