"""Options of generation as they travel: one value a request each, lists as one text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from tf_infer.errors import InvalidRequest

SEPARATOR = "\x1f"  # the unit separator of ASCII: in no text that somebody means
MAX_ITEMS = 1024  # of one list


def join(items: Iterable[str], *, where: str) -> str:
    """Return texts as one.

    Args:
        items: not empty, without `SEPARATOR`.
        where: the option's name, for the error.

    Raises:
        InvalidRequest: an item that cannot travel so, or too many of them.
    """
    listed = list(items)
    if len(listed) > MAX_ITEMS:
        raise InvalidRequest(f"{where}: expected at most {MAX_ITEMS} items, got {len(listed)}.")
    for place, item in enumerate(listed):
        if not item:
            raise InvalidRequest(f"{where}: expected texts of at least one character, got an empty "
                                 f"one as item {place}. Leave it out.")
        if SEPARATOR in item:
            raise InvalidRequest(f"{where}: expected texts without the character U+001F, got one "
                                 f"in item {place}.")
    return SEPARATOR.join(listed)


def join_ids(ids: Iterable[int], *, where: str) -> str:
    """Return token ids as one text; raises InvalidRequest for a negative one."""
    listed = list(ids)
    for place, number in enumerate(listed):
        if number < 0:
            raise InvalidRequest(f"{where}: expected ids >= 0, got {number} as item {place}.")
    return join(map(str, listed), where=where)


def join_bias(bias: Mapping[int, float], *, where: str) -> str:
    """Return what is added to the logits of ids as one text: "id:value", joined.

    Raises:
        InvalidRequest: a negative id, or a value that is not finite.
    """
    for number, value in bias.items():
        if number < 0 or not math.isfinite(value):
            raise InvalidRequest(f"{where}: expected ids >= 0 and finite values, "
                                 f"got {value!r} for id {number}.")
    return join((f"{number}:{value!r}" for number, value in sorted(bias.items())), where=where)
