"""
The native half of drust: heap, handles, transport. Use it through the drust package.
"""

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from types import GenericAlias, TracebackType
from typing import (
    Any,
    Generic,
    Literal,
    NoReturn,
    Self,
    SupportsIndex,
    TypeAlias,
    TypeVar,
    TypedDict,
    final,
    overload,
    type_check_only
)

from numpy import bool_
from numpy.typing import NDArray
from typing_extensions import Buffer



T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_End = TypeVar("_End", bound="ChannelEnd")

# (address, colour, extent in bytes), and the flags of a child
_Pointer: TypeAlias = tuple[int, int, int]
_Child: TypeAlias = tuple[int, int, int, int]
# (offset, bytes of a chunk, number of chunks, stride in bytes)
_Region: TypeAlias = tuple[int, int, int, int]
_Access: TypeAlias = Literal["owned", "shared", "mutable"]
_Outcome: TypeAlias = Literal["committed", "rolled_back", "poisoned"]
# (age in ms, workers, idle, queued, processors in use of 1000, claimed bytes, quota bytes)
_LoadWords: TypeAlias = tuple[int, int, int, int, int, int, int]

@type_check_only
class _BlockRow(TypedDict):
    pointer: _Pointer
    codec: int
    owner_kind: int
    owner_slot: int

@type_check_only
class _ProcessRow(TypedDict):
    slot: int
    generation: int
    kind: int
    pid: int
    start_time: int
    counters: dict[str, int]

@type_check_only
class _BoxState(TypedDict):
    phase: Literal["owned", "shared", "modified", "moved", "dropped"]
    writer: Literal["none", "local", "lend", "split"]
    ceiling: Literal["none", "shared", "mutable", "own"]
    readers: int
    shared_lends: int
    parts_out: int
    child: bool
    published: bool
    pinned: bool
    poisoned: bool
    kind: Literal["empty", "live", "array", "gone"]
    outdated: bool
    label: str
    nbytes: int
    pointer: _Pointer | None
    elsewhere: bool
    created: str
    moved: str | None
    borrows: list[dict[str, Any]]
    lends: list[Any]
    parent: Box[Any] | None

def set_error_hook(hook: Callable[[int, str], BaseException]) -> None:
    """What makes the exception for a native status: called with its code and its text."""

class TaskEntry:
    """A task this worker is running."""

    @property
    def task(self) -> _Pointer: ...

    @property
    def record(self) -> _Pointer: ...

    @property
    def id(self) -> int:
        """Names this run of the task in this partition."""

    @property
    def ticket(self) -> int: ...

class Runtime:
    """This process's place in a server's partition."""

    @staticmethod
    def attach(memfd: int, kind: int, token: bytes, pid: int) -> Runtime: ...

    @staticmethod
    def current() -> Runtime | None: ...

    def close(self) -> None: ...

    @property
    def server(self) -> int: ...

    @property
    def slot(self) -> int: ...

    @property
    def generation(self) -> int: ...

    @property
    def closed(self) -> bool: ...

    def open(self, pointer: _Pointer, writable: bool, on_release: int) -> Pin: ...

    def fetch(self, pointer: _Pointer) -> Pin: ...

    def take(self, pointer: _Pointer, lent: bool = False) -> Pin: ...

    def free(self, pointer: _Pointer, shallow: bool = False) -> None: ...

    def recolour(self, pointer: _Pointer, /) -> _Pointer: ...

    def duplicate(self, pointer: _Pointer) -> _Pointer: ...

    def set_owner(self, pointer: _Pointer, kind: int, /) -> bool: ...

    def is_live(self, pointer: _Pointer, /) -> bool: ...

    def look_at_lent(self, pointer: _Pointer, gone: int = 4096) -> tuple[_Pointer | None, bool]: ...

    def read_region(self, pointer: _Pointer, region: _Region, destination: Buffer) -> None: ...

    def write_region(self, pointer: _Pointer, region: _Region, source: Buffer) -> None: ...

    def put(self, server: int, pointer: _Pointer) -> _Pointer: ...

    def make_record(self, server: int, lends: list[_Child], under: int = 0) -> _Pointer: ...

    def drop_record(self, record: _Pointer, /) -> None: ...

    def submit(
        self,
        server: int,
        task: _Pointer,
        record: _Pointer,
        retries: int = 0,
        bound: bool = False,
        kept_us: int = 0,
    ) -> int: ...

    def record_server(self, record: _Pointer) -> int | None: ...

    def take_child(self, task: _Pointer, index: int) -> None: ...

    def take_task(self, timeout_ms: int) -> TaskEntry | None: ...

    def returned(self, entry: TaskEntry, completion: _Pointer) -> None: ...

    def give_home(self, entry: TaskEntry, completion: _Pointer) -> bool: ...

    def forbid_rollback(self, entry: TaskEntry) -> None: ...

    def keep_version(self, pointer: _Pointer) -> None: ...

    def wait(self, record: _Pointer, timeout_ms: int) -> tuple[int, _Pointer] | None: ...

    def control(self, server: int, body: bytes) -> bytes: ...

    def ping(self, server: int) -> None: ...

    def flush(self) -> None: ...

    def evict(self, bytes: int) -> int: ...

    def endpoint(self, server: int, /) -> tuple[int, str, int]: ...

    def queued(self) -> tuple[int, int]: ...

    def count(self, counter: int, amount: int = 1) -> None: ...

    def counters(self) -> dict[str, int]: ...

    def usage(self) -> dict[str, int]: ...

    def largest_blocks(self, most: int, /) -> list[_BlockRow]: ...

    def processes(self) -> list[_ProcessRow]: ...

    @property
    def who(self) -> int:
        """This process, as shared objects name it."""

    def find_wait(self, who: int, token: int) -> tuple[int, bytes, list[tuple[int, int]]] | None: ...

    def live_blocks(self) -> int: ...

    def copies(self) -> tuple[int, int]: ...

    def withdraw(self, server: int, record: _Pointer) -> bool: ...

    def tell_arrival(self, record: int) -> None: ...

    def submit_many(
        self, server: int, tasks: list[tuple[_Pointer, _Pointer]], retries: int = 0, bound: bool = False
    ) -> int: ...

    def offer(self, ticket: int) -> None: ...

    def take_task_of(self, record: _Pointer) -> TaskEntry | None: ...

    def knows_task(self, server: int, record: _Pointer) -> bool: ...

    def allocate(self, codec: int, meta: bytes, buffer_bytes: Sequence[int], children: list[_Child]) -> Draft: ...

    def open_tied(self, parent: Pin) -> tuple[Pin, ...]: ...

    def fetch_tied(self, pointers: list[_Pointer]) -> list[Pin]: ...

    def take_tied(self, pointers: list[_Pointer]) -> list[Pin]: ...

    def put_value(self, server: int, codec: int, meta: bytes, value: Buffer) -> Pin: ...

    def loads(self, servers: int) -> list[tuple[int, int, int, int, int, int, int, int]]: ...

    def set_load(self, server: int, row: _LoadWords) -> None: ...

class Arrivals:
    """Which tasks of this process have ended, from now on."""

    def __init__(self, runtime: Runtime) -> None: ...

    def stop(self) -> None: ...

    def wait(self, timeout_ms: int) -> list[int] | None: ...

COUNTER_NAMES: tuple[str, ...] = ...

TASK_CODEC: int = 4294967280

RECORD_CODEC: int = 4294967281

COMPLETION_CODEC: int = 4294967282

LOSS_CODEC: int = 4294967283

SHARED_CODEC: int = 4294967288

HOLD_CODEC: int = 4294967289

SEGMENT_CODEC: int = 4294967290

NOTE_CODEC: int = 4294967291

class Draft:
    """A block being written, before anybody else can see it."""

    def buffer(self, index: int) -> memoryview:
        """Writable bytes; not to be used after publish()."""

    def set_child(self, index: int, child: _Child) -> None: ...

    def copy_in(self, index: int, source: Buffer) -> None: ...

    def publish(self) -> Pin:
        """The block as a Pin, under a fresh colour."""

HOLDER_CODEC: int = 4294967279

NO_SERVER: int = 4096

class ServerPlane:
    """A server's partition and serve threads."""

    @staticmethod
    def create(
        server: int,
        incarnation: int,
        heap_bytes: int,
        host: str,
        port: int,
        threads: int,
        token: bytes,
        log: Callable[[str], object] | None,
        pid: int,
        replicates_all: bool = False,
    ) -> ServerPlane: ...

    @property
    def memfd(self) -> int: ...

    @property
    def port(self) -> int: ...

    def set_endpoint(self, server: int, epoch: int, host: str, port: int, by: int = 4096, backup: int = 4096) -> None: ...

    def fail_records(self, lost: int, incarnation: int) -> int: ...

    def settle_records(self) -> int: ...

    def lose(self, lost: int, incarnation: int) -> None:
        """By the reaping thread, as reap() and tend()."""

    def fence(self) -> tuple[bool, list[int]]: ...

    def close_replicas(self, lost: int, incarnation: int) -> tuple[int, int]: ...

    def promote(self, lost: int) -> tuple[int, int]: ...

    def free_orphans(self, lost: int) -> int: ...

    def suspects(self, most: int) -> list[_Pointer]: ...

    def watch(self) -> int: ...

    def search(self, addresses: list[int]) -> list[int]: ...

    def reveal(self, addresses: list[int], ticket: int) -> list[int] | None: ...

    def free_unnamed(self, blocks: list[_Pointer]) -> int: ...

    def protect(self, backup: int, server: int) -> tuple[int, int]: ...

    @property
    def has_replicated(self) -> bool: ...

    def replicas(self) -> tuple[int, int]: ...

    def replicas_of(self, server: int, most: int) -> list[tuple[int, int, int]]: ...

    def drop_unused_replicas(self, replicas: Sequence[tuple[int, int, int]]) -> int: ...

    def control(self, server: int, body: bytes) -> bytes: ...

    def take_control(self, timeout_ms: int) -> tuple[int, bytes] | None: ...

    def reply_control(self, id: int, body: bytes) -> None: ...

    def reap(self, slot: int, generation: int, pid: int = 0, reason: str = '') -> int: ...

    def tend(self) -> int:
        """
        Goes on with what reap() could not finish; how many dead processes have something out.
        """

    def give(self, thief: int, most: int) -> int:
        """Hands queued tasks over to another server; how many it has."""

    def tend_given(self) -> int:
        """
        Goes on with what give() could not finish; how many tasks are still open.
        """

    def trim(self, keep_bytes: int) -> int: ...

    def processes(self) -> list[_ProcessRow]: ...

    def find_wait(self, who: int, token: int) -> tuple[int, bytes, list[tuple[int, int]]] | None: ...

    def find_held(self, hold: _Pointer) -> int: ...

    def usage(self) -> dict[str, int]: ...

    def counters(self) -> dict[str, int]: ...

    def largest_blocks(self, most: int) -> list[_BlockRow]: ...

    def live_blocks(self) -> int: ...

    def queued(self) -> tuple[int, int]: ...

    def measure(self) -> tuple[int, int, int, int]: ...

    def set_load(self, server: int, row: _LoadWords) -> None: ...

    def evict(self, bytes: int) -> int: ...

    def close(self) -> None: ...

def exit_on_eof(descriptor: int) -> None:
    """
    Ends this process, and its process group if it leads one, once reading `descriptor` gives end of file.
    """

def kill_points() -> list[str]: ...

def kill_actions() -> list[str]: ...

def arm_kill_point(name: str, nth: int, action: str) -> None: ...

KILL_BOARD_BYTES: int = 4096

KILL_POINTS_MAX: int = 128

KILL_ROWS: int = 96

ANY_KILL_POINT: int = 4294967295

def set_hooks(
    *,
    adopt: Callable[[Any], tuple[Any, Pin | None, bool]] | None = None,
    materialise: Callable[[Box[Any], bool], object] | None = None,
    publish: Callable[[Box[Any]], Pin] | None = None,
    clone: Callable[[Box[Any]], object] | None = None,
    absorb: Callable[[Box[Any]], object] | None = None,
    wait: Callable[[Box[Any], bool, float], object] | None = None,
    conflict: Callable[..., BaseException] | None = None,
    survivors: Callable[[Box[Any], str, list[str]], BaseException | None] | None = None,
    forbid_rollback: Callable[[Box[Any]], object] | None = None,
    queue_free: Callable[[Box[Any], Pin, bool, bool], object] | None = None,
    settle: Callable[[Box[Any], bool], Pin | None] | None = None,
    choose_replicas: Callable[[object], bool] | None = None,
) -> dict[str, Callable[..., Any]]:
    """The slow paths of handles; those not named are unset. Returns those before."""

@final
class Pin:
    """This process's hold on one version of one block."""

    @property
    def pointer(self) -> _Pointer: ...
    @property
    def local(self) -> _Pointer | None: ...
    @property
    def codec(self) -> int: ...
    @property
    def meta(self) -> bytes: ...
    @property
    def children(self) -> tuple[_Child, ...]: ...
    def child(self, index: int, /) -> _Child: ...
    @property
    def child_count(self) -> int: ...
    @property
    def buffer_count(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def writable(self) -> bool: ...
    @property
    def on_release(self) -> int: ...
    @property
    def is_made(self) -> bool: ...
    @property
    def references(self) -> int: ...
    @property
    def parts(self) -> tuple[Pin, ...] | None: ...
    @parts.setter
    def parts(self, value: tuple[Pin, ...] | None, /) -> None: ...
    @property
    def origin(self) -> Any: ...
    @origin.setter
    def origin(self, value: Any, /) -> None: ...
    def buffer(self, index: int, /) -> PinBuffer: ...
    def disown(self) -> None: ...
    def let_go(self) -> None: ...
    def anchor(self) -> None: ...
    def set_release(self, action: int, /) -> None: ...
    def viewed_parts(self) -> list[int]: ...
    def as_writable(self) -> Pin: ...
    def arrow_column(self, schema: object, node: Sequence[Any], /) -> ArrowColumn: ...
    @staticmethod
    def hold(
        pointer: _Pointer, on_release: int, holder: Pin | None = None, index: int = 0, /
    ) -> Pin: ...
    @staticmethod
    def private(codec: int, meta: bytes, buffer_bytes: list[int], /) -> Pin: ...

RELEASE_NOTHING: int = 0

RELEASE_FREE_TREE: int = 1

RELEASE_FREE_SHALLOW: int = 2

RELEASE_COPY: int = 3

RELEASE_FREE_TIED: int = 4

RELEASE_FREE_MADE: int = 5

@final
class PinBuffer:
    """The bytes of one buffer of a block."""

    @property
    def pin(self) -> Pin: ...
    @property
    def readonly(self) -> bool: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class ArrowColumn:
    """A column's block for Arrow's C data interface."""

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]: ...

@final
class RevokedArray:
    """An array whose borrow has ended."""

@final
class Box(Generic[T]):
    """Owns one value: lent, moved, and freed with its owner."""

    def __init__(self, value: T, *, replicas: int | None = None) -> None:
        """Makes the Box; array data is copied into the heap, all else stays the object it is.

        Args:
            value: what it owns from now on.
            replicas: 1 keeps what other servers could have seen of the value, and of all inside it, on one more
                server, in any session of two servers or more. Cost: one round trip with the bytes, once a
                version, where it is handed to another server. 0 keeps none, also where the session does. None:
                as the session (`drust.init(replicas=)`). It stays with the Box, whatever value that has and
                whoever owns it; a Box inside another's value goes with that one.

        Raises:
            ConfigError: another number; or 1 in a session of one server.
            OutOfMemoryError: the heap has no room for the array.
        Source: Ma et al., OSDI'24, on fault tolerance.
        """

    def borrow(self, timeout: float | None = None) -> Ref[T]:
        """A shared borrow, from the start of its `with` block to its end."""

    def borrow_mut(self, timeout: float | None = None, *, undo: bool = False) -> RefMut[T]:
        """An exclusive borrow, from the start of its `with` block to its end, or lent to a task.

        With `undo`, a task that is lost leaves the value as it was whatever its size (without, up to 1 MiB), for
        one copy of it.
        """

    def recover(self) -> RefMut[T]:
        """Accepts what a lost task left of a poisoned value, and borrows it mutably to show what is there."""

    def clone(self) -> Box[T]:
        """A second Box with a copy of the value."""

    def into_inner(self) -> T:
        """The value itself; the Box is used up."""

    def replace(self, value: T, /) -> None:
        """Gives it another value; the old one is dropped."""

    def column_mut(
        self, name: str, row_group: int | None = None, timeout: float | None = None
    ) -> AbstractContextManager[tuple[NDArray[Any], NDArray[bool_]]]:
        """One column of a frame, to be written in place: values, and True where a row has one."""

    def split_mut(self, n: int, axis: int = 0) -> list[RefMut[T]]:
        """Disjoint mutable borrows of an array, cut along an axis."""

    @property
    def server(self) -> int:
        """The number of the server whose heap holds the value. No message."""

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn: ...
    def __copy__(self) -> NoReturn: ...
    def __deepcopy__(self, memo: Any, /) -> NoReturn: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

    @property
    def _value(self) -> Any: ...
    @property
    def _pin(self) -> Pin | None: ...
    @property
    def _lease(self) -> Any: ...
    @property
    def _kept(self) -> bool: ...
    @property
    def _excepted(self) -> bool: ...
    @property
    def _excepted_with_all(self) -> bool: ...
    @property
    def _poisoned(self) -> bool: ...
    def _install(self, value: object, pin: Pin | None, is_array: bool, writable: bool, /) -> None: ...
    def _state(self) -> _BoxState: ...
    def _publish(self) -> Pin: ...
    def _lend_shared(self, lend: object = None, timeout: float | None = None) -> Pin: ...
    def _lend_mut(self, lend: object = None, timeout: float | None = None) -> Pin: ...
    def _end_lend(
        self,
        lend: object,
        mutable: bool,
        outcome: _Outcome = "committed",
        pointer: Pin | _Pointer | None = None,
        poison: dict[str, Any] | None = None,
    ) -> None: ...
    @overload
    def _transfer(self, location: str | None = None, encode: Literal[True] = True) -> tuple[Pin, Any]: ...
    @overload
    def _transfer(self, location: str | None = None, *, encode: bool) -> tuple[Pin | None, Any]: ...
    def _transfer_undone(self, pin: Pin | None, value: object, /) -> None: ...
    def _give_back(self) -> tuple[Pin, Any]: ...
    @classmethod
    def _from_pin(
        cls,
        pin: Pin,
        access: _Access,
        type_name: str | type,
        parent: Box[Any] | None = None,
        undo: bool = False,
        lease: object = None,
        kept: bool = False,
        excepted: bool = False,
    ) -> Box[Any]: ...
    def _set_parent(self, parent: Box[Any] | None, /) -> None: ...
    def _clear_poison(self) -> None: ...

    def _forget(self) -> bool: ...
    def _wait_end(self, timeout_s: float, /) -> None: ...

@final
class Ref(Generic[T_co]):
    """A shared borrow, to be entered with `with` or lent to a task."""

    def __enter__(self) -> T_co:
        """Begins the borrow and hands the value out."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        """Ends the borrow; arrays it handed out are revoked."""

    def __aenter__(self) -> Coroutine[Any, Any, T_co]:
        """As `__enter__`; an event loop goes on meanwhile."""

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> Coroutine[Any, Any, None]:
        """As `__exit__`."""

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

    @property
    def _box(self) -> Box[Any]: ...
    @property
    def _access(self) -> Literal["shared", "mutable"]: ...
    @property
    def _undo(self) -> bool: ...
    @property
    def _timeout(self) -> float | None: ...
    @property
    def _part(self) -> tuple[int, int, int] | None: ...
    @property
    def _phase(self) -> Literal["fresh", "active", "deferred", "lent", "ended"]: ...
    def _lend(self, lend: object = None, /) -> Pin: ...
    def _end_lend(
        self,
        lend: object = None,
        outcome: _Outcome = "committed",
        pointer: Pin | _Pointer | None = None,
        poison: dict[str, Any] | None = None,
    ) -> None: ...
    def _region(self) -> _Region: ...

@final
class RefMut(Generic[T]):
    """An exclusive borrow, to be entered with `with` or lent to a task."""

    def __enter__(self) -> T:
        """Begins the borrow and hands the value out."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        """Ends the borrow; arrays it handed out are revoked."""

    def __aenter__(self) -> Coroutine[Any, Any, T]:
        """As `__enter__`; an event loop goes on meanwhile."""

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> Coroutine[Any, Any, None]:
        """As `__exit__`."""

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

    @property
    def _box(self) -> Box[Any]: ...
    @property
    def _access(self) -> Literal["shared", "mutable"]: ...
    @property
    def _undo(self) -> bool: ...
    @property
    def _timeout(self) -> float | None: ...
    @property
    def _part(self) -> tuple[int, int, int] | None: ...
    @property
    def _phase(self) -> Literal["fresh", "active", "deferred", "lent", "ended"]: ...
    def _lend(self, lend: object = None, /) -> Pin: ...
    def _end_lend(
        self,
        lend: object = None,
        outcome: _Outcome = "committed",
        pointer: Pin | _Pointer | None = None,
        poison: dict[str, Any] | None = None,
    ) -> None: ...
    def _region(self) -> _Region: ...

def find_boxes(value: object, budget: int, /) -> list[Box[Any]]:
    """The Boxes inside a value, looking at no more than `budget` objects."""

def add_shallow_type(kind: type, /) -> None:
    """
    add_shallow_type(class): its values never write their memory, and .clone() copies none of it.
    """

class Shared:
    """A handle of a shared object: see drust.sync."""

    @property
    def server(self) -> int: ...
    @property
    def _kept(self) -> bool: ...
    @property
    def _lease(self) -> None: ...
    @property
    def _flags(self) -> int: ...
    @property
    def _hold(self) -> _Pointer: ...
    @property
    def _object(self) -> _Pointer | None: ...
    @property
    def _is_shared(self) -> bool: ...
    def clone(self) -> Self: ...
    @classmethod
    def _open(
        cls, hold: _Pointer, owns: bool, flags: int, holder: Pin | None = None, index: int = 0
    ) -> Self: ...
    def _transfer(self) -> tuple[Pin, None]: ...
    def _transfer_undone(self, pin: Pin, value: object, /) -> None: ...
    def _publish(self) -> Pin: ...
    def _set_parent(self, parent: object, /) -> None: ...
    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn: ...
    @classmethod
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

HOLD: int = 1024

HOLD_KIND_SHIFT: int = 11

CHILD_MADE: int = 65536

class Atomic(Shared):
    """One word that processes share: see drust.sync."""

    def load(self) -> Any: ...
    def store(self, value: Any, /) -> None: ...
    def exchange(self, value: Any, /) -> Any: ...
    def fetch_add(self, amount: int = 1, /) -> int: ...
    def fetch_sub(self, amount: int = 1, /) -> int: ...
    def fetch_and(self, value: Any, /) -> Any: ...
    def fetch_or(self, value: Any, /) -> Any: ...
    def fetch_xor(self, value: Any, /) -> Any: ...
    def fetch_max(self, value: Any, /) -> Any: ...
    def fetch_min(self, value: Any, /) -> Any: ...
    def compare_exchange(self, expected: Any, new: Any, /) -> tuple[bool, Any]: ...
    def notify_all(self) -> None: ...
    def _wait(self, expected: Any, wait_ms: int, /) -> bool: ...
    @classmethod
    def _make(cls, kind: int, value: object) -> Self: ...

KIND_INTEGER: int = 1

KIND_BOOLEAN: int = 2

class ChannelEnd(Shared):
    """One end of a channel: see drust.sync."""

    @property
    def _length(self) -> int: ...
    @classmethod
    def _make(cls, receiver_class: type[_End], capacity: int) -> tuple[Self, _End]: ...
    def _try_send(self, pin: Pin, /) -> bool: ...
    def _try_receive(self) -> _Pointer | None: ...
    def _changes(self) -> int: ...
    def _wait(self, changes: int, wait_ms: int, /) -> None: ...
    def _send_remote(self, pin: Pin, wait_ms: int, /) -> bool: ...
    def _receive_remote(self, wait_ms: int, /) -> tuple[_Pointer, bytes] | None: ...

KIND_CHANNEL: int = 4

OTHER_END: int = 16

CHANNEL_MESSAGES_MAX: int = 1048576

class DictShard(Shared):
    """A shard of a Dict: see drust.collections."""

    @classmethod
    def _make(cls) -> Self: ...
    def _get(self, located: bytes, /) -> tuple[int, bytes | str, int] | None: ...
    def _put(
        self, located: bytes, kind: int, data: Buffer, when: int, version: int, /
    ) -> tuple[bool, int]: ...
    def _compare_and_set(
        self, located: bytes, expected: tuple[int, Buffer], value: tuple[int, Buffer], /
    ) -> tuple[bool, int, tuple[int, bytes | str, int] | None]: ...
    def _put_many(self, items: Sequence[tuple[bytes, int, Buffer]], /) -> None: ...
    def _remove(
        self, located: bytes, when: int, version: int, /
    ) -> tuple[bool, int, tuple[int, bytes | str, int] | None]: ...
    def _scan(self, place: bytes, /) -> tuple[bytes | None, list[tuple[Any, int, bytes | str]]]: ...
    def _count(self) -> int: ...

def locate_key(secret: bytes, key: object, /) -> bytes:
    """locate_key(secret, key) -> its hash, and its canonical bytes"""

KIND_SHARD: int = 5

class Lock(Shared):
    """A lock that processes share, and its value: see drust.sync."""

    @property
    def _holder(self) -> tuple[int, int] | None: ...
    @property
    def _is_behind(self) -> bool: ...
    @property
    def _is_array(self) -> bool: ...
    @property
    def _is_held(self) -> bool: ...
    @property
    def _has_value(self) -> bool: ...
    @property
    def _value(self) -> Any: ...
    @property
    def _pin(self) -> Pin | None: ...
    @property
    def _viewing(self) -> int: ...
    @property
    def _viewed(self) -> Pin | None: ...
    @property
    def _is_writable(self) -> bool: ...
    @property
    def _kind(self) -> int: ...
    @classmethod
    def _make(cls, kind: int, value: object) -> Self: ...
    def _install(self, value: object, version: int, pin: Pin | None, is_array: bool, /) -> None: ...
    def _queue_up(self, reads: bool, /) -> int: ...
    def _wait(self, place: int, wait_ms: int, reads: bool, /) -> int: ...
    def _give_up(self, place: int, reads: bool, /) -> bool: ...
    def _end_read(self, slot: int, /) -> None: ...
    def _note(self, place: int, text: str, /) -> Pin: ...
    def _find_cycle(self) -> list[tuple[int, int, int, str]]: ...
    def _try_lock(self) -> bool: ...
    def _unlock(self, poisons: bool = False, /) -> None: ...
    def _current(self) -> tuple[_Pointer, int]: ...
    def _put(self, pin: Pin, keeps_before: bool, /) -> int: ...
    def _lock_remote(
        self, wait_ms: int, recovers: bool, reads: bool, /
    ) -> tuple[int, int, bytes | None]: ...
    def _unlock_remote(self, poisons: bool, pin: Pin | None, /) -> int: ...
    def _unread_remote(self) -> None: ...
    def _abandon_remote(self) -> None: ...
    @staticmethod
    def _keep_block(data: bytes, /) -> Pin: ...

class MutexLock(Lock):
    """The lock of a Mutex."""

    def lock(self, timeout: float | None = None) -> LockGuard[Any]: ...
    def recover(self, timeout: float | None = None) -> LockGuard[Any]: ...

class ReadWriteLock(Lock):
    """The lock of a RwLock."""

    def read(self, timeout: float | None = None) -> LockGuard[Any]: ...
    def write(self, timeout: float | None = None) -> LockGuard[Any]: ...
    def recover(self, timeout: float | None = None) -> LockGuard[Any]: ...

KIND_MUTEX: int = 3

KIND_RWLOCK: int = 6

VIEWS_MAX: int = 32

INSIDE: int = -3

CROWDED: int = -2

@final
class LockGuard(Generic[T]):
    """One `with mutex.lock()` block, or one of a RwLock's read() or write()."""

    @property
    def value(self) -> T: ...
    @value.setter
    def value(self, value: T, /) -> None: ...
    def __enter__(self) -> T: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

class LockView:
    """Views of a block of a RwLock that are left."""
