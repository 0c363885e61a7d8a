"""Who answers for which server, and who backs whom up: the endpoint table as servers are lost. No I/O.

The backup of a server is the next living one, as on a ring, for as long as it lives. Every server has one,
also in a session that keeps no replicas: it costs nothing until a Box asks for one. The home server has none:
the script maps its partition, so its end is the session's end, and replicas of it could be read by nobody.

    lose(1):    row 1 without a port            everyone stops sending there; records of its tasks are lost
    replace(1)  row 1 answered by its backup    with what it has of 1, and of whom 1 answered for
    give_up(1)  row 1 without a backup          there are no replicas: nobody waits
    restart(1)  row 1 at a new port, empty

Rejected: a successor chosen by hashing each address (no server would then hold all of a lost one's, and a
tied group would have no one place to be committed).
"""

from dataclasses import dataclass

from drust.server.messages import Endpoint


@dataclass
class _Place:
    """One server number. `by` answers for it: itself until it is lost, nobody when it is gone for good."""

    host: str
    port: int
    by: int | None
    backup: int | None = None
    epoch: int = 1
    incarnation: int = 1
    is_alive: bool = True
    is_backed: bool = True  # its backup has, or is about to be given, all that it needs to take the place


class Ring:
    """The table. Every method that changes it is followed by sending it to everyone."""

    def __init__(self, listening: list[tuple[str, int]], home: int) -> None:
        """`listening`: host and port of each server, by number."""
        self._home = home
        self._places = [_Place(host, port, number) for number, (host, port) in enumerate(listening)]
        self._choose_backups()

    @property
    def table(self) -> list[Endpoint]:
        """A row for each server number."""
        rows = []
        for number, place in enumerate(self._places):
            by = place.by if place.by != number else None
            rows.append(
                Endpoint(server=number, host=place.host, port=place.port, epoch=place.epoch, by=by,
                         backup=place.backup, incarnation=place.incarnation)
            )  # fmt: skip
        return rows

    def answered_by(self, server: int) -> list[int]:
        """The numbers that a server answers for, its own first."""
        numbers = [number for number, place in enumerate(self._places) if place.by == server]
        return sorted(numbers, key=lambda number: number != server)

    def successor(self, server: int) -> int | None:
        """Who can take the place of a server, if anybody can."""
        backup = self._places[server].backup
        return backup if backup is not None and self._places[backup].is_alive else None

    def lose(self, server: int) -> list[int]:
        """A server has ended. Returns the numbers that have nobody left to answer for them, ever."""
        self._places[server].is_alive = False
        successor = self.successor(server)
        gone = []
        for number in self.answered_by(server):
            place = self._places[number]
            place.port, place.epoch = 0, place.epoch + 1
            # The row says who will answer; without one, nobody waits.
            place.backup = successor if number == server or place.is_backed else None
            if place.backup is None:
                place.by = None
                gone.append(number)
        self._choose_backups()
        return gone

    def replace(self, server: int) -> int | None:
        """Its backup answers for all that a lost server answered for. None if that is lost as well."""
        successor = self.successor(server)
        for number in self.answered_by(server):
            place = self._places[number]
            place.epoch += 1
            if successor is None:
                place.by = place.backup = None
                continue
            place.host, place.port = self._places[successor].host, self._places[successor].port
            place.by, place.backup = successor, self._places[successor].backup
            place.is_backed = False
        return successor

    def give_up(self, numbers: list[int]) -> None:
        """There is nothing to be had of these, which nobody answers for: nobody waits."""
        for number in numbers:
            self._places[number].by = self._places[number].backup = None

    def restart(self, server: int, host: str, port: int) -> None:
        """A new process, empty, has the number of a lost one."""
        place = self._places[server]
        place.host, place.port, place.epoch = host, port, place.epoch + 1
        place.by, place.is_alive, place.is_backed = server, True, True
        self._choose_backups()

    def next_incarnation(self, server: int) -> int:
        """Part of every colour that the next process of this number draws, so that no old colour hits."""
        self._places[server].incarnation += 1
        return self._places[server].incarnation

    def protected(self, server: int, backup: int) -> None:
        """The versions of this number are on that backup."""
        place = self._places[server]
        place.is_backed = place.is_backed or place.backup == backup

    @property
    def unprotected(self) -> list[int]:
        """Numbers whose values would be gone with the next server that is lost: home's always are."""
        return [
            number
            for number, place in enumerate(self._places)
            if number != self._home and (place.backup is None or not place.is_backed)
        ]

    def _choose_backups(self) -> None:
        for number, place in enumerate(self._places):
            has_backup = place.backup is not None and self._places[place.backup].is_alive
            if place.is_alive and not has_backup:
                backup = self._next(number)
                if backup != place.backup:
                    place.is_backed = place.backup is None  # at the start there is nothing to be sent
                place.backup = backup
        for number, place in enumerate(self._places):
            if place.by is not None and place.by != number and self._places[place.by].is_alive:
                if place.backup != self._places[place.by].backup:
                    place.is_backed = False
                place.backup = self._places[place.by].backup

    def _next(self, server: int) -> int | None:
        if server == self._home:
            return None
        count = len(self._places)
        others = ((server + step) % count for step in range(1, count))
        return next((other for other in others if self._places[other].is_alive), None)
