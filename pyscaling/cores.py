"""How many cores this process may use: what the machine has, less what affinity and control groups take away."""

import math
import os
from pathlib import Path, PurePosixPath


def available_cores() -> int:
    """Cores that this process may keep busy at once, at least one.

    The smallest of the machine's cores, those of the process's affinity (taskset, a batch system's cpuset), and the CPU
    quota of its control groups (docker --cpus, Kubernetes limits; cgroup v2 `cpu.max`, v1 `cpu.cfs_quota_us`), rounded
    up. PYTHON_CPU_COUNT, or `-X cpu_count` from Python 3.13 on, is heeded where `os.cpu_count` heeds it.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    quota = _quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return max(1, min(cores, math.ceil(quota)) if quota < math.inf else cores)


def _quota(membership: Path, root: Path) -> float:
    """Cores that the control groups of `membership` (/proc/self/cgroup) allow; infinite where nothing limits them.

    Every group above the process's own may limit it, too. Within a container the path may be the host's, of which only the
    root is mounted, so the root is always asked.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return math.inf
    quota = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            bases, read = [root, root / "unified"], _quota_v2
        elif "cpu" in controllers.split(","):
            bases, read = [root / "cpu", root / controllers], _quota_v1
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for base in bases:
            for group in (inside, *inside.parents):
                quota = min(quota, read(base / group))
    return quota


def _quota_v2(group: Path) -> float:
    try:
        limit, period = (group / "cpu.max").read_text().split()
        return math.inf if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _quota_v1(group: Path) -> float:
    try:
        limit, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return limit / period if limit > 0 else math.inf  # -1: no limit
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
