"""A search as the table of hyper-parameters that TensorBoard shows: one run for each candidate.

Written through TensorBoard's own messages, so that neither TensorFlow nor a summary writer of it is
needed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
from tensorboard.summary.writer.record_writer import RecordWriter

from tf_infer.optimize.plan import OptimizationPlan
from tf_infer.tuning.candidates import prune_word

NONE = "none"
PLAN_COLUMNS = tuple(one.name for one in dataclasses.fields(OptimizationPlan)
                     if one.name != "precision")


def write(told: Mapping[str, Any], folder: Path) -> None:
    """Write the runs of a summary (`table.summary`), in place of those of an earlier one.

    Args:
        told: the summary.
        folder: for `tensorboard --logdir`; made where it does not exist.
    """
    _write(folder, [_experiment(told)])
    for one in told["plans"]:
        run = folder / _file_name(one["plan"])
        session = summary_v2.hparams_pb(parameters(one), trial_id=one["plan"])
        scalars = Summary(value=[Summary.Value(tag=name, simple_value=number)
                                 for name, number in figures(one, told["metric"]).items()])
        status = (api_pb2.STATUS_SUCCESS if not one["why_not"] else api_pb2.STATUS_FAILURE)
        _write(run, [session, scalars, _ended(status)])


def _experiment(told: Mapping[str, Any]) -> Any:
    """Return the table's columns; TensorBoard shows at first those whose values differ."""
    rows = [parameters(one) for one in told["plans"]]
    values = {name: sorted({row[name] for row in rows}) for name in rows[0]}
    names = sorted({name for one in told["plans"] for name in figures(one, told["metric"])})
    summary = summary_v2.hparams_config_pb(
        hparams=[summary_v2.HParam(name, summary_v2.Discrete(found))
                 for name, found in values.items()],
        metrics=[summary_v2.Metric(name) for name in names])
    plugin = summary.value[0].metadata.plugin_data
    data = plugin_data_pb2.HParamsPluginData.FromString(plugin.content)
    for column in data.experiment.hparam_infos:
        column.differs = len(values[column.name]) > 1
    plugin.content = data.SerializeToString()
    return summary


def parameters(one: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a candidate, as columns; what it has not is "none" in its column."""
    form = one["candidate"]
    plan, engine = form["plan"] or {}, form["engine"] or {}
    found = {"precision": engine.get("precision") or plan.get("precision"),
             "engine": engine.get("kind")}
    found |= {name: plan.get(name) for name in PLAN_COLUMNS}
    if engine.get("ranges", "found") != "found":
        found |= {"activations": "static", "ranges": engine["ranges"]}
    found["prune"] = None if form["prune"] is None else prune_word(form["prune"])
    return {name: str(NONE if value is None else value) for name, value in found.items()}


def figures(one: Mapping[str, Any], metric: str) -> dict[str, float]:
    """Return what was measured of a candidate, as columns; what is not known has none."""
    found = {f"p50 ms, batch {batch}": value for batch, value in one["p50_ms"].items()}
    found |= {f"per second, batch {batch}": value for batch, value in one["per_s"].items()}
    found |= {"MB": one["megabytes"], "worst difference": one["worst_difference"],
              metric: one.get(metric), "drop": one["drop"]}
    return {name: float(value) for name, value in found.items() if value is not None}


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def _ended(status: Any) -> Any:
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
    return Summary(value=[Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG, metadata=metadata.create_summary_metadata(data),
        tensor=metadata.NULL_TENSOR)])


def _write(folder: Path, summaries: list[Any]) -> None:
    """Write summaries in place of those of an earlier search."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = list(folder.glob("events.out.tfevents.*.search"))  # others' stay: a training's
    now_s = time.time()
    path = folder / f"events.out.tfevents.{now_s:.6f}.search"
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=now_s, file_version="brain.Event:2").SerializeToString())
        for one in summaries:
            data = one.SerializeToString()
            writer.write(Event(wall_time=now_s, summary=Summary.FromString(data)
                               ).SerializeToString())
    for old in earlier:
        if old != path:
            old.unlink()
