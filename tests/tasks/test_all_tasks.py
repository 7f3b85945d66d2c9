"""The shared suite, run for every task."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tensorflow as tf

from tests.tasks import small, suite
from tests.tasks.suite import Paths
from tf_infer.tasks.build import load, save

pytestmark = pytest.mark.whole

# Each node takes time to trace, to load, to run first.
# 5,120: of one layer and bytes for a tokenizer; a new option costs some dozens of nodes.
MOST_NODES = 5_200


@pytest.fixture(scope="module", params=small.ALL)
def paths(request: pytest.FixtureRequest) -> Paths:
    return suite.paths_of(request.param)


def test_outputs_are_what_the_spec_says(paths: Paths) -> None:
    suite.outputs_are_what_the_spec_says(paths)


def test_eager_graph_and_xla_agree_on_hostile_texts(paths: Paths) -> None:
    suite.all_paths_agree(paths)


@pytest.mark.parametrize("path", ["graph", "xla"])
def test_a_row_alone_is_the_row_in_a_crowd(paths: Paths, path: str) -> None:
    suite.a_row_alone_is_the_row_in_a_crowd(paths, path)


def test_no_rows_give_no_rows(paths: Paths) -> None:
    suite.no_rows_give_no_rows(paths)


@pytest.mark.parametrize("path", ["graph", "xla"])
def test_every_operation_stands_below_the_name_of_its_stage(paths: Paths, path: str) -> None:
    suite.every_operation_has_a_stage(paths, path)


def test_saved_is_loaded(paths: Paths, tmp_path: Path) -> None:
    suite.saved_is_loaded(paths, load(save(paths.task, tmp_path / "model")))


def test_two_threads_get_right_answers(paths: Paths) -> None:
    first = suite.traced(paths.task)[0]
    inputs = [suite.inputs_for(paths.task, first, [bytes([65 + i]) * (i % 9)] * 2)
              for i in range(24)]
    alone = [paths.ask("graph", first, one) for one in inputs]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda one: paths.ask("graph", first, one), inputs))
    for found, wanted in zip(together, alone):
        suite.close(found, wanted)


def nodes(graph: tf.Graph) -> int:
    definition = graph.as_graph_def()
    return len(definition.node) + sum(len(one.node_def) for one in definition.library.function)


def test_generate_holds_no_more_nodes_than_it_did() -> None:
    assert nodes(suite.paths_of("decoder").traced("graph", "generate").graph) < MOST_NODES
