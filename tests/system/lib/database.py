"""The store's database without a service: made by dacctl, filled with rows, read as dicts."""

import contextlib
import datetime
import hashlib
import sqlite3
import subprocess
import uuid

from lib.dacd import BUILD, ROOT

MIGRATIONS = ROOT / "src/store/migrations"


def dacctl(*args, check=True):
    p = subprocess.run(
        [BUILD / "dacctl", *args], capture_output=True, text=True, check=False, timeout=110
    )
    if check and p.returncode != 0:
        raise AssertionError(f"dacctl {args}: {p.stderr}")
    return p


class Sqlite:
    """The same face as lib.postgres.Postgres has, for a file."""

    kind = "sqlite"

    def __init__(self, path):
        self.path = path

    @property
    def name(self):
        return str(self.path)

    def sql(self, query, *args):
        with contextlib.closing(sqlite3.connect(self.path, timeout=5)) as db:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA foreign_keys = ON")
            rows = [dict(row) for row in db.execute(query, args)]
            db.commit()
            return rows

    def value(self, query, *args):
        return next(iter(self.sql(query, *args)[0].values()))

    def script(self, text):
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            db.executescript(text)


class Server:
    """A Postgres as the owner of its database sees it."""

    kind = "postgres"

    def __init__(self, server):
        self.server = server
        self.name = server.conninfo()

    def sql(self, query, *args):
        return self.server.sql(query, *args, user="dac")

    def value(self, query, *args):
        return self.server.value(query, *args, user="dac")

    def script(self, text):
        self.server.psql(text, user="dac")


def empty(kind, tmp_path, request):
    if kind == "sqlite":
        path = tmp_path / "empty.db"
        sqlite3.connect(path).close()
        path.touch()
        return Sqlite(path)
    return Server(request.getfixturevalue("postgres"))


def moment(ago=datetime.timedelta()):
    return (datetime.datetime.now(datetime.timezone.utc) - ago).strftime("%Y-%m-%d %H:%M:%S.%f")


def _time(db, text):
    return text + "+00" if db.kind == "postgres" else text


def add_thread(db, org="acme", ago=datetime.timedelta(), deleted=None):
    thread = str(uuid.uuid4())
    db.sql(
        "INSERT INTO threads (id, org, title, created_at, deleted_at) VALUES (?, ?, ?, ?, ?)",
        thread, org, "a title", _time(db, moment(ago)),
        None if deleted is None else _time(db, moment(deleted)),
    )  # fmt: skip
    return thread


def add_turn(db, thread=None, org="acme", ago=datetime.timedelta(), question="Why?", answer="So.", **more):
    """A turn that ended so long ago, with its messages; returns its id."""
    turn = str(uuid.uuid4())
    end = _time(db, moment(ago))
    columns = {
        "id": turn, "org": org, "thread_id": thread, "provider": "mock", "model": "m-1",
        "status": "complete", "ttft_ms": 100.0, "latency_ms": 250.0, "queue_wait_ms": 0.0,
        "prompt_tokens": 7, "completion_tokens": 5, "followers": 0, "hits": 0,
        "fetcher": "worker 1", "key_digest": hashlib.sha256(question.encode()).digest(),
        "created_at": end, "finished_at": end, **more,
    }  # fmt: skip
    names = ", ".join(columns)
    marks = ", ".join("?" * len(columns))
    db.sql(f"INSERT INTO turns ({names}) VALUES ({marks})", *columns.values())
    for role, text in (("user", question), ("assistant", answer)):
        if text is not None:
            db.sql(
                "INSERT INTO messages (id, turn_id, thread_id, role, content, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                str(uuid.uuid4()), turn, thread, role, text, end,
            )  # fmt: skip
    return turn
