"""All forms of one task give the same answers, and refuse what they cannot take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.fakes.word_task import CLASSES, WordTask, strings, word_task
from tf_infer.equality import Tolerance
from tf_infer.errors import ExportError, ShapeError
from tf_infer.manifest import Sample
from tf_infer.verify import parity
from tf_infer.verify.batch_effects import batch_effects
from tf_infer.verify.predictors import (
    EagerPredictor,
    GraphPredictor,
    Predictor,
    SavedModelPredictor,
    SessionPredictor,
)

TEXTS = strings(b"the parcel came late", b"fine thanks", b"", b"is the parcel fine is it fine",
                "中文 \x00".encode(), b"\xff\xfe")
SAMPLES = (Sample("serving_default", {"text": TEXTS}), Sample("encode", {"text": TEXTS[:2]}))


class Doubler(tf.Module):
    """A SavedModel of somebody else: no manifest, no string, a signature of two outputs."""

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")])
    def serve(self, x: tf.Tensor) -> Mapping[str, tf.Tensor]:
        return {"twice": 2.0 * x, "text": tf.strings.as_string(tf.reduce_sum(x, 1))}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> WordTask:
    return word_task(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign") / "1"
    module = Doubler()
    tf.saved_model.save(module, str(folder), signatures=module.serve)
    return folder


def test_graph_and_xla_give_what_eager_gives(task: WordTask) -> None:
    reference = EagerPredictor(task.signatures())
    assert set(reference("serving_default", {"text": TEXTS})["label"]) <= {
        name.encode() for name in CLASSES}
    report = parity.verify(
        {"graph": lambda: GraphPredictor(task.signatures()),
         "xla": lambda: GraphPredictor(task.recompiled("xla").signatures())},
        parity.fill(reference, SAMPLES), Tolerance())
    assert [path.path for path in report.paths] == ["graph", "xla"]
    assert all(len(path.differences) == 6 for path in report.paths)


def test_a_row_alone_is_the_row_in_a_crowd(task: WordTask) -> None:
    for report in batch_effects(GraphPredictor(task.signatures()), SAMPLES, Tolerance()):
        assert report.passed, report


@pytest.mark.parametrize("form", [SavedModelPredictor, SessionPredictor])
def test_a_foreign_saved_model_runs_without_a_manifest(
        foreign: Path, form: Callable[[Path], Predictor]) -> None:
    outputs = form(foreign)("serving_default", {"x": np.float32([[1, 2], [3, 4]])})
    np.testing.assert_array_equal(outputs["twice"], np.float32([[2, 4], [6, 8]]))
    assert outputs["text"].tolist() == [b"3.000000", b"7.000000"]


@pytest.mark.parametrize("form", [SavedModelPredictor, SessionPredictor])
@pytest.mark.parametrize(("signature", "inputs", "message"), [
    ("nope", {}, r"signature 'nope': expected one of \['serving_default'\]"),
    ("serving_default", {}, r"expected the inputs \['x'\], got \[\]"),
    ("serving_default", {"x": np.float64([[1, 2]])}, r"expected float32 \(None, 2\), got float64"),
    ("serving_default", {"x": np.float32([1, 2])}, r"got float32 \(2,\)"),
    ("serving_default", {"x": np.float32(1)}, r"got float32 \(\)"),
    ("serving_default", {"x": strings(b"secret")}, r"got string \(1,\)")])
def test_what_does_not_fit_is_refused_before_tensorflow_sees_it(
        foreign: Path, form: Callable[[Path], Predictor], signature: str,
        inputs: Mapping[str, np.ndarray], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        form(foreign)(signature, inputs)


def test_a_string_without_rows_is_refused_by_every_form(task: WordTask) -> None:
    scalar = {"text": np.array(b"secret", dtype=object)}  # would end the process
    for predictor in (EagerPredictor(task.signatures()), GraphPredictor(task.signatures())):
        with pytest.raises(ShapeError, match=r"string \(None,\), got string \(\)") as caught:
            predictor("serving_default", scalar)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("form", [SavedModelPredictor, SessionPredictor])
def test_a_half_written_version_is_named(
        foreign: Path, tmp_path: Path, form: Callable[[Path], Predictor]) -> None:
    with pytest.raises(ExportError, match=f"{tmp_path}: expected a SavedModel that loads"):
        form(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes((foreign / "saved_model.pb").read_bytes()[:100])
    with pytest.raises(ExportError, match=f"{tmp_path}: expected a SavedModel that loads"):
        form(tmp_path)
