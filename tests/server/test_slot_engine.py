"""The slot engine over fakes: every answer is what the prompt gets alone, whoever else is there."""

from __future__ import annotations

import gc
import math
import random
import threading
import time
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from tests.server.slotkit import CAPACITY, WAIT_S, Heard, Stand, alone, same, stand, until
from tf_infer.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotOffered,
    Overloaded,
    ServerFailure,
    ServerUnavailable,
)
from tf_infer.server import gauges, slot_engine
from tf_infer.server.fake_decoder import WORDS
from tf_infer.server.generation import Constraint, GenerationRequest, Piece
from tf_infer.server.saved_form import SavedForm
from tf_infer.server.slot_engine import Watch

FORMS = pytest.mark.parametrize("form", ["engine", "saved"])
TABLES = pytest.mark.parametrize("table", [True, False], ids=["table", "decoded"])
HOST = ("encode", "decode")  # signatures that callers' threads run, or text needs
SLOW = {"engine": 0.02, "saved": 0.2}  # seconds a run: 48 tokens take about one
LONG = b"abcdefghijklmnop" * 3  # more ids than a chunk


def mixed(seed: int, count: int) -> list[tuple[bytes, dict[str, Any]]]:
    """Draw requests of all kinds, the same for a seed."""
    draw = random.Random(seed)
    asked = []
    for _ in range(count):
        prompt = bytes(draw.choice(b"abc def") for _ in range(draw.randrange(40)))
        options: dict[str, Any] = {"max_new_tokens": draw.randrange(CAPACITY + 1)}
        if draw.random() < 0.6:
            options.update(temperature=draw.choice([0.5, 1.0, 2.0]), draw=draw.randrange(3),
                           seed=draw.randrange(-2**63, 2**63))
        if draw.random() < 0.3:
            options["min_new_tokens"] = min(draw.randrange(10), options["max_new_tokens"])
        if draw.random() < 0.3:
            options["stop"] = draw.choice(["<stop>", "ab", " the\x1fo", "é", "a", "zzz"])
        if draw.random() < 0.2:
            options["stop_ids"] = draw.choice(["5", "7\x1f9"])
        asked.append((prompt, options))
    return asked


@FORMS
@TABLES
def test_mixed_requests_at_once_get_what_each_gets_alone(form: str, table: bool) -> None:
    asked = mixed(1, 50)
    with stand(form, table=table, prefix_bytes=2000) as there:
        heard = [there.ask(prompt, **options) for prompt, options in asked]
        for one, (prompt, options) in zip(heard, asked):
            same(one.answer(), alone(prompt, **options))
        assert there.engine.counts() == (0, 0)
    reasons = {one.pieces[-1].finish_reason for one in heard}
    assert reasons == {"stop", "length"}


@FORMS
def test_pieces_come_one_by_one_and_hold_whole_characters(form: str) -> None:
    with stand(form) as there:
        heard = there.ask(b"a b", max_new_tokens=40, temperature=3.0, seed=4, min_new_tokens=40)
        wanted = alone(b"a b", max_new_tokens=40, temperature=3.0, seed=4, min_new_tokens=40)
        same(heard.answer(), wanted)
    assert len(heard.pieces) > 3
    for piece in heard.pieces:
        piece.text.decode()
    counts = [piece.new_tokens for piece in heard.pieces]
    assert counts == sorted(counts) and counts[-1] == 40
    assert all(piece.finish_reason is None for piece in heard.pieces[:-1])
    assert heard.tokens()[0].piece == WORDS[wanted.ids[0]]
    assert all(math.isnan(token.logprob) for token in heard.tokens())


@FORMS
def test_log_probabilities_are_told_with_their_alternatives(form: str) -> None:
    with stand(form) as there:
        heard = there.ask(b"abc", top_logprobs=3, max_new_tokens=12, temperature=1.0, seed=3)
        plain = there.ask(b"abc", top_logprobs=0, max_new_tokens=12, temperature=1.0, seed=3)
        answer = heard.answer()
        same(plain.answer(), answer)
    for token, other in zip(heard.tokens(), plain.tokens()):
        assert [value for _, _, value in token.top] == sorted(
            (value for _, _, value in token.top), reverse=True) and len(token.top) == 3
        assert all(piece == WORDS[number] for number, piece, _ in token.top)
        assert other.top == () and other.logprob == pytest.approx(token.logprob, abs=1e-5)
        assert token.logprob <= token.top[0][2] + 1e-5 <= 1e-5
    told = sum(token.logprob for token in heard.tokens())
    assert told >= answer.score - 1e-4
    assert (answer.reason == "stop") is (told > answer.score + 1e-4)  # the end id's own


@FORMS
def test_a_long_prompt_does_not_hold_up_those_that_run(form: str) -> None:
    with stand(form, slots=2, chunk=4, pause_s=0.002) as there:
        running = there.ask(b"a", max_new_tokens=CAPACITY, min_new_tokens=CAPACITY).started()
        before = len(running.tokens())
        long = there.ask(LONG, max_new_tokens=4)
        long.started()
        # 47 ids in chunks of 4 are 12 turns, in each of which the other row produced
        assert len(running.tokens()) >= min(before + 11, CAPACITY)
        same(long.answer(), alone(LONG, max_new_tokens=4))


@FORMS
@pytest.mark.parametrize("limit", [0, 1, CAPACITY])
def test_limits_from_nothing_to_the_capacity(form: str, limit: int) -> None:
    with stand(form) as there:
        for prompt in (b"", b"a", LONG):
            heard = there.ask(prompt, max_new_tokens=limit, min_new_tokens=limit)
            answer = heard.answer()
            same(answer, alone(prompt, max_new_tokens=limit, min_new_tokens=limit))
            assert answer.reason == "length" and len(answer.ids) == limit


def test_echo_puts_the_prompt_before_everything() -> None:
    with stand() as there:
        for limit in (0, 5):
            heard = there.ask("aé".encode(), echo=True, max_new_tokens=limit)
            wanted = alone("aé".encode(), max_new_tokens=limit)
            assert heard.answer().text == "aé".encode() + wanted.text
            assert heard.pieces[0].text.startswith("aé".encode())


@pytest.mark.parametrize(("options", "error", "words"), [
    ({"temperatur": 1.0}, NotOffered, "1 that this version does not have"),
    ({"temperature": "hot"}, InvalidRequest, "temperature: expected a value of type float32"),
    ({"max_new_tokens": 1.5}, InvalidRequest, "max_new_tokens: expected a value of type int32"),
    ({"max_new_tokens": float("nan")}, InvalidRequest, "max_new_tokens: expected a value"),
    ({"seed": 2**63}, InvalidRequest, "seed: expected a value of type int64"),
    ({"draw": True}, InvalidRequest, "draw: expected a value of type int32"),
    ({"stop_ids": 7}, InvalidRequest, "stop_ids: expected a value of type string"),
    ({"stop": "a\x1f"}, InvalidRequest, "stop: expected texts of at least one character"),
    ({"stop": 3}, InvalidRequest, "stop: expected a value of type string"),
    ({"max_new_tokens": 3, "min_new_tokens": 4}, InvalidRequest,
     "min_new_tokens: expected at most max_new_tokens = 3, got 4"),
    ({"stop": "a" * 20_000}, InvalidRequest, "stop: expected at most 16384 bytes, got 20000"),
    ({"stop": "\x1f".join("ab" * 50)}, InvalidRequest, "stop: expected at most 64 texts, got 100"),
    ({"max_new_tokens": -1}, InvalidRequest, "expected 0 <= max_new_tokens <= 48, got -1"),
    ({"max_new_tokens": 49}, InvalidRequest, "expected 0 <= max_new_tokens <= 48, got 49"),
])
def test_what_cannot_be_is_refused_at_once(
        options: dict[str, Any], error: type[Exception], words: str) -> None:
    with stand() as there, pytest.raises(error) as caught:
        there.ask(b"a", **options)
    assert words in str(caught.value) and "hot" not in str(caught.value)


@FORMS
def test_what_a_graph_refuses_is_told_without_its_nodes(form: str) -> None:
    with stand(form) as there:
        heard = [there.ask(b"a", temperature=value) for value in (0.0, -1.0)]
        told = heard[1].failure()
        same(heard[0].answer(), alone(b"a"))
    assert (type(told), told.details) == (
        InvalidRequest, "temperature: expected a finite number >= 0, got -1.0 (row 0).")


def constrained(there: Stand, kind: str, value: str, **options: Any) -> Heard:
    heard = Heard()
    there.engine.submit(GenerationRequest(
        prompt=b"a", constraint=Constraint(kind=kind, value=value), options=options), heard)
    return heard


@FORMS
def test_choices_are_kept_token_by_token(form: str) -> None:
    choices = ("abc", " the end", "p", "é o")
    with stand(form) as there:
        heard = [constrained(there, "choices", "\x1f".join(choices), temperature=5.0, seed=seed)
                 for seed in range(24)]
        free = there.ask(b"b", max_new_tokens=9)
        answers = [one.answer() for one in heard]
        same(free.answer(), alone(b"b", max_new_tokens=9))
    assert {answer.text.decode() for answer in answers} == set(choices)
    assert all(answer.reason == "stop" for answer in answers)


@FORMS
def test_what_ends_within_a_constraint_says_so(form: str) -> None:
    with stand(form) as there:
        for value, options, text, reason in [
                ("abcdef", {"max_new_tokens": 3}, b"abc", "incomplete"),
                ("abc", {"max_new_tokens": 0}, b"", "incomplete"),
                ("abc", {"max_new_tokens": 3}, b"abc", "length"),
                ("abcdef", {"stop": "d"}, b"abc", "incomplete"),
                ("abcdef", {"stop_ids": "6"}, b"abc", "incomplete"),  # "d"
                ("abc", {"stop_ids": "6"}, b"abc", "stop"),
                ("abc\x1fabcd", {"stop_ids": "6", "logprobs": 1}, b"abc", None),
                ("abc\x1fabc", {}, b"abc", "stop")]:
            answer = constrained(there, "choices", value, **options).answer()
            assert (answer.text, answer.reason) == (text, reason or answer.reason), value
        heard = there.ask(b"a", choices="abc\x1fp", max_new_tokens=9)
        assert heard.answer().text in (b"abc", b"p")


@FORMS
def test_no_stop_id_ends_a_constrained_text_before_min_new_tokens(form: str) -> None:
    with stand(form) as there:
        heard = [constrained(there, "choices", "aaaa\x1fabab\x1fbbba\x1fbaba", stop_ids="3",  # "a"
                             min_new_tokens=3, temperature=5.0, seed=seed) for seed in range(4)]
        assert [(one.answer().text, one.answer().reason) for one in heard] == [
            (b"bbb", "incomplete")] * 4


def test_one_constraint_is_enough() -> None:
    with stand() as there, pytest.raises(InvalidRequest, match="expected one, got several"):
        constrained(there, "choices", "a", choices="b")


def test_a_constraint_that_cannot_be_is_refused_at_once() -> None:
    with stand() as there:
        with pytest.raises(NotOffered):
            constrained(there, "name", "no such option")
        for kind, value in (("regex", "(secret"), ("json_schema", "{"), ("choices", "a\x1f"),
                            ("poem", "x")):
            with pytest.raises(InvalidRequest) as caught:
                constrained(there, kind, value)
            assert "secret" not in str(caught.value)
        assert there.engine.counts() == (0, 0)
    with stand(table=False) as there, pytest.raises(NotOffered, match="Export the model again"):
        constrained(there, "choices", "a")


@FORMS
def test_an_option_that_the_graph_refuses_ends_that_request_alone(form: str) -> None:
    gate = threading.Event()
    with stand(form, before=lambda what: what in HOST or gate.wait(10)) as there:
        heard = [there.ask(b"a", temperature=value, max_new_tokens=3)
                 for value in (0.0, -1.0, 1.0, float("nan"))]
        gate.set()
        for place in (0, 2):
            assert len(heard[place].answer().ids) <= 3
        for place in (1, 3):
            error = heard[place].failure()
            assert isinstance(error, InvalidRequest) and "temperature" in error.details


@FORMS
def test_more_than_the_queue_is_refused_and_the_rest_is_answered(form: str) -> None:
    gate = threading.Event()
    with stand(form, slots=1, queue=2, before=lambda what: what in HOST or gate.wait(10)) as there:
        heard = [there.ask(b"a", max_new_tokens=2) for _ in range(3)]
        with pytest.raises(Overloaded, match="The queue is full"):
            there.ask(b"a")
        gate.set()
        for one in heard:
            same(one.answer(), alone(b"a", max_new_tokens=2))


@FORMS
def test_a_cancelled_request_frees_its_slot_and_hears_nothing_more(form: str) -> None:
    with stand(form, slots=1, pause_s=SLOW[form]) as there:
        first = there.ask(b"a", min_new_tokens=CAPACITY).started()
        second = there.ask(b"b", max_new_tokens=3)
        third = there.ask(b"c", max_new_tokens=3)
        assert first.ticket is not None and second.ticket is not None
        second.ticket.cancel()
        first.ticket.cancel()
        first.ticket.cancel()
        same(third.answer(), alone(b"c", max_new_tokens=3))
        pieces = len(first.pieces)
        assert not first.over() and not second.over() and not second.pieces
        assert pieces < CAPACITY
        until(lambda: there.engine.counts() == (0, 0))
        assert len(first.pieces) == pieces


def test_a_request_may_be_cancelled_from_its_own_listener() -> None:
    with stand() as there:
        heard: Heard = Heard(lambda piece: heard.ticket.cancel() if heard.ticket else None)
        there.ask(b"a", heard, min_new_tokens=CAPACITY)
        until(lambda: there.engine.counts() == (0, 0))
        assert not heard.over() and len(heard.pieces) < CAPACITY


@FORMS
def test_a_deadline_ends_a_request_that_runs_and_one_that_waits(
        form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, asked = [0.0], threading.Event()

    def run_a_second(what: str) -> None:
        if what not in HOST:
            asked.wait(30)
            now_s[0] += 1.0

    monkeypatch.setattr(slot_engine, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    with stand(form, slots=1, before=run_a_second) as there:
        running = there.ask(b"a", min_new_tokens=CAPACITY, deadline_s=3.5)
        waiting = there.ask(b"b", deadline_s=1.5)
        last = there.ask(b"c", max_new_tokens=2)
        asked.set()
        for one in (waiting, running):
            assert isinstance(one.failure(), DeadlineExceeded)
        assert running.pieces and not waiting.pieces
        same(last.answer(), alone(b"c", max_new_tokens=2))


def test_a_prompt_is_encoded_no_longer_than_its_caller_waits() -> None:
    with stand() as there:
        there.ask(b"abc", max_new_tokens=1).wait()
        assert there.decoder.limits["encode"] is None
        there.ask(b"abc", max_new_tokens=1, deadline_s=time.monotonic() + 60).wait()
        left_s = there.decoder.limits["encode"]
        assert left_s is not None and 30 < left_s <= 60


@FORMS
def test_the_end_tells_everybody_and_frees_the_form(form: str) -> None:
    with stand(form, slots=1, pause_s=SLOW[form]) as there:
        heard = [there.ask(b"a", min_new_tokens=CAPACITY).started(), there.ask(b"b")]
        there.engine.close()
        for one in heard:
            assert isinstance(one.failure(), ServerUnavailable)
        with pytest.raises(ServerUnavailable):
            there.ask(b"c")
        assert there.stepper.closed is (form == "engine")
        there.engine.close()


@FORMS
@pytest.mark.parametrize("what", ["read", "step"])
def test_a_step_that_crashes_ends_whom_it_touched_and_the_engine_goes_on(
        form: str, what: str) -> None:
    name = what if form == "engine" else "steps"
    broken = threading.Event()

    def before(signature: str) -> None:
        if broken.is_set() and signature == name:
            raise RuntimeError("secret")

    with stand(form, before=before) as there:
        same(there.ask(b"ab", max_new_tokens=3).answer(), alone(b"ab", max_new_tokens=3))
        broken.set()
        heard = [there.ask(LONG, max_new_tokens=3) for _ in range(3)]
        for one in heard:
            error = one.failure()
            assert isinstance(error, ServerFailure) and "secret" not in error.details
        broken.clear()
        same(there.ask(b"ab", max_new_tokens=3).answer(), alone(b"ab", max_new_tokens=3))
        assert there.engine.counts() == (0, 0)


def test_a_prompt_that_cannot_be_encoded_is_refused_without_its_text() -> None:
    def before(what: str) -> None:
        if what == "encode":
            raise RuntimeError("secret")

    with stand(before=before) as there:
        with pytest.raises(ServerFailure) as caught:
            there.ask(b"a")
        assert "secret" not in str(caught.value) and there.engine.counts() == (0, 0)


def test_a_long_prompt_is_encoded_while_others_run() -> None:
    gate, slow = threading.Event(), threading.Event()

    def before(what: str) -> None:
        if what == "encode" and slow.is_set():
            gate.wait(10)
        time.sleep(0.002)

    with stand(before=before) as there:
        running = there.ask(b"a", min_new_tokens=CAPACITY)
        slow.set()
        late = threading.Thread(target=lambda: there.ask(b"b"))
        late.start()
        same(running.answer(), alone(b"a", min_new_tokens=CAPACITY))
        gate.set()
        late.join(10)


def test_a_crashed_step_leaves_a_prompt_alone_that_is_still_read() -> None:
    crash = threading.Event()

    def before(what: str) -> None:
        time.sleep(0.002)
        if what == "step" and crash.is_set():
            crash.clear()
            raise RuntimeError("once")

    with stand(chunk=2, before=before) as there:
        running = there.ask(b"a", min_new_tokens=CAPACITY).started()
        reading = there.ask(LONG, max_new_tokens=4)
        until(lambda: there.engine.running == 2)
        crash.set()
        assert isinstance(running.failure(), ServerFailure)
        same(reading.answer(), alone(LONG, max_new_tokens=4))


def test_a_form_that_cannot_be_made_fails_who_asks_and_is_tried_again() -> None:
    tries: list[int] = []

    def broken() -> Any:
        tries.append(1)
        raise NotOffered("engine litert: not installed.")

    with stand() as there:
        make, there.engine._make_form = there.engine._make_form, broken
        assert "not installed" in there.ask(b"a").failure().details
        there.engine._make_form = make
        same(there.ask(b"a", max_new_tokens=3).answer(), alone(b"a", max_new_tokens=3))
    assert tries == [1]


def test_a_listener_that_raises_loses_its_request_alone() -> None:
    def raising(piece: Piece) -> None:
        raise RuntimeError("listener")

    with stand() as there:
        there.ask(b"a", Heard(raising), min_new_tokens=CAPACITY)
        same(there.ask(b"b", max_new_tokens=9).answer(), alone(b"b", max_new_tokens=9))
        until(lambda: there.engine.counts() == (0, 0))


@FORMS
def test_a_shared_beginning_is_read_once(form: str) -> None:
    system = b"abcdefghijklmnopabcdefghijklmnop"
    with stand(form, prefix_bytes=10**6) as there:
        first = there.ask(system + b"x", max_new_tokens=5)
        same(first.answer(), alone(system + b"x", max_new_tokens=5))
        read = there.stepper.read_ids
        others = [there.ask(system + tail, max_new_tokens=5, temperature=1.0, seed=7)
                  for tail in (b"a", b" b", b"c d")]
        for one, tail in zip(others, (b"a", b" b", b"c d")):
            same(one.answer(), alone(system + tail, max_new_tokens=5, temperature=1.0, seed=7))
            assert one.pieces[-1].cached_tokens == 32  # 33 ids with the start, in blocks of 4
        assert first.pieces[-1].cached_tokens == 0 and there.engine.prefix_bytes > 0
        if form == "engine":
            assert there.stepper.read_ids - read <= 3 * 4
    assert there.engine.prefix_bytes == 0


@FORMS
def test_two_that_come_together_read_their_shared_beginning_once(form: str) -> None:
    gate = threading.Event()
    with stand(form, prefix_bytes=10**6,
               before=lambda what: what in HOST or gate.wait(10)) as there:
        heard = [there.ask(LONG[:40] + tail, max_new_tokens=2) for tail in (b"a", b"b", b"c")]
        gate.set()
        for one, tail in zip(heard, (b"a", b"b", b"c")):
            same(one.answer(), alone(LONG[:40] + tail, max_new_tokens=2))
        assert [one.pieces[-1].cached_tokens for one in heard] == [0, 40, 40]


@FORMS
def test_short_prompts_that_come_together_are_read_in_one_call(form: str) -> None:
    gate, held = threading.Event(), threading.Event()
    prompts = (b"ab", b"c", b"def", b"gh")  # 8 ids with their starts, but the last of each

    def before(what: str) -> None:
        if what not in HOST:
            held.set()
            assert gate.wait(10)

    with stand(form, before=before) as there:
        first = there.ask(b"z", max_new_tokens=1)
        assert held.wait(10)  # what comes from now on is for the next turn
        heard = [there.ask(prompt, max_new_tokens=6) for prompt in prompts]
        gate.set()
        first.answer()
        for one, prompt in zip(heard, prompts):
            same(one.answer(), alone(prompt, max_new_tokens=6))
        assert there.stepper.most_joined == (4 if form == "engine" else 0)


def test_a_reading_that_fails_ends_those_it_was_for_and_nobody_else() -> None:
    gate, crash = threading.Event(), threading.Event()

    def before(what: str) -> None:
        assert what in HOST or gate.wait(10)
        if what == "read" and crash.is_set():
            crash.clear()
            raise RuntimeError("once")

    with stand(slots=3, before=before) as there:
        running = there.ask(b"", min_new_tokens=CAPACITY)
        gate.set()
        running.started()
        gate.clear()
        broken = [there.ask(prompt, max_new_tokens=4) for prompt in (b"ab", b"cd")]
        crash.set()
        gate.set()
        assert all(isinstance(one.failure(), ServerFailure) for one in broken)
        same(there.ask(b"ab", max_new_tokens=4).answer(), alone(b"ab", max_new_tokens=4))
        same(running.answer(), alone(b"", min_new_tokens=CAPACITY))


class Prompt(bytes):
    """Bytes that can be seen to go: what they carry may be referred to weakly."""

    mark: threading.Event


def test_of_a_prompt_that_waits_the_ids_alone_are_held() -> None:
    gate = threading.Event()
    with stand(slots=1) as one:
        first = one.ask(b"x", Heard(on_piece=lambda piece: gate.wait(WAIT_S) and None),
                        max_new_tokens=5, min_new_tokens=5)
        try:
            first.started()
            prompt = Prompt(b"abc")
            prompt.mark = threading.Event()
            mark = weakref.ref(prompt.mark)
            second = one.ask(prompt, max_new_tokens=3)
            assert one.engine.counts() == (1, 1)
            del prompt
            gc.collect()
            held = mark() is not None
        finally:
            gate.set()
        same(second.answer(), alone(b"abc", max_new_tokens=3))
    assert not held


def test_a_form_with_fewer_slots_than_wished_is_not_overfilled() -> None:
    with stand(slots=2) as there:
        there.engine._board.resize(9, 8)
        heard = [there.ask(b"a", max_new_tokens=4) for _ in range(5)]
        for one in heard:
            same(one.answer(), alone(b"a", max_new_tokens=4))


class Told(Watch):
    """A watch that remembers."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.count = 0
        self.reasons: list[tuple[str, int, int, int]] = []

    def first_token(self, seconds: float) -> None:
        self.first.append(seconds)

    def tokens(self, count: int, seconds: float) -> None:
        self.count += count

    def ended(self, reason: str, prompt: int, cached: int, new: int) -> None:
        self.reasons.append((reason, prompt, cached, new))


@FORMS
def test_the_watch_hears_of_every_request_once(form: str) -> None:
    told = Told()
    with stand(form, watch=told, slots=1) as there:
        good = there.ask(b"abc", max_new_tokens=4, min_new_tokens=4)
        late = there.ask(b"abc", deadline_s=time.monotonic() - 1.0)
        gone = there.ask(b"abc")
        assert gone.ticket is not None
        gone.ticket.cancel()
        good.wait(), late.wait()
        until(lambda: len(told.reasons) == 3)
    assert sorted(reason for reason, *_ in told.reasons) == [
        "DEADLINE_EXCEEDED", "cancelled", "length"]
    assert ("length", 4, 0, 4) in told.reasons
    assert len(told.first) == 1 and told.count <= 3


def endure(form: str, count: int, seed: int) -> None:
    """Answer mixed requests while some are given up at random moments."""
    asked = mixed(seed, count)
    draw = random.Random(seed)
    with stand(form, slots=4, queue=count, prefix_bytes=2000) as there:
        heard, cancelled = [], set()
        for place, (prompt, options) in enumerate(asked):
            heard.append(there.ask(prompt, **options))
            if draw.random() < 0.3:
                victim = draw.randrange(len(heard))
                ticket = heard[victim].ticket
                assert ticket is not None
                ticket.cancel()
                cancelled.add(victim)
            if draw.random() < 0.05:
                heard[draw.randrange(place + 1)].started() if not cancelled else time.sleep(0.001)
        for place, (one, (prompt, options)) in enumerate(zip(heard, asked)):
            if place not in cancelled:
                same(one.answer(), alone(prompt, **options))
        until(lambda: there.engine.counts() == (0, 0))
        assert sorted(there.engine._board._free) == list(range(4))
        assert there.engine.prefix_bytes <= 2000
        if form == "saved":
            held = there.engine._form
            assert isinstance(held, SavedForm)
            assert not held._apart and not held._order and not len(held._batch)
        assert not any(one.faults for one in heard)


@FORMS
def test_many_requests_with_cancellations_lose_no_slot_and_no_answer(form: str) -> None:
    endure(form, 60, seed=11)


@pytest.mark.slow
@FORMS
def test_two_thousand_requests_with_cancellations_leave_nothing_behind(form: str) -> None:
    endure(form, 300, seed=12)  # whatever is made once is made here
    gc.collect()
    before = gauges.resident_bytes().get((), 0)
    for seed in range(4):
        endure(form, 500, seed)
    gc.collect()
    assert gauges.resident_bytes().get((), 0) - before < 20 * 2**20


def test_what_is_prepared_early_is_there_before_the_first_request() -> None:
    made: list[str] = []
    with stand(making=lambda: made.append("form")) as there:
        there.engine.prepare()
        assert made == ["form"]
        there.engine.prepare()
        assert there.ask(b"a b c", max_new_tokens=3).answer().reason
        assert made == ["form"]


def test_a_form_that_cannot_be_prepared_holds_up_nobody_and_is_tried_again() -> None:
    tries: list[int] = []

    def making() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("secret")

    with stand(making=making) as there:
        there.engine.prepare()
        assert len(tries) == 1
        assert there.ask(b"a b c", max_new_tokens=3).answer().reason
        assert len(tries) == 2


def test_who_closes_while_a_form_is_prepared_lets_both_go() -> None:
    begun, release = threading.Event(), threading.Event()

    def making() -> None:
        begun.set()
        release.wait(10)

    with stand(making=making) as there:
        waiting = threading.Thread(target=there.engine.prepare)
        waiting.start()
        assert begun.wait(10)
        closing = threading.Thread(target=there.engine.close)
        closing.start()
        waiting.join(10)
        assert not waiting.is_alive()
        release.set()
        closing.join(10)
        assert not closing.is_alive()
