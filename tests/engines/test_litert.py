"""The LiteRT engine gives the network's logits, in any order of reads, steps, joins and leaves."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow.lite.python import schema_py_generated as schema

from tests.engines import small
from tf_infer.config import SmallTransformerConfig
from tf_infer.engines import litert, litert_runtime
from tf_infer.engines.contracts import Part, StepEngine
from tf_infer.errors import BackendMissing, ConfigError, ExportError
from tf_infer.manifest import ENGINE_FILE
from tf_infer.networks import build
from tf_infer.networks.arrays import DecoderArrays
from tf_infer.optimize import litert as optimize
from tf_infer.optimize import litert_attention
from tf_infer.optimize.litert_decoder import DecoderFile

pytest.importorskip("ai_edge_litert", reason="needs the extra `server`")

FLOAT_ATOL = 2e-5  # logits up to 10; other orders of the same sums
# A weight is off by up to 1/254 of the largest of its row, and so is an input; narrow layers (32)
# average little of that away. Root mean square of differences, relative to that of the logits;
# the rounded weights alone, multiplied in float32, make 0.024.
INT8_RMS = 0.04
INT8_CACHE_RMS = 0.01


class Case:
    """A network, its texts and logits, and its engine."""

    def __init__(self, family: str, folder: Path, precision: str = "float32") -> None:
        self.network = small.network(family)
        self.ids = small.texts()
        self.wanted = small.whole(self.network, self.ids)
        self.folder = folder
        self.engine = small.engine(self.network, folder, precision)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {family: Case(family, tmp_path_factory.mktemp(family) / "litert")
            for family in small.FAMILIES}


@pytest.fixture(params=list(small.FAMILIES))
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


@pytest.fixture
def llama(cases: dict[str, Case]) -> Case:
    return cases["llama"]


def read_whole(engine: StepEngine, slot: int, ids: np.ndarray) -> np.ndarray:
    """Read ids chunk by chunk and return the last logits."""
    logits = np.empty(0)
    for start in range(0, len(ids), engine.chunk):
        logits = engine.read(slot, ids[start:start + engine.chunk], start)
    return logits.copy()


def walk(case: Case, seed: int, moves: int = 150) -> float:
    """Read and step slots at random, ending and beginning anew; return the worst difference."""
    engine, random = case.engine, np.random.default_rng(seed)
    lengths = np.zeros(engine.slots, np.int32)
    worst = 0.0
    for _ in range(moves):
        slot = int(random.integers(engine.slots))
        if random.random() < 0.1:
            lengths[slot] = 0
        elif random.random() < 0.4:
            count = min(int(random.integers(1, engine.chunk + 1)), small.POSITIONS - lengths[slot])
            begin = int(lengths[slot])
            if count:
                logits = engine.read(slot, case.ids[slot, begin:begin + count], begin)
                lengths[slot] += count
                wanted = case.wanted[slot, lengths[slot] - 1]
                worst = max(worst, float(np.abs(logits - wanted).max()))
        else:
            active = [n for n in range(engine.slots)
                      if random.random() < 0.6 and lengths[n] < small.POSITIONS]
            if active:
                tokens = case.ids[np.arange(engine.slots), np.minimum(lengths, 99)]
                logits = engine.step(tokens, lengths.copy(), active)
                for n in active:
                    apart = np.abs(logits[n] - case.wanted[n, lengths[n]]).max()
                    worst = max(worst, float(apart))
                    lengths[n] += 1
    return worst


def test_any_order_of_reads_steps_joins_and_leaves_gives_the_networks_logits(case: Case) -> None:
    assert walk(case, seed=1) < FLOAT_ATOL


def test_int8_weights_stay_near_the_network(tmp_path: Path) -> None:
    case = Case("llama", tmp_path / "litert", "int8")
    assert case.engine.manifest.cache == "float32"  # heads are small
    apart = []
    for place in range(small.POSITIONS):
        logits = case.engine.step(case.ids[:, place], np.full(4, place), [0, 1, 2, 3])
        apart.append(logits - case.wanted[:, place])
    relative = np.sqrt(np.mean(np.square(apart)) / np.mean(np.square(case.wanted)))
    assert 0.001 < relative < INT8_RMS


def test_every_position_of_a_full_slot_is_right_also_at_the_borders_of_pages(llama: Case) -> None:
    engine, lengths = llama.engine, np.zeros(4, np.int32)
    for place in range(small.POSITIONS):
        lengths[2] = place
        logits = engine.step(np.full(4, llama.ids[2, place], np.int32), lengths, [2])
        np.testing.assert_allclose(logits[2], llama.wanted[2, place], atol=FLOAT_ATOL)
    with pytest.raises(ConfigError, match="0 to 99 positions"):
        engine.step(np.zeros(4, np.int32), np.array([0, 0, 100, 0]), [2])
    with pytest.raises(ConfigError, match="start \\+ ids <= 100"):
        engine.read(2, llama.ids[2, :4], 97)


@pytest.mark.parametrize("sizes", [[16] * 6 + [4], [1] * 20 + [80], [3, 16, 7, 64, 10], [96, 4]])
def test_reading_in_any_chunks_is_reading_whole(llama: Case, sizes: list[int]) -> None:
    start = 0
    for size in sizes:
        logits = llama.engine.read(1, llama.ids[1, start:start + size], start)
        start += size
        np.testing.assert_allclose(logits, llama.wanted[1, start - 1], atol=FLOAT_ATOL)
    assert start == small.POSITIONS


def test_a_slot_is_alone_whatever_stands_in_the_others(llama: Case) -> None:
    engine = llama.engine
    read_whole(engine, 0, llama.ids[0, :70])
    alone = engine.step(llama.ids[:, 70], np.array([70, 0, 0, 0]), [0])[0].copy()
    for slot in (1, 2, 3):
        read_whole(engine, slot, llama.ids[slot, :30 * slot])
    lengths = np.array([70, 30, 60, 90], np.int32)
    crowd = engine.step(llama.ids[np.arange(4), lengths], lengths, [0, 1, 2, 3])
    np.testing.assert_allclose(crowd[0], alone, atol=FLOAT_ATOL)


@pytest.mark.parametrize("length", [3, 20, 33, 50, 70])
@pytest.mark.parametrize("kind", ["llama float32", "llama int8", "gpt2 float32", "gpt2 int8"])
def test_a_slots_logits_are_the_same_bits_beside_longer_neighbours(
        llama: Case, engines: dict[str, litert.LiteRTEngine], kind: str, length: int) -> None:
    """A step of more rows and pages sums in the same order: sampled texts need that."""
    engine = engines[kind]
    lengths = np.array([length, 60, 98, 20], np.int32)
    for slot, held in enumerate(lengths):
        read_whole(engine, slot, llama.ids[slot, :held])
    alone = engine.step(llama.ids[:, 9], lengths, [0])[0].copy()
    pair = engine.step(llama.ids[:, 9], lengths, [0, 3])[0].copy()
    crowd = engine.step(llama.ids[:, 9], lengths, [0, 1, 2, 3])[0]
    np.testing.assert_array_equal(pair, alone)
    np.testing.assert_array_equal(crowd, alone)


@pytest.mark.parametrize("kind", ["llama int8", "gpt2 float32", "gpt2 int8"])
def test_a_row_alone_has_the_bits_of_a_crowd_whatever_came_into_it_since(
        llama: Case, engines: dict[str, litert.LiteRTEngine], kind: str) -> None:
    """Of one row positions lie side by side, of several in pages."""
    engine, random = engines[kind], np.random.default_rng(4)
    lengths = np.zeros(4, np.int32)
    kept = {slot: engine.save(slot, 0) for slot in range(4)}
    for move in range(60):
        slot = int(random.integers(4))
        begin = int(lengths[slot])
        match int(random.integers(4)):
            case 0 if begin < 80:
                engine.read(slot, llama.ids[slot, begin:begin + 9], begin)
                lengths[slot] += 9
            case 1:
                kept[slot] = engine.save(slot, begin)
            case 2:
                other = int(random.integers(4))
                engine.restore(slot, kept[other])
                lengths[slot] = sum(page[0].shape[2] for page in kept[other].pages)
            case _:
                lengths[slot] = begin // 2
        tokens = random.integers(0, small.VOCABULARY, 4).astype(np.int32)
        held = np.minimum(lengths, small.POSITIONS - 1)
        alone = engine.step(tokens, held, [slot])[slot].copy()
        company = [slot, (slot + 1) % 4] if move % 2 else [0, 1, 2, 3]
        np.testing.assert_array_equal(engine.step(tokens, held, company)[slot], alone)
        lengths[slot] = held[slot] + 1


@pytest.mark.parametrize("kind", ["llama int8", "gpt2 float32", "gpt2 int8"])
def test_a_row_alone_that_goes_back_sees_what_it_reads_anew(
        llama: Case, engines: dict[str, litert.LiteRTEngine], kind: str) -> None:
    engine = engines[kind]
    read_whole(engine, 0, llama.ids[0, :40])
    for token, held in ((1, 40), (2, 41), (3, 42), (4, 41)):
        engine.step(np.full(4, token, np.int32), np.full(4, held, np.int32), [0])
    tokens, lengths = np.full(4, 5, np.int32), np.full(4, 42, np.int32)
    alone = engine.step(tokens, lengths, [0])[0].copy()
    np.testing.assert_array_equal(engine.step(tokens, lengths, [0, 1])[0], alone)


@pytest.mark.parametrize(("family", "block", "blocks"), [
    ("llama", 200 * 16, {"step_8_2": ["keys_0_0_1", "values_0_0_1"]}),
    ("gpt2", 200 * 32, {"step_8_3": ["keys_0_0_1", "values_0_0_1"]}),
    ("gpt2", 40 * 32, {"step_1_2": ["keys_0_0_1", "values_0_0_1"], "step_1_3": ["keys_0_0_3"]})])
def test_rows_that_are_looked_at_block_by_block_have_the_bits_of_a_row_alone(
        cases: dict[str, Case], family: str, block: int, blocks: dict[str, list[str]],
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of keys a block is what fits of one page, of values what fits of all; of one row some heads.
    """
    case = cases[family]
    monkeypatch.setattr(litert_attention, "BLOCK", block)
    settings = optimize.EngineSettings(cache="int8", rows=(1, 8), chunks=(16,))
    optimize.write(case.network, tmp_path / "litert", settings, positions=small.POSITIONS)
    engine = litert.load(tmp_path / "litert", threads=1)
    assert engine.guesses == settings.guesses
    for graph, names in blocks.items():
        assert set(names) <= set(engine._model.inputs(graph))
    tokens = np.arange(8, dtype=np.int32)
    lengths = np.array([70, 3, 40, 98, 33, 64, 9, 80], np.int32)
    for slot, length in enumerate(lengths):
        read_whole(engine, slot, case.ids[slot % 4, :length])
    crowd = engine.step(tokens, lengths, range(8)).copy()
    for slot in range(8):
        np.testing.assert_array_equal(engine.step(tokens, lengths, [slot])[slot], crowd[slot])
    engine.close()


def test_a_step_of_one_row_has_as_many_operations_however_long_its_text(
        engines: dict[str, litert.LiteRTEngine], rounded_file: Path) -> None:
    for kind, file in (("llama int8", rounded_file),
                       ("gpt2 int8", rounded_file.parents[1] / "gpt2" / "model.tflite")):
        counts = operations(file)
        pages = len(engines[kind].manifest.pages)
        alone = [counts[f"step_1_{count}"] for count in range(1, pages + 1)]
        widened = 0 if kind == "llama int8" else 3  # operations that make a mask of 96 one of 128
        assert {alone[0], alone[-1]} == {alone[1] - widened}
        several = [counts[f"step_2_{count}"] for count in range(1, pages + 1)]
        assert all(fewer + 3 < more for fewer, more in itertools.pairwise(several))


def test_a_head_of_zeros_is_kept_as_zeros(
        cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scale is 0, and its whole numbers are whatever a division by 0 makes."""
    case, whole = cases["gpt2"], optimize.arrays_of

    def pruned(network: Any, positions: int) -> DecoderArrays:
        arrays = whole(network, positions)
        for layer in arrays.layers:
            for first in (arrays.heads, 2 * arrays.heads):  # of keys, of values
                rows = slice(first * arrays.head_size, (first + 1) * arrays.head_size)
                layer.qkv.kernel[rows] = 0.0
                assert layer.qkv.bias is not None and layer.norm.shift is not None
                layer.qkv.bias[rows] = 0.0
        return arrays

    monkeypatch.setattr(optimize, "arrays_of", pruned)
    exact, kept = (small.engine(case.network, tmp_path / cache, cache=cache, guesses=3)
                   for cache in ("float32", "int8"))
    found = []
    for engine in (exact, kept):
        logits = [read_whole(engine, 1, case.ids[1, :50])]
        logits += [engine.step(np.full(4, case.ids[1, place]), np.full(4, place), [1])[1].copy()
                   for place in range(50, 70)]
        np.testing.assert_array_equal(engine.extend(1, case.ids[1, 66:70], 66), logits[-4:])
        found.append(np.stack(logits))
    apart = np.sqrt(np.mean(np.square(found[1] - found[0])) / np.mean(np.square(found[0])))
    assert apart < INT8_CACHE_RMS
    for _, _, *scales in kept.save(1, 70).pages:
        for array in scales:
            assert not array[:, 0].any() and array[:, 1:].all()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_engine_from_before_pages_were_joined_gives_the_same_logits(
        cases: dict[str, Case], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
        ) -> None:
    class Before(DecoderFile):
        """All graphs see the cache page by page."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.joined_pages = self.one_piece = False

    monkeypatch.setattr(optimize, "DecoderFile", Before)
    case = cases[family]
    engine = small.engine(case.network, tmp_path / "litert")
    path = tmp_path / "litert" / ENGINE_FILE
    described = json.loads(path.read_text("utf-8"))
    assert [described.pop(name) for name in ("joined_pages", "one_piece")] == [False, False]
    path.write_text(json.dumps(described), "utf-8")
    engine = litert.load(tmp_path / "litert", threads=1)
    assert {"keys_0_0_0", "keys_0_1_0"} <= set(engine._model.inputs("step_1_2"))
    read_whole(engine, 2, case.ids[2, :70])
    for active in ([2], [2, 3]):
        logits = engine.step(case.ids[:, 70], np.array([0, 0, 70, 0]), active)
        np.testing.assert_allclose(logits[2], case.wanted[2, 70], atol=FLOAT_ATOL)


@pytest.mark.parametrize("positions", [10, 30, 60])
def test_an_engine_of_a_single_page_gives_the_networks_logits(positions: int, tmp_path: Path
                                                              ) -> None:
    network = small.network("gpt2", positions)
    engine = small.engine(network, tmp_path / "litert")
    assert len(engine.manifest.pages) == 1
    ids = small.texts()[:, :positions]
    wanted = small.whole(network, ids)
    for place in range(positions):
        crowd = engine.step(ids[:, place], np.full(4, place), [0, 1]).copy()
        np.testing.assert_allclose(crowd[:2], wanted[:2, place], atol=FLOAT_ATOL)
        np.testing.assert_array_equal(
            engine.step(ids[:, place], np.full(4, place), [0])[0], crowd[0])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_step_is_the_same_bits_over_however_many_pages(family: str, tmp_path: Path) -> None:
    """A row sees as many pages as the longest row beside it fills."""
    positions = 400
    engine = small.engine(small.network(family, positions), tmp_path / "litert")
    pages = list(itertools.accumulate(engine.manifest.pages))
    assert len(pages) > 5 and pages[-1] >= positions
    random = np.random.default_rng(2)
    for length in [*range(20, 380, 12), *(page - 1 for page in pages[:-1])]:
        ids = random.integers(0, small.VOCABULARY, length + 1)
        read_whole(engine, 1, ids[:length])
        tokens, lengths = np.full(4, ids[length]), np.array([0, length, 0, 0])
        alone = engine.step(tokens, lengths, [1])[1].copy()
        for longest in (page - 1 for page in pages if page > length):
            # What stands in the other row does not matter, only how much.
            lengths[2] = min(longest, positions - 1)
            np.testing.assert_array_equal(engine.step(tokens, lengths, [1, 2])[1], alone)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_prompts_read_together_are_the_same_bits_as_each_alone(
        llama: Case, precision: str, tmp_path: Path) -> None:
    """Whatever the others' lengths, in whichever slots, and also in what is written down."""
    engine = llama.engine if precision == "float32" else small.engine(
        llama.network, tmp_path / "litert", precision, cache="int8")
    lengths = (3, 16, 9, 4, 97, 60)
    alone = {}
    for length in lengths:
        for part in small.pieces(engine, Part(1, llama.ids[1, :length])):
            alone[length] = engine.read(*part).copy()
        alone[-length] = np.concatenate([page[0] for page in engine.save(1, length).pages], 2)
    for crowd in [(3, 16), (16, 3, 9, 4), (9, 3), (97, 4, 3), (60, 97, 4, 3), (4,)]:
        slots = np.random.default_rng(len(crowd)).permutation(engine.slots)[:len(crowd)].tolist()
        parts = [Part(slot, llama.ids[1, :length]) for slot, length in zip(slots, crowd)]
        found = engine.read_many(parts).copy()
        for slot, length, logits in zip(slots, crowd, found):
            np.testing.assert_array_equal(logits, alone[length])
            keys = np.concatenate([page[0] for page in engine.save(slot, length).pages], 2)
            np.testing.assert_array_equal(keys, alone[-length])


def operations(file: Path) -> dict[str, int]:
    """Return how many operations each graph has."""
    model = schema.Model.GetRootAs(file.read_bytes())
    graphs = [model.Subgraphs(number) for number in range(model.SubgraphsLength())]
    return {graph.Name().decode(): graph.OperatorsLength() for graph in graphs}


@pytest.fixture(scope="module")
def rounded_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rounded") / "litert" / "model.tflite"


@pytest.fixture(scope="module")
def rounded(cases: dict[str, Case], rounded_file: Path) -> Any:
    """The same network with a cache of int8, so that nothing else is rounded."""
    return small.engine(cases["llama"].network, rounded_file.parent, cache="int8")


def test_an_int8_cache_holds_each_head_within_half_a_step_of_its_scale(
        llama: Case, rounded: litert.LiteRTEngine) -> None:
    for engine in (llama.engine, rounded):
        read_whole(engine, 1, llama.ids[1, :60])
        lengths = np.full(4, 60, np.int32)
        engine.step(np.full(4, llama.ids[1, 60], np.int32), lengths, [1])
    exact, kept = (engine.save(1, 61) for engine in (llama.engine, rounded))
    assert kept.nbytes == 2 * 2 * 2 * 61 * (8 + 4)  # kinds, layers, groups, places, d and a scale
    for wanted, found in zip(exact.pages, kept.pages):
        for floats, numbers, scales in zip(wanted, found[:2], found[2:]):
            # Of the first layer alone the inputs are the same.
            apart = np.abs(numbers[0] * scales[0] - floats[0])
            assert numbers.dtype == np.int8 and (apart <= 0.501 * scales[0]).all()
            np.testing.assert_allclose(scales[0], np.abs(floats[0]).max(-1, keepdims=True) / 127,
                                       rtol=1e-5)


@pytest.fixture(scope="module")
def engines(cases: dict[str, Case], rounded: litert.LiteRTEngine, rounded_file: Path
            ) -> dict[str, litert.LiteRTEngine]:
    return {"llama float32": cases["llama"].engine, "llama int8": rounded,
            "gpt2 float32": cases["gpt2"].engine, "gpt2 int8": small.engine(
                cases["gpt2"].network, rounded_file.parents[1] / "gpt2", cache="int8")}


@pytest.mark.parametrize("sizes", [[96, 4], [16] * 6 + [4], [1] * 20 + [80], [3, 16, 7, 64, 10]])
def test_what_an_int8_cache_rounds_does_not_depend_on_how_a_prompt_is_cut(
        llama: Case, rounded: litert.LiteRTEngine, sizes: list[int]) -> None:
    """A chunk sees of itself what those behind it see of it."""
    wanted = [rounded.step(np.full(4, llama.ids[1, place], np.int32), np.full(4, place), [1]
                           )[1].copy() for place in range(small.POSITIONS)]
    relative = np.sqrt(np.mean(np.square(np.stack(wanted) - llama.wanted[1]))
                       / np.mean(np.square(llama.wanted[1])))
    assert 1e-4 < relative < INT8_CACHE_RMS
    start = 0
    for size in sizes:
        logits = rounded.read(1, llama.ids[1, start:start + size], start)
        start += size
        np.testing.assert_allclose(logits, wanted[start - 1], atol=FLOAT_ATOL)


def test_prompts_are_read_together_in_few_calls(llama: Case) -> None:
    engine = llama.engine
    calls: list[int] = []
    parts = [Part(slot, llama.ids[slot, :length]) for slot, length in enumerate((3, 12, 4, 20))]
    with pytest.MonkeyPatch.context() as patch:
        whole = engine._read
        patch.setattr(engine, "_read", lambda read, parts: (
            calls.append(len(parts)), whole(read, parts)))
        logits = engine.read_many(parts)
        assert sorted(calls) == [1, 1, 3], "16 and 4 of the last, which a read of 96 would cost"
        for part, found in zip(parts, logits):
            wanted = llama.wanted[part.slot, len(part.ids) - 1]
            np.testing.assert_allclose(found, wanted, atol=FLOAT_ATOL)
        more = [Part(slot, llama.ids[slot, start:start + 9], start)
                for slot, start in enumerate((3, 12, 4))]
        for part, found in zip(more, engine.read_many(more)):
            wanted = llama.wanted[part.slot, part.start + 8]
            np.testing.assert_allclose(found, wanted, atol=FLOAT_ATOL)


@pytest.mark.parametrize(("parts", "text"), [
    ([], "one or more of different slots"), ([(1, 3, 0), (1, 2, 3)], r"got \[1, 1\]"),
    ([(0, 0, 0)], "got 0 at 0"), ([(0, 4, 97)], "got 4 at 97"), ([(0, 4, -1)], "got 4 at -1")])
def test_parts_that_cannot_be_read_are_refused(
        llama: Case, parts: list[tuple[int, int, int]], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        llama.engine.read_many([Part(slot, llama.ids[0, :count], start)
                                for slot, count, start in parts])


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 99])
def test_what_is_saved_goes_on_in_any_slot(llama: Case, length: int) -> None:
    engine = llama.engine
    read_whole(engine, 3, llama.ids[3, :length])
    saved = engine.save(3, length)
    assert saved.nbytes == 2 * 2 * 2 * length * 8 * 4  # kinds, layers, groups, d, bytes
    read_whole(engine, 3, llama.ids[0, :80])  # something else comes into the slot
    for slot in (0, 3):
        read_whole(engine, slot, llama.ids[1, :16])
        engine.restore(slot, saved)
        lengths = np.zeros(4, np.int32)
        lengths[slot] = length
        logits = engine.step(np.full(4, llama.ids[3, length], np.int32), lengths, [slot])
        np.testing.assert_allclose(logits[slot], llama.wanted[3, length], atol=FLOAT_ATOL)


def test_warming_up_meets_every_graph_and_changes_no_slot(llama: Case) -> None:
    read_whole(llama.engine, 1, llama.ids[1, :50])
    engine = litert.load(llama.folder, threads=1)
    manifest = engine.manifest
    assert len(engine._steps) == len(manifest.rows) * len(manifest.pages)
    met = len(engine._steps) + len(engine._reads) + len(engine._joined)
    assert met == len(engine._model.signatures)
    assert set(engine._joined) == {(2, 4), (4, 4), (2, 16), (4, 16)}
    llama.engine.warm_up()
    logits = llama.engine.step(llama.ids[:, 50], np.array([0, 50, 0, 0]), [1])
    np.testing.assert_allclose(logits[1], llama.wanted[1, 50], atol=FLOAT_ATOL)


def test_of_a_loaded_model_file_no_page_and_no_second_description_stays(llama: Case) -> None:
    engine = litert.load(llama.folder, threads=1)
    mapped = Path("/proc/self/smaps").read_text("utf-8").split(f"{llama.folder}/model.tflite\n")[1:]
    resident = [part.split("\nRss:", 1)[1].split("kB", 1)[0].strip() for part in mapped]
    assert "0" in resident
    assert engine._model._model is None, "LiteRT's own description of every operation"
    np.testing.assert_allclose(read_whole(engine, 0, llama.ids[0, :40]), llama.wanted[0, 39],
                               atol=FLOAT_ATOL)
    engine.close()


def test_there_is_a_graph_for_every_read_that_a_slot_has_room_for_and_no_other(llama: Case) -> None:
    engine = llama.engine
    asked = set()
    for start in range(small.POSITIONS):
        for count in range(1, min(engine.chunk, small.POSITIONS - start) + 1):
            size = next(size for size in engine.manifest.chunks if size >= count)
            asked.add(f"read_{size}_{engine._read_pages(size, start)}")
    assert asked == {name for name in engine._model.signatures
                     if name.startswith("read") and "x" not in name}


def test_a_read_has_as_many_operations_behind_one_page_as_behind_two(
        rounded: litert.LiteRTEngine, rounded_file: Path) -> None:
    counts = operations(rounded_file)
    for tokens in rounded.manifest.chunks[:2]:
        assert counts[f"read_{tokens}_1"] == counts[f"read_{tokens}_2"]


def test_in_a_read_the_last_layer_is_found_for_the_last_id_alone(rounded_file: Path) -> None:
    model = schema.Model.GetRootAs(rounded_file.read_bytes())
    codes = [model.OperatorCodes(place).BuiltinCode()
             for place in range(model.OperatorCodesLength())]
    dense = codes.index(schema.BuiltinOperator.FULLY_CONNECTED)
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        name = graph.Name().decode()
        if name in ("read_16_0", "read_16_2", "read_2x16"):
            made = [graph.Tensors(one.Outputs(0)).ShapeAsNumpy().tolist() for one in (
                graph.Operators(place) for place in range(graph.OperatorsLength()))
                if one.OpcodeIndex() == dense]
            ids, rows = (32, 2) if name == "read_2x16" else (16, 1)
            # Queries with keys and values, out, gate, inner, outer; what is ahead of the last id.
            assert [shape[0] for shape in made] == [ids] * 6 + [rows] * 6, name


def test_an_engine_whose_reads_look_over_any_number_of_pages_gives_the_same_logits(
        cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those that were exported before there were so few."""
    case = cases["gpt2"]
    monkeypatch.setattr(optimize, "read_pages", lambda most, *_: range(most + 1))
    engine = small.engine(case.network, tmp_path / "litert")
    assert "read_16_2" in engine._model.signatures
    assert "read_16_2" not in case.engine._model.signatures
    for length in (20, 70, 80):
        found = []
        for one in (engine, case.engine):
            one.read(1, case.ids[1, :length], 0)
            found.append(one.read(1, case.ids[1, length:length + 9], length).copy())
        np.testing.assert_allclose(found[0], found[1], atol=FLOAT_ATOL)
    engine.close()


def test_no_product_takes_what_becomes_floats_for_it_alone(
        rounded: litert.LiteRTEngine, rounded_file: Path) -> None:
    """XNNPACK would keep as much memory again, for every layer of every graph."""
    model = schema.Model.GetRootAs(rounded_file.read_bytes())
    codes = [model.OperatorCodes(place).BuiltinCode()
             for place in range(model.OperatorCodesLength())]
    products = 0
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        made = {}
        for place in range(graph.OperatorsLength()):
            one = graph.Operators(place)
            made[one.Outputs(0)] = code = codes[one.OpcodeIndex()]
            if code == schema.BuiltinOperator.BATCH_MATMUL:
                products += 1
                assert schema.BuiltinOperator.DEQUANTIZE not in (
                    made.get(one.Inputs(0)), made.get(one.Inputs(1))), graph.Name()
    assert products > len(rounded._model.signatures)


def test_only_so_many_reads_stay_bound_and_others_are_bound_anew(
        llama: Case, rounded: litert.LiteRTEngine) -> None:
    engine = rounded
    places = [(slot, start) for slot in range(4) for start in (0, 10, 40, 70)]

    def everywhere() -> list[np.ndarray]:
        return [engine.read(slot, llama.ids[slot, start:start + 9], start).copy()
                for slot, start in places]

    everywhere()  # so that what stands in front is the same from now on
    wanted = everywhere()
    while engine._reads:
        engine._model.unbind(engine._reads.popitem()[1].call)
    others = len(engine._model._calls)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_most_reads", 3)
        for _ in range(2):
            np.testing.assert_array_equal(everywhere(), wanted)
        assert (len(engine._reads), len(engine._model._calls)) == (3, others + 3)


def test_the_loops_of_other_threads_go_on_while_it_computes(llama: Case) -> None:
    engine, counted, going = llama.engine, [0], threading.Event()

    def count() -> None:
        while not going.is_set():
            counted[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    call = engine._reading(0, 16, 2).call
    try:
        before = counted[0]
        for calls in range(1, 5001):
            call()
            # Would it hold the lock, others had a turn every 5 ms: at one call of fifty.
            if calls >= 200 and counted[0] - before > calls / 4:
                break
        during = counted[0] - before
    finally:
        going.set()
        thread.join()
    assert during > calls / 4


def test_an_int8_cache_of_odd_heads_is_refused(tmp_path: Path) -> None:
    """Of 3 heads of 35 numbers and 32 positions the second row would begin between two borders."""
    odd = SmallTransformerConfig(width=105, layers=1, heads=3, hidden=64, max_positions=32)
    with pytest.raises(ConfigError, match=r"EngineSettings\.cache: .* float32 for heads of 35"):
        optimize.write(build.decoder(odd, vocab_size=9, seed=1), tmp_path / "litert",
                       optimize.EngineSettings(cache="int8", rows=(1, 2)), positions=32)
    assert not (tmp_path / "litert").exists()


def test_a_changed_model_file_is_refused(llama: Case, tmp_path: Path) -> None:
    for name in ("model.tflite", "engine.json"):
        (tmp_path / name).write_bytes((llama.folder / name).read_bytes())
    with open(tmp_path / "model.tflite", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    with pytest.raises(ExportError, match=r"expected the file of its engine\.json"):
        litert.load(tmp_path)
    (tmp_path / "model.tflite").unlink()
    with pytest.raises(ExportError, match="Copy the version again"):
        litert.load(tmp_path)
    (tmp_path / "engine.json").unlink()
    with pytest.raises(ConfigError, match=r"engine\.json: cannot be read"):
        litert.load(tmp_path)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"no model")
    with pytest.raises(ExportError, match="expected a model that LiteRT runs"):
        litert_runtime.Model(tmp_path / "model.tflite", threads=1)


class Counted:
    """LiteRT's functions; counts what is made and not freed, and lets calls of one of them fail."""

    def __init__(self, failing: str = "", after: int = 0) -> None:
        self._library, self.failing, self.after = litert_runtime._library(), failing, after
        self.held: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            if name == self.failing:
                self.after -= 1
                if self.after < 0:
                    return 1
            status = getattr(self._library, name)(*arguments)
            what = name.removeprefix("LiteRtCreate").removeprefix("LiteRtDestroy")
            what = "TensorBuffer" if what.startswith("TensorBuffer") else what.split("From")[0]
            if name.startswith("LiteRtDestroy"):
                self.held[what] -= 1
            elif name.startswith("LiteRtCreate") and what != "OpaqueOptions" and not status:
                self.held[what] += 1  # opaque options belong to those they are added to
            return status
        return call


@pytest.mark.parametrize("failing", [
    "LiteRtCreateModelFromBuffer", "LiteRtSetOptionsHardwareAccelerators",
    "LiteRtCreateCompiledModel", "LiteRtGetNumModelSignatures", "LiteRtGetSignatureKey"])
def test_a_load_that_fails_half_way_leaves_nothing_behind(llama: Case, failing: str) -> None:
    counted = Counted(failing)
    with pytest.raises(ExportError, match=f"got status 1 of {failing}"):
        litert_runtime.Model(llama.folder / "model.tflite", threads=1, library=counted)
    assert counted.held and set(counted.held.values()) == {0}


def test_arrays_that_cannot_all_be_bound_leave_no_buffer_behind(llama: Case) -> None:
    counted = Counted("LiteRtCreateTensorBufferFromHostMemory", after=2)
    model = litert_runtime.Model(llama.folder / "model.tflite", threads=1, library=counted)
    name = model.signatures[0]
    arrays = {tensor: litert_runtime.aligned((1 << 16,), np.float32)
              for tensor in [one for side in model._signatures[name][1:] for one, _ in side]}
    with pytest.raises(ExportError, match="HostMemory"):
        model.bind(name, arrays)
    assert counted.after < 0 and counted.held["TensorBuffer"] == 0
    model.close()
    assert set(counted.held.values()) == {0}


@pytest.mark.parametrize(("found", "text"), [
    (None, r"pip install 'tf-infer\[server\]'"), ("1.4.0", "expected ai-edge-litert 2.3, got 1.4")])
def test_a_missing_or_another_library_is_named_with_its_extra(
        found: str | None, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(_: str) -> Any:
        if found is None:
            raise litert_runtime.importlib.metadata.PackageNotFoundError
        return found

    monkeypatch.setattr(litert_runtime.importlib.metadata, "version", version)
    with pytest.raises(BackendMissing, match=text):
        litert_runtime.release()
