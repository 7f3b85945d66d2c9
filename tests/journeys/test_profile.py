"""A served model is profiled, and TensorBoard shows it: by our command, and by its own button.

Needs the extra `profile`, a Chromium on PATH, and no network: what is looked at is the trace viewer
(the tables beside it load Google's charts from the network; their data come from TensorBoard here).
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

pytest.importorskip("tensorflow")
pytest.importorskip("xprof", reason="needs the extra `profile`")
image = pytest.importorskip("PIL.Image")

from tests.server.serverkit import free_port  # noqa: E402
from tests.tasks import small  # noqa: E402
from tf_infer.client.client import Client  # noqa: E402
from tf_infer.export.saved_model import write_saved_model  # noqa: E402
from tf_infer.tasks.build import build  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which(
    "google-chrome")
PAGE = (1500, 1000)
VIEW = np.s_[220:950, 600:1400]  # where the trace viewer draws, right of its names

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600),
              pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on PATH")]


@contextmanager
def process(log: Path, *words: str, ready: str) -> Iterator[None]:
    """Run a command until the end of the block; begin when `ready` is in what it wrote."""
    with log.open("wb") as file:
        running = subprocess.Popen([sys.executable, "-m", *words], stdout=file,
                                   stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 180
        while ready not in log.read_text():
            assert running.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        running.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            running.wait(20)
        running.kill()
        running.wait()


class Board:
    """A TensorBoard over a log directory."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/data/plugin/profile"

    def get(self, route: str, **options: Any) -> Any:
        """Return what a route of the profile plugin answers."""
        with urllib.request.urlopen(f"{self.url}/{route}?{urlencode(options)}", timeout=120
                                    ) as answer:
            data = answer.read()
        return json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)

    def browse(self, *words: str, **options: Any) -> str:
        """Open the plugin's page in Chromium; return what it prints."""
        assert CHROMIUM is not None
        opened = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000",
             f"--window-size={PAGE[0]},{PAGE[1]}", *words,
             f"{self.url}/index.html?{urlencode(options)}"],
            capture_output=True, text=True, timeout=180)
        assert opened.returncode == 0, opened.stderr[-2000:]
        return opened.stdout


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    write_saved_model(build(small.CLASSIFIER, seed=7), folder / "small" / "1")
    port = free_port()
    with process(folder / "log", "tf_infer", "serve", f"--port={port}", "--host=127.0.0.1",
                 "--model_name=small", f"--model_base_path={folder}/small",
                 ready="answers gRPC at"):
        yield f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def board(logdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    port = free_port()
    with process(tmp_path_factory.mktemp("board") / "log", "tensorboard.main", "--logdir",
                 str(logdir), "--port", str(port), "--host", "127.0.0.1", ready=f":{port}/"):
        yield Board(port)


@contextmanager
def asking(address: str) -> Iterator[None]:
    """Ask the model on another thread."""
    ended = threading.Event()

    def ask() -> None:
        with Client(address, timeout_s=60) as client:
            while not ended.is_set():
                client.predict("small", {"text": ["where is my parcel?"] * 4})

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def operations(board: Board, run: str, host: str) -> dict[str, tuple[int, float]]:
    """Return what TensorBoard makes of a recording: operation -> (how often, own time in us)."""
    table = board.get("data", run=run, tag="framework_op_stats", host=host)[0]
    place = {column["id"]: index for index, column in enumerate(table["cols"])}
    rows = [[cell["v"] for cell in row["c"]] for row in table["rows"]]
    return {row[place["operation"]]: (int(row[place["occurrences"]]),
                                      row[place["total_self_time"]]) for row in rows}


def test_the_command_records_what_tensorboard_shows(
        address: str, logdir: Path, board: Board, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"where is parcel {number}?\n" for number in range(50)))
    told = subprocess.run(
        [sys.executable, "-m", "tf_infer", "profile", "--address", address, "--duration", "2",
         "--logdir", str(logdir), "--load", str(texts), "--model", "small", "--json", "--top",
         "1000"], capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    values = json.loads(told.stdout)

    assert values["load"]["answered"] > 20
    assert values["load"]["failed"] == {}
    assert values["call"]["total_ms"] < values["load"]["p99_ms"]
    assert values["run"]["network"] > values["run"]["tokenizer"] > 0
    assert values["stages"]["network"] > 0.5
    assert values["stages"]["other"] < 0.2
    names = " ".join(one["name"] for one in values["operations"])
    assert "/core/" in names

    trace = Path(values["trace"])
    run, host = trace.parent.name, trace.name.removesuffix(".xplane.pb")
    assert run in board.get("runs")
    assert "trace_viewer@" in board.get("run_tools", run=run)
    shown = operations(board, run, host)
    for one in values["operations"]:  # the same sums as TensorBoard's own
        count, self_us = shown[one["name"]]
        assert (one["count"], one["self_ms"] * 1000) == pytest.approx((count, self_us), abs=1.0)

    page = board.browse("--dump-dom", run=run, tag="trace_viewer@", host=host)
    assert {run, host, "Trace Viewer"} <= set(re.findall(
        rf"{run}|{re.escape(host)}|Trace Viewer", page))
    picture = tmp_path / "trace.png"
    board.browse("--enable-unsafe-swiftshader", f"--screenshot={picture}", run=run,
                 tag="trace_viewer@", host=host)
    assert coloured(picture) > 0.02  # events are bars in many colours, all else is grey


def coloured(picture: Path) -> float:
    """Return the share of the trace viewer's points that are neither white nor grey."""
    pixels = np.asarray(image.open(picture).convert("RGB")).astype(int)[VIEW]
    return float(((pixels.max(axis=2) - pixels.min(axis=2)) > 60).mean())


def test_li11_tensorboards_own_button_records_from_the_port(
        address: str, logdir: Path, board: Board) -> None:
    before = set(board.get("runs"))
    with asking(address):
        answer = board.get("capture_profile", service_addr=address, duration=500, num_retry=2,
                           is_tpu_name="false", worker_list="")
    assert "error" not in answer
    new = set(board.get("runs")) - before
    assert len(new) == 1
    run, = new
    host, = (one["hostname"] for one in board.get("hosts", run=run, tag="trace_viewer@"))
    assert any("/core/" in name for name in operations(board, run, host))
