"""`tf-infer explain`: which tokens made a classifier's answers, in a terminal or as a page."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tf_infer.cli import connection
from tf_infer.errors import ConfigError

if TYPE_CHECKING:
    from tf_infer.client.explanations import Explanation

EPILOG = """examples:
  tf-infer explain intents "where is my parcel?"
  tf-infer explain intents "where is my parcel?" "cancel it" --html why.html
  tf-infer explain intents "where is my parcel?" --target complaint --json

The model must have been exported with `tf-infer export --explain`. A token's value is what it adds
to the logit of the class (integrated gradients); beside it, what the logit loses without it.
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
    parser.add_argument("--html", type=Path, metavar="FILE",
                        help="write the texts as a page, coloured; it holds the texts")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    connection.configure(parser, timeout_s=60.0)


def run(arguments: argparse.Namespace) -> int:
    """Ask, show, return 0."""
    if arguments.html and not arguments.html.absolute().parent.is_dir():
        raise ConfigError(f"--html: expected a file in a folder that exists, got {arguments.html}.")
    with connection.connect(arguments) as client:
        found = client.explain(connection.reference(arguments), arguments.texts,
                               text_pairs=arguments.pair, target=arguments.target)
    for one in found:
        print(json.dumps(dataclasses.asdict(one)) if arguments.json else "\n".join(_lines(one)))
    if arguments.html:
        arguments.html.write_text(PAGE.format(
            title=f"tf-infer explain {arguments.model}".replace("<", "&lt;"),
            body="\n<hr>\n".join(one.to_html() for one in found)), encoding="utf-8")
        if not arguments.json:
            print(f"written: {arguments.html} (it holds the texts)")
    return 0


def _lines(found: Explanation) -> Iterator[str]:
    yield (f"{found.label}: logit {found.score:.3f}, without the text {found.baseline:.3f}, "
           f"unexplained {found.error:.1g}")
    most = max((abs(token.value) for token in found.tokens), default=0.0) or 1.0
    width = max((len(_shown(token.text)) for token in found.tokens), default=0)
    for token in found.tokens:
        bar = round(BAR * abs(token.value) / most) * ("+" if token.value >= 0 else "-")
        yield (f"  {_shown(token.text):{width}} {token.value:+8.3f} (left out "
               f"{token.left_out:+.3f})  {bar}").rstrip()


def _shown(text: str) -> str:
    return "".join(one if one.isprintable() else "\u00b7" for one in text)
