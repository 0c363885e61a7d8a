"""`drust bench sync` measures every row it has."""

from drust.bench import sync


def test_a_quick_run_measures_every_row():
    report = sync.run(quick=True)
    assert [row.name for row in report.rows] == [
        "mutex-dict",
        "mutex-array",
        "mutex-shared-array",
        "mutex-shared-dict",
        "atomic-add",
        "channel",
        "remote-atomic",
        "remote-mutex",
    ]
    for row in report.rows:
        assert not row.skipped, row.skipped
        assert row.ours is not None
        assert row.ratio is not None
    messages = {row.name: row.messages for row in report.rows}
    assert messages["mutex-shared-dict"] == {}
    assert messages["remote-atomic"] == {"shared_messages": 1.0}
    assert messages["remote-mutex"] == {"shared_messages": 2.0}
