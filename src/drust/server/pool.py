"""The workers of one server: started, watched through their pidfds, reaped when they end, and replaced.

A worker that ends takes nothing with it: `ServerPlane.reap` fails the tasks it ran, drops its pins and adopts
its arena; then a new process takes its place. A task that kills its worker costs one worker each time, and
the next is started at once. A worker that ends without having run anything is a fault of the installation: it
is started again ever later, and after DEATHS_MAX such deaths within DEATHS_WINDOW_S no more, with the reason
reported.

A worker that is *stopped* (SIGSTOP) is neither alive nor dead: it holds lends, pins and tasks that nobody may
take from it, and whoever waits for it would wait for ever. It is not taken for a busy one, however long that
runs: the kernel says which it is, by SIGCHLD, so nothing is polled. Stopped for STOPPED_MAX_S it is killed,
and all is as with any other death; continued before, it goes on. A debugger's stop is not one of these.

Everything here runs in the loop's thread. Reaping may wait for another server, so it runs in a thread of its
own.
"""

import functools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from drust.server import messages, process
from drust.server.loop import Loop, Timer
from drust.server.output import LineForwarder

if TYPE_CHECKING:
    from drust._core import ServerPlane

DEATHS_MAX = 5
DEATHS_WINDOW_S = 10.0
STOPPED_MAX_S = 3.0  # with what reaping takes, below the 5 s that any wait may take
_BACKOFF_S = 0.1  # doubled at each death that counts
_END_WITHIN_S = 0.3  # a worker whose lifeline was closed is killed after this
_READ_BYTES = 64 * 1024
_TEND_S = 0.05  # between looks at what dead processes still have on loan

_logger = logging.getLogger("drust.server")


class Place:
    """One of the server's worker places, and the process in it, if any."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: process.WorkerProcess | None = None
        self.forwarders: dict[int, LineForwarder] = {}  # by descriptor
        self.deaths = 0
        self.state = "backing off"
        self.stopped: Timer | None = None  # while the process is stopped: ends it
        self.verdict = ""  # why we killed it, in front of how

    def reason(self) -> str:
        """How its process ended, and why if that was our doing. Before it is collected."""
        return self.verdict + (self.process.reason() if self.process else "")


class Pool:
    """Keeps the places filled until `stop`."""

    def __init__(
        self,
        loop: Loop,
        plane: "ServerPlane",
        start: messages.Start,
        report: Callable[[messages.Message], None],
    ) -> None:
        """`report` gets Output, WorkerLost and WorkersGivenUp, in the loop's thread."""
        self.places = [Place(index) for index in range(start.workers)]
        self._loop = loop
        self._plane = plane
        self._start = start
        self._report = report
        self._environment = process.worker_environment(start)
        self._paused = False
        self._stopping = False
        self._given_up = False
        self._on_empty: Callable[[], None] | None = None
        self._tasks_run = 0
        self._deaths: deque[float] = deque(maxlen=DEATHS_MAX)  # times of the deaths that count
        self._reaping: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._reaper: threading.Thread | None = None
        self._fences: list[Callable[[], None]] = []  # the reaper's thread alone

    @property
    def capacity(self) -> int:
        """The workers there are, or will be in a moment."""
        return sum(place.state != "given up" for place in self.places)

    # -- starting --------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Starts a worker in every place that has none."""
        for place in self.places:
            if not place.process:
                self._start_in(place)

    def _start_in(self, place: Place) -> None:
        if self._stopping or self._given_up or place.process:
            return
        try:
            worker = process.WorkerProcess(self._start, place.index, self._plane.memfd, self._environment)
        except OSError as error:
            self._lost(place, pid=0, reason=f"could not be started: {error}", lost_tasks=0)
            return
        place.process, place.state = worker, "running"
        prefix = f"[server {self._start.server} worker {place.index}] "
        for descriptor, stream in worker.outputs.items():
            place.forwarders[descriptor] = LineForwarder(prefix, self._emitter(stream))
            if not self._paused:
                self._watch_output(place, descriptor)
        self._loop.watch(worker.pidfd, lambda: self._ended(place, worker))

    def _emitter(self, stream: int) -> Callable[[str], None]:
        return lambda text: self._report(messages.Output(stream=stream, text=text))

    # -- output ----------------------------------------------------------------------------------------------

    def pause_output(self, paused: bool) -> None:
        """While paused, workers that print much wait at their full pipes and do not fill this memory."""
        if paused == self._paused:
            return
        self._paused = paused
        for place in self.places:
            for descriptor in place.forwarders:
                if paused:
                    self._loop.unwatch(descriptor)
                else:
                    self._watch_output(place, descriptor)

    def _watch_output(self, place: Place, descriptor: int) -> None:
        self._loop.watch(descriptor, lambda: self._read_output(place, descriptor))

    def _read_output(self, place: Place, descriptor: int) -> bool:
        """Passes on one chunk; false at the end of file, or if there is nothing now."""
        worker = place.process
        assert worker is not None
        try:
            chunk = worker.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        if chunk:
            place.forwarders[descriptor].feed(chunk)
            return True
        self._loop.unwatch(descriptor)
        place.forwarders.pop(descriptor).finish()
        return False

    # -- ending ----------------------------------------------------------------------------------------------

    def _ended(self, place: Place, worker: process.WorkerProcess) -> None:
        """Its pid stays taken (a zombie) until its slot was reaped: no other process is mistaken for it."""
        self._loop.unwatch(worker.pidfd)
        worker.kill()  # what its tasks started
        for descriptor in list(place.forwarders):
            while self._read_output(place, descriptor):
                pass
            if descriptor in place.forwarders:
                self._loop.unwatch(descriptor)
                place.forwarders.pop(descriptor).finish()
        if self._stopping:
            self._collect(place, worker)
            self._check_empty()
        else:
            self.reap(worker.pid, place.reason(), lambda lost_tasks: self._reaped(place, worker, lost_tasks))

    def look_for_stopped(self) -> None:
        """After SIGCHLD: a worker was stopped or continued (or has ended: its pidfd tells that)."""
        for place in self.places:
            worker = place.process
            is_stopped = worker is not None and process.is_stopped(worker.pid)
            if place.stopped and not is_stopped:
                place.stopped.cancel()
                place.stopped = None
            elif worker is not None and is_stopped and not place.stopped:
                too_long = functools.partial(self._stopped_too_long, place, worker)
                place.stopped = self._loop.call_later(STOPPED_MAX_S, too_long)

    def _stopped_too_long(self, place: Place, worker: process.WorkerProcess) -> None:
        place.stopped = None
        if place.process is worker and process.is_stopped(worker.pid):
            place.verdict = f"stopped for {STOPPED_MAX_S:g} s, then "
            worker.kill()

    def _reaped(self, place: Place, worker: process.WorkerProcess, lost_tasks: int) -> None:
        reason = place.reason()
        self._collect(place, worker)
        if self._stopping:
            self._check_empty()
        else:
            self._lost(place, worker.pid, reason, lost_tasks)

    def _collect(self, place: Place, worker: process.WorkerProcess) -> None:
        place.process = None
        place.deaths += 1
        place.state = "backing off"
        if place.stopped:
            place.stopped.cancel()
        place.stopped = None
        place.verdict = ""
        worker.collect()

    def _lost(self, place: Place, pid: int, reason: str, lost_tasks: int) -> None:
        server = self._start.server
        self._report(
            messages.WorkerLost(
                server=server, worker=place.index, pid=pid, reason=reason, lost_tasks=lost_tasks
            )
        )
        tasks_run = self._plane.counters()["tasks_run"]
        if lost_tasks or tasks_run != self._tasks_run:
            self._tasks_run = tasks_run
            self._deaths.clear()
            self._start_in(place)
            return
        now = time.monotonic()
        self._deaths.append(now)
        if len(self._deaths) == DEATHS_MAX and now - self._deaths[0] <= DEATHS_WINDOW_S:
            self._give_up(
                f"{DEATHS_MAX} ended within {DEATHS_WINDOW_S:.0f} s without a task; the last: {reason}"
            )
            return
        recent = sum(now - death <= DEATHS_WINDOW_S for death in self._deaths)
        self._loop.call_later(_BACKOFF_S * (2 ** (recent - 1) - 1), lambda: self._start_in(place))

    def _give_up(self, reason: str) -> None:
        if self._given_up:
            return
        self._given_up = True
        for place in self.places:
            if not place.process:
                place.state = "given up"
        running = sum(1 for place in self.places if place.process)
        self._report(messages.WorkersGivenUp(server=self._start.server, reason=reason, running=running))

    # -- reaping ---------------------------------------------------------------------------------------------

    def reap(self, pid: int, reason: str, done: Callable[[int], None]) -> None:
        """Gives back all that process `pid`, now dead, held; `done` gets the number of tasks it ran.

        `reason` says how it ended, for whoever joins those tasks.
        """
        self._put(functools.partial(self._reap, pid, reason, done))

    def lose(self, server: int, incarnation: int) -> None:
        """Another server is lost: tasks that were spawned from there have nobody who waits for them."""
        self._put(functools.partial(self._plane.lose, server, incarnation))

    def fence(self, done: Callable[[], None]) -> None:
        """Ends the tasks that hold what was lent on through a lost server; `done` is called once none runs.

        Their workers are killed: nobody waits for such a task, and who had lent what it holds may not have
        it back before. A task that has lent it on is waited for.
        """
        self._put(functools.partial(self._fences.append, done))

    def _put(self, step: Callable[[], None]) -> None:
        if self._reaper is None:
            self._reaper = threading.Thread(target=self._reap_all, name="drust-reaper", daemon=True)
            self._reaper.start()
        self._reaping.put(step)

    def _reap_all(self) -> None:
        """What a dead process has on loan is waited for here, with a look now and then."""
        waiting = 0
        while True:
            try:
                step = self._reaping.get(timeout=_TEND_S if waiting or self._fences else None)
            except queue.Empty:
                pass
            else:
                step()
            waiting = self._tend()
            if self._fences:
                self._close_fences()

    def _reap(self, pid: int, reason: str, done: Callable[[int], None]) -> None:
        lost_tasks = 0
        try:
            for row in self._plane.processes():
                if row["pid"] == pid:
                    lost_tasks += self._plane.reap(row["slot"], row["generation"], pid, reason)
        except Exception:  # else the next dead worker would wait for ever
            _logger.exception("what process %d held could not all be given back", pid)
        self._loop.post(functools.partial(done, lost_tasks))

    def _close_fences(self) -> None:
        closed, pids = self._plane.fence()
        self._loop.post(functools.partial(self._end_orphans, pids))
        if closed:
            for done in self._fences:
                self._loop.post(done)
            self._fences.clear()

    def _end_orphans(self, pids: list[int]) -> None:
        for place in self.places:
            if place.process and place.process.pid in pids and not place.verdict:
                place.verdict = "it held what was lent through a lost server, so it was ended: "
                place.process.kill()

    def _tend(self) -> int:
        try:
            return self._plane.tend()
        except Exception:
            _logger.exception("what dead processes have on loan could not be looked at")
            return 1  # again, soon

    # -- stopping --------------------------------------------------------------------------------------------

    def stop(self, grace_s: float, on_empty: Callable[[], None]) -> None:
        """Starts no more; workers still there after `grace_s` are ended. `on_empty` is called after all."""
        self._stopping = True
        self._on_empty = on_empty
        self._loop.call_later(grace_s, self._end_all)
        self._check_empty()

    def _end_all(self) -> None:
        for place in self.places:
            if place.process:
                place.process.end()
        self._loop.call_later(_END_WITHIN_S, self._kill_all)

    def _kill_all(self) -> None:
        for place in self.places:
            if place.process:
                place.process.kill()

    def _check_empty(self) -> None:
        if self._on_empty and not any(place.process for place in self.places):
            on_empty, self._on_empty = self._on_empty, None
            on_empty()
