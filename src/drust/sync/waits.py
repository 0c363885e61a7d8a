"""How a wait is cut into slices: a request to another server is answered within one, and after each of them a
waiter looks whether its own server is alive.
"""

import time

from drust.errors import BorrowTimeoutError

SLICE_MS = 500


def slice_ms(deadline: float | None) -> int:
    """What is left until `deadline`, at most a slice."""
    if deadline is None:
        return SLICE_MS
    return max(0, min(SLICE_MS, int((deadline - time.monotonic()) * 1000) + 1))


def check_time(what: str, timeout: float | None, deadline: float | None) -> None:
    """Ends a wait for `what` whose time is up."""
    if deadline is not None and time.monotonic() >= deadline:
        raise BorrowTimeoutError(object=what, timeout_s=timeout or 0.0)
