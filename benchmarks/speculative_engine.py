"""When do guesses pay in the engine form? Texts that are taken to be written, with and without.

    python -m benchmarks.speculative_engine --shape gpt2 --peers DIR > guesses.json

One text alone, token by token, through `server.forms.EngineForm`, as the slot engine does it. The
engine computes all it would; then the next token of the text is made the likeliest, so that what
repeats itself is what people write, and not what random weights do. Kinds of texts:

    quote    a story, then every second of its sentences again
    edit     a function of Python's library, then the same with another name in it
    code     a file of Python's library, going on
    story    tinystories_sample, going on
    play     tinyshakespeare, going on

Prints JSON, for each kind (rounds in turns; prompts are not counted):

    tokens_s    new tokens a second, without and with guesses: medians of the rounds
    speed       seconds without by seconds with guesses: median, least, greatest; above 1 it pays
    cpu         the same of the processor's seconds, which other work on the machine moves less
    accepted    share of the guesses that held
    a_call      tokens that a call of the engine wrote, 1 without guesses
    same        the choices are the same, log-probabilities to the last bit

and what texts side by side would have to win by guesses, `beside`, by their number (`--kinds` with
nothing behind it measures this alone):

    step_ms     a step of all of them, wall and CPU milliseconds: median of the rounds
    apart       tokens that a round must write in each text, or it is slower than steps (of CPU
                seconds: median, least, greatest), where each text's guesses are read by themselves
    together    the same if all were read in one go, at the best: a step of as many rows, which
                looks at no guess before its own (the engine has no graph that does)
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import statistics
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import decoders
from benchmarks.client import machine
from benchmarks.models import CACHE, SHARED
from tf_infer.engines import litert
from tf_infer.engines.contracts import Part
from tf_infer.server import fake_decoder
from tf_infer.server.forms import Choice, EngineForm, Row

PROMPT, NEW = 160, 96  # ids at most
BESIDE, HELD, CALLS = (2, 4, 8), 200, 6  # texts side by side, ids of each, calls of a round


class Text(NamedTuple):
    """Ids of a prompt and of what is written behind it."""

    ids: np.ndarray
    prompt: int


class Written:
    """A StepEngine that computes, and then makes the next id of a text the likeliest."""

    def __init__(self, engine: litert.LiteRTEngine, text: Text) -> None:
        self._engine, self._text = engine, text
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _written(self, logits: np.ndarray, start: int) -> None:
        self.calls += 1
        for place, row in enumerate(logits, start + 1):
            row[self._text.ids[min(place, len(self._text.ids) - 1)]] = row.max() + 1.0

    def step(self, tokens: np.ndarray, lengths: np.ndarray, active: Sequence[int]) -> np.ndarray:
        """See `StepEngine.step`."""
        logits = self._engine.step(tokens, lengths, active)
        self._written(logits[:1], int(lengths[0]))
        return logits

    def extend(self, slot: int, ids: np.ndarray, start: int) -> np.ndarray:
        """See `StepEngine.extend`."""
        logits = self._engine.extend(slot, ids, start)
        self._written(logits, start)
        return logits


class Chooses:
    """The signature `choose` of a version that asks for nothing unusual, no id of which ends."""

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], **given: Any) -> Any:
        """See `Servable.run`."""
        found = inputs["logits"].argmax(1)
        most = inputs["logits"].max(1, keepdims=True)
        sums = most[:, 0] + np.log(np.exp(inputs["logits"] - most).sum(1))
        return {"token": found, "logprob": inputs["logits"][np.arange(len(found)), found] - sums,
                "is_end": np.zeros(len(found), bool)}


def written(engine: litert.LiteRTEngine, text: Text, guesses: int,
            ) -> tuple[np.ndarray, list[Choice], int, Row]:
    """Return the seconds of a text, by the clock and of CPUs, its choices, engine calls, the row.
    """
    there = Written(engine, text)
    form = EngineForm(there, Chooses(), fake_decoder.manifest(),  # type: ignore[arg-type]
                      guesses=guesses)
    room = np.zeros(engine.positions, np.int32)
    room[:text.prompt] = text.ids[:text.prompt]
    row = Row(0, room, text.prompt, text.prompt, {}, most=len(text.ids) - text.prompt)
    form.read([Part(0, text.ids[:text.prompt - 1])])
    found: list[Choice] = []
    started = time.perf_counter(), time.process_time()
    while row.most:
        choices = form.produce([row], hurry=False)[0]
        for choice in choices:
            row.ids[row.length] = choice.token
            row.length += 1
        row.most -= len(choices)
        found += choices
    ended = time.perf_counter(), time.process_time()
    return np.subtract(ended, started), found, there.calls, row


def cell(engine: litert.LiteRTEngine, texts: Sequence[Text], guesses: int, rounds: int,
         ) -> dict[str, Any]:
    """Write every text with and without guesses, in turns."""
    spent: dict[int, list[np.ndarray]] = {0: [], guesses: []}
    counts, same = {"proposed": 0, "accepted": 0, "calls": 0, "tokens": 0}, True
    for number in range(rounds):
        seconds = {how: np.zeros(2) for how in spent}
        for place, text in enumerate(texts):
            told = {}
            for how in sorted(spent, reverse=bool((number + place) % 2)):
                took_s, found, calls, row = written(engine, text, how)
                seconds[how] = seconds[how] + took_s
                told[how] = [(one.token, repr(one.logprob)) for one in found]
                if how:
                    counts["calls"] += calls
                    counts["tokens"] += len(found)
                    counts["proposed"] += row.guessing.proposed
                    counts["accepted"] += row.guessing.accepted
            same = same and told[0] == told[guesses]
        for how, one in seconds.items():
            spent[how].append(one)
    tokens = sum(len(text.ids) - text.prompt for text in texts)
    ratios = np.array(spent[0]) / np.array(spent[guesses])                    # [rounds, 2]
    speed, cpu = ([round(float(one), 2) for one in (np.median(some), some.min(), some.max())]
                  for some in ratios.T)
    return {"tokens_s": [round(tokens / float(np.median(np.array(spent[how])[:, 0])), 1)
                         for how in spent], "speed": speed, "cpu": cpu,
            "accepted": round(counts["accepted"] / max(1, counts["proposed"]), 2),
            "a_call": round(counts["tokens"] / counts["calls"], 2), "same": same}


def beside(engine: litert.LiteRTEngine, guesses: int, rounds: int) -> dict[int, dict[str, Any]]:
    """Return what guesses for several texts would have to win."""
    ids = np.random.default_rng(1).integers(0, engine.vocab_size, engine.positions, np.int32)
    engine.read_many([Part(0, ids[:HELD])])
    for slot in range(1, engine.slots):
        engine.restore(slot, engine.save(0, HELD))
    held = np.full(engine.slots, HELD, np.int32)

    def stepped(rows: int) -> None:
        engine.step(ids[:engine.slots], held, range(rows))

    def apart(rows: int) -> None:
        for slot in range(rows):
            engine.extend(slot, ids[:1 + guesses], HELD)

    found = {}
    for rows in (rows for rows in BESIDE if rows * (1 + guesses) <= engine.slots):
        works = (partial(stepped, rows), partial(apart, rows),
                 partial(stepped, rows * (1 + guesses)))
        for work in works:
            work()
        spent = np.array([[took(work) for work in works] for _ in range(rounds)])  # [rounds, 3, 2]
        ratios = spent[:, 1:, 1] / spent[:, :1, 1]                              # [rounds, 2]
        found[rows] = {
            "step_ms": [round(1000 * float(one), 2) for one in np.median(spent[:, 0], axis=0)],
            **{name: [round(float(one), 2) for one in (np.median(some), some.min(), some.max())]
               for name, some in zip(("apart", "together"), ratios.T)}}
    return found


def took(work: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds of a call, by the clock and of CPUs."""
    started = time.perf_counter(), time.process_time()
    for _ in range(CALLS):
        work()
    return ((time.perf_counter() - started[0]) / CALLS, (time.process_time() - started[1]) / CALLS)


def texts_of(task: Any, count: int) -> dict[str, list[Text]]:
    """Return texts by kind."""
    import tensorflow as tf

    def ids(text: str) -> np.ndarray:
        found: np.ndarray = task.codec.encode(tf.constant([text])).ids.to_tensor().numpy()[0]
        return found.astype(np.int32)

    def goes_on(text: str) -> Text:
        return Text(ids(text)[:PROMPT + NEW], PROMPT)

    def again(first: str, second: str) -> Text:
        before, behind = ids(first)[:PROMPT], ids(second)[:NEW]
        return Text(np.concatenate([before, behind]), len(before))

    def read(name: str) -> str:
        return (SHARED / "data" / name).read_text("utf-8")

    stories = [story for story in read("tinystories_sample/val.txt").split("<|endoftext|>")
               if len(story) > 400] or [read("tinystories_sample/val.txt")]
    if len(stories) < count:
        whole = stories[0]
        stories = [whole[start:start + 2000] for start in range(0, 2000 * count, 2000)]
    play = read("tinyshakespeare/val.txt")
    functions = [inspect.getsource(one) for one in (
        textwrap.fill, textwrap.shorten, textwrap.indent, statistics.median, statistics.fmean,
        json.loads, json.dump, inspect.getmodulename, inspect.cleandoc, inspect.getfile)][:count]
    files = [inspect.getsource(one) for one in (argparse, json.decoder, textwrap, statistics, re)]
    return {
        "quote": [again(story[:500] + "\nIn short: ", " ".join(
            re.split(r"(?<=[.!?]) ", story[:500].replace("\n", " "))[::2]))
            for story in stories[:count]],
        "edit": [again(source, re.sub(r"\btext\b|\bdata\b|\bs\b", "given", source))
                 for source in functions],
        "code": [goes_on(source[start:]) for source in files for start in (3000, 9000)][:count],
        "story": [goes_on(story) for story in stories[:count]],
        "play": [goes_on(play[start:]) for start in range(0, 3000 * count, 3000)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(decoders.SHAPES), default="gpt2")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--peers", type=Path, help="environments, where forms are still to be made")
    parser.add_argument("--guesses", type=int, default=3)
    parser.add_argument("--texts", type=int, default=8, help="of a kind")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", nargs="*", help="of texts; default: all")
    arguments = parser.parse_args()
    source = decoders.form("checkpoint", arguments.shape, arguments.cache, arguments.peers)
    folder = decoders.form("ours-engine", arguments.shape, arguments.cache, arguments.peers)
    texts = {} if arguments.kinds == [] else texts_of(
        decoders.task_from(source), arguments.texts)
    engine = litert.load(folder, threads=arguments.threads)
    if not engine.guesses:
        raise SystemExit(f"{folder}: expected an engine with guesses. Remove it; it is made again.")
    cells = {kind: cell(engine, some, arguments.guesses, arguments.rounds)
             for kind, some in texts.items() if arguments.kinds is None or kind in arguments.kinds}
    print(json.dumps({"machine": machine(), "shape": arguments.shape, "precision": "int8",
                      "prompt": PROMPT, "new": NEW, "guesses": arguments.guesses,
                      "threads": arguments.threads, "cells": cells,
                      "beside": beside(engine, arguments.guesses, arguments.rounds)}, indent=1))


if __name__ == "__main__":
    main()
