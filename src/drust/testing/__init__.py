"""What drust is tested with, for programs that are built on it too.

    faults       where and when processes of a session are killed or stopped, chosen by a seed
    account      every live block of a session, compared with an earlier look: what has leaked
    invariants   the nine promises of the design, asked of a running session
    placing      why tasks went where they went, and loads to decide by
    chaos        random programs under kills, against a model that knows what each death allows
    soak         thousands of such runs
    sweep        every kind of step, killed at every kill point

A test of your own program under kills:

    with faults.Board() as board, drust.init(servers=2) as session:
        before = account.take(session)
        board.arm(victim_pid, "queue.take.running", action="kill")
        ...                                   # your program: every wait ends, with a value or an error
        account.check_settled(session, before)
        invariants.check(session)
"""
