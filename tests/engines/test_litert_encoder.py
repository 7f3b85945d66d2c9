"""The LiteRT engine of a classifier: what its network gives, a row the same in any company."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.networks.encoders import POSITIONS, classifier, rows
from tests.oracles import int8_encoder
from tf_infer import config
from tf_infer.config import EmbeddingBagConfig, ShapeGrid, SmallTransformerConfig
from tf_infer.engines import encoders, litert_runtime
from tf_infer.engines.litert_encoder import LiteRTEncoder, load
from tf_infer.errors import BackendMissing, ConfigError, DeadlineExceeded, ExportError
from tf_infer.networks.encoder_arrays import encoder_arrays_of
from tf_infer.optimize.litert_classifier import EncoderSettings, write

pytest.importorskip("ai_edge_litert", reason="needs the extra `server`")

CASES = [("bert", "pooler"), ("distilbert", "first"), ("roberta", "max"), ("small", "mean"),
         ("small", "first")]
FLOAT_ATOL = 3e-5  # of logits between -6 and 6; the same products in another order
INT8_ATOL = 0.08   # 7 bits of the largest of a row, two layers deep
ROUNDED_ATOL = 1e-3  # where a number lies halfway between two, float32 may round it otherwise
GRID = ShapeGrid(rows=(1, 4), tokens=(8, POSITIONS))
LENGTHS = (1, 9, 3, 40, 16, 17, 8, 2, 12, 33)


def logits(network: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Return what the network gives, operation by operation."""
    return np.array(network(batch["ids"], batch["mask"], batch["segments"]))


class Case:
    """A network, its engines, rows and logits."""

    def __init__(self, network: Any, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.batch = rows(LENGTHS, POSITIONS)
        self.wanted = logits(network, self.batch)
        self.engines: dict[str, LiteRTEncoder] = {}
        for precision in ("float32", "int8"):
            write(network, folder / precision, EncoderSettings(precision=precision), grid=GRID)
            self.engines[precision] = load(folder / precision, warm_up=False)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(classifier(*request.param), tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize(("precision", "atol"), [("float32", FLOAT_ATOL), ("int8", INT8_ATOL)])
def test_it_gives_the_logits_of_its_network(case: Case, precision: str, atol: float) -> None:
    got = case.engines[precision].run(**case.batch)
    assert got.dtype == np.float32
    assert np.abs(got - case.wanted).max() <= atol
    if precision == "int8":
        assert np.abs(got - case.wanted).max() > FLOAT_ATOL


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_row_gives_the_same_bits_alone_and_in_any_company(case: Case, precision: str) -> None:
    engine, random = case.engines[precision], np.random.default_rng(3)
    alone = np.concatenate([engine.run(**{name: array[row:row + 1] for name, array in
                                          case.batch.items()}) for row in range(len(LENGTHS))])
    for _ in range(5):
        order = random.choice(len(LENGTHS), random.integers(2, 3 * len(LENGTHS)))
        got = engine.run(**{name: array[order] for name, array in case.batch.items()})
        np.testing.assert_array_equal(got, alone[order])


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_row_gives_the_same_bits_however_wide_it_is_padded(case: Case, precision: str) -> None:
    engine, row = case.engines[precision], LENGTHS.index(9)
    narrow = {name: array[row:row + 1, :9] for name, array in case.batch.items()}
    wide = {name: array[row:row + 1] for name, array in case.batch.items()}
    np.testing.assert_array_equal(engine.run(**narrow), engine.run(**wide))


def test_tokens_that_do_not_count_in_the_middle_of_a_row_are_not_seen(case: Case) -> None:
    batch = dict(case.batch)
    batch["mask"] = batch["mask"].copy()
    batch["mask"][3, 5:9] = False
    np.testing.assert_allclose(case.engines["float32"].run(**batch),
                               logits(case.network, batch), atol=FLOAT_ATOL)


def test_a_row_in_which_no_token_counts_changes_no_other_and_has_one_answer(case: Case) -> None:
    batch = {name: array[:2, :8].copy() for name, array in case.batch.items()}
    batch["mask"][0] = False
    engine = case.engines["float32"]
    got, wanted = engine.run(**batch), logits(case.network, batch)
    np.testing.assert_allclose(got[1], wanted[1], atol=FLOAT_ATOL)
    np.testing.assert_array_equal(
        engine.run(**{name: array[:1, :5] for name, array in batch.items()})[0], got[0])
    if case.network.config.pooling in ("mean", "max"):  # its vector is 0
        np.testing.assert_allclose(got[0], wanted[0], atol=FLOAT_ATOL)


def test_where_kernels_add_otherwise_every_text_has_a_row_of_its_own(case: Case) -> None:
    engine = load(case.folder / "int8", warm_up=False)
    shared = engine.run(**case.batch)
    engine.unpack()
    np.testing.assert_allclose(engine.run(**case.batch), shared, atol=INT8_ATOL)
    assert all(len({placed.row for placed in group.texts}) == len(group.texts)
               for group in engine._sizes.groups(list(LENGTHS)))
    engine.close()


def test_no_row_has_no_logits(case: Case) -> None:
    empty = {name: array[:0] for name, array in case.batch.items()}
    assert case.engines["int8"].run(**empty).shape == (0, case.wanted.shape[1])


def test_no_length_is_computed_otherwise_in_company(tmp_path: Path) -> None:
    longest = 80  # rows of 16, 32, 48, 64 and 80 tokens
    network = classifier(SmallTransformerConfig(width=16, layers=1, heads=2, hidden=24,
                                                max_positions=longest), "first")
    write(network, tmp_path / "litert", EncoderSettings(), grid=ShapeGrid(
        rows=(1, 4), tokens=(8, longest)))
    engine = load(tmp_path / "litert", warm_up=False)
    assert engine.keeps_bits()
    counts = np.random.default_rng(2).permutation(np.arange(1, longest + 1))
    batch = rows(counts, longest)
    together = engine.run(**batch)
    for row in range(longest):
        alone = engine.run(**{name: array[row:row + 1] for name, array in batch.items()})[0]
        np.testing.assert_array_equal(alone, together[row], err_msg=f"{counts[row]} tokens")
    engine.close()


def test_int8_is_the_network_with_just_these_numbers_rounded(bert: Case) -> None:
    arrays, got = encoder_arrays_of(bert.network), bert.engines["int8"].run(**bert.batch)
    wanted = np.stack([int8_encoder.logits(
        arrays, bert.batch["ids"][row, :count], bert.batch["segments"][row, :count])
        for row, count in enumerate(LENGTHS)])
    assert np.abs(got - wanted).max() <= ROUNDED_ATOL
    assert np.abs(got - bert.wanted).max() > 3 * ROUNDED_ATOL


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(classifier("bert", "pooler"), tmp_path_factory.mktemp("bert"))


def test_several_threads_may_call_it_at_once(bert: Case) -> None:
    engine = bert.engines["int8"]
    wanted = engine.run(**bert.batch)
    found: list[np.ndarray] = []

    def call() -> None:
        for _ in range(5):
            found.append(engine.run(**bert.batch))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    for got in found:
        np.testing.assert_array_equal(got, wanted)


def test_whoever_waits_for_its_turn_gives_up_in_time_and_nothing_is_computed_for_it(
        bert: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = bert.engines["int8"]
    wanted = engine.run(**bert.batch)
    computed: list[object] = []
    compute = engine._compute
    monkeypatch.setattr(engine, "_compute", lambda *given: (computed.append(given),
                                                            compute(*given)))
    with engine._lock:  # as long as another call computes
        began_s = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="expected its turn before the deadline"):
            engine.run(**bert.batch, timeout_s=0.05)
        assert 0.05 <= time.monotonic() - began_s < 5.0
    assert not computed
    with pytest.raises(DeadlineExceeded):
        engine.run(**bert.batch, timeout_s=0.0)
    assert not computed
    np.testing.assert_array_equal(engine.run(**bert.batch, timeout_s=600.0), wanted)


def test_warming_up_runs_every_graph_and_changes_no_answer(bert: Case) -> None:
    engine = encoders.load(bert.folder / "int8")
    np.testing.assert_array_equal(engine.run(**bert.batch),
                                  bert.engines["int8"].run(**bert.batch))
    engine.close()


def test_rows_that_are_too_long_or_do_not_fit_each_other_are_refused(bert: Case) -> None:
    wide = rows((POSITIONS + 1,), POSITIONS + 1)
    with pytest.raises(ConfigError, match="at most 40 tokens a row, got 41"):
        bert.engines["int8"].run(**wide)
    with pytest.raises(ConfigError, match="of the same shape"):
        bert.engines["int8"].run(wide["ids"], wide["mask"][:, 1:], wide["segments"])


def test_another_file_than_the_exported_one_is_refused(bert: Case, tmp_path: Path) -> None:
    write(bert.network, tmp_path / "litert", EncoderSettings(), grid=GRID)
    model = tmp_path / "litert" / "model.tflite"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    with pytest.raises(ExportError, match="got another one"):
        load(tmp_path / "litert")
    model.write_bytes(data[:100])
    with pytest.raises(ExportError, match="got another one"):
        load(tmp_path / "litert")
    model.unlink()
    with pytest.raises(ExportError, match=r"model\.tflite: expected the engine's model"):
        load(tmp_path / "litert")


def test_a_description_cut_short_or_of_a_decoder_is_refused(bert: Case, tmp_path: Path) -> None:
    manifest = bert.engines["int8"].manifest
    (tmp_path / "engine.json").write_text("{\"kind\"")
    with pytest.raises(ConfigError, match=r"engine\.json"):
        encoders.load(tmp_path)
    config.dump(replace(manifest, kind="litert"), tmp_path / "engine.json")
    text = (tmp_path / "engine.json").read_text()
    (tmp_path / "engine.json").write_text(text.replace('"classes"', '"slots"'))
    with pytest.raises(ConfigError, match="slots"):
        encoders.load(tmp_path)


def test_without_the_library_it_says_what_to_install(
        bert: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litert_runtime, "PACKAGE", "no-such-package")
    with pytest.raises(BackendMissing, match=r"pip install 'tf-infer\[server\]'"):
        encoders.load(bert.folder / "int8")


def test_a_network_without_attention_has_no_engine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"network\.encoder: expected a BERT"):
        write(classifier(EmbeddingBagConfig(width=8, hash_buckets=50)), tmp_path / "litert",
              EncoderSettings(), grid=GRID)
    assert not (tmp_path / "litert").exists()
