"""A sampled continuation is the same from a SavedModel, in both loaders, its core in XLA too."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.tasks import small, suite
from tf_infer.tasks.build import build
from tf_infer.tasks.causal_lm import CausalLM

VALUES = [b"one", b"", b"x" * 90, b"caf\xc3\xa9", b"\xff\x00", b"another"]


@pytest.fixture(scope="module")
def task() -> CausalLM:
    return build(small.DECODER, seed=7)


@pytest.mark.slow  # tests/cli/test_export.py proves both loaders on a few samples
@pytest.mark.parametrize("compiled", ["none", "xla"])
def test_seeds_give_the_same_text_from_both_loaders(
        task: CausalLM, compiled: str, tmp_path: Path) -> None:
    inputs = suite.inputs_for(task, "generate", VALUES)
    signature = task.recompiled(compiled).signatures()["generate"]  # type: ignore[arg-type]
    wanted = suite.as_arrays(task.signatures()["generate"].function(**suite.as_tensors(inputs)))
    archive = keras.export.ExportArchive()
    archive.track(task.network)
    archive.track(task.codec)
    function = tf.function(signature.function)
    function.get_concrete_function(**signature.input_specs())
    archive.add_endpoint("generate", function)
    archive.write_out(str(tmp_path / "model"), verbose=False)

    loaded = tf.saved_model.load(str(tmp_path / "model")).signatures["generate"]
    suite.close(suite.as_arrays(loaded(**suite.as_tensors(inputs))), wanted)

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        found = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "model"))
        spec = found.signature_def["generate"]
        feed = {spec.inputs[name].name: value for name, value in inputs.items()}
        answer = session.run({name: spec.outputs[name].name for name in wanted}, feed)
    suite.close({name: np.asarray(value) for name, value in answer.items()}, wanted)
