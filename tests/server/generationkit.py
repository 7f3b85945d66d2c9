"""What the tests of generation share: a server whose models write scripts, and calls to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from tests.server.serverkit import free_port, make_versions
from tf_infer import config as configs
from tf_infer.config import CausalLMConfig, ChatFormat, ShapeGrid
from tf_infer.manifest import CHAT_FILE, EXTRA_FOLDER, ModelManifest, SignatureSpec
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig, ServerConfig
from tf_infer.server.contracts import LoadTimes
from tf_infer.server.fakes import EchoServable
from tf_infer.server.generators import NEEDED
from tf_infer.server.scripted import Writer
from tf_infer.wire import generation_pb2 as pb
from tf_infer.wire import methods

# "Zoë, 你好 🎉." in tokens that cut characters apart
SCRIPT = (b"Zo", b"\xc3", b"\xab, ", b"\xe4\xbd", b"\xa0\xe5", b"\xa5\xbd ", b"\xf0\x9f", b"\x8e",
          b"\x89", b".")
TEXT = "Zoë, 你好 🎉."


class Serving(NamedTuple):
    """A running server, the generator of its model "writer", and a channel to it."""

    server: Server
    writer: Writer
    channel: grpc.Channel
    rest_port: int

    def lent(self) -> int:
        """Return how many requests hold a version."""
        return self.server.generators.lent()

    def generate(self, timeout: float | None = 20, metadata: Any = (), **fields: Any) -> Any:
        """Return the call; iterate over it for its responses."""
        fields.setdefault("model", pb.ModelChoice(name="writer"))
        if isinstance(fields.get("prompt"), str):
            fields["prompt"] = fields["prompt"].encode()
        return self.channel.unary_stream(
            methods.GENERATE.path, pb.GenerateRequest.SerializeToString,
            pb.GenerateResponse.FromString)(
                pb.GenerateRequest(**fields), timeout=timeout, metadata=metadata)


def manifest(name: str, signatures: tuple[str, ...]) -> ModelManifest:
    return ModelManifest(name=name, version=7, task=CausalLMConfig(), grid=ShapeGrid(), signatures=(
        *(SignatureSpec(name=one, inputs=(), outputs=()) for one in signatures),))


def load(path: Path) -> tuple[EchoServable, LoadTimes]:
    """Load "echo" and "writer" of `serving`."""
    made = EchoServable()
    if path.parent.name == "writer":
        made.manifest = manifest("writer", NEEDED)
    return made, LoadTimes()


@contextmanager
def serving(tmp_path: Path, writer: Writer | None = None, *, rest: bool = False,
            chat: ChatFormat | None = None, **settings: Any) -> Iterator[Serving]:
    """Serve the models "echo", and "writer", version 7 and label "stable", which generates."""
    writer = writer or Writer(SCRIPT)
    make_versions(tmp_path, "echo/1", "writer/7")
    if chat is not None:
        (tmp_path / "writer" / "7" / EXTRA_FOLDER).mkdir()
        configs.dump(chat, tmp_path / "writer" / "7" / EXTRA_FOLDER / CHAT_FILE)
    models = (ModelConfig(name="echo", base_path=str(tmp_path / "echo")),
              ModelConfig(name="writer", base_path=str(tmp_path / "writer"), labels={"stable": 7}))
    rest_port = free_port() if rest else 0
    config = ServerConfig(models=models, **{
        "poll_s": 0, "port": free_port(), "host": "localhost", "rest_port": rest_port,
        "labels_for_unavailable": True, **settings})
    with (Server(config, load=load, generate=lambda lease: writer) as server,
          grpc.insecure_channel(server.addresses[0]) as channel):
        yield Serving(server, writer, channel, rest_port)


def until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Wait until something holds; return whether it came to."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def threads_named(prefix: str) -> int:
    return sum(one.name.startswith(prefix) for one in threading.enumerate())
