"""Files of examples: what is read, and that every fault is named by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from tf_infer.config import ClassifierConfig
from tf_infer.errors import DataError
from tf_infer.train import data
from tf_infer.train.data import Example, read

SECRET = "a sentence nobody may see in a message"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    raw = content if isinstance(content, bytes) else content.encode("utf-8")
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def test_jsonl_is_read_with_its_places(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "one", "label": "x", "fine": 3}\n\n'
                 '{"text": "line\\u2028 separator", "text_pair": "p", "labels": ["x", "y"]}\n')
    assert read(path) == [
        Example("one", None, ("x",), "a.jsonl:1"),
        Example("line\u2028 separator", "p", ("x", "y"), "a.jsonl:3")]


def test_a_raw_line_separator_does_not_end_a_jsonl_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False))
    assert read(path)[0].text == "a\u2028b\x85c"


def test_csv_is_read_by_its_header(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", '\ufefflabel,text\r\nx,"two\nlines, ""quoted"""\r\ny,plain\r\n')
    assert read(path) == [Example('two\nlines, "quoted"', None, ("x",), "a.csv:3"),
                          Example("plain", None, ("y",), "a.csv:4")]


def test_csv_labels_are_joined_by_a_bar_and_may_be_none(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,labels\none,x|y\ntwo,\n")
    assert [example.labels for example in read(path)] == [("x", "y"), ()]


def test_gzip_and_plain_give_the_same(tmp_path: Path) -> None:
    content = '{"text": "naïve", "label": "x"}\n'
    plain = read(write(tmp_path, "a.jsonl", content))
    packed = read(write(tmp_path, "a.jsonl.gz", content))
    assert [e._replace(place="") for e in plain] == [e._replace(place="") for e in packed]


def test_a_megabyte_of_text_is_one_cell(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\n" + "a" * 1_000_000 + ",x\n")
    assert len(read(path)[0].text) == 1_000_000


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.txt", "one\n\ntwo\n")) == [
        Example("one\n\ntwo\n", None, (), "a.txt:1")]


def test_pieces_join_to_the_text() -> None:
    text = "".join(f"line {i}\n\n" for i in range(2_000)) + "no newline at the end"
    parts = data.pieces(text)
    assert "".join(parts) == text
    assert len(parts) > 5
    assert max(len(part) for part in parts) < 2_100
    assert data.pieces("") == []


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("a.jsonl", "", "expected at least one example"),
    ("a.jsonl", "\n  \n", "expected at least one example"),
    ("a.csv", "", "expected at least one example"),
    ("a.csv", "text,label\n", "expected at least one example"),
    ("a.txt", "", "expected at least one example"),
    ("a.jsonl", '{"text": "a"}\n{"text": "' + SECRET + '"\n', "a.jsonl:2: expected a JSON object"),
    ("a.jsonl", '["' + SECRET + '"]\n', "a.jsonl:1: expected a JSON object, got a list"),
    ("a.jsonl", '{"Text": "' + SECRET + '"}\n', "did you mean 'Text' to be it"),
    ("a.jsonl", '{"text": 3}\n', "a.jsonl:1: text: expected a string, got a int"),
    ("a.jsonl", '{"text": "a", "label": 3}\n', "label: expected a string"),
    ("a.jsonl", '{"text": "a", "labels": "x"}\n', "labels: expected a list of strings"),
    ("a.jsonl", '{"text": "a", "label": "x", "labels": ["x"]}\n', "either label or labels"),
    ("a.csv", "tekst,label\n" + SECRET + ",x\n", "a.csv:1: expected the key 'text'"),
    ("a.csv", SECRET + ",x\nmore,y\n", "a.csv:1: expected the key 'text', got 2 cells. The first"),
    ("a.csv", SECRET + ",label\n", "got 2 cells, of which known are label"),
    ("a.jsonl", '{"' + SECRET + '": 1}\n', "a.jsonl:1: expected the key 'text', got 1 keys"),
    ("a.jsonl", '{"text": "a", "n": ' + "9" * 5_000 + "}\n", "a.jsonl:1: expected a JSON object"),
    ("a.jsonl", "[" * 200_000 + "\n", "a.jsonl:1: expected a JSON object"),
    ("a.csv", "text,label\na,x\n" + SECRET + ",with comma,x\n", "a.csv:3: expected 2 cells"),
    ("a.csv", 'text,label\n"' + SECRET + ',x\n', "expected CSV"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "a.jsonl:2: expected UTF-8, got the byte"),
    ("a.xlsx", "PK", "expected a name that ends in .jsonl, .csv, .txt"),
])
def test_a_fault_names_file_and_line_and_never_the_text(
        tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    with pytest.raises(DataError) as error:
        read(write(tmp_path, name, content))
    assert expected in str(error.value)
    assert SECRET not in str(error.value)


def test_a_missing_and_a_cut_file_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read: No such file"):
        read(tmp_path / "a.jsonl")
    whole = gzip.compress(b'{"text": "a"}\n' * 1_000)
    (tmp_path / "b.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"b\.jsonl\.gz: cannot be read"):
        read(tmp_path / "b.jsonl.gz")
    (tmp_path / "c.jsonl.gz").write_bytes(b"plain text")
    with pytest.raises(DataError, match=r"c\.jsonl\.gz: cannot be read"):
        read(tmp_path / "c.jsonl.gz")


def test_many_faults_are_raised_at_once_and_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*a\.jsonl:3: .*; and 2 more rows\."):
        read(write(tmp_path, "a.jsonl", "{}\n" * 5))


# ---------------------------------------------------------------------------- labels

SINGLE = ClassifierConfig(classes=("card_arrival", "card_lost", "refund"))


def test_targets_of_one_label_and_of_several() -> None:
    rows = [Example("a", labels=("refund",)), Example("b", labels=("card_lost",))]
    targets = data.class_targets(rows, SINGLE)
    assert targets.dtype == np.int32
    assert targets.tolist() == [2, 1]
    several = ClassifierConfig(classes=SINGLE.classes, multi_label=True)
    rows = [Example("a", labels=()), Example("b", labels=("card_lost", "refund"))]
    assert data.class_targets(rows, several).tolist() == [[0, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize(("example", "config", "expected"), [
    (Example("t", labels=("card_arival",), place="a.jsonl:7"), SINGLE,
     r"a\.jsonl:7: label: expected one of the model's 3 classes, got a name of 11 characters; "
     "the nearest class is 'card_arrival'"),
    (Example("t", labels=("絵",)), SINGLE, "row 0: .*the nearest class is"),
    (Example("t"), SINGLE, "label: expected one class, got 0"),
    (Example("t", labels=("refund", "refund")), SINGLE, "label: expected one class, got 2"),
    (Example("t", "pair", labels=("refund",)), SINGLE, "expected no text_pair"),
    (Example("t", labels=("refund",)), ClassifierConfig(classes=("refund", "x"), pair=True),
     "expected text_pair"),
])
def test_labels_that_do_not_fit_the_model(
        example: Example, config: ClassifierConfig, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        data.class_targets([example], config)


def test_one_label_only_is_refused() -> None:
    targets = np.array([1, 1, 1], np.int32)
    with pytest.raises(DataError, match="got only 'card_lost' in all 3"):
        data.check_several_classes(targets, SINGLE)
    data.check_several_classes(np.array([1, 2], np.int32), SINGLE)


def test_a_lone_surrogate_becomes_bytes() -> None:
    assert data.to_bytes("a\ud800") == b"a\xed\xa0\x80"


def test_class_names_are_sorted_and_unique() -> None:
    rows = [Example("a", labels=("b", "a")), Example("b", labels=("b",))]
    assert data.class_names(rows) == ("a", "b")
