"""A decoder with its chat template, exported and served: all protocols say what `generate` says."""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.server.serverkit import free_port
from tests.tasks import small
from tf_infer.client.client import Client
from tf_infer.config import CausalLMConfig, GenerationDefaults, PackingConfig, ShapeGrid
from tf_infer.errors import InvalidRequest
from tf_infer.export import saved_model
from tf_infer.manifest import EXTRA_FOLDER, read_chat
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig, ServerConfig
from tf_infer.tasks import build
from tf_infer.tasks.base import Signature
from tf_infer.tasks.causal_lm import CausalLM
from tf_infer.token_bytes import TOKENS_FILE

pytestmark = pytest.mark.slow  # a decoder is exported and warms up: a minute

SERVED = ("serving_default", "generate", "encode", "decode", "steps", "choose")
PROMPTS = ("Once upon", "Grüße, 你", "")
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
CONFIG = CausalLMConfig(
    network=dataclasses.replace(small.NETWORK, max_positions=56), grid=ShapeGrid(
        rows=(1,), tokens=(8, 32)), capacity=24, end_ids=(2,),
    packing=PackingConfig(max_tokens=32, end=False, truncation="left"),
    defaults=GenerationDefaults(max_new_tokens=24))


class Served(CausalLM):
    """A decoder with the signatures that matter here: each takes seconds to write."""

    def signatures(self) -> Mapping[str, Signature]:
        return {name: one for name, one in super().signatures().items() if name in SERVED}


@pytest.fixture(scope="module")
def version_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export without warm-up and golden samples, which others test."""
    tokenizer = tmp_path_factory.mktemp("model") / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "chat_template.jinja").write_text(TEMPLATE)
    (tokenizer / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    built = build.build(CONFIG, tokenizer_dir=tokenizer, seed=5)
    task = Served(built.config, built.codec, built.network, tokenizer_dir=tokenizer)
    folder = tmp_path_factory.mktemp("models") / "writer" / "1"
    saved_model.write_saved_model(task, folder)
    (folder / EXTRA_FOLDER).mkdir()
    saved_model.write_chat(task, folder)
    task.codec.token_bytes().write(folder / EXTRA_FOLDER / TOKENS_FILE)
    saved_model._write_manifest(
        saved_model._describe(task, name="writer", version=1, plan={}), folder)
    return folder


@pytest.fixture(scope="module")
def server(version_dir: Path) -> Iterator[Server]:
    config = ServerConfig(models=(ModelConfig(name="writer", base_path=str(version_dir.parent)),),
                          port=free_port(), rest_port=free_port(), host="localhost", poll_s=0)
    with Server(config) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.addresses[0], timeout_s=300) as asking:
        yield asking


def post(server: Server, target: str, body: dict[str, Any]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("localhost", server.config.rest_port, timeout=300)
    connection.request("POST", target, json.dumps({"model": "writer", **body}).encode())
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    return answer.status, read


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("options", [
    {}, {"temperature": 0.9, "seed": 7}, {"max_new_tokens": 3}, {"max_new_tokens": 0}])
def test_every_protocol_says_what_generate_says(server: Server, client: Client, prompt: str,
                                                options: dict[str, Any]) -> None:
    expected, = client.generate("writer", [prompt], **options)
    with client.stream("writer", prompt, **options) as stream:
        pieces = list(stream)
    assert stream.text == expected.text and stream.finish_reason == expected.finish_reason
    assert tuple(token.id for piece in pieces for token in piece.tokens) == expected.ids
    renamed = {"max_tokens" if name == "max_new_tokens" else name: value
               for name, value in options.items()}
    status, raw = post(server, "/v1/completions", {"prompt": prompt, **renamed})
    answer = json.loads(raw)
    assert (status, answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (
        200, expected.text, expected.finish_reason)
    assert answer["usage"]["completion_tokens"] == len(expected.ids)
    _, raw = post(server, "/v1/completions", {"prompt": prompt, "stream": True, **renamed})
    events = [json.loads(part[6:]) for part in raw.decode().split("\n\n")[:-2]]
    assert "".join(event["choices"][0]["text"] for event in events) == expected.text


def test_a_chat_is_the_prompt_that_its_template_writes(server: Server, client: Client,
                                                       version_dir: Path) -> None:
    chat = read_chat(version_dir)
    assert chat is not None and (chat.template, chat.start) == (TEMPLATE, True)
    expected, = client.generate("writer", ["[user] Hi"])
    status, raw = post(server, "/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Hi"}]})
    assert (status, json.loads(raw)["choices"][0]["message"]["content"]) == (200, expected.text)


@pytest.mark.parametrize(("options", "field"), [
    ({"max_new_tokens": -1}, "max_new_tokens"), ({"max_new_tokens": 25}, "max_new_tokens"),
    ({"temperature": float("nan")}, "temperature"), ({"temperature": -1.0}, "temperature"),
    ({"top_k": -1}, "top_k"), ({"top_p": 0.0}, "top_p"), ({"stop": [""]}, "stop")])
def test_what_cannot_be_is_refused_by_both_protocols(server: Server, client: Client,
                                                     options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        list(client.stream("writer", "secret", **options))
    if options.get("temperature") == options.get("temperature") and options != {"top_k": -1}:
        renamed = {"max_tokens" if name == "max_new_tokens" else name: value
                   for name, value in options.items()}
        status, raw = post(server, "/v1/completions", {"prompt": "secret", **renamed})
        assert status == 400 and json.loads(raw)["error"]["param"] == next(iter(renamed))
        assert b"secret" not in raw


def test_top_k_beyond_the_vocabulary_keeps_all_tokens(client: Client) -> None:
    texts = [client.stream("writer", "a", temperature=1.0, seed=3, top_k=top_k)
             for top_k in (0, 100_000)]
    assert [piece.text for piece in texts[0]] and list(texts[1])
    assert texts[0].text == texts[1].text


def test_a_prompt_longer_than_the_context_keeps_its_end(client: Client) -> None:
    long = "x" * 500 + "the end of it"
    expected, = client.generate("writer", [long])
    stream = client.stream("writer", long)
    list(stream)
    assert stream.text == expected.text and stream.usage.prompt_tokens == 32


def test_of_a_prompt_of_sixty_megabytes_all_protocols_read_the_end(
        server: Server, client: Client) -> None:
    """It is not encoded for minutes, long after its caller has gone."""
    end = "the end of it"
    long = "so it goes, " * 5_000_000 + end
    expected, = client.generate("writer", [("so it goes, " * 9 + end)])
    found, = client.generate("writer", [long])
    assert found == expected
    stream = client.stream("writer", long)
    list(stream)
    assert stream.text == expected.text
    status, raw = post(server, "/v1/completions", {"prompt": long})
    assert status == 400 and b"so it goes" not in raw
    status, raw = post(server, "/v1/completions", {"prompt": long[-5_000_000:]})
    assert (status, json.loads(raw)["choices"][0]["text"]) == (200, expected.text)
    status, raw = post(server, "/v1/models/writer:predict", {"instances": [{"prompt": long}]})
    assert status == 200  # the text is sent as it is, also where it is no UTF-8
    told = json.loads(raw.decode("utf-8", "replace"))["predictions"][0]
    assert tuple(told["ids"][:told["length"]]) == expected.ids


def test_a_prompt_that_is_not_utf8_is_read_as_generate_reads_it(client: Client) -> None:
    expected, = client.generate("writer", [b"\xff\xfea"])
    stream = client.stream("writer", b"\xff\xfea")
    list(stream)
    assert stream.text == expected.text


@pytest.mark.parametrize(("kind", "value", "told"), [
    ("regex", "secret(b", "position"), ("json_schema", '{"type": "secret"}', "type"),
    ("json_schema", '{"a": ', "JSON"), ("regex", "((secret|x){900}){900}", "repetition"),
    ("choices", ["secret"] * 1024 + ["x"], "1024")])
def test_a_constraint_that_cannot_be_tells_where(server: Server, client: Client, kind: str,
                                                 value: Any, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        list(client.stream("writer", "a", **{kind: value}))
    assert told in caught.value.details and "secret" not in caught.value.details
    name = {"regex": "guided_regex", "json_schema": "guided_json", "choices": "guided_choice"}[kind]
    status, raw = post(server, "/v1/completions", {"prompt": "a", name: value})
    assert status == 400 and told.encode() in raw and b"secret" not in raw


@pytest.mark.parametrize(("limits", "pattern"), [
    ({"choices": ["ja", "nein"]}, "ja|nein"), ({"regex": "[a-c]{2,4}x"}, "[a-c]{2,4}x")])
def test_a_text_is_what_its_constraint_says(client: Client, limits: dict[str, Any], pattern: str
                                            ) -> None:
    for seed in range(3):
        stream = client.stream("writer", "a", temperature=1.0, seed=seed, **limits)
        list(stream)
        assert re.fullmatch(pattern, stream.text) and stream.finish_reason == "stop"
