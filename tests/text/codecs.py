"""What the tests of every codec do with one: decode rows of ids, and ask an export of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_infer.text.contracts import TextCodec, Tokens

TEXTS = [tf.TensorSpec([None], tf.string, "texts")]
PARTS = Tokens._fields  # ids, starts, ends
Rows = list[list[int]]


def encoder(codec: TextCodec, *, offsets: bool = True) -> Callable[[tf.Tensor], Tokens]:
    """Return `codec.encode` as a graph with free rows; it takes seconds to trace."""
    return tf.function(lambda texts: codec.encode(texts, offsets=offsets), input_signature=TEXTS,
                       autograph=False)


def decode(codec: TextCodec, rows: Rows) -> list[str]:
    """Return the text of each row of ids."""
    ids = tf.ragged.constant(rows, tf.int32)
    return [text.decode() for text in codec.decode(
        ids.to_tensor(), tf.cast(ids.row_lengths(), tf.int32)).numpy()]


def ask_export(codec: TextCodec, source: Path, target: Path, texts: list[str]
               ) -> Iterator[dict[str, Rows]]:
    """Save a codec, remove the files it was made of, and encode texts by what was saved.

    Args:
        codec: to save.
        source: the folder it was made of; it is removed.
        target: where the export goes.
        texts: to encode.

    Yields:
        "ids", "starts", "ends" of each text: of `tf.saved_model.load`, then of the session loader.
    """
    module = tf.Module()
    module.codec = codec

    def encode(texts: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens = codec.encode(texts, offsets=True)
        return {name: getattr(tokens, name).to_tensor(-1) for name in PARTS}

    serve = tf.function(encode, input_signature=TEXTS, autograph=False)
    tf.saved_model.save(module, str(target), signatures=serve)
    shutil.rmtree(source)
    loaded = tf.saved_model.load(str(target)).signatures["serving_default"]
    yield _rows({name: part.numpy() for name, part in loaded(tf.constant(texts)).items()})
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(target))
        signature = meta.signature_def["serving_default"]
        fetches = {name: signature.outputs[name].name for name in PARTS}
        raw = np.array([text.encode() for text in texts], object)
        yield _rows(session.run(fetches, {signature.inputs["texts"].name: raw}))


def _rows(padded: dict[str, Any]) -> dict[str, Rows]:
    return {name: [[n for n in row if n >= 0] for row in part.tolist()]
            for name, part in padded.items()}
