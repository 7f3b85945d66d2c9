"""Any number of rows, a bounded number at a time."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.tasks import small
from tests.tasks.suite import as_arrays
from tf_infer.tasks.build import build
from tf_infer.tasks.grid import in_slices

SPECS = {"one": tf.TensorSpec([None, 2], tf.float32), "two": tf.TensorSpec([None], tf.int32)}


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 9])
@pytest.mark.parametrize("graph", [False, True])
def test_slices_are_as_large_as_allowed_and_give_all_rows(count: int, graph: bool) -> None:
    def core(*, one: tf.Tensor, two: tf.Tensor) -> dict[str, tf.Tensor]:
        size = tf.fill(tf.shape(two), tf.shape(two)[0])
        return {"sum": one + tf.cast(two, tf.float32)[:, None], "size": size}

    def whole(one: tf.Tensor, two: tf.Tensor) -> dict[str, tf.Tensor]:
        return in_slices(core, {"two": two, "one": one}, SPECS, 3)

    ask = tf.function(whole, input_signature=tuple(SPECS.values())) if graph else whole
    one, two = np.arange(2.0 * count, dtype=np.float32).reshape(count, 2), np.arange(
        count, dtype=np.int32)
    found = as_arrays(ask(tf.constant(one), tf.constant(two)))
    np.testing.assert_array_equal(found["sum"], one + two[:, None])
    assert found["size"].tolist() == ([3] * (count // 3 * 3) + [count % 3] * (count % 3))


def test_no_slice_begins_before_all_is_there() -> None:
    """Else a check that fails on the way may be told as the loop that it cancels."""
    def whole(one: tf.Tensor, two: tf.Tensor) -> dict[str, tf.Tensor]:
        return in_slices(lambda one, two: {"sum": one}, {"two": two, "one": one}, SPECS, 3)

    graph = tf.function(whole, input_signature=tuple(SPECS.values()), autograph=False
                        ).get_concrete_function().graph
    (loop,) = [op for op in graph.get_operations() if op.type in {"While", "StatelessWhile"}]
    given = {tensor.op for tensor in graph.inputs}
    assert any(set(tensor.op.control_inputs) >= given for tensor in loop.inputs)


@pytest.mark.parametrize("graph", [False, True])
def test_a_core_without_xla_sees_no_more_rows_than_the_grid_has(graph: bool) -> None:
    task = build(small.BAG, seed=7)
    network, seen = task.network, []

    def spy(ids: tf.Tensor, *others: tf.Tensor, training: bool) -> tf.Tensor:
        tf.py_function(lambda count: seen.append(int(count)), [tf.shape(ids)[0]], [])
        return network(ids, *others, training=training)

    texts = tf.constant([f"text {number}" for number in range(10)])
    wanted = task.signatures()["serving_default"].function(text=texts)
    task.network = spy
    ask = task.signatures()["serving_default"].function
    found = (tf.function(ask) if graph else ask)(text=texts)
    np.testing.assert_allclose(found["logits"], wanted["logits"], atol=1e-6)
    assert seen == [4, 4, 2]
