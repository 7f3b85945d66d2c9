"""Write tf_infer/data/ops/*.txt: the operations that releases of tensorflow_model_server link.

The server is not on PyPI, but the libraries that it is linked from are: TensorFlow, TF-Text and
TensorFlow Decision Forests of the versions in tf_infer/server/op_lists.py. This script makes an
environment for each TensorFlow, installs the others beside the one that they were built for, and
asks TensorFlow's registries: names, attributes, and which operations have a kernel for CPUs.

    python scripts/make_op_lists.py --environments /tmp/op-environments    # about 9 GB, 15 minutes
    python scripts/make_op_lists.py --environments /tmp/op-environments --check

Needs a CPython that all of them have wheels for (3.11) as --python, and pip's network.
What differs between a package and the server:
  * The kernels of PyFunc and its kin are in the Python package alone: no server runs Python.
  * AccumulateNV2 has no kernel, but is replaced before kernels are looked for.
  * TF-Text: the server links its target `ops_lib`. In TF-Text 2.20.0 that target names the library
    of every operation of the package; of 2.12.1 it was not read, and the package is taken for it.
  * Decision Forests: the server links the operations of inference, not those of training.
  * Test operations of TensorFlow's package ("Foo1") are on the list; no model has them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tf_infer.server import op_lists  # noqa: E402

# TensorFlow -> packages beside it, which were built for it
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "2.12.1": {"tensorflow-text": "2.12.1", "tensorflow-decision-forests": "1.3.0"},
    "2.17.1": {}, "2.18.1": {}, "2.19.1": {},
    "2.20.0": {"tensorflow-text": "2.20.0"},
    "2.21.0": {},
}
# No server links these yet, but models are exported with them.
NEWER = {"tensorflow": {"2.21.0"}}
LIBRARIES = {"tensorflow_text": "tensorflow-text",
             "decision_forests": "tensorflow-decision-forests"}

# Runs inside an environment; prints the graph's version and, by library and operation,
# [has a CPU kernel, {attribute: its default as bytes in hex, or null}].
DUMP = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import json, pathlib
import tensorflow as tf
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.client import pywrap_tf_session as session
from tensorflow.python.framework import kernels

PYTHON_ONLY = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
REPLACED = {"AccumulateNV2"}

def ops():
    found = op_def_pb2.OpList.FromString(session.TF_GetBuffer(session.TF_GetAllOpList()))
    on_cpu = {one.op for one in kernels.get_all_registered_kernels().kernel
              if one.device_type in ("CPU", "DEFAULT")}
    on_cpu = (on_cpu | REPLACED) - PYTHON_ONLY
    return {op.name: [op.name in on_cpu, {
        attr.name: attr.default_value.SerializeToString().hex()
        if attr.HasField("default_value") else None for attr in op.attr}] for op in found.op}

site = pathlib.Path(tf.__file__).parent.parent
libraries = {"tensorflow_text": sorted(site.glob("tensorflow_text/python/**/_*.so")),
             "decision_forests": sorted(site.glob(
                 "tensorflow_decision_forests/tensorflow/ops/inference/inference.so"))}
known = ops()
found = {"tensorflow": known}
for library, files in libraries.items():
    for file in files:
        tf.load_op_library(str(file))
    after = ops()
    found[library] = {name: said for name, said in after.items() if name not in known}
    known = after
print(json.dumps({"graph": tf.version.GRAPH_DEF_VERSION, "ops": found}))
"""

HEAD = """\
# Operations of {library}, by version; made by scripts/make_op_lists.py, never edited.
# A line: name, attributes ("?": has a default; behind "=" that default, as an AttrValue in hex,
# where not every version has the attribute), "!" where no kernel runs it on a CPU. Behind "@": the
# versions that it is true of; without: all of them.
"""

Dump = Mapping[str, tuple[bool, dict[str, str | None]]]


def dump(version: str, folder: Path, python: str) -> Any:
    """Install one TensorFlow with what belongs to it, unless it is there; return what it says."""
    place = folder / f"tensorflow-{version}"
    interpreter = str(place / "bin" / "python")
    if not place.exists():
        subprocess.run([python, "-m", "venv", str(place)], check=True)
        pip = [interpreter, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, f"tensorflow-cpu=={version}"], check=True)
        for package, its_version in ENVIRONMENTS[version].items():
            subprocess.run([*pip, "--no-deps", f"{package}=={its_version}"], check=True)
    answer = subprocess.run([interpreter, "-c", DUMP], check=True, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True).stdout
    return json.loads(answer.splitlines()[-1])


def text_of(library: str, dumps: Mapping[str, Dump], graphs: Mapping[str, int]) -> str:
    """Return the text of one list: every different line once."""
    lines: dict[str, list[str]] = {}
    for version, ops in dumps.items():
        for name, (on_cpu, attributes) in ops.items():
            everywhere = set.intersection(*(set(one[name][1]) for one in dumps.values()
                                            if name in one))
            words = [name, *(_attribute(one, default, known=one in everywhere)
                             for one, default in attributes.items()), *(() if on_cpu else "!")]
            lines.setdefault(" ".join(words), []).append(version)
    head = HEAD.format(library=library)
    head += "".join(f"# version {version} {graphs[version]}\n" for version in dumps)
    return head + "".join(
        line + ("" if len(versions) == len(dumps) else f" @{' '.join(versions)}") + "\n"
        for line, versions in sorted(lines.items()))


def _attribute(name: str, default: str | None, *, known: bool) -> str:
    if default is None:
        return name
    return f"{name}?" if known else f"{name}?={default}"


def texts(folder: Path, python: str) -> dict[Path, str]:
    """Return path -> text of all lists."""
    said = {version: dump(version, folder, python) for version in ENVIRONMENTS}
    needed = {library: sorted({getattr(one, library) for one in op_lists.RELEASES.values()}
                              | NEWER.get(library, set()))
              for library in op_lists.Linked._fields}
    found = {}
    for library, versions in needed.items():
        home = {version: version if library == "tensorflow" else next(
            name for name, beside in ENVIRONMENTS.items()
            if beside.get(LIBRARIES[library]) == version) for version in versions}
        found[op_lists.FOLDER / f"{library}.txt"] = text_of(
            library, {version: said[home[version]]["ops"][library] for version in versions},
            {version: said[home[version]]["graph"] for version in versions})
    return found


def main() -> int:
    """Write the lists, or compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--environments", type=Path, help="folder to keep the environments in")
    parser.add_argument("--python", default=sys.executable, help="interpreter for them")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if they differ")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = texts(arguments.environments or Path(scratch), arguments.python)
    differ = [path for path, text in found.items()
              if not path.exists() or path.read_text(encoding="ascii") != text]
    for path in differ:
        print(f"{path.relative_to(ROOT)} {'differs' if arguments.check else 'written'}")
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(found[path], encoding="ascii")
    return 1 if arguments.check and differ else 0


if __name__ == "__main__":
    sys.exit(main())
