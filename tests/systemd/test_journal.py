"""Lines of the log are entries of the journal with fields of their own, none is lost, and a service that
ends at once has said why."""

import asyncio
import json
import os
import signal
import socket
import time

import pytest

from lib.provider import say
from machine import wait_for

FIELDS = {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "DAC_PROCESS"}


def ours(service, *matches):
    """What dacd said, by itself or about what systemd keeps of it."""
    return [x for x in service.entries(*matches) if x.get("_COMM") == "dacd"]


async def ask(service, words):
    """Returns the turn's id."""
    stream = await service.ask_stream(await service.thread(), say(words, tokens=3))
    assert stream.one("done")
    return stream.one("meta").data["turn_id"]


def test_each_line_is_an_entry_with_fields(service, machine):
    victim = service.workers()[0]
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: victim not in service.workers() and service.is_up(), "another worker")
    lines = ours(service)
    for x in lines:
        assert x["_SYSTEMD_UNIT"] == "dacd.service"
        assert x["_TRANSPORT"] == "journal", x  # not what was written to standard error
        assert set(x) >= FIELDS and x["SYSLOG_IDENTIFIER"] == "dacd"
        assert f" {x['DAC_PROCESS']}[{x['_PID']}] " in x["MESSAGE"], x
    said = {x["MESSAGE"].split("] ", 1)[1].split(" ")[0]: x for x in lines if x["DAC_PROCESS"] == "master"}
    assert said["ready:"]["PRIORITY"] == "6"
    assert said["worker"]["PRIORITY"] == "4"
    # As an operator asks for it.
    by_priority = machine.journal("-u", "dacd", "-p", "warning")
    assert said["worker"]["MESSAGE"] in [x["MESSAGE"] for x in by_priority]
    assert said["ready:"]["MESSAGE"] not in [x["MESSAGE"] for x in by_priority]


def test_a_process_is_asked_for_by_its_name(service, machine):
    service.sections["server"]["log_level"] = "debug"
    service.configure()
    machine.run("systemctl", "restart", "dacd")
    asyncio.run(ask(service, "Which worker, kumquat?"))
    # Draining is what each of them tells of itself.
    machine.run("systemctl", "stop", "dacd")
    lines = machine.journal("-u", "dacd", "DAC_PROCESS=worker 0")
    assert lines and all(" worker 0[" in x["MESSAGE"] for x in lines)
    assert any("draining" in x["MESSAGE"] for x in lines)


def test_the_lines_of_one_turn_are_found(service, machine):
    service.sections["server"]["log_requests"] = "all"
    service.configure()
    machine.run("systemctl", "restart", "dacd")
    turns = [asyncio.run(ask(service, f"Kumquat {i}?")) for i in range(3)]
    for turn in turns:
        lines = wait_for(lambda turn=turn: machine.journal(f"DAC_TURN={turn}"), "its lines", 10)
        assert all(x["DAC_TURN"] == turn and turn in x["MESSAGE"] for x in lines)
        request = {x["DAC_REQUEST"] for x in lines if "DAC_REQUEST" in x}
        assert len(request) == 1
        assert {x["DAC_TURN"] for x in machine.journal(f"DAC_REQUEST={request.pop()}") if "DAC_TURN" in x} == {turn}
        assert {x["DAC_ORG"] for x in lines if "DAC_ORG" in x} == {"org_demo"}
    assert "kumquat" not in service.log.lower()


def test_lines_in_json_have_the_fields_too(service, machine):
    service.sections["server"].update(log_format="json", log_requests="all")
    service.configure()
    machine.run("systemctl", "restart", "dacd")
    turn = asyncio.run(ask(service, "JSON, kumquat?"))
    lines = wait_for(lambda: machine.journal(f"DAC_TURN={turn}"), "its lines", 10)
    assert {json.loads(x["MESSAGE"])["turn"] for x in lines} == {turn}
    for x in ours(service):
        said = json.loads(x["MESSAGE"])
        assert (said["process"], str(said["pid"])) == (x["DAC_PROCESS"], x["_PID"])
        assert {"3": "error", "4": "warn", "6": "info", "7": "debug"}[x["PRIORITY"]] == said["level"]


@pytest.mark.parametrize("wrong", ["configuration", "address"])
def test_why_it_did_not_start_is_in_the_journal_of_the_unit(service, machine, wrong):
    """Whose an entry is the journal finds out when it reads it; by then who said it may be gone."""
    service.drop_in("dacd.service", "[Service]\nRestart=no")
    good = service.conf.read_text()
    taken = None
    try:
        machine.run("systemctl", "stop", "dacd")
        if wrong == "configuration":
            service.conf.write_text(good + "\n[server]\nnonsense = 1\n")
        else:
            taken = socket.create_server(("127.0.0.1", service.port))
        for _ in range(5):
            machine.run("systemctl", "reset-failed", "dacd", check=False)
            machine.run("systemctl", "start", "dacd", check=False)
            want = 'unknown setting "nonsense"' if wrong == "configuration" else "is already in use"
            wait_for(lambda want=want: want in service.log, f"{want} of this start", 5)
    finally:
        if taken:
            taken.close()
        service.conf.write_text(good)
        service.drop_in("dacd.service", "")


def test_what_a_busy_journal_does_not_take_is_not_lost(service, machine):
    """It stands still: entries fill what there is for them, then lines go to standard error. Clients are served
    meanwhile, and each line arrives once when it goes on."""
    service.sections["server"]["log_requests"] = "all"
    service.configure()
    machine.run("systemctl", "restart", "dacd")
    queue = int(machine.run("cat", "/proc/sys/net/unix/max_dgram_qlen"))
    count = queue + 20  # what its senders' buffers do not hold standard error has room for
    (journald,) = machine.processes("systemd-journald.service")
    os.kill(journald, signal.SIGSTOP)
    try:
        began = time.monotonic()
        for _ in range(count):
            assert service.get_sync("/api/threads/")[0] == 200
        assert time.monotonic() - began < 10
    finally:
        os.kill(journald, signal.SIGCONT)

    def requests():
        return [x for x in ours(service) if "] request: GET /api/threads " in x["MESSAGE"]]

    wait_for(lambda: len(requests()) >= count, "they arrive")
    time.sleep(0.5)
    arrived = [x["_TRANSPORT"] for x in requests()]
    print(f"queue of {queue}: {arrived.count('journal')} entries, {arrived.count('stdout')} lines")
    assert len(arrived) == count and set(arrived) == {"journal", "stdout"}
