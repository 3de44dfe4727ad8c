"""W3C traceparent: taken over from the request that leads, given to the provider where `trace = on`, in
the log, and kept when another worker takes over."""

import asyncio
import json
import os
import re
import signal

import pytest

from lib.asks import gather, until
from lib.provider import Provider, say
from lib.service import dacctl
from test_fetcher_dies import fetcher

ON = {"provider perplexity": {"trace": "on"}}
ID = "4bf92f3577b34da6a3ce929d0e0e4736"
OTHER = "0af7651916cd43dd8448eb211c80319c"
SPAN = "00f067aa0ba902b7"
FORMAT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-(0[01])")


def given(trace=ID, flags="01"):
    return {"traceparent": f"00-{trace}-{SPAN}-{flags}"}


def header(request, name="traceparent"):
    """Of a request that the provider saw; None: it had none."""
    return {k.lower(): v for k, v in request["headers"].items()}.get(name)


async def told(mock):
    """(trace id, span id, flags) of each call, oldest first."""
    return [FORMAT.fullmatch(header(r)).groups() for r in await mock.log("request")]


@pytest.mark.smoke
async def test_the_trace_goes_on_with_a_span_of_its_own(make_dac, mock):
    dac = make_dac(ON)
    thread = await dac.thread()
    await dac.ask_json(thread, say("one", tokens=1), headers=given())
    await dac.ask_stream(thread, say("two", tokens=1), headers={"TraceParent": given(flags="00")["traceparent"]})
    await dac.chat(say("three", tokens=1), headers={**given(flags="ff"), "tracestate": "vendor=secret"})
    await dac.chat_stream(say("four", tokens=1), headers={**given(), "Cache-Control": "no-store"})
    calls = await told(mock)
    assert [(t, f) for t, _, f in calls] == [(ID, "01"), (ID, "00"), (ID, "01"), (ID, "01")]
    spans = {s for _, s, _ in calls}
    assert len(spans) == 4 and SPAN not in spans
    assert not [r for r in await mock.log("request") if header(r, "tracestate")]


@pytest.mark.smoke
async def test_providers_are_told_nothing_by_default(dac, mock):
    thread = await dac.thread()
    headers = {**given(), "tracestate": "vendor=secret"}
    await dac.ask_json(thread, say("one", tokens=1), headers=headers)
    await dac.chat(say("two", tokens=1), headers={**headers, "Cache-Control": "no-store"})
    seen = await mock.log("request")
    assert len(seen) == 2
    assert ID not in json.dumps(seen) and not [r for r in seen if header(r) or header(r, "tracestate")]


async def test_what_is_malformed_or_missing_is_a_new_trace(make_dac, mock):
    dac = make_dac(ON)
    good = given()["traceparent"]
    bad = [None, good.upper(), good + "-00", "ff" + good[2:], good.replace(SPAN, "0" * 16), f"{good}, {good}"]
    for i, value in enumerate(bad):
        r = await dac.chat(say(f"question {i}", tokens=1), headers={"traceparent": value} if value else None)
        assert r.status == 200
    calls = await told(mock)
    assert len({t for t, _, _ in calls} - {ID}) == len(bad)
    assert {f for _, _, f in calls} == {"00"}


async def test_each_try_has_its_own_span(make_dac, mock):
    dac = make_dac(ON)
    await mock.script({"status": 500})
    r = await dac.ask_json(await dac.thread(), say("again", tokens=1), headers=given())
    assert r.status == 200
    (t1, s1, f1), (t2, s2, f2) = await told(mock)
    assert (t1, f1) == (t2, f2) == (ID, "01") and s1 != s2


async def test_followers_do_not_change_it(make_dac, mock):
    dac = make_dac(ON)
    thread = await dac.thread()
    question = say(tokens=2, barrier="hold@1")
    leader = await dac.open_ask(thread, question, headers=given(flags="00"))
    await leader.until("delta")
    followers = [await dac.open_ask(thread, question, headers=given(OTHER)) for _ in range(8)]
    await gather(*[s.until("delta") for s in followers])
    (flight,) = [f for f in dacctl(dac, "flights", "--json")["flights"] if f["kind"] == "turn"]
    assert flight["trace_id"] == ID
    await mock.open("hold")
    await gather(*[s.rest() for s in [leader, *followers]])
    assert [(t, f) for t, _, f in await told(mock)] == [(ID, "00")]


@pytest.mark.smoke
async def test_a_takeover_keeps_the_trace(make_dac, mock):
    dac = make_dac(ON)
    dac.allow_log.append(r"worker|signal")
    thread = await dac.thread()
    question = say(tokens=4, barrier="hold@0")
    leader = asyncio.create_task(dac.ask_json(thread, question, headers=given()))
    await mock.wait(waiting=1)
    others = [await dac.open_ask(thread, question, headers=given(OTHER, "00")) for _ in range(16)]
    await gather(*[s.until("meta") for s in others])
    os.kill(fetcher(dac, mock), signal.SIGKILL)
    await mock.wait(calls=2, waiting=1)
    await mock.open("hold")
    ended = await gather(*[s.rest() for s in others])
    await asyncio.gather(leader, return_exceptions=True)
    assert any(s.complete for s in ended)
    (t1, s1, f1), (t2, s2, f2) = await told(mock)
    assert (t1, f1) == (t2, f2) == (ID, "01") and s1 != s2


async def test_over_http2(make_dac, tmp_path):
    with_tls = Provider(tmp_path / "tls", ["--tls-listen", "127.0.0.1:0", "--self-signed", tmp_path / "certs"])
    with_tls.start()
    try:
        (address,) = re.findall(r"listening https (\S+)", with_tls.log_path.read_text())
        provider = {"base_url": f"https://{address}/v1", "ca_file": tmp_path / "certs" / "ca.pem", "trace": "on"}
        dac = make_dac({"provider perplexity": provider}, provider=with_tls)
        thread = await dac.thread()
        await gather(*[dac.ask_json(thread, say(f"{i}", tokens=1), headers=given()) for i in range(4)])
        calls = await told(with_tls)
        assert {(t, f) for t, _, f in calls} == {(ID, "01")} and len({s for _, s, _ in calls}) == 4
        assert {r["http"] for r in await with_tls.log("request")} == {"2"}
        dac.stop()
    finally:
        with_tls.stop()


async def test_a_reload_turns_it_on(dac, mock):
    await dac.chat(say("one", tokens=1), headers=given())
    dac.sections["provider perplexity"]["trace"] = "on"
    dac.reload()

    async def is_told():
        await dac.chat(say("two", tokens=1), headers=given())
        return header((await mock.log("request"))[-1]) is not None

    await until(is_told, "the new workers tell the provider")
    assert header((await mock.log("request"))[0]) is None


# --- in the log ---


def lines(dac, **about):
    """Lines as JSON that say this."""
    all_lines = [json.loads(line) for line in dac.log.splitlines() if line.startswith("{")]
    return [o for o in all_lines if all(o.get(k) == v for k, v in about.items())]


async def line(dac, **about):
    async def is_there():
        return lines(dac, **about)

    await until(is_there, f"a line about {about}")
    return lines(dac, **about)[0]


@pytest.fixture
def logging(make_dac, mock):
    return make_dac({**ON, "server": {"log_requests": "all", "log_format": "json"}})


@pytest.mark.smoke
async def test_a_request_s_line_has_its_own_trace(logging, mock):
    dac = logging
    thread = await dac.thread()
    question = say(tokens=2, barrier="hold@1")
    leader = await dac.open_ask(thread, question, headers={**given(), "x-request-id": "lead"})
    await leader.until("delta")
    follower = await dac.open_ask(thread, question, headers={**given(OTHER), "x-request-id": "follow"})
    await follower.until("delta")
    await mock.open("hold")
    await gather(leader.rest(), follower.rest())
    lead, follow = await line(dac, request="lead"), await line(dac, request="follow")
    assert (lead["role"], lead["trace"], follow["role"], follow["trace"]) == ("leader", ID, "follower", OTHER)
    assert lead["turn"] == follow["turn"]


async def test_a_trace_of_our_own_is_logged_too(logging, mock):
    for name, headers in {"none": {}, "bad": {"traceparent": given()["traceparent"].upper()}}.items():
        await logging.chat(say(name, tokens=1), headers={**headers, "x-request-id": name})
        (trace, _, _) = (await told(mock))[-1]
        assert (await line(logging, request=name))["trace"] == trace != ID
    await logging.get("/livez", headers={"x-request-id": "look"})
    assert "trace" not in await line(logging, request="look")


async def test_a_flight_s_lines_have_its_leader_s_trace(logging, mock):
    dac = logging
    dac.allow_log.append(r"worker|signal|provider")
    await mock.script({"status": 500}, {"tokens": 4, "barrier": "hold@0"}, {"tokens": 4, "barrier": "hold@0"})
    thread = await dac.thread()
    leader = asyncio.create_task(dac.ask_json(thread, "Kumquat?", headers=given()))
    await mock.wait(waiting=1)
    others = [await dac.open_ask(thread, "Kumquat?", headers=given(OTHER)) for _ in range(16)]
    await gather(*[s.until("meta") for s in others])
    os.kill(fetcher(dac, mock), signal.SIGKILL)
    await mock.wait(calls=3, waiting=1)
    await mock.open("hold")
    await gather(*[s.rest() for s in others])
    await asyncio.gather(leader, return_exceptions=True)
    about = [o for o in lines(dac, trace=ID) if "route" not in o]
    assert [o for o in about if "status 500" in o["message"]] and [o for o in about if "taken over" in o["message"]]
    assert not [o for o in lines(dac, trace=OTHER) if "route" not in o]
