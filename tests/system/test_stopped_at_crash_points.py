"""A process stands still in the middle of a step on shared memory, at every crash point, in every
role that comes there: the watchdog ends that process and no other, and all is as after a death."""

import asyncio
import collections
import os
import re
import signal
from pathlib import Path

import pytest

from lib import persistent
from lib.asks import until
from lib.dacd import BUILD, ROOT
from lib.provider import say
from lib.service import dacctl, fetcher_of
from test_dacctl_check import check, words
from test_deaths_under_load import all_free_again

SETTINGS = {
    "server": {"watchdog_timeout": "1s"},
    "provider perplexity": {"rps": "500", "burst": "50"},
    "flight": {"result_ttl": "200ms", "error_ttl": "100ms", "reconnect_grace": "3s", "takeover_max": "3"},
}
WAVES = 8
TOGETHER = 5  # instances that run at the same time: most of the time they wait for the watchdog

# Who comes to a point, where it is not both; a role that is not named must never come there.
ONLY = {
    "worker": "claim_before claim_after claim_filled reader_set reader_dropped index_bucket index_linked"
    " permit_before permit_after give_before give_after token_before token_after block_taken block_linked first_block"
    " takeover_adopted takeover_reset question_before declined key_claimed"
    " alias_taken alias_chained alias_linked alias_aimed alias_pushed alias_bound",
    "recorder": "recycle_unlinked recorder_adopted recorder_end_written recorder_before_stored"
    " sample_written sample_marked sample_there sample_counted timing_noting timing_half"
    " recorder_before_commit recorder_after_commit recorder_in_hand recorder_put_down unlinked release_before release_after"
    " recorder_keys_committed recorder_key_marked alias_marked alias_let_go",
}
# A worker comes there only if two ask the same at the same moment and one gives its claim back.
SELDOM = {"worker": "release_before release_after"}
# To these comes nobody unless a fetcher died before; to those, unless somebody died with a lock.
AFTER_A_DEATH = {
    "worker": "takeover_adopted takeover_reset adopt_before adopt_after declined",
    "recorder": "recorder_adopted recorder_end_written adopt_before adopt_after append_before_publish"
    " append_after_publish flight_advance_before flight_advance_after",
}
AFTER_A_LOCK_S_OWNER = "repair_before repair_after"
RARE = "block_linked"
ROLES = ("worker", "recorder")
# Flights that have keys leave soon only where room runs short.
SHORT_OF_ROOM = "alias_let_go"
# Keys come there by a rare chance only; tests/shm/test_alias.c says what a stop there leaves.
ELSEWHERE = "alias_dropped alias_replaced alias_settled alias_unlinked alias_unchained"


def points_by_file():
    """{source file: points}, of a build that has them."""
    if not (BUILD / "dacd").exists() or b"DAC_CRASH_AT" not in (BUILD / "dacd").read_bytes():
        return {}
    found = {}
    for folder in ("shm", "src"):
        for path in sorted((ROOT / folder).rglob("*.c")):
            names = set(re.findall(r'CRASH_POINT\("(\w+)"\)', path.read_text())) - set(ELSEWHERE.split())
            if names:
                found[path.stem] = sorted(names)
    return found


POINTS = points_by_file()

def comes_there(point, role):
    only = {p: r for r, names in ONLY.items() for p in names.split()}
    return only.get(point, role) == role


GROUPS = [
    pytest.param(role, [p for p in names if comes_there(p, role)], id=f"{file}-{role}")
    for file, names in POINTS.items()
    for role in ROLES
    if any(comes_there(p, role) for p in names)
]


class Case:
    """One instance in which one process stops at one point."""

    def __init__(self, make_dac, mock, folder, point, role):
        self.mock, self.point, self.role = mock, point, role
        self.once = folder / f"{role}-{point}"
        self.dies_first = point in AFTER_A_DEATH[role].split()
        self.lock_s_owner_dies = point in AFTER_A_LOCK_S_OWNER.split()
        rare = self.dies_first or self.lock_s_owner_dies or point in RARE.split()
        entries = [f"{role}/{point}:{1 if rare else 5}=STOP"]
        if self.lock_s_owner_dies:
            # The recorder mends only what no worker wants: a finished answer that it forgets.
            entries.append("worker/bucket_locked:40=KILL" if role == "worker" else "worker/reader_set:5=KILL")
        env = {"DAC_CRASH_AT": ",".join(entries), "DAC_CRASH_ONCE": str(self.once)}
        settings = SETTINGS
        if role == "recorder" and self.dies_first:
            settings = {**SETTINGS, "flight": {**SETTINGS["flight"], "on_fetcher_death": "fail"}}
        if role == "recorder" and self.lock_s_owner_dies:
            settings = {**SETTINGS, "flight": {**SETTINGS["flight"], "result_ttl": "1s"}}
        if point in SHORT_OF_ROOM.split():
            settings = {**SETTINGS, "memory": {"max_flights": "24"}}
        self.dac = make_dac(settings, env=env, workers=3, start=False)
        self.dac.allow_log.append("has not beaten")
        self.asked = 0
        self.keyed = {}  # question: what those were told who asked with its Idempotency-Key

    @property
    def note(self):
        return Path(f"{self.once}.{self.point}")

    def say(self, kind, **how):
        self.asked += 1
        return say(f"Kumquat {self.dac.name} {kind} {self.asked}?", token_size=64, **how)

    async def kill_a_fetcher(self, thread):
        """One that is in the middle of an answer, to which all workers listen."""
        question = self.say("held", tokens=10, barrier=f"{self.once.name}-{self.asked}@4")
        barrier = f"{self.once.name}-{self.asked - 1}"
        if self.point == "declined":  # by those who know no reset
            told = [asyncio.create_task(persistent.chat(self.dac, question)) for _ in range(9)]
        else:
            told = [asyncio.create_task(persistent.native(self.dac, thread, question)) for _ in range(9)]
        await self.mock.wait(waiting=1, barrier=barrier)

        os.kill(await until(lambda: a_fetcher(self.dac), "a fetcher"), signal.SIGKILL)
        await self.mock.open(barrier)
        return question, await asyncio.gather(*told)

    async def kill_a_lock_s_owner(self, thread):
        """One that gives a finished answer to a second client."""
        question = self.say("turn", tokens=2)
        told = []
        while not Path(f"{self.once}.reader_set").exists():
            try:
                r = await self.dac.ask_json(thread, question)
            except persistent.BROKEN:
                continue
            if r.complete:
                told.append(persistent.Told(r.json()["assistant_message"]["content"], r.json()["turn_id"], "done", 1))
        async with asyncio.timeout(5):
            while not self.note.exists():
                await asyncio.sleep(0.02)
        return question, told

    async def wave(self, thread):
        """[(question, what its clients were told)] of a crowd that asks at once."""
        waiting = []
        for _ in range(4):
            question = self.say("turn", tokens=25, gap="4ms")
            clients = [persistent.native(self.dac, thread, question) for _ in range(4)]
            waiting.append((question, clients + [persistent.whole(self.dac, thread, question)]))
        for _ in range(2):
            question = self.say("chat", tokens=25, gap="4ms")
            waiting.append((question, [persistent.chat(self.dac, question) for _ in range(2)]))
        for _ in range(3):
            question = self.say("turn", tokens=15, gap="4ms")
            clients = [persistent.native(self.dac, thread, question, self.key()) for _ in range(2)]
            waiting.append((question, clients + [persistent.whole(self.dac, thread, question, self.key())]))
            self.keyed[question] = []
        told = await asyncio.gather(*[asyncio.gather(*clients) for _, clients in waiting])
        told = [(question, t) for (question, _), t in zip(waiting, told, strict=True)]
        for question, clients in told[-3:]:
            self.keyed[question] += clients
            # A key of its own for a question that was answered just now.
            headers = {"Idempotency-Key": f"{question} again"}
            clients.append(await persistent.whole(self.dac, thread, question, headers))
        return told

    def key(self):
        return {"Idempotency-Key": f"{self.dac.name}-{self.asked}"}

    async def run(self):
        try:
            await asyncio.to_thread(self.dac.start)
            thread = await self.dac.thread()
            told = []
            for _ in range(WAVES):
                if self.dies_first and not self.note.exists():
                    told.append(await self.kill_a_fetcher(thread))
                if self.lock_s_owner_dies and self.role == "recorder":
                    told.append(await self.kill_a_lock_s_owner(thread))
                told += await self.wave(thread)
                if self.note.exists():
                    break
                if self.lock_s_owner_dies:  # another one mended it
                    for died in self.once.parent.glob(f"{self.once.name}.*"):
                        died.unlink()
            else:
                raise AssertionError("nobody came there; ONLY says who does")
            await until(self.restarted, "the end of what stopped")
            told += await self.wave(thread)
            await self.judge(told)
            await asyncio.to_thread(self.dac.stop)
        except BaseException as e:
            e.add_note(f"{self.role} at {self.point}; {self.dac.log_path}")
            raise

    async def restarted(self):
        by = dacctl(self.dac, "status", "--json")["restarts_by"]
        return by[self.role]["watchdog"]

    async def judge(self, told):
        await all_free_again(self.dac, self.mock)
        code, report = await asyncio.to_thread(check, self.dac)
        assert code == 0, words(report)

        # What stood still was killed, and nobody else.
        killed = re.findall(r"pid (\d+) \(slot \d+\) has not beaten", self.dac.log)
        assert killed == [self.note.read_text().strip()]
        by = dacctl(self.dac, "status", "--json")["restarts_by"]
        deaths = sum(by["worker"].values())
        assert sum(by["recorder"].values()) == (self.role == "recorder")

        stored = {t["id"]: t for t in self.dac.turns()}
        texts = collections.defaultdict(list)
        turns_of = collections.Counter()
        for m in self.dac.messages():
            if m["role"] == "assistant":
                texts[m["turn_id"]].append(m["content"])
            else:
                turns_of[m["content"]] += 1
        calls = collections.Counter(e["user"] for e in await self.mock.log("request"))
        for question, clients in told:
            right = await self.mock.text(question)
            for c in clients:
                if c.end != "done":
                    assert "chat" in question or "held" in question, (question, c.end)
                    assert right.startswith(c.text)
                    continue
                assert c.text == right
                assert stored[c.turn]["status"] == "complete" and texts[c.turn] == [right]
            # Each death of a worker can cost each answer one more call, not more.
            assert calls[question] <= turns_of[question] + deaths, question
        for question, clients in self.keyed.items():
            assert len({c.turn for c in clients}) == 1, question


async def a_fetcher(dac):
    return fetcher_of(dac)


async def never(make_dac, mock, folder, role):
    """Where a role is said not to come, it does not."""
    seldom = SELDOM.get(role, "").split()
    points = [p for names in POINTS.values() for p in names if not comes_there(p, role) and p not in seldom]
    assert points
    once = folder / f"never-{role}"
    env = {"DAC_CRASH_AT": ",".join(f"{role}/{p}=KILL" for p in points), "DAC_CRASH_ONCE": str(once)}
    dac = make_dac(SETTINGS, env=env, workers=3)
    case = Case.__new__(Case)
    case.dac, case.mock, case.once, case.asked, case.keyed = dac, mock, once, 0, {}
    case.point = None
    thread = await dac.thread()
    await case.kill_a_fetcher(thread)
    for _ in range(2):
        await case.wave(thread)
    await all_free_again(dac, mock)
    assert list(folder.glob(f"{once.name}.*")) == []


@pytest.mark.crashpoints
@pytest.mark.parametrize(("role", "points"), GROUPS)
@pytest.mark.limit(110)
async def test_a_stop_at_each_crash_point(make_dac, mock, tmp_path, role, points):
    limit = asyncio.Semaphore(TOGETHER)

    async def one(point):
        async with limit:
            await Case(make_dac, mock, tmp_path, point, role).run()

    results = await asyncio.gather(*map(one, points), return_exceptions=True)
    wrong = [r for r in results if r is not None]
    if wrong:
        raise BaseExceptionGroup(f"{len(wrong)} of {len(points)} points", wrong)


@pytest.mark.crashpoints
@pytest.mark.parametrize("role", ROLES if POINTS else [])
async def test_where_a_role_never_comes(make_dac, mock, tmp_path, role):
    await never(make_dac, mock, tmp_path, role)
