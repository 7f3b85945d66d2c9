"""What `tf-infer train --tensorboard` and `--wandb` add: who is told of a run, and of how much."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tf_infer.errors import BackendMissing, ConfigError

if TYPE_CHECKING:
    from tf_infer.train.data import Example
    from tf_infer.train.watch import Watcher


def add_watchers(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--tensorboard", type=Path, metavar="DIR",
                        help="write scalars, settings, the graph of a step, and after each epoch "
                             "pictures of calibration and confusions for TensorBoard")
    parser.add_argument("--tensorboard-texts", type=int, default=0, metavar="N",
                        help="also the first N validation (else test) texts and the answers to "
                             "them: these texts then stand in DIR (default 0)")
    parser.add_argument("--wandb", metavar="PROJECT",
                        help="tell Weights & Biases of the run, without texts; WANDB_MODE=offline "
                             "writes files alone (extra wandb)")


def watchers_of(arguments: argparse.Namespace, run_dir: Path, examples: Sequence[Example]
                ) -> list[Watcher]:
    """Return who is told of the run, beside --run-dir; opens nothing yet.

    Args:
        arguments: what the command line says.
        run_dir: where wandb puts its files.
        examples: what texts are taken from.

    Raises:
        ConfigError: texts are asked for, and there are none, or no folder for them.
        BackendMissing: what a watcher needs is not installed.
    """
    from tf_infer.train.data import to_bytes
    from tf_infer.train.tensorboard import TensorBoard
    from tf_infer.train.weights_and_biases import WeightsAndBiases

    wanted = arguments.tensorboard_texts
    if wanted < 0 or (wanted and (arguments.tensorboard is None or not examples)):
        raise ConfigError("--tensorboard-texts: expected a number >= 0, with --tensorboard and a "
                          f"file of --validation or --test texts, got {wanted}.")
    if arguments.tensorboard or arguments.wandb:
        try:
            import tf_infer.pictures  # noqa: F401
        except ImportError as error:
            raise BackendMissing("--tensorboard and --wandb need matplotlib: pip install "
                                 "'tf_infer[report]'") from error
    found: list[Watcher] = []
    if arguments.tensorboard:
        found.append(TensorBoard(arguments.tensorboard, texts=[
            (to_bytes(one.text), None if one.text_pair is None else to_bytes(one.text_pair))
            for one in examples[:wanted]]))
    if arguments.wandb:
        found.append(WeightsAndBiases(arguments.wandb, run_dir))
    return found
