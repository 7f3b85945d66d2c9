"""Building an engine's file: sizes of pages, quantised rows, settings that cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tf_infer.errors import ConfigError
from tf_infer.manifest import StepEngineManifest, head_blocks, row_blocks
from tf_infer.optimize import litert_file
from tf_infer.optimize.litert import (
    EngineSettings,
    cache_of,
    joined_shapes,
    page_sizes,
    read_pages,
)
from tf_infer.optimize.litert_attention import PIECE, SUMMED, block_places


@pytest.mark.parametrize(("positions", "pages"), [
    (1, (16,)), (17, (32,)), (33, (64,)), (64, (64,)), (65, (64, 32)), (128, (64, 32, 32)),
    (200, (64, 32, 32, 64, 32)), (1024, (64, 32, 32, 64, 64, 128, 192, 256, 192))])
def test_a_page_is_half_of_those_before_it(positions: int, pages: tuple[int, ...]) -> None:
    assert page_sizes(positions, fine=True) == pages
    assert 0 <= sum(pages) - positions < PIECE
    assert pages == (16,) or not any(page % PIECE for page in pages)
    coarse = page_sizes(positions, fine=False)
    assert coarse == ((64, 64, *pages[3:]) if pages[2:] else pages)
    assert not any(page % SUMMED for page in coarse[:-1])


def test_a_quantised_row_is_within_half_a_step_of_its_numbers() -> None:
    array = np.random.default_rng(1).normal(0, [[1.0], [100.0], [1e-6]], (3, 50)).astype(np.float32)
    array = np.concatenate([array, np.zeros((1, 50), np.float32)])
    values, scales = litert_file.quantize_rows(array)
    assert np.abs(values).max() == 127
    assert (np.abs(values * scales[:, None] - array) <= scales[:, None] * 0.5001).all()
    assert not values[3].any()


def test_only_large_heads_are_kept_as_int8_and_only_beside_int8_weights() -> None:
    assert [cache_of("int8", size) for size in (8, 31, 35, 32, 64)] == [
        *["float32"] * 3, *["int8"] * 2]
    assert cache_of("float32", 64) == "float32"


@pytest.mark.parametrize(("heads", "blocks"), [
    (12, [(0, 8), (8, 16)]), (3, [(0, 16)]), (192, [(0, 4), (4, 8), (8, 12), (12, 16)])])
def test_a_step_looks_at_more_rows_together_the_fewer_heads_they_have(
        heads: int, blocks: list[tuple[int, int]]) -> None:
    assert row_blocks(16, 64, block_places(heads * 64)) == blocks


@pytest.mark.parametrize(("heads", "positions", "blocks"), [
    (12, 64, [(0, 12)]), (12, 256, [(0, 12)]), (12, 320, [(0, 6), (6, 12)]),
    (12, 1024, [(0, 3), (3, 6), (6, 9), (9, 12)]), (5, 600, [(0, 2), (2, 4), (4, 5)]),
    (2, 4096, [(0, 1), (1, 2)])])
def test_a_step_of_one_row_looks_at_fewer_heads_together_the_longer_its_text(
        heads: int, positions: int, blocks: list[tuple[int, int]]) -> None:
    assert head_blocks(heads, positions, 256) == blocks


def test_an_engine_from_before_block_places_has_its_rule() -> None:
    described: dict[str, Any] = {
        "kind": "litert", "precision": "int8", "vocab_size": 9, "positions": 32, "slots": 1,
        "rows": (1,), "chunks": (16,), "pages": (32,), "layers": 1, "groups": 1, "head_size": 64}
    assert [StepEngineManifest(**described, cache=cache).block_places
            for cache in ("int8", "float32")] == [256, 512]
    before = StepEngineManifest(**described)
    assert not (before.joined_pages or before.one_piece)


@pytest.mark.parametrize(("slots", "shapes"), [
    (1, ()), (3, ((2, 16), (2, 32))), (64, ((2, 16), (4, 16), (2, 32)))])
def test_joined_reads_have_no_more_rows_than_slots_and_no_more_ids_than_the_longest(
        slots: int, shapes: tuple[tuple[int, int], ...]) -> None:
    assert joined_shapes(slots, (16, 32, 64)) == shapes


@pytest.mark.parametrize(("most", "positions", "counts"), [
    (0, 320, (0,)), (1, 16, (0, 1)), (1, 64, (0, 1)), (1, 320, (0, 3)), (4, 320, (0, 3, 5)),
    (6, 320, (0, 3, 5, 6)), (9, 1024, (0, 3, 5, 6, 7, 8, 9))])
def test_reads_look_over_few_numbers_of_pages_and_over_as_many_as_they_may_have_to(
        most: int, positions: int, counts: tuple[int, ...]) -> None:
    assert read_pages(most, page_sizes(positions, fine=True), 256) == counts


@pytest.mark.parametrize("wrong", [{"rows": (8, 1)}, {"rows": ()}, {"chunks": (1, 16)},
                                   {"positions": 0}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"EngineSettings.{next(iter(wrong))}"):
        EngineSettings(**wrong)  # type: ignore[arg-type]


def test_a_file_beyond_the_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litert_file, "MAX_BYTES", 100)
    file = litert_file.ModelFile()
    file.constant(np.zeros(26, np.float32))
    with pytest.raises(ConfigError, match="Take precision int8"):
        file.write()


def test_a_file_of_more_tables_than_are_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    file = litert_file.ModelFile()
    graph = file.graph("twice")
    number = graph.input("number", [1])
    graph.output("sum", graph.add(number, number))
    monkeypatch.setattr(litert_file, "MOST_TABLES", file.tables)
    assert file.write()
    monkeypatch.setattr(litert_file, "MOST_TABLES", file.tables - 1)
    with pytest.raises(ConfigError, match=f"expected at most {file.tables - 1} tables, got "
                                          f"{file.tables}. Take fewer positions, rows or chunks"):
        file.write()


@pytest.mark.parametrize(("parts", "sizes"), [
    (2, [2]), (3, [3]), (4, [4]), (5, [2, 4]), (6, [3, 4]), (7, [4, 4]), (8, [2, 4, 4])])
def test_of_many_tensors_the_last_are_copied_once_into_what_they_make(
        parts: int, sizes: list[int]) -> None:
    """The last pages of a cache are the largest."""
    graph = litert_file.ModelFile().graph("joined")
    tensors = [graph.input(f"part_{number}", [1, number + 1]) for number in range(parts)]
    joined = graph.concat(tensors, 1)
    assert joined.shape == (1, parts * (parts + 1) // 2)
    assert [len(one.inputs) for one in graph.subgraph.operators] == sizes
    last = graph.subgraph.operators[-1].inputs
    assert last[1:] == [tensor.place for tensor in tensors][1 - len(last):]
