"""What a look at a SavedModel before it is served found: one Finding each, and the verdict"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LOAD = "load"


def of_signatures(*names: str) -> str:
    """Return the `where` of a finding about signatures."""
    return f"signature{'s' if len(names) > 1 else ''} {', '.join(sorted(names))}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        level: "stop" (it does not load, or cannot be called), "flag" (it runs with `flag`),
            "batching" (stops it only under --enable_batching), "note".
        where: "load" when the version as a whole is concerned, or signatures, or a file.
        what: what was found.
        fix: what to do, empty when `what` says it.
        flag: of the server, with its value.
    """

    level: Literal["stop", "flag", "batching", "note"]
    where: str
    what: str
    fix: str = ""
    flag: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings about one version on one release.

    Attributes:
        findings: what stops it first, notes last.
        batching: whether --enable_batching is going to be set.
    """

    findings: tuple[Finding, ...]
    batching: bool = False

    @property
    def stops(self) -> tuple[Finding, ...]:
        """What keeps it from running."""
        levels = ("stop", "batching") if self.batching else ("stop",)
        return tuple(one for one in self.findings if one.level in levels)

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags that the server needs, each once."""
        return tuple(dict.fromkeys(one.flag for one in self.findings if one.flag))
