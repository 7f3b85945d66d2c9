"""Which operations a release of tensorflow_model_server knows: read from `data/ops/*.txt`

The lists are made by scripts/make_op_lists.py from the packages of the same versions. Needs no
TensorFlow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tf_infer.errors import ConfigError

FOLDER = Path(__file__).resolve().parent.parent / "data" / "ops"


class Linked(NamedTuple):
    """The libraries that a server is linked from, by version."""

    tensorflow: str
    tensorflow_text: str
    decision_forests: str


TITLES = Linked("TensorFlow", "TF-Text", "TensorFlow Decision Forests")

# Release of the server -> what it links. A patch release (2.19.0, 2.19.1) changes no operation.
# Sources: TensorFlow, the server's RELEASE.md ("This release is based on TF version ..."); the
# other two, tensorflow_serving/workspace.bzl at the release's tag and SUPPORTED_TENSORFLOW_OPS of
# tensorflow_serving/model_servers/BUILD (github.com/tensorflow/serving, also its pull request 4057
# and issue 2267: TF-Text 2.12.1 up to 2.19).
RELEASES: Mapping[str, Linked] = {
    "2.17": Linked("2.17.1", "2.12.1", "1.3.0"),
    "2.18": Linked("2.18.1", "2.12.1", "1.3.0"),
    "2.19": Linked("2.19.1", "2.12.1", "1.3.0"),
    "2.20": Linked("2.20.0", "2.20.0", "1.3.0"),
}


class Op(NamedTuple):
    """One operation as a release knows it.

    Attributes:
        required: attributes that a node must have.
        optional: those with a default.
        on_cpu: False when no kernel runs it on a CPU.
    """

    required: frozenset[str]
    optional: frozenset[str]
    on_cpu: bool


@dataclass(frozen=True, slots=True)
class Release:
    """One release of the server.

    Attributes:
        name: as it was asked for, such as "2.20.0".
        linked: versions of its libraries.
        graph_def_version: newest form of a graph that it reads.
        ops: name -> operation.
        libraries: name of an operation -> library that has it, such as "TF-Text 2.20.0".
        newer: operations of TensorFlow that a later version than its own has.
    """

    name: str
    linked: Linked
    graph_def_version: int
    ops: Mapping[str, Op]
    libraries: Mapping[str, str]
    newer: frozenset[str]


def release(name: str) -> Release:
    """Return what is known of a release such as "2.20.0" or "2.19".

    Raises:
        ConfigError: none that we have lists of.
    """
    found = re.fullmatch(r"(\d+\.\d+)(\.\d+)?(-rc\d+)?", name)
    linked = RELEASES.get(found[1]) if found else None
    if linked is None:
        raise ConfigError(f"--server: expected a release of {', '.join(RELEASES)}, got {name!r}. "
                          "Others have no list of operations; scripts/make_op_lists.py makes one.")
    ops: dict[str, Op] = {}
    libraries: dict[str, str] = {}
    for library, title, version in zip(Linked._fields, TITLES, linked):
        known = _library(library).ops[version]
        ops |= known
        libraries |= dict.fromkeys(known, f"{title} {version}")
    tensorflow = _library("tensorflow")
    later = {op for known in tensorflow.ops.values() for op in known}
    return Release(name, linked, tensorflow.graphs[linked.tensorflow], ops, libraries,
                   frozenset(later - ops.keys()))


def new_defaults() -> Mapping[tuple[str, str], bytes]:
    """Return (operation, attribute) -> default of the attributes that not every version knows.

    A release that does not know the attribute does what its default says.
    """
    return {key: default for library in Linked._fields
            for key, default in _library(library).defaults.items()}


class Lists(NamedTuple):
    """What the text of one library says.

    Attributes:
        graphs: version -> newest form of a graph.
        ops: version -> name -> operation.
        defaults: (operation, attribute) -> default, of attributes that not every version has.
    """

    graphs: dict[str, int]
    ops: dict[str, dict[str, Op]]
    defaults: dict[tuple[str, str], bytes]


@lru_cache(maxsize=None)
def _library(name: str) -> Lists:
    return read((FOLDER / f"{name}.txt").read_text(encoding="ascii"))


def read(text: str) -> Lists:
    """Read one list; its head says how it is written."""
    lists = Lists({}, {}, {})
    for line in text.splitlines():
        if line.startswith("# version "):
            _, _, version, graph = line.split(" ")
            lists.graphs[version], lists.ops[version] = int(graph), {}
        elif not line.startswith("#"):
            words, _, only = line.partition(" @")
            name, *attributes = words.split(" ")
            op = _read_op(name, attributes, lists.defaults)
            for version in only.split(" ") if only else lists.ops:
                lists.ops[version][name] = op
    return lists


def _read_op(op: str, words: Sequence[str], defaults: dict[tuple[str, str], bytes]) -> Op:
    required, optional = set(), set()
    for word in words:
        name, mark, default = word.partition("?")
        if mark:
            optional.add(name)
            if default:
                defaults[op, name] = bytes.fromhex(default[1:])
        elif name != "!":
            required.add(name)
    return Op(frozenset(required), frozenset(optional), "!" not in words)
