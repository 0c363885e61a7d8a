"""Data structures that live on several servers at once: docs/collections.md.

shards      where keys and values lie that processes share, a shard a server; of these are made
dict        Dict: keys to values
key_locks   KeyLocks: a lock for each key that somebody holds
atomic_ptr  AtomicPtr: a value that is replaced in one step
array       Array: an n-d array in blocks; parts has what it lends, grid, halos and reductions its numbers
vec         Vec: a sequence in chunks
blocks      Boxes on the servers they are meant for, and tasks where they lie
"""

from drust.collections.array import Array
from drust.collections.atomic_ptr import AtomicPtr
from drust.collections.dict import Dict, Entry
from drust.collections.key_locks import KeyGuard, KeyLocks
from drust.collections.parts import ArrayMut, ArrayRef, Tile
from drust.collections.vec import Vec

__all__ = [
    "Array",
    "ArrayMut",
    "ArrayRef",
    "AtomicPtr",
    "Dict",
    "Entry",
    "KeyGuard",
    "KeyLocks",
    "Tile",
    "Vec",
]
