"""Renaming and deleting threads: answered after the commit, for the org's own threads only; deleting
is a mark, and what was asked before it is stored nevertheless."""

import asyncio

import pytest

from lib.asks import gather
from lib.dacd import STORED
from lib.provider import say

NOWHERE = "018f0000-0000-7000-8000-000000000001"

pytestmark = pytest.mark.store


def patch(dac, thread, body, **kw):
    return dac.request("PATCH", f"/api/threads/{thread}", body=body, **kw)


def delete(dac, thread, **kw):
    return dac.request("DELETE", f"/api/threads/{thread}", **kw)


@pytest.mark.smoke
async def test_renaming(dac, mock):
    thread = await dac.thread("old")
    made = (await dac.get(f"/api/threads/{thread}")).json()
    for title in ("Ünïcode ☃", "", None, "last"):
        r = await patch(dac, thread, {"title": title})
        assert r.status == 200, r.text
        assert r.json() == {**made, "title": title}
        assert (await dac.get(f"/api/threads/{thread}")).json() == r.json()
    dac.kill_all()
    dac.start()
    assert (await dac.get(f"/api/threads/{thread}")).json()["title"] == "last"


@pytest.mark.smoke
async def test_deleting_is_a_mark(dac, mock):
    kept, gone = await dac.thread("kept"), await dac.thread("gone")
    await dac.ask_stream(gone, say("Kumquat?", tokens=3))
    r = await delete(dac, gone)
    assert (r.status, r.body) == (204, b"")
    for r in (
        await dac.get(f"/api/threads/{gone}"),
        await dac.get(f"/api/threads/{gone}/messages"),
        await patch(dac, gone, {"title": "x"}),
        await delete(dac, gone),
        await dac.ask_json(gone, say("And now?")),
    ):
        assert r.status == 404, r.text
        assert r.json()["code"] == "thread_not_found"
    listed = (await dac.get("/api/threads/")).json()["threads"]
    assert [t["thread_id"] for t in listed] == [kept]
    row = {t["id"]: t for t in dac.sql("SELECT * FROM threads")}[gone]
    assert row["deleted_at"] and row["title"] == "gone"
    assert len(dac.messages(gone)) == 2


async def test_an_answer_that_runs_is_stored_all_the_same(dac, mock):
    thread = await dac.thread()
    question = say("Kumquat?", tokens=6, barrier="hold@2")
    s = await dac.open_ask(thread, question)
    await s.until("delta")
    assert (await delete(dac, thread)).status == 204
    await mock.open("hold")
    await s.rest()
    assert s.one("done").data["stored"] == STORED and s.text == await mock.text(question)
    (turn,) = await dac.stored_turns(1)
    assert turn["status"] == "complete"


async def test_changes_of_one_thread_keep_their_order(dac, mock):
    thread = await dac.thread()
    for n in range(20):
        await patch(dac, thread, {"title": f"title {n}"})
    assert (await dac.get(f"/api/threads/{thread}")).json()["title"] == "title 19"
    answers = await gather(*[delete(dac, thread) for _ in range(8)])
    assert {r.status for r in answers} <= {204, 404}
    assert sum(r.status == 204 for r in answers) >= 1


async def test_what_is_refused(dac, mock):
    thread = await dac.thread("mine")
    for body, field in (
        ({}, "title"),
        ({"title": 7}, "title"),
        ({"title": "x" * 513}, "title"),
        ({"name": "x"}, "name"),
    ):
        r = await patch(dac, thread, body)
        assert r.status == 400, body
        assert r.json()["field"] == field
    for r in (
        await patch(dac, thread, {"title": "x"}, org="org_other"),
        await delete(dac, thread, org="org_other"),
        await patch(dac, NOWHERE, {"title": "x"}),
        await delete(dac, NOWHERE),
    ):
        assert r.status == 404, r.text
    assert (await dac.get(f"/api/threads/{thread}")).json()["title"] == "mine"
    r = await dac.request("PUT", f"/api/threads/{thread}", body={"title": "x"})
    assert r.status == 405 and "PATCH" in r.get("allow") and "DELETE" in r.get("allow")


async def test_changes_survive_the_recorder(dac, mock):
    import os
    import signal

    dac.allow_log.append("recorder")
    threads = [await dac.thread(f"thread {n}") for n in range(12)]
    os.kill(dac.recorder(), signal.SIGSTOP)
    asked = [asyncio.create_task(patch(dac, t, {"title": "new"})) for t in threads[:6]]
    asked += [asyncio.create_task(delete(dac, t)) for t in threads[6:]]
    await asyncio.sleep(0.2)
    os.kill(dac.recorder(), signal.SIGKILL)
    done = await gather(*asked)
    assert [r.status for r in done] == [200] * 6 + [204] * 6
    rows = {t["id"]: t for t in dac.sql("SELECT * FROM threads")}
    assert all(rows[t]["title"] == "new" for t in threads[:6])
    assert all(rows[t]["deleted_at"] for t in threads[6:])
