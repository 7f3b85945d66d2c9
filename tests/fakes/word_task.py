"""A classifier of a few hundred weights whose words stand in a file: every part of a real task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_infer.config import ClassifierConfig, PackingConfig, ShapeGrid
from tf_infer.manifest import SignatureSpec
from tf_infer.tasks.base import Signature, Task, rows

CLASSES = ("good", "bad", "neither")
WORDS = ("the", "parcel", "came", "late", "early", "broken", "fine", "thanks", "中文", "is")
GRID = ShapeGrid(rows=(1, 4), tokens=(4, 8))


class WordCodec(tf.Module):
    """One id a word, from a file: pad 0, any other word 1, the words of the file from 2 on."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.vocab_size = len(WORDS) + 2
        self.table = tf.lookup.StaticHashTable(tf.lookup.TextFileInitializer(
            str(path), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER), default_value=-1)

    def pack(self, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return ids [B, T] int32 and mask [B, T] bool; T is a bucket of GRID."""
        found = tf.ragged.map_flat_values(self.table.lookup, tf.strings.split(texts))
        ids = tf.cast(found + 2, tf.int32)[:, :GRID.tokens[-1]]  # -1, not found, becomes 1
        longest = tf.cast(tf.reduce_max(ids.row_lengths()), tf.int32)
        width = tf.where(longest <= GRID.tokens[0], GRID.tokens[0], GRID.tokens[-1])
        mask = tf.sequence_mask(ids.row_lengths(), width)
        dense = ids.to_tensor(default_value=0)
        return tf.pad(dense, [[0, 0], [0, width - tf.shape(dense)[1]]]), mask


class WordNetwork(keras.layers.Layer):
    """Mean of word vectors, then a dense layer; `ids` [B, T] and `mask` [B, T] to logits [B, C]."""

    def __init__(self, words: int, classes: int) -> None:
        super().__init__(name="words")
        self.embedding = keras.layers.Embedding(
            words, 8, embeddings_initializer=keras.initializers.RandomNormal(seed=1))
        self.dense = keras.layers.Dense(
            classes, kernel_initializer=keras.initializers.GlorotUniform(seed=2))

    def build(self, shape: Any) -> None:
        self.embedding.build(shape)
        self.dense.build((None, 8))

    def call(self, ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        weights = tf.cast(mask, tf.float32)[:, :, None]
        total = tf.reduce_sum(self.embedding(ids) * weights, axis=1)
        return self.dense(tf.math.divide_no_nan(total, tf.reduce_sum(weights, axis=1)))


class WordTask(Task):
    """The fake task: `text` to label, score, scores, logits."""

    def core_specs(self) -> dict[str, tf.TensorSpec]:
        return {"ids": tf.TensorSpec([None, None], tf.int32),
                "mask": tf.TensorSpec([None, None], tf.bool)}

    def core(self, ids: tf.Tensor, mask: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": self.network(ids, mask)}

    def _answer(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        ids, mask = self.codec.pack(text)
        logits = self.run_core(ids=ids, mask=mask)["logits"]
        scores = tf.nn.softmax(logits)
        label = tf.gather(tf.constant(CLASSES), tf.argmax(scores, axis=1))
        return {"label": label, "score": tf.reduce_max(scores, 1), "scores": scores,
                "logits": logits}

    def _from_ids(self, ids: tf.Tensor, mask: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.run_core(ids=ids, mask=tf.cast(mask, tf.bool))

    def _classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        feature = tf.io.FixedLenFeature([], tf.string, default_value="")
        scores = self._answer(tf.io.parse_example(inputs, {"text": feature})["text"])["scores"]
        classes = tf.tile(tf.constant([CLASSES]), [tf.shape(scores)[0], 1])
        return {"classes": classes, "scores": scores}

    def _encode(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        ids, mask = self.codec.pack(text)
        return {"ids": ids, "mask": tf.cast(mask, tf.int32)}

    def signatures(self) -> Mapping[str, Signature]:
        count = len(CLASSES)
        scores = rows("scores", "float32", count, note="0 to 1")
        logits = rows("logits", "float32", count)
        ids = (rows("ids", "int32", None), rows("mask", "int32", None))
        text = (rows("text", "string"),)
        answer = (rows("label", "string"), rows("score", "float32"), scores, logits)
        specs = (
            (SignatureSpec(name="serving_default", inputs=text, outputs=answer), self._answer),
            (SignatureSpec(name="ids", inputs=ids, outputs=(logits,)), self._from_ids),
            (SignatureSpec(name="classify", inputs=(rows("inputs", "string"),),
                           outputs=(rows("classes", "string", count), scores),
                           method_name="tensorflow/serving/classify"), self._classify),
            (SignatureSpec(name="encode", inputs=text, outputs=ids), self._encode))
        return {spec.name: Signature(spec, function) for spec, function in specs}


def word_task(folder: Path) -> WordTask:
    """Return the task; its vocabulary file is written into `folder`, its weights have a seed."""
    path = folder / "words.txt"
    path.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    config = ClassifierConfig(name="words", classes=CLASSES, grid=GRID,
                              packing=PackingConfig(max_tokens=GRID.tokens[-1]))
    network = WordNetwork(len(WORDS) + 2, len(CLASSES))
    network.build((None, None))
    return WordTask(config, WordCodec(path), network)


def strings(*texts: bytes) -> np.ndarray:
    """Return a [B] object array of bytes."""
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array
