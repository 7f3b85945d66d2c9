"""A thousand random prompts, each under a pattern or schema of its own, to a server of an untrained
decoder: whatever comes to its end is what was asked for, by streams and by OpenAI's API.
"""

from __future__ import annotations

import collections
import http.client
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest

from tests.journeys.writerkit import export_writer
from tests.server.serverkit import free_port
from tests.tasks.test_constrained_texts import random_prompt, random_schema
from tf_infer.client.client import Client
from tf_infer.server.app import Server
from tf_infer.server.config import DecodeConfig, ModelConfig, ServerConfig

jsonschema = pytest.importorskip("jsonschema", reason="needs pip install jsonschema")
pytest.importorskip("outlines_core", reason="needs pip install 'tf-infer[constraints]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]
CAPACITY, ASKED, CALLERS = 120, 1_000, 8
ATOMS = ["[a-f]", r"\d", r"\w", r"[^\n]", "é|ü", "yes|no", "中文?", r"\s", "[A-Z][a-z]{0,3}", "🙂"]
Way = Literal["stream", "completions", "events"]
WAYS: tuple[Way, ...] = ("stream", "completions", "events")


class Asked(NamedTuple):
    """A request, and what its text must be."""

    way: Way
    prompt: str
    options: dict[str, Any]
    regex: str | None
    schema: dict[str, Any] | None

    def holds(self, text: str) -> bool:
        if self.regex is not None:
            return re.fullmatch(self.regex, text) is not None
        return jsonschema.Draft202012Validator(self.schema).is_valid(json.loads(text))


def random_pattern(random: np.random.Generator) -> str:
    parts = []
    for _ in range(random.integers(1, 5)):
        least = int(random.integers(0, 3))
        parts.append(f"(?:{random.choice(ATOMS)}){{{least},{least + int(random.integers(1, 4))}}}")
    return "".join(parts) + str(random.choice(["", "!", "|none"]))


def requests(count: int, seed: int) -> list[Asked]:
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        schema = random_schema(random) if number % 2 else None
        found.append(Asked(
            WAYS[number % 3], random_prompt(random),
            {"temperature": float(random.choice([0.0, 0.7, 1.0, 3.0])), "seed": number,
             "top_p": float(random.choice([1.0, 0.9]))},
            None if schema is not None else random_pattern(random), schema))
    return found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_writer(tmp_path_factory.mktemp("models"), capacity=CAPACITY, engine=True)


class Served(NamedTuple):
    client: Client
    rest_port: int

    def ask(self, asked: Asked) -> tuple[str, str]:
        """Return text and reason."""
        if asked.way == "stream":
            with self.client.stream("writer", asked.prompt, max_new_tokens=CAPACITY,
                                    **asked.options, regex=asked.regex, json_schema=asked.schema,
                                    ) as stream:
                for _ in stream:
                    pass
            return stream.text, stream.finish_reason
        limit: dict[str, Any] = {"guided_regex": asked.regex} if asked.schema is None else {
            "response_format": {"type": "json_schema", "json_schema": {
                "name": "it", "schema": asked.schema}}}
        with closing(http.client.HTTPConnection("localhost", self.rest_port, timeout=600)) as one:
            one.request("POST", "/v1/completions", json.dumps(
                {"model": "writer", "prompt": asked.prompt, "max_tokens": CAPACITY,
                 "stream": asked.way == "events", **asked.options, **limit}))
            answer = one.getresponse()
            body = answer.read().decode()
        assert answer.status == 200, body
        events = [json.loads(line[6:]) for line in body.split("\n")
                  if line.startswith("data: {")] if asked.way == "events" else [json.loads(body)]
        choices = [event["choices"][0] for event in events]
        return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]


@pytest.fixture(params=["saved_model", "litert"])
def served(request: pytest.FixtureRequest, exported: Path, tmp_path: Path) -> Iterator[Served]:
    rest_port = free_port()
    server = Server(ServerConfig(
        models=(ModelConfig(name="writer", base_path=str(exported)),), port=0, poll_s=0.0,
        warmup=False, golden_replay=False, socket_path=str(tmp_path / "grpc"), rest_port=rest_port,
        rest_timeout_s=None,
        decode=DecodeConfig(slots=CALLERS, engine=request.param)))
    server.start()
    with Client(f"unix:{tmp_path / 'grpc'}", timeout_s=600) as client:
        yield Served(client, rest_port)
    server.stop(0.0)


def test_what_comes_to_its_end_is_what_each_of_a_thousand_asked_for(served: Served) -> None:
    asked = requests(ASKED, seed=4)
    with ThreadPoolExecutor(CALLERS) as pool:
        found = list(pool.map(served.ask, asked))
    # OpenAI's API says "length" of a text that was cut.
    ended = [(one, text) for one, (text, reason) in zip(asked, found) if reason == "stop" or (
        one.way == "stream" and reason == "length")]
    wrong = [number for number, (one, text) in enumerate(ended) if not one.holds(text)]
    assert not wrong
    counts = collections.Counter(one.way for one, _ in ended)
    assert all(counts[way] > 0.9 * ASKED / len(WAYS) for way in WAYS), counts
    assert len({text for _, text in ended}) > ASKED // 3
