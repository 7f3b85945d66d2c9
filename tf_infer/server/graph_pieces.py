"""A serialized graph in pieces, read off its bytes: what may be imported on its own.

Whoever parses or imports a graph holds the interpreter lock meanwhile. A piece takes a few
milliseconds, and nobody parses the whole. Needs no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from tf_infer.prepared import source_of
from tf_infer.wire import varint

T = TypeVar("T")
NODES = 150      # of a piece
BYTES = 500_000  # of a piece; a node may have more
# Numbers of fields: tensorflow/core/protobuf/meta_graph.proto, framework/graph.proto,
# framework/function.proto, framework/node_def.proto.
_GRAPH_DEF = 2
_NODE, _LIBRARY = 1, 2
_NAME, _INPUT = 1, 3


class Node(NamedTuple):
    """A node of a graph: `data` is its field of a GraphDef."""

    name: str
    inputs: tuple[str, ...]
    data: memoryview


class Piece(NamedTuple):
    """A part of a graph.

    Attributes:
        data: a GraphDef.
        names: of its nodes.
        earlier: inputs of its nodes that stand in earlier pieces, as a node names them.
    """

    data: bytes
    names: tuple[str, ...]
    earlier: frozenset[str]


def apart(meta_graph: bytes) -> tuple[bytes, memoryview]:
    """Return a MetaGraphDef without its graph, and the graph.

    Raises:
        ValueError, IndexError: it is none, or has no graph.
    """
    view, graph, rest = memoryview(meta_graph), None, []
    for number, begin, content, end in varint.fields(view):
        if number == _GRAPH_DEF:
            graph = view[content:end]
        else:
            rest.append(view[begin:end])
    if graph is None:
        raise ValueError("it has no graph")
    return b"".join(rest), graph


def pieces(graph: memoryview, *, nodes: int = NODES, size: int = BYTES) -> Iterator[Piece]:
    """Yield the parts of a GraphDef: its functions, then its nodes.

    Args:
        graph: a GraphDef whose nodes stand behind those that they read from, but for loops.
        nodes: of a part at most, but for a loop.
        size: of a part in bytes, at most, but for a node, a function or a loop.

    Raises:
        ValueError, IndexError: it is none.
    """
    head, functions, found = [], [], []
    for number, begin, content, end in varint.fields(graph):
        if number == _NODE:
            found.append((begin, content, end))
        elif number == _LIBRARY:
            functions += [graph[start:stop]
                          for _, start, _, stop in varint.fields(graph, content, end)]
        else:
            head.append(graph[begin:end])
    versions = b"".join(head)
    for part in in_lists(functions, [len(one) for one in functions], size):
        yield Piece(versions + varint.field(_LIBRARY, b"".join(part)), (), frozenset())
    for cut in cuts((_node(graph, *where) for where in found), nodes=nodes, size=size):
        names = tuple(node.name for node in cut)
        own = frozenset(names)
        yield Piece(b"".join([versions, *(node.data for node in cut)]), names, frozenset(
            name for node in cut for name in node.inputs if source_of(name) not in own))


def cuts(found: Iterable[Node], *, nodes: int, size: int) -> Iterator[list[Node]]:
    """Yield nodes in lists; what reads from a later node is in its list.

    Args:
        found: nodes in their order.
        nodes, size: as of `pieces`.
    """
    cut: list[Node] = []
    total = 0
    seen: set[str] = set()
    awaited: set[str] = set()
    for node in found:
        if cut and not awaited and (len(cut) >= nodes or total + len(node.data) > size):
            yield cut
            cut, total = [], 0
        cut.append(node)
        total += len(node.data)
        seen.add(node.name)
        awaited.update(source for source in map(source_of, node.inputs) if source not in seen)
        awaited.discard(node.name)
    if cut:
        yield cut


def _node(graph: memoryview, begin: int, content: int, end: int) -> Node:
    name, inputs = "", []
    for number, _, start, stop in varint.fields(graph, content, end):
        if number > _INPUT:  # protobuf writes fields in the order of their numbers
            break
        if number == _NAME:
            name = str(graph[start:stop], "utf-8")
        elif number == _INPUT:
            inputs.append(str(graph[start:stop], "utf-8"))
    return Node(name, tuple(inputs), graph[begin:end])


def in_lists(items: Iterable[T], sizes: Iterable[int], most: int) -> Iterator[list[T]]:
    """Yield the items in order, in lists whose sizes add up to no more than `most`, or of one."""
    found: list[T] = []
    size = 0
    for item, own in zip(items, sizes):
        if found and size + own > most:
            yield found
            found, size = [], 0
        found.append(item)
        size += own
    if found:
        yield found
