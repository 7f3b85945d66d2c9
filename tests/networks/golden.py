"""The stored checkpoints of tests/golden/networks, read and built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_infer.config import ClassifierConfig
from tf_infer.networks import build, checkpoints
from tf_infer.networks.checkpoint import Checkpoint

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "networks"
NAMES = sorted(path.name for path in FOLDER.iterdir())
ATOL = 1e-4  # the promise of the package: float32, two implementations


def ask_transformers(cases: list[dict[str, Any]], folder: Path) -> None:
    """Run scripts/make_network_golden.py on `cases`, in a process without TensorFlow."""
    listed = folder / "cases.json"
    listed.write_text(json.dumps(cases), encoding="utf-8")
    script = FOLDER.parent.parent.parent / "scripts" / "make_network_golden.py"
    subprocess.run([sys.executable, str(script), "--cases", str(listed)], check=True)


def layer_of(checkpoint: Checkpoint) -> Any:
    """Build and fill the network of a checkpoint."""
    make = build.encoder if checkpoint.kind == "encoder" else build.decoder
    layer = make(checkpoint.network, vocab_size=checkpoint.vocab_size)
    checkpoint.assign(layer)
    return layer


def classifier_of(checkpoint: Checkpoint, layer: Any) -> Any:
    """Put a checkpoint's own head behind its encoder."""
    head = checkpoint.head
    config = ClassifierConfig(
        classes=head.classes, network=checkpoint.network, pooling=head.pooling, hidden=head.hidden,
        activation=head.activation, multi_label=head.multi_label)
    network = build.classifier(config, vocab_size=checkpoint.vocab_size)
    checkpoint.assign(network.encoder)
    head.assign(network)
    return network


def differences(directory: Path, outputs: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the worst difference of each output of a checkpoint, over real positions."""
    checkpoint = checkpoints.read(directory)
    layer = layer_of(checkpoint)
    ids, segments = tf.constant(outputs["ids"]), tf.constant(outputs["segments"])
    mask = tf.sequence_mask(outputs["lengths"], ids.shape[1])
    real = mask.numpy()
    got: dict[str, Any] = {}
    if checkpoint.kind == "decoder":
        got["logits"] = layer(ids, mask)
    else:
        got["hidden"] = layer(ids, mask, segments)
        if "pooled" in outputs:
            got["pooled"] = layer.pool(got["hidden"])
        if "classes" in outputs:
            got["classes"] = classifier_of(checkpoint, layer)(ids, mask, segments)
    worst = {}
    for name, value in got.items():
        wanted = outputs[name]
        apart = np.abs(np.array(value) - wanted)
        worst[name] = float((apart[real] if wanted.ndim == 3 else apart).max())
    return worst
