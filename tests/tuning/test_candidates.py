"""Which forms are tried on which machine, what they are called, and how they stand in JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tf_infer import config
from tf_infer.errors import ConfigError
from tf_infer.optimize.plan import OptimizationPlan
from tf_infer.tuning.candidates import (
    OFFERED,
    REFERENCE_CANDIDATE,
    Candidate,
    EngineChoice,
    asked_for,
    chosen_by,
    sensible,
)

FLAGS = frozenset({"avx512_bf16", "avx512_vnni"})
ALL = frozenset({"ai_edge_litert", "onnxruntime"})


def names(kind: Any = "causal_lm", flags: frozenset[str] | None = FLAGS,
          installed: frozenset[str] = ALL, **changes: Any) -> list[str]:
    return [one.name for one in sensible(kind, flags=flags, installed=installed, **changes)[0]]


def test_a_decoder_has_plans_and_one_engine() -> None:
    assert names() == ["reference", "plan float32", "plan bfloat16", "plan int8", "litert int8",
                       "litert float32"]


def test_a_classifier_has_xla_and_every_engine() -> None:
    assert names("classifier") == [
        "reference", "plan float32", "plan bfloat16", "plan int8", "plan int8 smoothing=0.5",
        "plan int8 static smoothing=0.5", "plan float32 xla", "litert int8", "litert int8 static",
        "litert float32", "onnx int8", "onnx float32", "onnx float16"]
    assert "plan float32 xla" not in names("classifier", xla=False)


def test_what_the_cpu_would_emulate_is_not_tried_and_that_is_said() -> None:
    found, left_out = sensible("causal_lm", flags=frozenset({"avx2"}), installed=ALL)
    assert [one.name for one in found] == ["reference", "plan float32", "litert int8",
                                           "litert float32"]
    assert left_out == {"plan bfloat16": "this CPU has no arithmetic of bfloat16",
                        "plan int8": "this CPU has no arithmetic of int8"}


def test_where_size_counts_float32_is_tried_in_smaller_files() -> None:
    more = set(names("classifier", small=True)) - set(names("classifier"))
    assert more == {"plan float32 storage=bfloat16", "plan float32 storage=int8"}


def test_a_plan_that_is_asked_for_is_tried_once_or_left_out_for_a_reason() -> None:
    own = OptimizationPlan(precision="int8", activations="static", ranges="entropy", sensitive=4)
    stored = OptimizationPlan(storage="int8")
    found = names("classifier", asked=(own, stored, OptimizationPlan(precision="int8")))
    usual = names("classifier")
    assert found[:len(usual)] == usual
    assert found[len(usual):] == ["plan int8 static ranges=entropy sensitive=4",
                          "plan float32 storage=int8"]
    _, left_out = sensible("classifier", flags=frozenset({"avx2"}), installed=ALL, asked=(own,))
    assert left_out["plan int8 static ranges=entropy sensitive=4"] == (
        "this CPU has no arithmetic of int8")


def test_plans_that_differ_in_floats_alone_are_told_apart_by_their_names() -> None:
    own = OptimizationPlan(precision="int8", activations="static", ranges="entropy", sensitive=4)
    asked = (own, replace(own, floats="float32"), replace(own, floats="bfloat16"),
             OptimizationPlan(precision="int8", floats="float32"),
             OptimizationPlan(floats="float32"))  # what None stands for beside float32
    name = "plan int8 static ranges=entropy sensitive=4"
    assert names("classifier", asked=asked)[len(names("classifier")):] == [
        name, f"{name} floats=float32", "plan int8 floats=float32"]
    assert [one.name for one in asked_for(asked, "classifier", FLAGS)] == [
        name, f"{name} floats=float32", name, "plan int8 floats=float32", "plan float32"]


@pytest.mark.parametrize("asked", [
    OptimizationPlan(precision="int8"), OptimizationPlan(precision="int8", floats="float32"),
    OptimizationPlan(precision="int8", activations="static", smoothing=0.5)])
def test_a_plan_asked_for_without_bfloat16_arithmetic_is_the_one_that_is_tried_there(
        asked: OptimizationPlan) -> None:
    flags = frozenset({"avx512_vnni"})
    usual = sensible("classifier", flags=flags, installed=ALL)
    assert sensible("classifier", flags=flags, installed=ALL, asked=(asked,)) == usual


def test_a_plan_of_ones_own_keeps_float32_where_there_is_no_bfloat16() -> None:
    own = OptimizationPlan(precision="int8", activations="static", ranges="entropy", sensitive=4)
    name = "plan int8 static ranges=entropy sensitive=4"
    flags = frozenset({"avx512_vnni"})
    found, left_out = sensible("classifier", flags=flags, installed=ALL, asked=(own,))
    assert (found[-1].name, found[-1].plan) == (name, replace(own, floats="float32"))
    assert name not in left_out
    found, left_out = sensible("classifier", flags=flags, installed=ALL, asked=(
        replace(own, floats="bfloat16"),))
    assert name not in [one.name for one in found]
    assert left_out[name] == "this CPU has no arithmetic of bfloat16, which its floats are"


def test_a_classifier_keeps_float32_beside_int8_where_there_is_no_bfloat16() -> None:
    found, left_out = sensible("classifier", flags=frozenset({"avx512_vnni"}), installed=ALL)
    int8 = [one for one in found if one.plan is not None and one.plan.precision == "int8"]
    assert [one.name for one in int8] == ["plan int8", "plan int8 smoothing=0.5",
                                          "plan int8 static smoothing=0.5"]
    assert {one.plan.floats for one in int8 if one.plan} == {"float32"}
    assert left_out["plan bfloat16"] == "this CPU has no arithmetic of bfloat16"


@pytest.mark.parametrize("kind", OFFERED)
@pytest.mark.parametrize("flags", [None, FLAGS, frozenset({"avx512_vnni"}), frozenset({"avx2"})])
def test_every_machine_knows_the_same_names_and_says_why_it_leaves_one_out(
        kind: Any, flags: frozenset[str] | None) -> None:
    prune = [{"heads": 0.5}]
    for installed, lacks in ((ALL, "no GPU"), (ALL, ""), (frozenset[str](), "")):
        found, left_out = sensible(kind, flags=flags, installed=installed, prune=prune, xla=False,
                                   float16_lacks=lacks)
        whole = sensible(kind, flags=None, installed=ALL, prune=prune, small=True)[0]
        assert {*(one.name for one in found), *left_out} == {one.name for one in whole}
        assert all(left_out.values()) and not {one.name for one in found} & set(left_out)


def test_forms_that_the_command_line_rules_out_are_left_out_by_its_options() -> None:
    left_out = sensible("classifier", flags=FLAGS, installed=ALL, xla=False)[1]
    assert "--no-xla was given" in left_out["plan float32 xla"]
    assert "--objective size tries it" in left_out["plan float32 storage=int8"]


def test_an_unknown_cpu_forbids_nothing() -> None:
    assert "plan int8" in names(flags=None)


def test_an_engine_without_its_package_is_not_tried_and_its_install_is_named() -> None:
    found, left_out = sensible("classifier", flags=FLAGS,
                               installed=frozenset({"ai_edge_litert"}))
    assert not any("onnx" in one.name for one in found)
    reason = "onnxruntime is not installed: pip install 'tf_infer[onnx]'"
    assert {name: told for name, told in left_out.items() if "onnx" in name} == {
        "onnx int8": reason, "onnx float32": reason, "onnx float16": reason}


def test_float16_is_tried_where_there_is_a_gpu_for_it_and_else_its_lack_is_told() -> None:
    assert "onnx float16" in names("classifier")
    found, left_out = sensible("classifier", flags=FLAGS, installed=ALL, float16_lacks="no GPU")
    assert "onnx float16" not in {one.name for one in found}
    assert left_out["onnx float16"] == "no GPU" and "onnx float32" not in left_out


def test_pruned_forms_come_alone_and_with_every_other_part() -> None:
    found = names(prune=[{"heads": 0.5}])
    assert len(found) == 2 * len(names())
    pruned = [name for name in found if name.startswith("prune ")]
    assert len(pruned) == len(names()) and len({name.split()[1] for name in pruned}) == 1
    assert f"{pruned[0]} + litert int8" in pruned


def test_every_candidate_has_a_name_and_a_key_of_its_own() -> None:
    for kind in OFFERED:
        found = sensible(kind, flags=FLAGS, installed=ALL, prune=[{"a": 1}, {"a": 2}])[0]
        assert found[0] == REFERENCE_CANDIDATE
        assert len({one.name for one in found}) == len({one.key for one in found}) == len(found)
        assert all(set(one.key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for one in found)


def test_a_setting_that_is_not_the_usual_one_is_told_in_the_name() -> None:
    plan = OptimizationPlan(precision="int8", compile="xla", atol=2.0)
    assert Candidate(plan=plan).name == "plan int8 xla atol=2.0"
    assert Candidate(plan=plan).key != Candidate(plan=OptimizationPlan(precision="int8")).key


def test_a_candidate_comes_back_from_json() -> None:
    whole = Candidate(prune={"heads": 0.5}, plan=OptimizationPlan(precision="int8"),
                      engine=EngineChoice(kind="litert", precision="float32"))
    for one in (whole, REFERENCE_CANDIDATE):
        assert config.from_json(Candidate, config.to_json(one)) == one


def test_an_engine_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"EngineChoice\.kind: expected one of .*'onnx'\], got "):
        EngineChoice(kind="torch", precision="int8")
    with pytest.raises(ConfigError, match=r"EngineChoice\.precision: expected one of .*'int3'"):
        EngineChoice(kind="litert", precision="int3")


def test_an_engine_that_texts_set_ranges_of_is_another_form_than_the_one_that_finds_them() -> None:
    found, set_once = (EngineChoice(kind="litert", precision="int8", ranges=ranges)
                       for ranges in ("found", "percentile"))
    assert found == EngineChoice(kind="litert", precision="int8")
    assert (found.name, set_once.name, replace(set_once, ranges="entropy").name) == (
        "litert int8", "litert int8 static", "litert int8 static ranges=entropy")
    keys = [Candidate(engine=one).key for one in (found, set_once,
                                                  replace(set_once, ranges="entropy"))]
    assert len(set(keys)) == 3
    assert keys[0] == "litert-int8-c218bb17"  # what was built under it stays
    for one in (found, set_once):
        assert config.from_json(EngineChoice, config.to_json(one)) == one
    earlier = {"kind": "litert", "precision": "int8"}
    assert config.from_json(EngineChoice, earlier) == found
    with pytest.raises(ConfigError, match=r"EngineChoice\.ranges: expected 'found' with float32, "):
        replace(set_once, precision="float32")


def test_set_ranges_are_tried_where_the_engine_of_a_classifier_is_there() -> None:
    found, left_out = chosen_by(["litert int8 static"], *sensible(
        "classifier", flags=FLAGS, installed=ALL))
    assert [one.engine for one in found] == [
        None, EngineChoice(kind="litert", precision="int8", ranges="percentile")]
    assert left_out == {} and found[1].rounds
    _, left_out = sensible("classifier", flags=FLAGS, installed=frozenset({"onnxruntime"}))
    assert left_out["litert int8 static"] == (
        "ai_edge_litert is not installed: pip install 'tf_infer[server]'")


def test_candidates_are_chosen_by_name_and_the_reference_stays() -> None:
    given = sensible("causal_lm", flags=FLAGS, installed=ALL)
    found, left_out = chosen_by(["litert int8", "plan int8"], *given)
    assert [one.name for one in found] == ["reference", "plan int8", "litert int8"]
    assert left_out == {}
    with pytest.raises(ConfigError, match=r"--plans: expected some of \['reference', .*'int8'"):
        chosen_by(["int8"], *given)


def test_a_named_candidate_that_is_left_out_keeps_its_reason() -> None:
    given = sensible("causal_lm", flags=frozenset({"avx2"}), installed=ALL)
    found, left_out = chosen_by(["plan int8", "plan float32"], *given)
    assert [one.name for one in found] == ["reference", "plan float32"]
    assert left_out == {"plan int8": "this CPU has no arithmetic of int8"}
    with pytest.raises(ConfigError, match="--plans: expected a plan that can be tried on this "
                                          "machine, got 'plan int8: this CPU has no arithmetic"):
        chosen_by(["plan int8"], *given)
