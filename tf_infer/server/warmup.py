"""Replay what travels with a version before it becomes available: warm-up records, golden samples.

Files: `assets.extra/tf_serving_warmup_requests`, a TFRecord of PredictionLog (statements WU01 to
WU13), and `assets.extra/golden.jsonl` with the reference's outputs. Needs no TensorFlow.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tf_infer import config as configs
from tf_infer.equality import Tolerance, column_names, differences
from tf_infer.errors import (
    Code,
    ConfigError,
    InvalidRequest,
    NotOffered,
    ServerFailure,
    ServingError,
)
from tf_infer.manifest import (
    ENGINE_KINDS,
    EXTRA_FOLDER,
    GOLDEN_FILE,
    REPORT_FILE,
    WARMUP_FILE,
    OutputDifference,
    Report,
    Sample,
    read_samples,
)
from tf_infer.server import inference, predict, rows
from tf_infer.server.contracts import Plan, Servable, Signatures
from tf_infer.server.metrics import Metrics, counted
from tf_infer.wire import methods, serving_pb2

MAX_RECORDS = 1000


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """Return the checksum of a TFRecord (Castagnoli, rotated and shifted as record_writer.cc)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path: Path, *, intact: bool = False) -> Iterator[bytes]:
    """Yield the records of an uncompressed TFRecord file.

    Args:
        path: the file.
        intact: it is known to be as it was written; 0.1 us for each byte are saved.

    Raises:
        ServerFailure: DATA_LOSS, the file is none, is cut short, or a checksum differs (WU09).
    """
    def broken(what: str) -> ServerFailure:
        return ServerFailure(f"{path}: {what}. Please verify your warmup data is in TFRecord "
                             "format", code=Code.DATA_LOSS)

    with open(path, "rb") as file:
        while head := file.read(12):
            if len(head) < 12:
                raise broken("a record's head is cut short")
            length, check = struct.unpack("<QI", head)
            if masked_crc32c(head[:8]) != check:
                raise broken("a record's length has a wrong checksum")
            data, tail = file.read(length), file.read(4)
            if len(data) < length or len(tail) < 4:
                raise broken("a record is cut short")
            if not intact and masked_crc32c(data) != struct.unpack("<I", tail)[0]:
                raise broken("a record has a wrong checksum")
            yield data


def warm_up(servable: Servable, version_dir: Path, *, iterations: int = 1,
            most_rows: int | None = None, metrics: Metrics | None = None,
            intact: bool = False) -> int:
    """Run the warm-up records of a version; return how many were read, 0 when there is no file.

    Args:
        servable: the version.
        version_dir: its directory.
        iterations: how often each record runs.
        most_rows: of a record that run, where every input has rows; None for all.
        metrics: is told how it ended (WU15).
        intact: the file is as the manifest says.

    Raises:
        ServingError: a record is broken, of an unknown kind, or fails (WU07 to WU12).
    """
    path = Path(version_dir) / EXTRA_FOLDER / WARMUP_FILE
    if not path.is_file():
        return 0
    read = 0

    def tell(code: Code, seconds: float) -> None:
        if metrics is not None:
            metrics.warmup(str(version_dir), code, seconds, read)

    with counted(tell):
        for record in read_log(path, intact=intact):
            read += 1
            for _ in range(max(1, iterations)):
                _run_record(servable, record, most_rows)
    return read


def read_log(path: Path, *, intact: bool = False) -> Iterator[serving_pb2.PredictionLog]:
    """Yield the warm-up records of a file; `intact` as of `read_records`.

    Raises:
        ServingError: a record is broken, or there are too many (WU08 to WU10).
    """
    for number, data in enumerate(read_records(path, intact=intact), start=1):
        if number > MAX_RECORDS:
            raise InvalidRequest(f"Number of warmup records exceeds the maximum ({MAX_RECORDS})")
        try:
            yield methods.parse(serving_pb2.PredictionLog, data, where=WARMUP_FILE)
        except InvalidRequest as error:
            raise InvalidRequest(f"Failed to parse warmup record {number} from {path}") from error


def plan_record(signatures: Signatures, record: serving_pb2.PredictionLog) -> Plan[Any] | None:
    """Return what a record runs; None for one with no request inside (WU11).

    Raises:
        ServingError: it does not fit the signatures, or is of an unknown kind (WU12).
    """
    kind = record.WhichOneof("log_type")
    if kind is None:
        return None
    if kind == "predict_log":
        return predict.plan(signatures, record.predict_log.request)
    if kind == "classify_log":
        request = record.classify_log.request
        return inference.classify(signatures, request.model_spec.signature_name, request.input)
    if kind == "regress_log":
        regress = record.regress_log.request
        return inference.regress(signatures, regress.model_spec.signature_name, regress.input)
    if kind == "multi_inference_log":
        return inference.multi_inference(signatures, record.multi_inference_log.request)
    raise NotOffered(f"Unsupported log_type for warmup: {kind}")


def _run_record(servable: Servable, record: serving_pb2.PredictionLog, most_rows: int | None,
                ) -> None:
    plan = plan_record(servable.signatures, record)
    if plan is None:
        return
    found = [servable.run(run.signature, run.inputs if most_rows is None else
                          rows.cut(run.inputs, 0, most_rows), outputs=run.outputs, timeout_s=None)
             for run in plan.runs]
    if most_rows is None:  # else the answer of fewer rows, which is not that of the record
        plan.finish(found)


def replay_golden(servable: Servable, version_dir: Path,
                  widened: Callable[[Tolerance], Tolerance] = lambda given: given) -> int:
    """Run the golden samples of a version; return how many there were, 0 when there is no file.

    Args:
        servable: the version.
        version_dir: its directory.
        widened: makes of what counts as equal for its SavedModel what counts for this servable.

    Raises:
        InvalidRequest: FAILED_PRECONDITION, an output differs from the reference's by more than
            the report allows (`tf_infer.equality`, as at export); names sample and output, never
            a text.
        ConfigError: the samples or the report cannot be read.
        ServingError: a sample fails to run.
    """
    folder = Path(version_dir) / EXTRA_FOLDER
    if not (folder / GOLDEN_FILE).is_file():
        return 0
    tolerance = widened(_tolerance(folder / REPORT_FILE))
    samples = read_samples(folder / GOLDEN_FILE)
    names = column_names(samples, tolerance)
    for number, sample in enumerate(samples):
        where = f"golden sample {number}, signature {sample.signature!r}"
        if sample.signature not in servable.signatures:
            raise ConfigError(f"{where}: expected one of {sorted(servable.signatures)}.")
        try:
            outputs = servable.run(sample.signature, sample.inputs, timeout_s=None,
                                   outputs=_known(servable, sample, where))
        except ServingError as error:
            raise ServerFailure(f"{where}: failed with {error.code.name}.",
                                code=error.code) from error
        for one in differences(sample, outputs, tolerance, names=names):
            if one.mismatches:
                raise InvalidRequest(
                    f"{where}, output {one.output!r}: {_told(one, tolerance)}. This machine or "
                    "these packages do not reproduce the exported answers: verify the model here "
                    "and export it again.", code=Code.FAILED_PRECONDITION)
    return len(samples)


def _told(one: OutputDifference, tolerance: Tolerance) -> str:
    reason = f", {one.reason}" if one.reason else ""
    return (f"{one.mismatches} of {one.elements} values differ, the worst by {one.max_abs:.3g} "
            f"(allowed {tolerance.atol:g} + {tolerance.rtol:g} * |value|){reason}")


def _known(servable: Servable, sample: Sample, where: str) -> list[str]:
    known = servable.signatures[sample.signature]
    for side, names, infos in (("input", sample.inputs, known.inputs),
                               ("output", sample.outputs, known.outputs)):
        unknown = sorted(name for name in names if name not in infos)
        if unknown:
            raise ConfigError(f"{where}: expected {side}s of {sorted(infos)}, got {unknown}.")
    return list(sample.outputs)


def _tolerance(path: Path) -> Tolerance:
    """Return the widest tolerance of the paths that the report compared, engines left out."""
    if not path.is_file():
        return Tolerance()
    report: Report = configs.load(Report, path)
    compared = [item for item in report.paths
                if not item.skipped and item.path not in ENGINE_KINDS]
    if not compared:
        return Tolerance()
    return Tolerance(atol=max(item.atol for item in compared),
                     rtol=max(item.rtol for item in compared))
