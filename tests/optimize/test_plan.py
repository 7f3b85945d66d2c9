"""Plans: read by name or from a file, strictly, and refused where a CPU would only emulate them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tf_infer.errors import ConfigError
from tf_infer.optimize.plan import (
    ATOL,
    LABELS_ATOL,
    LOGITS_ATOL,
    LOSS_ATOL,
    OptimizationPlan,
    read_plan,
    require_native,
)
from tf_infer.processor import cpu_flags


def test_a_name_is_a_plan_of_that_precision() -> None:
    for precision in ("float32", "bfloat16", "int8"):
        plan = read_plan(precision)
        assert plan == OptimizationPlan(precision=precision)
        assert plan.bounds == (ATOL[precision], LOSS_ATOL[precision])


def test_a_file_says_more_and_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"precision": "bfloat16", "compile": "xla", "atol": 0.5}')
    plan = read_plan(str(path))
    assert plan == OptimizationPlan(precision="bfloat16", compile="xla", atol=0.5)
    assert plan.bounds == (0.5, LOSS_ATOL["bfloat16"])
    path.write_text('{"precison": "bfloat16"}')
    with pytest.raises(ConfigError, match="Did you mean 'precision'"):
        read_plan(str(path))


@pytest.mark.parametrize(("content", "message"), [
    ('{"precision": "int4"}', "expected one of"), ('{"atol": 0}', "OptimizationPlan.atol"),
    ('{"compile": "jit"}', "expected one of"), ('{"atol": NaN}', "OptimizationPlan.atol"),
    ('{"keep": ["words"]}', "OptimizationPlan.keep: expected no layer"),
    ('{"activations": "static"}', "OptimizationPlan.activations"),
    ('{"precision": "int8", "activations": "static", "compile": "xla"}', "'dynamic' with XLA"),
    ('{"smoothing": 0.5}', "OptimizationPlan.smoothing"),
    ('{"precision": "int8", "smoothing": 2}', "OptimizationPlan.smoothing"),
    ('{"sensitive": 1}', "OptimizationPlan.sensitive"), ('{"percentile": 20}', "50 to 100"),
    ('{"precision": "int8", "storage": "int8"}', "OptimizationPlan.storage"),
    ("[]", "an object"), ('{"loss_atol": -1}', "OptimizationPlan.loss_atol")])
def test_a_wrong_plan_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_plan(str(path))


def test_a_name_that_is_no_plan_tells_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"one of \['bfloat16', 'float32', 'int8'\] or a .json"):
        read_plan("fp8")
    with pytest.raises(ConfigError, match=r"got 'float16'\. GPUs compute it: --engine onnx"):
        read_plan("float16")


@pytest.mark.parametrize(("precision", "flags", "fine"), [
    ("float32", "sse2 avx2", True), ("bfloat16", "avx512f avx512_bf16", True),
    ("bfloat16", "amx_bf16 amx_tile", True), ("bfloat16", "avx2 avx512f avx512_vnni", False),
    ("int8", "avx2 avx_vnni", True), ("int8", "avx512_vnni", True), ("int8", "avx2 fma", False),
    ("bfloat16", "asimd bf16 i8mm", True), ("int8", "asimd asimddp", True)])
def test_a_precision_that_would_be_emulated_is_refused(precision: str, flags: str, fine: bool
                                                       ) -> None:
    plan = read_plan(precision)
    if fine:
        require_native(plan, frozenset(flags.split()))
    else:
        with pytest.raises(ConfigError, match=f"got '{precision}', which it would emulate"):
            require_native(plan, frozenset(flags.split()))
    require_native(plan, None)


@pytest.mark.parametrize(("changes", "floats"), [
    ({"precision": "float32"}, "float32"), ({"precision": "bfloat16"}, "bfloat16"),
    ({"precision": "int8"}, "bfloat16"), ({"precision": "int8", "compile": "xla"}, "float32"),
    ({"precision": "int8", "floats": "float32"}, "float32")])
def test_floats_follow_from_the_precision_and_are_required_too(changes: Any, floats: str) -> None:
    plan = OptimizationPlan(**changes)
    assert plan.kept_in == floats
    flags = frozenset({"avx512_vnni"})
    require_native(plan, flags | {"avx512_bf16"}, floats=True)
    if floats == "bfloat16" and plan.precision == "int8":
        require_native(plan, flags)
        with pytest.raises(ConfigError, match=r'plan\.floats: .*"floats": "float32" in the plan'):
            require_native(plan, flags, floats=True)


def test_texts_are_needed_by_what_they_decide() -> None:
    needs = [OptimizationPlan(precision="int8", **changes).needs_texts for changes in (
        {}, {"activations": "static"}, {"smoothing": 0.0}, {"sensitive": 1}, {"keep": ("words",)})]
    assert needs == [False, True, True, True, False]


def test_bounds_of_classifiers_are_their_own() -> None:
    assert OptimizationPlan(precision="int8", atol=0.5).label_bounds == (0.5, LABELS_ATOL["int8"])
    assert OptimizationPlan(precision="bfloat16").label_bounds == (
        LOGITS_ATOL["bfloat16"], LABELS_ATOL["bfloat16"])
    assert OptimizationPlan(storage="int8").label_bounds[0] == LOGITS_ATOL["int8"]


def test_features_of_a_cpu_are_read_from_linux(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_int8\nbugs\t\t: spectre\n\n"
                    "processor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(path) == {"fpu", "avx512_bf16", "amx_int8"}
    path.write_text("processor : 0\nFeatures\t: fp asimd bf16\n")
    assert cpu_flags(path) == {"fp", "asimd", "bf16"}
    path.write_text("processor : 0\n")
    assert cpu_flags(path) is None
    assert cpu_flags(tmp_path / "none") is None
