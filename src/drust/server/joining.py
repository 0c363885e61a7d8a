"""How other processes of the same user and host find a running cluster: `drust status`, or a script that
joins.

The home server listens on an abstract unix socket named after its user and pid. The name vanishes with the
process, however it ends: there is no file to be left behind, go stale, or be read by another user. Both sides
check with SO_PEERCRED that the other runs as the same user; then the server hands over token, endpoints and
memfd, and hangs up. Rejected: a file with the token in XDG_RUNTIME_DIR (stays after kill -9 of all).
"""

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec

from drust.server import messages
from drust.server.channel import Channel
from drust.server.loop import Loop

_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_CONNECT_TIMEOUT_S = 2.0


def _name(pid: int) -> str:
    return f"drust/{os.geteuid()}/{pid}"


def _peer(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end, as the kernel knows them."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


class Hall:
    """Where processes arrive that want to join. Runs in the server's loop."""

    def __init__(self, loop: Loop, memfd: int, arrived: Callable[[int], None]) -> None:
        """`arrived` gets the pid of each process that was given the memfd."""
        self._loop = loop
        self._memfd = memfd
        self._arrived = arrived
        self._welcome: messages.Welcome | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)

    def open(self, welcome: messages.Welcome) -> None:
        """Hands out `welcome` from now on."""
        if self._welcome is None:
            self._listener.bind("\0" + _name(os.getpid()))
            self._listener.listen(8)
            self._loop.watch(self._listener.fileno(), self._accept)
        self._welcome = welcome

    def close(self) -> None:
        """Nobody can join any more."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it hung up before we looked
        with connection:
            pid, uid = _peer(connection)
            if uid != os.geteuid() or self._welcome is None:
                return
            channel = Channel(connection, msgspec.msgpack.Decoder(messages.Welcome))
            if channel.send(self._welcome, [self._memfd]) and pid:
                self._arrived(pid)


def find_servers() -> list[int]:
    """The pids of this user's home servers on this host, oldest name first. Reads /proc/net/unix."""
    prefix = "@" + _name(0).removesuffix("0")
    names = {
        line.rpartition(" ")[2] for line in Path("/proc/net/unix").read_text().splitlines() if prefix in line
    }
    return sorted(int(name.removeprefix(prefix)) for name in names if name.removeprefix(prefix).isdigit())


def join_server(pid: int) -> tuple[messages.Welcome, int]:
    """What a home server hands over: the session, and its partition's memfd, the caller's to close or attach.

    Raises:
        ConnectionError: nobody listens there, or it is another user's process.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_CONNECT_TIMEOUT_S)
        connection.connect("\0" + _name(pid))
        if _peer(connection)[1] != os.geteuid():
            raise ConnectionRefusedError(f"the process behind {_name(pid)} is another user's")
        received = Channel(connection, msgspec.msgpack.Decoder(messages.Welcome)).receive()
        if received is None or not received[1]:
            raise ConnectionResetError(f"server {pid} ended or refused")
        welcome, descriptors = received
        return welcome, descriptors[0]
