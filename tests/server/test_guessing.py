"""Guesses change how often an engine is called, and nothing of any answer."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tests.server.slotkit import CAPACITY, Heard, alone, same, stand, until
from tests.server.test_slot_engine import mixed
from tf_infer.server import fake_decoder, guessing
from tf_infer.server.fake_decoder import FakeStepEngine
from tf_infer.server.generation import Constraint, GenerationRequest, Piece
from tf_infer.server.guessing import Account, Guessing, LookUp, Rounds
from tf_infer.server.metrics import Metrics
from tf_infer.server.slot_engine import Watch
from tf_infer.server.slot_engines import Told

GUESSES = 3


# ---------------------------------------------------------------------------- what is guessed

def looked_up(text: list[int], most: int) -> list[int]:
    """Return what `LookUp.guess` is to return, by looking at every place."""
    for size in guessing.RUNS:
        last = text[-size:]
        ends = [end for end in range(size, len(text)) if text[end - size:end] == last]
        if len(last) == size and ends:
            found: list[int] = []
            while len(found) < most:
                found.append((text + found)[ends[-1] + len(found)])
            return found
    return []


@pytest.mark.parametrize("letters", [2, 4, 20])
def test_what_followed_the_last_run_is_guessed_however_the_text_grew(letters: int) -> None:
    draw = random.Random(letters)
    for _ in range(60):
        ids = np.array([draw.randrange(letters) for _ in range(40)], np.int32)
        look_up, length = LookUp(), 1
        while length <= len(ids):
            most = draw.randrange(6)
            assert look_up.guess(ids, length, most) == looked_up(ids[:length].tolist(), most)
            length += draw.randrange(1, 6)


def test_a_text_that_turns_in_a_circle_is_guessed_beyond_its_end() -> None:
    assert LookUp().guess(np.array([5, 7, 8, 7, 8, 0, 0]), 5, 5) == [7, 8, 7, 8, 7]
    assert LookUp().guess(np.array([9, 9, 9, 0]), 3, 3) == [9, 9, 9]
    assert LookUp().guess(np.array([1, 2, 3, 4]), 4, 3) == []


# ---------------------------------------------------------------------------- whether it pays

def test_no_text_loses_more_than_its_share_however_its_guesses_fare() -> None:
    draw = random.Random(3)
    for luck in (0.0, 0.1, 0.3, 0.6, 1.0):
        for cost in (1.0, 1.4, 2.3, 4.0):
            account, steps, tokens = Account(), 0.0, 0
            while tokens < 300:
                accepted, spent = 0, 1.0
                if account.allows(cost):
                    spent = cost
                    while accepted < GUESSES and draw.random() < luck:
                        accepted += 1
                steps, tokens = steps + spent, tokens + 1 + accepted
                account = account.after(1 + accepted, spent)
                assert steps <= tokens * (1.0 + guessing.SHARE) + guessing.BEGIN + 1e-6
            if luck == 1.0:
                assert steps <= tokens * max(cost, 1.0) / 4 * 1.3 or cost == 4.0


def test_a_text_that_begins_to_repeat_itself_is_guessed_again_and_again() -> None:
    account, plain = Account(), 0
    for _ in range(10):  # all of its guesses are refused until it may guess no more
        account = account.after(1, 1.5 if account.allows(1.5) else 1.0)
    assert not account.allows(1.5)
    while not account.allows(1.5):
        account, plain = account.after(1), plain + 1
    assert plain <= 1 + 0.5 / guessing.SHARE
    for _ in range(10):
        assert account.allows(1.5)
        account = account.after(4, 1.5)
    assert account.left <= guessing.MOST


def test_a_round_costs_what_it_was_seen_to_cost() -> None:
    rounds = Rounds()
    for number in range(40):
        assert number >= guessing.SEEN or rounds.cost() == guessing.COST
        rounds.took(0.010, guessed=False)
        rounds.took(0.025 if number % 3 else 10.0, guessed=True)  # something else ran meanwhile
    assert rounds.cost() == pytest.approx(2.5)
    for _ in range(guessing.LAST):
        rounds.took(0.001, guessed=True)
    assert rounds.cost() == 1.0
    timeless = Rounds()
    for guessed in [True, False] * guessing.SEEN:
        timeless.took(0.0, guessed=guessed)
    assert timeless.cost() == guessing.COST


def test_a_cost_that_was_seen_wrong_is_seen_again() -> None:
    rounds, account, tokens = Rounds(), Account(), 0
    for guessed in [True, False] * guessing.LAST:
        rounds.took(9.0 if guessed else 1.0, guessed=guessed)
    while rounds.cost() > 1.5 and tokens < 1000:
        tried = account.allows(rounds.cost())
        account, tokens = account.after(1, rounds.cost() if tried else 1.0), tokens + 1
        rounds.took(1.4 if tried else 1.0, guessed=tried)
    assert tokens < 600


def test_what_is_told_of_guesses_is_counted() -> None:
    one = Guessing()
    ids = np.array([3, 4, 5, 3, 4, 0, 0, 0, 0], np.int32)
    assert one.next(ids, 5, 3, 1.5) == [5, 3, 4] and one.next(ids, 5, 0, 1.5) == []
    assert one.next(ids, 5, 3, 9.0) == []
    one.told([5, 3, 4], [5, 7], 1.5)
    assert (one.proposed, one.accepted) == (3, 1)


# ---------------------------------------------------------------------------- with an engine

class Forgetful(FakeStepEngine):
    """What it says next goes by the last id alone, so that it repeats itself."""

    def _put(self, slot: int, number: int, place: int) -> int:
        super()._put(slot, number, place)
        return fake_decoder.read_on(0, number)


class Counted(Watch):
    def __init__(self) -> None:
        self.proposed = self.accepted = 0

    def guessed(self, proposed: int, accepted: int) -> None:
        self.proposed += proposed
        self.accepted += accepted


def told(heard: Heard) -> tuple[Any, ...]:
    """Return all of an answer: ids, bytes, log-probabilities to the last bit, text, reason."""
    answer = heard.answer()
    return answer, [(token.id, token.piece, repr(token.logprob), token.top)
                    for token in heard.tokens()]


def answers(guesses: int, asked: list[tuple[bytes, dict[str, Any]]], watch: Watch | None = None,
            ) -> tuple[list[tuple[Any, ...]], FakeStepEngine]:
    """Ask one after the other, each alone."""
    stepper = Forgetful(guesses=GUESSES)
    with stand(stepper=stepper, guesses=guesses, watch=watch, prefix_bytes=2000) as there:
        found = [told(there.ask(prompt, top_logprobs=2, **options)) for prompt, options in asked]
    return found, stepper


def test_answers_alone_are_those_without_guesses_to_the_last_bit() -> None:
    asked = mixed(7, 30)
    for _, options in asked[::2]:
        options["temperature"] = 0.3 if "temperature" in options else 0.0
    plain, before = answers(0, asked)
    watch = Counted()
    guessed, stepper = answers(GUESSES, asked, watch)
    assert guessed == plain
    assert before.rounds == 0 and stepper.rounds > 10
    assert 0 < watch.accepted < watch.proposed <= GUESSES * stepper.rounds
    assert {one[0].reason for one in plain} == {"stop", "length"}


def test_a_text_that_repeats_itself_takes_few_calls_of_the_engine() -> None:
    """Fails where nothing is ever guessed, or no guess kept."""
    asked = [(b"abab", {"max_new_tokens": CAPACITY, "min_new_tokens": CAPACITY})]
    plain, before = answers(0, asked)
    guessed, stepper = answers(GUESSES, asked)
    assert guessed == plain and len(plain[0][1]) == CAPACITY == before.steps
    assert stepper.steps + stepper.rounds < CAPACITY * 0.6


def test_a_text_that_never_repeats_itself_takes_few_calls_more() -> None:
    with stand(stepper=FakeStepEngine(guesses=GUESSES), guesses=GUESSES) as there:
        same(there.ask(b"abcabcabc", max_new_tokens=CAPACITY, min_new_tokens=CAPACITY).answer(),
             alone(b"abcabcabc", max_new_tokens=CAPACITY, min_new_tokens=CAPACITY))
        cost = there.stepper.steps + guessing.COST * there.stepper.rounds
        assert there.stepper.rounds > 0
        assert cost <= CAPACITY * (1 + guessing.SHARE) + guessing.BEGIN


def test_company_and_guesses_change_no_answer_as_requests_come_and_go() -> None:
    asked = mixed(11, 12)
    plain, _ = answers(0, asked)
    long = {"max_new_tokens": CAPACITY, "min_new_tokens": CAPACITY}
    (wanted,), _ = answers(0, [(b"abab", long)])
    with stand(stepper=Forgetful(guesses=GUESSES), guesses=GUESSES) as there:
        for (prompt, options), (answer, _) in zip(asked, plain):
            others: list[Heard] = []
            before = there.stepper.rounds

            def joined(piece: Piece, asks: Any = (prompt, options), heard: Any = others) -> None:
                if piece.new_tokens > 14 and not heard:  # it is alone until then
                    heard.append(there.ask(asks[0], **asks[1]))

            one = there.ask(b"abab", Heard(joined), **long)
            same(one.answer(), wanted[0])
            assert there.stepper.rounds > before
            same(others[0].answer(), answer)


def test_a_constrained_text_goes_token_by_token() -> None:
    with stand(stepper=Forgetful(guesses=GUESSES), guesses=GUESSES) as there:
        heard = Heard()
        there.engine.submit(GenerationRequest(
            prompt=b"abab", constraint=Constraint(kind="choices", value="abababababab"),
            options={}), heard)
        assert heard.answer().text == b"abababababab"
        assert there.stepper.rounds == 0


def test_every_token_of_a_round_is_delivered_with_its_text() -> None:
    heard: list[Piece] = []
    with stand(stepper=Forgetful(guesses=GUESSES), guesses=GUESSES) as there:
        one = Heard(heard.append)
        there.ask(b"abab", one, max_new_tokens=CAPACITY, min_new_tokens=CAPACITY)
        text = one.answer().text
    assert max(len(piece.tokens) for piece in heard) == 1 + GUESSES
    assert b"".join(token.piece for piece in heard for token in piece.tokens).decode(
        "utf-8", "replace").encode() == text


def test_a_cancelled_text_ends_between_two_rounds() -> None:
    with stand(stepper=Forgetful(guesses=GUESSES), guesses=GUESSES) as there:
        heard: Heard = Heard(lambda piece: heard.ticket.cancel()
                             if heard.ticket and piece.new_tokens > 20 else None)
        there.ask(b"abab", heard, min_new_tokens=CAPACITY, max_new_tokens=CAPACITY)
        until(lambda: there.engine.counts() == (0, 0))
        assert len(heard.tokens()) <= 20 + 2 * (1 + GUESSES) or not heard.over()


def test_a_round_that_crashes_ends_the_request_and_the_engine_goes_on() -> None:
    def before(what: str) -> None:
        if what == "extend":
            raise RuntimeError("secret")

    with stand(stepper=Forgetful(guesses=GUESSES, before=before), guesses=GUESSES) as there:
        error = there.ask(b"abab", max_new_tokens=CAPACITY, min_new_tokens=CAPACITY).failure()
        assert "secret" not in error.details
        assert there.engine.counts() == (0, 0)


def test_an_engine_that_cannot_check_guesses_is_given_none() -> None:
    with stand(stepper=Forgetful(guesses=0), guesses=GUESSES) as there:
        there.ask(b"abab", max_new_tokens=CAPACITY, min_new_tokens=CAPACITY).answer()
        assert there.stepper.rounds == 0


def test_the_page_of_metrics_says_how_many_guesses_held() -> None:
    metrics = Metrics()
    metrics.loaded("writer", 1, ["generate"])
    _, _ = answers(GUESSES, [(b"abab", {"max_new_tokens": CAPACITY, "min_new_tokens": CAPACITY})],
                   Told(metrics, "writer", 1))
    found = {line.split('outcome="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1])
             for line in metrics.page().decode().split("\n")
             if line.startswith('tf_infer_guessed_tokens_total{model="writer",version="1"')}
    assert found["accepted"] > 10 and found.keys() == {"accepted", "refused"}
