"""`dacctl migrate`: one schema in both kinds of database, explained by itself, applied once."""

import concurrent.futures
import re
import sqlite3

import pytest

from lib import database
from lib.database import MIGRATIONS, Server, Sqlite, dacctl

pytestmark = pytest.mark.own_store

KINDS = ("sqlite", "postgres")
VIEWS = {"turn_audit", "slo_last_100", "coalesce_hourly", "incomplete_turns"}


def newest(kind):
    return len(list((MIGRATIONS / kind).glob("[0-9]*.sql")))


@pytest.fixture(params=KINDS)
def db(request, tmp_path):
    return database.empty(request.param, tmp_path, request)


def sqlite_columns(db):
    names = [r["name"] for r in db.sql("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')")]
    return {
        n: {r["name"] for r in db.sql(f"PRAGMA table_info({n})")}
        for n in names
        if not n.startswith("sqlite_")
    }


def postgres_columns(db):
    columns = {}
    for row in db.sql(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
    ):
        columns.setdefault(row["table_name"], set()).add(row["column_name"])
    return columns


@pytest.mark.smoke
def test_it_is_applied_once(db):
    dry = dacctl("-d", db.name, "migrate", "--dry-run")
    assert "CREATE TABLE threads" in dry.stdout and dry.stderr == ""
    assert "version 0" in dry.stdout.splitlines()[0]
    first = dacctl("-d", db.name, "migrate")
    assert first.stdout == "" and f"from version 0 to {newest(db.kind)}" in first.stderr
    rows = db.sql("SELECT * FROM schema_migrations ORDER BY version")
    assert [r["version"] for r in rows] == list(range(1, newest(db.kind) + 1))
    assert all(re.fullmatch("[0-9a-f]{64}", r["checksum"]) for r in rows)
    again = dacctl("-d", db.name, "migrate")
    assert "nothing to do" in again.stderr
    dry = dacctl("-d", db.name, "migrate", "--dry-run")
    assert len(dry.stdout.splitlines()) == 1 and "Nothing is missing" in dry.stdout
    assert db.sql("SELECT * FROM schema_migrations ORDER BY version") == rows


def test_what_a_dry_run_prints_is_the_schema(db, tmp_path):
    db.script(dacctl("-d", db.name, "migrate", "--dry-run").stdout)
    columns = sqlite_columns(db) if db.kind == "sqlite" else postgres_columns(db)
    assert {"threads", "turns", "messages"} | VIEWS <= set(columns)


def test_both_kinds_have_the_same_tables_views_and_columns(tmp_path, request):
    found = {}
    for kind in KINDS:
        db = database.empty(kind, tmp_path, request)
        dacctl("-d", db.name, "migrate")
        found[kind] = sqlite_columns(db) if kind == "sqlite" else postgres_columns(db)
    assert found["sqlite"] == found["postgres"]
    assert VIEWS <= set(found["sqlite"])
    for view in VIEWS:
        assert found["sqlite"][view], view


def test_every_table_view_and_column_is_explained(postgres):
    dacctl("-d", postgres.conninfo(), "migrate")
    silent = postgres.sql(
        "SELECT c.relname || coalesce('.' || a.attname, '') AS name"
        " FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
        " WHERE c.relkind IN ('r', 'v') AND c.relnamespace = 'public'::regnamespace"
        " AND (obj_description(c.oid, 'pg_class') IS NULL"
        "      OR col_description(c.oid, a.attnum) IS NULL)"
    )
    assert silent == []
    assert "UUID version 7" in postgres.psql(r"\d+ turns")
    assert "One row for each call" in postgres.psql(r"\dt+ turns")


def test_programs_that_start_at_once_take_turns(db):
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        said = list(pool.map(lambda _: dacctl("-d", db.name, "migrate").stderr, range(6)))
    # SQLite's versions are read outside of the lock that the migration takes.
    applied = [s for s in said if "migrated from" in s]
    assert len(applied) == 1 or db.kind == "sqlite"
    assert db.value("SELECT count(*) FROM schema_migrations") == newest(db.kind)


def test_a_newer_database_is_refused(db):
    dacctl("-d", db.name, "migrate")
    db.sql(
        "INSERT INTO schema_migrations (version, name, applied_at) VALUES (99, 'future', ?)",
        "2026-01-01 00:00:00.000000",
    )
    if db.kind == "sqlite":
        db.sql("PRAGMA user_version = 99")
    for args in (["migrate"], ["migrate", "--dry-run"]):
        p = dacctl("-d", db.name, *args, check=False)
        assert p.returncode == 1 and p.stdout == ""
        assert "version 99" in p.stderr and "newer release" in p.stderr


def test_another_program_s_tables_are_not_touched(db):
    db.sql("CREATE TABLE schema_migrations (version varchar(20))")
    db.sql("INSERT INTO schema_migrations VALUES ('20240101')")
    p = dacctl("-d", db.name, "migrate", check=False)
    assert p.returncode == 1 and "another program" in p.stderr
    columns = sqlite_columns(db) if db.kind == "sqlite" else postgres_columns(db)
    assert set(columns) == {"schema_migrations"}


def test_nothing_is_left_of_a_migration_that_fails(postgres):
    postgres.sql("CREATE TABLE messages (n int)", user="dac")
    p = dacctl("-d", postgres.conninfo(), "migrate", check=False)
    assert p.returncode == 1 and "messages" in p.stderr and "another program" in p.stderr
    assert set(postgres_columns(Server(postgres))) == {"messages"}


def test_a_changed_migration_is_noticed(postgres):
    dacctl("-d", postgres.conninfo(), "migrate")
    postgres.sql("UPDATE schema_migrations SET checksum = repeat('0', 64)")
    p = dacctl("-d", postgres.conninfo(), "migrate", check=False)
    assert p.returncode == 1 and "1_initial is not this program's" in p.stderr


def test_who_may_not_migrate_is_told(postgres):
    postgres.sql("CREATE ROLE stranger LOGIN")
    p = dacctl("-d", postgres.conninfo("stranger"), "migrate", check=False)
    assert p.returncode == 1 and 'role "stranger"' in p.stderr and "owner" in p.stderr
    dacctl("-d", postgres.conninfo(), "migrate")
    p = dacctl("-d", postgres.conninfo("stranger"), "migrate", check=False)
    assert p.returncode == 1 and "dac_service" in p.stderr


def test_an_encoding_that_cannot_hold_every_text_is_refused(postgres):
    postgres.sql(
        "CREATE DATABASE latin OWNER dac ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
        dbname="postgres",
    )
    p = dacctl("-d", postgres.conninfo(dbname="latin"), "migrate", check=False)
    assert p.returncode == 1 and "LATIN1" in p.stderr and "UTF8" in p.stderr


def test_it_works_behind_a_pooler_and_with_odd_defaults(postgres, pgbouncer):
    postgres.sql(
        "ALTER ROLE dac SET default_transaction_isolation = 'serializable'", dbname="postgres"
    )
    postgres.sql("ALTER ROLE dac SET statement_timeout = '1ms'", dbname="postgres")
    dacctl("-d", pgbouncer.conninfo(), "migrate")
    assert postgres.value("SELECT count(*) FROM turns") == 0


@pytest.mark.parametrize("version", range(1, newest("sqlite")))
def test_every_older_sqlite_database_is_brought_up_to_date(tmp_path, version):
    db = Sqlite(tmp_path / "old.db")
    files = sorted((MIGRATIONS / "sqlite").glob("[0-9]*.sql"))
    with sqlite3.connect(db.path) as old:
        for n, file in enumerate(files[:version], 1):
            old.executescript(file.read_text())
            old.execute(
                "INSERT INTO schema_migrations (version, name, applied_at) VALUES (?, ?, ?)",
                (n, file.stem.split("_", 1)[1], "2026-01-01 00:00:00.000000"),
            )
        old.execute("PRAGMA application_id = 1145127729")
        old.execute(f"PRAGMA user_version = {version}")
        old.execute(
            "INSERT INTO turns (id, org, provider, model, status, key_digest, created_at, finished_at)"
            " VALUES (?, 'acme', 'mock', 'm-1', 'complete', zeroblob(32), ?, ?)",
            ("0" * 36, "2026-01-01 00:00:00.000000", "2026-01-01 00:00:00.000000"),
        )
    old.close()
    dry = dacctl("-d", db.name, "migrate", "--dry-run").stdout
    assert f"version {version}" in dry and files[version].read_text() in dry
    dacctl("-d", db.name, "migrate")
    fresh = Sqlite(tmp_path / "fresh.db")
    sqlite3.connect(fresh.path).close()
    fresh.path.touch()
    dacctl("-d", fresh.name, "migrate")
    assert sqlite_columns(db) == sqlite_columns(fresh)
    assert db.value("SELECT count(*) FROM turn_audit") == 1
    sums = "SELECT version, name, checksum FROM schema_migrations ORDER BY version"
    assert db.sql(sums) == fresh.sql(sums)


@pytest.mark.parametrize("version", range(1, newest("postgres")))
def test_every_older_postgres_database_is_brought_up_to_date(postgres, version):
    files = sorted((MIGRATIONS / "postgres").glob("[0-9]*.sql"))
    for n, file in enumerate(files[:version], 1):
        postgres.psql(file.read_text(), user="dac")
        postgres.sql(
            "INSERT INTO schema_migrations (version, name, applied_at) VALUES (?, ?, now())",
            n, file.stem.split("_", 1)[1], user="dac",
        )  # fmt: skip
    dry = dacctl("-d", postgres.conninfo(), "migrate", "--dry-run").stdout
    assert f"version {version}" in dry and files[version].read_text() in dry
    dacctl("-d", postgres.conninfo(), "migrate")
    assert postgres.value("SELECT max(version) FROM schema_migrations") == newest("postgres")


def test_a_database_that_is_not_there_is_said_so(tmp_path, postgres):
    p = dacctl("-d", str(tmp_path / "none.db"), "migrate", check=False)
    assert p.returncode == 2 and "none.db" in p.stderr and not (tmp_path / "none.db").exists()
    postgres.stop()
    p = dacctl("-d", postgres.conninfo(), "migrate", check=False)
    assert p.returncode == 2 and "refused" in p.stderr or "No such file" in p.stderr


def test_the_configured_database_is_taken(tmp_path, postgres):
    conf = tmp_path / "dac.conf"
    conf.write_text(
        f"[server]\nlisten = 127.0.0.1:8000\nenv_file =\n[store]\npostgres = {postgres.conninfo()}\n"
        "[provider p]\nbase_url = http://127.0.0.1:9/v1\n"
    )
    assert "migrated" in dacctl("-c", conf, "migrate").stderr
    assert postgres.value("SELECT count(*) FROM turns") == 0
    conf.write_text("[store]\nnonsense = 1\n")
    p = dacctl("-c", conf, "migrate", check=False)
    assert p.returncode == 2 and "nonsense" in p.stderr
