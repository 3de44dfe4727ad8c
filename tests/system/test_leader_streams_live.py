"""The leader's own client sees each token when it comes, not at the end."""

import time

import pytest

from lib.provider import say


@pytest.mark.smoke
async def test_the_leader_sees_tokens_while_the_provider_holds_the_rest(dac, mock):
    thread = await dac.thread()
    question = say(tokens=6, token_size=16, barrier="hold@3")
    s = await dac.open_ask(thread, question)
    await mock.wait(waiting=1)
    while len(s.text) < 48:
        await s.until("delta", timeout=2)
    await mock.open("hold")
    await s.rest()
    assert s.text == await mock.text(question)


async def test_the_leader_of_a_chat_sees_tokens_live(dac, mock):
    question = say(tokens=6, token_size=16, barrier="hold@3")
    s = await dac.open_chat(question)
    assert s.status == 200
    while len(s.chat_text) < 48:
        assert await s.next() is not None
    await mock.open("hold")
    await s.rest()
    assert s.chat_text == await mock.text(question)


async def test_tokens_are_not_gathered(dac, mock):
    """Twenty tokens 30 ms apart arrive about 30 ms apart."""
    thread = await dac.thread()
    s = await dac.open_ask(thread, say(tokens=20, gap="30ms"))
    seen = []
    while (event := await s.next()) is not None:
        if event.name == "delta":
            seen.append(event.at)
    assert len(seen) >= 18, f"{len(seen)} deltas for 20 tokens"
    assert seen[-1] - seen[0] > 0.45
    assert max(b - a for a, b in zip(seen, seen[1:], strict=False)) < 0.2
    assert time.monotonic() - seen[-1] < 2
    s.close()
