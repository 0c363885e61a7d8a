"""What a benchmark's reader must know about where it ran: processor, cores, kernel, Python, commit, date."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

import msgspec

from drust import machine


class MachineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Where and when.

    `commit` is empty outside a checkout and ends in `+` where tracked files were changed; `load` is the mean
    number of running processes over the minute before.
    """

    processor: str
    cores: int
    memory_available_bytes: int
    kernel: str
    python: str
    numpy: str
    commit: str
    date: str
    load: float


def processor_name(root: Path = machine.ROOT) -> str:
    """The processor's name as the kernel tells it, else its architecture."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model") and value.strip():
            return value.strip()
    return platform.machine()


def commit_of(folder: Path) -> str:
    """The commit of the checkout around `folder`, or nothing."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def gather() -> MachineFacts:
    """The facts of this machine, now. Cost: two git processes."""
    import numpy as np

    return MachineFacts(
        processor=processor_name(),
        cores=machine.cpu_count(),
        memory_available_bytes=machine.available_bytes(),
        kernel=platform.release(),
        python=platform.python_version(),
        numpy=np.__version__,
        commit=commit_of(Path(__file__).parent),
        load=os.getloadavg()[0],
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
