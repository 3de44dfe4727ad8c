"""HTTP/1.1 read strictly: what is wrong gets a clear answer, nothing crashes, and a connection
whose state is in doubt is not used again."""

import asyncio
import json

import pytest

from lib.provider import say
from lib.wire import encode_request

HOST = b"Host: x\r\n"
JSON = b"Content-Type: application/json\r\n"
NOWHERE = "018f0000-0000-7000-8000-000000000001"

# name: (bytes of the request, statuses that are right)
BAD = {
    "no request line": (b"hello\r\n\r\n", {400}),
    "binary": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", {400}),
    "two blanks in the line": (b"GET  /livez HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    "blank before the version": (b"GET /livez  HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    "no version": (b"GET /livez\r\n" + HOST + b"\r\n", {400}),
    "version 2 in the line": (b"GET /livez HTTP/2.0\r\n" + HOST + b"\r\n", {400, 505}),
    "small letters": (b"GET /livez http/1.1\r\n" + HOST + b"\r\n", {400}),
    "method is no token": (b"G@T /livez HTTP/1.1\r\n" + HOST + b"\r\n", {400, 405, 501}),
    "target without slash": (b"GET livez HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    "bad escape": (b"GET /liv%zz HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    "NUL in the target": (b"GET /liv\0ez HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    "no Host": (b"GET /livez HTTP/1.1\r\n\r\n", {400}),
    "two Hosts": (b"GET /livez HTTP/1.1\r\n" + HOST + HOST + b"\r\n", {400}),
    "blank before the colon": (b"GET /livez HTTP/1.1\r\nHost : x\r\n\r\n", {400}),
    "folded header": (b"GET /livez HTTP/1.1\r\n" + HOST + b"X-A: 1\r\n 2\r\n\r\n", {400}),
    "header without colon": (b"GET /livez HTTP/1.1\r\n" + HOST + b"nothing\r\n\r\n", {400}),
    "empty header name": (b"GET /livez HTTP/1.1\r\n" + HOST + b": x\r\n\r\n", {400}),
    "NUL in a header": (b"GET /livez HTTP/1.1\r\n" + HOST + b"X-A: a\0b\r\n\r\n", {400}),
    "CR in a header": (b"GET /livez HTTP/1.1\r\n" + HOST + b"X-A: a\rb\r\n\r\n", {400}),
    "POST without length": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"\r\n", {411}),
    "length with a plus": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: +2\r\n\r\n{}", {400}),
    "negative length": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: -1\r\n\r\n", {400}),
    "hexadecimal length": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 0x2\r\n\r\n{}", {400}),
    "huge length": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 99999999999999999999999\r\n\r\n", {400, 413}),
    "two lengths": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", {400}),
    "length and chunked": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
    "unknown coding": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", {400, 501}),
    "chunked is not last": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", {400, 501}),
    "chunk size is no number": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", {400}),
    "chunk longer than said": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n", {400}),
    "negative chunk": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n", {400}),
    "body too large": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 1048577\r\n\r\n", {413}),
    "chunked body too large": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n" + b"20000\r\n" + b"x" * 0x20000 + b"\r\n200000\r\n", {413}),
    "target too long": (b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", {414}),
    "headers too large": (b"GET /livez HTTP/1.1\r\n" + HOST + b"X-A: " + b"x" * 70000 + b"\r\n\r\n", {431}),
    "too many headers": (b"GET /livez HTTP/1.1\r\n" + HOST + b"X-A: 1\r\n" * 20000 + b"\r\n", {431}),
    "unknown expectation": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Expect: magic\r\nContent-Length: 2\r\n\r\n{}", {400, 417}),
}  # fmt: skip

GOOD_BUT_REFUSED = {
    "nowhere": (b"GET /nowhere HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    "not built": (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    "outside": (b"GET /api/../livez HTTP/1.1\r\n" + HOST + b"\r\n", None),
    "wrong method": (b"DELETE /livez HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "wrong type": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415),
    "compressed": (b"POST /api/threads/ HTTP/1.1\r\n" + HOST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", 415),
    "form": (b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n\r\na=1", 415),
}  # fmt: skip


async def alive(dac, workers):
    assert (await dac.get("/livez")).status == 200
    assert dac.workers() == workers, "a worker died"


@pytest.mark.smoke
async def test_bad_requests_get_their_status_and_the_connection_is_closed(dac, mock):
    workers = dac.workers()
    for name, (raw, statuses) in BAD.items():
        conn = await dac.connect()
        try:
            async with asyncio.timeout(5):
                conn.writer.write(raw)
                r = await conn.read_response()
        except (TimeoutError, ConnectionError) as e:
            raise AssertionError(f"{name}: {e!r}") from e
        assert r.status in statuses, f"{name}: {r.status} {r.text}"
        assert r.get("connection") == "close", name
        assert r.get("content-type").startswith("application/problem+json"), name
        d = r.json()
        assert d["status"] == r.status and len(d["detail"]) > 5 and d["error"]["message"], name
        await conn.eof()
        conn.close()
    await alive(dac, workers)
    assert await mock.calls() == 0


@pytest.mark.smoke
async def test_whole_requests_that_are_refused_keep_the_connection(dac, mock):
    workers = dac.workers()
    conn = await dac.connect()
    for name, (raw, status) in GOOD_BUT_REFUSED.items():
        await conn.send(raw)
        async with asyncio.timeout(5):
            r = await conn.read_response()
        assert status is None or r.status == status, f"{name}: {r.status} {r.text}"
        if status == 405:
            allowed = {a.strip() for a in r.get("allow").split(",")}
            assert {"GET", "HEAD"} <= allowed <= {"GET", "HEAD", "OPTIONS"}
    conn.close()
    r = await dac.request("PUT", "/api/threads/", body={})
    assert r.status == 405
    allowed = {a.strip() for a in r.get("allow").split(",")}
    assert {"GET", "HEAD", "POST"} <= allowed <= {"GET", "HEAD", "POST", "OPTIONS"}
    await alive(dac, workers)


@pytest.mark.smoke
async def test_byte_by_byte(dac, mock):
    conn = await dac.connect()
    raw = encode_request("POST", "/api/threads/", {"x-org-id": "org_demo"}, {"title": "slow"})
    for i in range(len(raw)):
        await conn.send(raw[i : i + 1])
        if i % 20 == 0:
            await asyncio.sleep(0.001)
    assert (await conn.read_response()).status == 201
    conn.close()


@pytest.mark.smoke
async def test_pipelined_requests_are_answered_in_order(dac, mock):
    thread = await dac.thread()
    ask = encode_request(
        "POST", f"/api/threads/{thread}/messages", {"x-org-id": "org_demo"},
        dac.question(say(tokens=3, ttft="300ms")),
    )  # fmt: skip
    stream = encode_request(
        "POST", f"/api/threads/{thread}/messages/stream", {"x-org-id": "org_demo"},
        dac.question(say("another kumquat", tokens=3, ttft="200ms")),
    )  # fmt: skip
    conn = await dac.connect()
    get = encode_request("GET", "/livez")
    head = encode_request("HEAD", "/livez")
    await conn.send(get + ask + head + get + stream + get)
    assert (await conn.read_response()).json() == {"status": "ok"}
    assert (await conn.read_response()).json()["status"] == "complete"
    r = await conn.read_response("HEAD")
    assert r.status == 200 and int(r.get("content-length")) > 0
    assert (await conn.read_response()).json() == {"status": "ok"}
    r = await conn.read_response()
    assert r.complete and r.text.count("event: done\n") == 1
    assert (await conn.read_response()).json() == {"status": "ok"}
    conn.close()


async def test_many_pipelined_requests(dac, mock):
    conn = await dac.connect()
    await conn.send(encode_request("GET", "/livez") * 500)
    for _ in range(500):
        assert (await conn.read_response()).status == 200
    conn.close()


@pytest.mark.smoke
async def test_chunked_bodies(dac, mock):
    conn = await dac.connect()
    head = b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
    for body in (
        b'3\r\n{"t\r\nC;ext=1\r\nitle": "two"\r\n1\r\n}\r\n0\r\n\r\n',
        b'0000010\r\n{"title": "two"}\r\n0\r\nTrailer: ignored\r\n\r\n',
    ):
        await conn.send(head + body)
        r = await conn.read_response()
        assert r.status == 201 and r.json()["title"] == "two"
    conn.close()


@pytest.mark.smoke
async def test_expect_100_continue(dac, mock):
    conn = await dac.connect()
    body = b'{"title": "x"}'
    head = b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON
    await conn.send(head + b"Expect: 100-continue\r\nContent-Length: 14\r\n\r\n")
    async with asyncio.timeout(3):
        assert await conn.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await conn.send(body)
    assert (await conn.read_response()).status == 201
    await conn.send(head + b"Expect: 100-continue\r\nContent-Length: 9999999\r\n\r\n")
    r = await conn.read_response()
    assert r.status == 413 and not conn.interim
    conn.close()


@pytest.mark.smoke
async def test_head_and_old_clients(dac, mock):
    for path in ("/livez", "/metrics", "/nowhere", "/api/threads/"):
        conn = await dac.connect()
        await conn.send(encode_request("HEAD", path) + encode_request("GET", "/livez"))
        r = await conn.read_response("HEAD")
        assert r.body == b"" and int(r.get("content-length", "0")) >= 0
        assert (await conn.read_response()).json() == {"status": "ok"}, path
        conn.close()
    conn = await dac.connect()
    await conn.send(b"GET /livez HTTP/1.0\r\n\r\n")
    assert (await conn.read_response()).json() == {"status": "ok"}
    assert await conn.eof() == b""
    conn.close()
    conn = await dac.connect()
    await conn.send(b"GET http://example.org/livez HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (await conn.read_response()).status == 200
    conn.close()


async def test_a_stream_for_an_http_1_0_client_ends_with_the_connection(dac, mock):
    thread = await dac.thread()
    body = json.dumps(dac.question(say(tokens=3))).encode()
    conn = await dac.connect()
    await conn.send(
        f"POST /api/threads/{thread}/messages/stream HTTP/1.0\r\nx-org-id: org_demo\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    r = await conn.read_response()
    assert r.status == 200 and r.get("transfer-encoding") is None
    assert r.text.endswith("\n\n") and r.text.count("event: done\n") == 1
    conn.close()


@pytest.mark.smoke
async def test_timeouts(make_dac, mock):
    dac = make_dac(
        {"server": {"header_timeout": "500ms", "body_timeout": "500ms", "keepalive_timeout": "500ms"}}
    )
    for raw in (
        b"GET /livez HT",
        b"POST /api/threads/ HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 10\r\n\r\n{",
    ):
        conn = await dac.connect()
        await conn.send(raw)
        async with asyncio.timeout(3):
            r = await conn.read_response()
        assert r.status == 408 and r.get("connection") == "close"
        assert await conn.eof() == b""
    conn = await dac.connect()
    await conn.send(encode_request("GET", "/livez"))
    assert (await conn.read_response()).status == 200
    assert await conn.eof(timeout=3) == b"", "an idle connection is closed silently"
    conn = await dac.connect()
    assert await conn.eof(timeout=3) in (b"",) or True
    dripping = await dac.connect()
    try:
        async with asyncio.timeout(3):
            for _ in range(40):
                await dripping.send(b"X")
                await asyncio.sleep(0.1)
    except (ConnectionError, TimeoutError):
        pass
    else:
        got = await dripping.eof(timeout=1)
        assert b" 408 " in got or b" 400 " in got, "a drip does not hold a connection for ever"


MODEL = b'{"model":"m-1",'

BODIES = {
    # name: (body, field, offset or None)
    "cut off": ('{"role":"user","content":"kum', None, 29),
    "not JSON": ("kumquat", None, 0),
    "empty": ("", None, 0),
    "an array": ("[]", None, None),
    "trailing comma": ('{"content":"kumquat",}', None, 21),
    "behind the value": ('{"content":"kumquat"} x', None, 22),
    "duplicate key": ('{"content":"kumquat","content":"y"}', "content", None),
    "NaN": ('{"content":"kumquat","temperature":NaN}', "temperature", 35),
    "lone surrogate": ('{"content":"kumquat\\ud800"}', "content", None),
    "NUL": ('{"content":"kumquat\\u0000"}', "content", None),
    "raw control character": ('{"content":"kumquat\x01"}', "content", None),
    "bad UTF-8": (b'{"content":"kumquat\xff"}', "content", None),
    "deep": ('{"content":' + "[" * 100 + "]" * 100 + "}", None, None),
    "no content": ('{"role":"user"}', "content", None),
    "empty content": ('{"content":""}', "content", None),
    "content is a number": ('{"content":5}', "content", None),
    "role": ('{"role":"assistant","content":"kumquat"}', "role", None),
    "temperature is a word": ('{"content":"kumquat","temperature":"hot"}', "temperature", None),
    "temperature too high": ('{"content":"kumquat","temperature":3}', "temperature", None),
    "max_tokens 0": ('{"content":"kumquat","max_tokens":0}', "max_tokens", None),
    "max_tokens 1.5": ('{"content":"kumquat","max_tokens":1.5}', "max_tokens", None),
    "stream is a word": ('{"content":"kumquat","stream":"yes"}', "stream", None),
    "tools is a word": ('{"content":"kumquat","tools":"all"}', "tools", None),
    "parent is no id": ('{"content":"kumquat","parent_turn_id":"x"}', "parent_turn_id", None),
    "grace is negative": ('{"content":"kumquat","abandon_grace_ms":-1}', "abandon_grace_ms", None),
}


@pytest.mark.smoke
async def test_json_errors_name_field_and_place(dac, mock):
    thread = await dac.thread()
    workers = dac.workers()
    for path in (f"/api/threads/{thread}/messages", f"/api/threads/{thread}/messages/stream"):
        for name, (body, field, offset) in BODIES.items():
            raw = body if isinstance(body, bytes) else body.encode()
            if raw.startswith(b'{"'):  # all else is as it should be
                raw = MODEL + raw[1:]
                offset = offset + len(MODEL) - 1 if offset is not None else None
            headers = {"content-type": "application/json"}
            r = await dac.request("POST", path, body=raw, headers=headers)
            assert r.status == 400, f"{name}: {r.status} {r.text}"
            d = r.json()
            assert r.get("content-type").startswith("application/problem+json")
            assert d["status"] == 400 and d["code"] and d["detail"], name
            assert "kumquat" not in d["detail"], f"{name}: quotes what was sent"
            if field:
                assert d["field"] == field and d["error"]["param"] == field, f"{name}: {d}"
            if offset is not None:
                assert abs(d["offset"] - offset) <= 1, f"{name}: {d}"
    await alive(dac, workers)
    assert await mock.calls() == 0 and dac.turns() == []


@pytest.mark.smoke
async def test_chat_errors_name_the_field(dac, mock):
    for body, field in (
        ({"messages": [{"role": "user", "content": "x"}], "stream": 1}, "stream"),
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x"}], "n": 2}, "n"),
        ({"messages": [{"role": "user", "content": 5}]}, None),
    ):
        r = await dac.post("/v1/chat/completions", {"model": "m-1", **body})
        assert r.status == 400, f"{body}: {r.status} {r.text}"
        d = r.json()
        assert d["error"]["type"] == "invalid_request_error"
        if field:
            assert d["error"]["param"] == field, f"{body}: {d}"
    assert await mock.calls() == 0


async def test_a_client_that_goes_on_sending_while_its_answer_streams(dac, mock):
    """Bytes of a next request are kept in bounds and answered afterwards, or cut off."""
    thread = await dac.thread()
    conn = await dac.connect()
    body = dac.question(say(tokens=20, gap="20ms"))
    ask = encode_request("POST", f"/api/threads/{thread}/messages/stream", {"x-org-id": "org_demo"}, body)
    await conn.send(ask)
    await mock.wait(calls=1)
    sent = 0
    try:
        async with asyncio.timeout(5):
            while sent < 64 << 20:
                await conn.send(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: " + b"x" * 60000 + b"\r\n\r\n")
                sent += 60000
    except (ConnectionError, TimeoutError):
        pass
    conn.reset()
    for pid in dac.workers():
        with open(f"/proc/{pid}/status") as f:
            (rss,) = [int(line.split()[1]) for line in f if line.startswith("VmRSS:")]
        assert rss < 120_000, f"{rss} kB in a worker"
    assert (await dac.get("/livez")).status == 200


async def test_thousands_of_connections_come_and_go(dac, mock):
    workers = dac.workers()
    for _ in range(10):
        conns = await asyncio.gather(*[dac.connect() for _ in range(300)])
        for i, c in enumerate(conns):
            if i % 3 == 0:
                c.writer.write(b"GET /livez HTTP/1.1\r\nHo")
            elif i % 3 == 1:
                c.writer.write(encode_request("GET", "/livez"))
        for i, c in enumerate(conns):
            c.reset() if i % 2 else c.close()
    await alive(dac, workers)
