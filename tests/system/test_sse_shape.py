"""The native event stream: order of events, ids, headers, one line of JSON, comment pings."""

import asyncio

import pytest

from lib.dacd import STORED
from lib.provider import say


@pytest.mark.smoke
async def test_events_ids_and_headers(dac, mock):
    thread = await dac.thread()
    question = say(tokens=12, utf8=True, gap="5ms")
    s = await dac.ask_stream(thread, question, headers={"accept-encoding": "gzip, br"})
    assert s.status == 200
    assert s.head.get("content-type") == "text/event-stream"
    assert s.head.get("cache-control") == "no-cache, no-transform"
    assert s.head.get("x-accel-buffering") == "no"
    assert s.head.get("content-encoding") is None
    assert s.head.get("transfer-encoding") == "chunked"
    assert s.names() == ["ping", "meta", "first_token", "delta", "done"]
    meta = s.one("meta").data
    assert set(meta) >= {"turn_id", "role", "provider", "model"}
    assert (meta["role"], meta["provider"], meta["model"]) == ("leader", "perplexity", "m-1")
    assert set(s.one("first_token").data) >= {"ttft_ms", "queue_wait_ms"}
    done = s.one("done").data
    assert set(done) >= {"finish_reason", "usage", "timing", "stored"}
    assert done["finish_reason"] == "stop" and done["stored"] == STORED
    assert done["usage"]["completion_tokens"] == 12
    count = 0
    for e in s.events:
        assert e.name is not None and isinstance(e.data, dict), e
        if e.name == "delta":
            assert set(e.data) == {"text"} and e.data["text"]
            count += len(e.data["text"].encode())
        generation, _, offset = e.id.partition("-")
        assert (int(generation), int(offset)) == (0, count), f"{e} after {count} bytes"
    assert count == len((await mock.text(question)).encode())


@pytest.mark.smoke
@pytest.mark.parametrize("how", ["route", "member", "accept"])
async def test_three_ways_to_ask_for_a_stream(dac, mock, how):
    """Each is enough, also where the body says false."""
    thread = await dac.thread()
    path = f"/api/threads/{thread}/messages" + ("/stream" if how == "route" else "")
    body = dac.question(say(tokens=3), stream=how == "member")
    headers = {"accept": "text/event-stream"} if how == "accept" else {}
    s = await dac.stream(path, body, headers)
    assert s.head.get("content-type") == "text/event-stream"
    await s.rest()
    assert s.names() == ["ping", "meta", "first_token", "delta", "done"]


@pytest.mark.smoke
async def test_ping_and_meta_come_before_queue_and_upstream(make_dac, mock):
    dac = make_dac({"provider perplexity": {"concurrency": 1}})
    thread = await dac.thread()
    first = await dac.open_ask(thread, say("first kumquat", tokens=3, barrier="hold@1"))
    await first.until("delta")
    queued = await dac.open_ask(thread, say("second kumquat", tokens=3))
    ping = await queued.until("ping", timeout=2)
    await queued.until("meta", timeout=2)
    assert ping.at - queued.started < 0.2
    assert await mock.calls() == 1
    await mock.open("hold")
    await first.rest()
    await queued.rest()
    assert [n for n in queued.names() if n != "queued"] == [
        "ping", "meta", "first_token", "delta", "done",
    ]  # fmt: skip


async def test_ping_comes_only_after_validation_and_the_threads_lookup(dac, mock):
    thread = await dac.thread()
    bad = await dac.open_ask(thread, "")
    assert bad.status == 400 and b"event:" not in await bad.body()
    missing = await dac.open_ask("018f0000-0000-7000-8000-000000000001", say())
    assert missing.status == 404 and b"event:" not in await missing.body()


@pytest.mark.smoke
async def test_text_with_line_ends_and_odd_characters(dac, mock):
    thread = await dac.thread()
    text = 'a\nb\r\nc\rd "quoted" \\ back \t tab — ☃ 😀 data: x\n\nevent: done\n\n'
    s = await dac.ask_stream(thread, say(text=text, token_size=5))
    assert s.text == text
    assert s.names() == ["ping", "meta", "first_token", "delta", "done"]


@pytest.mark.smoke
async def test_citations_and_reasoning(dac, mock):
    thread = await dac.thread()
    s = await dac.ask_stream(thread, say(tokens=4, citations=2, reasoning=2))
    found = s.named("citations")
    assert found and len(found[-1].data["citations"]) == 2
    assert len(found) == 1, "told when they change, not with each chunk"
    assert s.names()[-1] == "done"


async def test_citations_of_a_late_joiner(dac, mock):
    thread = await dac.thread()
    question = say(tokens=4, citations=2)
    await dac.ask_stream(thread, question)
    s = await dac.ask_stream(thread, question)
    assert len(s.one("citations").data["citations"]) == 2


async def test_an_answer_without_text(dac, mock):
    """finish_reason without content is an end, if an odd one; it is no success with a text."""
    thread = await dac.thread()
    s = await dac.ask_stream(thread, say(tokens=0))
    assert s.text == "" and s.names()[-1] in ("done", "error")


@pytest.mark.limit(60)
async def test_comment_pings_in_silence(make_dac, mock):
    """Every 15 s, in both dialects, once the stream runs."""
    dac = make_dac({"provider perplexity": {"stall_timeout": "60s"}})
    thread = await dac.thread()
    question = say(tokens=3, barrier="hold@1")
    native = await dac.open_ask(thread, question)
    chat = await dac.open_chat(question)

    async def comments(s):
        got = []
        async with asyncio.timeout(40):
            while len(got) < 2:
                e = await s.next()
                if e.name is None and isinstance(e.data, str):
                    got.append(e.at)
        return got

    for times in await asyncio.gather(comments(native), comments(chat)):
        assert 14 <= times[1] - times[0] <= 16.5
    await mock.open("hold")
    await asyncio.gather(native.rest(), chat.rest())
    assert native.text == chat.chat_text == await mock.text(question)
