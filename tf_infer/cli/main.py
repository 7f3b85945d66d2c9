"""The argument parser of `tf-infer`; imports a command's module only when it is called."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tf_infer.cli.backend import NEEDS, collect_seldom, load_tensorflow, require_models
from tf_infer.errors import TfInferError

# name -> what it does, in the order of a model's and then a request's life. The module
# tf_infer.cli.<name> has `configure(parser)` and `run(arguments) -> int`, and may import nothing
# heavy at its top.
COMMANDS: dict[str, str] = {
    "quickstart": "train, verify, export, serve and ask, in one command",
    "build": "make a model from a configuration or a checkpoint",
    "train": "fit a model to a file of examples",
    "prune": "make a model smaller by what given texts need",
    "calibrate": "make a classifier's scores believable, by labelled texts",
    "verify": "prove that every path of a model gives the same answers",
    "export": "write a version directory that a server can load",
    "optimize": "try the forms of a model on this machine, and export the best",
    "preflight": "say whether a real tensorflow_model_server would run a SavedModel",
    "serve": "answer over TensorFlow Serving's API",
    "predict": "ask a server",
    "explain": "say which tokens made an answer",
    "status": "ask a server what it serves, and wait for it",
    "analyze": "say where a classifier errs, as a page to look at",
    "compare": "say where two classifiers differ, and whether the second may take over",
    "bench": "send a server loads, and say how fast it answers",
    "profile": "record what a server does, and say where the time goes",
    "inspect": "show what a version directory or a server's model takes and gives",
}

# commands that can do some of their work without TensorFlow, and load it themselves for the rest
ASK_THEMSELVES = ("quickstart", "serve", "optimize")

EPILOG = """examples:
  tf-infer quickstart
  tf-infer serve --model_name=intents --model_base_path=$PWD/saved_models/intents
  tf-infer predict intents "where is my parcel?" --address localhost:8500
  tf-infer COMMAND --help
"""


class Interrupted(KeyboardInterrupt):
    """What Ctrl-C raises in a command.

    Once a KeyboardInterrupt of that very class has passed through the `exec` of a text, of which
    importing TensorFlow has some, `python -m` ends by SIGINT, whatever exit code it is given.
    """


def interrupt(*_: object) -> None:
    """Handle a signal by raising Interrupted."""
    raise Interrupted


def _versions() -> str:
    from importlib import metadata

    from tf_infer.version import __version__

    names = ("grpcio", "protobuf", "numpy", "tensorflow", "tensorflow-text", "keras", "keras-hub",
             "tensorflow-serving-api", "ai-edge-litert")
    lines = [f"tf-infer {__version__}", f"python {sys.version.split()[0]}"]
    for name in names:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} not installed")
    return "\n".join(lines)


class _VersionAction(argparse.Action):
    """Print our version and those of the packages we stand on."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        print(_versions())
        parser.exit()


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser.

    Args:
        only: configure this command alone (the one that is called); the others are listed by name.
    """
    parser = argparse.ArgumentParser(
        prog="tf-infer", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Keras text models as one graph, served through TensorFlow Serving's API.")
    parser.add_argument("--version", action=_VersionAction, nargs=0,
                        help="print the versions of tf-infer and of what it stands on")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter)
        if only in (None, name):
            importlib.import_module(f"tf_infer.cli.{name}").configure(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    called = next((word for word in argv if not word.startswith("-")), "")
    arguments = build_parser(only=called).parse_args(argv)
    try:
        with _interruptible():
            return _run(arguments)
    except TfInferError as error:
        print(f"tf-infer {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"tf-infer {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _run(arguments: argparse.Namespace) -> int:
    command = importlib.import_module(f"tf_infer.cli.{arguments.command}")
    if arguments.command in NEEDS and arguments.command not in ASK_THEMSELVES:
        require_models(arguments.command)
        load_tensorflow()
        collect_seldom()
    code: int = command.run(arguments)
    return code


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C raise Interrupted, unless it is not ours to say."""
    if (threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler):
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(main())
