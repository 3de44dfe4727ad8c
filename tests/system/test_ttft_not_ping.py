"""TTFT is measured to the first content: not to the ping, not to the provider's head, its role
chunk, its comments or its reasoning."""

import asyncio

import pytest

from lib.provider import say

NOISE = {
    "nothing": {},
    "role chunk early": dict(role="early"),
    "comments": dict(ping="20ms"),
    "head late": dict(headers="late"),
}


@pytest.mark.smoke
@pytest.mark.parametrize("noise", NOISE)
async def test_ttft_is_the_first_content(dac, mock, noise):
    thread = await dac.thread()
    s = await dac.ask_stream(thread, say(tokens=5, ttft="500ms", **NOISE[noise]))
    ping, first = s.one("ping"), s.one("first_token")
    assert ping.at - s.started < 0.25, "the ping waits for nothing"
    assert 480 <= first.data["ttft_ms"] < 900
    assert abs(first.data["ttft_ms"] / 1000 - (first.at - s.started)) < 0.2
    assert 480 <= s.one("done").data["timing"]["ttft_ms"] < 900
    p = await dac.performance()
    assert 480 <= p["ttft_ms"]["p50"] < 900 and p["ttft_ms"]["p50"] <= p["latency_ms"]["p50"]
    (turn,) = dac.turns()
    assert 480 <= turn["ttft_ms"] < 900


async def test_reasoning_is_not_content(dac, mock):
    thread = await dac.thread()
    s = await dac.ask_stream(thread, say(tokens=3, reasoning=5, gap="100ms"))
    assert s.one("first_token").data["ttft_ms"] >= 480
    assert s.text == await mock.text(say(tokens=3, reasoning=5, gap="100ms"))


async def test_a_followers_ttft_is_its_own(dac, mock):
    thread = await dac.thread()
    question = say(tokens=5, ttft="800ms")
    leading = asyncio.create_task(dac.ask_stream(thread, question))
    await asyncio.sleep(0.5)
    follower = await dac.ask_stream(thread, question)
    leader = await leading
    assert 780 <= leader.one("first_token").data["ttft_ms"] < 1300
    assert 150 <= follower.one("first_token").data["ttft_ms"] < 700
    hit = await dac.ask_stream(thread, question)
    assert hit.one("first_token").data["ttft_ms"] < 150
    p = await dac.performance()
    assert p["turns"] == 1 and p["ttft_ms"]["max"] >= 780, "in metrics it is the turn's"


async def test_a_turn_without_content_has_no_ttft(make_dac, mock):
    dac = make_dac({"provider perplexity": {"retry_deadline": "0s"}})
    thread = await dac.thread()
    assert (await dac.ask_json(thread, say(ttft="200ms", status=500))).status == 502
    (turn,) = await dac.stored_turns(1)
    assert turn["ttft_ms"] is None and turn["latency_ms"] >= 190
    p = await dac.performance()
    assert p["turns"] == 1 and p["error_rate"] == 1
