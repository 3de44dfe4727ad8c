"""The stored turn says which worker called the provider, at last if several did."""

import asyncio
import os
import signal

from lib.provider import say
from lib.service import fetcher_of


def title(dac, pid):
    return dac.processes()[pid].removeprefix("dacd: ")


async def test_the_worker_that_called(dac, mock):
    thread = await dac.thread()
    question = say(tokens=4, barrier="go@2")
    stream = await dac.open_ask(thread, question)
    await mock.wait(waiting=1, barrier="go")
    who = title(dac, fetcher_of(dac))
    await mock.open("go")
    await stream.rest()
    (turn,) = dac.audit()
    assert turn["fetcher"] == who and who.startswith("worker ")


async def test_the_one_that_took_over(dac, mock):
    dac.allow_log.append(r"worker|signal")
    thread = await dac.thread()
    question = say(tokens=4, barrier="go@2")
    streams = [await dac.open_ask(thread, question) for _ in range(16)]
    for s in streams:
        await s.until("delta")
    first = fetcher_of(dac)
    name = title(dac, first)
    os.kill(first, signal.SIGKILL)
    await mock.wait(calls=2)
    await mock.wait(waiting=1, barrier="go")
    second = title(dac, fetcher_of(dac))
    await mock.open("go")
    await asyncio.gather(*[s.rest() for s in streams], return_exceptions=True)
    (turn,) = await dac.stored_turns(1)
    assert (turn["generation"], turn["fetcher"]) == (1, second)
    assert second != name


async def test_nobody_where_there_was_no_call(make_dac, mock):
    """A flight that waited for the rate limit until its client left."""
    dac = make_dac({"provider perplexity": {"concurrency": 1}})
    held = await dac.open_ask(await dac.thread(), say("Kumquat 1?", tokens=2, barrier="go"))
    await mock.wait(waiting=1, barrier="go")
    waiting = await dac.open_ask(await dac.thread(), say("Kumquat 2?", tokens=2))
    await waiting.until("meta")
    waiting.close()
    (turn,) = await dac.stored_turns(1)
    assert (turn["status"], turn["fetcher"]) == ("cancelled", None)
    await mock.open("go")
    await held.rest()
