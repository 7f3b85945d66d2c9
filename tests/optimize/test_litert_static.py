"""Ranges that given texts set for the LiteRT engine of a classifier, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.networks.encoders import POSITIONS, classifier, logits, rows
from tf_infer.config import ShapeGrid
from tf_infer.engines.litert_encoder import LiteRTEncoder, load
from tf_infer.errors import ConfigError, DataError
from tf_infer.networks.arrays import Dense
from tf_infer.networks.encoder_arrays import encoder_arrays_of
from tf_infer.optimize.litert_classifier import EncoderSettings, write
from tf_infer.optimize.litert_file import Constant, ModelFile
from tf_infer.optimize.litert_ranges import ranges_of
from tf_infer.optimize.litert_static import EVEN, _product, between

pytest.importorskip("ai_edge_litert", reason="needs the extra `server`")

CASES = [("bert", "pooler"), ("small", "mean")]
GRID = ShapeGrid(rows=(1, 4), tokens=(8, POSITIONS))
LENGTHS = (1, 9, 3, 40, 16, 17, 8, 2, 12, 33)
STATIC = EncoderSettings(ranges="largest")
NEAR = 0.08  # share of the spread of logits; 7 bits between all products, two layers deep


def batches() -> list[dict[str, np.ndarray]]:
    return [rows(LENGTHS, POSITIONS, seed=seed) for seed in range(2)]


class Case:
    """A network, and its engine with set ranges."""

    def __init__(self, network: Any, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.batch: Any = rows(LENGTHS, POSITIONS)
        self.wanted = logits(network, self.batch)
        self.manifest = write(network, folder, STATIC, grid=GRID, batches=batches())
        self.engine: LiteRTEncoder = load(folder, warm_up=False)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(classifier(*request.param), tmp_path_factory.mktemp("static") / "litert")


def test_an_engine_with_set_ranges_gives_nearly_the_logits_of_its_network(case: Case) -> None:
    got = case.engine.run(**case.batch)
    assert case.manifest.fixed_ranges
    off = np.abs(got - case.wanted).max() / np.ptp(case.wanted)
    assert 1e-4 < off < NEAR


def test_with_set_ranges_a_row_gives_the_same_bits_alone_and_in_any_company(case: Case) -> None:
    together = case.engine.run(**case.batch)
    for row in range(len(LENGTHS)):
        alone = case.engine.run(**{name: array[row:row + 1] for name, array in case.batch.items()})
        np.testing.assert_array_equal(alone[0], together[row])


def test_ranges_are_those_of_the_network_on_the_texts() -> None:
    arrays = encoder_arrays_of(classifier("bert", "pooler"))
    given = batches()
    first = ranges_of(arrays, given, "largest", 100.0)[0]
    norm = arrays.first_norm
    assert norm is not None and norm.shift is not None and arrays.segments is not None
    largest = 0.0  # of what the first layer reads: the norm's vectors without scale and shift
    for batch in given:
        counted = batch["mask"]
        hidden = (arrays.words[batch["ids"]] + arrays.positions[:POSITIONS]
                  + arrays.segments[batch["segments"]])[counted]
        hidden = hidden - hidden.mean(axis=1, keepdims=True)
        hidden /= np.sqrt(np.square(hidden).mean(axis=1, keepdims=True) + norm.epsilon)
        largest = max(largest, float(np.abs(hidden).max()))
    assert first.read == pytest.approx(largest, rel=1e-4)
    assert first.attended <= 1.0 + 1e-5  # an average of values, divided by the largest of them
    assert first.inner[0] >= -4.0 and first.active[0] == pytest.approx(-0.17, abs=0.005)
    assert first.active[1] == pytest.approx(first.inner[1], rel=0.1)


def test_a_smaller_share_of_all_numbers_gives_smaller_ranges() -> None:
    arrays = encoder_arrays_of(classifier("small", "mean"))
    all_of_them = ranges_of(arrays, batches(), "largest", 100.0)[1]
    most = ranges_of(arrays, batches(), "percentile", 90.0)[1]
    assert most.read < all_of_them.read
    assert most.inner[1] < all_of_them.inner[1]


def test_a_unit_between_two_numbers_holds_both_and_zero_exactly() -> None:
    for least, most in ((-0.17, 3.0), (0.0, 2.0), (-4.0, 4.0), (1.0, 2.0)):
        unit = between(least, most)
        scale, zero = float(unit.scale[0]), int(unit.zeroPoint[0])
        assert -128 <= zero <= 127
        assert (127 - zero) * scale >= most - scale
        assert (-128 - zero) * scale <= min(least, 0.0) + scale
    assert EVEN * 127 == 1.0


def test_a_bias_is_kept_whatever_the_weights_of_its_row() -> None:
    file, read, given = ModelFile(), between(-4.0, 4.0), between(-1.0, 1.0)
    weights = np.array([[0.5, -0.25], [1e-7, -5e-8], [0.0, 0.0], [0.0, 0.0]], np.float32)
    bias = np.array([0.25, 0.5, -0.01, 0.0], np.float32)
    made = _product(file, Dense(weights, bias), read, given)

    def floats(constant: Constant, dtype: type) -> np.ndarray:
        held = file.buffers[constant.buffer]
        assert held is not None and constant.scales is not None
        values = held.view(dtype).reshape(len(bias), -1)
        return np.asarray(values * constant.scales.scale.astype(np.float64)[:, None])

    np.testing.assert_allclose(floats(made.bias, np.int32)[:, 0], bias, rtol=1e-4)
    np.testing.assert_allclose(floats(made.kernel, np.int8), weights, rtol=0.01, atol=1e-5)


def test_ranges_without_texts_or_of_floats_are_refused(tmp_path: Path) -> None:
    network = classifier("small", "mean")
    with pytest.raises(ConfigError, match=r"EncoderSettings\.ranges: .*no texts"):
        write(network, tmp_path / "litert", STATIC, grid=GRID)
    with pytest.raises(ConfigError, match=r"EncoderSettings\.ranges: expected 'found'"):
        replace(STATIC, precision="float32")
    with pytest.raises(ConfigError, match=r"EncoderSettings\.percentile"):
        replace(STATIC, percentile=0.0)


def test_texts_that_come_to_no_number_are_refused() -> None:
    arrays = encoder_arrays_of(classifier("small", "mean"))
    words = arrays.words.copy()
    words[:] = np.inf
    with pytest.raises(DataError, match="layers"):
        ranges_of(replace(arrays, words=words), batches(), "largest", 100.0)
