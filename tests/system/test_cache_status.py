"""Cache-Status (RFC 9211) on every answer from a flight."""

import asyncio
import re

import pytest

from lib.asks import gather
from lib.provider import say


@pytest.mark.smoke
async def test_in_a_thread(dac, mock):
    thread = await dac.thread()
    question = say(tokens=4, barrier="go@1")
    leader = await dac.open_ask(thread, question)
    assert leader.head.get("cache-status") == "dac; fwd=miss"
    follower = await dac.open_ask(thread, question)
    assert follower.head.get("cache-status") == "dac; fwd=miss; collapsed"
    waiting = asyncio.create_task(dac.ask_json(thread, question))
    await asyncio.sleep(0.1)
    await mock.open("go")
    await gather(leader.rest(), follower.rest())
    assert (await waiting).get("cache-status") == "dac; fwd=miss; collapsed"
    hit = await dac.ask_json(thread, question)
    m = re.fullmatch(r"dac; hit; ttl=(\d+)", hit.get("cache-status"))
    assert m and 25 <= int(m[1]) <= 30
    hit = await dac.ask_stream(thread, question)
    assert hit.head.get("cache-status").startswith("dac; hit; ttl=")
    alone = await dac.ask_json(thread, question, headers={"cache-control": "no-store"})
    assert alone.get("cache-status").startswith("dac; fwd=")
    assert "collapsed" not in alone.get("cache-status")


async def test_in_stateless_chat(make_dac, mock):
    dac = make_dac({"flight": {"chat_result_ttl": "10s"}})
    question = say(tokens=4, ttft="300ms")
    one, two = await gather(dac.chat(question), dac.chat_stream(question))
    assert sorted([one.get("cache-status"), two.head.get("cache-status")]) == [
        "dac; fwd=miss",
        "dac; fwd=miss; collapsed",
    ]
    hit = await dac.chat(question)
    assert re.fullmatch(r"dac; hit; ttl=([0-9]|10)", hit.get("cache-status"))


async def test_on_failures_too(dac, mock):
    thread = await dac.thread()
    question = say(status=400)
    assert (await dac.ask_json(thread, question)).get("cache-status") == "dac; fwd=miss"
    again = await dac.ask_json(thread, question)
    assert again.status == 400 and again.get("cache-status").startswith("dac; hit")
