"""`tf-infer prune` and `tf-infer train --teacher`: what they print, write and refuse."""

from __future__ import annotations

import gc
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from tf_infer.cli import main, prune
from tf_infer.config import (
    CausalLMConfig,
    ClassifierConfig,
    GenerationDefaults,
    PackingConfig,
    ShapeGrid,
    SmallTransformerConfig,
    WordPieceConfig,
)
from tf_infer.optimize.prune import PruneSettings
from tf_infer.tasks.build import build, load, save

pytestmark = pytest.mark.whole

WORDS = [*"abcdefghijklmnopqrstuvwxyz0123456789", "my", "parcel", "is", "late", "want", "euros",
         "back", "never", "seen", "words", "here"]
CONFIG = ClassifierConfig(
    classes=("parcel", "refund"), codec=WordPieceConfig(), packing=PackingConfig(max_tokens=16),
    grid=ShapeGrid(rows=(1, 32), tokens=(16,)),
    network=SmallTransformerConfig(width=16, layers=2, heads=4, hidden=32, max_positions=16))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.csv"
    path.write_text("text,label\n" + "".join(
        f"my parcel {i} is late,parcel\ni want {i} euros back,refund\n" for i in range(20)))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    singles = [f"##{word}" for word in WORDS if len(word) == 1]
    (folder / "vocab.txt").write_text(
        "".join(f"{word}\n" for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *singles)))
    return save(build(CONFIG, tokenizer_dir=folder), folder / "intents")


def test_prune_compares_what_it_wrote(
        model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "deep" / "small"
    words = ["prune", str(model), "--texts", str(rows), "--heads", "2", "--neurons", "0.25",
             "--vocabulary", "used", "--output", str(output), "--test", str(rows), "--rounds", "0",
             "--json", "--quiet"]
    assert main.main(words) == 0
    told = json.loads(capsys.readouterr().out)
    task = load(output)
    network = task.config.network
    assert isinstance(network, SmallTransformerConfig)
    assert (network.layers, network.heads, network.head_size, network.hidden) == (2, 2, 4, 8)
    assert task.codec.vocab_size == len(WORDS) + 4 + 36 - 4  # never seen words here
    before, after = told["before"], told["after"]
    assert before["vocabulary"] - after["vocabulary"] == 4
    assert before["ids_a_text"] == after["ids_a_text"]
    assert before["unknown_share"] == after["unknown_share"] == 0.0
    for name, part in (("before", model), ("after", output)):
        assert told[name]["megabytes"] == pytest.approx(
            (part / "weights.safetensors").stat().st_size / 1e6)
    assert after["parameters"] < before["parameters"]
    assert told["kept"]["neurons"] == [8, 8] and len(told["kept"]["heads"][0]) == 2
    assert 0 <= after["accuracy"] <= 1
    assert main.main(words) == 1
    assert "--output: expected a directory that does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_the_student_is_timed_and_learns_from_a_teacher_with_another_tokenizer(
        model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "small"
    assert main.main(["prune", str(model), "--texts", str(rows), "--layers", "1", "--vocabulary",
                      "used", "--output", str(output), "--rounds", "1", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "ms a call, batch 1 " in printed and "ms a call, batch 32" in printed
    assert "kept: layers " in printed
    train = ["train", str(output), "--teacher", str(model), "--data", str(rows), "--run-dir",
             str(tmp_path / "run"), "--epochs", "2", "--json", "--quiet", "--distill-labels",
             "0.25", "--distill-temperature", "3"]
    assert main.main(train) == 0
    assert len(json.loads(capsys.readouterr().out)["epochs"]) == 2
    assert main.main([*train, "--resume", "--distill-labels", "0.5"]) == 1
    assert "got others: teacher.config.labels" in capsys.readouterr().err


def test_the_table_shows_both_models(model: Path, rows: Path, tmp_path: Path,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("my parcel is late\n\ni want euros back\n")
    output = tmp_path / "small"
    assert main.main(["prune", str(model), "--texts", str(lines), "--vocabulary", "used",
                      "--output", str(output), "--rounds", "0", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "weights, MB" in printed and "vocabulary" in printed and "ms a call" not in printed
    assert f"next: tf-infer train {output} --teacher {model}" in printed


def test_options_go_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "prune.json"
    path.write_text('{"heads": 0.5, "layers": 3, "vocabulary": "used"}')
    read = prune.settings_of(main.build_parser(only="prune").parse_args(
        ["prune", "m", "--texts", "t", "--output", "o", "--settings", str(path), "--layers", "2",
         "--least-uses", "4", "--judging-texts", "9"]))
    assert read == PruneSettings(heads=0.5, layers=2.0, vocabulary="used", least_uses=4, texts=9)


@pytest.mark.parametrize(("words", "expected"), [
    (["--heads", "many"], "prune.heads: expected a value of type float"),
    (["--heads", "9"], "PruneSettings.heads: expected at most the 4"),
    (["--vocabulary", "usd"], "prune.vocabulary: expected one of"),
    (["--rounds", "-1"], "--rounds: expected >= 0"),
])
def test_wrong_settings_are_named(words: list[str], expected: str, model: Path, rows: Path,
                                  tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["prune", str(model), "--texts", str(rows), "--output",
                      str(tmp_path / "out"), "--quiet", *words]) == 1
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("option", "content", "expected"), [
    ("--texts", 'text,text_pair,label\na,,parcel\nb,c,refund\n',
     "bad.csv:3: expected no text_pair, as the model says pair = False"),
    ("--texts", "text\n \n", "bad.csv: expected at least one text, got none"),
    ("--test", 'text,text_pair,label\na,,parcel\nb,c,refund\n', "bad.csv:3: expected no text_pair"),
    ("--test", "text,label\na,parcel\nb,parcels\n",
     "bad.csv:3: label: expected one of the model's 2 classes"),
    ("--test", "text,label\na,parcel\nb,\n", "bad.csv:3: label: expected one class, got 0"),
    ("--test", "text,label\n ,parcel\n", "bad.csv: expected at least one text, got none")])
def test_rows_that_do_not_fit_are_named_before_anything_is_done(
        option: str, content: str, expected: str, model: Path, rows: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: object, **more: object) -> None:
        raise AssertionError("texts were judged before rows were looked at")

    monkeypatch.setattr("tf_infer.optimize.prune.choose", never)
    (tmp_path / "bad.csv").write_text(content)
    assert main.main(["prune", str(model), "--texts", str(rows), "--heads", "2", "--output",
                      str(tmp_path / "out"), "--quiet", "--rounds", "0", option,
                      str(tmp_path / "bad.csv")]) == 1
    assert expected in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]


def test_pairs_are_asked_for_where_the_model_reads_pairs(
        model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = save(build(replace(CONFIG, pair=True), tokenizer_dir=model / "tokenizer"),
                 tmp_path / "pairs")
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a", "text_pair": "b"}\n{"text": "c"}\n')
    words = ["prune", str(pairs), "--texts", str(texts), "--heads", "2", "--output",
             str(tmp_path / "out"), "--quiet", "--rounds", "0"]
    assert main.main(words) == 1
    assert "texts.jsonl:2: expected text_pair, as the model says pair" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


DECODER = CausalLMConfig(
    capacity=4, defaults=GenerationDefaults(max_new_tokens=4),
    packing=PackingConfig(max_tokens=16, end=False, start=False, truncation="left"),
    grid=ShapeGrid(rows=(1,), tokens=(16,)),
    network=SmallTransformerConfig(width=16, layers=2, heads=4, hidden=32, max_positions=32))


@pytest.mark.slow  # a decoder is pruned, and timed
def test_texts_of_one_id_do_not_end_it_after_minutes(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = save(build(DECODER), tmp_path / "writer")
    for name, lines in (("short", ["a", "b"]), ("mixed", ["a", "a longer one", "b"])):
        (tmp_path / f"{name}.jsonl").write_text(
            "\n".join(json.dumps({"text": line}) for line in lines))
    words = ["prune", str(writer), "--output", str(tmp_path / "out"), "--quiet", "--neurons", "0.5"]
    short, mixed = (str(tmp_path / f"{name}.jsonl") for name in ("short", "mixed"))
    assert main.main([*words, "--texts", short, "--rounds", "0"]) == 1
    assert "texts: expected one of at least two ids" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main.main([*words, "--texts", mixed, "--rounds", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["after"]["ms_batch_1"] > 0


def test_what_is_interrupted_leaves_nothing(
        model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    made: list[str] = []

    def interrupted(source: Path, target: Path) -> None:
        made.extend(path.name for path in (tmp_path / "tmp").iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr("os.rename", interrupted)
    assert main.main(["prune", str(model), "--texts", str(rows), "--vocabulary", "used",
                      "--output", str(tmp_path / "out"), "--quiet", "--rounds", "0"]) == 130
    gc.collect()
    assert len(made) == 1 and made[0].startswith("tf_infer_tokenizer_")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


def test_distillation_needs_a_teacher_that_is_there(model: Path, rows: Path, tmp_path: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(model), "--data", str(rows), "--quiet", "--run-dir", str(tmp_path)]
    assert main.main([*words, "--distill-labels", "0.5"]) == 1
    assert "--teacher: expected a model directory" in capsys.readouterr().err
    assert main.main([*words, "--teacher", str(tmp_path / "gone")]) == 1
    assert "expected a model directory with task.json" in capsys.readouterr().err
    other = save(build(replace(CONFIG, classes=("a", "b")),
                       tokenizer_dir=model / "tokenizer"), tmp_path / "other")
    assert main.main([*words, "--teacher", str(other)]) == 1
    assert "teacher.classes: expected the student's classes" in capsys.readouterr().err
