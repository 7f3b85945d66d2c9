"""Which stage an operation belongs to, told by its name."""

from __future__ import annotations

import pytest

from tf_infer.stages import SCOPES, STAGES, stage_of

CALL = "StatefulPartitionedCall_2/StatefulPartitionedCall"


@pytest.mark.parametrize(("operation", "stage"), [
    (f"{CALL}/preprocess/RaggedFromRowLengths/Cast", "tokenize"),
    (f"{CALL}/core/cond/then/_114/core/cond/StatefulPartitionedCall/dense/MatMul", "model"),
    (f"{CALL}/core_1/map/while/XlaLaunch", "model"),
    (f"{CALL}./core_1./dense/MatMul", "model"),
    (f"{CALL}/core/cond/while/body/_9/while/decoding/ArgMax", "decode"),
    ("postprocess_12/GatherV2", "decode"),
    (f"{CALL}/core", None),                # an operation of that name stands below no scope
    (f"{CALL}/score_head/core2/MatMul", None),
    (f"{CALL}/my_core/MatMul", None),
    ("", None),
])
def test_the_innermost_scope_tells_the_stage(operation: str, stage: str | None) -> None:
    assert stage_of(operation) == stage


def test_every_scope_belongs_to_a_stage() -> None:
    assert set(SCOPES.values()) == set(STAGES)
