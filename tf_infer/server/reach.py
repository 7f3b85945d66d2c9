"""What each signature of a SavedModel runs: nodes, functions, and what XLA must compile

A node that nothing runs does no harm to a server, so what is found wrong has to be laid at the door
of the signatures that reach it. Pure, over our own messages; needs no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tf_infer.wire import serving_pb2 as pb

MUST_COMPILE = "_XlaMustCompile"
Defaults = Mapping[tuple[str, str], bytes]


class Use(NamedTuple):
    """One operation as a node uses it.

    Attributes:
        op: its name.
        attributes: those that the node sets, without TensorFlow's own notes ("_output_shapes").
    """

    op: str
    attributes: frozenset[str]


class Body(NamedTuple):
    """A function, or the nodes of the graph that a signature runs.

    Attributes:
        uses: its operations, calls of functions left out.
        calls: function -> whether a call of it says that XLA must compile it.
    """

    uses: frozenset[Use]
    calls: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Reached:
    """What one root runs.

    Attributes:
        uses: operations that run one by one.
        compiled_uses: operations inside what XLA compiles.
        compiled: whether there is such a part.
    """

    uses: frozenset[Use]
    compiled_uses: frozenset[Use] = frozenset()
    compiled: bool = False


class Program:
    """The graph and the function library of one meta graph.

    Args:
        graph: both.
        defaults: (operation, attribute) -> serialized value that counts as not being there.

    Attributes:
        nodes: name -> node of the graph.
        functions: name -> its body.
    """

    def __init__(self, graph: pb.GraphDef, defaults: Defaults | None = None) -> None:
        self._defaults = defaults or {}
        self.nodes = {node.name: node for node in graph.node}
        self._names = {one.signature.name for one in graph.library.function}
        self._must_compile = {one.signature.name for one in graph.library.function
                              if _must_compile(one.attr)}
        self.functions = {one.signature.name: self._body(one.node_def)
                          for one in graph.library.function}

    def graph_uses(self) -> frozenset[Use]:
        """Return every operation of the graph itself: a load fails on what it does not know."""
        return self._body(self.nodes.values()).uses

    def all_uses(self) -> frozenset[Use]:
        """Return every operation of the graph and of its functions."""
        return self.graph_uses().union(*(body.uses for body in self.functions.values()))

    def reached(self, tensors: Iterable[str]) -> Reached:
        """Return what runs when these tensors ("node:0") are asked for."""
        body = self._body(self._upstream(tensors))
        uses: dict[bool, set[Use]] = {False: set(body.uses), True: set()}
        seen: set[tuple[str, bool]] = set()
        waiting = self._calls(body, compiled=False)
        while waiting:
            state = waiting.pop()
            if state in seen:
                continue
            seen.add(state)
            name, compiled = state
            uses[compiled] |= self.functions[name].uses
            waiting += self._calls(self.functions[name], compiled=compiled)
        return Reached(frozenset(uses[False]), frozenset(uses[True]),
                       any(compiled for _, compiled in seen))

    def missing(self, tensors: Iterable[str]) -> list[str]:
        """Return those tensors that no node of the graph gives."""
        return [one for one in tensors if _node_of(one) not in self.nodes]

    def _calls(self, body: Body, *, compiled: bool) -> list[tuple[str, bool]]:
        return [(name, compiled or said or name in self._must_compile)
                for name, said in body.calls.items()]

    def _upstream(self, tensors: Iterable[str]) -> list[pb.NodeDef]:
        """Return the nodes of the graph that the tensors need."""
        seen: set[str] = set()
        waiting = [_node_of(one) for one in tensors]
        while waiting:
            name = waiting.pop()
            if name not in seen and name in self.nodes:
                seen.add(name)
                waiting += [_node_of(one) for one in self.nodes[name].input]
        return [self.nodes[name] for name in seen]

    def _body(self, nodes: Iterable[pb.NodeDef]) -> Body:
        uses: set[Use] = set()
        calls: dict[str, bool] = {}
        for node in nodes:
            said = _must_compile(node.attr)
            for name in _called(node):
                if name in self._names:
                    calls[name] = calls.get(name, False) or said
            if node.op not in self._names:
                uses.add(Use(node.op, frozenset(
                    name for name, value in node.attr.items()
                    if not name.startswith("_") and not self._is_default(node.op, name, value))))
        return Body(frozenset(uses), calls)

    def _is_default(self, op: str, name: str, value: pb.AttrValue) -> bool:
        default = self._defaults.get((op, name))
        return default is not None and value.SerializeToString(deterministic=True) == default


def _node_of(tensor: str) -> str:
    """Return the node of "node:0", "node" or "^node"."""
    return tensor.lstrip("^").partition(":")[0]


def _must_compile(attributes: Mapping[str, pb.AttrValue]) -> bool:
    return MUST_COMPILE in attributes and attributes[MUST_COMPILE].b


def _called(node: pb.NodeDef) -> Iterator[str]:
    """Yield the functions that a node may call: as its op, or in its attributes."""
    yield node.op
    for value in node.attr.values():
        kind = value.WhichOneof("value")
        if kind == "func":
            yield value.func.name
        elif kind == "list":
            yield from (one.name for one in value.list.func)
