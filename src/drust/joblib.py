"""joblib's `Parallel` on drust's workers: `import drust.joblib`, then `parallel_config(backend="drust")`.

Each batch of joblib's is one task. Arrays among the arguments travel out of band, once for each batch that
names them; what many batches read is better put into a Box that is lent (`box.borrow()`), which joblib passes
on. The number of jobs tells joblib how finely to cut the work; the tasks go to whichever worker is free.

Needs joblib: `pip install 'drust[joblib]'`.
"""

from collections.abc import Callable
from typing import Any

from joblib import register_parallel_backend
from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase

from drust import runtime
from drust.executor import Executor, TaskFuture


class DrustBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """What joblib calls."""

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(self, *args: Any, server: int | None = None, retry: int = 0, **kwargs: Any) -> None:
        """As every backend; `server` and `retry` as for `drust.spawn`."""
        super().__init__(*args, **kwargs)
        self._server, self._retry = server, retry
        self._executor: Executor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """How many jobs run at once: negative numbers count from the workers of a server."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        runtime.current()
        workers = runtime.config().workers or 1
        if n_jobs is None:
            return 1
        return max(workers + 1 + n_jobs, 1) if n_jobs < 0 else n_jobs

    def configure(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, n_jobs: int = 1, parallel: Any = None, **_: Any
    ) -> int:
        """Called at the beginning of a Parallel."""
        self.parallel = parallel
        self._executor = Executor(server=self._server, retry=self._retry)
        return self.effective_n_jobs(n_jobs)

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None
    ) -> TaskFuture[Any]:
        """Sends one batch: a task."""
        if self._executor is None:
            raise RuntimeError("this backend has ended; a Parallel configures it again")
        future = self._executor.submit(_run_batch, func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit

    def retrieve_result_callback(self, out: TaskFuture[Any]) -> Any:
        """What a batch returned, or raises what it raised."""
        return out.result()

    def terminate(self) -> None:
        """Called at the end of a Parallel. The workers stay."""
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A job has failed: batches that no worker has begun are taken back."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)


def _run_batch(batch: Callable[[], Any]) -> Any:
    """The task. The batch is its argument, not its function: functions are kept for the next task."""
    return batch()


register_parallel_backend("drust", DrustBackend)
