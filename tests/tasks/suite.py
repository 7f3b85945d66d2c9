"""What every task must do: the same checks for each, over all its signatures and paths."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import tensorflow as tf

from tests.tasks import small
from tf_infer.manifest import SignatureSpec
from tf_infer.stages import STAGES, stage_of
from tf_infer.tasks.base import Task
from tf_infer.tasks.build import build
from tf_infer.tasks.causal_lm import CausalLM

Arrays = Mapping[str, np.ndarray]

ATOL = 1e-4  # float32 through two layers and up to 8 summed log-probabilities; shapes differ
HOSTILE = [b"", b"a", b"Where is my parcel?", b"zero\x00byte", b"\x00", b"\xff\xfe\xc3(\x80",
           "naïve 中文 🙂🏽 שלום".encode(), b" \t\n ", b"\xf0\x9f", b"x" * 1_000_000]
# what gives a decoder's options their defaults, before any stage
DEFAULTS = ("Const", "Shape", "StridedSlice", "Fill", "Cast", "Pack", "Reshape")
COMPILED = ("serving_default", "generate", "ids")  # whose core XLA compiles


def traced(task: Task) -> tuple[str, ...]:
    """Return the signatures that are asked as a graph.

    A decoder's serving_default is its generate behind constants (test_causal_lm.py), and takes as
    many seconds.
    """
    names = tuple(task.signatures())
    return names if "generate" not in names else tuple(n for n in names if n != "serving_default")


class Paths:
    """A task that can be asked eagerly, as a graph with free rows, and with its core under XLA."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.compiled = task.recompiled("xla")
        self._traced: dict[tuple[str, str], Any] = {}

    def ask(self, path: str, signature: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run one signature on one path."""
        return as_arrays(self._function(path, signature)(**as_tensors(inputs)))

    def _function(self, path: str, signature: str) -> Any:
        if path == "eager":
            return self.task.signatures()[signature].function
        return self.traced(path, signature)

    def traced(self, path: str, signature: str) -> Any:
        """Return the concrete function of a signature, traced once."""
        key = (path, signature)
        if key not in self._traced:
            task = self.task if path == "graph" else self.compiled
            found = task.signatures()[signature]
            function = tf.function(found.function).get_concrete_function(**found.input_specs())
            self._traced[key] = function
        return self._traced[key]


@lru_cache(maxsize=None)
def paths_of(name: str) -> Paths:
    """Return the paths of a small task, for all tests of a process: a decoder takes long to trace.
    """
    return Paths(build(small.ALL[name], seed=7))


def as_tensors(inputs: Arrays) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in inputs.items()}


def as_arrays(outputs: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in outputs.items()}


def texts(values: list[bytes]) -> np.ndarray:
    return np.array(values, dtype=object)


def inputs_for(task: Task, signature: str, values: list[bytes]) -> dict[str, np.ndarray]:
    """Return inputs of any signature made from texts, one row each."""
    count = len(values)
    first = texts(values)
    spec = task.signatures()[signature].spec
    names = [tensor.name for tensor in spec.inputs]
    if signature == "classify":
        return {"inputs": texts([_example(task, value) for value in values])}
    if signature == "ids":
        packed = inputs_for(task, "encode", values)
        encoded = as_arrays(task.signatures()["encode"].function(**as_tensors(packed)))
        return {name: encoded[name] for name in names}
    if signature == "decode":
        ids = np.random.default_rng(0).integers(0, task.codec.vocab_size, (count, 6))
        return {"ids": ids.astype(np.int32),
                "length": (np.arange(count, dtype=np.int32) % 7).astype(np.int32)}
    if signature == "steps":
        return _steps_inputs(task, spec, count)
    if signature == "choose":
        return _choose_inputs(task, spec, count)
    given: dict[str, np.ndarray] = {}
    for name in [one.name for one in spec.inputs if one.default is None]:
        given[name] = first[::-1].copy() if name in ("text_pair", "continuation") else first
    if spec_has_options(spec):
        return {**given, **_options(task, spec, count)}
    return given | {one.name: texts([one.default.encode()] * count) for one in spec.inputs
                    if one.default is not None}


def spec_has_options(spec: SignatureSpec) -> bool:
    """Return whether a decoder's options are inputs of a signature."""
    return any(tensor.name == "forced_prefix" for tensor in spec.inputs)


def _example(task: Task, value: bytes) -> bytes:
    names = [tensor.name for tensor in task.signatures()["serving_default"].spec.inputs]
    features = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                for name in names}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def option_rows(task: Task, signature: str, count: int, given: Mapping[str, Any]
                ) -> dict[str, tf.Tensor]:
    """Return the options of a signature for `count` rows: what is given, else the defaults.

    A value counts for all rows or is one for each.
    """
    made = {}
    for spec in task.signatures()[signature].spec.inputs:
        if spec.default is not None:
            value = given.get(spec.name, spec.default)
            dtype: Any = object if spec.dtype == "string" else spec.dtype
            made[spec.name] = tf.constant(np.broadcast_to(np.asarray(value, dtype), [count]))
    return made


# Rows take the values of an option in turn: rows of every kind side by side.
CYCLES: dict[str, list[Any]] = {
    "temperature": [0.0, 1.0, 0.7, 2.0], "top_k": [0, 0, 5, 40, 1000], "top_p": [1.0, 0.9, 0.5],
    "min_p": [0.0, 0.0, 0.2], "typical_p": [1.0, 1.0, 1.0, 1.0, 0.8],
    "repetition_penalty": [1.0, 1.0, 3.0], "presence_penalty": [0.0, -2.0],
    "frequency_penalty": [0.0, 0.0, 0.0, 4.0], "draw": [0, 1, 2], "logprobs": [0, 5, 1],
    "stop": ["", "e", "", "\x00\x1fab", "中"], "stop_ids": ["", "", "5\x1f258"],
    "banned": ["", "a\x1fno", ""], "logit_bias": ["", "100:90.5", "", "5:-3\x1f7:1e1"],
    "forced_prefix": ["", "", "", "中", "", "a"], "length_penalty": [1.0, 0.0, -0.5]}


def _options(task: Task, spec: SignatureSpec, count: int) -> dict[str, np.ndarray]:
    """Rows of every kind side by side: greedy, sampled, filtered; different limits and seeds."""
    assert isinstance(task, CausalLM)
    place = np.arange(count)
    most = task.config.capacity - place * 4 % (task.config.capacity + 1)
    known = {"max_new_tokens": most, "min_new_tokens": np.minimum(most, place % 3),
             "seed": (place.astype(np.int64) - 2) * 10**17}
    made = {}
    for one in spec.inputs:
        if one.default is not None:
            dtype: Any = object if one.dtype == "string" else one.dtype
            values = CYCLES.get(one.name, [one.default])
            cycle = known[one.name] if one.name in known else [
                values[i % len(values)] for i in range(count)]
            made[one.name] = texts([text.encode() for text in cycle]) if dtype is object else (
                np.array(cycle, dtype))
    if "forced_prefix" in made and "max_new_tokens" in made:
        made["forced_prefix"][most < 3] = b""  # a prefix must not be longer than the limit
    return made


def _steps_inputs(task: Task, spec: SignatureSpec, count: int) -> dict[str, np.ndarray]:
    cache = next(tensor for tensor in spec.inputs if tensor.name == "cache")
    options = _options(task, spec, count)
    assert isinstance(task, CausalLM)
    steps = {"ids": np.random.default_rng(1).integers(3, 250, (count, 5)).astype(np.int32),
             "id_count": (np.arange(count) % 6).astype(np.int32),
             "cache": np.zeros([count, *cache.shape[1:]], np.float32),
             "lengths": np.zeros(count, np.int32), "produced": np.zeros(count, np.int32)}
    limits = np.arange(count) * 3 % (task.config.capacity + 1)
    steps["count"] = np.where(steps["id_count"] > 0, limits, 0).astype(np.int32)
    steps |= {"history": steps["ids"], "history_length": steps["id_count"],
              "allowed": np.zeros([count, 0], np.int32), "state": np.zeros(count, np.int32)}
    return {**steps, **options}


def _choose_inputs(task: Task, spec: SignatureSpec, count: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(2)
    length = (np.arange(count) % 6).astype(np.int32)
    size = task.codec.vocab_size
    return {"logits": generator.normal(size=(count, size)).astype(np.float32) * 3,
            "ids": generator.integers(3, 250, (count, 5)).astype(np.int32), "length": length,
            "prompt_length": length // 2, "state": np.zeros(count, np.int32),
            "allowed": generator.integers(-2**31, 2**31 - 1, (count, -(-size // 32)), np.int32),
            **_options(task, spec, count)}


# ---------------------------------------------------------------------------- comparisons


def close(found: Arrays, wanted: Arrays, where: str = "") -> None:
    """Assert equal names, shapes, dtypes; floats within ATOL, everything else exactly."""
    assert found.keys() == wanted.keys(), where
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, f"{where} {name}"
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[name], value, atol=ATOL, err_msg=f"{where} {name}")
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=f"{where} {name}")


def row(outputs: Arrays, number: int) -> dict[str, np.ndarray]:
    return {name: value[number:number + 1] for name, value in outputs.items()}


def take(inputs: Arrays, numbers: Any) -> dict[str, np.ndarray]:
    return {name: value[numbers] for name, value in inputs.items()}


def cut_padding(outputs: Arrays, spec: SignatureSpec, wanted: Arrays) -> dict[str, np.ndarray]:
    """Cut a free token axis to that of `wanted`; what is cut must be one filler all over."""
    cut = dict(outputs)
    for tensor in spec.outputs:
        if len(tensor.shape) == 2 and tensor.shape[1] is None:
            width = wanted[tensor.name].shape[1]
            rest = outputs[tensor.name][:, width:]
            assert (rest == rest[:1, :1]).all(), f"{tensor.name}: more than padding"
            cut[tensor.name] = outputs[tensor.name][:, :width]
    return cut


# ---------------------------------------------------------------------------- checks


def every_operation_has_a_stage(paths: Paths, path: str) -> None:
    """Traces tell the stages apart; only inputs, captured weights and outputs are of none."""
    first = traced(paths.task)[0]
    paths.ask(path, first, inputs_for(paths.task, first, [b"a text"]))
    operations = paths.traced(path, first).graph.get_operations()
    assert {stage_of(one.name) for one in operations} == {None, *STAGES}
    outside = {one.type for one in operations if stage_of(one.name) is None}
    assert outside <= {"Placeholder", "Identity", "NoOp", *DEFAULTS}


def outputs_are_what_the_spec_says(paths: Paths) -> None:
    for signature, found in paths.task.signatures().items():
        spec = found.spec
        assert spec.name == signature
        assert all(tensor.shape[0] is None for tensor in (*spec.inputs, *spec.outputs))
        inputs = inputs_for(paths.task, signature, HOSTILE[:4])
        assert list(inputs) and set(inputs) == {tensor.name for tensor in spec.inputs}
        for tensor in spec.inputs:
            _fits(inputs[tensor.name], tensor.dtype, tensor.shape, 4, tensor.name)
        path = "graph" if signature in traced(paths.task) else "eager"
        outputs = paths.ask(path, signature, inputs)
        assert set(outputs) == {tensor.name for tensor in spec.outputs}, signature
        for tensor in spec.outputs:
            _fits(outputs[tensor.name], tensor.dtype, tensor.shape, 4, f"{signature} {tensor.name}")


def _fits(array: np.ndarray, dtype: str, shape: tuple[int | None, ...], count: int, where: str
          ) -> None:
    assert ("string" if array.dtype.kind == "O" else array.dtype.name) == dtype, where
    assert array.shape[0] == count and array.ndim == len(shape), where
    assert all(want in (None, have) for have, want in zip(array.shape, shape)), where


def all_paths_agree(paths: Paths) -> None:
    for signature in traced(paths.task):
        values = HOSTILE[:9] if signature == "score" else HOSTILE
        values = [v[:10] for v in values] if signature == "score" else values
        inputs = inputs_for(paths.task, signature, values)
        reference = paths.ask("eager", signature, inputs)
        close(paths.ask("graph", signature, inputs), reference, f"graph {signature}")
        if signature in COMPILED:
            close(paths.ask("xla", signature, inputs), reference, f"xla {signature}")


def a_row_alone_is_the_row_in_a_crowd(paths: Paths, path: str) -> None:
    values = [b"", b"one", b"x" * 25, b"a longer text", b"\xff\x00", b"two", b"x" * 400, b"end"]
    signatures = paths.task.signatures()
    for signature in traced(paths.task):
        if path == "xla" and signature not in COMPILED:
            continue
        some = [v[:9] for v in values] if signature == "score" else values
        inputs = inputs_for(paths.task, signature, some)
        crowd = paths.ask(path, signature, inputs)
        for number in range(len(some)):
            alone = paths.ask(path, signature, take(inputs, slice(number, number + 1)))
            many = cut_padding(row(crowd, number), signatures[signature].spec, alone)
            close(alone, many, f"{signature} row {number}")
        order = np.random.default_rng(3).permutation(len(some))
        close(paths.ask(path, signature, take(inputs, order)), take(crowd, order), signature)


def no_rows_give_no_rows(paths: Paths) -> None:
    for signature, found in paths.task.signatures().items():
        inputs = take(inputs_for(paths.task, signature, HOSTILE[:2]), slice(0, 0))
        graphs = ("graph", *(["xla"] if signature in COMPILED else []))
        for path in ("eager", *(graphs if signature in traced(paths.task) else ())):
            outputs = paths.ask(path, signature, inputs)
            for tensor in found.spec.outputs:
                _fits(outputs[tensor.name], tensor.dtype, tensor.shape, 0,
                      f"{path} {signature} {tensor.name}")


def saved_is_loaded(paths: Paths, other: Task) -> None:
    assert other.config == paths.task.config
    for signature in paths.task.signatures():
        inputs = inputs_for(paths.task, signature, [b"one", b"", b"some text"])
        close(as_arrays(other.signatures()[signature].function(**as_tensors(inputs))),
              paths.ask("eager", signature, inputs), signature)
