"""The summary of a recording, as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from tf_infer.profiling.load import Load
from tf_infer.profiling.summary import Summary, call_shares, lines, run_shares, to_json
from tf_infer.profiling.trace import Operation, Trace
from tf_infer.wire.timings import Timings

PATH = Path("/logs/plugins/profile/run/h.xplane.pb")
TRACE = Trace((Operation("x/core/" + "deep/" * 30 + "MatMul", "MatMul", 10, 0.6),
               Operation("preprocess/Split", "StringSplit", 5, 0.3),
               Operation("postprocess/Gather", "GatherV2", 2, 0.06),
               Operation("Const", "Const", 1, 0.04)), 3, 100)
LOAD = Load(callers=4, elapsed_s=2.0, latencies_s=np.array([0.01, 0.02, 0.03]),
            failed={"UNAVAILABLE": 2})
TIMINGS = (Timings(queue_s=0.001, model_s=0.006, total_s=0.01),
           Timings(queue_s=0.003, model_s=0.006, total_s=0.01),
           Timings(queue_s=0.1, tokenize_s=0.002, model_s=0.007, decode_s=0.001, total_s=0.2))
SUMMARY = Summary(path=PATH, duration_s=5.0, trace=TRACE, load=LOAD, timings=TIMINGS)


def test_plain_values_are_shares_and_milliseconds() -> None:
    values = to_json(SUMMARY, top=2)
    assert json.loads(json.dumps(values)) == values
    assert values["stages"] == {"tokenizer": 0.3, "network": 0.6, "decoding": 0.06, "other": 0.04}
    assert values["operations"][1] == {
        "name": "preprocess/Split", "type": "StringSplit", "stage": "tokenizer", "count": 5,
        "self_ms": 300.0, "share": 0.3}
    assert len(values["operations"]) == 2
    assert values["load"]["answered"] == 3
    assert values["call"] == {"calls": 2, "total_ms": 10.0, "queue": 0.2, "run": 0.6, "rest": 0.2}
    assert values["run"] == {"calls": 1, "tokenizer": 0.2, "network": 0.7, "decoding": 0.1}


def test_a_person_reads_the_same() -> None:
    text = lines(SUMMARY, top=1)
    assert text == [
        "trace       /logs/plugins/profile/run/h.xplane.pb (5 s)",
        "            open it with: tensorboard --logdir /logs",
        "load        4 callers, closed loop: 1.5 answers/s, 3 in 2.0 s",
        "latency     p50 20.00 ms, p90 30.00 ms, p99 30.00 ms",
        "failed      2 UNAVAILABLE",
        "a call      10.00 ms in the server: queue 20.0 %, run 60.0 %, rest 20.0 %",
        "a run       tokenizer 20.0 %, network 70.0 %, decoding 10.0 % (of 1 traced ones)",
        "operations  1.00 s, all threads: tokenizer 30.0 %, network 60.0 %, decoding 6.0 %, "
        "other 4.0 %",
        "   60.0 %  network      60000.0 us x 10      MatMul  …" + ("deep/" * 30 + "MatMul")[-60:]]


def test_without_a_load_only_the_recording_is_told() -> None:
    values = to_json(replace(SUMMARY, load=None, timings=()), top=0)
    assert (values["load"], values["call"], values["run"]) == (None, None, None)
    assert not any("caller" in line for line in lines(replace(SUMMARY, load=None), top=0))


def test_an_empty_recording_says_what_to_do() -> None:
    empty = replace(SUMMARY, trace=Trace((), 0, 0), load=None, timings=())
    assert "none was recorded" in lines(empty, top=5)[-1]
    assert to_json(empty, top=5)["stages"] == dict.fromkeys(
        ("tokenizer", "network", "decoding", "other"), 0.0)


def test_a_load_nobody_answered_and_one_that_was_late() -> None:
    nobody = Load(callers=1, rate=50.0, elapsed_s=1.0, latencies_s=np.array([]),
                  failed={"NOT_FOUND": 9}, late=3)
    text = lines(replace(SUMMARY, load=nobody), top=0)
    assert "load        1 callers, 50 calls/s due: 0.0 answers/s, 0 in 1.0 s" in text
    assert "late        3 calls found no free caller; take more --callers" in text
    assert not any(line.startswith("latency") for line in text)


def test_shares_need_something_to_share() -> None:
    assert call_shares([]) is None
    assert run_shares(TIMINGS[:2]) is None
    assert call_shares(TIMINGS[2:]) is None
    assert run_shares([Timings(queue_s=0, tokenize_s=0.0, model_s=0.0, decode_s=0.0, total_s=1.0)
                       ]) is None
