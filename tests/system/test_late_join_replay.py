"""A client that joins at any moment gets everything from byte 0 and then the live rest."""

import asyncio

import pytest

from lib.asks import ask, gather, of_json, of_stream
from lib.provider import say


async def text_of(stream, n):
    """Reads until n bytes of text have come."""
    while len(stream.text.encode()) < n:
        await stream.until("delta")


@pytest.mark.smoke
@pytest.mark.parametrize("at", [0, 1, 10, 20])
async def test_joining_before_within_and_behind_the_tokens(dac, mock, at):
    """The provider holds before token `at` of 20; at 20 all tokens are out, the end is not."""
    thread = await dac.thread()
    question = say(tokens=20, token_size=32, utf8=True, barrier=f"hold@{at}")
    leader = await dac.open_ask(thread, question)
    await mock.wait(waiting=1)
    await text_of(leader, 32 * at)
    followers = [await dac.open_ask(thread, question) for _ in range(8)]
    waiting = asyncio.create_task(dac.ask_json(thread, question))
    for f in followers:
        await f.until("meta")
        assert f.one("meta").data["role"] == "follower"
        await text_of(f, 32 * at)  # the replay comes while the provider is silent
    await mock.open("hold")
    answers = [of_stream(await s.rest()) for s in [leader, *followers]] + [of_json(await waiting)]
    assert {a.text for a in answers} == {await mock.text(question)}
    assert await mock.calls() == 1
    assert len(dac.messages(thread)) == 2


@pytest.mark.smoke
async def test_joining_after_the_end_replays_the_whole(dac, mock):
    thread = await dac.thread()
    question = say(tokens=20, utf8=True)
    first = await ask(dac, thread, question, "stream")
    for kind in ["stream", "json", "stream"]:
        late = await ask(dac, thread, question, kind)
        assert late.role == "hit"
        assert (late.text, late.turn_id, late.finish) == (first.text, first.turn_id, "stop")
    assert await mock.calls() == 1


async def test_joining_all_along_an_answer(dac, mock):
    """Sixty clients, one every 10 ms, on an answer that takes half a second."""
    thread = await dac.thread()
    question = say(tokens=100, gap="5ms", utf8=True)

    async def late(i):
        await asyncio.sleep(i / 100)
        return await ask(dac, thread, question, ("stream", "json")[i % 3 == 2])

    answers = await gather(*[late(i) for i in range(60)])
    assert {a.text for a in answers} == {await mock.text(question)}
    assert {a.role for a in answers} == {"leader", "follower", "hit"}
    assert await mock.calls() == 1


async def test_a_finished_answer_is_kept_for_the_ttl_only(make_dac, mock):
    dac = make_dac({"flight": {"result_ttl": "1s"}})
    thread = await dac.thread()
    question = say(tokens=2)
    assert (await ask(dac, thread, question, "json")).role == "leader"
    assert (await ask(dac, thread, question, "json")).role == "hit"
    await asyncio.sleep(1.2)
    assert (await ask(dac, thread, question, "json")).role == "leader"
    assert await mock.calls() == 2


async def test_stateless_chat_shares_only_what_runs(dac, mock):
    question = say(tokens=2)
    await dac.chat(question)
    await dac.chat(question)
    assert await mock.calls() == 2
