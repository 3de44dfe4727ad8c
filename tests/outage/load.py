"""Clients that ask without a break, remember what they were told, and hold the database to it."""

import asyncio
import contextlib

from lib.provider import say


class Load:
    """A client per thread, so that a thread has an order: nobody asks before the last answer
    was said to be stored, or was not to be had."""

    def __init__(self, dac, tokens=2, pause=0.0):
        self.dac = dac
        self.tokens = tokens
        self.pause = pause
        self.over = False
        self.told = {}  # thread: turns, in the order in which they were said to be stored
        self.titles = {}  # thread: titles that were acknowledged, in their order
        self.places = {}  # where turns were said to be: how many
        self.errors = {}  # what came instead: how often

    def _count(self, table, key):
        table[key] = table.get(key, 0) + 1

    async def _begin(self):
        """A thread, sooner or later."""
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, AssertionError):
                return await self.dac.thread()
            if self.over:
                return None
            await asyncio.sleep(0.05)

    async def _ask(self, thread, n):
        r = await self.dac.ask_json(thread, say(f"Kumquat {thread} {n}?", tokens=self.tokens), timeout=60)
        if r.status == 200:
            d = r.json()
            self.told[thread].append(d["turn_id"])
            self._count(self.places, d["stored"])
        else:
            self._count(self.errors, f"{r.status} {r.json()['code']}")
            await asyncio.sleep(0.05)

    async def _rename(self, thread, n):
        title = f"title {n}"
        self.titles[thread].append((title, False))
        r = await self.dac.request("PATCH", f"/api/threads/{thread}", body={"title": title})
        if r.status == 200:
            self.titles[thread][-1] = (title, True)

    async def _client(self, k):
        thread = await self._begin()
        if thread is None:
            return
        self.told[thread] = []
        self.titles[thread] = []
        n = 0
        while not self.over:
            n += 1
            try:
                if n % 9 == 0:
                    await self._rename(thread, n)
                else:
                    await self._ask(thread, n)
            except (OSError, asyncio.IncompleteReadError) as e:
                self._count(self.errors, type(e).__name__)
                await asyncio.sleep(0.05)
            if self.pause:
                await asyncio.sleep(self.pause)

    async def run(self, clients):
        await asyncio.gather(*[self._client(k) for k in range(clients)])

    @property
    def count(self):
        return sum(len(t) for t in self.told.values())

    # --- what must hold ---

    def gaps(self, stored):
        """At any moment: no turn is in the database before an older one of its thread."""
        problems = []
        for thread, turns in list(self.told.items()):
            here = [t in stored for t in list(turns)]
            if True in here and False in here[: len(here) - here[::-1].index(True)]:
                problems.append(f"thread {thread}: a turn has overtaken another one")
        return problems

    def lost(self, postgres):
        """At the end, with the spool empty."""
        problems = []
        rows = postgres.sql(
            "SELECT t.id, t.thread_id, t.status, (SELECT count(*) FROM messages m WHERE m.turn_id = t.id) AS n"
            " FROM turns t ORDER BY t.created_at, t.id"
        )
        by_id = {str(r["id"]): r for r in rows}
        if len(by_id) != len(rows):
            problems.append("a turn is there twice")
        for thread, turns in self.told.items():
            missing = [t for t in turns if t not in by_id]
            if missing:
                problems.append(f"acknowledged and lost: {missing}")
            half = [t for t in turns if t in by_id and (by_id[t]["status"], by_id[t]["n"]) != ("complete", 2)]
            if half:
                problems.append(f"not whole: {half}")
            mine = set(turns)
            if not missing and [t for t in by_id if t in mine] != turns:
                problems.append(f"thread {thread}: the order is another one")
        for r in postgres.sql("SELECT content FROM messages WHERE role = 'user' GROUP BY content HAVING count(*) > 1"):
            problems.append(f"stored twice: {r['content']}")
        if n := postgres.value("SELECT count(*) FROM rejected"):
            problems.append(f"{n} rows were rejected")
        titles = {str(r["id"]): r["title"] for r in postgres.sql("SELECT id, title FROM threads")}
        for thread, wanted in self.titles.items():
            acknowledged = [i for i, (_, yes) in enumerate(wanted) if yes]
            if thread not in titles:
                problems.append(f"thread {thread} is lost")
            elif acknowledged and titles[thread] not in [t for t, _ in wanted[acknowledged[-1] :]]:
                problems.append(f"thread {thread} is called {titles[thread]!r}, and not {wanted[-3:]}")
        return problems


async def drained(dac, timeout=60):
    """Until the database takes turns and the spool is empty; its figures are some moments old."""
    await asyncio.sleep(0.6)
    async with asyncio.timeout(timeout):
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if await dac.counter("dac_spool_rows") == 0 and await dac.counter("dac_store_up") == 1:
                    return
            await asyncio.sleep(0.1)
