"""Which version to load, which to unload: pure decisions over names, numbers and states.

Statements VR01 to VR18 and CF06 to CF10 of TensorFlow Serving's observed behaviour. The loop that
acts on these decisions is `versions.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from enum import IntEnum
from typing import NamedTuple

from tf_infer.server.config import VersionPolicy
from tf_infer.wire.messages import MAX_VERSION

_VERSION_NAME = re.compile(r"[0-9]+")


class State(IntEnum):
    """Life of a version; the numbers are those of ModelVersionStatus."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


class Seen(NamedTuple):
    """What is known of one version.

    Attributes:
        state: where it stands.
        tried: it failed to load and has been aspired ever since; it gets no new try (VR12).
        failing: a first attempt to load it has failed; others may follow (FL31).
    """

    state: State
    tried: bool = False
    failing: bool = False


class Actions(NamedTuple):
    """What to do now for one model.

    Attributes:
        load: versions, highest first (VR14).
        unload: versions, lowest first.
        forgive: failed versions that are no longer aspired: adding them again gives a new try.
    """

    load: tuple[int, ...] = ()
    unload: tuple[int, ...] = ()
    forgive: tuple[int, ...] = ()


def versions_in(names: Iterable[str]) -> dict[int, str]:
    """Return version -> directory name of the names that are versions (VR01 to VR04, VR21).

    Of two names for one number the lexically last one counts. Numbers beyond int64 are ignored.
    """
    found: dict[int, str] = {}
    for name in sorted(names):
        if _VERSION_NAME.fullmatch(name) and int(name) <= MAX_VERSION:
            found[int(name)] = name
    return found


def aspired(policy: VersionPolicy, on_disk: Collection[int]) -> tuple[int, ...]:
    """Return the versions of those on disk that the policy wants, ascending."""
    ascending = sorted(on_disk)
    if policy.kind == "all":
        return tuple(ascending)
    if policy.kind == "specific":
        return tuple(version for version in ascending if version in policy.versions)
    return tuple(ascending[-max(1, policy.count):])


def plan(wanted: Collection[int], seen: Mapping[int, Seen]) -> Actions:
    """Return what to load and unload: availability first (VR06, VR13).

    A version that is no longer wanted stays until one that is wanted is available, or none is
    wanted at all.
    """
    busy = (State.START, State.LOADING, State.AVAILABLE, State.UNLOADING)
    load = [version for version in wanted if version not in seen
            or (seen[version].state not in busy and not seen[version].tried)]
    served = any(seen[version].state is State.AVAILABLE for version in wanted if version in seen)
    unwanted = [version for version in seen if version not in wanted]
    unload = [version for version in unwanted if seen[version].state is State.AVAILABLE
              and (served or not wanted)]
    forgive = [version for version in unwanted if seen[version].tried]
    return Actions(tuple(sorted(load, reverse=True)), tuple(sorted(unload)),
                   tuple(sorted(forgive)))


def start_outcome(wanted: Collection[int], seen: Mapping[int, Seen]) -> bool | None:
    """Return whether a model became available: True, False (all failed for good), None (not yet).

    This is what the start of the server and a reload wait for (FL27, FL30, CF22). One available
    version is enough, but all that are at their first attempt are waited for, so that who asks for
    one of several is answered from the beginning. Versions no longer wanted say nothing of it.
    """
    items = [seen.get(version, Seen(State.START)) for version in wanted]
    if any(item.state is State.AVAILABLE for item in items):
        first = any(item.state in (State.START, State.LOADING) and not item.failing
                    for item in items)
        return None if first else True
    if items and all(item.tried for item in items):
        return False
    return None
