"""Which rows form which batch, and what the pipeline makes of them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_infer.train.batches import (
    Rows,
    Vectors,
    dataset,
    draw,
    plan,
    split,
    vector_dataset,
)

BUCKETS = (4, 8, 16)
PAD = 99


def lengths(count: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 17, count)


def test_every_row_comes_once_in_a_bucket_that_just_holds_it() -> None:
    sizes = lengths()
    batches = plan(sizes, BUCKETS, batch_rows=8, seed=1)
    assert sorted(np.concatenate(batches.rows)) == list(range(50))
    for rows, width in zip(batches.rows, batches.widths):
        assert 1 <= len(rows) <= 8
        longest = max(sizes[rows])
        assert longest <= width
        assert all(bucket < min(sizes[rows]) for bucket in BUCKETS if bucket < width)


def test_a_seed_and_an_epoch_fix_the_order() -> None:
    def order(seed: int | None, epoch: int = 0) -> list[list[int]]:
        return [rows.tolist() for rows in
                plan(lengths(), BUCKETS, batch_rows=8, seed=seed, epoch=epoch).rows]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(1, epoch=1)
    assert len(order(1)) == len(order(2, epoch=3))
    assert order(None) == order(None)
    assert order(None)[0] == sorted(order(None)[0])


def test_the_pipeline_pads_to_the_bucket_and_keeps_rows_together() -> None:
    sizes = lengths()
    values = [np.arange(size) + 100 * row for row, size in enumerate(sizes)]
    ids = tf.RaggedTensor.from_row_lengths(np.concatenate(values).astype(np.int32), sizes)
    targets = np.arange(50, dtype=np.int32)
    batches = plan(sizes, BUCKETS, batch_rows=8, seed=1)
    seen = 0
    for numbers, width, batch in zip(batches.rows, batches.widths,
                                     dataset(Rows(ids, ids + 1, targets), batches, pad_id=PAD)):
        found, mask, segments, labels = (part.numpy() for part in batch)
        assert found.shape == mask.shape == segments.shape == (len(numbers), width)
        assert labels.tolist() == numbers.tolist()
        for place, row in enumerate(numbers):
            real = sizes[row]
            assert found[place, :real].tolist() == values[row].tolist()
            assert segments[place, :real].tolist() == (values[row] + 1).tolist()
            assert (found[place, real:] == PAD).all()
            assert (segments[place, real:] == 0).all()
            assert mask[place].tolist() == [True] * real + [False] * (width - real)
        seen += len(numbers)
    assert seen == 50


def test_one_trace_serves_every_shape() -> None:
    sizes = lengths()
    ids = tf.RaggedTensor.from_row_lengths(np.zeros(sizes.sum(), np.int32), sizes)
    data = dataset(Rows(ids, ids, sizes), plan(sizes, BUCKETS, batch_rows=8, seed=1), pad_id=0)
    assert [spec.shape.rank for spec in data.element_spec] == [2, 2, 2, 1]
    assert all(size is None for spec in data.element_spec for size in spec.shape)


def test_vectors_have_one_bucket() -> None:
    rows = Vectors(np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(10))
    batches = plan(rows.lengths(), (0,), batch_rows=4, seed=3)
    parts = list(vector_dataset(rows, batches))
    assert [len(part[1]) for part in parts] != []
    assert sorted(len(part[1]) for part in parts) == [2, 4, 4]
    for vectors, targets in parts:
        np.testing.assert_array_equal(vectors, rows.vectors[targets.numpy()])


def test_drawn_rows_begin_anywhere_and_long_documents_come_more_often() -> None:
    documents, starts = draw(np.array([1, 5, 21, 81]), block_tokens=10, count=5_000, seed=1,
                             epoch=0)
    shares = np.bincount(documents, minlength=4) / 5_000
    assert shares[0] == 0
    np.testing.assert_allclose(shares[1:], np.array([4, 20, 80]) / 104, atol=0.02)
    assert set(starts[documents == 1]) == {0}
    for document, length in ((2, 21), (3, 81)):
        assert set(starts[documents == document]) == set(range(length - 10 + 1))


def test_a_seed_and_an_epoch_fix_what_is_drawn() -> None:
    def drawn(seed: int, epoch: int) -> list[int]:
        return draw(np.array([500]), block_tokens=10, count=20, seed=seed, epoch=epoch)[1].tolist()

    assert drawn(1, 0) == drawn(1, 0)
    assert drawn(1, 0) != drawn(1, 1)
    assert drawn(1, 0) != drawn(2, 0)


def test_split_parts_all_rows_and_keeps_one_for_each_side() -> None:
    training, held = split(10, fraction=0.2, seed=0)
    assert sorted([*training, *held]) == list(range(10))
    assert len(held) == 2
    assert [len(part) for part in split(2, fraction=0.01, seed=0)] == [1, 1]
    assert [len(part) for part in split(2, fraction=0.99, seed=0)] == [1, 1]
    held_again, held_other = (split(10, fraction=0.2, seed=seed)[1].tolist() for seed in (0, 1))
    assert held.tolist() == held_again != held_other
