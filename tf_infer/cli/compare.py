"""`tf-infer compare`: two classifiers on the same texts, and whether the second may take over."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tf_infer.cli import connection, texts
from tf_infer.cli.json_text import json_text
from tf_infer.errors import ConfigError

if TYPE_CHECKING:
    from tf_infer.client.results import Classification
    from tf_infer.train.data import Example
    from tf_infer.verify.comparison import Answers, Calibration, Comparison

EPILOG = """examples:
  tf-infer compare --model intents --model-version 3 --model-version 4 --texts test.jsonl
  tf-infer compare --model intents --address old:8500 --address new:8500 --texts test.jsonl
  tf-infer compare --model small --model large --texts messages.jsonl --min-agreement 0.98 --json

files: .jsonl or .csv with "text", perhaps "text_pair", "label" or "labels"; .txt, a text a line.
Where rows have labels the second's accuracy on them is compared with the first's: exit code 1 when
the 95 % interval of the difference reaches below --max-drop points. Where none has: exit code 1
when fewer than --min-agreement of the texts get the same label. Texts are never shown: rows are.
"""

SHOWN_FLIPS = 10


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("--model", action="append", required=True, metavar="NAME",
                        help="model to ask; the first, and the second where its name differs")
    parser.add_argument("--texts", required=True, type=Path, metavar="FILE",
                        help="texts, with or without labels")
    parser.add_argument("--rows", type=int, default=32, metavar="N",
                        help="texts in one call (default 32)")
    parser.add_argument("--max-drop", type=float, default=0.5, metavar="POINTS",
                        help="of accuracy, in percentage points (default 0.5)")
    parser.add_argument("--min-agreement", type=float, default=0.99, metavar="SHARE",
                        help="of texts without labels (default 0.99)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap's draws")
    parser.add_argument("--json", action="store_true", help="one JSON object with all flips")
    connection.configure(parser, twice=True)


def run(arguments: argparse.Namespace) -> int:
    """Ask both, compare, print; return 0 when the second may take over, else 1."""
    from tf_infer.verify.comparison import compare

    if arguments.rows < 1:
        raise ConfigError(f"--rows: expected at least 1, got {arguments.rows}.")
    sides = connection.sides(arguments)
    examples = texts.examples(arguments.texts)
    answers, seconds = _asked(sides, examples, arguments.rows)
    several = bool(answers[0].classes) and answers[0].probabilities is None
    found = compare(answers[0], answers[1], texts.truth(examples, several=several),
                    seed=arguments.seed)
    names = [_name(side) for side in sides]
    fault = _fault(found, arguments)
    if arguments.json:
        print(json_text({"first": names[0], "second": names[1], "passed": not fault,
                         "reason": fault,
                         "p50_call_s": [_median(one) for one in seconds],
                         **dataclasses.asdict(found)}))
    else:
        print("\n".join(_lines(found, names, seconds, fault)))
    return 1 if fault else 0


def _fault(found: Comparison, arguments: argparse.Namespace) -> str:
    """Return why the second may not take over; empty when it may."""
    if found.interval is None:
        if found.agreement >= arguments.min_agreement:
            return ""
        return (f"{100 * found.agreement:.2f} % have the same label, "
                f"{100 * arguments.min_agreement:g} % are asked for (--min-agreement)")
    if 100.0 * found.interval[0] >= -arguments.max_drop:
        return ""
    return (f"its accuracy may be {-100 * found.interval[0]:.2f} points lower, "
            f"{arguments.max_drop:g} are allowed (--max-drop)")


def _asked(sides: Sequence[argparse.Namespace], examples: Sequence[Example], rows: int
           ) -> tuple[list[Answers], list[list[float]]]:
    """Ask both, batch by batch, first by turns; return answers and the seconds of each call."""
    refs = [connection.reference(side) for side in sides]
    clients = [connection.connect(side) for side in sides]
    told: list[list[Classification]] = [[], []]
    seconds: list[list[float]] = [[], []]
    try:
        for turn, start in enumerate(range(0, len(examples), rows)):
            batch = examples[start:start + rows]
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                began = time.monotonic()
                told[side] += texts.classify(clients[side], refs[side], batch)
                seconds[side].append(time.monotonic() - began)
            texts.progress(min(start + rows, len(examples)), len(examples))
    finally:
        for client in clients:
            client.close()
    return [_answers(one) for one in told], seconds


def _answers(told: Sequence[Classification]) -> Answers:
    import numpy as np

    from tf_infer.verify.comparison import Answers

    classes = tuple(label.name for label in told[0].scores)
    shares = np.array([[label.score for label in one.scores] for one in told])
    # of several labels each is decided for itself, and the scores are no distribution
    single = bool(classes) and bool(np.allclose(shares.sum(axis=1), 1.0, atol=1e-3))
    return Answers(labels=[frozenset(one.labels) for one in told],
                   scores=np.array([one.score for one in told]),
                   probabilities=shares if single else None, classes=classes)


def _name(side: argparse.Namespace) -> str:
    return f"{connection.reference(side)} at {side.address}"


def _median(seconds: Sequence[float]) -> float:
    return sorted(seconds)[len(seconds) // 2]


def _lines(found: Comparison, names: Sequence[str], seconds: Sequence[Sequence[float]],
           fault: str) -> Iterator[str]:
    yield f"first   {names[0]}, a call in {1000 * _median(seconds[0]):.1f} ms (median)"
    yield f"second  {names[1]}, a call in {1000 * _median(seconds[1]):.1f} ms (median)"
    yield (f"{found.rows} texts, {100 * found.agreement:.2f} % with the same label, "
           f"{len(found.flips)} with another")
    if found.accuracy is not None and found.interval is not None:
        if found.labelled < found.rows:
            yield f"{found.labelled} of the texts are labelled, of which:"
        yield (f"accuracy {100 * found.accuracy[0]:.2f} % and {100 * found.accuracy[1]:.2f} %: "
               f"{100 * (found.difference or 0.0):+.2f} points, 95 % interval "
               f"{100 * found.interval[0]:+.2f} to {100 * found.interval[1]:+.2f}, McNemar "
               f"p = {found.p_value:.3g}")
    for name, one in zip(("first", "second"), found.calibration or ()):
        yield _calibration_line(name, one)
    for (old, new), count in found.changes[:SHOWN_FLIPS]:
        yield f"  {count:5d}  {old or '(none)'} -> {new or '(none)'}"
    for flip in found.flips[:SHOWN_FLIPS]:
        was, now = ("|".join(labels) or "(none)" for labels in flip.labels)
        who = f", right: {flip.right}" if flip.right else ""
        yield (f"  row {flip.row + 1}: {was} ({flip.scores[0]:.3f}) -> {now} "
               f"({flip.scores[1]:.3f}){who}")
    if len(found.flips) > SHOWN_FLIPS:
        yield f"  and {len(found.flips) - SHOWN_FLIPS} more: --json tells all"
    yield f"the second may not take over: {fault}" if fault else "the second may take over"


def _calibration_line(name: str, one: Calibration) -> str:
    mended = ("" if one.temperature is None or one.error_fitted is None else
              f"; with temperature {one.temperature:.2f} it would be {one.error_fitted:.3f}"
              f"{f' (bounded: {one.bounded})' if one.bounded else ''}")
    return f"calibration error of the {name} {one.error:.3f}{mended}"
