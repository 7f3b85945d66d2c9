"""What a benchmark says of its loads: exact percentiles, HDR distribution, comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_infer.errors import ConfigError
from tf_infer.profiling.bench import Bench, compared, curve, distribution, lines, read, shares
from tf_infer.profiling.load import Load


def load(*seconds: float, rate: float | None = None, late: int = 0) -> Load:
    return Load(callers=4, rate=rate, elapsed_s=2.0, latencies_s=np.sort(seconds), failed={},
                late=late)


def bench(*loads: Load) -> Bench:
    return Bench(model="m", rows=2, seed=0, loads=loads)


@given(st.lists(st.floats(1e-4, 10.0), min_size=1, max_size=300))
def test_the_distribution_counts_every_call_and_never_falls(seconds: list[float]) -> None:
    rows = [line.split() for line in distribution(load(*seconds)) if line[:1] == " "][1:]
    values = [float(row[0]) for row in rows]
    counts = [int(row[2]) for row in rows]
    assert values == sorted(values)
    assert counts[-1] == len(seconds)
    assert float(rows[-1][1]) == 1.0
    for value, count in zip(values, counts):  # of so many calls none took longer
        assert value == pytest.approx(1000 * sorted(seconds)[count - 1], abs=5e-4)


@given(st.integers(1, 10**7))
def test_the_shares_grow_to_one_and_are_few(count: int) -> None:
    found = list(shares(count))
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0.0, 1.0)
    assert len(found) < 200
    assert count == 1 or 1 - found[-2] <= 2 / count  # the slowest calls are told apart


def test_a_load_without_answers_has_no_distribution() -> None:
    with pytest.raises(ConfigError, match="closed 4: expected answered calls"):
        list(distribution(load()))


def test_the_table_tells_texts_failures_and_too_few_callers() -> None:
    shown = "\n".join(lines(bench(load(0.001, 0.002, 0.010, rate=50.0, late=2))))
    assert "open 50/s" in shown
    assert " 1.5 " in shown and " 3.0 " in shown  # calls and texts a second
    assert "2 calls found no free caller" in shown
    assert "2 calls" not in "\n".join(lines(bench(load(*[0.01] * 1000, rate=50.0, late=2))))


def test_what_was_written_is_read_and_compared(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(bench(load(0.004, 0.004), load(0.1, rate=9.0)).to_json()))
    shown = list(compared(bench(load(0.002, 0.002, 0.002, 0.002)), read(path)))
    assert shown[1].split() == ["closed", "4", "2.000", "0.500", "0.500", "0.500"]
    assert len(shown) == 2
    assert "nothing to compare: the earlier loads are closed 4, open 9/s" in next(
        compared(bench(load(0.1, rate=8.0)), read(path)))
    none = list(compared(bench(load()), read(path)))
    assert none[1].split() == ["closed", "4", "0.000", "nan", "nan", "nan"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "loads": [{}]}', '{"format": 2}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"other\.json: expected what `tf-infer bench --output`"):
        read(path)


def test_the_curve_begins_with_all_calls() -> None:
    times, above = curve(load(0.004, 0.001, 0.002, 0.003))
    assert times.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert above.tolist() == [1.0, 0.75, 0.5, 0.25]
