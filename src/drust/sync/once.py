"""Once: something that is done by one process, once."""

from collections.abc import Callable

from drust.sync.mutex import Mutex


class Once:
    """Runs a function once, whichever process comes first; the others wait until it has been run.

    A Mutex of whether it is done: a function that raises, or whose process dies in it, leaves it poisoned, as
    in Rust, and whoever calls afterwards gets PoisonedError.

    Cost: a lock the first time in each process, then none.
    """

    __slots__ = ("_is_done", "_mutex")

    def __init__(self) -> None:
        self._mutex = Mutex(False)
        self._is_done = False

    def call(self, function: Callable[[], object]) -> None:
        """Runs `function` unless that was done; returns when it is done."""
        if self._is_done:
            return
        guard = self._mutex.lock()
        with guard as is_done:
            if not is_done:
                function()
                guard.value = True
        self._is_done = True

    @property
    def is_done(self) -> bool:
        """Whether it was done, as far as this process knows without waiting."""
        return self._is_done
