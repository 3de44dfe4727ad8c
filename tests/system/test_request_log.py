"""Each request has an id, which its answer says; `log_requests` tells how each one ended, with
that id, the turn and the org."""

import asyncio
import json
import os
import re
import signal

import pytest

from lib import procs
from lib.asks import gather, until
from lib.dacd import ABOUT, FIELDS
from lib.provider import say
from lib.wire import encode_request

MADE = re.compile(r"[0-9a-f]{32}")


def told(dac, **about):
    """The lines about requests, of those that say this."""
    lines = [json.loads(line) for line in dac.log.splitlines() if line.startswith("{")]
    return [o for o in lines if "route" in o and all(o.get(k) == v for k, v in about.items())]


async def one(dac, **about):
    await until(lambda: _found(dac, about), f"a line about {about}")
    (line,) = told(dac, **about)
    return line


async def _found(dac, about):
    return told(dac, **about)


def id_of(r):
    return r.get("x-request-id")


@pytest.fixture
def all_told(make_dac, mock):
    return make_dac({"server": {"log_requests": "all", "log_format": "json"}}, workers=2)


# --- ids ---


@pytest.mark.smoke
async def test_an_id_is_taken_over_or_made(dac, mock):
    for mine in ("r-1", "a", "A.b_c:D-9", "x" * 128):
        assert id_of(await dac.get("/livez", headers={"x-request-id": mine})) == mine
    made = [id_of(await dac.get("/livez")) for _ in range(20)]
    for bad in ("", " ", "a b", "a,b", 'a"b', "x" * 129, "a/b", "<a>", "é"):
        made.append(id_of(await dac.get("/livez", headers={"x-request-id": bad})))
    assert all(MADE.fullmatch(i) for i in made) and len(set(made)) == len(made)
    conn = await dac.connect()
    twice = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\r\nX-Request-Id: b\r\nConnection: close\r\n\r\n"
    assert MADE.search((await raw_answer(conn, twice)).decode())


async def raw_answer(conn, data):
    await conn.send(data)
    return await conn.reader.read(65536)


async def test_every_answer_says_it(dac, mock):
    mine = {"x-request-id": "mine"}
    thread = await dac.thread()
    answers = [
        await dac.get("/nowhere", headers=mine),
        await dac.request("DELETE", "/livez", headers=mine),
        await dac.request("OPTIONS", "/livez", headers=mine),
        await dac.request("HEAD", "/livez", headers=mine),
        await dac.post("/api/threads/", {"x": 1}, headers=mine),
        await dac.post("/v1/chat/completions", b"{", headers=mine),
        await dac.get("/metrics", headers=mine),
        await dac.get("/api/threads/", headers=mine),
        await dac.get(f"/api/threads/{thread}/messages", headers=mine),
        await dac.ask_json(thread, say(tokens=1), headers=mine),
        await dac.ask_json(thread, say(status=500), headers=mine),
        await dac.chat(say(status=429), headers=mine),
    ]
    assert [id_of(r) for r in answers] == ["mine"] * len(answers)
    for s in (
        await dac.open_ask(thread, say("stream", tokens=1), headers=mine),
        await dac.open_chat(say("stream", tokens=1), headers=mine),
    ):
        assert s.head.get("x-request-id") == "mine"
        await s.rest()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A : 1\r\n\r\n",
        b"POST /api/threads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_no_request_gets_one_too(dac, mock, request_bytes):
    head = (await raw_answer(await dac.connect(), request_bytes)).decode()
    assert head.startswith("HTTP/1.1 4") and re.search(r"\r\nX-Request-Id: [0-9a-f]{32}\r\n", head)


async def test_of_followers_is_their_own(dac, mock):
    question = say(tokens=2, barrier="go@1")
    thread = await dac.thread()
    streams = [await dac.open_ask(thread, question, headers={"x-request-id": f"r{i}"}) for i in range(3)]
    await mock.open("go")
    await gather(*[s.rest() for s in streams])
    assert [s.head.get("x-request-id") for s in streams] == ["r0", "r1", "r2"]


# --- lines ---


async def test_a_line_tells_what_became_of_a_request(all_told, mock):
    dac = all_told
    thread = await dac.thread()
    question = say(tokens=3, barrier="go@1")
    traced = {"x-request-id": "lead", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    leader = await dac.open_ask(thread, question, headers=traced)
    await leader.until("delta")
    follower = await dac.open_ask(thread, question, headers={"x-request-id": "follow"})
    await mock.open("go")
    await gather(leader.rest(), follower.rest())
    await dac.ask_json(thread, question, headers={"x-request-id": "hit"})
    await dac.chat(say(tokens=1), headers={"x-request-id": "alone", "cache-control": "no-store"}, org="acme")
    (turn,) = [t for t in await dac.stored_turns(2) if t["org"] == "org_demo"]

    o = await one(dac, request="lead")
    assert list(o)[5:] == [*ABOUT, *FIELDS]
    assert o["turn"] == turn["id"] and o["org"] == "org_demo" and o["level"] == "info"
    assert (o["method"], o["status"], o["role"], o["end"]) == ("POST", 200, "leader", "complete")
    assert o["route"] == "/api/threads/{id}/messages/stream"
    assert o["trace"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert 0 < o["ttft_ms"] <= o["duration_ms"] < 60000
    assert o["message"].startswith("request: POST /api/threads/{id}/messages/stream 200 complete, leader, ")
    o = await one(dac, request="follow")
    assert (o["turn"], o["role"], o["end"]) == (turn["id"], "follower", "complete") and o["ttft_ms"] >= 0
    o = await one(dac, request="hit")
    assert (o["turn"], o["role"], o["end"]) == (turn["id"], "hit", "complete") and "ttft_ms" not in o
    o = await one(dac, request="alone")
    assert (o["org"], o["role"], o["route"]) == ("acme", "bypass", "/v1/chat/completions")


async def test_bytes_are_those_on_the_wire(all_told):
    conn = await all_told.connect()
    raw = await raw_answer(conn, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-Id: w\r\nConnection: close\r\n\r\n")
    o = await one(all_told, request="w")
    assert o["bytes"] == len(raw) and "turn" not in o and "role" not in o and "org" not in o


async def test_a_client_that_leaves(all_told, mock):
    dac = all_told
    s = await dac.open_ask(await dac.thread(), say(tokens=5, barrier="never@2"), headers={"x-request-id": "gone"})
    await s.until("delta")
    s.reset()
    o = await one(dac, request="gone")
    assert (o["end"], o["status"], o["role"], o["level"]) == ("left", 200, "leader", "info")
    assert o["turn"] and o["org"] == "org_demo"
    conn = await dac.connect()
    fields = {"x-org-id": "org_demo", "x-request-id": "early"}
    await conn.send(encode_request("POST", "/v1/chat/completions", fields, dac.chat_question(say(barrier="never@0"))))
    await mock.wait(active=1)
    conn.close()
    o = await one(dac, request="early")
    assert o["end"] == "left" and "status" not in o


async def test_a_turn_that_is_cancelled(all_told, mock):
    dac = all_told
    s = await dac.open_ask(await dac.thread(), say(tokens=5, barrier="never@2"), headers={"x-request-id": "stop"})
    await s.until("delta")
    turn = s.head.get("x-dac-turn-id")
    await dac.post(f"/api/turns/{turn}/cancel", headers={"x-request-id": "stopper"})
    await s.rest()
    assert (await one(dac, request="stop"))["end"] == "cancelled"
    assert (await one(dac, request="stopper"))["turn"] == turn


async def test_reading_a_turn_names_it(all_told, mock):
    dac = all_told
    await dac.ask_json(await dac.thread(), say(tokens=1))
    (turn,) = await dac.stored_turns(1)
    await dac.get(f"/api/turns/{turn['id']}", headers={"x-request-id": "look"})
    o = await one(dac, request="look")
    assert (o["turn"], o["org"], o["route"]) == (turn["id"], "org_demo", "/api/turns/{id}")


# --- which ---


async def good_and_bad(dac, name):
    thread = await dac.thread()

    def mine(what):
        return {"x-request-id": f"{name}-{what}"}

    await dac.ask_json(thread, say(f"{name} good", tokens=1), headers=mine("good"))
    await dac.get("/nowhere", headers=mine("404"))
    await dac.ask_json(thread, say(f"{name} refused", status=400), headers=mine("400"))
    await dac.chat(say(f"{name} bad", status=500), headers=mine("bad"))
    await dac.ask_stream(thread, say(f"{name} cut", cut=2, tokens=5), headers=mine("broken"))


BAD = {"bad": ("provider_error", 502), "broken": ("cut_off", 200)}


async def test_errors_is_what_it_tells_by_default_and_a_reload_changes_that(make_dac, mock):
    dac = make_dac({"server": {"log_format": "json"}, "provider perplexity": {"retry_deadline": "0s"}}, workers=2)
    pids = dac.processes()
    await good_and_bad(dac, "one")
    for what, (end, status) in BAD.items():
        o = await one(dac, request=f"one-{what}")
        assert (o["end"], o["status"], o["level"], o["org"]) == (end, status, "warn", "org_demo") and o["turn"]
    assert len(told(dac)) == len(BAD)

    dac.sections["server"]["log_requests"] = "off"
    dac.reload()
    await asyncio.sleep(1)  # workers look at their beat
    await good_and_bad(dac, "two")
    assert len(told(dac)) == len(BAD)

    dac.sections["server"]["log_requests"] = "all"
    dac.reload()
    await asyncio.sleep(1)
    await good_and_bad(dac, "three")
    await one(dac, request="three-good")
    ends = {o["request"]: o["end"] for o in told(dac) if o["request"].startswith("three-")}
    assert ends == {
        "three-good": "complete",
        "three-404": "not_found",
        "three-400": "provider_refused",
        "three-bad": "provider_error",
        "three-broken": "cut_off",
    }
    assert dac.processes() == pids, "nobody was started anew"


async def test_all_means_all_and_errors_are_counted_in_a_storm(make_dac, mock):
    dac = make_dac({"server": {"log_requests": "all"}, "flight": {"error_ttl": "0s"}}, workers=1)
    for i in range(70):
        await dac.get("/livez", headers={"x-request-id": f"live-{i}"})
    assert len(re.findall(r"request: GET /livez 200 complete, .* request=live-\d+ org=org_demo$", dac.log, re.M)) == 70
    dac.sections["server"]["log_requests"] = "errors"
    dac.reload()
    await asyncio.sleep(1)
    await gather(*[dac.chat(say(f"storm {i}", status=500), headers={"x-request-id": f"bad-{i}"}) for i in range(70)])
    assert len(re.findall(r"request: POST .* request=bad-\d+", dac.log)) == 50
    dac.stop()
    assert re.search(r"request: POST .* \.\.\. and 19 more like this request=bad-\d+ turn=\S+ org=org_demo trace=\S+$", dac.log, re.M)


async def test_a_provider_that_fails_is_told_with_request_turn_and_org(make_dac, mock):
    dac = make_dac({"server": {"log_format": "json"}, "provider perplexity": {"retry_deadline": "0s"}}, workers=2)
    r = await dac.chat(say(status=500), headers={"x-request-id": "why"}, org="acme")
    about = [json.loads(line) for line in dac.log.splitlines() if '"request":"why"' in line]
    (line,) = [o for o in about if "route" not in o]
    assert line["message"] == 'provider "perplexity": provider_error, status 500'
    assert (line["level"], line["org"]) == ("warn", "acme")
    (turn,) = await dac.stored_turns(1)
    assert line["turn"] == turn["id"] and r.status == 502


async def test_a_takeover_is_told_with_the_turn(make_dac, mock):
    dac = make_dac({"server": {"log_format": "json", "log_requests": "all"}})
    dac.allow_log.append("signal 9")
    question = say(tokens=4, barrier="go@2")
    thread = await dac.thread()
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    traced = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    streams = [await dac.open_ask(thread, question, headers=traced) for _ in range(16)]
    for s in streams:
        await s.until("delta")
    turn = streams[0].head.get("x-dac-turn-id")
    (victim,) = [pid for pid in dac.workers() if procs.connections_to(pid, mock.port)]
    os.kill(victim, signal.SIGKILL)
    await mock.wait(calls=2)
    await mock.open("go")
    ended = await gather(*[s.rest() for s in streams])
    assert any(s.named("done") for s in ended)
    lines = [json.loads(line) for line in dac.log.splitlines() if "taken over" in line]
    assert [(o["turn"], o["org"], o["trace"]) for o in lines] == [(turn, "org_demo", trace)]


async def test_what_the_service_cuts_off(make_dac, mock):
    dac = make_dac({"server": {"log_format": "json", "drain_timeout": "200ms"}})
    s = await dac.open_ask(await dac.thread(), say(tokens=5, barrier="never@2"), headers={"x-request-id": "cut"})
    await s.until("delta")
    rest = asyncio.create_task(s.rest())
    await asyncio.to_thread(dac.stop)
    await asyncio.gather(rest, return_exceptions=True)
    (o,) = told(dac, request="cut")
    assert (o["level"], o["end"], bool(o["turn"])) == ("warn", "shutting_down", True)


async def test_a_client_that_takes_nothing(make_dac, mock):
    dac = make_dac({"server": {"log_format": "json", "client_stall_timeout": "300ms"}}, workers=1)
    question = say(tokens=4000, token_size=4096)
    options = {"rcvbuf": 4096, "limit": 4096}
    s = await dac.open_ask(await dac.thread(), question, headers={"x-request-id": "slow"}, wire_options=options)
    o = await one(dac, request="slow")
    assert (o["end"], o["status"], o["level"]) == ("stalled", 200, "warn")
    s.close()
