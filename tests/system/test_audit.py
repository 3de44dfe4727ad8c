"""An auditor with psql: every command of docs/audit.md works, for the role it is meant for."""

import datetime
import re

import psycopg
import pytest

from lib import database
from lib.dacd import ROOT
from lib.database import Server, add_thread, add_turn, dacctl

pytestmark = pytest.mark.own_store

PAGE = (ROOT / "docs/audit.md").read_text()
HOUR = datetime.timedelta(hours=1)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture
def db(postgres):
    """Migrated, with the page's roles and a few turns."""
    dacctl("-d", postgres.conninfo(), "migrate")
    postgres.psql(dacctl("migrate", "--print-roles").stdout)
    for block in blocks("sql"):
        postgres.psql(block)
    db = Server(postgres)
    thread = add_thread(db)
    add_turn(db, thread, question="Why is the sky\nblue?", answer="Because …", followers=3, hits=1)
    add_turn(db, thread, ago=HOUR / 4, question="And at\tnight?", answer="Dark.", generation=1)
    add_turn(db, None, ago=HOUR / 2, answer=None, status="failed", error_code="upstream_error", ttft_ms=None)
    add_turn(db, None, ago=HOUR / 2, answer="Half of", status="incomplete", error_code="upstream_broke")
    add_turn(db, None, ago=HOUR / 3, answer="Half", status="cancelled", finish_reason="cancelled")
    return db


def test_every_command_of_the_page_works(db):
    asked = blocks("psql")
    assert len(asked) >= 9
    for block in asked:
        p = db.server.psql(block, user="alice", check=False)
        assert p.returncode == 0 and p.stderr == "", f"{block}\n{p.stderr}"
    for block in blocks("psql-owner"):
        db.server.psql(block, user="dac")
    (session,) = [b for b in blocks("sh") if "prune" in b]
    for line in session.splitlines():
        m = re.fullmatch(r"dacctl -d 'dbname=dac user=dac' (.*)", line)
        assert m, line
        dacctl("-d", db.name, *m[1].split())
    assert blocks("sh")[0] == "dacctl migrate --print-roles | psql -d dac\n"


def test_a_turn_is_one_readable_line(db):
    lines = [r["line"] for r in db.sql("SELECT line FROM turn_audit ORDER BY finished_at DESC")]
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d acme complete mock/m-1, first text 100 ms, all 250 ms,"
        r' shared by 5: "Why is the sky blue\?" -> "Because …"',
        lines[0],
    )
    failed = [line for line in lines if "failed" in line]
    assert len(failed) == 1 and "failed (upstream_error)" in failed[0] and failed[0].endswith("-> (none)")
    assert "first text - ms" in failed[0]
    assert not any(c in line for line in lines for c in "\r\n\t")


def test_both_kinds_show_the_same(db, tmp_path, request):
    other = database.empty("sqlite", tmp_path, request)
    dacctl("-d", other.name, "migrate")
    for table in ("threads", "turns", "messages"):
        for row in db.sql(f"SELECT * FROM {table}"):
            row.pop("citations", None)
            marks = ", ".join("?" * len(row))
            other.sql(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", *row.values())
    for view, order in (
        ("turn_audit", "id"),
        ("slo_last_100", "turns"),
        ("coalesce_hourly", "hour"),
        ("incomplete_turns", "id"),
    ):
        here, there = (d.sql(f"SELECT * FROM {view} ORDER BY {order}") for d in (db, other))
        if view == "coalesce_hourly":
            for row in here:
                row["hour"] = row["hour"][:19]
        assert here == there, view
        assert here, view


def test_figures_are_those_of_the_turns(postgres):
    dacctl("-d", postgres.conninfo(), "migrate")
    db = Server(postgres)
    for n in range(1, 121):  # the last 100 are those with the largest figures
        add_turn(
            db, None, ago=HOUR - datetime.timedelta(seconds=n), latency_ms=float(n),
            ttft_ms=None if n % 2 else float(n), queue_wait_ms=float(n % 10), followers=n % 3,
            status="failed" if n % 20 == 0 else "complete",
        )  # fmt: skip
    (row,) = db.sql("SELECT * FROM slo_last_100")
    assert row["turns"] == row["leaders"] == 100
    assert (row["latency_p50_ms"], row["latency_p95_ms"], row["latency_p99_ms"]) == (70, 115, 119)
    assert (row["latency_max_ms"], row["ttft_max_ms"]) == (120, 120)
    assert (row["ttft_p50_ms"], row["ttft_p95_ms"], row["ttft_p99_ms"]) == (70, 116, 120)
    assert (row["queue_wait_p50_ms"], row["queue_wait_max_ms"]) == (4, 9)
    assert row["error_rate"] == 0.05 and row["hits"] == 0
    assert row["followers"] == sum(n % 3 for n in range(21, 121))
    saved = db.sql("SELECT * FROM coalesce_hourly")
    assert sum(r["calls"] for r in saved) == 120
    assert sum(r["calls_saved"] for r in saved) == sum(n % 3 for n in range(1, 121))
    assert sum(r["prompt_tokens_saved"] for r in saved) == 7 * sum(n % 3 for n in range(1, 121))


DENIED = psycopg.errors.InsufficientPrivilege


def test_roles_may_do_what_they_are_for_and_nothing_else(db):
    server = db.server
    for table in ("threads", "turns", "messages", "rejected", "idempotency", "schema_migrations"):
        with pytest.raises(DENIED):
            server.sql(f"SELECT * FROM {table}", user="alice")
        with pytest.raises(DENIED):
            server.sql(f"DELETE FROM {table}", user="gateway")
        with pytest.raises(DENIED):
            server.sql(f"TRUNCATE {table} CASCADE", user="gateway")
    for view in ("turn_audit", "slo_last_100", "coalesce_hourly", "incomplete_turns"):
        assert server.sql(f"SELECT * FROM {view}", user="alice")
        with pytest.raises(psycopg.Error):
            server.sql(f"DELETE FROM {view}", user="alice")
    for forbidden in (
        "UPDATE messages SET content = 'something else'",
        "UPDATE turns SET status = 'complete'",
        "UPDATE threads SET org = 'other'",
        "UPDATE schema_migrations SET version = 7",
        "CREATE TABLE mine (n int)",
        "DROP TABLE turns",
    ):
        with pytest.raises(psycopg.Error):
            server.sql(forbidden, user="gateway")
    for allowed in (
        "UPDATE threads SET title = 'new', deleted_at = now()",
        "UPDATE turns SET followers = 1, hits = 2",
        "SELECT * FROM rejected",
    ):
        server.sql(allowed, user="gateway")


def test_a_turn_cannot_be_there_twice(db):
    (turn,) = db.sql("SELECT * FROM turns LIMIT 1")
    thread = db.value("SELECT id FROM threads")
    with pytest.raises(psycopg.errors.UniqueViolation):
        db.sql("INSERT INTO turns SELECT * FROM turns WHERE id = ?", turn["id"])
    for role in ("user", "assistant", "system"):
        with pytest.raises(psycopg.errors.IntegrityError):
            db.sql(
                "INSERT INTO messages (id, turn_id, role, content, created_at)"
                " SELECT gen_random_uuid(), turn_id, ?, 'x', now() FROM messages WHERE role = 'assistant'",
                role,
            )
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        add_turn(db, thread, org="another org")
    with pytest.raises(psycopg.errors.CheckViolation):
        add_turn(db, None, status="running")


def test_roles_that_were_there_first_get_their_rights_from_the_migration(postgres):
    postgres.psql(dacctl("migrate", "--print-roles").stdout)
    postgres.sql("CREATE ROLE alice LOGIN IN ROLE dac_auditor")
    dacctl("-d", postgres.conninfo(), "migrate")
    assert postgres.sql("SELECT * FROM turn_audit", user="alice") == []
