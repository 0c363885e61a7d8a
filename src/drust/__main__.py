"""`python -m drust`: the same as `drust`."""

from drust.cli import main

if __name__ == "__main__":
    main(prog_name="python -m drust")
