"""The start of a server process: what it is told, partition and data plane, supervision until the end."""

import faulthandler
import logging
import os
import signal
import sys
from typing import NoReturn

from drust.server import log, messages
from drust.server.channel import Channel, server_end
from drust.server.supervisor import Supervisor


def main() -> NoReturn:
    """Runs a server; `sys.argv[1]` is the inherited descriptor of its channel. Ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    faulthandler.enable()
    status = _run(server_end(int(sys.argv[1])))
    logging.shutdown()
    os._exit(status)  # threads that wait in native code need not be woken


def _run(channel: Channel[messages.ToServer]) -> int:
    received = channel.receive()
    if received is None:
        return 1  # the driver ended first
    start = received[0]
    if not isinstance(start, messages.Start):
        channel.send(messages.Failed(reason=f"the first message was {type(start).__name__}, not Start"))
        return 1
    log.configure(start.log_level, f"[server {start.server}] ")
    try:
        from drust import _core

        plane = _core.ServerPlane.create(
            server=start.server,
            incarnation=start.incarnation,
            heap_bytes=start.heap_bytes,
            host=start.host,
            port=0,
            threads=start.threads,
            token=start.token,
            log=logging.getLogger("drust.server").warning,
            pid=os.getpid(),
            replicates_all=start.replicates_all,
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the driver shall raise it
        channel.send(messages.Failed(reason=f"{type(error).__name__}: {error}"))
        return 1
    ready = messages.Ready(pid=os.getpid(), port=plane.port)
    channel.send(ready, [plane.memfd] if start.server == messages.HOME else [])
    Supervisor(plane, channel, start).run()
    return 0
