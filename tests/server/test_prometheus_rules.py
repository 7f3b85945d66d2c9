"""serving/prometheus: what Prometheus says of it, and that every name in it is one of ours."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tf_infer.server import gauges
from tf_infer.server.config import Monitoring, read_monitoring_file
from tf_infer.server.metrics import Metrics
from tf_infer.server.versions import Versions

FOLDER = Path(__file__).resolve().parent.parent.parent / "serving" / "prometheus"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (Debian: apt-get install prometheus)")


@needs_promtool
@pytest.mark.parametrize("arguments", [
    ("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"),
    ("test", "rules", "rules_test.yml")], ids=" ".join)
def test_promtool_finds_no_fault(arguments: tuple[str, ...]) -> None:
    answer = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True,
                            timeout=120, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "SUCCESS" in answer.stdout


def families() -> set[str]:
    """Return the names of all samples that a server can show."""
    metrics = Metrics()
    versions = Versions(lambda path: None, poll_s=0, metrics=metrics)  # type: ignore[arg-type,return-value]
    try:
        gauges.register(metrics, versions, in_flight=lambda: 0, waiting=lambda model: 0)
        types = re.findall(r"^# TYPE (\S+) (\w+)$", metrics.page().decode(), re.MULTILINE)
    finally:
        versions.stop()
    names = {name for name, _ in types}
    return names | {f"{name}_{end}" for name, kind in types if kind == "histogram"
                    for end in ("bucket", "sum", "count")}


def test_the_rules_use_only_names_that_the_page_has() -> None:
    text = (FOLDER / "rules.yml").read_text(encoding="utf-8")
    recorded = set(re.findall(r"record: (\S+)", text))
    used = set(re.findall(r"(?<![\w:])(?:tf_infer|process|:tensorflow)[\w:]*(?=[{\[ )])", text))
    assert len(used) > 8
    assert used - families() - recorded == set()


def test_every_alert_has_a_test_that_it_comes_and_one_that_it_does_not() -> None:
    alerts = set(re.findall(r"alert: (\w+)", (FOLDER / "rules.yml").read_text(encoding="utf-8")))
    tests = (FOLDER / "rules_test.yml").read_text(encoding="utf-8")
    quiet = set(re.findall(r"\{eval_time: \w+, alertname: (\w+)\}", tests))
    loud = set(re.findall(r"alertname: (\w+)\n +exp_alerts:", tests))
    assert alerts == quiet == loud


def test_the_monitoring_file_turns_the_page_on_where_prometheus_looks_for_it() -> None:
    monitoring = read_monitoring_file(FOLDER / "monitoring.config")
    assert monitoring == Monitoring(enabled=True)
    assert f"metrics_path: {monitoring.path}\n" in (
        FOLDER / "prometheus.yml").read_text(encoding="utf-8")
