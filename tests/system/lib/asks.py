"""Crowds of clients, and what every client of a crowd must have got."""

import asyncio

from lib import procs


class Answer:
    """One client's view of an answer, streamed or not, in either dialect."""

    def __init__(self, text, turn_id=None, role=None, finish=None, stored=None, raw=None):
        self.text = text
        self.turn_id = turn_id
        self.role = role
        self.finish = finish
        self.stored = stored
        self.raw = raw


def of_json(r):
    assert r.status == 200, f"{r.status}: {r.text}"
    assert r.complete
    d = r.json()
    assert d["status"] == "complete", d
    return Answer(
        d["assistant_message"]["content"], d["turn_id"], d["coalesce"], d["finish_reason"], d["stored"], r
    )


def of_stream(s):
    assert s.complete, f"the stream broke off: {s.events[-3:]}"
    assert not s.named("error"), s.named("error")
    meta, done = s.one("meta").data, s.one("done").data
    return Answer(s.text, meta["turn_id"], meta["role"], done["finish_reason"], done["stored"], s)


def of_chat(r):
    assert r.status == 200, f"{r.status}: {r.text}"
    d = r.json()
    assert d["object"] == "chat.completion"
    choice = d["choices"][0]
    return Answer(choice["message"]["content"], r.get("x-dac-turn-id"), None, choice["finish_reason"], None, r)


def of_chat_stream(s):
    assert s.complete and s.chat_done, f"no [DONE]: {s.events[-3:]}"
    finish = [c["finish_reason"] for k in s.chunks for c in k["choices"] if c.get("finish_reason")]
    assert len(finish) == 1, finish
    return Answer(s.chat_text, s.head.get("x-dac-turn-id"), None, finish[0], None, s)


async def ask(dac, thread, question, kind, **more):
    """kind: "json" or "stream", in a thread."""
    if kind == "json":
        return of_json(await dac.ask_json(thread, question, **more))
    return of_stream(await dac.ask_stream(thread, question, **more))


def kinds(mode, n):
    """What each of n clients does: all "json", all "stream", or in turn ("mixed")."""
    return [("stream", "json")[i % 2] if mode == "mixed" else mode for i in range(n)]


async def gather(*coros):
    """All results of coroutines or tasks; the first failure cancels the others."""

    async def wait(awaitable):
        return await awaitable

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait(c)) for c in coros]
    return [t.result() for t in tasks]


async def connected(dac, n, timeout=10):
    """Waits until n clients hold connections, and returns how many each worker has."""
    async with asyncio.timeout(timeout):
        while True:
            counts = [procs.connections(pid, dac.port) for pid in dac.workers()]
            if sum(counts) >= n:
                return counts
            await asyncio.sleep(0.02)


async def until(condition, what, timeout=10):
    """Waits until an async condition returns something true, and returns that."""
    try:
        async with asyncio.timeout(timeout):
            while not (value := await condition()):
                await asyncio.sleep(0.02)
            return value
    except TimeoutError:
        raise AssertionError(f"not within {timeout} s: {what}") from None
