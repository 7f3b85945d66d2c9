"""`tf-infer predict` against a server in this process."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from tests.fakes.serving import FakeServer, echo
from tf_infer.cli.main import main
from tf_infer.wire import messages, methods
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire.messages import ModelRef

ROWS = "tensor_shape { dim { size: -1 } }"
MODELS = {name: text_format.Parse(text.replace("ROWS", ROWS), pb.SignatureDefMap()).signature_def
          for name, text in {
    "intents": """signature_def { key: "serving_default" value {
        inputs { key: "text" value { dtype: DT_STRING ROWS } }
        outputs { key: "label" value { dtype: DT_STRING ROWS } }
        outputs { key: "score" value { dtype: DT_FLOAT ROWS } } } }
      signature_def { key: "encode" value {
        inputs { key: "text" value { dtype: DT_STRING ROWS } }
        outputs { key: "ids" value { dtype: DT_INT32 ROWS } } } }""",
    "pairs": """signature_def { key: "serving_default" value {
        inputs { key: "text" value { dtype: DT_STRING ROWS } }
        inputs { key: "text_pair" value { dtype: DT_STRING ROWS } }
        outputs { key: "label" value { dtype: DT_STRING ROWS } }
        outputs { key: "score" value { dtype: DT_FLOAT ROWS } } } }""",
    "writer": """signature_def { key: "serving_default" value {
        inputs { key: "prompt" value { dtype: DT_STRING ROWS } }
        outputs { key: "text" value { dtype: DT_STRING ROWS } } } }
      signature_def { key: "generate" value {
        inputs { key: "prompt" value { dtype: DT_STRING ROWS } }
        inputs { key: "seed" value { dtype: DT_INT64 ROWS } }
        outputs { key: "text" value { dtype: DT_STRING ROWS } } } }""",
    "numbers": """signature_def { key: "serving_default" value {
        inputs { key: "x" value { dtype: DT_DOUBLE ROWS } }
        outputs { key: "x" value { dtype: DT_DOUBLE ROWS } } } }""",
    "waves": """signature_def { key: "serving_default" value {
        inputs { key: "x" value { dtype: DT_COMPLEX64 ROWS } }
        outputs { key: "x" value { dtype: DT_COMPLEX64 ROWS } } } }"""}.items()}


def predict(request: Any, context: Any) -> Any:
    name = request.model_spec.name
    inputs = {key: messages.tensors.to_array(request.inputs[key]) for key in request.inputs}
    if name in ("intents", "pairs") and request.model_spec.signature_name == "serving_default":
        rows = len(inputs["text"])
        labels = np.array([f"len{len(text)}" for text in inputs["text"]], dtype=object)
        return messages.predict_response_bytes(name, 1, "", {
            "label": labels, "score": np.full(rows, 0.5, np.float32),
            "scores": np.tile(np.float32([0.5, 0.25]), (rows, 1)),
            "classes": np.tile(np.array(["a", "b"], dtype=object), (rows, 1))})
    if name == "writer":
        return messages.predict_response_bytes(name, 1, "", {"text": np.array(
            [text + b"!" for text in inputs["prompt"]], dtype=object)})
    return echo(request, context)


def metadata(request: Any, context: Any) -> Any:
    name = request.model_spec.name
    return messages.metadata_response(ModelRef(name, version=1), MODELS[name])


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeServer]:
    with FakeServer({methods.PREDICT: predict, methods.GET_MODEL_METADATA: metadata}) as server:
        yield server


@pytest.fixture
def server(shared: FakeServer) -> FakeServer:
    shared.requests.clear()
    return shared


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_texts_get_labels(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "intents", "ab", "--address", server.address, "naïve"]) == 0
    assert lines(capsys) == ["len2\t0.500\ta 0.500  b 0.250", "len6\t0.500\ta 0.500  b 0.250"]


def test_lines_of_a_file_are_sent_in_groups(
        server: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "texts"
    path.write_text("a\nbb\r\n\n你好\n", encoding="utf-8")
    assert main(["predict", "intents", "--file", str(path), "--rows", "3", "--json",
                 "--address", server.address]) == 0
    found = [json.loads(line) for line in lines(capsys)]
    assert [one["label"] for one in found] == ["len1", "len2", "len0", "len6"]
    assert found[0]["scores"] == {"a": 0.5, "b": 0.25}
    assert [name for name, _, _ in server.requests].count("Predict") == 2


def test_standard_input_is_read(server: FakeServer, capsys: pytest.CaptureFixture[str],
                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    assert main(["predict", "writer", "--address", server.address]) == 0
    assert lines(capsys) == ["one!", "two!"]


def test_options_of_a_decoder_are_sent(server: FakeServer, capsys: pytest.CaptureFixture[str]
                                       ) -> None:
    assert main(["predict", "writer", "x", "--seed", "5", "--json",
                 "--address", server.address]) == 0
    assert json.loads(lines(capsys)[0])["text"] == "x!"
    sent = server.requests[-1][1]
    assert sent.model_spec.signature_name == "generate"
    assert messages.tensors.to_array(sent.inputs["seed"]).tolist() == [5]


def test_options_that_are_texts_and_lists_are_sent_where_the_model_has_them(
        server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    # This model has no such options: the client says so, by the name of each.
    assert main(["predict", "writer", "x", "--stop", "a", "--min-p", "0.1", "--banned", "b",
                 "--address", server.address]) == 1
    assert "got ['banned', 'min_p', 'stop']" in capsys.readouterr().err
    assert main(["predict", "intents", "x", "--forced-prefix", "a", "--n", "2",
                 "--address", server.address]) == 1
    assert "['forced_prefix', 'n']: expected a decoder" in capsys.readouterr().err
    assert main(["predict", "writer", "x", "--n", "2", "--stream",
                 "--address", server.address]) == 1
    assert "--n: expected none beside --stream" in capsys.readouterr().err


def test_pairs_are_sent(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "pairs", "a", "b", "--pair", "c", "--pair", "d",
                 "--address", server.address]) == 0
    assert list(server.requests[-1][1].inputs["text_pair"].string_val) == [b"c", b"d"]


def test_another_signature_is_asked_by_its_one_text_input(
        server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "intents", "ab", "--signature", "encode",
                 "--address", server.address]) == 0
    assert lines(capsys) == ["text: string [1]", '  ["ab"]']


def test_any_input_is_sent_as_the_signature_says(
        server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "numbers", "--input", "x=[1, 2.5]", "--json",
                 "--address", server.address]) == 0
    assert json.loads(lines(capsys)[0])["x"] == {"dtype": "float64", "shape": [2],
                                                 "values": [1.0, 2.5]}
    assert main(["predict", "numbers", "--input", "x=7", "--dtype", "x=int8",
                 "--address", server.address]) == 0
    assert lines(capsys) == ["x: int8 []", "  7"]


def test_complex_outputs_are_shown(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["predict", "waves", "--input", "x=[1, 2.5]", "--address", server.address]
    assert main([*ask, "--json"]) == 0
    assert json.loads(lines(capsys)[0])["x"] == {"dtype": "complex64", "shape": [2],
                                                 "values": [[1.0, 0.0], [2.5, 0.0]]}
    assert main(ask) == 0
    assert lines(capsys) == ["x: complex64 [2]", '  ["(1+0j)", "(2.5+0j)"]']


@pytest.mark.parametrize(("words", "message"), [
    (["intents", "secret", "--seed", "1"], "expected a decoder"),
    (["intents", "secret", "--signature", "nope"], "expected one of ['encode', 'serving_default']"),
    (["numbers", "secret"], "Give each by --input"),
    (["numbers", "--input", "secret"], "expected NAME=VALUE"),
    (["numbers", "--input", "x=secret"], "expected values for float64"),
    (["numbers", "--input", "x=1", "secret"], "no TEXT and no --file"),
    (["intents", "--file", "/nowhere"], "cannot be read: No such file"),
    (["intents", "secret", "--rows", "0"], "--rows: expected at least 1"),
    (["writer", "secret", "--regex", "secret"], "--regex, --json-schema: expected --stream"),
    (["writer", "secret", "--regex", ""], "--regex, --json-schema: expected --stream"),
    (["writer", "secret", "--choice", "secret"], "got ['choices']"),
    (["intents", "secret", "--pair", "a", "--pair", "b"], "--pair: expected 1"),
    (["intents", "secret", "--model-version", "-1"], "ModelRef.version"),
    (["intents", "secret", "--ca", "/nowhere"], "tls.ca: /nowhere cannot be read"),
    (["intents", "secret", "--token-file", "/nowhere"], "--token-file: /nowhere"),
    (["intents", "secret", "--timeout", "0"], "timeout_s: expected seconds > 0")])
def test_a_mistake_is_named_without_the_text(
        server: FakeServer, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["predict", *words, "--address", server.address]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "secret" not in error


def test_a_token_is_not_sent_in_plaintext(server: FakeServer, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "token"
    path.write_text("abc\n")
    words = ["predict", "intents", "x", "--address", server.address, "--token-file", str(path)]
    assert main(words) == 1
    assert "expected TLS under a token" in capsys.readouterr().err
    assert main([*words, "--allow-plaintext-token"]) == 0
    assert server.requests[-1][2]["authorization"] == "Bearer abc"


def test_files_that_are_not_text_or_empty_are_refused(
        server: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for content, message in ((b"secret \xff\n", "expected UTF-8"), (b"", "at least one line")):
        (tmp_path / "f").write_bytes(content)
        assert main(["predict", "intents", "--file", str(tmp_path / "f"),
                     "--address", server.address]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "secret" not in error


def test_a_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "m", "x", "--address", "localhost:1", "--timeout", "1"]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err
