"""A version that XLA compiles: all of it is compiled while it is loaded, nothing in a request."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.word_task import GRID, WordTask, strings, word_task
from tests.server.serverkit import free_port
from tf_infer.client.client import Client
from tf_infer.errors import ServingError
from tf_infer.export import saved_model
from tf_infer.manifest import PathReport, Report, Sample
from tf_infer.verify.parity import fill
from tf_infer.verify.predictors import EagerPredictor
from tf_infer.wire.examples import to_example

PROVEN = Report(reference="eager", paths=(PathReport(path="graph", atol=0.0, rtol=0.0, samples=1,
                                                     seconds=0.0, differences=()),))
PATIENCE_S = 240


@pytest.mark.process
@pytest.mark.timeout(600)
def test_no_request_meets_a_shape_that_was_not_compiled_at_load(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    task = word_task(tmp_path / "task").recompiled("xla")
    base = tmp_path / "words"
    saved_model.save(task, base, name="words", golden=golden(task), check=lambda folder: PROVEN)
    programs, port = tmp_path / "programs", free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "tf_infer", "serve", f"--port={port}", "--model_name=words",
         f"--model_base_path={base}"], stderr=subprocess.DEVNULL,
        env={**os.environ, "XLA_FLAGS": f"--xla_dump_to={programs}"})

    def compiled() -> int:
        return len(list(programs.glob("*before_optimizations.txt")))

    try:
        with Client(f"localhost:{port}", timeout_s=60.0) as client:
            until = time.monotonic() + PATIENCE_S
            while time.monotonic() < until and not available(client):
                time.sleep(0.2)
            at_load = compiled()
            assert at_load == len(GRID.rows) * len(GRID.tokens)
            for rows in range(1, 2 * GRID.rows[-1] + 2):
                for words in (0, 1, *GRID.tokens, 3 * GRID.tokens[-1]):
                    told = client.predict("words", {"text": ["the " * words] * rows})
                    assert len(told["label"]) == rows
            assert compiled() == at_load
    finally:
        server.kill()
        server.wait()


def golden(task: WordTask) -> tuple[Sample, ...]:
    """Return a sample of each signature."""
    text = strings(b"the parcel")
    inputs = {"serving_default": {"text": text}, "encode": {"text": text},
              "classify": {"inputs": strings(to_example({"text": b"the"}).SerializeToString())},
              "ids": {"ids": np.array([[2, 3, 0, 0]], np.int32),
                      "mask": np.array([[1, 1, 0, 0]], np.int32)}}
    return fill(EagerPredictor(task.signatures()), [
        Sample(name, given) for name, given in inputs.items()])


def available(client: Client) -> bool:
    try:
        return bool(client.status("words").available)
    except ServingError:
        return False
