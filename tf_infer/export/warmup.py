"""Warm-up records: one request for each signature and each point of the shape grid.

A server replays them before it says that a version is ready, so no caller waits for a first run of
a shape. The file is TensorFlow Serving's: `assets.extra/tf_serving_warmup_requests`, TFRecords of
PredictionLog, at most 1,000. Texts are cut until they have exactly as many tokens as the point
says, and checked by encoding them once more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import prediction_log_pb2

from tf_infer.config import ShapeGrid
from tf_infer.errors import ExportError
from tf_infer.manifest import SignatureSpec
from tf_infer.tasks.base import Signature, tensor_spec

MAX_RECORDS = 1_000  # TensorFlow Serving refuses to load a version with more (WU02)
# Empty, so that a row has the tokens of its first text.
SECOND_TEXTS = ("text_pair", "continuation")
CLASSIFY_METHOD = "tensorflow/serving/classify"
# Used when the caller has no text: words, digits, punctuation, another script.
DEFAULT_TEXT = "Where is the parcel that I ordered on 3 May? 请问我的包裹在哪里？ It has not come. "
# Options whose part of a graph is built when a row first asks for it, and a value for each.
ASKED = {"stop": "a", "banned": "a", "choices": "a"}
CHOICES, LIMIT = "choices", "max_new_tokens"
CUT_WINDOW = 32  # characters around the first cut that is long enough, searched for an exact one

Counter = Callable[[Sequence[bytes]], Sequence[int]]


def token_counter(signatures: Mapping[str, Signature]) -> Counter:
    """Return a function that gives the packed tokens of texts, by the task's signature "encode".

    Raises:
        ExportError: the task has no such signature.
    """
    if "encode" not in signatures:
        raise ExportError(f"signatures: expected 'encode' among them, got {sorted(signatures)}. "
                          "Warm-up needs it to cut texts to token counts.")

    def count(texts: Sequence[bytes]) -> Sequence[int]:
        mask = _encode(signatures["encode"], texts)["mask"]
        return [int(n) for n in np.count_nonzero(mask, axis=1)]

    return count


def texts_of_lengths(count: Counter, text: str, buckets: Sequence[int]) -> tuple[bytes, ...]:
    """Cut a text to as many packed tokens as each bucket holds.

    Args:
        count: packed tokens of each of some texts.
        text: what to cut; repeated until it is longer than the last bucket.
        buckets: token counts, ascending.

    Returns:
        One text for each bucket, of exactly that many tokens; where no cut gives exactly so many,
        of as many as possible above the bucket before.

    Raises:
        ExportError: no cut falls into a bucket.
    """
    text = _long_enough(count, text, buckets[-1])
    found = []
    for previous, bucket in itertools.pairwise((0, *buckets)):
        first = _first_cut(count, text, bucket)
        cuts = [text[:n].encode() for n in range(max(0, first - CUT_WINDOW),
                                                 min(len(text), first + CUT_WINDOW) + 1)]
        inside = [(n, -len(cut), cut) for n, cut in zip(count(cuts), cuts) if n <= bucket]
        if not inside or max(inside)[0] <= previous:
            raise ExportError(
                f"grid.tokens: expected a text of {previous + 1} to {bucket} tokens, and no cut of "
                "the warm-up text has so many. Hand in another text, or leave the bucket out.")
        found.append(max(inside)[2])
    return tuple(found)


def _long_enough(count: Counter, text: str, tokens: int) -> str:
    text = text if text.strip() else DEFAULT_TEXT
    while count([text.encode()])[0] < tokens:
        if len(text) > 1_000 * tokens:
            raise ExportError(f"grid.tokens: expected rows of up to {tokens} tokens, but no text "
                              "is packed into so many. Lower the last bucket.")
        text = f"{text} {text}"
    return text


def _first_cut(count: Counter, text: str, tokens: int) -> int:
    """Return about the smallest number of characters that gives `tokens` tokens (bisection)."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high) // 2
        if count([text[:middle].encode()])[0] >= tokens:
            high = middle
        else:
            low = middle + 1
    return low


def write_warmup(path: Path, signatures: Mapping[str, Signature], grid: ShapeGrid, *, model: str,
                 text: str = "", asking: bool = True) -> int:
    """Write the warm-up file of a task and return the number of records.

    Args:
        path: of the file.
        signatures: of the task; "encode" is one of them.
        grid: rows x tokens to visit.
        model: its name, for the requests.
        text: to be cut; empty takes a text of ours.
        asking: ask for choices, too, where they can be spelled. That is tried, op by op; a core
            that XLA compiles would be compiled for it.

    Raises:
        ExportError: a packed text is not as wide as its bucket, or the grid is too large.

    The signatures are visited in their order as long as all points of one fit into the limit of
    1,000 records; serving_default comes first and must fit. One that takes a decoder's state, which
    is large, is visited with the smallest number of rows only. A signature with options of ASKED
    begins with a record that asks for them.
    """
    texts = texts_of_lengths(token_counter(signatures), text, grid.tokens)
    for tokens, one in zip(grid.tokens, texts):
        width = _encode(signatures["encode"], [one])["ids"].shape[1]
        if width != tokens:
            raise ExportError(f"grid.tokens: expected the text of bucket {tokens} to be packed "
                              f"into {tokens} columns, got {width}. The codec and the grid differ.")
    points = len(grid.rows) * len(grid.tokens)
    if points > MAX_RECORDS:
        raise ExportError(f"grid: expected at most {MAX_RECORDS} points, got {points}. "
                          "Take fewer row or length buckets.")
    order = sorted(signatures, key=lambda name: name != "serving_default")
    written = 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature in (signatures[name] for name in order):
            spec = signature.spec
            sizes = grid.rows[:1] if _has_state(spec) else grid.rows
            visits: list[tuple[bytes, int, Mapping[str, str]]] = [
                (one, rows, {}) for one, rows in itertools.product(texts, sizes)]
            if once := _asked(signature, texts[0], signatures["encode"], choices=asking):
                visits.insert(0, (texts[0], sizes[0], once))
            if written + len(visits) > MAX_RECORDS:
                break
            for one, rows, asked in visits:
                row = _one_row(spec, one, signatures["encode"], asked)
                inputs = {key: np.repeat(array, rows, axis=0) for key, array in row.items()}
                log = prediction_log(spec, inputs, model=model)
                writer.write(log.SerializeToString())
                written += 1
    return written


def _asked(signature: Signature, text: bytes, encode: Signature, *, choices: bool
           ) -> dict[str, str]:
    """Return those options of ASKED, with their values, that a signature takes.

    Choices need an id that ends a text, and a vocabulary that spells them.
    """
    names = {one.name for one in signature.spec.inputs}
    found = {name: value for name, value in ASKED.items() if name in names}
    if CHOICES not in found:
        return found
    others = {name: value for name, value in found.items() if name != CHOICES}
    if not choices:
        return others
    row = _one_row(signature.spec, text, encode, found)
    if LIMIT in row:  # nothing needs to be produced
        row[LIMIT] = np.zeros_like(row[LIMIT])
    try:
        signature.function(**{name: tf.constant(array) for name, array in row.items()})
    except tf.errors.InvalidArgumentError:
        return others
    return found


def _has_state(spec: SignatureSpec) -> bool:
    """Return whether a signature takes a decoder's state, which is large: one row will do."""
    return any(len(one.shape) >= 3 for one in spec.inputs)


def prediction_log(spec: SignatureSpec, inputs: Mapping[str, np.ndarray], *, model: str
                   ) -> prediction_log_pb2.PredictionLog:
    """Return one request as TensorFlow Serving logs it, by the method that the signature is for."""
    log = prediction_log_pb2.PredictionLog()
    if spec.method_name == CLASSIFY_METHOD:
        classify = log.classify_log.request
        classify.model_spec.name, classify.model_spec.signature_name = model, spec.name
        examples = classify.input.example_list.examples
        for serialized in next(iter(inputs.values())):
            examples.add().ParseFromString(serialized)
        return log
    predict = log.predict_log.request
    predict.model_spec.name, predict.model_spec.signature_name = model, spec.name
    for one in spec.inputs:
        predict.inputs[one.name].CopyFrom(_to_proto(inputs[one.name], tensor_spec(one).dtype))
    return log


def _to_proto(array: np.ndarray, dtype: tf.DType) -> tensor_pb2.TensorProto:
    """Return a tensor; one of zeros only has no values, which stands for zeros (PR16)."""
    if dtype.is_floating and array.size and not array.any():
        shape = tf.TensorShape(array.shape).as_proto()
        return tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, tensor_shape=shape)
    return tf.make_tensor_proto(array, dtype)


def _one_row(spec: SignatureSpec, text: bytes, encode: Signature, asked: Mapping[str, str],
             ) -> dict[str, np.ndarray]:
    """Return the inputs of one row that is as long as `text`, with the options that it asks for.

    A decoder's state begins as zeros and produces nothing: the row is read.
    """
    encoded = _encode(encode, [text])
    length = np.asarray(np.count_nonzero(encoded["mask"], axis=1), np.int32)
    known = {**encoded, "length": length, "id_count": length, "history": encoded["ids"],
             "history_length": length, "allowed": np.zeros([1, 0], np.int32)}
    row = {}
    for one in spec.inputs:
        if spec.method_name == CLASSIFY_METHOD:
            row[one.name] = _strings([_example(text)])
        elif one.dtype == "string" and one.default is not None:
            row[one.name] = _strings([asked.get(one.name, one.default).encode()])
        elif one.dtype == "string":
            row[one.name] = _strings([b"" if one.name in SECOND_TEXTS else text])
        elif one.name in known:
            row[one.name] = known[one.name].astype(one.dtype)
        elif one.default is not None:
            row[one.name] = np.array([one.default], one.dtype)
        elif None not in one.shape[1:]:
            row[one.name] = np.zeros([1, *(size or 0 for size in one.shape[1:])], one.dtype)
        else:
            raise ExportError(f"signature {spec.name!r}, input {one.name!r}: expected a text, ids, "
                              "an option with a default, or a state of known shape. Give it one.")
    return row


def _encode(encode: Signature, texts: Sequence[bytes]) -> dict[str, np.ndarray]:
    inputs = {one.name: tf.constant([b""] * len(texts) if one.name in SECOND_TEXTS else list(texts))
              for one in encode.spec.inputs}
    return {name: tensor.numpy() for name, tensor in encode.function(**inputs).items()}


def _example(text: bytes) -> bytes:
    example = tf.train.Example()
    for name, value in (("text", text), ("text_pair", b"")):
        example.features.feature[name].bytes_list.value.append(value)
    return bytes(example.SerializeToString())


def _strings(items: Sequence[bytes]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array
