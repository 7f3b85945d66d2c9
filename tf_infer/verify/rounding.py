"""What 8 bits may do to a classifier: bounds by how far its logits lie apart, and what it decides.

A fixed bound of a logit says another thing of every model. Of 77 classes learned well, the best
logit is 20 above the worst, and rounding that leaves every answer as it was moves one of 15,400 by
1.3. So where the fixed bound is broken, four rules must hold instead, all of which forms with a
planted fault broke (layers exchanged, ranges cut to a half, a scale of attention's inputs wrong):
no logit off by WORST of the spread, USUAL of it in the root mean square, no label that was clear
changed, and few of the others.
"""

from __future__ import annotations

import numpy as np

from tf_infer.manifest import OutputDifference

# Shares of the spread. Measured with all-MiniLM-L6-v2 trained on banking77, 200 texts, in every
# int8 form: 0.02 to 0.075, 0.004 to 0.014, 0.033 at most.
WORST, USUAL, LEAD = 0.1, 0.02, 0.05
FLIPPED = 0.03  # of the labels may be others, where the lead was that small; measured: 0.01 to 0.02
ROOT_MEAN_SQUARE = "root mean square"


def spread(logits: np.ndarray) -> float:
    """Return how far the best and the worst class of a row [B, C] lie apart, in the mean.

    No more than half as far again as from the best to all but the last 5 % of them: a class far
    below all others, which nothing ever gets, says nothing of the others.
    """
    if not logits.size:
        return 0.0
    best = logits.max(axis=1)
    apart = np.minimum(best - logits.min(axis=1),
                       1.5 * (best - np.percentile(logits, 5, axis=1)))
    return float(apart.mean())


def judged(wanted: np.ndarray, found: np.ndarray, *, atol: float, signature: str, output: str,
           label: str) -> tuple[float, tuple[OutputDifference, ...]]:
    """Judge logits of a rounded form by the four rules.

    Args:
        wanted, found: [B, C], of the reference and of the form, finite; at least one row.
        atol: that a logit may be off in any case.
        signature, output, label: names for the report: of the logits, and of what they decide.

    Returns:
        bound: how far a logit may be off.
        differences: of the logits, of their root mean square, and of the labels.
    """
    apart = np.abs(found.astype(np.float64) - wanted)                        # [B, C]
    scale = spread(wanted)
    bound, usual = max(atol, WORST * scale), USUAL * scale
    square = float(np.sqrt(np.square(apart).mean()))
    ordered = np.sort(wanted, axis=1)
    lead = ordered[:, -1] - ordered[:, -2] if wanted.shape[1] > 1 else np.zeros(len(wanted))
    flipped = found.argmax(axis=1) != wanted.argmax(axis=1)
    clear = flipped & (lead > LEAD * scale)
    many = int(flipped.sum()) > max(1, int(FLIPPED * len(wanted)))

    def difference(name: str, worst: float, outside: np.ndarray, reason: str) -> OutputDifference:
        rows = np.flatnonzero(outside.reshape(len(outside), -1).any(axis=1))
        reason = "; ".join(filter(None, [
            f"first in row {rows[0]}" if len(rows) and len(outside) > 1 else "", reason]))
        return OutputDifference(
            signature=signature, output=name, dtype="float32", max_abs=worst,
            max_rel=worst / (1.0 + scale), mismatches=int(outside.sum()), elements=outside.size,
            first_sample=0 if len(rows) else None, reason=reason if len(rows) else "")

    return bound, (
        difference(output, float(apart.max()), apart > bound, ""),
        difference(f"{output}, {ROOT_MEAN_SQUARE}", square, np.array([square > usual]),
                   f"above {usual:.3g}, {USUAL:g} of the spread of a row"),
        difference(label, float(flipped.any()), flipped if many else clear,
                   f"{int(flipped.sum())} labels changed, {int(clear.sum())} of them clear ones"))
