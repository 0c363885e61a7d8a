"""The README's program runs as a script, from standard input and in a cell; two drivers do not meet."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"


def program() -> str:
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found
    return found[1]


def environment() -> dict[str, str]:
    return {**os.environ, "DRUST_HEAP_BYTES": "256MiB"}


def run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("how", ["script", "standard input", "cell"])
def test_the_readme_program_runs(tmp_path, how):
    script = tmp_path / "program.py"
    script.write_text(program())
    if how == "script":
        output = run(sys.executable, str(script))
    elif how == "standard input":
        output = run(sys.executable, "-", text=program())
    else:  # as a notebook does: no file, code compiled under a made up name, run in __main__
        cell = f"exec(compile({program()!r}, '<ipython-input-1>', 'exec'), globals())"
        output = run(sys.executable, "-c", cell)
    sums = [float(word) for word in output.split()]
    assert len(sums) == 2
    assert abs(sums[0] / (4096 * 1024) - sums[1]) < 1e-9


def test_two_drivers_on_one_machine_do_not_disturb_each_other(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(program())
    both = [
        subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment())
        for _ in range(2)
    ]
    for each in both:
        output, _ = each.communicate(timeout=60)
        assert each.returncode == 0
        assert len(output.split()) == 2
