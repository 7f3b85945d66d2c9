"""Write tests/golden/inspect/: a SavedModel by TensorFlow, and what TensorFlow itself says of it.

    python scripts/make_inspect_golden.py

The model adds and has a table of words from an asset, so that there are assets, functions, several
dtypes, free and unknown shapes. Only saved_model.pb is kept: inspection reads nothing else.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "inspect"


class Model(tf.Module):
    """Half plus two, and a look-up."""

    def __init__(self, vocabulary: Path) -> None:
        super().__init__()
        self.half = tf.Variable(0.5)
        self.words = tf.lookup.StaticVocabularyTable(tf.lookup.TextFileInitializer(
            str(vocabulary), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER), 1)

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
    def add(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": self.half * x + 2.0, "big": tf.reduce_max(x, axis=-1) > 1.0}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.string, "word")])
    def find(self, word: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"id": self.words.lookup(word)}


def describe(folder: Path) -> dict[str, object]:
    """Return signatures and op counts as TensorFlow's own classes read them."""
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0]
    library = graph.graph_def.library.function
    names = {one.signature.name for one in library}
    nodes = [*graph.graph_def.node, *(node for one in library for node in one.node_def)]
    ops = Counter(node.op for node in nodes if node.op not in names)

    def side(infos: dict) -> dict[str, object]:
        return {name: {"dtype": tf.as_dtype(info.dtype).name,
                       "shape": None if info.tensor_shape.unknown_rank else [
                           None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim]}
                for name, info in sorted(infos.items())}

    return {"tensorflow_version": graph.meta_info_def.tensorflow_version,
            "tags": list(graph.meta_info_def.tags), "functions": len(library),
            "ops": dict(sorted(ops.items())),
            "assets": [one.filename for one in graph.asset_file_def],
            "signatures": {name: {"inputs": side(one.inputs), "outputs": side(one.outputs),
                                  "method_name": one.method_name}
                           for name, one in sorted(graph.signature_def.items())
                           if not name.startswith("__")}}


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        vocabulary = Path(work) / "vocab.txt"
        vocabulary.write_text("a\nb\n")
        model, folder = Model(vocabulary), Path(work) / "1"
        tf.saved_model.save(model, str(folder), signatures={
            "serving_default": model.add, "find": model.find},
            options=tf.saved_model.SaveOptions(experimental_debug_stripper=True))
        OUT.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "saved_model.pb", OUT / "saved_model.pb")
        (OUT / "expected.json").write_text(json.dumps(describe(folder), indent=1) + "\n")


if __name__ == "__main__":
    main()
