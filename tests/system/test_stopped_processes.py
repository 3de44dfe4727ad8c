"""Processes that stand still for a while, alone or all together: those that go on in time do so as if
nothing had been, those that don't are ended and replaced, and nothing old comes behind the new."""

import asyncio
import os
import signal

import pytest

from lib import persistent
from lib.asks import connected, gather, until
from lib.provider import say
from lib.service import dacctl, fetcher_of
from test_deaths_under_load import all_free_again, crash_points

WATCHED = {"server": {"watchdog_timeout": "1s"}}
PATIENT = {"server": {"watchdog_timeout": "4s"}}  # more than a busy machine adds to a second


async def crowd(dac, question, n=18):
    """Tasks of n clients of one question, of which all have begun."""
    thread = await dac.thread()
    tasks = [asyncio.create_task(persistent.native(dac, thread, question)) for _ in range(n)]
    await connected(dac, n)
    return tasks


def send(pids, sig):
    for pid in pids:
        os.kill(pid, sig)


async def all_right(tasks, text):
    told = await gather(*tasks)
    assert {(t.end, t.text) for t in told} == {("done", text)}
    return told


async def test_nobody_is_killed_when_all_were_frozen(make_dac, mock):
    dac = make_dac(WATCHED)
    before = dac.processes()
    question = say(tokens=300, gap="10ms")
    tasks = await crowd(dac, question)
    # The master first, as a freezer does it: it sees nobody stand still.
    everybody = [dac.pid, *(p for p in before if p != dac.pid)]
    send(everybody, signal.SIGSTOP)
    await asyncio.sleep(2.5)
    send(reversed(everybody), signal.SIGCONT)
    told = await all_right(tasks, await mock.text(question))
    assert {t.asked for t in told} == {1} and await mock.calls() == 1
    await asyncio.sleep(1)
    assert dac.processes() == before


async def test_children_that_are_frozen_in_turn_go_on(make_dac, mock):
    dac = make_dac(PATIENT)
    before = dac.processes()
    question = say(tokens=300, gap="15ms")
    tasks = await crowd(dac, question)
    for pid in [*dac.workers(), dac.recorder()]:
        send([pid], signal.SIGSTOP)
        await asyncio.sleep(1)
        send([pid], signal.SIGCONT)
        await asyncio.sleep(0.05)
    told = await all_right(tasks, await mock.text(question))
    assert {t.asked for t in told} == {1} and await mock.calls() == 1
    assert dac.processes() == before


async def test_a_fetcher_that_goes_on_in_time_is_no_reason_to_begin_anew(make_dac, mock):
    dac = make_dac(PATIENT)
    thread = await dac.thread()
    question = say(tokens=200, gap="10ms")
    streams = [await dac.open_ask(thread, question) for _ in range(18)]
    for s in streams:
        await s.until("delta")
    pid = fetcher_of(dac)
    send([pid], signal.SIGSTOP)
    await asyncio.sleep(1)
    send([pid], signal.SIGCONT)
    text = await mock.text(question)
    for s in await gather(*[s.rest() for s in streams]):
        assert s.complete and s.text == text and not s.named("reset", "error")
    assert await mock.calls() == 1 and pid in dac.workers()
    assert await dac.counter("dac_takeovers_total") == 0


@pytest.mark.limit(90)
async def test_one_that_goes_on_as_it_is_being_killed_writes_nothing_behind_the_new(make_dac, mock):
    """Continued in the very moment of the watchdog, before it and after it."""
    dac = make_dac(WATCHED, workers=8)
    dac.allow_log.append("has not beaten")
    thread = await dac.thread()
    taken_over = 0
    for n, delay in enumerate([1.1, 1.2, 1.25, 1.3, 1.45, 1.9]):
        question = say(f"Kumquat {n}?", tokens=150, gap="12ms")
        before = await mock.calls()
        streams = [await dac.open_ask(thread, question) for _ in range(16)]
        for s in streams:
            await s.until("delta")
        pid = fetcher_of(dac)
        send([pid], signal.SIGSTOP)
        await asyncio.sleep(delay)
        try:
            send([pid], signal.SIGCONT)
        except ProcessLookupError:
            pass
        text = await mock.text(question)
        resets = 0
        for s in await gather(*[s.rest() for s in streams]):
            if s.complete:
                assert s.text == text and s.one("done"), (delay, s.events[-3:])
                resets += len(s.named("reset"))
        calls = await mock.calls() - before
        assert calls == 1 + (resets > 0), (delay, calls, resets)
        taken_over += resets > 0
        await until(lambda: whole(dac, 8), "all workers")
        await mock.wait(active=0)
    assert 0 < taken_over


async def whole(dac, n):
    processes = dacctl(dac, "status", "--json")["processes"]
    return [p["state"] for p in processes].count("ready") == n + 1


async def orphaned(dac):
    return dacctl(dac, "status", "--json")["flights"]["orphaned"]


async def test_a_reader_that_stands_still_may_yet_take_over(make_dac, mock):
    """The fetcher dies while the only other reader is stopped: nobody ends its flight in its place."""
    dac = make_dac({"server": {"watchdog_timeout": "5s"}}, workers=2)
    thread = await dac.thread()
    question = say(tokens=10, token_size=16, barrier="hold@4")
    streams = [await dac.open_ask(thread, question) for _ in range(16)]
    for s in streams:
        await s.until("delta")
    busy = fetcher_of(dac)
    (other,) = [pid for pid in dac.workers() if pid != busy]
    send([other], signal.SIGSTOP)
    await asyncio.sleep(0.1)
    send([busy], signal.SIGKILL)
    await asyncio.sleep(1.6)
    send([other], signal.SIGCONT)
    await mock.wait(calls=2, waiting=1)
    await mock.open("hold")
    text = await mock.text(question)
    ended = [s for s in await gather(*[s.rest() for s in streams]) if s.complete]
    assert ended
    for s in ended:
        assert s.one("reset") and s.one("done") and s.text == text
    (turn,) = await dac.stored_turns(1)
    assert (turn["status"], turn["generation"]) == ("complete", 1)


async def test_its_clients_go_on_when_the_reader_that_stood_still_is_killed(make_dac, mock):
    dac = make_dac({**WATCHED, "flight": {"reconnect_grace": "5s"}}, workers=2)
    dac.allow_log.append("has not beaten")
    question = say(tokens=10, token_size=16, barrier="hold@4")
    tasks = await crowd(dac, question)
    await mock.wait(waiting=1)
    busy = fetcher_of(dac)
    (other,) = [pid for pid in dac.workers() if pid != busy]
    send([other], signal.SIGSTOP)
    await asyncio.sleep(0.1)
    send([busy], signal.SIGKILL)
    await mock.wait(calls=2, waiting=1)
    await mock.open("hold")
    await all_right(tasks, await mock.text(question))
    assert await mock.calls() == 2
    (turn,) = await dac.stored_turns(1)
    assert turn["status"] == "complete"


@pytest.mark.crashpoints
@pytest.mark.skipif(not crash_points(), reason="needs a build with --enable-crashpoints")
async def test_a_recorder_that_stands_still_at_its_start_is_ended(make_dac, mock, tmp_path):
    """It may take as long as it needs, for a migration, but not if it was stopped."""
    env = {"DAC_CRASH_AT": "recorder/recorder_adopted=STOP", "DAC_CRASH_ONCE": str(tmp_path / "stopped")}
    dac = make_dac({**WATCHED, "flight": {"on_fetcher_death": "fail"}}, env=env)
    dac.allow_log.append("has not beaten")
    thread = await dac.thread()
    question = say(tokens=10, token_size=16, barrier="hold@4")
    streams = [await dac.open_ask(thread, question) for _ in range(16)]
    for s in streams:
        await s.until("delta")
    # The next recorder is to find the orphan at its start.
    recorder = dac.recorder()
    send([recorder], signal.SIGSTOP)
    send([fetcher_of(dac)], signal.SIGKILL)
    await until(lambda: orphaned(dac), "the orphan")
    send([recorder], signal.SIGKILL)
    ended = [s for s in await gather(*[s.rest(timeout=15) for s in streams]) if s.complete]
    assert ended and all(s.one("error").data["code"] == "fetcher_died" for s in ended)
    assert (tmp_path / "stopped.recorder_adopted").exists()
    assert dac.log.count("has not beaten") == 1
    (turn,) = await dac.stored_turns(1)
    assert turn["status"] == "incomplete"
    await all_free_again(dac, mock)
