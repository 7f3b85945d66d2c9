"""A search on disk: rounds that survive a kill, one search a folder, and no mixing of two."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tf_infer.errors import ConfigError
from tf_infer.optimize.plan import OptimizationPlan
from tf_infer.tuning.candidates import REFERENCE_CANDIDATE, Candidate
from tf_infer.tuning.state import (
    ROUNDS_FILE,
    Answered,
    Built,
    Folder,
    Round,
    Settings,
    digest_folder,
    open_folder,
    trials,
)
from tf_infer.tuning.trial import Times

INT8 = Candidate(plan=OptimizationPlan(precision="int8"))
SETTINGS = Settings(model="m", texts="t", machine={"cpu": "x", "numpy": "2"}, seed=1,
                    metric="accuracy", batches=(1, 8), new_tokens=0, answered=5,
                    candidates=(REFERENCE_CANDIDATE, INT8))


def done(number: int, *, failed: bool = False) -> Round:
    times = {str(batch): Times(median_s=number + batch, mean_s=number + 2.0 * batch)
             for batch in (1, 8)}
    keys = (REFERENCE_CANDIDATE.key,) if failed else (REFERENCE_CANDIDATE.key, INT8.key)
    return Round(number=number, seconds=2.5, calls={"1": 3, "8": 4},
                 times=dict.fromkeys(keys, times), failed={INT8.key: "gone"} if failed else {})


def test_a_search_goes_on_where_all_is_the_same(tmp_path: Path) -> None:
    with open_folder(tmp_path / "s", SETTINGS) as (_, again):
        assert not again
    with open_folder(tmp_path / "s", SETTINGS) as (_, again):
        assert again


@pytest.mark.parametrize(("change", "words"), [
    ({"model": "n"}, "model"), ({"texts": "u", "seed": 2}, "texts, seed"),
    ({"machine": {"cpu": "x", "numpy": "3", "keras": "4"}}, r"machine \(keras, numpy\)"),
    ({"candidates": (REFERENCE_CANDIDATE,)}, "candidates"), ({"batches": (1,)}, "batches")])
def test_another_search_is_not_mixed_in_and_what_differs_is_named(
        change: Any, words: str, tmp_path: Path) -> None:
    with open_folder(tmp_path, SETTINGS):
        pass
    with pytest.raises(ConfigError, match=f"expected a search of the same {words}, got another "
                                          "one. Name another --output, or remove it."), \
            open_folder(tmp_path, replace(SETTINGS, **change)):
        pass
    with open_folder(tmp_path, SETTINGS) as (_, again):
        assert again


def test_one_folder_has_one_search_at_a_time(tmp_path: Path) -> None:
    with Folder(tmp_path):
        with pytest.raises(ConfigError, match="expected no other search in this folder, got one "
                                              "under way"), Folder(tmp_path):
            pass
        with pytest.raises(ConfigError, match="under way"), Folder(tmp_path):
            pass
    with Folder(tmp_path):  # its end gave the lock back
        pass


def test_rounds_come_back_and_a_cut_one_is_left_out(tmp_path: Path) -> None:
    with open_folder(tmp_path, SETTINGS) as (folder, _):
        assert folder.rounds() == []
        folder.add(done(0))
        folder.add(done(1))
        path = tmp_path / ROUNDS_FILE
        whole = path.read_bytes()
        second = whole.index(b"\n") + 1
        for cut in (1, second - 1, second, second + 1, len(whole) - 1):
            path.write_bytes(whole[:cut])  # as a kill leaves it
            assert folder.rounds() == [done(0)][:whole[:cut].count(b"\n")]
        folder.add(done(7))  # behind what was cut
        assert folder.rounds() == [done(0), done(7)]
        assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [0, 7]


def test_what_is_known_becomes_trials(tmp_path: Path) -> None:
    with open_folder(tmp_path, SETTINGS) as (folder, _):
        assert [one.size_bytes for one in trials(SETTINGS, folder)] == [None, None]
        folder.learn(REFERENCE_CANDIDATE, Built(version="versions/m/1", size_bytes=10))
        folder.learn(INT8, Built(version="versions/m/1", size_bytes=4))
        folder.learn(REFERENCE_CANDIDATE, Answered(metric=0.9))
        folder.learn(INT8, Answered(worst=0.5, metric=0.8))
        folder.add(done(0))
        folder.add(done(1, failed=True))
        folder.add(done(2, failed=True))
        first, second = trials(SETTINGS, folder)
        assert (first.size_bytes, first.worst, first.metric, first.failed) == (10, 0.0, 0.9, "")
        assert [one.median_s for one in first.rounds[1]] == [1, 2, 3]
        assert [one.mean_s for one in first.rounds[8]] == [16, 17, 18]
        assert (second.worst, second.metric, second.failed) == (0.5, 0.8, "gone")
        assert [one.median_s for one in second.rounds[8]] == [8]


def test_why_a_candidate_has_no_version_is_kept(tmp_path: Path) -> None:
    with open_folder(tmp_path, SETTINGS) as (folder, _):
        folder.learn(INT8, Built(failed="plan: expected ..."))
        assert folder.known(INT8, Built) == Built(failed="plan: expected ...")
        assert folder.known(INT8, Answered) is None
        assert trials(SETTINGS, folder)[1].failed == "plan: expected ..."


def test_a_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    first = digest_folder(folder)
    assert digest_folder(folder) == first
    (folder / "a").write_bytes(b"2")
    assert digest_folder(folder) != first
    (folder / "a").write_bytes(b"1")
    (folder / "a").rename(folder / "b")
    assert digest_folder(folder) != first
    assert digest_folder(folder / "b") == digest_folder(folder / "b")
