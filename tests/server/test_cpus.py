"""How many CPUs a process may use, read from folders that look like /sys/fs/cgroup."""

from __future__ import annotations

from pathlib import Path

import pytest

from tf_infer.server import cpus

V2 = "0::/"
DEEP_V2 = "0::/kubepods/burstable/pod7/abc"
V1 = "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/system.slice"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(("groups", "files", "expected"), [
    pytest.param(V2, {}, 16, id="no quota anywhere"),
    pytest.param("", {"cpu.max": "200000 100000"}, 16, id="the process names no group"),
    pytest.param(V2, {"cpu.max": "200000 100000\n"}, 2, id="v2, in the container's root"),
    pytest.param(V2, {"cpu.max": "max 100000\n"}, 16, id="v2 without a limit"),
    pytest.param(V2, {"cpu.max": "150000 100000"}, 2, id="a part of one counts as one"),
    pytest.param(V2, {"cpu.max": "10000 100000"}, 1, id="less than one is one"),
    pytest.param(V2, {"cpu.max": "6400000 100000"}, 16, id="more than there are"),
    pytest.param(DEEP_V2, {"kubepods/burstable/pod7/abc/cpu.max": "max 100000",
                           "kubepods/burstable/pod7/cpu.max": "300000 100000",
                           "kubepods/cpu.max": "1200000 100000"}, 3, id="a group above limits"),
    pytest.param(DEEP_V2, {"cpu.max": "400000 100000"}, 4, id="a path of the host's"),
    pytest.param(V2, {"unified/cpu.max": "500000 100000"}, 5, id="v2 beside v1"),
    pytest.param(V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000",
                      "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"}, 3, id="v1"),
    pytest.param(V1, {"cpu/cpu.cfs_quota_us": "700000\n",
                      "cpu/cpu.cfs_period_us": "100000\n"}, 7, id="v1, in the container's root"),
    pytest.param(V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "-1",
                      "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"}, 16,
                 id="v1 without a limit"),
    pytest.param(V1, {"memory/docker/abc/cpu.max": "100000 100000"}, 16, id="another controller"),
    pytest.param(V2, {"cpu.max": "nonsense"}, 16, id="no numbers"),
    pytest.param(V2, {"cpu.max": "100000 0"}, 16, id="no period"),
])
def test_the_smallest_of_affinity_and_quotas(
        tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    root, own = write(tmp_path / "cgroup", files), tmp_path / "own"
    own.write_text(groups, encoding="utf-8")
    assert cpus.usable(root=root, own=own, cpus=16) == expected
    assert cpus.limit(root=root, own=own, cpus=16) == (expected if expected < 16 else 0)


def test_a_system_without_cgroups_has_the_affinity(tmp_path: Path) -> None:
    assert cpus.usable(root=tmp_path / "no", own=tmp_path / "nor this") == cpus.affinity() >= 1
    assert cpus.limit(root=tmp_path / "no", own=tmp_path / "nor this") == 0
