"""The order in which an operator switches things off when something is wrong, each step live, with
streams running: fan-out, coalescing, a tighter pacer, and clients that do not stream. docs/runbook.md
says when; here is that each step does what it says, at once, and breaks nobody."""

import asyncio

import pytest

from lib.asks import ask, gather
from lib.dacd import STORED
from lib.provider import say


class Steps:
    def __init__(self, dac):
        self.dac = dac
        self.flags = {}

    def set(self, **flags):
        """Writes the env file and sends SIGHUP, as the page says."""
        self.flags.update(flags)
        self.dac.env_file.write_text("".join(f"{k}={v}\n" for k, v in self.flags.items()))
        log = self.dac.reload()
        assert "values have changed in place" in log, log
        return log


async def crowd(dac, mock, name, n, kind):
    """n who ask the same at once; returns (calls that it took, answers)."""
    before = await mock.calls()
    thread = await dac.thread()
    question = say(f"asked by many, {name}", tokens=4, barrier=name)
    asks = [asyncio.create_task(ask(dac, thread, question, kind)) for _ in range(n)]
    await asyncio.sleep(0.4)
    await mock.open(name)
    answers = await gather(*asks)
    return await mock.calls() - before, answers


@pytest.mark.smoke
async def test_each_step_takes_effect_at_once_and_breaks_nobody(dac, mock):
    workers = dac.workers()
    steps = Steps(dac)
    question = say("running all the time", tokens=12, barrier="held@5")
    thread = await dac.thread()
    held = [await dac.open_ask(thread, question) for _ in range(5)]
    for s in held:
        await s.until("delta")
    assert (await crowd(dac, mock, "before", 6, "stream"))[0] == 1

    # 1: every streaming client has a call of its own; those that do not stream still share.
    steps.set(STREAM_FANOUT_ENABLED=0)
    assert (await crowd(dac, mock, "one", 6, "stream"))[0] == 6
    assert (await crowd(dac, mock, "one-json", 6, "json"))[0] == 1

    # 2: nobody shares.
    steps.set(COALESCE_ENABLED=0)
    assert (await crowd(dac, mock, "two", 6, "json"))[0] == 6

    # 3: one call at a time; the others wait, and are all answered. The held one has the only permit.
    steps.set(PERPLEXITY_CONCURRENCY=2, PERPLEXITY_RPS=1000, PERPLEXITY_BURST=1000)
    thread3 = await dac.thread()
    waits = [
        asyncio.create_task(ask(dac, thread3, say(f"waits {i}", tokens=3, barrier="three"), "stream"))
        for i in range(4)
    ]
    await mock.wait(waiting=1, barrier="three")
    await asyncio.sleep(0.4)
    assert (await mock.stats())["active"] == 2, "the held one and one more"
    await mock.open("three")
    await gather(*waits)

    # 4: the endpoint that does not stream, with all of that off.
    a = await ask(dac, thread3, say("not streamed", tokens=3), "json")
    assert a.stored == STORED and a.finish == "stop"

    # Who was there before all of it has lost nothing.
    await mock.open("held")
    for s in held:
        await s.rest()
        assert s.text == await mock.text(question)
        assert s.one("done").data["stored"] == STORED

    # And back, the last step first.
    dac.env_file.write_text("")
    dac.reload()
    assert (await crowd(dac, mock, "after", 6, "stream"))[0] == 1
    assert dac.workers() == workers, "nobody was started for any of it"
