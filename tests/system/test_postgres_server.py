"""The tests' own PostgreSQL does what is asked of it, also the bad things."""

import time

import psycopg
import pytest

from lib.disk import needs_mount

pytestmark = pytest.mark.own_store


def test_a_server_stops_in_every_way_and_keeps_what_was_committed(postgres):
    postgres.sql("CREATE TABLE t (n int)", user="dac")
    for n, mode in enumerate(("fast", "immediate", "kill", "smart")):
        postgres.sql("INSERT INTO t VALUES (?)", n, user="dac")
        postgres.stop(mode)
        with pytest.raises(psycopg.OperationalError):
            postgres.connect(connect_timeout=2)
        postgres.start()
    assert postgres.value("SELECT count(*) FROM t") == 4


def test_it_can_be_read_only_locked_crowded_and_frozen(postgres):
    postgres.sql("CREATE TABLE turns (n int)", user="dac")
    db = postgres.connect("dac", application_name="dac: test")
    postgres.read_only()
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        db.execute("INSERT INTO turns VALUES (1)")
    postgres.read_only(False)
    db.execute("SET lock_timeout = '50ms'")
    with postgres.locked(), pytest.raises(psycopg.errors.LockNotAvailable):
        db.execute("INSERT INTO turns VALUES (1)")
    db.execute("INSERT INTO turns VALUES (1)")
    postgres.limit_connections(1)
    with pytest.raises(psycopg.OperationalError, match="too many connections"):
        postgres.connect("dac")
    postgres.limit_connections(-1)
    with postgres.frozen():
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError):
            postgres.connect("dac", connect_timeout=2)
        assert time.monotonic() - began >= 1
    assert postgres.terminate() == 1
    with pytest.raises(psycopg.OperationalError):
        db.execute("SELECT 1")
    db.close()


def test_a_password_is_asked_for_over_tcp(postgres):
    psycopg.connect(postgres.conninfo_tcp()).close()
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres.conninfo_tcp(password="wrong"))


@needs_mount
def test_its_disk_can_be_full(make_postgres):
    postgres = make_postgres(disk="160m")
    postgres.sql("CREATE TABLE t (v text)", user="dac")
    db = postgres.connect("dac")
    postgres.fill_disk()
    with pytest.raises(psycopg.Error) as e:
        for _ in range(100):
            db.execute("INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 10000)")
    assert "No space left" in str(e.value) or isinstance(e.value, psycopg.OperationalError)
    db.close()
    postgres.free_disk()
    deadline = time.monotonic() + 20
    while True:
        try:
            postgres.sql("INSERT INTO t VALUES ('y')", user="dac")
            break
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            if postgres.process.poll() is not None:
                postgres.process = None
                postgres.start()
            time.sleep(0.1)


def test_a_pooler_stands_in_front(postgres, pgbouncer):
    postgres.sql("CREATE TABLE t (n int)", user="dac")
    with psycopg.connect(pgbouncer.conninfo(), prepare_threshold=None) as db:
        db.execute("INSERT INTO t VALUES (1)")
    assert postgres.sql("SELECT n FROM t") == [{"n": 1}]
