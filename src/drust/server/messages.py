"""Every control message: between the driver and a server, to a worker, and over the wire.

Idea: msgspec structs, tagged by their class name, so that decoding checks every field and can run no code.
Three sets that never mix: `ToServer`/`ToDriver` on the channel between a driver and a server it started,
`WorkerStart` on a worker's lifeline, `Request`/`Reply` inside the wire operation `control`, from whoever
holds the token. Rejected: pickle (runs code), JSON on the inside (the token is bytes); a Reply is JSON-able
for `--json`.
"""

import msgspec

HOME = 0  # the driver's server
NOTE_CHARACTERS_MAX = 4000


class Message(msgspec.Struct, frozen=True, tag=True):
    """The base of all: immutable, its class name as its tag."""


# -- driver -> server ---------------------------------------------------------------------------------------


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server listens.

    Attributes:
        server: its number.
        host: the address to connect to.
        port: 0 when nobody listens: the server is lost.
        epoch: raised at each change of host, port or `by`.
        by: the server that answers in its place, where another one does.
        backup: the server that has its replicas, or is about to take its place; None where nobody will.
        incarnation: of the process that has, or last had, this number.
    """

    server: int
    host: str
    port: int
    epoch: int = 1
    by: int | None = None
    backup: int | None = None
    incarnation: int = 1


class Start(Message, frozen=True):
    """The first message: all a server needs to know.

    Attributes:
        server: its number in the cluster.
        incarnation: how often this number was started, from 1; part of every colour.
        heap_bytes: the partition's quota.
        replicates_all: what is handed over has replicas, unless its Box says otherwise; else if that says so.
        host: the address to listen at.
        threads: serve threads.
        workers: worker processes to keep.
        worker_threads: threads a worker's libraries (BLAS, polars) may use.
        worker_environment: variables of the workers, beside what the server inherited.
        token: the cluster's secret.
        driver_pid: whose death ends the server.
        path: the driver's `sys.path`, for workers.
        directory: the driver's working directory, for workers.
        python_path: the driver's PYTHONPATH, which workers put back.
        log_level: the level of this cluster's logs.
        load_period_s: how often it says how busy it is; 0 for never.
    """

    server: int
    incarnation: int
    heap_bytes: int
    replicates_all: bool
    host: str
    threads: int
    workers: int
    worker_threads: int
    worker_environment: dict[str, str]
    token: bytes
    driver_pid: int
    path: list[str]
    directory: str
    python_path: str | None
    log_level: str
    load_period_s: float = 0.0


class Endpoints(Message, frozen=True):
    """The cluster's whole table. The first also lets the server start its workers; answered by `Joined`.

    A row without a port tells a server that records of tasks sent there are to be settled as lost; a row
    with itself as `by`, that it takes the place of a lost one; another `backup` in its own, that replicas are
    to be made there (answered by `Protected`, when that is done).
    """

    endpoints: list[Endpoint]


class FreeOrphans(Message, frozen=True):
    """Free what the lost `server` owned itself: whoever could have been reading it has had time to."""

    server: int


class Fence(Message, frozen=True):
    """End the tasks that hold what was lent on through a lost server; answer Fenced when none runs."""

    turn: int


class Settle(Message, frozen=True):
    """Every server has answered: tell whoever joins a task of a lost server."""


class LookForUnnamed(Message, frozen=True):
    """To the home server: a worker of some server has died. See unnamed.py."""


class Stop(Message, frozen=True):
    """End, giving workers `grace_s` to end by themselves."""

    grace_s: float


ToServer = Start | Endpoints | FreeOrphans | Fence | Settle | LookForUnnamed | Stop

# -- server -> driver ---------------------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """The server listens. From server HOME the partition's memfd comes with it."""

    pid: int
    port: int


class Failed(Message, frozen=True):
    """The server could not start, and ends."""

    reason: str


class Joined(Message, frozen=True):
    """The endpoint table stands in the partition.

    `keeps`: of the lost servers that this one is the backup of, those it has replicas of. To these no process
    of the lost server can add any more.
    """

    keeps: list[int] = []


class Fenced(Message, frozen=True):
    """No task runs there that holds what was lent on through a server lost before that `turn`."""

    turn: int


class Protected(Message, frozen=True):
    """What `server` holds has replicas on `backup` from now on; or, with `error`, has not.

    `servers` are those in whose place it answers and whose versions were sent, too.
    """

    server: int
    backup: int
    servers: list[int]
    versions: int
    nbytes: int
    seconds: float
    error: str = ""


class Output(Message, frozen=True):
    """Whole lines that a worker wrote, prefixed. `stream` is 1 for stdout, 2 for stderr."""

    stream: int
    text: str


class WorkerLost(Message, frozen=True):
    """A worker ended; a new one takes its place unless `WorkersGivenUp` follows."""

    server: int
    worker: int
    pid: int
    reason: str
    lost_tasks: int


class WorkersGivenUp(Message, frozen=True):
    """Workers of this server end as fast as they start: no more are started, `running` are left."""

    server: int
    reason: str
    running: int


class ServerLost(Message, frozen=True):
    """A server ended without being asked to. Made by the engine, which sees the channel's end."""

    server: int
    pid: int
    reason: str


class ServerReplaced(Message, frozen=True):
    """A lost server's addresses are answered again, `seconds` after it was noticed.

    By its backup, or, empty and under a new incarnation, by a new process (`by` is `server` then). Made by
    the engine.
    """

    server: int
    by: int
    seconds: float


ToDriver = Ready | Failed | Joined | Fenced | Protected | Output | WorkerLost | WorkersGivenUp | ServerLost
# What an engine tells the driver's runtime.
Event = WorkerLost | WorkersGivenUp | ServerLost | ServerReplaced | Protected

# -- server -> worker ---------------------------------------------------------------------------------------


class WorkerStart(Message, frozen=True):
    """The first and only message on a worker's lifeline; the rest of the lifeline is silence, and its end."""

    server: int
    worker: int
    token: bytes
    path: list[str]
    directory: str
    python_path: str | None
    log_level: str


# -- whoever finds a home server on this host ---------------------------------------------------------------


class Welcome(Message, frozen=True):
    """What a process of the same user is told when it asks a home server to join; the memfd comes with it."""

    token: bytes
    driver_pid: int
    endpoints: list[Endpoint]


# -- the wire's control operation ---------------------------------------------------------------------------


class Status(Message, frozen=True):
    """How a server and its workers are. Answered by `ServerStatus`."""


class Largest(Message, frozen=True):
    """The `most` largest blocks of a partition. Answered by `LargestBlocks`."""

    most: int = 10


class Shutdown(Message, frozen=True):
    """Ends a server and its workers. Answered by `ShuttingDown`, before it does."""


class ReplicasOf(Message, frozen=True):
    """Which versions of `server` are kept here, at most `most`. Answered by `KeptReplicas`."""

    server: int
    most: int = 100_000


class WaitOf(Message, frozen=True):
    """Which lock of this server a thread waits for, and for whom. Answered by `Waiting`."""

    who: int
    token: int


class WaitNote(Message, frozen=True):
    """Where a thread waits for the lock that `hold` names. Answered by an empty `Waiting`."""

    who: int
    token: int
    hold: tuple[int, int, int]
    text: str


class IsAlive(Message, frozen=True):
    """Whether a process of this server is there, as shared objects name it. Answered by `Alive`."""

    who: int


class LoadRow(msgspec.Struct, frozen=True, kw_only=True):
    """How busy a server is.

    Attributes:
        server: its number.
        machine: names the machine it runs on: servers of one share its processors.
        age_s: how long ago it was measured.
        workers: its worker processes.
        idle: those that wait for a task.
        queued: tasks that wait for a worker.
        cpu: the part of the machine's processors that is in use, whoever uses them.
        claimed_bytes: memory in use in its partition.
        quota_bytes: memory that it may use.
    """

    server: int
    machine: str
    age_s: float
    workers: int
    idle: int
    queued: int
    cpu: float
    claimed_bytes: int
    quota_bytes: int

    @property
    def memory(self) -> float:
        """The part of its quota in use."""
        return self.claimed_bytes / self.quota_bytes if self.quota_bytes else 0.0


class Report(Message, frozen=True):
    """How busy the sender is, to the home server. Answered by `Loads`."""

    row: LoadRow


class TakeOver(Message, frozen=True):
    """`server` has workers and no tasks: it would take some that wait here. Answered by `Giving`."""

    server: int


class Suspects(Message, frozen=True):
    """Blocks there, at most `most`, whose owner is elsewhere, if anywhere. Answered by `Suspected`."""

    most: int


class Watch(Message, frozen=True):
    """What tables there name from now on is to be noted. Answered by `Watching`."""


class Search(Message, frozen=True):
    """Which of these a table there names. Answered by `Named`."""

    addresses: list[int]


class Reveal(Message, frozen=True):
    """Which of these were named since `Watch` was answered with that ticket. Answered by `Named`."""

    addresses: list[int]
    ticket: int


class FreeUnnamed(Message, frozen=True):
    """No table of any server names these: they go, with what they own. Answered by `Freed`."""

    blocks: list[tuple[int, int, int]]


Request = (
    Status | Largest | Shutdown | ReplicasOf | Report | TakeOver | WaitOf | WaitNote | IsAlive
    | Suspects | Watch | Search | Reveal | FreeUnnamed
)  # fmt: skip


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. `state`: starting, attached, backing off (will be started again), given up.

    `cpu_s` and `rss_bytes` are 0 where the process is gone; `deaths` counts earlier processes in this place.
    """

    worker: int
    state: str
    pid: int
    uptime_s: float
    cpu_s: float
    rss_bytes: int
    deaths: int
    tasks_run: int


class ServerStatus(Message, frozen=True):
    """How a server is. Counters are sums over every process of the host that ever counted."""

    server: int
    pid: int
    uptime_s: float
    driver_pid: int
    cpu_s: float
    rss_bytes: int
    queued_tasks: int
    running_tasks: int
    usage: dict[str, int]
    counters: dict[str, int]
    endpoints: list[Endpoint]
    workers: list[WorkerStatus]
    replica_versions: int = 0  # of other servers' blocks, kept here
    replica_bytes: int = 0


class BlockRow(msgspec.Struct, frozen=True, kw_only=True):
    """One block: (address, colour, extent in bytes), what encoded it, and which process's slot owns it.

    `owner_pid` and `owner_role` (server, driver, worker) say who that is; 0 and empty where it is nobody, or
    not a process.
    """

    pointer: tuple[int, int, int]
    codec: int
    owner_kind: int
    owner_slot: int
    owner_pid: int = 0
    owner_role: str = ""


class LargestBlocks(Message, frozen=True):
    """The largest blocks, largest first; how many there are, and how much of the quota is in use."""

    blocks: list[BlockRow]
    live_blocks: int = 0
    usage: dict[str, int] = {}


class ShuttingDown(Message, frozen=True):
    """The server ends now."""


class KeptReplicas(Message, frozen=True):
    """Versions kept for another server: address, colour and stamp of each."""

    replicas: list[tuple[int, int, int]]


class Loads(Message, frozen=True):
    """How busy every server is, as the home server knows it."""

    rows: list[LoadRow]


class Giving(Message, frozen=True):
    """What may go is handed over now, as any task is that is sent to another server."""


class Waiting(Message, frozen=True):
    """A lock that a thread waits for.

    Attributes:
        address: the lock's; 0 if the thread waits for none here.
        note: where the thread waits, as it said itself.
        by: who keeps it waiting: process and thread.
    """

    address: int = 0
    note: str = ""
    by: list[tuple[int, int]] = []


class Alive(Message, frozen=True):
    """Whether it is, or was a moment ago."""

    is_alive: bool


class Suspected(Message, frozen=True):
    """Address, colour and extent in bytes of each."""

    blocks: list[tuple[int, int, int]]


class Watching(Message, frozen=True):
    """From now on."""

    ticket: int


class Named(Message, frozen=True):
    """Those that are named; others may be if it is not complete."""

    addresses: list[int]
    is_complete: bool = True


class Freed(Message, frozen=True):
    """How many were still there, and nobody's."""

    blocks: int


class Refused(Message, frozen=True):
    """The request could not be read or answered."""

    reason: str


Reply = (
    ServerStatus | LargestBlocks | ShuttingDown | KeptReplicas | Loads | Giving | Waiting | Alive | Refused
    | Suspected | Watching | Named | Freed
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    return _encoder.encode(message)


def decode_request(body: bytes) -> Request:
    """The request in `body`. Raises msgspec.DecodeError for anything else."""
    return _request_decoder.decode(body)


def decode_reply(body: bytes) -> Reply:
    """The reply in `body`. Raises msgspec.DecodeError for anything else."""
    return _reply_decoder.decode(body)
