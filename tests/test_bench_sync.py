"""`drust bench sync` measures every row it has."""

from drust.bench import sync


def test_a_quick_run_measures_every_row():
    report = sync.run(quick=True)
    assert [row.name for row in report.rows] == [
        "mutex-dict",
        "mutex-array",
        "mutex-shared-array",
        "mutex-shared-dict",
        "rwlock-read",
        "rwlock-read-shared",
        "key-lock",
        "atomic-ptr",
        "mutex-contended",
        "atomic-add",
        "channel",
        "remote-atomic",
        "remote-mutex",
        "dict-get",
        "dict-put",
        "dict-get-remote",
        "dict-put-remote",
    ]
    for row in report.rows:
        assert not row.skipped, row.skipped
        assert row.ours is not None
        is_beside_redis = row.name in ("dict-get", "dict-put")
        assert row.ratio is not None or (is_beside_redis and "not installed" in row.notes[0])
    messages = {row.name: row.messages for row in report.rows}
    assert messages["mutex-shared-dict"] == {}
    assert messages["remote-atomic"] == {"shared_messages": 1.0}
    assert messages["remote-mutex"] == {"shared_messages": 2.0}
    assert messages["dict-get"] == messages["dict-put"] == {}
    assert messages["dict-get-remote"] == messages["dict-put-remote"] == {"shared_messages": 1.0}
