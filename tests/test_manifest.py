"""Manifests, samples and reports."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tf_infer import config, manifest
from tf_infer.errors import ConfigError, ExportError

SPEC = manifest.SignatureSpec(
    name="serving_default",
    inputs=(manifest.TensorSpec(name="text", dtype="string", shape=(None,)),),
    outputs=(manifest.TensorSpec(name="scores", dtype="float32", shape=(None, 2), note="0 to 1"),))
MANIFEST = manifest.ModelManifest(
    name="m", version=3, task=config.ClassifierConfig(classes=("a", "b")), signatures=(SPEC,),
    grid=config.ShapeGrid(), packages={"numpy": "2"}, files={"saved_model.pb": "00"})


def write(folder: Path) -> Path:
    (folder / manifest.EXTRA_FOLDER).mkdir(parents=True)
    path = folder / manifest.EXTRA_FOLDER / manifest.MANIFEST_FILE
    config.dump(MANIFEST, path)
    return path


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    write(tmp_path)
    assert manifest.read_manifest(tmp_path) == MANIFEST
    assert MANIFEST.signature("serving_default") == SPEC


def test_a_corrupted_or_missing_manifest_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tf_infer\.json"):
        manifest.read_manifest(tmp_path)
    path = write(tmp_path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ConfigError, match=r"tf_infer\.json: expected JSON"):
        manifest.read_manifest(tmp_path)
    path.write_text('{"format": 99}')
    with pytest.raises(ConfigError):
        manifest.read_manifest(tmp_path)


def test_an_unknown_signature_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="serving_default"):
        MANIFEST.signature("nope")


@pytest.mark.parametrize("array", [
    np.array([0.1, -1e-30, np.inf, -np.inf], np.float32), np.zeros((0, 3), np.int64),
    np.array([[True, False]]), np.array(7, np.int8), np.array([1.5], np.float16),
    np.array([2**64 - 1], np.uint64), np.array(5e-324),
    np.array([[1 + 2j], [0.1 - 1e-30j]], np.complex64), np.array(1 / 3 - 2j),
    np.array([complex(np.nan, -np.inf), complex(-0.0, 0)]), np.zeros((0, 2), np.complex128),
    np.full(100, 1 + 2j, np.complex64)])
def test_arrays_keep_every_bit(array: np.ndarray) -> None:
    back = manifest.array_from_json(json.loads(json.dumps(manifest.array_to_json(array))))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize(("dtype", "value"), [
    ("int8", 300), ("uint8", -1), ("int64", 2**63), ("uint64", -1), ("int32", 1.5),
    ("complex64", [1.0]), ("complex64", [1.0, 2.0, 3.0]), ("complex64", 1.0),
    ("complex64", ["x", 0])])
def test_a_number_that_the_dtype_cannot_hold_is_refused(dtype: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"x: expected \{dtype, shape, values\}"):
        manifest.array_from_json({"dtype": dtype, "shape": [1], "values": [value]}, where="x")
    with pytest.raises(ConfigError, match=r"x: expected \{dtype, shape, values\}"):
        manifest.array_from_json({"dtype": dtype, "shape": [9], "fill": value}, where="x")


@pytest.mark.parametrize("array", [
    np.zeros((5, 1000), np.float32), np.full((100,), 2**60 + 1, np.int64),
    np.full((9, 9), np.nan, np.float16), np.ones((100, 1), bool)])
def test_many_equal_numbers_are_written_once(array: np.ndarray) -> None:
    data = manifest.array_to_json(array)
    assert "values" not in data
    back = manifest.array_from_json(json.loads(json.dumps(data)))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    array = array.copy()
    array.reshape(-1)[-1] = 0 if array.reshape(-1)[0] else 1
    assert "fill" not in manifest.array_to_json(array)


def test_minus_zero_stays() -> None:
    array = np.zeros(100, np.float32)
    array[50] = -0.0
    back = manifest.array_from_json(manifest.array_to_json(array))
    np.testing.assert_array_equal(np.signbit(back), np.signbit(array))


def test_nan_and_strings_of_any_bytes_survive_samples(tmp_path: Path) -> None:
    text = np.array([[b"caf\xc3\xa9", b"\xff\x00"]], dtype=object)
    sample = manifest.Sample("s", {"text": text}, {"x": np.array([np.nan], np.float32)})
    manifest.write_samples([sample, sample], tmp_path / "golden.jsonl")
    back = manifest.read_samples(tmp_path / "golden.jsonl")
    assert len(back) == 2
    assert back[0].signature == "s"
    assert back[0].inputs["text"].tolist() == text.tolist()
    assert np.isnan(back[0].outputs["x"]).all()


@pytest.mark.parametrize("line", [
    "{", "[]", '{"signature": "s"}',
    '{"signature": "s", "inputs": {"x": {"dtype": "int32", "shape": [3], "values": [1]}}, '
    '"outputs": {}}',
    '{"signature": "s", "inputs": {"x": {"dtype": "string", "shape": [1], "values": [4]}}, '
    '"outputs": {}}'])
def test_a_broken_sample_names_its_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_text('{"signature": "s", "inputs": {}, "outputs": {}}\n' + line + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        manifest.read_samples(path)


def difference(first: int | None) -> manifest.OutputDifference:
    return manifest.OutputDifference(
        signature="s", output="x", dtype="float32", max_abs=0.0, max_rel=0.0, mismatches=0,
        elements=1, first_sample=first)


def path_report(first: int | None = None, skipped: str = "") -> manifest.PathReport:
    return manifest.PathReport(path="p", atol=0.0, rtol=0.0, samples=1, seconds=0.0,
                               differences=(difference(first),), skipped=skipped)


def test_a_report_passes_only_if_something_was_compared_and_nothing_failed() -> None:
    good, bad, skipped = path_report(), path_report(0), path_report(skipped="no XLA")
    assert manifest.Report(reference="eager", paths=(good, skipped)).passed
    assert not manifest.Report(reference="eager", paths=(good, bad)).passed
    assert not manifest.Report(reference="eager", paths=(skipped,)).passed
    assert not manifest.Report(reference="eager", paths=()).passed
    assert manifest.Report(reference="eager", paths=(good,), plan=good).passed
    assert not manifest.Report(reference="eager", paths=(good,), plan=bad).passed


@pytest.mark.parametrize("plan", [None, path_report(2)])
def test_a_report_survives_json(plan: manifest.PathReport | None) -> None:
    report = manifest.Report(reference="eager", paths=(path_report(4),), plan=plan)
    assert config.from_json(manifest.Report, config.to_json(report)) == report


def test_a_changed_or_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "variables").mkdir()
    for name in ("saved_model.pb", "variables/variables.index"):
        (tmp_path / name).write_bytes(b"abc")
    hashes = manifest.hash_files(tmp_path)
    assert set(hashes) == {"saved_model.pb", "variables/variables.index"}
    assert hashes["saved_model.pb"].startswith("ba7816bf")  # FIPS 180-2, appendix B.1
    described = dataclasses.replace(MANIFEST, files=hashes)
    manifest.check_files(tmp_path, described)
    (tmp_path / "saved_model.pb").write_bytes(b"abd")
    (tmp_path / "variables/variables.index").unlink()
    with pytest.raises(ExportError, match=r"model\.pb has changed; variables/variables\.index "
                                          r"is missing"):
        manifest.check_files(tmp_path, described)
