"""`python -m drust.bench`: the same as `drust bench`."""

from drust.bench.command import bench

if __name__ == "__main__":
    bench(prog_name="python -m drust.bench")
