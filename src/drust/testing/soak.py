"""Deaths by the thousand: `python -m drust.testing.soak --kills 10000`.

One chaos run after another, each in a session of its own and of another shape, until so many workers have
died. What a death costs is the start of the process in its place, most of that imports: a play has many, so
that what it pays once (its session, the account, the invariants) counts little. A play that fails does not
end the soak: what it says is printed with the command that plays it again, and the next one begins.

Rejected: one long session (its first finding hides all later ones); sessions of one shape (one server never
sends, two never lend from the second to the third).
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import click

from drust.testing import chaos

PLAY_KILLS = 250
FAILURES_MAX = 5  # then it is one fault that shows everywhere


class SoakError(AssertionError):
    """Some plays went wrong. The message has each one's own, with the command that plays it again."""


@dataclass(frozen=True)
class Play:
    """The arguments of one chaos run."""

    seed: int
    kills: int
    servers: int
    workers: int


def plays(seed: int, kills: int) -> Iterator[Play]:
    """What a soak consists of: the same for the same seed, but for the kills of the last play."""
    random = Random(seed)
    while kills > 0:
        yield Play(
            random.randrange(10**9), min(kills, PLAY_KILLS), random.randint(1, 3), random.randint(3, 6)
        )
        kills -= PLAY_KILLS


def run(seed: int, kills: int, say: Callable[[str], None]) -> int:
    """Plays until `kills` workers have died; returns how many did.

    Args:
        seed: decides the plays.
        kills: how many workers must die.
        say: gets a line at the start, one after each play, and what a play that failed has to say.

    Raises:
        SoakError: at the end, or after FAILURES_MAX plays that failed.
    """
    all_plays = list(plays(seed, kills))
    say(f"soak: seed {seed}, {kills} kills in {len(all_plays)} plays")
    failed: list[str] = []
    deaths, started_s = 0, time.monotonic()
    for number, play in enumerate(all_plays, 1):
        where = f"play {number} of {len(all_plays)} ({play.servers} servers, {play.workers} workers each)"
        try:
            report = chaos.run(play.seed, play.kills, play.servers, play.workers)
        except chaos.ChaosError as error:
            failed.append(f"{where}: {error}")
            say(f"FAILED: {failed[-1]}")
            if len(failed) == FAILURES_MAX:
                break
            continue
        deaths += report.deaths
        rate = deaths / (time.monotonic() - started_s) * 60
        say(f"{where}: {report}; {deaths} of {kills} kills so far, {rate:.0f} a minute")
    if failed:
        raise SoakError("\n".join([f"{len(failed)} of {len(all_plays)} plays of soak seed {seed}:", *failed]))
    return deaths


@click.command()
@click.option("--seed", type=int, default=None, help="Decides the plays; a new one unless given.")
@click.option("--kills", type=int, default=10_000, show_default=True, help="How many workers must die.")
def main(seed: int | None, kills: int) -> None:
    """Chaos runs until so many workers have died. Its own lines go to stdout, the sessions' to stderr."""
    try:
        run(seed if seed is not None else Random().randrange(10**6), kills, click.echo)
    except SoakError as error:
        click.echo(str(error).splitlines()[0])
        sys.exit(1)


if __name__ == "__main__":
    main()
