"""TaskConfig (and weights) -> Task; a task to and from a directory of our own.

    task.json               the TaskConfig
    weights.safetensors     every weight of the network
    tokenizer/              the files that the codec's configuration names
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tf_infer import config as configs
from tf_infer.config import BytesConfig, CausalLMConfig, ClassifierConfig, TaskConfig
from tf_infer.errors import CheckpointError, ConfigError
from tf_infer.networks import build as networks
from tf_infer.tasks.base import Task
from tf_infer.tasks.causal_lm import CausalLM
from tf_infer.tasks.classifier import Classifier
from tf_infer.text import build as codecs

TASK_FILE = "task.json"
TOKENIZER_FOLDER = "tokenizer"
TOKENIZER_FILES = {"bytes": (), "wordpiece": ("vocab.txt",), "sentencepiece": ("tokenizer.model",),
                   "bytepair": ("vocab.json", "merges.txt")}


def build(config: TaskConfig, *, tokenizer_dir: Path | None = None, weights: Path | None = None,
          seed: int = 0) -> Task:
    """Build a task from its configuration.

    Args:
        config: what it is made of.
        tokenizer_dir: where the tokenizer's files lie; only the bytes codec needs none.
        weights: directory with `weights.safetensors`; None draws new weights.
        seed: of new weights; the same seed gives the same weights.

    Raises:
        CheckpointError: tokenizer files or weights are missing, broken or of another model.
        ConfigError: parts that do not fit each other.
    """
    if tokenizer_dir is None and not isinstance(config.codec, BytesConfig):
        raise ConfigError(f"tokenizer_dir: expected the folder of the {config.codec.kind} codec's "
                          "files, got None.")
    codec = codecs.build(config.codec, Path(tokenizer_dir or "."))
    if isinstance(config, ClassifierConfig):
        network = networks.classifier(config, vocab_size=codec.vocab_size, pad_id=codec.pad_id,
                                      seed=seed)
        longest = getattr(config.network, "max_positions", None)
    else:
        network = networks.decoder(config.network, vocab_size=codec.vocab_size, seed=seed)
        longest = network.max_positions
    configs.check(longest is None or config.packing.max_tokens <= longest,
                  f"{type(config).__name__}.packing.max_tokens",
                  f"at most the network's max_positions = {longest}", config.packing.max_tokens)
    if weights is not None:
        networks.load_weights(network, Path(weights))
    if isinstance(config, CausalLMConfig):
        return CausalLM(config, codec, network, tokenizer_dir=tokenizer_dir)
    return Classifier(config, codec, network, tokenizer_dir=tokenizer_dir)


def load(folder: Path) -> Task:
    """Read a task that `save` wrote.

    Raises:
        CheckpointError: there is no task in `folder`, or its weights do not fit.
        ConfigError: its configuration breaks a rule.
    """
    folder = Path(folder)
    if not (folder / TASK_FILE).is_file():
        raise CheckpointError(f"{folder}: expected a model directory with {TASK_FILE}. Build one "
                              "with `tf-infer build` or `tf-infer train`.")
    config: TaskConfig = configs.load(TaskConfig, folder / TASK_FILE)
    return build(config, tokenizer_dir=folder / TOKENIZER_FOLDER, weights=folder)


def save(task: Task, folder: Path) -> Path:
    """Write a task as a directory, whole or not at all.

    Args:
        task: any that `build` can make.
        folder: must not exist.

    Returns:
        `folder`.

    Raises:
        ConfigError: `folder` exists.
        OSError: it cannot be written (a full disk); nothing stands under its name then.
    """
    folder = Path(folder)
    if folder.exists():
        raise ConfigError(f"folder: expected one that does not exist, got {str(folder)!r}. "
                          "Remove it, or name another.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        staged.chmod(0o755)
        configs.dump(task.config, staged / TASK_FILE)
        networks.save_weights(task.network, staged)
        _save_tokenizer(task, staged / TOKENIZER_FOLDER)
        os.rename(staged, folder)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return folder


def _save_tokenizer(task: Task, folder: Path) -> None:
    folder.mkdir()
    for name in TOKENIZER_FILES[task.config.codec.kind]:
        if task.tokenizer_dir is None:
            raise ConfigError(f"task.tokenizer_dir: expected the folder of {name}, got None. Build "
                              "the task with tokenizer_dir=....")
        shutil.copyfile(task.tokenizer_dir / name, folder / name)
