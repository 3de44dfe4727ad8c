"""How upstream calls end, and what clients are told: nothing that was cut, stalled or broken
ever looks complete, and errors keep their meaning."""

import asyncio

import pytest

from lib.provider import say

FAST = {
    "provider perplexity": {
        "first_token_timeout": "400ms",
        "stall_timeout": "400ms",
        "retry_deadline": "0s",
    },
    "flight": {"error_ttl": "0s"},
}

# name: (directives, status of the native API, status of /v1)
BEFORE = {
    "400": (dict(status=400), 400, 400),
    "404": (dict(status=404), 404, 404),
    "413": (dict(status=413), 413, 413),
    "422": (dict(status=422), 422, 422),
    "401": (dict(status=401), 502, 401),
    "403": (dict(status=403), 502, 403),
    "429": (dict(status=429, retry_after=1), 429, 429),
    "503": (dict(status=503), 503, 503),
    "529": (dict(status=529), 503, 503),
    "500": (dict(status=500), 502, 502),
    "502": (dict(status=502), 502, 502),
    "504": (dict(status=504), 502, 502),
    "redirect": (dict(redirect="http://127.0.0.1:9/"), 502, 502),
    "wrong type": (dict(wrong_type=True), 502, 502),
    "error object in a 200": (dict(error_event=0), 502, 502),
    "[DONE] without content": (dict(empty=True), 502, 502),
    "nothing, then the end": (dict(cut=0), 502, 502),
    "junk for an answer": (dict(junk=0, cut=0), 502, 502),
    "silence with a head": (dict(stall=0), 504, 504),
    "silence without a head": (dict(ttft="30s", headers="late"), 504, 504),
    "only comments": (dict(ttft="30s", ping="50ms"), 504, 504),
}

AFTER = {
    "cut": dict(cut=3),
    "reset": dict(cut=3, cut_mode="rst"),
    "stall": dict(stall=3),
    "stall with pings": dict(stall=3, ping="50ms"),
    "junk in data": dict(junk=3),
    "junk on the wire": dict(junk=3, junk_kind="raw"),
    "error event": dict(error_event=3),
    "no finish_reason": dict(tokens=3, no_finish=True),
    "no finish_reason, no [DONE]": dict(tokens=3, no_finish=True, no_done=True),
}


@pytest.fixture(params=[pytest.param("mock", id="http1")])
def fast(make_dac, request):
    return make_dac(FAST, workers=2)


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.smoke) if c in ("500", "429") else c for c in BEFORE])
async def test_before_the_first_token(fast, mock, case):
    dac = fast
    directives, native, openai = BEFORE[case]
    thread = await dac.thread()

    r = await dac.ask_json(thread, say("kumquat json", **directives))
    assert r.status == native, r.text
    d = r.json()
    assert d["status"] == native and d["code"] and d["error"]["message"]
    assert "assistant_message" not in d
    if case == "429":
        assert int(r.get("retry-after")) >= 1
        await asyncio.sleep(1.1)  # the pacer's pause
    if case in ("401", "403"):
        assert d["code"] == "provider_auth"

    s = await dac.ask_stream(thread, say("kumquat stream", **directives))
    assert s.complete and not s.named("done", "delta", "first_token")
    assert s.one("error").data["code"] == d["code"]
    if case == "429":
        assert s.one("error").data["retry_after_ms"] > 0
        await asyncio.sleep(1.1)

    r = await dac.chat(say("kumquat chat", **directives))
    assert r.status == openai, r.text
    assert r.json()["error"]["message"]
    if case == "429":
        assert int(r.get("retry-after")) >= 1
        await asyncio.sleep(1.1)

    s = await dac.open_chat(say("kumquat chat stream", **directives))
    assert s.status == openai
    assert b"[DONE]" not in await s.body()

    turns = await dac.stored_turns(4)
    assert {t["status"] for t in turns} == {"failed"}
    assert all(t["error_code"] for t in turns)
    assert {m["role"] for m in dac.messages()} == {"user"}
    assert await mock.calls() == 4


async def test_a_finish_reason_and_a_clean_end_are_an_end(fast, mock):
    """Some providers leave [DONE] out; with a finish_reason the answer is whole all the same."""
    dac = fast
    asked = say("kumquat without a mark", tokens=3, no_done=True)
    s = await dac.ask_stream(await dac.thread(), asked)
    assert s.one("done").data["finish_reason"] == "stop" and s.text == await mock.text(asked)


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.smoke) if c in ("cut", "stall") else c for c in AFTER])
async def test_after_the_first_token(fast, mock, case):
    dac = fast
    directives = {"tokens": 20, "token_size": 16, **AFTER[case]}
    thread = await dac.thread()
    asked = say("kumquat json", **directives)
    partial = (await mock.text(asked))[:48]

    r = await dac.ask_json(thread, asked)
    assert r.status == 502, r.text
    (turn,) = await dac.stored_turns(1)
    assert turn["id"] in r.text and partial in r.text

    asked = say("kumquat stream", **directives)
    s = await dac.ask_stream(thread, asked)
    assert s.complete and not s.named("done")
    assert s.events[-1].name == "error"
    assert s.text == (await mock.text(asked))[:48]

    r = await dac.chat(say("kumquat chat", **directives))
    assert r.status == 502 and r.json()["error"]["message"]

    asked = say("kumquat chat stream", **directives)
    s = await dac.chat_stream(asked)
    assert s.complete and not s.chat_done
    assert s.chat_text == (await mock.text(asked))[:48]
    assert s.chunks[-1]["error"]["message"]
    assert not any(c.get("finish_reason") for k in s.chunks for c in k.get("choices", []))

    turns = await dac.stored_turns(4)
    assert {t["status"] for t in turns} == {"incomplete"}
    assert all(t["error_code"] for t in turns)
    answers = [m["content"] for m in dac.messages() if m["role"] == "assistant"]
    assert len(answers) == 4 and {len(a) for a in answers} == {48}
    assert await mock.calls() == 4


async def test_a_long_broken_answer_is_told_with_all_of_its_text(fast, mock):
    asked = say("kumquat", tokens=200, token_size=2000, cut=150)
    r = await fast.ask_json(await fast.thread(), asked)
    assert r.status == 502 and r.get("content-type") == "application/problem+json"
    text = r.json()["turn"]["assistant_message"]["content"]
    assert text == (await mock.text(asked))[: 150 * 2000]


@pytest.mark.smoke
@pytest.mark.parametrize(
    "how",
    [
        dict(split=1),
        dict(split=3, eol="crlf"),
        dict(eol="cr"),
        dict(comments=True, ping="5ms", gap="5ms"),
        dict(role="early"),
        dict(role="null"),
        dict(role="none"),
        dict(huge_line=300_000),
        dict(usage="always"),
        dict(headers="late", ttft="50ms"),
        dict(close=True),
        dict(finish="length"),
    ],
    ids=str,
)
async def test_odd_but_good_streams_are_whole(dac, mock, how):
    """Any split of bytes, line ends, comments, huge lines: the text comes out as it went in."""
    thread = await dac.thread()
    question = say(**{"tokens": 12, "utf8": True, **how})
    s = await dac.ask_stream(thread, question)
    assert s.text == await mock.text(question)
    assert s.one("done").data["finish_reason"] == how.get("finish", "stop")
    assert [t["status"] for t in dac.turns()] == ["complete"]


async def test_text_that_cannot_be_stored_is_made_storable(dac, mock):
    """NUL and lone surrogates become U+FFFD, for clients and in the store alike."""
    body = '{"choices":[{"index":0,"delta":{"content":"a\\u0000b\\ud800c"},"finish_reason":null}]}'

    # The mock cannot say this in its own words, so a small provider of this test does.
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        end = '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
            + f"data: {body}\n\ndata: {end}\n\ndata: [DONE]\n\n".encode()
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    dac.stop()
    dac.sections["provider perplexity"]["base_url"] = f"http://127.0.0.1:{port}/v1"
    dac.start()
    thread = await dac.thread()
    s = await dac.ask_stream(thread, say())
    assert s.text == "a\ufffdb\ufffdc"
    assert dac.messages(thread)[-1]["content"] == "a\ufffdb\ufffdc"
    server.close()


async def test_an_answer_that_is_too_long_is_incomplete(make_dac, mock):
    dac = make_dac({"flight": {"flight_max_bytes": "64k"}})
    thread = await dac.thread()
    question = say(tokens=1000, token_size=200, gap="1ms")
    s = await dac.ask_stream(thread, question)
    assert s.one("error").data["code"] == "answer_too_large"
    text = await mock.text(question)
    assert 0 < len(s.text) <= 65536 and text.startswith(s.text)
    await mock.wait(active=0)
    assert (await mock.stats())["client_gone"] == 1
    assert [t["status"] for t in await dac.stored_turns(1)] == ["incomplete"]
