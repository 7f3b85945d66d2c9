"""`tf-infer export --engine` of a classifier: proven, recorded, served, not served when wrong."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.server.serverkit import free_port
from tests.tasks import small
from tf_infer import config
from tf_infer.cli import engine as cli_engine
from tf_infer.cli.main import main
from tf_infer.cli.proof import export_task, make_golden
from tf_infer.client.client import Client
from tf_infer.config import ClassifierConfig, ShapeGrid
from tf_infer.errors import ExportError, InvalidRequest, VerificationError
from tf_infer.manifest import (
    EXTRA_FOLDER,
    EncoderEngineManifest,
    ModelManifest,
    hash_files,
    read_manifest,
    read_samples,
)
from tf_infer.optimize.litert_classifier import EncoderSettings
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig, ServerConfig
from tf_infer.server.engine_servable import EngineServable
from tf_infer.server.servable import SavedModelServable, load_version
from tf_infer.tasks import build

pytest.importorskip("ai_edge_litert", reason="needs the extra `server`")
pytestmark = pytest.mark.slow  # exports, and loads what was exported

ENGINE = Path(EXTRA_FOLDER) / "engines" / "litert"
GRID = ShapeGrid(rows=(1, 2), tokens=(8, 32))
NETWORK = replace(small.NETWORK, layers=1)
MODEL = replace(small.CLASSIFIER, grid=GRID, network=NETWORK)
TEXTS = np.array([b"a parcel", "支付 bitte".encode(), b"", b"x" * 100], object)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export through the command line."""
    folder = tmp_path_factory.mktemp("models")
    build.save(build.build(MODEL, seed=3), folder / "model")
    assert main(["export", str(folder / "model"), "--base-dir", str(folder / "served"), "--engine",
                 "litert", "--no-xla", "--json"]) == 0
    return folder / "served" / "1"


def served(version: Path, engine: Any = "auto") -> Any:
    return load_version(version, ServerConfig(models=(), classifier_engine=engine))[0]


@pytest.fixture(scope="module")
def both(version: Path) -> Iterator[tuple[EngineServable, SavedModelServable]]:
    pair = served(version), served(version, "saved_model")
    yield pair
    for one in pair:
        one.close()


def test_the_version_tells_how_far_its_engine_is_from_its_network(version: Path) -> None:
    described: EncoderEngineManifest = config.load(
        EncoderEngineManifest, version / ENGINE / "engine.json")
    assert (described.precision, described.positions, described.classes) == ("int8", 32, 3)
    assert 0 < described.max_abs <= described.atol < 1
    assert described.library.startswith("ai-edge-litert 2.3")
    files = read_manifest(version).files
    assert files[f"{ENGINE.as_posix()}/model.tflite"] == described.sha256
    assert f"{ENGINE.as_posix()}/engine.json" in files
    report = json.loads((version / EXTRA_FOLDER / "report.json").read_text())
    paths = {path["path"]: path for path in report["paths"]}
    assert paths["litert"]["differences"][0]["max_abs"] == described.max_abs
    assert paths["litert"]["atol"] == described.atol
    assert paths["grpc_litert"]["samples"] == len(
        read_samples(version / EXTRA_FOLDER / "golden.jsonl"))


def test_the_engine_computes_every_signature_that_asks_the_network(
        both: tuple[EngineServable, SavedModelServable], version: Path) -> None:
    engine, graph = both
    assert isinstance(engine, EngineServable)
    assert isinstance(graph, SavedModelServable)
    atol = engine.engine.manifest.atol
    for sample in read_samples(version / EXTRA_FOLDER / "golden.jsonl"):
        answers = [one.run(sample.signature, sample.inputs, outputs=tuple(sample.outputs),
                           timeout_s=None) for one in both]
        for name, array in answers[1].items():
            assert answers[0][name].dtype == array.dtype
            assert answers[0][name].shape == array.shape
            if name in ("logits", "scores", "score"):
                np.testing.assert_allclose(answers[0][name], array, atol=atol)
                assert not len(array) or (answers[0][name] != array).any()
            elif name != "label":
                np.testing.assert_array_equal(answers[0][name], array)


def test_ranges_that_texts_set_are_exported_proven_and_served(tmp_path: Path) -> None:
    build.save(build.build(MODEL, seed=3), tmp_path / "model")
    # Every byte that a text may hold, in texts of every length: else ranges cut golden samples off.
    letters = "".join(map(chr, (*range(32, 127), *range(161, 1300), *range(0x4e00, 0x5000))))
    lines = [letters[place:place + size] for size in (1, 3, 7, 12, 30)
             for place in range(0, len(letters), 23)]
    (tmp_path / "texts.txt").write_text("\n".join(["a parcel", "x" * 100, *lines]))
    assert main(["export", str(tmp_path / "model"), "--base-dir", str(tmp_path / "served"),
                 "--engine", "litert", "--engine-ranges", "largest", "--no-xla", "--texts",
                 str(tmp_path / "texts.txt")]) == 0
    version = tmp_path / "served" / "1"
    servable = served(version, "litert")
    assert servable.engine.manifest.fixed_ranges
    sample = next(one for one in read_samples(version / EXTRA_FOLDER / "golden.jsonl")
                  if one.signature == "serving_default")
    found = servable.run("serving_default", sample.inputs, outputs=("logits",), timeout_s=None)
    np.testing.assert_allclose(found["logits"], sample.outputs["logits"],
                               atol=servable.engine.manifest.atol)
    servable.close()


def test_scores_and_labels_are_what_the_graph_makes_of_the_same_logits(
        both: tuple[EngineServable, SavedModelServable]) -> None:
    found = both[0].run("serving_default", {"text": TEXTS}, timeout_s=None,
                        outputs=("label", "score", "scores", "logits"))
    wanted = build.build(MODEL, seed=3).postprocess(
        logits=tf.constant(found["logits"]),
        scores=tf.nn.softmax(found["logits"] / MODEL.temperature, axis=-1))
    assert found["label"].tolist() == wanted["label"].numpy().tolist()
    np.testing.assert_allclose(found["scores"], wanted["scores"], atol=1e-6)
    np.testing.assert_allclose(found["score"], wanted["score"], atol=1e-6)


def test_a_text_has_the_same_answer_alone_and_in_a_crowd(
        both: tuple[EngineServable, SavedModelServable]) -> None:
    def logits(texts: np.ndarray) -> np.ndarray:
        found: np.ndarray = both[0].run("serving_default", {"text": texts}, outputs=("logits",),
                                        timeout_s=None)["logits"]
        return found

    whole = logits(np.tile(TEXTS, 7))
    for row in range(len(TEXTS)):
        np.testing.assert_array_equal(logits(TEXTS[row:row + 1])[0], whole[row])


def changed(version: Path, target: Path, **changes: Any) -> Path:
    """Copy a version whose engine.json says something else, as if it were exported so."""
    shutil.copytree(version, target)
    path = target / ENGINE / "engine.json"
    described: EncoderEngineManifest = config.load(EncoderEngineManifest, path)
    config.dump(replace(described, **changes), path)
    sign(target)
    return target


def sign(version: Path) -> None:
    """Let the manifest of a version name the files that are there."""
    path = version / EXTRA_FOLDER / "tf_infer.json"
    manifest: ModelManifest = config.load(ModelManifest, path)
    config.dump(replace(manifest, files=hash_files(version)), path)


def test_an_engine_with_other_answers_than_the_golden_samples_is_not_served(
        version: Path, tmp_path: Path) -> None:
    wrong = changed(version, tmp_path / "served" / "2", atol=1e-7)
    with pytest.raises(InvalidRequest, match=r"golden sample \d+, signature 'serving_default'"):
        served(wrong)
    served(wrong, "saved_model").close()


def test_the_old_version_serves_on_when_the_engine_of_the_new_one_is_wrong(
        version: Path, tmp_path: Path) -> None:
    base = tmp_path / "served"
    shutil.copytree(version, base / "1")
    settings = ServerConfig(
        models=(ModelConfig(name="m", base_path=str(base)),), port=free_port(), host="localhost",
        poll_s=0, max_load_retries=0)
    with Server(settings) as server, Client(server.addresses[0], timeout_s=60) as client:
        before = client.predict("m", {"text": ["a parcel"]})
        changed(version, base / "2", atol=1e-7)
        server.versions.poll()
        for _ in range(300):
            states = {row.version: row.state.name for row in server.versions.status("m")}
            if states.get(2) == "END":
                break
            time.sleep(0.1)
        assert states == {1: "AVAILABLE", 2: "END"}
        after = client.predict("m", {"text": ["a parcel"]})
        np.testing.assert_array_equal(before["logits"], after["logits"])


def test_a_folder_cut_short_by_a_copy_is_not_served(version: Path, tmp_path: Path) -> None:
    target = tmp_path / "served" / "2"
    shutil.copytree(version, target)
    model = target / ENGINE / "model.tflite"
    model.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(ExportError, match=r"model\.tflite has changed"):
        served(target)
    sign(target)
    with pytest.raises(ExportError, match=r"expected the file of its engine\.json"):
        served(target)
    model.unlink()
    sign(target)
    with pytest.raises(ExportError, match="expected the engine's model"):
        served(target)
    (target / ENGINE / "engine.json").unlink()
    sign(target)
    one = served(target)  # nothing says that there is an engine
    assert isinstance(one, SavedModelServable)
    one.close()


def test_an_engine_too_far_from_its_network_is_not_exported(tmp_path: Path) -> None:
    task = build.build(MODEL, seed=3)
    kind = cli_engine.ENCODERS["litert"]
    choice = cli_engine.EncoderChoice(kind, EncoderSettings(tolerance=1e-6))
    with pytest.raises(VerificationError, match="litert ids/logits"):
        cli_engine.write_encoder_engine(task, tmp_path, choice, make_golden(task))


def test_ids_that_only_the_network_has_rows_for_are_refused_as_by_the_graph(
        tmp_path: Path) -> None:
    task = build.build(MODEL, seed=3)

    class Padded(cli_engine._LiteRT):
        """Writes as if the network had 64 rows of vectors more than the tokenizer has ids."""

        def write(self, *given: Any) -> EncoderEngineManifest:
            found = super().write(*given)
            return replace(found, vocab_size=found.vocab_size + 64)

    padded = cli_engine.EncoderChoice(Padded(), EncoderSettings())
    cli_engine.write_encoder_engine(task, tmp_path, padded, make_golden(task))
    described: EncoderEngineManifest = config.load(
        EncoderEngineManifest, tmp_path / "engines" / "litert" / "engine.json")
    assert described.vocab_size == task.codec.vocab_size


def test_an_engine_of_another_network_is_not_served_though_it_is_within_what_was_allowed(
        version: Path, tmp_path: Path) -> None:
    described: EncoderEngineManifest = config.load(
        EncoderEngineManifest, version / ENGINE / "engine.json")
    target = changed(version, tmp_path / "served" / "2")
    task = build.build(MODEL, seed=3)
    bias = task.network.logits.bias
    bias.assign(bias + np.array([3 * described.max_abs, 0, 0], np.float32))  # a wrong file
    shutil.rmtree(target / ENGINE)
    kind = cli_engine.ENCODERS["litert"]
    kind.write(task, target / ENGINE, kind.settings("int8", "found"), (), lambda line: None)
    path = target / ENGINE / "engine.json"
    config.dump(replace(config.load(EncoderEngineManifest, path), atol=described.atol,
                        max_abs=described.max_abs), path)
    sign(target)
    assert 4 * described.max_abs + 1e-4 < described.atol
    with pytest.raises(InvalidRequest, match=r"golden sample \d+, signature 'serving_default'"):
        served(target)


def test_float32_is_within_rounding_of_its_network(tmp_path: Path) -> None:
    task = build.build(MODEL, seed=3)
    kind = cli_engine.ENCODERS["litert"]
    choice = cli_engine.EncoderChoice(kind, EncoderSettings(precision="float32"))
    report = cli_engine.write_encoder_engine(task, tmp_path, choice, make_golden(task))
    assert report.passed
    assert report.differences[0].max_abs < 1e-5


def test_what_has_no_engine_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag: ClassifierConfig = small.BAG
    build.save(build.build(bag), tmp_path / "bag")
    assert main(["export", str(tmp_path / "bag"), "--base-dir", str(tmp_path / "served"),
                 "--engine", "litert", "--no-xla", "--no-server"]) != 0
    assert "network.encoder: expected a BERT" in capsys.readouterr().err
    assert not list((tmp_path / "served").glob("[0-9]*"))


def test_pairs_with_several_labels_are_served_too(tmp_path: Path) -> None:
    task = build.build(replace(small.MULTI_LABEL_PAIR, network=NETWORK, grid=GRID, pooling="mean",
                               thresholds=(0.5, 0.5)), seed=3)
    kind = cli_engine.ENCODERS["litert"]
    folder, report = export_task(
        task, tmp_path / "served", name="pairs", xla=False, max_rows=2,
        engine=cli_engine.EncoderChoice(kind, EncoderSettings()))
    assert [path.path for path in report.paths if not path.skipped][-2:] == ["litert",
                                                                             "grpc_litert"]
    answers = []
    for engine in ("litert", "saved_model"):
        one = served(folder, engine)
        answers.append(one.run("serving_default", {"text": TEXTS, "text_pair": TEXTS[::-1].copy()},
                               outputs=("scores", "labels", "label"), timeout_s=None))
        one.close()
    found, wanted = answers
    np.testing.assert_allclose(found["scores"], wanted["scores"], atol=0.05)
    assert found["labels"].shape == wanted["labels"].shape == (len(TEXTS), 2)
    np.testing.assert_array_equal(found["labels"] != b"", found["scores"] >= 0.5)
