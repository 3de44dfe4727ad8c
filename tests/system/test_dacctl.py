"""dacctl shows what the service does, without disturbing it and without showing a prompt."""

import json
import os
import signal
import subprocess

import pytest

from lib.dacd import BUILD
from lib.provider import say
from lib.service import dacctl


def run(*args):
    p = subprocess.run([BUILD / "dacctl", *args], capture_output=True, text=True, check=False)
    return p.returncode, p.stdout, p.stderr


@pytest.mark.smoke
async def test_a_running_flight_is_shown(dac, mock):
    thread = await dac.thread()
    streams = [await dac.open_ask(thread, say(tokens=9, barrier="go@3")) for _ in range(6)]
    for s in streams:
        await s.until("delta")
    turn_id = streams[0].one("meta").data["turn_id"]
    (flight,) = [f for f in dacctl(dac, "flights", "--json")["flights"] if f["kind"] == "turn"]
    assert flight["state"] == "streaming" and flight["stored"] == "no"
    assert flight["turn_id"] == turn_id
    assert flight["provider"] == "perplexity"
    assert flight["followers"] == 5 and 1 <= flight["readers"] <= 4
    text = dacctl(dac, "flights")
    assert turn_id in text and "streaming" in text
    status = dacctl(dac, "status", "--json")
    assert status["flights"]["streaming"] == 1
    assert status["providers"][0]["in_flight"] == 1
    assert status["counters"]["followers"] == 5
    assert status["blocks"]["used"] >= 1
    assert status["master_pid"] == dac.pid and status["master_alive"] is True
    assert {p["pid"] for p in status["processes"]} == set(dac.processes()) - {dac.pid}
    everything = text + dacctl(dac, "status")
    assert "kumquat" not in everything.lower()
    assert "worker 3" in everything and "recorder" in everything
    await mock.open("go")
    for s in streams:
        await s.rest()
    after = dacctl(dac, "status", "--json")
    assert after["flights"]["streaming"] == 0 and after["providers"][0]["in_flight"] == 0
    assert after["counters"]["turns_complete"] == 1


def test_it_works_on_a_service_that_stands_still(dac):
    pids = list(dac.processes())
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert len(dacctl(dac, "status", "--json")["processes"]) == 5
        assert dacctl(dac, "flights", "--json") == {"flights": []}
        assert "is stopped" in dacctl(dac, "status", "--json")["problems"][0]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert "is stopped" not in dacctl(dac, "status")


def test_a_configuration_names_the_instance(make_dac, tmp_path):
    """Whatever else runs here; nothing is asked of another one."""
    one, other = make_dac(), make_dac()
    for dac in (one, other):
        code, out, _ = run("-c", dac.conf, "--json", "status")
        assert code == 0 and json.loads(out)["instance"] == dac.name
    bad = tmp_path / "bad.conf"
    bad.write_text("[server]\nworkers = many\n")
    code, out, err = run("-c", bad, "drain")
    assert code == 2 and out == "" and "bad.conf:2: workers" in err and "-n NAME" in err
    assert run("-n", one.name, "-c", other.conf, "status")[1].startswith(f"instance   {one.name},")


def test_what_is_wrong_is_said(dac, tmp_path):
    code, _, err = run("-n", "no-such-instance", "status")
    assert code == 2 and "no-such-instance" in err
    code, _, err = run("-n", "../../etc/passwd", "status")
    assert code == 2 and "no name" in err
    for wrong in ([], ["nonsense"], ["status", "flights"], ["--nonsense"]):
        code, out, err = run(*wrong)
        assert code == 2 and "Usage" in err and out == ""
    assert run("--version")[1].startswith("dacctl ")
    segment = f"dac-test-{os.getpid()}"
    with open(f"/dev/shm/{segment}", "wb") as f:
        f.write(b"x" * 100_000)
    try:
        code, _, err = run("-n", segment, "status")
        assert code == 2 and "segment" in err
    finally:
        os.unlink(f"/dev/shm/{segment}")
