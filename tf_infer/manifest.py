"""What travels with a model: its manifest, its golden samples, its verification report.

Files of `<version>/assets.extra/`: `tf_infer.json` (ModelManifest), `golden.jsonl` (Samples),
`report.json` (Report), `chat.json` (config.ChatFormat, of some decoders). Standard library and
numpy only, so that a client can read them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from tf_infer import config as configs
from tf_infer.config import ChatFormat, ShapeGrid, TaskConfig
from tf_infer.errors import ConfigError, ExportError

EXTRA_FOLDER = "assets.extra"
MANIFEST_FILE = "tf_infer.json"
GOLDEN_FILE = "golden.jsonl"
REPORT_FILE = "report.json"
CHAT_FILE = "chat.json"
WARMUP_FILE = "tf_serving_warmup_requests"
ENGINES_FOLDER = "engines"
ENGINE_FILE = "engine.json"
MANIFEST_FORMAT = 1
FILL_SIZE = 64  # elements; fewer are written one by one even when all are the same
PACKED_TOKENS = 64  # of the longest rows that hold several texts
EngineKind: TypeAlias = Literal["litert", "onnx"]
ENGINE_KINDS: tuple[EngineKind, ...] = ("litert", "onnx")
EngineT = TypeVar("EngineT", bound="EngineManifest")


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One input or output of a signature.

    Attributes:
        name: its key in the signature.
        dtype: numpy's name of it ("float32", "int32", "int64", "bool", ...) or "string".
        shape: None for a free axis; the first axis is the rows.
        note: what it means, with its unit.
        default: of an option that a caller may leave out through another signature; a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    note: str = ""
    default: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SignatureSpec:
    """A named function of the SavedModel: what goes in, what comes out."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    method_name: str = "tensorflow/serving/predict"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelManifest:
    """What the model is, how it was made, and which shapes it may see.

    Attributes:
        format: version of this file's form.
        name: model name, the folder above the version.
        version: version number, the folder's name.
        task: its configuration; holds codec, network, classes, grid.
        signatures: all that a caller may use.
        grid: rows x tokens, the shapes that warm-up visits.
        compiled: "none", or "xla" when the dense part is compiled and the server needs XLA.
        plan: the optimisation plan that was applied, empty for none.
        packages: versions of the packages that wrote it.
        source_commit: of tf_infer, empty when not built from a checkout.
        created: UTC, ISO 8601.
        files: sha256 of every other file of the version directory, by relative path.
    """

    format: int = MANIFEST_FORMAT
    name: str
    version: int
    task: TaskConfig
    signatures: tuple[SignatureSpec, ...]
    grid: ShapeGrid
    compiled: Literal["none", "xla"] = "none"
    plan: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    source_commit: str = ""
    created: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        configs.check(self.format == MANIFEST_FORMAT, "ModelManifest.format",
                      f"{MANIFEST_FORMAT}", self.format, "Export the model again.")

    def signature(self, name: str) -> SignatureSpec:
        """Return the signature called `name`.

        Raises:
            ConfigError: there is none; the message lists those that there are.
        """
        for spec in self.signatures:
            if spec.name == name:
                return spec
        known = [spec.name for spec in self.signatures]
        raise ConfigError(f"signature {name!r}: expected one of {known}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineManifest:
    """What an engine is: `<version>/assets.extra/engines/<kind>/engine.json`, of any network.

    Attributes:
        format: version of this file's form.
        kind: which engine reads `file`.
        file: name of the model file beside it.
        sha256: of that file.
        precision: of its weights.
        atol: largest difference from the network's answers that was allowed: of a log-probability
            (decoders, nats) or of a logit (classifiers).
        max_abs: largest difference that was found at export.
        library: what it was checked with, such as "ai-edge-litert 2.3.0".
    """

    format: int = MANIFEST_FORMAT
    kind: EngineKind
    file: str = "model.tflite"
    sha256: str = ""
    precision: Literal["int8", "float16", "float32"]
    atol: float = 0.0
    max_abs: float = 0.0
    library: str = ""

    def __post_init__(self) -> None:
        configs.check(self.format == MANIFEST_FORMAT, f"{type(self).__name__}.format",
                      f"{MANIFEST_FORMAT}", self.format, "Export the model again.")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepEngineManifest(EngineManifest):
    """What an engine of a decoder is; checked in rows up to a full slot.

    Attributes:
        vocab_size: V.
        positions: P, ids that a slot can hold.
        slots: S, rows of the largest step.
        rows: sizes of a step, ascending.
        chunks: sizes of a read, ascending.
        joined: (rows, ids of each) of reads of several slots that hold nothing yet.
        pages: positions of each page of the cache, which together hold P or more.
        layers, groups, head_size: of the cache.
        cache: what it holds of keys and values; of int8 also the scale of each head's d numbers.
        guesses: ids of a slot that it can read in one go behind one more, each as in a step.
        block_places: positions of several rows that a step looks at together; 0 is 512 of floats
            and 256 of int8.
        joined_pages: a step looks at the values of all its pages together: rows are cut by the
            positions of all of them; of one row all positions lie side by side.
        one_piece: a step of one row sees all its positions side by side, of some heads each.
    """

    vocab_size: int
    positions: int
    slots: int
    rows: tuple[int, ...]
    chunks: tuple[int, ...]
    pages: tuple[int, ...]
    layers: int
    groups: int
    head_size: int
    joined: tuple[tuple[int, int], ...] = ()
    cache: Literal["int8", "float32"] = "float32"
    guesses: int = 0
    block_places: int = 0
    joined_pages: bool = False
    one_piece: bool = False

    def __post_init__(self) -> None:
        EngineManifest.__post_init__(self)  # super() does not know a class with slots
        where = type(self).__name__
        if not self.block_places:
            object.__setattr__(self, "block_places", 256 if self.cache == "int8" else 512)
        configs.check(bool(self.rows) and self.rows[-1] == self.slots, f"{where}.rows",
                      f"a largest step of slots = {self.slots} rows", self.rows)
        configs.check(sum(self.pages) >= self.positions, f"{where}.pages",
                      f"room for positions = {self.positions}", self.pages)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderEngineManifest(EngineManifest):
    """What an engine of a classifier is: encoder and head, ids to logits.

    Attributes:
        vocab_size: V, ids of the tokenizer; the network may have rows for more.
        positions: P, ids of the longest row.
        classes: C, logits of a row.
        shapes: (rows, tokens) of its graphs where shapes are fixed, else those it was warmed up
            for; ascending.
        segments: whether it tells first and second texts apart.
        packed: a row of a graph may hold several texts (`row_texts`).
        fixed_ranges: of int8, what is multiplied with weights has ranges that were set from given
            texts; else they are found for each call.
    """

    vocab_size: int
    positions: int
    classes: int
    shapes: tuple[tuple[int, int], ...]
    segments: bool = False
    packed: bool = False
    fixed_ranges: bool = False

    def __post_init__(self) -> None:
        EngineManifest.__post_init__(self)
        longest = max((tokens for _, tokens in self.shapes), default=0)
        configs.check(longest >= self.positions, f"{type(self).__name__}.shapes",
                      f"room for positions = {self.positions}", self.shapes)


def row_blocks(rows: int, page: int, places: int) -> list[tuple[int, int]]:
    """Return which rows of a page an engine looks at together, as (begin, end).

    As many as have `places` positions together, but at least four. Both sides must cut alike:
    another rule needs another StepEngineManifest.format.
    """
    size = min(rows, max(4, places // page))
    return [(begin, min(begin + size, rows)) for begin in range(0, rows, size)]


def head_blocks(heads: int, positions: int, places: int) -> list[tuple[int, int]]:
    """Return which heads of one row an engine looks at together, as (begin, end).

    Evenly, in as many blocks as `positions` have `places`, rounded up; but whole heads. Both sides
    must cut alike.
    """
    size = -(-heads // max(1, -(-positions // places)))
    return [(begin, min(begin + size, heads)) for begin in range(0, heads, size)]


def row_texts(tokens: int) -> int:
    """Return how many texts a row of a graph may hold, where rows hold several.

    Longer rows hold one: each token of a row is multiplied with each, whether of its text or not.
    Both sides must count alike: another rule needs another EncoderEngineManifest.format.
    """
    return max(1, tokens // 16) if tokens <= PACKED_TOKENS else 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One request with the reference's answer: what was proven, and is proven again at load.

    Attributes:
        signature: name of the signature.
        inputs: name -> array, rows first; strings as object arrays of bytes.
        outputs: name -> array, the reference's.
    """

    signature: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict)


def rows_with_nan(outputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the outputs that hold NaN, and the first row of each that does."""
    return {name: int(np.argwhere(np.isnan(np.atleast_1d(array)))[0, 0])
            for name, array in outputs.items()
            if array.dtype.kind in "fc" and np.isnan(array).any()}


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputDifference:
    """How far one output of the candidate is from the reference's, over all samples.

    Attributes:
        signature, output: which.
        dtype: of the reference.
        max_abs: largest absolute difference; for strings, ints and bools 1.0 where any differs.
        max_rel: largest difference relative to 1 + |reference|.
        mismatches: elements outside the tolerance.
        elements: elements compared.
        first_sample: index of the first sample outside the tolerance, None when all are inside.
        reason: what was wrong when it was not a number ("shape (2, 3) instead of (2, 4)").
    """

    signature: str
    output: str
    dtype: str
    max_abs: float
    max_rel: float
    mismatches: int
    elements: int
    first_sample: int | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PathReport:
    """The comparison of one path ("xla", "saved_model", ...) with the reference.

    Attributes:
        skipped: why this path was not compared; empty when it was.
    """

    path: str
    atol: float
    rtol: float
    samples: int
    seconds: float
    differences: tuple[OutputDifference, ...]
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """True when no output left the tolerance, and the path was compared at all."""
        return not self.skipped and all(d.first_sample is None for d in self.differences)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All comparisons that allowed, or forbade, an export.

    Attributes:
        reference: what the paths were compared with: the exported form, run op by op.
        paths: every other way to run that form.
        plan: the exported form against the model before its plan, with a bound of its own; None
            where there is no plan.
        search: how this form was chosen among others (`tf-infer optimize`); empty where it was not.
    """

    reference: str
    paths: tuple[PathReport, ...]
    plan: PathReport | None = None
    search: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True when at least one path was compared and none that was compared failed."""
        compared = [path for path in self.paths if not path.skipped]
        return bool(compared) and all(
            path.passed for path in compared) and (self.plan is None or self.plan.passed)


def read_manifest(version_dir: Path) -> ModelManifest:
    """Read `tf_infer.json` of a version directory.

    Raises:
        ConfigError: missing, not JSON, or not a manifest; the message names the file.
    """
    manifest: ModelManifest = configs.load(
        ModelManifest, Path(version_dir) / EXTRA_FOLDER / MANIFEST_FILE)
    return manifest


def read_chat(version_dir: Path) -> ChatFormat | None:
    """Read `chat.json` of a version directory; None where there is none.

    Raises:
        ConfigError: it cannot be read; the message names the file.
    """
    path = Path(version_dir) / EXTRA_FOLDER / CHAT_FILE
    if not path.is_file():
        return None
    found: ChatFormat = configs.load(ChatFormat, path)
    return found


def hash_files(version_dir: Path) -> dict[str, str]:
    """Return the sha256 of every file of a version directory but the manifest, by relative path."""
    version_dir = Path(version_dir)
    manifest_path = version_dir / EXTRA_FOLDER / MANIFEST_FILE
    hashes = {}
    for path in sorted(version_dir.rglob("*")):
        if path.is_file() and path != manifest_path:
            hashes[path.relative_to(version_dir).as_posix()] = hash_file(path)
    return hashes


def hash_file(path: Path) -> str:
    """Return the sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def engine_folder(version_dir: Path, kind: str) -> Path:
    """Return where an engine of a version lies, whether there is one or not."""
    return Path(version_dir) / EXTRA_FOLDER / ENGINES_FOLDER / kind


def write_engine(manifest: EngineT, model: bytes | bytearray, folder: Path) -> EngineT:
    """Write model file and description of an engine into `folder`, which is made.

    Returns:
        The description, with the model's digest.
    """
    folder.mkdir(parents=True)
    (folder / manifest.file).write_bytes(model)
    manifest = replace(manifest, sha256=hash_file(folder / manifest.file))
    configs.dump(manifest, folder / ENGINE_FILE)
    return manifest


def check_files(version_dir: Path, manifest: ModelManifest) -> None:
    """Raise ExportError unless the directory holds the files of its manifest, byte for byte.

    Files that the manifest does not name are allowed. Cost: every file is read once.
    """
    found = hash_files(version_dir)
    faults = [f"{name} is missing" if name not in found else f"{name} has changed"
              for name, digest in sorted(manifest.files.items()) if found.get(name) != digest]
    if faults:
        raise ExportError(f"{version_dir}: expected the files of its {MANIFEST_FILE}, got: "
                          f"{'; '.join(faults)}. Copy the directory again, or export it again.")


def array_to_json(array: np.ndarray) -> dict[str, Any]:
    """Return an array as {"dtype", "shape", "values"}; floats keep every bit (repr round trip).

    A complex number is [real, imaginary], bytes that are not UTF-8 are {"b64"}.
    Many numbers that are all the same (an empty cache) become one "fill" instead of "values".
    """
    array = np.asarray(array)
    if array.dtype.kind not in "OSU" and array.size > FILL_SIZE and _is_one_value(array):
        one = array_to_json(array.reshape(-1)[:1])
        return {"dtype": one["dtype"], "shape": list(array.shape), "fill": one["values"][0]}
    if array.dtype.kind in "OSU":
        values = [_bytes_to_json(item) for item in array.reshape(-1)]
        return {"dtype": "string", "shape": list(array.shape), "values": values}
    flat = array.reshape(-1)
    if array.dtype.kind == "c":
        parts = flat.view(flat.real.dtype).reshape(-1, 2)
        values = [[_float_to_json(part) for part in pair] for pair in parts.tolist()]
    elif array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        values = [_float_to_json(value) for value in flat.astype(np.float64).tolist()]
    else:
        values = flat.tolist()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "values": values}


def _float_to_json(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def _is_one_value(array: np.ndarray) -> bool:
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, -1)
    return bool((raw == raw[0]).all())


def array_from_json(data: Mapping[str, Any], *, where: str = "array") -> np.ndarray:
    """Read what `array_to_json` wrote.

    Raises:
        ConfigError: keys, dtype, shape or values do not fit each other.
    """
    try:
        shape, dtype = tuple(data["shape"]), data["dtype"]
        values = [data["fill"]] if "fill" in data else data["values"]
        if dtype == "string":
            array = np.empty(len(values), dtype=object)
            array[:] = [_bytes_from_json(value) for value in values]
        else:
            array = _numbers_from_json(values, np.dtype(dtype))
        if "fill" in data:
            return np.full(shape, array[0], dtype=array.dtype)
        return array.reshape(shape)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{where}: expected {{dtype, shape, values}} that fit each other.") from error


def _numbers_from_json(values: list[Any], dtype: np.dtype) -> np.ndarray:
    """Return [N] numbers; raises OverflowError for an integer beyond the dtype."""
    if dtype.kind == "c":
        parts = [[float(part) for part in pair] for pair in values]
        if any(len(pair) != 2 for pair in parts):
            raise ValueError("a complex number is [real, imaginary]")
        return np.array(parts, np.float64).reshape(-1, 2).astype(
            dtype.type(0).real.dtype).view(dtype).reshape(-1)
    array = np.array([float(v) if isinstance(v, str) else v for v in values], dtype=dtype)
    if dtype.kind in "iu" and array.tolist() != values:  # numpy before 2.0 wraps around
        raise OverflowError(f"numbers beyond {dtype}")
    return array


def _bytes_to_json(item: Any) -> Any:
    raw = item.encode("utf-8") if isinstance(item, str) else bytes(item)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(raw).decode("ascii")}


def _bytes_from_json(item: Any) -> bytes:
    if isinstance(item, Mapping):
        return base64.b64decode(item["b64"], validate=True)
    if not isinstance(item, str):
        raise TypeError("a string or an object with b64")
    return item.encode("utf-8")


def write_samples(samples: Iterable[Sample], path: Path) -> None:
    """Write samples as JSON lines."""
    with open(path, "w", encoding="utf-8") as file:
        for sample in samples:
            line = {"signature": sample.signature,
                    "inputs": {k: array_to_json(v) for k, v in sample.inputs.items()},
                    "outputs": {k: array_to_json(v) for k, v in sample.outputs.items()}}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_samples(path: Path) -> tuple[Sample, ...]:
    """Read what `write_samples` wrote.

    Raises:
        ConfigError: the file is missing or a line is broken; names the line.
    """
    samples = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                samples.append(_read_sample(line, f"{Path(path).name} line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as golden samples.") from error
    return tuple(samples)


def _read_sample(line: str, where: str) -> Sample:
    try:
        data = json.loads(line)
        sides = [{name: array_from_json(value, where=f"{where}, {name}")
                  for name, value in data[side].items()} for side in ("inputs", "outputs")]
        return Sample(data["signature"], *sides)
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{where}: expected a sample as JSON.") from error
