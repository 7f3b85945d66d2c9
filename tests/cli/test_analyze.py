"""`tf-infer analyze` against a server in this process; the page is read as a browser reads it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.fakes.serving import FakeServer
from tf_infer.cli.analyze import UNKNOWN
from tf_infer.cli.main import main
from tf_infer.wire import messages, methods, tensors

pytestmark = pytest.mark.skipif(  # not imported: each worker of pytest-xdist would do it
    not (importlib.util.find_spec("sklearn") and importlib.util.find_spec("jinja2")),
    reason="analyze needs the extra `report`")

CLASSES = ("cold", "warm")
HOSTILE = "<script>alert(1)</script> & \u202e\x00 ünï"
UNKNOWN_ID = 1


def predict(request: Any, context: grpc.ServicerContext) -> Any:
    """Take what has "sun" in it for warm; a word with "x" is unknown to the vocabulary."""
    texts = [text.decode() for text in tensors.to_array(request.inputs["text"])]
    name = request.model_spec.signature_name
    if name == "encode":
        if request.model_spec.name == "foreign":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such signature")
        if request.model_spec.name == "pairs":
            if "text_pair" not in request.inputs:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "text_pair: expected")
            texts = [f"{text} {other.decode()}" for text, other in zip(
                texts, tensors.to_array(request.inputs["text_pair"]))]
        rows = [text.replace("\x00", "").split() for text in texts]
        width = max(map(len, rows)) + 1
        ids, mask, ends = (np.zeros((len(rows), width), np.int32) for _ in range(3))
        for row, words in enumerate(rows):
            ids[row, :len(words) + 1] = [9, *(UNKNOWN_ID if "x" in word or word == UNKNOWN else 5
                                              for word in words)]
            mask[row, :len(words) + 1] = 1
            ends[row, 1:len(words) + 1] = 1  # the first id stands for nothing in the text
        outputs = {"ids": ids, "mask": mask, "starts": np.zeros_like(ids), "ends": ends}
    else:
        warm = np.array(["sun" in text for text in texts])
        scores = np.stack([np.where(warm, 0.2, 0.8), np.where(warm, 0.8, 0.2)], axis=1)
        scores[["nan" in text for text in texts]] = np.nan
        outputs = {"label": np.array([CLASSES[int(one)].encode() for one in warm], object),
                   "score": scores.max(axis=1), "scores": scores,
                   "classes": np.array([name.encode() for name in CLASSES], object)}
    return messages.predict_response_bytes(request.model_spec.name, 1, name, outputs)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer({methods.PREDICT: predict}) as server:
        yield server


ROWS = [("the sun is up", "warm"), ("snow x fell", "cold"), ("sun over ice", "cold"),
        (HOSTILE, "warm"), ("frost again today", "cold")]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in ROWS))
    return path


class _Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def analyze(server: FakeServer, texts: Path, *words: str, model: str = "weather") -> int:
    return main(["analyze", "--address", server.address, "--model", model, "--texts", str(texts),
                 "--output", str(texts.parent / "errors.html"), *words])


def test_the_page_tells_all_and_stands_alone(
        server: FakeServer, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = texts.parent / "train.jsonl"
    train.write_text(json.dumps({"text": "Frost again, today!", "label": "warm"}) + "\n"
                     + json.dumps({"text": "something else", "label": "cold"}))
    assert analyze(server, texts, "--train", str(train), "--json",
                   str(texts.parent / "errors.json"), "--rows", "2") == 0
    page = _Page((texts.parent / "errors.html").read_text(encoding="utf-8"))
    told = json.loads((texts.parent / "errors.json").read_text(encoding="utf-8"))
    assert told["rows"] == 5 and told["accuracy"] == pytest.approx(0.6)
    assert told["confusion"] == [[2, 1], [1, 1]]
    words = sum(len(text.replace("\x00", "").split()) for text, _ in ROWS)
    assert told["unknown_rate"] == pytest.approx(1 / words)
    assert [(one["place"], one["train_place"], one["same_labels"])
            for one in told["duplicates"]] == [("test.jsonl:5", "train.jsonl:1", False)]
    assert "script" not in page.tags  # the text is shown, not run
    assert any("<script>alert(1)</script>" in word for word in page.words)
    assert page.tags.count("img") == 3
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in page.sources)
    assert any("holds texts of the data" in word for word in page.words)
    shown = capsys.readouterr().out
    assert "60.00 % of 5 rows are right" in shown
    assert "1  cold taken for warm" in shown
    assert "1 rows are almost in the training data" in shown
    for text, _ in ROWS:
        assert text not in shown


def test_pairs_are_shown_and_counted_with_both_texts(server: FakeServer, tmp_path: Path) -> None:
    rows = [{"text": "the sun is up", "text_pair": "x marks it", "label": "cold"},
            {"text": "frost", "text_pair": "a sun x", "label": "cold"}]
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert analyze(server, path, "--json", str(tmp_path / "errors.json"), model="pairs") == 0
    told = json.loads((tmp_path / "errors.json").read_text())
    assert [one["text"] for one in told["worst"]] == ["the sun is up\nx marks it"]
    assert told["unknown_rate"] == pytest.approx(2 / 11)
    page = (tmp_path / "errors.html").read_text(encoding="utf-8")
    assert "the sun is up\nx marks it" in page


def test_what_is_not_known_is_null_in_json_and_a_gap_on_the_page(
        server: FakeServer, texts: Path) -> None:
    texts.write_text('{"text": "sun", "label": "hot"}')  # no class of the model
    path = texts.parent / "errors.json"
    assert analyze(server, texts, "--json", str(path)) == 0
    told = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    assert told["worst"][0]["truth_score"] is None
    assert "nan" not in _Page((texts.parent / "errors.html").read_text()).words


def test_a_score_that_is_no_number_is_null_in_json(server: FakeServer, texts: Path) -> None:
    rows = [("nan sun", "cold"), *ROWS, ("nan", "cold")]
    texts.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows))
    path = texts.parent / "errors.json"
    assert analyze(server, texts, "--json", str(path)) == 0
    told = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    wrong = {one["text"]: one for one in told["worst"]}
    assert (wrong["nan sun"]["score"], wrong["nan sun"]["truth_score"]) == (None, None)
    assert wrong["sun over ice"]["score"] == pytest.approx(0.8)
    assert [one["text"] for one in told["worst"]][-1] == "nan sun"  # nothing is sure of it
    assert told["rows"] == 7
    assert told["calibration_error"] == pytest.approx(0.2)  # 3 of 5 right, each sure by 0.8
    assert sum(rows for rows, _, _ in told["bins"]) == 5
    assert {one["text"] for one in told["label_errors"]} == {"sun over ice", HOSTILE}
    texts.write_text('{"text": "nan", "label": "cold"}')
    assert analyze(server, texts, "--json", str(path)) == 0
    told = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    assert told["calibration_error"] is None and told["accuracy"] == 1.0


def test_unknown_ids_of_pairs_are_counted_where_the_first_row_is_none(
        server: FakeServer, tmp_path: Path) -> None:
    rows = [{"text": "the sun is up", "label": "cold"},
            {"text": "frost", "text_pair": "a sun x", "label": "cold"}]
    path = tmp_path / "test.jsonl"
    for order, batch in ((rows, "2"), (rows, "1"), (rows[::-1], "1")):
        path.write_text("\n".join(map(json.dumps, order)))
        assert analyze(server, path, "--json", str(tmp_path / "errors.json"), "--rows", batch,
                       model="pairs") == 0
        told = json.loads((tmp_path / "errors.json").read_text())
        assert told["unknown_rate"] == pytest.approx(1 / 8)


def test_a_foreign_model_has_no_unknown_ids(server: FakeServer, texts: Path) -> None:
    path = texts.parent / "errors.json"
    assert analyze(server, texts, "--json", str(path), model="foreign") == 0
    told = json.loads(path.read_text())
    assert (told["unknown_rate"], told["duplicates"]) == (None, None)


@pytest.mark.parametrize(("content", "words", "message"), [
    ('{"text": "a"}', [], "test.jsonl:1: expected a label in every row"),
    (None, ["--rows", "0"], "--rows: expected at least 1, got 0"),
    (None, ["--worst", "0"], "--worst: expected at least 1, got 0"),
    (None, ["--json", "/nowhere/x.json"], "expected a file in a folder that exists"),
    (None, ["--train", "/nowhere.jsonl"], "/nowhere.jsonl: cannot be read"),
])
def test_what_cannot_be_done_is_told(
        server: FakeServer, texts: Path, capsys: pytest.CaptureFixture[str], content: str | None,
        words: list[str], message: str) -> None:
    if content:
        texts.write_text(content)
    assert analyze(server, texts, *words) == 1
    assert message in capsys.readouterr().err
    assert not (texts.parent / "errors.html").exists()
