"""A forced prefix that is longer than a text may become, before it is generated token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from tf_infer.errors import InvalidRequest
from tf_infer.manifest import ModelManifest, SignatureSpec, TensorSpec
from tf_infer.server import fake_decoder
from tf_infer.server.constraining import Constraining
from tf_infer.server.contracts import Arrays

SIZE = 7
MANIFEST = ModelManifest(
    name="forcing", version=1, task=fake_decoder.manifest().task, grid=fake_decoder.manifest().grid,
    signatures=(SignatureSpec(name="choose", inputs=(
        TensorSpec(name="logits", dtype="float32", shape=(None, SIZE)),
        TensorSpec(name="ids", dtype="int32", shape=(None, None)),
        TensorSpec(name="prompt_length", dtype="int32", shape=(None,)),
        TensorSpec(name="length", dtype="int32", shape=(None,)),
        TensorSpec(name="temperature", dtype="float32", shape=(None,), default=0.9),
        TensorSpec(name="forced_prefix", dtype="string", shape=(None,), default=""),
    ), outputs=(TensorSpec(name="token", dtype="int32", shape=(None,)),)),))


class Forcing:
    """A servable whose `choose` knows forced prefixes: a letter is an id."""

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> Arrays:
        assert signature == "choose" and (inputs["temperature"] == 0.0).all()
        produced = inputs["length"] - inputs["prompt_length"]
        assert inputs["ids"].shape == (len(produced), produced.max())
        chosen = [prefix[place] - ord("a") if place < len(prefix) else int(logits.argmax())
                  for prefix, place, logits in zip(inputs["forced_prefix"], produced,
                                                   inputs["logits"])]
        return {"token": np.asarray(chosen, np.int32)}


@pytest.fixture
def constraining() -> Constraining:
    servable: Any = Forcing()
    return Constraining(servable, MANIFEST, None)


@pytest.mark.parametrize(("prefix", "limit"), [(b"ab", 2), (b"ab", 5), (b"", 0)])
def test_a_prefix_that_fits_is_taken(constraining: Constraining, prefix: bytes, limit: int) -> None:
    constraining.check_prefix(prefix, limit)


@pytest.mark.parametrize(("prefix", "limit"), [(b"a", 0), (b"ba", 1), (b"ccc", 2), (b"abcdef", 3)])
def test_one_that_does_not_is_refused(
        constraining: Constraining, prefix: bytes, limit: int) -> None:
    with pytest.raises(InvalidRequest,
                       match=f"forced_prefix: expected at most max_new_tokens = {limit} ids"):
        constraining.check_prefix(prefix, limit)
