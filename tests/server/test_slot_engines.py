"""Which form a version is served in, with how many slots, and what metrics show of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.server.serverkit import make_versions, running
from tests.server.slotkit import Heard, alone, same, until
from tf_infer.engines import litert
from tf_infer.errors import ConfigError, NotOffered, Overloaded, ServerUnavailable
from tf_infer.manifest import EXTRA_FOLDER, TensorSpec, engine_folder
from tf_infer.server import slot_engines
from tf_infer.server.app import Server
from tf_infer.server.config import DecodeConfig, ModelConfig, Monitoring
from tf_infer.server.contracts import LoadTimes
from tf_infer.server.fake_decoder import TOKENS, FakeDecoder, FakeStepEngine
from tf_infer.server.fakes import EchoServable
from tf_infer.server.forms import CHOOSE, EngineForm
from tf_infer.server.generation import GenerationRequest
from tf_infer.server.saved_form import SavedForm
from tf_infer.server.versions import ModelRef
from tf_infer.token_bytes import TOKENS_FILE


def load(path: Path) -> tuple[Any, LoadTimes]:
    return (FakeDecoder() if path.parent.name == "writer" else EchoServable()), LoadTimes()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    make_versions(tmp_path, "writer/1", "echo/1")
    (tmp_path / "writer" / "1" / EXTRA_FOLDER).mkdir()
    TOKENS.write(tmp_path / "writer" / "1" / EXTRA_FOLDER / TOKENS_FILE)
    models = tuple(ModelConfig(name=name, base_path=str(tmp_path / name))
                   for name in ("writer", "echo"))
    with running(models, load, monitoring=Monitoring(enabled=True),
                 decode=DecodeConfig(queue=2, chunk=4)) as (made, _):
        yield made


def ask(server: Server, prompt: bytes, **options: Any) -> Heard:
    lent = server.generators.of("writer", None, None)
    heard = Heard()
    try:
        lent.generator.submit(GenerationRequest(prompt=prompt, options=options), heard)
    finally:
        lent.give_back()
    return heard


def lines(server: Server, name: str) -> dict[str, float]:
    return {labels: float(value) for labels, value in (
        line.removeprefix(name).rsplit(" ", 1) for line in server.metrics.page().decode().split(
            "\n") if line.startswith(f"{name}{{"))}


def test_a_served_decoder_generates_and_is_counted(server: Server) -> None:
    assert server.generators.names() == ("writer",)
    long = b"abcdefghijklmnop" * 2 + b"abc"
    for prompt in (long, long + b"d"):
        same(ask(server, prompt, max_new_tokens=9, min_new_tokens=9).answer(),
             alone(prompt, max_new_tokens=9, min_new_tokens=9))
    with pytest.raises(NotOffered):
        ask(server, b"a", nonsense=1)
    version = 'model="writer",version="1"'
    assert lines(server, "tf_infer_generations_total") == {f'{{{version},reason="length"}}': 2}
    assert lines(server, "tf_infer_generated_tokens_total") == {f"{{{version}}}": 18}
    assert lines(server, "tf_infer_prompt_tokens_total") == {
        f'{{{version},source="read"}}': 36 + 37 - 32, f'{{{version},source="cached"}}': 32}
    assert lines(server, "tf_infer_first_token_seconds_count") == {f"{{{version}}}": 2}
    assert 2 <= lines(server, "tf_infer_token_seconds_count")[f"{{{version}}}"] <= 16
    assert lines(server, "tf_infer_decode_slots") == {f"{{{version}}}": 4}
    assert lines(server, "tf_infer_decode_slots_in_use") == {f"{{{version}}}": 0}
    assert lines(server, "tf_infer_decode_waiting") == {f"{{{version}}}": 0}
    assert lines(server, "tf_infer_prefix_cache_bytes")[f"{{{version}}}"] > 0


@pytest.mark.parametrize(("engine", "carries", "early"), [
    ("auto", True, True), ("auto", False, False), ("saved_model", True, False)])
def test_a_decoder_is_prepared_when_it_is_loaded_only_where_it_carries_an_engine(
        tmp_path: Path, engine: str, carries: bool, early: bool) -> None:
    make_versions(tmp_path, "writer/1")
    if carries:
        engine_folder(tmp_path / "writer" / "1", slot_engines.LITERT).mkdir(parents=True)
    models = (ModelConfig(name="writer", base_path=str(tmp_path / "writer")),)
    with running(models, load, decode=DecodeConfig(engine=engine)) as (server, _):
        assert [name for name, _, _ in server.generators.made()] == ["writer"] * early


def test_the_flags_bound_the_queue(server: Server) -> None:
    gate, lease = threading.Event(), server.versions.borrow(ModelRef("writer"))
    lease.servable._before = (  # type: ignore[attr-defined]
        lambda what: what in ("encode", "decode") or gate.wait(30))
    server.versions.give_back(lease)
    with pytest.raises(Overloaded, match=r"The queue is full: \d requests wait"):
        for _ in range(100):
            ask(server, b"a", min_new_tokens=40)
    gate.set()


def test_a_server_that_stops_tells_those_it_generates_for(server: Server) -> None:
    decoder = server.versions.borrow(ModelRef("writer"))
    server.versions.give_back(decoder)
    decoder.servable._before = lambda what: time.sleep(0.2)  # type: ignore[attr-defined]
    lent = server.generators.of("writer", None, None)
    heard = Heard()
    lent.generator.submit(GenerationRequest(
        prompt=b"a", options={"min_new_tokens": 48, "max_new_tokens": 48}), heard)
    heard.started()
    stopping = threading.Thread(target=server.generators.stop, args=(0.05,))
    stopping.start()
    assert isinstance(heard.failure(), ServerUnavailable)
    with pytest.raises(ServerUnavailable):
        server.generators.of("writer", None, None)
    lent.give_back()
    stopping.join(30)
    assert not stopping.is_alive()


def test_a_version_that_goes_ends_its_engine_first(server: Server, tmp_path: Path) -> None:
    same(ask(server, b"a", max_new_tokens=3).answer(), alone(b"a", max_new_tokens=3))
    lease = server.versions.borrow(ModelRef("writer"))
    decoder = lease.servable
    assert isinstance(decoder, FakeDecoder)
    server.versions.configure([ModelConfig(name="echo", base_path=str(tmp_path / "echo"))])
    assert not decoder.closed and server.generators.made()
    server.versions.give_back(lease)
    until(lambda: decoder.closed)
    assert not server.generators.made()
    assert not [thread for thread in threading.enumerate()
                if thread.name == "tf-infer-decode-writer"]


def test_slots_are_what_the_grid_the_flags_and_the_memory_leave(tmp_path: Path) -> None:
    decoder = FakeDecoder()
    manifest = decoder.manifest
    assert manifest is not None
    for settings, slots in (({}, 4), ({"slots": 3}, 3), ({"slots": 9}, 4), ({"cache_mb": 0}, 1)):
        form = slot_engines._form(DecodeConfig(**settings), decoder, manifest, tmp_path)
        assert isinstance(form, SavedForm) and form.slots == slots


def test_an_engine_is_taken_where_there_is_one_and_not_where_it_is_not_wanted(
        tmp_path: Path) -> None:
    decoder = FakeDecoder()
    assert decoder.manifest is not None
    arguments = (decoder, decoder.manifest, tmp_path)
    with pytest.raises(NotOffered, match="got one without"):
        slot_engines._form(DecodeConfig(engine="litert"), *arguments)
    (tmp_path / EXTRA_FOLDER / "engines" / "litert").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"engine\.json"):  # an empty folder is no engine
        slot_engines._form(DecodeConfig(engine="litert"), *arguments)
    form = slot_engines._form(DecodeConfig(engine="saved_model"), *arguments)
    assert isinstance(form, SavedForm) and not isinstance(form, EngineForm)


def test_an_engine_whose_version_cannot_be_served_with_it_is_freed(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, engine = FakeDecoder(), FakeStepEngine()
    assert decoder.manifest is not None
    strange = replace(decoder.manifest, signatures=tuple(
        replace(spec, inputs=(*spec.inputs, TensorSpec(name="new", dtype="int32", shape=(None,))))
        if spec.name == CHOOSE else spec for spec in decoder.manifest.signatures))
    engine_folder(tmp_path, slot_engines.LITERT).mkdir(parents=True)
    monkeypatch.setattr(litert, "load", lambda folder, **settings: engine)
    with pytest.raises(NotOffered, match=r"got \['new'\] without"):
        slot_engines._form(DecodeConfig(), decoder, strange, tmp_path)
    assert engine.closed


@pytest.mark.parametrize(("asked", "can", "told"), [(3, 2, 2), (1, 2, 1), (3, 0, 0), (0, 2, 0)])
def test_the_log_tells_how_many_guesses_an_engine_is_given(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
        asked: int, can: int, told: int) -> None:
    decoder = FakeDecoder()
    assert decoder.manifest is not None
    engine_folder(tmp_path, slot_engines.LITERT).mkdir(parents=True)
    monkeypatch.setattr(litert, "load", lambda folder, **settings: FakeStepEngine(guesses=can))
    with caplog.at_level(logging.INFO):
        slot_engines._form(DecodeConfig(guesses=asked), decoder, decoder.manifest, tmp_path)
    assert f"form=litert slots=4 guesses={told}" in caplog.text


@pytest.mark.parametrize(("wrong", "name"), [
    ({"slots": -1}, "decode_slots"), ({"queue": -1}, "decode_queue"),
    ({"chunk": 0}, "decode_chunk"), ({"engine": "fast"}, "decode_engine")])
def test_settings_that_cannot_be_are_named(wrong: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        DecodeConfig(**wrong)
