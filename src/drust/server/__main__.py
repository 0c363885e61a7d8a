"""`python -m drust.server FD`: started by an engine, never by hand; FD is the server's end of the channel."""

from drust.server.main import main

if __name__ == "__main__":
    main()
