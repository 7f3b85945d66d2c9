"""`tf-infer quickstart`: the whole road on a data set that ships with the project."""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer.cli.backend import collect_seldom, load_tensorflow, require_models
from tf_infer.cli.json_text import json_text
from tf_infer.cli.main import interrupt
from tf_infer.errors import ConfigError, ServerFailure

if TYPE_CHECKING:
    from tf_infer.client.client import Client
    from tf_infer.manifest import Report
    from tf_infer.tasks.base import Task

DATA = Path(__file__).resolve().parent.parent / "data" / "support"
INTENTS, WRITER = "support_intents", "support_replies"
QUESTIONS = ("Where is my parcel? It should have been here on Monday.",
             "I can't sign in, the password is wrong every time.",
             "The cup arrived in pieces.", "我想退货，钱什么时候到账？", "麻烦开一张公司发票")
ROWS, TOKENS = (1, 8, 32), (16, 32, 64)  # the grid of both models
# `tf-infer export` compares all; here each would take more seconds than it is worth to somebody who
# waits: XLA compiles, and the server of step 6 plays the golden samples before it answers.
SKIPPED = {"xla": "it would compile for long",
           "grpc": "the server below answers the samples before anybody else"}
SKIPPED_OF_WRITER = {**SKIPPED, "graph": "what is saved is this graph",
                     "session": "the server below runs one"}
PIECES = 900  # of the classifier; the decoder has three times as many
REPLY_TOKENS, MOST_TOKENS = 32, 40  # by default (the longest reply has 30), and at most
CHAT = "{{ messages[-1]['content'] }} =>"  # the decoder was trained on "intent: message => reply"
LEAST_ACCURACY = 0.75
CALLS = 50  # for the latencies
READY_S = 300.0  # a busy machine takes long to load; a server that has ended is seen at once
STOP_S = 15.0
EPILOG = """examples:
  tf-infer quickstart
  tf-infer quickstart --output /tmp/models --port 8500 --keep-serving
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.epilog = EPILOG
    parser.description = (
        "Trains an intent classifier and a small decoder of replies on customer-service messages "
        "(English and Chinese, in the package), verifies and exports both, serves them in a "
        "process of their own, asks through the thin client, and says what to type next. Needs no "
        "network, about three minutes and 3 GB on two cores.")
    parser.add_argument("--output", type=Path, default=Path("saved_models"), metavar="DIR",
                        help="where the models go (default saved_models)")
    parser.add_argument("--port", type=int, default=0, metavar="N",
                        help="port of the server (default: a free one)")
    parser.add_argument("--keep-serving", action="store_true",
                        help="go on serving at the end, until Ctrl-C")


def run(arguments: argparse.Namespace) -> int:
    """Run the road; return 0 only if every step worked."""
    require_models("quickstart")
    began = time.monotonic()
    _open_port(arguments.port)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)  # as Ctrl-C: the server must not outlive us
    _say("importing TensorFlow")
    load_tensorflow()
    collect_seldom()
    with tempfile.TemporaryDirectory(prefix="tf-infer-") as scratch:
        folders = [_export(task, arguments.output, name, texts)
                   for name, task, texts in _models(Path(scratch))]
    port = _open_port(arguments.port)
    _step(6, "serve both in a process of their own")
    with _server(arguments.output, port) as server:
        from tf_infer.client.client import Client

        with Client(f"localhost:{port}") as client:
            _wait(client, server)
            _step(7, "ask through the thin client")
            _ask(client)
            _stream(client)
            _check_runs(server)
            _say(f"\nall of it took {time.monotonic() - began:.0f} s")
            _say_next(arguments.output, folders, port)
            if arguments.keep_serving:
                _say(f"serving on localhost:{port} until Ctrl-C")
                server.wait()
                raise ServerFailure("the server ended by itself; see its log above.")
    return 0


# ---------------------------------------------------------------------------- train


def _models(scratch: Path) -> Iterator[tuple[str, Task, list[str]]]:
    """Train the two models, one after the other; yield name, task, texts for its golden samples."""
    from tf_infer.text.learning import learn_sentencepiece
    from tf_infer.train import data, loop

    _step(1, "read the messages")
    messages, unseen = (data.read(DATA / f"{name}.jsonl") for name in ("train", "test"))
    intents = data.class_names(messages)
    _say(f"  {len(messages)} to train on, {len(unseen)} to test with, {len(intents)} intents, "
         "English and Chinese")

    _step(2, f"train the classifier {INTENTS}")
    words = learn_sentencepiece([m.text for m in messages], scratch / "words", vocab_size=PIECES)
    classifier = _classifier(intents, words.parent)
    loop.fit(classifier, messages, _train_config(epochs=20, learning_rate=1e-2, average=0.99))
    accuracy = loop.evaluate(classifier, unseen)["accuracy"]
    _say(f"  accuracy on the {len(unseen)} test messages: {accuracy:.1%} "
         f"(guessing: {1 / len(intents):.1%})")
    _check_quality(accuracy)
    yield INTENTS, classifier, [m.text for m in messages]

    _step(4, f"train the decoder {WRITER}")
    dialogues = _dialogues()
    pieces = learn_sentencepiece([d.text for d in dialogues], scratch / "pieces",
                                 vocab_size=3 * PIECES)
    (pieces.parent / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    writer = _writer(pieces.parent)
    # Half of the usual rows in a step: more steps in fewer epochs.
    loop.fit(writer, dialogues, _train_config(epochs=15, learning_rate=3e-3, batch_rows=16))
    prompts = [f"{m.labels[0]}: {m.text} =>" for m in unseen]
    _say(f"  for example: {_reply(writer, prompts[0])!r}")
    yield WRITER, writer, prompts


def _classifier(intents: Sequence[str], tokenizer_dir: Path) -> Task:
    from tf_infer import config
    from tf_infer.tasks import build

    return build.build(config.ClassifierConfig(
        name=INTENTS, classes=tuple(intents), codec=config.SentencePieceConfig(),
        packing=config.PackingConfig(max_tokens=TOKENS[-1], start=False, end=False),
        network=config.EmbeddingBagConfig(ngrams=4, hash_buckets=20_000, dropout=0.5),
        grid=config.ShapeGrid(rows=ROWS, tokens=TOKENS)), tokenizer_dir=tokenizer_dir)


def _writer(tokenizer_dir: Path) -> Task:
    from tf_infer import config
    from tf_infer.tasks import build

    return build.build(config.CausalLMConfig(
        name=WRITER, codec=config.SentencePieceConfig(),
        packing=config.PackingConfig(max_tokens=TOKENS[-1], end=False, truncation="left"),
        network=config.SmallTransformerConfig(
            width=128, layers=2, heads=4, hidden=512, dropout=0.0,
            max_positions=TOKENS[-1] + MOST_TOKENS),
        grid=config.ShapeGrid(rows=ROWS, tokens=TOKENS), capacity=MOST_TOKENS,
        defaults=config.GenerationDefaults(max_new_tokens=REPLY_TOKENS)),
        tokenizer_dir=tokenizer_dir)


def _train_config(*, epochs: int, learning_rate: float, average: float | None = None,
                  batch_rows: int = 32) -> Any:
    from tf_infer import config

    return config.TrainConfig(epochs=epochs, learning_rate=learning_rate, label_smoothing=0.1,
                              average_decay=average, validation_fraction=0.0, patience=None,
                              batch_rows=batch_rows, block_tokens=TOKENS[-1] + MOST_TOKENS)


def _dialogues() -> list[Any]:
    """Put a fitting reply behind every message: same intent, same language."""
    from tf_infer.train.data import Example

    replies: dict[tuple[str, str], list[str]] = {}
    for row in _rows("replies"):
        replies.setdefault((row["label"], row["language"]), []).append(row["text"])
    draw = random.Random(0)
    return [Example(f"{row['label']}: {row['text']} => "
                    f"{draw.choice(replies[row['label'], row['language']])}")
            for row in _rows("train")]


def _rows(name: str) -> list[dict[str, str]]:
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _reply(writer: Task, prompt: str) -> str:
    import numpy as np

    from tf_infer.verify.predictors import EagerPredictor

    found = EagerPredictor(writer.signatures())(
        "serving_default", {"prompt": np.array([prompt.encode()], object)})
    text: str = found["text"][0].decode("utf-8", "replace").strip()
    return text


def _check_quality(accuracy: float) -> None:
    if accuracy < LEAST_ACCURACY:
        raise ServerFailure(f"the classifier reached {accuracy:.1%}, expected at least "
                            f"{LEAST_ACCURACY:.0%} (85 % is usual). Run the tests.")


# ---------------------------------------------------------------------------- export


def _export(task: Task, output: Path, name: str, texts: Sequence[str]) -> Path:
    """Verify the task, and write it as the next version of its model; say what was not compared."""
    from tf_infer.cli.proof import export_task

    _step(3 if name == INTENTS else 5, f"verify and export {name}")
    folder, report = export_task(
        task, output / name, name=name, max_rows=ROWS[1],
        skipped=SKIPPED if name == INTENTS else SKIPPED_OF_WRITER,
        texts=[text.encode() for text in texts], progress=_say_indented)
    for line in _compared(report):
        _say(f"  {line}")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    _say(f"  {folder}: {size / 1e6:.1f} MB")
    return folder


def _compared(report: Report) -> list[str]:
    """Return which paths gave the same answers, and a line for each that was left out."""
    proven = ", ".join(path.path for path in report.paths if path.passed)
    return [f"equal to the model run op by op: {proven}",
            *(f"not compared here: {path.path}; {path.skipped}"
              for path in report.paths if path.skipped)]


# ---------------------------------------------------------------------------- serve and ask


def _open_port(port: int) -> int:
    """Return `port`, or a free one for 0; it can be opened now.

    Raises:
        ConfigError: it is out of range, or another process has it: its answers would pass for ours.
    """
    if not 0 <= port < 65536:
        raise ConfigError(f"--port: expected 0 to 65535, got {port}.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ConfigError(f"--port: expected one that can be opened, got {port}: "
                              f"{error.strerror}. Leave it out to take a free one.") from error
        opened: int = probe.getsockname()[1]
        return opened


@contextmanager
def _server(output: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run `tf-infer serve` for the two models; end it whatever happens."""
    with tempfile.TemporaryDirectory(prefix="tf-infer-") as folder:
        models = Path(folder) / "models.config"
        models.write_text("model_config_list {\n" + "".join(
            f"  config {{ name: '{name}' base_path: {json_text(str((output / name).resolve()))} "
            "model_platform: 'tensorflow' }\n" for name in (INTENTS, WRITER)) + "}\n",
            encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "tf_infer", "serve", f"--port={port}",
             f"--model_config_file={models}", "--max_num_load_retries=0"],
            start_new_session=True)  # Ctrl-C is ours to pass on
        try:
            yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _check_runs(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is not None:
        raise ServerFailure(f"the server ended with code {server.returncode}; see above.")


def _wait(client: Client, server: subprocess.Popen[bytes]) -> None:
    """Wait until both models answer; notice at once when the server has ended."""
    from tf_infer.errors import ServingError

    end = time.monotonic() + READY_S
    for name in (INTENTS, WRITER):
        while True:
            _check_runs(server)
            try:
                client.wait_until_ready(name, timeout_s=1.0)
                break
            except ServingError:
                if time.monotonic() > end:
                    raise


def _ask(client: Client) -> None:
    """Ask both models, print answers and latencies."""
    for question in QUESTIONS:
        intent = client.classify(INTENTS, [question])[0]
        reply = client.generate(WRITER, [f"{intent.label}: {question} =>"])[0]
        _say(f"  {question}\n    {intent.label} ({intent.score:.2f}): {reply.text.strip()}")
    _latency("classify, one text", lambda: client.classify(INTENTS, QUESTIONS[:1]))
    _latency("classify, 32 texts", lambda: client.classify(INTENTS, QUESTIONS[:1] * 32))
    _latency("generate, one reply",
             lambda: client.generate(WRITER, [f"refund: {QUESTIONS[3]} =>"]), calls=CALLS // 5)


def _stream(client: Client) -> None:
    """Print a reply piece by piece, as it comes."""
    _say("  a reply as it is written:")
    print("    ", end="", flush=True)
    began, first_s, pieces = time.perf_counter(), 0.0, 0
    with client.stream(WRITER, f"delivery_status: {QUESTIONS[0]} =>") as stream:
        for piece in stream:
            first_s = first_s or time.perf_counter() - began
            pieces += bool(piece.text)
            print(piece.text, end="", flush=True)
    _say(f"\n  in {pieces} pieces, the first after {1000 * first_s:.0f} ms, the last after "
         f"{1000 * (time.perf_counter() - began):.0f} ms")


def _latency(what: str, call: Any, *, calls: int = CALLS) -> None:
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - began))
    times.sort()
    _say(f"  {what}: median {times[calls // 2]:.1f} ms, slowest {times[-1]:.1f} ms "
         f"of {calls} calls")


# ---------------------------------------------------------------------------- words


def _say(line: str) -> None:
    print(line, flush=True)


def _say_indented(line: str) -> None:
    _say(f"  {line}")


def _step(number: int, what: str) -> None:
    _say(f"\n[{number}/7] {what}")


def _say_next(output: Path, folders: Sequence[Path], port: int) -> None:
    _say(f"""
what to type next:
  tf-infer serve --saved_models={output} --port=8500 --rest_api_port=8501
  tf-infer predict {INTENTS} "where is my parcel?"
  tf-infer predict {WRITER} "refund: I want my money back =>"
  tf-infer inspect {folders[0]}
  tf-infer verify {folders[0]}

or from Python:
  from tf_infer import Client
  with Client("localhost:8500") as client:
      print(client.classify("{INTENTS}", ["where is my parcel?"]))
      with client.stream("{WRITER}", "refund: I want my money back =>") as stream:
          for piece in stream:
              print(piece.text, end="", flush=True)

or by OpenAI's API:
  curl -N localhost:8501/v1/completions -d '{{"model": "{WRITER}", "stream": true,
      "prompt": "refund: I want my money back =>"}}'""")
