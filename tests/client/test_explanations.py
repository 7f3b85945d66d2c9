"""Explanations: from byte offsets to characters, the picture, and both clients, without a model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.fakes.serving import FakeServer
from tf_infer import AsyncClient, Client
from tf_infer.cli.main import main
from tf_infer.client.explanations import explanation
from tf_infer.errors import ConfigError, ServerFailure
from tf_infer.server.fakes import signature
from tf_infer.wire import messages, methods, tensors
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire.messages import ModelRef


def outputs(texts: list[bytes], targets: list[bytes]) -> dict[str, np.ndarray]:
    """Return what a model would tell that cuts texts into words and likes long ones."""
    words = []
    for text in texts:
        place, row = 0, []
        for word in text.split(b" "):
            row.append((place, place + len(word)))
            place += len(word) + 1
        words.append([(0, 0), *row])
    width = max(map(len, words)) + 1
    starts, ends, mask = (np.zeros((len(texts), width), np.int32) for _ in range(3))
    for number, row in enumerate(words):
        starts[number, :len(row)], ends[number, :len(row)] = zip(*row)
        mask[number, :len(row)] = 1
    value = (ends - starts).astype(np.float32) * np.float32(0.5) - np.float32(1)
    value[ends == starts] = 0.0
    return {"label": np.array([target or b"long" for target in targets], object),
            "score": value.sum(axis=1) + 1, "baseline": np.ones(len(texts), np.float32),
            "attributions": value, "left_out": value / 2, "mask": mask, "starts": starts,
            "ends": ends, "completeness_error": np.full(len(texts), 0.001, np.float32)}


def metadata(request: Any, context: grpc.ServicerContext) -> Any:
    name = request.model_spec.name
    first = "prompt" if name == "writer" else "text"
    explain = signature({first: (pb.DT_STRING, (-1,))}, {"score": (pb.DT_FLOAT, (-1,))})
    return messages.metadata_response(
        ModelRef(name, version=1), {} if name == "plain" else {"explain": explain})


def predict(request: Any, context: grpc.ServicerContext) -> Any:
    if request.model_spec.name == "writer":
        return messages.predict_response_bytes("writer", 1, "explain", token_outputs(
            *(list(tensors.to_array(request.inputs[name]))
              for name in ("prompt", "continuation", "place"))))
    told = outputs(list(tensors.to_array(request.inputs["text"])),
                   list(tensors.to_array(request.inputs["target"])))
    if request.model_spec.name == "odd":
        del told["baseline"]
    return messages.predict_response_bytes("m", 1, "explain", told)


def token_outputs(prompts: list[bytes], continuations: list[bytes], places: list[int]
                  ) -> dict[str, np.ndarray]:
    """Return what a decoder would tell whose tokens are words, the explained one in upper case."""
    whole = [b" ".join([prompt, *continuation.split()[:place]])
             for prompt, continuation, place in zip(prompts, continuations, places)]
    told = outputs(whole, [b""] * len(whole))
    told["token"] = np.array([
        b" " + (continuation.split() or [b"next"])[place].upper()
        for continuation, place in zip(continuations, places)], object)
    told["id"] = np.array(places, np.int32) + 7
    del told["label"]
    return told


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer({methods.PREDICT: predict, methods.GET_MODEL_METADATA: metadata}) as server:
        yield server


def test_offsets_become_characters_and_values_stay(server: FakeServer) -> None:
    text = "süß 中文字 a"
    with Client(server.address) as client:
        found, other = client.explain("m", [text, "b"], target=["", "x"])
    assert [(token.text, token.start, token.end) for token in found.tokens] == [
        ("süß", 0, 3), ("中文字", 4, 7), ("a", 8, 9)]
    assert [text[token.start:token.end] for token in found.tokens] == text.split()
    assert [token.value for token in found.tokens] == [1.5, 3.5, -0.5]
    assert (found.label, other.label) == ("long", "x")
    assert found.top(1)[0].text == "中文字"
    assert sum(token.value for token in found.tokens) == found.score - found.baseline
    assert found.texts == (text,)


def test_both_clients_ask_the_same(server: FakeServer) -> None:
    async def asked() -> Any:
        async with AsyncClient(server.address) as client:
            return await client.explain("m", ["one two"], target="t")

    with Client(server.address) as client:
        assert asyncio.run(asked()) == client.explain("m", ["one two"], target="t")


def test_the_picture_shows_every_character_once_and_runs_nothing() -> None:
    text = "<script>alert(1)</script> & süß"
    found = explanation(outputs([text.encode()], [b"<b>"]), 0, [text.encode()])
    page = found.to_html()
    assert "<script>" not in page and "<b>&lt;b&gt;</b>" in page
    assert page.count("<span title=") == 3
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "rgba(33,102,172,1.00)" in page  # the strongest
    assert found._repr_html_() == page
    empty = explanation(outputs([b""], [b""]), 0, [b""])
    assert empty.tokens == () and "long" in empty.to_html()


def test_a_pair_has_two_texts_and_half_a_character_is_no_fault() -> None:
    told = outputs([b"ab"], [b""]) | {"segments": np.array([[0, 0, 1, 0]], np.int32)}
    told["starts"] = np.array([[0, 0, 1, 0]], np.int32)
    told["ends"] = np.array([[0, 2, 2, 0]], np.int32)
    told["mask"] = np.array([[1, 1, 1, 0]], np.int32)
    found = explanation(told, 0, [b"ab", "ü".encode()])
    assert [(token.text, token.segment) for token in found.tokens] == [("ab", 0), ("\ufffd", 1)]
    assert "ab\u2003|\u2003" in found.to_html().replace("</span>", "")


def test_what_cannot_be_is_told(server: FakeServer) -> None:
    with Client(server.address) as client:
        with pytest.raises(ConfigError, match="expected 2, one for each text"):
            client.explain("m", ["a", "b"], target=["x"])
        with pytest.raises(ConfigError, match="expected 1, one for each text"):
            client.explain("m", ["a"], text_pairs=["a", "b"])
        with pytest.raises(ServerFailure, match="'baseline'"):
            client.explain("odd", ["a"])


def test_the_command_shows_values_and_writes_a_page(
        server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "why.html"
    words = ["explain", "m", "parcel & is\x07 late", "b", "--address", server.address]
    assert main([*words, "--html", str(page)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("long: logit ")
    assert shown[1].split() == ["parcel", "+2.000", "(left", "out", "+1.000)", "+" * 24]
    assert "is\u00b7" in shown[3]
    written = page.read_text(encoding="utf-8")
    assert "parcel" in written and "&amp;" in written
    assert main([*words, "--json", "--target", "t"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["label"] for one in told] == ["t", "t"]
    assert main(["explain", "plain", "a", "--address", server.address]) == 1
    assert "expected a signature 'explain', got none" in capsys.readouterr().err
    assert main([*words, "--html", "/nowhere/x.html"]) == 1
    assert "--html: expected a file in a folder" in capsys.readouterr().err


def test_a_token_of_a_decoder_is_explained_by_the_tokens_before_it(server: FakeServer) -> None:
    async def asked() -> Any:
        async with AsyncClient(server.address) as client:
            return await client.explain_token("writer", ["süß is", "b"],
                                              continuations=[" the cake", " x y"], place=[1, 0])

    first, second = asyncio.run(asked())
    assert (first.label, first.id, first.unit) == (" CAKE", 8, "log-probability")
    assert [token.text for token in first.tokens] == ["süß", "is", "the"]
    assert first.texts == ("süß is the cake",)
    assert second.label == " X"
    assert '<b>&quot; CAKE&quot;</b> <small>log-probability' in first.to_html()
    with Client(server.address) as client:
        assert client.explain_token("writer", ["süß is", "b"], place=[1, 0], continuations=[
            " the cake", " x y"]) == [first, second]
        alone, = client.explain_token("writer", ["a"])
        assert alone.label == " NEXT" and alone.texts == ("a",)
        with pytest.raises(ConfigError, match="continuations, place: expected 2, one for each"):
            client.explain_token("writer", ["a", "b"], place=[1])


def test_the_command_asks_a_decoder_as_one(
        server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explain", "writer", "one two", "--address", server.address]
    assert main([*words, "--continuation", "three four", "--place", "1"]) == 0
    assert capsys.readouterr().out.startswith('" FOUR": log-probability ')
    assert main(words) == 0
    assert '" NEXT"' in capsys.readouterr().out
    assert main([*words, "--target", "x"]) == 1
    assert "--target: expected a classifier, got writer" in capsys.readouterr().err
    assert main(["explain", "m", "a", "--address", server.address, "--place", "1"]) == 1
    assert "--place: expected a decoder, got m" in capsys.readouterr().err
