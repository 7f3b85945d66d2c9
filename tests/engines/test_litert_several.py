"""Ids that the LiteRT engine reads in one go give the bits that steps give, whatever comes next."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines import small
from tf_infer.engines import files, litert
from tf_infer.engines.contracts import Part
from tf_infer.errors import ConfigError
from tf_infer.manifest import ENGINE_FILE, StepEngineManifest
from tf_infer.optimize import litert_file

pytest.importorskip("ai_edge_litert", reason="needs the extra `server`")

GUESSES = 3
CASES = {"gpt2-float32": ("gpt2", "float32", "float32"), "gpt2-int8": ("gpt2", "int8", "int8"),
         "llama-float32": ("llama", "float32", "float32"),  # heads share keys and values
         "llama-int8": ("llama", "int8", "int8")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several") / "litert"


@pytest.fixture(scope="module", params=["gpt2-int8", "llama-float32", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2-float32", "llama-int8"))])
def engine(request: pytest.FixtureRequest, folder: Path) -> Any:
    family, precision, cache = CASES[request.param]
    shutil.rmtree(folder, ignore_errors=True)
    return small.engine(small.network(family), folder, precision, cache=cache, guesses=GUESSES)


def stepped(engine: litert.LiteRTEngine, slot: int, ids: np.ndarray, start: int) -> np.ndarray:
    """Read ids by steps; return the logits of each."""
    found = []
    for place, number in enumerate(ids, start):
        tokens, lengths = np.zeros(engine.slots, np.int32), np.zeros(engine.slots, np.int32)
        tokens[slot], lengths[slot] = number, place
        found.append(engine.step(tokens, lengths, [slot])[slot].copy())
    return np.stack(found)


def test_ids_read_in_one_go_give_the_bits_of_steps_at_every_place(
        engine: litert.LiteRTEngine) -> None:
    assert engine.guesses == GUESSES, "what load has tried on this machine"
    ids = small.texts()[0]
    wanted = stepped(engine, 1, ids, 0)
    held = engine.save(1, small.POSITIONS)
    random, length = np.random.default_rng(1), 0
    engine.restore(3, engine.save(0, 40))  # other numbers than those that are to come
    while length < small.POSITIONS:
        count = min(int(random.integers(1, 2 + GUESSES)), small.POSITIONS - length)
        kept = int(random.integers(1, count + 1))
        asked = ids[length:length + count].copy()
        asked[kept:] = (asked[kept:] + 7) % small.VOCABULARY  # guesses that do not hold
        found = engine.extend(3, asked, length)
        np.testing.assert_array_equal(found[:kept], wanted[length:length + kept])
        length += kept
    for page, other in zip(held.pages, engine.save(3, small.POSITIONS).pages):
        for array, same in zip(page, other):
            np.testing.assert_array_equal(array, same)


@pytest.mark.parametrize("start", [1, 30, 31, 32, 61, 64, 96])
def test_all_four_ids_at_the_borders_of_pages(engine: litert.LiteRTEngine, start: int) -> None:
    ids = small.texts()[2]
    engine.read_many([Part(2, ids[:start])])
    wanted = stepped(engine, 2, ids[start:start + 4], start)
    np.testing.assert_array_equal(engine.extend(2, ids[start:start + 4], start), wanted)


def test_what_is_read_in_one_go_touches_no_other_slot(engine: litert.LiteRTEngine) -> None:
    ids = small.texts()
    engine.read_many([Part(slot, ids[slot, :50]) for slot in range(4)])
    wanted = [stepped(engine, slot, ids[slot, 50:54], 50) for slot in range(4)]
    for slot in (2, 0, 3, 1):  # none of them lies in the first row
        np.testing.assert_array_equal(engine.extend(slot, ids[slot, 50:54], 50), wanted[slot])
    for slot in range(4):
        np.testing.assert_array_equal(stepped(engine, slot, ids[slot, 50:54], 50), wanted[slot])


@pytest.mark.parametrize(("count", "start"), [(0, 0), (5, 0), (4, 97), (1, -1)])
def test_ids_that_cannot_be_read_in_one_go_are_refused(
        engine: litert.LiteRTEngine, count: int, start: int) -> None:
    with pytest.raises(ConfigError, match=f"expected 1 to 4 of them, .* got {count} at {start}"):
        engine.extend(0, np.zeros(count, np.int32), start)


class Off(litert.LiteRTEngine):
    """Kernels that add up otherwise where there is one row."""

    def step(self, *given: Any) -> np.ndarray:
        """See `LiteRTEngine.step`."""
        logits: np.ndarray = super().step(*given) * np.float32(1 + 1e-6)
        return logits


def test_an_engine_tells_whether_kernels_keep_the_bits(
        engine: litert.LiteRTEngine, folder: Path) -> None:
    assert engine.keeps_bits()
    off = Off(engine.manifest, folder / engine.manifest.file, threads=1)
    assert not off.keeps_bits()
    off.close()


def bound_for_guesses(engine: litert.LiteRTEngine) -> int:
    """Return how many calls are bound to graphs that check guesses."""
    others = len(engine._steps) + len(engine._reads) + len(engine._joined)
    return len(engine._model._calls) - others


@pytest.mark.parametrize(("asked", "checked"), [(0, 0), (2, 2), (3, 3), (9, 3), (None, 3)])
def test_graphs_that_check_guesses_are_bound_only_where_guesses_are_asked_for(
        engine: litert.LiteRTEngine, folder: Path, asked: int | None, checked: int) -> None:
    loaded = litert.load(folder, threads=1, guesses=asked)
    try:
        assert loaded.guesses == checked
        assert bound_for_guesses(loaded) == (len(loaded.manifest.pages) if checked else 0)
        with pytest.raises(ConfigError, match=f"expected 1 to {1 + checked} of them"):
            loaded.extend(0, np.zeros(2 + checked, np.int32), 0)
    finally:
        loaded.close()


def test_an_engine_whose_kernels_do_not_keep_the_bits_frees_what_was_bound_to_try_them(
        engine: litert.LiteRTEngine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litert, "LiteRTEngine", Off)
    loaded = litert.load(folder, threads=1)
    try:
        assert (loaded.guesses, bound_for_guesses(loaded)) == (0, 0)
    finally:
        loaded.close()


def test_an_engine_without_room_for_the_graphs_and_one_of_an_earlier_export_do_without(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small.network("gpt2")
    monkeypatch.setattr(litert_file, "MOST_TABLES", 0)
    with pytest.raises(ConfigError, match="Take fewer positions, rows or chunks") as refused:
        small.engine(network, tmp_path / "refused", guesses=GUESSES)
    assert not (tmp_path / "refused").exists()
    needed = str(refused.value).partition("got ")[2].partition(".")[0]  # without guesses
    monkeypatch.setattr(litert_file, "MOST_TABLES", int(needed.replace(",", "")))
    small.engine(network, tmp_path / "litert", guesses=GUESSES).close()
    small.engine(network, tmp_path / "none", guesses=0).close()
    assert files.read(StepEngineManifest, tmp_path / "litert")[0] == files.read(
        StepEngineManifest, tmp_path / "none")[0], "nothing of the graphs is left in the file"
    path = tmp_path / "litert" / ENGINE_FILE
    described = json.loads(path.read_text("utf-8"))
    assert described.pop("guesses") == 0
    path.write_text(json.dumps(described), "utf-8")
    engine = litert.load(tmp_path / "litert", threads=1)
    assert engine.guesses == 0
    assert not [name for name in engine._model.signatures if name.startswith("extend")]
    with pytest.raises(ConfigError, match="expected 1 to 1 of them"):
        engine.extend(0, np.zeros(2, np.int32), 0)
    engine.close()


def test_guesses_beyond_what_pages_hold_are_refused() -> None:
    from tf_infer.optimize.litert import EngineSettings

    for wrong in (-1, 16):
        with pytest.raises(ConfigError, match=r"EngineSettings\.guesses: expected 0 to 15"):
            EngineSettings(guesses=wrong)
