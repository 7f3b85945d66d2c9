"""`tf-infer status`: which versions of a model a server has, and whether they answer."""

from __future__ import annotations

import argparse
import dataclasses

from tf_infer.cli import connection
from tf_infer.cli.json_text import json_text

EPILOG = """examples:
  tf-infer status intents
  tf-infer status intents --wait 60 && tf-infer predict intents "hello"
  tf-infer status intents --address models.example:8500 --tls --json

Exit code: 0 when a version is AVAILABLE (with --model-version: that one), 1 otherwise.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("model", help="name of the model on the server")
    parser.add_argument("--wait", type=float, metavar="SECONDS",
                        help="wait until it is AVAILABLE, at most so long")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    connection.configure(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the versions; return 0 when one is available, else 1."""
    ref = connection.reference(arguments)
    with connection.connect(arguments) as client:
        if arguments.wait is not None:
            found = client.wait_until_ready(ref, timeout_s=arguments.wait)
        else:
            found = client.status(ref)
    if arguments.json:
        versions = [dataclasses.asdict(one) for one in found.versions]
        print(json_text({"model": ref.name, "available": list(found.available),
                         "versions": versions}))
    else:
        for one in found.versions:
            reason = f"\t{one.error_code}: {one.error_message}" if one.error_code != "OK" else ""
            print(f"{ref.name}\tversion {one.version}\t{one.state}{reason}")
    return 0 if found.available else 1
