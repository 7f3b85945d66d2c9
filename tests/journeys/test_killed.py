"""One of two servers dies under load: a client that balances over both loses no call."""

from __future__ import annotations

import collections
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.server.serverkit import free_port, make_versions
from tf_infer.client import Client
from tf_infer.errors import ServingError

SERVER = """
import ctypes, sys
from tf_infer.server import app
from tf_infer.server.config import ModelConfig, ServerConfig
from tf_infer.server.contracts import LoadTimes
from tf_infer.server.fakes import EchoServable

class Fragile(EchoServable):
    def run(self, signature, inputs, **options):
        if b"crash" in inputs["text"]:
            ctypes.string_at(0)
        return super().run(signature, inputs, **options)

sys.exit(app.run(ServerConfig(models=(ModelConfig(name="m", base_path=sys.argv[1]),),
                              port=int(sys.argv[2])), load=lambda path: (Fragile(), LoadTimes())))
"""
CALLERS = 8


@contextmanager
def serving(base: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(base), str(port)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with Client(f"localhost:{port}") as client:
            client.wait_until_ready("m", timeout_s=60.0)
        yield f"localhost:{port}", process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "a model that crashes"])
def test_no_call_is_lost_when_one_of_two_servers_dies(tmp_path: Path, how: str) -> None:
    base = make_versions(tmp_path / "m", "1")
    outcomes: collections.Counter[str] = collections.Counter()
    stop = threading.Event()
    with (serving(base) as (first, dying), serving(base) as (second, _),
          Client([first, second], timeout_s=20.0) as client):
        def work(number: int) -> None:
            asked = 0
            while not stop.is_set():
                text = f"{number} {asked}".encode()
                answer = client.predict("m", {"text": np.array([text], object)})["text"]
                outcomes["right" if answer.tolist() == [text] else "wrong"] += 1
                asked += 1

        def counted(number: int) -> None:
            try:
                work(number)
            except Exception as error:
                outcomes[type(error).__name__] += 1

        threads = [threading.Thread(target=counted, args=(number,)) for number in range(CALLERS)]
        for thread in threads:
            thread.start()
        stop.wait(2.0)
        if how == "SIGKILL":
            dying.kill()
        else:
            with Client(first, timeout_s=5.0) as other, pytest.raises(ServingError):
                other.predict("m", {"text": np.array([b"crash"], object)})
        assert dying.wait(20) == (-signal.SIGKILL if how == "SIGKILL" else -signal.SIGSEGV)
        stop.wait(2.0)
        stop.set()
        for thread in threads:
            thread.join()
    assert set(outcomes) == {"right"}
    assert outcomes["right"] > 100
