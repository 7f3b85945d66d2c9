"""The state of a run on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tf_infer.errors import CheckpointError
from tf_infer.train import checkpoint
from tf_infer.train.checkpoint import State

STATE = State([np.arange(3.0), np.ones((2, 2), np.float32)], [np.int64(7)], [np.zeros(3)],
              {"epochs": [{"loss": 1.5}], "started_with": {"data": "絵"}})


def test_a_state_comes_back_as_it_was_written(tmp_path: Path) -> None:
    assert checkpoint.read(tmp_path) is None
    checkpoint.write(STATE, tmp_path)
    read = checkpoint.read(tmp_path)
    assert read is not None
    assert read.about == STATE.about
    for before, after in zip(STATE[:3], read[:3]):
        assert len(before) == len(after)
        for one, other in zip(before, after):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]


def test_a_full_disk_keeps_the_state_before(tmp_path: Path) -> None:
    checkpoint.write(STATE, tmp_path)
    (tmp_path / f".{checkpoint.FILE}.partial").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"No space left on device.*Make room"):
        checkpoint.write(STATE._replace(about={}), tmp_path)
    read = checkpoint.read(tmp_path)
    assert read is not None
    assert read.about == STATE.about
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]
