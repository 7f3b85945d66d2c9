"""A classifier on a GPU: CUDA's and TensorRT's engines, XLA, and torch as a peer; random weights.

    python -m benchmarks.gpu make DIR        # anywhere, with TensorFlow: a few MB, without weights
    python -m benchmarks.gpu run DIR         # where the GPU is, without TensorFlow

`run` draws the weights and prints one JSON object. For each shape, precision and way: seconds to
load (with no engine kept, and with TensorRT's engine kept), milliseconds of a call with 1, 8 and 32
texts of 128 tokens (median of --rounds; ids in, logits out, both in the machine's memory), and how
far its logits are from those of the same weights in float32 on the CPU, as a share of their spread.
torch: transformers' BERT with PyTorch's attention, weights of its own.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.engines import xla_programs
from tf_infer import config
from tf_infer.engines import gpus, onnx
from tf_infer.errors import BackendMissing
from tf_infer.manifest import ENGINE_FILE, EncoderEngineManifest, write_engine

SHAPES = {"minilm": (6, 384, 12), "bert-base": (12, 768, 12)}  # layers, width, heads
VOCABULARY, TOKENS, ROWS, CLASSES = 30522, 128, (1, 8, 32), 6
LEFT_OUT_BYTES = 64 * 1024  # arrays from this size on are drawn
PACKAGES = ("onnxruntime-gpu", "jax", "torch", "transformers", "numpy", "nvidia-cudnn-cu13")
SPREAD = 0.02               # of BERT's weights before training


def make(folder: Path) -> None:
    """Write the graphs of all shapes, without their large arrays."""
    from tf_infer.networks import build
    from tf_infer.networks.encoder_arrays import encoder_arrays_of
    from tf_infer.networks.fast_encoder import EncoderForm, FastClassifier
    from tf_infer.optimize.onnx import OnnxSettings, write

    batch = given(ROWS[-1])
    for name, (layers, width, heads) in SHAPES.items():
        network = build.classifier(config.ClassifierConfig(
            classes=tuple(f"class_{number}" for number in range(CLASSES)), pooling="first",
            network=config.HubConfig(backbone="BertBackbone", arguments={
                "vocabulary_size": VOCABULARY, "num_layers": layers, "num_heads": heads,
                "hidden_dim": width, "intermediate_dim": 4 * width,
                "max_sequence_length": 512})), vocab_size=VOCABULARY, seed=1)
        for precision in ("float32", "float16"):
            made = folder / name / "onnx" / precision
            write(network, made, OnnxSettings(precision=precision),
                  grid=config.ShapeGrid(rows=ROWS, tokens=(TOKENS,)))
            hollow(made / "model.onnx")
        arrays = encoder_arrays_of(network)
        for precision in ("float32", "bfloat16"):
            function = FastClassifier(arrays, EncoderForm(
                precision=precision, floats=precision, xla=True))
            for rows in ROWS:
                xla_programs.write(function, {key: array[:rows] for key, array in batch.items()},
                                   folder / name / "xla" / precision / str(rows), weights=False)


def hollow(path: Path) -> None:
    """Leave out the large arrays of an ONNX file."""
    import onnx as library

    model = library.load(path)
    for array in model.graph.initializer:
        if len(array.raw_data) >= LEFT_OUT_BYTES:
            array.raw_data = b""
    path.write_bytes(model.SerializeToString())


def filled(folder: Path, into: Path) -> Path:
    """Write an engine whose left out arrays are drawn, the same numbers in every precision."""
    import onnx as library

    described: EncoderEngineManifest = config.load(EncoderEngineManifest, folder / ENGINE_FILE)
    model = library.load(folder / described.file)
    draw = np.random.default_rng(0)
    for array in model.graph.initializer:
        dtype = library.helper.tensor_dtype_to_np_dtype(array.data_type)
        if array.dims and not array.raw_data and np.issubdtype(dtype, np.floating):
            drawn = draw.standard_normal(tuple(array.dims), np.float32) * np.float32(SPREAD)
            array.raw_data = drawn.astype(dtype).tobytes()
    write_engine(replace(described, sha256=""), model.SerializeToString(), into)
    return into


def given(rows: int) -> dict[str, np.ndarray]:
    """Return rows of 128 ids."""
    ids = np.random.default_rng(2).integers(0, VOCABULARY, (rows, TOKENS)).astype(np.int32)
    return {"ids": ids, "mask": np.ones(ids.shape, bool), "segments": np.zeros(ids.shape, np.int32)}


def milliseconds(call: Callable[[], Any], rounds: int) -> float:
    """Return the median time of a call, after some that are not counted."""
    for _ in range(5):
        call()
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return round(statistics.median(found) * 1e3, 3)


def measured(folder: Path, provider: Any, wanted: np.ndarray, rounds: int) -> dict[str, Any]:
    """Measure an engine; its second load finds what the first one kept."""
    with tempfile.TemporaryDirectory() as cache:
        loads = []
        for _ in range(2):
            begin = time.perf_counter()
            engine = onnx.load(folder, provider=provider, cache=Path(cache))
            loads.append(round(time.perf_counter() - begin, 2))
            batch = given(ROWS[-1])
            difference = np.abs(engine.run(**batch) - wanted).max() / np.ptp(wanted)
            if len(loads) == 2:
                times = times_of(engine.run, rounds)
            engine.close()
            gc.collect()
    return {"load_s": loads, "ms": times, "difference": float(f"{difference:.2g}")}


def times_of(run: Callable[..., Any], rounds: int) -> dict[int, float]:
    """Measure calls of every number of rows."""
    found = {}
    for rows in ROWS:
        found[rows] = milliseconds(partial(run, **given(rows)), rounds)
    return found


def compiled(folder: Path, platform: str, rounds: int) -> dict[str, Any]:
    """Measure XLA's programs of every number of rows."""
    loads, times = [], {}
    for rows in ROWS:
        begin = time.perf_counter()
        program = xla_programs.Program(folder / str(rows), platform)
        arguments = list(given(rows).values())
        assert np.isfinite(program.run(*arguments)).all()
        loads.append(round(time.perf_counter() - begin, 2))
        times[rows] = milliseconds(partial(program.run, *arguments), rounds)
    return {"compile_s": loads, "ms": times}


def torch_peer(shape: tuple[int, int, int], precision: str, rounds: int) -> dict[str, Any]:
    """Measure transformers' BERT."""
    import torch
    import transformers

    layers, width, heads = shape
    network = transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=4 * width, num_labels=CLASSES,
        attn_implementation="sdpa")).eval().to("cuda", getattr(torch, precision))

    def run(ids: np.ndarray, mask: np.ndarray, segments: np.ndarray) -> Any:
        with torch.inference_mode():
            tensors = [torch.from_numpy(array).cuda() for array in (ids, mask, segments)]
            return network(input_ids=tensors[0], attention_mask=tensors[1],
                           token_type_ids=tensors[2]).logits.float().cpu().numpy()

    return {"ms": times_of(run, rounds)}


def run(folder: Path, shapes: list[str], providers: list[str], rounds: int) -> dict[str, Any]:
    """Measure all that is there; what is not says so."""
    results: dict[str, Any] = {"gpus": gpus.found(), "packages": {
        name: version for name in PACKAGES if (version := version_of(name))}}
    platform = "gpu" if gpus.found() else "cpu"

    def attempt(where: dict[str, Any], name: str, made: Callable[[], dict[str, Any]]) -> None:
        try:
            where[name] = made()
        except (BackendMissing, ImportError) as error:
            where[name] = {"missing": str(error)}
        except Exception as error:  # the others are measured all the same
            where[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        print(f"# {name}: {where[name]}", flush=True)

    for name in shapes:
        where = results[name] = {}
        with tempfile.TemporaryDirectory() as kept:
            engines = {precision: filled(folder / name / "onnx" / precision, Path(kept) / precision)
                       for precision in ("float32", "float16")}
            reference = onnx.load(engines["float32"], provider="cpu", threads=8, warm_up=False)
            wanted = reference.run(**given(ROWS[-1]))
            reference.close()
            for provider in providers:
                for precision, engine in engines.items():
                    attempt(where, f"{provider} {precision}",
                            partial(measured, engine, provider, wanted, rounds))
        for precision in ("float32", "bfloat16"):
            attempt(where, f"xla {precision}",
                    partial(compiled, folder / name / "xla" / precision, platform, rounds))
        for precision in ("float32", "float16"):
            attempt(where, f"torch {precision}",
                    partial(torch_peer, SHAPES[name], precision, rounds))
    return results


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("make", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--providers", nargs="+", default=["tensorrt", "cuda"])
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    if arguments.what == "make":
        make(arguments.folder)
    else:
        print(json.dumps(run(
            arguments.folder, arguments.shapes, arguments.providers, arguments.rounds)))


if __name__ == "__main__":
    main()
