"""Save: everything that belongs to a version, or nothing at all."""

from __future__ import annotations

import dataclasses
import errno
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.fakes.word_task import CLASSES, GRID, WORDS, WordTask, strings, word_task
from tests.tasks import small
from tf_infer import config, manifest
from tf_infer.config import ChatFormat
from tf_infer.errors import ExportError, VerificationError
from tf_infer.export import saved_model, versions
from tf_infer.export.signatures import check_signature_defs, check_specs
from tf_infer.manifest import (
    EXTRA_FOLDER,
    PathReport,
    Report,
    Sample,
    SignatureSpec,
    read_chat,
)
from tf_infer.tasks.base import Signature, rows
from tf_infer.tasks.build import build, chat_format
from tf_infer.tasks.build import load as load_task
from tf_infer.tasks.build import save as save_task
from tf_infer.verify.predictors import SavedModelPredictor, SessionPredictor

pytestmark = pytest.mark.whole

PASSED = Report(reference="eager", paths=(PathReport(
    path="none", atol=0.0, rtol=0.0, samples=0, seconds=0.0, differences=()),))
FAILED = Report(reference="eager", paths=())
TEXTS = strings(b"the parcel came late", b"fine thanks", b"", b"\xff")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> WordTask:
    return word_task(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def golden(task: WordTask) -> tuple[Sample, ...]:
    signatures = task.signatures()
    example = tf.train.Example()
    example.features.feature["text"].bytes_list.value.append(b"fine")
    encoded = {k: v.numpy() for k, v in signatures["encode"].function(text=TEXTS).items()}
    inputs = {"serving_default": {"text": TEXTS}, "encode": {"text": TEXTS}, "ids": encoded,
              "classify": {"inputs": strings(example.SerializeToString())}}
    return tuple(Sample(name, feed, {
        key: value.numpy() for key, value in signatures[name].function(
            **{k: tf.constant(v) for k, v in feed.items()}).items()})
        for name, feed in inputs.items())


@pytest.fixture(scope="module")
def version_dir(task: WordTask, golden: Sequence[Sample],
                tmp_path_factory: pytest.TempPathFactory) -> Path:
    base_dir = tmp_path_factory.mktemp("saved") / "words"
    return saved_model.save(task, base_dir, name="words", golden=golden,
                            check=lambda folder: PASSED, plan={"steps": []})


def names(base_dir: Path) -> list[str]:
    return sorted(path.name for path in base_dir.iterdir() if path.name != versions.RECORD_FILE)


def test_a_version_holds_the_graph_its_files_and_what_proves_it(
        version_dir: Path, golden: Sequence[Sample]) -> None:
    assert names(version_dir.parent) == ["1"]
    assert names(version_dir) == ["assets", "assets.extra", "saved_model.pb", "variables"]
    assert (version_dir / "assets" / "words.txt").read_text().split() == list(WORDS)
    assert names(version_dir / EXTRA_FOLDER) == [
        "golden.jsonl", "prepared", "report.json", "tf_infer.json", "tf_serving_warmup_requests"]
    assert config.load(Report, version_dir / EXTRA_FOLDER / "report.json") == PASSED
    back = manifest.read_samples(version_dir / EXTRA_FOLDER / "golden.jsonl")
    assert [sample.signature for sample in back] == [sample.signature for sample in golden]
    np.testing.assert_array_equal(back[0].outputs["logits"], golden[0].outputs["logits"])


def test_the_manifest_describes_the_version_and_its_hashes_hold(
        version_dir: Path, task: WordTask) -> None:
    described = manifest.read_manifest(version_dir)
    assert (described.name, described.version, described.compiled) == ("words", 1, "none")
    assert described.task == task.config
    assert described.grid == GRID
    assert [spec.name for spec in described.signatures] == list(task.signatures())
    assert described.packages["tensorflow"] == tf.__version__
    assert described.plan == {"steps": []}
    assert described.created.endswith("+00:00")
    assert f"{EXTRA_FOLDER}/report.json" in described.files
    manifest.check_files(version_dir, described)
    for fault in ("nothing", "assets/words.txt"):
        files = {**described.files, fault: "00"}
        with pytest.raises(ExportError, match=fault):
            manifest.check_files(version_dir, dataclasses.replace(described, files=files))


def test_a_large_output_is_not_kept_in_the_golden_file() -> None:
    sample = Sample("steps", {}, {"cache": np.zeros(60_000), "tokens": np.zeros(3)})
    assert list(saved_model._without_large_outputs(sample).outputs) == ["tokens"]


def test_every_constant_of_a_function_is_written_once(version_dir: Path) -> None:
    model = saved_model_pb2.SavedModel.FromString((version_dir / "saved_model.pb").read_bytes())
    functions = model.meta_graphs[0].graph_def.library.function
    constants = [[node.attr["value"].SerializeToString(deterministic=True)
                  for node in one.node_def if node.op == "Const"] for one in functions]
    assert sum(map(len, constants)) > 20
    assert all(len(found) == len(set(found)) for found in constants)


def test_every_weight_is_written_once(version_dir: Path, task: WordTask) -> None:
    reader = tf.train.load_checkpoint(str(version_dir / "variables" / "variables"))
    dtypes = reader.get_variable_to_dtype_map()
    numbers = [int(np.prod(shape)) for name, shape in reader.get_variable_to_shape_map().items()
               if dtypes[name] != tf.string]
    assert sum(numbers) == sum(int(np.prod(weight.shape)) for weight in task.network.weights) > 0


def test_the_source_commit_is_that_of_the_checkout() -> None:
    root = Path(saved_model.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        assert saved_model.source_commit() == ""
        return
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True,
                          text=True, check=True).stdout.strip()
    assert saved_model.source_commit() == head


def definitions_of(version_dir: Path) -> Mapping[str, Any]:
    model = saved_model_pb2.SavedModel.FromString((version_dir / "saved_model.pb").read_bytes())
    definitions: Mapping[str, Any] = model.meta_graphs[0].signature_def
    return definitions


def test_signatures_are_named_and_classify_has_its_method(version_dir: Path) -> None:
    definitions = definitions_of(version_dir)
    default = definitions["serving_default"]
    assert list(default.inputs) == ["text"]
    assert sorted(default.outputs) == ["label", "logits", "score", "scores"]
    assert default.method_name == "tensorflow/serving/predict"
    assert definitions["classify"].method_name == "tensorflow/serving/classify"


def outputs_of(version_dir: Path, samples: Sequence[Sample], loader: str
               ) -> list[dict[str, np.ndarray]]:
    if loader == "modern":
        loaded = tf.saved_model.load(str(version_dir)).signatures
        return [{name: tensor.numpy() for name, tensor in loaded[sample.signature](
            **{k: tf.constant(v) for k, v in sample.inputs.items()}).items()}
            for sample in samples]
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        definitions = tf.compat.v1.saved_model.load(
            session, ["serve"], str(version_dir)).signature_def
        return [session.run(
            {k: v.name for k, v in definitions[sample.signature].outputs.items()},
            {definitions[sample.signature].inputs[k].name: v for k, v in sample.inputs.items()})
            for sample in samples]


@pytest.mark.parametrize("loader", ["modern", "session"])
def test_both_loaders_give_the_golden_outputs(
        version_dir: Path, golden: Sequence[Sample], loader: str) -> None:
    for sample, found in zip(golden, outputs_of(version_dir, golden, loader), strict=True):
        assert set(found) == set(sample.outputs)
        for name, expected in sample.outputs.items():
            if expected.dtype.kind == "f":
                np.testing.assert_allclose(found[name], expected, atol=1e-6)
            else:
                assert found[name].tolist() == expected.tolist()


@pytest.mark.parametrize("loader", ["modern", "session"])
def test_a_version_that_was_moved_reads_its_own_tokenizer_file(
        version_dir: Path, golden: Sequence[Sample], tmp_path: Path, loader: str) -> None:
    moved = shutil.copytree(version_dir, tmp_path / "1")
    (moved / "assets" / "words.txt").write_text("\n".join(f"word{i}" for i in WORDS) + "\n")
    encode = [sample for sample in golden if sample.signature == "encode"]
    (found,) = outputs_of(moved, encode, loader)
    assert set(found["ids"].ravel()) == {0, 1}  # padding and unknown words


def test_the_check_sees_a_complete_version_whose_parent_can_be_served(
        task: WordTask, golden: Sequence[Sample], tmp_path: Path) -> None:
    seen: list[Path] = []

    def check(folder: Path) -> Report:
        seen.append(folder)
        assert versions.list_versions(folder.parent) == (4,)
        assert versions.list_versions(tmp_path) == ()
        manifest.check_files(folder, manifest.read_manifest(folder))
        assert (folder / EXTRA_FOLDER / "tf_serving_warmup_requests").stat().st_size > 0
        return PASSED

    lines: list[str] = []
    folder = saved_model.save(task, tmp_path, name="words", golden=golden, check=check, version=4,
                              progress=lines.append)
    assert (folder.name, len(seen)) == ("4", 1)
    assert lines[0] == "writing version 4"


def raising(error: BaseException):
    def check(folder: Path) -> Report:
        raise error
    return check


@pytest.mark.parametrize(("check", "error"), [
    (lambda folder: FAILED, VerificationError),
    (raising(VerificationError("differs", report=FAILED)), VerificationError),
    (raising(KeyboardInterrupt()), KeyboardInterrupt), (raising(ZeroDivisionError()),
                                                        ZeroDivisionError)])
def test_no_export_without_a_passing_report(
        task: WordTask, golden: Sequence[Sample], tmp_path: Path, check, error) -> None:
    with pytest.raises(error):
        saved_model.save(task, tmp_path, name="words", golden=golden, check=check)
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 kB: smaller than the version, larger than its first files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)],
                             capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_under_the_final_name(
        task: WordTask, golden: Sequence[Sample], small_disk: Path) -> None:
    with pytest.raises(ExportError, match=r"expected to write a version, got .*make room"):
        saved_model.save(task, small_disk, name="words", golden=golden, check=lambda f: PASSED)
    assert names(small_disk) == []


@contextmanager
def no_file_beyond(limit_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond the limit: all writers, TensorFlow too, see EFBIG.

    Around the call alone: what pytest itself prints may go to a file that is longer already.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_that_cannot_grow_leaves_nothing_under_the_final_name(
        task: WordTask, golden: Sequence[Sample], tmp_path: Path) -> None:
    with (pytest.raises(ExportError, match=r"expected to write a version, got .*make room"),
          no_file_beyond(4096)):
        saved_model.save(task, tmp_path, name="words", golden=golden, check=lambda f: PASSED)
    assert names(tmp_path) == []


def test_a_disk_that_fills_at_the_last_moment_leaves_nothing_either(
        task: WordTask, golden: Sequence[Sample], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(versions, "sync_tree", full)
    with pytest.raises(ExportError, match="No space left on device"):
        saved_model.save(task, tmp_path, name="words", golden=golden, check=lambda f: PASSED)
    assert names(tmp_path) == []


def test_a_base_directory_that_is_a_file_is_named(
        task: WordTask, golden: Sequence[Sample], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match=str(tmp_path / "file")):
        saved_model.save(task, tmp_path / "file", name="w", golden=golden, check=lambda f: PASSED)


def test_golden_samples_must_prove_every_signature(
        task: WordTask, golden: Sequence[Sample], tmp_path: Path) -> None:
    logits = golden[0].outputs["logits"].copy()
    logits[2, 1] = np.nan
    broken = dataclasses.replace(golden[0], outputs={**golden[0].outputs, "logits": logits})
    for samples, message in (
            (golden[1:], "signature 'serving_default' has no sample"), ((), "has no sample"),
            ((*golden, Sample("nope", {})), "sample 4 asks for 'nope'"),
            ((*golden, Sample("encode", {})), r"sample 4 \(encode\) has the outputs \[\] instead"),
            ((broken, *golden[1:]), "sample 0 .* NaN in output 'logits', row 2")):
        with pytest.raises(ExportError, match=message):
            saved_model.save(task, tmp_path, name="w", golden=samples, check=lambda f: PASSED)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("change", "message"), [
    ({"outputs": (rows("ids", "int32", None),)}, "output 'mask' is not in the task"),
    ({"outputs": (rows("ids", "int64", None), rows("mask", "int32", None))},
     r"output 'ids': int32 \(None, None\) instead of int64"),
    ({"outputs": (rows("ids", "int32"), rows("mask", "int32", None))}, "output 'ids'"),
    ({"inputs": (rows("prompt", "string"),)}, "input 'prompt' is missing"),
    ({"name": "other"}, "signature 'other' is missing"),
    ({"method_name": "tensorflow/serving/regress"}, "method 'tensorflow/serving/predict' instead")])
def test_a_graph_that_is_not_what_the_task_promises_is_found(
        version_dir: Path, task: WordTask, change: dict[str, object], message: str) -> None:
    spec = task.signatures()["encode"].spec
    check_signature_defs(version_dir, [spec])
    with pytest.raises(ExportError, match=message):
        check_signature_defs(version_dir, [dataclasses.replace(spec, **change)])


class SharpTask(WordTask):
    """The fake task with an option in each row: what its logits are multiplied by."""

    def signatures(self) -> dict[str, Signature]:
        text, logits = rows("text", "string"), rows("logits", "float32", len(CLASSES))
        spec = SignatureSpec(name="serving_default", outputs=(logits,), inputs=(
            text, rows("sharpness", "float32", default=2.5)))

        def sharpened(text: tf.Tensor, sharpness: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"logits": self._answer(text)["logits"] * sharpness[:, None]}

        return {spec.name: Signature(spec, sharpened)}


def test_PR25_an_option_may_be_left_out_and_its_default_counts_for_all_rows(
        task: WordTask, tmp_path: Path) -> None:
    sharp = SharpTask(task.config, task.codec, task.network)
    saved_model.write_saved_model(sharp, tmp_path)
    told = definitions_of(tmp_path)["serving_default"].defaults
    assert {name: tf.make_ndarray(value).tolist() for name, value in told.items()} == {
        "sharpness": [2.5]}
    plain = task._answer(tf.constant(TEXTS))["logits"].numpy()
    each = np.float32([1.0, 2.0, 3.0, 4.0])
    for load in (SavedModelPredictor, SessionPredictor):
        ask = load(tmp_path)
        for sharpness in (np.float32([2.5]), each):
            got = ask("serving_default", {"text": TEXTS, "sharpness": sharpness})["logits"]
            np.testing.assert_allclose(got, plain * sharpness[:, None], rtol=1e-6)
        none = ask("serving_default", {"text": TEXTS[:0], "sharpness": np.float32([2.5])})
        assert none["logits"].shape == (0, len(CLASSES))
    renamed = dataclasses.replace(sharp.signatures()["serving_default"].spec, inputs=(
        rows("text", "string"), rows("sharpness", "float32")))
    with pytest.raises(ExportError, match=r"defaults of \['sharpness'\] instead of \[\]"):
        check_signature_defs(tmp_path, [renamed])


def test_rows_come_first_and_there_is_a_default() -> None:
    flat = dataclasses.replace(rows("x", "float32"), shape=(3,))
    with pytest.raises(ExportError, match=r"'serving_default' among them, got \['s'\].*'x': "):
        check_specs([SignatureSpec(name="s", inputs=(flat,), outputs=())])


def test_the_chat_format_of_a_decoder_travels_beside_the_manifest(tmp_path: Path) -> None:
    tokenizer, folder = tmp_path / "tokenizer", tmp_path / "7"
    tokenizer.mkdir()
    (folder / EXTRA_FOLDER).mkdir(parents=True)
    decoder = build(small.DECODER, tokenizer_dir=tokenizer, seed=1)
    saved_model.write_chat(decoder, folder)
    assert read_chat(folder) is None
    (tokenizer / "tokenizer_config.json").write_text(
        '{"chat_template": "{{ bos_token }}x", "bos_token": "<s>"}', encoding="utf-8")
    saved_model.write_chat(decoder, folder)
    assert read_chat(folder) == ChatFormat(template="{{ bos_token }}x", start=True,
                                           tokens={"bos_token": "<s>"})


def test_a_model_directory_keeps_its_chat_template(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "chat_template.jinja").write_text("hello", encoding="utf-8")
    save_task(build(small.DECODER, tokenizer_dir=tokenizer, seed=1), tmp_path / "model")
    found = chat_format(load_task(tmp_path / "model"))
    assert found is not None and found.template == "hello"
