"""Settings: arguments before environment before defaults; sizes, limits, and what a container leaves."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drust import config, machine
from drust.config import Config, default_heap_bytes
from drust.errors import ConfigError
from drust.units import format_bytes, format_seconds, parse_bytes

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4096),
        ("4GiB", 4 * GIB),
        ("4 gib", 4 * GIB),
        ("4G", 4 * GIB),
        ("4GB", 4 * 10**9),
        ("1.5KiB", 1536),
    ],
)
def test_a_size_is_read_with_its_unit(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "4 apples", "-1", "1e9", "4GiBs", "0x10"])
def test_a_malformed_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number of bytes"):
        parse_bytes(text)


@given(st.integers(min_value=0, max_value=2**50))
def test_a_shown_size_reads_back_as_nearly_the_same(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=1e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3e-6, "3 us"), (0.0032, "3.2 ms"), (41, "41 s"), (150, "2 min"), (7500, "2 h 5 min")],
)
def test_a_duration_is_shown_with_a_fitting_unit(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_arguments_come_before_the_environment_and_that_before_defaults() -> None:
    environment = {
        "DRUST_WORKERS": "3",
        "DRUST_HEAP_BYTES": "1GiB",
        "DRUST_STRICT": "yes",
        "DRUST_SERVERS": "",
    }
    settings = Config.read(environment, workers=5, token=None)
    assert (settings.workers, settings.heap_bytes, settings.strict, settings.servers) == (5, GIB, True, 1)


def test_without_settings_there_is_a_worker_a_processor_and_a_heap_that_fits() -> None:
    settings = Config.read({})
    assert settings.workers == machine.cpu_count()
    assert config.HEAP_BYTES_MIN <= settings.heap_bytes < machine.available_bytes()


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("DRUST_HEAP_BYTES", "4 apples", "512MiB"),
        ("DRUST_HEAP_BYTES", "1MiB", "from 16 MiB to 1 TiB"),
        ("DRUST_HEAP_BYTES", "2TiB", "from 16 MiB to 1 TiB"),
        ("DRUST_SERVERS", "0", "from 1 to 64"),
        ("DRUST_WORKERS", "two", "from 0 to 254"),
        ("DRUST_STRICT", "maybe", "true"),
        ("DRUST_ADDRESS", "node7", "host:port"),
        ("DRUST_ADDRESS", "::1:7788", "host:port"),
        ("DRUST_ADDRESS", "node7:99999", "host:port"),
        ("DRUST_HOST", "a b", "a host name"),
        ("DRUST_TOKEN", "short", "at least 8 characters"),
        ("DRUST_START_TIMEOUT_S", "0", "seconds"),
        ("DRUST_START_TIMEOUT_S", "nan", "seconds"),
    ],
)
def test_a_bad_variable_is_named_with_the_accepted_forms(variable: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.read({variable: value})
    assert caught.value.variable == variable
    assert expected in str(caught.value)
    assert (value in str(caught.value)) == (variable != "DRUST_TOKEN")


@pytest.mark.parametrize(
    "arguments", [{"servers": 1.5}, {"workers": True}, {"heap_bytes": -1}, {"token": 12345678}]
)
def test_a_bad_argument_is_named_as_one(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(arguments))}="):
        Config.read({}, **arguments)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="heap_size"):
        Config.read({}, heap_size=1)


@pytest.mark.parametrize("address", ["node7:7788", "[::1]:7788", "10.0.0.1:1"])
def test_an_address_is_taken_as_written(address: str) -> None:
    assert Config.read({}, address=address).address == address


def test_every_setting_has_a_reader_and_a_variable() -> None:
    assert set(config._READERS) == set(Config.__struct_fields__)


def test_a_child_reads_the_same_settings_from_its_environment() -> None:
    settings = Config.read({}, token="a secret".replace(" ", "-"), strict=True, heap_bytes=GIB, address="a:1")
    assert Config.read(settings.environment()) == settings


def test_the_token_is_never_shown() -> None:
    settings = Config.read({}, token="correcthorse")
    assert "correcthorse" not in f"{settings!r} {settings}"


def test_a_heap_is_made_of_whole_segments() -> None:
    assert Config.read({}, heap_bytes=GIB + 1).heap_bytes == GIB


def test_limits_that_appear_natively_as_well_are_the_same() -> None:
    native = (ROOT / "native/base/limits.hpp").read_text()

    def limit(name: str) -> int:
        match = re.search(rf"\b{name} = ([^;]+);", native)
        assert match is not None, name
        return int(eval(match[1].replace("ULL", "").replace("U", "")))

    assert limit("kServersPerClusterMax") == config.SERVERS_MAX
    assert limit("kProcessesMax") == config.WORKERS_MAX + 2
    assert limit("kSegmentBytes") == config.HEAP_BYTES_STEP
    assert 2 ** limit("kGranuleBits") * limit("kGranuleBytes") == config.HEAP_BYTES_MAX


# -- what the machine and its cgroups leave ------------------------------------------------------------


def tree(root: Path, **contents: str) -> Path:
    """Files below `root`; `__` in a name is `/`."""
    for name, content in contents.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


MEMINFO = f"MemTotal: {32 * 2**20} kB\nMemAvailable: {16 * 2**20} kB\n"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "31 23 0:27 /pod /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def test_without_cgroups_the_machine_decides(tmp_path: Path) -> None:
    tree(tmp_path, proc__meminfo=MEMINFO)
    assert machine.available_bytes(tmp_path) == 16 * GIB
    assert default_heap_bytes(root=tmp_path) == 12 * GIB
    assert default_heap_bytes(servers=4, root=tmp_path) == 3 * GIB


def test_the_tightest_cgroup_v2_above_the_process_decides(tmp_path: Path) -> None:
    tree(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="0::/job/step\n",
        proc__self__mountinfo=V2_MOUNT,
        **{
            "sys/fs/cgroup/job/step/memory.max": "max\n",
            "sys/fs/cgroup/job/step/memory.current": "5\n",
            "sys/fs/cgroup/job/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/job/memory.current": f"{2 * GIB}\n",
            "sys/fs/cgroup/job/memory.stat": f"anon 7\ninactive_file {GIB}\n",
        },
    )
    assert machine.available_bytes(tmp_path) == 3 * GIB


def test_a_container_that_sees_its_cgroup_v1_as_the_root_is_understood(tmp_path: Path) -> None:
    tree(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="4:memory:/pod/abc\n0::/\n",
        proc__self__mountinfo=V1_MOUNT,
        **{
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/abc/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/abc/memory.usage_in_bytes": "0\n",
        },
    )
    assert machine.available_bytes(tmp_path) == GIB


def test_an_exhausted_container_leaves_nothing_and_the_heap_its_minimum(tmp_path: Path) -> None:
    tree(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/../..\n", proc__self__mountinfo=V2_MOUNT)
    tree(tmp_path / "sys/fs/cgroup", **{"memory.max": "100\n", "memory.current": "200\n"})
    assert machine.available_bytes(tmp_path) == 0
    assert default_heap_bytes(root=tmp_path) == config.HEAP_BYTES_MIN


@pytest.mark.parametrize(("quota", "count"), [("100000 100000", 1), ("max 100000", None)])
def test_a_quota_of_processors_bounds_their_number(tmp_path: Path, quota: str, count: int | None) -> None:
    tree(tmp_path, proc__self__cgroup="0::/\n", proc__self__mountinfo=V2_MOUNT)
    tree(tmp_path / "sys/fs/cgroup", **{"cpu.max": quota})
    everything = machine.cpu_count(tmp_path / "nowhere")
    assert machine.cpu_count(tmp_path) == (count or everything)
