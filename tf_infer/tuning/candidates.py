"""Candidates: the forms in which a model might be exported, and which of them are worth a try."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tf_infer.config import check, to_json
from tf_infer.errors import ConfigError
from tf_infer.optimize.plan import NATIVE, OptimizationPlan, require_native
from tf_infer.optimize.ranges import Ranges

TaskKind = Literal["classifier", "causal_lm"]
EngineRanges = Literal["found", "largest", "percentile", "entropy"]
REFERENCE = "reference"
USUAL_RANGES: Ranges = "percentile"  # of those that texts set
SMOOTHING = 0.5  # what the paper of SmoothQuant takes, arXiv:2211.10438

# engine -> the package that runs it, what brings it, and the precisions it can be written in
ENGINES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "litert": ("ai_edge_litert", "server", ("int8", "float32")),
    "onnx": ("onnxruntime", "onnx", ("int8", "float32", "float16")),
}
# Which engines there are for which kind of task.
OFFERED: dict[TaskKind, tuple[str, ...]] = {"classifier": ("litert", "onnx"),
                                            "causal_lm": ("litert",)}


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineChoice:
    """An engine beside the SavedModel.

    Attributes:
        kind: which.
        precision: of its weights.
        ranges: of a classifier's in int8: "found" for each text, or set by texts (docs/engines.md).
    """

    kind: str
    precision: str
    ranges: EngineRanges = "found"

    def __post_init__(self) -> None:
        check(self.kind in ENGINES, "EngineChoice.kind", f"one of {sorted(ENGINES)}", self.kind)
        check(self.precision in ENGINES[self.kind][2], "EngineChoice.precision",
              f"one of {list(ENGINES[self.kind][2])}", self.precision)
        check(self.ranges == "found" or self.precision == "int8", "EngineChoice.ranges",
              f"'found' with {self.precision}", self.ranges)

    @property
    def name(self) -> str:
        """Return what a table calls it: what is not usual as plans tell it."""
        words = [self.kind, self.precision]
        if self.ranges != "found":
            words.append("static")
            if self.ranges != USUAL_RANGES:
                words.append(f"ranges={self.ranges}")
        return " ".join(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One form of a model: what is cut off, how the rest is laid out, what runs it.

    Attributes:
        prune: settings of `optimize.prune`, as JSON has them; None cuts nothing.
        plan: None leaves the network as it was built.
        engine: None runs the SavedModel alone.
        tells_floats: whether the name tells what the plan's floats are; set where another plan
            differs in nothing else.

    All None is the reference.
    """

    prune: Mapping[str, Any] | None = None
    plan: OptimizationPlan | None = None
    engine: EngineChoice | None = None
    tells_floats: bool = False

    @property
    def name(self) -> str:
        """Return what a table calls it, such as "plan int8" or "prune 0a1b + litert int8"."""
        parts = []
        if self.prune is not None:
            parts.append(f"prune {prune_word(self.prune)}")
        if self.plan is not None:
            parts.append(f"plan {_plan_name(self.plan)}")
            if self.tells_floats:
                parts[-1] += f" floats={self.plan.kept_in}"
        if self.engine is not None:
            parts.append(self.engine.name)
        return " + ".join(parts) or REFERENCE

    @property
    def engine_kind(self) -> str:
        """Return which engine runs it; "" where the SavedModel alone does."""
        return self.engine.kind if self.engine is not None else ""

    @property
    def rounds(self) -> bool:
        """Return whether its weights have fewer bits than float32."""
        plan, engine = self.plan, self.engine
        return ((plan is not None and (plan.precision != "float32" or plan.storage is not None))
                or (engine is not None and engine.precision != "float32"))

    @property
    def key(self) -> str:
        """Return a name for files, another one for every candidate."""
        word = "".join(letter if letter.isalnum() else "-" for letter in self.name)
        told = to_json(self)
        if self.engine is not None and self.engine.ranges == "found":
            del told["engine"]["ranges"]  # engines had the same keys before ranges could be set
        return f"{word}-{_digest(told)[:8]}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def prune_word(settings: Mapping[str, Any]) -> str:
    """Return what names settings of `optimize.prune`, such as "0a1b"."""
    return _digest(settings)[:4]


def _plan_name(plan: OptimizationPlan) -> str:
    """Return the precision, and every other setting that is not the usual one, such as "int8 xla".

    What is not int8 is computed in what the CPU has arithmetic for (`_settled`): that is no other
    plan, and has no other name on another machine.
    """
    usual = to_json(OptimizationPlan(precision=plan.precision))
    other = [f"{value}" if name in ("compile", "activations")
             else f"{name}={value if isinstance(value, str) else json.dumps(value)}"
             for name, value in to_json(plan).items() if value != usual[name] and name != "floats"]
    return " ".join([plan.precision, *other])


REFERENCE_CANDIDATE = Candidate()


def sensible(kind: TaskKind, *, flags: frozenset[str] | None, installed: Collection[str],
             float16_lacks: str = "", prune: Sequence[Mapping[str, Any]] = (), xla: bool = True,
             small: bool = False, asked: Sequence[OptimizationPlan] = ()
             ) -> tuple[tuple[Candidate, ...], dict[str, str]]:
    """Return the candidates worth a try on this machine, the reference first, and those that
    are not: name -> reason.

    Args:
        kind: of the task.
        flags: of the CPU (`cpu_flags`); None where they are not known.
        installed: names of packages that can be imported, of those in ENGINES.
        float16_lacks: what keeps this machine from float16, which GPUs compute; "" for nothing.
        prune: settings of `optimize.prune`, each to be tried with every other part.
        xla: whether a form that XLA compiles may be chosen: a server must then allow XLA.
        small: whether bytes on disk are the objective: then float32 in smaller files, too.
        asked: plans that are wanted, too, whatever they are good for.

    The names are the same on every machine: each is tried there, or left out for a reason.
    """
    found, left_out = [REFERENCE_CANDIDATE], {}
    whole = [Candidate(plan=plan) for plan in _plans(kind, flags)]
    whole += [Candidate(engine=engine) for engine in _engines(kind)]
    for candidate in (*whole, *_pruned(whole, prune)):
        reason = why_not(candidate, kind, flags=flags, installed=installed,
                         float16_lacks=float16_lacks, xla=xla, small=small)
        if reason:
            left_out[candidate.name] = reason
        else:
            found.append(candidate)
    for candidate in asked_for(asked, kind, flags):
        if candidate in found:
            continue
        reason = why_not(candidate, kind, flags=flags, installed=installed, xla=xla, small=True)
        left_out.pop(candidate.name, None)
        if reason:
            left_out[candidate.name] = reason
        else:
            found.append(candidate)
    return tuple(found), left_out


def asked_for(plans: Sequence[OptimizationPlan], kind: TaskKind, flags: frozenset[str] | None
              ) -> tuple[Candidate, ...]:
    """Return the candidate of each plan that is asked for, as `sensible` has it.

    One that differs from another in nothing but its floats tells them in its name.
    """
    known = [Candidate(plan=plan) for plan in _plans(kind, flags)]
    found = []
    for plan in plans:
        candidate = Candidate(plan=_settled(plan, kind, flags))
        if candidate not in known and candidate.name in {one.name for one in known}:
            candidate = replace(candidate, tells_floats=True)
        known.append(candidate)
        found.append(candidate)
    return tuple(found)


def _settled(plan: OptimizationPlan, kind: TaskKind, flags: frozenset[str] | None
             ) -> OptimizationPlan:
    """Return a plan that says what its floats are where this CPU needs others than usual."""
    if kind != "classifier":
        return plan
    usual = OptimizationPlan(precision=plan.precision, compile=plan.compile)
    if plan.precision == "int8" and usual.kept_in == "bfloat16" and _reason(
            OptimizationPlan(precision="bfloat16"), kind, flags):
        return replace(plan, floats="float32") if plan.floats is None else plan
    return replace(plan, floats=None) if plan.floats == usual.kept_in else plan


def _plans(kind: TaskKind, flags: frozenset[str] | None) -> Iterator[OptimizationPlan]:
    plans = {precision: _settled(OptimizationPlan(precision=precision), kind, flags)
             for precision in NATIVE}
    yield from plans.values()
    if kind == "classifier":
        yield replace(plans["int8"], smoothing=SMOOTHING)
        yield replace(plans["int8"], activations="static", smoothing=SMOOTHING)
        yield replace(plans["float32"], storage="bfloat16")
        yield replace(plans["float32"], storage="int8")
        # A decoder's loop under XLA compiles anew for every length (docs/optimisation.md).
        yield replace(plans["float32"], compile="xla")


def _engines(kind: TaskKind) -> Iterator[EngineChoice]:
    for engine in OFFERED[kind]:
        for precision in ENGINES[engine][2]:
            yield EngineChoice(kind=engine, precision=precision)
            # That of onnx is there for TensorRT.
            if (kind, engine, precision) == ("classifier", "litert", "int8"):
                yield EngineChoice(kind=engine, precision=precision, ranges=USUAL_RANGES)


def _pruned(whole: Sequence[Candidate], prune: Sequence[Mapping[str, Any]]) -> Iterator[Candidate]:
    for settings in prune:
        yield Candidate(prune=settings)
        for one in whole:
            yield Candidate(prune=settings, plan=one.plan, engine=one.engine)


def why_not(candidate: Candidate, kind: TaskKind, *, flags: frozenset[str] | None,
            installed: Collection[str], float16_lacks: str = "", xla: bool = True,
            small: bool = False) -> str:
    """Return why a candidate is not worth a try on this machine; empty when it is."""
    if candidate.engine is not None:
        package, extra, _ = ENGINES[candidate.engine.kind]
        if package not in installed:
            return f"{package} is not installed: pip install 'tf_infer[{extra}]'"
        if candidate.engine.precision == "float16" and float16_lacks:
            return float16_lacks
    plan = candidate.plan
    if plan is None:
        return ""
    if plan.compile == "xla" and not xla:
        return "a server would have to allow XLA, and --no-xla was given"
    if plan.storage is not None and not small:
        return "smaller and no faster: --objective size tries it"
    return _reason(plan, kind, flags)


def _reason(plan: OptimizationPlan, kind: TaskKind, flags: frozenset[str] | None) -> str:
    lacks = "this CPU has no arithmetic of"
    try:
        require_native(plan, flags)
    except ConfigError:
        return f"{lacks} {plan.precision}"
    try:
        require_native(plan, flags, floats=kind == "classifier")
    except ConfigError:
        return f"{lacks} {plan.kept_in}, which its floats are"
    return ""


def chosen_by(words: Sequence[str], candidates: Sequence[Candidate], left_out: Mapping[str, str]
              ) -> tuple[tuple[Candidate, ...], dict[str, str]]:
    """Return the reference and those candidates that are named, and of those left out the named.

    Args:
        words: names.
        candidates, left_out: as `sensible` gives them.

    Raises:
        ConfigError: a name is none of theirs, or all that are named were left out.
    """
    names = {candidate.name: candidate for candidate in candidates}
    for word in words:
        check(word in names or word in left_out, "--plans", f"some of {[*names, *left_out]}", word)
    without = {name: reason for name, reason in left_out.items() if name in words}
    check(len(without) < len(set(words)), "--plans", "a plan that can be tried on this machine",
          "; ".join(f"{name}: {reason}" for name, reason in without.items()))
    wanted = {REFERENCE, *words}
    return tuple(one for name, one in names.items() if name in wanted), without
