"""What a GPU's answers are compared with: engines, batches, and the logits of their networks.

    python -m tests.engines.gpu_cases DIR

makes the folder, with TensorFlow and without a GPU; `TF_INFER_GPU_CASES=DIR pytest -m gpu
tests/engines/test_gpu.py` reads it on a machine with a GPU and without TensorFlow.

    <network>/onnx/<precision>/   an engine, as an export writes it
    <network>/batches.npz         <number>/ids, mask, segments, logits
    xla/<form>/                   a program (xla_programs.py), and batch.npz of its one batch
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.engines import xla_programs

NETWORKS = {"bert": "pooler", "distilbert": "first", "roberta": "max", "small": "mean"}
PRECISIONS = ("float32", "float16", "int8")
FORMS = ("network", "float32", "bfloat16", "int8")  # as trained; laid out anew (EncoderForm)
ROWS, TOKENS = (1, 4), (8, 16, 40)
XLA = "xla"


def make(folder: Path) -> Path:
    """Write all cases into a folder, and return it."""
    from tests.networks.encoders import classifier
    from tf_infer.networks.encoder_arrays import encoder_arrays_of
    from tf_infer.networks.fast_encoder import EncoderForm, FastClassifier

    for name, head in NETWORKS.items():
        _make_engines(classifier(name, head), folder / name)
    network = classifier("bert")
    arrays = encoder_arrays_of(network)
    for form in FORMS:
        made: Any = network if form == "network" else FastClassifier(arrays, EncoderForm(
            precision=form, floats="float32" if form == "float32" else "bfloat16", xla=True))
        _make_program(made, folder / XLA / form)
    return folder


def _make_engines(network: Any, folder: Path) -> None:
    from tests.networks.encoders import logits, rows
    from tf_infer.config import ShapeGrid
    from tf_infer.optimize.onnx import OnnxSettings, write

    batches = []
    for count in (*ROWS, 3, 9):
        for width in (*TOKENS, 11):
            lengths = np.random.default_rng(width).integers(1, width + 1, count)
            batches.append(rows(lengths, width, seed=count))
    for precision in PRECISIONS:
        settings = OnnxSettings(precision=precision,
                                ranges="percentile" if precision == "int8" else "found")
        write(network, folder / "onnx" / precision, settings,
              grid=ShapeGrid(rows=ROWS, tokens=TOKENS), batches=batches)
    np.savez(folder / "batches.npz", **{
        f"{number}/{name}": array for number, batch in enumerate(batches)
        for name, array in {**batch, "logits": logits(network, batch)}.items()})


def _make_program(function: Any, folder: Path) -> None:
    from tests.networks.encoders import logits, rows

    batch = rows([3, 8, 11, 16], 16)
    xla_programs.write(function, batch, folder)
    np.savez(folder / "batch.npz", **batch, logits=logits(function, batch))


def engine_folder(cases: Path, network: str, precision: str) -> Path:
    """Return the folder of an engine."""
    return cases / network / "onnx" / precision


def batches(cases: Path, network: str) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Return each batch of a network, and its logits."""
    with np.load(cases / network / "batches.npz") as found:
        for number in range(len(found.files) // 4):
            yield ({name: found[f"{number}/{name}"] for name in ("ids", "mask", "segments")},
                   found[f"{number}/logits"])


def program(cases: Path, form: str) -> tuple[Path, list[np.ndarray], np.ndarray]:
    """Return a program's folder, its arguments, and what they give."""
    with np.load(cases / XLA / form / "batch.npz") as found:
        return (cases / XLA / form, [found[name] for name in ("ids", "mask", "segments")],
                found["logits"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    print(make(parser.parse_args().folder))
