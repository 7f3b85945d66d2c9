"""What TensorFlow's sessions are told: by flags, a text ConfigProto, a platform config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from tests.server.test_flags import platform_file  # noqa: E402
from tf_infer.config import CausalLMConfig, ClassifierConfig, ShapeGrid  # noqa: E402
from tf_infer.errors import InvalidRequest  # noqa: E402
from tf_infer.manifest import EXTRA_FOLDER, MANIFEST_FILE, ModelManifest  # noqa: E402
from tf_infer.server import cpus, flags  # noqa: E402
from tf_infer.server.app import Server  # noqa: E402
from tf_infer.server.config import ModelConfig, ServerConfig  # noqa: E402
from tf_infer.server.lite_servable import LITE_FILE  # noqa: E402
from tf_infer.server.servable import SavedModelServable, load_version  # noqa: E402
from tf_infer.server.session_config import (  # noqa: E402
    FEW_CPUS,
    MIN_INTER_OP_THREADS,
    for_version,
    only_ours,
    session_config,
)

BF16_RELATIVE_ERROR = 2e-4  # of float32 it is 1e-7, of 8 bits of mantissa 4e-3


def config(*arguments: str) -> ServerConfig:
    return flags.server_config(flags.parse(["--model_base_path=/m", *arguments]).values)


def settings(*arguments: str) -> Any:
    return session_config(config(*arguments))


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_without_flags_TensorFlow_chooses_within_the_quota() -> None:
    made = settings()
    assert made.inter_op_parallelism_threads == max(MIN_INTER_OP_THREADS, cpus.usable())
    assert made.intra_op_parallelism_threads == cpus.limit()


@pytest.mark.parametrize(("models", "ours"), [
    (["a"], True), (["a", "b"], True), (["a", "foreign"], False), (["empty"], False), ([], False)])
def test_few_cpus_and_nothing_but_texts_of_ours_have_one_thread_inside_an_operation(
        tmp_path: Path, models: list[str], ours: bool) -> None:
    for name in ("a/1", "a/2", "b/7", "foreign/1", "empty"):
        (tmp_path / name / EXTRA_FOLDER).mkdir(parents=True)
    for name in ("a/2", "b/7"):
        write(tmp_path / name / EXTRA_FOLDER / MANIFEST_FILE, "{}")
    served = tuple(ModelConfig(name=name, base_path=str(tmp_path / name)) for name in models)
    assert only_ours(served) is ours
    made = session_config(ServerConfig(models=served)).intra_op_parallelism_threads
    assert made == (1 if ours and cpus.usable() <= FEW_CPUS else cpus.limit())
    asked = ServerConfig(models=served, intra_op_threads=3)
    assert session_config(asked).intra_op_parallelism_threads == 3


def test_FL24_FL44_flags_go_before_the_file(tmp_path: Path) -> None:
    file = "--tensorflow_session_config_file=" + write(tmp_path / "session", """
        intra_op_parallelism_threads: 5 inter_op_parallelism_threads: 6 allow_soft_placement: true
        gpu_options { per_process_gpu_memory_fraction: 0.25 allow_growth: true }""")
    made = settings(file)
    assert (made.intra_op_parallelism_threads, made.inter_op_parallelism_threads) == (5, 6)
    assert (made.allow_soft_placement, made.gpu_options.allow_growth) == (True, True)
    made = settings(file, "--tensorflow_intra_op_parallelism=2",
                    "--per_process_gpu_memory_fraction=0.5", "--mixed_precision=bfloat16")
    assert (made.intra_op_parallelism_threads, made.inter_op_parallelism_threads) == (2, 6)
    assert made.gpu_options.per_process_gpu_memory_fraction == 0.5
    assert made.gpu_options.allow_growth
    rewrites = made.graph_options.rewrite_options
    assert rewrites.auto_mixed_precision_onednn_bfloat16 == rewrites.ON


def test_FL46_a_platform_config_brings_its_own_sessions(tmp_path: Path) -> None:
    made = settings(platform_file(tmp_path), "--mixed_precision=bfloat16",
                    "--tensorflow_session_parallelism=1")
    assert made.intra_op_parallelism_threads == 3
    assert made.device_count == {"GPU": 0}
    assert not made.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16


def test_FL25_files_that_do_not_parse_stop_the_start(
        tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, name in (
            (["--tensorflow_session_config_file=" + write(tmp_path / "session", "no_such: 1")],
             "ConfigProto"),
            ([platform_file(tmp_path, "legacy_config { no_such_field: 1 }")], "PlatformConfigMap"),
            ([platform_file(tmp_path, "legacy_config { session_config { no_such: 1 } }")],
             "PlatformConfigMap")):
        with pytest.raises(InvalidRequest, match="Invalid protobuf file"):
            Server(config(*arguments))
        assert f"Error parsing text-format tensorflow.serving.{name}" in capfd.readouterr().err


WEIGHT = np.linspace(0, 1, 256 * 256, dtype=np.float32).reshape(256, 256)


class Product(tf.Module):
    """Two products of matrices, so that a rewrite pays."""

    @tf.function(input_signature=[tf.TensorSpec([None, 256], tf.float32, name="x")])
    def serve(self, x: Any) -> dict[str, Any]:
        return {"y": tf.linalg.matmul(tf.nn.relu(tf.linalg.matmul(x, WEIGHT)), WEIGHT)}


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "1"
    module = Product()
    tf.saved_model.save(module, str(path), signatures=module.serve)
    return path


def answer(path: Path, made: ServerConfig) -> np.ndarray:
    servable, _ = load_version(path, made)
    try:
        return servable.run("serving_default", {"x": np.full((4, 256), 1.001, np.float32)},
                            outputs=["y"], timeout_s=None)["y"]
    finally:
        servable.close()


def test_FL44_mixed_precision_reaches_the_runtime(version: Path) -> None:
    if "avx512f" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("this CPU has no bfloat16 of its own, and TensorFlow leaves the graph as it is")
    plain, mixed = answer(version, config()), answer(version, config("--mixed_precision=bfloat16"))
    assert plain.dtype == mixed.dtype == np.float32
    error = np.abs(plain - mixed).max() / np.abs(plain).max()
    assert BF16_RELATIVE_ERROR < error < 0.05


def test_FL44_prefer_tflite_model_runs_the_file_beside_the_SavedModel(version: Path) -> None:
    from tests.server.litekit import half_plus_two  # skips without LiteRT

    asked, expected = config("--prefer_tflite_model"), answer(version, config())
    assert np.array_equal(answer(version, asked), expected)
    lite = version / LITE_FILE
    lite.write_bytes(half_plus_two())
    try:
        assert answer(version, asked)[0, 0] == np.float32(1.001) * np.float32(0.5) + 2
        assert np.array_equal(answer(version, config()), expected)
    finally:
        lite.unlink()


def test_a_servable_by_itself_has_the_threads_of_a_server_without_flags(version: Path) -> None:
    servable = SavedModelServable(version)
    assert servable._session._config == session_config(ServerConfig(models=()))
    servable.close()


def test_only_the_session_of_a_plain_decoder_of_ours_goes_without_the_optimiser() -> None:
    def off(task: Any, compiled: Any = "none", *arguments: str) -> bool:
        manifest = ModelManifest(name="m", version=1, signatures=(), grid=ShapeGrid(), task=task,
                                 compiled=compiled)
        made = for_version(settings(*arguments), manifest)
        return bool(made.graph_options.rewrite_options.disable_meta_optimizer)

    decoder = CausalLMConfig()
    assert off(decoder)
    assert not off(decoder, "xla") and not off(ClassifierConfig(classes=("a", "b")))
    assert not off(decoder, "none", "--mixed_precision=bfloat16")  # it asks the optimiser
    assert for_version(settings(), None) == settings()
