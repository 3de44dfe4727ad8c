"""Ten thousand chunks reach everyone whole: nobody is dropped or hung, a slow reader slows
nobody else, and the provider's stream is not held up by it."""

import asyncio
import time

import pytest

from lib.asks import gather, of_json, of_stream
from lib.provider import say


async def read_slowly(stream, every, pause):
    """Takes `every` events, then sleeps, until the end."""
    n = 0
    while await stream.next() is not None:
        n += 1
        if n % every == 0:
            await asyncio.sleep(pause)
    stream.close()
    return stream


@pytest.mark.smoke
@pytest.mark.limit(100)
async def test_ten_thousand_chunks(dac, mock):
    thread = await dac.thread()
    question = say(tokens=10000, token_size=20)
    asks = [dac.ask_stream(thread, question) for _ in range(5)]
    *streams, whole = await gather(*asks, dac.ask_json(thread, question))
    text = await mock.text(question)
    assert len(text) == 200_000
    assert all(of_stream(s).text == text for s in streams)
    assert of_json(whole).text == text
    assert await mock.calls() == 1


@pytest.mark.limit(100)
async def test_a_slow_reader_gets_all_and_slows_nobody(dac, mock):
    """4 MB of text, more than the kernel keeps for a connection: the slow one lags in the log."""
    thread = await dac.thread()
    question = say(tokens=10000, token_size=400, barrier="go")
    small = {"rcvbuf": 4096, "limit": 4096}
    slow = [await dac.open_ask(thread, question, wire_options=small) for _ in range(2)]
    fast = [await dac.open_ask(thread, question) for _ in range(3)]
    for s in [*slow, *fast]:
        await s.until("meta")
    began = time.monotonic()
    await mock.open("go")
    answers = [of_stream(s) for s in await gather(*[s.rest() for s in fast])]
    took = time.monotonic() - began
    assert (await mock.stats())["completed"] == 1
    assert all(s.complete is None for s in slow)
    text = await mock.text(question)
    assert all(a.text == text for a in answers)
    late = await gather(*[read_slowly(s, 200, 0.02) for s in slow])
    assert all(of_stream(s).text == text for s in late)
    assert took < 20, f"the fast readers took {took:.1f} s"
    assert await mock.calls() == 1


async def test_a_reader_that_takes_nothing_is_cut_off_and_the_others_go_on(make_dac, mock):
    dac = make_dac({"server": {"client_stall_timeout": "1s"}})
    thread = await dac.thread()
    question = say(tokens=12000, token_size=500)
    stuck = await dac.open_ask(thread, question, wire_options={"rcvbuf": 4096, "limit": 4096})
    s = await dac.ask_stream(thread, question)
    assert of_stream(s).text == await mock.text(question)
    await asyncio.sleep(2.5)
    try:
        async with asyncio.timeout(20):
            while await stuck.next() is not None:
                pass
    except ConnectionResetError:
        stuck.complete = False
    assert stuck.complete is False and not stuck.named("done")
    assert (await dac.get("/livez")).status == 200
