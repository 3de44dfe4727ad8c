"""dacctl reload, drain and cancel: what they do, what they say, who may."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import time

import pytest

from lib.dacd import BUILD, STORED, write_ini
from lib.provider import say
from lib.service import answers, as_nobody, until


def run(dac, *args, timeout=30, **kw):
    p = subprocess.run(
        [BUILD / "dacctl", "-n", dac.name, *args], capture_output=True, text=True, timeout=timeout, check=False, **kw
    )
    return p.returncode, p.stdout, p.stderr


async def later(dac, *args):
    return await asyncio.get_running_loop().run_in_executor(None, lambda: run(dac, *args))


async def running(dac, mock, name="go"):
    question = say(f"held at {name}", tokens=12, barrier=f"{name}@5")
    stream = await dac.open_ask(await dac.thread(), question)
    await stream.until("delta")
    await mock.wait(waiting=1, barrier=name)
    return stream, question


# --- reload ---


@pytest.mark.smoke
def test_reload_reports_what_came_of_it(dac):
    assert run(dac, "reload") == (0, "nothing has changed\n", "")
    dac.sections["server"]["body_max"] = "2k"
    dac.sections["memory"] = {"shm_size": "64m"}
    write_ini(dac.conf, dac.sections)
    code, out, err = run(dac, "reload")
    assert (code, err) == (0, "")
    assert "server.body_max: 1m -> 2k (in place)\n" in out
    assert "memory.shm_size: 48m -> 64m (needs a restart, kept)\n" in out
    dac.sections["server"]["workers"] = 2
    write_ini(dac.conf, dac.sections)
    code, out, _ = run(dac, "reload", "--json")
    said = json.loads(out)
    assert code == 0 and said["ok"] and said["outcome"] == "done"
    assert "2 new workers serve; old ones end their streams" in said["report"]


def test_reload_says_why_it_was_refused(dac):
    dac.allow_log.append("reload refused|dac.conf:")
    dac.sections["server"]["worker"] = 2
    write_ini(dac.conf, dac.sections)
    code, out, _ = run(dac, "reload")
    assert code == 1
    assert f'{dac.conf}:' in out and 'did you mean "workers"?' in out
    assert "refused, everything stays as it is" in out
    code, out, _ = run(dac, "reload", "--json")
    assert code == 1 and json.loads(out)["outcome"] == "refused"


def test_config_show_of_an_instance_is_what_is_in_effect(dac):
    """Not what the file says now, and with the service's own environment."""
    dac.sections["server"]["body_max"] = "2k"
    dac.sections["memory"] = {"shm_size": "64m"}
    write_ini(dac.conf, dac.sections)
    dac.env_file.write_text("COALESCE_ENABLED=0\n")

    def shown():
        code, out, err = run(dac, "--json", "config", "show")
        assert (code, err) == (0, "")
        said = json.loads(out)
        assert said["file"] == str(dac.conf)
        return {s["name"]: s for s in said["settings"]}

    before = shown()
    assert (before["body_max"]["value"], before["body_max"]["source"]) == ("1m", "default")
    assert before["COALESCE_ENABLED"]["value"] == "on"
    assert run(dac, "reload")[0] == 0
    after = shown()
    assert (after["body_max"]["value"], after["body_max"]["file"]) == ("2k", str(dac.conf))
    assert after["shm_size"]["value"] == "48m"
    flag = after["COALESCE_ENABLED"]
    assert (flag["value"], flag["source"], flag["file"]) == ("off", "env_file", str(dac.env_file))
    code, text, _ = run(dac, "config", "show")
    of_file = subprocess.run([BUILD / "dacctl", "-c", dac.conf, "config", "show"], capture_output=True, text=True)
    assert code == 0 and re.search(r"^shm_size = 48m\b", text, re.M)
    assert re.sub(r"(?m)^shm_size.*$", "", text) == re.sub(r"(?m)^shm_size.*$", "", of_file.stdout)
    code, out, err = run(dac, "config", "explain")
    assert (code, out) == (2, "") and "config show" in err


async def test_reload_says_that_it_waits(dac, mock):
    stream, _ = await running(dac, mock)
    for workers, outcome in ((2, "done"), (3, "waits")):
        dac.sections["server"]["workers"] = workers
        write_ini(dac.conf, dac.sections)
        code, out, _ = await later(dac, "reload", "--json")
        assert code == 0 and json.loads(out)["outcome"] == outcome
    await mock.open("go")
    await stream.rest()
    until(lambda: dac.log.count("new workers serve") == 2, "the one that waited")


def test_many_ask_at_once(dac):
    """More than there is room for: all are answered."""
    asks = [
        subprocess.Popen([BUILD / "dacctl", "-n", dac.name, "reload", "--json"], stdout=subprocess.PIPE)
        for _ in range(20)
    ]
    for p in asks:
        out, _ = p.communicate(timeout=30)
        assert p.returncode == 0 and json.loads(out)["outcome"] == "done"


# --- drain ---


async def test_drain_waits_for_streams_and_for_the_end(dac, mock):
    stream, question = await running(dac, mock)
    drain = asyncio.create_task(later(dac, "drain"))
    await asyncio.sleep(1.3)
    assert not drain.done() and not answers(dac.port)[0]
    await mock.open("go")
    await stream.rest()
    assert stream.one("done").data["stored"] == STORED and stream.text == await mock.text(question)
    code, out, err = await drain
    assert (code, out) == (0, "stopped\n")
    assert "of them streams" in err
    assert dac.process.wait(5) == 0
    assert run(dac, "drain")[0] == 2


# --- cancel ---


@pytest.mark.smoke
async def test_cancel_stops_a_turn_of_any_org(dac, mock):
    thread = await dac.thread(org="org_other")
    s = await dac.open_ask(thread, say("long", tokens=12, barrier="go@5"), org="org_other")
    meta = (await s.until("meta")).data
    await s.until("delta")
    code, out, _ = await later(dac, "cancel", meta["turn_id"])
    assert (code, out) == (0, f"turn {meta['turn_id']}: cancelled\n")
    await s.rest()
    assert s.one("done").data["finish_reason"] == "cancelled"
    assert await mock.wait(active=0)
    (turn,) = await dac.stored_turns(1)
    assert turn["status"] == "cancelled"
    code, out, err = await later(dac, "--json", "cancel", meta["turn_id"])  # twice is once
    assert json.loads(out)["status"] == "cancelled" if code == 0 else "not in memory" in err


def test_cancel_of_what_is_not_there(dac):
    code, _, err = run(dac, "cancel", "0191d5a0-0000-7000-8000-000000000000")
    assert code == 1 and "not in memory" in err
    code, _, err = run(dac, "cancel", "kumquats")
    assert code == 2 and "no turn's id" in err


# --- the socket ---


def talk(dac, data, wait=2.0):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(wait)
        s.connect(str(dac.folder / "control.sock"))
        s.sendall(data)
        got = b""
        with contextlib.suppress(ConnectionResetError):  # it did not read all
            while piece := s.recv(4096):
                got += piece
        return got


def test_strangers_and_nonsense(dac, tmp_path):
    path = dac.folder / "control.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert b'"ok":false' in talk(dac, b"make coffee\n")
    assert talk(dac, b"x" * 5000) == b""
    assert b'"ok":false' in talk(dac, b"cancel x\n")
    idle = [socket.socket(socket.AF_UNIX) for _ in range(12)]  # more than there is room for
    for s in idle:
        s.connect(str(path))
    until(lambda: run(dac, "reload", timeout=30)[0] == 0, "the idle ones are closed", 15)
    for s in idle:
        s.close()
    if os.geteuid() == 0:
        other = tmp_path / "nobody"
        other.mkdir()
        who = as_nobody(other)
        dac.folder.chmod(0o755)
        code, _, err = run(dac, "reload", **who)
        assert code != 0 and "in the group" in err
        member = {**who, "extra_groups": [os.getegid()]}
        assert run(dac, "reload", **member)[0] == 0
        assert run(dac, "status", **member)[0] == 0
    assert answers(dac.port)[0]


def test_a_stopped_master_s_full_queue_holds_nobody(dac):
    os.kill(dac.pid, signal.SIGSTOP)
    queue = []
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                queue.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                queue[-1].connect(str(dac.folder / "control.sock"))
        code, out, err = run(dac, "drain", timeout=20)
        assert (code, out) == (2, "") and "takes nobody" in err
    finally:
        for s in queue:
            s.close()
        os.kill(dac.pid, signal.SIGCONT)
    assert run(dac, "reload")[0] == 0


def cpu_s(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_master_rests_whatever_its_clients_do(dac):
    """Those who left while they waited, and more than there is room for, cost nothing."""
    path = str(dac.folder / "control.sock")
    idle = [socket.socket(socket.AF_UNIX) for _ in range(16)]
    before = cpu_s(dac.pid)
    for i, s in enumerate(idle):
        s.connect(path)
        if i < 4:
            s.sendall(b"reload\n")
            s.close()
    time.sleep(2)
    assert cpu_s(dac.pid) - before < 0.5
    for s in idle[4:]:
        s.close()
    assert run(dac, "reload")[0] == 0


async def test_who_asks_to_reload_a_service_that_stops_is_told(dac, mock):
    stream, _ = await running(dac, mock)
    os.kill(dac.pid, signal.SIGTERM)
    await asyncio.sleep(0.2)
    code, _, err = await later(dac, "reload")
    assert code == 1 and "the service stops" in err
    await mock.open("go")
    await stream.rest()


def test_a_dead_master_s_socket_is_taken_over(make_dac):
    dac = make_dac()
    dac.kill_all()
    assert (dac.folder / "control.sock").exists()
    code, _, err = run(dac, "reload")
    assert code == 2 and "could not reach the master" in err
    dac.start()
    assert run(dac, "reload")[0] == 0


def test_another_s_socket_is_left_alone(make_dac):
    first = make_dac()
    second = make_dac({"server": {"control": first.folder / "control.sock"}}, start=False)
    second.allow_log.append("control socket")
    second.expect_exit = 1
    second.start(wait=False)
    assert second.process.wait(10) == 1
    assert "another instance has it" in second.log
    assert run(first, "reload")[0] == 0
    assert first.process.poll() is None
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(10) == 0
    assert not (first.folder / "control.sock").exists()
