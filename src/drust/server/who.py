"""A process as shared objects name it, one number: native/sync/who.hpp."""

from collections.abc import Iterable
from typing import Any


def place_of(who: int) -> tuple[int, int]:
    """Its server and its process slot there."""
    return (who >> 24) & 0xFFF, (who >> 16) & 0xFF


def is_among(who: int, processes: Iterable[Any]) -> bool:
    """Whether it is one of the live processes of its own server, as `processes()` lists them."""
    slot, generation = place_of(who)[1], who & 0xFFFF
    return any(row["slot"] == slot and row["generation"] & 0xFFFF == generation for row in processes)
