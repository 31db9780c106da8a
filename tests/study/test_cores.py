"""Cores that a process may use: affinity and the quota of control groups, of both versions, against files laid out by hand."""

import math
import os
from pathlib import Path

import pytest

from pyscaling import cores


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # a container that sees its own group as the root
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2.0),  # a group above it limits
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/../host\n", {"cpu.max": "300000 100000\n"}, 3.0),
        (
            "5:cpuset:/x\n4:cpu,cpuacct:/x\n0::/\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        (
            "3:cpuacct,cpu:/docker/1\n",
            {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            1.0,
        ),
        ("3:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("0::/\n", {"cpu.max": "nonsense\n"}, math.inf),
        ("", {}, math.inf),
    ],
)
def test_quota_of_control_groups(tmp_path: Path, membership: str, files: dict[str, str], expected: float) -> None:
    write(tmp_path / "membership", membership)
    for name, text in files.items():
        write(tmp_path / "fs" / name, text)
    assert cores._quota(tmp_path / "membership", tmp_path / "fs") == expected


def test_the_smallest_of_all_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    for quota, expected in ((math.inf, 6), (2.5, 3), (0.2, 1), (40.0, 6)):
        monkeypatch.setattr(cores, "_quota", lambda *paths, quota=quota: quota)
        assert cores.available_cores() == expected
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.available_cores() == 1


def test_affinity_of_this_process() -> None:
    assert 1 <= cores.available_cores() <= len(os.sched_getaffinity(0))
