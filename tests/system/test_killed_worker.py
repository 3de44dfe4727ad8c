"""A worker dies or stands still: clients are served by the others, and it comes back."""

import asyncio
import os
import signal
import time

import pytest

from lib import procs
from lib.provider import say
from lib.service import answers, dacctl, until


@pytest.mark.smoke
def test_a_killed_worker_strands_no_new_client(dac):
    for round_ in range(4):
        victim = dac.workers()[round_]
        os.kill(victim, signal.SIGKILL)
        for _ in range(40):
            ok, took = answers(dac.port)
            assert ok and took < 1, (ok, took)
        until(lambda: len(dac.workers()) == 4 and victim not in dac.workers(), "a new worker")
    assert dac.log.count("was ended by signal 9") == 4
    status = dacctl(dac, "status", "--json")
    assert status["restarts"] == 4
    assert status["restarts_by"]["worker"] == {"killed": 4, "exited": 0, "watchdog": 0}
    assert "4 restarts (worker killed 4)" in dacctl(dac, "status")
    until(lambda: [p["state"] for p in dacctl(dac, "status", "--json")["processes"]] == ["ready"] * 5, "five at work")


def test_a_stopped_worker_strands_no_new_client(dac):
    victim = dac.workers()[2]
    os.kill(victim, signal.SIGSTOP)
    try:
        slowest = 0.0
        until_when = time.monotonic() + 3
        while time.monotonic() < until_when:
            ok, took = answers(dac.port)
            assert ok
            slowest = max(slowest, took)
        assert slowest < 1.8, slowest
    finally:
        os.kill(victim, signal.SIGCONT)
    time.sleep(0.5)
    assert victim in dac.workers()  # not killed: it stood still for less than watchdog_timeout
    for _ in range(40):
        assert answers(dac.port)[0]


def test_the_watchdog_ends_what_stands_still(make_dac):
    dac = make_dac({"server": {"watchdog_timeout": "1s"}})
    dac.allow_log = ["has not beaten"]
    victims = [dac.workers()[1], dac.recorder()]
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    until(lambda: not set(victims) & set(dac.processes()), "both killed", 8)
    until(lambda: len(dac.processes()) == 6, "both started again")
    assert answers(dac.port)[0]
    by = dacctl(dac, "status", "--json")["restarts_by"]
    assert by == {kind: {"killed": 0, "exited": 0, "watchdog": 1} for kind in ("worker", "recorder")}
    text = dac.get_sync("/metrics")[1].decode()
    assert 'dac_restarts_total{kind="recorder",reason="watchdog"} 1' in text
    assert 'dac_restarts_total{kind="worker",reason="killed"} 0' in text


def test_a_stopped_master_is_no_reason_to_kill_anybody(make_dac):
    dac = make_dac({"server": {"watchdog_timeout": "1s"}})
    before = dac.processes()
    os.kill(dac.pid, signal.SIGSTOP)
    time.sleep(2.5)
    os.kill(dac.pid, signal.SIGCONT)
    time.sleep(1)
    assert dac.processes() == before


async def test_a_dead_fetcher_s_listeners_get_an_error_not_a_hang(make_dac, mock):
    """The worker of the upstream call dies and is not to be replaced; listeners hear of it."""
    dac = make_dac({"flight": {"on_fetcher_death": "fail"}})
    thread = await dac.thread()
    question = say(tokens=50, barrier="go@4")
    streams = [await dac.open_ask(thread, question) for _ in range(24)]
    for s in streams:
        await s.until("delta")
    owners = [f["owner"] for f in dacctl(dac, "flights", "--json")["flights"] if f["state"] == "streaming"]
    assert len(owners) == 1
    slots = {p["slot"]: p for p in dacctl(dac, "status", "--json")["processes"]}
    victim = slots[owners[0]]["pid"]
    served_there = procs.connections(victim, dac.port)
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    heard = cut = 0
    for s in streams:
        await s.rest(timeout=10)
        assert s.named("done") == []
        if s.complete:
            assert s.one("error").data["code"] == "fetcher_died"
            heard += 1
        else:
            cut += 1
    assert time.monotonic() - began < 2
    assert cut == served_there < 24 and heard == 24 - cut
    (turn,) = await dac.stored_turns(1)
    assert (turn["status"], turn["error_code"]) == ("incomplete", "fetcher_died")
    # The provider's permit and the question are free again.
    await mock.wait(active=0)
    await asyncio.sleep(2.1)  # error_ttl
    await mock.open("go")
    again = await dac.ask_stream(thread, question)
    assert again.text == await mock.text(question)


async def test_a_worker_that_keeps_dying_is_started_ever_more_slowly(dac):
    died = 0
    until_when = time.monotonic() + 3
    while time.monotonic() < until_when:
        workers = dac.workers()
        if len(workers) == 4:
            os.kill(workers[0], signal.SIGKILL)
            died += 1
        assert answers(dac.port)[0]
        await asyncio.sleep(0.01)
    assert 3 <= died < 12, died
    assert "starting another in" in dac.log
