"""Text of every kind comes back as it was given, byte for byte: from memory, from every store,
from the spool and from the provider, who gets it as history. What no store can hold is refused in
a question and replaced in an answer."""

import asyncio
import contextlib
import json
import sqlite3

import pytest

from lib import asks
from lib.dacd import STORED
from lib.provider import say

pytestmark = pytest.mark.limit(110)

TEXTS = {
    "combining": "e\u0301 \u00e9 n\u0303\u0323 \u1100\u1161\u11a8 \u0915\u094d\u0937 Z\u0351\u036b\u0343\u036a\u0302",
    "compatibility": "\ufb01 \u2460 \uff21 \u212b \u00c5 \u1e9e \u0130 \u0131 \u00df \ufdfa",
    "right to left": "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u202eabc\u202c \u2067x\u2069 \u200f\u200e",
    "astral": "\U0001f600 \U0001d11e \U00020000 \U000e0001 \U0010fffd \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "noncharacters": "\ufffe \uffff \ufdd0 \ufdef \U0001fffe \U0010ffff",
    "private": "\ue000 \uf8ff \U000f0000 \U0010fffd",
    "invisible": "a\u200bb\u200cc\u200dd\u2060e\ufefff\u00adg\u034fh\u3164",
    "byte order mark first": "\ufeffb",
    "line ends": "a\rb\nc\r\nd\u0085e\u2028f\u2029g\x0bh\x0ci\n\rj",
    "controls": "".join(chr(c) for c in range(1, 32)) + "\x7f" + "".join(chr(c) for c in range(0x80, 0xA0)),
    "blanks": "  two \t\u00a0\u2003\u3000 ends \n\n ",
    "quotes": "' \" ` \\ \\\\ \\' '' \"\" $1 ${x} %s %% {} \\u0000 \\x00 \\N \\. -- /* */ ; $$ E'\\'",
    "frames": "data: x\n\ndata: [DONE]\n\nevent: done\nid: 1\r\n\r\n: c\n</script><!--&amp;&#0;",
    "replacement": "\ufffd\ufffd",
    "ends of ranges": "\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff",
}
# Characters of 4, 3 and 2 bytes at every offset from the borders of blocks, chunks and pages.
for lead in range(4):
    TEXTS[f"borders, {lead} bytes off"] = "x" * lead + "\U0001f600" * 2600 + "\u20ac" * 1500 + "\u00e9" * 1500

NEEDLE = "Kumquat"


def question(text):
    """No test's word at its end: blanks there count, too."""
    return f"{NEEDLE}: {text}"


async def answers(mock, n, text):
    """Has the next call be answered with that text, in pieces that cut its characters."""
    await mock.script({"text": text, "tokens": min(len(text), 1 + n % 7), "split": 1 + n % 5})


def raw(rows):
    return [(r["role"], bytes.fromhex(r["v"]).decode()) for r in rows]


HEX = {
    "sqlite": "SELECT role, hex(content) AS v FROM messages WHERE thread_id = ? ORDER BY created_at, role DESC",
    "postgres": "SELECT role, encode(convert_to(content, 'UTF8'), 'hex') AS v FROM messages WHERE thread_id = ?"
    " ORDER BY created_at, role DESC",
}


async def ask_all(dac, mock, thread, place, texts=tuple(TEXTS.values())):
    """Every text as a question and as its answer; returns {turn: (question, answer)}."""
    told = {}
    for n, text in enumerate(texts):
        asked = question(text)
        await answers(mock, n, text)
        if n % 2:
            s = await dac.ask_stream(thread, asked)
            turn, got, stored = s.one("meta").data["turn_id"], s.text, s.one("done").data["stored"]
        else:
            d = (await dac.ask_json(thread, asked)).json()
            turn, got, stored = d["turn_id"], d["assistant_message"]["content"], d["stored"]
            assert d["user_message"]["content"] == asked
        assert got == text and stored == place
        told[turn] = (asked, text)
    return told


async def reads_all(dac, thread, told):
    """In each way to read them."""
    listed = (await dac.get(f"/api/threads/{thread}/messages?limit=200")).json()["messages"]
    assert [m["content"] for m in listed] == [text for pair in told.values() for text in pair]
    for turn, (asked, text) in told.items():
        d = (await dac.get(f"/api/turns/{turn}")).json()
        assert d["user_message"]["content"] == asked and d["assistant_message"]["content"] == text
        s = await dac.stream(f"/api/turns/{turn}/stream", None, method="GET")
        await s.rest()
        assert s.text == text


@pytest.mark.store
async def test_texts_are_stored_and_read_as_they_were_given(dac, mock):
    thread = await dac.thread()
    told = await ask_all(dac, mock, thread, STORED)
    expected = [(role, text) for pair in told.values() for role, text in zip(("user", "assistant"), pair)]
    assert raw(dac.sql(HEX[STORED], thread)) == expected
    await reads_all(dac, thread, told)
    dac.kill_all()
    dac.start()
    await reads_all(dac, thread, told)


@pytest.mark.store
async def test_the_provider_gets_texts_as_they_were_given(dac, mock):
    thread = await dac.thread()
    short = [text for text in TEXTS.values() if len(text) < 1000]
    told = await ask_all(dac, mock, thread, STORED, short)
    dac.kill_all()
    dac.start()
    await dac.ask_json(thread, say("Kumquat at last?"))
    sent = [m["content"] for m in (await mock.requests())[-1]["messages"]]
    assert sent[:-1] == [text for pair in told.values() for text in pair] and len(sent) > 20


@pytest.mark.store
async def test_titles_are_stored_and_read_as_they_were_given(dac):
    threads = {}
    for text in TEXTS.values():
        title = text[:80]
        r = await dac.post("/api/threads/", {"title": title})
        assert r.status == 201 and r.json()["title"] == title
        threads[r.json()["thread_id"]] = title
    dac.kill_all()
    dac.start()
    for thread, title in threads.items():
        assert (await dac.get(f"/api/threads/{thread}")).json()["title"] == title
    listed = (await dac.get("/api/threads/?limit=200")).json()["threads"]
    assert {t["thread_id"]: t["title"] for t in listed} == threads
    for thread in threads:
        r = await dac.request("PATCH", f"/api/threads/{thread}", body={"title": "new " + threads[thread]})
        assert r.status == 200 and r.json()["title"] == "new " + threads[thread]


@pytest.mark.own_store
async def test_texts_pass_through_the_spool_as_they_were_given(postgres, make_dac, mock):
    dac = make_dac({"store": {"postgres": postgres.conninfo(), "commit_timeout": "500ms"}})
    dac.allow_log += ["PostgreSQL"]
    thread = await dac.thread()
    await asyncio.to_thread(postgres.stop)
    told = await ask_all(dac, mock, thread, "spool")
    expected = [(role, text) for pair in told.values() for role, text in zip(("user", "assistant"), pair)]
    with contextlib.closing(sqlite3.connect(f"file:{dac.folder / 'spool.db'}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        assert raw(db.execute(HEX["sqlite"], (thread,))) == expected
    await reads_all(dac, thread, told)
    await asyncio.to_thread(postgres.start)

    async def drained():
        return await dac.counter("dac_spool_rows") == 0 and await dac.counter("dac_store_up") == 1

    await asks.until(drained, "the spool is empty", 30)
    assert raw(postgres.sql(HEX["postgres"], thread)) == expected
    assert postgres.value("SELECT count(*) FROM rejected") == 0
    dac.kill_all()
    (dac.folder / "spool.db").unlink()
    dac.start()
    await reads_all(dac, thread, told)


# --- what cannot be stored ---

UNSTORABLE = ["\x00", "a\x00b", "\ud800", "\udfff", "\ude00\ud83d", "a\ud83d"]


@pytest.mark.store
async def test_what_cannot_be_stored_is_refused_in_a_question(dac, mock):
    thread = await dac.thread()
    for text in UNSTORABLE:
        for where, body in {
            f"/api/threads/{thread}/messages": dac.question(text),
            f"/api/threads/{thread}/messages/stream": dac.question("Kumquat?", system=text),
            "/v1/chat/completions": dac.chat_question(text),
            "/api/threads/": {"title": text},
        }.items():
            r = await dac.request(
                "POST", where, {"content-type": "application/json"}, json.dumps(body).encode()
            )
            assert r.status == 400, (where, text, r.text)
    assert await mock.calls() == 0 and dac.turns() == []


# An answer as JSON escapes, in deltas; what becomes of it.
ANSWERS = [
    (["a\\u0000b"], "a\ufffdb"),
    (["\\u0000"], "\ufffd"),
    (["a", "\\u0000", "\\u0000b"], "a\ufffd\ufffdb"),
    (["\\ud800"], "\ufffd"),
    (["x\\udfffy"], "x\ufffdy"),
    (["\\ude00\\ud83d"], "\ufffd\ufffd"),
    (["\\ud83d\\ude00"], "\U0001f600"),
    (["a\\ud83d", "\\ude00b"], "a\ufffd\ufffdb"),
    (["\\uD83D\\uD83D\\uDE00"], "\ufffd\U0001f600"),
    (["\\uffff\\ufffe\\ufdd0"], "\uffff\ufffe\ufdd0"),
]


class Escapes:
    """A provider that answers with the deltas of the call's number."""

    def __init__(self):
        self.calls = 0

    async def __call__(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(h.split(b":")[1]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length"))
        await reader.readexactly(length)
        deltas = ANSWERS[self.calls % len(ANSWERS)][0]
        self.calls += 1
        chunks = ['{"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}' % d for d in deltas]
        chunks += ['{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}', "[DONE]"]
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
            + "".join(f"data: {c}\n\n" for c in chunks).encode()
        )
        await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def escapes():
    """The url of one; the mock has no words for such answers."""
    server = await asyncio.start_server(Escapes(), "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def ask_for_escapes(dac, place):
    thread = await dac.thread()
    for n, (_, expected) in enumerate(ANSWERS):
        s = await dac.ask_stream(thread, f"Kumquat {n}?")
        assert s.text == expected and s.one("done").data["stored"] == place
    return thread


@pytest.mark.store
async def test_what_cannot_be_stored_is_replaced_in_an_answer(make_dac):
    async with escapes() as url:
        dac = make_dac(provider=url)
        thread = await ask_for_escapes(dac, STORED)
        stored = [text for role, text in raw(dac.sql(HEX[STORED], thread)) if role == "assistant"]
        assert stored == [expected for _, expected in ANSWERS]


@pytest.mark.own_store
async def test_what_cannot_be_stored_is_replaced_in_the_spool(postgres, make_dac):
    async with escapes() as url:
        dac = make_dac({"store": {"postgres": postgres.conninfo()}}, provider=url)
        dac.allow_log += ["PostgreSQL"]
        await asyncio.to_thread(postgres.stop)
        thread = await ask_for_escapes(dac, "spool")
        await asyncio.to_thread(postgres.start)

        async def all_there():
            rows = raw(await asyncio.to_thread(postgres.sql, HEX["postgres"], thread)) if await up() else []
            return [text for role, text in rows if role == "assistant"] == [expected for _, expected in ANSWERS]

        async def up():
            return await dac.counter("dac_spool_rows") == 0 and await dac.counter("dac_store_up") == 1

        await asks.until(all_there, "all are in PostgreSQL", 20)
        assert postgres.value("SELECT count(*) FROM rejected") == 0
