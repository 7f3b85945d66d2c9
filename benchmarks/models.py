"""What the server benchmarks serve and send: small BERTs of random weights, x * 2, and real texts.

    python -m benchmarks.models --cache ~/.cache/tf_infer_benchmarks

exports the models once into the cache folder; the other scripts do so by themselves. Weights do not
matter for speed. The classifiers have the shapes of BERT-tiny and MiniLM, BERT's uncased WordPiece
vocabulary, and a grid of 1 to 32 rows and 16 to 256 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("TF_INFER_SHARED", ROOT.parent / "shared"))
CACHE = Path(os.environ.get("TF_INFER_BENCHMARKS", Path.home() / ".cache/tf_infer_benchmarks"))
TRIVIAL, BAG = "double", "bag"  # the latter has a manifest, and costs next to nothing
CLASSES = ("abbreviation", "entity", "description", "human", "location", "number")
CLASSIFIERS = {"tiny": (2, 128, 2), "minilm": (6, 384, 12)}  # layers, width, heads
ROWS, TOKENS = (1, 8, 32), (16, 32, 64, 128, 256)
STORY_SHARE, STORY_CHARS = 0.1, (300, 900)
TEXTS = 2000


def short_texts() -> list[str]:
    """Return questions of TREC, 3 to 40 words, in a fixed random order."""
    return _shuffled(_texts_of("trec6/train.jsonl"))


def mixed_texts() -> list[str]:
    """Return what a mixed inbox holds: questions and sentences of reviews, a tenth long stories."""
    draw = random.Random(1)
    short = _shuffled(_texts_of("trec6/train.jsonl")[:TEXTS]
                      + _texts_of("sst2/train.jsonl")[:TEXTS])
    stories = _stories(draw)
    return [next(stories) if draw.random() < STORY_SHARE else text for text in short]


def _texts_of(name: str) -> list[str]:
    lines = (SHARED / "data" / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def _shuffled(texts: list[str]) -> list[str]:
    random.Random(0).shuffle(texts)
    return texts[:TEXTS]


def _stories(draw: random.Random) -> Iterator[str]:
    lines = (SHARED / "data/tinystories_sample/train.txt").read_text(encoding="utf-8").splitlines()
    text, wanted = "", draw.randint(*STORY_CHARS)
    while True:
        for line in lines:
            text = f"{text} {line.strip()}".strip()
            if len(text) >= wanted:
                yield text[:wanted]
                text, wanted = "", draw.randint(*STORY_CHARS)


def exported(cache: Path, name: str) -> Path:
    """Return the folder of a model, to be served as it is; export it when it is missing."""
    folder = cache / name
    if not (folder / "1").exists():
        cache.mkdir(parents=True, exist_ok=True)
        if name == TRIVIAL:
            _export_trivial(folder)
        else:
            _export_classifier(folder, name)
    return folder


def _export_classifier(folder: Path, name: str) -> None:
    from tf_infer import config
    from tf_infer.cli.engine import ENCODERS, EncoderChoice
    from tf_infer.cli.proof import export_task
    from tf_infer.tasks import build

    engine = None
    codec: config.CodecConfig = config.BytesConfig()
    network: config.NetworkConfig = config.EmbeddingBagConfig(width=16, hash_buckets=1000)
    if name != BAG:
        layers, width, heads = CLASSIFIERS[name]
        codec, network = config.WordPieceConfig(), config.HubConfig(
            backbone="BertBackbone", arguments={
                "vocabulary_size": 30522, "num_layers": layers, "num_heads": heads,
                "hidden_dim": width, "intermediate_dim": 4 * width, "max_sequence_length": 512})
        litert = ENCODERS["litert"]
        engine = EncoderChoice(litert, litert.settings("float32", "found"))
    task = build.build(config.ClassifierConfig(
        name=name, classes=CLASSES, codec=codec, network=network,
        packing=config.PackingConfig(max_tokens=TOKENS[-1]),
        grid=config.ShapeGrid(rows=ROWS, tokens=TOKENS)),
        tokenizer_dir=None if name == BAG else SHARED / "weights/tokenizers/bert_uncased")
    export_task(task, folder, name=name, engine=engine, xla=False, server=False,
                max_rows=ROWS[1], texts=[text.encode() for text in mixed_texts()[:200]])


def _export_trivial(folder: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    function = tf.function(lambda x: {"y": x * 2.0}, input_signature=[
        tf.TensorSpec([None], tf.float32, name="x")])
    with tempfile.TemporaryDirectory(dir=folder.parent) as staged:
        tf.saved_model.save(module, f"{staged}/1", signatures={
            "serving_default": function.get_concrete_function()})
        shutil.move(staged, folder)
        os.mkdir(staged)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE)
    cache = parser.parse_args().cache
    for name in (TRIVIAL, BAG, *CLASSIFIERS):
        print(exported(cache, name))


if __name__ == "__main__":
    main()
