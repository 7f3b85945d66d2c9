"""`tf-infer serve`: the embedded server, with TensorFlow Serving's flags."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tf_infer.cli.backend import load_tensorflow, require_models
from tf_infer.errors import InvalidRequest, TfInferError


def configure(parser: argparse.ArgumentParser) -> None:
    """Leave every word to our own reader: FL01 to FL04 are not argparse's."""
    parser.prefix_chars = "\0"  # no word looks like an option to argparse
    parser.add_argument("flags", nargs="*")


def run(arguments: argparse.Namespace) -> int:
    """Serve until the process is told to end; see `tf_infer.server.app.run` for the exit codes.

    Help, versions, wrong flags and --write_tf_serving_config need no TensorFlow.
    """
    from tf_infer.server import app, flags, logs

    try:
        parsed = flags.parse(arguments.flags)
    except TfInferError as error:
        print(flags.usage())
        print(app.failure(error), flush=True)
        return app.START_FAILED
    values = parsed.values
    if values["help"]:
        print(flags.usage())
        return 0 if "-h" in arguments.flags else app.START_FAILED  # FL05
    if values["version"]:
        print(versions())
        return 0
    embedded = values["backend"] == flags.EMBEDDED  # else the real server says what it knows
    for word in parsed.unknown if embedded else ():
        logs.say(f"unknown argument: {word}")
    if parsed.unknown and embedded:
        logs.say(flags.usage())
    try:
        if values["write_tf_serving_config"]:
            return _write(values)
        if not embedded:
            return _launch(values, arguments.flags)
        config = flags.server_config(values)
        logs.configure(values["log_format"], verbose=values["verbose"])
    except TfInferError as error:
        print(app.failure(error), flush=True)
        return app.START_FAILED
    require_models("serve")
    load_tensorflow()
    return app.run(config)


def versions() -> str:
    """Return the two lines of `--version` (FL06)."""
    from importlib import metadata

    from tf_infer.version import __version__

    try:
        library = metadata.version("tensorflow")
    except metadata.PackageNotFoundError:
        library = "not installed"
    return f"TensorFlow ModelServer: tf-infer {__version__}\nTensorFlow Library: {library}"


def _launch(values: Mapping[str, Any], words: Sequence[str]) -> int:
    from tf_infer.cli import model_server
    from tf_infer.server import flags, launcher

    if values["backend"] != launcher.BINARY:
        raise InvalidRequest(f"--backend: expected {flags.EMBEDDED} or {launcher.BINARY}, got "
                             f"{values['backend']!r}.")
    return model_server.run(values, words)


def _write(values: Mapping[str, Any]) -> int:
    from tf_infer.server import flags, tf_serving

    written = tf_serving.write(flags.models_of(values), Path(values["write_tf_serving_config"]),
                               model_root=values["model_root"])
    for path in written:
        print(f"wrote {path}")
    return 0
