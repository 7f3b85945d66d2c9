"""`tf-infer build`: a model directory from a configuration, a checkpoint, or from nothing."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer import config as configs
from tf_infer.cli.json_text import json_text
from tf_infer.config import (
    BytesConfig,
    CausalLMConfig,
    ClassifierConfig,
    CodecConfig,
    ConvConfig,
    EmbeddingBagConfig,
    GenerationDefaults,
    NetworkConfig,
    PackingConfig,
    SentencePieceConfig,
    ShapeGrid,
    SmallTransformerConfig,
    TaskConfig,
    WordPieceConfig,
    check,
)
from tf_infer.errors import ConfigError

if TYPE_CHECKING:
    from tf_infer.tasks.base import Task

EXAMPLES = """examples:
  from nothing; classes and vocabulary come from the training file:
    tf-infer build --task classifier --labels-from train.jsonl --texts train.jsonl \\
        --vocab-size 4000 --network embedding_bag --output models/intents
    tf-infer build --task causal_lm --output models/writer
  from a Hugging Face directory, a KerasHub preset or a .keras file:
    tf-infer build --checkpoint all-MiniLM-L6-v2 --task classifier --labels-from train.jsonl \\
        --pooling mean --normalize --frozen --max-tokens 32 --output models/banking
    tf-infer build --checkpoint gpt2 --task causal_lm --output models/gpt2
  from a configuration (task.json of any model directory):
    tf-infer build --config task.json --tokenizer models/intents/tokenizer --output models/new
then: tf-infer train models/intents --data train.jsonl
"""

NETWORKS: dict[str, NetworkConfig] = {
    "embedding_bag": EmbeddingBagConfig(), "conv": ConvConfig(),
    "small_transformer": SmallTransformerConfig()}
# What works best over each network's vectors.
POOLING = {"conv": "max"}
SMALLEST_BUCKET = 16


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument("--output", type=Path, required=True, metavar="DIR",
                        help="the model directory to write; must not exist")
    parser.add_argument("--json", action="store_true", help="print what was built as JSON")
    source = parser.add_argument_group("source (none: a new network)")
    source.add_argument("--config", type=Path, metavar="FILE", help="a task configuration")
    source.add_argument("--tokenizer", type=Path, metavar="DIR",
                        help="tokenizer files for --config, or for a checkpoint without")
    source.add_argument("--checkpoint", type=Path, metavar="PATH",
                        help="pretrained weights and tokenizer")
    task = parser.add_argument_group("task")
    task.add_argument("--task", choices=("classifier", "causal_lm"), help="what it shall do")
    task.add_argument("--name", help="its name (default: of the output directory)")
    task.add_argument("--max-tokens", type=int, metavar="N",
                      help="longest row, special ids included (default: 128)")
    task.add_argument("--seed", type=int, default=0, help="of new weights (default: 0)")
    classifier = parser.add_argument_group("classifier")
    classifier.add_argument("--labels", metavar="A,B", help="names of the classes")
    classifier.add_argument("--labels-from", type=Path, metavar="FILE",
                            help="take the names from this file's rows")
    classifier.add_argument("--multi-label", action="store_true",
                            help="every class is decided for itself")
    classifier.add_argument("--pair", action="store_true", help="read pairs of texts")
    classifier.add_argument("--pooling", choices=("first", "mean", "max", "pooler"))
    classifier.add_argument("--normalize", action="store_true",
                            help="scale the pooled vector to length 1")
    classifier.add_argument("--frozen", action="store_true", help="train the head alone")
    classifier.add_argument("--hidden", metavar="N,N", help="widths of dense layers in the head")
    decoder = parser.add_argument_group("decoder")
    decoder.add_argument("--capacity", type=int, metavar="N",
                         help="most new tokens of one call (default: 128)")
    new = parser.add_argument_group("new network")
    new.add_argument("--network", choices=sorted(NETWORKS), default="small_transformer")
    new.add_argument("--codec", choices=("wordpiece", "sentencepiece", "bytes"),
                     help="tokenizer to learn (default: wordpiece of classifiers, sentencepiece of "
                          "decoders, with --texts; else bytes, which needs no learning)")
    new.add_argument("--texts", type=Path, metavar="FILE", help="learn the vocabulary from these")
    new.add_argument("--vocab-size", type=int, default=8000, metavar="N",
                     help="of the learned tokenizer (default: 8000)")


def run(arguments: argparse.Namespace) -> int:
    """Build, write, and say what it is."""
    check(not (arguments.config and arguments.checkpoint), "--config",
          "either --config or --checkpoint", "both")
    check(bool(arguments.task) or bool(arguments.config), "--task",
          "'classifier' or 'causal_lm' without --config", arguments.task)
    check(not arguments.output.exists(), "--output", "a directory that does not exist",
          str(arguments.output), "Remove it, or name another.")
    from tf_infer.tasks import build

    notes: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        task = _build(arguments, Path(scratch), notes.append)
        build.save(task, arguments.output)
    told = {"model": str(arguments.output), "task": task.config.kind, "name": task.config.name,
            "network": task.config.network.kind, "codec": task.config.codec.kind,
            "vocab_size": task.codec.vocab_size,
            "weights": sum(variable.shape.num_elements() for variable in task.network.weights)}
    if isinstance(task.config, ClassifierConfig):
        told["classes"] = list(task.config.classes)
    if notes:
        told["notes"] = notes
        print(*(f"note: {note}" for note in notes), sep="\n", file=sys.stderr)
    print(json_text(told) if arguments.json else _describe(told))
    return 0


def _describe(told: dict[str, Any]) -> str:
    classes = f", {len(told['classes'])} classes" if "classes" in told else ""
    return (f"{told['model']}: {told['task']}{classes}, {told['network']} network of "
            f"{told['weights']:,} weights, {told['codec']} codec of {told['vocab_size']:,} ids\n"
            f"next: tf-infer train {told['model']} --data FILE")


def _build(arguments: argparse.Namespace, scratch: Path, tell: Callable[[str], None]) -> Task:
    from tf_infer.tasks import build

    if arguments.config:
        config: TaskConfig = configs.load(TaskConfig, arguments.config)
        return build.build(config, tokenizer_dir=arguments.tokenizer, seed=arguments.seed)
    if arguments.checkpoint:
        return build.from_checkpoint(
            arguments.checkpoint, checkpoint_changes(arguments), seed=arguments.seed,
            tokenizer_dir=arguments.tokenizer, max_tokens=arguments.max_tokens, tell=tell)
    codec = _learn(arguments, scratch)
    return build.build(task_config(arguments, codec), tokenizer_dir=scratch, seed=arguments.seed)


def task_config(arguments: argparse.Namespace, codec: CodecConfig) -> TaskConfig:
    """Return the configuration of a new network.

    Raises:
        ConfigError: no labels for a classifier, or values that break a rule.
    """
    max_tokens = arguments.max_tokens or PackingConfig().max_tokens
    common: dict[str, Any] = {
        "name": arguments.name or arguments.output.name, "codec": codec, "grid": grid(max_tokens)}
    network = NETWORKS[arguments.network]
    pooling: Any = arguments.pooling or POOLING.get(arguments.network, "mean")
    if arguments.task == "classifier":
        return ClassifierConfig(
            **common, **_classifier_settings(arguments), network=network,
            packing=PackingConfig(max_tokens=max_tokens), pooling=pooling)
    check(arguments.network == "small_transformer", "--network",
          "small_transformer for a decoder", arguments.network)
    capacity = (CausalLMConfig().capacity if arguments.capacity is None else arguments.capacity)
    network = replace(SmallTransformerConfig(), max_positions=max(512, max_tokens + capacity))
    return CausalLMConfig(
        **common, network=network, capacity=capacity, defaults=GenerationDefaults.within(capacity),
        packing=PackingConfig(max_tokens=max_tokens, end=False, truncation="left"))


def checkpoint_changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what replaces the checkpoint's own settings: what was given, no more."""
    changes: dict[str, Any] = {"kind": arguments.task,
                               "name": arguments.name or arguments.output.name}
    if arguments.task == "causal_lm":
        return changes | ({} if arguments.capacity is None else {"capacity": arguments.capacity})
    if arguments.labels or arguments.labels_from:
        changes["classes"] = labels(arguments)
    for name in ("multi_label", "pair", "pooling", "normalize", "frozen"):
        if getattr(arguments, name):
            changes[name] = getattr(arguments, name)
    if arguments.hidden:
        changes["hidden"] = _widths(arguments.hidden)
    return changes


def _classifier_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"classes": labels(arguments), "multi_label": arguments.multi_label,
            "pair": arguments.pair, "normalize": arguments.normalize, "frozen": arguments.frozen,
            "hidden": _widths(arguments.hidden)}


def _widths(words: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in words.split(",")) if words else ()
    except ValueError as error:
        raise ConfigError(f"--hidden: expected numbers such as 128,64, got {words!r}.") from error


def labels(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the class names of --labels or --labels-from."""
    if arguments.labels:
        return tuple(name.strip() for name in arguments.labels.split(",") if name.strip())
    if arguments.labels_from:
        from tf_infer.train import data

        return data.class_names(data.read(arguments.labels_from))
    raise ConfigError("--labels: expected the names of the classes, or a file with them in "
                      "--labels-from, got neither.")


def grid(max_tokens: int) -> ShapeGrid:
    """Return a grid whose lengths double up to the longest row."""
    sizes: list[int] = []
    size = SMALLEST_BUCKET
    while size < max_tokens:
        sizes.append(size)
        size *= 2
    return replace(ShapeGrid(), tokens=(*sizes, max_tokens))


def _learn(arguments: argparse.Namespace, folder: Path) -> CodecConfig:
    """Learn the tokenizer's files into a folder."""
    usual = "wordpiece" if arguments.task == "classifier" else "sentencepiece"
    kind = arguments.codec or (usual if arguments.texts else "bytes")
    if kind == "bytes":
        check(arguments.texts is None, "--texts",
              "no file with --codec bytes, which learns nothing", str(arguments.texts))
        return BytesConfig()
    check(arguments.texts is not None, "--texts", f"a file to learn {kind} from", None)
    texts = list(_texts(arguments.texts))
    from tf_infer.text import learning

    if kind == "wordpiece":
        learning.learn_wordpiece(texts, folder, vocab_size=arguments.vocab_size)
        return WordPieceConfig()
    learning.learn_sentencepiece(texts, folder, vocab_size=arguments.vocab_size)
    return SentencePieceConfig()


def _texts(path: Path) -> Iterable[str]:
    from tf_infer.train import data

    for example in data.read(path):
        yield from data.pieces(example.text)
        yield from data.pieces(example.text_pair or "")
