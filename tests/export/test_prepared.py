"""The graph that an export prepares: in an order in which it can be imported, with its loops."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from tf_infer.export import prepared
from tf_infer.export.prepared import in_order, prepare, write_prepared
from tf_infer.prepared import prepared_folder, source_of
from tf_infer.server import graph_pieces, loading


class Doubling(tf.Module):
    """Doubles rows as often as its variable says, in a loop; a branch for those without any.

    What it gives waits for a check.
    """

    def __init__(self) -> None:
        super().__init__()
        self.times = tf.Variable(3)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def double(self, x: Any) -> dict[str, Any]:
        (_, found) = tf.while_loop(lambda i, _: i < self.times, lambda i, y: (i + 1, y * 2.0),
                                   (0, x), maximum_iterations=9)
        with tf.control_dependencies([tf.debugging.assert_less(x, 100.0)]):
            found = tf.identity(found)
        return {"y": tf.cond(tf.size(x) > 0, lambda: found + 1.0, lambda: tf.zeros([1]))}


def saved(folder: Path) -> Any:
    module = Doubling()
    tf.saved_model.save(module, str(folder), signatures={
        "serving_default": module.double, "again": module.double})
    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return model.meta_graphs[0]


def test_signatures_saver_and_inputs_stay_and_functions_are_in_their_places(tmp_path: Path) -> None:
    before = saved(tmp_path)
    after = prepare(before)
    assert after.signature_def == before.signature_def
    assert after.saver_def == before.saver_def
    nodes = {node.name: node for node in after.graph_def.node}
    for signature in before.signature_def.values():
        for info in (*signature.inputs.values(), *signature.outputs.values()):
            assert source_of(info.name) in nodes
    inputs = [node for node in nodes.values() if node.op == "Placeholder"]
    assert any(node.attr["shape"].shape.dim for node in inputs)
    assert all(dim.size == -1 for node in inputs for dim in node.attr["shape"].shape.dim)
    calls = [node.name for node in nodes.values() if node.op.endswith("PartitionedCall")]
    assert calls == [source_of(before.saver_def.restore_op_name)]
    assert not any(node.device for node in nodes.values())


def test_it_runs_with_TensorFlows_optimiser_left_out(tmp_path: Path) -> None:
    after = prepare(saved(tmp_path))
    settings = tf.compat.v1.ConfigProto()
    settings.graph_options.rewrite_options.disable_meta_optimizer = True
    with tf.compat.v1.Session(graph=tf.Graph(), config=settings) as session:
        tf.import_graph_def(after.graph_def, name="")
        session.run(after.saver_def.restore_op_name, {
            after.saver_def.filename_tensor_name: str(tmp_path / "variables" / "variables")})
        for name in ("serving_default", "again"):
            ends = after.signature_def[name]
            for x, y in (([1.0, 2.0], [9.0, 17.0]), ([], [0.0])):
                found = session.run(ends.outputs["y"].name,
                                    {ends.inputs["x"].name: np.float32(x)})
                assert found.tolist() == y
            with pytest.raises(tf.errors.InvalidArgumentError):
                session.run(ends.outputs["y"].name, {ends.inputs["x"].name: np.float32([100.0])})


def test_it_runs_as_well_when_each_node_comes_in_a_piece_of_its_own(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for loops. Some wait for a check, which gives nothing that they could read."""
    after = prepare(saved(tmp_path))
    nodes = after.graph_def.node
    silent = {node.name for node in nodes if not op_def_registry.get(node.op).output_arg}
    assert any(name[1:] in silent for node in nodes for name in node.input if name.startswith("^"))
    monkeypatch.setattr(loading, "pieces", functools.partial(graph_pieces.pieces, nodes=1))
    ends = after.signature_def["serving_default"]
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        tensor = loading.load_prepared(session, tmp_path, after.SerializeToString(), None).tensor
        session._extend_graph()

        def double(x: list[float]) -> list[float]:
            (found,) = session._call_tf_sessionrun(
                None, {tensor(ends.inputs["x"].name): np.float32(x)},
                [tensor(ends.outputs["y"].name)], [], None)
            return list(found)

        assert double([1.0, 2.0]) == [9.0, 17.0]
        with pytest.raises(tf.errors.InvalidArgumentError):
            double([100.0])


def test_what_TensorFlows_optimiser_cannot_read_is_left_as_it_is_and_told(tmp_path: Path) -> None:
    model = saved_model_pb2.SavedModel(meta_graphs=[saved(tmp_path)])
    model.meta_graphs[0].signature_def["again"].outputs["y"].name = "nowhere:0"
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    assert "ended with" in write_prepared(tmp_path)
    assert not prepared_folder(tmp_path).exists()


@pytest.mark.parametrize("fault", [KeyError("x"), RuntimeError("y"), AttributeError("z")])
def test_no_fault_of_the_optimiser_ends_an_export(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def broken(meta_graph: Any) -> Any:
        raise fault

    (tmp_path / "saved_model.pb").write_bytes(
        saved_model_pb2.SavedModel(meta_graphs=[saved(tmp_path)]).SerializeToString())
    monkeypatch.setattr(prepared, "prepare", broken)
    assert write_prepared(tmp_path).endswith(f"ended with {type(fault).__name__}")
    assert not prepared_folder(tmp_path).exists()


def test_only_a_loop_reads_what_stands_behind_it(tmp_path: Path) -> None:
    nodes = prepare(saved(tmp_path)).graph_def.node
    at = {node.name: number for number, node in enumerate(nodes)}
    behind = [(number, at[source_of(name)]) for number, node in enumerate(nodes)
              for name in node.input if at[source_of(name)] > number]
    assert behind
    spans = [nodes[begin:end + 1] for begin, end in behind]
    assert all(any(node.op == "NextIteration" for node in span) for span in spans)
    assert max(map(len, spans)) < len(nodes) / 4


@given(st.integers(1, 9).flatmap(lambda count: st.lists(
    st.lists(st.integers(0, count - 1), max_size=3), min_size=count, max_size=count)))
def test_a_circle_stands_together_and_all_else_behind_what_it_reads(reads: list[list[int]]) -> None:
    graph = graph_pb2.GraphDef()
    for number, sources in enumerate(reads):
        graph.node.add(name=str(number), input=[f"^{source}" for source in sources])
    order = [int(node.name) for node in in_order(graph)]
    assert sorted(order) == list(range(len(reads)))
    reach = {number: {number} for number in range(len(reads))}
    for _ in reads:
        for number, sources in enumerate(reads):
            reach[number] |= {one for source in sources for one in reach[source]}
    for number, sources in enumerate(reads):
        circle = {one for one in reach[number] if number in reach[one]}
        places = sorted(order.index(one) for one in circle)
        assert places == list(range(places[0], places[0] + len(circle)))
        for source in sources:
            assert source in circle or order.index(source) < places[0]
