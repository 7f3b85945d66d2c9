"""SavedModelServable.run_traced: the same answer as run, and where the time went."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from tensorflow.python.client import pywrap_tf_session  # noqa: E402

from tf_infer.config import ClassifierConfig, ShapeGrid  # noqa: E402
from tf_infer.errors import DeadlineExceeded, InvalidRequest  # noqa: E402
from tf_infer.manifest import ModelManifest  # noqa: E402
from tf_infer.server.contracts import StageTimes, Traceable  # noqa: E402
from tf_infer.server.fakes import EchoServable  # noqa: E402
from tf_infer.server.servable import SavedModelServable, _run_options  # noqa: E402
from tf_infer.stages import CORE, POSTPROCESS, PREPROCESS, STAGES  # noqa: E402

STEPS_OF_MINUTES = 10_000_000_000


class Staged(tf.Module):
    """Matrices are multiplied as often in each stage as its input says."""

    @tf.function(input_signature=[tf.TensorSpec([3], tf.int64, name="times")])
    def staged(self, times: Any) -> dict[str, Any]:
        value = tf.eye(256)
        for index, scope in enumerate((PREPROCESS, CORE, POSTPROCESS)):
            with tf.name_scope(scope):
                value = multiplied(value, times[index])
        return {"sum": tf.reduce_sum(value)[None]}

    @tf.function(input_signature=[tf.TensorSpec([1], tf.int64, name="times")])
    def plain(self, times: Any) -> dict[str, Any]:
        return {"sum": tf.reduce_sum(multiplied(tf.eye(256), times[0]))[None]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def several(self, x: Any) -> dict[str, Any]:
        return {"double": 2.0 * x, "square": x * x, "text": tf.strings.as_string(x)}


def multiplied(matrix: Any, times: Any) -> Any:
    _, value = tf.while_loop(lambda i, _: i < times,
                             lambda i, value: (i + 1, tf.matmul(value, value)), (0 * times, matrix))
    return value


@pytest.fixture(scope="module")
def servable(tmp_path_factory: pytest.TempPathFactory) -> SavedModelServable:
    path = tmp_path_factory.mktemp("model") / "1"
    module = Staged()
    tf.saved_model.save(module, str(path), signatures={
        "serving_default": module.staged, "plain": module.plain, "several": module.several})
    return SavedModelServable(path)


def traced(servable: SavedModelServable, *times: int, signature: str = "serving_default",
           timeout_s: float | None = None) -> StageTimes:
    inputs = {"times": np.array(times, np.int64)}
    arrays, stages = servable.run_traced(signature, inputs, outputs=["sum"], timeout_s=timeout_s)
    assert arrays["sum"].tolist() == servable.run(
        signature, inputs, outputs=["sum"], timeout_s=None)["sum"].tolist()
    return stages


@pytest.mark.parametrize("busy", range(3), ids=STAGES)
def test_the_stage_that_works_takes_the_time(servable: SavedModelServable, busy: int) -> None:
    def told() -> bool:
        stages = traced(servable, *(200 if index == busy else 1 for index in range(3)),
                        timeout_s=60.0)
        times = [stages.tokenize_s, stages.model_s, stages.decode_s]
        assert all(time > 0 for time in times)
        return times[busy] > 0.7 * sum(times)

    assert any(told() for _ in range(5))  # a busy machine may hold up a stage that does nothing


def test_a_graph_without_stages_is_all_model(servable: SavedModelServable) -> None:
    stages = traced(servable, 20, signature="plain")
    assert stages.model_s > 0
    assert stages.tokenize_s == stages.decode_s == 0


def test_a_traced_run_keeps_its_deadline(servable: SavedModelServable) -> None:
    with pytest.raises(DeadlineExceeded):
        traced(servable, STEPS_OF_MINUTES, signature="plain", timeout_s=0.2)


def test_a_traced_run_fails_like_any_other(servable: SavedModelServable) -> None:
    with pytest.raises(InvalidRequest, match="Expects arg"):
        servable.run_traced("plain", {"times": np.array([1.0])}, outputs=["sum"], timeout_s=None)


def test_a_servable_says_whether_it_can_be_traced(servable: SavedModelServable) -> None:
    assert isinstance(servable, Traceable)
    assert not isinstance(EchoServable(), Traceable)


def operations(servable: SavedModelServable, *outputs: str) -> set[str]:
    """Return the names of the operations that run for some outputs."""
    steps = pywrap_tf_session.TF_NewBuffer()
    found = servable._run("several", {"x": np.float32([3])}, outputs,
                          _run_options(0, traced=True), steps, whole=True)
    assert list(found) == list(outputs)
    told = tf.compat.v1.RunMetadata.FromString(pywrap_tf_session.TF_GetBuffer(steps))
    pywrap_tf_session.TF_DeleteBuffer(steps)
    return {node.node_name for device in told.step_stats.dev_stats for node in device.node_stats}


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "foreign"])
def test_any_choice_of_outputs_of_ours_runs_the_graph_that_warm_up_has_run(
        servable: SavedModelServable, ours: bool) -> None:
    manifest = ModelManifest(name="m", version=1, signatures=(), grid=ShapeGrid(),
                             task=ClassifierConfig(classes=("a", "b")))
    servable.manifest = manifest if ours else None
    try:
        every = operations(servable, "double", "square", "text")
        assert (operations(servable, "text", "double") == every) is ours
        assert servable.run("several", {"x": np.float32([3])}, outputs=["square"],
                            timeout_s=None)["square"].tolist() == [9]
    finally:
        servable.manifest = None
