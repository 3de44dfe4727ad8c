"""Threads: making, listing, reading, their messages, and what the provider gets of them."""

import re

import pytest

from lib.provider import say

TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z$")
UUID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$")
NOWHERE = "018f0000-0000-7000-8000-000000000001"

pytestmark = pytest.mark.store


@pytest.mark.smoke
async def test_making_and_reading(dac, mock):
    for path in ("/api/threads/", "/api/threads"):
        r = await dac.post(path, {"title": "Ünïcode ☃"})
        assert r.status == 201
        t = r.json()
        assert set(t) == {"thread_id", "title", "created_at"}
        assert UUID.match(t["thread_id"]) and TIME.match(t["created_at"])
        assert t["title"] == "Ünïcode ☃"
        assert (await dac.get(f"/api/threads/{t['thread_id']}")).json() == t
    assert (await dac.post("/api/threads/", {})).json()["title"] is None
    assert dac.sql("SELECT count(*) AS n FROM threads")[0]["n"] == 3


async def test_a_thread_is_stored_before_it_is_answered(dac, mock):
    ids = [await dac.thread() for _ in range(5)]
    dac.kill_all()
    dac.start()
    for thread in ids:
        assert (await dac.get(f"/api/threads/{thread}")).status == 200


@pytest.mark.smoke
async def test_listing_newest_first_in_pages(dac, mock):
    ids = [await dac.thread(f"thread {i}") for i in range(7)]
    await dac.thread("not mine", org="org_other")
    listed = (await dac.get("/api/threads/")).json()
    assert [t["thread_id"] for t in listed["threads"]] == ids[::-1]
    assert listed["next"] is None
    seen, after = [], ""
    while True:
        page = (await dac.get(f"/api/threads/?limit=3{after}")).json()
        assert len(page["threads"]) <= 3
        seen += [t["thread_id"] for t in page["threads"]]
        if page["next"] is None:
            break
        after = "&after=" + page["next"]
    assert seen == ids[::-1]


@pytest.mark.smoke
async def test_another_orgs_thread_is_a_404(dac, mock):
    thread = await dac.thread()
    for path in (f"/api/threads/{thread}", f"/api/threads/{thread}/messages"):
        assert (await dac.get(path)).status == 200
        assert (await dac.get(path, org="org_other")).status == 404
        assert (await dac.get(path, headers={"x-org-id": None})).status == 404
    r = await dac.ask_json(thread, say(), org="org_other")
    assert r.status == 404
    s = await dac.open_ask(thread, say(), org="org_other")
    assert s.status == 404
    await s.body()
    assert await mock.calls() == 0


async def test_threads_that_do_not_exist(dac, mock):
    for thread in (NOWHERE, "1", "x" * 36, "%00"):
        for r in (
            await dac.get(f"/api/threads/{thread}"),
            await dac.get(f"/api/threads/{thread}/messages"),
            await dac.ask_json(thread, say()),
        ):
            assert r.status in (404, 400), thread
            assert r.get("content-type").startswith("application/problem+json")
    assert await mock.calls() == 0


async def test_without_a_header_the_org_is_default(dac, mock):
    r = await dac.post("/api/threads/", {"title": "x"}, headers={"x-org-id": None})
    thread = r.json()["thread_id"]
    assert (await dac.get(f"/api/threads/{thread}", org="default")).status == 200
    assert dac.sql("SELECT org FROM threads")[0]["org"] == "default"


@pytest.mark.smoke
async def test_messages_in_order_and_in_pages(dac, mock):
    thread = await dac.thread()
    expected = []
    for i in range(4):
        question = say(f"kumquat {i}", tokens=3)
        r = await dac.ask_json(thread, question)
        expected += [("user", question), ("assistant", await mock.text(question))]
        d = r.json()
        assert d["user_message"]["content"] == question
        assert d["assistant_message"]["content"] == expected[-1][1]
    listed = (await dac.get(f"/api/threads/{thread}/messages")).json()
    assert [(m["role"], m["content"]) for m in listed["messages"]] == expected
    for m in listed["messages"]:
        assert UUID.match(m["id"]) and UUID.match(m["turn_id"]) and TIME.match(m["created_at"])
    seen, after = [], ""
    while True:
        page = (await dac.get(f"/api/threads/{thread}/messages?limit=3{after}")).json()
        seen += [m["id"] for m in page["messages"]]
        if page["next"] is None:
            break
        after = "&after=" + page["next"]
    assert seen == [m["id"] for m in listed["messages"]]
    for bad in ("limit=0", "limit=x", "after=x"):
        assert (await dac.get(f"/api/threads/{thread}/messages?{bad}")).status == 400


@pytest.mark.smoke
async def test_the_provider_gets_the_stored_history(dac, mock):
    thread = await dac.thread()
    one, two = say("first kumquat", tokens=2), say("second kumquat", tokens=2)
    await dac.ask_json(thread, one, system="Be brief.")
    await dac.ask_stream(thread, two, system="Be brief.")
    (first, second) = await mock.requests()
    system = {"role": "system", "content": "Be brief."}
    assert first["messages"] == [system, {"role": "user", "content": one}]
    assert second["messages"] == [
        system,
        {"role": "user", "content": one},
        {"role": "assistant", "content": await mock.text(one)},
        {"role": "user", "content": two},
    ]


async def test_bad_titles(dac, mock):
    for body in ({"title": 5}, {"title": ["x"]}, {"title": "x" * 100_000}, [], "x"):
        r = await dac.post("/api/threads/", body if not isinstance(body, str) else '"x"')
        assert r.status == 400, body
