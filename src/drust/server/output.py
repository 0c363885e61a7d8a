"""What a worker prints, as whole lines with the worker's name in front."""

from collections.abc import Callable

_HELD_BYTES_MAX = 8 * 1024  # a longer line, or a progress bar without an end, is passed on in pieces
TEXT_BYTES_MAX = 32 * 1024  # what one `emit` gets at most, prefixes aside


class LineForwarder:
    """Bytes in, prefixed text out: `emit` is called with one or more whole lines.

    Bytes that are not UTF-8 become replacement characters. A carriage return alone does not end a line.
    """

    def __init__(self, prefix: str, emit: Callable[[str], None]) -> None:
        self._prefix = prefix
        self._emit = emit
        self._held = b""

    def feed(self, chunk: bytes) -> None:
        """Passes on the lines that `chunk` completes, and holds the rest."""
        *lines, self._held = (self._held + chunk).split(b"\n")
        while len(self._held) > _HELD_BYTES_MAX:
            lines.append(self._held[:_HELD_BYTES_MAX])
            self._held = self._held[_HELD_BYTES_MAX:]
        self._emit_lines(lines)

    def finish(self) -> None:
        """Passes on what has no line end: the writer is gone."""
        lines, self._held = ([self._held] if self._held else []), b""
        self._emit_lines(lines)

    def _emit_lines(self, lines: list[bytes]) -> None:
        text: list[str] = []
        size = 0
        for line in lines:
            for start in range(0, max(1, len(line)), _HELD_BYTES_MAX):
                piece = line[start : start + _HELD_BYTES_MAX]
                if text and size + len(piece) > TEXT_BYTES_MAX:
                    self._emit("".join(text))
                    text, size = [], 0
                text.append(f"{self._prefix}{piece.decode(errors='replace')}\n")
                size += len(piece) + len(self._prefix)
        if text:
            self._emit("".join(text))
