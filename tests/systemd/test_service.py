"""The service as systemd sees it: it starts, stays up while its processes die, comes back by
itself when the master is killed, and stops."""

import asyncio
import os
import signal
import time

from lib.provider import say
from machine import wait_for

DRAIN_S = 6  # what conftest.py configures
EXPOSURE_MAX = 15  # tenths


def kill(pid):
    os.kill(pid, signal.SIGKILL)


async def follow(stream):
    """Reads a stream to its end; its last event's name, and when that came."""
    await stream.rest(timeout=DRAIN_S + 5)
    return stream.events[-1], time.monotonic()


async def ask(service, words="And now, kumquat?"):
    """A whole question in a thread of its own; the stream, which ended with done."""
    stream = await service.ask_stream(await service.thread(), say(words, tokens=3))
    assert stream.one("done")
    return stream


def test_the_unit_is_in_order(machine):
    assert machine.run("systemd-analyze", "--man=no", "verify", "dacd.service") == ""


def test_it_is_exposed_to_little(machine):
    rows = machine.run("systemd-analyze", "security", f"--threshold={EXPOSURE_MAX}", "dacd.service")
    print(rows.splitlines()[-1])


def test_it_starts_as_nobody_special_and_answers(service, machine):
    assert service.show("ActiveState") == "active"
    asyncio.run(ask(service))
    dac = int(machine.run("id", "-u", "dac"))
    for pid in service.processes():
        with open(f"/proc/{pid}/status") as f:
            status = dict(line.split(":\t", 1) for line in f if ":\t" in line)
        assert {int(n) for n in status["Uid"].split()} == {dac}
        assert int(status["CapEff"], 16) == 0
        assert status["NoNewPrivs"].strip() == "1"
        with open(f"/proc/{pid}/limits") as f:
            assert [x.split()[4:6] for x in f if x.startswith("Max core")] == [["1", "1"]]  # none, that is
    assert len(service.processes()) == 5
    assert "WARN" not in service.log, service.log


def test_a_killed_worker_or_recorder_is_the_master_s_affair(service):
    async def scene():
        master = service.master()
        for _ in range(2):
            for victim in (service.workers()[0], service.recorder()):
                kill(victim)
                wait_for(
                    lambda victim=victim: len(service.processes()) == 5 and victim not in service.processes(),
                    "another one",
                )
                wait_for(service.is_up, "it is ready again")
                await ask(service)
        assert service.master() == master

    asyncio.run(scene())
    assert service.show("NRestarts") == "0"
    assert service.show("ActiveState") == "active"


async def kill_the_master(service, mock):
    """With streams under way. Returns a stream that had ended before."""
    kept = await ask(service, "Will this kumquat be kept?")
    threads = [await service.thread() for _ in range(6)]
    streams = [
        await service.open_ask(thread, say(f"Kumquat {i}?", tokens=9, barrier="go@3"))
        for i, thread in enumerate(threads)
    ]
    for stream in streams:
        await stream.until("delta")
    old = service.processes()
    kill(service.master())
    began = time.monotonic()
    readers = [asyncio.create_task(follow(stream)) for stream in streams]

    # Nobody does anything, and newcomers are answered while the old streams still wait.
    while True:
        await asyncio.sleep(0.05)
        assert time.monotonic() - began < DRAIN_S, service.log[-2000:]
        try:
            if len(set(service.processes()) - set(old)) == 5 and service.get_sync("/readyz")[0] == 200:
                break
        except (OSError, ValueError):
            pass
    print(f"back after {time.monotonic() - began:.2f} s")
    await ask(service)
    assert not any(reader.done() for reader in readers)
    heard = await asyncio.gather(*readers)
    for event, when in heard:
        assert event.name == "error" and event.data["code"] == "shutting_down", event
        assert when - began < DRAIN_S + 1
    await mock.open("go")
    wait_for(lambda: not set(old) & set(service.processes()), "the old ones are gone")
    return kept


def test_a_killed_master_is_followed_by_another_one(service, mock):
    kept = asyncio.run(kill_the_master(service, mock))
    assert service.show("NRestarts") == "1"
    assert service.show("ActiveState") == "active"
    assert "its shared memory is replaced" in service.log
    assert len(service.processes()) == 5
    turns = {t["id"]: t for t in service.turns()}
    assert turns[kept.one("meta").data["turn_id"]]["status"] == "complete"
    texts = {m["turn_id"]: m["content"] for m in service.messages() if m["role"] == "assistant"}
    assert texts[kept.one("meta").data["turn_id"]] == kept.text
    # What was cut is stored as what it is; the recorder went last.
    assert sorted(t["status"] for t in turns.values()) == ["complete"] * 2 + ["incomplete"] * 6
    asyncio.run(ask(service))


def test_stopping_waits_for_what_ends_in_time(service, machine):
    async def scene():
        thread = await service.thread()
        stream = await service.open_ask(thread, say(tokens=12, gap="100ms"))
        await stream.until("delta")
        stop = asyncio.create_task(asyncio.to_thread(machine.run, "systemctl", "stop", "dacd"))
        await stream.rest(timeout=10)
        assert stream.one("done")
        await stop

    asyncio.run(scene())
    assert service.processes() == {}
    assert service.show("ActiveState") == "inactive"
    assert (service.show("Result"), service.show("ExecMainStatus")) == ("success", "0")
    assert machine.run("ls", "/dev/shm") == ""
    assert [t["status"] for t in service.turns()] == ["complete"]


def test_a_configuration_that_became_wrong_heals_itself(service, machine):
    good = service.conf.read_text()
    service.conf.write_text(good + "\n[server]\nnonsense = 1\n")
    kill(service.master())
    wait_for(lambda: int(service.show("NRestarts")) >= 8, "it tries again and again")
    service.conf.write_text(good)
    wait_for(service.is_up, "it is back")
    asyncio.run(ask(service))


def test_a_reload_takes_what_is_good_and_refuses_the_rest(service, machine):
    """As `systemctl reload` does it: checked first, then the signal."""
    master = service.master()
    before = service.show("ExecMainStartTimestamp")
    service.sections["server"]["log_level"] = "debug"
    service.configure()
    machine.run("systemctl", "reload", "dacd")
    wait_for(lambda: "log_level: info -> debug" in service.log, "the level has changed", 10)

    good = service.conf.read_text()
    service.conf.write_text(good + "\n[server]\nlog_levle = info\n")
    p = machine.run("sh", "-c", "systemctl reload dacd 2>&1 || echo refused")
    assert p.endswith("refused\n")
    assert "log_levle" in machine.run("journalctl", "-u", "dacd", "-n", "20", "-o", "cat", "--no-pager")
    service.conf.write_text(good)
    assert (service.master(), service.show("ExecMainStartTimestamp")) == (master, before)
    assert service.show("ActiveState") == "active"
    asyncio.run(ask(service))


def test_a_master_that_stands_still_is_replaced(service, machine):
    service.drop_in("dacd.service", "[Service]\nWatchdogSec=2s")
    try:
        machine.run("systemctl", "restart", "dacd")
        time.sleep(5)
        assert service.show("NRestarts") == "0"  # its signs of life arrive
        old = service.processes()
        os.kill(service.master(), signal.SIGSTOP)
        wait_for(lambda: service.show("NRestarts") == "1" and service.is_up(), "another master", 20)
        wait_for(lambda: not set(old) & set(service.processes()), "the old ones are gone", DRAIN_S + 10)
        assert "watchdog" in machine.run("journalctl", "-u", "dacd", "-n", "200", "-o", "cat", "--no-pager").lower()
        asyncio.run(ask(service))
    finally:
        service.drop_in("dacd.service", "")


def test_a_stop_may_take_longer_than_systemd_grants_to_others(service, machine):
    """The master asks for more time while a stream ends."""
    service.sections["server"]["drain_timeout"] = "20s"
    service.configure()
    service.drop_in("dacd.service", "[Service]\nTimeoutStopSec=3s")

    async def scene():
        stream = await service.open_ask(await service.thread(), say(tokens=80, gap="100ms"))
        await stream.until("delta")
        stop = asyncio.create_task(asyncio.to_thread(machine.run, "systemctl", "stop", "dacd"))
        await stream.rest(timeout=20)
        assert stream.one("done")
        await stop

    try:
        machine.run("systemctl", "restart", "dacd")
        asyncio.run(scene())
        assert (service.show("Result"), service.show("ExecMainStatus")) == ("success", "0")
        assert [t["status"] for t in service.turns()] == ["complete"]
    finally:
        service.drop_in("dacd.service", "")


def test_the_status_line_tells_how_it_goes(service):
    wait_for(lambda: "3 workers" in service.show("StatusText"), "its status", 10)


def test_a_key_may_be_a_credential_that_only_root_reads(service, machine):
    key = "/etc/dac/provider.key"
    service.sections["provider perplexity"]["api_key_file"] = "credential:perplexity"
    service.configure()
    machine.run("sh", "-c", f"chown root:root {key} && chmod 600 {key}")
    service.drop_in("dacd.service", f"[Service]\nLoadCredential=perplexity:{key}")
    try:
        machine.run("systemctl", "restart", "dacd")
        asyncio.run(ask(service))  # the provider refuses whoever has another key
        service.sections["server"]["workers"] = 2
        service.configure()
        machine.run("sh", "-c", f"chown root:root {key} && chmod 600 {key}")
        machine.run("systemctl", "reload", "dacd")
        wait_for(lambda: "new workers serve" in service.log, "new workers")
        asyncio.run(ask(service, "And the new workers?"))
    finally:
        service.drop_in("dacd.service", "")
