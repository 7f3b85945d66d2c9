"""Save a task as a version directory: staged, checked, and only then renamed.

    base_dir/.tmp-7/7/    written here, where no server looks
    base_dir/7/           by one rename, after the checks passed and everything is on disk
"""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_infer import config
from tf_infer.errors import ExportError, VerificationError
from tf_infer.export.constants import share_constants
from tf_infer.export.prepared import write_prepared
from tf_infer.export.signatures import (
    check_signature_defs,
    check_specs,
    describe_signatures,
    options_of,
    rewritten,
)
from tf_infer.export.versions import staging
from tf_infer.export.warmup import write_warmup
from tf_infer.manifest import (
    CHAT_FILE,
    EXTRA_FOLDER,
    GOLDEN_FILE,
    MANIFEST_FILE,
    REPORT_FILE,
    WARMUP_FILE,
    ModelManifest,
    Report,
    Sample,
    hash_files,
    rows_with_nan,
    write_samples,
)
from tf_infer.tasks.base import Signature, Task
from tf_infer.tasks.build import chat_format
from tf_infer.token_bytes import TOKENS_FILE
from tf_infer.version import __version__

# Of one output in golden.jsonl: a decoder's state of a million numbers is checked, but not kept.
MAX_GOLDEN_ELEMENTS = 50_000
PACKAGES = ("tensorflow", "tensorflow-text", "keras", "keras-hub", "numpy", "protobuf")


def save(task: Task, base_dir: Path, *, name: str, check: Callable[[Path], Report],
         golden: Sequence[Sample], version: int | None = None, warmup_text: str = "",
         plan: Mapping[str, Any] | None = None,
         extras: Callable[[Path], None] = lambda extra: None,
         progress: Callable[[str], None] = lambda line: None) -> Path:
    """Write a task as `base_dir/<version>/`, complete and checked, or write nothing.

    Args:
        task: what to save; its signatures become those of the SavedModel.
        base_dir: of the model; the folder that a server is pointed at.
        name: of the model, for the manifest and the warm-up requests.
        check: takes the staged version directory (its parent can be served) and returns a report,
            or raises; what it should do is up to the caller: reload, session loader, server.
        golden: requests with the reference's outputs, at least one of each signature.
        version: number; None takes the next. A number is never used twice.
        warmup_text: cut to the lengths of the grid; empty takes a text of ours.
        plan: of optimisation, for the manifest.
        extras: writes what else travels with the version (engines) into the folder it is given,
            the staged version's assets.extra; what it raises ends the export.
        progress: is told what happens next.

    Returns:
        The version directory.

    Raises:
        VerificationError: `check` raised it, or its report did not pass.
        ExportError: golden samples that prove nothing; a number used before; another export under
            way; a file that cannot be written (a full disk).

    Whatever happens, also when interrupted, nothing half-written stands under the final name.
    """
    signatures = task.signatures()
    check_specs(one.spec for one in signatures.values())
    check_golden(golden, signatures)
    base_dir = Path(base_dir)
    try:
        with staging(base_dir, version) as stage:
            progress(f"writing version {stage.version}")
            manifest = _describe(task, name=name, version=stage.version, plan=plan or {})
            write_saved_model(task, stage.folder)
            extra = stage.folder / EXTRA_FOLDER
            extra.mkdir()
            write_chat(task, stage.folder)
            write_samples(map(_without_large_outputs, golden), extra / GOLDEN_FILE)
            if isinstance(task.config, config.CausalLMConfig):
                task.codec.token_bytes().write(extra / TOKENS_FILE)
            extras(extra)
            if task.compiled == "none" and not isinstance(task.config, config.CausalLMConfig):
                progress("preparing the graph for loads")
                if lacking := write_prepared(stage.folder):
                    progress(f"no prepared graph: {lacking}")
            progress("writing warm-up requests")
            write_warmup(extra / WARMUP_FILE, signatures, manifest.grid, model=name,
                         text=warmup_text, asking=task.compiled == "none")
            _write_manifest(manifest, stage.folder)
            progress("checking what was written")
            config.dump(_checked(check, stage.folder), extra / REPORT_FILE)
            _write_manifest(manifest, stage.folder)
            return stage.publish()
    except (OSError, tf.errors.OpError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ExportError(
            f"{base_dir}: expected to write a version, got {type(error).__name__}: {reason}. "
            "Nothing was left under its number; make room or give the right, and export again."
        ) from error


def write_saved_model(task: Task, folder: Path) -> None:
    """Write graph, weights and tokenizer files of a task into `folder`, with named signatures.

    A plain tf.Module around a Keras 3 network would load with `tf.saved_model.load` and fail in
    TensorFlow Serving's loader; keras.export.ExportArchive loads in both.
    """
    signatures = task.signatures()
    archive = keras.export.ExportArchive()
    for part in task.tracked():
        # Not a layer itself: beside the variables of the signatures, which are written anyway,
        # Keras would write each of its own once more, and every loader would hold both.
        archive.track(_holder_of(part) if isinstance(part, keras.layers.Layer) else part)
    for name, signature in signatures.items():
        specs = signature.input_specs()
        archive.add_endpoint(name, _traced(signature, specs), list(specs.values()))
    archive.write_out(str(folder), verbose=False)
    specs_written = [signature.spec for signature in signatures.values()]
    with rewritten(folder) as model:
        share_constants(model)
        describe_signatures(model, specs_written)
    check_signature_defs(folder, specs_written)


def _holder_of(layer: keras.layers.Layer) -> tf.Module:
    """Return what leads to a layer's resources (tables, weights that are expanded at load)."""
    holder = tf.Module()
    holder.layer = layer
    return holder


def write_chat(task: Task, folder: Path) -> None:
    """Write how the messages of a chat become a prompt, where the task's tokenizer says it."""
    chat = chat_format(task)
    if chat is not None:
        config.dump(chat, folder / EXTRA_FOLDER / CHAT_FILE)


def _traced(signature: Signature, specs: Mapping[str, tf.TensorSpec]
            ) -> Callable[..., dict[str, tf.Tensor]]:
    """Trace a signature once; saving traces twice around it, which then costs one call each.

    An option with one value, as a server feeds a default, counts for all rows.
    """
    options = {one.name for one in options_of(signature.spec)}
    rows_by = next((name for name in specs if name not in options), None)

    def named(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = dict(zip(specs, tensors))
        if options and rows_by is not None:
            inputs |= _for_all_rows({name: inputs[name] for name in options},
                                    tf.shape(inputs[rows_by])[0])
        return signature.function(**inputs)

    traced = tf.function(named, input_signature=list(specs.values()), autograph=False
                         ).get_concrete_function()

    def call(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs: dict[str, tf.Tensor] = traced(*tensors)
        return outputs

    return call


def _for_all_rows(given: Mapping[str, tf.Tensor], rows: tf.Tensor) -> dict[str, tf.Tensor]:
    """Repeat options of one value; leave any other alone, for the signature to check.

    All their sizes are looked at together: one by one they are forty operations each.
    """
    flat = [tf.reshape(option, [-1]) for option in given.values()]
    sizes = tf.stack([tf.size(option) for option in flat])
    wanted = tf.unstack(tf.expand_dims(tf.where(sizes == 1, rows, sizes), 1), num=len(flat))
    return {name: tf.broadcast_to(option, shape)
            for name, option, shape in zip(given, flat, wanted)}


def check_golden(golden: Sequence[Sample], signatures: Mapping[str, Signature]) -> None:
    """Raise ExportError unless there is a sample of every signature, with outputs, without NaN."""
    faults = [f"signature {name!r} has no sample" for name in signatures
              if all(sample.signature != name for sample in golden)]
    for index, sample in enumerate(golden):
        if sample.signature not in signatures:
            faults.append(f"sample {index} asks for {sample.signature!r}, which is no signature")
            continue
        wanted = {one.name for one in signatures[sample.signature].spec.outputs}
        if set(sample.outputs) != wanted:
            faults.append(f"sample {index} ({sample.signature}) has the outputs "
                          f"{sorted(sample.outputs)} instead of {sorted(wanted)}")
        faults += [f"sample {index} ({sample.signature}) has NaN in output {output!r}, row {row}"
                   for output, row in rows_with_nan(sample.outputs).items()]
    if faults:
        raise ExportError(f"golden: expected samples of every signature with the reference's "
                          f"outputs, got: {'; '.join(faults)}.")


def _without_large_outputs(sample: Sample) -> Sample:
    return replace(sample, outputs={name: array for name, array in sample.outputs.items()
                                    if array.size <= MAX_GOLDEN_ELEMENTS})


def _checked(check: Callable[[Path], Report], folder: Path) -> Report:
    report = check(folder)
    if not report.passed:
        raise VerificationError(
            f"version {folder.name}: expected a report that passed, got one that did not. Nothing "
            "was exported.", report=report)
    return report


def _describe(task: Task, *, name: str, version: int, plan: Mapping[str, Any]) -> ModelManifest:
    return ModelManifest(
        name=name, version=version, task=task.config,
        signatures=tuple(one.spec for one in task.signatures().values()), grid=task.config.grid,
        compiled=task.compiled, plan=plan, packages=package_versions(),
        source_commit=source_commit(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"))


def _write_manifest(manifest: ModelManifest, folder: Path) -> None:
    described = replace(manifest, files=hash_files(folder))
    config.dump(described, folder / EXTRA_FOLDER / MANIFEST_FILE)


def package_versions() -> dict[str, str]:
    """Return the versions of tf-infer and of the packages that decide what is written."""
    versions = {"tf-infer": __version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def source_commit() -> str:
    """Return the commit of the checkout that tf_infer runs from; empty when it is installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True,
                              text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
