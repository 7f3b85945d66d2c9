"""`tf-infer export` and `tf-infer verify`: from a model directory to a proven version, and back."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import numpy as np
import pytest

from tf_infer.cli import proof
from tf_infer.cli.main import main
from tf_infer.client.client import Client
from tf_infer.config import (
    CausalLMConfig,
    ClassifierConfig,
    EmbeddingBagConfig,
    GenerationDefaults,
    PackingConfig,
    ShapeGrid,
    SmallTransformerConfig,
)
from tf_infer.errors import DataError, InvalidRequest, ModelNotFound
from tf_infer.manifest import EXTRA_FOLDER, Sample, array_to_json, read_samples, write_samples
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig, ServerConfig
from tf_infer.tasks import build
from tf_infer.tasks.base import Signature
from tf_infer.tasks.causal_lm import CausalLM
from tf_infer.wire.messages import ModelRef

pytestmark = pytest.mark.whole

GRID = ShapeGrid(rows=(1, 2), tokens=(8, 16))
BAG = EmbeddingBagConfig(width=16, hash_buckets=500)  # a transformer takes three times as long
NETWORK = SmallTransformerConfig(width=16, layers=1, heads=2, hidden=32, max_positions=32)
CLASSES = ("yes", "no", "maybe")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ClassifierConfig(classes=CLASSES, grid=GRID, network=BAG,
                              packing=PackingConfig(max_tokens=16))
    return build.save(build.build(config), tmp_path_factory.mktemp("models") / "answers")


@pytest.fixture(scope="module")
def exported(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of version 1, with every path compared (XLA and a server, too), and what was said.

    Version 0 stood there before and is removed.
    """
    texts = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    texts.write_text('{"text": "once upon"}\n{"text": "a time"}\n')
    folder = tmp_path_factory.mktemp("saved") / "answers"
    (folder / "0").mkdir(parents=True)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["export", str(model_dir), "--base-dir", str(folder), "--name", "replies",
                     "--texts", str(texts), "--keep", "1", "--explain"]) == 0
    return folder, said.getvalue()


@pytest.fixture(scope="module")
def base_dir(exported: tuple[Path, str]) -> Path:
    return exported[0]


@pytest.fixture(scope="module")
def plain(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a version without `explain`, which is half of the graphs of one with it."""
    folder = tmp_path_factory.mktemp("plain") / "answers"
    proof.export_task(build.load(model_dir), folder, name="replies", xla=False, server=False,
                      skipped=dict.fromkeys(("graph", "saved_model"), "elsewhere"))
    return folder


@pytest.fixture(scope="module")
def served(base_dir: Path) -> Iterator[proof.ServedPredictor]:
    """Our server in this process, which serves version 1 as "replies"."""
    with contextlib.closing(proof.ServedPredictor(base_dir / "1", "replies")) as made:
        yield made


@pytest.fixture(scope="module")
def client(served: proof.ServedPredictor) -> Iterator[Client]:
    with Client(served.address, timeout_s=60.0) as made:
        yield made


def read_report(base_dir: Path) -> dict[str, dict]:
    report = json.loads((base_dir / "1" / EXTRA_FOLDER / "report.json").read_text())
    return {path["path"]: path for path in report["paths"]}


def test_a_version_was_compared_on_every_path(base_dir: Path) -> None:
    paths = read_report(base_dir)
    assert list(paths) == ["graph", "xla", "saved_model", "session", "grpc"]
    assert all(path["samples"] > 0 and not path["skipped"] for path in paths.values())
    signatures = {one["signature"] for one in paths["grpc"]["differences"]}
    assert signatures == {"serving_default", "ids", "classify", "encode", "explain"}


def test_verify_replays_the_golden_samples_of_the_highest_version(
        plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(plain), "--quick"]) == 0
    shown = capsys.readouterr()
    assert "passed: saved_model, session = golden" in shown.out
    assert f"{plain}/1" in shown.err


def test_the_export_says_what_it_did_and_what_comes_next(exported: tuple[Path, str]) -> None:
    folder, said = exported
    assert "passed: graph, xla, saved_model, session, grpc = eager" in said
    assert "removed the versions 0" in said
    size = sum(path.stat().st_size for path in (folder / "1").rglob("*") if path.is_file())
    assert f"{size / 1e6:.1f} MB, " in said
    assert f"next: tf-infer serve --model_name=replies --model_base_path={folder}" in said
    samples = read_samples(folder / "1" / EXTRA_FOLDER / "golden.jsonl")
    texts = [text for sample in samples if sample.signature == "serving_default"
             for text in sample.inputs["text"]]
    assert {b"once upon", b"a time"} <= set(texts)


def test_verify_runs_three_sets_through_every_path_that_there_is(
        base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # where no real server is
    (tmp_path / "more.json").write_text('["one more \\u0000"]')
    code = main(["verify", str(base_dir), "--json", "--junit", str(tmp_path / "verify.xml"),
                 "--hostile", str(tmp_path / "more.json")])
    report = json.loads(capsys.readouterr().out)["report"]
    paths = {path["path"]: path for path in report["paths"]}
    assert code == 0
    assert report["reference"] == "golden, and saved_model"
    sets = ("", " hostile", " cells")
    assert set(paths) == {
        "saved_model",
        *(f"{path}{which}" for path in ("session", "grpc", "rest") for which in sets),
        "grpc crowd", "alone", "shuffled", "tensorflow_model_server"}
    assert paths["tensorflow_model_server"]["skipped"] == "no tensorflow_model_server on PATH"
    for name, path in paths.items():
        assert name == "tensorflow_model_server" or path["samples"] > 0, name
    asked = {one["signature"] for one in paths["rest hostile"]["differences"]}
    assert asked == {"serving_default", "ids", "classify", "encode"}
    suite = xml.parse(tmp_path / "verify.xml").getroot()[0]
    assert suite.get("failures") == "0"
    assert {"grpc hostile.serving_default", "grpc crowd.serving_default", "rest cells.ids",
            "alone.classify", "tensorflow_model_server"} <= {
                case.get("classname") for case in suite}


def test_verify_takes_another_version_as_reference_and_writes_junit(
        plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    junit = tmp_path / "verify.xml"
    assert main(["verify", str(plain / "1"), "--against", str(plain), "--junit",
                 str(junit), "--quick"]) == 0
    assert f"passed: saved_model, session = {plain}" in capsys.readouterr().out
    suite = xml.parse(junit).getroot()[0]
    assert suite.get("failures") == "0"
    assert "session.classify" in {case.get("classname") for case in suite}


def test_a_server_explains_what_was_exported(served: proof.ServedPredictor, client: Client) -> None:
    found, = client.explain("replies", ["once upon a süß time"])
    assert "".join(token.text for token in found.tokens).encode(errors="ignore")
    assert sum(token.value for token in found.tokens) == pytest.approx(
        found.score - found.baseline, abs=1e-3)
    assert found.error < 1e-3
    assert [token.end - token.start for token in found.tokens[:5]] == [1] * 5
    with pytest.raises(InvalidRequest, match="target: expected"):
        client.explain("replies", ["a"], target="perhaps")


def test_verify_asks_a_server_too(
        base_dir: Path, served: proof.ServedPredictor, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["verify", str(base_dir / "1"), "--address", served.address, "--json", "--quick"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["passed"] is True
    assert [path["path"] for path in report["report"]["paths"]] == [
        "saved_model", "session", "grpc"]


STRANGE = ["", "\0", "a\0b", b"\xff\xfe", "\u202e\u0301", "x" * 1_000_000, "word " * 200_000]


def test_strange_texts_are_answered_as_any_other(client: Client) -> None:
    answers = client.classify("replies", STRANGE)
    assert [answer.label in CLASSES for answer in answers] == [True] * len(STRANGE)
    alone = [client.classify("replies", [text])[0] for text in STRANGE]
    assert [answer.label for answer in alone] == [answer.label for answer in answers]
    assert client.classify("replies", []) == []


ROW, ONES = {"text": ["fine"]}, np.ones([1, 8], np.int32)


@pytest.mark.parametrize(("model", "inputs", "options", "kind", "words"), [
    (ModelRef("nobody"), ROW, {}, ModelNotFound, "Latest(nobody)"),
    (ModelRef("replies", version=9), ROW, {}, ModelNotFound, "Specific(replies, 9)"),
    (ModelRef("replies", label="best"), ROW, {}, InvalidRequest, "version label: best"),
    (ModelRef("replies"), ROW, {"signature": "nothing"}, InvalidRequest,
     'signature key "nothing" not found'),
    (ModelRef("replies"), {}, {}, InvalidRequest, "Missing but required: {text}"),
    (ModelRef("replies"), {**ROW, "more": [1]}, {}, InvalidRequest, "Sent extra: {more}"),
    (ModelRef("replies"), {"txt": ["a"]}, {}, InvalidRequest, "txt"),
    (ModelRef("replies"), {"text": [1.0]}, {}, InvalidRequest, "to be string but float"),
    (ModelRef("replies"), {"text": "one"}, {}, InvalidRequest,
     "[] is not compatible with expected shape [?]"),
    (ModelRef("replies"), {"text": [["a", "b"]]}, {}, InvalidRequest, ""),
    (ModelRef("replies"), {"ids": ONES.astype(np.int64), "mask": ONES}, {"signature": "ids"},
     InvalidRequest, "to be int32 but int64"),
    (ModelRef("replies"), {"ids": ONES[0], "mask": ONES}, {"signature": "ids"}, InvalidRequest, ""),
    (ModelRef("replies"), ROW, {"outputs": ["none"]}, InvalidRequest, "in signature: none"),
], ids=lambda value: str(value)[:30])
def test_bad_requests_are_refused_and_disturb_nothing(
        client: Client, model: ModelRef, inputs: Mapping[str, Any], options: Mapping[str, Any],
        kind: type[Exception], words: str) -> None:
    before = client.classify("replies", ["fine"])
    with pytest.raises(kind) as caught:
        client.predict(model, inputs, **options)
    assert words in str(caught.value)
    assert client.classify("replies", ["fine"]) == before


def test_verify_compares_the_paths_of_a_model_directory(
        model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(model_dir), "--no-xla", "--json"]) == 0
    paths = json.loads(capsys.readouterr().out)["report"]["paths"]
    assert [path["path"] for path in paths] == [
        "graph", "graph hostile", "graph cells", "alone", "shuffled"]


def copy_with_golden(base_dir: Path, folder: Path, samples: Sequence[Sample]) -> Path:
    """A SavedModel of somebody else, without our manifest, with these golden samples."""
    shutil.copytree(base_dir / "1", folder, ignore=shutil.ignore_patterns(EXTRA_FOLDER))
    (folder / EXTRA_FOLDER).mkdir()
    write_samples(samples, folder / EXTRA_FOLDER / "golden.jsonl")
    return folder


@pytest.mark.parametrize("spoiled", [0.5, np.nan])
def test_verify_says_which_answer_differs(
        plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoiled: float) -> None:
    samples = list(read_samples(plain / "1" / EXTRA_FOLDER / "golden.jsonl"))
    index = next(i for i, one in enumerate(samples) if one.signature == "ids")
    samples[index].outputs["logits"][1, 0] += spoiled
    folder = copy_with_golden(plain, tmp_path / "1", samples)
    assert main(["verify", str(folder), "--quick"]) == 1
    shown = capsys.readouterr().out
    assert f"FAILED, first in sample {index} (first in row 1" in shown
    assert ("NaN on one side only" in shown) == np.isnan(spoiled)
    also = ", numbers" if np.isnan(spoiled) else ""
    assert f"FAILED: saved_model, session{also} does not give what golden gives." in shown
    if not np.isnan(spoiled):
        assert main(["verify", str(folder), "--json", "--quick"]) == 1
        assert json.loads(capsys.readouterr().out)["passed"] is False


def test_a_foreign_saved_model_is_verified_with_requests_of_its_owner(
        plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_with_golden(plain, tmp_path / "theirs", [])
    shutil.rmtree(folder / EXTRA_FOLDER)
    assert main(["verify", str(folder)]) == 1
    assert "Give requests of your own with --samples" in capsys.readouterr().err
    text = array_to_json(np.array([b"hello"], object))
    line = {"signature": "serving_default", "inputs": {"text": text}, "outputs": {}}
    (tmp_path / "requests.jsonl").write_text(json.dumps(line) + "\n")
    assert main(["verify", str(folder), "--samples", str(tmp_path / "requests.jsonl")]) == 0
    shown = capsys.readouterr().out
    assert "passed: saved_model, session, grpc, rest = saved_model" in shown
    assert "skipped: no sample has several rows" in shown


def test_damaged_directories_are_named(
        plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 1
    assert f"{tmp_path}: expected a model directory with task.json" in capsys.readouterr().err
    copied = shutil.copytree(plain / "1", tmp_path / "1")
    golden, manifest = (copied / EXTRA_FOLDER / name for name in ("golden.jsonl", "tf_infer.json"))
    whole = golden.read_text()
    golden.write_text(whole[:-30])
    assert main(["verify", str(copied)]) == 1
    assert f"{EXTRA_FOLDER}/golden.jsonl has changed" in capsys.readouterr().err
    golden.write_text(whole)
    (copied / "variables" / "variables.index").unlink()
    assert main(["verify", str(copied)]) == 1
    assert "variables/variables.index is missing" in capsys.readouterr().err
    manifest.write_text(manifest.read_text()[:100])
    assert main(["verify", str(copied)]) == 1
    assert "tf_infer.json: expected JSON" in capsys.readouterr().err


def test_nothing_is_exported_when_a_path_differs(
        model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    honest = proof.make_golden

    def spoiled(*arguments: object, **options: object) -> tuple[Sample, ...]:
        golden = honest(*arguments, **options)
        golden[0].outputs["scores"] += 0.01
        return golden

    monkeypatch.setattr(proof, "make_golden", spoiled)
    monkeypatch.chdir(tmp_path)
    command = ["export", str(model_dir), "--base-dir", "intents", "--no-xla", "--no-server"]
    assert main(command) == 1
    shown = capsys.readouterr()
    assert "FAILED: graph, saved_model, session" in shown.out
    assert "graph serving_default/scores:" in shown.err
    assert "Nothing was exported. Report: runs/export-intents.json" in shown.err
    assert [path.name for path in (tmp_path / "intents").iterdir()] == [".last_version"]
    report = json.loads((tmp_path / "runs" / "export-intents.json").read_text())
    assert [path["path"] for path in report["paths"] if any(
        one["first_sample"] is not None for one in path["differences"])] == [
        "graph", "saved_model", "session"]


def decoder_config() -> CausalLMConfig:
    return CausalLMConfig(packing=PackingConfig(max_tokens=8, end=False, truncation="left"),
                          grid=ShapeGrid(rows=(1, 2), tokens=(8,)), network=NETWORK, capacity=8,
                          defaults=GenerationDefaults(max_new_tokens=4))


class Brief(CausalLM):
    """A decoder with two of its six signatures: tracing all for every path takes a minute."""

    def signatures(self) -> Mapping[str, Signature]:
        """Return generate, as serving_default, and encode."""
        found = super().signatures()
        generate = found["generate"]
        return {"serving_default": Signature(replace(generate.spec, name="serving_default"),
                                             generate.function), "encode": found["encode"]}


def test_a_decoder_is_exported_and_its_options_may_be_left_out(tmp_path: Path) -> None:
    made = build.build(decoder_config())
    task = Brief(made.config, made.codec, made.network)
    # The graph, XLA too: tests/tasks/suite.py. The server below replays the golden samples.
    folder, report = proof.export_task(task, tmp_path / "writer", name="writer", max_rows=1,
                                       xla=False, server=False, skipped={"graph": "elsewhere"})
    assert [path.path for path in report.paths if path.passed] == ["saved_model", "session"]
    socket_path = str(tmp_path / "grpc")
    config = ServerConfig(models=(ModelConfig(name="writer", base_path=str(folder.parent)),),
                          port=0, socket_path=socket_path, poll_s=0.0, warmup=False)
    with Server(config), Client(f"unix:{socket_path}", timeout_s=60.0) as client:
        prompts = {"prompt": ["once", "a time"]}
        few = client.predict("writer", prompts)
        same = client.predict("writer", prompts | {"max_new_tokens": np.int32([4, 4])})
        more = client.predict("writer", prompts | {"max_new_tokens": np.int32([8, 8])})
    assert few["ids"].tolist() == same["ids"].tolist()
    assert few["length"].max() <= 4 < more["length"].max()


@pytest.mark.slow  # a minute of processor time
def test_every_signature_of_a_decoder_is_compared_on_every_path(tmp_path: Path) -> None:
    build.save(build.build(decoder_config()), tmp_path / "writer")
    saved = tmp_path / "saved"
    assert main(["export", str(tmp_path / "writer"), "--base-dir", str(saved)]) == 0
    paths = read_report(saved)
    assert list(paths) == ["graph", "xla", "saved_model", "session", "grpc"]
    for path in paths.values():
        assert {one["signature"] for one in path["differences"]} == {
            "serving_default", "generate", "score", "encode", "decode", "steps"}


@pytest.mark.parametrize(("name", "content"), [
    ("a.txt", "one\n\ntwo é\r\n"), ("a.jsonl", '{"text": "one"}\n{"text": "two é"}\n'),
    ("a.csv", "label,text\nx,one\ny,two é\n")])
@pytest.mark.parametrize("packed", [False, True])
def test_texts_are_read_as_training_reads_them(
        tmp_path: Path, name: str, content: str, packed: bool) -> None:
    path = tmp_path / (f"{name}.gz" if packed else name)
    raw = content.encode()
    path.write_bytes(gzip.compress(raw) if packed else raw)
    assert proof.read_texts(path) == (b"one", "two é".encode())


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.txt", b" \n\n", "at least one text"), ("a.jsonl", b'{"text": "x"}\n{"t": 1}\n', ":2: "),
    ("b.jsonl", b"{\n", ":1: "), ("c.jsonl", b"[]\n", ":1: "), ("d.csv", b"one\n", ":1: "),
    ("e.jsonl.gz", b'{"text": "x"}\n', "no whole gzip file"),
    ("f.md", b"one\n", "name that ends in")])
def test_a_file_without_texts_is_named(
        tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read|name that ends in"):
        proof.read_texts(tmp_path / name)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        proof.read_texts(tmp_path / name)
