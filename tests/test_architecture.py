"""The import table of docs/architecture.md, enforced: every import of every file of tf_infer."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tf_infer"

EVERYTHING = {"errors", "version", "stages", "token_bytes", "constraints", "config", "manifest",
              "prepared", "processor", "equality", "metrics", "pages", "pictures", "wire", "client",
              "text", "networks", "decoding", "tasks", "engines", "train", "optimize", "verify",
              "export", "server", "profiling", "tuning", "cli"}

# package -> what it may import from tf_infer
INSIDE: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "stages": set(),
    "token_bytes": {"errors"},
    "constraints": {"token_bytes", "config", "errors"},
    "config": {"errors"},
    "manifest": {"config", "errors"},
    "prepared": {"config", "manifest"},
    "processor": set(),
    "equality": {"config", "manifest"},
    "metrics": set(),
    "pages": set(),
    "pictures": {"metrics"},
    "wire": {"errors"},
    "client": {"wire", "manifest", "errors", "version"},
    "text": {"token_bytes", "config", "errors"},
    "networks": {"config", "errors"},
    "decoding": {"constraints", "config", "errors", "stages"},
    "tasks": {"text", "networks", "decoding", "constraints", "token_bytes", "config", "manifest",
              "errors", "stages"},
    "engines": {"manifest", "config", "errors"},
    "train": {"tasks", "metrics", "pictures", "config", "errors"},
    "optimize": {"tasks", "networks", "text", "config", "manifest", "processor", "errors"},
    "verify": {"client", "equality", "metrics", "pages", "pictures", "manifest", "config",
               "errors"},
    "export": {"tasks", "token_bytes", "wire", "manifest", "prepared", "processor", "config",
               "errors", "version"},
    "server": {"engines", "constraints", "token_bytes", "wire", "equality", "manifest", "prepared",
               "processor", "config", "errors", "version", "stages"},
    "profiling": {"client", "wire", "stages", "errors"},
    "tuning": EVERYTHING - {"cli", "tuning"},
    "cli": EVERYTHING,
}

# package -> top-level packages from outside, beside the standard library
OUTSIDE: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "stages": set(),
    "token_bytes": set(),
    "constraints": {"numpy"},
    "config": set(),
    "manifest": {"numpy"},
    "prepared": set(),
    "processor": set(),
    "equality": {"numpy"},
    "metrics": {"numpy"},
    "pages": {"jinja2"},
    "pictures": {"numpy", "matplotlib"},
    "wire": {"numpy", "google", "ml_dtypes"},
    "client": {"numpy", "google", "grpc"},
    "text": {"numpy", "tensorflow", "tensorflow_text"},
    "networks": {"numpy", "tensorflow", "keras", "keras_hub", "safetensors"},
    "decoding": {"numpy", "tensorflow"},
    "tasks": {"numpy", "tensorflow", "keras"},
    "engines": {"numpy"},
    "train": {"numpy", "tensorflow", "keras", "tqdm"},
    "optimize": {"numpy", "tensorflow", "keras"},
    "verify": {"numpy"},
    "export": {"numpy", "tensorflow", "keras", "tensorflow_serving", "tensorflow_text"},
    "server": {"numpy", "google", "grpc"},
    "profiling": {"numpy"},
    "tuning": {"numpy"},
    "cli": {"numpy"},
}

# one file may import more than its package
FILES: dict[str, set[str]] = {
    "text/learning.py": {"sentencepiece"},
    "constraints/pattern_compiler.py": {"outlines_core"},
    "optimize/litert_file.py": {"flatbuffers"},
    "optimize/onnx_file.py": {"onnx"},
    "optimize/onnx_limits.py": {"onnxruntime"},
    "engines/onnx_runtime.py": {"onnxruntime", "tensorrt_libs"},
    "verify/predictors.py": {"tensorflow", "tensorflow_text"},
    "verify/duplicates.py": {"sklearn"},
    "verify/error_report.py": {"matplotlib"},
    "train/weights_and_biases.py": {"wandb", "PIL"},
    "profiling/plot.py": {"matplotlib"},
    "tuning/picture.py": {"matplotlib"},
    "tuning/hparams.py": {"tensorboard"},
    "cli/optimize.py": {"tqdm"},
    "server/servable.py": {"tensorflow", "tensorflow_text"},
    "server/loading.py": {"tensorflow"},
    "server/lite_servable.py": {"ai_edge_litert", "flatbuffers"},
    "server/quick_graph.py": {"tensorflow"},
    "server/http_server.py": {"aiohttp", "uvloop"},
    "server/http_short.py": {"aiohttp"},
    "server/chat.py": {"jinja2"},
    "server/reflection.py": {"grpc_reflection"},
    "server/session_config.py": {"tensorflow"},
    "server/profiler.py": {"tensorflow"},  # at the first profile, never before
}


def part_of(path: Path) -> str:
    """Return the package a file belongs to: its folder, or its own name at the top."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> list[tuple[int, str]]:
    """Return (line, module) of every import of a file, also those inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write it in full"
            base = node.module or ""
            found += [(node.lineno, f"{base}.{alias.name}" if base == "tf_infer" else base)
                      for alias in node.names]
    return found


def forbidden(path: Path) -> list[str]:
    """Return the edges of a file that the table does not allow, as 'file:line: text'."""
    part = part_of(path)
    if part in ("__init__", "__main__"):
        return []
    faults = []
    name = path.relative_to(PACKAGE).as_posix()
    for line, module in imports(path):
        top, _, rest = module.partition(".")
        if top == "tf_infer":
            target = rest.split(".")[0]
            if target in EVERYTHING and target != part and target not in INSIDE[part]:
                faults.append(f"tf_infer/{name}:{line}: {part} may not import tf_infer.{target}")
        elif top not in sys.stdlib_module_names and top not in OUTSIDE[part] | FILES.get(
                name, set()):
            faults.append(f"tf_infer/{name}:{line}: {part} may not import {top}")
    return faults


def sources() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if not p.name.endswith("_pb2.py"))


def test_every_import_is_in_the_table() -> None:
    faults = [fault for path in sources() for fault in forbidden(path)]
    assert not faults, "\n".join(faults)


def test_every_part_has_a_row() -> None:
    parts = {part_of(path) for path in sources()} - {"__init__", "__main__"}
    assert parts == set(INSIDE) == set(OUTSIDE) == EVERYTHING


def test_the_header_of_a_package_says_what_it_may_import() -> None:
    told = {}
    for path in sorted(PACKAGE.glob("*/__init__.py")):
        found = re.search(r"May import: ([a-z_,\s]+)\.", path.read_text(encoding="utf-8"))
        if found:
            told[path.parent.name] = set(re.split(r",\s+", found[1]))
    assert len(told) > 10
    assert told == {part: INSIDE[part] for part in told}


def test_the_page_names_every_file() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.split("## 1.")[1].split("## 2.")[0]
    missing = [path.relative_to(ROOT).as_posix() for path in sources()
               if path.stem != "__init__" and f" {path.name} " not in tree.replace("\n", " ")]
    assert not missing, f"docs/architecture.md does not show {missing}"


def test_the_table_has_no_circle() -> None:
    seen: set[str] = set()

    def visit(part: str, trail: tuple[str, ...]) -> None:
        assert part not in trail, f"a circle: {' -> '.join((*trail, part))}"
        if part not in seen:
            for target in INSIDE[part]:
                visit(target, (*trail, part))
            seen.add(part)

    for part in INSIDE:
        if part != "cli":
            visit(part, ())


@pytest.mark.parametrize(("text", "expected"), [
    ("import tensorflow\n", "wire may not import tensorflow"),
    ("def f():\n    from tf_infer.server import app\n", "wire may not import tf_infer.server"),
    ("from tf_infer import tasks\n", "wire may not import tf_infer.tasks"),
])
def test_a_forbidden_edge_is_named_with_its_line(
        text: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "wire").mkdir()
    path = tmp_path / "wire" / "bad.py"
    path.write_text(text)
    faults = forbidden(path)
    assert len(faults) == 1
    assert expected in faults[0]
    assert f"bad.py:{text.count(chr(10))}:" in faults[0]
