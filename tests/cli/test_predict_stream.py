"""`tf-infer predict --stream` against a server in this process."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.server.generationkit import SCRIPT, TEXT, Serving, serving, until
from tf_infer.cli.main import main
from tf_infer.client.calls import row_seeds
from tf_infer.errors import ServerUnavailable
from tf_infer.server.scripted import Writer


def predict(one: Serving, *arguments: str, model: str = "writer") -> int:
    return main(["predict", model, "--stream", "--address", one.server.addresses[0], *arguments])


def test_texts_are_printed_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                               ) -> None:
    with serving(tmp_path) as one:
        assert predict(one, "Once", "Twice", "--max-new-tokens", "10", "--temperature", "0.5",
                       "--seed", "7") == 0
        asked = one.writer.requests
    assert capsys.readouterr().out == f"{TEXT}\n{TEXT}\n"
    assert [request.prompt for request in asked] == [b"Once", b"Twice"]
    assert [dict(request.options) for request in asked] == [
        {"max_new_tokens": 10, "temperature": 0.5, "seed": seed} for seed in row_seeds(7, 2)]


@pytest.mark.parametrize(("given", "kind", "value"), [
    (["--regex", "[ab]+"], "regex", "[ab]+"),
    (["--json-schema", "schema.json"], "json_schema", '{"type": "null"}'),
    (["--choice", " yes", "--choice", " no"], "choices", " yes\x1f no"),
    (["--constraint", "date"], "name", "date")])
def test_what_the_text_must_be_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       given: list[str], kind: str, value: str) -> None:
    (tmp_path / "schema.json").write_text('{"type": "null"}')
    monkeypatch.chdir(tmp_path)
    with serving(tmp_path) as one:
        assert predict(one, "Once", *given) == 0
        constraint = one.writer.requests[0].constraint
    assert constraint is not None and (constraint.kind, constraint.value) == (kind, value)


def test_pieces_are_printed_as_they_come(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    writer = Writer([b"one ", b"two"])
    writer.gate = threading.Semaphore(1)
    seen: list[str] = []

    def look() -> None:
        text, end_s = "", time.monotonic() + 30
        while "one " not in text and time.monotonic() < end_s:
            text += capfd.readouterr().out
            time.sleep(0.01)
        seen.append(text)
        assert writer.gate is not None
        writer.gate.release()

    with serving(tmp_path, writer) as one:
        looking = threading.Thread(target=look)
        looking.start()
        assert predict(one, "Once") == 0
        looking.join()
    assert seen == ["one "] and capfd.readouterr().out == "two\n"


def test_pieces_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path, Writer(SCRIPT, every_s=0.01)) as one:
        assert predict(one, "Once", "--json") == 0
    pieces = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "".join(piece["text"] for piece in pieces) == TEXT
    assert [number for piece in pieces for number in piece["ids"]] == list(range(len(SCRIPT)))
    assert pieces[-1]["finish_reason"] == "stop" and pieces[0]["finish_reason"] is None


def test_ctrl_c_ends_the_request_and_the_command(tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)
    with serving(tmp_path, writer) as one:
        def press() -> None:
            assert until(lambda: bool(writer.requests))
            time.sleep(0.3)  # some pieces come
            os.kill(os.getpid(), signal.SIGINT)

        pressed = threading.Thread(target=press)
        pressed.start()
        assert predict(one, "Once") == 130
        pressed.join()
        assert until(lambda: writer.cancelled == 1)
    out, err = capsys.readouterr()
    assert set(out.removesuffix("\n")) == {"a"} and out.endswith("\n")
    assert err == "tf-infer predict: interrupted\n"


def test_the_error_of_a_text_that_breaks_off_stands_on_a_line_of_its_own(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = Writer([b"half ", b"a"], fault=ServerUnavailable("The server is stopping."))
    with serving(tmp_path, writer) as one:
        assert predict(one, "Once") == 1
        assert predict(one, "Once", "--max-new-tokens", "-1") == 1
    out, err = capsys.readouterr()
    assert out == "half a\n"
    assert "UNAVAILABLE: The server is stopping." in err.splitlines()[0]


@pytest.mark.parametrize(("arguments", "text"), [
    (("--signature", "encode", "x"), "--stream: expected texts for a decoder"),
    (("--input", "x=1"), "--stream: expected texts"),
    (("x", "--max-new-tokens", "-1"), "max_new_tokens: expected 0 to 1000"),
    (("x", "--json-schema", "/nowhere"), "--json-schema: expected a file of UTF-8 text"),
    (("x", "--regex", "a", "--choice", "b"), "constraint: expected one of"),
])
def test_what_cannot_be_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                arguments: tuple[str, ...], text: str) -> None:
    with serving(tmp_path) as one:
        assert predict(one, *arguments) != 0
    assert text in capsys.readouterr().err


def test_a_model_that_does_not_generate_is_said(tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path) as one:
        assert predict(one, "x", model="echo") != 0
    assert "decoder" in capsys.readouterr().err
