"""What becomes of a server whose disk, memory or models fail under it (serving/README.md)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from tests.server.serverkit import call, predict_request, refused, running, wait_until  # noqa: E402
from tf_infer.server.config import ModelConfig, ServerConfig  # noqa: E402
from tf_infer.server.servable import load_version  # noqa: E402
from tf_infer.wire import methods, tensors  # noqa: E402

TOO_MANY = 10**14  # floats: no machine has 400 TB


class Grower(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.ones([100]))

    @tf.function(input_signature=[tf.TensorSpec([1], tf.int64, name="size")])
    def grow(self, size: Any) -> dict[str, Any]:
        """Hold as many floats as asked for."""
        return {"last": tf.random.uniform(size)[-1:] + 0.0 * self.weight[:1] + 1.0}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "1"
    module = Grower()
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.grow})
    return path


def ask(channel: Any, size: int) -> float:
    answer = call(channel, methods.PREDICT, predict_request(size=np.array([size], np.int64)))
    return float(tensors.to_array(answer.outputs["last"])[0])


def test_a_run_that_asks_for_too_much_memory_fails_alone(saved: Path) -> None:
    with running((ModelConfig(name="m", base_path=str(saved.parent)),)) as (_, channel):
        code, text = refused(channel, methods.PREDICT,
                             predict_request(size=np.array([TOO_MANY], np.int64)))
        assert code == "RESOURCE_EXHAUSTED"
        assert "OOM when allocating tensor" in text
        assert ask(channel, 3) >= 1.0


@pytest.mark.parametrize("part", [".", "variables", "saved_model.pb"])
def test_a_version_that_disappears_while_it_is_loaded_leaves_the_old_one(
        saved: Path, tmp_path: Path, part: str) -> None:
    base = tmp_path / "m"
    shutil.copytree(saved, base / "1")

    def load(path: Path) -> Any:
        if path.name == "2":  # somebody tidies up just now
            gone = path / part
            gone.unlink() if gone.is_file() else shutil.rmtree(gone)
        return load_version(path, ServerConfig(models=()))

    with running((ModelConfig(name="m", base_path=str(base)),), load) as (server, channel):
        shutil.copytree(saved, tmp_path / "2")
        (tmp_path / "2").rename(base / "2")
        server.versions.poll()
        assert wait_until(server.versions, lambda: any(
            row.error for row in server.versions.status("m", 2)), 60)
        row = server.versions.status("m", 2)[0]
        assert row.error is not None
        assert row.state.name == "END"
        assert str(base / "2") in row.error.details
        assert ask(channel, 3) >= 1.0
        shutil.rmtree(base / "2", ignore_errors=True)
        server.versions.poll()  # nothing to load: no further try
        assert [row.version for row in server.versions.status("m")
                if row.state.name == "AVAILABLE"] == [1]
