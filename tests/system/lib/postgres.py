"""A PostgreSQL server of one test, on a private cluster, and everything that can befall it.

The server runs as an ordinary user (initdb and postgres refuse root) in a folder under /tmp,
on a unix socket and on 127.0.0.1. Commits are durable (fsync is on). The cluster is made once
and then copied, so that a server of its own costs a test a third of a second.

Roles: `postgres` (superuser), `dac` (owns database `dac`), `dac_auditor` and `dac_service`
if a test makes them. Over the socket everybody is trusted; over TCP a password is asked for.
"""

import contextlib
import datetime
import decimal
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import psycopg
from psycopg.rows import dict_row

from lib import procs
from lib.dacd import free_port

PASSWORD = "sk-canary-postgres 'quoted\\"  # a word that no log may show; needs quoting
SETTINGS = {
    "fsync": "on",
    "max_connections": "40",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "jit": "off",
    "huge_pages": "off",
    # Nothing is left in /dev/shm by a server that was killed.
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "'%m [%p] %a '",
    "timezone": "'Asia/Kathmandu'",  # nobody may rely on the server's zone
}
HBA = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"

_template = None
_shared = None


def binaries():
    """Folder of the newest PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    if not found:
        raise AssertionError("no PostgreSQL here: apt-get install postgresql")
    return found[-1]


def system_user():
    """Who runs the server: None for oneself, an ordinary user if that is root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return name
    raise AssertionError("no ordinary user to run PostgreSQL as")


def run_as(user):
    """Keywords of subprocess for a program that runs as `user`."""
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def _folder(user):
    """A new folder that the server's user may enter; short, for the socket in it."""
    path = Path(tempfile.mkdtemp(prefix="dac-pg-", dir="/tmp"))
    path.chmod(0o755)
    if user is not None:
        shutil.chown(path, user)
    return path


def _make_template():
    """The cluster that the others are copies of; one for each process of pytest."""
    global _template
    if _template is not None:
        return _template
    user = system_user()
    folder = _folder(user)
    data = folder / "data"
    subprocess.run(
        [binaries() / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
         "--locale=C.UTF-8", "--no-sync", "--no-instructions"],
        check=True, capture_output=True, cwd=folder, **run_as(user),
    )  # fmt: skip
    quoted = PASSWORD.replace("'", "''")
    # Escapes of the single-user mode: a newline ends a statement.
    script = (
        f"CREATE ROLE dac LOGIN PASSWORD '{quoted}'\n"
        f"ALTER ROLE postgres PASSWORD '{quoted}'\n"
        "CREATE DATABASE dac OWNER dac\n"
    )
    subprocess.run(
        [binaries() / "postgres", "--single", "-D", data, "-F", "postgres"],
        input=script.encode(), check=True, capture_output=True, cwd=folder, **run_as(user),
    )  # fmt: skip
    _template = data
    return data


def remove_template():
    """Behind the last test."""
    global _template
    if _template is not None:
        shutil.rmtree(_template.parent, ignore_errors=True)
        _template = None


class Database:
    """A database of its own on a server that many share."""

    _numbers = itertools.count(1)

    def __init__(self, server):
        self.server = server
        self.name = f"dac{next(self._numbers)}"
        server.sql(f"CREATE DATABASE {self.name} OWNER dac TEMPLATE template0", dbname="postgres")

    @property
    def conninfo(self):
        return self.server.conninfo(dbname=self.name)

    def sql(self, query, *args):
        return self.server.sql(query, *args, dbname=self.name)

    def drop(self):
        self.server.sql(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)", dbname="postgres")


def shared_database():
    """An empty database on the server of this process of pytest."""
    global _shared
    if _shared is None:
        _shared = Postgres({"max_connections": "100"}).start()
    return Database(_shared)


def remove_shared():
    """Behind the last test."""
    global _shared
    if _shared is not None:
        _shared.close()
        _shared = None
    remove_template()


def quote(value):
    """A value inside a connection string."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def conninfo(**fields):
    return " ".join(f"{k}={quote(v)}" for k, v in fields.items() if v is not None)


def _plain(value):
    """Values as the SQLite store has them, so that one test suits both."""
    if isinstance(value, datetime.datetime):
        utc = value.astimezone(datetime.timezone.utc)
        return utc.strftime("%Y-%m-%d %H:%M:%S.%f")
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, memoryview):
        return bytes(value)
    return value


class Postgres:
    """Made and started by the fixture `postgres`; close() removes everything."""

    def __init__(self, settings=None, disk=None, hba=HBA, files=None):
        """disk: size of an own file system for the data ("160m"), which needs root. files:
        {name: text or path} to be put into the data folder, as the server's own."""
        self.user = system_user()
        self.folder = _folder(self.user)
        self.port = free_port()
        self.process = None
        self.mounted = None
        self.settings = {**SETTINGS, **(settings or {})}
        self.data = self.folder / "data"
        template = _make_template()
        if disk:
            self._mount(disk)
        subprocess.run(["cp", "-a", template, self.data], check=True)
        for name, text in {"pg_hba.conf": hba, **(files or {})}.items():
            self.put(name, text)
        conf = {
            **self.settings,
            "port": str(self.port),
            "listen_addresses": "'127.0.0.1'",
            "unix_socket_directories": f"'{self.folder}'",
        }
        with open(self.data / "postgresql.conf", "a") as f:
            f.writelines(f"{k} = {v}\n" for k, v in conf.items())

    def put(self, name, text):
        """A file in the data folder, or another text of it, that only the server may read."""
        path = self.data / name
        path.write_text(text.read_text() if isinstance(text, Path) else text)
        path.chmod(0o600)
        if self.user is not None:
            shutil.chown(path, self.user)

    # --- life ---

    def start(self, wait=True):
        assert self.process is None
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [binaries() / "postgres", "-D", self.data],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                start_new_session=True, **run_as(self.user),
            )  # fmt: skip
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, timeout=30):
        deadline = time.monotonic() + timeout
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f"PostgreSQL did not start:\n{self.log[-2000:]}")
            try:
                self.connect(dbname="postgres", connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def stop(self, mode="fast"):
        """mode: smart, fast (ends sessions), immediate (as after a crash), kill (-9 to all)."""
        if self.process is None:
            return
        if mode == "kill":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            how = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
            self.process.send_signal(how[mode])
        self.process.wait(30)
        # Backends have process groups of their own.
        sid = self.process.pid
        self.process = None
        deadline = time.monotonic() + 10
        while left := procs.session(sid):
            assert time.monotonic() < deadline, f"left running: {left}"
            if mode == "kill":
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def restart(self, mode="fast"):
        self.stop(mode)
        return self.start()

    def reload(self):
        self.process.send_signal(signal.SIGHUP)

    def pids(self):
        """The server and all its sessions."""
        return list(procs.session(self.process.pid))

    @contextlib.contextmanager
    def frozen(self):
        """Nothing answers and nothing is refused, as behind a dead network."""
        stopped = []
        try:
            for pid in self.pids():
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
            yield
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def close(self):
        self.stop("kill" if self.mounted else "immediate")
        self._drop_segment()
        if self.mounted:
            subprocess.run(["umount", "-l", self.mounted], check=False)
            self.mounted = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _drop_segment(self):
        """A killed server leaves a few bytes of System V memory, which keep others out."""
        pidfile = self.data / "postmaster.pid"
        if not pidfile.exists():
            return
        lines = pidfile.read_text().splitlines()
        if len(lines) > 6 and lines[6].split():
            subprocess.run(["ipcrm", "-m", lines[6].split()[1]], check=False, capture_output=True)

    @property
    def log(self):
        path = self.folder / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # --- connecting ---

    def conninfo(self, user="dac", dbname="dac", **more):
        """A connection string over the unix socket, where no password is needed."""
        return conninfo(host=self.folder, port=self.port, user=user, dbname=dbname, **more)

    def conninfo_tcp(self, user="dac", dbname="dac", password=PASSWORD, **more):
        """Over TCP, with a password (scram)."""
        return conninfo(
            host="127.0.0.1", port=self.port, user=user, dbname=dbname, password=password, **more
        )

    def connect(self, user="postgres", dbname="dac", **more):
        """An own psycopg connection, each statement committed at once."""
        return psycopg.connect(self.conninfo(user, dbname, **more), autocommit=True)

    def sql(self, query, *args, user="postgres", dbname="dac"):
        """Rows as dicts, with values as SQLite has them; parameters are question marks."""
        with self.connect(user, dbname) as db, db.cursor(row_factory=dict_row) as cursor:
            if args:
                cursor.execute(query.replace("%", "%%").replace("?", "%s"), args)
            else:
                cursor.execute(query)
            if cursor.description is None:
                return []
            return [{k: _plain(v) for k, v in row.items()} for row in cursor]

    def value(self, query, *args, **kw):
        """The first column of the first row."""
        return next(iter(self.sql(query, *args, **kw)[0].values()))

    def psql(self, script, user="postgres", dbname="dac", check=True, options=()):
        """What psql prints for a script."""
        p = subprocess.run(
            [binaries() / "psql", "-X", "-v", "ON_ERROR_STOP=1", *options, "-d",
             self.conninfo(user, dbname)],
            input=script, text=True, capture_output=True, check=False,
            env={**os.environ, "PGTZ": "UTC", "PAGER": "cat"},
        )  # fmt: skip
        if check and p.returncode != 0:
            raise AssertionError(f"psql: {p.stderr}")
        return p.stdout if check else p

    # --- what can befall it ---

    def set(self, **settings):
        """Changes settings of the running server; None takes one back."""
        with self.connect() as db:
            before = db.execute("SELECT pg_conf_load_time()").fetchone()
            for name, value in settings.items():
                db.execute(
                    f"ALTER SYSTEM RESET {name}"
                    if value is None
                    else f"ALTER SYSTEM SET {name} = {quote(value)}"
                )
            db.execute("SELECT pg_reload_conf()")
            deadline = time.monotonic() + 5
            while db.execute("SELECT pg_conf_load_time()").fetchone() == before:
                assert time.monotonic() < deadline, f"not taken: {settings}"
                time.sleep(0.01)

    def read_only(self, on=True):
        self.set(default_transaction_read_only="on" if on else None)

    def sessions(self, like="dac:%"):
        """[{pid, application_name, state, ...}] of connected clients."""
        return self.sql(
            "SELECT * FROM pg_stat_activity WHERE application_name LIKE ? AND pid <> pg_backend_pid()",
            like,
            dbname="postgres",
        )

    def terminate(self, like="dac:%"):
        """Ends sessions, as an administrator does; returns how many."""
        rows = self.sql(
            "SELECT pg_terminate_backend(pid) AS done FROM pg_stat_activity"
            " WHERE application_name LIKE ? AND pid <> pg_backend_pid()",
            like,
            dbname="postgres",
        )
        return sum(row["done"] for row in rows)

    def limit_connections(self, n):
        """Of role dac; -1: none."""
        self.sql(f"ALTER ROLE dac CONNECTION LIMIT {int(n)}", dbname="postgres")

    @contextlib.contextmanager
    def locked(self, table="turns"):
        """Somebody else holds the table: even reading waits."""
        with psycopg.connect(self.conninfo("postgres")) as db:
            db.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield db
            db.rollback()

    # --- a second server ---

    def standby(self):
        """One that follows this one, which needs wal_level=replica and max_wal_senders; it only
        reads until promote()."""
        other = Postgres(self.settings)
        shutil.rmtree(other.data)
        subprocess.run(
            [binaries() / "pg_basebackup", "-D", other.data, "-R", "-X", "stream", "-c", "fast", "-d",
             self.conninfo("postgres", "postgres", application_name="standby")],
            check=True, capture_output=True, cwd=other.folder, **run_as(other.user),
        )  # fmt: skip
        conf = (other.data / "postgresql.conf").read_text()
        conf = conf.replace(str(self.folder), str(other.folder)).replace(f"port = {self.port}", f"port = {other.port}")
        other.put("postgresql.conf", conf)
        return other

    def promote(self):
        self.sql("SELECT pg_promote()", dbname="postgres")

    # --- a disk that can be full ---

    def _mount(self, size):
        assert os.geteuid() == 0, "a disk of its own needs root"
        self.data.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "dac-test", self.data], check=True
        )
        self.mounted = self.data
        self.data = self.data / "cluster"

    def fill_disk(self):
        """Leaves not a byte to the server."""
        with open(self.mounted / "ballast", "ab", buffering=0) as f, contextlib.suppress(OSError):
            while f.write(b"x" * 65536):
                pass

    def free_disk(self):
        (self.mounted / "ballast").unlink(missing_ok=True)


class Pgbouncer:
    """pgbouncer in front of a Postgres. It has no password to lose: everybody is trusted."""

    def __init__(self, postgres, mode="transaction", settings=None):
        self.postgres = postgres
        self.folder = _folder(postgres.user)
        self.port = free_port()
        self.process = None
        conf = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": self.folder,
            "auth_type": "any",
            "pool_mode": mode,
            "default_pool_size": 5,
            "max_client_conn": 200,
            "server_login_retry": 1,
            "admin_users": "postgres",
            **(settings or {}),
        }
        server = conninfo(host=postgres.folder, port=postgres.port, user="dac", dbname="dac")
        with open(self.folder / "pgbouncer.ini", "w") as f:
            f.write(f"[databases]\ndac = {server}\n[pgbouncer]\n")
            f.writelines(f"{k} = {v}\n" for k, v in conf.items())

    def start(self):
        with open(self.folder / "pgbouncer.log", "ab") as log:
            self.process = subprocess.Popen(
                ["pgbouncer", self.folder / "pgbouncer.ini"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin"},
                **run_as(self.postgres.user),
            )  # fmt: skip
        deadline = time.monotonic() + 10
        while True:
            assert self.process.poll() is None, f"pgbouncer did not start:\n{self.log[-2000:]}"
            try:
                psycopg.connect(self.conninfo(), autocommit=True, prepare_threshold=None).close()
                return self
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, self.log[-2000:]
            time.sleep(0.02)

    def conninfo(self, user="dac", dbname="dac", **more):
        return conninfo(host=self.folder, port=self.port, user=user, dbname=dbname, **more)

    @property
    def log(self):
        return (self.folder / "pgbouncer.log").read_text(errors="replace")

    def stop(self):
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def close(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
