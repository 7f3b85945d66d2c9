"""The ONNX file of a classifier: what it computes, of which operations, and what is refused."""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.networks.encoders import NETWORKS, POSITIONS, classifier, rows
from tests.networks.encoders import logits as network_logits
from tests.oracles import encoder as oracle
from tf_infer.config import ShapeGrid
from tf_infer.errors import BackendMissing, ConfigError, ExportError
from tf_infer.networks.encoder_arrays import EncoderArrays, encoder_arrays_of
from tf_infer.optimize.onnx import OnnxSettings, write

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from tf_infer.optimize import onnx_encoder, onnx_file  # noqa: E402

GRID = ShapeGrid(rows=(1, 2), tokens=(8, POSITIONS))
# Sums of at most 40 numbers near 1 in another order, through two layers.
FLOAT32_ATOL = 2e-5
FLOAT16_ATOL = 0.01  # 10 bits of mantissa, numbers of a few units


def logits(model: bytes, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Run a file on the CPU."""
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    wanted = {one.name for one in session.get_inputs()}
    found: np.ndarray = session.run(None, {n: a for n, a in batch.items() if n in wanted})[0]
    return found


@pytest.fixture(scope="module")
def families() -> list[Any]:
    """Return a classifier of every family, and of every head."""
    return [classifier(network, head) for network, head in (
        ("bert", "pooler"), ("distilbert", "first"), ("roberta", "max"), ("small", "mean"))]


def test_every_family_and_every_head_has_its_counterpart(families: list[Any]) -> None:
    batch = rows([1, 9, 12, 40], 40)
    for network in families:
        model = onnx_encoder.model_of(encoder_arrays_of(network), "float32")
        np.testing.assert_allclose(logits(model, batch), network_logits(network, batch),
                                   atol=FLOAT32_ATOL)


@pytest.mark.parametrize("activation", sorted(oracle.FUNCTIONS))
def test_every_activation_has_its_counterpart(activation: Any) -> None:
    arrays = small()
    head = replace(arrays.head, activation=activation, dense=(arrays.layers[0].out,))
    arrays = replace(arrays, head=head)
    if activation not in ("tanh", "sigmoid", "linear"):
        arrays = replace(arrays, activation=activation)
    batch = rows([3, 20], 20)
    for precision, atol in (("float32", FLOAT32_ATOL), ("float16", FLOAT16_ATOL)):
        np.testing.assert_allclose(logits(onnx_encoder.model_of(arrays, precision), batch),
                                   oracle.logits(arrays, **batch), atol=atol)


def test_layers_may_have_different_numbers_of_heads() -> None:
    arrays = small()
    first = arrays.layers[0]
    size = arrays.head_size
    fewer = replace(
        first, qkv=replace(first.qkv, kernel=np.concatenate(
            [part[:size] for part in np.split(first.qkv.kernel, 3)]),
            bias=np.concatenate([part[:size] for part in np.split(first.qkv.bias, 3)])),
        out=replace(first.out, kernel=first.out.kernel[:, :size]))
    arrays = replace(arrays, layers=(fewer, *arrays.layers[1:]))
    batch = rows([3, 20], 20)
    np.testing.assert_allclose(logits(onnx_encoder.model_of(arrays, "float32"), batch),
                               oracle.logits(arrays, **batch), atol=FLOAT32_ATOL)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_a_file_is_of_onnxs_own_operations_with_free_rows_and_tokens(
        precision: Any, families: list[Any], tmp_path: Path) -> None:
    manifest = write(families[0], tmp_path / "onnx", OnnxSettings(precision=precision),
                     grid=GRID)
    model = onnx.load(tmp_path / "onnx" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {one.domain for one in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} == {""}
    axes = {one.name: [axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim]
            for one in (*model.graph.input, *model.graph.output)}
    free = ["rows", "tokens"]
    assert axes == {"ids": free, "mask": free, "segments": free, "logits": ["rows", 3]}
    assert (manifest.kind, manifest.precision, manifest.positions, manifest.classes) == (
        "onnx", precision, POSITIONS, 3)
    assert manifest.shapes == ((1, 8), (1, POSITIONS), (2, 8), (2, POSITIONS))
    kinds = {onnx.TensorProto.DataType.Name(one.data_type) for one in model.graph.initializer
             if one.name.startswith("layer_") and one.name.endswith("/kernel")}
    assert kinds == {{"float32": "FLOAT", "float16": "FLOAT16", "int8": "INT8"}[precision]}


@pytest.mark.parametrize("place", range(4))
def test_half_precision_stays_half_between_products_and_norms_and_softmax_are_float32(
        place: int, families: list[Any]) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(
        onnx_encoder.model_of(encoder_arrays_of(families[place]), "float16")), strict_mode=True)
    types = {one.name: onnx.TensorProto.DataType.Name(one.type.tensor_type.elem_type)
             for one in model.graph.value_info}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("Softmax", "LayerNormalization"):
            assert types[node.output[0]] == "FLOAT"
        if node.op_type == "Cast" and node.input[0] in makers:
            before = makers[node.input[0]]
            assert before.op_type != "Cast", "a cast of a cast"
    halves = [node for node in model.graph.node
              if node.op_type == "MatMul" and types[node.output[0]] == "FLOAT16"]
    assert len(halves) >= 2 * 6  # query, keys, values; scores; mixed; out; inner; outer
    casts = sum(node.op_type == "Cast" for node in model.graph.node)
    assert casts <= 2 * 7 + 4


def joined(model: bytes, folder: Path) -> Counter[str]:
    """Return the operations that ONNX Runtime makes of a file on a CPU."""
    options = runtime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "joined.onnx"), 3
    runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "joined.onnx").graph.node)


def test_onnx_runtime_knows_the_activations_and_in_half_precision_the_norms_behind_sums(
        families: list[Any], tmp_path: Path) -> None:
    bert, _, roberta, _ = (encoder_arrays_of(network) for network in families)
    assert joined(onnx_encoder.model_of(bert, "float32"), tmp_path)["BiasGelu"] == 2
    found = joined(onnx_encoder.model_of(roberta, "float32"), tmp_path)
    assert found["FastGelu"] == 2 and not found["Tanh"]
    # A CPU takes longer for both as one: float16 alone is written so that they are joined.
    assert not found["SkipLayerNormalization"]
    found = joined(onnx_encoder.model_of(roberta, "float16"), tmp_path)
    assert found["SkipLayerNormalization"] == 4


# What TensorRT's parser takes of ONNX (onnx-tensorrt, docs/operators.md of release 10.0).
TENSORRT = {
    "Add", "Cast", "DequantizeLinear", "Div", "Erf", "Gather", "Identity", "LayerNormalization",
    "MatMul", "Max", "Mul", "QuantizeLinear", "ReduceMax", "ReduceSum", "ReduceSumSquare", "Relu",
    "Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Tanh", "Transpose",
    "Unsqueeze", "Where"}


@pytest.mark.parametrize(("precision", "ranges"), [
    ("float32", "found"), ("float16", "found"), ("int8", "largest"), ("int8", "found")])
def test_tensorrt_knows_every_operation_but_ranges_that_are_found_as_it_runs(
        precision: Any, ranges: Any, families: list[Any], tmp_path: Path) -> None:
    kinds = set()
    for number, network in enumerate(families):
        write(network, tmp_path / str(number), OnnxSettings(precision=precision, ranges=ranges),
              grid=GRID, batches=[rows([8, 3], 8)])
        model = onnx.load(tmp_path / str(number) / "model.onnx")
        kinds |= {node.op_type for node in model.graph.node}
    unknown = {"DynamicQuantizeLinear", "MatMulInteger"} if ranges == "found" else set()
    assert kinds - TENSORRT == (unknown if precision == "int8" else set())


@pytest.mark.parametrize("ranges", ["largest", "percentile", "entropy"])
def test_ranges_that_are_set_give_the_logits_within_8_bits(
        ranges: Any, families: list[Any], tmp_path: Path) -> None:
    made, batch = families[0], rows([1, 9, 12, 40], 40)
    manifest = write(made, tmp_path / "onnx", OnnxSettings(precision="int8", ranges=ranges),
                     grid=GRID, batches=[rows([40, 30, 7, 20], 40, seed=seed) for seed in range(4)])
    assert manifest.fixed_ranges
    wanted = network_logits(made, batch)
    found = logits((tmp_path / "onnx" / "model.onnx").read_bytes(), batch)
    worst = np.abs(found - wanted).max()
    assert FLOAT32_ATOL < worst < 0.1 * np.ptp(wanted)


def test_padding_sets_no_range() -> None:
    from tf_infer.optimize.onnx_limits import limits_of

    arrays = small()
    narrow = rows([7], 7)
    wide = {name: np.pad(array, ((0, 0), (0, 30))) for name, array in narrow.items()}
    one, other = (limits_of(arrays, [batch], "largest", 100.0) for batch in (narrow, wide))
    assert set(one) == {f"layer_{number}/{part}" for number in (0, 1)
                        for part in ("qkv", "out", "inner", "outer")}
    for name, limit in one.items():
        assert other[name] == pytest.approx(limit, rel=1e-5)
    more = limits_of(arrays, [narrow, rows([30, 40], 40)], "largest", 100.0)
    assert any(more[name] > limit * 1.01 for name, limit in one.items())


def test_ranges_want_texts(tmp_path: Path) -> None:
    settings = OnnxSettings(precision="int8", ranges="entropy")
    for batches in ((), [rows([0], 8)]):
        with pytest.raises(ConfigError, match=r"OnnxSettings\.ranges: expected 'found' where"):
            write(classifier("small"), tmp_path / "onnx", settings, grid=GRID, batches=batches)


def test_the_smaller_precision_is_the_smaller_file() -> None:
    arrays = small()
    sizes = [len(onnx_encoder.model_of(arrays, precision))
             for precision in ("int8", "float16", "float32")]
    assert sizes == sorted(sizes)


def test_an_activation_without_a_counterpart_is_refused_by_its_layer(tmp_path: Path) -> None:
    made = classifier(replace(NETWORKS["bert"], activation="selu"))
    with pytest.raises(ConfigError, match=r"network\.encoder\.layers\[0\]: expected an activation"):
        write(made, tmp_path / "onnx", OnnxSettings(), grid=GRID)
    made = classifier("small", "first")
    made.dense[0].activation = keras.activations.softplus
    with pytest.raises(ConfigError, match=r"network\.dense_0\.activation"):
        write(made, tmp_path / "onnx", OnnxSettings(), grid=GRID)
    assert not (tmp_path / "onnx").exists()


def test_a_graph_that_the_checker_refuses_is_not_written() -> None:
    graph = onnx_file.Graph()
    wrong = graph.op("MatMul", ["x", graph.weights("w", np.ones((4, 2), np.float32))])
    with pytest.raises(ExportError, match="expected a model that onnx's checker passes"):
        graph.model("wrong", {"x": ("float32", ("rows", 3))},
                    {"y": (wrong, "float32", ("rows", 2))}, {})


def test_weights_beyond_the_format_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"at most 1000 bytes, got \d+\. Take a smaller"):
        onnx_encoder.model_of(small(), "float32")


@pytest.mark.parametrize("wrong", [
    {"precision": "int4"}, {"ranges": "largest", "precision": "float16"}, {"percentile": 0.0},
    {"tolerance": -1.0}, {"tolerance": float("nan")}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"OnnxSettings.{next(iter(wrong))}"):
        OnnxSettings(**wrong)


def test_without_the_writers_package_the_extra_is_named(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match=r"package onnx, got none. Run pip install 'tf-infer\["
                                             "onnx"):
        write(classifier("small"), tmp_path / "onnx", OnnxSettings(), grid=GRID)


@functools.cache
def small() -> EncoderArrays:
    return encoder_arrays_of(classifier("small"))
