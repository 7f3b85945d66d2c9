"""`tf-infer inspect`: against what TensorFlow itself says of a SavedModel, and of broken ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.serving import FakeServer
from tf_infer import config, manifest
from tf_infer.cli.main import main
from tf_infer.config import ClassifierConfig, ShapeGrid
from tf_infer.wire import messages, methods, tensors
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire.messages import ModelRef

# written by scripts/make_inspect_golden.py
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "inspect"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model's folder with versions 2 and 10 and things that are no version."""
    for name in ("2", "10", "tmp"):
        (tmp_path / "m" / name).mkdir(parents=True)
        shutil.copy(GOLDEN / "saved_model.pb", tmp_path / "m" / name)
    return tmp_path / "m"


def add_our_files(folder: Path) -> None:
    extra = folder / manifest.EXTRA_FOLDER
    extra.mkdir()
    config.dump(manifest.ModelManifest(
        name="m", version=10, task=ClassifierConfig(classes=("a", "b")), signatures=(),
        grid=ShapeGrid()), extra / manifest.MANIFEST_FILE)
    config.dump(manifest.Report(reference="eager", paths=(manifest.PathReport(
        path="xla", atol=1e-5, rtol=0.0, samples=3, seconds=0.1, differences=()),)),
        extra / manifest.REPORT_FILE)


def inspect(path: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    assert main(["inspect", str(path), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_it_says_what_tensorflow_says(capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(GOLDEN, capsys)
    expected = json.loads((GOLDEN / "expected.json").read_text())
    assert {key: found[key] for key in expected} == expected
    assert "manifest" not in found


def test_defaults_of_every_kind_are_shown(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    definition = pb.SignatureDef()
    for name, default in {
            "c": tensors.to_proto(np.array(1 + 2j, np.complex64)),
            "f": tensors.to_proto(np.array([[np.nan, 1.5]], np.float32)),
            "raw": tensors.to_proto(np.array(b"\xff\0", object)),
            "text": tensors.to_proto(np.array(["naïve", "b"], object)),
            "v": pb.TensorProto(dtype=pb.DT_VARIANT)}.items():
        definition.inputs[name].dtype = default.dtype
        definition.defaults[name].CopyFrom(default)
    saved = pb.SavedModel(meta_graphs=[pb.MetaGraphDef(signature_def={"s": definition})])
    (tmp_path / "saved_model.pb").write_bytes(saved.SerializeToString())
    found = inspect(tmp_path, capsys)["signatures"]["s"]["inputs"]
    assert {name: one["default"] for name, one in found.items()} == {
        "c": [1.0, 2.0], "f": [["nan", 1.5]], "raw": {"b64": "/wA="}, "text": ["naïve", "b"],
        "v": None}
    assert main(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert '  -> text: string [] = ["naïve", "b"]' in shown
    assert "  -> v: DT_VARIANT [] = unknown" in shown


def test_the_highest_version_of_a_folder_is_shown(
        base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(base, capsys)
    assert found["path"].endswith("10")
    assert found["versions"] == [2, 10]
    assert found["size_bytes"] == (GOLDEN / "saved_model.pb").stat().st_size


def test_our_own_files_are_shown(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_our_files(base / "10")
    found = inspect(base, capsys)
    assert found["manifest"]["task"]["classes"] == ["a", "b"]
    assert found["report_passed"] is True
    assert main(["inspect", str(base)]) == 0
    shown = capsys.readouterr().out
    for line in ("versions: 2, 10; shown: the highest", "  -> x: float32 [?, 3]",
                 "  <- id: int64 unknown rank", "verified: passed: xla (3 samples)",
                 "made by tf-infer: m version 10, task classifier", "assets: vocab.txt"):
        assert line in shown


def test_a_corrupted_manifest_is_a_fault_beside_the_rest(
        base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_our_files(base / "10")
    path = base / "10" / manifest.EXTRA_FOLDER / manifest.MANIFEST_FILE
    path.write_text(path.read_text()[:40])
    found = inspect(base, capsys, code=1)
    assert "expected JSON" in found["faults"][0]
    assert found["signatures"]
    assert main(["inspect", str(base)]) == 1
    assert "fault: " in capsys.readouterr().out


@pytest.mark.parametrize(("break_it", "message"), [
    (lambda base: (base / "10" / "saved_model.pb").unlink(), "Is the version whole?"),
    (lambda base: (base / "10" / "saved_model.pb").write_bytes(
        (GOLDEN / "saved_model.pb").read_bytes()[:5000]), "Is the file whole?"),
    (lambda base: (base / "10" / "saved_model.pb").write_bytes(b""), "Is the file whole?"),
    (lambda base: [shutil.rmtree(base / name) for name in ("2", "10")], "got neither"),
    (shutil.rmtree, "add --address")])
def test_a_broken_model_is_named(base: Path, capsys: pytest.CaptureFixture[str],
                                 break_it: Any, message: str) -> None:
    break_it(base)
    assert main(["inspect", str(base)]) == 1
    assert message in capsys.readouterr().err


def test_a_served_model_is_inspected(capsys: pytest.CaptureFixture[str]) -> None:
    saved = pb.SavedModel.FromString((GOLDEN / "saved_model.pb").read_bytes())
    answer = messages.metadata_response(
        ModelRef("m", version=4), saved.meta_graphs[0].signature_def)
    with FakeServer({methods.GET_MODEL_METADATA: lambda request, context: answer}) as server:
        assert main(["inspect", "m", "--address", server.address, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert main(["inspect", "m", "--address", server.address]) == 0
    assert found["version"] == 4
    assert found["signatures"] == json.loads((GOLDEN / "expected.json").read_text())["signatures"]
    assert "signature find" in capsys.readouterr().out
