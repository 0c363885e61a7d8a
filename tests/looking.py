"""What tests look at from outside: conditions that come true in a while, files that processes leave."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SOON_S = 20.0
_OTHERS = "sem.loky-"  # semaphores of joblib's, which a test beside this one may have just now


def wait_until(condition: Callable[[], T], within_s: float = SOON_S) -> T:
    """Looks until `condition` gives something true, which it returns; fails after `within_s`."""
    deadline_s = time.monotonic() + within_s
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"it did not happen within {within_s} s"
        pause.wait(0.002)
    return found


def shared_memory_files() -> set[Path]:
    """Those that drust could have made."""
    return {file for file in Path("/dev/shm").iterdir() if not file.name.startswith(_OTHERS)}
