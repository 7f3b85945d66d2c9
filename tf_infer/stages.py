"""The stages of a run, told by the names of a graph's operations: tokenize, model, decode.

Tasks and decoding loops put their operations below one of `SCOPES`; the name stays in the
SavedModel and in what the runtime says of a run, so a trace knows which stage took the time.
"""

from __future__ import annotations

import re
from typing import Final

PREPROCESS: Final = "preprocess"
CORE: Final = "core"
DECODING: Final = "decoding"
POSTPROCESS: Final = "postprocess"

STAGES: Final = ("tokenize", "model", "decode")
# name scope -> stage
SCOPES: Final = {PREPROCESS: "tokenize", CORE: "model", DECODING: "decode", POSTPROCESS: "decode"}

# A scope that is entered a second time gets a number, and in a prepared graph some get a point.
_SCOPE = re.compile(rf"(?:^|/)({'|'.join(SCOPES)})(?:_\d+)?\.?(?=/)")


def stage_of(operation: str) -> str | None:
    """Return the stage of an operation's full name, None where no scope tells it.

    The innermost scope counts: the choice of a token inside the core's loop is decoding.
    """
    found = _SCOPE.findall(operation)
    return SCOPES[found[-1]] if found else None
