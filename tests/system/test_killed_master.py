"""The master is killed: nobody stays behind, nothing is lost, and the next start works at once."""

import asyncio
import fcntl
import os
import signal
import sqlite3
import time

import pytest

from lib import procs
from lib.provider import say
from lib.service import answers, until


def kill_master(dac):
    os.kill(dac.pid, signal.SIGKILL)
    dac.process.wait()
    dac.retired.append(dac.pid)


@pytest.mark.smoke
async def test_it_can_be_started_again_at_once(make_dac, mock):
    dac = make_dac({"server": {"drain_timeout": "2s"}})
    thread = await dac.thread()
    await dac.ask_stream(thread, say("First kumquat?", tokens=3))
    old = await dac.open_ask(thread, say("Second kumquat?", tokens=9, barrier="go@3"))
    await old.until("delta")
    kill_master(dac)
    began = time.monotonic()
    dac.start()
    assert time.monotonic() - began < 4
    assert "its shared memory is replaced" in dac.log
    # The new instance knows what was stored, and answers; the old one lets its stream end.
    assert (await dac.get(f"/api/threads/{thread}/messages")).json()["messages"]
    await dac.ask_stream(thread, say("Third kumquat?", tokens=3))
    await mock.open("go")
    await old.rest()
    assert old.one("done")
    until(lambda: not procs.session(dac.retired[0]), "the end of the old processes")
    assert [t["status"] for t in dac.turns()] == ["complete"] * 3


async def test_without_a_new_start_its_children_end_by_themselves(make_dac, mock):
    dac = make_dac({"server": {"drain_timeout": "1s"}})
    thread = await dac.thread()
    stream = await dac.open_ask(thread, say(tokens=9, barrier="go@3"))
    await stream.until("delta")
    kill_master(dac)
    await asyncio.sleep(0.3)
    assert answers(dac.port)[0] is False  # nobody holds the port
    await stream.rest()
    assert stream.one("error").data["code"] == "shutting_down"
    until(lambda: not procs.session(dac.retired[0]), "the end of its children")
    # The recorder went last: what was cut is stored.
    assert [t["status"] for t in dac.turns()] == ["incomplete"]
    os.unlink(f"/dev/shm/{dac.name}")
    dac.process = None


async def test_a_worker_killed_after_its_master_loses_nothing(make_dac, mock):
    """Nobody is left to sweep; the recorder ends what the worker was fetching."""
    dac = make_dac({"server": {"drain_timeout": "5s"}}, workers=2)
    thread = await dac.thread()
    stream = await dac.open_ask(thread, say(tokens=9, barrier="go@3"))
    await stream.until("delta")
    workers = dac.workers()
    kill_master(dac)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not procs.session(dac.retired[0]), "the recorder's end")
    (turn,) = dac.turns()
    assert (turn["status"], turn["error_code"]) == ("incomplete", "fetcher_died")
    os.unlink(f"/dev/shm/{dac.name}")
    dac.process = None
    stream.close()


async def test_a_start_does_not_depend_on_a_commit_that_stands_still(make_dac):
    """The killed master's recorder was stopped in the middle of a commit: nobody is there to end
    it, and the next start has the store as soon as it goes on."""
    dac = make_dac()
    kill_master(dac)
    until(lambda: not procs.session(dac.retired[0]), "the end of its children")
    other = sqlite3.connect(dac.db_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    dac.allow_log.append("holds its lock")
    asyncio.get_running_loop().call_later(4, other.rollback)
    await asyncio.to_thread(dac.start)
    await dac.thread()
    other.close()


async def test_a_start_waits_for_a_lock_that_outlives_its_master(make_dac):
    """A child that was forked just before its master's death holds the segment's lock until it
    runs, on a busy machine for a while."""
    dac = make_dac()
    kill_master(dac)
    until(lambda: not procs.session(dac.retired[0]), "the end of its children")
    with open(f"/dev/shm/{dac.name}", "rb") as segment:
        fcntl.flock(segment, fcntl.LOCK_EX | fcntl.LOCK_NB)
        asyncio.get_running_loop().call_later(2, fcntl.flock, segment, fcntl.LOCK_UN)
        await asyncio.to_thread(dac.start)
    await dac.thread()


async def test_a_done_that_a_client_saw_is_stored(make_dac, mock):
    """SIGKILL of everything right behind the client's last event."""
    dac = make_dac()
    thread = await dac.thread()
    for n in range(5):
        await dac.ask_stream(thread, say(f"Kumquat {n}?", tokens=3))
        dac.kill_all()
        dac.start()
        r = await dac.get(f"/api/threads/{thread}/messages")
        assert len(r.json()["messages"]) == 2 * (n + 1)
        assert [t["status"] for t in dac.turns()] == ["complete"] * (n + 1)
