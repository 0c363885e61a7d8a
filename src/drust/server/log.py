"""Where this cluster's logs go: Python's logging, to stderr, at WARNING unless DRUST_LOG names another level.

No log file: servers inherit the driver's stderr, workers' stderr is forwarded to it, so nothing is left
behind.
"""

import logging
import os

VARIABLE = "DRUST_LOG"
_FORMAT = "%(prefix)s%(levelname)s %(name)s: %(message)s"


def level_name() -> str:
    """The level DRUST_LOG asks for, WARNING if it names none that exists."""
    wanted = os.environ.get(VARIABLE, "").upper()
    return wanted if isinstance(logging.getLevelName(wanted), int) else "WARNING"


def configure(level: str, prefix: str = "") -> None:
    """Sends the `drust` loggers of this process to stderr. Once a process."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT, defaults={"prefix": prefix}))
    logger = logging.getLogger("drust")
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


def configure_driver() -> None:
    """The driver's logging belongs to its user: touched only if DRUST_LOG asks for it."""
    if os.environ.get(VARIABLE) and not logging.getLogger("drust").handlers:
        configure(level_name())
