"""The death of the worker that runs an upstream call, where it is not to be taken over: a clear error
for those who listen through other workers, not a hang, and nothing invented; everything goes on."""

import asyncio
import os
import signal

import pytest

from lib import procs
from lib.asks import connected, gather, until
from lib.provider import say


def fetcher(dac, mock):
    """The worker that holds a connection to the provider."""
    found = [pid for pid in dac.workers() if procs.connections_to(pid, mock.port)]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.smoke
@pytest.mark.parametrize("at", [0, 4])
async def test_listeners_hear_of_it(make_dac, mock, at):
    dac = make_dac({"flight": {"on_fetcher_death": "fail"}})
    dac.allow_log.append(r"worker|signal")
    thread = await dac.thread()
    question = say(tokens=10, token_size=16, barrier=f"hold@{at}")
    streams = [await dac.open_ask(thread, question) for _ in range(24)]
    for s in streams:
        await s.until("meta")
        while len(s.text) < 16 * at:
            await s.until("delta")
    waiting = [asyncio.create_task(dac.ask_json(thread, question)) for _ in range(12)]
    counts = await connected(dac, 36)
    victim = fetcher(dac, mock)
    # Connections that are just closing are counted, too: so from the victim's own number.
    others = 36 - dict(zip(dac.workers(), counts, strict=True))[victim]
    assert others > 0
    os.kill(victim, signal.SIGKILL)

    async with asyncio.timeout(10):
        ended = await gather(*[s.rest() for s in streams])
        whole = await asyncio.gather(*waiting, return_exceptions=True)
    told = [s for s in ended if s.complete]
    cut = [s for s in ended if not s.complete]
    assert told, "nobody listened through another worker"
    for s in told:
        assert s.one("error").data["message"] and not s.named("done")
    for s in cut:
        assert not s.named("done")
    partial = (await mock.text(question))[: 16 * at]
    assert {s.text for s in ended} == {partial}
    answered = [r for r in whole if not isinstance(r, BaseException)]
    assert all(r.status in (502, 503) for r in answered), [r.status for r in answered]
    assert all(isinstance(r, (ConnectionError, BaseException)) for r in whole if r not in answered)
    assert len(told) + len(answered) >= others

    async def stored():
        return dac.turns()

    (turn,) = await until(stored, "what there was is stored")
    assert turn["status"] in ("incomplete", "failed")
    text = "".join(m["content"] for m in dac.messages(thread) if m["role"] == "assistant")
    assert text == partial

    async def all_back():
        return len(dac.workers()) == 4 and victim not in dac.workers()

    await until(all_back, "the worker was started again")
    another = say("another kumquat", tokens=5)
    answers = await gather(*[dac.ask_stream(thread, another) for _ in range(20)])
    assert {s.text for s in answers} == {await mock.text(another)}


@pytest.mark.smoke
async def test_a_worker_that_only_listens_takes_nothing_along(dac, mock):
    dac.allow_log.append(r"worker|signal")
    thread = await dac.thread()
    question = say(tokens=10, barrier="hold@4")
    streams = [await dac.open_ask(thread, question) for _ in range(24)]
    for s in streams:
        await s.until("delta")
    busy = fetcher(dac, mock)
    victim = next(p for p in dac.workers() if p != busy and procs.connections(p, dac.port))
    os.kill(victim, signal.SIGKILL)
    await mock.open("hold")
    ended = await gather(*[s.rest() for s in streams])
    whole = [s for s in ended if s.complete]
    assert 0 < len(whole) < 24
    assert {s.text for s in whole} == {await mock.text(question)}
    assert all(s.one("done") for s in whole)
    assert await mock.calls() == 1 and len(dac.turns()) == 1


async def test_every_worker_dies_in_turn_under_load(dac, mock):
    """Clients see answers or clear ends, never a hang; afterwards all is as before."""
    dac.allow_log.append(r"worker|signal")
    thread = await dac.thread()
    stop = False

    async def client(i):
        seen = {"done": 0, "error": 0, "cut": 0}
        n = 0
        while not stop:
            n += 1
            try:
                async with asyncio.timeout(20):
                    s = await dac.open_ask(thread, say(f"kumquat {i % 5} {n}", tokens=20, gap="5ms"))
                    if s.status != 200:
                        assert s.status == 503, s.status
                        await s.body()
                        continue
                    await s.rest()
            except ConnectionError:
                seen["cut"] += 1
                continue
            seen["done" if s.named("done") else "error" if s.named("error") else "cut"] += 1
        return seen

    clients = [asyncio.create_task(client(i)) for i in range(20)]
    for victim in dac.workers():
        await asyncio.sleep(0.5)
        os.kill(victim, signal.SIGKILL)
    await asyncio.sleep(1)
    stop = True
    seen = await gather(*clients)
    assert sum(s["done"] for s in seen) > 50
    question = say("the last kumquat", tokens=5)
    assert (await dac.ask_stream(thread, question)).text == await mock.text(question)
    await mock.wait(active=0)
