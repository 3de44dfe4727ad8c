"""tools/check_alerts.sh: each of its five alerts fires when its fault is real, and clears; and
what it says when it cannot know."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lib.asks import gather, until
from lib.dacd import ROOT
from lib.provider import say

SCRIPT = ROOT / "tools/check_alerts.sh"
OK, WARNING, CRITICAL, UNKNOWN = range(4)
WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
NAMES = ("error_rate", "ttft", "latency", "queue_wait", "coalesce")
PERF = r"[a-z0-9_]+=(?:U|[0-9.]+)(?:ms)?(?:;[0-9.:]*){0,4}"


def run(url, folder, *args, env=None):
    """(exit code, its line, its JSON), of two runs; each keeps to its form."""
    said = []
    for more in ((), ("--json",)):
        p = subprocess.run(
            [SCRIPT, "--url", url, "--state", folder / "alerts.state", *args, *more],
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, **(env or {})},
            check=False,
        )
        assert p.stderr == "" and p.stdout.count("\n") == 1, (p.stdout, p.stderr)
        said.append((p.returncode, p.stdout.rstrip("\n")))
    (code, line), (code_too, text) = said
    report = json.loads(text)
    assert code == code_too == report["exit"] and report["status"] == WORDS[code]
    assert line.startswith(f"DAC {WORDS[code]} - ")
    if code != UNKNOWN:
        assert line.count("|") == 1
        assert re.fullmatch(rf"{PERF}(?: {PERF})*", line.split(" | ")[1]), line
        assert tuple(a["name"] for a in report["alerts"]) == NAMES
    return code, line, report


async def look(dac, *args):
    """(exit code, its line, {alert: state})"""
    code, line, report = await asyncio.to_thread(run, f"http://127.0.0.1:{dac.port}", dac.folder, *args)
    return code, line, {a["name"]: a["state"] for a in report.get("alerts", [])}


async def ask_all(dac, questions):
    """All different: when this returns, the figures know of them, too."""
    known = (await dac.performance(1000))["turns"] + len(questions)
    thread = await dac.thread()
    answers = await gather(*[dac.ask_json(thread, q) for q in questions])

    async def counted():
        return (await dac.performance(1000))["turns"] >= known

    await until(counted, "figures that know of every turn")
    return answers


# --- the five -----------------------------------------------------------------------------


async def test_errors(make_dac, mock):
    """Passed at once it is a warning; for as long as --window says, with turns all the while, an alarm."""
    dac = make_dac({"provider perplexity": {"retry_deadline": "0s"}})
    bad = 0

    async def fail():
        nonlocal bad
        bad += 1
        await ask_all(dac, [say(f"bad kumquat {bad}", status=500)])

    window = ("--window", "1", "--last-n", "5")
    await ask_all(dac, [say(f"kumquat {i}", tokens=1) for i in range(4)])
    assert (await look(dac, *window))[0] == OK
    await fail()
    code, line, states = await look(dac, *window)
    assert code == WARNING and states["error_rate"] == "pending"
    assert "error_rate 0.2 > 0.01 for 0 of 1 s" in line
    await asyncio.sleep(1.2)
    code, _, states = await look(dac, *window)
    assert code == WARNING, "nobody asked meanwhile: nothing more is known"
    await fail()
    code, line, states = await look(dac, *window)
    assert code == CRITICAL and states["error_rate"] == "firing" and "error_rate 0.4 > 0.01" in line
    assert {states[name] for name in NAMES[1:4]} == {"ok"}
    await ask_all(dac, [say(f"kumquat again {i}", tokens=1) for i in range(5)])
    assert (await look(dac, *window))[0] == OK
    await fail()
    assert (await look(dac, *window))[0] == WARNING, "it counts from now on"


async def test_slow_first_token_and_slow_answers(dac, mock):
    questions = [say(f"kumquat {i}", ttft="1700ms", tokens=3, gap="2200ms") for i in range(3)]
    await ask_all(dac, questions)
    code, line, states = await look(dac)
    assert code == CRITICAL and states["ttft"] == "firing" and states["latency"] == "firing"
    assert re.search(r"ttft_ms\.p95 17\d\d\.\d+ ms > 1500 ms; latency_ms\.p95 6\d\d\d\.\d+ ms > 6000 ms", line)
    assert states["queue_wait"] == "ok" and states["error_rate"] == "ok"
    await ask_all(dac, [say(f"kumquat again {i}", tokens=1) for i in range(20)])
    code, _, states = await look(dac, "--last-n", "20")
    assert code == OK and states["ttft"] == states["latency"] == "ok"


async def test_slow_first_token_alone(dac, mock):
    await ask_all(dac, [say("kumquat", ttft="1600ms", tokens=1)])
    code, _, states = await look(dac)
    assert code == CRITICAL and [n for n in NAMES if states[n] == "firing"] == ["ttft"]


async def test_long_queue(make_dac, mock):
    """Three questions at once at one a second."""
    dac = make_dac({"provider perplexity": {"rps": 1, "burst": 1}})
    await mock.limits(rps=1, burst=1, slack="60ms")
    await ask_all(dac, [say(f"kumquat {i}", tokens=1) for i in range(3)])
    code, line, states = await look(dac, "--ttft-p95", "5000")
    assert code == CRITICAL and [n for n in NAMES if states[n] == "firing"] == ["queue_wait"]
    assert re.search(r"queue_wait_ms\.p95 [12]\d\d\d\.\d+ ms > 1000 ms", line)
    await asyncio.sleep(1.1)
    await ask_all(dac, [say("kumquat later", tokens=1)])
    assert (await look(dac, "--last-n", "1"))[0] == OK


async def burst(dac, mock, n, question="kumquat", **more):
    """So many requests of one question, all before any of them has its answer."""
    thread = await dac.thread()
    before = (await mock.stats())["calls"]
    asks = [
        asyncio.create_task(dac.ask_json(thread, say(question, tokens=1, ttft="400ms"), **more))
        for _ in range(n)
    ]
    await gather(*asks)
    return (await mock.stats())["calls"] - before


async def test_coalescing_that_is_off(make_dac, mock):
    dac = make_dac(env={"COALESCE_ENABLED": "0"})
    assert await burst(dac, mock, 12) == 12
    code, line, states = await look(dac)
    assert code == CRITICAL and [n for n in NAMES if states[n] == "firing"] == ["coalesce"]
    assert "coalesce ratio 0 < 10" in line and "coalesce_ratio=0;;10:;0" in line
    code, _, states = await look(dac, "--skip", "coalesce")
    assert code == OK and states["coalesce"] == "skipped"
    await asyncio.sleep(1)
    code, _, states = await look(dac, "--window", "0.5")
    assert code == OK and states["coalesce"] == "none", "it was long ago"
    dac.env_file.write_text("COALESCE_ENABLED=1\n")
    dac.reload()
    assert await burst(dac, mock, 12, "kumquat again") == 1
    code, line, states = await look(dac, "--last-n", "1")
    assert code == OK and states["coalesce"] == "ok" and "coalesce ratio 11" in line


async def test_several_leaders_of_one_question(dac, mock):
    """Clients that send another temperature each ask another question, as far as the key goes."""
    thread = await dac.thread()
    asks = [
        dac.ask_json(thread, say("kumquat", tokens=1, ttft="400ms"), temperature=i % 4 / 4) for i in range(12)
    ]
    await gather(*asks)
    assert (await mock.stats())["calls"] == 4
    code, line, states = await look(dac)
    assert code == CRITICAL and states["coalesce"] == "firing" and "coalesce ratio 2 < 10" in line


async def test_what_is_no_burst(dac, mock):
    """Many different questions; ten connections, which can have nine followers; many requests with
    tools, which share nothing; the same question over and over, one at a time."""
    thread = await dac.thread()
    await ask_all(dac, [say(f"kumquat {i}", tokens=1) for i in range(30)])
    assert await burst(dac, mock, 10) == 1
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert await burst(dac, mock, 12, "kumquat with tools", tools=tools) == 12
    for _ in range(14):
        await dac.ask_json(thread, say("kumquat", tokens=1), headers={"cache-control": "no-cache"})
    code, line, states = await look(dac)
    assert code == OK and states["coalesce"] == "none" and "no burst" in line
    p = await dac.performance()
    assert p["coalesce"]["followers"] / p["coalesce"]["leaders"] < 10
    assert p["burst"] == {"leaders": 0, "followers": 0, "age_s": None}


async def test_hits_count_as_followers(dac, mock):
    thread = await dac.thread()
    await burst(dac, mock, 3)
    thread = await dac.thread()
    question = say("kumquat with hits", tokens=1)
    for _ in range(12):
        await dac.ask_json(thread, question)
    code, line, _ = await look(dac)
    assert code == OK and "coalesce ratio 11" in line


# --- what it cannot know ------------------------------------------------------------------


async def test_no_turn_and_no_answer_are_unknown(make_dac, mock):
    dac = make_dac()
    code, line, _ = await look(dac)
    assert code == UNKNOWN and "no turn has ended" in line
    await ask_all(dac, [say("kumquat", tokens=1)])
    assert (await look(dac))[0] == OK
    code, line, _ = await look(dac, "--last-n", "0")
    assert code == UNKNOWN and "400" in line
    dac.stop()
    code, line, _ = await look(dac)
    assert code == UNKNOWN and "does not answer" in line


def figures(uptime=1000.0, newest=0.5, started=17, **more):
    q = {"p50": 1.0, "p95": 2.0, "p99": 3.0, "max": 4.0}
    return {
        "last_n": 100, "turns": 100, "ttft_ms": q, "latency_ms": q, "queue_wait_ms": q,
        "coalesce": {"leaders": 100, "followers": 0, "hits": 0}, "error_rate": 0.02,
        "started_us": started, "uptime_s": uptime, "span_s": 9.0, "newest_age_s": newest,
        "burst": {"leaders": 0, "followers": 0, "age_s": None}, **more,
    }  # fmt: skip


@contextlib.contextmanager
def answering():
    """A server that answers what its `say` holds: (status, body)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body, wait = server.say
            time.sleep(wait)
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.url = f"http://127.0.0.1:{server.server_port}"

    def tell(body, status=200, wait=0):
        server.say = (status, json.dumps(body).encode() if isinstance(body, dict) else body, wait)

    server.tell = tell
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_answers_that_are_not_understood(tmp_path):
    whole = json.dumps(figures()).encode()
    no_rate = figures()
    del no_rate["error_rate"]
    with answering() as server:
        server.tell(figures(error_rate=0))
        assert run(server.url, tmp_path)[0] == OK
        for body, status in [
            (whole[:-1], 200),
            (whole[: len(whole) // 2], 200),
            (b"", 200),
            (b"<html>ok</html>", 200),
            (b"[]", 200),
            (b"{}", 200),
            (whole + b"}", 200),
            (whole, 503),
            (whole, 404),
            (no_rate, 200),
            (figures(error_rate=None), 200),
            (figures(error_rate="0"), 200),
            (figures(ttft_ms={"p50": 1}), 200),
            (figures(turns=0), 200),
            (figures(newest_age_s=None), 200),
            (b"x" * 100_000, 200),
        ]:
            server.tell(body, status)
            code, line, _ = run(server.url, tmp_path)
            assert code == UNKNOWN, line
        server.tell(figures(), wait=3)
        code, line, _ = run(server.url, tmp_path, "--timeout", "0.3")
        assert code == UNKNOWN and "does not answer" in line


def test_five_minutes_by_the_services_clock(tmp_path):
    """Whatever the state file holds, and however the wall clock is set."""
    state = tmp_path / "alerts.state"
    with answering() as server:

        def at(**what):
            server.tell(figures(**what))
            return run(server.url, tmp_path)[0]

        assert at(uptime=1000) == WARNING
        assert at(uptime=1299) == WARNING
        assert at(uptime=1300) == CRITICAL
        assert at(uptime=1400) == CRITICAL
        assert at(uptime=2000, newest=650) == CRITICAL, "no turn since: it is as it was"
        assert at(uptime=2001, error_rate=0.01) == OK
        assert at(uptime=2002) == WARNING
        assert at(uptime=2400, started=18) == WARNING, "another start"
        assert at(uptime=10, started=19) == WARNING
        assert at(uptime=2701, started=19) == CRITICAL
        for torn in ("", "\n", "1", "1 19", "1 19 x", "1 19 99999999", "1 19 -", "\0\1", "x" * 5000, "$(reboot)"):
            state.write_text(torn)
            assert at(uptime=2702, started=19) == WARNING, torn
            assert at(uptime=3010, started=19) == CRITICAL, torn
        os.utime(state, (0, 0))
        assert at(uptime=3011, started=19) == CRITICAL


def test_state_that_cannot_be_kept(tmp_path):
    (tmp_path / "file").write_text("")
    with answering() as server:
        server.tell(figures(error_rate=0))
        args = ("--state", tmp_path / "file/below")
        code, line, _ = run(server.url, tmp_path, *args)
        assert code == UNKNOWN and "cannot be written" in line
        assert run(server.url, tmp_path, *args, "--skip", "error_rate")[0] == OK
        server.tell(figures(ttft_ms={"p95": 1501}))
        assert run(server.url, tmp_path, *args)[0] == CRITICAL, "an alarm that is known is one"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_state_that_is_no_file(make, tmp_path):
    """An error rate that is never passed for long enough would be an alarm that never fires."""
    make(tmp_path / "state")
    with answering() as server:
        server.tell(figures())
        code, line, _ = run(server.url, tmp_path, "--state", tmp_path / "state")
        assert code == UNKNOWN and "cannot be written" in line
        assert not (tmp_path / "state.new").exists()


def test_numbers_as_people_write_them(tmp_path):
    with answering() as server:
        server.tell(figures(error_rate=0.3, uptime=1000))
        for said, number in ((".25", 0.25), ("0.250", 0.25), ("00.1", 0.1), ("0.", 0)):
            _, line, report = run(server.url, tmp_path, "--error-rate", said, "--window", "0600")
            assert report["alerts"][0]["limit"] == number, line
            assert f"> {number} for 0 of 600 s" in line


def test_where_state_is_kept_by_itself(tmp_path):
    with answering() as server:
        server.tell(figures())
        for env, want in (
            ({"STATE_DIRECTORY": f"{tmp_path}/s"}, "s"),
            ({"HOME": str(tmp_path)}, ".local/state/dac"),
        ):
            clean = {k: v for k, v in os.environ.items() if k not in ("HOME", "STATE_DIRECTORY", "XDG_STATE_HOME")}
            p = subprocess.run([SCRIPT, "--url", server.url], env={**clean, **env}, capture_output=True, check=False)
            assert p.returncode == WARNING, p
            files = sorted(f.name for f in (tmp_path / want).iterdir())
            assert files == [f"check_alerts-http___127.0.0.1_{server.server_port}.state{e}" for e in ("", ".lock")]
            assert all((tmp_path / want / f).stat().st_mode & 0o077 == 0 for f in files)


def test_checks_with_other_limits_leave_each_other_alone(tmp_path):
    with answering() as server:

        def at(uptime, *args):
            server.tell(figures(uptime=uptime, error_rate=0.05))
            env = {**os.environ, "STATE_DIRECTORY": str(tmp_path)}
            p = subprocess.run([SCRIPT, "--url", server.url, *args], env=env, capture_output=True, check=False)
            return p.returncode

        assert at(1000) == WARNING
        assert at(1001, "--error-rate", "0.2") == OK
        assert at(1002, "--last-n", "1000") == WARNING
        assert at(1300) == CRITICAL
        assert at(1301, "--last-n", "1000") == WARNING


def test_many_at_once(tmp_path):
    with answering() as server:
        server.tell(figures(uptime=1000))
        assert run(server.url, tmp_path)[0] == WARNING
        server.tell(figures(uptime=1301))
        args = [SCRIPT, "--url", server.url, "--state", tmp_path / "alerts.state"]
        all_of_them = [subprocess.Popen(args, stdout=subprocess.PIPE, text=True) for _ in range(12)]
        for p in all_of_them:
            out, _ = p.communicate(timeout=30)
            assert p.returncode == CRITICAL, out
        assert (tmp_path / "alerts.state").read_text() == "1 17 999.500\n"
        assert sorted(f.name for f in tmp_path.iterdir()) == ["alerts.state", "alerts.state.lock"]


def test_options(tmp_path):
    for args in (("--nothing",), ("--window", "x"), ("--ttft-p95",), ("--skip", "all"), ("--url", "localhost")):
        code, line, _ = run("http://127.0.0.1:1", tmp_path, *args)
        assert code == UNKNOWN, line
    p = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=False)
    assert p.returncode == 0 and p.stderr == ""
    for option in re.findall(r"^    (?:[a-z-]+ \| )*(--[a-z0-9-]+)", SCRIPT.read_text(), re.M):
        assert option in p.stdout, option


def test_a_password_in_the_url_is_not_shown(tmp_path):
    code, line, report = run("http://user:kumquat@127.0.0.1:1", tmp_path)
    assert code == UNKNOWN and "kumquat" not in line and "kumquat" not in str(report)
    assert not any("kumquat" in f.name for f in tmp_path.iterdir())


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_any_shell(shell, tmp_path):
    with answering() as server:
        server.tell(figures(error_rate=0))
        p = subprocess.run(
            [shell, SCRIPT, "--url", server.url, "--state", tmp_path / "s"], capture_output=True, text=True, check=False
        )
        assert (p.returncode, p.stderr) == (OK, ""), p
