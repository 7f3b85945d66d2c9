"""TaskConfig (and weights) -> Task; a task to and from a directory of our own.

    task.json               the TaskConfig
    weights.safetensors     every weight of the network
    tokenizer/              the files that the codec's configuration names
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_infer import config as configs
from tf_infer.config import (
    BytesConfig,
    CausalLMConfig,
    ChatFormat,
    ClassifierConfig,
    GenerationDefaults,
    PackingConfig,
    ShapeGrid,
    TaskConfig,
)
from tf_infer.errors import CheckpointError, ConfigError
from tf_infer.networks import build as networks
from tf_infer.networks import checkpoints
from tf_infer.networks.checkpoint import Checkpoint, Head
from tf_infer.tasks.base import Task
from tf_infer.tasks.causal_lm import CausalLM
from tf_infer.tasks.classifier import Classifier
from tf_infer.tasks.row_constraints import check_named
from tf_infer.text import build as codecs
from tf_infer.text import files

TASK_FILE = "task.json"
TOKENIZER_FOLDER = "tokenizer"
HEAD_FIELDS = ("classes", "multi_label", "pooling", "hidden", "activation")
LOG = logging.getLogger(__name__)


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
    if isinstance(config, CausalLMConfig):
        check_named(config.constraints)
    codec = codecs.build(config.codec, Path(tokenizer_dir or "."))
    if isinstance(config, ClassifierConfig):
        network = networks.classifier(config, vocab_size=codec.vocab_size, pad_id=codec.pad_id,
                                      seed=seed)
        longest = getattr(network.encoder, "max_positions",
                          getattr(config.network, "max_positions", None))
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
    return build(_config_of(folder), tokenizer_dir=folder / TOKENIZER_FOLDER, weights=folder)


def _config_of(folder: Path) -> TaskConfig:
    if not (folder / TASK_FILE).is_file():
        raise CheckpointError(f"{folder}: expected a model directory with {TASK_FILE}. Build one "
                              "with `tf-infer build` or `tf-infer train`.")
    config: TaskConfig = configs.load(TaskConfig, folder / TASK_FILE)
    return config


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


def chat_format(task: Task) -> ChatFormat | None:
    """Return how messages become a prompt of this task, as its tokenizer's folder says.

    Raises:
        CheckpointError: the folder's template is none.
    """
    if task.tokenizer_dir is None or not isinstance(task.config, CausalLMConfig):
        return None
    return files.read_chat(task.tokenizer_dir, start=task.config.packing.start)


def _save_tokenizer(task: Task, folder: Path) -> None:
    folder.mkdir()
    if isinstance(task.config.codec, BytesConfig):
        if task.tokenizer_dir is not None:
            files.copy(task.tokenizer_dir, folder, task.config.codec)
        return
    if task.tokenizer_dir is None:
        raise ConfigError("task.tokenizer_dir: expected the folder of the tokenizer's files, got "
                          "None. Build the task with tokenizer_dir=....")
    files.copy(task.tokenizer_dir, folder, task.config.codec)


def from_checkpoint(path: Path, changes: Mapping[str, Any] | None = None, *,
                    tokenizer_dir: Path | None = None, max_tokens: int | None = None,
                    seed: int = 0, tell: Callable[[str], None] = LOG.warning) -> Task:
    """Make a task of a pretrained checkpoint: what its files say, then what the caller changes.

    A trained head is kept, under new class names too (by place; the same names in another order
    keep their weights), unless a change makes it another head.

    Args:
        path: a Hugging Face directory, a KerasHub preset, a `.keras` file, or our own directory.
        changes: fields of ClassifierConfig (encoders) or CausalLMConfig (decoders) that replace
            those of the files, such as `classes` of an encoder without a trained head. `kind` is
            only checked. Our own directory takes `kind` and `name` alone.
        tokenizer_dir: where the tokenizer's files lie, if not in the checkpoint.
        max_tokens: longest row, special ids included; None takes 128, or what the network can read
            if that is less.
        seed: of weights that the checkpoint does not have (a classifier's head).
        tell: takes a sentence for each part of the checkpoint that is not used as it was.

    Raises:
        CheckpointError: files are missing, broken, or say what cannot be honoured.
        ConfigError: a field is unknown or breaks a rule, or one without default is missing.
    """
    changes = dict(changes or {})
    found = checkpoints.read(Path(path))
    if found.network is None:
        configs.check(set(changes) <= {"kind", "name"} and max_tokens is None, "changes",
                      "no more than a name for a model directory of our own",
                      sorted(set(changes) - {"kind", "name"}) or f"max_tokens={max_tokens}",
                      f"Edit its {TASK_FILE}, or build from the original checkpoint.")
        return _rename(Path(path), changes, tokenizer_dir)
    folder = tokenizer_dir or found.tokenizer_dir
    configs.check(folder is not None, "tokenizer_dir", "the folder of the tokenizer's files, since "
                  "the checkpoint holds none", folder)
    assert folder is not None
    config = _read_config(found, folder, changes, max_tokens)
    staged = Path(tempfile.mkdtemp(prefix="tf_infer_tokenizer_"))
    try:
        files.copy(folder, staged, config.codec)
        task = build(config, tokenizer_dir=staged, seed=seed)
        found.assign(task.network.encoder if found.kind == "encoder" else task.network)
        if found.head is not None and isinstance(config, ClassifierConfig):
            _take_head(found.head, task.network, config, tell)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    # The codec reads its files again when it is exported.
    weakref.finalize(task.codec, shutil.rmtree, staged, ignore_errors=True)
    if found.unused:
        tell(f"not used: {len(found.unused)} tensors of other heads, {found.unused[0]} first")
    return task


def _rename(folder: Path, changes: Mapping[str, Any], tokenizer_dir: Path | None) -> Task:
    """Read a task of our own directory and give it the name that is asked for."""
    config = _config_of(folder)
    configs.check(changes.get("kind", config.kind) == config.kind, "kind", repr(config.kind) +
                  f", since that is what {TASK_FILE} says", changes.get("kind"))
    config = replace(config, name=changes.get("name", config.name))
    return build(config, tokenizer_dir=tokenizer_dir or folder / TOKENIZER_FOLDER, weights=folder)


def _read_config(found: Checkpoint, folder: Path, changes: Mapping[str, Any],
                 max_tokens: int | None) -> TaskConfig:
    """Return what the files say with the changes made."""
    limit = found.max_tokens or PackingConfig().max_tokens
    longest = max_tokens or min(PackingConfig().max_tokens, limit)
    packing = files.read_packing(folder, max_tokens=longest)
    fields: dict[str, Any] = {"codec": files.read(folder), "network": found.network}
    if found.kind == "encoder":
        kind: type[ClassifierConfig] | type[CausalLMConfig] = ClassifierConfig
        fields["packing"] = replace(packing, pair_separators=found.pair_separators)
        if found.head is not None:
            fields |= {name: getattr(found.head, name) for name in HEAD_FIELDS}
    else:
        kind = CausalLMConfig
        fields |= {"packing": replace(packing, end=False, truncation="left"),
                   "end_ids": found.end_ids}
        if "capacity" in changes:
            fields["defaults"] = GenerationDefaults.within(changes["capacity"])
    known = {field.name: field.default for field in dataclasses.fields(kind)}
    wanted = changes.get("kind", known["kind"])
    configs.check(wanted == known["kind"], "kind", f"{known['kind']!r}, since that is what the "
                  f"checkpoint's network ({found.kind}) can be", wanted)
    unknown = sorted(set(changes) - set(known))
    configs.check(not unknown, "changes", f"fields of {kind.__name__}", unknown)
    fields |= changes
    fields.setdefault("grid", _grid(fields["packing"].max_tokens))
    configs.check("classes" in fields or kind is not ClassifierConfig, "classes",
                  "the names of the classes, since the checkpoint has no trained head", None)
    return kind(**fields)


def _take_head(head: Head, network: Any, config: ClassifierConfig, tell: Callable[[str], None]
               ) -> None:
    """Fill the head of `network` with the one that came with the checkpoint, or tell why not."""
    differ = [name for name in HEAD_FIELDS if getattr(config, name) != getattr(head, name)]
    if config.normalize:
        differ.append("normalize")  # it was trained on vectors as they are
    if differ not in ([], ["classes"]) or len(config.classes) != len(head.classes):
        tell(f"trained head dropped: {', '.join(differ)} differ{'s' * (len(differ) == 1)}; "
             "the new head is not trained")
        return
    head.assign(network)
    if differ and set(config.classes) == set(head.classes):
        order = [head.classes.index(name) for name in config.classes]
        for weight in (network.logits.kernel, network.logits.bias):
            weight.assign(tf.gather(tf.convert_to_tensor(weight), order, axis=-1))
    elif differ:
        named = ", ".join(f"{old!r} is now {new!r}"
                          for old, new in zip(head.classes, config.classes) if old != new)
        tell(f"trained head kept under other class names: {named}")


def _grid(longest: int) -> ShapeGrid:
    """Return the usual grid, its last length being `longest`."""
    usual = ShapeGrid()
    sizes = {*(size for size in usual.tokens if size < longest), longest}
    while max(sizes - {longest}, default=longest) * 2 < longest:
        sizes.add(max(sizes - {longest}) * 2)
    return ShapeGrid(rows=usual.rows, tokens=tuple(sorted(sizes)))
