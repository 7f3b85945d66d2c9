"""The commands and snippets of README and of the pages on generation, run as they are written.

In a new folder with a new HOME, in the order of the pages, in processes of their own; only the
ports are others, and `tf-infer predict` is told them. README stands behind its own quickstart; the
pages ask a small decoder of noise called "writer".
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.journeys.writerkit import export_writer
from tests.server.serverkit import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
SERVE = "tf-infer serve --saved_models=saved_models --rest_api_port=8501"
# what needs other programs, ports that are open to all, or models that are not here
ELSEWHERE = ("docker ", "grpcurl ", SERVE, "tf-infer serve --backend=tensorflow_model_server")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Snippet(NamedTuple):
    """Something to run: "python", or one command of a shell."""

    language: str
    text: str


def section(page: str, heading: str = "") -> str:
    """Return a page, or what stands below one of its headings."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.split(f"\n{heading}\n")[1].split("\n## ")[0] if heading else text


def snippets(text: str) -> list[Snippet]:
    """Return fenced Python, and commands: fenced ones, and indented ones, one each."""
    found = []
    for match in re.finditer(r"^```(\w+)\n(.*?)^```|((?:^    [^\n]*\n)+)", text, re.M | re.S):
        if match[1] == "python":
            found.append(Snippet("python", match[2]))
        elif match[1] in ("sh", None):
            lines = match[2] or re.sub(r"^    ", "", match[3], flags=re.M)
            found += [Snippet("sh", command) for command in commands(lines)]
    return [one for one in found if not one.text.startswith(ELSEWHERE)]


def commands(lines: str) -> list[str]:
    """Cut lines into commands: one goes on where a quote is open or a backslash ends a line."""
    found, held = [], ""
    for line in lines.splitlines(keepends=True):
        held += line
        try:
            shlex.split(held, comments=True)
        except ValueError:
            continue
        if not held.endswith("\\\n"):
            found.append(held)
            held = ""
    assert not held
    return [command for command in found if command.strip()]


class Stranger:
    """Somebody with a folder and a HOME of his own, and a server."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.rest_port = folder, free_port(), free_port()
        (folder / "home").mkdir()
        kept = {name: value for name, value in os.environ.items()
                if name in ("LANG", "LD_LIBRARY_PATH", "TMPDIR")}
        self.environment = {
            **kept, "HOME": str(folder / "home"), "PYTHONPATH": str(ROOT),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin",
                                     "/usr/bin", "/bin"])}

    def run(self, snippet: Snippet, timeout_s: float = 300) -> str:
        """Run something to its good end; return what it said."""
        text = snippet.text.replace("8500", str(self.port)).replace("8501", str(self.rest_port))
        if text.startswith("tf-infer predict "):
            text = f"{text.rstrip()} --address localhost:{self.port}"
        command = [sys.executable, "-c"] if snippet.language == "python" else ["bash", "-c"]
        ran = subprocess.run([*command, text], cwd=self.folder, env=self.environment, text=True,
                             capture_output=True, timeout=timeout_s, check=False)
        assert ran.returncode == 0, f"{text}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
        assert "Traceback" not in ran.stderr
        return ran.stdout

    @contextmanager
    def serving(self) -> Iterator[Stranger]:
        """Run README's server for as long as this lasts."""
        command = f"exec {SERVE.replace('8501', str(self.rest_port))} --port={self.port}"
        with (self.folder / "server.log").open("w") as log:
            process = subprocess.Popen(["bash", "-c", command], cwd=self.folder,
                                       env=self.environment, stdout=log, stderr=log)
        try:
            ready = Snippet("sh", f"curl -sf localhost:{self.rest_port}/readyz")
            end = time.monotonic() + 400
            while True:
                assert process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
                try:
                    self.run(ready)
                    break
                except AssertionError:
                    assert time.monotonic() < end, "it did not become ready"
                    time.sleep(0.5)
            yield self
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def check(snippet: Snippet, said: str) -> None:
    """Hold what a snippet said against what such a snippet says."""
    assert said.strip()
    if not snippet.text.startswith("curl"):
        return
    events = [line.removeprefix("data: ") for line in said.splitlines() if line.startswith("data")]
    if '"stream": true' in snippet.text:
        assert events.pop() == "[DONE]" and len(events) > 1
    for answer in events or [said]:
        assert '"error"' not in answer, said
        if "readyz" not in snippet.text:
            json.loads(answer)


# ---------------------------------------------------------------------------- README

REQUESTS, GENERATION = section("README.md", "## First request"), section(
    "README.md", "## Text generation")


class Prepared(NamedTuple):
    """Somebody behind the quickstart, and what that said at its end."""

    stranger: Stranger
    next: str


@pytest.fixture(scope="module")
def behind_quickstart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    stranger = Stranger(tmp_path_factory.mktemp("stranger"))
    said = stranger.run(Snippet("sh", "tf-infer quickstart"), timeout_s=800)
    with stranger.serving():
        yield Prepared(stranger, said.split("what to type next:\n")[1])


def test_the_server_of_these_tests_is_the_readmes() -> None:
    assert f"\n    {SERVE}\n" in REQUESTS


@pytest.mark.parametrize("snippet", snippets(REQUESTS) + snippets(GENERATION),
                         ids=lambda snippet: snippet.text[:50])
def test_what_the_readme_says_about_requests_works(
        behind_quickstart: Prepared, snippet: Snippet) -> None:
    said = behind_quickstart.stranger.run(snippet)
    check(snippet, said)
    if "choice" in snippet.text:
        assert re.search(r"\b(refund|invoice)\b", said.splitlines()[-1])


def test_what_the_quickstart_says_to_type_next_works(behind_quickstart: Prepared) -> None:
    told = behind_quickstart.next
    served, rest = told.split("\nor from Python:\n")
    python, rest = rest.split("\nor by OpenAI's API:\n")
    curl = "".join(itertools.takewhile(lambda line: line.startswith("  "),
                                       rest.splitlines(keepends=True)))
    typed = [one.strip() + "\n" for one in served.splitlines() if one.strip()]
    assert typed[0].startswith("tf-infer serve --saved_models=") and len(typed) >= 5
    outdented = re.sub(r"^  ", "", python, flags=re.M)
    for snippet in (*(Snippet("sh", one) for one in typed[1:]), Snippet("python", outdented),
                    Snippet("sh", curl.strip())):
        check(snippet, behind_quickstart.stranger.run(snippet))


# ---------------------------------------------------------------------------- pages

STREAMING = section("docs/streaming.md")


@pytest.fixture(scope="module")
def beside_a_writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    stranger = Stranger(tmp_path_factory.mktemp("stranger"))
    (stranger.folder / "saved_models").mkdir()
    export_writer(stranger.folder / "saved_models")
    (stranger.folder / "saved_models" / "writer-tokenizer").rename(stranger.folder / "tokenizer")
    with stranger.serving():
        yield stranger


PREDICT = re.findall(r"`(tf-infer predict [^`]*)`", STREAMING)


@pytest.mark.parametrize("snippet", [
    *snippets(STREAMING), *snippets(section("docs/generation.md")),
    *(Snippet("sh", command) for command in PREDICT)], ids=lambda snippet: snippet.text[:50])
def test_what_the_pages_on_generation_show_works(
        beside_a_writer: Stranger, snippet: Snippet) -> None:
    check(snippet, beside_a_writer.run(snippet))


def test_what_grpcurl_is_told_to_send_is_a_request(beside_a_writer: Stranger) -> None:
    import grpc
    from google.protobuf import json_format

    from tf_infer.wire import generation_pb2 as pb
    from tf_infer.wire import methods

    body, path = re.search(r"grpcurl -plaintext -d '(.*?)'.*?\n +\S+ (\S+)", STREAMING,
                           re.S).groups()  # type: ignore[union-attr]
    request = json_format.Parse(body, pb.GenerateRequest())
    assert f"/{path}" == methods.GENERATE.path
    with grpc.insecure_channel(f"localhost:{beside_a_writer.port}") as channel:
        answers = list(channel.unary_stream(
            methods.GENERATE.path, pb.GenerateRequest.SerializeToString,
            pb.GenerateResponse.FromString)(request, timeout=60))
    assert request.prompt == b"Once" and answers[-1].new_tokens > 0
