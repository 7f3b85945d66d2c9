"""OptimizationPlan: how a task is laid out for speed; read from a name or a JSON file, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tf_infer import config
from tf_infer.errors import ConfigError

Precision = Literal["float32", "bfloat16", "int8"]

# How far any log-probability may be from the reference's under the same tokens, and how far the
# mean of those of the given tokens may be (what perplexity is made of), in nats. bfloat16 keeps 8
# bits of mantissa, int8 7 bits of a row's largest weight; what was measured on trained weights
# stands in docs/optimisation.md. The first catches a wrong graph, the second a worse model.
ATOL: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 1.0, "int8": 2.5}
LOSS_ATOL: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.1}

# How far two ways to run the same form may be apart (graph, session, server): they may add float32
# numbers in another order, and where that decides a rounding, the rest of a row moves with it.
PATHS_ATOL: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.02, "int8": 0.05}

# What a CPU must have so that a precision is arithmetic of its own, by architecture: any of these
# flags of /proc/cpuinfo. Without them every product is emulated, slower than float32.
NATIVE: dict[Precision, frozenset[str]] = {
    "float32": frozenset(),
    "bfloat16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    "int8": frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp"}),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizationPlan:
    """The numeric form of a decoder, the same for every batch size (invariant 11).

    Attributes:
        precision: of the weights and of the products with them. Softmax, normalisations, cache and
            logits stay float32.
        compile: "xla" compiles the dense part; the server must then allow XLA.
        atol: how far any log-probability may be from the reference's, in nats; None takes that of
            the precision.
        loss_atol: how far the mean log-probability of given tokens may be; None as before.
    """

    precision: Precision = "float32"
    compile: Literal["none", "xla"] = "none"
    atol: float | None = None
    loss_atol: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("atol", self.atol), ("loss_atol", self.loss_atol)):
            config.check(value is None or (math.isfinite(value) and value > 0),
                         f"OptimizationPlan.{name}", "None or a number > 0", value)

    @property
    def bounds(self) -> tuple[float, float]:
        """Return `atol` and `loss_atol`, or those of the precision."""
        return (ATOL[self.precision] if self.atol is None else self.atol,
                LOSS_ATOL[self.precision] if self.loss_atol is None else self.loss_atol)


def read_plan(given: str) -> OptimizationPlan:
    """Return the plan of a precision's name ("bfloat16") or of a JSON file.

    Raises:
        ConfigError: neither, or the file breaks a rule.
    """
    for precision in NATIVE:
        if given == precision:
            return OptimizationPlan(precision=precision)
    config.check(given.endswith(".json"), "plan", f"one of {sorted(NATIVE)} or a .json file", given)
    plan: OptimizationPlan = config.load(OptimizationPlan, Path(given))
    return plan


def require_native(plan: OptimizationPlan, flags: frozenset[str] | None) -> None:
    """Refuse a plan that this CPU would only emulate.

    Args:
        plan: to be applied.
        flags: of the CPU, as `cpu_flags` gives them; None where they are not known, which refuses
            nothing.

    Raises:
        ConfigError: the CPU has no arithmetic of the plan's precision.
    """
    wanted = NATIVE[plan.precision]
    if flags is None or not wanted or wanted & flags:
        return
    raise ConfigError(
        f"plan: expected a precision that this CPU computes in, got {plan.precision!r}, which it "
        f"would emulate more slowly than float32 (it has none of {', '.join(sorted(wanted))}). "
        "Export on a machine like the one that serves, or with the plan float32.")


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """Return the features of the first CPU as Linux names them; None where it does not say."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, values = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(values.split())
    return None
