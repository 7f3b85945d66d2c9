"""The cases for a GPU, made and read on a CPU: what the tests marked `gpu` would compare with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines import gpu_cases, xla_programs
from tests.engines.test_gpu import SHARE
from tf_infer.engines import onnx

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("tensorflow", "onnx", "onnxruntime"):
        pytest.importorskip(name)
    return gpu_cases.make(tmp_path_factory.mktemp("cases"))


@pytest.mark.parametrize("network", gpu_cases.NETWORKS)
@pytest.mark.parametrize("precision", gpu_cases.PRECISIONS)
def test_engines_of_the_cases_give_their_logits_on_a_cpu(
        precision: Any, network: str, cases: Path) -> None:
    engine = onnx.load(gpu_cases.engine_folder(cases, network, precision), provider="cpu")
    given = list(gpu_cases.batches(cases, network))
    assert len(given) == 16
    worst = max(np.abs(engine.run(**batch) - wanted).max() for batch, wanted in given)
    engine.close()
    assert worst < SHARE[precision] * np.concatenate([wanted for _, wanted in given]).std()


def test_programs_hold_all_that_they_read(cases: Path) -> None:
    for form in gpu_cases.FORMS:
        folder, arguments, wanted = gpu_cases.program(cases, form)
        shapes = json.loads((folder / xla_programs.GIVEN).read_text(encoding="utf-8"))
        with np.load(folder / xla_programs.WEIGHTS) as weights:
            assert len(weights.files) == len(shapes) > 10
        assert len(arguments) == 3 and wanted.std() > 0.1


def test_cases_are_read_without_tensorflow(cases: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c",
         "import sys; from pathlib import Path; from tests.engines import gpu_cases, test_gpu\n"
         "next(gpu_cases.batches(Path(sys.argv[1]), 'bert')); print('tensorflow' in sys.modules)",
         str(cases)], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
