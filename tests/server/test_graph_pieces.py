"""A graph may be cut where no node reads from a later one; its bytes tell where."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_infer.server.graph_pieces import Node, Piece, apart, cuts, in_lists, pieces
from tf_infer.wire import varint

VERSIONS = varint.field(4, b"\x08\x16")


def node(name: str, *inputs: str, extra: int = 0) -> bytes:
    """Return a node as a field of a GraphDef: name, op, inputs, and some attribute."""
    return varint.field(1, b"".join([
        varint.field(1, name.encode()), varint.field(2, b"Op"),
        *(varint.field(3, one.encode()) for one in inputs), varint.field(5, bytes(extra))]))


def cut(graph: bytes, *, nodes: int = 100, size: int = 10_000) -> list[Piece]:
    return list(pieces(memoryview(graph), nodes=nodes, size=size))


@given(st.data())
def test_who_reads_a_later_node_is_in_its_piece_and_the_order_stays(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 12))
    reads = [data.draw(st.lists(st.integers(0, max(0, count - 1)), max_size=3))
             for _ in range(count)]
    most = data.draw(st.integers(1, 5))
    found = list(cuts([Node(str(number), tuple(map(str, sources)), memoryview(b"12"))
                       for number, sources in enumerate(reads)], nodes=most, size=100))
    assert [int(one.name) for piece in found for one in piece] == list(range(count))
    piece_of = {int(one.name): number for number, piece in enumerate(found) for one in piece}
    for number, sources in enumerate(reads):
        assert all(piece_of[source] <= piece_of[number] for source in sources)
    for piece in found:  # one that is larger cannot be cut
        first = int(piece[0].name)
        for behind in range(first + most, first + len(piece)):
            assert any(source >= behind for sources in reads[first:behind] for source in sources)


def test_a_graph_is_cut_by_its_nodes_and_by_its_bytes() -> None:
    graph = VERSIONS + node("a") + node("b", "a") + node("c", "b:1", "^a") + node("d", "c")
    found = cut(graph, nodes=2)
    assert [one.names for one in found] == [("a", "b"), ("c", "d")]
    assert [one.earlier for one in found] == [frozenset(), {"b:1", "^a"}]
    assert [one.earlier for one in cut(graph)] == [frozenset()]
    assert b"".join(one.data.replace(VERSIONS, b"") for one in found) + VERSIONS == (
        graph[len(VERSIONS):] + VERSIONS)
    assert all(one.data.startswith(VERSIONS) for one in found)
    found = cut(node("a") + node("b", extra=900) + node("c") + node("d"), size=100)
    assert [one.names for one in found] == [("a",), ("b",), ("c", "d")]


def test_a_loop_stays_together() -> None:
    graph = node("enter") + node("merge", "enter", "next") + node("next", "merge") + node("exit")
    assert [one.names for one in cut(graph, nodes=1)] == [
        ("enter",), ("merge", "next"), ("exit",)]


def test_functions_come_before_the_nodes_in_pieces_of_their_own() -> None:
    functions = [varint.field(1, bytes(size)) for size in (40, 40, 200, 30)]
    gradient = varint.field(2, b"g")
    graph = node("a") + varint.field(2, b"".join([*functions, gradient])) + VERSIONS
    found = cut(graph, size=100)
    assert [one.names for one in found] == [(), (), (), ("a",)]
    assert [one.data for one in found[:3]] == [
        VERSIONS + varint.field(2, part) for part in (
            functions[0] + functions[1], functions[2], functions[3] + gradient)]


def test_a_meta_graph_is_its_graph_and_the_rest() -> None:
    rest = [varint.field(1, b"meta"), varint.field(3, b"saver"), varint.field(5, b"signature")]
    found, graph = apart(rest[0] + varint.field(2, b"the graph") + rest[1] + rest[2])
    assert found == b"".join(rest)
    assert bytes(graph) == b"the graph"
    with pytest.raises(ValueError, match="has no graph"):
        apart(rest[0])


def test_what_is_cut_short_or_no_message_is_an_error() -> None:
    whole = varint.field(2, VERSIONS + node("a", extra=200))
    for end in range(1, len(whole)):
        with pytest.raises((ValueError, IndexError)):
            apart(whole[:end])
    with pytest.raises(ValueError, match="forms"):
        apart(b"\x0b")


def test_fields_of_every_form_are_passed_over() -> None:
    message = b"\x08\x96\x01" + b"\x11" + bytes(8) + b"\x1d" + bytes(4) + varint.field(4, b"xy")
    found = list(varint.fields(memoryview(message)))
    assert [(number, end - content) for number, _, content, end in found] == [
        (1, 2), (2, 8), (3, 4), (4, 2)]
    assert [message[begin:end] for _, begin, _, end in found[1:]] == [
        b"\x11" + bytes(8), b"\x1d" + bytes(4), varint.field(4, b"xy")]


@given(sizes=st.lists(st.integers(0, 20)), most=st.integers(1, 30))
def test_lists_keep_the_order_and_are_as_full_as_the_bound_allows(
        sizes: list[int], most: int) -> None:
    found = list(in_lists(range(len(sizes)), sizes, most))
    assert [item for piece in found for item in piece] == list(range(len(sizes)))
    assert all(piece and (len(piece) == 1 or sum(sizes[item] for item in piece) <= most)
               for piece in found)
    assert all(sum(sizes[item] for item in [*piece, after[0]]) > most
               for piece, after in pairwise(found))
