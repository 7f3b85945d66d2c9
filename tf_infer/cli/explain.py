"""`tf-infer explain`: which tokens made a label, or a token of a decoder, as text or as a page."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tf_infer.cli import connection
from tf_infer.cli.json_text import json_text
from tf_infer.errors import ConfigError

if TYPE_CHECKING:
    from tf_infer.client.client import Client
    from tf_infer.client.explanations import Explanation

EPILOG = """examples:
  tf-infer explain intents "where is my parcel?"
  tf-infer explain intents "where is my parcel?" "cancel it" --html why.html
  tf-infer explain intents "where is my parcel?" --target complaint --json
  tf-infer explain writer "Once upon a"
  tf-infer explain writer "The king's wife is the" --continuation " queen" --place 0

The model must have been exported with `tf-infer export --explain`. A token's value is what it adds
to the logit of the class (integrated gradients); beside it, what the logit loses without it. Of a
decoder it is what a token adds to the log-probability of a later one: that at --place of the
continuation, or without a continuation the likeliest next one.
"""

BAR = 24
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body style="max-width:900px;margin:2em auto">
{body}
</body></html>
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("model", help="name of the model on the server")
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="texts to explain")
    parser.add_argument("--pair", action="append", metavar="TEXT",
                        help="second text of a pair, once for each TEXT")
    parser.add_argument("--target", metavar="CLASS",
                        help="class to explain (default: the one with the best score)")
    parser.add_argument("--continuation", action="append", metavar="TEXT",
                        help="of a decoder: what follows, once for each TEXT")
    parser.add_argument("--place", type=int, default=0, metavar="N",
                        help="of a decoder: which token of the continuation, from 0 (default 0)")
    parser.add_argument("--html", type=Path, metavar="FILE",
                        help="write the texts as a page, coloured; it holds the texts")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    connection.configure(parser, timeout_s=60.0)


def run(arguments: argparse.Namespace) -> int:
    """Ask, show, return 0."""
    if arguments.html and not arguments.html.absolute().parent.is_dir():
        raise ConfigError(f"--html: expected a file in a folder that exists, got {arguments.html}.")
    with connection.connect(arguments) as client:
        found = _asked(client, arguments)
    for one in found:
        print(json_text(dataclasses.asdict(one)) if arguments.json else "\n".join(_lines(one)))
    if arguments.html:
        arguments.html.write_text(PAGE.format(
            title=f"tf-infer explain {arguments.model}".replace("<", "&lt;"),
            body="\n<hr>\n".join(one.to_html() for one in found)), encoding="utf-8")
        if not arguments.json:
            print(f"written: {arguments.html} (it holds the texts)")
    return 0


def _asked(client: Client, arguments: argparse.Namespace) -> list[Explanation]:
    """Ask a classifier or a decoder, whichever the model's signature `explain` is of."""
    ref = connection.reference(arguments)
    signature = client.metadata(ref).signatures.get("explain")
    if signature is None:
        raise ConfigError(f"{ref}: expected a signature 'explain', got none. Export the model "
                          "again with --explain.")
    of_classes = {"--pair": arguments.pair, "--target": arguments.target}
    of_tokens = {"--continuation": arguments.continuation, "--place": arguments.place or None}
    decoder = any(one.name == "prompt" for one in signature.inputs)
    wrong = [name for name, value in (of_classes if decoder else of_tokens).items()
             if value is not None]
    if wrong:
        raise ConfigError(f"{wrong[0]}: expected a {'classifier' if decoder else 'decoder'}, got "
                          f"{ref}, which is none. Leave the option out.")
    if decoder:
        return client.explain_token(ref, arguments.texts, place=arguments.place,
                                    continuations=arguments.continuation)
    return client.explain(ref, arguments.texts, text_pairs=arguments.pair,
                          target=arguments.target)


def _lines(found: Explanation) -> Iterator[str]:
    yield (f"{found.shown}: {found.unit} {found.score:.3f}, without the text {found.baseline:.3f}, "
           f"unexplained {found.error:.1g}")
    most = max((abs(token.value) for token in found.tokens), default=0.0) or 1.0
    width = max((len(_shown(token.text)) for token in found.tokens), default=0)
    for token in found.tokens:
        bar = round(BAR * abs(token.value) / most) * ("+" if token.value >= 0 else "-")
        yield (f"  {_shown(token.text):{width}} {token.value:+8.3f} (left out "
               f"{token.left_out:+.3f})  {bar}").rstrip()


def _shown(text: str) -> str:
    return "".join(one if one.isprintable() else "\u00b7" for one in text)
