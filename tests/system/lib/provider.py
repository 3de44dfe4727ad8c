"""A dac-mock of one test, and its control API; tools/mock/README.md describes both."""

import contextlib
import json
import socket
import subprocess
import time
import urllib.parse
from pathlib import Path

from lib import wire
from lib.dacd import BUILD, free_port


class Question(str):
    """A user message that knows the directives inside it."""

    directives = {}


def say(message="What is a kumquat?", /, **directives):
    """A question that tells the mock how to answer it, such as say(tokens=5, gap="10ms").
    True switches a flag on; strings with blanks are quoted."""
    if not directives:
        return Question(message)
    words = []
    for key, value in directives.items():
        if value is True:
            value = 1
        value = str(value)
        if any(c in value for c in ' "]\\;\n'):
            value = '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
        words.append(f"{key}={value}")
    question = Question(f"{message} [mock {' '.join(words)}]")
    question.directives = directives
    return question


class Provider:
    def __init__(self, folder, options=()):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.options = list(options)
        self.port = free_port()
        self.process = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def log_path(self):
        return self.folder / "mock.log"

    def start(self):
        binary = BUILD / "dac-mock"
        assert binary.exists(), f"{binary} is not built (DAC_BUILD says where to look)"
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [binary, "--listen", f"127.0.0.1:{self.port}", *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            assert self.process.poll() is None, f"dac-mock ended: {self.log_path.read_text()}"
            assert time.monotonic() < deadline, "dac-mock does not listen"
            time.sleep(0.01)

    def stop(self):
        """SIGTERM; a second call does nothing."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.process = None
        assert code == 0, f"dac-mock ended with {code}: {self.log_path.read_text()[-2000:]}"

    async def control(self, method, path, body=None, timeout=20):
        r = await wire.request("127.0.0.1", self.port, method, "/mock/" + path, None, body, timeout)
        assert r.status == 200, f"{method} {path}: {r.status} {r.text}"
        return r.json() if r.get("content-type") == "application/json" else r.text

    async def stats(self):
        return await self.control("GET", "stats")

    async def calls(self):
        """How many chat requests it answered or began to answer."""
        return (await self.stats())["calls"]

    async def wait(self, timeout="10s", **conditions):
        """Until counters have values: wait(calls=3), wait(active=0), wait(active=">=2"),
        wait(waiting=1, barrier="go")."""
        query = urllib.parse.urlencode({**conditions, "timeout": timeout})
        try:
            return await self.control("GET", "wait?" + query)
        except AssertionError:
            raise AssertionError(f"the provider never saw {conditions}: {await self.stats()}") from None

    async def open(self, barrier, n=None):
        """Opens a barrier for good, or for `n` calls."""
        return await self.control("POST", f"barrier/{barrier}" + (f"?n={n}" if n else ""))

    async def script(self, *specs):
        """Queues specs for the next calls: dicts of the directives' keys, with `match`, `times`."""
        return await self.control("POST", "script", list(specs))

    async def default(self, **spec):
        return await self.control("POST", "default", spec)

    async def limits(self, **limits):
        return await self.control("POST", "limits", limits)

    async def text(self, question):
        """The text that it answers to a question of say()."""
        body = {"user": question, **question.directives}
        return await self.control("POST", "text", body)

    async def log(self, event=None, body=False):
        """What it saw, oldest first; "t_ns" / 1e9 is comparable with time.monotonic()."""
        query = {k: v for k, v in {"event": event, "body": 1 if body else None}.items() if v}
        return (await self.control("GET", "log?" + urllib.parse.urlencode(query)))["events"]

    async def requests(self):
        """Chat requests as parsed bodies, oldest first."""
        return [json.loads(e["body"]) for e in await self.log("request", body=True)]

    async def gone_at(self):
        """Times (time.monotonic()) at which clients ended calls early."""
        events = await self.log()
        return [e["t_ns"] / 1e9 for e in events if e["event"] in ("closed_by_client", "reset_by_client")]
