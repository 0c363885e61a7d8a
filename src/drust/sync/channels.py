"""channel(): a queue of values between processes, carrying Boxes as pointers.

A value becomes a block, as a task's arguments do, and goes into a cell of the channel
(native/sync/channel.hpp); one step each is the C type's (native/bind/channel_type.cpp), waiting is done here.
"""

import time
from typing import Any, Generic, Self, TypeVar

from drust import _core, blocking, codecs, groups, handles, lends, runtime
from drust.errors import (
    BorrowTimeoutError,
    ChannelClosedError,
    ClosedError,
    ConfigError,
    QueueFullError,
)
from drust.sync.waits import check_time, slice_ms

T = TypeVar("T")


class Sender(_core.ChannelEnd, Generic[T]):
    """The sending end of a channel; any number of processes may have it. Made by `channel()`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Sender of a channel on server {self.server}>"

    def send(self, value: T, timeout: float | None = None) -> None:
        """Sends a value; waits for room where the channel is bounded. A worker runs other tasks then.

        Boxes in it move; shared handles are passed on; all else travels as a copy. What a Box's pointer names
        is not touched.

        Cost: on the channel's host one block and no message; elsewhere 1 round trip with the value in it.

        Args:
            value: what to send.
            timeout: seconds to wait for room; None waits as long as it takes.

        Raises:
            ChannelClosedError: nobody receives any more. Then the value is the caller's still.
            BorrowTimeoutError: there was no room in time. Likewise.
            UnpicklableError: the value cannot travel.
        """
        self._send(value, timeout)

    def try_send(self, value: T) -> None:
        """As `send`, without waiting.

        Raises:
            QueueFullError: there is no room now.
        """
        try:
            self._send(value, 0)
        except BorrowTimeoutError:
            raise QueueFullError(queue=repr(self)) from None

    def _send(self, value: T, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        message = _Message(value)
        try:
            if self._object is None:
                self._send_away(message.pin, timeout, deadline)
            elif not self._try_send(message.pin):
                self._send_here(message.pin, timeout, deadline)
        except ClosedError as error:
            message.undo()
            raise _channel_closed(self, error) from None
        except BaseException:
            message.undo()
            raise
        message.sent()

    def _send_here(self, pin: _core.Pin, timeout: float | None, deadline: float | None) -> None:
        if timeout == 0:
            raise BorrowTimeoutError(object=f"room in {self!r}", timeout_s=0.0)
        with blocking.section():
            while True:
                changes = self._changes()
                if self._try_send(pin):
                    return
                check_time(f"room in {self!r}", timeout, deadline)
                self._wait(changes, slice_ms(deadline))

    def _send_away(self, pin: _core.Pin, timeout: float | None, deadline: float | None) -> None:
        with blocking.section():
            while not self._send_remote(pin, 0 if timeout == 0 else slice_ms(deadline)):
                check_time(f"room in {self!r}", timeout, deadline)
        pin.set_release(handles.FREE_SHALLOW)  # it arrived as a copy


class Receiver(_core.ChannelEnd, Generic[T]):
    """The receiving end of a channel; each value goes to one receiver. Made by `channel()`.

    Iterating over it receives until the channel is closed and empty.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Receiver of a channel on server {self.server}>"

    def recv(self, timeout: float | None = None) -> T:
        """The oldest value; waits for one. A worker runs other tasks meanwhile.

        Cost: on the channel's host no message; elsewhere 1 round trip with the value in it, and a share of a
        free.

        Args:
            timeout: seconds to wait; None waits as long as somebody may send.

        Raises:
            ChannelClosedError: it is empty, and nobody has a sender any more.
            BorrowTimeoutError: nothing came in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            return self._recv(timeout, deadline)
        except ClosedError as error:
            raise _channel_closed(self, error) from None

    def try_recv(self) -> T:
        """As `recv`, without waiting.

        Raises:
            BorrowTimeoutError: there is nothing now.
        """
        return self.recv(timeout=0)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        try:
            return self.recv()
        except ChannelClosedError:
            raise StopIteration from None

    def _recv(self, timeout: float | None, deadline: float | None) -> T:
        if self._object is None:
            return self._recv_away(timeout, deadline)
        pointer = self._try_receive()
        if pointer is None:
            check_time(f"a value from {self!r}", timeout, deadline)
            with blocking.section():
                while pointer is None:
                    changes = self._changes()
                    pointer = self._try_receive()
                    if pointer is None:
                        check_time(f"a value from {self!r}", timeout, deadline)
                        self._wait(changes, slice_ms(deadline))
                        runtime.check_alive()
        value: T = _open_message(runtime.current().open(pointer, True, handles.FREE_SHALLOW))
        return value

    def _recv_away(self, timeout: float | None, deadline: float | None) -> T:
        with blocking.section():
            while (found := self._receive_remote(0 if timeout == 0 else slice_ms(deadline))) is None:
                check_time(f"a value from {self!r}", timeout, deadline)
        pointer, body = found
        pin = _core.Lock._keep_block(body)
        pin.set_release(handles.FREE_SHALLOW)
        runtime.current().free(pointer, shallow=True)
        value: T = _open_message(pin)
        return value


class _Message:
    """A value on its way into a channel: what it moves comes back if it cannot be sent."""

    def __init__(self, value: Any) -> None:
        encoded = codecs.encode(value)
        self._moved: list[tuple[Any, _core.Pin, object]] = []
        if encoded.codec in codecs.GROUPS and encoded.children:
            self.pin = handles.write_encoded(encoded)
            return

        def move(child: Any, flags: int) -> tuple[int, int, int, int]:
            lease = child._lease
            pin, kept = child._transfer()
            self._moved.append((child, pin, kept))
            lends.gave(pin, lease)
            return (*pin.pointer, flags)

        try:
            self.pin = codecs.write(runtime.current(), encoded, move)
        except BaseException:
            self._give_back()
            raise
        for _, pin, _ in self._moved:
            pin.let_go()

    def sent(self) -> None:
        """It is the channel's now, with what it moves."""
        for _, pin, _ in self._moved:
            pin.disown()

    def undo(self) -> None:
        """Nobody will see it."""
        if self._moved:
            self.pin.set_release(handles.FREE_SHALLOW)
        self._give_back()

    def _give_back(self) -> None:
        for child, pin, kept in self._moved:
            child._transfer_undone(pin, kept)
        self._moved.clear()


def _open_message(pin: _core.Pin) -> Any:
    """The value of a message that is this process's now; its block lives as long as views of it."""
    if groups.is_parent(pin):
        pin.set_release(handles.FREE_TREE)
        parts = groups.open_parts(pin) if _parts_are_here(pin) else groups.fetch_parts(pin)
        return codecs.decode(pin, False, parts.__getitem__)
    block = pin if pin.writable else pin.as_writable()
    return codecs.decode(block, True, lambda child: handles.receive(pin, child))


def _parts_are_here(pin: _core.Pin) -> bool:
    here = runtime.current().server
    return all(runtime.server_of(child[:3]) == here for child in pin.children)


def _channel_closed(end: object, error: ClosedError) -> ClosedError:
    if runtime.attached() is None or runtime.current().closed:
        return error
    return ChannelClosedError(object=repr(end), detail=error.detail)


def channel(capacity: int | None = None) -> tuple[Sender[Any], Receiver[Any]]:
    """A queue of values between processes: many senders, many receivers, each value received once, in order.

    Both ends are handles: pass them to tasks. A channel is closed when all senders or all receivers are gone,
    those of dead processes included.

    Args:
        capacity: how many values it holds before `send` waits; None: as many as there is room for, up to
            2**20.

    Returns:
        The sender and the receiver, at home on this process's server.
    """
    most: int = _core.CHANNEL_MESSAGES_MAX
    if capacity is not None and not 1 <= capacity <= most:
        raise ConfigError(variable="capacity=", value=repr(capacity), expected=f"1 to {most}, or None")
    runtime.current()
    return Sender._make(Receiver, most if capacity is None else capacity)
