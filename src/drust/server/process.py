"""One worker process: how it is started, what it prints, how it ended.

What a worker may know comes over its lifeline: a pipe whose write end the server alone holds. The pipe brings
one message (`WorkerStart`), then stays silent; its end of file is the server's death, and ends the worker.
The partition travels as an inherited memfd. A worker leads a process group of its own, so that what its tasks
start ends with it.

Workers leave no core files unless DRUST_CORE_FILES=1: the kernel would write the partition, which every
worker maps, once for each that dies, and a task that is tried again fills a disk. The user's `ulimit -c`
cannot tell what is wanted: containers come with `unlimited`. Where it died, faulthandler prints all the same.
"""

import contextlib
import os
import resource
import signal
import struct
import subprocess
import sys
import time

from drust.server import messages

CORE_FILES = "DRUST_CORE_FILES"  # a variable of the driver's environment, as DRUST_LOG
LENGTH = struct.Struct("<I")  # in front of the one message on a lifeline
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")


def worker_environment(start: messages.Start) -> dict[str, str]:
    """A worker's variables: inherited, the cluster's, its share of the processors unless set; no token."""
    shares = dict.fromkeys(_THREAD_VARIABLES, str(start.worker_threads))
    environment = shares | os.environ | start.worker_environment
    environment.pop("DRUST_TOKEN", None)
    return environment


def describe_exit(status: int) -> str:
    """What `Popen.wait()` returned, in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def forbid_core_files() -> None:
    """As the head of this file says: in a worker, before its first task. What it starts inherits that."""
    if os.environ.get(CORE_FILES, "") in ("", "0"):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def is_stopped(pid: int) -> bool:
    """Whether a process of ours is stopped by a signal (SIGSTOP, SIGTSTP); one file read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except OSError:
        return False


class WorkerProcess:
    """A running worker. Its descriptors, all non-blocking: `pidfd` (readable once it ended), `outputs`."""

    def __init__(self, start: messages.Start, index: int, memfd: int, environment: dict[str, str]) -> None:
        """Starts it: 1 process, 4 descriptors here. Raises OSError if the system has none to give."""
        read_end, write_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*python_command(), "-m", "drust.worker", str(read_end), str(memfd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(read_end, memfd),
                process_group=0,
                env=environment,
            )
        except BaseException:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
        self.index = index
        self.pid = self._process.pid
        self.started_s = time.monotonic()
        self.pidfd = os.pidfd_open(self.pid)
        self._lifeline = write_end
        pipes = (self._process.stdout, self._process.stderr)
        self.outputs: dict[int, int] = {pipe.fileno(): stream for stream, pipe in enumerate(pipes, 1) if pipe}
        for descriptor in self.outputs:
            os.set_blocking(descriptor, False)
        self._greet(start)

    def _greet(self, start: messages.Start) -> None:
        body = messages.encode(
            messages.WorkerStart(
                server=start.server,
                worker=self.index,
                token=start.token,
                path=start.path,
                directory=start.directory,
                python_path=start.python_path,
                log_level=start.log_level,
            )
        )
        with contextlib.suppress(BrokenPipeError):  # it ended already: its pidfd says so
            os.write(self._lifeline, LENGTH.pack(len(body)) + body)

    @staticmethod
    def read(output: int, size: int) -> bytes:
        """Up to `size` bytes of an output; none at its end. Raises BlockingIOError while there is nothing."""
        return os.read(output, size)

    def end(self) -> None:
        """Closes the lifeline: the worker ends at once, whatever it does. May be called again."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def kill(self) -> None:
        """Kills the worker and what it started. Before `collect` only: until then its pid is its own."""
        with contextlib.suppress(ProcessLookupError):  # it ended before it led a group
            os.killpg(self.pid, signal.SIGKILL)

    def reason(self) -> str:
        """How it ended, in words, its pid still its own. After its pidfd was readable, before `collect`."""
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        return describe_exit(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)

    def collect(self) -> str:
        """How it ended, in words. Gives pid and descriptors back; call once, after its pidfd was readable."""
        status = self._process.wait()
        self.end()
        os.close(self.pidfd)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()
        return describe_exit(status)


def python_command() -> list[str]:
    """This interpreter with this process's options, and no current folder in front of the library."""
    options = [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
    options += [f"-W{option}" for option in sys.warnoptions]
    options += ["-B"] * bool(sys.flags.dont_write_bytecode) + ["-O"] * sys.flags.optimize
    return [sys.executable, *options, "-P"]
