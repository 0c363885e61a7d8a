"""The memory account: every live block of a session, by owner, to the byte; and what has leaked since a look.

Blocks come from each server's control plane, one question a server, so a server whose workers are all busy or
dead answers too. Copies of remote blocks are nobody's loss (they go when memory is short) and are counted
apart. What a session holds is only comparable when it is at rest: tasks joined, frees on their way arrived,
dead processes reaped; `check_settled` waits for that, looking again until the account is what it was, and
when time is up shows the difference block by block.
"""

import gc
import time
from collections import Counter
from dataclasses import dataclass, field

import drust
from drust import codecs, outstanding, runtime
from drust.errors import DrustError
from drust.server import messages
from drust.session import Session
from drust.testing import faults
from drust.units import format_bytes

SETTLE_S = 10.0
_COPY = 4  # owner kind of the copy table's blocks
_SHOWN = 20
_LOOKS = 10  # between two collections of garbage, which are tasks and leave blocks of their own for a moment
_KEPT_S = 0.5  # a call or a completion that is as it was for so long is not under way


@dataclass(frozen=True)
class Block:
    """One live block as its server lists it."""

    server: int
    codec: int
    owner_kind: int
    owner_slot: int
    nbytes: int
    pointer: tuple[int, int, int] = field(compare=False)

    def __str__(self) -> str:
        owner = runtime.OWNER_NAMES.get(self.owner_kind, f"owner kind {self.owner_kind}")
        if self.owner_kind == 1:
            owner = f"process slot {self.owner_slot}"
        address, colour, _ = self.pointer
        return (
            f"server {self.server}: {format_bytes(self.nbytes)} ({self.nbytes} bytes),"
            f" {codecs.codec_name(self.codec)}, owned by {owner}, at {address:#x} colour {colour:#x}"
        )


@dataclass(frozen=True)
class Account:
    """A look at every server that answered: its blocks but for copies, and how many copies."""

    blocks: tuple[Block, ...]
    copies: int
    lost: tuple[int, ...] = ()  # servers that did not answer

    @property
    def nbytes(self) -> int:
        """The bytes of all blocks, copies not counted."""
        return sum(block.nbytes for block in self.blocks)

    def since(self, before: "Account") -> tuple[list[Block], list[Block]]:
        """(leaked, vanished): blocks that are here and were not before, and the reverse; told by place."""
        then = {(block.server, block.pointer[0]) for block in before.blocks}
        now = {(block.server, block.pointer[0]) for block in self.blocks}
        leaked = [block for block in self.blocks if (block.server, block.pointer[0]) not in then]
        vanished = [block for block in before.blocks if (block.server, block.pointer[0]) not in now]
        return leaked, vanished


class LeakError(AssertionError):
    """A session at rest holds other blocks than it did."""


def take(session: Session) -> Account:
    """The account of this moment. One round trip a server."""
    blocks: list[Block] = []
    copies = 0
    lost: list[int] = []
    for server in range(session.servers):
        try:
            rows = _rows(server)
        except DrustError:
            lost.append(server)
            continue
        for row in rows:
            if row.owner_kind == _COPY:
                copies += 1
            else:
                blocks.append(
                    Block(server, row.codec, row.owner_kind, row.owner_slot, row.pointer[2], row.pointer)
                )
    return Account(tuple(blocks), copies, tuple(lost))


def _rows(server: int) -> list[messages.BlockRow]:
    request = messages.encode(messages.Largest(most=1000))
    reply = messages.decode_reply(runtime.current().control(server, request))
    if not isinstance(reply, messages.LargestBlocks):
        raise AssertionError(f"server {server} does not list its blocks: {reply}")
    return reply.blocks


def difference(before: Account, after: Account) -> str:
    """What has come and gone between two looks, block by block; empty if nothing has."""
    now, then = Counter(after.blocks), Counter(before.blocks)
    if now == then:
        return ""
    leaked, vanished = after.since(before)
    lines = [
        f"{len(after.blocks)} blocks of {after.nbytes} bytes, {len(before.blocks)} of {before.nbytes} before"
    ]
    for title, blocks in (("leaked", leaked), ("vanished", vanished)):
        lines += [f"  {title}: {block}" for block in blocks[:_SHOWN]]
        if len(blocks) > _SHOWN:
            lines.append(f"  and {len(blocks) - _SHOWN} more {title}")
    return "\n".join(lines)


def rest(session: Session) -> None:
    """Collects garbage here and in the workers, and sends the frees that wait to go along."""
    gc.collect()
    outstanding.poll()  # nobody joins them, but their lends end
    runtime.current().flush()
    jobs = []
    for server in range(session.servers):
        try:
            jobs += [drust.spawn(_tidy, server=server) for _ in range(session.config.workers)]
        except DrustError:  # lost: nobody is left there to tidy
            continue
    for job in jobs:
        try:
            job.join(timeout=SETTLE_S)
        except DrustError:
            continue
    del jobs[:]


def _live_slots(session: Session) -> str:
    """Which process slots a leaked block's owner may be, as more lines of the error."""
    lines = ""
    for server in range(session.servers):
        try:
            slots = drust.spawn(_slots, server=server).join(timeout=SETTLE_S)
        except DrustError as error:
            slots = [f"not known: {error}"]
        lines += f"\n  process slots alive on server {server}: {', '.join(slots)}"
    return lines


def _slots() -> list[str]:
    kinds = {1: "server", runtime.KIND_DRIVER: "driver", runtime.KIND_WORKER: "worker"}
    return [f"{row['slot']} ({kinds.get(row['kind'])})" for row in runtime.current().processes()]


def _tidy() -> None:
    gc.collect()
    runtime.current().flush()


def take_at_rest(session: Session) -> Account:
    """The account to compare with later: looked at until nothing changes any more."""
    deadline = time.monotonic() + SETTLE_S
    rest(session)
    pause = faults.Pause()
    seen, since_s = take(session), time.monotonic()
    while True:
        pause.wait()  # a worker frees what it sent after its spawner has it
        again, now_s = take(session), time.monotonic()
        if difference(seen, again):
            since_s = now_s
        # Calls and completions under way; or such as somebody keeps, because he keeps what came in them.
        under_way = any(block.codec > codecs.THIRD_PARTY_MAX for block in again.blocks)
        if now_s > since_s and (not under_way or now_s - since_s > _KEPT_S):
            return again
        if now_s > deadline:
            return again
        seen = again


def check_settled(session: Session, before: Account, within_s: float = SETTLE_S) -> Account:
    """Waits until the session holds what it held at `before`, to the byte.

    Raises:
        LeakError: it does not within `within_s`; the message lists every block with codec, owner and size.
    """
    deadline = time.monotonic() + within_s
    found = ""
    while True:
        rest(session)
        pause = faults.Pause()
        for _ in range(_LOOKS):
            now = take(session)
            missing = set(now.lost)
            then = Account(tuple(b for b in before.blocks if b.server not in missing), before.copies)
            found = difference(then, now)
            if not found:
                return now
            pause.wait()
        if time.monotonic() > deadline:
            raise LeakError(found + _live_slots(session))
