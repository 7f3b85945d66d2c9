"""`tf-infer predict`: ask a server for labels, continuations, or any signature."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer.cli import connection
from tf_infer.cli.json_text import json_text
from tf_infer.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from tf_infer.client.client import Client
    from tf_infer.client.results import Classification, Generation, StreamPiece
    from tf_infer.wire.messages import ModelRef, SignatureInfo

EPILOG = """examples:
  tf-infer predict intents "where is my parcel?" "cancel my order"
  tf-infer predict intents --file messages.txt --json > labels.jsonl
  cat messages.txt | tf-infer predict intents --address host-a:8500,host-b:8500
  tf-infer predict writer "Once upon a time" --max-new-tokens 40 --temperature 0.8 --seed 7
  tf-infer predict writer "Once upon a time" --stream --max-new-tokens 200
  tf-infer predict writer "It was a" --choice " day" --choice " night"
  tf-infer predict writer "An order:" --stream --json-schema order.json
  tf-infer predict intents --signature encode "where is my parcel?"
  tf-infer predict half_plus_two --input 'x=[1.0, 2.0, 5.0]'

A model whose signature takes `text` is asked for labels, one that takes `prompt` for continuations;
any other by its single text input, or by --input for each input.
"""

GENERATION = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop", "logprobs",
              "choices", "constraint")
FURTHER = ("min_new_tokens", "min_p", "repetition_penalty", "banned", "forced_prefix")
SHOWN_CLASSES = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("model", help="name of the model on the server")
    parser.add_argument("texts", nargs="*", metavar="TEXT",
                        help="texts; without any, one from each line of --file or standard input")
    parser.add_argument("--file", metavar="FILE", help="UTF-8, a text a line; - is standard input")
    parser.add_argument("--pair", action="append", metavar="TEXT",
                        help="second text of a pair, once for each TEXT")
    parser.add_argument("--signature", help="default: serving_default")
    parser.add_argument("--input", action="append", metavar="NAME=VALUE", dest="inputs",
                        help="an input of the signature: JSON, or text when it is no JSON")
    parser.add_argument("--dtype", action="append", metavar="NAME=DTYPE", dest="dtypes",
                        help="send an input as this dtype; default: what the signature says")
    parser.add_argument("--rows", type=int, default=32, metavar="N",
                        help="texts in one call (default 32)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--stream", action="store_true",
                        help="of a decoder on a server of ours: print the text as it comes")
    options = parser.add_argument_group("options of a decoder (default: the model's own)")
    options.add_argument("--max-new-tokens", type=int, metavar="N")
    options.add_argument("--temperature", type=float, help="0 takes the best token")
    options.add_argument("--top-k", type=int, metavar="K")
    options.add_argument("--top-p", type=float, metavar="P")
    options.add_argument("--seed", type=int, help="row i takes a seed derived from it and i")
    options.add_argument("--n", type=int, metavar="N", help="continuations of each text")
    options.add_argument("--stop", action="append", metavar="TEXT",
                         help="end before this text; may be given several times")
    options.add_argument("--logprobs", type=int, metavar="N",
                         help="with --json: log-probabilities of the tokens and of N others")
    options.add_argument("--min-new-tokens", type=int, metavar="N")
    options.add_argument("--min-p", type=float, metavar="P")
    options.add_argument("--repetition-penalty", type=float, metavar="X", help="1 is off")
    options.add_argument("--banned", action="append", metavar="WORD",
                         help="a word that is not said; may be given several times")
    options.add_argument("--forced-prefix", metavar="TEXT", help="what the answer begins with")
    options.add_argument("--choice", action="append", metavar="TEXT", dest="choices",
                         help="the answer is this or another one; given several times")
    options.add_argument("--constraint", metavar="NAME",
                         help="what the answer must be, by the name that it was exported with")
    options.add_argument("--regex", metavar="PATTERN",
                         help="with --stream: what the answer must match, as re.fullmatch does")
    options.add_argument("--json-schema", type=Path, metavar="FILE",
                         help="with --stream: what the answer, JSON, must be valid against")
    connection.configure(parser)
    _let_options_stand_anywhere(parser)


def _let_options_stand_anywhere(parser: argparse.ArgumentParser) -> None:
    """Take texts behind options, too: plain argparse takes none behind the first option."""
    plain, inside = parser.parse_known_args, False

    def parse(args: Any = None, namespace: Any = None) -> Any:
        nonlocal inside
        if inside:
            return plain(args, namespace)
        inside = True
        try:
            return parser.parse_known_intermixed_args(args, namespace)
        finally:
            inside = False

    parser.parse_known_args = parse  # type: ignore[method-assign]


def run(arguments: argparse.Namespace) -> int:
    """Ask, print the answers, return 0."""
    if arguments.rows < 1:
        raise ConfigError(f"--rows: expected at least 1, got {arguments.rows}.")
    if arguments.stream and (arguments.inputs or arguments.pair or arguments.signature):
        raise ConfigError("--stream: expected texts for a decoder, and no --input, --pair or "
                          "--signature beside it. Leave it out.")
    if not arguments.stream and not (arguments.regex is None and arguments.json_schema is None):
        raise ConfigError("--regex, --json-schema: expected --stream beside it. Add it, or export "
                          "the model with --constraints and name one by --constraint.")
    if arguments.inputs and (arguments.texts or arguments.file):
        raise ConfigError("--input: expected no TEXT and no --file beside it. Give one of them.")
    if not arguments.inputs and not arguments.texts and not arguments.file and sys.stdin.isatty():
        raise ConfigError("TEXT: expected a text, --file, --input, or lines on standard input.")
    ref = connection.reference(arguments)
    with connection.connect(arguments) as client:
        if arguments.inputs:
            _ask_inputs(client, ref, arguments)
            return 0
        texts = _texts(arguments)
        first = next(texts, None)
        if first is None:
            raise ConfigError("TEXT: expected at least one line, got none.")
        ask = _stream_texts if arguments.stream else _ask_texts
        ask(client, ref, itertools.chain([first], texts), arguments)
    return 0


# ---------------------------------------------------------------------------- texts


def _texts(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.texts:
        yield from arguments.texts
        return
    if arguments.file in (None, "-"):
        yield from _lines(sys.stdin, "standard input")
        return
    try:
        with open(arguments.file, encoding="utf-8") as file:
            yield from _lines(file, arguments.file)
    except OSError as error:
        raise ConfigError(f"--file: {arguments.file} cannot be read: {error.strerror}.") from error


def _lines(file: Iterable[str], name: str) -> Iterator[str]:
    try:
        for line in file:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError:
        # Without the cause: it carries the text.
        raise ConfigError(f"{name}: expected UTF-8 text. Convert the file.") from None


def _ask_texts(client: Client, ref: ModelRef, texts: Iterator[str], arguments: argparse.Namespace
               ) -> None:
    from tf_infer.wire.messages import SERVING_DEFAULT

    name = arguments.signature or SERVING_DEFAULT
    signature = _signature(client, ref, name)
    inputs = {info.name for info in signature.inputs}
    options = {option: getattr(arguments, option) for option in GENERATION
               if getattr(arguments, option) is not None}
    further = _further(arguments)
    if further:
        options["options"] = further
    if arguments.n is not None:
        options["n"] = arguments.n
    pairs = iter(arguments.pair) if arguments.pair else None
    if pairs is not None and len(arguments.pair) != len(arguments.texts):
        raise ConfigError(f"--pair: expected {len(arguments.texts)}, one for each TEXT, "
                          f"got {len(arguments.pair)}.")
    outputs = {info.name for info in signature.outputs}
    while rows := list(itertools.islice(texts, arguments.rows)):
        if "prompt" in inputs and "text" in outputs and name in (SERVING_DEFAULT, "generate"):
            for one in client.generate(ref, rows, **options):
                _print_generation(one, as_json=arguments.json)
            continue
        if options:
            raise ConfigError(f"{sorted({*options, *further} - {'options'})}: expected a decoder, "
                              "got a model whose "
                              f"{name!r} takes {sorted(inputs)}.")
        second = list(itertools.islice(pairs, len(rows))) if pairs is not None else None
        if "text" in inputs and {"label", "score"} <= outputs:
            for answer in client.classify(ref, rows, text_pairs=second, signature=name):
                _print_classification(answer, as_json=arguments.json)
        else:
            answers = client.predict(ref, _text_inputs(signature, rows, second), signature=name)
            _print_outputs(answers, as_json=arguments.json)


def _further(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a client takes as further ones, as far as they are given."""
    return {option: getattr(arguments, option) for option in FURTHER
            if getattr(arguments, option) is not None}


def _stream_texts(client: Client, ref: ModelRef, texts: Iterator[str],
                  arguments: argparse.Namespace) -> None:
    """Print the continuation of one text after the other while it comes."""
    from tf_infer.client.calls import row_seeds

    if arguments.n is not None:
        raise ConfigError("--n: expected none beside --stream, which writes one text at a time.")
    options = {name: getattr(arguments, name) for name in GENERATION if name != "seed"}
    options["options"] = _further(arguments)
    options |= {"regex": arguments.regex, "json_schema": _schema(arguments.json_schema)}
    for place, text in enumerate(texts):
        seed = arguments.seed
        if seed is not None:  # that of the row which the text would be without --stream
            seed = row_seeds(seed, place % arguments.rows + 1)[-1]
        with client.stream(ref, text, seed=seed, **options) as stream:
            _print_pieces(stream, as_json=arguments.json)


def _schema(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"--json-schema: expected a file of UTF-8 text, got {path}, which cannot "
                          "be read as one.") from None


def _print_pieces(stream: Iterable[StreamPiece], *, as_json: bool) -> None:
    """Print what comes; the line of a text that breaks off is ended before its error is said."""
    begun = False
    try:
        for piece in stream:
            if as_json:
                _print_json({"text": piece.text, "ids": [token.id for token in piece.tokens],
                             "score": piece.score, "finish_reason": piece.finish_reason})
                sys.stdout.flush()
            else:
                print(piece.text, end="", flush=True)
                begun = begun or bool(piece.text)
    except BaseException:
        if begun:
            print(flush=True)
        raise
    if not as_json:
        print(flush=True)


def _signature(client: Client, ref: ModelRef, name: str) -> SignatureInfo:
    found = client.metadata(ref)
    if name not in found.signatures:
        known = [one for one in found.signatures if not one.startswith("__")]
        raise ConfigError(f"--signature: expected one of {known} of {found.model}, got {name!r}.")
    return found.signatures[name]


def _text_inputs(signature: SignatureInfo, rows: list[str], second: list[str] | None
                 ) -> dict[str, list[str]]:
    names = [info.name for info in signature.inputs if info.dtype == "string"]
    given = {"text": rows, "text_pair": second} if second is not None else {
        names[0] if names else "": rows}
    if sorted(given) != sorted(info.name for info in signature.inputs):
        takes = ", ".join(map(str, signature.inputs)) or "nothing"
        raise ConfigError(f"signature {signature.name!r}: expected values for its inputs "
                          f"({takes}). Give each by --input NAME=VALUE.")
    return {name: values for name, values in given.items() if values is not None}


# ---------------------------------------------------------------------------- any input


def _ask_inputs(client: Client, ref: ModelRef, arguments: argparse.Namespace) -> None:
    from tf_infer.wire.messages import SERVING_DEFAULT

    name = arguments.signature or SERVING_DEFAULT
    inputs = {key: _value(text) for key, text in _pairs(arguments.inputs, "--input").items()}
    dtypes = {info.name: info.dtype for info in _signature(client, ref, name).inputs
              if info.name in inputs and info.dtype != "string" and not info.dtype.isupper()}
    dtypes |= _pairs(arguments.dtypes or [], "--dtype")
    _print_outputs(client.predict(ref, inputs, signature=name, dtypes=dtypes),
                   as_json=arguments.json)


def _pairs(items: list[str], flag: str) -> dict[str, str]:
    pairs = {}
    for place, item in enumerate(items):
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ConfigError(f"{flag} number {place + 1}: expected NAME=VALUE, got "
                              f"{len(item)} characters without a name and '='.")
        pairs[name] = value
    return pairs


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return text if value is None or isinstance(value, dict) else value


# ---------------------------------------------------------------------------- answers


def _print_classification(answer: Classification, *, as_json: bool) -> None:
    if as_json:
        _print_json({"label": answer.label, "score": answer.score, "labels": list(answer.labels),
                     "scores": {one.name or str(place): one.score
                                for place, one in enumerate(answer.scores)}})
        return
    rest = "  ".join(f"{one.name} {one.score:.3f}" for one in answer.top(SHOWN_CLASSES)
                     if one.name and one.name != answer.label)
    print(f"{answer.label}\t{answer.score:.3f}" + (f"\t{rest}" if rest else ""))


def _print_generation(answer: Generation, *, as_json: bool) -> None:
    if as_json:
        told = {"token_logprobs": list(answer.token_logprobs), "top_logprobs": [
            {str(one.id): one.logprob for one in place} for place in answer.top_logprobs]}
        _print_json({"text": answer.text, "ids": list(answer.ids), "score": answer.score,
                     "finish_reason": answer.finish_reason,
                     **(told if answer.token_logprobs else {})})
    else:
        print(answer.text)


def _print_outputs(answer: Mapping[str, np.ndarray], *, as_json: bool) -> None:
    from tf_infer.manifest import array_to_json

    if as_json:
        _print_json({name: array_to_json(array) for name, array in answer.items()})
        return
    for name, array in answer.items():
        data = array_to_json(array)
        print(f"{name}: {data['dtype']} {data['shape']}")
        print(f"  {_plain(array)}")


def _plain(array: np.ndarray) -> str:
    """Return an array's values as JSON-like text; bytes that are not UTF-8 stay visible."""
    def text(item: Any) -> Any:
        if isinstance(item, list):
            return [text(one) for one in item]
        return item.decode("utf-8", "backslashreplace") if isinstance(item, bytes) else item
    return json.dumps(text(array.tolist()), ensure_ascii=False, default=str)


def _print_json(value: Any) -> None:
    print(json_text(value, ensure_ascii=False))
