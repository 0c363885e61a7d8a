"""Benchmarks: what each operation costs, as a ratio against its physical limit measured in the same run.

Read `micro.py` for the list of rows, `stats.py` for how a ratio is taken. Run `drust bench micro` or
`python -m drust.bench micro`.
"""
