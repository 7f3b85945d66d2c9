"""The JSON that commands print and write: of a number that is none, null, which JSON can hold"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: Any, **how: Any) -> str:
    """Return a value as JSON that any reader takes; Python's own would write NaN and Infinity.

    Args:
        value: of what `json.dumps` takes.
        how: as it takes it: `indent`, `ensure_ascii`, `default`.
    """
    return json.dumps(_finite(value), allow_nan=False, **how)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
