"""Byte sizes and times as people write them, for configuration and for messages.

Leftmost: imports nothing of ours, so that errors.py and config.py share one spelling.
"""

import re

_BYTES_OF_UNIT = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "t": 2**40,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)

BYTES_FORMS = "a number of bytes or a size such as 512MiB, 4GiB, 1.5GB"


def parse_bytes(text: str) -> int:
    """The bytes `text` means: `"4GiB"`, `"4G"` (the same), `"4GB"` (powers of ten), `"4096"`.

    Raises:
        ValueError: it is not of these forms.
    """
    match = _SIZE.fullmatch(text)
    factor = _BYTES_OF_UNIT.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not {BYTES_FORMS}")
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def format_bytes(count: int) -> str:
    """`count` with the binary unit that keeps it below 1024: `"1.5 GiB"`, `"17 B"`."""
    if abs(count) < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if abs(value) < 1024:
            return f"{value:.4g} {unit}"
    return f"{value / 1024:.4g} TiB"


def format_seconds(seconds: float) -> str:
    """`seconds` with the unit a reader expects: `"3.2 ms"`, `"41 s"`, `"2 h 5 min"`."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
