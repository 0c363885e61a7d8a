"""The start of a worker process: `python -m drust.worker LIFELINE MEMFD`, by its server, never by hand.

The lifeline brings what the worker must know (server/process.py) and, by its end, that the server is gone: a
native thread waits for that, so the worker ends within milliseconds even while a task holds the GIL. Then the
driver's surroundings are put back (module path, folder), the runtime attaches, and tasks are run until the
partition closes.
"""

import faulthandler
import os
import signal
import sys

import msgspec

from drust import _core
from drust.server import log, messages, process


def _read_exactly(descriptor: int, size: int) -> bytes:
    """`size` bytes; ends the process if the server is gone before they came."""
    parts: list[bytes] = []
    while size:
        part = os.read(descriptor, size)
        if not part:
            os._exit(1)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _take_over(start: messages.WorkerStart) -> None:
    """The driver's module path, folder and environment, as far as they make sense here."""
    sys.path[:] = start.path
    sys.argv[:] = [""]
    if start.python_path is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = start.python_path
    try:
        os.chdir(start.directory)
    except OSError as error:
        print(f"drust: cannot enter the driver's folder: {error}", file=sys.stderr)


def main() -> None:
    """Runs a worker until its server closes the partition."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    process.forbid_core_files()
    lifeline, memfd = int(sys.argv[1]), int(sys.argv[2])
    size = process.LENGTH.unpack(_read_exactly(lifeline, process.LENGTH.size))[0]
    start = msgspec.msgpack.decode(_read_exactly(lifeline, size), type=messages.WorkerStart)
    _core.exit_on_eof(lifeline)
    for descriptor in (lifeline, memfd):
        os.set_inheritable(descriptor, False)  # what tasks start shall not keep the partition alive
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(line_buffering=True)
    log.configure(start.log_level)
    _take_over(start)

    from drust import execution, runtime
    from drust import sync as _sync  # noqa: F401 - registers the handles that arguments may bring

    runtime.attach_worker(memfd, start.token)
    execution.work()


if __name__ == "__main__":
    main()
