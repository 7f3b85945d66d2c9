"""Golden samples: which texts, which requests."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tf_infer.config import ShapeGrid
from tf_infer.errors import ConfigError
from tf_infer.manifest import EXTRA_FOLDER, SignatureSpec, TensorSpec
from tf_infer.verify import golden

GRID = ShapeGrid(rows=(1, 4), tokens=(4, 8))
TEXTS = tuple(f"text {i}".encode() for i in range(20))
COUNTS = tuple(3 if i % 2 else 7 for i in range(20))


def encode(signature: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """One id a byte, as wide as the longest row."""
    assert signature == "encode"
    texts = inputs["text"]
    width = max(map(len, texts))
    ids = np.zeros((len(texts), width), np.int32)
    for row, text in enumerate(texts):
        ids[row, :len(text)] = list(text)
    mask = np.arange(width)[None] < np.array([len(text) for text in texts])[:, None]
    return {"ids": ids, "mask": mask.astype(np.int32)}


def example(features: Mapping[str, bytes]) -> bytes:
    return b"|".join(features.values())


def spec(name: str, *inputs: TensorSpec) -> SignatureSpec:
    return SignatureSpec(name=name, inputs=inputs, outputs=())


def one(name: str, dtype: str = "string", default: object = None, axes: int = 1) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=(None,) * axes, default=default)


def test_every_cell_of_the_grid_is_covered_and_no_other() -> None:
    batches = golden.choose(TEXTS, COUNTS, GRID)
    count_of = dict(zip(TEXTS, COUNTS))
    plain = [batch for batch in batches if all(text in count_of for text in batch)]
    cells = {(len(batch), 4 if max(count_of[text] for text in batch) <= 4 else 8)
             for batch in plain}
    assert cells == set(itertools.product(GRID.rows, GRID.tokens))
    assert {len(batch) for batch in batches} <= set(GRID.rows)


def test_every_edge_text_is_chosen() -> None:
    chosen = set(itertools.chain.from_iterable(golden.choose(TEXTS, COUNTS, GRID)))
    assert set(golden.EDGE_TEXTS) <= chosen
    assert max(map(len, chosen)) >= golden.LONG_REPEATS
    assert any(b"\x00" in text for text in golden.EDGE_TEXTS)
    assert b"" in golden.EDGE_TEXTS
    with pytest.raises(UnicodeDecodeError):
        golden.EDGE_TEXTS[-1].decode()


def test_every_class_is_chosen_however_rare() -> None:
    classes = ["common"] * 20
    classes[19] = "rare"
    classes[10] = "seldom"
    chosen = set(itertools.chain.from_iterable(golden.choose(TEXTS, COUNTS, GRID,
                                                             classes=classes)))
    assert {TEXTS[19], TEXTS[10]} <= chosen
    many = [f"class {i}" for i in range(20)]
    chosen = set(itertools.chain.from_iterable(golden.choose(TEXTS, COUNTS, GRID, classes=many)))
    assert set(TEXTS) <= chosen


def test_large_row_buckets_may_be_left_out() -> None:
    assert {len(batch) for batch in golden.choose(TEXTS, COUNTS, GRID, max_rows=1)} == {1}


def test_no_texts_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one text"):
        golden.choose([], [], GRID)


def test_requests_hold_texts_ids_examples_and_options() -> None:
    batch = (b"one", b"three", b"five", b"nine")
    specs = [
        spec("serving_default", one("text"), one("text_pair")),
        spec("ids", one("ids", "int32", axes=2), one("mask", "int32", axes=2)),
        spec("decode", one("ids", "int32", axes=2), one("length", "int32")),
        spec("classify", one("inputs")),
        spec("generate", one("prompt"), one("temperature", "float32", 0.0),
             one("max_new_tokens", "int32", 8), one("seed", "int64", 5),
             one("top_k", "int32", 0), one("other", "float32", 1.5))]
    requests = golden.make_requests([*specs, spec("encode", one("text"))], [batch], encode=encode,
                                    example=example)
    by_name = {sample.signature: sample.inputs for sample in requests}
    assert by_name["serving_default"]["text"].tolist() == list(batch)
    assert by_name["serving_default"]["text_pair"].tolist() == [*batch[1:], batch[0]]
    assert by_name["ids"]["ids"].tolist() == encode("encode", {"text": batch})["ids"].tolist()
    assert by_name["decode"]["length"].tolist() == [3, 5, 4, 4]
    assert by_name["classify"]["inputs"][0] == b"one|three"
    options = by_name["generate"]
    assert options["temperature"].tolist() == pytest.approx([0.0, 0.7, 0.0, 0.7])
    assert options["max_new_tokens"].tolist() == [8, 3, 1, 8]
    assert options["seed"].tolist() == [5, 6, 7, 8]
    assert options["seed"].dtype == np.int64
    assert options["other"].tolist() == [1.5] * 4


def test_a_state_begins_empty_and_leaves_room_for_what_is_produced() -> None:
    state = TensorSpec(name="cache", dtype="float32", shape=(None, 2, 3, 10, 4))
    steps = spec("steps", one("ids", "int32", axes=2), one("id_count", "int32"), state,
                 one("lengths", "int32"), one("count", "int32"))
    encoder = spec("encode", one("text"))
    batches = ((b"a" * 3,), (b"a" * 9,), (b"a" * 10,), (b"a", b"b"))
    requests = golden.make_requests([steps, encoder], batches, encode=encode, example=example)
    samples = [sample.inputs for sample in requests if sample.signature == "steps"]
    assert [sample["id_count"].tolist() for sample in samples] == [[9], [10]]
    assert [sample["count"].tolist() for sample in samples] == [[1], [0]]
    assert samples[0]["cache"].shape == (1, 2, 3, 10, 4)
    assert not samples[0]["cache"].any()
    assert samples[0]["lengths"].tolist() == [0]


@pytest.mark.parametrize(("capacity", "count"), [(1, 1), (2, 2), (9, 2), (None, 2)])
def test_no_more_is_produced_than_the_output_holds(capacity: int | None, count: int) -> None:
    state = TensorSpec(name="cache", dtype="float32", shape=(None, 2, 3, 10, 4))
    steps = SignatureSpec(
        name="steps", inputs=(one("ids", "int32", axes=2), state, one("count", "int32")),
        outputs=(TensorSpec(name="tokens", dtype="int32", shape=(None, capacity)),))
    made = golden.make_inputs(steps, (b"ab",), encode("encode", {"text": [b"ab"]}), example)
    assert made["count"].tolist() == [count]


def test_a_scored_continuation_is_short_and_has_something_before_it() -> None:
    score = spec("score", one("prompt"), one("continuation"))
    (sample,) = golden.make_requests([score], [(b"", b"x" * 100)], encode=encode, example=example)
    assert sample.inputs["prompt"].tolist() == [b"one two ", b"one two " + b"x" * 100]
    assert sample.inputs["continuation"].tolist() == [b" xxxxxx", b" "]


def test_serving_default_gets_all_batches_and_the_others_few() -> None:
    batches = golden.choose(TEXTS, COUNTS, GRID)
    requests = golden.make_requests(
        [spec("serving_default", one("text")), spec("other", one("text"))], batches,
        encode=encode, example=example)
    names = [sample.signature for sample in requests]
    assert names.count("serving_default") == len(batches)
    assert 0 < names.count("other") < len(batches)


def test_an_input_that_cannot_be_made_is_named() -> None:
    with pytest.raises(ConfigError, match="signature 'steps', input 'state'"):
        golden.make_requests([spec("steps", one("state", "float32", axes=2))], [(b"a",)],
                             encode=encode, example=example)


def test_a_broken_golden_file_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"golden\.jsonl"):
        golden.read_golden(tmp_path)
    (tmp_path / EXTRA_FOLDER).mkdir()
    (tmp_path / EXTRA_FOLDER / "golden.jsonl").write_text('{"signature": "s"\n')
    with pytest.raises(ConfigError, match=r"golden\.jsonl line 1"):
        golden.read_golden(tmp_path)
