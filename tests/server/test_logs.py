"""Log lines: their form, what never stands in them, and that nobody waits for them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.server.serverkit import call, make_versions, predict_request, running
from tf_infer.errors import InvalidRequest
from tf_infer.server import logs
from tf_infer.server.config import ModelConfig
from tf_infer.server.fakes import load_echo
from tf_infer.server.logs import Writer, event
from tf_infer.wire import methods, serving_pb2

SECRET = "Hushed-Words"
HOSTILE = f'{SECRET}"}}\n2026-01-01 FORGED line=1\r\x1b[31m\x00 é \u2028 %s %n {{}}'


@contextlib.contextmanager
def logging_to(fd: int, form: str, *, verbose: bool = True) -> Iterator[Writer]:
    logger = logging.getLogger("tf_infer")
    level = logger.level
    writer = logs.configure(form, verbose=verbose, fd=fd)
    try:
        yield writer
    finally:
        logger.removeHandler(writer)
        logger.setLevel(level)
        writer.close()


@contextlib.contextmanager
def logged(path: Path, form: str, *, verbose: bool = True) -> Iterator[list[str]]:
    """Log into a file; its lines are in the list at the end."""
    lines: list[str] = []
    with open(path, "wb") as file:
        with logging_to(file.fileno(), form, verbose=verbose):
            yield lines
        lines += path.read_text(encoding="utf-8").split("\n")[:-1]


# ---------------------------------------------------------------------- form

def test_a_text_line_has_time_level_event_and_fields(tmp_path: Path) -> None:
    with logged(tmp_path / "log", "text") as lines:
        event("state", model="m", version=3, ms=1.25, nothing=None, path="/a/b", say="two words")
    assert len(lines) == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO state model=m version=3 ms=1.25"
                        r' path=/a/b say="two words"', lines[0])


def test_a_json_line_has_ts_level_event_and_fields(tmp_path: Path) -> None:
    before = time.time()
    with logged(tmp_path / "log", "json") as lines:
        event("state", logging.WARNING, model='a "b"\n', version=3, ms=1.25, nothing=None)
    (line,) = lines
    found = json.loads(line)
    when = found.pop("ts")
    assert found == {"level": "WARNING", "event": "state", "model": 'a "b"\n', "version": 3,
                     "ms": 1.25}
    assert list(json.loads(line))[:3] == ["ts", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", when)
    assert abs(time.mktime(time.strptime(when[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
               - before) < 60


@pytest.mark.parametrize("form", logs.FORMATS)
def test_every_record_is_one_line_whatever_is_in_it(form: str, tmp_path: Path) -> None:
    with logged(tmp_path / "log", form) as lines:
        logging.getLogger("tf_infer.somewhere").info("of old: %s", "a\nb\r\nc\u2028d")
        event("state", model="a\nb", path="c\rd")
    assert len(lines) == 2
    assert not any(character in "".join(lines) for character in "\r\u2028")
    if form == "json":
        assert json.loads(lines[0])["event"] == "log"
        assert json.loads(lines[0])["message"] == "of old: a\nb\r\nc\u2028d"


@pytest.mark.parametrize("form", logs.FORMATS)
def test_of_an_exception_type_and_place_are_told_and_not_the_text(
        form: str, tmp_path: Path) -> None:
    def fails() -> None:
        raise KeyError(SECRET)

    with logged(tmp_path / "log", form) as lines:
        try:
            fails()
        except KeyError:
            logging.getLogger("tf_infer.server").exception("start failed")
    (line,) = lines
    assert "KeyError" in line
    assert re.search(r"fails:\d+ < ", line)
    assert SECRET not in line


@pytest.mark.parametrize("verbose", [True, False])
def test_calls_are_logged_only_when_asked_for(verbose: bool, tmp_path: Path) -> None:
    with logged(tmp_path / "log", "json", verbose=verbose) as lines:
        event("request", logging.DEBUG, method="Predict")
        event("state", model="m")
    assert len(lines) == 1 + verbose


def test_another_format_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="--log_format: expected one of text, json"):
        logs.configure("yaml")


@pytest.mark.parametrize(("text", "kept"), [
    ("0af7651916cd43dd8448eb211c80319c", True), ("f81d4fae-7dec-11d0-a765-00a0c91e6bf6", True),
    ("", False), ("abc", False), (None, False), ("please help me", False), ("f" * 65, False),
    ("deadbeef\n", False), ("hello-world", False)])
def test_a_request_id_is_logged_when_it_can_hold_no_text(text: str | None, kept: bool) -> None:
    assert logs.request_id(text) == (text if kept else None)


# ---------------------------------------------------------------------- a server's lines

@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelConfig, ...]:
    base = make_versions(tmp_path_factory.mktemp("models"), "1")
    return (ModelConfig(name="m", base_path=str(base)),)


def test_a_call_is_one_json_line_with_numbers_and_names_of_ours(
        models: tuple[ModelConfig, ...], tmp_path: Path) -> None:
    with logged(tmp_path / "log", "json") as lines, running(models, load_echo) as (_, channel):
        call(channel, methods.PREDICT, predict_request(text=["a", "b"]),
             metadata=(("x-request-id", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),))
    found = [json.loads(line) for line in lines]
    (request,) = [line for line in found if line["event"] == "request"]
    request.pop("ts")
    milliseconds = request.pop("ms")
    assert 0 < milliseconds < 60_000
    assert request == {
        "level": "DEBUG", "event": "request", "method": "Predict", "code": "OK", "model": "m",
        "version": 1, "signature": "serving_default", "rows": 2,
        "bytes": len(predict_request(text=["a", "b"]).SerializeToString()),
        "request_id": "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"}
    states = [line["state"] for line in found if line["event"] == "state"]
    assert states[:2] == ["LOADING", "AVAILABLE"]
    assert [line["event"] for line in found if line["event"] in ("serving", "stopped")] == [
        "serving", "stopped"]


def hostile_requests() -> Iterator[tuple[methods.Method, Any]]:
    """Give requests with a secret text wherever one fits."""
    for model, signature, name in (("m", "", "text"), (HOSTILE, "", "text"), ("m", HOSTILE, "text"),
                                   ("m", "", HOSTILE)):
        yield methods.PREDICT, predict_request(model, signature, **{name: [HOSTILE]})
    labelled = predict_request(text=[HOSTILE])
    labelled.model_spec.version_label = HOSTILE
    yield methods.PREDICT, labelled
    filtered = predict_request(text=[HOSTILE])
    filtered.output_filter.append(HOSTILE)
    yield methods.PREDICT, filtered
    broken = predict_request(text=[HOSTILE])
    broken.inputs["text"].tensor_shape.dim[0].size = 7
    yield methods.PREDICT, broken
    for method in (methods.CLASSIFY, methods.REGRESS):
        for signature in ("", HOSTILE):
            request = method.request()
            request.model_spec.name, request.model_spec.signature_name = "m", signature
            example = request.input.example_list.examples.add()
            example.features.feature[HOSTILE].bytes_list.value.append(HOSTILE.encode())
            yield method, request
    multi = serving_pb2.MultiInferenceRequest()
    task = multi.tasks.add(method_name=HOSTILE)
    task.model_spec.name, task.model_spec.signature_name = HOSTILE, HOSTILE
    yield methods.MULTI_INFERENCE, multi
    metadata = serving_pb2.GetModelMetadataRequest(metadata_field=[HOSTILE])
    metadata.model_spec.name = HOSTILE
    yield methods.GET_MODEL_METADATA, metadata
    status = serving_pb2.GetModelStatusRequest()
    status.model_spec.name = HOSTILE
    yield methods.GET_MODEL_STATUS, status
    yield methods.RELOAD_CONFIG, serving_pb2.ReloadConfigRequest(metric_names=[HOSTILE])


@pytest.mark.parametrize("form", logs.FORMATS)
def test_no_text_of_a_request_stands_in_a_log_line(
        form: str, models: tuple[ModelConfig, ...], tmp_path: Path) -> None:
    sent = 0
    with logged(tmp_path / "log", form) as lines, running(models, load_echo) as (_, channel):
        for method, request in hostile_requests():
            sent += 1
            with contextlib.suppress(grpc.RpcError):
                call(channel, method, request, metadata=(
                    ("x-request-id", SECRET), (SECRET.lower(), SECRET), ("user-agent", SECRET)))
        for method in (methods.PREDICT, methods.CLASSIFY):
            sent += 1
            with contextlib.suppress(grpc.RpcError):
                channel.unary_unary(method.path)(b"\xff" + HOSTILE.encode(), timeout=10)
    text = "\n".join(lines)
    assert SECRET not in text
    assert "FORGED" not in text
    requests = [line for line in lines if "request" in line]
    assert len(requests) == sent == 17
    assert sum("OK" in line for line in requests) >= 1


# ---------------------------------------------------------------------- nobody waits

def test_a_full_disk_loses_lines_and_says_so_when_it_is_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with logging_to(fd, "json") as writer:
            for number in range(5):
                event("state", version=number)
            writer.flush()
            file = os.open(path, os.O_WRONLY | os.O_CREAT)
            os.dup2(file, fd)
            os.close(file)
            event("state", version=5)
            event("state", version=6)
    finally:
        os.close(fd)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["event"], line.get("count"), line.get("version")) for line in found] == [
        ("log_lines_lost", 5, None), ("state", None, 5), ("state", None, 6)]


def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    reader, fd = os.pipe()
    writer = Writer(fd, most=100)
    writer.setFormatter(logs.JsonFormatter())
    record = logging.LogRecord(logs.LOGGER, logging.INFO, "", 0, "x" * 10_000, None, None)
    try:
        started = time.monotonic()
        for _ in range(1000):
            writer.handle(record)
        assert time.monotonic() - started < 60
        started = time.monotonic()
        writer.flush()  # gives up
        assert 0.9 * logs.FLUSH_S < time.monotonic() - started < 30 * logs.FLUSH_S
        text: list[bytes] = []

        def read() -> None:
            while b'"last"' not in b"".join(text[-2:]):
                text.append(os.read(reader, 65536))

        thread = threading.Thread(target=read)
        thread.start()
        writer.flush()
        writer.handle(logging.LogRecord(logs.LOGGER, logging.INFO, "", 0, "last", None, None))
        thread.join(10)
        lines = [json.loads(line) for line in b"".join(text).decode().splitlines()]
    finally:
        writer.close()
        os.close(fd)
        os.close(reader)
    lost = sum(line["count"] for line in lines if line["event"] == "log_lines_lost")
    whole = sum(line["event"] == "log" for line in lines)
    assert 800 < lost < 1000
    assert whole == 1000 - lost + 1


def test_after_a_torn_line_the_next_begins_on_its_own(tmp_path: Path) -> None:
    reader, fd = os.pipe()
    os.set_blocking(fd, False)
    writer = Writer(fd)
    writer.setFormatter(logging.Formatter("%(message)s"))
    try:
        def say(text: str) -> None:
            writer.handle(logging.LogRecord(logs.LOGGER, logging.INFO, "", 0, text, None, None))
            writer.flush()

        say("x" * 200_000)  # a pipe holds 65,536 bytes
        held = b""
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                held += os.read(reader, 1 << 20)
        assert set(held) == {ord("x")}
        say("next")
        lines = os.read(reader, 1 << 20).decode().split("\n")
    finally:
        writer.close()
        os.close(fd)
        os.close(reader)
    assert lines[0] == ""
    assert lines[-2:] == ["next", ""]


def test_lines_of_many_threads_are_whole_and_all_there(tmp_path: Path) -> None:
    with logged(tmp_path / "log", "json") as lines:
        def work(number: int) -> None:
            for step in range(200):
                event("state", thread=number, step=step)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = [json.loads(line) for line in lines]
    assert len(found) == 1600
    for number in range(8):
        assert [line["step"] for line in found if line["thread"] == number] == list(range(200))


def test_what_comes_after_the_end_is_dropped(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as file, logging_to(file.fileno(), "text") as writer:
        event("state", version=1)
        writer.close()
        event("state", version=2)
    assert "version=1" in (tmp_path / "log").read_text()
    assert "version=2" not in (tmp_path / "log").read_text()


def test_a_value_that_cannot_be_shown_does_not_stop_the_caller(tmp_path: Path) -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no")

    with open(tmp_path / "log", "wb") as file, logging_to(file.fileno(), "json") as writer:
        for value in (Odd(), 1):
            record = logging.LogRecord(logs.LOGGER, logging.INFO, "", 0, "", None, None)
            record.__dict__.update(event="state", fields={"value": value})
            writer.handle(record)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["log_lines_lost", "state"]
