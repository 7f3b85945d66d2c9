"""What proves a classifier's plan: logits, and labels whose lead is clear, on the same texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tf_infer.config import ClassifierConfig
from tf_infer.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from tf_infer.equality import Outputs
    from tf_infer.manifest import PathReport, Sample
    from tf_infer.optimize.plan import OptimizationPlan
    from tf_infer.tasks.base import Task


def prove_labels(reference: Task, task: Task, plan: OptimizationPlan, words: np.ndarray
                 ) -> PathReport:
    """Compare logits, the loss of the reference's labels, and labels, on the same texts.

    A label may be another one only where the reference's logits lie so close that both may move
    there within the bound. Where a plan rounds to 8 bits and names no bound of its own, logits
    beyond the fixed bound are judged by their spread (`verify.rounding`).

    Args:
        reference: a classifier as it was.
        task: in the form of the plan.
        plan: says how far logits may be apart.
        words: [B] texts; of pairs both.

    Raises:
        DataError: the reference answers with NaN.
    """
    from tf_infer.equality import Tolerance
    from tf_infer.manifest import Sample as Request
    from tf_infer.optimize.apply import LABEL, LOGITS, LOSS, under_given_labels
    from tf_infer.verify.parity import fill, replay
    from tf_infer.verify.predictors import EagerPredictor

    signatures = reference.signatures()
    texts = {one.name: words for one in signatures["serving_default"].spec.inputs}
    label = EagerPredictor(signatures)("serving_default", texts)[LABEL]
    old, new = (EagerPredictor(under_given_labels(one)) for one in (reference, task))
    samples = fill(old, [Request(LOGITS, {**texts, LABEL: label})])
    for number, sample in enumerate(samples):
        require_answers(sample, number)
    atol, loss_atol = plan.label_bounds
    said: dict[str, np.ndarray] = {}

    def heard(signature: str, inputs: Mapping[str, np.ndarray]) -> Outputs:
        said.update(new(signature, inputs))
        return said

    config = reference.config
    assert isinstance(config, ClassifierConfig)
    report = replay(heard, samples, Tolerance(
        atol=atol, rtol=0.0, outputs={LOSS: (loss_atol, 0.0)}, classes=config.classes), path="plan")
    # Where each label has a threshold of its own, the best one is not all that is decided.
    rounded = (plan.atol is None and "int8" in (plan.precision, plan.storage)
               and not config.multi_label)
    return _by_spread(report, samples[0], said, atol) if rounded else report


def _by_spread(report: PathReport, sample: Sample, said: Outputs, atol: float) -> PathReport:
    """Judge logits that are beyond the fixed bound by their spread, and labels with them."""
    import numpy as np

    from tf_infer.optimize.apply import LABEL, LOGITS
    from tf_infer.verify.rounding import judged

    faults = {one.output: one for one in report.differences}
    wanted, found = sample.outputs[LOGITS], said.get(LOGITS, np.zeros(0))
    if (report.passed or faults[LOGITS].first_sample is None or found.shape != wanted.shape
            or not np.isfinite([wanted, found]).all()):
        return report
    bound, judgement = judged(wanted, found, atol=atol, signature=LOGITS, output=LOGITS,
                              label=LABEL)
    others = [one for name, one in faults.items() if name not in (LOGITS, LABEL)]
    return replace(report, atol=bound, differences=(*judgement, *others))


def require_answers(sample: Sample, number: int) -> None:
    """Raise DataError where the model before its plan answers with NaN; names output and row."""
    from tf_infer.manifest import rows_with_nan

    for output, row in rows_with_nan(sample.outputs).items():
        raise DataError(f"plan: expected numbers from the model before its plan, got NaN in "
                        f"output {output!r} of sample {number}, row {row}. Train it again.")
