"""The settings of one process: arguments, then the environment (`DRUST_...`), then defaults; and the limits.

Idea: one frozen record, read once at start and handed to every process we start, so that nothing reads the
environment later and differently. Each field names its variable: `heap_bytes` is `DRUST_HEAP_BYTES`.
Rejected: a configuration file; what belongs to a cluster is set by whoever starts it.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from drust import machine
from drust.errors import ConfigError
from drust.units import BYTES_FORMS, format_bytes, parse_bytes

# -- limits, units last; native/base/limits.hpp has the native ones, a test compares what is in both ---------

SERVERS_MAX = 64  # per cluster: rows of the endpoint table kept in each partition
REPLICAS_MAX = 1  # other servers that keep a value; home keeps none elsewhere, as its end is the session's
WORKERS_MAX = 254  # per server: its process slots less the driver's and the server's
HEAP_BYTES_MIN = 16 * 2**20
HEAP_BYTES_MAX = 2**40  # what an address can name in one partition
HEAP_BYTES_STEP = 64 * 2**10  # a partition grows by whole segments
CAPTURE_BYTES_MAX = 2**20  # what a spawned function may capture
MEMORY_RESERVE_SHARE = 0.25  # of the memory left, for the workers' own heaps and everybody else
TOKEN_CHARACTERS_MIN = 8
HEAP_WATERMARK = 0.80  # of the quota: above, what is only kept for its next use goes
LOAD_PERIOD_S = 0.2  # one control message of each server but home


def default_heap_bytes(servers: int = 1, root: Path = machine.ROOT) -> int:
    """The heap that each of `servers` on this machine gets unless told: a share of the memory left.

    Three quarters of it are shared evenly. The memory left is the smallest of what the machine and each
    cgroup still have; `root` as in `machine`.
    """
    share = int(machine.available_bytes(root) * (1 - MEMORY_RESERVE_SHARE)) // servers
    return _whole_segments(min(max(share, HEAP_BYTES_MIN), HEAP_BYTES_MAX))


def _whole_segments(count: int) -> int:
    return count // HEAP_BYTES_STEP * HEAP_BYTES_STEP


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one process. Make one with `Config.read()`.

    Attributes:
        address: `host:port` of a running cluster to join; none starts servers of its own on this machine.
        servers: how many servers to start here.
        replicas: on how many other servers each value is kept that another server could have seen, unless its
            Box says otherwise; 0 or 1.
        workers: worker processes of each server.
        heap_bytes: the quota of each server's partition.
        host: the address servers listen at. Anything but loopback opens them to the network.
        token: the cluster's secret; none lets the first server make one up.
        strict: a view that outlives its borrow is an error, not a warning.
        debug_locations: record `file:line` at each borrow, not only at moves.
        capture_bytes_max: the most a spawned function may capture.
        start_timeout_s: how long starting or joining may take.
        load_period_s: how often servers tell each other how busy they are; 0 for never.
    """

    address: str | None = None
    servers: int = 1
    replicas: int = 0
    workers: int = 1
    heap_bytes: int = HEAP_BYTES_MIN
    host: str = "127.0.0.1"
    token: str | None = None
    strict: bool = False
    debug_locations: bool = False
    capture_bytes_max: int = CAPTURE_BYTES_MAX
    start_timeout_s: float = 20.0
    load_period_s: float = LOAD_PERIOD_S

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None, **arguments: Any) -> "Config":
        """The settings of these arguments, the environment and the defaults, in this order.

        Args:
            environment: the variables to read; those of this process unless given.
            arguments: fields by name; None counts as not given.

        Raises:
            ConfigError: a value is of no accepted form; it names the variable or argument.
            TypeError: there is no field of that name.
        """
        environment = os.environ if environment is None else environment
        unknown = sorted(set(arguments) - set(_READERS))
        if unknown:
            raise TypeError(f"no setting is called {', '.join(unknown)}; there are {', '.join(_READERS)}")
        values: dict[str, Any] = {}
        for name, (reader, expected) in _READERS.items():
            variable = f"DRUST_{name.upper()}"
            given = arguments.get(name)
            source = f"{name}=" if given is not None else variable
            if given is None:
                given = environment.get(variable) or None
            if given is None:
                continue
            try:
                values[name] = reader(given)
            except (ValueError, TypeError, OverflowError):
                shown = "a text not shown here" if name == "token" else repr(given)
                raise ConfigError(variable=source, value=shown, expected=expected) from None
        if values.get("replicas") and values.get("servers", 1) < 2 and "address" not in values:
            raise ConfigError(
                variable="replicas=", value=str(values["replicas"]), expected="0, or at least servers=2"
            )
        values.setdefault("workers", min(machine.cpu_count(), WORKERS_MAX))
        values.setdefault("heap_bytes", default_heap_bytes(values.get("servers", 1)))
        return cls(**values)

    def environment(self) -> dict[str, str]:
        """The variables that make a child process read these same settings. Holds the token: never log it."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return {
            f"DRUST_{name.upper()}": str(int(value) if isinstance(value, bool) else value)
            for name, value in fields.items()
            if value is not None
        }

    def __repr__(self) -> str:
        """Every field but the token, which a log must not hold."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        fields["token"] = None if self.token is None else "..."
        return f"Config({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(given: Any) -> int:
        if isinstance(given, (bool, float)):
            raise TypeError
        if not low <= int(given) <= high:
            raise ValueError
        return int(given)

    return read


def _size(low: int, high: int) -> Callable[[Any], int]:
    def read(given: Any) -> int:
        return _whole(low, high)(parse_bytes(given) if isinstance(given, str) else given)

    return read


def _heap_size(given: Any) -> int:
    return _whole_segments(_size(HEAP_BYTES_MIN, HEAP_BYTES_MAX)(given))


_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_FLAG_FORMS = f"{', '.join(_TRUE)}, or {', '.join(_FALSE)}"


def _flag(given: Any) -> bool:
    word = str(given).lower()
    if word not in _TRUE + _FALSE:
        raise ValueError
    return word in _TRUE


def _seconds(given: Any) -> float:
    if isinstance(given, bool) or not 0 < float(given) <= 3600:
        raise ValueError
    return float(given)


def _period(given: Any) -> float:
    return 0.0 if str(given) in ("0", "0.0") else _seconds(given)


def _host(given: Any) -> str:
    if not isinstance(given, str) or given.split() != [given] or "/" in given:
        raise ValueError
    return given


def _address(given: Any) -> str:
    host, colon, port = str(given).rpartition(":")
    if not colon or not 0 < int(port) < 65536 or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        raise ValueError
    return f"{_host(host)}:{int(port)}"


def _token(given: Any) -> str:
    if not isinstance(given, str) or len(given) < TOKEN_CHARACTERS_MIN or given.split() != [given]:
        raise ValueError
    return given


_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "address": (_address, "host:port, as in node7:7788 or [::1]:7788"),
    "servers": (_whole(1, SERVERS_MAX), f"a whole number from 1 to {SERVERS_MAX}"),
    "replicas": (_whole(0, REPLICAS_MAX), f"a whole number from 0 to {REPLICAS_MAX}"),
    "workers": (_whole(0, WORKERS_MAX), f"a whole number from 0 to {WORKERS_MAX}"),
    "heap_bytes": (
        _heap_size,
        f"{BYTES_FORMS}, from {format_bytes(HEAP_BYTES_MIN)} to {format_bytes(HEAP_BYTES_MAX)}",
    ),
    "host": (_host, "a host name or address"),
    "token": (_token, f"at least {TOKEN_CHARACTERS_MIN} characters without white space"),
    "strict": (_flag, _FLAG_FORMS),
    "debug_locations": (_flag, _FLAG_FORMS),
    "capture_bytes_max": (_size(0, HEAP_BYTES_MAX), BYTES_FORMS),
    "start_timeout_s": (_seconds, "seconds, above 0 and up to 3600"),
    "load_period_s": (_period, "seconds, from 0 (never) to 3600"),
}
