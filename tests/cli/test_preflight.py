"""`tf-infer preflight`: what it prints, as what, and how it ends. No TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tf_infer.cli.main import main
from tf_infer.server.fakes import signature
from tf_infer.wire import serving_pb2 as pb


def model(base: Path, *ops: str, compiled: bool = False) -> Path:
    """A model folder whose version 3 has these operations in the function of its signature."""
    info = {"x": (pb.DT_FLOAT, (-1,))}
    graph = pb.MetaGraphDef(signature_def={"serving_default": signature(info, info)})
    graph.meta_info_def.tags.append("serve")
    node = graph.graph_def.node.add(name="x", op="StatefulPartitionedCall")
    for name in ("Tin", "Tout"):
        node.attr[name].list.SetInParent()
    node.attr["f"].func.name = "f"
    function = graph.graph_def.library.function.add()
    function.signature.name = "f"
    function.attr["_XlaMustCompile"].b = compiled
    for op in ops:
        function.node_def.add(name=op, op=op)
    (base / "m" / "3").mkdir(parents=True)
    (base / "m" / "3" / "saved_model.pb").write_bytes(
        pb.SavedModel(meta_graphs=[graph]).SerializeToString())
    return base / "m"


def test_a_model_that_runs_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", str(model(tmp_path, "NoOp", compiled=True))]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == (f"{tmp_path}/m/3 on tensorflow_model_server 2.20.0 (TensorFlow 2.20.0, "
                        "TF-Text 2.20.0)")
    assert shown[1].startswith("  flag      signature serving_default: compiled by XLA")
    assert shown[2].strip() == "-> --xla_cpu_compilation_enabled=true"
    assert shown[-1].startswith("runs there with --xla_cpu_compilation_enabled=true")


def test_a_model_that_does_not_run_ends_with_1(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path, "MyOwnOp", "Another")
    assert main(["preflight", str(folder), "--server", "2.17.0"]) == 1
    shown = capsys.readouterr().out
    assert "  stop      signature serving_default: operation MyOwnOp is not linked" in shown
    assert shown.endswith("does not run there: 2 reasons\n")


def test_json_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path, "MyOwnOp", compiled=True)
    assert main(["preflight", str(folder / "3"), "--server", "2.19", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["path"] == f"{folder}/3"
    assert said["runs"] is False
    assert said["flags"] == ["--xla_cpu_compilation_enabled=true"]
    assert said["server"] == {"release": "2.19", "tensorflow": "2.19.1",
                              "tensorflow_text": "2.12.1", "decision_forests": "1.3.0"}
    assert [(one["level"], one["where"]) for one in said["findings"]] == [
        ("stop", "signature serving_default"), ("flag", "signature serving_default")]


def test_the_settings_of_the_server_count(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path, "NoOp")
    assert main(["preflight", str(folder), "--saved-model-tags", "serve,gpu"]) == 1
    assert "--saved_model_tags=serve" in capsys.readouterr().out
    extra = folder / "3" / "assets.extra"
    extra.mkdir()
    (extra / "tf_serving_warmup_requests").write_bytes(b"no records")
    assert main(["preflight", str(folder)]) == 1
    assert main(["preflight", str(folder), "--no-model-warmup"]) == 0


def test_what_batching_cannot_take_counts_when_it_is_on(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path, "NoOp")
    file = folder / "3" / "saved_model.pb"
    saved = pb.SavedModel.FromString(file.read_bytes())
    saved.meta_graphs[0].signature_def["serving_default"].inputs["x"].tensor_shape.Clear()
    file.write_bytes(saved.SerializeToString())
    assert main(["preflight", str(folder)]) == 0
    assert "  batching  signature serving_default: input 'x' is a scalar" in capsys.readouterr().out
    assert main(["preflight", str(folder), "--enable-batching"]) == 1
    assert "  stop      signature serving_default: input 'x' is a" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "words"), [
    (["/none"], "cannot be listed"), ([".", "--server", "1.15"], "expected a release of 2.17")])
def test_wrong_usage_ends_with_2(
        arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["preflight", "--help"])
    assert ended.value.code == 0
    assert "examples:" in capsys.readouterr().out
