"""GenerationService over gRPC: scripted generators, real calls."""

from __future__ import annotations

import logging
import math
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.server.generationkit import SCRIPT, TEXT, serving, threads_named, until
from tf_infer.errors import Overloaded, ServerFailure
from tf_infer.server import replies
from tf_infer.server.generation import Constraint
from tf_infer.server.scripted import Writer
from tf_infer.server.streams import MAX_WAITING_BYTES
from tf_infer.wire import generation_pb2 as pb


def failed(call: Any) -> tuple[str, str]:
    """Return code and text of a call that ends with an error."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    return caught.value.code().name, caught.value.details()


def test_pieces_joined_are_the_answer_and_none_cuts_a_character(tmp_path: Path) -> None:
    with serving(tmp_path, Writer(SCRIPT, every_s=0.01)) as one:
        pieces = list(one.generate(prompt="Once"))
    assert until(lambda: threads_named("tf-infer-streams") == 0)
    assert "".join(piece.text.decode("utf-8", "strict") for piece in pieces) == TEXT
    assert len(pieces) == len(SCRIPT)
    assert [token.piece for piece in pieces for token in piece.tokens] == list(SCRIPT)
    assert [piece.finish_reason for piece in pieces] == [""] * (len(SCRIPT) - 1) + ["stop"]
    last = pieces[-1]
    assert (last.prompt_tokens, last.new_tokens, last.score) == (4, len(SCRIPT), -5.0)
    assert not pieces[0].tokens[0].HasField("logprob")


def test_the_first_piece_alone_names_who_answers(tmp_path: Path) -> None:
    with serving(tmp_path, Writer(SCRIPT, every_s=0.01)) as one:
        pieces = list(one.generate(prompt="Once", model=pb.ModelChoice(
            name="writer", label="stable")))
    assert [(piece.model, piece.version) for piece in pieces[:2]] == [("writer", 7), ("", 0)]


def test_every_option_reaches_the_generator_and_others_stay_out(tmp_path: Path) -> None:
    options = pb.GenerateOptions(
        max_new_tokens=3, temperature=0.5, top_k=0, seed=-1, stop=["\n\n", "ende"],
        stop_ids=[0, 5], logit_bias={7: -100.0, 3: 0.25}, forced_prefix="")
    with serving(tmp_path) as one:
        list(one.generate(prompt=b"\xff", options=options, top_logprobs=2, echo=True))
        list(one.generate(prompt=""))
        request, plain = one.writer.requests
    assert dict(request.options) == {
        "max_new_tokens": 3, "temperature": 0.5, "top_k": 0, "seed": -1,
        "stop": "\n\n\x1fende", "stop_ids": "0\x1f5", "logit_bias": "3:0.25\x1f7:-100.0",
        "forced_prefix": ""}
    assert (request.prompt, request.top_logprobs, request.echo) == (b"\xff", 2, True)
    # gRPC writes a time limit with three digits, rounded up: 20 s may become 20.1.
    assert request.deadline_s is not None and 0 < request.deadline_s - time.monotonic() <= 20.1
    assert (dict(plain.options), plain.constraint, plain.top_logprobs, plain.echo) == (
        {}, None, None, False)


@pytest.mark.parametrize(("message", "expected"), [
    (pb.Constraint(name="date"), Constraint(kind="name", value="date")),
    (pb.Constraint(regex="[a-z]+"), Constraint(kind="regex", value="[a-z]+")),
    (pb.Constraint(json_schema="{}"), Constraint(kind="json_schema", value="{}")),
    (pb.Constraint(choices=pb.Choices(choice=["yes", "no"])),
     Constraint(kind="choices", value="yes\x1fno")),
])
def test_every_constraint_reaches_the_generator(tmp_path: Path, message: pb.Constraint,
                                                expected: Constraint) -> None:
    with serving(tmp_path) as one:
        list(one.generate(prompt="a", constraint=message))
        assert one.writer.requests[0].constraint == expected


def test_log_probabilities_come_with_their_alternatives(tmp_path: Path) -> None:
    with serving(tmp_path) as one:
        pieces = list(one.generate(prompt="Once", top_logprobs=2))
    token = [token for piece in pieces for token in piece.tokens][1]
    assert token.logprob == -0.5
    assert [(other.id, other.piece, other.logprob) for other in token.top] == [
        (1000, b"t0", -0.5), (1001, b"t1", -1.5)]


def test_echo_begins_with_the_prompt(tmp_path: Path) -> None:
    with serving(tmp_path) as one:
        pieces = list(one.generate(prompt="Once: ", echo=True))
    assert b"".join(piece.text for piece in pieces).decode() == "Once: " + TEXT


@pytest.mark.parametrize(("fields", "code", "text"), [
    ({"model": pb.ModelChoice()}, "INVALID_ARGUMENT", "model.name"),
    ({"model": pb.ModelChoice(name="nobody")}, "NOT_FOUND", "Latest(nobody)"),
    ({"model": pb.ModelChoice(name="writer", version=8)}, "NOT_FOUND", "writer"),
    ({"model": pb.ModelChoice(name="writer", label="x")}, "INVALID_ARGUMENT", "label"),
    ({"options": pb.GenerateOptions(max_new_tokens=-1)}, "INVALID_ARGUMENT", "max_new_tokens"),
    ({"options": pb.GenerateOptions(max_new_tokens=1001)}, "INVALID_ARGUMENT", "0 to 1000"),
    ({"options": pb.GenerateOptions(temperature=math.nan)}, "INVALID_ARGUMENT", "temperature"),
    ({"options": pb.GenerateOptions(top_k=-1)}, "INVALID_ARGUMENT", "top_k"),
    ({"options": pb.GenerateOptions(stop=["a", ""])}, "INVALID_ARGUMENT", "empty one as item 1"),
    ({"options": pb.GenerateOptions(stop=["a\x1fb"])}, "INVALID_ARGUMENT", "U+001F"),
    ({"options": pb.GenerateOptions(stop_ids=[-3])}, "INVALID_ARGUMENT", "stop_ids"),
    ({"options": pb.GenerateOptions(logit_bias={1: math.inf})}, "INVALID_ARGUMENT", "logit_bias"),
    ({"options": pb.GenerateOptions(banned=["x"] * 1025)}, "INVALID_ARGUMENT", "at most 1024"),
    ({"constraint": pb.Constraint(regex="a(b")}, "INVALID_ARGUMENT", "position 1"),
    ({"constraint": pb.Constraint(choices=pb.Choices(choice=[""]))}, "INVALID_ARGUMENT", "choices"),
    ({"prompt": b"x" * 10_001}, "INVALID_ARGUMENT", "at most 10000 tokens"),
])
def test_what_cannot_be_is_refused_with_its_reason(tmp_path: Path, fields: dict[str, Any],
                                                   code: str, text: str) -> None:
    with serving(tmp_path) as one:
        got, details = failed(one.generate(**{"prompt": b"secret", **fields}))
        assert got == code
        assert text in details and "secret" not in details
        assert one.lent() == 0


def test_no_new_tokens_are_an_empty_answer(tmp_path: Path) -> None:
    with serving(tmp_path) as one:
        piece, = one.generate(prompt="Once", options=pb.GenerateOptions(max_new_tokens=0))
    assert (piece.text, piece.finish_reason) == (b"", "length")


def test_bytes_that_are_no_request_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as one:
        call = one.channel.unary_stream("/tf_infer.GenerationService/Generate")(b"\xff\xff")
        assert failed(call)[0] == "INVALID_ARGUMENT"


def test_a_caller_who_leaves_frees_the_slot(tmp_path: Path) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)
    with serving(tmp_path, writer) as one:
        call = one.generate(prompt="Once")
        next(call)
        call.cancel()
        assert until(lambda: writer.cancelled == 1)
        assert until(lambda: one.lent() == 0)


def test_a_caller_whose_time_is_over_frees_the_slot(tmp_path: Path) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)
    with serving(tmp_path, writer) as one:
        assert failed(one.generate(prompt="Once", timeout=0.2))[0] == "DEADLINE_EXCEEDED"
        assert until(lambda: writer.cancelled == 1 and not one.lent())


def test_a_caller_who_does_not_read_holds_nobody_up_and_loses_nothing(tmp_path: Path) -> None:
    """Two thousand tokens do not fit the caller's window: they wait, and go out as one."""
    count = 2000
    writer = Writer([b"x" * 1000] * count, capacity=count)
    with serving(tmp_path, writer) as one:
        call = one.generate(prompt="Once")
        assert until(lambda: writer.ended == 1)  # nobody has read
        pieces = list(call)
    assert b"".join(piece.text for piece in pieces) == b"x" * 1000 * count
    assert len(pieces) < count / 2
    assert sum(len(piece.tokens) for piece in pieces) == count


def test_a_caller_behind_by_too_much_is_given_up(tmp_path: Path) -> None:
    count = 3 * MAX_WAITING_BYTES // 10_000
    writer = Writer([b"x" * 10_000] * count, capacity=count, every_s=0.0001)
    with serving(tmp_path, writer) as one:
        call = one.generate(prompt="Once")
        assert until(lambda: writer.cancelled == 1)
        code, details = failed(call)
    assert code == "RESOURCE_EXHAUSTED" and "too slowly" in details


@pytest.mark.parametrize(("fault", "code", "text"), [
    (Overloaded("The queue is full."), "RESOURCE_EXHAUSTED", "The queue is full."),
    (ServerFailure("the engine broke"), "INTERNAL", "the engine broke"),
])
def test_an_error_comes_behind_the_pieces_before_it(tmp_path: Path, fault: Any, code: str,
                                                    text: str) -> None:
    with serving(tmp_path, Writer([b"a", b"b"], fault=fault)) as one:
        call = one.generate(prompt="Once")
        heard = b""
        with pytest.raises(grpc.RpcError) as caught:
            for piece in call:
                heard += piece.text
    assert (heard, caught.value.code().name, caught.value.details()) == (b"ab", code, text)


def test_a_server_that_stops_waits_for_what_ends_in_time(tmp_path: Path) -> None:
    with serving(tmp_path, Writer([b"a"] * 20, every_s=0.01)) as one:
        call = one.generate(prompt="Once")
        next(call)
        assert one.server.stop(5.0)
        assert len(b"".join(piece.text for piece in call)) == 19


def test_a_server_that_stops_tells_those_who_still_read(tmp_path: Path) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)
    with serving(tmp_path, writer) as one:
        call = one.generate(prompt="Once")
        next(call)
        one.server.stop(0.2)
        assert failed(call)[0] == "UNAVAILABLE"
        assert until(lambda: writer.cancelled == 1) and one.lent() == 0


def test_a_version_that_goes_ends_its_streams(tmp_path: Path) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)
    with serving(tmp_path, writer) as one:
        call = one.generate(prompt="Once")
        next(call)
        writer.close()
        assert failed(call)[0] == "UNAVAILABLE"
        assert one.lent() == 0


def test_many_streams_hold_no_thread_of_the_pool(tmp_path: Path) -> None:
    writer = Writer([b"a"] * 40, every_s=0.02)
    with serving(tmp_path, writer) as one:
        running = [one.generate(prompt="Once") for _ in range(20)]
        for call in running:
            next(call)
        assert threads_named("tf-infer-grpc") < 10
        assert all(len(list(call)) > 10 for call in running)


def test_metrics_count_a_generation_and_logs_hold_no_text(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "tf_infer.server"), serving(tmp_path) as one:
        list(one.generate(prompt="a secret", metadata=(("x-request-id", "abcd-1234"),)))
        failed(one.generate(prompt="a secret", options=pb.GenerateOptions(stop=["", "secret"])))
        page = one.server.metrics.page().decode()
    assert 'method="Generate"' in page
    assert "secret" not in caplog.text and "Zo" not in caplog.text
    told = [record for record in caplog.records if getattr(record, "event", "") == "request"]
    fields = [vars(record)["fields"] for record in told]
    assert [one["code"] for one in fields] == ["OK", "INVALID_ARGUMENT"]
    assert (fields[0]["tokens"], fields[0]["request_id"]) == (len(SCRIPT), "abcd-1234")


def test_another_grpcio_gets_its_streams_through_threads(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert replies.STREAMS_AT_ONCE
    monkeypatch.setattr(replies, "STREAMS_AT_ONCE", False)
    with serving(tmp_path, Writer(SCRIPT, every_s=0.001)) as one:
        pieces = list(one.generate(prompt="Once"))
    assert b"".join(piece.text for piece in pieces).decode() == TEXT


def test_a_request_that_takes_long_to_begin_holds_nobody_up(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Writer):
        def submit(self, request: Any, listener: Any) -> Any:
            if request.prompt == b"slow":
                begun.set()
                assert go_on.wait(20)
            return super().submit(request, listener)

    with serving(tmp_path, Slow(SCRIPT)) as one:
        slow = one.generate(prompt="slow")
        assert begun.wait(10)
        assert len(list(one.generate(prompt="quick", timeout=10))) > 0
        go_on.set()
        assert len(list(slow)) > 0
