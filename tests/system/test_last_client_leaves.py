"""When the last client leaves, the provider sees the call end in less than 300 ms, in every
phase, and what there is of the turn is stored as cancelled."""

import asyncio
import time

import pytest

from lib.asks import gather, until
from lib.provider import say
from lib.wire import encode_request

PHASES = {
    "before the head": dict(ttft="30s", headers="late"),
    "before the first token": dict(tokens=10, barrier="hold@0"),
    "between two tokens": dict(tokens=10, token_size=16, barrier="hold@4"),
    "while tokens flow": dict(tokens=3000, token_size=16, gap="2ms"),
}


async def leave_last(dac, mock, thread, question, kind, how):
    """Two clients come and go one after the other; returns when the last one left."""
    path = f"/api/threads/{thread}/messages" + ("/stream" if kind == "stream" else "")
    conns = []
    for _ in range(2):
        conn = await dac.connect()
        await conn.send(encode_request("POST", path, {"x-org-id": "org_demo"}, dac.question(question)))
        conns.append(conn)
    await mock.wait(active=1)
    await asyncio.sleep(0.15)
    for conn in conns:
        left = time.monotonic()
        getattr(conn, how)()
    return left


@pytest.mark.smoke
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["stream", "json"])
async def test_the_provider_sees_the_end(dac, mock, phase, kind):
    thread = await dac.thread()
    question = say(**PHASES[phase])
    left = await leave_last(dac, mock, thread, question, kind, "close")
    await mock.wait(active=0, timeout="3s")
    (gone,) = await mock.gone_at()
    assert 0 <= gone - left < 0.3, f"after {gone - left:.3f} s"
    assert await mock.calls() == 1
    (turn,) = await dac.stored_turns(1)
    assert turn["status"] == "cancelled"
    text = "".join(m["content"] for m in dac.messages(thread) if m["role"] == "assistant")
    if phase == "between two tokens":
        assert text == (await mock.text(question))[:64]
    elif phase == "while tokens flow":
        assert 0 < len(text) < 48000 and (await mock.text(question)).startswith(text)
    else:
        assert text == ""


async def test_a_reset_connection_counts_as_leaving(dac, mock):
    thread = await dac.thread()
    left = await leave_last(dac, mock, thread, say(tokens=10, barrier="hold@4"), "stream", "reset")
    await mock.wait(active=0, timeout="3s")
    (gone,) = await mock.gone_at()
    assert gone - left < 0.3


async def test_leaving_the_queue_means_that_the_provider_is_never_asked(make_dac, mock):
    dac = make_dac({"provider perplexity": {"concurrency": 1}})
    thread = await dac.thread()
    first = await dac.open_ask(thread, say("first kumquat", tokens=5, barrier="hold@1"))
    await first.until("delta")
    second = await dac.open_ask(thread, say("second kumquat", tokens=5))
    await second.until("meta")
    third = asyncio.create_task(dac.ask_json(thread, say("third kumquat", tokens=5)))
    await asyncio.sleep(0.1)
    second.close()
    turn = second.one("meta").data["turn_id"]

    async def cancelled():
        return (await dac.get(f"/api/turns/{turn}")).json().get("status") == "cancelled"

    left = time.monotonic()
    await until(cancelled, "the abandoned turn is over", timeout=3)
    assert time.monotonic() - left < 0.5
    await mock.open("hold")
    await first.rest()
    assert (await third).status == 200
    assert await mock.calls() == 2
    assert {r["messages"][-1]["content"][:6] for r in await mock.requests()} == {"first ", "third "}


async def test_fifty_leave_at_once(dac, mock):
    thread = await dac.thread()
    question = say(tokens=3000, gap="2ms")
    streams = await gather(*[dac.open_ask(thread, question) for _ in range(50)])
    await gather(*[s.until("delta") for s in streams])
    left = time.monotonic()
    for s in streams:
        s.close()
    await mock.wait(active=0, timeout="3s")
    (gone,) = await mock.gone_at()
    assert gone - left < 0.3, f"after {gone - left:.3f} s"


async def test_a_stateless_chat_ends_too(dac, mock):
    for stream in [True, False]:
        conn = await dac.connect()
        body = dac.chat_question(say(f"kumquat {stream}", tokens=5, barrier="hold@2"), stream=stream)
        await conn.send(encode_request("POST", "/v1/chat/completions", None, body))
        await mock.wait(active=1)
        await asyncio.sleep(0.1)
        left = time.monotonic()
        conn.close()
        await mock.wait(active=0, timeout="3s")
        assert (await mock.gone_at())[-1] - left < 0.3


async def test_the_same_question_afterwards_is_a_new_call(dac, mock):
    thread = await dac.thread()
    question = say(tokens=5, barrier="hold@2")
    s = await dac.open_ask(thread, question)
    await s.until("delta")
    s.close()
    await mock.wait(active=0)
    await mock.open("hold")
    again = await dac.ask_stream(thread, question)
    assert again.one("meta").data["role"] == "leader"
    assert again.text == await mock.text(question)
    assert await mock.calls() == 2
