"""POST /api/turns/{id}/cancel: the provider is told, every listener hears the end, the partial
answer is stored, and it may be said any number of times."""

import asyncio
import time

import pytest

from lib.asks import gather, until
from lib.provider import say


async def cancel(dac, turn, **kw):
    r = await dac.post(f"/api/turns/{turn}/cancel", **kw)
    assert r.status == 200, r.text
    d = r.json()
    assert set(d) == {"turn_id", "status"} and d["turn_id"] == turn
    return d["status"]


@pytest.mark.smoke
@pytest.mark.parametrize("at", [0, 4])
async def test_everyone_hears_of_it(dac, mock, at):
    thread = await dac.thread()
    question = say(tokens=10, token_size=16, barrier=f"hold@{at}")
    streams = [await dac.open_ask(thread, question) for _ in range(8)]
    waiting = [asyncio.create_task(dac.ask_json(thread, question)) for _ in range(4)]
    for s in streams:
        await s.until("meta")
        while len(s.text) < 16 * at:
            await s.until("delta")
    await asyncio.sleep(0.1)
    turn = streams[0].one("meta").data["turn_id"]
    said = time.monotonic()
    assert await cancel(dac, turn) == "cancelled"
    await mock.wait(active=0, timeout="3s")
    (gone,) = await mock.gone_at()
    assert gone - said < 0.3
    partial = (await mock.text(question))[: 16 * at]
    for s in await gather(*[s.rest() for s in streams]):
        assert s.complete and not s.named("error")
        assert s.one("done").data["finish_reason"] == "cancelled"
        assert s.text == partial
    for w in waiting:
        r = await w
        assert r.status == 200 and r.json()["status"] == "cancelled"
        assert (r.json()["assistant_message"] or {}).get("content", "") == partial
    (row,) = dac.turns()
    assert row["status"] == "cancelled"
    text = "".join(m["content"] for m in dac.messages(thread) if m["role"] == "assistant")
    assert text == partial


@pytest.mark.smoke
async def test_again_and_again(dac, mock):
    thread = await dac.thread()
    s = await dac.open_ask(thread, say(tokens=10, barrier="hold@4"))
    turn = (await s.until("meta")).data["turn_id"]
    await s.until("delta")
    answers = await gather(*[cancel(dac, turn) for _ in range(10)])
    assert set(answers) == {"cancelled"}
    await s.rest()
    assert await cancel(dac, turn) == "cancelled"
    assert len(dac.turns()) == 1
    dac.stop()
    dac.start()
    assert await cancel(dac, turn) == "cancelled"


async def test_what_is_over_stays_as_it_is(dac, mock):
    thread = await dac.thread()
    turn = (await dac.ask_json(thread, say(tokens=3))).json()["turn_id"]
    assert await cancel(dac, turn) == "complete"
    assert (await dac.ask_json(thread, say(tokens=3))).json()["coalesce"] == "hit"


async def test_a_late_stop_does_not_hit_the_newer_turn(dac, mock):
    thread = await dac.thread()
    question = say(tokens=10, barrier="hold@2")
    s = await dac.open_ask(thread, question)
    old = (await s.until("meta")).data["turn_id"]
    await cancel(dac, old)
    await s.rest()
    s = await dac.open_ask(thread, question)
    assert (await s.until("meta")).data["role"] == "leader"
    assert await cancel(dac, old) == "cancelled"
    await mock.open("hold")
    await s.rest()
    assert s.one("done").data["finish_reason"] == "stop"
    assert s.text == await mock.text(question)


async def test_in_the_queue(make_dac, mock):
    dac = make_dac({"provider perplexity": {"concurrency": 1}})
    thread = await dac.thread()
    first = await dac.open_ask(thread, say("first kumquat", tokens=3, barrier="hold@1"))
    await first.until("delta")
    second = await dac.open_ask(thread, say("second kumquat", tokens=3))
    turn = (await second.until("meta")).data["turn_id"]
    assert await cancel(dac, turn) == "cancelled"
    await second.rest(timeout=3)
    assert second.one("done").data["finish_reason"] == "cancelled"
    await mock.open("hold")
    await first.rest()
    assert await mock.calls() == 1


async def test_chat_dialect(dac, mock):
    """A stream ends with an error and without [DONE]; an answer in one piece is a 409."""
    question = say(tokens=10, token_size=16, barrier="hold@4")
    s = await dac.open_chat(question)
    waiting = asyncio.create_task(dac.chat(question))
    while len(s.chat_text) < 64:
        assert await s.next() is not None
    await asyncio.sleep(0.1)
    assert await cancel(dac, s.head.get("x-dac-turn-id")) == "cancelled"
    await s.rest()
    assert s.complete and not s.chat_done
    assert s.chunks[-1]["error"]["message"]
    assert (await waiting).status == 409

    async def stored():
        return [t["status"] for t in dac.turns()] == ["cancelled"]

    await until(stored, "the cancelled turn is stored")


@pytest.mark.smoke
async def test_a_turn_is_found_as_soon_as_a_client_knows_its_id(dac, mock):
    """Through whichever worker, right behind `meta`."""
    thread = await dac.thread()
    for i in range(40):
        s = await dac.open_ask(thread, say(f"kumquat {i}", tokens=3, barrier="never"))
        turn = (await s.until("meta")).data["turn_id"]
        got = (await dac.get(f"/api/turns/{turn}")) if i % 2 else None
        assert got is None or got.status == 200, f"round {i}: {got.text}"
        assert await cancel(dac, turn) == "cancelled", f"round {i}"
        await s.rest()
        assert s.one("done").data["finish_reason"] == "cancelled"
