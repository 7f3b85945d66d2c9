"""What a process is told to build: the seam between a search and whoever puts stages in a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tf_infer.tuning.candidates import Candidate


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOrder:
    """One candidate to be proven and exported.

    Attributes:
        model: directory of the task, or a configuration (.json) that new weights are drawn for.
        tokenizer: folder of the configuration's tokenizer; empty for that of the directory.
        candidate: the form.
        base_dir: where the version goes.
        name: of the model.
        texts: file of texts for golden samples.
        calibrate: file of texts for forms that are calibrated; empty for `texts`.
        whole: compare every path, as `tf-infer export` does; False compares what serves alone, for
            versions that are only measured.
        xla: whether XLA is among the paths of the whole.
        max_rows: largest batch of a golden sample; None takes that of the grid.
        search: how this form was chosen, for report.json; empty while it is not.
    """

    model: str
    tokenizer: str = ""
    candidate: Candidate
    base_dir: str
    name: str
    texts: str
    calibrate: str = ""
    whole: bool = False
    xla: bool = True
    max_rows: int | None = None
    search: Mapping[str, Any] = field(default_factory=dict)
