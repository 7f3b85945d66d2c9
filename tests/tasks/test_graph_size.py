"""The graph of a decoder stays small: each node takes time to trace, to load, to run first."""

from __future__ import annotations

import pytest
import tensorflow as tf

from tests.tasks.suite import Paths, paths_of

# 5,120: of one layer and bytes for a tokenizer; a new option costs some dozens of nodes.
MOST_NODES = 5_200


@pytest.fixture(scope="module")
def paths() -> Paths:
    return paths_of("decoder")


def nodes(graph: tf.Graph) -> int:
    definition = graph.as_graph_def()
    return len(definition.node) + sum(len(one.node_def) for one in definition.library.function)


def test_generate_holds_no_more_nodes_than_it_did(paths: Paths) -> None:
    assert nodes(paths.traced("graph", "generate").graph) < MOST_NODES
