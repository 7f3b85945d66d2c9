"""How long the thread that loads a version rests: as long as somebody asks, and no longer."""

from __future__ import annotations

import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.server.serverkit import lent, make_versions, running, wait_until
from tf_infer.server.config import ModelConfig
from tf_infer.server.contracts import LoadTimes, Servable
from tf_infer.server.fakes import EchoServable
from tf_infer.server.rests import ALL_S, MOST_S, QUIET_S, TIMES, Rests, rest_s
from tf_infer.server.versions import ModelRef

SECONDS = st.floats(0, 100, allow_nan=False)


@given(worked_s=SECONDS, quiet_s=st.floats(0, 2 * QUIET_S), rested_s=st.floats(0, 2 * ALL_S))
def test_a_rest_is_in_proportion_to_the_work_and_bounded_and_there_is_none_where_nobody_asks(
        worked_s: float, quiet_s: float, rested_s: float) -> None:
    found = rest_s(worked_s, quiet_s, rested_s)
    if quiet_s >= QUIET_S or rested_s >= ALL_S:
        assert found == 0
    else:
        assert found in (TIMES * worked_s, MOST_S, ALL_S - rested_s)
        assert found <= min(TIMES * worked_s, MOST_S, ALL_S - rested_s)


class World:
    """A clock that goes on as somebody sleeps, and callers who ask until a time."""

    def __init__(self, asked_until_s: float) -> None:
        self.now_s, self.asked_until_s = 0.0, asked_until_s
        self.rests = Rests(self.quiet_s, clock=lambda: self.now_s, sleep=self.sleep)

    def quiet_s(self) -> float:
        return max(0.0, self.now_s - self.asked_until_s)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds

    def rested_s(self, worked_s: float) -> float:
        self.now_s += worked_s
        began_s = self.now_s
        self.rests()
        return self.now_s - began_s


def test_each_piece_is_rested_after_by_what_it_took_itself() -> None:
    world = World(asked_until_s=1e9)
    for worked_s in (0.004, 0.5, 0.0, 0.02):
        assert abs(world.rested_s(worked_s) - TIMES * worked_s) < 1e-6
    assert abs(world.rested_s(2 * MOST_S) - MOST_S) < 1e-6


def test_all_rests_of_a_load_together_are_bounded() -> None:
    world = World(asked_until_s=1e9)
    rested_s = [world.rested_s(MOST_S) for _ in range(10)]
    assert abs(sum(rested_s) - ALL_S) < 1e-6
    assert rested_s[-1] == 0


def test_a_rest_ends_soon_after_nobody_asks_any_more() -> None:
    world = World(asked_until_s=1.5)
    assert 0.5 + QUIET_S <= world.rested_s(1.0) < 0.5 + 2 * QUIET_S
    assert world.rested_s(1.0) == 0


def test_a_load_that_a_reload_waits_for_does_not_rest_and_a_swap_does(tmp_path: Path) -> None:
    quiet_s: list[float] = []

    def load(path: Path) -> tuple[Servable, LoadTimes]:
        if path.parent.name == "first" and path.name == "1":  # the start
            return EchoServable(), LoadTimes()
        with lent(server.versions, ModelRef("first")):
            pass
        quiet_s.append(server._quiet_s())
        return EchoServable(), LoadTimes()

    models = [ModelConfig(name=name, base_path=str(make_versions(tmp_path / name, "1")))
              for name in ("first", "second")]
    with running((models[0],), load=load) as (server, _):
        server.versions.configure(models)
        make_versions(tmp_path / "first", "2")
        server.versions.poll()
        assert wait_until(server.versions, lambda: len(quiet_s) == 2, 20)
    assert quiet_s[0] == math.inf
    assert 0 <= quiet_s[1] < QUIET_S
