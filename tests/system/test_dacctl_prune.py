"""`dacctl prune` deletes what is old enough, all of that and nothing else, beside the service."""

import datetime
import json
import sqlite3
import threading
import time

import psycopg
import pytest

from lib import database
from lib.database import add_thread, add_turn, dacctl

pytestmark = pytest.mark.own_store

DAY = datetime.timedelta(days=1)
HOUR = datetime.timedelta(hours=1)


@pytest.fixture(params=("sqlite", "postgres"))
def db(request, tmp_path):
    db = database.empty(request.param, tmp_path, request)
    dacctl("-d", db.name, "migrate")
    return db


def ids(db, table):
    return {r["id"] for r in db.sql(f"SELECT id FROM {table}")}


def add_key(db, turn, name, ago):
    now = database._time(db, database.moment(ago))
    db.sql(
        "INSERT INTO idempotency (org, key_digest, body_digest, turn_id, created_at)"
        " VALUES ('acme', ?, ?, ?, ?)",
        name.encode().ljust(32, b"\0"), b"b" * 32, turn, now,
    )  # fmt: skip


def test_what_is_old_goes_and_the_rest_stays(db):
    old_thread = add_thread(db, ago=100 * DAY)
    deleted_thread = add_thread(db, ago=200 * DAY, deleted=100 * DAY)
    just_deleted = add_thread(db, ago=200 * DAY, deleted=HOUR)
    living = add_thread(db, ago=100 * DAY)
    young = add_thread(db, ago=DAY)
    gone = [add_turn(db, t, ago=91 * DAY) for t in (old_thread, deleted_thread, living, None)]
    kept = [add_turn(db, t, ago=89 * DAY) for t in (living, None)]
    add_key(db, kept[0], "fresh", HOUR)
    add_key(db, kept[1], "stale", 25 * HOUR)
    add_key(db, gone[0], "with its turn", HOUR)
    for name, ago in (("1" * 36, 100 * DAY), ("2" * 36, DAY)):
        if db.kind == "postgres":
            name = f"{name[:8]}-{name[:4]}-{name[:4]}-{name[:4]}-{name[:12]}"
        db.sql(
            "INSERT INTO rejected (id, kind, org, reason, created_at) VALUES (?, 'turn', 'acme', 'x', ?)",
            name, database._time(db, database.moment(ago)),
        )  # fmt: skip
    counted = dacctl("-d", db.name, "prune", "--older-than", "90d", "--dry-run")
    assert "to be deleted" in counted.stdout and len(ids(db, "turns")) == 6
    done = dacctl("-d", db.name, "prune", "--older-than", "90d")
    assert "4 turns, 8 messages, 2 threads, 1 rejected rows" in done.stdout
    assert "4 turns, 8 messages, 2 threads, 1 rejected rows" in counted.stdout
    assert ids(db, "turns") == set(kept)
    assert ids(db, "threads") == {just_deleted, living, young}
    assert db.value("SELECT count(*) FROM messages") == 4
    assert [r["key_digest"].rstrip(b"\0") for r in db.sql("SELECT key_digest FROM idempotency")] == [
        b"fresh"
    ]
    assert len(ids(db, "rejected")) == 1
    again = dacctl("-d", db.name, "prune", "--older-than", "90d")
    assert "0 turns, 0 messages, 0 threads, 0 rejected rows" in again.stdout


def fill(db, count):
    """So many old turns in one thread, by the database itself."""
    thread = add_thread(db, ago=100 * DAY)
    end = database._time(db, database.moment(95 * DAY))
    number = (
        "SELECT i FROM generate_series(1, {0}) AS s(i)"
        if db.kind == "postgres"
        else "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {0}) SELECT i FROM s"
    ).format(count)
    hexed = "to_hex(i)" if db.kind == "postgres" else "printf('%x', i)"
    uid = f"'{{0}}-0000-0000-0000-' || substr('000000000000' || {hexed}, length({hexed}) + 1)"
    if db.kind == "postgres":
        uid = f"({uid})::uuid"
    digest = "decode(repeat('00', 32), 'hex')" if db.kind == "postgres" else "zeroblob(32)"
    db.script(
        f"INSERT INTO turns (id, org, thread_id, provider, model, status, key_digest, created_at,"
        f" finished_at) SELECT {uid.format('11111111')}, 'acme', '{thread}', 'mock', 'm', 'complete',"
        f" {digest}, '{end}', '{end}' FROM ({number}) AS n;"
        f"INSERT INTO messages (id, turn_id, thread_id, role, content, created_at)"
        f" SELECT {uid.format('22222222')}, {uid.format('11111111')}, '{thread}', 'user', 'q',"
        f" '{end}' FROM ({number}) AS n;"
    )


def test_batches_leave_room_for_others(db):
    fill(db, 6000)
    waits = []
    stop = threading.Event()

    def write():
        while not stop.is_set():
            began = time.monotonic()
            add_turn(db, None)
            waits.append(time.monotonic() - began)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        p = dacctl("-d", db.name, "prune", "--older-than", "90d")
    finally:
        stop.set()
        writer.join()
    assert "6000 turns, 6000 messages, 1 threads" in p.stdout
    assert len(waits) > 10 and max(waits) < 2, max(waits)
    assert db.value("SELECT count(*) FROM turns") == len(waits)


def test_progress_is_told_while_it_takes_long(db):
    fill(db, 5000)

    def hold_up():
        """Locks what is still to be deleted, once the first batch is gone."""
        while db.value("SELECT count(*) FROM turns") == 5000:
            time.sleep(0.002)
        if db.kind == "postgres":
            with psycopg.connect(db.name) as holder:
                holder.execute("SELECT 1 FROM turns FOR UPDATE")
                time.sleep(1.5)
        else:
            holder = sqlite3.connect(db.path, timeout=10, isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            time.sleep(1.5)
            holder.execute("COMMIT")
            holder.close()

    other = threading.Thread(target=hold_up)
    other.start()
    p = dacctl("-d", db.name, "prune", "--older-than", "90d", "--json")
    other.join()
    assert " of 5000 turns" in p.stderr, p.stderr
    assert json.loads(p.stdout)["turns"] == 5000  # and nothing else


def test_nonsense_deletes_nothing(db):
    add_turn(db, None, ago=1000 * DAY)
    for wrong in ([], ["--older-than", "yesterday"], ["--older-than", "90"], ["--older-than", "0d"]):
        p = dacctl("-d", db.name, "prune", *wrong, check=False)
        assert p.returncode == 2 and "--older-than" in p.stderr and p.stdout == ""
    assert db.value("SELECT count(*) FROM turns") == 1


def test_the_service_s_role_cannot_prune(postgres):
    dacctl("-d", postgres.conninfo(), "migrate")
    db = database.Server(postgres)
    postgres.psql(dacctl("migrate", "--print-roles").stdout)
    postgres.sql("CREATE ROLE dac_gateway LOGIN IN ROLE dac_service")
    add_turn(db, None, ago=100 * DAY)
    p = dacctl("-d", postgres.conninfo("dac_gateway"), "prune", "--older-than", "90d", check=False)
    assert p.returncode == 1 and "permission denied" in p.stderr and "owner" in p.stderr
    assert db.value("SELECT count(*) FROM turns") == 1
