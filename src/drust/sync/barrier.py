"""Barrier: as many as agreed wait for each other, round after round."""

from drust.errors import BarrierBrokenError, BorrowTimeoutError, ConfigError
from drust.sync.atomics import AtomicInt

_BROKEN = -1


class Barrier:
    """A point at which `parties` threads of any processes wait for each other; again and again.

    Two atomics: who has arrived, and how many rounds are over. Whoever comes last begins the next round.

    Cost: on its home's host a futex; elsewhere 2 or 3 round trips.

    Args:
        parties: how many.
    """

    __slots__ = ("_arrived", "_rounds", "parties")

    def __init__(self, parties: int) -> None:
        if parties < 1:
            raise ConfigError(variable="parties=", value=repr(parties), expected="1 or more")
        self.parties = parties
        self._arrived = AtomicInt()
        self._rounds = AtomicInt()

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the others. Returns which arrival of its round this was, from 0.

        Raises:
            BarrierBrokenError: somebody gave up waiting; for everybody, from then on. A party that dies is
                missed by nobody but a `timeout`.
        """
        arrival = self._arrived.fetch_add(1)
        this_round, place = divmod(arrival, self.parties)
        if place == self.parties - 1 and self._rounds.compare_exchange(this_round, this_round + 1)[0]:
            self._rounds.notify_all()
            return place
        rounds = self._rounds.load()
        try:
            while _BROKEN < rounds <= this_round:
                rounds = self._rounds.wait(rounds, timeout)
        except BorrowTimeoutError:
            broke, rounds = self._rounds.compare_exchange(this_round, _BROKEN)
            if broke:
                self._rounds.notify_all()
            if broke or _BROKEN < rounds < this_round:
                raise BarrierBrokenError(object=f"a barrier of {self.parties}") from None
        if rounds == _BROKEN:
            raise BarrierBrokenError(object=f"a barrier of {self.parties}")
        return place
