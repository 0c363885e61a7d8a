"""scope: tasks that end with a block, as with Rust's `std::thread::scope`.

The end of the block waits for every task, in whatever order they end. The first failure (of a task, or of the
block itself) takes back those that no worker has begun; what runs is waited for, because it may hold what it
was lent. Then every error is raised in one ExceptionGroup.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from drust import _core, arrivals
from drust.errors import CancelledError, ClosedError, ServerLostError
from drust.tasks import JoinHandle, spawn, spawn_to

T = TypeVar("T")


class Scope:
    """Tasks that end with a block. Made by `scope()`."""

    def __init__(self) -> None:
        self._handles: list[JoinHandle[Any]] = []
        self._has_ended = False

    def spawn(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> JoinHandle[T]:
        """As `drust.spawn`, joined at the end of the block.

        Raises:
            ClosedError: the block has ended.
        """
        return self._keep(spawn, function, *args, **kwargs)

    def spawn_to(
        self, where: "_core.Box[Any] | int", function: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> JoinHandle[T]:
        """As `drust.spawn_to`, joined at the end of the block.

        Raises:
            ClosedError: the block has ended.
        """
        return self._keep(spawn_to, where, function, *args, **kwargs)

    def _keep(self, start: Callable[..., JoinHandle[T]], /, *args: Any, **kwargs: Any) -> JoinHandle[T]:
        if self._has_ended:
            raise ClosedError(object="this scope", detail="Its block has ended.")
        handle = start(*args, **kwargs)
        self._handles.append(handle)
        return handle

    def cancel(self) -> int:
        """Takes back every task that no worker has begun; returns how many. Joining them: CancelledError.

        Cost: 0 messages for tasks on this server, 1 round trip for each of the others.
        """
        count = 0
        for handle in reversed(self._handles):  # the last ones are the least likely to have begun
            try:
                count += not handle.done() and handle.cancel()
            except ServerLostError:
                continue  # waiting for it tells
        return count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._has_ended = True
        try:
            self._wait(is_failed=error is not None)
        except KeyboardInterrupt:
            self.cancel()
            raise
        failures = [each for each in (handle.exception() for handle in self._handles) if each is not None]
        errors = [each for each in failures if not isinstance(each, CancelledError) and each is not error]
        cancelled = sum(isinstance(each, CancelledError) for each in failures)
        if error is not None:
            for each in errors:
                error.add_note(f"and a task of the scope failed: {each!r}")
            return
        if errors:
            others = f", {cancelled} were cancelled" if cancelled else ""
            raise BaseExceptionGroup(
                f"{len(errors)} of {len(self._handles)} tasks of the scope failed{others}", errors
            )

    def _wait(self, *, is_failed: bool) -> None:
        if is_failed:
            self.cancel()
        for handle in arrivals.as_ended(self._handles):
            if not is_failed and handle.has_failed:
                is_failed = True
                self.cancel()


def scope() -> Scope:
    """A block at whose end every task spawned in it has ended, so that what it lent is whole again.

    The first task that fails, or an exception that leaves the block, takes back the tasks that no worker has
    begun. A task that runs is waited for.

    Raises:
        ExceptionGroup: at the end of the block, with the error of every task that failed.
    """
    return Scope()
