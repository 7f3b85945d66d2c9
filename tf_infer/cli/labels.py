"""What proves a classifier's plan: logits, and labels whose lead is clear, on the same texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tf_infer.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from tf_infer.manifest import PathReport, Sample
    from tf_infer.optimize.plan import OptimizationPlan
    from tf_infer.tasks.base import Task


def prove_labels(reference: Task, task: Task, plan: OptimizationPlan, words: np.ndarray
                 ) -> PathReport:
    """Compare logits, the loss of the reference's labels, and labels, on the same texts.

    A label may be another one only where the reference's logits lie so close that both may move
    there within the bound.

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
    return replay(new, samples, Tolerance(atol=atol, rtol=0.0, outputs={LOSS: (loss_atol, 0.0)}),
                  path="plan")


def require_answers(sample: Sample, number: int) -> None:
    """Raise DataError where the model before its plan answers with NaN; names output and row."""
    from tf_infer.manifest import rows_with_nan

    for output, row in rows_with_nan(sample.outputs).items():
        raise DataError(f"plan: expected numbers from the model before its plan, got NaN in "
                        f"output {output!r} of sample {number}, row {row}. Train it again.")
