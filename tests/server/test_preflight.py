"""What keeps a SavedModel from running on a release of the real server. No TensorFlow.

What TensorFlow does in each case (which operation fails the load, which only a call, and that an
unknown attribute is ignored) was measured on its DirectSession, 2.17.1 and 2.20.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from tf_infer.errors import ConfigError
from tf_infer.manifest import EXTRA_FOLDER, WARMUP_FILE
from tf_infer.server import op_lists, preflight
from tf_infer.server.fakes import signature
from tf_infer.server.findings import Finding, Verdict
from tf_infer.server.preflight import Settings
from tf_infer.server.reach import Program
from tf_infer.server.warmup import masked_crc32c
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire import tensors

FLOATS = {"x": (pb.DT_FLOAT, (-1,))}


def node(name: str, op: str, *inputs: str, calls: str = "", compile_it: bool = False,
         **attributes: Any) -> pb.NodeDef:
    made = pb.NodeDef(name=name, op=op, input=inputs)
    for key, value in attributes.items():
        made.attr[key].s = value if isinstance(value, bytes) else b"1"
    if calls:
        made.attr["f"].func.name = calls
        made.attr["Tin"].list.SetInParent()
        made.attr["Tout"].list.SetInParent()
    if compile_it:
        made.attr["_XlaMustCompile"].b = True
    return made


def function(name: str, *nodes: pb.NodeDef, compile_it: bool = False) -> pb.FunctionDef:
    made = pb.FunctionDef(node_def=nodes)
    made.signature.name = name
    if compile_it:
        made.attr["_XlaMustCompile"].b = True
    return made


X = node("x", "Placeholder", dtype=1)


def call(name: str, function_name: str, **options: Any) -> pb.NodeDef:
    return node(name, "StatefulPartitionedCall", "x", calls=function_name, **options)


def graph(*nodes: pb.NodeDef, functions: tuple[pb.FunctionDef, ...] = (),
          signatures: dict[str, Any] | None = None, tags: tuple[str, ...] = ("serve",),
          ) -> pb.MetaGraphDef:
    """A meta graph; its signature gives node `y` for `x`, unless others are given."""
    made = pb.MetaGraphDef(signature_def=signatures if signatures is not None else {
        "serving_default": signature(FLOATS, {"y": (pb.DT_FLOAT, (-1,))})})
    made.meta_info_def.tags.extend(tags)
    made.graph_def.node.extend([X, *nodes])
    made.graph_def.library.function.extend(functions)
    return made


def write(folder: Path, *graphs: pb.MetaGraphDef) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "saved_model.pb").write_bytes(
        pb.SavedModel(meta_graphs=graphs).SerializeToString())
    return folder


Y = node("y", "Identity", "x", T=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "m" / "3"


def examine(path: Path, server: str = "2.20.0", **settings: Any) -> Verdict:
    return preflight.examine(path, op_lists.release(server), Settings(**settings))


def stops(verdict: Verdict) -> list[tuple[str, str]]:
    return [(one.where, one.what) for one in verdict.stops]


def only(verdict: Verdict) -> Finding:
    (one,) = verdict.findings
    return one


def test_a_good_model_has_no_findings(folder: Path) -> None:
    verdict = examine(write(folder, graph(Y)))
    assert verdict == Verdict(())
    assert (verdict.stops, verdict.flags) == ((), ())


# ---------------------------------------------------------------------------- operations


def test_a_custom_operation_of_the_graph_stops_the_load(folder: Path) -> None:
    one = only(examine(write(folder, graph(Y, node("c", "MyOwnOp")))))
    assert (one.level, one.where) == ("stop", "load")
    assert one.what.startswith("operation MyOwnOp is not linked: a custom operation")
    assert "custom_op" in one.fix


def test_an_operation_in_a_function_stops_the_signatures_that_call_it(folder: Path) -> None:
    both = {name: signature(FLOATS, {name: (pb.DT_FLOAT, (-1,))}) for name in ("bad", "good")}
    verdict = examine(write(folder, graph(
        call("bad", "outer"), node("good", "Identity", "x", T=1), signatures=both,
        functions=(function("outer", node("n", "PartitionedCall", calls="inner")),
                   function("inner", node("n", "MyOwnOp")),
                   function("unused", node("n", "AnotherOne"))))))
    (stop,) = verdict.stops
    assert (stop.where, stop.what[:27]) == ("signature bad", "operation MyOwnOp is not li")
    notes = [one for one in verdict.findings if one.where == "graph"]
    assert len(notes) == 1
    assert "AnotherOne" in notes[0].what
    assert "no signature runs it" in notes[0].what


def test_what_the_init_op_runs_stops_the_load(folder: Path) -> None:
    given = graph(Y, call("init", "setup"), functions=(function("setup", node("n", "MyOwnOp")),))
    given.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name = "init"
    assert [where for where, _ in stops(examine(write(folder, given)))] == ["load"]


def test_a_function_may_be_called_by_its_name_and_by_a_list(folder: Path) -> None:
    case = node("y", "Case", "x", Tin=1, Tout=1)
    case.attr["branches"].list.func.add(name="a")
    case.attr["branches"].list.func.add(name="b")
    verdict = examine(write(folder, graph(case, functions=(
        function("a", node("n", "b")), function("b", node("n", "MyOwnOp"))))))
    assert [where for where, _ in stops(verdict)] == ["signature serving_default"]


@pytest.mark.parametrize(("server", "runs"), [("2.17", False), ("2.19.1", False), ("2.20.0", True)])
def test_operations_of_tf_text_are_those_of_the_version_that_is_linked(
        folder: Path, server: str, runs: bool) -> None:
    trim = node("n", "TFText>RoundRobinTrim", N=1, T=1, Tsplits=1)
    verdict = examine(write(folder, graph(call("y", "f"), functions=(function("f", trim),))),
                      server)
    assert (not verdict.stops) == runs
    if not runs:
        (stop,) = verdict.stops
        assert "TFText>RoundRobinTrim is not in TF-Text 2.12.1" in stop.what
        assert stop.fix == "Known to tensorflow_model_server 2.20."


def test_decision_forests_infer_but_do_not_train(folder: Path) -> None:
    good = node("a", "SimpleMLInferenceOpWithHandle", dense_output_dim=1)
    verdict = examine(write(folder, graph(Y, good, node("b", "SimpleMLModelTrainer"))))
    (stop,) = verdict.stops
    assert "SimpleMLModelTrainer is not among the inference operations" in stop.what


def test_an_operation_of_a_newer_tensorflow_is_called_that(folder: Path) -> None:
    one = only(examine(write(folder, graph(Y, node("w", "DecodeWebP"))), "2.19.1"))
    assert one.what == "operation DecodeWebP is newer than TensorFlow 2.19.1, which is linked"
    assert one.fix == "Known to tensorflow_model_server 2.20."


def test_an_unknown_attribute_is_ignored_and_so_changes_answers(folder: Path) -> None:
    strange = node("y", "ScatterNd", "x", T=1, Tindices=1, bad_indices_policy=b"IGNORE")
    one = only(examine(write(folder, graph(strange)), "2.17.0"))
    assert (one.level, one.where) == ("stop", "signature serving_default")
    assert "'bad_indices_policy' is unknown to TensorFlow 2.17.1, which ignores it" in one.what
    assert "2.18" in one.fix
    assert not examine(write(folder, graph(strange)), "2.18.0").findings


def test_an_unknown_attribute_at_its_default_changes_nothing(folder: Path) -> None:
    written = node("y", "ScatterNd", "x", T=1, Tindices=1, bad_indices_policy=b"")
    assert not examine(write(folder, graph(written)), "2.17.0").findings


def test_an_attribute_that_is_not_there_and_has_no_default_stops_the_load(folder: Path) -> None:
    one = only(examine(write(folder, graph(node("y", "Identity", "x")))))
    assert (one.level, one.where) == ("stop", "load")
    assert "attribute 'T' has no default in TensorFlow 2.20.0" in one.what


def test_notes_of_tensorflow_are_no_attributes(folder: Path) -> None:
    assert not examine(write(folder, graph(
        node("y", "Identity", "x", T=1, _output_shapes=1)))).findings


@pytest.mark.parametrize(("op", "words"), [
    ("EagerPyFunc", "runs Python code"), ("CudnnRNNV3", "no kernel for a CPU")])
def test_operations_without_a_kernel_stop_those_that_run_them(
        folder: Path, op: str, words: str) -> None:
    known = op_lists.release("2.20").ops[op]
    given = node("n", op, **dict.fromkeys(known.required, 1))
    body = (function("f", given),)
    (stop,) = examine(write(folder, graph(call("y", "f"), functions=body))).stops
    assert stop.where == "signature serving_default"
    assert words in stop.what
    assert not examine(write(folder, graph(Y, functions=body))).findings  # nothing runs it


def test_what_xla_compiles_needs_no_kernel(folder: Path) -> None:
    known = op_lists.release("2.20").ops["XlaSetDynamicDimensionSize"]
    assert not known.on_cpu
    given = node("n", "XlaSetDynamicDimensionSize", **dict.fromkeys(known.required, 1))
    verdict = examine(write(folder, graph(
        call("y", "f"), functions=(function("f", given, compile_it=True),))))
    assert [one.level for one in verdict.findings] == ["flag"]


def test_what_a_compiled_function_calls_is_compiled_too(folder: Path) -> None:
    known = op_lists.release("2.20").ops["XlaSetDynamicDimensionSize"]
    given = node("n", "XlaSetDynamicDimensionSize", **dict.fromkeys(known.required, 1))
    inner, outer = function("f", given), function("g", node("n", "f"), compile_it=True)
    assert not examine(write(folder, graph(call("y", "g"), functions=(inner, outer)))).stops
    outer.ClearField("attr")
    assert examine(write(folder, graph(call("y", "g"), functions=(inner, outer)))).stops


def test_a_graph_that_names_a_bad_reader_stops_there(folder: Path) -> None:
    given = graph(Y)
    given.graph_def.versions.bad_consumers.append(1994)
    assert examine(write(folder, given), "2.18").stops
    assert not examine(write(folder, given), "2.19").stops


def test_a_graph_for_newer_readers_stops_the_load(folder: Path) -> None:
    given = graph(Y)
    given.graph_def.versions.min_consumer = 1_900
    assert not examine(write(folder, given), "2.18").findings
    assert "version 1900 of graphs, this one reads up to 1882" in only(
        examine(write(folder, given), "2.17")).what


# ---------------------------------------------------------------------------- XLA


@pytest.mark.parametrize("where", ["function", "call", "nested"])
def test_compiled_signatures_ask_for_the_flag(folder: Path, where: str) -> None:
    inner = function("f", node("n", "Identity", T=1), compile_it=where != "call")
    outer = function("outer", node("n", "PartitionedCall", calls="f"))
    first = call("y", "outer" if where == "nested" else "f", compile_it=where == "call")
    verdict = examine(write(folder, graph(first, node("z", "Identity", "x", T=1), signatures={
        "compiled": signature(FLOATS, {"y": (pb.DT_FLOAT, (-1,))}),
        "serving_default": signature(FLOATS, {"z": (pb.DT_FLOAT, (-1,))})},
        functions=(inner, outer))))
    one = only(verdict)
    assert (one.level, one.where) == ("flag", "signature compiled")
    assert verdict.flags == ("--xla_cpu_compilation_enabled=true",)
    assert not verdict.stops


def test_a_function_that_calls_itself_is_walked_once() -> None:
    given = graph(call("y", "f"), functions=(function("f", node("n", "f"), node("m", "NoOp")),))
    assert {use.op for use in Program(given.graph_def).reached(["y:0"]).uses} == {
        "StatefulPartitionedCall", "NoOp", "Placeholder"}


# ---------------------------------------------------------------------------- signatures


def test_without_signatures_there_is_nothing_to_call(folder: Path) -> None:
    given = graph(Y, signatures={"__saved_model_init_op": signature({}, {"y": (1, ())})})
    assert only(examine(write(folder, given))).what.startswith("no signature")
    named = graph(Y, signatures={"other": signature(FLOATS, {"y": (pb.DT_FLOAT, (-1,))})})
    assert only(examine(write(folder, named))).level == "note"


def test_tensors_that_cannot_travel_stop_a_signature(folder: Path) -> None:
    given = graph(Y, signatures={"serving_default": signature(
        {"x": (pb.DT_RESOURCE, (-1,))}, {"y": (pb.DT_FLOAT, (-1,)), "gone": (1, (-1,))})})
    outputs = given.signature_def["serving_default"].outputs
    for part in ("values", "indices", "dense_shape"):
        setattr(outputs["sparse"].coo_sparse, f"{part}_tensor_name", "y:0")
    assert [what for _, what in stops(examine(write(folder, given)))] == [
        "'gone' stands for a tensor that the graph does not have",
        "'sparse' is a sparse, ragged or composite tensor; requests carry dense ones only",
        "'x' is DT_RESOURCE, which no request and no answer can carry"]


def test_the_method_decides_about_the_form(folder: Path) -> None:
    classes = {"scores": (pb.DT_FLOAT, (-1, 2))}
    good = signature({"inputs": (pb.DT_STRING, (-1,))}, classes, "tensorflow/serving/classify")
    nodes = (node("inputs", "Placeholder", dtype=1), node("scores", "Identity", "x", T=1))
    assert not examine(write(folder, graph(*nodes, signatures={"serving_default": good}))).findings
    for method, request in (("classify", "Classify"), ("regress", "Regress")):
        bad = signature({"text": (pb.DT_STRING, (-1,))}, {"y": (pb.DT_FLOAT, (-1,))},
                        f"tensorflow/serving/{method}")
        bad.inputs["text"].name = "x:0"
        (stop,) = examine(write(folder, graph(Y, signatures={"serving_default": bad}))).stops
        assert stop.what.startswith(f"its method is {request}, which would be refused: ")
    predict = signature({"inputs": (pb.DT_STRING, (-1,))}, classes)
    one = only(examine(write(folder, graph(*nodes, signatures={"serving_default": predict}))))
    assert one.level == "note"
    assert "has the form of Classify; its method is Predict" in one.what


def test_BA13_BA14_shapes_that_batching_cannot_join_stop_only_with_batching(folder: Path) -> None:
    given = graph(Y, signatures={"serving_default": signature(
        {"x": (pb.DT_FLOAT, ())}, {"y": (pb.DT_FLOAT, (4, 2))})})
    write(folder, given)
    assert not examine(folder).stops
    assert [what for _, what in stops(examine(folder, batching=True))] == [
        "input 'x' is a scalar: no axis of rows to join",
        "output 'y' has 4 rows, always: joined requests have another number"]


def test_BA10_free_later_axes_are_noted(folder: Path) -> None:
    given = graph(Y, signatures={"serving_default": signature(
        {"x": (pb.DT_FLOAT, (-1, -1))}, {"y": (pb.DT_FLOAT, None)})})
    assert "pad_variable_length_inputs" in only(examine(write(folder, given))).what


def test_PR25_RP33_defaults_and_RP29_dtypes_are_noted(folder: Path) -> None:
    given = graph(Y, signatures={"serving_default": signature(
        FLOATS, {"y": (pb.DT_BFLOAT16, (-1,))})})
    given.signature_def["serving_default"].defaults["x"].CopyFrom(
        tensors.to_proto(np.zeros(1, np.float32)))
    verdict = examine(write(folder, given))
    assert not verdict.stops
    assert [one.what[:34] for one in verdict.findings] == [
        "REST cannot carry y (half precisio", "x may be left out of Predict over "]


# ---------------------------------------------------------------------------- tags, files


def test_FL37_the_tags_have_to_be_the_very_set(folder: Path) -> None:
    write(folder, graph(Y, tags=("serve", "gpu")))
    one = only(examine(folder))
    assert one.what == "no meta graph with the tags [serve], but [serve,gpu]"
    assert "--saved_model_tags=serve,gpu" in one.fix
    assert not examine(folder, tags=frozenset({"gpu", "serve"})).findings


def test_VR02_VR03_names_and_empty_folders(tmp_path: Path) -> None:
    model = tmp_path / "m"
    (stop,) = examine(write(model / "v7", graph(Y))).stops
    assert "'v7' is no version number" in stop.what
    write(model / "3", graph(Y))
    (model / "12").mkdir()
    (model / "tmp").mkdir()
    assert preflight.find_version(model) == model / "12"
    assert "VR03" in only(examine(model / "12")).what
    assert preflight.find_version(model / "3") == model / "3"


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folders named by version numbers"):
        preflight.find_version(tmp_path)
    with pytest.raises(ConfigError, match="cannot be listed"):
        preflight.find_version(tmp_path / "none")


def test_broken_and_split_graphs_cannot_be_judged(folder: Path) -> None:
    (write(folder, graph(Y)) / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(ConfigError, match="Is the file whole"):
        examine(folder)
    (folder / "saved_model.pb").rename(folder / "saved_model.cpb")
    with pytest.raises(ConfigError, match="in several parts"):
        examine(folder)


def test_a_graph_as_text_is_read(folder: Path) -> None:
    folder.mkdir(parents=True)
    text = text_format.MessageToString(pb.SavedModel(meta_graphs=[graph(Y, node("c", "MyOwnOp"))]))
    (folder / "saved_model.pbtxt").write_text(f"{text}\nnot_known_here: 1")
    assert "MyOwnOp" in only(examine(folder)).what
    (folder / "saved_model.pbtxt").write_text("}")
    with pytest.raises(ConfigError, match="SavedModel as text"):
        examine(folder)


def test_missing_assets_and_variables_stop_the_load(folder: Path) -> None:
    given = graph(Y, node("v", "VarHandleOp", dtype=1, shape=1))
    given.asset_file_def.add(filename="vocab.txt")
    write(folder, given)
    assert [what[:32] for _, what in stops(examine(folder))] == [
        "assets/vocab.txt is missing", "variables/variables.index is mis"]
    (folder / "assets").mkdir()
    (folder / "assets" / "vocab.txt").touch()
    (folder / "variables").mkdir()
    for name in ("index", "data-00000-of-00002"):
        (folder / "variables" / f"variables.{name}").touch()
    assert only(examine(folder)).what == "a part of variables/ is missing"
    (folder / "variables" / "variables.data-00001-of-00002").touch()
    assert not examine(folder).findings


def test_a_tflite_model_needs_its_flag(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "model.tflite").touch()
    assert preflight.find_version(folder.parent) == folder
    assert examine(folder).flags == ("--prefer_tflite_model=true",)
    one = only(examine(write(folder, graph(Y))))
    assert (one.level, one.where) == ("note", "model.tflite")


# ---------------------------------------------------------------------------- warm-up


def warm(folder: Path, *records: pb.PredictionLog | bytes) -> Path:
    file = folder / EXTRA_FOLDER / WARMUP_FILE
    file.parent.mkdir(exist_ok=True)
    with open(file, "wb") as out:
        for record in records:
            data = record if isinstance(record, bytes) else record.SerializeToString()
            head = len(data).to_bytes(8, "little")
            for part in (head, data):
                out.write(part + masked_crc32c(part).to_bytes(4, "little"))
    return folder


def predict_log(array: Any, name: str = "serving_default") -> pb.PredictionLog:
    log = pb.PredictionLog()
    log.predict_log.request.model_spec.signature_name = name
    log.predict_log.request.inputs["x"].CopyFrom(tensors.to_proto(np.asarray(array)))
    return log


GOOD = predict_log(np.zeros(2, np.float32))


@pytest.mark.parametrize(("records", "words"), [
    ([GOOD, predict_log(np.zeros(2, np.int32))], "record 2: INVALID_ARGUMENT: input 'x' is int32"),
    ([predict_log([0.0], "none")], "record 1: FAILED_PRECONDITION: Serving signature key"),
    ([pb.PredictionLog(session_run_log=pb.SessionRunLog())], "record 1: UNIMPLEMENTED"),
    ([pb.PredictionLog(predict_streamed_log=pb.PredictStreamedLog())], "predict_streamed_log"),
    ([b"\xff"], "INVALID_ARGUMENT: Failed to parse warmup record 1"),
    ([GOOD] * 1001, "exceeds the maximum (1000)"),
], ids=["dtype", "PR02", "WU12-session", "WU12-streamed", "WU08", "WU10"])
def test_warm_up_records_that_would_fail_stop_the_load(
        folder: Path, records: list[Any], words: str) -> None:
    warm(write(folder, graph(Y)), *records)
    (stop,) = examine(folder).stops
    assert stop.where == "tf_serving_warmup_requests"
    assert words in stop.what
    assert not examine(folder, warmup=False).findings


def test_good_warm_up_records_are_no_finding(folder: Path) -> None:
    warm(write(folder, graph(Y)), GOOD, pb.PredictionLog(), *[GOOD] * 998)
    assert not examine(folder).findings


def test_WU09_a_warm_up_file_of_another_form_stops_the_load(folder: Path) -> None:
    warm(write(folder, graph(Y)))
    (folder / EXTRA_FOLDER / WARMUP_FILE).write_bytes(b"not a TFRecord at all")
    (stop,) = examine(folder).stops
    assert "DATA_LOSS" in stop.what


# ---------------------------------------------------------------------------- lists


def test_every_release_has_its_lists() -> None:
    for name, linked in op_lists.RELEASES.items():
        known = op_lists.release(f"{name}.0")
        assert len(known.ops) > 1900
        assert known.linked == linked
        assert known.libraries["FastBertNormalize"] == f"TF-Text {linked.tensorflow_text}"
        assert known.ops["MatMul"].required == {"T"}
        assert "transpose_a" in known.ops["MatMul"].optional


def test_an_unknown_release_is_refused() -> None:
    for name in ("2.1", "latest", "2.20.0.1", ""):
        with pytest.raises(ConfigError, match=r"2\.17, 2\.18, 2\.19, 2\.20"):
            op_lists.release(name)
