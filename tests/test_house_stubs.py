"""What type checkers are told of the extension is what its code generates, and is complete.

The types written by hand are described in native/bind/stubs*.pattern as a whole: that their members are those
of the extension is compared here, both ways.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from drust import _core

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "src/drust/_core.pyi"
PATTERNS = sorted((ROOT / "native/bind").glob("stubs*.pattern"))

# What every type has, or generates; and what an array that refuses all use is not described to have.
INHERITED = {"__doc__", "__init__", "__module__", "__new__", "__repr__"}
OPAQUE = {"RevokedArray"}
# Described, but no attribute: types have __buffer__ from Python 3.12 on.
ABSENT = {"PinBuffer.__buffer__"}


def generated(folder: Path) -> str:
    """What `make stubs` would write now, from the installed extension."""
    stub, patterns = folder / "_core.pyi", folder / "stubs.pattern"
    patterns.write_text("".join(each.read_text() for each in PATTERNS))
    command = [
        sys.executable,
        "-m",
        "nanobind.stubgen",
        "-q",
        "-m",
        "drust._core",
        "-p",
        str(patterns),
        "-o",
        str(stub),
    ]
    subprocess.run(command, check=True, timeout=60, cwd=folder)
    return stub.read_text()


def vague_lines(text: str) -> list[str]:
    """What stubgen writes for a C type that no pattern describes."""
    vague = (
        "MethodDescriptorType",
        "GetSetDescriptorType",
        "MemberDescriptorType",
        "getset_descriptor",
        "member_descriptor",
        "(*args, **kwargs)",
        ": tuple",
        "-> tuple:",
        "-> list:",
        "-> dict:",
        "-> object:",
    )
    loose = [line.strip() for line in text.splitlines() if any(word in line for word in vague)]
    return [line for line in loose if ": tuple[" not in line]


def described(text: str) -> dict[str, set[str]]:
    """The members of every class of a stub, but for those that only type checkers know."""
    members: dict[str, set[str]] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            members[node.name] = {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return members


def differences(text: str, module: object) -> list[str]:
    """`missing Box.clone`, `unknown Box.cloned`: where a stub and the types of a module do not agree."""
    found: list[str] = []
    stub = described(text)
    types = {name: kind for name, kind in vars(module).items() if isinstance(kind, type)}
    found += [f"missing {name}" for name in types.keys() - stub.keys()]
    found += [f"unknown {name}" for name in stub.keys() - types.keys()]
    for name in types.keys() & stub.keys() - OPAQUE:
        kind = types[name]
        found += [f"missing {name}.{each}" for each in vars(kind).keys() - stub[name] - INHERITED]
        found += [f"unknown {name}.{each}" for each in stub[name] if not hasattr(kind, each)]
    return sorted({each for each in found if each.split()[1] not in ABSENT})


def test_the_committed_stub_is_what_the_extension_generates(tmp_path: Path) -> None:
    assert generated(tmp_path) == COMMITTED.read_text(), "run `make stubs` and commit src/drust/_core.pyi"


def test_every_type_written_by_hand_has_its_methods_described() -> None:
    assert vague_lines(COMMITTED.read_text()) == [], "describe them in native/bind/stubs*.pattern"


@pytest.mark.parametrize(
    "line",
    [
        "buffer: types.MethodDescriptorType = ...",
        "pointer: getset_descriptor = ...",
        "def find_boxes(*args, **kwargs) -> Any:",
        "def recolour(self, arg: tuple, /) -> tuple: ...",
        "def fetch(self, pointer: _Pointer) -> object: ...",
        "def usage(self) -> dict: ...",
    ],
)
def test_a_line_that_describes_nothing_is_found(line: str) -> None:
    assert vague_lines(f"class Pin:\n    {line}") == [line]


def test_the_stub_has_the_members_that_the_types_have() -> None:
    assert differences(COMMITTED.read_text(), _core) == []


@pytest.mark.parametrize(
    ("now", "then", "complaint"),
    [
        ("def clone(", "def cloned(", ["missing Box.clone", "unknown Box.cloned"]),
        ("def _region(", "def _regions(", ["missing Ref._region", "unknown Ref._regions"]),
        ("class TaskEntry", "class TaskExit", ["missing TaskEntry", "unknown TaskExit"]),
    ],
)
def test_a_member_that_the_stub_has_not_or_has_made_up_is_found(
    now: str, then: str, complaint: list[str]
) -> None:
    assert differences(COMMITTED.read_text().replace(now, then, 1), _core) == complaint
