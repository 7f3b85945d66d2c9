"""Timings in metadata: written, read, and ignored where they make no sense."""

from __future__ import annotations

import pytest

from tf_infer.wire.timings import (
    ANSWER_KEY,
    REQUEST_KEY,
    Timings,
    asked_for,
    from_metadata,
    to_text,
)

SPLIT = Timings(queue_s=0.00012, tokenize_s=0.00031, model_s=0.00214, decode_s=0.0,
                total_s=0.003)


def test_the_text_is_named_microseconds() -> None:
    assert to_text(SPLIT) == "queue=120;tokenize=310;model=2140;decode=0;total=3000"
    assert to_text(Timings(queue_s=0.0, model_s=1.5e-6, total_s=2e-6)) == "queue=0;model=2;total=2"


@pytest.mark.parametrize("timings", [SPLIT, Timings(queue_s=0.0, model_s=7e-6, total_s=4_000.0)])
def test_written_is_read(timings: Timings) -> None:
    assert from_metadata([("other", "x"), (ANSWER_KEY, to_text(timings))]) == timings


def test_names_of_later_servers_are_gone_past() -> None:
    text = "queue=1;parse=5;model=2;total=3"
    assert from_metadata([(ANSWER_KEY, text)]) == Timings(queue_s=1e-6, model_s=2e-6, total_s=3e-6)


@pytest.mark.parametrize("value", [
    "", "queue=1", "queue=1;model=x;total=3", "queue=1;model;total=3", "queue=1=2;model=1;total=3",
    b"queue=1;model=2;total=3"])
def test_what_cannot_be_read_is_none(value: str | bytes) -> None:
    assert from_metadata([(ANSWER_KEY, value)]) is None


def test_no_metadata_is_none() -> None:
    assert from_metadata([]) is None
    assert from_metadata([("grpc-something", "queue=1;model=2;total=3")]) is None


@pytest.mark.parametrize(("value", "detail"), [
    ("1", "stages"), ("stages", "stages"), ("queue", "queue"), ("0", None), ("", None),
    (b"1", None), ("Stages", None)])
def test_a_request_asks_by_its_metadata(value: str | bytes, detail: str | None) -> None:
    assert asked_for([("user-agent", "x"), (REQUEST_KEY, value)]) == detail


def test_a_request_without_the_key_asks_for_nothing() -> None:
    assert asked_for([("user-agent", "1")]) is None
