"""Settings of TensorFlow's sessions: what flags, a text ConfigProto, a platform config ask for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2

from tf_infer.config import CausalLMConfig
from tf_infer.manifest import EXTRA_FOLDER, MANIFEST_FILE, ModelManifest
from tf_infer.server import cpus
from tf_infer.server.config import ModelConfig, ServerConfig
from tf_infer.server.lanes import Lanes
from tf_infer.server.platform_config import ADAPTER, adapter_in
from tf_infer.server.protos import read_text_proto
from tf_infer.wire import serving_pb2

FEW_CPUS = 2  # there two runs with a thread each did 1.3 times one with two: docs/runtime.md
MIN_INTER_OP_THREADS = 8  # a run without a limit holds one of them: docs/runtime.md
LANES = Lanes(FEW_CPUS)


def session_config(config: ServerConfig) -> Any:
    """Return the ConfigProto of every session.

    Flags go before --tensorflow_session_config_file; with a --platform_config_file neither counts
    (FL46). Threads that nobody asks for: TensorFlow's own choice within the container's quota, but
    at least `MIN_INTER_OP_THREADS` between operations, and one inside them where there are
    `FEW_CPUS` and nothing but texts of ours.

    Raises:
        InvalidRequest: a file is missing or does not parse (FL25).
    """
    settings = tf.compat.v1.ConfigProto()
    if config.platform_config_file:
        settings.CopyFrom(_platform_session(config.platform_config_file))
    else:
        if config.session_config_file:
            read_text_proto(config.session_config_file, settings)
        _set_flags(settings, config)
    if not settings.inter_op_parallelism_threads:
        settings.inter_op_parallelism_threads = max(MIN_INTER_OP_THREADS, cpus.usable())
    if not settings.intra_op_parallelism_threads:
        few = cpus.usable() <= FEW_CPUS and only_ours(config.models)
        settings.intra_op_parallelism_threads = 1 if few else cpus.limit()
    return settings


def for_version(settings: Any, manifest: ModelManifest | None) -> Any:
    """Return the settings of the session of one version; `settings` as they are of most.

    TensorFlow's graph optimiser looks at all signatures of a SavedModel whenever one of them first
    runs. A decoder of ours has many, and those of its functions that gain by it ask for it
    themselves (docs/runtime.md). Whoever configures the optimiser has their way.

    A plain decoder of ours has lanes, too, where operations have one thread and CPUs are few.
    Whoever configures pools has their way.
    """
    if (manifest is None or not isinstance(manifest.task, CausalLMConfig)
            or manifest.compiled != "none"):
        return settings
    if not settings.graph_options.HasField("rewrite_options"):
        settings = without_optimiser(settings)
    # Less than one thread is TensorFlow's word for the thread of whoever asks.
    pools = (settings.session_inter_op_thread_pool or settings.use_per_session_threads
             or settings.inter_op_parallelism_threads < 1)
    if settings.intra_op_parallelism_threads == 1 and cpus.usable() <= FEW_CPUS and not pools:
        settings = _with_lanes(settings)
    return settings


def has_lanes(settings: Any) -> bool:
    """Whether runs of a session with these settings can have a lane."""
    return any(pool.global_name == _lane(1) for pool in settings.session_inter_op_thread_pool)


def _with_lanes(settings: Any) -> Any:
    """Return settings with a pool for each lane behind the one for all other runs."""
    found = config_pb2.ConfigProto()
    found.CopyFrom(settings)
    threads = settings.inter_op_parallelism_threads
    found.session_inter_op_thread_pool.add(num_threads=threads, global_name=f"tf_infer_{threads}")
    for number in range(1, LANES.count + 1):
        found.session_inter_op_thread_pool.add(num_threads=1, global_name=_lane(number))
    return found


def _lane(number: int) -> str:
    return f"tf_infer_lane_{number}"


def without_optimiser(settings: Any) -> Any:
    """Return settings of a session that leaves TensorFlow's graph optimiser out."""
    found = config_pb2.ConfigProto()
    found.CopyFrom(settings)
    found.graph_options.rewrite_options.disable_meta_optimizer = True
    return found


def only_ours(models: Sequence[ModelConfig]) -> bool:
    """Whether every model has a version with our manifest, and there is one."""
    return bool(models) and all(
        any(Path(model.base_path).glob(f"*/{EXTRA_FOLDER}/{MANIFEST_FILE}")) for model in models)


def _set_flags(settings: Any, config: ServerConfig) -> None:
    if config.inter_op_threads:
        settings.inter_op_parallelism_threads = config.inter_op_threads
    if config.intra_op_threads:
        settings.intra_op_parallelism_threads = config.intra_op_threads
    if config.gpu_memory_fraction:
        settings.gpu_options.per_process_gpu_memory_fraction = config.gpu_memory_fraction
    if config.mixed_precision:
        settings.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = (
            rewriter_config_pb2.RewriterConfig.ON)


def _platform_session(path: str | Path) -> Any:
    """Return the session_config of a platform config, an empty one where it has none."""
    pool = _pool()
    platforms, adapter = (message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"tf_infer.wire.{name}"))() for name in (
            "PlatformConfigMap", ADAPTER))
    found = adapter_in(path, platforms, adapter, descriptor_pool=pool)
    return config_pb2.ConfigProto.FromString(
        found.legacy_config.session_config.SerializeToString())


def _pool() -> descriptor_pool.DescriptorPool:
    """Return our messages with a field of TensorFlow's, which serving.proto cannot know."""
    pool = descriptor_pool.DescriptorPool()
    _add(pool, config_pb2.DESCRIPTOR)
    for needed in serving_pb2.DESCRIPTOR.dependencies:
        _add(pool, needed)
    ours = descriptor_pb2.FileDescriptorProto()
    serving_pb2.DESCRIPTOR.CopyToProto(ours)
    ours.dependency.append(config_pb2.DESCRIPTOR.name)
    bundle = next(item for item in ours.message_type if item.name == "SessionBundleConfig")
    field = descriptor_pb2.FieldDescriptorProto
    bundle.field.add(name="session_config", number=2, type=field.TYPE_MESSAGE,
                     label=field.LABEL_OPTIONAL,
                     type_name=f".{config_pb2.ConfigProto.DESCRIPTOR.full_name}")
    pool.Add(ours)
    return pool


def _add(pool: descriptor_pool.DescriptorPool, file: Any) -> None:
    try:
        pool.FindFileByName(file.name)
    except KeyError:
        for needed in file.dependencies:
            _add(pool, needed)
        copy = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(copy)
        pool.Add(copy)
