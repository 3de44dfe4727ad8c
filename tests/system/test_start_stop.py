"""How the service starts, what it says meanwhile, and how its command line answers."""

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from lib import procs
from lib.asks import connected
from lib.dacd import BUILD, Dacd
from lib.provider import say
from lib.service import answers, as_nobody, nobody, run_dacd, uid_of, until

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")


@pytest.mark.smoke
def test_it_says_what_it_is_and_becomes_ready(make_dac):
    dac = make_dac(workers=3)
    titles = sorted(dac.processes().values())
    assert titles[0] == "dacd: master", titles
    assert titles[1:] == ["dacd: recorder"] + [f"dacd: worker {i}" for i in range(3)]
    assert re.search(r"48\.0 MiB of shared memory, 4096 flights of at least \d+ bytes", dac.log)
    assert f"ready: 3 workers, listening on 127.0.0.1:{dac.port}" in dac.log
    dac.stop()
    assert dac.stop_seconds < 2
    assert "stopped" in dac.log


async def test_newcomers_right_after_the_start_go_to_all_workers(make_dac):
    """Whoever is ready first accepts in the others' place, but no longer than they need."""
    dac = make_dac(workers=6, start=False)
    for _ in range(3):
        dac.start()
        connections = [await dac.connect() for _ in range(120)]
        counts = await connected(dac, len(connections))
        for c in connections:
            c.close()
        dac.stop()
        assert min(counts) >= 4, f"clients per worker: {counts}"  # 20 +- 4 by chance


@contextlib.contextmanager
def locked(path):
    """Somebody else is writing to the database."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


def test_a_locked_store_is_no_hindrance_to_a_start(make_dac):
    """As when a recorder whose master was killed has not stored the rest yet."""
    dac = make_dac()
    dac.kill_all()
    with locked(dac.db_path):
        dac.start()
    assert "holds its lock" not in dac.log


@pytest.mark.sqlite
def test_a_lock_on_a_store_that_must_be_migrated_is_waited_for(make_dac):
    dac = make_dac(start=False)
    with locked(dac.db_path):
        dac.start(wait=False)
        until(lambda: "holds its lock" in dac.log, "waiting for the lock")
    dac.wait_ready()
    assert dac.log.count("starting another") == 0


@pytest.mark.sqlite
def test_a_service_that_waits_for_a_lock_can_be_stopped(make_dac):
    dac = make_dac(start=False)
    dac.allow_log.append("holds its lock")
    dac.expect_exit = 1
    with locked(dac.db_path):
        dac.start(wait=False)
        until(lambda: "holds its lock" in dac.log, "waiting for the lock")
        dac.stop()
    assert dac.stop_seconds < 8


def test_all_processes_are_found_by_their_name(dac):
    for pid in dac.processes():
        with open(f"/proc/{pid}/comm") as f:
            assert f.read().strip() == "dacd"


def test_without_a_provider_it_starts_and_warns(make_dac):
    dac = make_dac(provider=None, start=False)
    dac.start(wait=False)
    until(lambda: "INFO master" in dac.log and " ready: " in dac.log, "readiness")
    assert dac.get_sync("/livez")[0] == 200
    assert re.search("WARN .*no .provider NAME. is configured", dac.log)


def test_systemd_hears_of_readiness_and_stopping(make_dac, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(10)
        dac = make_dac(env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert notify.recv(100) == b"READY=1"
        dac.stop()
        assert notify.recv(100) == b"STOPPING=1"


def test_a_configuration_is_checked_whole(tmp_path):
    conf = tmp_path / "dac.conf"
    conf.write_text("[server]\nlisten = nonsense\nworkers = 99\nwrokers = 2\n[store]\nsqlite = \n")
    code, out, err = run_dacd("-t", "-c", conf)
    assert code == 1 and out == ""
    for line in (2, 3, 4):
        assert f"{conf}:{line}: " in err, err
    code, _, err = run_dacd("-c", conf)
    assert code == 1
    assert f"{conf}:2: " in err and f"{conf}:4: " in err


def test_a_good_configuration_is_shown_without_its_secrets(make_dac):
    dac = make_dac(start=False)
    dac.start(wait=True)
    code, out, err = run_dacd("-t", "-c", dac.conf)
    assert code == 0, err
    assert "drain_timeout = 5s" in out
    assert "sk-canary" not in out + err


def test_the_command_line_answers():
    code, out, _ = run_dacd("-V")
    assert code == 0 and re.match(r"^dacd \d+\.\d+\.\d+\n$", out)
    assert run_dacd("-h")[0] == 0
    for wrong in (["--nonsense"], ["surplus"], ["-c"]):
        code, out, err = run_dacd(*wrong)
        assert code == 1 and "Usage" in err and out == ""
    code, _, err = run_dacd("-c", "/nowhere/dac.conf")
    assert code == 1 and "/nowhere/dac.conf" in err


@pytest.mark.sqlite
def test_a_store_that_cannot_be_opened_ends_the_start(make_dac, tmp_path):
    dac = make_dac({"store": {"sqlite": tmp_path / "missing" / "dac.db"}}, start=False)
    dac.allow_log = ["missing"]
    dac.expect_exit = 2
    dac.start(wait=False)
    assert dac.process.wait(10) == 2
    assert "could not open database" in dac.log and str(tmp_path / "missing") in dac.log
    assert dac.processes() == {}


def test_shared_memory_that_does_not_fit_ends_the_start(make_dac):
    dac = make_dac({"memory": {"shm_size": "900g"}}, start=False)
    dac.allow_log = ["."]
    dac.expect_exit = 1
    dac.start(wait=False)
    assert dac.process.wait(20) == 1
    assert "shm_size" in dac.log


# What a socket unit does: sockets from descriptor 3 on, and who they are for.
ACTIVATE = """
import os, socket, sys
for fd, where in enumerate(sys.argv[1].split(","), 3):
    s = socket.socket(socket.AF_UNIX if "/" in where else socket.AF_INET)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(where if "/" in where else ("127.0.0.1", int(where)))
    s.listen(100)
    if s.fileno() != fd:
        os.dup2(s.fileno(), fd)
    os.set_inheritable(fd, True)
    s.detach()
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sys.argv[1].split(","))))
os.execv(sys.argv[2], sys.argv[2:])
"""


async def test_sockets_of_systemd_are_used(make_dac, mock, tmp_path):
    """One that the configuration names, and two that it does not; all outlive reloads."""
    dac = make_dac(start=False, workers=2)
    other = Dacd(tmp_path / "x", None).port
    path = tmp_path / "passed.sock"
    dac.wrapper = [sys.executable, "-c", ACTIVATE, f"{dac.port},{other},{path}"]
    dac.start()
    assert dac.log.count("systemd passes a socket on") == 3
    for _ in range(2):
        for _ in range(10):
            assert answers(dac.port)[0] and answers(other)[0]
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(3)
            s.connect(str(path))
            s.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert s.recv(100).startswith(b"HTTP/1.1 200")
        assert (await dac.chat(say(tokens=2))).status == 200
        dac.sections["server"]["workers"] = 3
        dac.reload()
    dac.stop()
    assert path.exists(), "its name is systemd's to remove"


def listener(path, got):
    """A stand-in for systemd: collects what the master says."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    sock.settimeout(0.1)

    def listen():
        while True:
            try:
                got.append(sock.recv(500).decode())
            except TimeoutError:
                continue
            except OSError:
                return

    threading.Thread(target=listen, daemon=True).start()
    return sock


async def test_what_systemd_hears(make_dac, mock, tmp_path):
    got = []
    sock = listener(tmp_path / "notify", got)
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "900000"}
    dac = make_dac({"server": {"drain_timeout": "20s"}}, env=env, workers=2)
    until(lambda: got.count("WATCHDOG=1") >= 3, "signs of life")
    stream = await dac.open_ask(await dac.thread(), say(tokens=10, barrier="go@5"))
    await stream.until("delta")
    until(lambda: any(g.startswith("STATUS=2 workers, 1 connections, 1 streams") for g in got), "a status line")
    dac.sections["server"]["workers"] = 3
    dac.reload()
    until(lambda: got[-1] == "READY=1" or "READY=1" in got[-3:], "the reload's end")
    reloading = [g for g in got if g.startswith("RELOADING=1\nMONOTONIC_USEC=")]
    assert len(reloading) == 1
    told = int(reloading[0].rpartition("=")[2])
    assert abs(time.monotonic() * 1e6 - told) < 60e6
    assert got.index("READY=1") < got.index(reloading[0])
    dac.process.send_signal(signal.SIGTERM)
    until(lambda: "STOPPING=1" in got and any(g.startswith("EXTEND_TIMEOUT_USEC=") for g in got), "more time")
    lived = got.count("WATCHDOG=1")
    until(lambda: got.count("WATCHDOG=1") > lived, "signs of life while it drains")
    until(lambda: any(g.startswith("STATUS=Stopping: ") for g in got), "a status line of the stop")
    await mock.open("go")
    await stream.rest()
    assert stream.one("done")
    dac.process.wait(10)
    sock.close()


def test_a_terminal_s_signals_do_not_reach_children(dac):
    before = dac.processes()
    for pid, title in before.items():
        if title != "dacd: master":
            for sig in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                os.kill(pid, sig)
    for _ in range(50):
        assert dac.get_sync("/livez")[0] == 200
    assert dac.processes() == before


def test_a_hangup_without_changes_changes_nothing_and_says_so(dac):
    before = dac.processes()
    os.kill(dac.pid, signal.SIGHUP)
    until(lambda: "reloaded: 0 values have changed" in dac.log, "a log line")
    assert dac.get_sync("/livez")[0] == 200
    assert dac.processes() == before


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_both_signals_stop_it(make_dac, sig):
    dac = make_dac(workers=2)
    os.kill(dac.pid, sig)
    assert dac.process.wait(10) == 0


def test_a_signal_during_the_start_stops_it(make_dac):
    dac = make_dac(start=False)
    dac.start(wait=False)
    until(lambda: dac.log, "the first log line")
    os.kill(dac.pid, signal.SIGTERM)
    assert dac.process.wait(10) == 0


@pytest.mark.sqlite
@root_only
async def test_as_root_its_children_become_the_user(make_dac, tmp_path):
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_mode & 0o011 != 0o011:
            folder.chmod(folder.stat().st_mode | 0o011)
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, nobody().pw_uid, nobody().pw_gid)
    dac = make_dac({"server": {"user": "nobody"}, "store": {"sqlite": data / "dac.db"}})
    dac.db_path = data / "dac.db"
    uid = nobody().pw_uid
    for pid, title in dac.processes().items():
        assert uid_of(pid) == ([0] * 4 if title == "dacd: master" else [uid] * 4), title
    assert (data / "dac.db").stat().st_uid == uid
    thread = await dac.thread()
    assert (await dac.ask_stream(thread, "kumquat?")).one("done")
    os.kill(dac.workers()[0], signal.SIGKILL)  # one that is started again drops it as well
    until(lambda: len(dac.workers()) == 4, "the worker again")
    assert uid_of(dac.workers()[0]) == [uid] * 4


@root_only
def test_an_unknown_user_is_refused(make_dac):
    dac = make_dac({"server": {"user": "nobody-of-that-name"}}, start=False)
    dac.allow_log = ["nobody-of-that-name", "could not use"]
    dac.expect_exit = 1
    dac.start(wait=False)
    assert dac.process.wait(10) == 1
    assert "nobody-of-that-name" in dac.log


@root_only
def test_an_ordinary_user_can_run_it(make_dac):
    dac = make_dac(start=False)
    dac.start()
    dac.stop()
    how = as_nobody(dac.folder)
    with open(dac.log_path, "ab") as log:
        dac.process = subprocess.Popen(
            [BUILD / "dacd", "-c", dac.conf], stdout=log, stderr=log, start_new_session=True, **how
        )
    dac.wait_ready()
    assert {tuple(uid_of(p)) for p in dac.processes()} == {(nobody().pw_uid,) * 4}


def test_descriptors_do_not_grow_with_restarts(dac):
    """A child that is born later holds no more than the first ones did."""

    def held():
        try:
            return {t: procs.open_descriptors(p) for p, t in dac.processes().items()}
        except (FileNotFoundError, ProcessLookupError):
            return {}  # one ended while it was looked at

    before = held()
    for _ in range(2):
        os.kill(dac.workers()[1], signal.SIGKILL)
        until(lambda: len(dac.workers()) == 4, "the worker again")
    until(lambda: held() == before, f"{before}, not {held()}")


def test_two_instances_live_side_by_side(make_dac):
    a, b = make_dac(), make_dac()
    assert isinstance(a, Dacd) and a.port != b.port
    assert a.get_sync("/livez")[0] == b.get_sync("/livez")[0] == 200
    a.stop()
    assert b.get_sync("/livez")[0] == 200
