"""The leader's client may leave without anyone noticing."""

import asyncio

import pytest

from lib.asks import gather, of_json, of_stream
from lib.provider import say


async def lead(dac, thread, question, kind):
    """Opens the leading request without reading it; returns what ends it."""
    if kind == "stream":
        s = await dac.open_ask(thread, question)
        return s
    conn = await dac.connect()
    from lib.wire import encode_request

    await conn.send(
        encode_request(
            "POST", f"/api/threads/{thread}/messages", {"x-org-id": "org_demo"}, dac.question(question)
        )
    )
    return conn


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["stream", "json"])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("at", [0, 3])
async def test_the_others_get_all(dac, mock, kind, how, at):
    thread = await dac.thread()
    question = say(tokens=10, barrier=f"hold@{at}")
    leader = await lead(dac, thread, question, kind)
    await mock.wait(waiting=1)
    followers = [await dac.open_ask(thread, question) for _ in range(6)]
    waiting = [asyncio.create_task(dac.ask_json(thread, question)) for _ in range(2)]
    for f in followers:
        await f.until("meta")
    getattr(leader, how)()
    await asyncio.sleep(0.4)  # longer than any grace for an abandoned flight
    assert (await mock.stats())["client_gone"] == 0
    await mock.open("hold")
    answers = [of_stream(a) for a in await gather(*[f.rest() for f in followers])]
    answers += [of_json(await w) for w in waiting]
    assert {a.text for a in answers} == {await mock.text(question)}
    assert await mock.calls() == 1
    (turn,) = dac.turns()
    assert turn["status"] == "complete"
    assert [m["role"] for m in dac.messages(thread)] == ["user", "assistant"]


async def test_everyone_but_one_leaves_in_turn(dac, mock):
    thread = await dac.thread()
    question = say(tokens=60, gap="10ms")
    streams = [await dac.open_ask(thread, question) for _ in range(20)]
    for s in streams[:-1]:
        await s.until("delta")
        s.reset()
    last = await streams[-1].rest()
    assert last.text == await mock.text(question)
    assert await mock.calls() == 1


async def test_one_who_comes_within_the_grace_keeps_the_call(make_dac, mock):
    dac = make_dac({"flight": {"abandon_grace": "2s"}})
    thread = await dac.thread()
    question = say(tokens=10, barrier="hold@3")
    s = await dac.open_ask(thread, question)
    await s.until("delta")
    s.close()
    await asyncio.sleep(0.5)
    again = await dac.open_ask(thread, question)
    await again.until("meta")
    await mock.open("hold")
    await again.rest()
    assert again.text == await mock.text(question)
    assert await mock.calls() == 1


async def test_a_client_may_ask_for_a_longer_grace(dac, mock):
    thread = await dac.thread()
    question = say(tokens=10, barrier="hold@3")
    s = await dac.open_ask(thread, question, abandon_grace_ms=3000)
    await s.until("delta")
    s.close()
    await asyncio.sleep(1)
    assert (await mock.stats())["client_gone"] == 0
    again = await dac.open_ask(thread, question)
    await mock.open("hold")
    await again.rest()
    assert again.text == await mock.text(question)
    assert await mock.calls() == 1
