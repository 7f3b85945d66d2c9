"""Commands that need TensorFlow say so, and how to get it, before they do anything."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tf_infer.cli import main
from tf_infer.errors import BackendMissing


def test_an_old_python_is_named() -> None:
    with pytest.raises(BackendMissing, match=r"expected 3\.11 to 3\.13 for 'train'.*got 3\.10"):
        main.require_models("train", python=(3, 10))
    main.require_models("predict", python=(3, 10))


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> Any:
        return None if name == "tensorflow_text" else object()

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(BackendMissing, match=r"tensorflow_text.*pip install 'tf_infer\[server\]'"):
        main.require_models("serve", python=(3, 11))
    main.require_models("status", python=(3, 11))


def test_every_command_that_needs_a_package_exists() -> None:
    assert set(main.NEEDS) <= set(main.COMMANDS)
