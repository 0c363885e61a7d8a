"""What this machine grants this process: memory and processors, whatever limits them.

Leftmost: imports nothing of ours. A container's limit kills instead of failing an allocation, so it is read
before memory is claimed. Both generations of cgroups are read, from the process's own group up to the root:
each level may be the tight one. `root` is where `/proc` and `/sys` hang; tests hang a small tree there.

Source: kernel documentation, admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
_UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes "no limit" as the largest page-aligned integer


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _fields(path: Path) -> dict[str, int]:
    """The `name number` lines of a file, `Name: number kB` as bytes."""
    fields: dict[str, int] = {}
    for line in _read(path).splitlines():
        words = line.split()
        if len(words) >= 2 and words[1].isdigit():
            fields[words[0].rstrip(":")] = int(words[1]) * (1024 if words[-1] == "kB" else 1)
    return fields


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and its ancestors, for cgroup v2 (`""`) or one controller of v1."""
    own = ""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            own = path
    for line in _read(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        words, kind = left.split(), right.split()
        if len(words) < 5 or len(kind) < 3:
            continue
        if kind[0] != ("cgroup" if controller else "cgroup2") or controller not in ["", *kind[2].split(",")]:
            continue
        mount = root / words[4].lstrip("/")
        # A container mounts its own group as the root: what /proc/self/cgroup names lies above it, or below.
        inside = own.removeprefix(words[3].rstrip("/")).strip("/")
        folder = mount / inside if ".." not in inside and (mount / inside).is_dir() else mount
        while True:
            yield folder
            if folder == mount:
                return
            folder = folder.parent


def _cgroup_remainders(root: Path) -> Iterator[int]:
    """What each limit above this process has left; file cache that the kernel would drop counts as free."""
    for group in _groups(root, ""):
        limit, used = _number(group / "memory.max"), _number(group / "memory.current")
        if limit is not None and used is not None:
            yield limit - used + _fields(group / "memory.stat").get("inactive_file", 0)
    for group in _groups(root, "memory"):
        limit, used = _number(group / "memory.limit_in_bytes"), _number(group / "memory.usage_in_bytes")
        if limit is not None and used is not None and limit < _UNLIMITED_BYTES:
            yield limit - used + _fields(group / "memory.stat").get("total_inactive_file", 0)


def available_bytes(root: Path = ROOT) -> int:
    """The memory this process may still take: the smallest of what the machine and each cgroup have left.

    Cost: reads a dozen small files, below a millisecond. 0 where nothing is left or nothing can be read.
    """
    machine = _fields(root / "proc/meminfo").get("MemAvailable", 0)
    return max(0, min([machine, *_cgroup_remainders(root)]))


def cpu_count(root: Path = ROOT) -> int:
    """The processors this process may use: its affinity and its cgroups' quotas, rounded up, at least one."""
    counts: list[float] = [len(os.sched_getaffinity(0))]
    for group in _groups(root, ""):
        words = _read(group / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit():
            counts.append(int(words[0]) / int(words[1]))
    for group in _groups(root, "cpu"):
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota is not None and period:  # "-1", no quota, is no number here
            counts.append(quota / period)
    return max(1, math.ceil(min(counts)))
