"""What `verify`, `export` and `quickstart` share: golden samples of a task, and what proves it.

Stages do not import each other; here they are put in a row. `export_task` is the whole row.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer.config import load as load_config
from tf_infer.errors import DataError, TfInferError

if TYPE_CHECKING:
    from tf_infer.cli.engine import EncoderChoice
    from tf_infer.equality import Tolerance
    from tf_infer.manifest import EngineKind, PathReport, Report, Sample
    from tf_infer.optimize.litert import EngineSettings
    from tf_infer.optimize.plan import OptimizationPlan
    from tf_infer.server.config import ClassifierEngine
    from tf_infer.tasks.base import Task
    from tf_infer.verify.predictors import Outputs, Predictor

MAX_TEXTS = 2_000  # to choose golden samples from; more only cost time
# What proves a plan: ids of each row, of these read by prefill, rows, and texts to take them from.
PLAN_TOKENS, PLAN_PROMPT, PLAN_ROWS, PLAN_TEXTS = 24, 12, 8, 200


def read_texts(path: Path) -> tuple[bytes, ...]:
    """Read the texts of a file of examples (`train.data.read`); of .txt each line is one.

    Raises:
        DataError: the file cannot be read, a row has no text, or there is none; names the line.
    """
    from tf_infer.train import data

    texts = [data.to_bytes(example.text) for example in data.read(path)]
    if Path(path).name.endswith((".txt", ".txt.gz")):
        texts = [line for text in texts for line in text.splitlines()]
    found = tuple(text for text in texts if text.strip())[:MAX_TEXTS]
    if not found:
        raise DataError(f"{path}: expected at least one text, got none.")
    return found


def make_golden(task: Task, texts: Sequence[bytes] = (), *, max_rows: int | None = None
                ) -> tuple[Sample, ...]:
    """Make golden samples of a task: texts of every length and class, with the eager outputs.

    Args:
        task: the reference.
        texts: to choose from; texts of every length of the grid are added.
        max_rows: leave out larger row buckets of the grid; None takes all.
    """
    from tf_infer.export.warmup import texts_of_lengths, token_counter
    from tf_infer.verify.golden import choose, make_requests
    from tf_infer.verify.parity import fill
    from tf_infer.verify.predictors import EagerPredictor
    from tf_infer.wire.examples import to_example

    signatures = task.signatures()
    reference, count = EagerPredictor(signatures), token_counter(signatures)
    cut = texts_of_lengths(count, sample_text(texts), task.config.grid.tokens)
    texts = (*texts[:MAX_TEXTS], *cut)
    batches = choose(texts, count(texts), task.config.grid, max_rows=max_rows,
                     classes=predicted_classes(reference, task, texts))
    specs = [signature.spec for signature in signatures.values()]
    requests = make_requests(specs, batches, encode=reference, example=lambda features: bytes(
        to_example(features).SerializeToString()))
    return fill(reference, requests)


def sample_text(texts: Sequence[bytes]) -> str:
    """Return some hundred characters of the given texts, for cutting to lengths."""
    return " ".join(text.decode("utf-8", "replace") for text in texts[:50])


def predicted_classes(reference: Predictor, task: Task, texts: Sequence[bytes]
                      ) -> list[str] | None:
    """Return the label of each text, None for a task without labels.

    Texts of like length are asked together: the network is run op by op, padding is what it costs.
    """
    import numpy as np

    spec = task.signatures()["serving_default"].spec
    if all(output.name != "label" for output in spec.outputs):
        return None
    labels = [""] * len(texts)
    rows = task.config.grid.rows[-1]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding in each batch
    for start in range(0, len(texts), rows):
        places = order[start:start + rows]
        batch = np.empty(len(places), dtype=object)
        batch[:] = [texts[place] for place in places]
        outputs = reference("serving_default", {one.name: batch for one in spec.inputs})
        for place, label in zip(places, outputs["label"]):
            labels[place] = label.decode()
    return labels


def alone(version_dir: Path, folder: Path) -> Path:
    """Return a folder of versions, made in `folder`, that leads to this one alone.

    It keeps its number; a folder without one becomes version 1.
    """
    name = version_dir.resolve().name
    base = folder / "model"
    base.mkdir()
    (base / (name if name.isdecimal() else "1")).symlink_to(version_dir.resolve())
    return base


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


class ServedPredictor:
    """A version directory behind our own server, in this process, asked over gRPC.

    Loading it there also runs its warm-up records and replays its golden samples.

    Attributes:
        address: of the server.
        rest_address: where it answers HTTP, empty for nowhere.

    Args:
        version_dir: the version.
        model: its name.
        rest: answer HTTP, too.
        engine: what computes a classifier's network, as `ServerConfig.classifier_engine`.
    """

    def __init__(self, version_dir: Path, model: str, *, rest: bool = False,
                 engine: ClassifierEngine = "auto") -> None:
        from tf_infer.server.app import Server
        from tf_infer.server.config import ModelConfig, ServerConfig
        from tf_infer.verify.predictors import GrpcPredictor

        self._folder = tempfile.TemporaryDirectory(prefix="tf-infer-")
        base_path = alone(version_dir, Path(self._folder.name))
        socket_path = str(Path(self._folder.name) / "grpc")
        self.address = f"unix:{socket_path}"
        rest_port = _free_port() if rest else 0
        self.rest_address = f"localhost:{rest_port}" if rest else ""
        self._server = Server(ServerConfig(
            models=(ModelConfig(name=model, base_path=str(base_path)),), port=0, poll_s=0.0,
            socket_path=socket_path, max_load_retries=0, threads=2, load_threads=1,
            host="localhost", rest_port=rest_port, classifier_engine=engine))
        try:
            self._server.start()
            self._grpc = GrpcPredictor(self.address, model)
        except BaseException:
            self._stop()
            raise

    def __call__(self, signature: str, inputs: Any) -> Outputs:
        """Return the outputs of `signature` by name."""
        return self._grpc(signature, inputs)

    def close(self) -> None:
        """Stop the server."""
        self._grpc.close()
        self._stop()

    def _stop(self) -> None:
        self._server.stop(0.0)
        self._folder.cleanup()


def prove_plan(reference: Task, task: Task, plan: OptimizationPlan, texts: Sequence[bytes]
               ) -> PathReport:
    """Compare a task in the form of a plan with the one it was made of.

    A decoder under the same tokens, a classifier on the same texts.

    Args:
        reference: as it was.
        task: in the form of the plan.
        plan: says how far log-probabilities, or logits, may be apart.
        texts: whose ids are given, or that are asked; may be empty.

    Raises:
        DataError: the reference answers with NaN.
    """
    import numpy as np

    from tf_infer.equality import Tolerance as Bounds
    from tf_infer.export.warmup import texts_of_lengths, token_counter
    from tf_infer.manifest import Sample as Request
    from tf_infer.optimize.apply import LOG_PROBS, LOSS, under_given_tokens
    from tf_infer.verify.parity import compare
    from tf_infer.verify.predictors import EagerPredictor

    signatures = reference.signatures()
    cut = texts_of_lengths(token_counter(signatures), sample_text(texts),
                           reference.config.grid.tokens)
    words = np.array([*cut, *texts][:PLAN_TEXTS], dtype=object)
    if reference.config.kind == "classifier":
        from tf_infer.cli.labels import prove_labels

        return prove_labels(reference, task, plan, words)
    encoded = EagerPredictor(signatures)("encode", {"text": words})
    counts = encoded["mask"].sum(axis=1)
    width = min(PLAN_TOKENS, int(counts.max()))
    ids = encoded["ids"][counts >= width][:PLAN_ROWS, :width]
    old, new = (EagerPredictor(under_given_tokens(one, prompt_tokens=min(PLAN_PROMPT, width // 2)))
                for one in (reference, task))
    atol, loss_atol = plan.bounds
    bounds = Bounds(atol=atol, rtol=0.0, outputs={LOSS: (loss_atol, 0.0)})
    return compare(old, new, [Request(LOG_PROBS, {"ids": ids})], bounds, path="plan")


def export_task(task: Task, base_dir: Path, *, name: str, texts: Sequence[bytes] = (),
                plan: OptimizationPlan | None = None, calibration: Sequence[bytes] = (),
                engine: EngineSettings | EncoderChoice | None = None,
                tolerance: Tolerance | None = None, xla: bool = True, server: bool = True,
                skipped: Mapping[str, str] | None = None,
                version: int | None = None, max_rows: int | None = None,
                search: Mapping[str, Any] | None = None,
                progress: Callable[[str], None] = lambda line: None) -> tuple[Path, Report]:
    """Prove a task on every path and write it as a version of its model, or write nothing.

    Args:
        task: what to export; run op by op it is the reference.
        base_dir: of the model; the version becomes `base_dir/<version>`.
        name: of the model.
        texts: to choose golden samples and warm-up requests from; may be empty.
        plan: the form to export it in; it is proven against the task as it is, and the golden
            samples are what that form gives op by op.
        calibration: texts that set what the plan or the engine leaves to them; empty takes
            `texts`.
        engine: to be written beside the SavedModel; None for none. That of a decoder is proven
            against the task as it is, before its plan, that of a classifier on golden samples.
        tolerance: what counts as equal; None takes the default of `verify.parity`, or that of the
            plan's precision.
        xla, server: whether the paths "xla" and "grpc" are compared too; they take longest.
        skipped: other paths that are not compared, and why.
        version: number; None takes the next.
        max_rows: largest batch of a golden sample; None takes that of the grid.
        search: how this form was chosen, for report.json; None where it was not.
        progress: is told what happens next.

    Returns:
        folder: the version directory.
        report: of all paths; it passed.

    Raises:
        VerificationError: a path differs; carries the report.
        ExportError: see `export.saved_model.save`.
    """
    from tf_infer.cli.engine import EncoderChoice
    from tf_infer.config import to_json
    from tf_infer.equality import Tolerance as Bounds
    from tf_infer.export.saved_model import save
    from tf_infer.manifest import Report
    from tf_infer.verify.parity import not_compared, require

    proven: PathReport | None = None
    reference = task
    if plan is not None:
        from tf_infer.optimize.apply import apply, settle
        from tf_infer.optimize.plan import PATHS_ATOL

        progress(f"laying the weights out as {plan.precision}")
        plan = settle(task, plan, calibration or texts)
        task = apply(task, plan, calibration or texts)
        proven = prove_plan(reference, task, plan, texts)
        if not proven.passed:
            require(Report(reference="the model before its plan", paths=(), plan=proven))
        tolerance = tolerance or Bounds(atol=PATHS_ATOL[plan.precision])
    progress("running golden samples op by op")
    golden = make_golden(task, texts, max_rows=max_rows)
    check = export_check(task, name, golden, tolerance or Bounds(), xla=xla, server=server,
                         left_out=skipped, plan=proven, progress=progress)
    reports: list[Report] = []
    engines: list[PathReport] = []

    def extras(extra: Path) -> None:
        if engine is not None:
            from tf_infer.cli.engine import write_encoder_engine, write_engine

            engines.append(
                write_encoder_engine(reference, extra, engine, golden, calibration or texts,
                                     progress=progress)
                if isinstance(engine, EncoderChoice)
                else write_engine(reference, extra, engine, texts, progress))

    def recorded(folder: Path) -> Report:
        report = check(folder)
        if isinstance(engine, EncoderChoice) and server:
            kind, lacking = engine.kind.kind, engine.kind.lacking(engine.settings)
            progress(f"comparing grpc with {kind}")
            engines.append(not_compared(f"grpc_{kind}", lacking) if lacking else
                           served_engine(folder, name, kind, golden))
            require(Report(reference="eager", paths=tuple(engines)))
        reports.append(replace(report, paths=(*report.paths, *engines), search=search or {}))
        return reports[0]

    folder = save(task, base_dir, name=name, check=recorded, golden=golden, version=version,
                  warmup_text=sample_text(texts), plan=to_json(plan) if plan else None,
                  extras=extras, progress=progress)
    return folder, reports[0]


def served_engine(version_dir: Path, name: str, kind: EngineKind, golden: Sequence[Sample]
                  ) -> PathReport:
    """Compare a version that an engine computes, behind our server, with its golden samples.

    What the engine does not compute is held to what every path is held to.
    """
    from tf_infer.config import ClassifierConfig
    from tf_infer.equality import Tolerance as Bounds
    from tf_infer.manifest import (
        ENGINE_FILE,
        EncoderEngineManifest,
        engine_folder,
        read_manifest,
    )
    from tf_infer.server.encoder_engines import within
    from tf_infer.verify.parity import failed, replay

    described = load_config(EncoderEngineManifest,
                            engine_folder(version_dir, kind) / ENGINE_FILE)
    task = read_manifest(version_dir).task
    assert isinstance(task, ClassifierConfig)
    allowed = within(described.atol, task.temperature, Bounds())
    try:
        served = ServedPredictor(version_dir, name, engine=kind)
    except TfInferError as error:
        return failed(f"grpc_{kind}", error)
    try:
        return replay(served, golden, allowed, path=f"grpc_{kind}")
    finally:
        served.close()


def export_check(task: Task, name: str, golden: Sequence[Sample], tolerance: Tolerance, *,
                 xla: bool = True, server: bool = True,
                 left_out: Mapping[str, str] | None = None, plan: PathReport | None = None,
                 progress: Callable[[str], None]) -> Callable[[Path], Report]:
    """Return the check that an export has to pass: every path gives what eager gives.

    Args:
        task: the reference, whose outputs the golden samples carry.
        name: of the model.
        golden: samples with outputs.
        tolerance: what counts as equal.
        xla, server: whether the paths "xla" and "grpc" are compared too; they take longest.
        left_out: other paths that are not compared, and why.
        plan: how the task compares with what its plan was applied to.
        progress: is told which path is next.
    """
    from tf_infer.verify.parity import verify
    from tf_infer.verify.predictors import (
        GraphPredictor,
        SavedModelPredictor,
        SessionPredictor,
    )

    def check(folder: Path) -> Report:
        openers: dict[str, Callable[[], Predictor]] = {
            "graph": lambda: GraphPredictor(task.signatures()),
            "xla": lambda: GraphPredictor(task.recompiled("xla").signatures()),
            "saved_model": lambda: SavedModelPredictor(folder),
            "session": lambda: SessionPredictor(folder),
            "grpc": lambda: ServedPredictor(folder, name, engine="saved_model")}
        skipped = {path: "not asked for" for path, wanted in (("xla", xla), ("grpc", server))
                   if not wanted} | dict(left_out or {})
        if plan is not None and task.compiled == "none":
            skipped["xla"] = "the plan's operations are not XLA's"
        return verify({path: _told(path, opener, progress) for path, opener in openers.items()
                       if path not in skipped}, golden, tolerance, skipped=skipped, plan=plan)

    return check


def _told(path: str, opener: Callable[[], Predictor], progress: Callable[[str], None]
          ) -> Callable[[], Predictor]:
    def told() -> Predictor:
        progress(f"comparing {path}")
        return opener()

    return told


def add_tolerance(parser: Any) -> None:
    """Add --atol and --rtol."""
    parser.add_argument("--atol", type=float, metavar="NUMBER",
                        help="absolute difference that floats may have (default: 1e-4)")
    parser.add_argument("--rtol", type=float, metavar="NUMBER",
                        help="difference relative to the value, on top (default: 1e-4)")


def tolerance_of(arguments: Any) -> Tolerance | None:
    """Return what --atol and --rtol say; None where neither is given."""
    from tf_infer.equality import Tolerance

    given = {name: getattr(arguments, name) for name in ("atol", "rtol")
             if getattr(arguments, name) is not None}
    return Tolerance(**given) if given else None


class Progress:
    """Says on standard error what happens next, with the seconds since the start."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._started_s = time.monotonic()
        self._quiet = quiet

    def __call__(self, line: str) -> None:
        if not self._quiet:
            print(f"[{self.seconds():6.1f} s] {line}", file=sys.stderr, flush=True)

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._started_s
