"""Given texts as a network reads them: as the signature `encode` of its task tells them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.tasks import small
from tf_infer.optimize import importance
from tf_infer.optimize import texts as given
from tf_infer.optimize.texts import Text, encoded, in_batches
from tf_infer.tasks.build import build
from tf_infer.verify.predictors import EagerPredictor

ONE = (b"a parcel", "支付".encode(), b"x")
BAG = small.BAG


@pytest.mark.parametrize("texts", [ONE, [(b"a", b"bc"), (b"", b"d")]], ids=["alone", "pairs"])
def test_ids_are_those_of_a_request_and_of_pairs_a_text_alone_stands_beside_itself(
        texts: list[Text]) -> None:
    task = build(replace(BAG, pair=True))
    pairs = [text if isinstance(text, tuple) else (text, text) for text in texts]
    told = EagerPredictor(task.signatures())("encode", {
        name: np.array(part, object) for name, part in zip(("text", "text_pair"), zip(*pairs))})
    found = encoded(task, texts)
    assert set(found) == {"ids", "mask", "segments"}
    for name, array in found.items():
        np.testing.assert_array_equal(array.numpy().astype(np.int32), told[name])
    rows = importance.read(task, texts, importance.silent)
    for row, ids, mask in zip(rows, told["ids"], told["mask"]):
        np.testing.assert_array_equal(row.ids, ids[mask != 0])


def test_a_task_of_one_text_reads_one() -> None:
    task = build(BAG)
    told = EagerPredictor(task.signatures())("encode", {"text": np.array(ONE, object)})
    np.testing.assert_array_equal(encoded(task, ONE)["ids"].numpy(), told["ids"])


def test_the_first_texts_are_read_in_batches_and_long_ones_cut_as_those_of_a_request(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "MAX_TEXTS", 18)
    task = build(BAG)
    long = [b"x" * size for size in range(500, 530)]
    batches = list(in_batches(task, long))
    assert [len(batch["ids"]) for batch in batches] == [16, 2]
    told = EagerPredictor(task.signatures())("encode", {"text": np.array(long[16:18], object)})
    np.testing.assert_array_equal(batches[1]["ids"].numpy(), told["ids"])
    assert batches[1]["mask"].numpy().all(axis=1).any()
