"""`drust run`: a script as `__main__` of this process, under settings given as DRUST_ variables.

In this process, not a child: it becomes the driver, Ctrl-C and the exit status are the script's own, and a
debugger finds what it expects. An uncaught exception keeps its traceback, which begins at the script: whoever
wrote it needs the line.
"""

import json
import os
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from drust import session
from drust.cli import INTERRUPTED
from drust.config import Config


def run_script(
    script: str, arguments: Sequence[str], settings: Mapping[str, Any], *, as_json: bool = False
) -> int:
    """Runs a script to its end, and whatever session it left running too; returns its exit status.

    Args:
        script: its path.
        arguments: its `sys.argv[1:]`.
        settings: fields of Config; None leaves the environment's or the default.
        as_json: print a line of JSON at the end: the exit status, and each server's counters, as they were
            when its session ended.

    Raises:
        ConfigError: a setting cannot be used. The script has not been started then.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    Config.read(**given)
    os.environ.update({f"DRUST_{name.upper()}": str(value) for name, value in given.items()})
    counted: list[dict[str, Any]] = []
    if as_json:
        session.before_close(lambda ending: counted.append(_count(ending)))
    try:
        status = _execute(script, arguments)
    finally:
        session.shutdown()
    if as_json:
        click.echo(json.dumps({"script": script, "exit_status": status, "sessions": counted}))
    return status


def _execute(script: str, arguments: Sequence[str]) -> int:
    sys.argv[:] = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        return exit_status(error.code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:  # noqa: BLE001 - as the interpreter does at the end of a script
        sys.stdout.flush()
        traceback.print_exception(type(error), error, from_script(error.__traceback__, script))
        return 1
    return 0


def exit_status(code: object) -> int:
    """What the interpreter makes of `sys.exit(code)`: a text is printed, and is a failure."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def from_script(frames: TracebackType | None, script: str) -> TracebackType | None:
    """A traceback without what lies above the script; none of it where the script was not reached."""
    while frames is not None and frames.tb_frame.f_code.co_filename != script:
        frames = frames.tb_next
    return frames


def _count(ending: session.Session) -> dict[str, Any]:
    """The servers' counters, or why one does not tell."""
    servers: list[dict[str, Any]] = []
    for server in range(ending.servers):
        try:
            servers.append({"server": server, "counters": ending.status(server).counters})
        except Exception as error:  # noqa: BLE001 - the script's outcome matters more than its statistics
            servers.append({"server": server, "error": str(error)})
    return {"servers": servers}
