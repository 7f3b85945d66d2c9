"""`tf-infer compare` against a server in this process that has two versions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.fakes.serving import FakeServer
from tf_infer.cli import texts
from tf_infer.cli.main import main
from tf_infer.wire import messages, methods, tensors

CLASSES = ("no", "yes")
SECRET = "a secret "


def predict(request: Any, context: grpc.ServicerContext) -> Any:
    """Say yes to texts that end in an even number; version 2 errs on every fifth, 3 on one.

    Version 4 has no scores, only NaN.
    """
    version = request.model_spec.version.value or 1
    if version == 9:
        context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
    numbers = [int(text.split()[-1]) for text in tensors.to_array(request.inputs["text"])]
    wrong = {1: lambda n: False, 2: lambda n: n % 5 == 0, 3: lambda n: n == 7,
             4: lambda n: n == 8}[version]
    yes = np.array([(n % 2 == 0) != wrong(n) for n in numbers])
    scores = np.stack([np.where(yes, 0.1, 0.9), np.where(yes, 0.9, 0.1)], axis=1)
    scores[:] = np.nan if version == 4 else scores
    outputs = {"label": np.array([CLASSES[int(one)].encode() for one in yes], object),
               "score": scores.max(axis=1).astype(np.float32),
               "scores": scores.astype(np.float32),
               "classes": np.array([name.encode() for name in CLASSES], object)}
    return messages.predict_response_bytes(request.model_spec.name, version, "serving_default",
                                           outputs)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer({methods.PREDICT: predict}) as server:
        yield server


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    rows = [{"text": f"{SECRET}{n}", "label": CLASSES[n % 2 == 0]} for n in range(100)]
    found = {"labelled": rows, "bare": [{"text": row["text"]} for row in rows],
             "mixed": [row if n < 40 else {"text": row["text"]} for n, row in enumerate(rows)]}
    for name, content in found.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    return {name: str(tmp_path / f"{name}.jsonl") for name in found}


def compare(server: FakeServer, texts: str, *words: str) -> int:
    return main(["compare", "--address", server.address, "--model", "m", "--texts", texts, *words])


def versions(first: int, second: int) -> list[str]:
    return ["--model-version", str(first), "--model-version", str(second)]


def test_a_worse_version_may_not_take_over(
        server: FakeServer, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(server, files["labelled"], *versions(1, 2)) == 1
    shown = capsys.readouterr().out
    assert "100 texts, 80.00 % with the same label, 20 with another" in shown
    assert "accuracy 100.00 % and 80.00 %: -20.00 points" in shown
    assert "row 1: yes (0.900) -> no (0.900), right: first" in shown
    assert "   10  yes -> no" in shown
    assert "and 10 more: --json tells all" in shown
    assert re.search(r"^the second may not take over: its accuracy may be 2\d\.\d\d points lower, "
                     r"0\.5 are allowed \(--max-drop\)$", shown, re.M)
    assert SECRET not in shown


def test_a_better_version_may_take_over(
        server: FakeServer, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(server, files["labelled"], *versions(2, 1), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["difference"], told["passed"], told["reason"]) == (0.2, True, "")
    assert told["interval"][0] > 0.1
    assert told["p_value"] == pytest.approx(2 * 0.5**20)
    assert len(told["flips"]) == 20
    assert told["calibration"][1]["error"] == pytest.approx(0.1, abs=1e-6)
    # It was always right: as if 101 of 102 were.
    assert told["calibration"][1]["temperature"] == pytest.approx(np.log(9) / np.log(101), rel=1e-3)
    assert told["calibration"][1]["bounded"].startswith("all 100 decisions are right")
    assert told["calibration"][0]["bounded"] == ""
    assert told["labelled"] == 100


def test_one_flip_is_within_a_bound_that_allows_it(
        server: FakeServer, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(server, files["labelled"], *versions(1, 3), "--max-drop", "0.5") == 1
    assert compare(server, files["labelled"], *versions(1, 3), "--max-drop", "5") == 0
    assert "may take over" in capsys.readouterr().out


def test_without_labels_the_agreement_decides(
        server: FakeServer, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(server, files["bare"], *versions(1, 3)) == 0
    assert compare(server, files["bare"], *versions(1, 3), "--min-agreement", "0.995") == 1
    shown = capsys.readouterr().out
    assert "accuracy" not in shown
    assert "take over: 99.00 % have the same label, 99.5 % are asked for (--min-agree" in shown


def test_of_plain_text_each_line_is_a_text(
        server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "day.txt"
    path.write_text("".join(f"{SECRET}{n}\n\n" for n in range(100)))
    assert compare(server, str(path), *versions(1, 3)) == 0
    assert "100 texts, 99.00 % with the same label, 1 with another" in capsys.readouterr().out
    path.write_text("\n  \n")
    assert compare(server, str(path), *versions(1, 3)) == 1
    assert "day.txt: expected at least one text, got none" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_lines_end_as_they_do_for_a_bench(tmp_path: Path, end: str) -> None:
    path = tmp_path / "day.txt"
    path.write_bytes(f"one{end}{end} two {end}three\u2028four".encode())
    found = texts.examples(path)
    assert [one.text for one in found] == ["one", " two ", "three\u2028four"]
    assert [one.place for one in found] == ["day.txt:1", "day.txt:3", "day.txt:4"]
    assert [one.text for one in found] == [
        line for line in texts.read_texts(str(path), option="--texts") if line]


def test_of_partly_labelled_texts_accuracy_is_of_those_and_agreement_of_all(
        server: FakeServer, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(server, files["mixed"], *versions(1, 2)) == 1
    shown = capsys.readouterr().out
    assert "100 texts, 80.00 % with the same label, 20 with another" in shown
    assert "40 of the texts are labelled, of which:\naccuracy 100.00 % and 80.00 %" in shown
    assert "row 36: no (0.900) -> yes (0.900), right: first" in shown
    assert compare(server, files["mixed"], *versions(1, 2), "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["labelled"], told["agreement"]) == (100, 40, 0.8)
    assert [flip["right"] for flip in told["flips"]] == 8 * ["first"] + 12 * [""]
    assert sum(rows for rows, _, _ in told["calibration"][0]["bins"]) == 40


def test_a_score_that_is_no_number_is_null_in_JSON(
        server: FakeServer, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    compare(server, files["bare"], *versions(1, 4), "--json")
    told = capsys.readouterr().out
    (flip,) = json.loads(told, parse_constant=lambda word: word)["flips"]
    assert (flip["row"], flip["scores"][1]) == (8, None)
    assert flip["scores"][0] == pytest.approx(0.9)


def test_two_servers_are_asked_in_turns_and_each_about_every_text(
        server: FakeServer, files: dict[str, str]) -> None:
    with FakeServer({methods.PREDICT: predict}) as other:
        server.requests.clear()
        assert compare(server, files["bare"], "--address", other.address, "--rows", "30") == 0
        for one in (server, other):
            asked = [text for _, request, _ in one.requests
                     for text in request.inputs["text"].string_val]
            assert asked == [f"{SECRET}{n}".encode() for n in range(100)]


@pytest.mark.parametrize(("words", "message"), [
    ([], "--address: expected two servers, models, versions or labels"),
    (versions(1, 1), "--address: expected two servers"),
    ([*versions(1, 2), "--model-version", "3"], "--model-version: expected one or two, got 3"),
    ([*versions(1, 2), "--rows", "0"], "--rows: expected at least 1, got 0"),
    (versions(1, 9), "NOT_FOUND: no such version"),
    ([*versions(1, 2), "--texts", "/nowhere.jsonl"], "/nowhere.jsonl: cannot be read"),
])
def test_what_cannot_be_done_is_told(
        server: FakeServer, files: dict[str, str], capsys: pytest.CaptureFixture[str],
        words: list[str], message: str) -> None:
    assert compare(server, files["bare"], *words) == 1
    assert message in capsys.readouterr().err
