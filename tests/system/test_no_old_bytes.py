"""Fetchers die and stand still in the middle of answers, again and again: no byte of the old answer
reaches a client behind the first of the new one. Each upstream call answers with a letter of its own."""

import asyncio
import os
import random
import signal

import pytest

from lib import lettered, persistent
from lib.asks import until
from lib.service import dacctl, fetcher_of

TOKENS, SIZE = 40, 16
WHOLE = TOKENS * SIZE
WORKERS = 6


async def native(dac, thread, question, turn=None, position=None):
    """All events of a client that goes on where it was cut off until its turn ends."""
    events = []
    for _ in range(100):
        try:
            s = await (persistent.resume(dac, turn, position) if turn else dac.open_ask(thread, question))
            if s.status != 200:
                await s.body()
                assert s.status == 503, s.status
                await asyncio.sleep(0.05)
                continue
            await s.rest(persistent.PATIENCE)
        except persistent.BROKEN:
            await asyncio.sleep(0.02)
            continue
        events += s.events
        turn = turn or (s.named("meta")[0].data["turn_id"] if s.named("meta") else None)
        position = ([position] + [e.id for e in s.events if e.id])[-1]
        if s.complete:
            return events
    raise AssertionError("no end")


async def kill_the_fetcher(dac, clients, how, rng):
    """In the middle of its answer; on a busy machine that may be over before anybody finds it."""

    async def found():
        return fetcher_of(dac) or all(c.done() for c in clients)

    pid = await until(found, "a fetcher")
    await asyncio.sleep(rng.random() * 0.12)
    if pid is not True:
        os.kill(pid, how)


async def ready(dac):
    status = dacctl(dac, "status", "--json")
    states = [p["state"] for p in status["processes"]]
    return len(states) == WORKERS + 1 and set(states) == {"ready"}


def judge_chat(told):
    assert len(set(told.text)) <= 1, told.text
    assert told.end == "error" or len(told.text) == WHOLE


async def one_round(dac, mock, thread, name, how, rng):
    """One death in a native answer and one in an OpenAI one; returns how many natives saw a reset."""
    question, chat = f"Kumquat {name} native?", f"Kumquat {name} chat?"
    await lettered.script(mock, question, TOKENS, SIZE, gap="6ms")
    asked = [asyncio.create_task(native(dac, thread, question)) for _ in range(12)]
    whole = [asyncio.create_task(persistent.whole(dac, thread, question)) for _ in range(3)]
    await kill_the_fetcher(dac, asked, how, rng)
    # Joiners before, while and behind it is taken over; some come back with ids of the old answer.
    for _ in range(4):
        asked.append(asyncio.create_task(native(dac, thread, question)))
        await asyncio.sleep(0.01)
    first = await dac.open_ask(thread, question)
    turn = (await first.until("meta")).data["turn_id"]
    first.close()
    asked += [asyncio.create_task(native(dac, thread, question, turn, f"0-{SIZE}")) for _ in range(3)]
    resets = 0
    for events in await asyncio.gather(*asked):
        assert events[-1].name == "done", events[-3:]
        text = lettered.judge(events)
        reset = any(e.name == "reset" for e in events)
        assert len(text) == WHOLE or (not reset and len(text) == WHOLE - SIZE), (name, events[:3], len(text))
        resets += reset
    for told in await asyncio.gather(*whole):
        assert told.end == "done" and len(told.text) == WHOLE and len(set(told.text)) == 1

    await lettered.script(mock, chat, TOKENS, SIZE, gap="6ms")
    asked = [asyncio.create_task(persistent.chat(dac, chat)) for _ in range(8)]
    await kill_the_fetcher(dac, asked, signal.SIGKILL, rng)
    for told in await asyncio.gather(*asked):
        judge_chat(told)
    return resets


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.limit(230)
@pytest.mark.timeout(240)
async def test_no_byte_of_an_old_answer_behind_a_new_one(make_dac, mock, seed):
    dac = make_dac({"server": {"watchdog_timeout": "1s"}, "flight": {"error_ttl": "0s"}}, workers=WORKERS)
    dac.allow_log.append("has not beaten")
    rng = random.Random(seed)
    thread = await dac.thread()
    seen = 0
    for n in range(25):
        how = signal.SIGSTOP if n % 6 == 5 else signal.SIGKILL
        seen += await one_round(dac, mock, thread, f"{seed}-{n}", how, rng) > 0
        await until(lambda: ready(dac), "all workers")
        await mock.control("DELETE", "script")
    assert seen > 15, seen
    assert await dac.counter("dac_takeovers_total") >= seen
