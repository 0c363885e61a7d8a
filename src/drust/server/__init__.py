"""The server process: one host's partition, its data plane, and the Python that watches over it.

`main` receives what to do, `supervisor` joins the parts, `pool` keeps the workers alive, `control` answers
questions, `channel` and `messages` are the words between driver, server and worker. A server runs no user
code and imports neither numpy nor cloudpickle, so it starts fast and survives whatever its workers do.
"""
