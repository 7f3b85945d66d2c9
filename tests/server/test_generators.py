"""Generators: a version is lent while a request runs, and what runs at the end is told so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.serverkit import make_versions
from tf_infer import config as configs
from tf_infer.config import CausalLMConfig, ChatFormat, ShapeGrid
from tf_infer.errors import (
    InvalidRequest,
    ModelNotFound,
    NotOffered,
    ServerUnavailable,
    ServingError,
)
from tf_infer.manifest import CHAT_FILE, EXTRA_FOLDER, ModelManifest, SignatureSpec
from tf_infer.server.config import ModelConfig
from tf_infer.server.contracts import LoadTimes
from tf_infer.server.decide import State
from tf_infer.server.fakes import EchoServable, FakeGenerator
from tf_infer.server.generation import GenerationRequest, Generator, Piece
from tf_infer.server.generators import NEEDED, VersionGenerators
from tf_infer.server.versions import Lease, Versions


class Heard:
    """What a listener was told."""

    def __init__(self, done: Callable[[], None]) -> None:
        self.told: list[Piece | ServingError] = []
        self._done = done
        self.first, self.end = threading.Event(), threading.Event()

    def __call__(self, piece: Piece | ServingError) -> None:
        assert not self.end.is_set(), "told something behind the end"
        self.told.append(piece)
        self.first.set()
        if isinstance(piece, ServingError) or piece.finish_reason is not None:
            self._done()
            self.end.set()

    def text(self) -> bytes:
        assert self.end.wait(10)
        return b"".join(piece.text for piece in self.told if isinstance(piece, Piece))

    def error(self) -> ServingError:
        assert self.end.wait(10)
        assert isinstance(self.told[-1], ServingError)
        return self.told[-1]


def manifest(names: tuple[str, ...]) -> ModelManifest:
    signatures = tuple(SignatureSpec(name=name, inputs=(), outputs=()) for name in names)
    return ModelManifest(name="m", version=1, task=CausalLMConfig(), signatures=signatures,
                         grid=ShapeGrid())


class Stage:
    """A table of versions, and generators that are fakes."""

    def __init__(self, base: Path, *, prepare: bool = False) -> None:
        make_versions(base, "writer/1", "other/1")
        self.loaded: dict[str, EchoServable] = {}
        self.made: list[tuple[str, FakeGenerator]] = []
        self.pause_s = 0.0
        self.state_when_prepared: list[State] = []
        self.versions = Versions(self._load, max_load_retries=0, poll_s=0,
                                 loaded=self._prepare if prepare else None,
                                 unloading=lambda servable: self.generators.unload(servable))
        self.generators = VersionGenerators(self.versions, self._make)
        self.base = base
        self.configure("writer", "other")

    def configure(self, *names: str) -> None:
        self.versions.configure([ModelConfig(name=name, base_path=str(self.base / name))
                                 for name in names])

    def _load(self, path: Path) -> tuple[EchoServable, LoadTimes]:
        servable = self.loaded[path.parent.name] = EchoServable()
        servable.manifest = manifest(NEEDED if path.parent.name == "writer" else ("encode",))
        return servable, LoadTimes()

    def _prepare(self, lease: Lease) -> None:
        self.state_when_prepared.append(lease.entry.state)
        self.generators.prepare(lease)

    def _make(self, lease: Lease) -> Generator:
        self.made.append((lease.name, FakeGenerator(pause_s=self.pause_s)))
        return self.made[-1][1]

    def users(self) -> int:
        return self.versions._table["writer"][1].users


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.generators.stop(0.0)
    made.versions.stop()


def test_a_version_prepares_before_it_is_available_and_one_that_cannot_is_there_all_the_same(
        tmp_path: Path) -> None:
    stage = Stage(tmp_path, prepare=True)
    assert stage.state_when_prepared == [State.LOADING] * 2  # a decoder, and one that is none
    assert [(name, one.prepared) for name, one in stage.made] == [("writer", True)]
    assert asked(stage).text() == b" one two three"
    stage.generators.stop(0.0)
    stage.versions.stop()

    def broken(lease: Lease) -> None:
        raise ValueError("secret")

    other = Versions(lambda path: (EchoServable(), LoadTimes()), max_load_retries=0, poll_s=0,
                     loaded=broken)
    other.configure([ModelConfig(name="writer", base_path=str(tmp_path / "writer"))])
    assert other.serving()
    other.stop()


def asked(stage: Stage, prompt: bytes = b"one two three", **options: int) -> Heard:
    """Ask as a protocol does: lend, submit, give back behind the last piece."""
    lent = stage.generators.of("writer", None, None)
    heard = Heard(lent.give_back)
    lent.generator.submit(GenerationRequest(prompt=prompt, options=options), heard)
    return heard


def until(condition: Callable[[], bool]) -> None:
    event = threading.Event()
    for _ in range(1000):
        if condition():
            return
        event.wait(0.01)
    raise AssertionError("did not come to hold in 10 s")


def test_a_version_has_one_generator_and_is_lent_until_it_is_given_back(stage: Stage) -> None:
    stage.pause_s = 0.05
    heard = asked(stage)
    assert stage.users() == 1 and stage.generators.lent() == 1
    assert heard.text() == b" one two three"
    again = asked(stage, max_new_tokens=1)
    assert again.text() == b" one"
    assert again.told[-1].finish_reason == "length"  # type: ignore[union-attr]
    until(lambda: stage.users() == 0 and stage.generators.lent() == 0)
    assert [name for name, _ in stage.made] == ["writer"]
    lent = stage.generators.of("writer", 1, None)
    lent.give_back()
    lent.give_back()
    assert stage.users() == 0 and stage.generators.lent() == 0


def test_it_says_which_version_it_is_how_to_chat_and_which_models_generate(stage: Stage) -> None:
    folder = stage.base / "writer" / "1" / EXTRA_FOLDER
    folder.mkdir()
    chat = ChatFormat(template="{{ messages }}")
    configs.dump(chat, folder / CHAT_FILE)
    lent = stage.generators.of("writer", None, None)
    assert (lent.name, lent.version, lent.chat) == ("writer", 1, chat)
    lent.give_back()
    assert stage.generators.names() == ("writer",)
    with pytest.raises(NotOffered, match="model other version 1: expected a decoder"):
        stage.generators.of("other", None, None)
    with pytest.raises(ModelNotFound):
        stage.generators.of("nobody", None, None)
    with pytest.raises(InvalidRequest, match="label"):
        stage.generators.of("writer", None, "stable")
    assert stage.users() == 0 and stage.generators.lent() == 0


def test_who_counts_generators_does_not_wait_for_one_that_is_being_made(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    making, go_on = threading.Event(), threading.Event()

    def slow(lease: Lease) -> Generator:
        making.set()
        assert go_on.wait(10)
        return FakeGenerator()

    generators = VersionGenerators(stage.versions, slow)
    caller = threading.Thread(target=lambda: generators.of("writer", None, None).give_back())
    caller.start()
    assert making.wait(10)
    counted: list[int] = []
    counter = threading.Thread(target=lambda: counted.append(len(generators.made())))
    counter.start()
    counter.join(5)
    go_on.set()
    caller.join(10)
    counter.join(10)
    assert counted == [0]
    assert len(generators.made()) == 1
    generators.stop(0.0)
    stage.versions.stop()


def test_an_unload_waits_for_the_requests_of_its_version(stage: Stage) -> None:
    stage.pause_s = 0.05
    heard = asked(stage)
    servable = stage.loaded["writer"]
    stage.configure("other")
    assert stage.versions._table["writer"][1].state is State.UNLOADING
    assert not stage.made[0][1]._closed.is_set()
    assert heard.text() == b" one two three"
    until(lambda: servable.closed)
    assert stage.made[0][1]._closed.is_set(), "the generator ends before the version is closed"
    assert stage.generators.names() == ()
    with pytest.raises(ModelNotFound):
        asked(stage)
    assert stage.generators.lent() == 0


def test_the_end_of_a_server_waits_then_tells_those_that_still_run(stage: Stage) -> None:
    stage.pause_s = 0.05
    quick, slow = asked(stage, b"one"), asked(stage, b"x " * 500)
    assert slow.first.wait(10)
    assert not stage.generators.stop(0.2)
    assert quick.text() == b" one"
    assert isinstance(slow.error(), ServerUnavailable)
    with pytest.raises(ServerUnavailable):
        asked(stage)
    until(lambda: stage.generators.stop(0.0))
