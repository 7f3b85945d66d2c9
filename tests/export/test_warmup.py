"""Warm-up records: real token lengths, every point of the grid, readable by TensorFlow Serving."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tests.fakes.word_task import GRID, WordTask, word_task
from tf_infer.config import ShapeGrid
from tf_infer.errors import ExportError
from tf_infer.export import warmup
from tf_infer.manifest import SignatureSpec
from tf_infer.tasks.base import Signature, rows


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> WordTask:
    return word_task(tmp_path_factory.mktemp("words"))


def count_words(texts: Sequence[bytes]) -> list[int]:
    """Two special ids and one a word, at most 16."""
    return [min(16, 2 + len(text.split())) for text in texts]


@pytest.mark.parametrize("text", ["a bb ccc dddd", "", "  ", "wordwordwordwordword x", "词 语"])
def test_texts_have_exactly_as_many_tokens_as_their_bucket(text: str) -> None:
    buckets = (3, 4, 8, 16)
    texts = warmup.texts_of_lengths(count_words, text, buckets)
    assert tuple(count_words(texts)) == buckets


def test_bytes_are_cut_between_characters() -> None:
    def count(texts: Sequence[bytes]) -> list[int]:
        return [min(16, len(text)) for text in texts]

    texts = warmup.texts_of_lengths(count, "中", (4, 8, 16))
    assert [text.decode() for text in texts] == ["中 ", "中 中 ", "中 中 中 中 "]


@pytest.mark.parametrize(("buckets", "message"), [
    ((1, 16), "expected a text of 1 to 1 tokens"), ((4, 32), "no text is packed into so many")])
def test_a_bucket_that_no_text_reaches_is_named(buckets: tuple[int, ...], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        warmup.texts_of_lengths(count_words, "word", buckets)


def read(path: Path) -> list[prediction_log_pb2.PredictionLog]:
    return [prediction_log_pb2.PredictionLog.FromString(record.numpy())
            for record in tf.data.TFRecordDataset(str(path))]


def test_every_signature_visits_every_point_of_the_grid(task: WordTask, tmp_path: Path) -> None:
    signatures = task.signatures()
    written = warmup.write_warmup(tmp_path / "warm", signatures, GRID, model="words")
    logs = read(tmp_path / "warm")
    assert len(logs) == written == len(signatures) * 4
    seen = set()
    for log in logs:
        if log.WhichOneof("log_type") == "classify_log":
            request = log.classify_log.request
            examples = request.input.example_list.examples
            texts = [one.features.feature["text"].bytes_list.value[0] for one in examples]
            assert request.model_spec.signature_name == "classify"
        else:
            request = log.predict_log.request
            arrays = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
            name = request.model_spec.signature_name
            tensors = {k: tf.constant(v) for k, v in arrays.items()}
            signatures[name].function(**tensors)
            if "ids" in arrays:
                assert arrays["ids"].dtype == np.int32
                seen.add((name, *arrays["ids"].shape))
                continue
            texts = list(arrays["text"])
        assert request.model_spec.name == "words"
        width = task.codec.pack(tf.constant(texts))[0].shape[1]
        seen.add((request.model_spec.signature_name, len(texts), width))
    assert seen == set(itertools.product(signatures, GRID.rows, GRID.tokens))


def test_the_limit_keeps_whole_signatures_and_the_default_first(
        task: WordTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "MAX_RECORDS", 9)
    assert warmup.write_warmup(tmp_path / "warm", task.signatures(), GRID, model="words") == 8
    assert read(tmp_path / "warm")[0].predict_log.request.model_spec.signature_name == (
        "serving_default")
    monkeypatch.setattr(warmup, "MAX_RECORDS", 3)
    with pytest.raises(ExportError, match="at most 3 points, got 4"):
        warmup.write_warmup(tmp_path / "warm", task.signatures(), GRID, model="words")


def test_a_codec_that_does_not_pack_to_the_grid_is_found(task: WordTask, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="packed into 5 columns, got 8"):
        warmup.write_warmup(tmp_path / "warm", task.signatures(), ShapeGrid(rows=(1,), tokens=(5,)),
                            model="words")


def test_options_take_their_default_and_a_state_begins_empty_with_one_row(
        task: WordTask, tmp_path: Path) -> None:
    spec = SignatureSpec(name="steps", outputs=(), inputs=(
        rows("ids", "int32", None), rows("id_count", "int32"), rows("seed", "int64", default=7),
        rows("cache", "float32", 2, 3, 100), rows("lengths", "int32")))
    signatures = {"encode": task.signatures()["encode"], "steps": Signature(spec, dict)}
    assert warmup.write_warmup(tmp_path / "warm", signatures, GRID, model="m") == 4 + 2
    logs = [log.predict_log.request for log in read(tmp_path / "warm")][-2:]
    for log, width in zip(logs, GRID.tokens):
        arrays = {key: tf.make_ndarray(value) for key, value in log.inputs.items()}
        assert arrays["ids"].shape == (1, width)
        assert arrays["id_count"].tolist() == [width]
        assert (arrays["seed"].tolist(), arrays["seed"].dtype) == ([7], np.int64)
        assert arrays["cache"].shape == (1, 2, 3, 100)
        assert not arrays["cache"].any()
        assert log.inputs["cache"].ByteSize() < 50


def test_a_signature_with_lists_asks_for_them_once_before_its_other_records(
        task: WordTask, tmp_path: Path) -> None:
    spec = SignatureSpec(name="generate", outputs=(), inputs=(
        rows("prompt", "string"), rows("stop", "string", default=""),
        rows("banned", "string", default="")))
    signatures = {"encode": task.signatures()["encode"], "generate": Signature(spec, dict)}
    warmup.write_warmup(tmp_path / "warm", signatures, GRID, model="m")
    logs = [log.predict_log.request for log in read(tmp_path / "warm")]
    asked = [[tf.make_ndarray(log.inputs[name]).tolist() for name in ("stop", "banned")]
             for log in logs if log.model_spec.signature_name == "generate"]
    assert asked[0] == [[b"a"], [b"a"]]
    assert len(asked) > 1 and {text for one in asked[1:] for part in one for text in part} == {b""}


@pytest.mark.parametrize(("taken", "asking", "wanted"), [
    (True, True, b"a"), (False, True, b""), (True, False, b"")])
def test_choices_are_asked_for_where_the_task_takes_them(
        task: WordTask, tmp_path: Path, taken: bool, asking: bool, wanted: bytes) -> None:
    spec = SignatureSpec(name="generate", outputs=(), inputs=(
        rows("prompt", "string"), rows("max_new_tokens", "int32", default=9),
        rows("stop", "string", default=""), rows("choices", "string", default="")))

    def generate(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.debugging.Assert(taken or inputs["choices"][0] == b"", ["no end id"])
        assert inputs["max_new_tokens"].numpy().tolist() == [0]
        return {}

    signatures = {"encode": task.signatures()["encode"], "generate": Signature(spec, generate)}
    warmup.write_warmup(tmp_path / "warm", signatures, GRID, model="m", asking=asking)
    first = next(log.predict_log.request for log in read(tmp_path / "warm")
                 if log.predict_log.request.model_spec.signature_name == "generate")
    assert tf.make_ndarray(first.inputs["choices"]).tolist() == [wanted]
    assert tf.make_ndarray(first.inputs["stop"]).tolist() == [b"a"]
    assert tf.make_ndarray(first.inputs["max_new_tokens"]).tolist() == [9]


def test_an_input_that_cannot_be_made_is_named(task: WordTask, tmp_path: Path) -> None:
    spec = SignatureSpec(name="s", outputs=(), inputs=(rows("state", "float32", None),))
    signatures = {"encode": task.signatures()["encode"], "s": Signature(spec, dict)}
    with pytest.raises(ExportError, match="signature 's', input 'state'"):
        warmup.write_warmup(tmp_path / "warm", signatures, GRID, model="m")


def test_a_task_without_encode_is_refused() -> None:
    with pytest.raises(ExportError, match="expected 'encode' among them"):
        warmup.token_counter({})
