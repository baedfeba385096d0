"""How many processors this process may use: what `os.cpu_count` says is the machine's, not a container's share."""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(cgroups: Path = CGROUPS) -> int:
    """Processors of the affinity mask, and no more than the control group's CPU quota pays for; at least 1.

    macOS knows neither, so all of them there.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroups)
    return allowed if quota is None else max(1, min(allowed, int(quota + 0.5)))


def _quota(cgroups: Path) -> float | None:
    """Processors' worth of time that the group gets: cpu.max (version 2) or cpu.cfs_quota_us (version 1); None: no limit."""
    limit, period = cgroups / "cpu.max", cgroups / "cpu/cpu.cfs_period_us"
    if limit.is_file():
        numbers = limit.read_text().split()
    elif period.is_file():
        numbers = [(cgroups / "cpu/cpu.cfs_quota_us").read_text().strip(), period.read_text()]
    else:
        return None
    return None if numbers[0] in ("max", "-1") else int(numbers[0]) / int(numbers[1])
