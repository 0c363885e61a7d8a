"""What waiting threads of other servers say of where they wait; those of this host use the partition.

A note is of use while its thread waits, and small: the oldest go when there are many.
"""

from collections import OrderedDict
from collections.abc import Callable

from drust.server import messages

NOTES_MAX = 256

FindWait = Callable[[int, int], "tuple[int, bytes, list[tuple[int, int]]] | None"]


class Notes:
    """Of threads that wait for locks of this server."""

    def __init__(self, find_wait: FindWait, find_held: Callable[[tuple[int, int, int]], int]) -> None:
        """What is in the partition: of a thread, the lock it waits for; of a hold, its lock's address."""
        self._find_wait = find_wait
        self._find_held = find_held
        self._texts: OrderedDict[tuple[int, int], tuple[int, str]] = OrderedDict()

    def keep(self, note: messages.WaitNote) -> messages.Waiting:
        """Until its thread is known not to wait, or there are too many."""
        text = note.text[: messages.NOTE_CHARACTERS_MAX]
        self._texts[note.who, note.token] = (self._find_held(note.hold), text)
        self._texts.move_to_end((note.who, note.token))
        while len(self._texts) > NOTES_MAX:
            self._texts.popitem(last=False)
        return messages.Waiting()

    def of(self, thread: messages.WaitOf) -> messages.Waiting:
        """What that thread waits for here, if it does."""
        found = self._find_wait(thread.who, thread.token)
        lock, text = self._texts.get((thread.who, thread.token), (0, ""))
        if found is None or found[0] != lock:  # it is about an earlier wait
            self._texts.pop((thread.who, thread.token), None)
            text = ""
        if found is None:
            return messages.Waiting()
        address, note, by = found
        return messages.Waiting(address, note.decode(errors="replace") or text, by)
