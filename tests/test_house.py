"""The rules of the house: which room may use which, file sizes, words and paths that do not belong.

Each rule is a function from a tree to the list of its violations, shown rejecting a small tree made for it
and accepting this one.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINES_MAX = 600

# Leftmost first. A module may import what stands left of it, and its neighbours in the same row.
PYTHON_ROWS = (
    ("units", "machine", "errors", "config"),
    ("_core",),
    ("codecs",),
    ("runtime",),
    ("blocking", "groups", "shipping", "creation"),
    ("handles", "engines", "server"),
    ("lends",),
    (
        *("calls", "execution", "frames", "session", "tasks", "placement", "sync"),
        *("arrivals", "submitting", "aio", "scope", "incoming", "outstanding"),
    ),
    ("parallel",),
    ("executor",),
    ("joblib",),
    ("collections",),
    ("apps",),
    ("bench",),
)
# These stand beside the rows: the first may import everything, the second only the first row.
PYTHON_TOP = ("", "__main__", "api", "cli", "demo", "worker", "testing")
PYTHON_LEAVES = ("check",)
# In one row, but strangers: a server process runs no user code, so it needs no handles.
PYTHON_STRANGERS = (("handles", "engines"), ("handles", "server"))

# A room may include what stands left of it, and itself; not its neighbours.
NATIVE_ROWS = (
    ("base",),
    ("heap", "protocol", "transport"),
    ("cache", "sync", "tasks"),
    ("server",),
    ("bind", "test", "bench"),
)

# Sleeping in a test is luck, unless the passing of time is what it tests. path: reason
SLEEPS: dict[str, str] = {}

# This file has to spell out what it forbids.
SPELLS_OUT = {"tests/test_house.py"}


def files(root: Path, *patterns: str) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in sorted(root.glob(pattern)) if path.is_file())


def authored(root: Path) -> Iterator[Path]:
    """Every file a person writes."""
    yield from files(root, "src/**/*.py", "src/**/*.html", "native/**/*.[ch]pp", "tests/**/*.py")
    yield from files(
        root, "*.md", "*.toml", "docs/**/*.md", "CMakeLists.txt", "Makefile", ".ci/*", "native/**/*.pattern"
    )


def name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


# -- imports ---------------------------------------------------------------------------------------------


def room_of(root: Path, path: Path) -> str:
    """`codecs` for src/drust/codecs/arrays.py, `errors` for src/drust/errors.py, nothing for the package."""
    first = path.relative_to(root / "src/drust").parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def python_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of drust in a file, wherever it stands; those for type checkers not."""
    tree = ast.parse(path.read_text())
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, rest = alias.name.partition(".")
                if package == "drust":
                    yield node.lineno, rest.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "a relative import"
            elif node.module == "drust":
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif node.module and node.module.startswith("drust."):
                yield node.lineno, node.module.split(".")[1]


def may_import(importer: str, imported: str) -> bool:
    row = {room: number for number, rooms in enumerate(PYTHON_ROWS) for room in rooms}
    if importer == imported or importer in PYTHON_TOP:
        return True
    if importer in PYTHON_LEAVES:
        return row.get(imported) == 0
    if importer not in row or imported not in row:
        return False
    strangers = (importer, imported) in PYTHON_STRANGERS or (imported, importer) in PYTHON_STRANGERS
    return row[imported] <= row[importer] and not strangers


def wrong_python_imports(root: Path) -> list[str]:
    return [
        f"{name(root, path)}:{line}: {room_of(root, path)} imports {imported or 'drust itself'}"
        for path in files(root, "src/drust/**/*.py")
        for line, imported in python_imports(path)
        if not may_import(room_of(root, path), imported)
    ]


def wrong_native_includes(root: Path) -> list[str]:
    row = {room: number for number, rooms in enumerate(NATIVE_ROWS) for room in rooms}
    wrong = []
    for path in files(root, "native/**/*.[ch]pp"):
        room = path.relative_to(root / "native").parts[0]
        for line, text in enumerate(path.read_text().splitlines(), 1):
            include = re.match(r'\s*#\s*include\s+"([^"]+)"', text)
            if include is None:
                continue
            target = include[1].split("/")[0]
            if not (root / "native" / include[1]).is_file():
                wrong.append(f"{name(root, path)}:{line}: {include[1]} is no path below native/")
            elif room not in row or target not in row or (target != room and row[target] >= row[room]):
                wrong.append(f"{name(root, path)}:{line}: {room} includes {target}")
    return wrong


# -- what a file may hold ----------------------------------------------------------------------------------


def too_long(root: Path) -> list[str]:
    lengths = {name(root, path): len(path.read_text().splitlines()) for path in authored(root)}
    return [f"{path}: {length} lines" for path, length in lengths.items() if length > LINES_MAX]


def lines_matching(root: Path, pattern: str, paths: Iterator[Path]) -> list[str]:
    expression = re.compile(pattern)
    return [
        f"{name(root, path)}:{line}: {text.strip()}"
        for path in paths
        if name(root, path) not in SPELLS_OUT
        for line, text in enumerate(path.read_text().splitlines(), 1)
        if expression.search(text)
    ]


def unfinished(root: Path) -> list[str]:
    return lines_matching(root, r"\b(TODO|FIXME|XXX|HACK|raise NotImplementedError)\b", authored(root))


def private_paths(root: Path) -> list[str]:
    return lines_matching(root, r"(?<![\w.$}/<])/(home|Users|root|work|workspace|mnt)/\w", authored(root))


def sleeps(root: Path) -> list[str]:
    found = lines_matching(
        root, r"\b(sleep_for|sleep_until|usleep|nanosleep)\s*\(", files(root, "native/test/**/*")
    )
    for path in files(root, "tests/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "sleep":
                found.append(f"{name(root, path)}:{node.lineno}: {ast.unparse(node)}")
    return [place for place in found if place.split(":")[0] not in SLEEPS]


def unlinked_documents(root: Path) -> list[str]:
    linked: set[Path] = set()
    for page in files(root, "README.md", "ARCHITECTURE.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            linked.add((page.parent / target).resolve())
    return [name(root, path) for path in files(root, "docs/**/*.md") if path.resolve() not in linked]


def dead_links(root: Path) -> list[str]:
    return [
        f"{name(root, page)}: {target}"
        for page in files(root, "*.md", "docs/**/*.md")
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]


def unknown_tests(root: Path) -> list[str]:
    """Tests that a document names and nobody has.

    `tests/file.py::test`; `native/test/file.cpp`: "name", or how it begins and "..."; and, of the explorer's
    rules broken on purpose, `... is found ...` alone.
    """
    native = " ".join(path.read_text() for path in files(root, "native/test/*.cpp"))
    found = [
        f"{name(root, page)}: no native test {broken!r}"
        for page in files(root, "docs/**/*.md")
        for broken in re.findall(r"`([a-z][^`|]* found[^`|]*)`", " ".join(page.read_text().split()))
        if f'TEST("{broken}")' not in native
    ]
    for page in files(root, "*.md", "docs/**/*.md"):
        text = page.read_text()
        named = [(file, f"def {test}(") for file, test in re.findall(r"`(tests/\w+\.py)::(\w+)`", text)]
        named += [
            (file, f'TEST("{test[:-4]}' if test.endswith(" ...") else f'TEST("{test}")')
            for file, test in re.findall(r'`(native/test/\w+\.cpp)`: "([^"]+)"', text)
        ]
        for file, words in named:
            source = (root / file).read_text() if (root / file).is_file() else ""
            if words not in re.sub(r"TEST\(\s+", "TEST(", source):
                found.append(f"{name(root, page)}: {file} has no {words}")
    return found


# -- each rule rejects, and accepts this tree ----------------------------------------------------------

RULES: tuple[tuple[Callable[[Path], list[str]], str, str, str], ...] = (
    # rule, a file that breaks it, its text, what the complaint must name
    (
        wrong_python_imports,
        "src/drust/errors.py",
        "from drust.runtime import attach",
        "errors imports runtime",
    ),
    (wrong_python_imports, "src/drust/codecs/arrays.py", "import drust", "codecs imports drust itself"),
    (
        wrong_python_imports,
        "src/drust/handles.py",
        "def f():\n    from drust import tasks",
        "handles imports tasks",
    ),
    (wrong_python_imports, "src/drust/server/loop.py", "import drust.handles", "server imports handles"),
    (wrong_python_imports, "src/drust/check/rules.py", "import drust.runtime", "check imports runtime"),
    (wrong_python_imports, "src/drust/attic.py", "import drust.errors", "attic imports errors"),
    (wrong_python_imports, "src/drust/tasks.py", "from .sync import Arc", "a relative import"),
    (wrong_native_includes, "native/base/x.hpp", '#include "native/heap/x.hpp"', "is no path below native/"),
    (
        wrong_native_includes,
        "native/base/x.hpp",
        '#include "base/x.hpp"\n#include "heap/a.hpp"',
        "base includes heap",
    ),
    (wrong_native_includes, "native/heap/x.cpp", '# include "protocol/a.hpp"', "heap includes protocol"),
    (wrong_native_includes, "native/attic/x.cpp", '#include "base/a.hpp"', "attic includes base"),
    (too_long, "native/heap/x.cpp", "\n" * (LINES_MAX + 1), "601 lines"),
    (unfinished, "src/drust/tasks.py", "x = 1  # TODO later", "tasks.py:1"),
    (unfinished, "native/heap/x.cpp", "// FIXME", "x.cpp:1"),
    (unfinished, "src/drust/tasks.py", "raise NotImplementedError", "tasks.py:1"),
    (private_paths, "tests/test_x.py", 'open("/home/ada/data")', "test_x.py:1"),
    (private_paths, "README.md", "see `/root/notes`", "README.md:1"),
    (sleeps, "tests/test_x.py", "from time import sleep\nsleep(1)", "test_x.py:2: sleep(1)"),
    (sleeps, "tests/test_x.py", "await asyncio.sleep(1)", "test_x.py:1"),
    (sleeps, "native/test/test_x.cpp", "std::this_thread::sleep_for(1ms);", "test_x.cpp:1"),
    (unlinked_documents, "docs/lost.md", "# Lost", "docs/lost.md"),
    (dead_links, "docs/limits.md", "[gone](gone.md)", "gone.md"),
    (
        unknown_tests,
        "docs/failure.md",
        "| `tests/test_x.py::test_gone` |",
        "tests/test_x.py has no def test_gone(",
    ),
    (unknown_tests, "docs/failure.md", '`native/test/test_x.cpp`: "it is gone"', 'no TEST("it is gone")'),
    (
        unknown_tests,
        "docs/protocol.md",
        "(`a rule that is gone is\nfound`)",
        "'a rule that is gone is found'",
    ),
)


@pytest.mark.parametrize(("rule", "path", "text", "complaint"), RULES)
def test_a_rule_rejects_what_breaks_it(
    tmp_path: Path, rule: Callable[[Path], list[str]], path: str, text: str, complaint: str
) -> None:
    for room in ("heap", "protocol", "base"):
        (tmp_path / "native" / room).mkdir(parents=True)
        (tmp_path / "native" / room / "a.hpp").touch()
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
    found = rule(tmp_path)
    assert len(found) == 1, found
    assert complaint in found[0]


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, *_ in RULES))
def test_this_tree_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(ROOT) == []


def test_imports_to_the_left_are_accepted(tmp_path: Path) -> None:
    package = tmp_path / "src/drust"
    (package / "apps").mkdir(parents=True)
    (package / "__init__.py").write_text("from drust.tasks import spawn")
    (package / "tasks.py").write_text("import drust.errors\nfrom drust import handles, placement")
    (package / "apps/gemm.py").write_text(
        "if TYPE_CHECKING:\n    import drust.bench\nfrom drust.apps import kvstore"
    )
    assert wrong_python_imports(tmp_path) == []


def test_every_allowed_sleep_still_exists() -> None:
    assert [path for path in SLEEPS if not (ROOT / path).is_file()] == []


def test_importing_drust_loads_nothing_optional_or_slow() -> None:
    heavy = ("polars", "pyarrow", "torch", "pandas", "asyncio", "ray")
    script = f"import drust, sys; print(*[m for m in {heavy!r} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert loaded.stdout.split() == []


def test_every_native_source_is_below_a_room() -> None:
    rooms = {room for row in NATIVE_ROWS for room in row}
    assert {
        path.parent.relative_to(ROOT / "native").parts[0] for path in files(ROOT, "native/**/*.cpp")
    } <= rooms
