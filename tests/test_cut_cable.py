"""A cable that is cut: two servers in network namespaces of this test's own, joined by a virtual cable.

A killed peer resets its connections and a stopped one still acknowledges; here nothing answers at all.
"""

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

SILENCE_S = 5.0

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2"
)

SERVER = """
    import os, sys
    from drust import _core
    plane = _core.ServerPlane.create(1, 1, 1 << 26, sys.argv[1], 0, 1, b"t" * 32, None, os.getpid())
    print(plane.port, flush=True)
    sys.stdin.read()
"""
CLIENT = """
    import os, sys, time
    from drust import _core, errors, runtime
    from drust.config import Config
    plane = _core.ServerPlane.create(0, 1, 1 << 26, "127.0.0.1", 0, 1, b"t" * 32, None, os.getpid())
    plane.set_endpoint(1, 1, sys.argv[1], int(sys.argv[2]))
    here = runtime.attach(os.dup(plane.memfd), b"t" * 32, Config.read(), worker=False)
    here.ping(1)
    print("connected", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    try:
        here.ping(1)
    except errors.ServerLostError as error:
        print(time.monotonic() - began, error, flush=True)
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two namespaces, 10.231.0.1 and 10.231.0.2, and the cable between them."""
    tag = os.getpid()
    one, two = f"drust-a{tag}", f"drust-b{tag}"
    try:
        ip("netns", "add", one)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr}")
    try:
        ip("netns", "add", two)
        ip(
            "link",
            "add",
            f"dra{tag}",
            "netns",
            one,
            "type",
            "veth",
            "peer",
            "name",
            f"drb{tag}",
            "netns",
            two,
        )
        for host, link, address in ((one, f"dra{tag}", "10.231.0.1"), (two, f"drb{tag}", "10.231.0.2")):
            ip("-n", host, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", host, "link", "set", link, "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield one, two
    finally:
        for host in (one, two):
            subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)


def start(host: str, program: str, *arguments: str) -> "subprocess.Popen[str]":
    command = ["ip", "netns", "exec", host, sys.executable, "-c", textwrap.dedent(program), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_cut_cable_ends_a_wait_within_five_seconds(hosts):
    one, two = hosts
    with start(one, SERVER, "10.231.0.1") as server:
        assert server.stdout
        port = server.stdout.readline().strip()
        with start(two, CLIENT, "10.231.0.1", port) as client:
            assert client.stdout
            assert client.stdin
            assert client.stdout.readline() == "connected\n"
            ip("-n", one, "link", "set", f"dra{os.getpid()}", "down")
            client.stdin.write("\n")
            client.stdin.flush()
            waited, _, message = client.stdout.readline().partition(" ")
            client.kill()
        server.kill()
    assert float(waited) < SILENCE_S, message
    assert "server" in message
