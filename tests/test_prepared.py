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


def test_what_was_made_here_fits_here() -> None:
    assert unfit(Prepared(made_of="ab", made_for=HERE), "ab", HERE) == ""


@pytest.mark.parametrize("name", sorted(HERE))
def test_another_of_anything_that_the_optimiser_looks_at_does_not_fit(name: str) -> None:
    for other in ({**HERE, name: "another"}, {k: v for k, v in HERE.items() if k != name}):
        assert unfit(Prepared(made_of="ab", made_for=other), "ab", HERE
                     ) == f"made for another {name}"


def test_a_graph_of_another_SavedModel_does_not_fit() -> None:
    assert "saved_model.pb" in unfit(Prepared(made_of="ab", made_for=HERE), "", HERE)


def test_of_a_CPU_only_how_it_computes_counts() -> None:
    assert HERE["cpu"] == "avx2 fma"
    assert surroundings("2.21.0", {"fma", "avx2", "ssbd"}, gpus=0) == HERE
    assert surroundings("2.21.0", {"fma", "avx2"}, gpus=1) != HERE


def test_oneDNN_switched_off_is_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert unfit(Prepared(made_of="", made_for=HERE), "", surroundings(
        "2.21.0", {"avx2", "fma"}, gpus=0)) == "made for another onednn"


def test_a_version_with_one_tells_what_it_is_and_one_without_none(tmp_path: Path) -> None:
    assert read_prepared(tmp_path) is None
    found = Prepared(made_of="ab", made_for=HERE)
    prepared_folder(tmp_path).mkdir(parents=True)
    path = prepared_folder(tmp_path) / PREPARED_FILE
    configs.dump(found, path)
    assert read_prepared(tmp_path) == found
    path.write_text("{")
    with pytest.raises(ConfigError, match=PREPARED_FILE):
        read_prepared(tmp_path)
    with pytest.raises(ConfigError, match=r"Prepared\.format"):
        Prepared(format=2, made_of="", made_for={})


def test_an_input_names_its_node() -> None:
    assert [source_of(name) for name in ("a", "a/b:2", "^a/b")] == ["a", "a/b", "a/b"]
