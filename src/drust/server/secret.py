"""The cluster's token: where it comes from, and the 32 bytes that both sides of a connection prove they hold.

A user's token is text (DRUST_TOKEN, `token=`, or the contents of the file DRUST_TOKEN_FILE names); the wire
wants 32 bytes, so the text is hashed. It travels to our own processes over inherited descriptors, never in an
argument list, never in the environment of a process we start.
"""

import hashlib
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from drust.errors import ConfigError

FILE_VARIABLE = "DRUST_TOKEN_FILE"
_FILE_BYTES_MAX = 4096


def token_bytes(text: str) -> bytes:
    """The 32 bytes of a token's text."""
    return hashlib.sha256(b"drust token 1\0" + text.encode()).digest()


def choose_token(given: str | None, environment: Mapping[str, str] | None = None) -> str:
    """The token's text: the given one, else the one in the file DRUST_TOKEN_FILE names, else a new random
    one.

    Raises:
        ConfigError: the file cannot be read, is empty, or others than its owner may read it.
    """
    if given:
        return given
    path = (os.environ if environment is None else environment).get(FILE_VARIABLE)
    return read_token_file(Path(path)) if path else secrets.token_hex(32)


def read_token_file(path: Path) -> str:
    """The token in a file that its owner alone may read (mode 0600).

    Raises:
        ConfigError: it cannot be read, is empty, belongs to another user, or others may read it.
    """
    expected = "a file of yours with the token, which nobody else may read (chmod 600)"
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            text = file.read(_FILE_BYTES_MAX).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            variable=FILE_VARIABLE, value=str(path), expected=expected, detail=str(error)
        ) from error
    if about.st_uid != os.geteuid() or about.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or not text:
        raise ConfigError(variable=FILE_VARIABLE, value=str(path), expected=expected)
    return text
