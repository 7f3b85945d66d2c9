"""A search on disk: what it is of, what has been built, and every round that is done.

    search.json                 what is searched: a search goes on only where this is the same
    rounds.jsonl                one line a round, each forced to disk; a cut last line is left out
    candidates/<key>/built.json       the version directory below it, or why there is none
    candidates/<key>/judged.json      its answers against the reference's
    candidates/<key>/answers.npz      those answers, without any text
    candidates/<key>/log.txt          what its processes wrote
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tf_infer import config
from tf_infer.config import to_json
from tf_infer.errors import ConfigError
from tf_infer.manifest import hash_file
from tf_infer.tuning.candidates import Candidate
from tf_infer.tuning.trial import MetricKind, Times, Trial

SEARCH_FILE, ROUNDS_FILE, LOCK_FILE = "search.json", "rounds.jsonl", ".lock"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a search is of. Two searches in one folder are the same when these are.

    Attributes:
        model: digest of the model directory.
        texts: digest of the texts and labels.
        machine: CPU and packages, name -> what is there.
        seed: of the order in which texts and candidates take turns.
        metric: what is told of answers.
        batches: texts of a call, ascending.
        new_tokens: that a decoder is asked for.
        answered: texts that the metric is made of.
        candidates: the reference first.
    """

    model: str
    texts: str
    machine: Mapping[str, str]
    seed: int
    metric: MetricKind
    batches: tuple[int, ...]
    new_tokens: int
    answered: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A candidate's version directory in its folder, and its `Trial.size_bytes`; or why none."""

    version: str = ""
    size_bytes: int = 0
    failed: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """What `judge.judge` said of a candidate."""

    worst: float = 0.0
    metric: float = 0.0
    agreement: float | None = None
    failed: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One round.

    Attributes:
        number: from 0 on.
        seconds: it took, all told.
        calls: batch size -> calls of each candidate.
        times: candidate's key -> batch size -> what was found.
        failed: candidate's key -> why it is out from now on.
    """

    number: int
    seconds: float
    calls: Mapping[str, int]
    times: Mapping[str, Mapping[str, Times]]
    failed: Mapping[str, str] = field(default_factory=dict)


class Folder:
    """The folder of a search, held by one process.

    Args:
        path: made where it does not exist.

    Use as a context manager, which takes the lock.

    Raises:
        ConfigError: another search holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Folder:
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(self.path / LOCK_FILE, "ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(f"{self.path}: expected no other search in this folder, got one "
                                  "under way. Wait until it has ended, or name another --output."
                                  ) from error
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def begin(self, settings: Settings) -> bool:
        """Take up the search of these settings, or begin it; return whether there was one.

        Raises:
            ConfigError: the folder holds another search; names what differs.
        """
        path = self.path / SEARCH_FILE
        if path.is_file():
            found: Settings = config.load(Settings, path)
            differ = difference(found, settings)
            if differ:
                raise ConfigError(f"{self.path}: expected a search of the same {', '.join(differ)},"
                                  " got another one. Name another --output, or remove it.")
            return True
        config.dump_whole(settings, path)
        return False

    def of(self, candidate: Candidate) -> Path:
        """Return the folder of a candidate, which is made."""
        path = self.path / "candidates" / candidate.key
        path.mkdir(parents=True, exist_ok=True)
        return path

    def known(self, candidate: Candidate, kind: type[T]) -> T | None:
        """Return what was written of a candidate (`Built`, `Answered`); None for nothing yet."""
        path = self.of(candidate) / _FILES[kind]
        found: T | None = config.load(kind, path) if path.is_file() else None
        return found

    def learn(self, candidate: Candidate, what: Built | Answered) -> None:
        """Write it."""
        config.dump_whole(what, self.of(candidate) / _FILES[type(what)])

    def rounds(self) -> list[Round]:
        """Return every round that is whole on disk."""
        try:
            data = (self.path / ROUNDS_FILE).read_bytes()
        except FileNotFoundError:
            return []
        whole = data[:data.rfind(b"\n") + 1].decode("utf-8")
        return [config.from_json(Round, json.loads(line), where=f"{ROUNDS_FILE} line {number}")
                for number, line in enumerate(whole.splitlines(), start=1)]

    def add(self, done: Round) -> None:
        """Append a round, and force it to disk; what a kill has cut goes first."""
        path = self.path / ROUNDS_FILE
        with open(path, "ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(to_json(done)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


_FILES: dict[type, str] = {Built: "built.json", Answered: "judged.json"}


def difference(found: Settings, wanted: Settings) -> list[str]:
    """Return in words what two searches do not have in common."""
    ours, theirs = to_json(wanted), to_json(found)
    return [name if name != "machine" else "machine ({})".format(", ".join(sorted(
        key for key in {**ours[name], **theirs[name]}
        if ours[name].get(key) != theirs[name].get(key))))
        for name in ours if ours[name] != theirs[name]]


def trials(settings: Settings, folder: Folder) -> list[Trial]:
    """Return all that is known of every candidate, in their order."""
    rounds = folder.rounds()
    found = []
    for candidate in settings.candidates:
        built = folder.known(candidate, Built)
        answered = folder.known(candidate, Answered)
        reasons = [built.failed if built else "", answered.failed if answered else "",
                   *(one.failed.get(candidate.key, "") for one in rounds)]
        told = answered if answered and not answered.failed else None
        found.append(Trial(
            candidate=candidate, failed=next(filter(None, reasons), ""),
            size_bytes=built.size_bytes if built and not built.failed else None,
            worst=told.worst if told else None, metric=told.metric if told else None,
            agreement=told.agreement if told else None,
            rounds={batch: tuple(one.times[candidate.key][str(batch)] for one in rounds
                                 if candidate.key in one.times)
                    for batch in settings.batches}))
    return found


def digest_folder(path: Path) -> str:
    """Return a digest of every file of a folder, or of one file."""
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    found = hashlib.sha256()
    for one in files:
        found.update(f"{one.relative_to(path).as_posix()} {hash_file(one)}\n".encode())
    return found.hexdigest()


def digest_texts(rows: Sequence[tuple[str, ...]]) -> str:
    """Return a digest of rows of strings."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@contextlib.contextmanager
def open_folder(path: Path, settings: Settings) -> Iterator[tuple[Folder, bool]]:
    """Hold the folder of a search; give it, and whether a search in it goes on."""
    with Folder(path) as folder:
        yield folder, folder.begin(settings)
