"""When the upstream call fails, everyone who listens hears of it, once and clearly, whoever
leads and wherever they are connected."""

import asyncio

import pytest

from lib.asks import gather
from lib.provider import say


def check_error_event(stream, code=None):
    assert stream.complete, "an error is told in a whole stream, not by breaking off"
    assert not stream.named("done")
    error = stream.one("error").data
    assert stream.events[-1].name == "error"
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["retryable"], bool)
    assert error["code"] and (code is None or error["code"] == code)
    return error


@pytest.mark.smoke
async def test_a_failure_before_the_first_token_reaches_all(dac, mock):
    thread = await dac.thread()
    question = say(ttft="400ms", status=500)
    streams = [dac.ask_stream(thread, question) for _ in range(20)]
    waiting = [dac.ask_json(thread, question) for _ in range(20)]
    answers = await gather(*streams, *waiting)
    codes = {check_error_event(s)["code"] for s in answers[:20]}
    assert len(codes) == 1
    for r in answers[20:]:
        assert r.status == 502
        assert r.get("content-type").startswith("application/problem+json")
        d = r.json()
        assert d["status"] == 502 and d["code"] in codes
        assert d["error"]["message"] and d["error"]["type"]
    assert await mock.calls() == 2, "one call and one retry, for all together"
    assert [t["status"] for t in await dac.stored_turns(1)] == ["failed"]


@pytest.mark.smoke
async def test_a_break_in_the_middle_reaches_all(dac, mock):
    thread = await dac.thread()
    question = say(tokens=20, token_size=16, barrier="go", cut=5)
    streams = [await dac.open_ask(thread, question) for _ in range(20)]
    waiting = [asyncio.create_task(dac.ask_json(thread, question)) for _ in range(20)]
    await gather(*[s.until("meta") for s in streams])
    await asyncio.sleep(0.2)
    await mock.open("go")
    partial = (await mock.text(question))[:80]
    for s in await gather(*[s.rest() for s in streams]):
        check_error_event(s)
        assert s.text == partial
    turn = (await dac.stored_turns(1))[0]["id"]
    for w in waiting:
        r = await w
        assert r.status == 502
        assert partial in r.text and turn in r.text
    assert await mock.calls() == 1, "what has been streamed is not asked again"
    (turn,) = await dac.stored_turns(1)
    assert turn["status"] == "incomplete" and turn["error_code"]
    assert [(m["role"], m["content"]) for m in dac.messages(thread)] == [
        ("user", question),
        ("assistant", partial),
    ]


async def test_chat_listeners_hear_of_a_break(dac, mock):
    question = say(tokens=20, token_size=16, barrier="go@2", cut=5)
    streams = [await dac.open_chat(question) for _ in range(10)]
    waiting = [asyncio.create_task(dac.chat(question)) for _ in range(10)]
    await asyncio.sleep(0.2)
    await mock.open("go")
    partial = (await mock.text(question))[:80]
    for s in await gather(*[s.rest() for s in streams]):
        assert s.complete and not s.chat_done
        assert s.chat_text == partial
        assert s.chunks[-1]["error"]["message"]
        assert not any(c.get("finish_reason") for k in s.chunks for c in k.get("choices", []))
    for w in waiting:
        r = await w
        assert r.status == 502 and r.json()["error"]["message"]
    assert await mock.calls() == 1


async def test_the_provider_is_gone(dac, mock):
    thread = await dac.thread()
    mock.stop()
    question = say(tokens=2)
    *streams, whole = await gather(
        *[dac.ask_stream(thread, question) for _ in range(5)], dac.ask_json(thread, question)
    )
    for s in streams:
        check_error_event(s)
    assert whole.status == 502


async def test_a_retry_that_succeeds_is_not_noticed(dac, mock):
    thread = await dac.thread()
    await mock.script("status=503")
    question = say(tokens=5)
    s = await dac.ask_stream(thread, question)
    assert s.text == await mock.text(question) and s.one("done")
    assert await mock.calls() == 2
    assert [t["status"] for t in dac.turns()] == ["complete"]
