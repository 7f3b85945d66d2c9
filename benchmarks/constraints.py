"""What constraints cost: compiling them, a mask for each token on the host, a step in a graph.

    python -m benchmarks.constraints --tokens DIR/tokens.json [--tokens ...] [--graph] [--peer]

`tokens.json` is that of an exported decoder (`assets.extra/`). Prints JSON: for each vocabulary and
constraint the seconds of its parts (expression -> automaton over bytes in a process of its own; ->
automaton over tokens), its size, and microseconds of a mask. Seconds are of a processor, in both
processes, so that other work on the machine does not count. `--graph` adds the milliseconds that
the constraint takes in a graph for a batch of rows, by the clock. `--peer` adds llguidance, where
installed, which compiles nothing ahead and makes each mask from its parser's state.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tf_infer import token_bytes
from tf_infer.constraints.byte_automaton import Bounds
from tf_infer.constraints.compiler import Matcher, check
from tf_infer.constraints.compose import Vocabulary, compose
from tf_infer.errors import ConfigError

PERSON = {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 20},
    "age": {"type": "integer", "minimum": 0, "maximum": 150},
    "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3}},
    "required": ["name", "age"], "additionalProperties": False}
TEN = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(10)},
       "required": [f"k{i}" for i in range(10)], "additionalProperties": False}
TEN_BOUNDED = {**TEN, "properties": {f"k{i}": {"type": "string", "maxLength": 64}
                                     for i in range(10)}}
CONSTRAINTS: dict[str, tuple[str, str]] = {
    "choices: 3": ("choices", "yes\x1fno\x1fmaybe"),
    "choices: 1,000": ("choices", "\x1f".join(f"label {i}" for i in range(1_000))),
    "regex: date": ("regex", r"\d{4}-\d{2}-\d{2}"),
    "regex: mail": ("regex", r"[a-z0-9.]+@[a-z0-9]+\.(com|org)"),
    "regex: .{0,200}": ("regex", ".{0,200}"),
    "schema: person": ("json_schema", json.dumps(PERSON)),
    "schema: 10 strings": ("json_schema", json.dumps(TEN)),
    "schema: 10 strings to 64": ("json_schema", json.dumps(TEN_BOUNDED)),
    "refused: (a|b)*a(a|b){30}": ("regex", "(a|b)*a(a|b){30}"),
}
STEPS, ROUNDS = 40, 5


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def processor_s(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor seconds of a call, and of processes that it started and ended."""
    start = _spent()
    found = call()
    return _spent() - start, found


def _spent() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(kind: str, value: str, vocabulary: Vocabulary) -> dict[str, Any]:
    bounds = Bounds()
    try:
        checked, make = processor_s(lambda: check(kind, value))
        over_bytes, automaton = processor_s(lambda: make(bounds))
    except ConfigError as error:
        return {"refused": str(error).split(". ")[0]}
    over_tokens, found = processor_s(lambda: compose(automaton, vocabulary, bounds, where=kind))
    masks, steps = [], []
    random = np.random.default_rng(0)
    for _ in range(ROUNDS):
        matcher = Matcher(found)
        state = 0
        for _ in range(STEPS):
            masks.append(seconds(matcher.allowed)[0])
            token = int(random.choice(np.flatnonzero(found.allowed(state))))
            steps.append(seconds(functools.partial(matcher.accept, token))[0])
            state = found.advance(state, token)
            if matcher.finished:
                break
    return {"compile_s": {"check": round(checked, 4), "bytes": round(over_bytes, 4),
                          "tokens": round(over_tokens, 4)},
            "states": len(found.next), "classes": found.next.shape[1],
            "bytes": found.nbytes, "mask_us": round(statistics.median(masks) * 1e6, 1),
            "accept_us": round(statistics.median(steps) * 1e6, 2)}


class PeerTokens:
    """A vocabulary in the form that llguidance asks for."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        every = vocabulary.tokens.tokens
        self.eos_token_id = vocabulary.end_ids[0]
        self.special_token_ids = [i for i, token in enumerate(every) if not token]
        self.tokens = [token or b"\xff" + str(i).encode() for i, token in enumerate(every)]

    def __call__(self, text: str) -> list[int]:
        return []


def peer(kind: str, value: str, vocabulary: Vocabulary) -> dict[str, Any]:
    """The same with llguidance: seconds to compile, the median mask, or what it says against it."""
    import llguidance
    import llguidance.numpy

    grammars = {"regex": llguidance.LLMatcher.grammar_from_regex,
                "json_schema": llguidance.LLMatcher.grammar_from_json_schema}
    if kind not in grammars:
        return {}
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(PeerTokens(vocabulary)))
    took, matcher = processor_s(lambda: llguidance.LLMatcher(tokenizer, grammars[kind](value)))
    if matcher.is_error():
        return {"error": matcher.get_error()[:120]}
    bitmask = llguidance.numpy.allocate_token_bitmask(1, vocabulary.size)
    masks = []
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        masks.append(seconds(
            lambda: llguidance.numpy.fill_next_token_bitmask(matcher, bitmask))[0])
        bits = np.unpackbits(bitmask.view(np.uint8), bitorder="little")[:vocabulary.size]
        if not bits.any() or matcher.is_stopped():
            break
        matcher.consume_token(int(random.choice(np.flatnonzero(bits))))
    return {"compile_s": round(took, 4), "mask_us": round(statistics.median(masks) * 1e6, 1)}


def in_graph(kind: str, value: str, vocabulary: Vocabulary, rows: int) -> float:
    """Milliseconds of a mask and a step of the automaton for a batch, in a graph."""
    import tensorflow as tf

    from tf_infer.constraints.compiler import compiled
    from tf_infer.decoding import constraints

    table = constraints.tables([compiled(kind, value, vocabulary)], vocabulary.size)

    @tf.function(autograph=False)
    def step(logits: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        held = constraints.keep_allowed(logits, constraints.allowed(table, state))
        token = tf.argmax(held, axis=-1, output_type=tf.int32)
        return token, constraints.follow(table, state, token, token >= 0)

    @tf.function(autograph=False)
    def plain(logits: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.argmax(logits, axis=-1, output_type=tf.int32), state

    logits = tf.constant(np.random.default_rng(0).normal(size=(rows, vocabulary.size)), tf.float32)
    state = tf.fill([rows], int(table.starts[1]))
    times: dict[str, list[float]] = {"step": [], "plain": []}
    for i in range(30):
        for name, function in (("step", step), ("plain", plain)):
            took, _ = seconds(lambda function=function: function(logits, state)[0].numpy())
            if i >= 5:
                times[name].append(took)
    return round(1e3 * (statistics.median(times["step"]) - statistics.median(times["plain"])), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=Path, action="append", required=True, metavar="FILE")
    parser.add_argument("--end", type=int, action="append", metavar="ID",
                        help="end id of each vocabulary (default: its first id without bytes)")
    parser.add_argument("--graph", action="store_true")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--rows", type=int, default=8)
    arguments = parser.parse_args()
    report = []
    for number, path in enumerate(arguments.tokens):
        table = token_bytes.read(path)
        end = arguments.end[number] if arguments.end else table.tokens.index(b"")
        took, vocabulary = processor_s(
            functools.partial(Vocabulary, table, len(table.tokens), (end,)))
        found: dict[str, Any] = {}
        for name, (kind, value) in CONSTRAINTS.items():
            found[name] = measure(kind, value, vocabulary)
            if arguments.graph and "states" in found[name]:
                found[name]["graph_ms"] = in_graph(kind, value, vocabulary, arguments.rows)
            if arguments.peer:
                found[name]["llguidance"] = peer(kind, value, vocabulary)
        report.append({"tokens": path.resolve().parent.name, "vocabulary": vocabulary.size,
                       "prepare_s": round(took, 4), "rows": arguments.rows,
                       "constraints": found})
    print(json.dumps({"load_average": os.getloadavg()[0], "cpus": os.cpu_count(),
                      "vocabularies": report}, indent=2))


if __name__ == "__main__":
    main()
