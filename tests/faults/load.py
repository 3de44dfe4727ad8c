"""A mix of requests whose every answer is judged: right and whole, an honest error, or broken off."""

import asyncio
import re
import time

from lib.provider import say
from lib.service import dacctl

PATIENCE = 20  # seconds until an answer counts as hanging
BROKEN = (ConnectionError, asyncio.IncompleteReadError, EOFError)
RUNNING = ("claimed", "queued", "fetching", "streaming", "orphaned")


class Wrong(AssertionError):
    """An answer that no fault excuses."""


def _refused(status, text):
    """Whether it is an error that says whose fault it is; "not found" or "bad request" is none."""
    if status in (502, 503, 504) or (status == 500 and "not_stored" in text):
        return
    raise Wrong(f"status {status}: {text[:300]}")


async def _stream(open_stream):
    """A stream that was answered 200, read to its end; None: refused or broken before."""
    try:
        s = await open_stream
        if s.status != 200:
            _refused(s.status, (await s.body()).decode())
            return None
        return await s.rest(PATIENCE)
    except BROKEN:
        return None


async def _json(asked):
    """A whole answer with status 200; None: refused or broken off."""
    try:
        r = await asked
    except BROKEN:
        return None
    if not r.complete:
        return None
    if r.status != 200:
        _refused(r.status, r.text)
        return None
    return r


async def native_stream(dac, mock, thread, question, acknowledged, key=None):
    s = await _stream(dac.open_ask(thread, question, {"Idempotency-Key": key}))
    if s is None:
        return
    done, errors = s.named("done"), s.named("error")
    if not s.complete:
        if done:
            raise Wrong(f"broken off behind its end: {s.names()}")
        return
    if len(done) + len(errors) != 1:
        raise Wrong(f"neither an end nor an error: {s.names()}")
    if errors:
        if not errors[0].data["code"]:
            raise Wrong(f"an error without a code: {errors[0].data}")
        return
    if done[0].data["finish_reason"] == "cancelled":
        return
    text = await mock.text(question)
    if s.text != text:
        raise Wrong(f"text {s.text!r} instead of {text!r}")
    acknowledged.append((s.one("meta").data["turn_id"], text))


async def native_json(dac, mock, thread, question, acknowledged, key=None):
    r = await _json(dac.ask_json(thread, question, {"Idempotency-Key": key}, timeout=PATIENCE))
    if r is None:
        return
    d = r.json()
    if d["status"] == "cancelled":
        return
    text = await mock.text(question)
    if d["status"] != "complete" or d["assistant_message"]["content"] != text:
        raise Wrong(f"{d} instead of {text!r}")
    acknowledged.append((d["turn_id"], text))


async def chat_stream(dac, mock, question, acknowledged):
    s = await _stream(dac.open_chat(question, temperature=0.25))
    if s is None or (not s.complete and not s.chat_done):
        return
    if not s.chat_done:
        if not s.events or "error" not in (s.chunks or [{}])[-1]:
            raise Wrong(f"neither [DONE] nor an error: {s.events[-3:]}")
        return
    text = await mock.text(question)
    if s.chat_text != text:
        raise Wrong(f"text {s.chat_text!r} instead of {text!r}")
    acknowledged.append((s.head.get("x-dac-turn-id"), text))


async def chat_json(dac, mock, question, acknowledged):
    r = await _json(dac.chat(question, timeout=PATIENCE, top_p=0.5))
    if r is None:
        return
    text = await mock.text(question)
    got = r.json()["choices"][0]["message"]["content"]
    if got != text:
        raise Wrong(f"text {got!r} instead of {text!r}")
    acknowledged.append((r.get("x-dac-turn-id"), text))


async def plain(dac, method, path, body=None, want=(200,)):
    try:
        r = await dac.request(method, path, body=body, timeout=PATIENCE)
    except BROKEN:
        return
    if r.complete and r.status not in want:
        _refused(r.status, r.text)
    elif r.complete and r.get("content-type", "").startswith("application/json"):
        r.json()


async def mix(dac, mock, thread, label, acknowledged):
    """One of everything at once; raises Wrong or TimeoutError."""

    def ask(what, **more):
        return say(f"{what} kumquat {label}?", tokens=6, token_size=12, **more)

    shared = ask("Shared")
    mine, old = f"a key {label}", f"an old key {thread}"  # the second stands for a turn of the first mix
    asked_before = say("Old kumquat?", tokens=6, token_size=12)
    await asyncio.gather(
        native_stream(dac, mock, thread, shared, acknowledged),
        native_stream(dac, mock, thread, shared, acknowledged),
        native_json(dac, mock, thread, shared, acknowledged),
        native_json(dac, mock, thread, ask("Own"), acknowledged),
        native_json(dac, mock, thread, ask("Keyed"), acknowledged, mine),
        native_stream(dac, mock, thread, ask("Keyed"), acknowledged, mine),
        native_json(dac, mock, thread, asked_before, acknowledged, old),
        native_stream(dac, mock, thread, asked_before, acknowledged, old),
        chat_stream(dac, mock, ask("Chat"), acknowledged),
        chat_json(dac, mock, ask("Whole"), acknowledged),
        plain(dac, "POST", "/api/threads/", {"title": "kumquats"}, (201,)),
        plain(dac, "GET", f"/api/threads/{thread}/messages"),
        plain(dac, "GET", "/metrics"),
        plain(dac, "GET", "/api/metrics/performance"),
    )


def crashes(dac):
    """Lines about processes that ended by a signal that no test sent, or on an assertion."""
    return [
        line
        for line in dac.log.splitlines()
        if (re.search(r"was ended by signal (?!9 )|core dumped", line))
        or re.search(r"assert", line, re.IGNORECASE)
    ]


async def settled(dac, mock, timeout=12):
    """Waits until no flight runs, every permit is back, and all that ended is stored."""
    await mock.wait(active=0, timeout=f"{timeout}s")
    deadline = time.monotonic() + timeout
    while True:
        status = await asyncio.to_thread(dacctl, dac, "status", "--json")
        running = {s: n for s in RUNNING if (n := status["flights"].get(s))}
        permits = sum(p["in_flight"] for p in status["providers"])
        if not running and permits == 0 and status["flights"]["unstored"] == 0:
            return status
        if time.monotonic() > deadline:
            raise Wrong(f"stuck: {running}, {permits} permits, {status['flights']}")
        await asyncio.sleep(0.05)


async def empty(dac, timeout=15):
    """Waits until no flight and no block is in use, their times to live being short."""
    deadline = time.monotonic() + timeout
    while True:
        status = await asyncio.to_thread(dacctl, dac, "status", "--json")
        if status["flights"]["free"] == status["flights"]["total"] and status["blocks"]["used"] == 0:
            return
        assert time.monotonic() < deadline, (status["flights"], status["blocks"])
        await asyncio.sleep(0.1)


def stored_once(dac, acknowledged):
    """Every acknowledged turn is in the database with its whole text, once."""
    rows = dac.sql(
        "SELECT t.id, t.status, m.content FROM turns t JOIN messages m ON m.turn_id = t.id"
        " WHERE m.role = 'assistant'"
    )
    found = {}
    for row in rows:
        found.setdefault(row["id"], []).append(row)
    for turn, text in acknowledged:
        got = found.get(turn) or found.get(turn.replace("-", ""))
        assert got and len(got) == 1, f"turn {turn}: {got}"
        assert (got[0]["status"], got[0]["content"]) == ("complete", text), got


async def all_is_well(dac, acknowledged):
    """At the end: structures are sound, what was acknowledged is stored, nothing is in use."""
    dacctl(dac, "check")
    stored_once(dac, acknowledged)
    await empty(dac)
