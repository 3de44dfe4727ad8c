"""The sample configurations of nginx and HAProxy, with the real programs: what goes through them is as
live as without them. Both are taken out of Debian's packages by tools/install-deps.sh."""

import os
import re
import signal
import subprocess
import time

import pytest

from lib.dacd import ROOT, free_port
from lib.provider import say
from lib.service import answers, until

FRONTS = ROOT / ".venv" / "fronts"
KINDS = ["nginx", "haproxy"]


class Front:
    """One of them, on a port of its own, with the sample's text but for ports."""

    def __init__(self, kind, folder, dac_port, change=None):
        self.port = free_port()
        folder.mkdir()
        sample = {"nginx": "etc/nginx/dac.conf", "haproxy": "etc/haproxy/dac.cfg"}[kind]
        text = (ROOT / sample).read_text()
        if kind == "nginx":
            text = text.replace("listen 80;", f"listen 127.0.0.1:{self.port};")
        else:
            text = text.replace("bind :80", f"bind 127.0.0.1:{self.port}")
        assert "127.0.0.1:8000" in text and str(self.port) in text
        text = text.replace("127.0.0.1:8000", f"127.0.0.1:{dac_port}")
        if change:
            assert change[0] in text
            text = text.replace(*change)
        conf = folder / f"{kind}.conf"
        if kind == "nginx":
            temp = "".join(
                f"{t}_temp_path {folder}/{t};\n" for t in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            conf.write_text(
                f"daemon off; worker_processes 1; error_log {folder}/error.log; pid {folder}/pid;\n"
                f"events {{}}\nhttp {{\n{temp}access_log off;\n{text}\n}}\n"
            )
            command = [FRONTS / "usr/sbin/nginx", "-p", folder, "-c", conf, "-e", folder / "error.log"]
        else:
            conf.write_text(text)
            command = [FRONTS / "usr/sbin/haproxy", "-db", "-f", conf]
        (library,) = (FRONTS / "usr/lib").glob("*-linux-gnu")
        env = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(library)}
        self.log = folder / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        try:
            until(lambda: answers(self.port)[0] or self.process.poll() is not None, f"{kind} answers")
            assert self.process.poll() is None, self.log.read_text()
        except AssertionError:
            self.stop()
            raise

    def stop(self):
        with_group = os.killpg
        try:
            with_group(self.process.pid, signal.SIGTERM)
            self.process.wait(5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            with_group(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def make_front(tmp_path):
    made = []

    def make(kind, dac, change=None):
        if not (FRONTS / "usr/sbin" / kind).exists():
            pytest.skip(f"there is no {kind}: tools/install-deps.sh venv")
        made.append(Front(kind, tmp_path / f"{kind}{len(made)}", dac.port, change))
        return made[-1]

    yield make
    for front in made:
        front.stop()


def through(front, dac):
    """The same dacd, asked through its front."""
    dac.port, front.behind = front.port, dac.port
    return dac


def live(stream, gap):
    """Whether pieces came one by one, as they were sent."""
    at = [e.at for e in stream.named("delta")]
    gaps = [b - a for a, b in zip(at, at[1:], strict=False)]
    return len(at) >= 6 and sorted(gaps)[len(gaps) // 2] > gap / 2


@pytest.mark.parametrize("kind", KINDS)
async def test_streams_are_live_through_it(dac, mock, make_front, kind):
    front = make_front(kind, dac)
    thread = await dac.thread()
    through(front, dac)
    question = say(tokens=8, gap="100ms", ttft="500ms")
    began = time.monotonic()
    stream = await dac.open_ask(thread, question, headers={"accept-encoding": "gzip, br"})
    first = await stream.next()
    assert first.name == "ping" and time.monotonic() - began < 0.4, "before the provider has said a word"
    await stream.rest()
    assert live(stream, 0.1) and stream.text == await mock.text(question)
    assert stream.one("done")
    assert stream.head.get("content-encoding") is None
    chat = await dac.chat_stream(question)
    assert chat.chat_done and chat.chat_text == await mock.text(question)
    dac.port = front.behind


@pytest.mark.parametrize("kind", KINDS)
async def test_who_leaves_is_gone_for_dac_too(dac, mock, make_front, kind):
    front = make_front(kind, dac)
    thread = await dac.thread()
    through(front, dac)
    stream = await dac.open_ask(thread, say(tokens=1000, gap="50ms"))
    await stream.until("delta")
    await mock.wait(active=1)
    stream.close()
    await mock.wait(active=0, timeout="5s")
    dac.port = front.behind
    (turn,) = await dac.stored_turns(1)
    assert turn["status"] == "cancelled"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_crowd_shares_one_call_through_it(dac, mock, make_front, kind):
    front = make_front(kind, dac)
    thread = await dac.thread()
    through(front, dac)
    question = say(tokens=6, barrier="go@2")
    streams = [await dac.open_ask(thread, question) for _ in range(30)]
    for s in streams:
        await s.until("delta")
    await mock.open("go")
    for s in streams:
        await s.rest()
        assert s.text == await mock.text(question)
    assert await mock.calls() == 1
    for i in range(20):  # connections are kept
        assert (await dac.chat(say(f"q {i}", tokens=2))).status == 200
    dac.port = front.behind


@pytest.mark.parametrize("kind", KINDS)
async def test_a_restart_behind_it_breaks_no_stream(dac, mock, make_front, kind):
    """New workers take over; a stream through the front goes on."""
    front = make_front(kind, dac)
    thread = await dac.thread()
    through(front, dac)
    question = say(tokens=12, barrier="go@5")
    stream = await dac.open_ask(thread, question)
    await stream.until("delta")
    dac.sections["server"]["workers"] = 2
    assert "2 new workers serve" in dac.reload()
    for i in range(10):
        assert (await dac.chat(say(f"meanwhile {i}", tokens=2))).status == 200
    await mock.open("go")
    await stream.rest()
    assert stream.one("done") and stream.text == await mock.text(question)
    dac.port = front.behind


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("nginx", ("proxy_read_timeout 3600s;", "proxy_read_timeout 1s;")),
        ("haproxy", ("timeout server 1h", "timeout server 1s")),
    ],
)
async def test_with_usual_time_limits_a_pause_ends_the_stream(dac, make_front, kind, change):
    """What the sample's limits are for: the provider pauses for longer than a front that knows no
    streams waits."""
    front = make_front(kind, dac, change)
    thread = await dac.thread()
    through(front, dac)
    stream = await dac.open_ask(thread, say(tokens=3, gap="2500ms"))
    await stream.rest()
    assert not stream.complete and stream.named("done") == []
    dac.port = front.behind


def test_the_samples_mark_what_matters():
    for sample in ("etc/nginx/dac.conf", "etc/haproxy/dac.cfg"):
        text = (ROOT / sample).read_text()
        marks = set(re.findall(r"\((\d)\)", text.partition("\n\n")[2]))
        promised = re.search(r"\((\d)\) to \((\d)\)", text)
        assert marks == {str(n) for n in range(int(promised[1]), int(promised[2]) + 1)}, sample


def test_nginx_gives_up_an_idle_connection_first():
    """nginx's own default is DAC's: both would close at the same time."""
    text = (ROOT / "etc/nginx/dac.conf").read_text()
    sample = (ROOT / "etc/dac.conf.sample").read_text()
    ours = re.search(r"keepalive_timeout = (\d+)s", sample)
    theirs = re.search(r"^    keepalive_timeout (\d+)s;", text, re.M)
    assert int(theirs[1]) < int(ours[1])
