"""Gauges of a server: what is in flight, what waits, which versions there are, what it holds.

They are read when the page is, and cost nothing in between. What a scheduler tells of its batches
comes through here, too.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tf_infer.errors import ModelNotFound
from tf_infer.manifest import ModelManifest
from tf_infer.server.metrics import Metrics, Task
from tf_infer.server.registry import Labels, Number
from tf_infer.server.scheduler import Job, Observe
from tf_infer.server.versions import Versions
from tf_infer.version import __version__

PROC = Path("/proc/self")


def register(metrics: Metrics, versions: Versions, *, in_flight: Callable[[], int],
             waiting: Callable[[str], int]) -> None:
    """Add the gauges of a server to its metrics.

    Args:
        metrics: where they are shown.
        versions: the table of all versions.
        in_flight: how many calls are being answered.
        waiting: model name -> how many of its runs wait for a thread or a batch.
    """
    started = time.time()
    metrics.gauge("tf_infer_build_info", "Constant 1, with the version of tf_infer.", ("version",),
                  lambda: {(__version__,): 1})
    metrics.gauge("tf_infer_requests_in_flight", "Requests that are being answered.", (),
                  lambda: {(): in_flight()})
    metrics.gauge("tf_infer_queue_length", "Runs that wait for a thread or a batch.", ("model",),
                  lambda: {(name,): waiting(name) for name in versions.names()})
    metrics.gauge("tf_infer_version_state", "Constant 1, with the state of each version.",
                  ("model", "version", "state"), lambda: states(versions))
    metrics.gauge("tf_infer_models_available", "1 when a version of the model answers, else 0.",
                  ("model",), lambda: available(versions))
    metrics.gauge("process_start_time_seconds", "When the server was made, in seconds since 1970.",
                  (), lambda: {(): started})
    metrics.gauge("process_resident_memory_bytes", "Resident memory.", (), resident_bytes)
    metrics.gauge("process_open_fds", "Open file descriptors.", (), open_files)
    metrics.gauge("process_max_fds", "Most file descriptors that may be open.", (), most_files)
    metrics.gauge("process_cpu_seconds_total", "Processor time, user and system.", (),
                  lambda: {(): round(time.process_time(), 3)}, kind="counter")


def batches(metrics: Metrics) -> Observe:
    """Return what a scheduler tells of its batches, for `metrics` to hear."""

    def observe(jobs: Sequence[Job], counts: Sequence[int], padded_rows: int) -> None:
        tasks = [Task(rows, job.started_s - job.queued_s) for job, rows in zip(jobs, counts)]
        metrics.batch(jobs[0].model, jobs[0].run.signature, tasks,
                      rows_run(jobs[0].servable.manifest, padded_rows))

    return observe


def rows_run(manifest: ModelManifest | None, rows: int) -> int:
    """Return how many rows the dense part of a model runs for so many, padding included.

    A compiled model pads to a size of its grid, and takes more than the largest in chunks of it.
    """
    if manifest is None or manifest.compiled == "none":
        return rows
    sizes = manifest.grid.rows
    size = next((size for size in sizes if size >= rows), sizes[-1])
    return max(1, -(-rows // size)) * size


def states(versions: Versions) -> dict[Labels, Number]:
    """Return 1 for the state of every version of the configured models."""
    found: dict[Labels, Number] = {}
    for name in versions.names():
        try:
            rows = versions.status(name)
        except ModelNotFound:  # nothing on disk yet
            continue
        found.update({(name, str(row.version), row.state.name): 1 for row in rows})
    return found


def available(versions: Versions) -> dict[Labels, Number]:
    """Return for every configured model whether a version of it answers."""
    ready = {name for name, _, state in states(versions) if state == "AVAILABLE"}
    return {(name,): int(name in ready) for name in versions.names()}


def resident_bytes() -> Mapping[Labels, Number]:
    """Return the resident memory; nothing where there is no /proc."""
    try:
        pages = int((PROC / "statm").read_text().split()[1])
    except OSError:
        return {}
    return {(): pages * os.sysconf("SC_PAGE_SIZE")}


def most_files() -> Mapping[Labels, Number]:
    """Return the limit of open descriptors; nothing where there is none."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {} if most == resource.RLIM_INFINITY else {(): most}


def open_files() -> Mapping[Labels, Number]:
    """Return the number of open descriptors; nothing where there is no /proc."""
    try:
        return {(): len(os.listdir(PROC / "fd"))}
    except OSError:
        return {}
