"""Many identical questions at once, over all workers, are exactly one upstream call, one stored
user message and one stored assistant message, and everyone gets the whole, same answer."""

import pytest

from lib.asks import ask, connected, gather, kinds, of_chat, of_chat_stream, until
from lib.dacd import STORED
from lib.provider import say


async def all_joined(dac, n):
    """Until n questions lead or follow, as all workers together count them."""

    async def joined():
        return await dac.counter("dac_leaders_total") + await dac.counter("dac_followers_total") >= n

    await until(joined, f"{n} clients have joined", timeout=40)


async def crowd(dac, mock, n, mode):
    thread = await dac.thread()
    question = say(tokens=40, gap="2ms", utf8=True, barrier="go")
    asking = [ask(dac, thread, question, kind) for kind in kinds(mode, n)]

    async def release():
        counts = await connected(dac, n)
        await all_joined(dac, n)
        await mock.open("go")
        return counts

    *answers, counts = await gather(*asking, release())
    return thread, question, answers, counts


async def check(dac, mock, thread, question, answers):
    assert await mock.calls() == 1
    text = await mock.text(question)
    assert {a.text for a in answers} == {text}
    assert {a.finish for a in answers} == {"stop"}
    assert {a.stored for a in answers} == {STORED}
    assert len({a.turn_id for a in answers}) == 1
    roles = [a.role for a in answers]
    assert roles.count("leader") == 1
    assert roles.count("follower") == len(answers) - 1
    stored = dac.messages(thread)
    assert [(m["role"], m["content"]) for m in stored] == [("user", question), ("assistant", text)]
    (turn,) = dac.turns()
    assert turn["status"] == "complete" and turn["id"] == answers[0].turn_id
    figures = (await dac.performance())["coalesce"]
    assert figures == {"leaders": 1, "followers": len(answers) - 1, "hits": 0}


@pytest.mark.smoke
@pytest.mark.parametrize("mode", ["stream", "json", "mixed"])
async def test_fifty_identical_are_one_call(dac, mock, mode):
    thread, question, answers, counts = await crowd(dac, mock, 50, mode)
    assert len(counts) == 4 and sum(map(bool, counts)) >= 2, f"clients per worker: {counts}"
    await check(dac, mock, thread, question, answers)


@pytest.mark.smoke
async def test_every_worker_takes_part(dac, mock):
    """Connections spread over all four workers, and each of them joins the one flight."""
    thread = await dac.thread()
    question = say(tokens=10, barrier="go")
    streams = []
    counts = [0] * 4
    while not all(counts):
        assert len(streams) < 400, f"clients per worker: {counts}"
        streams += [await dac.open_ask(thread, question) for _ in range(10)]
        counts = await connected(dac, len(streams))
    await mock.wait(waiting=1)
    await mock.open("go")
    await gather(*[s.rest() for s in streams])
    assert {s.text for s in streams} == {await mock.text(question)}
    assert await mock.calls() == 1


@pytest.mark.parametrize("n", [500, 2000])
@pytest.mark.limit(90)
async def test_a_crowd_is_one_call(dac, mock, n):
    thread, question, answers, counts = await crowd(dac, mock, n, "mixed")
    assert sum(map(bool, counts)) >= 3, f"clients per worker: {counts}"
    await check(dac, mock, thread, question, answers)


@pytest.mark.smoke
async def test_a_burst_without_any_order_is_one_call(dac, mock):
    """Nothing holds the answer back: some join before it, some while it runs, some behind it."""
    thread = await dac.thread()
    question = say(tokens=5)
    answers = await gather(*[ask(dac, thread, question, k) for k in kinds("mixed", 50)])
    assert await mock.calls() == 1
    assert {a.text for a in answers} == {await mock.text(question)}
    assert len(dac.messages(thread)) == 2
    figures = (await dac.performance())["coalesce"]
    assert figures["leaders"] == 1 and figures["followers"] + figures["hits"] == 49


async def test_fifty_identical_stateless_chats_are_one_call(dac, mock):
    question = say(tokens=20, gap="2ms", barrier="go")

    async def one(i):
        if i % 2:
            return of_chat(await dac.chat(question))
        return of_chat_stream(await dac.chat_stream(question))

    async def release():
        await all_joined(dac, 50)
        await mock.open("go")

    *answers, _ = await gather(*[one(i) for i in range(50)], release())
    assert await mock.calls() == 1
    assert {a.text for a in answers} == {await mock.text(question)}
    assert len({a.turn_id for a in answers}) == 1
    stored = dac.messages()
    assert [m["role"] for m in stored] == ["user", "assistant"]


@pytest.mark.smoke
async def test_fifty_different_questions_are_fifty_answers(dac, mock):
    thread = await dac.thread()
    questions = [say(f"kumquat {i}", tokens=20, gap="2ms") for i in range(50)]
    answers = await gather(
        *[ask(dac, thread, q, k) for q, k in zip(questions, kinds("mixed", 50), strict=True)]
    )
    assert await mock.calls() == 50
    assert [a.text for a in answers] == [await mock.text(q) for q in questions]
    assert len(dac.messages(thread)) == 100
