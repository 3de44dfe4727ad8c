"""A dacd of one test: its configuration, its life, what it logged and what it stored."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import time
from pathlib import Path

from lib import procs, wire

ROOT = Path(__file__).resolve().parents[3]
BUILD = Path(os.environ.get("DAC_BUILD") or ROOT / "build").resolve()

# Where turns are stored: DAC_STORE=postgres runs the same tests on PostgreSQL.
STORED = os.environ.get("DAC_STORE") or "sqlite"
assert STORED in ("sqlite", "postgres"), f"DAC_STORE={STORED}"

# Words that tests put into questions, answers and keys, and that no log may show.
CANARIES = ["kumquat", "[mock", "sk-canary"]
API_KEY = "sk-canary-5d2f0c9e"

LOG_LINE = re.compile(
    r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (ERROR|WARN|INFO|DEBUG) [^\[\]]+\[\d+\] \S.*$"
)


ABOUT = ("request", "turn", "org", "trace")
# What a request's line has besides, as JSON.
FIELDS = ("method", "route", "status", "bytes", "duration_ms", "ttft_ms", "role", "end")


def from_json(line):
    """A line of `log_format = json` as people would have it; others as they are."""
    if not line.startswith("{"):
        return line
    with contextlib.suppress(ValueError):
        o = json.loads(line)
        if list(o)[:5] == ["time", "level", "process", "pid", "message"]:
            about = "".join(f" {k}={o[k]}" for k in ABOUT if k in o)
            return f"{o['time']} {o['level'].upper()} {o['process']}[{o['pid']}] {o['message']}{about}"
    return "no log line: " + line


_counter = itertools.count(1)


def _lane():
    """What DAC_TEST_LANE says; else 0 without xdist, with it the number of this pytest worker, from 1."""
    if lane := os.environ.get("DAC_TEST_LANE"):
        return int(lane)
    return int((os.environ.get("PYTEST_XDIST_WORKER") or "gw-1")[2:]) + 1


_held = {}


def _hold(port):
    """Keeps a port for this process until it ends, also while no server of ours has it: the name
    of an abstract socket, which leaves nothing behind."""
    if port in _held:
        return True
    s = socket.socket(socket.AF_UNIX)
    try:
        s.bind(f"\0dac-test-port-{port}")
    except OSError:
        s.close()
        return False
    _held[port] = s
    return True


def free_port():
    """A port outside of the range from which the kernel takes ports by itself, so that no
    client of another test can be given it in between, and that no other run of tests has."""
    base = 12000 + 2000 * (_lane() % 9) + (os.getpid() * 7) % 1000
    while True:
        port = base + next(_counter) % 1000
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        if _hold(port):
            return port


def write_ini(path, sections):
    """Writes {section: {key: value}}; True and False become on and off, None leaves out."""
    lines = []
    for section, settings in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{k} = {v}" for k, v in settings.items() if v is not None]
        lines.append("")
    path.write_text("\n".join(lines))


class Dacd:
    """Starts with start(); stop() also makes the checks that hold for every test."""

    def __init__(self, folder, provider_url, overrides=None, env=None, workers=4):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.name = f"dactest-{os.getpid()}-{next(_counter)}"
        self.db_path = self.folder / "dac.db"
        self.conf = self.folder / "dac.conf"
        self.env_file = self.folder / "dac.env"
        self.log_path = self.folder / "dacd.log"
        self.env = dict(env or {})
        self.expect_exit = 0
        self.wrapper = []  # a command that executes dacd, such as one with a namespace of its own
        self.allow_log = []  # patterns of ERROR lines that this test means to provoke
        self.process = None
        self.stop_seconds = None
        self.retired = []  # masters that were killed by the test
        key = self.folder / "provider.key"
        key.write_text(API_KEY + "\n")
        key.chmod(0o600)
        self.sections = {
            "server": {
                "name": self.name,
                "listen": f"127.0.0.1:{self.port}",
                "workers": workers,
                "env_file": self.env_file,
                "drain_timeout": "5s",
                "control": self.folder / "control.sock",
            },
            "store": {"sqlite": self.db_path, "spool": self.folder / "spool.db"},
        }
        if provider_url:
            self.sections["provider perplexity"] = {
                "dialect": "openai",
                "base_url": provider_url,
                "api_key_file": key,
                "models": "*",
            }
        for section, settings in (overrides or {}).items():
            self.sections.setdefault(section, {}).update(settings)
        self.database = None  # one of its own on the shared server
        if STORED == "postgres" and not {"postgres", "sqlite"} & set((overrides or {}).get("store", {})):
            from lib.postgres import shared_database

            self.database = shared_database()
            self.sections["store"]["postgres"] = self.database.conninfo

    # --- life ---

    def start(self, wait=True):
        write_ini(self.conf, self.sections)
        self.env_file.touch()
        env = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            **{k: v for k, v in os.environ.items() if k in ("ASAN_OPTIONS", "UBSAN_OPTIONS")},
            **self.env,
        }
        binary = BUILD / "dacd"
        assert binary.exists(), f"{binary} is not built (DAC_BUILD says where to look)"
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, binary, "-c", self.conf],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                cwd=self.folder,
                start_new_session=True,
            )
        if wait:
            self.wait_ready()
        return self

    @property
    def pid(self):
        return self.process.pid

    def reload(self, wait=True, timeout=20):
        """Writes the configuration anew from `sections` and sends SIGHUP; returns what the log says
        from then on, as soon as the reload has come to something."""
        write_ini(self.conf, self.sections)
        before = len(self.log)
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + timeout
        while wait and not re.search(r"\breloaded\b|reload refused", self.log[before:]):
            assert self.process.poll() is None, f"dacd exited {self.process.returncode}"
            assert time.monotonic() < deadline, f"no end of the reload in {timeout} s"
            time.sleep(0.005)
        return self.log[before:]

    def wait_ready(self, timeout=20):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"dacd exited {self.process.returncode} at its start")
            with contextlib.suppress(OSError, ValueError):
                # The first worker answers before the last one has started.
                said = (f"master[{self.pid}] ready: ", f'"pid":{self.pid},"message":"ready: ')
                if any(s in self.log for s in said) and self.get_sync("/readyz")[0] == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"dacd was not ready in {timeout} s")

    def wait_listening(self, timeout=20):
        """Until /livez answers, ready or not."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"dacd exited {self.process.returncode}"
            with contextlib.suppress(OSError, ValueError):
                if self.get_sync("/livez")[0] == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"dacd did not answer in {timeout} s")

    def processes(self):
        """{pid: title} of all living processes of this instance."""
        found = {}
        for sid in [self.process.pid, *self.retired]:
            found.update(procs.session(sid))
        return found

    def workers(self):
        """Pids of the workers in order of their numbers."""
        found = []
        for pid, title in self.processes().items():
            m = re.match(r"dacd: worker (\d+)", title)
            if m:
                found.append((int(m[1]), pid))
        return [pid for _, pid in sorted(found)]

    def recorder(self):
        found = [p for p, t in self.processes().items() if t.startswith("dacd: recorder")]
        assert len(found) == 1, f"recorders: {found}"
        return found[0]

    def kill_all(self):
        """SIGKILL to every process of the instance at once, then waits for their end."""
        os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        self.retired.append(self.pid)
        deadline = time.monotonic() + 5
        while procs.session(self.pid):
            assert time.monotonic() < deadline, "processes survived SIGKILL"
            time.sleep(0.005)

    def stop(self, check=True):
        """SIGTERM, then: exit code, no segment, no process, a clean log."""
        if self.process is None:
            return
        problems = []
        if self.process.poll() is None:
            began = time.monotonic()
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                problems.append("still running 20 s after SIGTERM")
            self.stop_seconds = time.monotonic() - began
        code = self.process.poll()
        if code is not None and code != self.expect_exit:
            problems.append(f"exit code {code} instead of {self.expect_exit}")
        time.sleep(0.05)
        left = self.processes()
        for pid, title in left.items():
            problems.append(f"left running: {pid} {title}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.wait()
        for segment in Path("/dev/shm").glob(f"*{self.name}*"):
            problems.append(f"left in /dev/shm: {segment.name}")
            segment.unlink()
        problems += self.log_problems()
        self.process = None
        if check and problems:
            raise AssertionError("dacd: " + "; ".join(problems))

    def forget(self):
        """Drops the database that it had."""
        if self.database is not None:
            self.database.drop()
            self.database = None

    # --- log ---

    @property
    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_problems(self):
        problems = []
        text = self.log
        for word in CANARIES:
            if word in text.lower():
                problems.append(f"the log shows {word!r}")
        for line in text.splitlines():
            m = LOG_LINE.match(from_json(line))
            if not m:
                problems.append(f"not a log line: {line[:160]!r}")
            elif m[1] == "ERROR" and not any(re.search(p, line) for p in self.allow_log):
                problems.append(f"unexpected: {line[:200]}")
        return problems[:12]

    # --- asking ---

    def get_sync(self, path, headers=None):
        """(status, body) of a GET, outside of any event loop."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as s:
            s.sendall(wire.encode_request("GET", path, {"connection": "close", **(headers or {})}))
            raw = b""
            while piece := s.recv(65536):
                raw += piece
        head, _, body = raw.partition(b"\r\n\r\n")
        if not head:
            raise ValueError("no answer")
        return wire.parse_head(head).status, body

    def connect(self, **kw):
        return wire.Connection.open("127.0.0.1", self.port, **kw)

    def request(self, method, path, headers=None, body=None, org="org_demo", timeout=60):
        fields = {"x-org-id": org, **(headers or {})}
        return wire.request("127.0.0.1", self.port, method, path, fields, body, timeout)

    def get(self, path, **kw):
        return self.request("GET", path, **kw)

    def post(self, path, body=None, **kw):
        return self.request("POST", path, body=body, **kw)

    def stream(self, path, body, headers=None, org="org_demo", **kw):
        """An open wire.Stream; its head has arrived, whatever its status."""
        fields = {"x-org-id": org, **(headers or {})}
        return wire.Stream.open("127.0.0.1", self.port, path, fields, body, **kw)

    async def thread(self, title="a thread", org="org_demo"):
        r = await self.post("/api/threads/", {"title": title}, org=org)
        assert r.status == 201, r.text
        return r.json()["thread_id"]

    @staticmethod
    def question(content, **more):
        return {"role": "user", "content": content, "provider": "perplexity", "model": "m-1", **more}

    async def open_ask(self, thread, content, headers=None, org="org_demo", wire_options=None, **more):
        """A streaming question in a thread; returns the open stream."""
        return await self.stream(
            f"/api/threads/{thread}/messages/stream",
            self.question(content, **more),
            headers,
            org,
            **(wire_options or {}),
        )

    async def ask_stream(self, thread, content, timeout=60, **kw):
        """A streaming question, read to its end."""
        s = await self.open_ask(thread, content, **kw)
        if s.status != 200:
            raise AssertionError(f"{s.status}: {await s.body()}")
        return await s.rest(timeout)

    async def ask_json(self, thread, content, headers=None, org="org_demo", timeout=60, **more):
        return await self.post(
            f"/api/threads/{thread}/messages",
            self.question(content, **more),
            headers=headers,
            org=org,
            timeout=timeout,
        )

    @staticmethod
    def chat_question(content, **more):
        return {"model": "m-1", "messages": [{"role": "user", "content": content}], **more}

    async def chat(self, content, headers=None, org="org_demo", timeout=60, **more):
        return await self.post(
            "/v1/chat/completions",
            self.chat_question(content, **more),
            headers=headers,
            org=org,
            timeout=timeout,
        )

    async def open_chat(self, content, headers=None, org="org_demo", **more):
        return await self.stream(
            "/v1/chat/completions", self.chat_question(content, stream=True, **more), headers, org
        )

    async def chat_stream(self, content, timeout=60, **kw):
        s = await self.open_chat(content, **kw)
        if s.status != 200:
            raise AssertionError(f"{s.status}: {await s.body()}")
        return await s.rest(timeout)

    async def performance(self, last_n=100):
        r = await self.get(f"/api/metrics/performance?last_n={last_n}")
        assert r.status == 200, r.text
        return r.json()

    async def counter(self, name):
        """Sum of a metric over its labels, from the Prometheus text."""
        r = await self.get("/metrics")
        assert r.status == 200
        total, found = 0.0, False
        for line in r.text.splitlines():
            m = re.match(r"^(\w+)(\{[^}]*\})? ([0-9.eE+-]+)$", line)
            if m and m[1] == name:
                total, found = total + float(m[3]), True
        assert found, f"no metric {name}"
        return total

    # --- stored ---

    def sql(self, query, *args):
        """Rows as dicts, read straight from the database."""
        if self.database is not None:
            return self.database.sql(query, *args)
        with contextlib.closing(sqlite3.connect(f"file:{self.db_path}?mode=ro", uri=True)) as db:
            db.execute("PRAGMA busy_timeout = 3000")
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(query, args)]

    def turns(self):
        return self.sql("SELECT * FROM turns ORDER BY created_at, id")

    def messages(self, thread=None):
        if thread:
            return self.sql("SELECT * FROM messages WHERE thread_id = ? ORDER BY created_at, id", thread)
        return self.sql("SELECT * FROM messages ORDER BY created_at, id")

    def audit(self):
        return self.sql("SELECT * FROM turn_audit ORDER BY created_at, id")

    async def stored_turns(self, count, timeout=5):
        """Waits until that many turns are stored, then returns them."""
        import asyncio

        deadline = time.monotonic() + timeout
        while len(self.turns()) < count:
            assert time.monotonic() < deadline, f"stored: {self.turns()}"
            await asyncio.sleep(0.02)
        return self.turns()


def dump(value):
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)
