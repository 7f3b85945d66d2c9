"""OptimizationPlan: how a task is laid out for speed; read from a name or a JSON file, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tf_infer import config
from tf_infer.errors import ConfigError
from tf_infer.optimize.ranges import Ranges

Precision = Literal["float32", "bfloat16", "int8"]
Floats = Literal["float32", "bfloat16"]

# How far any log-probability may be from the reference's under the same tokens, and how far the
# mean of those of the given tokens may be (what perplexity is made of), in nats. bfloat16 keeps 8
# bits of mantissa, int8 7 bits of a row's largest weight; what was measured on trained weights
# stands in docs/optimisation.md. The first catches a wrong graph, the second a worse model.
ATOL: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 1.0, "int8": 2.5}
LOSS_ATOL: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.1}

# The same for classifiers: how far any logit may be apart, and how far the mean log-probability of
# the labels that the reference gives.
LOGITS_ATOL: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.3, "int8": 1.0}
LABELS_ATOL: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.02, "int8": 0.05}

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
    """The numeric form of a decoder or a classifier, the same for every batch size (invariant 11).

    Attributes:
        precision: of the weights and of the products with them. Softmax, normalisations, cache and
            logits stay float32.
        compile: "xla" compiles the dense part; the server must then allow XLA.
        atol: how far any log-probability of a decoder may be from the reference's, in nats, or any
            logit of a classifier; None takes that of the precision.
        loss_atol: how far the mean log-probability of given tokens, or labels, may be; None as
            before.
        floats: of a classifier: what attention computes in, and the layers in `keep`; None takes
            bfloat16 beside bfloat16 and int8, float32 beside float32 and XLA.
        keep: of a classifier: layers that stay in `floats`, as "layers[3].inner" or "words".
        activations: of a classifier in int8: "dynamic" finds the range of every row, "static" takes
            ranges that calibration texts have set.
        ranges: how static ranges are set: to the "largest" value, to a "percentile" of all, or by
            "entropy".
        percentile: of all values that `ranges` keeps, in percent.
        smoothing: of a classifier in int8: how much of a channel's size moves from what a product
            takes into its weights, 0 to 1, by calibration texts (SmoothQuant); None leaves it.
        sensitive: of a classifier in int8: so many more layers are kept, those that move the logits
            of the calibration texts most when they alone are quantised. `settle` names them.
        storage: of a classifier in float32: its weights lie in bfloat16 or int8 in the SavedModel,
            and are float32 from the load on; None leaves them. For smaller files, not for speed.
    """

    precision: Precision = "float32"
    compile: Literal["none", "xla"] = "none"
    atol: float | None = None
    loss_atol: float | None = None
    floats: Floats | None = None
    keep: tuple[str, ...] = ()
    activations: Literal["dynamic", "static"] = "dynamic"
    ranges: Ranges = "percentile"
    percentile: float = 99.99
    smoothing: float | None = None
    sensitive: int = 0
    storage: Literal["bfloat16", "int8"] | None = None

    def __post_init__(self) -> None:
        for name, value in (("atol", self.atol), ("loss_atol", self.loss_atol)):
            config.check(value is None or (math.isfinite(value) and value > 0),
                         f"OptimizationPlan.{name}", "None or a number > 0", value)
        config.check(not self.keep or self.kept_in != self.precision, "OptimizationPlan.keep",
                     f"no layer, since all of them are {self.precision}", self.keep)
        whole = self.precision == "int8"
        config.check(whole or self.activations == "dynamic", "OptimizationPlan.activations",
                     "'dynamic' without int8", self.activations)
        config.check(self.activations == "dynamic" or self.compile == "none",
                     "OptimizationPlan.activations", "'dynamic' with XLA", self.activations)
        config.check(self.storage is None or self.precision == "float32",
                     "OptimizationPlan.storage", "None but with float32: the weights of other "
                     "precisions are small already", self.storage)
        config.check(50.0 <= self.percentile <= 100.0, "OptimizationPlan.percentile", "50 to 100",
                     self.percentile)
        config.check(self.smoothing is None or (whole and 0.0 <= self.smoothing <= 1.0),
                     "OptimizationPlan.smoothing", "None, or with int8 a number from 0 to 1",
                     self.smoothing)
        config.check(self.sensitive == 0 or (whole and self.sensitive > 0),
                     "OptimizationPlan.sensitive", "0, or with int8 a number of layers",
                     self.sensitive)

    @property
    def needs_texts(self) -> bool:
        """Whether calibration texts decide about it."""
        return (self.activations == "static" or self.smoothing is not None or self.sensitive > 0)

    @property
    def bounds(self) -> tuple[float, float]:
        """Return `atol` and `loss_atol`, or those of the precision, of decoders."""
        return self._bounds(ATOL, LOSS_ATOL)

    @property
    def label_bounds(self) -> tuple[float, float]:
        """Return `atol` and `loss_atol`, or those of the precision, of classifiers."""
        return self._bounds(LOGITS_ATOL, LABELS_ATOL)

    def _bounds(self, atol: dict[Precision, float], loss_atol: dict[Precision, float]
                ) -> tuple[float, float]:
        rounded = self.storage or self.precision
        return (atol[rounded] if self.atol is None else self.atol,
                loss_atol[rounded] if self.loss_atol is None else self.loss_atol)

    @property
    def kept_in(self) -> Floats:
        """Return `floats`, or what None stands for."""
        if self.floats is not None:
            return self.floats
        plain = self.precision == "float32" or self.compile == "xla"
        return "float32" if plain else "bfloat16"


def read_plan(given: str) -> OptimizationPlan:
    """Return the plan of a precision's name ("bfloat16") or of a JSON file.

    Raises:
        ConfigError: neither, or the file breaks a rule.
    """
    for precision in NATIVE:
        if given == precision:
            return OptimizationPlan(precision=precision)
    config.check(given != "float16", "plan", "a precision of CPUs", given,
                 "GPUs compute it: --engine onnx --engine-precision float16 (docs/engines.md).")
    config.check(given.endswith(".json"), "plan", f"one of {sorted(NATIVE)} or a .json file", given)
    plan: OptimizationPlan = config.load(OptimizationPlan, Path(given))
    return plan


def require_native(plan: OptimizationPlan, flags: frozenset[str] | None, *,
                   floats: bool = False) -> None:
    """Refuse a plan that this CPU would only emulate.

    Args:
        plan: to be applied.
        flags: of the CPU, as `cpu_flags` gives them; None where they are not known, which refuses
            nothing.
        floats: whether the plan's `floats` are used, too.

    Raises:
        ConfigError: the CPU has no arithmetic of the plan's precision, or of its floats.
    """
    _require(plan.precision, flags, "plan", "with the plan float32")
    if floats:
        _require(plan.kept_in, flags, "plan.floats", 'with "floats": "float32" in the plan')


def _require(precision: Precision, flags: frozenset[str] | None, where: str, instead: str) -> None:
    wanted = NATIVE[precision]
    if flags is None or not wanted or wanted & flags:
        return
    raise ConfigError(
        f"{where}: expected a precision that this CPU computes in, got {precision!r}, which it "
        f"would emulate more slowly than float32 (it has none of {', '.join(sorted(wanted))}). "
        f"Export on a machine like the one that serves, or {instead}.")
