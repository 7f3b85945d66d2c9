"""SavedModelServable.run_traced: the same answer as run, and where the time went."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from tf_infer.errors import DeadlineExceeded, InvalidRequest  # noqa: E402
from tf_infer.server.contracts import StageTimes, Traceable  # noqa: E402
from tf_infer.server.fakes import EchoServable  # noqa: E402
from tf_infer.server.servable import SavedModelServable  # noqa: E402
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


def multiplied(matrix: Any, times: Any) -> Any:
    _, value = tf.while_loop(lambda i, _: i < times,
                             lambda i, value: (i + 1, tf.matmul(value, value)), (0 * times, matrix))
    return value


@pytest.fixture(scope="module")
def servable(tmp_path_factory: pytest.TempPathFactory) -> SavedModelServable:
    path = tmp_path_factory.mktemp("model") / "1"
    module = Staged()
    tf.saved_model.save(module, str(path), signatures={
        "serving_default": module.staged, "plain": module.plain})
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
    stages = traced(servable, *(200 if index == busy else 1 for index in range(3)), timeout_s=60.0)
    times = [stages.tokenize_s, stages.model_s, stages.decode_s]
    assert all(time > 0 for time in times)
    assert times[busy] > 0.7 * sum(times)


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
