"""A row of the spool that the recorder dies of is found and set aside; the rest goes on to PostgreSQL, and
no row is set aside because somebody killed a recorder."""

import asyncio
import os
import signal
import sqlite3

import pytest

from lib.asks import until
from lib.provider import say
from test_deaths_under_load import crash_points

pytestmark = [pytest.mark.own_store, pytest.mark.limit(110)]
POISON = "poison"
deadly = pytest.mark.skipif(not crash_points(), reason="needs a build with --enable-crashpoints")


def make(make_dac, postgres, *points):
    """The recorder dies at these points whenever it comes there with a turn of model POISON."""
    env = {"DAC_CRASH_AT": ",".join(f"recorder/{p}" for p in points), "DAC_CRASH_TEXT": POISON} if points else {}
    dac = make_dac({"store": {"postgres": postgres.conninfo(), "commit_timeout": "500ms"}}, env=env)
    dac.allow_log += ["PostgreSQL", "recorder", "signal", "a row of the spool was set aside"]
    return dac


async def spool_turns(dac, postgres, n=8, bad=3):
    threads = [await dac.thread() for _ in range(n)]
    await asyncio.to_thread(postgres.stop)
    told = []
    for i, t in enumerate(threads):
        r = await dac.ask_json(t, say(f"Kumquat {i}?", tokens=2), model=POISON if i == bad else "m-1")
        assert r.status == 200 and r.json()["stored"] == "spool", r.text
        told.append(r.json()["turn_id"])
    await asyncio.to_thread(postgres.start)
    return told


async def drained(dac, timeout=60):
    async def empty():
        return await dac.counter("dac_spool_rows") == 0 and await dac.counter("dac_store_up") == 1

    await asyncio.sleep(0.6)
    await until(empty, "the spool is empty", timeout)


def turns_of(postgres):
    return {str(r["id"]) for r in postgres.sql("SELECT id FROM turns")}


@pytest.mark.crashpoints
@deadly
async def test_what_kills_when_it_is_sent_is_set_aside(make_dac, postgres, mock):
    dac = make(make_dac, postgres, "spool_row_sent")
    told = await spool_turns(dac, postgres)
    await drained(dac)
    assert turns_of(postgres) == set(told) - {told[3]}
    (row,) = postgres.sql("SELECT * FROM rejected")
    assert (str(row["id"]), row["kind"], row["org"]) == (told[3], "turn", "org_demo")
    assert "recorder died" in row["reason"] and row["data"]["model"] == POISON and row["data"]["answer"]
    assert f"a row of the spool was set aside: turn {told[3]}" in dac.log
    assert dac.log.count("was ended by signal 9") == 4
    thread = await dac.thread()
    assert (await dac.ask_json(thread, say("Kumquat after?"))).json()["stored"] == "postgres"


@pytest.mark.crashpoints
@deadly
async def test_what_kills_when_it_is_read_is_left_in_the_file(make_dac, postgres, mock):
    dac = make(make_dac, postgres, "spool_row_read")
    told = await spool_turns(dac, postgres)
    await drained(dac)
    assert turns_of(postgres) == set(told) - {told[3]}
    assert postgres.sql("SELECT * FROM rejected") == []
    assert f"recorders die of row {told[3]} of the spool: it is left in table spool_left" in dac.log
    with sqlite3.connect(dac.folder / "spool.db") as db:
        (row,) = db.execute("SELECT kind, id, org, data ->> 'model', data ->> 'answer' FROM spool_left").fetchall()
    assert row[:4] == ("turn", told[3], "org_demo", POISON) and row[4]
    assert dac.log.count("was ended by signal 9") == 5


async def kill_recorder(dac):
    """The present one, or the next: after some deaths the master waits a while."""
    async with asyncio.timeout(20):
        while not (found := [p for p, title in dac.processes().items() if title.startswith("dacd: recorder")]):
            await asyncio.sleep(0.02)
    os.kill(found[0], signal.SIGKILL)


async def test_recorders_that_are_killed_cost_no_turn(make_dac, postgres, mock):
    """While the head of the queue waits for a lock, and while the queue is drained."""
    dac = make(make_dac, postgres)
    told = await spool_turns(dac, postgres, 12, -1)
    with postgres.locked("turns"):
        for _ in range(4):
            await asyncio.sleep(0.8)
            await kill_recorder(dac)
    for _ in range(2):
        await asyncio.sleep(0.3)
        await kill_recorder(dac)
    await drained(dac)
    assert turns_of(postgres) == set(told)
    assert postgres.sql("SELECT * FROM rejected") == []
