"""A channel: one end of a unix socket pair that carries whole messages and file descriptors.

Idea: SOCK_SEQPACKET keeps the boundaries of messages, so there is no framing and no partial read; the end of
file is the other process's death, told by the kernel. Nothing has a name in a file system, nothing stands in
an argument list. Rejected: pipes and length prefixes (partial reads in a loop that may not block),
multiprocessing.Connection (pickles).
"""

import array
import os
import socket
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from drust.server import messages

PACKET_BYTES_MAX = 128 * 1024  # below the kernel's default for one packet (net.core.wmem_default)
_INT_BYTES = array.array("i").itemsize
_ANCILLARY_BYTES = socket.CMSG_LEN(4 * _INT_BYTES)  # at most four descriptors a message

Incoming = TypeVar("Incoming")


class Channel(Generic[Incoming]):
    """Sends any message, receives those of one set. Not thread-safe: one thread receives, one sends."""

    def __init__(self, end: socket.socket, decoder: "msgspec.msgpack.Decoder[Incoming]") -> None:
        """Takes `end` over. `decoder` checks what comes in."""
        self._socket = end
        self._decoder = decoder

    def fileno(self) -> int:
        """For selectors; -1 once closed."""
        return self._socket.fileno()

    def send(self, message: messages.Message, descriptors: Sequence[int] = ()) -> bool:
        """Sends one message; false if the other end is gone.

        Raises:
            BlockingIOError: the channel does not block and has no room; nothing was sent.
            OSError: the message is above PACKET_BYTES_MAX.
        """
        try:
            socket.send_fds(self._socket, [messages.encode(message)], list(descriptors))
        except ConnectionError:
            return False
        return True

    def receive(self) -> tuple[Incoming, list[int]] | None:
        """The next message with the descriptors that came along (the caller's now); None once the other end
        is gone.

        Raises:
            BlockingIOError: the channel does not block and nothing has come.
            msgspec.DecodeError: a message this side does not know; the descriptors are closed.
        """
        try:
            # Not socket.recv_fds: it drops the flag, and whatever the user forks would inherit the partition.
            packet, ancillary, _, _ = self._socket.recvmsg(
                PACKET_BYTES_MAX, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return None
        if not packet:
            return None
        descriptors = [
            descriptor
            for level, kind, raw in ancillary
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
            for descriptor in array.array("i", raw[: len(raw) // _INT_BYTES * _INT_BYTES])
        ]
        try:
            return self._decoder.decode(packet), descriptors
        except msgspec.DecodeError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def set_blocking(self, blocking: bool) -> None:
        """Whether `send` and `receive` wait."""
        self._socket.setblocking(blocking)

    def close(self) -> None:
        """Ends the channel; the other end receives None. May be called again."""
        self._socket.close()


def server_end(descriptor: int) -> Channel[messages.ToServer]:
    """A server's end, from the descriptor it inherited."""
    return Channel(socket.socket(fileno=descriptor), msgspec.msgpack.Decoder(messages.ToServer))


def channel_pair() -> tuple[Channel[messages.ToDriver], socket.socket]:
    """A driver's end, and the socket that its server shall inherit."""
    driver_side, server_side = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(driver_side, msgspec.msgpack.Decoder(messages.ToDriver)), server_side
