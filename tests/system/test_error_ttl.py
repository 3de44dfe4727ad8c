"""A failed flight answers newcomers for error_ttl, after which exactly one leads."""

import asyncio

import pytest

from lib.asks import gather
from lib.provider import say

CONFIG = {
    "flight": {"error_ttl": "1s"},
    "provider perplexity": {"retry_deadline": "0s"},
}


@pytest.mark.smoke
async def test_newcomers_share_the_failure(make_dac, mock):
    dac = make_dac(CONFIG)
    thread = await dac.thread()
    await mock.script("status=500")
    question = say(tokens=5)
    first = await dac.ask_json(thread, question)
    assert first.status == 502
    shared = await gather(*[dac.ask_json(thread, question) for _ in range(20)])
    assert {r.status for r in shared} == {502}
    assert {r.json()["code"] for r in shared} == {first.json()["code"]}
    s = await dac.ask_stream(thread, question)
    assert s.one("error").data["code"] == first.json()["code"]
    assert await mock.calls() == 1
    assert len(await dac.stored_turns(1)) == 1


@pytest.mark.smoke
async def test_afterwards_exactly_one_leads(make_dac, mock):
    dac = make_dac(CONFIG)
    thread = await dac.thread()
    await mock.script("status=500")
    question = say(tokens=5, ttft="100ms")
    assert (await dac.ask_json(thread, question)).status == 502
    await asyncio.sleep(1.2)
    again = await gather(*[dac.ask_json(thread, question) for _ in range(30)])
    assert {r.status for r in again} == {200}
    assert sorted(r.json()["coalesce"] for r in again) == ["follower"] * 29 + ["leader"]
    assert await mock.calls() == 2


async def test_a_second_failure_is_again_one_call(make_dac, mock):
    dac = make_dac(CONFIG)
    thread = await dac.thread()
    question = say(status=503, ttft="100ms")
    for calls in (1, 2, 3):
        answers = await gather(*[dac.ask_json(thread, question) for _ in range(20)])
        assert {r.status for r in answers} == {503}
        assert await mock.calls() == calls
        await asyncio.sleep(1.2)


async def test_chat_shares_failures_too(make_dac, mock):
    dac = make_dac(CONFIG)
    await mock.script("status=500")
    question = say(tokens=5)
    assert (await dac.chat(question)).status == 502
    assert (await dac.chat(question)).status == 502
    assert await mock.calls() == 1
    await asyncio.sleep(1.2)
    assert (await dac.chat(question)).status == 200
