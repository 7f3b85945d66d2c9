"""Generation for long, with callers who leave: 2,000 mixed requests, 16 at once, a third given up.

    python -m benchmarks.endurance > benchmarks/results/endurance.json

Prints one JSON object, a part for each form in which `tf-infer serve` runs a decoder (stories260K
of the shared folder): its SavedModel, and its LiteRT engine. There are 200 different requests:
prompts of stories, greedy or drawn by a seed, stop strings, penalties, log-probabilities, choices,
patterns; by streams over gRPC, server-sent events, whole answers over HTTP, and Predict. Each is
first asked alone, then any of them at once:

    ended, as alone     text and reason of those that came to their end, against the same alone
    left, as alone      those given up at a random moment (Predict: a deadline): what came until
                        then begins that text
    seeds               those of `ended` that were drawn, each by its seed, and how many were equal
    others              the requests that were not answered as alone, and whether they are when they
                        are asked alone once more, at the end
    slots_in_use        and waiting: what the server says when all is over; `most_in_use` in each
                        eighth of the requests says whether one of the slots was lost
    resident_mb         of the server, before, and after each eighth; the slope is that of the last
                        seven
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import platform
import random
import re
import shutil
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks import contestants, decoders, forms, models
from benchmarks.client import machine
from benchmarks.continuous import Decoding
from benchmarks.server import say
from benchmarks.soak import faults, held, rest_port

KINDS, CALLERS, LEAVING, SAMPLES = 200, 16, 1 / 3, 8
CAPACITY, SLOTS, LONGEST = 120, 8, 128
STEP_S = 0.01  # of those who leave without having heard anything
Way = Literal["grpc", "events", "whole", "predict"]
WAYS: tuple[Way, ...] = ("grpc", "events", "whole", "predict")
Report = dict[str, Any]
MONITORING = 'prometheus_config { enable: true, path: "/metrics" }'
# how OpenAI's API, and vLLM's additions, call an option
FIELDS = {"max_new_tokens": "max_tokens", "regex": "guided_regex", "choices": "guided_choice"}
# arguments of the client; the others are its `options`
STREAM = ("max_new_tokens", "temperature", "top_p", "seed", "stop", "regex", "choices", "logprobs")
GENERATE = ("max_new_tokens", "temperature", "top_p", "seed", "stop", "logprobs")


class Asked(NamedTuple):
    """One of the requests: how it is asked, for what, with which options."""

    way: Way
    prompt: str
    options: dict[str, Any]


class Said(NamedTuple):
    """An answer, or what of it there was when its caller left; then the reason is empty."""

    text: str
    reason: str


def requests(count: int, seed: int = 0) -> list[Asked]:
    """Draw requests of all kinds."""
    draw = random.Random(seed)
    path = models.SHARED / "data/tinystories_sample/train.txt"
    words = path.read_text(encoding="utf-8").split()[:50_000]
    found = []
    for number in range(count):
        way = WAYS[number % len(WAYS)]
        start, size = draw.randrange(len(words) - 40), draw.randrange(40)
        options: dict[str, Any] = {"max_new_tokens": draw.randrange(1, CAPACITY + 1),
                                   "temperature": 0.0}
        if draw.random() < 0.6:
            options |= {"temperature": draw.choice([0.5, 0.9, 1.5]),
                        "seed": draw.randrange(-2**63, 2**63)}
        if draw.random() < 0.3:
            options["top_p"] = draw.choice([0.5, 0.9])
        if draw.random() < 0.3:
            options["stop"] = draw.choice([[" the"], ["zzz", ". "], ["\n"]])
        if draw.random() < 0.2:
            options["repetition_penalty"] = 1.3
        if draw.random() < 0.2:
            options["logprobs"] = draw.randrange(3)
        if draw.random() < 0.1:
            options["choices"] = [" yes", " no", " yesterday"]
        elif draw.random() < 0.1 and way != "predict":  # which knows named ones alone
            options["regex"] = r" [a-z]{1,9}( [a-z]{1,9}){2,5}\."
        found.append(Asked(way, " ".join(words[start:start + size]), options))
    return found


class Callers:
    """Asks a server, over gRPC and HTTP."""

    def __init__(self, one: Decoding) -> None:
        from tf_infer.client import Client

        self._client = Client(one.address, timeout_s=300.0)
        self._rest_port = rest_port(one)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def ask(self, asked: Asked, leave_after: int | None = None) -> Said:
        """Return an answer; give it up after so many pieces, or so many times STEP_S."""
        if asked.way == "grpc":
            return self._stream(asked, leave_after)
        if asked.way == "predict":
            return self._predict(asked, leave_after)
        return self._http(asked, leave_after)

    def _stream(self, asked: Asked, leave_after: int | None) -> Said:
        own, more = _parted(asked.options, STREAM)
        with self._client.stream(decoders.MODEL, asked.prompt, **own, options=more) as stream:
            if leave_after == 0:
                return Said("", "")
            for place, _ in enumerate(stream, 1):
                if place == leave_after:
                    break
            return Said(stream.text, stream.finish_reason or "")

    def _predict(self, asked: Asked, leave_after: int | None) -> Said:
        from tf_infer.errors import DeadlineExceeded

        own, more = _parted(asked.options, GENERATE)
        deadline = {} if leave_after is None else {"timeout_s": STEP_S * (1 + leave_after)}
        try:
            found = self._client.generate(decoders.MODEL, [asked.prompt], **own, options=more,
                                          **deadline)[0]
        except DeadlineExceeded:
            if leave_after is None:
                raise
            return Said("", "")
        return Said(found.text, found.finish_reason)

    def _http(self, asked: Asked, leave_after: int | None) -> Said:
        events = asked.way == "events"
        fields = {FIELDS.get(name, name): value for name, value in asked.options.items()}
        with closing(http.client.HTTPConnection(
                "localhost", self._rest_port, timeout=300)) as connection:
            connection.request("POST", "/v1/completions", json.dumps({
                "model": decoders.MODEL, "prompt": asked.prompt, "stream": events, **fields}),
                {"Content-Type": "application/json"})
            if leave_after == 0 or (leave_after is not None and not events):
                time.sleep(STEP_S * leave_after)
                return Said("", "")
            answer = connection.getresponse()
            if answer.status != 200:
                raise ConnectionError(f"HTTP {answer.status}")
            if not events:
                choice = json.loads(answer.read())["choices"][0]
                return Said(choice["text"], choice["finish_reason"])
            with closing(answer):
                return _events(answer, leave_after)


def _parted(options: dict[str, Any], own: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    return ({name: value for name, value in options.items() if name in own},
            {name: value for name, value in options.items() if name not in own})


def _events(answer: http.client.HTTPResponse, leave_after: int | None) -> Said:
    text, reason, pieces = "", "", 0
    for line in answer:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                raise ConnectionError(event["error"]["code"])
            text += event["choices"][0]["text"]
            reason, pieces = event["choices"][0]["finish_reason"] or "", pieces + 1
            if pieces == leave_after:
                break
    return Said(text, reason)


# ---------------------------------------------------------------------------- one form


class Tally:
    """What became of the requests, and what the server held meanwhile."""

    def __init__(self, one: Decoding, count: int) -> None:
        self._one, self._each, self._lock = one, count // SAMPLES, threading.Lock()
        self.counts: collections.Counter[str] = collections.Counter()
        self.samples, self.most_in_use = [held(one.process.pid)], [0]
        self._done, self._over = 0, threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()

    def _look(self) -> None:
        while not self._over.wait(0.25):
            in_use = gauges(self._one)["slots_in_use"]
            with self._lock:
                self.most_in_use[-1] = max(self.most_in_use[-1], in_use)

    def add(self, *names: str) -> None:
        """Count a request under some names."""
        with self._lock:
            self.counts.update(names)
            self._done += 1
            if self._done % self._each == 0:
                self.samples.append(held(self._one.process.pid))
                self.most_in_use.append(0)
                say(f"  {dict(self.counts)} {self.samples[-1]}")

    def report(self) -> Report:
        """Return all of it, at the end."""
        self._over.set()
        self._watch.join()
        late = [sample["resident_mb"] for sample in self.samples[2:]]  # pools fill at first
        slope = float(np.polyfit(range(len(late)), late, 1)[0]) / self._each
        counts = dict(sorted(self.counts.items()))
        return {"of": counts, "seeds": {"replayed": counts.get("drawn", 0),
                                        "equal": counts.get("drawn, equal", 0)},
                "most_in_use": self.most_in_use[:SAMPLES],
                "mb_by_1000_requests": round(1000 * slope, 2),
                **{key: [sample[key] for sample in self.samples]
                   for key in ("resident_mb", "threads", "descriptors")}}


def judged(asked: Asked, alone: Said, said: Said, *, left: bool) -> list[str]:
    """Return the names under which an answer counts, as the docstring above has them."""
    if not said.reason and left:
        return ["left, as alone" if alone.text.startswith(said.text) else "left, OTHER"]
    names = ["ended, as alone" if said == alone else "ended, OTHER"]
    if asked.options["temperature"]:
        names += ["drawn", *(["drawn, equal"] if said == alone else [])]
    return names


def endured(one: Decoding, asked: list[Asked], count: int) -> Report:
    """Ask each request alone, then any of them at once; count what came back."""
    callers = Callers(one)
    with closing(callers):
        alone = [callers.ask(request) for request in asked]
        say(f"  {len(asked)} alone, {len(set(alone))} different answers")
        draw = random.Random(1)
        drawn = [(draw.randrange(len(asked)),
                  draw.randrange(12) if draw.random() < LEAVING else None) for _ in range(count)]
        tally, others = Tally(one, count), set[int]()

        def ask(place: int, leave_after: int | None) -> None:
            try:
                said = callers.ask(asked[place], leave_after)
            except Exception as error:
                tally.add(f"ERROR {asked[place].way}: {type(error).__name__}")
                say(f"  {asked[place].way}: {error}")
            else:
                names = judged(asked[place], alone[place], said, left=leave_after is not None)
                tally.add(*names)
                if "OTHER" in names[0]:
                    others.add(place)

        began = time.monotonic()
        with ThreadPoolExecutor(CALLERS) as pool:
            for _ in pool.map(lambda each: ask(*each), drawn):
                pass
        spent = time.monotonic() - began
        again = {place: callers.ask(asked[place]) == alone[place] for place in sorted(others)}
    end, found = time.monotonic() + 10.0, gauges(one)
    while any(found.values()) and time.monotonic() < end:
        time.sleep(0.1)
        found = gauges(one)
    return {"requests": count, "seconds": round(spent, 1), **found, "slots": SLOTS,
            **tally.report(), "faults": faults(one),
            "others": [{"way": asked[place].way, **asked[place].options, "alone again": equal}
                       for place, equal in again.items()]}


def gauges(one: Decoding) -> dict[str, int]:
    """Return how many slots the server says are in use, and how many requests wait for one."""
    with urllib.request.urlopen(f"http://localhost:{rest_port(one)}/metrics") as page:
        text = page.read().decode()
    return {key: sum(int(float(value)) for value in re.findall(
        rf"^{name}\{{.*\}} (\S+)$", text, re.M))
        for key, name in (("slots_in_use", "tf_infer_decode_slots_in_use"),
                          ("waiting", "tf_infer_decode_waiting"))}


def exported(cache: Path) -> Path:
    """Return the folder of the model, with its engine; export it when it is missing."""
    from tf_infer.manifest import ENGINE_FILE, engine_folder

    base = cache / "endurance" / decoders.MODEL
    if (engine_folder(base / "1", "litert") / ENGINE_FILE).exists():
        return base
    from tf_infer.config import GenerationDefaults, ShapeGrid
    from tf_infer.optimize import litert
    from tf_infer.tasks import build

    shutil.rmtree(base, ignore_errors=True)
    checkpoint = models.SHARED / "weights/stories260K"
    tokenizer = base.parent / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint / "tok512_rebuilt.model", tokenizer / "tokenizer.model")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}))
    task = build.from_checkpoint(checkpoint, {
        "name": decoders.MODEL, "capacity": CAPACITY,
        "defaults": GenerationDefaults(max_new_tokens=4),
        "grid": ShapeGrid(rows=(1, SLOTS), tokens=(16, LONGEST))}, tokenizer_dir=tokenizer,
        max_tokens=LONGEST)
    version = forms.save_version(task, base, decoders.MODEL)
    litert.write(task.network, engine_folder(version, "litert"),
                 litert.EngineSettings(rows=(1, 2, 4, SLOTS)), positions=LONGEST + CAPACITY)
    return base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=models.CACHE, help="exported models")
    parser.add_argument("--form", nargs="+", choices=("saved_model", "litert"),
                        default=["saved_model", "litert"])
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--flags", nargs="*", default=[], help="further ones of the server")
    parser.add_argument("--kinds", type=int, default=KINDS, help="different requests")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is ended
    base = exported(arguments.cache)
    asked = requests(arguments.kinds)
    found: Report = {"python": platform.python_version(), "machine": machine(),
                     "kinds": arguments.kinds, "callers": CALLERS}
    for form in arguments.form:
        say(form)
        contestant = contestants.ours(
            base, "--rest_api_port={second}", f"--decode_engine={form}", f"--decode_slots={SLOTS}",
            "--monitoring_config_file={folder}/monitoring.config", *arguments.flags, name=form,
            files={"monitoring.config": MONITORING})
        one = Decoding(contestant, ("Once upon a time", 4))
        try:
            found[form] = endured(one, asked, arguments.requests)
            say(json.dumps(found[form]))
        finally:
            one.stop()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
