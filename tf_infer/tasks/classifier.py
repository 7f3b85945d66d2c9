"""One label, or several, for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import tensorflow as tf

from tf_infer.config import ClassifierConfig
from tf_infer.decoding.argmax import above, best
from tf_infer.decoding.attribution import attribute
from tf_infer.manifest import SignatureSpec, TensorSpec
from tf_infer.stages import CORE, POSTPROCESS, PREPROCESS
from tf_infer.tasks import examples
from tf_infer.tasks.base import Signature, Task, by_name, in_stage, rows
from tf_infer.tasks.grid import in_slices, pad_tokens, require, same_rows
from tf_infer.text.contracts import TokenBatch
from tf_infer.text.packing import pack, pad_id, within_reach

CLASSIFY = "tensorflow/serving/classify"


class Classifier(Task):
    """Text -> label, scores of all classes, logits.

    Signatures, B rows, C classes in the order of `config.classes`:
        serving_default: `text` (pairs: and `text_pair`) -> `label`, `score`, `scores`, `logits`;
            with `multi_label` also `labels`.
        ids: `ids`, `mask` (pairs: and `segments`) -> `logits`, for those who tokenize outside.
        classify: `inputs`, serialized tf.Examples -> `classes`, `scores`; TensorFlow Serving's own
            Classify.
        encode: `text` (pairs: and `text_pair`) -> `ids`, `mask`, `starts`, `ends` (pairs: and
            `segments`), what `ids` takes.
        explain (with `config.explain`): `text` (pairs: and `text_pair`), `target` -> `label`,
            `score`, `baseline`, and for each id `attributions`, `left_out`, `starts`, `ends`,
            `mask` (pairs: and `segments`); `completeness_error`. What made the logit of the class
            `target`, or of the best one where it is "": decoding/attribution.py.

    `label` is always the class with the best score, ties going to the lower index. `labels` [B, C]
    holds a class's name in its column where its score reaches the threshold, and "" where not.
    """

    config: ClassifierConfig

    def explaining(self) -> Classifier:
        """Return the same classifier with the signature `explain`."""
        return Classifier(replace(self.config, explain=True), self.codec, self.network,
                          compiled=self.compiled, tokenizer_dir=self.tokenizer_dir)

    def preprocess(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """`text` [B] string, `text_pair` [B] string of pairs -> ids, mask, segments [B, T]."""
        batch = self._encode(inputs, offsets=False)
        return {"ids": batch.ids, "mask": batch.mask, "segments": batch.segments}

    def core_specs(self) -> dict[str, tf.TensorSpec]:
        """ids [B, T] int32, mask [B, T] bool, segments [B, T] int32."""
        return {"ids": tf.TensorSpec([None, None], tf.int32),
                "mask": tf.TensorSpec([None, None], tf.bool),
                "segments": tf.TensorSpec([None, None], tf.int32)}

    def core(self, **dense: tf.Tensor) -> dict[str, tf.Tensor]:
        """ids, mask, segments [B, T] -> `logits`, `scores` [B, C] float32."""
        logits = self.network(dense["ids"], dense["mask"], dense["segments"], training=False)
        logits = tf.cast(logits, tf.float32)                                 # [B, C]
        calibrated = logits / self.config.temperature
        scores = (tf.sigmoid(calibrated) if self.config.multi_label
                  else tf.nn.softmax(calibrated, axis=-1))
        return {"logits": logits, "scores": scores}

    @in_stage(POSTPROCESS)
    def postprocess(self, **dense: tf.Tensor) -> dict[str, tf.Tensor]:
        """`logits`, `scores` [B, C] -> the outputs of `serving_default`."""
        scores, names = dense["scores"], tf.constant(self.config.classes)
        # By logits: two scores may round to the same number where the logits still differ.
        label = best(dense["logits"])                                        # [B]
        outputs = {"label": tf.gather(names, label),
                   "score": tf.gather(scores, label, batch_dims=1),
                   "scores": scores, "logits": dense["logits"]}
        if self.config.multi_label:
            outputs["labels"] = tf.where(above(scores, self.config.thresholds), names, "")
        return outputs

    def signatures(self) -> Mapping[str, Signature]:
        """Return serving_default, ids, classify, encode."""
        size = len(self.config.classes)
        texts = tuple(rows(name, "string", note="UTF-8 text") for name in self._text_names())
        scores = rows("scores", "float32", size, note="of each class, 0 to 1")
        logits = rows("logits", "float32", size, note="of each class, before temperature")
        answer = [rows("label", "string", note="class with the best score"),
                  rows("score", "float32", note="its score, 0 to 1"), scores, logits]
        if self.config.multi_label:
            answer.append(rows("labels", "string", size,
                               note="class names from their thresholds on, \"\" elsewhere"))
        packed = self._packed_specs()
        records = rows("inputs", "string",
                       note=f"serialized tf.Example with {' and '.join(self._text_names())}")
        places = (rows("starts", "int32", None, note="first byte in the id's own text"),
                  rows("ends", "int32", None, note="one past its last byte"))
        explain = ((SignatureSpec(
            name="explain", outputs=self._explained_specs(packed, places),
            inputs=(*texts, rows("target", "string", default="",
                                         note="class to explain, \"\" for the best one"))),
            self._explained),) if self.config.explain else ()
        return by_name(
            (SignatureSpec(name="serving_default", inputs=texts, outputs=tuple(answer)),
             self._answer),
            (SignatureSpec(name="ids", inputs=packed, outputs=(logits,)), self._from_ids),
            (SignatureSpec(name="classify", inputs=(records,), method_name=CLASSIFY, outputs=(
                rows("classes", "string", size, note="class names, the same in every row"),
                scores)), self._classify),
            (SignatureSpec(name="encode", inputs=texts, outputs=(*packed, *places)),
             self._encoded), *explain)

    def _explained_specs(self, packed: tuple[TensorSpec, ...], places: tuple[TensorSpec, ...]
                         ) -> tuple[TensorSpec, ...]:
        return (
            rows("label", "string", note="the class that is explained"),
            rows("score", "float32", note="its logit"),
            rows("baseline", "float32", note="its logit without any id of the text"),
            rows("attributions", "float32", None, note="of each id to score - baseline"),
            rows("left_out", "float32", None, note="what the logit loses without that id alone"),
            rows("completeness_error", "float32", note="sum of attributions against the logits"),
            *packed[1:], *places)

    def _text_names(self) -> tuple[str, ...]:
        return ("text", "text_pair") if self.config.pair else ("text",)

    def _packed_specs(self) -> tuple[TensorSpec, ...]:
        specs = [rows("ids", "int32", None, note="token ids"),
                 rows("mask", "int32", None, note="1 on ids that count, first in each row")]
        if self.config.pair:
            specs.append(rows("segments", "int32", None, note="1 on the second text of a pair"))
        return tuple(specs)

    @in_stage(PREPROCESS)
    def _encode(self, inputs: Mapping[str, tf.Tensor], *, offsets: bool) -> TokenBatch:
        same_rows(inputs)
        packing, grid = self.config.packing, self.config.grid
        reached = [within_reach(inputs[name], packing, grid) for name in self._text_names()]
        first, *second = (one.moved(self.codec.encode(one.texts, offsets=offsets))
                          for one in reached)
        return pack(first, self.codec, packing, grid, pair=second[0] if second else None)

    def _answer(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.postprocess(**self.run_core(**self.preprocess(**inputs)))

    def _from_ids(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": self.run_core(**self._checked(**inputs))["logits"]}

    @in_stage(PREPROCESS)
    def _checked(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        same_rows(inputs)
        ids, mask = inputs["ids"], inputs["mask"]
        require(tf.equal(tf.shape(mask)[1], tf.shape(ids)[1]),
                "mask: expected as many tokens a row as ids.")
        require(tf.reduce_all((ids >= 0) & (ids < self.codec.vocab_size), axis=-1),
                f"ids: expected 0 <= id < {self.codec.vocab_size}.")
        segments = inputs.get("segments", tf.zeros_like(ids))
        require(tf.equal(tf.shape(segments)[1], tf.shape(ids)[1]),
                "segments: expected as many tokens a row as ids.")
        require(tf.reduce_all((segments == 0) | (segments == 1), axis=-1),
                "segments: expected 0 or 1.")
        grid = self.config.grid
        return {"ids": pad_tokens(ids, grid, pad_id(self.codec)),
                "mask": pad_tokens(mask, grid) != 0, "segments": pad_tokens(segments, grid)}

    def _classify(self, *, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        texts = in_stage(PREPROCESS)(examples.parse)(inputs, self._text_names())
        scores = self._answer(**texts)["scores"]
        names = tf.constant(self.config.classes)
        return {"classes": tf.broadcast_to(names, tf.shape(scores)), "scores": scores}

    def _encoded(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        batch = self._encode(inputs, offsets=True)
        outputs = {"ids": batch.ids, "mask": tf.cast(batch.mask, tf.int32),
                   "starts": batch.starts, "ends": batch.ends}
        return {**outputs, "segments": batch.segments} if self.config.pair else outputs

    def _explained(self, *, target: tf.Tensor, **texts: tf.Tensor) -> dict[str, tf.Tensor]:
        same_rows({**texts, "target": target})
        batch = self._encode(texts, offsets=True)
        classes = tf.constant(self.config.classes)
        wanted = tf.cast(target[:, None] == classes, tf.int32)               # [B, C]
        require(tf.equal(target, "") | (tf.reduce_sum(wanted, axis=-1) == 1),
                f"target: expected \"\" or one of the {len(self.config.classes)} classes.")
        dense = {"ids": batch.ids, "mask": batch.mask, "segments": batch.segments,
                 "starts": batch.starts, "ends": batch.ends, "wanted": wanted}
        specs = {name: tf.TensorSpec([None, None], tensor.dtype)
                 for name, tensor in dense.items()}
        with tf.name_scope(CORE):
            found = in_slices(self._attributed, dense, specs, self.config.grid.rows[-1])
        outputs = {"label": tf.gather(classes, found.pop("place")), **found,
                   "mask": tf.cast(batch.mask, tf.int32),
                   "starts": batch.starts, "ends": batch.ends}
        return {**outputs, "segments": batch.segments} if self.config.pair else outputs

    def _attributed(self, *, ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor,
                    starts: tf.Tensor, ends: tf.Tensor, wanted: tf.Tensor
                    ) -> dict[str, tf.Tensor]:
        def logits(vectors: tf.Tensor) -> tf.Tensor:
            return tf.cast(self.network(ids, mask, segments, training=False, vectors=vectors),
                           tf.float32)

        vectors = self.network.encoder.vectors(ids, mask)
        asked = tf.reduce_sum(wanted, axis=-1) > 0
        place = tf.where(asked, tf.argmax(wanted, axis=-1, output_type=tf.int32),
                         best(logits(vectors)))                              # [B]
        found = attribute(lambda given: tf.gather(logits(given), place, batch_dims=1), vectors,
                          mask & (ends > starts))
        return {"place": place, "score": found.score, "baseline": found.baseline,
                "attributions": found.gradients, "left_out": found.left_out,
                "completeness_error": found.error}
