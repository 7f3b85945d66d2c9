"""Where a prepared graph may be used. Needs no TensorFlow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tf_infer import config as configs
from tf_infer.errors import ConfigError
from tf_infer.prepared import (
    PREPARED_FILE,
    Prepared,
    prepared_folder,
    read_prepared,
    source_of,
    surroundings,
    unfit,
)

HERE = surroundings("2.21.0", {"avx2", "fma", "rdtscp"}, gpus=0)
FILES = {"saved_model.pb": "ab", "assets.extra/prepared/prepared.json": "cd",
         "assets.extra/prepared/graph.pb": "ef"}


def test_what_was_made_here_fits_here() -> None:
    assert unfit(Prepared(made_of="ab", made_for=HERE), FILES, HERE) == ""


@pytest.mark.parametrize("name", ["prepared.json", "graph.pb"])
def test_what_the_manifest_does_not_name_does_not_fit(name: str) -> None:
    fewer = {path: digest for path, digest in FILES.items() if not path.endswith(f"/{name}")}
    assert "manifest" in unfit(Prepared(made_of="ab", made_for=HERE), fewer, HERE)


@pytest.mark.parametrize("file", ["", ".", "..", "../graph.pb", "/graph.pb", "a/graph.pb", "a/"])
def test_the_graph_lies_beside_what_tells_of_it(file: str) -> None:
    with pytest.raises(ConfigError, match=r"Prepared\.file"):
        Prepared(file=file, made_of="ab", made_for=HERE)


@pytest.mark.parametrize("name", sorted(HERE))
def test_another_of_anything_that_the_optimiser_looks_at_does_not_fit(name: str) -> None:
    for other in ({**HERE, name: "another"}, {k: v for k, v in HERE.items() if k != name}):
        assert unfit(Prepared(made_of="ab", made_for=other), FILES, HERE
                     ) == f"made for another {name}"


def test_a_graph_of_another_SavedModel_does_not_fit() -> None:
    assert "saved_model.pb" in unfit(Prepared(made_of="gh", made_for=HERE), FILES, HERE)
    without = {path: digest for path, digest in FILES.items() if path != "saved_model.pb"}
    assert "saved_model.pb" in unfit(Prepared(made_of="", made_for=HERE), without, HERE)


def test_of_a_CPU_only_how_it_computes_counts() -> None:
    assert HERE["cpu"] == "avx2 fma"
    assert surroundings("2.21.0", {"fma", "avx2", "ssbd"}, gpus=0) == HERE
    assert surroundings("2.21.0", {"fma", "avx2"}, gpus=1) != HERE


def test_oneDNN_switched_off_is_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert unfit(Prepared(made_of="ab", made_for=HERE), FILES, surroundings(
        "2.21.0", {"avx2", "fma"}, gpus=0)) == "made for another onednn"


def test_a_version_with_one_tells_what_it_is_and_one_without_none(tmp_path: Path) -> None:
    assert read_prepared(tmp_path) is None
    found = Prepared(made_of="ab", made_for=HERE)
    prepared_folder(tmp_path).mkdir(parents=True)
    path = prepared_folder(tmp_path) / PREPARED_FILE
    with pytest.raises(ConfigError, match=PREPARED_FILE):
        read_prepared(tmp_path)
    configs.dump(found, path)
    assert read_prepared(tmp_path) == found
    path.write_text("{")
    with pytest.raises(ConfigError, match=PREPARED_FILE):
        read_prepared(tmp_path)
    with pytest.raises(ConfigError, match=r"Prepared\.format"):
        Prepared(format=2, made_of="", made_for={})


def test_an_input_names_its_node() -> None:
    assert [source_of(name) for name in ("a", "a/b:2", "^a/b")] == ["a", "a/b", "a/b"]
