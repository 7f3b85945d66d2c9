"""Preflight against TensorFlow itself: its registry, what it exports, and a version of ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.client import pywrap_tf_session

from tests.fakes.word_task import strings, word_task
from tf_infer.export import saved_model
from tf_infer.manifest import PathReport, Report, Sample
from tf_infer.server import op_lists, preflight
from tf_infer.server.findings import Verdict
from tf_infer.server.preflight import Settings

PASSED = Report(reference="eager", paths=(PathReport(
    path="none", atol=0.0, rtol=0.0, samples=0, seconds=0.0, differences=()),))
FLOATS = tf.TensorSpec([None], tf.float32, name="x")


def examine(path: Path, server: str = "2.20.0", **settings: Any) -> Verdict:
    return preflight.examine(path, op_lists.release(server), Settings(**settings))


def export(path: Path, function: Callable[[tf.Tensor], Any], **options: Any) -> Path:
    module = tf.Module()
    module.function = tf.function(function, input_signature=[FLOATS], **options)
    tf.saved_model.save(module, str(path / "1"), signatures={"serving_default": module.function})
    return path / "1"


def test_the_list_of_this_tensorflow_is_its_registry() -> None:
    lists = op_lists.read((op_lists.FOLDER / "tensorflow.txt").read_text())
    if tf.__version__ not in lists.ops:
        pytest.skip(f"no list of TensorFlow {tf.__version__}")
    buffer = pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
    registered = {op.name: op for op in op_def_pb2.OpList.FromString(buffer).op}
    assert lists.graphs[tf.__version__] == tf.version.GRAPH_DEF_VERSION
    for name, known in lists.ops[tf.__version__].items():
        optional = {attr.name for attr in registered[name].attr if attr.HasField("default_value")}
        assert known.optional == optional, name
        assert known.required == {attr.name for attr in registered[name].attr} - optional, name
    for (name, attribute), default in op_lists.new_defaults().items():
        for attr in registered[name].attr if name in registered else ():
            if attr.name == attribute:
                assert attr.default_value.SerializeToString() == default, (name, attribute)


def test_a_plain_export_runs_everywhere(tmp_path: Path) -> None:
    path = export(tmp_path, lambda x: {"y": x + 1})
    assert [examine(path, server) for server in op_lists.RELEASES] == [Verdict(())] * len(
        op_lists.RELEASES)


def test_a_loop_with_an_attribute_of_this_tensorflow_runs_on_an_older_one(tmp_path: Path) -> None:
    def total(x: tf.Tensor) -> dict[str, tf.Tensor]:
        array = tf.TensorArray(tf.float32, size=4, element_shape=[]).unstack(x[:4])
        found = tf.while_loop(lambda i, s: i < 4, lambda i, s: (i + 1, s + array.read(i)), (0, 0.))
        return {"y": x + found[1]}

    path = export(tmp_path, total)
    assert "TensorListGetItem" in (path / "saved_model.pb").read_bytes().decode("latin-1")
    assert not examine(path, "2.17").findings


def test_a_policy_that_an_older_tensorflow_does_not_know_is_seen(tmp_path: Path) -> None:
    path = export(tmp_path, lambda x: {"y": x[:1] + tf.raw_ops.ScatterNd(
        indices=[[9]], updates=[1.0], shape=[3], bad_indices_policy="IGNORE")[0]})
    assert "bad_indices_policy" in examine(path, "2.17").stops[0].what
    assert not examine(path, "2.18").stops


def test_python_functions_are_seen(tmp_path: Path) -> None:
    path = export(tmp_path, lambda x: {"y": tf.ensure_shape(
        tf.numpy_function(lambda a: a + 1, [x], tf.float32), [None])})
    (stop,) = examine(path).stops
    assert (stop.where, stop.what[:36]) == ("signature serving_default",
                                            "operation PyFunc runs Python code, w")


def test_compiled_functions_are_seen(tmp_path: Path) -> None:
    path = export(tmp_path, lambda x: {"y": tf.sin(x) + 1}, jit_compile=True)
    verdict = examine(path)
    assert verdict.flags == ("--xla_cpu_compilation_enabled=true",)
    assert not verdict.stops


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = word_task(tmp_path_factory.mktemp("words"))
    texts = strings(b"fine", b"")
    example = tf.train.Example()
    example.features.feature["text"].bytes_list.value.append(b"fine")
    encoded = task.signatures()["encode"].function(text=texts)
    inputs = {"serving_default": {"text": texts}, "encode": {"text": texts}, "ids": encoded,
              "classify": {"inputs": strings(example.SerializeToString())}}
    golden = [Sample(name, {key: np.asarray(value) for key, value in given.items()}, {
        key: value.numpy() for key, value in task.signatures()[name].function(
            **{key: tf.constant(value) for key, value in given.items()}).items()})
        for name, given in inputs.items()]
    return saved_model.save(task, tmp_path_factory.mktemp("saved") / "words", name="words",
                            golden=golden, check=lambda folder: PASSED, plan={"steps": []})


@pytest.mark.parametrize("server", list(op_lists.RELEASES))
def test_a_version_of_ours_runs_everywhere_batched_too(ours: Path, server: str) -> None:
    verdict = examine(ours, server, batching=True)
    assert not verdict.stops
    assert set(verdict.flags) <= {"--xla_cpu_compilation_enabled=true"}


def test_a_version_of_ours_that_lost_a_file_does_not(ours: Path, tmp_path: Path) -> None:
    shutil.copytree(ours, tmp_path / "1")
    (tmp_path / "1" / "assets" / "words.txt").unlink()
    assert [one.what for one in examine(tmp_path / "1").stops] == ["assets/words.txt is missing"]


def test_models_config_is_a_message_of_tensorflow_serving() -> None:
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    folder = Path(__file__).resolve().parents[2] / "serving" / "tf_serving"
    message = text_format.Parse((folder / "models.config").read_text(),
                                model_server_config_pb2.ModelServerConfig())
    assert [(one.name, one.model_platform) for one in message.model_config_list.config] == [
        ("support_intents", "tensorflow"), ("support_replies", "tensorflow")]
